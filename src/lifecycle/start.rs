//! `start`: the program runs (runtime.md, "Start").

use super::{Global, delete};
use crate::container::{Container, Status, gate};
use crate::error::{Error, Pointer, Result};
use crate::launch::notify::Notify;
use crate::launch::{
    self,
    start::{Waits, send_listener},
};
use crate::link::Link;
use crate::steps::hooks::{self, Kind};
use std::os::fd::AsFd;

/// The command.
pub fn run(global: &Global, id: &str) -> Result<()> {
    let container = Container::load(&global.store, id)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => return Err(Error::new("cannot start a container that has stopped")),
        Status::Running => return Err(Error::new("cannot start an already running container")),
        other => return Err(Error::new(format!("cannot start a container in the {other} state"))),
    }
    if !container.state.has_process {
        return Err(Error::new("config.json had no process to start").at(Pointer::to("/process")));
    }
    let link = gate::enter(&container.directory)?
        .ok_or_else(|| Error::new("cannot start an already running container"))?;
    // A start that fails ends the container (runtime.md, "Lifecycle", steps 7 to 9).
    let started = || -> Result<Option<Notify>> {
        let notify = Notify::listen(&container.directory)?;
        begin(&container, &Link::over(link), Waits::ToBeTold)?;
        Ok(notify)
    };
    let notify = started().inspect_err(|_| delete::clean_up(&container, true))?;
    gate::remove(&container.directory)?;
    wait_until_ready(&container, notify)
}

/// Returns when the program has said that it is ready, where somebody is told so.
pub fn wait_until_ready(container: &Container, notify: Option<Notify>) -> Result<()> {
    let init = container.live_init();
    match (notify, init.map(|init| init.pidfd()).transpose()?.flatten(), init) {
        (Some(notify), Some(pidfd), Some(init)) => notify.wait_until_ready(init.pid(), pidfd.as_fd()),
        _ => Ok(()),
    }
}

/// Starts a container that is ready, over the connection to its first process.
pub fn begin(container: &Container, link: &Link, waits: Waits) -> Result<()> {
    let listener = |fd| {
        let init = container.state.init.ok_or_else(|| Error::new("container not running"))?;
        let pidfd = init.pidfd()?.ok_or_else(|| Error::new("container not running"))?;
        let state = container.state.for_hooks(Status::Created, Some(init.pid()));
        send_listener(container, pidfd.as_fd(), init.pid(), fd, state)
    };
    launch::start::begin(link, waits, listener)?;
    poststart(container)
}

/// The program has been executed: the kernel closed the connection within execve(2).
fn poststart(container: &Container) -> Result<()> {
    let pid = container.state.init.map(|init| init.pid());
    let state = container.state.for_hooks(Status::Running, pid);
    hooks::run(Kind::Poststart, &container.state.poststart, &state, &container.state.bundle)
}
