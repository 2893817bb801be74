//! What a runtime sends over a socket: a message with one descriptor.

use crate::ensure;
use crate::harness::{Stop, Verdict};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// Waits for a connection and takes one message.
pub fn receive(listener: &UnixListener) -> Verdict<(Vec<u8>, OwnedFd)> {
    // Nobody connects where the runtime doesn't: no waiting for ever.
    let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, 20_000u16)?;
    ensure!(ready[0].any() == Some(true), "nobody connected to the socket");
    let (socket, _) = listener.accept()?;
    let mut buffer = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let length = message.bytes;
    let fds: Vec<i32> = message
        .cmsgs()?
        .filter_map(
            |control| if let ControlMessageOwned::ScmRights(fds) = control { Some(fds) } else { None },
        )
        .flatten()
        .collect();
    let [fd] = fds[..] else { return Err(Stop::Failed(format!("{} descriptors were sent", fds.len()))) };
    // SAFETY: the kernel has just made it for this process.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    buffer.truncate(length);
    Ok((buffer, fd))
}
