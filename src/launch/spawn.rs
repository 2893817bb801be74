//! The one fork: a process in new and joined namespaces and in its cgroup.
//!
//! ```text
//!   usually                     joining a user or a pid namespace
//!
//!   runtime ── clone3 ─► init   runtime ── clone3 ─► hop ── setns(user) ── clone3 ─► init
//!                                                     └─ sends init's pidfd, ends
//! ```
//! The hop is there because new namespaces must belong to the joined user namespace, so they can
//! only be made from within it; and because a process is in a pid namespace for life, only its children
//! can be in another. With CLONE_PARENT init is the runtime's child all the same.

use super::Child;
use crate::error::{Context, Error, Result};
use crate::plan::Namespaces;
use crate::sys::process::{Fork, clone3, exit, namespace_type};
use crate::sys::{Call, file, process, socket};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Namespaces with their descriptors: (types, the namespace or a process in it).
pub type Joined = Vec<(CloneFlags, OwnedFd)>;

/// Where the new process goes.
pub struct Destination<'a> {
    /// The namespaces that are made for it.
    pub new: CloneFlags,
    /// The pid namespace that it is a process of.
    pub pid_namespace: Option<(CloneFlags, OwnedFd)>,
    /// The user namespace that it is made from, where this process can't do it from its own.
    pub user_namespace: Option<(CloneFlags, OwnedFd)>,
    /// Whether this process will make others, for hooks, that belong into its own pid namespace.
    pub runs_hooks: bool,
    /// Namespaces that it joins later, but that may belong to the user namespace which this process is in:
    /// they are entered before that is left, as far as they can be.
    pub joined: Joined,
    /// The cgroup v2 directory that it is cloned into.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The directory to take where that one can't hold processes.
    pub if_busy: Option<&'a dyn Fn() -> Result<Option<OwnedFd>>>,
}

/// Opens the namespaces that a container joins; each must be of the type that it is said to be
/// (config-linux.md, "Namespaces"). Those of the two types that matter to the fork itself come
/// apart from the rest.
pub fn open_namespaces(namespaces: &Namespaces) -> Result<(Option<OwnedFd>, Option<OwnedFd>, Joined)> {
    let (mut pid, mut user, mut others) = (None, None, Vec::new());
    for join in &namespaces.joined {
        let open = || -> Result<OwnedFd> {
            // Not blocking: the path could be anything, a fifo too.
            let fd = file::open(AT_FDCWD, &join.path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
            let name = crate::plan::namespace_name(join.kind);
            match namespace_type(fd.as_fd()) {
                Ok(kind) if kind == join.kind => Ok(fd),
                Ok(kind) => {
                    let actual = crate::plan::namespace_name(kind);
                    Err(Error::new(format!(
                        "{:?} is a {actual} namespace, not a {name} namespace",
                        join.path
                    )))
                }
                Err(failed) if failed.errno == Errno::ENOTTY => {
                    Err(Error::new(format!("{:?} is not a namespace", join.path)))
                }
                Err(failed) => Err(failed.into()),
            }
        };
        let fd = open().doing(|| "cannot join namespace".into()).at(&join.at)?;
        match join.kind {
            CloneFlags::CLONE_NEWPID => pid = Some(fd),
            CloneFlags::CLONE_NEWUSER => user = Some(fd),
            kind => others.push((kind, fd)),
        }
    }
    Ok((pid, user, others))
}

/// Makes the process, which runs `child`, from which it must not return.
pub fn spawn(to: Destination<'_>, child: impl FnOnce()) -> Result<Child> {
    // A process that has entered a pid namespace has all its children there from then on, and where it
    // is in a user namespace it may not come back: hooks must be its children too.
    if to.user_namespace.is_some() || (to.pid_namespace.is_some() && to.runs_hooks) {
        return spawn_by_hop(to, child);
    }
    if let Some((kinds, namespace)) = &to.pid_namespace {
        enter(namespace, *kinds & CloneFlags::CLONE_NEWPID)?;
    }
    match clone_into(to.new, &to)? {
        Fork::Parent(pid, pidfd) => Ok(Child { pid, pidfd }),
        Fork::Child => {
            child();
            exit(70)
        }
    }
}

/// Forks into the destination's cgroup.
fn clone_into(new: CloneFlags, to: &Destination<'_>) -> Result<Fork> {
    match (clone3(new, to.cgroup), to.if_busy) {
        (Err(failed), Some(other)) if failed.errno == Errno::EBUSY => {
            clone3(new, other()?.as_ref().map(AsFd::as_fd)).map_err(explained)
        }
        (result, _) => result.map_err(explained),
    }
}

fn enter(namespace: &OwnedFd, kinds: CloneFlags) -> Result<()> {
    Ok(setns(namespace.as_fd(), kinds).call(|| format!("setns({kinds:?})"))?)
}

fn explained(failed: crate::sys::Failed) -> Error {
    let errno = failed.errno;
    let error = Error::from(failed).prefix("cannot make the container's first process");
    match errno {
        Errno::ENOSPC => error.hint("a limit of namespaces is reached: see /proc/sys/user/max_*_namespaces"),
        Errno::EPERM => error.hint("namespaces of this kind are not allowed to this user: see /proc/sys/user and /proc/sys/kernel/unprivileged_userns_clone"),
        Errno::EBUSY => error.hint("the cgroup has controllers enabled for cgroups below it, and can't hold processes"),
        Errno::EAGAIN => error.hint("a limit of processes is reached: of the cgroup (pids.max) or of the user (RLIMIT_NPROC)"),
        Errno::ENOSYS => error.hint("damda needs Linux 5.14"),
        _ => error,
    }
}

/// See the module's drawing.
fn spawn_by_hop(to: Destination<'_>, child: impl FnOnce()) -> Result<Child> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".into())?;
    let hop = match clone_into(CloneFlags::empty(), &to)? {
        Fork::Parent(pid, _) => pid,
        Fork::Child => {
            drop(ours);
            hop(to, theirs.as_fd(), child)
        }
    };
    drop(theirs);
    let mut message = [0; 4096];
    let received = socket::receive(ours.as_fd(), &mut message);
    let _ = waitpid(hop, None);
    match received? {
        (4, Some(pidfd)) => {
            let pid = i32::from_ne_bytes([message[0], message[1], message[2], message[3]]);
            Ok(Child { pid: Pid::from_raw(pid), pidfd })
        }
        (0, _) => Err(Error::new("the process on the way into the user namespace died")),
        (length, _) => Err(Error::new(String::from_utf8_lossy(&message[..length]))),
    }
}

fn hop(to: Destination<'_>, runtime: BorrowedFd<'_>, child: impl FnOnce()) -> ! {
    let make = || -> Result<Fork> {
        let early = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        for (kind, namespace) in to.joined.iter().filter(|(kind, _)| early.contains(*kind)) {
            // Else it may belong to the user namespace that is entered, and is entered from there.
            let _ = setns(namespace.as_fd(), *kind);
        }
        for (kinds, namespace) in to.user_namespace.iter().chain(&to.pid_namespace) {
            enter(namespace, *kinds)?;
        }
        // It is in the cgroup already, which from inside the user namespace it might not enter.
        clone3(to.new | CloneFlags::CLONE_PARENT, None).map_err(explained)
    };
    let told = match make() {
        Ok(Fork::Child) => {
            child();
            exit(70)
        }
        Ok(Fork::Parent(pid, pidfd)) => {
            socket::send(runtime, &pid.as_raw().to_ne_bytes(), Some(pidfd.as_fd()))
        }
        Err(error) => socket::send(runtime, error.to_string().as_bytes(), None),
    };
    exit(told.is_err().into())
}

/// Closes this process to others that could trace it (ptrace(2)) and reach what it has open.
pub fn close_to_tracers() -> Result<()> {
    process::prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
    Ok(())
}
