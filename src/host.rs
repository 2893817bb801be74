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
    /// Asks the kernel.
    pub fn probe() -> Result<Self> {
        Ok(Host { cgroups: Layout::probe()?, capabilities: identity::capget()?.permitted })
    }
}
