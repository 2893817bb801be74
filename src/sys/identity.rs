//! Credentials: ids, groups and capability sets.

use super::{Call, Result, syscall};
use nix::unistd::Uid;
use std::path::Path;

/// The three sets that capset(2) changes, one bit a capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What the process may do now.
    pub effective: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What survives execve(2) of a file with the same inheritable capabilities.
    pub inheritable: u64,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets the calling thread's capabilities in one call.
pub fn capset(sets: CapabilitySets) -> Result<()> {
    let header = [CAPABILITY_VERSION_3, 0u32];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let CapabilitySets { effective, permitted, inheritable } = sets;
    let data = [
        [low(effective), low(permitted), low(inheritable)],
        [high(effective), high(permitted), high(inheritable)],
    ];
    // SAFETY: the header of version 3 goes with two data structs of three u32 each.
    unsafe { syscall(libc::SYS_capset, [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("capset(eff={effective:#x}, perm={permitted:#x}, inh={inheritable:#x})"))
}

/// The calling thread's capabilities.
pub fn capget() -> Result<CapabilitySets> {
    let header = [CAPABILITY_VERSION_3, 0u32];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: as for capset; the kernel writes both structs.
    unsafe { syscall(libc::SYS_capget, [header.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0]) }
        .call(|| "capget()".into())?;
    let join = |index: usize| u64::from(data[0][index]) | u64::from(data[1][index]) << 32;
    Ok(CapabilitySets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// Whether capability number `capability` is in the bounding set; EINVAL: the kernel has no such.
pub fn in_bounding_set(capability: u8) -> nix::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, capability.into(), 0).map(|value| value == 1)
}

/// Takes a capability out of the bounding set for good.
pub fn drop_from_bounding_set(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Adds a capability that is permitted and inheritable to the ambient set.
pub fn raise_ambient(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as usize, capability.into()).map(drop)
}

/// Whether a change of user id keeps the permitted capabilities.
pub fn set_keep_capabilities(keep: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop).call(|| format!("prctl(PR_SET_KEEPCAPS, {keep})"))
}

fn prctl(option: libc::c_int, second: usize, third: usize) -> nix::Result<usize> {
    // SAFETY: only called for options that take numbers.
    unsafe { syscall(libc::SYS_prctl, [option as usize, second, third, 0, 0, 0]) }
}

/// The effective user of this process when it was executed, which is who it is for as long as it
/// works on the host: from the kernel's own note (getauxval(3)), without a system call.
pub fn user() -> Uid {
    Uid::from_raw(auxiliary(libc::AT_EUID) as libc::uid_t)
}

/// Whether this process's ids are not the host's (user_namespaces(7)).
pub fn in_user_namespace() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    !super::file::read(Path::new("/proc/self/uid_map")).is_ok_and(whole)
}

/// Whether this process was executed with all its user and group ids 0. Saved ids are the effective
/// ones after execve(2).
pub fn is_root_throughout() -> bool {
    [libc::AT_UID, libc::AT_EUID, libc::AT_GID, libc::AT_EGID].into_iter().all(|kind| auxiliary(kind) == 0)
}

fn auxiliary(kind: libc::c_ulong) -> libc::c_ulong {
    // SAFETY: reads the process's own vector.
    unsafe { libc::getauxval(kind) }
}

/// Sets real, effective and saved user id.
///
/// As raw system calls, like the next two: the C library's would first stop all threads.
pub fn set_user(uid: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_setresuid, [uid as usize; 6]) }.map(drop)
}

/// Sets real, effective and saved group id.
pub fn set_group(gid: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_setresgid, [gid as usize; 6]) }.map(drop)
}

/// Sets the supplementary groups.
pub fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: pointer and length are of one slice.
    match unsafe { syscall(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0]) } {
        Err(errno) => Err(errno),
        Ok(_) => Ok(()),
    }
}
