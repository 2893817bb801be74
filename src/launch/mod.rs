//! Making the process that becomes the container's, and talking with it.

pub mod foreground;
pub mod idmap;
pub mod init;
pub mod notify;
pub mod seal;
pub mod spawn;
pub mod start;
pub mod trees;

use crate::error::Result;
use crate::sys::process::pidfd_send_signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};

/// A process that this one has made.
#[derive(Debug)]
pub struct Child {
    /// Its id.
    pub pid: Pid,
    /// The process itself.
    pub pidfd: OwnedFd,
}

impl Child {
    /// Ends it, and waits until it has.
    pub fn kill(&self) -> Result<()> {
        // It may have ended already; it is ours to collect all the same.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = waitpid(self.pid, None);
        Ok(())
    }
}
