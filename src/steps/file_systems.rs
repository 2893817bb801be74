//! New file systems by fsopen(2), and what the kernel says of those that it refuses.

use crate::error::{Error, Result};
use crate::sys::mount::FileSystem;
use crate::sys::{Call, Failed};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A new file system, mounted nowhere yet. `flags` are those of mount(2) that file systems have,
/// `attributes` MOUNT_ATTR_* of the mount.
pub fn new_file_system(
    kind: &CStr,
    source: &CStr,
    data: &CStr,
    flags: libc::c_ulong,
    attributes: u64,
) -> crate::sys::Result<OwnedFd> {
    let file_system = FileSystem::open(kind)?;
    file_system.set(c"source", Some(source))?;
    let of_file_systems = [
        (libc::MS_RDONLY, c"ro"),
        (libc::MS_SYNCHRONOUS, c"sync"),
        (libc::MS_DIRSYNC, c"dirsync"),
        (libc::MS_LAZYTIME, c"lazytime"),
        (libc::MS_MANDLOCK, c"mand"),
    ];
    for (_, name) in of_file_systems.into_iter().filter(|(flag, _)| flags & flag != 0) {
        file_system.set(name, None)?;
    }
    for option in data.to_bytes().split(|&byte| byte == b',').filter(|option| !option.is_empty()) {
        let (key, value) = match option.iter().position(|&byte| byte == b'=') {
            Some(position) => (&option[..position], Some(&option[position + 1..])),
            None => (option, None),
        };
        let string = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        file_system.set(&string(key), value.map(string).as_deref())?;
    }
    let mounted = file_system.mount(attributes);
    file_system.leave();
    mounted
}

/// A tmpfs over a directory of the image has that one's mode, as under runc.
pub fn with_mode_of(directory: BorrowedFd<'_>, data: &CString) -> Result<CString> {
    let stat = fstat(directory).call(|| format!("fstat({})", directory.as_raw_fd()))?;
    let mode = format!("mode={:04o}", stat.st_mode & 0o7777);
    let data = data.to_string_lossy();
    let data = if data.is_empty() { mode } else { format!("{mode},{data}") };
    CString::new(data).map_err(|_| Error::new("a string contains a NUL character"))
}

/// Adds what the kernel says of a file system that it refused, by asking again in the way that
/// gives reasons.
pub fn explained(failed: Failed, kind: &CString, source: &CString, data: &CString) -> Error {
    let errno = failed.errno;
    let error = Error::from(failed);
    if errno == Errno::ENODEV {
        return error.hint(format!("the kernel knows no file system type {kind:?}: see /proc/filesystems"));
    }
    match complaint(kind, source, data) {
        Some(complaint) => error.hint(complaint),
        None => error,
    }
}

fn complaint(kind: &CString, source: &CString, data: &CString) -> Option<String> {
    let file_system = FileSystem::open(kind).ok()?;
    let mut refused = file_system.set(c"source", Some(source)).is_err();
    for option in data.to_str().ok()?.split(',').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        let value = value.map(CString::new).transpose().ok()?;
        refused |= file_system.set(&CString::new(key).ok()?, value.as_deref()).is_err();
        if refused {
            return file_system
                .complaint()
                .or_else(|| Some(format!("the kernel refuses the option {option:?}")));
        }
    }
    file_system.mount(0).is_err().then(|| file_system.complaint()).flatten()
}
