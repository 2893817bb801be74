//! `ps`: the processes of a container.

use super::Global;
use super::list::Format;
use crate::container::{Container, Status};
use crate::error::{Error, Result};
use std::process::Command;

/// The command; returns what it prints. `arguments` are ps(1)'s own.
pub fn run(global: &Global, id: &str, format: Format, arguments: &[String]) -> Result<String> {
    let container = Container::load(&global.store, id)?;
    let running = container.status()? != Status::Stopped;
    let processes = if running { container.state.cgroup.processes()? } else { Vec::new() };
    let pids: Vec<_> = processes.into_iter().map(|pid| pid.as_raw()).collect();
    match format {
        Format::Json => serde_json::to_string(&pids)
            .map(|text| text + "\n")
            .map_err(|error| Error::new(error.to_string())),
        Format::Table => table(&pids, arguments),
    }
}

/// What ps(1) says of all processes, without those that aren't the container's.
fn table(pids: &[i32], arguments: &[String]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let arguments = if arguments.is_empty() { &default[..] } else { arguments };
    let output = Command::new("ps")
        .args(arguments)
        .output()
        .map_err(|error| Error::new(format!("cannot run ps: {error}")).hint("install the package procps"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(format!("ps {}: {said}", arguments.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    select(&text, pids).ok_or_else(|| Error::new("couldn't find PID field in ps output"))
}

/// The header and the lines of these processes.
fn select(text: &str, pids: &[i32]) -> Option<String> {
    let header = text.lines().next()?;
    let column = header.split_whitespace().position(|title| title == "PID")?;
    let wanted = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines = std::iter::once(header).chain(text.lines().skip(1).filter(wanted));
    Some(lines.fold(String::new(), |text, line| text + line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "UID  PID PPID CMD\nroot   1    0 init\nroot  12    1 sh -c 1\nx    112    1 y\n";
        assert_eq!(select(text, &[12]).as_deref(), Some("UID  PID PPID CMD\nroot  12    1 sh -c 1\n"));
        assert_eq!(select("USER COMMAND\n", &[12]), None);
    }
}
