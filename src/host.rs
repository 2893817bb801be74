//! What damda has to know of the host before it decides on a container: asked once.

use crate::cgroup::Layout;
use crate::error::Result;
use crate::sys::identity;

/// The host as this process finds it.
#[derive(Debug)]
pub struct Host {
    /// Its cgroups.
    pub cgroups: Layout,
    /// The capabilities that this process has to give, one bit each.
    pub capabilities: u64,
}

impl Host {
    /// Whether this process may open mounts of its own namespace, which an ordinary user may not.
    pub fn may_mount(&self) -> bool {
        self.capabilities & caps::Capability::CAP_SYS_ADMIN.bitmask() != 0
    }

    /// Asks the kernel.
    pub fn probe() -> Result<Self> {
        Ok(Host { cgroups: Layout::probe()?, capabilities: identity::capget()?.permitted })
    }
}
