//! What the runtime and a container's first process say to each other.
//!
//! One SEQPACKET connection, one message a packet: a byte that says which, and a text where one
//! belongs to it. Nothing else is ever exchanged, and nothing is parsed (CVE-2021-43784).
//!
//! ```text
//!   runtime                                init
//!      │ ── Go ────────────────────────────► │  ids are mapped, the cgroup is entered
//!      │ ◄────────────────────── IdMapPlease │  for a mount that only the container can open
//!      │ ── IdMapped ──────────────────────► │
//!      │ ◄────────────────────── HooksPlease │  mounts are made, the root isn't changed yet
//!      │ ── HooksDone ─────────────────────► │  prestart and createRuntime hooks have run
//!      │ ◄──────────────────────────── Ready │  `create` is done
//!      ╎      (`create` goes, `start` comes through the gate; for `run` nothing happens)
//!      │ ── Start ─────────────────────────► │
//!      │ ◄────────────────── SeccompListener │  the number of the descriptor to fetch
//!      │ ── ListenerTaken ─────────────────► │
//!      │ ◄────────────── (end of connection) │  execve(2) has succeeded
//! ```
//! At any point init may say `Failed` with the error's text, and ends. An end of the connection
//! where a message is due means that init died; init, too, ends when the runtime goes away early.

use crate::error::{Error, Result};
use crate::sys::Call;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Ids are mapped and the cgroup is entered.
    Go,
    /// The hooks of the runtime's side are due.
    HooksPlease,
    /// They have run.
    HooksDone,
    /// A mount of the container's own, this descriptor of init's, is to have the id mapping of entry
    /// `index` of `/mounts`.
    IdMapPlease {
        /// The entry.
        index: usize,
        /// The descriptor.
        fd: i32,
    },
    /// It has it.
    IdMapped,
    /// All that `create` does is done.
    Ready,
    /// Run the program.
    Start,
    /// The seccomp listener is this descriptor of init's.
    SeccompListener(i32),
    /// The runtime has a copy of it.
    ListenerTaken,
    /// It didn't work.
    Failed(String),
}

/// A text longer than this is cut: an error with a hook's output in it.
const MOST_BYTES: usize = 4096;

impl Message {
    fn to_bytes(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Message::Go => (b'G', String::new()),
            Message::HooksPlease => (b'h', String::new()),
            Message::HooksDone => (b'H', String::new()),
            Message::IdMapPlease { index, fd } => (b'm', format!("{index} {fd}")),
            Message::IdMapped => (b'M', String::new()),
            Message::Ready => (b'R', String::new()),
            Message::Start => (b'S', String::new()),
            Message::SeccompListener(fd) => (b'l', fd.to_string()),
            Message::ListenerTaken => (b'L', String::new()),
            Message::Failed(text) => (b'F', text.clone()),
        };
        let mut bytes = vec![kind];
        bytes.extend(text.into_bytes());
        bytes.truncate(MOST_BYTES);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, text) = bytes.split_first()?;
        let text = String::from_utf8_lossy(text);
        Some(match kind {
            b'G' => Message::Go,
            b'h' => Message::HooksPlease,
            b'H' => Message::HooksDone,
            b'm' => {
                let (index, fd) = text.split_once(' ')?;
                Message::IdMapPlease { index: index.parse().ok()?, fd: fd.parse().ok()? }
            }
            b'M' => Message::IdMapped,
            b'R' => Message::Ready,
            b'S' => Message::Start,
            b'l' => Message::SeccompListener(text.parse().ok()?),
            b'L' => Message::ListenerTaken,
            b'F' => Message::Failed(text.into_owned()),
            _ => return None,
        })
    }
}

/// One side of the connection.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both sides.
    pub fn pair() -> Result<(Link, Link)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".into())?;
        Ok((Link(a), Link(b)))
    }

    /// The side that came through, or went to, the gate.
    pub fn over(socket: OwnedFd) -> Self {
        Link(socket)
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) -> Result<()> {
        let bytes = message.to_bytes();
        // Without SIGPIPE: that the other side is gone is an error like any other.
        match nix::sys::socket::send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
            // It may have said why before it went.
            Err(Errno::EPIPE) => match self.receive()? {
                Some(Message::Failed(text)) => Err(Error::new(text)),
                _ => Err(Errno::EPIPE).call(|| format!("send({message:?})"))?,
            },
            sent => Ok(sent.map(drop).call(|| format!("send({message:?})"))?),
        }
    }

    /// Sends a message with write(2), which nearly every seccomp profile allows.
    pub fn write(&self, message: &Message) -> Result<()> {
        nix::unistd::write(&self.0, &message.to_bytes()).call(|| format!("write({message:?})"))?;
        Ok(())
    }

    /// Waits for a message; None when the other side is gone.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut buffer = [0; MOST_BYTES];
        let length = loop {
            match nix::unistd::read(&self.0, &mut buffer) {
                // ECONNRESET: the other side went without reading everything. It is told once, and
                // before what that side had said; the next call returns that.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Ok(0) => return Ok(None),
                other => break other.call(|| "read(link)".into())?,
            }
        };
        match Message::from_bytes(&buffer[..length]) {
            Some(message) => Ok(Some(message)),
            None => {
                Err(Error::new("an unknown message between the runtime and the container's first process"))
            }
        }
    }

    /// Waits for exactly `expected`; false when the other side is gone.
    pub fn expect(&self, expected: &Message) -> Result<bool> {
        match self.receive()? {
            None => Ok(false),
            Some(message) if message == *expected => Ok(true),
            Some(message) => Err(Error::new(format!("expected {expected:?}, got {message:?}"))),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (a, b) = Link::pair().expect("a pair");
        let all = [
            Message::Go,
            Message::HooksPlease,
            Message::HooksDone,
            Message::IdMapPlease { index: 3, fd: 9 },
            Message::IdMapped,
            Message::Ready,
            Message::Start,
            Message::SeccompListener(7),
            Message::ListenerTaken,
            Message::Failed("why\nnot".into()),
        ];
        for message in all {
            a.send(&message).expect("sent");
            assert_eq!(b.receive(), Ok(Some(message)));
        }
        drop(a);
        assert_eq!(b.receive(), Ok(None));
    }

    #[test]
    fn long_texts_are_cut_and_last_words_are_heard() {
        let (a, b) = Link::pair().expect("a pair");
        a.send(&Message::Failed("x".repeat(100_000))).expect("sent");
        assert!(matches!(b.receive(), Ok(Some(Message::Failed(text))) if text.len() == MOST_BYTES - 1));
        // What was said before the end is heard, also by one who was about to speak.
        a.send(&Message::Failed("why".into())).expect("sent");
        drop(a);
        assert_eq!(b.send(&Message::Go), Err(Error::new("why")));

        let (a, b) = Link::pair().expect("a pair");
        b.send(&Message::Go).expect("sent, never read");
        a.send(&Message::Failed("why".into())).expect("sent");
        drop(a);
        assert_eq!(b.receive(), Ok(Some(Message::Failed("why".into()))));
        assert_eq!(b.receive(), Ok(None));
    }

    #[test]
    fn nonsense_is_refused() {
        let (a, b) = Link::pair().expect("a pair");
        for bytes in [&b"?"[..], b"lx"] {
            nix::unistd::write(&a.0, bytes).expect("sent");
            assert!(b.receive().is_err());
        }
    }
}
