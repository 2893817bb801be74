//! CRIU (criu.org), which does the work of `checkpoint` and `restore`: starting it, and talking with
//! it.
//!
//! `criu swrk FD` serves one client over a SEQPACKET connection: it is sent a request, sends
//! notifications which it waits to be answered, and in the end a response.
//!
//! It needs to be another process for `restore` alone: what it restores are its siblings, in the
//! cgroup that it is in, with a file system made from its own. So there it is started in the
//! container's cgroup, and in a mount namespace of its own, in which the root file system is prepared
//! for it and which goes away with it.

pub mod external;
mod log;
pub mod message;
pub mod options;

use crate::error::{Context, Error, Result};
use crate::link::{Link, Message as Said};
use crate::sys::process::{Arguments, Fork, clone3, close_on_exec_from, duplicate, execve, exit};
use crate::sys::{Call, file, socket};
use message::{Features, Kind, Notify, Request, Response, Version};
use nix::fcntl::{AT_FDCWD, FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{AccessFlags, Pid, access};
use options::Directories;
use prost::Message as _;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More than any message that CRIU sends.
const MOST_BYTES: usize = 64 << 10;

/// The oldest version that can be asked for its version.
const OLDEST: u32 = 30_000;

/// CRIU, at work for this process.
pub struct Criu {
    /// Its process.
    pub pid: Pid,
    socket: Option<OwnedFd>,
    /// Whether it has been waited for.
    collected: bool,
    /// Its version: 31701 is 3.17.1.
    pub version: u32,
}

/// Where CRIU is started.
pub struct Place<'a> {
    /// The namespaces that are made for it.
    pub new: CloneFlags,
    /// The cgroup v2 directory that it is cloned into.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Descriptors that it is given beside the connection, under the numbers that they have here.
    pub given: Vec<BorrowedFd<'a>>,
    /// Whether it has this process's standard streams, for containers to inherit.
    pub streams: bool,
}

impl Place<'_> {
    /// Beside this process.
    pub fn here() -> Self {
        Place { new: CloneFlags::empty(), cgroup: None, given: Vec::new(), streams: false }
    }
}

impl Criu {
    /// Starts it, after `prepare`, which its process does first. It does nothing before it is asked.
    pub fn start(place: &Place<'_>, prepare: impl FnOnce() -> Result<()>) -> Result<Self> {
        let program = find()?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".into())?;
        let (link, its) = Link::pair()?;
        let fork = clone3(place.new, place.cgroup).doing(|| "cannot start criu".into())?;
        let Fork::Parent(pid, _) = fork else {
            drop((ours, link));
            let error = execute(&program, theirs.as_fd(), place, prepare);
            let _ = its.send(&Said::Failed(error.to_string()));
            exit(1)
        };
        drop((theirs, its));
        let criu = Criu { pid, socket: Some(ours), collected: false, version: 0 };
        // The connection ends within execve(2).
        match link.receive()? {
            None => Ok(criu),
            Some(Said::Failed(text)) => Err(Error::new(text)),
            Some(other) => Err(Error::new(format!("unexpected message {other:?}"))),
        }
    }

    /// Asks for its version, which must be `at_least` that for `what`.
    pub fn check_version(&mut self, at_least: u32, what: &str) -> Result<()> {
        if self.version == 0 {
            let request = Request { kind: Kind::Version as i32, keep_open: Some(true), ..Request::default() };
            let response = self.ask(&request, None, |_, _| Ok(()))?;
            self.version = response.version.as_ref().map_or(0, number);
        }
        if self.version >= at_least.max(OLDEST) {
            return Ok(());
        }
        let needed = at_least.max(OLDEST);
        Err(Error::new(format!("{what} needs CRIU {}, and this is {}", name(needed), name(self.version))))
    }

    /// Fails where CRIU or the kernel lacks one of the features that are asked for.
    pub fn check_features(&mut self, features: Features) -> Result<()> {
        let request = Request {
            kind: Kind::FeatureCheck as i32,
            keep_open: Some(true),
            features: Some(features.clone()),
            ..Request::default()
        };
        let found = self.ask(&request, None, |_, _| Ok(()))?.features.unwrap_or_default();
        let lacks = |asked: Option<bool>, has: Option<bool>| asked == Some(true) && has != Some(true);
        let missing = match () {
            () if lacks(features.mem_track, found.mem_track) => {
                "tracking of memory changes (mem_dirty_track)"
            }
            () if lacks(features.lazy_pages, found.lazy_pages) => "lazy pages (userfaultfd)",
            () => return Ok(()),
        };
        Err(Error::new(format!("CRIU or this kernel lacks {missing}")))
    }

    /// Sends a request and waits for the response. `notified` is told of what happens meanwhile, with
    /// the descriptor that comes along; where it fails, CRIU takes back what it has done. `directories`
    /// are where it logs.
    pub fn ask(
        &mut self,
        request: &Request,
        directories: Option<&Directories>,
        mut notified: impl FnMut(&Notify, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Response> {
        self.send(request)?;
        let mut refused = None;
        loop {
            let Some((response, passed)) = self.receive()? else {
                return Err(refused.unwrap_or_else(|| self.ended(directories)));
            };
            if !response.success {
                return Err(refused.unwrap_or_else(|| failed(&response, directories)));
            }
            let Some(notify) = response.notify.as_ref().filter(|_| response.kind() == Kind::Notify) else {
                return refused.map_or(Ok(response), Err);
            };
            crate::log::debug(|| format!("criu: {}", notify.script()));
            if refused.is_none() {
                refused = notified(notify, passed).err();
            }
            let kind = Kind::Notify as i32;
            self.send(&Request { kind, notify_success: Some(refused.is_none()), ..Request::default() })?;
        }
    }

    /// Waits for its end, after the last response. How it ends says nothing any more where it waits
    /// for another request (a pre-dump).
    pub fn finish(self) {
        drop(self);
    }

    fn send(&self, request: &Request) -> Result<()> {
        let socket = self.socket.as_ref().ok_or_else(|| Error::new("criu has been dismissed"))?;
        match socket::send(socket.as_fd(), &request.encode_to_vec(), None) {
            // It has ended: the next thing to be received says so.
            Err(failed) if failed.errno == nix::errno::Errno::EPIPE => Ok(()),
            other => other.doing(|| "cannot ask criu".into()),
        }
    }

    fn receive(&self) -> Result<Option<(Response, Option<OwnedFd>)>> {
        let socket = self.socket.as_ref().ok_or_else(|| Error::new("criu has been dismissed"))?;
        let mut buffer = vec![0; MOST_BYTES];
        let (length, passed) = match socket::receive(socket.as_fd(), &mut buffer) {
            Err(failed) if failed.errno == nix::errno::Errno::ECONNRESET => (0, None),
            other => other.doing(|| "cannot hear criu".into())?,
        };
        if length == 0 {
            return Ok(None);
        }
        let response = Response::decode(&buffer[..length])
            .map_err(|error| Error::new(format!("criu sent what is not a response: {error}")))?;
        Ok(Some((response, passed)))
    }

    /// What is known of a CRIU that ended without a word.
    fn ended(&mut self, directories: Option<&Directories>) -> Error {
        self.socket = None;
        let how = match self.collect() {
            Some(WaitStatus::Exited(_, status)) => format!("exit status {status}"),
            Some(WaitStatus::Signaled(_, signal, _)) => format!("signal: {signal}"),
            _ => "ended".into(),
        };
        explained(format!("criu ended without an answer ({how})"), directories)
    }

    fn collect(&mut self) -> Option<WaitStatus> {
        if std::mem::replace(&mut self.collected, true) { None } else { waitpid(self.pid, None).ok() }
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        // Without its client it takes back what it has done. It is never killed: what it traces would
        // be left with its code in it.
        self.socket = None;
        self.collect();
    }
}

/// CRIU's program, looked for as the shell does.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join("criu"));
    let found = candidates.find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok());
    found.ok_or_else(|| {
        Error::new("criu: executable file not found in $PATH")
            .hint("checkpoint and restore are CRIU's work: install it, version 3.0 or newer")
    })
}

/// What the new process does; returns only what failed.
fn execute(
    program: &Path,
    socket: BorrowedFd<'_>,
    place: &Place<'_>,
    prepare: impl FnOnce() -> Result<()>,
) -> Error {
    let ready = || -> Result<()> {
        prepare()?;
        if !place.streams {
            let null = file::open(AT_FDCWD, Path::new("/dev/null"), OFlag::O_RDWR)?;
            for stream in 0..3 {
                duplicate(null.as_fd(), stream)?;
            }
        }
        // What this process was given by its caller is none of the container's business.
        close_on_exec_from(3)?;
        for fd in place.given.iter().chain([&socket]) {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).call(|| "fcntl(F_SETFD, 0)".into())?;
        }
        Ok(())
    };
    if let Err(error) = ready() {
        return error;
    }
    let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    let number = socket.as_raw_fd().to_string();
    let arguments = [&b"criu"[..], b"swrk", number.as_bytes()].map(text);
    let environment = std::env::vars_os()
        .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    let program = text(program.as_os_str().as_bytes());
    execve(&program, &Arguments::new(arguments.into()), &Arguments::new(environment)).into()
}

fn failed(response: &Response, directories: Option<&Directories>) -> Error {
    let said = response.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let errno = response.errno.filter(|&errno| errno != 0);
    let what = match (said, errno) {
        (Some(said), _) => format!("criu failed: {said}"),
        (None, Some(errno)) => {
            format!("criu failed: {}", crate::sys::errno_text(nix::errno::Errno::from_raw(errno)))
        }
        (None, None) => "criu failed".into(),
    };
    explained(what, directories)
}

/// Adds what CRIU has written to its log.
fn explained(what: String, directories: Option<&Directories>) -> Error {
    let Some(directories) = directories else { return Error::new(what) };
    let path = directories.log();
    match log::reasons(&path) {
        Some(reasons) => Error::new(format!("criu failed: {reasons}")).hint(format!("more in {path:?}")),
        None => Error::new(what).hint(format!("its log is {path:?}")),
    }
}

fn number(version: &Version) -> u32 {
    let part = |number: i32| u32::try_from(number).unwrap_or(0);
    let (major, minor, sublevel) =
        (part(version.major), part(version.minor), version.sublevel.map_or(0, part));
    match version.git {
        // On the way to the next one.
        Some(_) => major * 10_000 + (minor + 1) * 100,
        None => major * 10_000 + minor * 100 + sublevel,
    }
}

fn name(version: u32) -> String {
    let (major, minor, sublevel) = (version / 10_000, version / 100 % 100, version % 100);
    if sublevel == 0 { format!("{major}.{minor}") } else { format!("{major}.{minor}.{sublevel}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_numbers_and_names() {
        let version = |major, minor, sublevel, git: Option<&str>| Version {
            major,
            minor,
            sublevel,
            git: git.map(str::to_owned),
        };
        let of = |version: Version| (number(&version), name(number(&version)));
        assert_eq!(of(version(3, 17, Some(1), None)), (31_701, "3.17.1".into()));
        assert_eq!(of(version(4, 0, None, None)), (40_000, "4.0".into()));
        assert_eq!(of(version(3, 18, None, Some("v3.18-12-gabc"))), (31_900, "3.19".into()));
    }
}
