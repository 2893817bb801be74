//! Sockets that carry descriptors, and the loopback device.

use super::{Call, Result, show};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sends `bytes`, with the descriptor `passed` where one is given (unix(7), SCM_RIGHTS).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], passed: Option<BorrowedFd<'_>>) -> Result<()> {
    let passed = passed.map(|fd| [fd.as_raw_fd()]);
    let rights = passed.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
    let control: &[ControlMessage<'_>] = rights.as_ref().map_or(&[], |rights| rights);
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .call(|| format!("sendmsg({}, {} bytes, {} descriptors)", show(socket), bytes.len(), control.len()))
}

/// Receives one message into `buffer`: its length (0: the other side is gone) and, where one
/// came along, a descriptor.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(buffer)];
    loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno).call(|| format!("recvmsg({})", show(socket))),
            Ok(message) => {
                let mut received = None;
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        // SAFETY: the kernel has just made these descriptors for this process.
                        received = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
                    }
                }
                return Ok((message.bytes, received));
            }
        }
    }
}

/// Takes over the descriptor that accept4(2) has just returned.
pub fn accepted(fd: RawFd) -> OwnedFd {
    // SAFETY: new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets the loopback device of this network namespace up, as `ip link set lo up` does.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = InterfaceRequest { name: [0; 16], flags: libc::IFF_UP as i16, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: `struct ifreq` is 40 bytes: a name of 16, and a union that begins with the flags.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    nix::errno::Errno::result(result)
        .map(drop)
        .call(|| format!("ioctl({}, SIOCSIFFLAGS, lo, IFF_UP)", show(socket)))
}
