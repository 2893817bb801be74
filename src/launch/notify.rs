//! sd_notify(3) for a container: who has NOTIFY_SOCKET in the runtime's environment is told when the
//! program in the container is ready.
//!
//! The container has a socket of its own, in a directory of the container's state that is bound to
//! /run/notify. The runtime passes on what comes there, but for process ids: those of the container
//! mean nothing outside, and MAINPID is the container's first process.

use crate::container::Directory;
use crate::error::{Context, Result};
use crate::sys::poll::until_ready;
use crate::sys::{self, Call};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, send, socket,
};
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::{Mount, Spec};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// The directory in the container's state.
const DIRECTORY: &str = "notify";
/// The socket in it.
const SOCKET: &str = "notify.sock";
/// Where the container sees the directory, as under runc.
const IN_CONTAINER: &str = "/run/notify";

/// Who is to be told, if anybody is.
fn listener() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
}

/// Whether anybody is to be told.
pub fn is_wanted() -> bool {
    listener().is_some()
}

/// Adds the container's side to its configuration; `state` is the container's directory.
pub fn add_to(spec: &mut Spec, state: &Path) {
    let mut mount = Mount::default();
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    mount
        .set_destination(IN_CONTAINER.into())
        .set_typ(Some("bind".into()))
        .set_source(Some(state.join(DIRECTORY)))
        .set_options(Some(options));
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let variable = format!("NOTIFY_SOCKET={IN_CONTAINER}/{SOCKET}");
        process.env_mut().get_or_insert_default().push(variable);
    }
}

/// Makes the directory.
pub fn make_directory(state: &Directory) -> Result<()> {
    let path = state.file(DIRECTORY);
    Ok(std::fs::DirBuilder::new().mode(0o755).create(&path).call(|| format!("mkdir({path:?})"))?)
}

/// The container's socket, and the one that its messages are passed on to.
pub struct Notify {
    ours: OwnedFd,
    listener: OwnedFd,
}

impl Notify {
    /// Listens for the container's program; None where nobody is to be told, or nobody was when the
    /// container was created.
    pub fn listen(state: &Directory) -> Result<Option<Self>> {
        let Some(listener) = listener().filter(|_| state.has(DIRECTORY)) else { return Ok(None) };
        let listen = || -> sys::Result<Self> {
            let ours = datagrams()?;
            // By the descriptor: a path in the state directory may be too long for an address.
            let path = sys::file::through_proc(state.as_fd()).join(DIRECTORY).join(SOCKET);
            let address = UnixAddr::new(&path).call(|| format!("sockaddr_un({path:?})"))?;
            bind(ours.as_raw_fd(), &address).call(|| format!("bind({path:?})"))?;
            // The program may be anybody; only the container sees the directory.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
                .call(|| format!("chmod({path:?}, 0777)"))?;
            let theirs = datagrams()?;
            let address = match listener.as_bytes().strip_prefix(b"@") {
                Some(name) => UnixAddr::new_abstract(name),
                None => UnixAddr::new(Path::new(&listener)),
            };
            let address = address.call(|| format!("sockaddr_un({listener:?})"))?;
            connect(theirs.as_raw_fd(), &address).call(|| format!("connect({listener:?})"))?;
            Ok(Notify { ours, listener: theirs })
        };
        listen().doing(|| "cannot pass on notifications to NOTIFY_SOCKET".into()).map(Some)
    }

    /// Passes on one message of container process `pid`'s; true when it said that it is ready.
    pub fn pass_on(&self, pid: Pid) -> Result<bool> {
        let mut buffer = [0; 4096];
        let length = match recv(self.ours.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            other => other.call(|| "recv(notify.sock)".into())?,
        };
        let Some((message, ready)) = translated(&buffer[..length], pid) else { return Ok(false) };
        // A container that floods must not stop the runtime; that it is ready is waited for.
        let flags =
            if ready { MsgFlags::MSG_NOSIGNAL } else { MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT };
        match send(self.listener.as_raw_fd(), message.as_bytes(), flags) {
            Err(Errno::EAGAIN) => {}
            other => drop(other.call(|| "send(NOTIFY_SOCKET)".into())?),
        }
        if ready {
            self.wait_until_read()?;
        }
        Ok(ready)
    }

    /// Passes on messages until one says that the program is ready, or it ends.
    pub fn wait_until_ready(&self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        loop {
            let mut fds =
                [PollFd::new(self.ours.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd, PollFlags::POLLIN)];
            until_ready(&mut fds).call(|| "poll(notify.sock)".into())?;
            if self.pass_on(pid)? || fds[1].any() == Some(true) {
                return Ok(());
            }
        }
    }

    /// Waits until the listener has read what it was sent: of a process that has gone it couldn't tell
    /// which unit it belonged to (sd_notify_barrier(3)).
    fn wait_until_read(&self) -> Result<()> {
        const PATIENCE_MS: u16 = 5000;
        let (read, write) = pipe2(OFlag::O_CLOEXEC).call(|| "pipe2".into())?;
        sys::socket::send(self.listener.as_fd(), b"BARRIER=1", Some(write.as_fd()))?;
        drop(write);
        let mut fds = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        // It has been told, whether it says so or not.
        let _ = poll(&mut fds, PATIENCE_MS);
        Ok(())
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

fn datagrams() -> sys::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(AF_UNIX, SOCK_DGRAM)".into())
}

/// A message as it makes sense outside of the container, and whether it says that the program is ready.
fn translated(message: &[u8], pid: Pid) -> Option<(String, bool)> {
    let text = std::str::from_utf8(message).ok()?;
    // The rest is about the unit of who called the runtime, over which a container has no say.
    const PASSED_ON: [&str; 6] = ["READY=1", "STATUS=", "ERRNO=", "RELOADING=1", "STOPPING=1", "WATCHDOG=1"];
    let is_passed_on = |line: &&str| {
        PASSED_ON
            .iter()
            .any(|known| if known.ends_with('=') { line.starts_with(known) } else { line == known })
    };
    let mut lines: Vec<&str> = text.lines().filter(is_passed_on).collect();
    let ready = lines.contains(&"READY=1");
    let main = format!("MAINPID={pid}");
    if ready {
        lines.push(&main);
    }
    (!lines.is_empty()).then(|| (lines.join("\n"), ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_ids_are_the_hosts() {
        let translate = |text: &str| translated(text.as_bytes(), Pid::from_raw(42));
        assert_eq!(
            translate("MAINPID=1\nREADY=1\nSTATUS=up\n"),
            Some(("READY=1\nSTATUS=up\nMAINPID=42".into(), true))
        );
        assert_eq!(translate("WATCHDOG=1"), Some(("WATCHDOG=1".into(), false)));
        for own in ["BARRIER=1", "NOTIFYACCESS=all", "WATCHDOG=trigger", "EXTEND_TIMEOUT_USEC=1", "FDSTORE=1"]
        {
            assert_eq!(translate(own), None, "{own}");
        }
        assert_eq!(translate("junk"), None);
        assert_eq!(translated(b"READY=1\xff", Pid::from_raw(42)), None);
    }
}
