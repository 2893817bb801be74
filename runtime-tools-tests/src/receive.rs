//! What a runtime sends over a socket: a message with a descriptor.

use crate::ensure;
use crate::harness::{Stop, Verdict};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Waits for a connection and takes one message.
pub fn receive(listener: &UnixListener) -> Verdict<(Vec<u8>, OwnedFd)> {
    let (buffer, mut fds) = message(&accept(listener)?)?;
    match (fds.pop(), fds.len()) {
        (Some(fd), 0) => Ok((buffer, fd)),
        (fd, more) => {
            Err(Stop::Failed(format!("{} descriptors were sent", more + usize::from(fd.is_some()))))
        }
    }
}

/// Waits for a connection and takes all that comes until it is closed: the bytes, and how many
/// descriptors came with them. They are closed then.
pub fn receive_all(listener: &UnixListener) -> Verdict<(Vec<u8>, usize)> {
    let socket = accept(listener)?;
    let (mut all, mut descriptors) = (Vec::new(), 0);
    loop {
        wait_for(socket.as_fd(), "the connection is neither used nor closed")?;
        let (bytes, fds) = message(&socket)?;
        if bytes.is_empty() && fds.is_empty() {
            return Ok((all, descriptors));
        }
        ensure!(fds.is_empty() || all.is_empty(), "descriptors came later than with the first bytes");
        all.extend(bytes);
        descriptors += fds.len();
    }
}

/// Nobody connects, or sends, where the runtime doesn't: no waiting for ever.
fn wait_for(fd: BorrowedFd<'_>, problem: &str) -> Verdict {
    let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut ready, 20_000u16)?;
    ensure!(ready[0].any() == Some(true), "{problem}");
    Ok(())
}

fn accept(listener: &UnixListener) -> Verdict<UnixStream> {
    wait_for(listener.as_fd(), "nobody connected to the socket")?;
    Ok(listener.accept()?.0)
}

fn message(socket: &UnixStream) -> Verdict<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let length = message.bytes;
    let fds: Vec<OwnedFd> = message
        .cmsgs()?
        .filter_map(
            |control| if let ControlMessageOwned::ScmRights(fds) = control { Some(fds) } else { None },
        )
        .flatten()
        // SAFETY: the kernel has just made it for this process.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect();
    buffer.truncate(length);
    Ok((buffer, fds))
}
