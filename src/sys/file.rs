//! The kernel's small files (cgroupfs, procfs): one open, one read or write, one close.
//!
//! The standard library asks for the size first and reads until it gets nothing, which makes six
//! calls of three.

use super::{Call, Failed, Result, errno_text, process};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Opens `path` below `dir` with `flags` and O_CLOEXEC.
pub fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    openat(dir, path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("openat({}, {path:?}, {flags:?})", super::show(dir)))
}

/// A path to what a descriptor refers to, for calls that take only paths: on the host's procfs, so not
/// after the root was changed.
pub fn through_proc(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// What the file at `path` holds, up to 4 KiB.
pub fn read(path: &Path) -> Result<String> {
    let file = open(AT_FDCWD, path, OFlag::O_RDONLY)?;
    let mut buffer = [0; 4096];
    let length = nix::unistd::read(&file, &mut buffer).call(|| format!("read({path:?})"))?;
    leave(file);
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// What is left to read of `file`, up to `most` bytes. A regular file ends where a read is short,
/// which saves the one that would return nothing.
pub fn read_all(file: BorrowedFd<'_>, most: usize) -> nix::Result<Vec<u8>> {
    let mut text = vec![0; 8192.min(most)];
    let mut length = 0;
    loop {
        let asked = text.len() - length;
        match nix::unistd::read(file, &mut text[length..]) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(read) => {
                length += read;
                if read < asked || length == most {
                    text.truncate(length);
                    return Ok(text);
                }
                text.resize((2 * length).min(most), 0);
            }
        }
    }
}

/// Writes `value` to the existing file at `path` in one call.
pub fn write(path: &Path, value: &str) -> Result<()> {
    let file = open(AT_FDCWD, path, OFlag::O_WRONLY)?;
    let written = write_to(file.as_fd(), value).call(|| format!("write({path:?}, {value:?})"));
    leave(file);
    written
}

/// Descriptors that have served.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// No more than these are left open.
const MOST_LEFT: usize = 64;

/// Leaves a descriptor to be closed together with others: a start opens about fifty files, and
/// closing each on its own would be a sixth of its system calls. Only for files whose closing means
/// nothing to anybody. It is closed by the next `close_left`, or by execve(2).
pub fn leave(file: OwnedFd) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    if left.len() < MOST_LEFT {
        left.push(file);
    }
}

/// Closes what was left: descriptors that follow each other by one call.
pub fn close_left() {
    let left = std::mem::take(&mut *LEFT.lock().unwrap_or_else(PoisonError::into_inner));
    let mut left: Vec<RawFd> = left.into_iter().map(IntoRawFd::into_raw_fd).collect();
    left.sort_unstable();
    for run in left.chunk_by(|a, b| a + 1 == *b) {
        process::close_range(run[0], run[run.len() - 1]);
    }
}

/// Writes `value` to an open file in one call: the kernel takes a command whole or not at all.
pub fn write_to(file: BorrowedFd<'_>, value: &str) -> nix::Result<()> {
    match nix::unistd::write(file, value.as_bytes()) {
        Ok(length) if length == value.len() => Ok(()),
        Ok(_) => Err(Errno::EIO),
        Err(errno) => Err(errno),
    }
}

/// Removes an empty directory.
pub fn rmdir(path: &Path) -> nix::Result<()> {
    nix::unistd::unlinkat(AT_FDCWD, path, nix::unistd::UnlinkatFlags::RemoveDir)
}

/// A lock on an open file (flock(2)), held until the last copy of the descriptor is closed.
pub fn lock(file: BorrowedFd<'_>, lock: Lock) -> nix::Result<()> {
    let operation = match lock {
        Lock::Exclusive => libc::LOCK_EX,
        Lock::Probe => libc::LOCK_SH | libc::LOCK_NB,
        Lock::Release => libc::LOCK_UN,
    };
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

/// Kinds of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// For one holder alone; waits for others to let go.
    Exclusive,
    /// Finds out whether somebody has the exclusive one: EWOULDBLOCK if so.
    Probe,
    /// Lets go.
    Release,
}

/// Several failures of which none should hide the others.
#[derive(Debug, Default)]
pub struct Failures(Vec<Failed>);

impl Failures {
    /// Notes a failure.
    pub fn note<T>(&mut self, result: Result<T>) {
        self.0.extend(result.err());
    }

    /// An error that names them all, if there are any.
    pub fn into_result(self) -> crate::error::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(crate::error::Error::new(self.to_string())) }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failed) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", failed.call, errno_text(failed.errno))?;
        }
        Ok(())
    }
}
