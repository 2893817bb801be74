//! The commands, one a file: each reads as a story in the order of the specification's lifecycle.

pub mod bundle;
pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod explain;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod restore;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;

use crate::cgroup::Manager;
use crate::container::Store;
use crate::error::{Context, Result};
use crate::sys::{Call, socket};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect};
use nix::unistd::Pid;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The options that come before the command.
#[derive(Debug)]
pub struct Global {
    /// Where containers are kept.
    pub store: Store,
    /// Who makes cgroups.
    pub cgroup_manager: Manager,
}

/// Writes a process's id for an engine: whole, or not at all.
fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    let write = || -> crate::sys::Result<()> {
        let mut file =
            std::fs::File::create(&temporary).call(|| format!("open({temporary:?}, O_WRONLY|O_CREAT)"))?;
        file.write_all(pid.to_string().as_bytes()).call(|| format!("write({temporary:?})"))?;
        std::fs::rename(&temporary, path).call(|| format!("rename({temporary:?}, {path:?})"))
    };
    write().doing(|| format!("cannot write the pid file {path:?}"))
}

/// Connects to a socket that an engine listens at.
fn connect_to(path: &Path, what: &str) -> Result<OwnedFd> {
    let connect = || -> crate::sys::Result<OwnedFd> {
        let socket =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .call(|| "socket(AF_UNIX, SOCK_STREAM)".into())?;
        let address = UnixAddr::new(path).call(|| format!("sockaddr_un({path:?})"))?;
        connect(socket.as_raw_fd(), &address).call(|| format!("connect({path:?})"))?;
        Ok(socket)
    };
    connect().doing(|| format!("cannot connect to the {what} socket"))
}

/// Sends a process's descriptor to an engine (`--pidfd-socket`); `kind` is runc's word for it.
fn send_pidfd(path: &Path, kind: &str, pidfd: BorrowedFd<'_>) -> Result<()> {
    let socket = connect_to(path, "pidfd")?;
    socket::send(socket.as_fd(), kind.as_bytes(), Some(pidfd)).doing(|| "cannot send the pidfd".into())
}
