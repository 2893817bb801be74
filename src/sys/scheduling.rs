//! How the kernel schedules a process: sched_setattr(2), ioprio_set(2), set_mempolicy(2).

use super::{Call, Result, syscall};

/// The kernel's `struct sched_attr`, version 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Its own size in bytes.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE, as the next two.
    pub runtime: u64,
    /// See `runtime`.
    pub deadline: u64,
    /// See `runtime`.
    pub period: u64,
    /// For SCHED_FLAG_UTIL_CLAMP_MIN.
    pub util_min: u32,
    /// For SCHED_FLAG_UTIL_CLAMP_MAX.
    pub util_max: u32,
}

/// Sets this process's scheduling policy.
pub fn set_scheduler(attr: &SchedAttr) -> Result<()> {
    // SAFETY: the struct begins with its own size.
    unsafe { syscall(libc::SYS_sched_setattr, [0, std::ptr::from_ref(attr) as usize, 0, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("sched_setattr(0, {attr:?})"))
}

/// Sets the I/O class and priority of this process's group.
pub fn set_io_priority(class: u16, priority: u16) -> Result<()> {
    const IOPRIO_WHO_PGRP: usize = 2;
    const IOPRIO_CLASS_SHIFT: u16 = 13;
    let value = class << IOPRIO_CLASS_SHIFT | priority;
    // SAFETY: plain numbers.
    unsafe { syscall(libc::SYS_ioprio_set, [IOPRIO_WHO_PGRP, 0, value.into(), 0, 0, 0]) }
        .map(drop)
        .call(|| format!("ioprio_set(IOPRIO_WHO_PGRP, 0, {value:#x})"))
}

/// Sets the NUMA memory policy: a mode with its flags, and a bit for each node.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel takes one off the number of bits (set_mempolicy(2), BUGS).
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { 0 } else { nodes.as_ptr() as usize };
    // SAFETY: the kernel reads `bits` - 1 bits of the slice.
    unsafe { syscall(libc::SYS_set_mempolicy, [mode as usize, mask, bits, 0, 0, 0]) }
        .map(drop)
        .call(|| format!("set_mempolicy({mode:#x}, {nodes:x?})"))
}

/// Lets process `pid` (0: this one) run on the CPUs whose bits are set in `mask`.
pub fn set_affinity(pid: nix::unistd::Pid, mask: &[u64]) -> Result<()> {
    // SAFETY: pointer and length in bytes are of one slice.
    unsafe {
        syscall(
            libc::SYS_sched_setaffinity,
            [pid.as_raw() as usize, size_of_val(mask), mask.as_ptr() as usize, 0, 0, 0],
        )
    }
    .map(drop)
    .call(|| format!("sched_setaffinity({pid}, {mask:x?})"))
}
