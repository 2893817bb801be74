//! Processes: clone3(2), pidfds, namespaces, execve(2), prctl(2), keyrings.

use super::{Call, Result, owned, raw, show, syscall};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that called, with the new one's id and pidfd.
    Parent(Pid, OwnedFd),
    /// The new process.
    Child,
}

/// The kernel's `struct clone_args`, version 2 (Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces, and into the cgroup v2 directory `cgroup` where one is given
/// (CLONE_INTO_CGROUP: unlike a write to cgroup.procs it doesn't wait for an RCU grace period).
///
/// The caller must have one thread: the child goes on with a copy of the whole process.
pub fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: libc::c_int = -1;
    let bits = u64::from(flags.bits() as u32) | libc::CLONE_PIDFD as u64;
    // With CLONE_PARENT the exit signal is the caller's own, and the kernel refuses another.
    let sibling = flags.contains(CloneFlags::CLONE_PARENT);
    let mut arguments = CloneArgs {
        flags: bits,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: if sibling { 0 } else { libc::SIGCHLD as u64 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the struct has the size that is passed along and outlives the call; without
    // CLONE_VM the child gets a copy of the address space and of the stack it runs on.
    let pid = unsafe {
        syscall(
            libc::SYS_clone3,
            [(&raw const arguments).expose_provenance(), size_of::<CloneArgs>(), 0, 0, 0, 0],
        )
    }
    .call(|| format!("clone3({flags:?}{})", if cgroup.is_some() { "|CLONE_INTO_CGROUP" } else { "" }))?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: the kernel stored a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent(Pid::from_raw(pid as i32), pidfd))
}

/// A descriptor of process `pid`, which can't come to mean another one.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_pidfd_open, [pid.as_raw() as usize, 0, 0, 0, 0, 0]) }
        .map(owned)
        .call(|| format!("pidfd_open({pid})"))
}

/// What a signal means, in words (strsignal(3)).
pub fn signal_text(number: i32) -> Option<String> {
    // SAFETY: any number is allowed; the text is static, or the caller's thread's, and copied at once.
    let text = unsafe { libc::strsignal(number) };
    if text.is_null() {
        return None;
    }
    // SAFETY: it is a string that ends in NUL.
    Some(unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Sends signal number `signal` (0 only asks whether one could) to the process of `pidfd`.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: plain numbers; no siginfo.
    unsafe { syscall(libc::SYS_pidfd_send_signal, [raw(pidfd), signal as usize, 0, 0, 0, 0]) }.map(drop).call(
        || {
            let name =
                Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            format!("pidfd_send_signal({}, {name})", show(pidfd))
        },
    )
}

/// A copy of descriptor number `fd` of another process.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_pidfd_getfd, [raw(pidfd), fd as usize, 0, 0, 0, 0]) }
        .map(owned)
        .call(|| format!("pidfd_getfd({}, {fd})", show(pidfd)))
}

/// The type of the namespace that `fd` is of (ioctl_ns(2)); ENOTTY where it is none.
pub fn namespace_type(fd: BorrowedFd<'_>) -> Result<CloneFlags> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument.
    let flags = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    nix::errno::Errno::result(flags)
        .map(CloneFlags::from_bits_retain)
        .call(|| format!("ioctl({}, NS_GET_NSTYPE)", show(fd)))
}

/// Argument and environment strings, laid out as execve(2) takes them.
pub struct Arguments {
    strings: Vec<CString>,
}

impl Arguments {
    /// Keeps `strings`.
    pub fn new(strings: Vec<CString>) -> Self {
        Arguments { strings }
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }

    fn pointers(&self) -> Vec<*const libc::c_char> {
        self.strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// Executes the file at `path`; returns only on failure.
pub fn execve(path: &CStr, arguments: &Arguments, environment: &Arguments) -> super::Failed {
    let (argv, envp) = (arguments.pointers(), environment.pointers());
    // SAFETY: null-terminated arrays of C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    failed(|| format!("execve({path:?})"))
}

/// Executes the file that `fd` refers to with this process's own environment; returns only on
/// failure.
pub fn execveat(fd: BorrowedFd<'_>, arguments: &Arguments) -> super::Failed {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let argv = arguments.pointers();
    // SAFETY: null-terminated arrays of C strings; one thread, so that nobody changes `environ`.
    let result = unsafe {
        syscall(
            libc::SYS_execveat,
            [
                raw(fd),
                c"".as_ptr() as usize,
                argv.as_ptr() as usize,
                environ as usize,
                libc::AT_EMPTY_PATH as usize,
                0,
            ],
        )
    };
    let errno = result.err().unwrap_or(nix::errno::Errno::UnknownErrno);
    super::Failed { call: format!("execveat({}, AT_EMPTY_PATH)", show(fd)), errno }
}

fn failed(call: impl FnOnce() -> String) -> super::Failed {
    super::Failed { errno: nix::errno::Errno::last(), call: call() }
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: i32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: closes nothing now; the kernel does it within execve, when no Rust code is left.
    unsafe {
        syscall(libc::SYS_close_range, [first as usize, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0])
    }
    .map(drop)
    .call(|| format!("close_range({first}, ~0, CLOSE_RANGE_CLOEXEC)"))
}

/// Gives a signal its default effect.
pub fn default_disposition(signal: i32) -> Result<()> {
    // SAFETY: no handler is set, and damda has none to lose.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(failed(|| format!("signal({signal}, SIG_DFL)"))),
        _ => Ok(()),
    }
}

/// Closes descriptors `first` to `last`, which nothing in this process owns any more.
pub fn close_range(first: i32, last: i32) {
    // It fails only for a range that isn't one.
    // SAFETY: the caller vouches that nobody will use these numbers as descriptors of theirs.
    let _ = unsafe { syscall(libc::SYS_close_range, [first as usize, last as usize, 0, 0, 0, 0]) };
}

/// Closes every descriptor from `first` on but those in `kept`, whoever owns them: for a process
/// that will use no other until it executes its program.
pub fn close_all_but(first: i32, kept: &mut [i32]) {
    kept.sort_unstable();
    let mut next = first;
    for &fd in kept.iter().filter(|&&fd| fd >= first) {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = fd + 1;
    }
    close_range(next, i32::MAX);
}

/// Closes a descriptor that something else in this process still owns: for a process that never
/// returns to it.
pub fn abandon(fd: i32) {
    // SAFETY: the owner is in a stack frame that this process, a fork, will not come back to.
    unsafe { libc::close(fd) };
}

/// Ends the process at once: no exit handlers, no unwinding.
pub fn exit(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// prctl(2) with plain numbers. `name` is for the error.
pub fn prctl(option: libc::c_int, argument: usize, name: &str) -> Result<usize> {
    // SAFETY: only called for options that take numbers.
    unsafe { syscall(libc::SYS_prctl, [option as usize, argument, 0, 0, 0, 0]) }
        .call(|| format!("prctl({name}, {argument})"))
}

/// Sets the execution domain and its flags (personality(2)).
pub fn personality(persona: libc::c_ulong) -> Result<()> {
    // SAFETY: a plain number.
    unsafe { syscall(libc::SYS_personality, [persona as usize, 0, 0, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("personality({persona:#x})"))
}

/// Joins or makes the session keyring `name`; returns its serial number.
pub fn join_session_keyring(name: &CStr) -> Result<usize> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: a C string.
    unsafe { syscall(libc::SYS_keyctl, [KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr() as usize, 0, 0, 0, 0]) }
        .call(|| format!("keyctl(KEYCTL_JOIN_SESSION_KEYRING, {name:?})"))
}

/// Sets the permission mask of a key (keyctl_setperm(3)).
pub fn set_key_permissions(key: usize, permissions: u32) -> Result<()> {
    const KEYCTL_SETPERM: usize = 5;
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_keyctl, [KEYCTL_SETPERM, key, permissions as usize, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("keyctl(KEYCTL_SETPERM, {key}, {permissions:#x})"))
}

/// The limits of `resource` (RLIMIT_*) of process `pid` (0: this one), after setting them to
/// `new` where that is given: (soft, hard).
pub fn prlimit(pid: Pid, resource: u32, new: Option<(u64, u64)>) -> nix::Result<(u64, u64)> {
    let new = new.map(|(soft, hard)| [soft, hard]);
    let mut old = [0u64; 2];
    // SAFETY: `struct rlimit64` is two u64; both live through the call.
    unsafe {
        syscall(
            libc::SYS_prlimit64,
            [
                pid.as_raw() as usize,
                resource as usize,
                new.as_ref().map_or(0, |new| new.as_ptr() as usize),
                old.as_mut_ptr() as usize,
                0,
                0,
            ],
        )?;
    }
    Ok((old[0], old[1]))
}

/// Sets the NIS domain name of the UTS namespace.
pub fn set_domain_name(name: &str) -> Result<()> {
    // SAFETY: pointer and length are of one string.
    unsafe { syscall(libc::SYS_setdomainname, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("setdomainname({name:?})"))
}

/// Makes standard stream `to` (0, 1 or 2) a copy of `from`, which execve(2) keeps.
pub fn duplicate(from: BorrowedFd<'_>, to: i32) -> Result<()> {
    // SAFETY: plain numbers; nothing in damda owns the standard streams.
    nix::errno::Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) })
        .map(drop)
        .call(|| format!("dup2({}, {to})", show(from)))
}
