//! The mounts of a container without a mount namespace: they are the host's, and somebody has to take
//! them back.
//!
//! Which they are is found by comparison: what is mounted below the root file system's directory
//! afterwards and wasn't before. What was there before is not ours.

use crate::config::{Config, list};
use crate::error::{Context, Error, Result};
use crate::root::{Links, Root};
use crate::sys::{Call, file, mount};
use nix::fcntl::OFlag;
use oci_spec::runtime::LinuxNamespaceType;
use procfs::FromRead;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Whether a container makes any.
pub fn are_made(config: &Config) -> bool {
    let linux = config.spec.linux().as_ref();
    let namespaces = linux.map_or(&[][..], |linux| list(linux.namespaces()));
    !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount)
}

/// The numbers of the mounts at and below `rootfs`, in the order in which they were made.
pub fn below(rootfs: &Path) -> Result<Vec<i32>> {
    Ok(mounts()?
        .into_iter()
        .filter(|(_, point)| point.starts_with(rootfs))
        .map(|(number, _)| number)
        .collect())
}

/// Those that are there now and weren't `before`.
pub fn new_below(rootfs: &Path, before: &[i32]) -> Result<Vec<i32>> {
    Ok(below(rootfs)?.into_iter().filter(|number| !before.contains(number)).collect())
}

/// Unmounts the mounts `numbers` below `rootfs`, the last first.
pub fn unmount(rootfs: &Path, numbers: &[i32]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    let is_ours = |(number, point): &(i32, PathBuf)| numbers.contains(number) && point.starts_with(rootfs);
    let ours: Vec<_> = mounts()?.into_iter().filter(is_ours).collect();
    for (number, point) in ours.iter().rev() {
        let root = Root::open(rootfs)?;
        let within = Path::new("/").join(point.strip_prefix(rootfs).unwrap_or(point));
        // What was in the container could have put a link in the way meanwhile.
        let fd = root.resolve(&within, OFlag::O_PATH, Links::Refuse)?;
        if number_of(&fd)? != Some(*number) {
            return Err(Error::new(format!("{point:?} is not the mount any more that was made there")));
        }
        let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        mount::detach(&path).doing(|| format!("cannot unmount {point:?}"))?;
    }
    Ok(())
}

/// All mounts: (number, mount point).
fn mounts() -> Result<Vec<(i32, PathBuf)>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).call(|| format!("read({path:?})"))?;
    let mounts = procfs::process::MountInfos::from_read(text.as_slice())
        .map_err(|error| Error::new(format!("{path:?}: {error}")))?;
    Ok(mounts.0.into_iter().map(|mount| (mount.mnt_id, mount.mount_point)).collect())
}

/// The number of the mount that a descriptor is in (proc_pid_fdinfo(5)).
fn number_of(fd: &OwnedFd) -> Result<Option<i32>> {
    let text = file::read(Path::new(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd())))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}
