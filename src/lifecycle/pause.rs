//! `pause` and `resume`: all processes of a container are stopped, and go on.

use super::Global;
use crate::cgroup::Freeze;
use crate::container::{Container, Status};
use crate::error::{Error, Result};

/// `pause`.
pub fn pause(global: &Global, id: &str) -> Result<()> {
    let container = Container::load(&global.store, id)?;
    match container.status()? {
        Status::Running | Status::Created => container.state.cgroup.set_freeze(Freeze::Frozen),
        _ => Err(Error::new("container not running")),
    }
}

/// `resume`.
pub fn resume(global: &Global, id: &str) -> Result<()> {
    let container = Container::load(&global.store, id)?;
    match container.status()? {
        Status::Paused => container.state.cgroup.set_freeze(Freeze::Thawed),
        _ => Err(Error::new("container not paused")),
    }
}
