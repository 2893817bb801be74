//! The runtime's side of the start, for `start` and `run`.

use crate::container::Container;
use crate::error::{Context, Error, Pointer, Result};
use crate::link::{Link, Message};
use crate::sys::process::pidfd_getfd;
use crate::sys::{Call, socket};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Whether a process that is ready goes on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It waits to be told.
    ToBeTold,
    /// It goes on at once.
    Not,
}

/// Tells a process that is ready to go on, and returns when its program runs: the kernel closes the
/// connection within execve(2). `listener` hands on its seccomp listener, by descriptor number.
pub fn begin(link: &Link, waits: Waits, mut listener: impl FnMut(i32) -> Result<()>) -> Result<()> {
    if waits == Waits::ToBeTold {
        link.send(&Message::Start)?;
    }
    loop {
        match link.receive()? {
            None => return Ok(()),
            Some(Message::Failed(text)) => return Err(Error::new(text)),
            Some(Message::SeccompListener(fd)) => {
                listener(fd)?;
                link.send(&Message::ListenerTaken)?;
            }
            Some(other) => return Err(Error::new(format!("unexpected message {other:?}"))),
        }
    }
}

/// Sends descriptor `fd` of process `pid` to the seccomp agent, with the state of the container
/// (config-linux.md, "The Container Process State").
pub fn send_listener(
    container: &Container,
    pidfd: BorrowedFd<'_>,
    pid: Pid,
    fd: i32,
    state: Value,
) -> Result<()> {
    let agent = container.state.listener.as_ref().ok_or_else(|| Error::new("there is no seccomp agent"))?;
    let listener = pidfd_getfd(pidfd, fd)?;
    let mut message = json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid.as_raw(),
        "state": state,
    });
    if let Some(metadata) = &agent.metadata {
        message["metadata"] = metadata.as_str().into();
    }
    let send = || -> Result<()> {
        let socket =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .call(|| "socket(AF_UNIX, SOCK_STREAM)".into())?;
        let address = UnixAddr::new(&agent.path).call(|| format!("sockaddr_un({:?})", agent.path))?;
        connect(socket.as_raw_fd(), &address).call(|| format!("connect({:?})", agent.path))?;
        Ok(socket::send(socket.as_fd(), message.to_string().as_bytes(), Some(listener.as_fd()))?)
    };
    send()
        .doing(|| "failed to connect with seccomp agent, which is to be sent the listener".into())
        .at(&Pointer::to("/linux/seccomp/listenerPath"))
}
