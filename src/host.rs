//! What damda has to know of the host before it decides on a container: asked once.

use crate::cgroup::Layout;
use crate::error::Result;
use crate::sys::{file, identity, process};
use std::path::Path;

/// The host as this process finds it.
#[derive(Debug)]
pub struct Host {
    /// Its cgroups.
    pub cgroups: Layout,
    /// The capabilities that this process has to give, one bit each.
    pub capabilities: u64,
    /// The signals that this process's caller ignores.
    pub ignored_signals: Vec<i32>,
}

impl Host {
    /// Whether this process may open mounts of its own namespace, which an ordinary user may not.
    pub fn may_mount(&self) -> bool {
        self.capabilities & caps::Capability::CAP_SYS_ADMIN.bitmask() != 0
    }

    /// Asks the kernel.
    pub fn probe() -> Result<Self> {
        let capabilities = identity::capget()?.permitted;
        Ok(Host { cgroups: Layout::probe()?, capabilities, ignored_signals: ignored_signals()? })
    }
}

/// Those in SigIgn of /proc/self/status (proc_pid_status(5)).
fn ignored_signals() -> Result<Vec<i32>> {
    let status = file::read(Path::new("/proc/self/status"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let ignored: Vec<i32> = (1..=64).filter(|signal| mask & (1 << (signal - 1)) != 0).collect();
    if ignored.contains(&libc::SIGCHLD) {
        // Children that have ended would be gone before they are waited for.
        process::default_disposition(libc::SIGCHLD)?;
    }
    Ok(ignored)
}
