//! `delete`: what `create` made is taken back (runtime.md, "Delete").

use super::Global;
use crate::cgroup::Cgroup;
use crate::container::{Container, HostMounts, Init, Status};
use crate::error::{Error, Result};
use crate::resctrl::Groups;
use crate::steps::hooks::{self, Kind};
use crate::sys::poll::until_ended;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command.
pub fn run(global: &Global, id: &str, force: bool) -> Result<()> {
    let container = match Container::load(&global.store, id) {
        Ok(container) => container,
        Err(error) if force => return remove_remains(global, id, error),
        Err(error) => return Err(error),
    };
    if force {
        if container.state.init.is_none() {
            // It has no first process with which the others would end, while CRIU restores them.
            container.state.cgroup.signal_all(libc::SIGKILL)?;
        }
        return destroy(&container, true);
    }
    match container.status()? {
        // A created container's program has not begun: nobody loses anything.
        Status::Stopped | Status::Created => destroy(&container, true),
        status => Err(Error::new(format!("cannot delete container {id} that is not stopped: {status}"))),
    }
}

/// Removes what is left of a container whose state is missing or damaged.
fn remove_remains(global: &Global, id: &str, error: Error) -> Result<()> {
    let Some(directory) = global.store.open(id)? else { return Ok(()) };
    crate::log::debug(|| format!("deleting the remains of {id}: {error}"));
    let made = Container::salvage(&directory);
    let cgroup = match made.init.filter(Init::is_alive) {
        Some(init) => {
            // Its cgroups are found only while it lives.
            let cgroup = if made.cgroup.is_known() { made.cgroup } else { Cgroup::bearing(id, init.pid())? };
            init.signal(libc::SIGKILL)?;
            wait_for_killed(&init, &cgroup)?;
            cgroup
        }
        None => made.cgroup,
    };
    cgroup.signal_all(libc::SIGKILL)?;
    cgroup.remove()?;
    made.resctrl.iter().try_for_each(Groups::remove)?;
    made.host_mounts.iter().try_for_each(HostMounts::unmount)?;
    directory.remove(&[])
}

/// Ends all processes of the container and removes it; poststop hooks run where `created` says
/// that it had come to be. Every part is tried; the first failure is reported.
pub fn destroy(container: &Container, created: bool) -> Result<()> {
    kill(container)?;
    // Where that fails, cgroups are left, and the state is how they are found again.
    container.state.cgroup.remove()?;
    container.state.resctrl.iter().try_for_each(Groups::remove)?;
    container.state.host_mounts.iter().try_for_each(HostMounts::unmount)?;
    container.forget()?;
    if created {
        let state = container.state.for_hooks(Status::Stopped, None);
        hooks::run_all(Kind::Poststop, &container.state.poststop, &state, &container.state.bundle);
    }
    Ok(())
}

/// Destroys a container after a failure, which is what is to be reported.
pub fn clean_up(container: &Container, created: bool) {
    if let Err(error) = destroy(container, created) {
        crate::log::warning(&format!("cleaning up: {error}"));
    }
}

/// Kills the first process, with which a pid namespace of its own ends, and whatever else is in the
/// container's cgroup.
fn kill(container: &Container) -> Result<()> {
    if let Some(init) = container.live_init() {
        container.signal_init(libc::SIGKILL)?;
        wait_for_killed(&init, &container.state.cgroup)?;
    }
    if !container.state.own_pid_namespace {
        container.state.cgroup.signal_all(libc::SIGKILL)?;
    }
    Ok(())
}

/// Waits for the end of a process that was sent SIGKILL, which one frozen by cgroup v1 gets only when
/// it thaws.
fn wait_for_killed(init: &Init, cgroup: &Cgroup) -> Result<()> {
    cgroup.thaw_for_kill()?;
    let Some(pidfd) = init.pidfd()? else { return Ok(()) };
    match until_ended(pidfd.as_fd(), Instant::now() + PATIENCE)? {
        true => Ok(()),
        false => Err(Error::new("container init still running 10 s after SIGKILL")
            .hint("it may be stuck in the kernel (state D): see /proc/PID/stack")),
    }
}
