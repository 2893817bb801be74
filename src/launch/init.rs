//! The process that becomes the container's: it walks its list of steps and executes the program.

use crate::container::gate;
use crate::error::{Error, Result};
use crate::link::{Link, Message};
use crate::plan::Plan;
use crate::root::Root;
use crate::steps::{Found, Init};
use crate::sys::Call;
use crate::sys::process::{abandon, close_all_but, close_on_exec_from, default_disposition, exit};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, umask};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What the process takes along from the runtime.
pub struct Luggage {
    /// The connection to the runtime.
    pub link: Link,
    /// The socket that is sent the terminal.
    pub console: Option<OwnedFd>,
    /// Mounts that the runtime has opened.
    pub trees: Vec<(usize, OwnedFd)>,
    /// The container's root, where it isn't that of a mount namespace which is joined.
    pub root: Option<Root>,
    /// Namespaces to join.
    pub namespaces: Vec<(CloneFlags, OwnedFd)>,
    /// How many descriptors beyond the standard streams the program keeps.
    pub kept: i32,
    /// When the program is started.
    pub start: Start,
    /// What only the runtime holds: the container's directory, with whose lock it says that the
    /// container is being created, and its end of the link, whose closing says that it is gone.
    pub abandoned: [RawFd; 2],
}

/// When the program is started.
pub enum Start {
    /// When somebody comes through the gate (`create`).
    AtGate(OwnedFd),
    /// When the runtime says so: it has a terminal to set up.
    WhenTold,
    /// At once: nothing is to be done in between (`run`, `exec`).
    AtOnce,
}

/// Runs the plan. What fails is told to the runtime.
pub fn run(plan: &Plan, luggage: Luggage) -> ! {
    let Luggage { link, console, trees, root, namespaces, kept, start, abandoned } = luggage;
    let failed = |link: &Link, error: Error| -> ! {
        // With nobody there to hear it, ending is all that is left to do. Nothing is dropped: the
        // descriptors that `make` has closed may be others by now.
        let _ = link.send(&Message::Failed(error.to_string()));
        exit(1)
    };
    let umask = match prepare(kept, abandoned, &plan.ignored_signals) {
        Ok(umask) => umask,
        Err(error) => failed(&link, error),
    };
    let (read_only_later, null, found) = (Vec::new(), None, Found::default());
    let mut init = Init { root, link, console, trees, namespaces, umask, read_only_later, null, found };
    let error = make(plan, start, 3 + kept, &mut init);
    failed(&init.link, error)
}

fn prepare(kept: i32, abandoned: [RawFd; 2], ignored: &[i32]) -> Result<Mode> {
    abandoned.into_iter().for_each(abandon);
    // Nothing of the runtime's may stay open in the program (CVE-2016-9962, CVE-2024-21626). What
    // is opened from here on is close-on-exec from the start.
    close_on_exec_from(3 + kept)?;
    // A session of its own; it has one already when the runtime was asked to lead it.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => Err(errno).call(|| "setsid()".into())?,
    }
    // What the caller ignores is none of the container's business.
    ignored.iter().try_for_each(|&signal| default_disposition(signal))?;
    // Files get the modes that they are made with.
    Ok(umask(Mode::empty()))
}

/// Returns only what failed. Descriptors below `first` are the program's.
fn make(plan: &Plan, start: Start, first: RawFd, init: &mut Init) -> Error {
    let until_program = |init: &mut Init| -> Result<()> {
        plan.steps.apply(init)?;
        // What waits for `start` may be looked at by other processes of the container: it has
        // nothing open that leads past a mask or to the host (CVE-2016-9962).
        let gate = if let Start::AtGate(gate) = &start { gate.as_raw_fd() } else { -1 };
        close_all_but(first, &mut [gate, init.link.as_fd().as_raw_fd()]);
        // Before anybody can know that it is ready: a signal that comes right then counts.
        let watch = matches!(start, Start::AtGate(_)).then(gate::Watch::begin).transpose()?;
        init.link.send(&Message::Ready)?;
        match start {
            Start::AtOnce => {}
            Start::WhenTold => init.wait_for(&Message::Start)?,
            Start::AtGate(gate) => {
                if let Some(watch) = watch {
                    init.link = wait_at(&gate, watch)?;
                }
            }
        }
        plan.finish.apply(init)
    };
    match (until_program(init), &plan.program) {
        (Err(error), _) => error,
        (Ok(()), Some(program)) => program.execute(init),
        (Ok(()), None) => Error::new("config.json has no process to start"),
    }
}

/// Waits for somebody who says `Start`; one who only looks whether it still waits says nothing.
fn wait_at(gate: &OwnedFd, watch: gate::Watch) -> Result<Link> {
    loop {
        let link = match watch.wait_at(gate.as_fd())? {
            gate::Event::Visitor(socket) => Link::over(socket),
            // As a shell has it for a program that was ended so.
            gate::Event::Ended(signal) => exit(128 + signal),
        };
        if link.expect(&Message::Start)? {
            watch.end()?;
            return Ok(link);
        }
    }
}
