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
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The mounts that a container has on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostMounts {
    /// The root file system as the kernel names it: the path that was given may lead over links.
    rootfs: PathBuf,
    /// The numbers of the mounts at and below it, before the container.
    before: Vec<i32>,
    /// Those of the container's; None until all are made.
    made: Option<Vec<i32>>,
}

impl HostMounts {
    /// What there is before a container that will make some; None for one that won't.
    pub fn before(config: &Config) -> Result<Option<Self>> {
        let linux = config.spec.linux().as_ref();
        let namespaces = linux.map_or(&[][..], |linux| list(linux.namespaces()));
        if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
            return Ok(None);
        }
        let rootfs = config.rootfs();
        let rootfs = std::fs::canonicalize(&rootfs).call(|| format!("realpath({rootfs:?})"))?;
        let before = below(&rootfs)?.into_iter().map(|(number, _)| number).collect();
        Ok(Some(HostMounts { rootfs, before, made: None }))
    }

    /// Takes down which are the container's: what others mount there later is theirs.
    pub fn note(&mut self) -> Result<()> {
        self.made = Some(self.added()?.into_iter().map(|(number, _)| number).collect());
        Ok(())
    }

    /// Unmounts them, the last first.
    pub fn unmount(&self) -> Result<()> {
        let mut ours = self.added()?;
        if let Some(made) = &self.made {
            ours.retain(|(number, _)| made.contains(number));
        }
        for (number, point) in ours.iter().rev() {
            let root = Root::open(&self.rootfs)?;
            let within = Path::new("/").join(point.strip_prefix(&self.rootfs).unwrap_or(point));
            // What was in the container could have put a link in the way meanwhile.
            let fd = root.resolve(&within, OFlag::O_PATH, Links::Refuse)?;
            if number_of(&fd)? != Some(*number) {
                return Err(Error::new(format!("{point:?} is not the mount any more that was made there")));
            }
            mount::detach(&file::through_proc(fd.as_fd())).doing(|| format!("cannot unmount {point:?}"))?;
        }
        Ok(())
    }

    /// Those that weren't there before, in the order in which they were made.
    fn added(&self) -> Result<Vec<(i32, PathBuf)>> {
        Ok(below(&self.rootfs)?.into_iter().filter(|(number, _)| !self.before.contains(number)).collect())
    }
}

/// The mounts at and below `rootfs`.
fn below(rootfs: &Path) -> Result<Vec<(i32, PathBuf)>> {
    Ok(mounts()?.into_iter().filter(|(_, point)| point.starts_with(rootfs)).collect())
}

/// All mounts: (number, mount point).
fn mounts() -> Result<Vec<(i32, PathBuf)>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).call(|| format!("read({path:?})"))?;
    let mounts = procfs::process::MountInfos::from_read(text.as_slice())
        .map_err(|error| Error::new(format!("{path:?}: {error}")))?;
    Ok(mounts.0.into_iter().map(|mount| (mount.mnt_id, unescaped(&mount.mount_point))).collect())
}

/// A path of mountinfo, which has blanks and backslashes as octal numbers (proc_pid_mountinfo(5)).
fn unescaped(path: &Path) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_os_str().as_bytes();
    while let [first, more @ ..] = rest {
        let number = more.get(..3).filter(|_| *first == b'\\');
        let number = number.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &more[3..] } else { more };
    }
    OsString::from_vec(bytes).into()
}

/// The number of the mount that a descriptor is in (proc_pid_fdinfo(5)).
fn number_of(fd: &OwnedFd) -> Result<Option<i32>> {
    let text = file::read(Path::new(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd())))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mountinfo() {
        for (escaped, path) in
            [("/a\\040b", "/a b"), ("/a\\134b", "/a\\b"), ("/plain", "/plain"), ("/a\\9", "/a\\9")]
        {
            assert_eq!(unescaped(Path::new(escaped)), Path::new(path), "{escaped}");
        }
    }
}
