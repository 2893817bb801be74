//! `linux.devices`, the default devices, and the links of /dev.

use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Error, Pointer, Result};
use crate::root::{Links, normal};
use crate::sys::mount::{self, Depth};
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Makes device nodes.
#[derive(Debug, PartialEq, Eq)]
pub struct Devices {
    nodes: Vec<Node>,
    /// Whether they are bound from the host, because a user namespace can't make any.
    bound: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    at: Pointer,
    path: PathBuf,
    kind: SFlag,
    number: u64,
    mode: Mode,
    owner: (u32, u32),
}

/// config-linux.md, "Default Devices": path and minor number, all of major number 1 but the last.
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Whether the configuration mounts a procfs where one is looked for.
pub fn has_procfs(spec: &Spec) -> bool {
    list(spec.mounts()).iter().any(|mount| {
        mount.typ().as_deref() == Some("proc") && normal(mount.destination()) == Path::new("/proc")
    })
}

/// Whether the host's /dev is the container's: then nothing is made in it.
pub fn has_hosts_dev(spec: &Spec) -> bool {
    list(spec.mounts()).iter().any(|mount| {
        let by_option = list(mount.options()).iter().any(|option| option == "bind" || option == "rbind");
        (by_option || mount.typ().as_deref() == Some("bind"))
            && normal(mount.destination()) == Path::new("/dev")
    })
}

/// Where there are devices: those of the configuration, and the default ones.
pub fn paths(linux: Option<&Linux>) -> Vec<PathBuf> {
    Devices::plan(linux, false).nodes.into_iter().map(|node| node.path).collect()
}

impl Devices {
    /// The default devices, and the configured ones, which come in place of default ones.
    pub fn plan(linux: Option<&Linux>, user_namespace: bool) -> Self {
        let configured = linux.map_or(&[][..], |linux| list(linux.devices()));
        let at = Pointer::to("/linux/devices");
        let replaced = |path: &str| configured.iter().any(|device| normal(device.path()) == Path::new(path));
        let defaults =
            DEFAULTS.into_iter().filter(|(path, ..)| !replaced(path)).map(|(path, major, minor)| Node {
                at: at.clone(),
                path: path.into(),
                kind: SFlag::S_IFCHR,
                number: makedev(major, minor),
                mode: Mode::from_bits_truncate(0o666),
                owner: (0, 0),
            });
        let configured = configured
            .iter()
            .enumerate()
            .map(|(index, device)| node(device, at.index(index)))
            // The multiplexer is the container's own, which `DevLinks` links to.
            .filter(|node| node.path != Path::new("/dev/ptmx"));
        Devices { nodes: defaults.chain(configured).collect(), bound: user_namespace }
    }
}

fn node(device: &LinuxDevice, at: Pointer) -> Node {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        _ => SFlag::S_IFCHR,
    };
    let number =
        if kind == SFlag::S_IFIFO { 0 } else { makedev(device.major() as u64, device.minor() as u64) };
    Node {
        at,
        path: normal(device.path()),
        kind,
        number,
        mode: Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666)),
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.bound { "bind devices" } else { "make devices" })?;
        self.nodes.iter().try_for_each(|node| write!(f, " {}", node.path.display()))
    }
}

impl Step for Devices {
    fn apply(&self, init: &mut Init) -> Result<()> {
        for node in &self.nodes {
            let (dir, name) = init.root()?.parent(&node.path).at(&node.at)?;
            node.make(dir.as_fd(), name, self.bound)
                .doing(|| format!("cannot make device {:?}", node.path))
                .at(&node.at)?;
        }
        Ok(())
    }
}

impl Node {
    fn make(&self, dir: BorrowedFd<'_>, name: &OsStr, bound: bool) -> Result<()> {
        if bound && self.kind != SFlag::S_IFIFO {
            return self.bind(dir, name);
        }
        match mknodat(dir, name, self.kind, self.mode, self.number) {
            Err(Errno::EEXIST) => return self.check_existing(dir, name),
            // A container within one that may not make devices.
            Err(Errno::EPERM) if self.kind != SFlag::S_IFIFO => return self.bind(dir, name),
            other => {
                other.call(|| format!("mknodat({name:?}, {:#o})", self.kind.bits() | self.mode.bits()))?
            }
        }
        if self.owner != (0, 0) {
            let (uid, gid) = self.owner;
            fchownat(dir, name, Some(uid.into()), Some(gid.into()), AtFlags::AT_SYMLINK_NOFOLLOW)
                .call(|| format!("fchownat({name:?}, {uid}, {gid})"))?;
        }
        Ok(())
    }

    /// What is there already must be the device that was asked for (config-linux.md, "Devices").
    fn check_existing(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        match kind == self.kind && (kind == SFlag::S_IFIFO || stat.st_rdev == self.number) {
            true => Ok(()),
            false => Err(Error::new("there is another file in its place")),
        }
    }

    fn bind(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let host = mount::clone_tree(AT_FDCWD, &self.path, Depth::Mount)?;
        let stat = fstat(host.as_fd()).call(|| format!("fstat({:?})", self.path))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != self.kind || stat.st_rdev != self.number
        {
            return Err(Error::new("the host has another device there"));
        }
        let flags =
            OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let target = openat(dir, name, flags, Mode::empty())
            .call(|| format!("openat({name:?}, O_CREAT|O_NOFOLLOW)"))?;
        Ok(mount::attach(host.as_fd(), target.as_fd(), c"")?)
    }
}

/// Makes the links of /dev (runtime-linux.md, "Dev symbolic links"), and /dev/ptmx.
pub struct DevLinks {
    /// Whether the configuration mounts a procfs, so that there is no need to look for it.
    pub procfs: bool,
}

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

impl fmt::Display for DevLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("make links /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/core /dev/ptmx")
    }
}

impl Step for DevLinks {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let root = init.root()?;
        let (dev, _) = root.parent(Path::new("/dev/fd"))?;
        // "If the source file exists": without a procfs it doesn't.
        let exists = |path: &str| root.resolve(Path::new(path), OFlag::O_PATH, Links::Follow).is_ok();
        if self.procfs || exists("/proc/self/fd") {
            for (name, target) in LINKS {
                link(dev.as_fd(), name, target)?;
            }
        }
        if exists("/proc/kcore") {
            link(dev.as_fd(), "core", "/proc/kcore")?;
        }
        if symlinkat("pts/ptmx", &*dev, "ptmx") == Err(Errno::EEXIST) {
            // An image's own, or a node, would be the host's multiplexer.
            unlinkat(&*dev, "ptmx", UnlinkatFlags::NoRemoveDir)
                .call(|| "unlinkat(\"ptmx\")".into())
                .doing(|| "cannot replace /dev/ptmx".into())?;
            link(dev.as_fd(), "ptmx", "pts/ptmx")?;
        }
        Ok(())
    }
}

/// Makes a link unless something is there: an image's own /dev is respected.
fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Ok(Err(errno).call(|| format!("symlinkat({target:?}, {name:?})"))?),
    }
}

/// Gives the standard streams to the container: one that is the host's /dev/null becomes the
/// container's own, and a pipe or terminal gets the user as its owner, so that the program can open
/// /dev/stdout.
pub struct OwnStandardStreams {
    /// The program's user.
    pub uid: u32,
    /// Whether the container has a /dev/null of its own making.
    pub own_null: bool,
}

impl fmt::Display for OwnStandardStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "give the standard streams to user {}", self.uid)
    }
}

impl Step for OwnStandardStreams {
    fn apply(&self, init: &mut Init) -> Result<()> {
        for fd in 0..3 {
            let stream = crate::sys::inherited(fd);
            let stat = fstat(stream).call(|| format!("fstat({fd})"))?;
            if is_null(&stat) {
                if self.own_null {
                    replace_null(init, fd)?;
                }
            } else if stat.st_uid != self.uid {
                // Not ours to insist on: a socket, a file of another user, a read-only mount.
                let _ = nix::unistd::fchown(stream, Some(self.uid.into()), None);
            }
        }
        Ok(())
    }
}

fn replace_null(init: &mut Init, fd: i32) -> Result<()> {
    if init.null.is_none() {
        let null =
            init.root()?.resolve(Path::new("/dev/null"), OFlag::O_RDWR | OFlag::O_NOFOLLOW, Links::Refuse);
        let null = null.doing(|| "error reopening /dev/null inside container".into())?;
        let stat = fstat(null.as_fd()).call(|| "fstat(/dev/null)".into())?;
        if !is_null(&stat) {
            return Err(Error::new("container's /dev/null is invalid"));
        }
        init.null = Some(null);
    }
    if let Some(null) = &init.null {
        crate::sys::process::duplicate(null.as_fd(), fd)?;
    }
    Ok(())
}

fn is_null(stat: &nix::sys::stat::FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR && stat.st_rdev == makedev(1, 3)
}

/// The host's /dev/null, to cover files with; it is what it says, or nothing is covered by it.
pub fn hosts_null() -> Result<PathBuf> {
    let stat = nix::sys::stat::stat("/dev/null").call(|| "stat(\"/dev/null\")".into())?;
    match is_null(&stat) {
        true => Ok("/dev/null".into()),
        false => Err(Error::new("the host's /dev/null is not the null device")),
    }
}

/// Covers the file that `target` refers to with the null device.
pub fn cover_with_null(null: &Path, target: BorrowedFd<'_>) -> crate::sys::Result<()> {
    let null = std::ffi::CString::new(null.as_os_str().as_encoded_bytes()).unwrap_or_default();
    mount::mount(Some(&null), &file::through_proc(target), None, libc::MS_BIND, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn a_configured_device_replaces_the_default_one() {
        let linux: Linux = parse(
            br#"{"devices":[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384,"uid":5},
                {"path":"/dev/ptmx","type":"c","major":5,"minor":2},
                {"path":"/dev/pipe","type":"p","major":7,"minor":7}]}"#,
        )
        .expect("it parses");
        let devices = Devices::plan(Some(&linux), false);
        let paths: Vec<_> = devices.nodes.iter().map(|node| node.path.to_str().unwrap_or_default()).collect();
        assert_eq!(
            paths,
            ["/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/null", "/dev/pipe"]
        );
        let null = &devices.nodes[5];
        assert_eq!((null.mode.bits(), null.owner), (0o600, (5, 0)));
        assert_eq!(devices.nodes[6].number, 0, "a fifo has no number, whatever the configuration says");
    }
}
