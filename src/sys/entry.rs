//! From the kernel's entry to `crate::run`, without the standard library's start-up.
//!
//! Rust's start-up changes the disposition of SIGPIPE, which a container would inherit, and sets
//! up signal stacks that damda doesn't need; both cost system calls. What is kept of it, for `run` to
//! call: the standard descriptors exist, so that no file of ours can become one of the container's.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: the C library passes `argc` strings that live as long as the process.
    crate::run(unsafe { arguments(argc, argv) })
}

/// # Safety
/// `argv` points to `argc` C strings.
#[cfg_attr(test, allow(dead_code))]
unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    (0..argc as usize)
        // SAFETY: the index is below argc, and each entry is a C string.
        .map(|index| unsafe { CStr::from_ptr(*argv.add(index)) })
        .map(|argument| OsString::from_vec(argument.to_bytes().to_vec()))
        .collect()
}

/// Opens /dev/null in place of each of 0, 1, 2 that the caller closed.
pub fn fill_standard_descriptors() {
    let closed = |fd| libc::pollfd { fd, events: 0, revents: 0 };
    let mut standard = [closed(0), closed(1), closed(2)];
    // SAFETY: the array holds three entries.
    unsafe { libc::poll(standard.as_mut_ptr(), 3, 0) };
    for entry in standard {
        if entry.revents & libc::POLLNVAL != 0 {
            // SAFETY: a C string literal. The lowest free number is the one that is missing.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// The path that the kernel was asked to execute (AT_EXECFN), if it is known.
///
/// It is `/dev/fd/N` after execveat(2) on a descriptor.
pub fn executed_path() -> Option<&'static [u8]> {
    // SAFETY: getauxval reads the process's own vector.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let path = std::ptr::with_exposed_provenance::<c_char>(address as usize);
    // SAFETY: the kernel put a C string there, and the stack's top stays for the process's life.
    (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) }.to_bytes())
}
