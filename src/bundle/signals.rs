//! Being asked to end: what is being made goes, and whoever makes it.

use crate::error::{Context, Result};
use crate::staging;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Directories to remove, and processes to end.
struct Unfinished {
    directories: Vec<PathBuf>,
    unpackers: Vec<Pid>,
}

static UNFINISHED: Mutex<Unfinished> =
    Mutex::new(Unfinished { directories: Vec::new(), unpackers: Vec::new() });

fn unfinished() -> MutexGuard<'static, Unfinished> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory is begun.
pub fn begin(directory: &Path) {
    unfinished().directories.push(directory.to_owned());
}

/// Gives it its name: not while it is being removed.
pub fn complete<T, E>(
    directory: &Path,
    rename: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let mut unfinished = unfinished();
    let renamed = rename()?;
    unfinished.directories.retain(|other| other != directory);
    Ok(renamed)
}

/// It is gone.
pub fn end(directory: &Path) {
    unfinished().directories.retain(|other| other != directory);
}

/// An unpacker is started. Its id is its own until it has been waited for, which is after `ended`.
pub fn started(unpacker: u32) {
    unfinished().unpackers.push(Pid::from_raw(unpacker as i32));
}

/// It has closed its output, and will be waited for.
pub fn ended(unpacker: u32) {
    unfinished().unpackers.retain(|other| other.as_raw() != unpacker as i32);
}

/// From now on a signal to end removes what is being made. Called while there is one thread, so that
/// all others have the signals blocked, too.
pub fn handle() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().doing(|| "sigprocmask".into())?;
    std::thread::spawn(move || {
        let signal = signals.wait().unwrap_or(Signal::SIGTERM);
        // Held until the end: nothing new is begun.
        let unfinished = unfinished();
        for unpacker in &unfinished.unpackers {
            let _ = kill(*unpacker, Signal::SIGKILL);
        }
        for directory in &unfinished.directories {
            // The other threads may be at work in it for a moment; what they leave nonetheless is
            // removed by the next one for the same name.
            for _ in 0..50 {
                if staging::remove(directory).is_ok() || !directory.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
