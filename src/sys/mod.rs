//! Every unsafe line of damda, and every system call that no library wraps.
//!
//! A wrapper makes one call, turns its result into a type, and on failure says which call it was,
//! with its arguments, as strace(1) would print it. Nothing here decides anything.
#![allow(unsafe_code)]

pub mod alloc;
pub mod bpf;
pub mod entry;
pub mod file;
pub mod identity;
pub mod mount;
pub mod mountinfo;
pub mod poll;
pub mod process;
pub mod scheduling;
pub mod seccomp;
pub mod socket;
pub mod terminal;

use nix::errno::Errno;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A system call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The call and its arguments, as strace(1) would print them.
    pub call: String,
    /// Why the kernel refused.
    pub errno: Errno,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, errno_text(self.errno))
    }
}

/// What a system call returned, or how it failed.
pub type Result<T> = std::result::Result<T, Failed>;

/// The text of an errno with a lower-case first letter.
///
/// Engines look for `no such file or directory` and its kin exactly so, as Go prints them.
pub fn errno_text(errno: Errno) -> String {
    let text = errno.desc();
    match text.chars().next() {
        Some(first) => first.to_lowercase().chain(text.chars().skip(1)).collect(),
        None => errno.to_string(),
    }
}

/// Names the call that an errno came from.
pub trait Call<T> {
    /// `text` is only asked for when the call failed.
    fn call(self, text: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Call<T> for nix::Result<T> {
    fn call(self, text: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Failed { call: text(), errno })
    }
}

impl<T> Call<T> for std::io::Result<T> {
    fn call(self, text: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failed {
            call: text(),
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        })
    }
}

/// Issues system call `number`.
///
/// # Safety
/// The arguments must be what the kernel expects of that call: pointers valid for as long and as
/// far as it reads or writes through them.
unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> nix::Result<usize> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: passed on to the caller.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    Errno::result(result).map(|value| value as usize)
}

/// Takes over a descriptor that a system call has just returned.
fn owned(fd: usize) -> OwnedFd {
    // SAFETY: the kernel returned this number as a new descriptor; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// A borrowed descriptor as a system call's argument.
fn raw(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd() as isize as usize
}

/// Borrows a descriptor that this process was started with (0, 1, 2, those of `--preserve-fds`).
pub fn inherited(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: nothing in damda closes the descriptors it was started with, but for exec.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A descriptor as the tail of an strace line: `3</path>` without the path.
pub fn show(fd: BorrowedFd<'_>) -> String {
    match fd.as_raw_fd() {
        libc::AT_FDCWD => "AT_FDCWD".into(),
        fd => fd.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_texts_are_as_go_prints_them() {
        assert_eq!(errno_text(Errno::ENOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::EACCES), "permission denied");
        assert_eq!(errno_text(Errno::EPERM), "operation not permitted");
        assert_eq!(errno_text(Errno::ESRCH), "no such process");
        assert_eq!(errno_text(Errno::ENOTDIR), "not a directory");
    }
}
