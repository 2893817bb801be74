//! Device programs of cgroup v2 (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE).

use super::{Call, Result, owned, raw, syscall};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One instruction of eBPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and source.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub registers: u8,
    /// For jumps and memory.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

const BPF_PROG_LOAD: usize = 5;
const BPF_PROG_ATTACH: usize = 8;
const BPF_PROG_DETACH: usize = 9;
const BPF_PROG_GET_FD_BY_ID: usize = 13;
const BPF_PROG_QUERY: usize = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;
/// The kernel attaches no more to one cgroup.
const MOST_PROGRAMS: usize = 64;

/// # Safety
/// `attr` is laid out as the command's part of `union bpf_attr`.
unsafe fn bpf<T>(command: usize, attr: &mut T) -> nix::Result<usize> {
    // SAFETY: passed on to the caller; the size is that of the struct.
    unsafe { syscall(libc::SYS_bpf, [command, std::ptr::from_mut(attr) as usize, size_of::<T>(), 0, 0, 0]) }
}

/// Verifies and loads a device program.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
    }
    let mut attr = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr().expose_provenance() as u64,
        // The program calls no helper, so that any licence does.
        licence: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"damda_devices\0\0\0",
    };
    // SAFETY: the layout of BPF_PROG_LOAD; all that it points to outlives the call.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr) }
        .map(owned)
        .call(|| format!("bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE, {} instructions)", program.len()))
}

#[repr(C)]
struct Attachment {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// The ids of the device programs attached to a cgroup itself.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    #[repr(C)]
    struct Query {
        cgroup: u32,
        kind: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut attr = Query {
        cgroup: raw(cgroup) as u32,
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: MOST_PROGRAMS as u32,
        padding: 0,
    };
    // SAFETY: the layout of BPF_PROG_QUERY; the array has room for the number that is given.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }
        .map(|_| ids[..attr.count as usize].to_vec())
        .call(|| "bpf(BPF_PROG_QUERY, BPF_CGROUP_DEVICE)".into())
}

/// The program with this id.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut attr = ById { id, next: 0, flags: 0 };
    // SAFETY: the layout of BPF_PROG_GET_FD_BY_ID.
    unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }
        .map(owned)
        .call(|| format!("bpf(BPF_PROG_GET_FD_BY_ID, {id})"))
}

/// Attaches a device program to a cgroup: in place of `replaced`, or beside what is there.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut attr = Attachment {
        cgroup: raw(cgroup) as u32,
        program: raw(program) as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | replaced.map_or(0, |_| BPF_F_REPLACE),
        replaced: replaced.map_or(0, |program| raw(program) as u32),
    };
    // SAFETY: the layout of BPF_PROG_ATTACH.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop).call(|| {
        let replace = if replaced.is_some() { "|BPF_F_REPLACE" } else { "" };
        format!("bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI{replace})")
    })
}

/// Takes a device program off a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Result<()> {
    let mut attr = Attachment {
        cgroup: raw(cgroup) as u32,
        program: raw(program.as_fd()) as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: the layout of BPF_PROG_DETACH.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }
        .map(drop)
        .call(|| "bpf(BPF_PROG_DETACH, BPF_CGROUP_DEVICE)".into())
}
