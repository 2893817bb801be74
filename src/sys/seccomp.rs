//! Loading a seccomp filter (seccomp(2)).

use super::{Call, Result, owned, syscall};
use std::os::fd::OwnedFd;

#[allow(clippy::unnecessary_cast)] // its type is not the same in musl and glibc
const NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;

/// One instruction of classic BPF.
pub type Instruction = libc::sock_filter;

/// Loads `program` for this process, with SECCOMP_FILTER_FLAG_* `flags`.
///
/// Returns the listener where SECCOMP_FILTER_FLAG_NEW_LISTENER is among them.
pub fn load(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>> {
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the header describes `program`, which the kernel copies.
    unsafe {
        syscall(
            libc::SYS_seccomp,
            [
                libc::SECCOMP_SET_MODE_FILTER as usize,
                flags as usize,
                (&raw const header).expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }
    .map(|result| (flags & NEW_LISTENER != 0).then(|| owned(result)))
    .call(|| format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {} instructions)", program.len()))
}
