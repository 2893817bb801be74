//! The service manager's D-Bus interface, org.freedesktop.systemd1(5), for one call at a time.
//!
//! Messages are `rustbus`'s; the connection is our own, because it must not be inherited by children
//! (close-on-exec), must not wait for ever, and must not name a user id: in a user namespace this
//! process doesn't know the one that the other side sees. The kernel says who it is.

use crate::error::{Error, Result};
use crate::sys::{Call, identity};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use rustbus::message_builder::{MarshalledMessage, MessageBuilder, MessageType};
use rustbus::params::{Base, Param};
use rustbus::wire::{ObjectPath, marshal, unmarshal};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the service manager may take for an answer: a busy one was seen to stall for 10 s
/// (runc#4853).
const PATIENCE: Duration = Duration::from_secs(60);

/// A longer message is not for us: every answer that is waited for is a few hundred bytes.
const LONGEST: usize = 1 << 20;

/// A connection to the service manager: the system's, or the user's own.
pub struct Bus {
    stream: UnixStream,
    received: Vec<u8>,
    serial: u32,
    until: Instant,
    /// Jobs that have ended: (object path, result).
    ended: Vec<(String, String)>,
}

/// An answer that is an error: its name and text.
#[derive(Debug)]
pub struct Refusal {
    /// Such as `org.freedesktop.systemd1.NoSuchUnit`.
    pub name: String,
    text: String,
}

impl Refusal {
    /// As an error of ours.
    pub fn error(&self) -> Error {
        Error::new(format!("systemd refused: {} ({})", self.text, self.name))
    }
}

impl Bus {
    /// Connects to the user's service manager, or to the system's.
    ///
    /// First to its private socket: that spares the message bus, which is the bottleneck when
    /// hundreds of containers start (runc#4853).
    pub fn connect(user: bool) -> Result<Self> {
        let (private, bus) = addresses(user);
        let mut tried = Vec::new();
        for (path, is_bus) in [(private, false), (bus, true)] {
            let Some(path) = path else { continue };
            match Self::open(&path, is_bus) {
                Ok(bus) => return Ok(bus),
                Err(error) => tried.push(error.to_string()),
            }
        }
        let kind = if user { "the user's" } else { "the system's" };
        let tried = if tried.is_empty() { "its address is not known".into() } else { tried.join("; ") };
        Err(Error::new(format!("cannot connect to {kind} service manager: {tried}")).hint(if user {
            "XDG_RUNTIME_DIR must be that of a login session with a user manager (loginctl enable-linger)"
        } else {
            "is systemd running?"
        }))
    }

    fn open(path: &Path, is_bus: bool) -> Result<Self> {
        let stream = UnixStream::connect(path).call(|| format!("connect({path:?})"))?;
        let until = Instant::now() + PATIENCE;
        let mut bus = Bus { stream, received: Vec::new(), serial: 0, until, ended: Vec::new() };
        // All at once, as the protocol allows: no step depends on the answer to another.
        bus.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        for expected in ["DATA", "OK"] {
            let line = bus.line()?;
            if !line.starts_with(expected) {
                return Err(Error::new(format!("{path:?} doesn't let this user in: {line}")));
            }
        }
        if is_bus {
            let driver =
                |member| to("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member);
            bus.exchange(driver("Hello"), &[])?.map_err(|refusal| refusal.error())?;
            let rule = "type='signal',sender='org.freedesktop.systemd1',member='JobRemoved'";
            let rule = Param::Base(Base::String(rule.into()));
            bus.exchange(driver("AddMatch"), &[rule])?.map_err(|refusal| refusal.error())?;
        }
        Ok(bus)
    }

    /// Calls a method of org.freedesktop.systemd1.Manager.
    pub fn call(
        &mut self,
        member: &str,
        arguments: &[Param<'_, '_>],
    ) -> Result<std::result::Result<Vec<Param<'static, 'static>>, Refusal>> {
        let path = "/org/freedesktop/systemd1";
        self.exchange(
            to("org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Manager", member),
            arguments,
        )
    }

    /// Waits for the end of a job; its result is `done` where all went well.
    pub fn wait_for_job(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some(index) = self.ended.iter().position(|(path, _)| path == job) {
                return Ok(self.ended.swap_remove(index).1);
            }
            self.receive()?;
        }
    }

    fn exchange(
        &mut self,
        mut message: MarshalledMessage,
        arguments: &[Param<'_, '_>],
    ) -> Result<std::result::Result<Vec<Param<'static, 'static>>, Refusal>> {
        self.serial += 1;
        let malformed = |error: &dyn std::fmt::Display| Error::new(format!("D-Bus message: {error}"));
        message.body.push_old_params(arguments).map_err(|error| malformed(&error))?;
        let mut bytes = Vec::new();
        marshal::marshal(&message, self.serial, &mut bytes).map_err(|error| malformed(&error))?;
        bytes.extend(message.get_buf());
        self.send(&bytes)?;
        loop {
            let answer = self.receive()?;
            if answer.dynheader.response_serial != Some(self.serial) {
                continue;
            }
            let name = answer.dynheader.error_name.clone();
            let failed = answer.typ == MessageType::Error;
            let body = answer.unmarshall_all().map_err(|error| malformed(&error))?.params;
            return Ok(match failed {
                false => Ok(body),
                true => Err(Refusal {
                    name: name.unwrap_or_default(),
                    text: body.first().map(text).unwrap_or_default(),
                }),
            });
        }
    }

    /// The next message. What it says of jobs is kept.
    fn receive(&mut self) -> Result<MarshalledMessage> {
        const FIXED: usize = 16;
        let malformed = |error: &dyn std::fmt::Display| Error::new(format!("D-Bus message: {error}"));
        self.fill(FIXED)?;
        let (used, header) =
            unmarshal::unmarshal_header(&self.received, 0).map_err(|error| malformed(&error))?;
        let length: [u8; 4] = self.received[12..16].try_into().unwrap_or_default();
        let fields = match self.received[0] {
            b'B' => u32::from_be_bytes(length),
            _ => u32::from_le_bytes(length),
        };
        let whole = (FIXED + fields as usize).next_multiple_of(8) + header.body_len as usize;
        if fields as usize > LONGEST || header.body_len as usize > LONGEST {
            return Err(Error::new("D-Bus message: too long"));
        }
        self.fill(whole)?;
        let rest = self.received.split_off(whole);
        let message = std::mem::replace(&mut self.received, rest);
        let (more, dynamic) = unmarshal::unmarshal_dynamic_header(&header, &message, used)
            .map_err(|error| malformed(&error))?;
        let (_, message) = unmarshal::unmarshal_next_message(&header, dynamic, &message, used + more)
            .map_err(|error| malformed(&error))?;
        if message.typ == MessageType::Signal && message.dynheader.member.as_deref() == Some("JobRemoved") {
            // Its number, object path, unit and result.
            if let Ok((_, job, _, result)) = message.body.parser().get4::<u32, ObjectPath<&str>, &str, &str>()
            {
                self.ended.push((job.as_ref().into(), result.into()));
            }
        }
        Ok(message)
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // Not write(2): a closed connection is an error to report, not a signal to die of.
            match send(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err::<(), _>(errno).call(|| "send(D-Bus)".into()).map_err(Error::from),
            }
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().into());
            }
            self.fill(self.received.len() + 1)?;
        }
    }

    /// Reads until `length` bytes are there.
    fn fill(&mut self, length: usize) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.received.len() < length {
            let left = self.until.saturating_duration_since(Instant::now());
            let stalled = || Error::new(format!("systemd has not answered for {} s", PATIENCE.as_secs()));
            if left.is_zero() {
                return Err(stalled());
            }
            self.stream.set_read_timeout(Some(left)).call(|| "setsockopt(SO_RCVTIMEO)".into())?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Error::new("systemd closed the connection")),
                Ok(read) => self.received.extend(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(stalled()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err::<(), _>(error).call(|| "read(D-Bus)".into()).map_err(Error::from),
            }
        }
        Ok(())
    }
}

fn to(destination: &str, path: &str, interface: &str, member: &str) -> MarshalledMessage {
    MessageBuilder::new().call(member).with_interface(interface).on(path).at(destination).build()
}

/// A text or an object path.
pub fn text(param: &Param<'_, '_>) -> String {
    match param {
        Param::Base(Base::String(text) | Base::ObjectPath(text)) => text.clone(),
        _ => String::new(),
    }
}

/// The service manager's own socket, and the bus's.
fn addresses(user: bool) -> (Option<PathBuf>, Option<PathBuf>) {
    if !user {
        return (Some("/run/systemd/private".into()), Some("/run/dbus/system_bus_socket".into()));
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = match variable("XDG_RUNTIME_DIR") {
        Some(directory) => Some(PathBuf::from(directory)),
        None if !identity::in_user_namespace() => Some(format!("/run/user/{}", identity::user()).into()),
        None => None,
    };
    let given = variable("DBUS_SESSION_BUS_ADDRESS").and_then(|addresses| {
        let addresses = addresses.into_string().ok()?;
        let mut paths = addresses.split(';').filter_map(|address| address.strip_prefix("unix:path="));
        paths.next().map(|path| PathBuf::from(path.split(',').next().unwrap_or(path)))
    });
    let bus = given.or_else(|| Some(directory.as_ref()?.join("bus")));
    (directory.map(|directory| directory.join("systemd/private")), bus)
}
