//! `kill`: a signal for the container's first process (runtime.md, "Kill").

use super::Global;
use crate::container::{Container, Status};
use crate::error::{Error, Result};
use nix::sys::signal::Signal;
use std::str::FromStr;

/// The command. `all` means every process of the container.
pub fn run(global: &Global, id: &str, signal: &str, all: bool) -> Result<()> {
    let container = Container::load(&global.store, id)?;
    let number = signal_number(signal)?;
    let not_running = || Error::new("container not running");
    let fatal = number == Signal::SIGKILL as i32;
    // Without a pid namespace of its own, the others don't end with the first process.
    let all = all || (fatal && !container.state.own_pid_namespace);
    match container.status()? {
        // What its first process left behind.
        Status::Stopped if all => return container.state.cgroup.signal_all(number),
        Status::Stopped => return Err(not_running()),
        // It is neither created nor running (runtime.md, "Kill").
        Status::Creating => {
            return Err(not_running().hint("it is still being created; `delete --force` ends that"));
        }
        Status::Created | Status::Running | Status::Paused => {}
    }
    if all {
        container.state.cgroup.signal_all(number)?;
    } else if !container.signal_init(number)? {
        return Err(not_running());
    }
    if fatal {
        container.state.cgroup.thaw_for_kill()?;
    }
    Ok(())
}

/// The number of a signal given by number, or by name with or without SIG, in any case.
fn signal_number(text: &str) -> Result<i32> {
    let unknown = || Error::new(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=libc::SIGRTMAX()).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, base: i32| {
        let offset = name.strip_prefix(prefix)?;
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
        Some(base + offset).filter(|number| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number))
    };
    let number = match name {
        "CLD" => Some(libc::SIGCHLD),
        "POLL" => Some(libc::SIGIO),
        _ => Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
    };
    number
        .or_else(|| real_time("RTMIN", libc::SIGRTMIN()))
        .or_else(|| real_time("RTMAX", libc::SIGRTMAX()))
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigkill", 9), ("SIGTERM", 15), ("0", 0), ("CLD", libc::SIGCHLD)]
        {
            assert_eq!(signal_number(text), Ok(number), "{text}");
        }
        assert_eq!(signal_number("SIGRTMIN+3"), Ok(libc::SIGRTMIN() + 3));
        assert_eq!(signal_number("RTMAX-1"), Ok(libc::SIGRTMAX() - 1));
        for bad in ["", "NOPE", "-1", "65", "RTMIN-1"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
