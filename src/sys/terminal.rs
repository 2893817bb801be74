//! Pseudoterminals (ioctl_tty(2)).

use super::{Call, Result, owned, show};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Opens the other side of the pseudoterminal `master`, by the pair itself and not by a path
/// under /dev/pts, which somebody could have replaced (CVE-2025-52565).
pub fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this ioctl takes flags by value and returns a new descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    Errno::result(fd).map(|fd| owned(fd as usize)).call(|| format!("ioctl({}, TIOCGPTPEER)", show(master)))
}

/// Unlocks the other side of the pseudoterminal `master`.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const locked) };
    Errno::result(result).map(drop).call(|| format!("ioctl({}, TIOCSPTLCK, 0)", show(master)))
}

/// Makes a terminal the controlling one of this session.
pub fn take_control(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: a plain number.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    Errno::result(result).map(drop).call(|| format!("ioctl({}, TIOCSCTTY)", show(terminal)))
}

/// A terminal's size in characters.
pub fn size(terminal: BorrowedFd<'_>) -> nix::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one struct winsize.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) };
    Errno::result(result).map(|_| size)
}

/// Sets a terminal's size.
pub fn set_size(terminal: BorrowedFd<'_>, size: &libc::winsize) -> Result<()> {
    // SAFETY: the kernel reads one struct winsize.
    let result =
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, std::ptr::from_ref(size)) };
    Errno::result(result)
        .map(drop)
        .call(|| format!("ioctl({}, TIOCSWINSZ, {}x{})", show(terminal), size.ws_col, size.ws_row))
}
