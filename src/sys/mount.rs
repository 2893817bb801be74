//! Mounts by descriptor: open_tree(2), move_mount(2), mount_setattr(2), fsopen(2).

use super::{Call, Result, owned, raw, show, syscall};
use nix::NixPath;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Flags of mount_setattr(2) and their kin: `struct mount_attr` of <linux/mount.h>.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub attr_set: u64,
    /// MOUNT_ATTR_* to clear.
    pub attr_clr: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0 to leave it.
    pub propagation: u64,
    /// A user namespace's descriptor for MOUNT_ATTR_IDMAP.
    pub userns_fd: u64,
}

/// Which part of a tree a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The mount alone.
    Mount,
    /// The mount and all below it.
    Tree,
}

impl Depth {
    fn flag(self) -> usize {
        match self {
            Depth::Mount => 0,
            Depth::Tree => libc::AT_RECURSIVE as usize,
        }
    }
}

/// Copies the mount at `path` (or `dir` itself, where `path` is empty) into a detached one.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, depth: Depth) -> Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE as usize
        | libc::OPEN_TREE_CLOEXEC as usize
        | depth.flag()
        | if NixPath::is_empty(path) { libc::AT_EMPTY_PATH as usize } else { 0 };
    path.with_nix_path(|path| {
        // SAFETY: a C string and plain numbers.
        unsafe { syscall(libc::SYS_open_tree, [raw(dir), path.as_ptr() as usize, flags, 0, 0, 0]) }
    })
    .and_then(|result| result)
    .map(owned)
    .call(|| {
        let depth = if depth == Depth::Tree { "|AT_RECURSIVE" } else { "" };
        format!("open_tree({}, {path:?}, OPEN_TREE_CLONE{depth})", show(dir))
    })
}

/// Attaches a detached mount on `target`, or on `name` in it where `name` isn't empty.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let mut flags = libc::MOVE_MOUNT_F_EMPTY_PATH as usize;
    if name.is_empty() {
        flags |= libc::MOVE_MOUNT_T_EMPTY_PATH as usize;
    }
    // SAFETY: C strings and plain numbers.
    unsafe {
        syscall(
            libc::SYS_move_mount,
            [raw(tree), c"".as_ptr() as usize, raw(target), name.as_ptr() as usize, flags, 0],
        )
    }
    .map(drop)
    .call(|| format!("move_mount({}, \"\", {}, {name:?})", show(tree), show(target)))
}

/// Changes the attributes of the mount that `mount` refers to.
pub fn set_attributes(mount: BorrowedFd<'_>, depth: Depth, attr: &MountAttr) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH as usize | depth.flag();
    // SAFETY: `attr` is a `struct mount_attr` of the size that is passed along.
    unsafe {
        syscall(
            libc::SYS_mount_setattr,
            [
                raw(mount),
                c"".as_ptr() as usize,
                flags,
                std::ptr::from_ref(attr) as usize,
                size_of::<MountAttr>(),
                0,
            ],
        )
    }
    .map(drop)
    .call(|| {
        format!(
            "mount_setattr({}, set={:#x}, clr={:#x}, propagation={:#x})",
            show(mount),
            attr.attr_set,
            attr.attr_clr,
            attr.propagation
        )
    })
}

/// A file system that is being configured (fsopen(2)).
pub struct FileSystem(OwnedFd);

const FSCONFIG_SET_FLAG: usize = 0;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;

impl FileSystem {
    /// Opens a file system of type `kind`.
    pub fn open(kind: &CStr) -> Result<Self> {
        const FSOPEN_CLOEXEC: usize = 1;
        // SAFETY: a C string and plain numbers.
        unsafe { syscall(libc::SYS_fsopen, [kind.as_ptr() as usize, FSOPEN_CLOEXEC, 0, 0, 0, 0]) }
            .map(|fd| FileSystem(owned(fd)))
            .call(|| format!("fsopen({kind:?})"))
    }

    /// Sets an option: a flag, or a key with a value.
    pub fn set(&self, key: &CStr, value: Option<&CStr>) -> Result<()> {
        let (command, value_address) = match value {
            None => (FSCONFIG_SET_FLAG, 0),
            Some(value) => (FSCONFIG_SET_STRING, value.as_ptr() as usize),
        };
        self.configure(command, key.as_ptr() as usize, value_address).call(|| match value {
            None => format!("fsconfig(FSCONFIG_SET_FLAG, {key:?})"),
            Some(value) => format!("fsconfig(FSCONFIG_SET_STRING, {key:?}, {value:?})"),
        })
    }

    /// Makes the file system, and a detached mount of it with the MOUNT_ATTR_* `attributes`.
    pub fn mount(&self, attributes: u64) -> Result<OwnedFd> {
        const FSMOUNT_CLOEXEC: usize = 1;
        self.configure(FSCONFIG_CMD_CREATE, 0, 0).call(|| "fsconfig(FSCONFIG_CMD_CREATE)".into())?;
        // SAFETY: plain numbers.
        unsafe {
            syscall(libc::SYS_fsmount, [raw(self.0.as_fd()), FSMOUNT_CLOEXEC, attributes as usize, 0, 0, 0])
        }
        .map(owned)
        .call(|| format!("fsmount({attributes:#x})"))
    }

    /// It has served.
    pub fn leave(self) {
        super::file::leave(self.0);
    }

    fn configure(&self, command: usize, key: usize, value: usize) -> nix::Result<()> {
        // SAFETY: key and value are null or C strings that the callers hold.
        unsafe { syscall(libc::SYS_fsconfig, [raw(self.0.as_fd()), command, key, value, 0, 0]) }.map(drop)
    }

    /// What the kernel has said about a failure, such as `tmpfs: Unknown parameter 'x'`.
    pub fn complaint(self) -> Option<String> {
        let mut text = String::new();
        let mut messages = File::from(self.0);
        let mut buffer = [0; 1024];
        // One message a read; ENODATA ends them. The first letter is the level: e, w or i.
        while let Ok(length @ 3..) = messages.read(&mut buffer) {
            if buffer[0] == b'e' {
                let message = String::from_utf8_lossy(&buffer[2..length]);
                if !text.is_empty() {
                    text.push_str("; ");
                }
                text.push_str(message.trim());
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

/// Mounts in the classic way (mount(2)), for what the calls above can't do in one go.
pub fn mount(
    source: Option<&CStr>,
    target: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> Result<()> {
    let flags = nix::mount::MsFlags::from_bits_retain(flags);
    nix::mount::mount(source, target, kind, flags, data).call(|| {
        let text = |part: Option<&CStr>| part.map_or("NULL".into(), |part| format!("{part:?}"));
        let (source, kind, data) = (text(source), text(kind), text(data));
        format!("mount({source}, {target:?}, {kind}, {:#x}, {data})", flags.bits())
    })
}

/// Detaches the mount at `target` with all below it.
pub fn detach(target: &Path) -> Result<()> {
    nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH)
        .call(|| format!("umount2({target:?}, MNT_DETACH)"))
}

/// Makes the working directory, which is a mount, the root, and the old root the working
/// directory (pivot_root(2), "pivot_root(".", ".")").
pub fn pivot_root_here() -> Result<()> {
    nix::unistd::pivot_root(c".", c".").call(|| "pivot_root(\".\", \".\")".into())
}
