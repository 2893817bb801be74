//! Staying with a process: its signals, its terminal, its end.

use super::Child;
use super::notify::Notify;
use crate::error::{Context, Error, Result};
use crate::sys::poll::until_ready;
use crate::sys::process::pidfd_send_signal;
use crate::sys::{Call, inherited, socket, terminal};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read, write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Makes processes that the container's leave behind this one's children, so that they are
/// collected (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true).call(|| "prctl(PR_SET_CHILD_SUBREAPER, 1)".into())?)
}

/// What is set up before the process runs, so that nothing of it is missed.
pub struct Foreground {
    signals: SignalFd,
    terminal: Option<Relay>,
}

/// Copies between the caller's terminal and the container's.
struct Relay {
    master: OwnedFd,
    /// The caller's terminal as it was; None where its input is something else.
    before: Option<Termios>,
    /// Input that the container's terminal didn't take yet. While there is any no more is read: a
    /// program that writes before it reads must not be waited for.
    pending: Vec<u8>,
    input_open: bool,
    output_open: bool,
}

/// Takes over this process's signals. It is done when the process that they are for has been made, so
/// that it has a mask of its own, and before it is told to go on: from its first moment they reach it.
pub fn take_signals() -> Result<SignalFd> {
    let mut all = SigSet::all();
    // What the kernel sends for a fault of ours must end us.
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
        all.remove(fault);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None).call(|| "sigprocmask(SIG_BLOCK)".into())?;
    Ok(SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .call(|| "signalfd4".into())?)
}

impl Foreground {
    /// With the signals that were taken over, and the terminal that is sent over `console`.
    pub fn prepare(signals: SignalFd, console: Option<OwnedFd>) -> Result<Self> {
        Ok(Foreground { signals, terminal: console.map(Relay::receive).transpose()? })
    }

    /// Passes on signals and the terminal's bytes until `child` ends; returns its exit status,
    /// which is 128 and the number for a signal, as shells have it.
    /// What the program says by sd_notify(3) is passed on as well.
    pub fn wait_for(&mut self, child: &Child, notify: Option<&Notify>) -> Result<i32> {
        loop {
            let (ended, signal, input, terminal, notified) = {
                let stdin = inherited(0);
                let mut fds = vec![
                    PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                ];
                if let Some(relay) = &self.terminal {
                    let mut wanted = PollFlags::empty();
                    wanted.set(PollFlags::POLLIN, relay.output_open);
                    wanted.set(PollFlags::POLLOUT, !relay.pending.is_empty());
                    if !wanted.is_empty() {
                        fds.push(PollFd::new(relay.master.as_fd(), wanted));
                    }
                    if relay.input_open && relay.pending.is_empty() {
                        fds.push(PollFd::new(stdin, PollFlags::POLLIN));
                    }
                }
                fds.extend(notify.map(|notify| PollFd::new(notify.as_fd(), PollFlags::POLLIN)));
                until_ready(&mut fds).call(|| "poll".into())?;
                let (mut input, mut terminal, mut notified) = (false, PollFlags::empty(), false);
                let socket = notify.map(|notify| notify.as_fd().as_raw_fd());
                for fd in &fds[2..] {
                    let seen = fd.revents().unwrap_or(PollFlags::POLLERR);
                    match fd.as_fd().as_raw_fd() {
                        0 => input = !seen.is_empty(),
                        number if Some(number) == socket => notified = !seen.is_empty(),
                        _ => terminal = seen,
                    }
                }
                (fds[0].any() != Some(false), fds[1].any() != Some(false), input, terminal, notified)
            };
            if let Some(notify) = notify.filter(|_| notified) {
                // What the program is for is not this.
                if let Err(error) = notify.pass_on(child.pid) {
                    crate::log::warning(&error.to_string());
                }
            }
            if signal && !ended {
                self.pass_on_signals(child)?;
            }
            if let Some(relay) = &mut self.terminal {
                if terminal.contains(PollFlags::POLLOUT) {
                    relay.write_input();
                }
                if terminal.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                    relay.copy_output();
                }
                if input {
                    relay.read_input();
                }
            }
            if ended {
                return self.end(child);
            }
        }
    }

    /// Makes the caller's terminal what it was.
    pub fn give_back(&mut self) {
        self.terminal.iter_mut().for_each(Relay::give_back);
    }

    fn pass_on_signals(&mut self, child: &Child) -> Result<()> {
        while let Some(info) = self.signals.read_signal().call(|| "read(signalfd)".into())? {
            match info.ssi_signo as i32 {
                libc::SIGCHLD => collect_others(child.pid),
                libc::SIGWINCH if self.terminal.is_some() => self.terminal.iter().for_each(Relay::resize),
                // About this process's own reads and writes.
                libc::SIGPIPE | libc::SIGURG | libc::SIGTTOU | libc::SIGTTIN => {}
                number => match pidfd_send_signal(child.pidfd.as_fd(), number) {
                    Err(failed) if failed.errno != Errno::ESRCH => Err(failed)?,
                    _ => {}
                },
            }
        }
        Ok(())
    }

    fn end(&mut self, child: &Child) -> Result<i32> {
        let status = waitpid(child.pid, None).call(|| format!("wait4({})", child.pid))?;
        if let Some(relay) = &mut self.terminal {
            relay.drain();
        }
        match status {
            WaitStatus::Exited(_, status) => Ok(status),
            WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as i32),
            other => Err(Error::new(format!("unexpected wait status {other:?}"))),
        }
    }
}

/// Collects children that were left to this process, but not the one that is waited for.
fn collect_others(child: Pid) {
    use nix::sys::wait::{Id, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, flags) {
        match status.pid().filter(|&pid| pid != child) {
            Some(pid) => drop(waitpid(pid, None)),
            // The child itself, which hides others that come after it until it is waited for.
            None => return,
        }
    }
}

impl Relay {
    /// Takes the terminal that the process sends, and makes the caller's pass on every byte.
    fn receive(console: OwnedFd) -> Result<Self> {
        let (_, master) = socket::receive(console.as_fd(), &mut [0; 64])?;
        let master = master.ok_or_else(|| Error::new("the container sent no terminal"))?;
        let stdin = inherited(0);
        let before = termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            termios::cfmakeraw(&mut raw);
            // Line ends are this terminal's business, and not the container's: see below.
            raw.output_flags |= OutputFlags::OPOST;
            termios::tcsetattr(stdin, SetArg::TCSANOW, &raw)
                .call(|| "tcsetattr(0)".into())
                .doing(|| "cannot set the terminal to raw mode".into())?;
        }
        // Where the output is no terminal, but a file or a pipe, lines end as programs write them.
        let mut theirs = termios::tcgetattr(&master).call(|| "tcgetattr(terminal)".into())?;
        theirs.output_flags.remove(OutputFlags::ONLCR);
        termios::tcsetattr(&master, SetArg::TCSANOW, &theirs).call(|| "tcsetattr(terminal)".into())?;
        // What it doesn't take at once it takes later; output is read meanwhile.
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).call(|| "fcntl(F_SETFL, O_NONBLOCK)".into())?;
        let relay = Relay { master, before, pending: Vec::new(), input_open: true, output_open: true };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the caller's size.
    fn resize(&self) {
        if let Ok(size) = terminal::size(inherited(0)) {
            // A terminal that has just gone away needs no size.
            let _ = terminal::set_size(self.master.as_fd(), &size);
        }
    }

    fn read_input(&mut self) {
        let mut buffer = [0; 8192];
        match read(inherited(0), &mut buffer) {
            Ok(length @ 1..) => self.pending.extend(&buffer[..length]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            _ => self.input_open = false,
        }
        self.write_input();
    }

    fn write_input(&mut self) {
        match write(&self.master, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => (self.input_open, self.pending) = (false, Vec::new()),
        }
    }

    fn copy_output(&mut self) {
        self.output_open = copy(self.master.as_fd(), inherited(1));
    }

    /// Copies what the process has written before it ended.
    fn drain(&mut self) {
        while self.output_open {
            let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::ZERO) {
                Ok(1..) => self.copy_output(),
                _ => return,
            }
        }
    }

    /// Makes the caller's terminal what it was.
    fn give_back(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = termios::tcsetattr(inherited(0), SetArg::TCSANOW, &before);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Copies once; false where one side is closed.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 8192];
    let length = match read(from, &mut buffer) {
        Ok(0) | Err(Errno::EIO) => return false,
        Ok(length) => length,
        Err(errno) => return matches!(errno, Errno::EINTR | Errno::EAGAIN),
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut ready = [PollFd::new(to, PollFlags::POLLOUT)];
                let _ = poll(&mut ready, PollTimeout::NONE);
            }
            Err(_) => return false,
        }
    }
    true
}
