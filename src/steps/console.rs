//! `process.terminal`: a pseudoterminal of the container's own devpts.

use super::{Init, Step};
use crate::error::{Context, Error, Pointer, Result};
use crate::root::Links;
use crate::sys::mount::{self, Depth};
use crate::sys::{Call, process, socket, terminal};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use oci_spec::runtime::Process;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Makes the terminal, sends its master away, and makes its other side the standard streams.
pub struct Console {
    at: Pointer,
    size: Option<(u16, u16)>,
    /// Whether it becomes /dev/console: for a container's first process.
    bind: bool,
}

impl Console {
    /// None for a process without a terminal.
    pub fn plan(process: &Process, at: &Pointer, bind: bool) -> Option<Self> {
        let size = process.console_size().map(|size| (size.height() as u16, size.width() as u16));
        let size = size.filter(|&(height, width)| height != 0 && width != 0);
        process.terminal().unwrap_or(false).then(|| Console { at: at.key("terminal"), size, bind })
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("make a terminal")?;
        if let Some((height, width)) = self.size {
            write!(f, " of {width}x{height}")?;
        }
        if self.bind { f.write_str(", bound to /dev/console") } else { Ok(()) }
    }
}

impl Step for Console {
    fn apply(&self, init: &mut Init) -> Result<()> {
        self.set_up(init).doing(|| "cannot set up the terminal".into()).at(&self.at)
    }
}

impl Console {
    fn set_up(&self, init: &mut Init) -> Result<()> {
        let socket = init.console.take().ok_or_else(|| Error::new("there is no socket to send it to"))?;
        let master = init
            .root()?
            .resolve(Path::new("/dev/pts/ptmx"), OFlag::O_RDWR | OFlag::O_NOCTTY, Links::Refuse)
            .map_err(|failed| {
                Error::from(failed).hint("mount a devpts at /dev/pts, with the option newinstance")
            })?;
        // A file of the image in its place could be anything (CVE-2025-52565).
        let stat = fstat(&master).call(|| "fstat(ptmx)".into())?;
        if file_type(stat.st_mode) != SFlag::S_IFCHR || stat.st_rdev != makedev(5, 2) {
            return Err(Error::new("/dev/pts/ptmx is not a terminal multiplexer"));
        }
        terminal::unlock(master.as_fd())?;
        let peer = terminal::open_peer(master.as_fd())?;
        if let Some((ws_row, ws_col)) = self.size {
            terminal::set_size(peer.as_fd(), &libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
        }
        if self.bind {
            bind_console(init, peer.as_fd())?;
        }
        socket::send(socket.as_fd(), b"/dev/ptmx", Some(master.as_fd()))
            .doing(|| "cannot send the terminal to the console socket".into())?;
        for stream in 0..3 {
            process::duplicate(peer.as_fd(), stream)?;
        }
        Ok(terminal::take_control(peer.as_fd())?)
    }
}

/// Puts the terminal at /dev/console, never through a link.
fn bind_console(init: &Init, peer: BorrowedFd<'_>) -> Result<()> {
    let (dev, name) = init.root()?.parent(Path::new("/dev/console"))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = |flags| openat(&dev, name, flags, Mode::from_bits_truncate(0o600));
    let target = match open(flags) {
        Err(Errno::ENOENT) => {
            open(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        }
        other => other,
    };
    let target = target.call(|| "openat(\"/dev/console\", O_NOFOLLOW)".into())?;
    let stat = fstat(&target).call(|| "fstat(/dev/console)".into())?;
    if file_type(stat.st_mode) == SFlag::S_IFLNK {
        return Err(Error::new("/dev/console is a symbolic link"));
    }
    let mount = mount::clone_tree(peer, Path::new(""), Depth::Mount)?;
    Ok(mount::attach(mount.as_fd(), target.as_fd(), c"")?)
}

fn file_type(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}
