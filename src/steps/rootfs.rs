//! `/root` and `linux.rootfsPropagation`: the root file system, and making it the root.

use super::{Init, Step, mount_options};
use crate::error::{Context, Error, Pointer, Result};
use crate::root::Root;
use crate::sys::Call;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::mountinfo::{Mount, mounts};
use libc::c_ulong;
use nix::errno::Errno;
use nix::unistd::{chroot, fchdir};
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// `linux.rootfsPropagation`, as far as it matters before and after the root is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    flag: Option<c_ulong>,
    depth: Depth,
}

impl Propagation {
    /// Reads the configuration's word, which was checked.
    pub fn plan(word: Option<&str>) -> Self {
        match word.and_then(mount_options::propagation) {
            Some((flag, depth)) => Propagation { flag: Some(flag), depth },
            None => Propagation { flag: None, depth: Depth::Tree },
        }
    }

    fn is_shared(self) -> bool {
        self.flag == Some(libc::MS_SHARED)
    }

    /// For the host's mounts in the new namespace: nothing of the container's gets out, unless the
    /// configuration shares. They stay slaves even where the root is private, so that a volume can
    /// be one.
    fn of_the_host(self) -> c_ulong {
        match (self.is_shared(), self.depth) {
            (true, Depth::Tree) => libc::MS_SHARED | libc::MS_REC,
            (true, Depth::Mount) => libc::MS_SHARED,
            (false, _) => libc::MS_SLAVE | libc::MS_REC,
        }
    }
}

/// How the container's root becomes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// pivot_root(2), and the host's file systems are gone.
    Pivot,
    /// Moved onto the root (`--no-pivot`): for a host on an initramfs.
    Move,
    /// chroot(2): in a mount namespace that is the host's or somebody else's.
    Chroot,
}

/// Makes the root file system a mount of its own.
pub struct PrepareRoot {
    /// Its directory on the host.
    pub path: PathBuf,
    /// The configured propagation.
    pub propagation: Propagation,
    /// How the root will be changed.
    pub change: Change,
    /// Whether it will be made read-only.
    pub read_only: bool,
}

impl fmt::Display for PrepareRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.change {
            Change::Chroot if self.read_only => {
                write!(f, "bind {} to itself on the host", self.path.display())
            }
            Change::Chroot => write!(f, "open {}", self.path.display()),
            _ => {
                let of_the_host = match self.propagation.of_the_host() {
                    flags if flags & libc::MS_SHARED == 0 => "slaves of the host's",
                    _ => "shared with the host",
                };
                write!(f, "bind {} to itself; all mounts are {of_the_host}", self.path.display())
            }
        }
    }
}

impl Step for PrepareRoot {
    fn apply(&self, init: &mut Init) -> Result<()> {
        if self.change != Change::Chroot {
            mount::mount(None, Path::new("/"), None, self.propagation.of_the_host(), None)?;
            if self.propagation.is_shared() {
                make_private_around(&self.path)?;
            }
        }
        // Without a mount namespace only what has to be a mount is made one: for the host it is one, too.
        if self.change != Change::Chroot || self.read_only {
            let source = std::ffi::CString::new(self.path.as_os_str().as_encoded_bytes())
                .map_err(|_| Error::new("contains a NUL character"))?;
            mount::mount(Some(&source), &self.path, None, libc::MS_BIND | libc::MS_REC, None)?;
        }
        init.root = Some(Root::open(&self.path)?);
        if self.change != Change::Chroot && self.propagation.flag != Some(libc::MS_SLAVE) {
            let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            mount::set_attributes(init.root()?.as_fd(), Depth::Mount, &attr)?;
        }
        Ok(())
    }
}

/// Makes the mount that `path` is in private: on a shared host, what is mounted in the container
/// would appear below the root file system's directory there.
fn make_private_around(path: &Path) -> Result<()> {
    for path in path.ancestors() {
        match mount::mount(None, path, None, libc::MS_PRIVATE, None) {
            // Not a mount point: it is in the mount of a directory above.
            Err(failed) if failed.errno == Errno::EINVAL => {}
            other => return Ok(other?),
        }
    }
    Ok(())
}

/// Makes the container's root the root of this process.
pub struct ChangeRoot {
    /// How.
    pub change: Change,
    /// The configured propagation, which holds from now on.
    pub propagation: Propagation,
    /// The root file system's directory on the host.
    pub path: PathBuf,
}

impl fmt::Display for ChangeRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.change {
            Change::Pivot => "change the root: pivot_root",
            Change::Move => "change the root: move it to /, chroot",
            Change::Chroot => "change the root: chroot",
        })?;
        let Propagation { flag, depth } = self.propagation;
        flag.map_or(Ok(()), |flag| write!(f, ", {}", mount_options::propagation_word(flag, depth)))
    }
}

impl Step for ChangeRoot {
    fn apply(&self, init: &mut Init) -> Result<()> {
        fchdir(init.root()?.as_fd()).call(|| "fchdir(rootfs)".into())?;
        match self.change {
            Change::Pivot => self.pivot(init.root()?)?,
            Change::Move => self.move_to_root()?,
            Change::Chroot => chroot(c".").call(|| "chroot(\".\")".into())?,
        }
        // The current directory, and what `init.root` refers to, is the root now.
        match self.propagation.flag {
            // Private it is already, and a slave stays one.
            Some(propagation @ (libc::MS_SHARED | libc::MS_UNBINDABLE)) if self.change != Change::Chroot => {
                let attr = MountAttr { propagation, ..MountAttr::default() };
                mount::set_attributes(init.root()?.as_fd(), self.propagation.depth, &attr)
                    .at(&Pointer::to("/linux/rootfsPropagation"))
            }
            _ => Ok(()),
        }
    }
}

impl ChangeRoot {
    fn pivot(&self, root: &Root) -> Result<()> {
        let old_root = self.propagation.is_shared().then(|| Root::open(Path::new("/"))).transpose()?;
        mount::pivot_root_here()?;
        if let Some(old_root) = old_root {
            // The host's mounts are shared with the host: unmounting them here would there, too.
            fchdir(old_root.as_fd()).call(|| "fchdir(old root)".into())?;
            mount::mount(None, Path::new("."), None, libc::MS_SLAVE | libc::MS_REC, None)?;
            mount::detach(Path::new("."))?;
            // What is detached is still the current directory, and the host's root.
            return Ok(fchdir(root).call(|| "fchdir(rootfs)".into())?);
        }
        Ok(mount::detach(Path::new("."))?)
    }

    /// After chroot(2) the host's mounts are still in the namespace. The kernel lets a container
    /// mount a whole new procfs or sysfs where one is to be seen, so they go first.
    fn move_to_root(&self) -> Result<()> {
        for path in full_proc_and_sys_mounts(&self.path)? {
            mount::mount(None, &path, None, libc::MS_SLAVE | libc::MS_REC, None)?;
            match mount::detach(&path) {
                Err(failed) if matches!(failed.errno, Errno::EINVAL | Errno::EPERM) => {
                    mount::mount(Some(c"tmpfs"), &path, Some(c"tmpfs"), 0, None)?;
                }
                other => other?,
            }
        }
        mount::mount(Some(c"."), Path::new("/"), None, libc::MS_MOVE, None)?;
        Ok(chroot(c".").call(|| "chroot(\".\")".into())?)
    }
}

/// The mount points of whole procfs and sysfs outside `rootfs`.
fn full_proc_and_sys_mounts(rootfs: &Path) -> Result<Vec<PathBuf>> {
    let mut mounts = mounts()?;
    mounts.retain(|Mount { root, point, kind, .. }| {
        let whole = root == Path::new("/") && matches!(kind.as_str(), "proc" | "sysfs");
        whole && !point.starts_with(rootfs)
    });
    // Those inside others first.
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.point.as_os_str().len()));
    Ok(mounts.into_iter().map(|mount| mount.point).collect())
}

/// `root.readonly`.
pub struct ReadOnlyRoot;

impl fmt::Display for ReadOnlyRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("make the root read-only")
    }
}

impl Step for ReadOnlyRoot {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        Ok(mount::set_attributes(init.root()?.as_fd(), Depth::Mount, &attr)?)
    }
}

/// Fails early where the root file system isn't a directory.
pub fn check_directory(path: &Path) -> Result<()> {
    let at = Pointer::to("/root/path");
    let stat = nix::sys::stat::stat(path).call(|| format!("stat({path:?})"));
    let stat = stat.doing(|| "the root file system must be a directory".into()).at(&at)?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Ok(()),
        _ => {
            Err(Error::new(format!("the root file system must be a directory: {path:?}: not a directory"))
                .at(at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_cut_off_unless_shared() {
        let host = |word| Propagation::plan(word).of_the_host();
        for word in [None, Some("unbindable"), Some("rprivate"), Some("slave")] {
            assert_eq!(host(word), libc::MS_SLAVE | libc::MS_REC, "{word:?}");
        }
        assert_eq!(host(Some("shared")), libc::MS_SHARED);
        assert_eq!(host(Some("rshared")), libc::MS_SHARED | libc::MS_REC);
    }
}
