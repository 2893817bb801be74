//! `run`: create, start, stay, delete.

use super::create::{self, Created, Mode, create};
use super::{Global, delete, start, write_pid_file};
use crate::config::Config;
use crate::error::{Error, Pointer, Result};
use crate::launch::foreground::{self, Foreground};
use crate::plan::Namespaces;
use nix::sched::CloneFlags;

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// As for `create`.
    pub create: create::Options,
    /// Leave the container when its program runs.
    pub detach: bool,
    /// Leave the container as it is when its program has ended.
    pub keep: bool,
    /// Don't collect processes that the container's leave behind.
    pub no_subreaper: bool,
}

/// The command; returns the program's exit status.
pub fn run(global: &Global, options: &Options) -> Result<i32> {
    let config = Config::load(&options.create.bundle)?;
    if config.spec.process().is_none() {
        return Err(Error::new("missing: there is nothing to run").at(Pointer::to("/process")));
    }
    // From a pid namespace of the container's own nothing is left behind.
    let own_pids = Namespaces::plan(&config.spec).new.contains(CloneFlags::CLONE_NEWPID);
    if !options.detach && !options.no_subreaper && !own_pids {
        foreground::become_subreaper()?;
    }
    let mode = if options.detach { Mode::Detached } else { Mode::Foreground };
    let Created { mut container, child, link, terminal, waits, signals, notify } =
        create(global, &options.create, &config, mode)?;
    let begin = || -> Result<Option<Foreground>> {
        let stay = signals.map(|signals| Foreground::prepare(signals, terminal)).transpose()?;
        start::begin(&container, &link, waits)?;
        if let Some(path) = &options.create.pid_file {
            write_pid_file(path, child.pid)?;
        }
        container.directory.unlock()?;
        Ok(stay)
    };
    // The caller's terminal is given back before anything is printed to it.
    let stay = begin().inspect_err(|_| delete::clean_up(&container, true))?;
    let Some(mut stay) = stay else {
        start::wait_until_ready(&container, notify)?;
        return Ok(0);
    };
    let status = stay.wait_for(&child, notify.as_ref())?;
    // It has been waited for: its number may be another process's already.
    container.state.init = None;
    if !options.keep {
        delete::destroy(&container, true)?;
    }
    // The process ends, and what is open with it.
    stay.give_back();
    std::mem::forget((container, child, link, stay));
    Ok(status)
}
