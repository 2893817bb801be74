//! The gate: a socket in the container's directory at which a created container waits until
//! `start` comes.
//!
//! A socket rather than a fifo, because `start` has to hear what became of it: a failed
//! startContainer hook or execve(2) is told over the same connection, and its closing by the
//! kernel within execve(2) says that the program runs. Nobody else can come near: the directory
//! has mode 0700 and isn't visible in the container.

use super::Directory;
use crate::error::Result;
use crate::sys::poll::until_ready;
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const NAME: &str = "start.sock";

/// Whether the container has a gate still: `start` removes it.
pub fn is_there(directory: &Directory) -> bool {
    directory.has(NAME)
}

/// Makes the gate.
pub fn make(directory: &Directory) -> Result<OwnedFd> {
    let listener = new_socket()?;
    let address = address(directory)?;
    bind(listener.as_raw_fd(), &address).call(|| format!("bind({:?})", directory.file(NAME)))?;
    let one = Backlog::new(1).call(|| "listen(1)".into())?;
    listen(&listener, one).call(|| format!("listen({:?})", directory.file(NAME)))?;
    Ok(listener)
}

/// What ends a process that has no handler for it: signals whose default action a first process of a
/// pid namespace is spared by the kernel.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// What happened at the gate.
pub enum Event {
    /// Somebody came.
    Visitor(OwnedFd),
    /// A signal came that ends the wait, and the process.
    Ended(i32),
}

/// Signals that end a wait which hasn't begun yet: from here on none is lost.
pub struct Watch {
    signals: SignalFd,
    /// The mask that the program is to have.
    before: SigSet,
}

impl Watch {
    /// Begins to watch.
    pub fn begin() -> Result<Self> {
        let ending: SigSet = ENDING.into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ending), Some(&mut before))
            .call(|| "sigprocmask(SIG_BLOCK)".into())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&ending, flags).call(|| "signalfd4".into())?;
        Ok(Watch { signals, before })
    }

    /// Waits at the gate for somebody to come, or for a signal that ends a container which hasn't started.
    pub fn wait_at(&self, gate: BorrowedFd<'_>) -> Result<Event> {
        let mut fds =
            [PollFd::new(gate, PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        until_ready(&mut fds).call(|| "poll(start.sock)".into())?;
        match self.signals.read_signal() {
            Ok(Some(signal)) => Ok(Event::Ended(signal.ssi_signo as i32)),
            _ => accept(gate).map(Event::Visitor),
        }
    }

    /// The program is about to run: signals are its own.
    pub fn end(self) -> Result<()> {
        let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
        Ok(restored.call(|| "sigprocmask(SIG_SETMASK)".into())?)
    }
}

fn accept(gate: BorrowedFd<'_>) -> Result<OwnedFd> {
    loop {
        match accept4(gate.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            other => {
                let fd = other.call(|| "accept4(start.sock)".into())?;
                return Ok(crate::sys::socket::accepted(fd));
            }
        }
    }
}

/// Whether somebody waits at the gate. A queue that is full says so, too: one who is stopped takes
/// nobody in.
pub fn is_guarded(directory: &Directory) -> Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .call(|| "socket(AF_UNIX, SOCK_SEQPACKET)".into())?;
    match connect(probe.as_raw_fd(), &address(directory)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(false),
        Err(errno) => Ok(Err(errno).call(|| format!("connect({:?})", directory.file(NAME)))?),
    }
}

/// Goes to the gate; None where nobody waits there any more.
pub fn enter(directory: &Directory) -> Result<Option<OwnedFd>> {
    let link = new_socket()?;
    match connect(link.as_raw_fd(), &address(directory)?) {
        Ok(()) => Ok(Some(link)),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
        Err(errno) => Ok(Err(errno).call(|| format!("connect({:?})", directory.file(NAME)))?),
    }
}

/// Removes the gate.
pub fn remove(directory: &Directory) -> Result<()> {
    directory.unlink(NAME)
}

fn new_socket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(AF_UNIX, SOCK_SEQPACKET)".into())?)
}

fn address(directory: &Directory) -> Result<UnixAddr> {
    // Through the descriptor: a socket's address has 108 bytes, and state roots are deeper.
    let path = file::through_proc(directory.as_fd()).join(NAME);
    Ok(UnixAddr::new(&path).call(|| format!("sockaddr_un({path:?})"))?)
}
