//! `linux.seccomp`: loading the filter.

use super::{Init, Step};
use crate::error::{Context, Pointer, Result};
use crate::link::Message;
use crate::seccomp::Filter;
use crate::sys::{identity, seccomp};
use std::fmt;
use std::os::fd::AsRawFd;

/// Loads the filter, as late as can be: every system call after it must be one that the profile
/// allows.
pub struct LoadSeccomp {
    /// The compiled profile.
    pub filter: Filter,
    /// Whether loading takes CAP_SYS_ADMIN, because no_new_privs is not set.
    pub privileged: bool,
}

impl fmt::Display for LoadSeccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "load seccomp filter: {} instructions", self.filter.program.len())
    }
}

impl Step for LoadSeccomp {
    fn apply(&self, init: &mut Init) -> Result<()> {
        if self.privileged {
            let sets = identity::capget()?;
            if sets.effective != sets.permitted {
                identity::capset(identity::CapabilitySets { effective: sets.permitted, ..sets })?;
            }
        }
        let listener =
            seccomp::load(&self.filter.program, self.filter.flags).at(&Pointer::to("/linux/seccomp"))?;
        if let Some(listener) = listener {
            // The runtime fetches the descriptor itself: sending it would take sendmsg(2), which
            // the profile may well have the agent decide on.
            init.link.write(&Message::SeccompListener(listener.as_raw_fd()))?;
            init.wait_for(&Message::ListenerTaken)?;
        }
        Ok(())
    }
}
