//! `bundle`: from an image to a bundle. It is another program, which this one becomes: what talks to
//! networks, and reads what comes from there, has no place in a runtime that engines run as root.

use crate::error::Error;
use crate::sys::file;
use crate::sys::process::{Arguments, execveat};
use nix::fcntl::{AT_FDCWD, OFlag};
use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The program's name.
const PROGRAM: &str = "damda-bundle";

/// The command; returns only if it can't be had.
pub fn run(arguments: &[OsString]) -> Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return Error::new(format!("readlink(\"/proc/self/exe\"): {error}")),
    };
    let places = places(&own);
    let Some(program) = places.iter().find(|path| path.exists()) else {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        return Error::new(format!("{PROGRAM} is missing: {}", places.join(", ")))
            .hint("it is built and installed with damda");
    };
    let strings = [program.as_os_str()].into_iter().chain(arguments.iter().map(OsString::as_os_str));
    let strings = strings.map(|string| CString::new(string.as_bytes())).collect::<Result<Vec<_>, _>>();
    match (strings, file::open(AT_FDCWD, program, OFlag::O_PATH)) {
        (Ok(strings), Ok(program)) => execveat(program.as_fd(), &Arguments::new(strings)).into(),
        (Err(_), _) => Error::new("an argument contains a NUL character"),
        (_, Err(failed)) => failed.into(),
    }
}

/// Beside the runtime, or where programs are that people don't run themselves.
fn places(own: &Path) -> Vec<PathBuf> {
    let directory = own.parent().unwrap_or(Path::new("/"));
    vec![directory.join(PROGRAM), directory.join("../libexec/damda").join(PROGRAM)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_beside_the_runtime_not_in_path() {
        let places = places(Path::new("/usr/local/bin/damda"));
        assert_eq!(places[0], Path::new("/usr/local/bin/damda-bundle"));
        assert_eq!(places[1], Path::new("/usr/local/bin/../libexec/damda/damda-bundle"));
    }
}
