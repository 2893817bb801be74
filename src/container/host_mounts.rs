//! The mounts of a container without a mount namespace: they are the host's, and somebody has to take
//! them back.
//!
//! Which they are is found by comparison: what is mounted below the root file system's directory
//! afterwards and wasn't before. What was there before is not ours.

use crate::error::{Context, Error, Result};
use crate::root::{Links, Root};
use crate::sys::mountinfo::{Mount, mounts};
use crate::sys::{Call, file, mount};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    /// What there is before a container that will make some, with the root file system at `rootfs`.
    pub fn before(rootfs: &Path) -> Result<Self> {
        let rootfs = std::fs::canonicalize(rootfs).call(|| format!("realpath({rootfs:?})"))?;
        let before = below(&rootfs)?.iter().map(|mount| mount.number).collect();
        Ok(HostMounts { rootfs, before, made: None })
    }

    /// Takes down which are the container's: what others mount there later is theirs.
    pub fn note(&mut self) -> Result<()> {
        self.made = Some(self.added()?.iter().map(|mount| mount.number).collect());
        Ok(())
    }

    /// Unmounts them, the last first.
    pub fn unmount(&self) -> Result<()> {
        let mut ours = self.added()?;
        if let Some(made) = &self.made {
            ours.retain(|mount| made.contains(&mount.number));
        }
        for Mount { number, point, .. } in ours.iter().rev() {
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
    fn added(&self) -> Result<Vec<Mount>> {
        Ok(below(&self.rootfs)?.into_iter().filter(|mount| !self.before.contains(&mount.number)).collect())
    }
}

/// The mounts at and below `rootfs`.
fn below(rootfs: &Path) -> Result<Vec<Mount>> {
    Ok(mounts()?.into_iter().filter(|mount| mount.point.starts_with(rootfs)).collect())
}

/// The number of the mount that a descriptor is in (proc_pid_fdinfo(5)).
fn number_of(fd: &OwnedFd) -> Result<Option<i32>> {
    let text = file::read(Path::new(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd())))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}
