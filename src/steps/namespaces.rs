//! What a process does about its namespaces from inside (config-linux.md, "Namespaces").
//!
//! Which are new and which are joined is for `launch::spawn`; here is what is left to do in them.

use super::{Init, Step};
use crate::error::{Context, Pointer, Result};
use crate::sys::{self, Call, file, identity, socket};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use nix::unistd::{Pid, chroot, fchdir};
use oci_spec::runtime::Linux;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// CLONE_NEWTIME, which nix doesn't have.
pub const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// The types, with their names in config.json and in /proc/PID/ns, in the order in which they are printed.
pub const TYPES: [(CloneFlags, &str, &str); 8] = [
    (CloneFlags::CLONE_NEWUSER, "user", "user"),
    (CloneFlags::CLONE_NEWPID, "pid", "pid"),
    (CloneFlags::CLONE_NEWNS, "mount", "mnt"),
    (CloneFlags::CLONE_NEWNET, "network", "net"),
    (CloneFlags::CLONE_NEWIPC, "ipc", "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts", "uts"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup", "cgroup"),
    (CLONE_NEWTIME, "time", "time"),
];

/// The name of a type in /proc/PID/ns (namespaces(7)).
pub fn file_name(kind: CloneFlags) -> Option<&'static str> {
    TYPES.iter().find(|(other, ..)| *other == kind).map(|(_, _, file)| *file)
}

/// Opens the namespace of this type that process `pid` is in.
pub fn open(pid: Pid, kind: CloneFlags) -> sys::Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{}", file_name(kind).unwrap_or_default());
    file::open(AT_FDCWD, Path::new(&path), OFlag::O_RDONLY)
}

/// Becomes root of the user namespace, so that what is made from here on belongs to it.
pub struct BecomeRoot;

impl fmt::Display for BecomeRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("become root of the user namespace")
    }
}

impl Step for BecomeRoot {
    fn apply(&self, _: &mut Init) -> Result<()> {
        identity::set_group(0)
            .call(|| "setresgid(0, 0, 0)".into())
            .doing(|| "group 0 is not mapped".into())?;
        identity::set_user(0).call(|| "setresuid(0, 0, 0)".into()).doing(|| "user 0 is not mapped".into())?;
        // A change of ids makes a process what the system's default says; it must stay closed to
        // those who could otherwise trace it while it holds descriptors of the host.
        sys::process::prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
        Ok(())
    }
}

/// Makes an IPC namespace as root of the user namespace: the kernel gives the root directory of its
/// message queues to who makes it, and clone3(2) would make it as somebody who isn't mapped.
pub struct NewIpcNamespace;

impl fmt::Display for NewIpcNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("new ipc namespace")
    }
}

impl Step for NewIpcNamespace {
    fn apply(&self, _: &mut Init) -> Result<()> {
        Ok(unshare(CloneFlags::CLONE_NEWIPC).call(|| "unshare(CLONE_NEWIPC)".into())?)
    }
}

/// Makes a cgroup namespace whose root is the container's cgroup: only after it was entered, where
/// the process wasn't cloned into it.
pub struct NewCgroupNamespace;

impl fmt::Display for NewCgroupNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("new cgroup namespace")
    }
}

impl Step for NewCgroupNamespace {
    fn apply(&self, _: &mut Init) -> Result<()> {
        Ok(unshare(CloneFlags::CLONE_NEWCGROUP).call(|| "unshare(CLONE_NEWCGROUP)".into())?)
    }
}

/// Makes a time namespace with its clocks' offsets (time_namespaces(7)).
///
/// Not by clone3(2): offsets can be written only while no process is in the namespace yet.
pub struct NewTimeNamespace {
    offsets: Vec<(Pointer, String)>,
}

impl NewTimeNamespace {
    /// With the offsets of the configuration.
    pub fn plan(linux: &Linux) -> Self {
        let mut offsets: Vec<_> = linux.time_offsets().iter().flatten().collect();
        offsets.sort_by_key(|(clock, _)| *clock);
        let at = Pointer::to("/linux/timeOffsets");
        let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
            let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            (at.key(clock), format!("{clock} {seconds} {nanoseconds}\n"))
        };
        NewTimeNamespace { offsets: offsets.into_iter().map(line).collect() }
    }
}

impl fmt::Display for NewTimeNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "new time namespace")?;
        self.offsets.iter().try_for_each(|(_, line)| write!(f, ", {}", line.trim_end()))
    }
}

impl Step for NewTimeNamespace {
    fn apply(&self, _: &mut Init) -> Result<()> {
        unshare(CLONE_NEWTIME).call(|| "unshare(CLONE_NEWTIME)".into())?;
        for (at, line) in &self.offsets {
            file::write(Path::new("/proc/self/timens_offsets"), line).at(at)?;
        }
        let children = file::open(AT_FDCWD, Path::new("/proc/self/ns/time_for_children"), OFlag::O_RDONLY)?;
        Ok(setns(children.as_fd(), CLONE_NEWTIME).call(|| "setns(CLONE_NEWTIME)".into())?)
    }
}

/// Sets the loopback device of a new network namespace up: programs expect 127.0.0.1 to work.
pub struct LoopbackUp;

impl fmt::Display for LoopbackUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("set the loopback device up")
    }
}

impl Step for LoopbackUp {
    fn apply(&self, _: &mut Init) -> Result<()> {
        let socket =
            nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        match socket {
            // A kernel without IPv4 has no loopback device to set up either.
            Err(Errno::EAFNOSUPPORT) => Ok(()),
            other => {
                let socket = other.call(|| "socket(AF_INET, SOCK_DGRAM)".into())?;
                socket::loopback_up(socket.as_fd())?;
                file::leave(socket);
                Ok(())
            }
        }
    }
}

/// Whether a namespace that is joined is the one that this process is in.
pub fn is_own(kind: CloneFlags, joined: BorrowedFd<'_>) -> Result<bool> {
    let Some(file) = file_name(kind) else { return Ok(false) };
    let path = format!("/proc/self/ns/{file}");
    let own = nix::sys::stat::stat(path.as_str()).call(|| format!("stat({path:?})"))?;
    let other = nix::sys::stat::fstat(joined).call(|| "fstat(namespace)".into())?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Joins the namespaces that the runtime has opened (setns(2)), and goes to the container's root where
/// none of them has it.
pub struct JoinNamespaces;

impl fmt::Display for JoinNamespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("join namespaces")
    }
}

impl Step for JoinNamespaces {
    fn apply(&self, init: &mut Init) -> Result<()> {
        for (kinds, namespace) in init.namespaces.drain(..) {
            match setns(namespace.as_fd(), kinds).call(|| format!("setns({kinds:?})")) {
                // It was entered on the way, with rights that aren't there any more.
                Err(failed) if failed.errno == Errno::EPERM && is_own(kinds, namespace.as_fd())? => {}
                other => other?,
            }
        }
        match &init.root {
            Some(root) => {
                fchdir(root).call(|| "fchdir(root)".into())?;
                chroot(c".").call(|| "chroot(\".\")".into())?;
            }
            // That of the mount namespace that this process is in now.
            None => init.root = Some(crate::root::Root::open(Path::new("/"))?),
        }
        Ok(())
    }
}
