//! Protection of damda's own binary (CVE-2019-5736, CVE-2020-14298).
//!
//! A process in a container can reach the file that another one there is executed from, through
//! /proc/PID/exe, and could overwrite the runtime of the whole host with it. So before a process of
//! damda goes into a container it is executed anew from a mount of its binary that is read-only,
//! belongs to no mount namespace and can't be changed by anybody. Nothing is copied; it costs an
//! execve(2) of a static binary, 0.1 ms. Where that isn't allowed (an ordinary user), it is a
//! sealed copy in memory.

use crate::error::{Context, Error, Result};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::process::{Arguments, execveat};
use crate::sys::{Call, entry, file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const SELF: &str = "/proc/self/exe";

/// Goes on in a sealed copy, where this isn't one already, with its standard descriptors there.
/// `arguments` are this process's own.
pub fn seal(arguments: &[OsString]) -> Result<()> {
    if is_sealed() {
        return Ok(());
    }
    entry::fill_standard_descriptors();
    let copy = match read_only_mount() {
        Err(failed) if matches!(failed.errno, Errno::EPERM | Errno::EINVAL) => copy_in_memory()?,
        other => other?,
    };
    let arguments = arguments.iter().filter_map(|argument| CString::new(argument.as_bytes()).ok()).collect();
    let failed = execveat(copy.as_fd(), &Arguments::new(arguments));
    Err(Error::from(failed).prefix("cannot go on in a sealed copy of the binary"))
}

/// Whether this process was executed from a descriptor of a file that can't be written.
///
/// The first part is what `execveat` leaves behind. An engine that starts damda from a descriptor
/// leaves the same, which the second part sees through.
fn is_sealed() -> bool {
    let by_descriptor = entry::executed_path().is_some_and(|path| path.starts_with(b"/dev/fd/"));
    by_descriptor && (is_read_only_mount() || is_sealed_memory())
}

fn is_read_only_mount() -> bool {
    statvfs(SELF).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY))
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

fn is_sealed_memory() -> bool {
    file::open(AT_FDCWD, Path::new(SELF), OFlag::O_RDONLY)
        .is_ok_and(|file| fcntl(file, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals == SEALS.bits()))
}

/// A mount that exists only as long as something refers to it. Once the descriptor is closed, which
/// execve(2) does, not even an administrator's process in the container that has got hold of the
/// file can change its attributes: a mount outside of all namespaces has nobody who may.
fn read_only_mount() -> crate::sys::Result<OwnedFd> {
    let tree = mount::clone_tree(AT_FDCWD, Path::new(SELF), Depth::Mount)?;
    let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount::set_attributes(tree.as_fd(), Depth::Mount, &attr)?;
    Ok(tree)
}

fn copy_in_memory() -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // A host can require memory that is executed to be marked so, which older kernels don't know.
    let executable = MFdFlags::from_bits_retain(flags.bits() | libc::MFD_EXEC);
    let copy = memfd_create(c"damda", executable).or_else(|_| memfd_create(c"damda", flags));
    let copy = copy.call(|| "memfd_create".into()).doing(|| "cannot copy the binary".into())?;
    let binary = file::open(AT_FDCWD, Path::new(SELF), OFlag::O_RDONLY)?;
    while sendfile(&copy, &binary, None, 1 << 30).call(|| "sendfile".into())? > 0 {}
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).call(|| "fcntl(F_ADD_SEALS)".into())?;
    Ok(copy)
}
