//! Mapping the ids of a new user namespace (user_namespaces(7)).

use crate::error::{Context, Error, Pointer, Result};
use crate::plan::IdMaps;
use crate::sys::{file, identity};
use nix::errno::Errno;
use nix::unistd::{Pid, getegid};
use std::path::Path;
use std::process::Command;

/// Writes the maps of process `pid`'s namespace.
pub fn write(pid: Pid, maps: &IdMaps) -> Result<()> {
    let at = [Pointer::to("/linux/uidMappings"), Pointer::to("/linux/gidMappings")];
    if identity::user().is_root() {
        write_map(pid, "uid_map", &maps.uids).at(&at[0])?;
        return write_map(pid, "gid_map", &maps.gids).at(&at[1]);
    }
    // An ordinary user may map himself alone; for more there are setuid programs.
    let single =
        |map: &str, own: u32| map.lines().count() == 1 && map.trim_end().ends_with(&format!(" {own} 1"));
    if single(&maps.uids, identity::user().as_raw()) {
        write_map(pid, "uid_map", &maps.uids).at(&at[0])?;
    } else {
        by_program("newuidmap", pid, &maps.uids).at(&at[0])?;
    }
    if single(&maps.gids, getegid().as_raw()) {
        // Else a process could drop a group that denies it something (CVE-2014-8989).
        write_map(pid, "setgroups", "deny").at(&at[1])?;
        write_map(pid, "gid_map", &maps.gids).at(&at[1])
    } else {
        by_program("newgidmap", pid, &maps.gids).at(&at[1])
    }
}

fn write_map(pid: Pid, name: &str, map: &str) -> crate::sys::Result<()> {
    file::write(Path::new(&format!("/proc/{pid}/{name}")), map)
}

fn by_program(program: &str, pid: Pid, map: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(map.split_whitespace());
    let output = command.output().map_err(|error| {
        let missing = error.raw_os_error() == Some(Errno::ENOENT as i32);
        let error = Error::new(format!("cannot run {program}: {error}"));
        if missing { error.hint("install the package uidmap, or map only your own id") } else { error }
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Error::new(format!("{program} failed: {said}")).hint("see /etc/subuid and /etc/subgid"))
        }
    }
}
