//! Where a layer is unpacked: a process that has nothing but its directory, its input and its output.
//!
//! Three walls, each for the case that another one has a hole: namespaces, of which the directory is
//! the root; Landlock; and a filter of system calls. Where the kernel, or the container that this runs
//! in, doesn't allow one, the others stand.

use crate::error::{Context, Error, Result};
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot, pivot_root};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

/// Gives up everything but the working directory, and returns that. Called while there is one thread.
pub fn enter() -> Result<OwnedFd> {
    // Whoever is not there any more doesn't want it unpacked.
    prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "prctl(PR_SET_PDEATHSIG)".into())?;
    umask(Mode::empty());
    prctl::set_no_new_privs().doing(|| "prctl(PR_SET_NO_NEW_PRIVS)".into())?;
    prctl::set_dumpable(false).doing(|| "prctl(PR_SET_DUMPABLE)".into())?;
    isolate()?;
    let root = OwnedFd::from(File::open(".").doing(|| "open the directory to unpack to".into())?);
    drop_capabilities()?;
    landlock(&root).map_err(|error| Error::new(format!("landlock: {error}")))?;
    filter()?;
    Ok(root)
}

/// Makes the working directory the root of a mount namespace, and leaves the other namespaces.
fn isolate() -> Result<()> {
    let others = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    match unshare(CloneFlags::CLONE_NEWNS | others) {
        Ok(()) => {}
        // Root in a container without CAP_SYS_ADMIN: chroot is often allowed there, Landlock always.
        Err(Errno::EPERM | Errno::ENOSYS) => {
            return match chroot(".") {
                Ok(()) => chdir("/").doing(|| "chdir(\"/\")".into()),
                Err(_) => Ok(()),
            };
        }
        Err(errno) => return Err(errno).doing(|| "unshare".into()),
    }
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .doing(|| "mount(\"/\", MS_PRIVATE)".into())?;
    mount(Some("."), ".", nothing, MsFlags::MS_BIND, nothing).doing(|| "mount(\".\", MS_BIND)".into())?;
    // The working directory is below what was just mounted: it is entered by its path from the parent.
    let here = nix::unistd::getcwd()?;
    chdir(&here).doing(|| format!("chdir({here:?})"))?;
    // Nothing of the layer is executed or opened as a device here.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(nothing, ".", nothing, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, nothing)
        .doing(|| "mount(\".\", MS_REMOUNT)".into())?;
    pivot_root(".", ".").doing(|| "pivot_root".into())?;
    umount2(".", MntFlags::MNT_DETACH).doing(|| "umount2(MNT_DETACH)".into())?;
    chdir("/").doing(|| "chdir(\"/\")".into())
}

/// Keeps what making files needs. CAP_SYS_ADMIN is for `trusted.*` attributes.
fn drop_capabilities() -> Result<()> {
    use Capability::*;
    let needed: CapsHashSet =
        [CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP, CAP_SYS_ADMIN]
            .into_iter()
            .collect();
    let set = || -> std::result::Result<(), caps::errors::CapsError> {
        let held = caps::read(None, CapSet::Permitted)?;
        let kept: CapsHashSet = held.intersection(&needed).copied().collect();
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)?;
        caps::clear(None, CapSet::Inheritable)
    };
    set().map_err(|error| Error::new(format!("capset: {error}")))
}

/// Files below the root only, no network, no signals to others; as much of it as the kernel has.
fn landlock(root: &OwnedFd) -> std::result::Result<(), RulesetError> {
    let abi = ABI::V6;
    let needed = AccessFs::from_all(abi) & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeSock);
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(root, needed))?
        .restrict_self()
        .map(drop)
}

/// The system calls that are left.
fn filter() -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Error::new(format!("seccomp: {error}"));
    let architecture: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| failed(&error))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Threads, but no processes.
    let flags = libc::CLONE_THREAD as u64;
    let thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flags), flags)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| failed(&error))?;
    rules.insert(libc::SYS_clone, vec![thread]);
    // As if the kernel didn't have the others: glibc then starts threads by clone, not by clone3,
    // whose flags a filter can't see.
    let otherwise = SeccompAction::Errno(libc::ENOSYS as u32);
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, architecture)
        .and_then(TryInto::try_into)
        .map_err(|error| failed(&error))?;
    apply_filter(&program).map_err(|error| failed(&error))
}

/// Files, memory, threads, time.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fchdir,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_prctl,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
