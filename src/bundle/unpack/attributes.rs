//! What a file has besides its data: owner, mode, times, extended attributes; and which of them an
//! image may decide.

use super::tar::Entry;
use crate::error::{Context, Error, Result};
pub use crate::tree::{NO_TIME, touch};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchdir, fchown, fchownat};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Whose files they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// As the image says: for root, and in a user namespace with subordinate ids.
    Image,
    /// All the user's own: what the image says is kept in `user.rootlesscontainers`.
    SingleId,
}

/// The attribute of the rootless containers project (umoci, PRoot): a protobuf message with the uid
/// and the gid.
const ROOTLESS: &str = "user.rootlesscontainers";

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Where attributes go to.
pub enum Target<'a> {
    /// A file or a directory that is open.
    Open(BorrowedFd<'a>),
    /// Anything else, which can't be opened: a name in a directory.
    Named(BorrowedFd<'a>, &'a OsStr),
}

/// Something of an image that wasn't kept, for the report.
pub type Dropped = String;

/// Sets owner, mode and extended attributes. The owner first: changing it clears setuid bits and
/// capabilities.
pub fn set(target: &Target<'_>, entry: &Entry, ownership: Ownership, link: bool) -> Result<Vec<Dropped>> {
    let (uid, gid) = (id(entry.uid, "user")?, id(entry.gid, "group")?);
    let mut dropped = Vec::new();
    match ownership {
        Ownership::Image => own(target, uid, gid)?,
        Ownership::SingleId if (uid, gid) != (0, 0) => {
            if set_xattr(target, ROOTLESS, &owner_message(uid, gid)).is_err() {
                dropped.push("its owner (it can have no attribute)".into());
            }
        }
        Ownership::SingleId => {}
    }
    if !link {
        let mode = Mode::from_bits_truncate(entry.mode);
        match target {
            Target::Open(fd) => fchmod(fd, mode),
            Target::Named(directory, name) => fchmodat(directory, *name, mode, FchmodatFlags::FollowSymlink),
        }
        .doing(|| format!("chmod({:#o})", entry.mode))?;
    }
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| name != DEFAULT_ACL.as_bytes()) {
        dropped.extend(xattr(target, name, value, ownership)?);
    }
    if let Some(text) = &entry.acls.0 {
        dropped.extend(xattr(target, ACCESS_ACL.as_bytes(), &super::acl::attribute(text)?, ownership)?);
    }
    Ok(dropped)
}

/// The access control list that what is made in a directory begins with. `set` leaves it out: it is
/// for when nothing of the layer is made there any more.
pub fn default_acl(entry: &Entry) -> Result<Option<Vec<u8>>> {
    let named = entry.xattrs.iter().find(|(name, _)| name == DEFAULT_ACL.as_bytes());
    match (named, &entry.acls.1) {
        (Some((_, value)), _) => Ok(Some(value.clone())),
        (None, Some(text)) => super::acl::attribute(text).map(Some),
        (None, None) => Ok(None),
    }
}

/// Sets what `default_acl` returned.
pub fn set_default_acl(directory: BorrowedFd<'_>, value: &[u8]) -> Result<Option<Dropped>> {
    xattr(&Target::Open(directory), DEFAULT_ACL.as_bytes(), value, Ownership::Image)
}

/// 2³²−1 is "leave it as it is" for the kernel, and what is larger would be another id.
fn id(number: u64, what: &str) -> Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::new(format!("{what} id {number} is out of range")))
}

fn own(target: &Target<'_>, uid: u32, gid: u32) -> Result<()> {
    let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match target {
        Target::Open(fd) => fchown(fd, user, group),
        Target::Named(directory, name) => {
            fchownat(directory, *name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
        }
    }
    .map_err(|errno| match errno {
        Errno::EINVAL => {
            Error::from(errno).hint("the user namespace has no such id: more subordinate ids are needed")
        }
        other => other.into(),
    })
    .doing(|| format!("chown({uid}, {gid})"))
}

/// Sets an attribute, or says that it wasn't.
fn xattr(target: &Target<'_>, name: &[u8], value: &[u8], ownership: Ownership) -> Result<Option<Dropped>> {
    let Some(name) = std::str::from_utf8(name).ok().filter(|name| !name.contains('\0')) else {
        return Ok(Some("an attribute whose name is no text".into()));
    };
    if !may_have(name, ownership) {
        return Ok(Some(format!("attribute {name}")));
    }
    match set_xattr(target, name, value) {
        Ok(()) => Ok(None),
        // The kernel or the file system has none of this name, or not on such a file, or not for us.
        Err(errno @ (Errno::EOPNOTSUPP | Errno::EPERM | Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE)) => {
            Ok(Some(format!("attribute {name} ({})", errno.desc().to_lowercase())))
        }
        // A list can name an id that a user namespace lacks.
        Err(Errno::EINVAL) if name == ACCESS_ACL || name == DEFAULT_ACL => {
            Ok(Some(format!("attribute {name} (invalid)")))
        }
        Err(errno) => Err(errno).doing(|| format!("setxattr({name:?})")),
    }
}

/// What belongs to files: the user's attributes, capabilities, access control lists. What belongs to
/// this host isn't an image's to say: labels and measurements of its security modules, and the marks
/// of overlay file systems, which could show what a layer below has hidden.
fn may_have(name: &str, ownership: Ownership) -> bool {
    let overlay = name.starts_with("user.overlay.") || name.starts_with("trusted.overlay.");
    let known = name == "security.capability"
        || matches!(name, ACCESS_ACL | DEFAULT_ACL)
        || name.starts_with("user.")
        || name.starts_with("trusted.");
    known && !overlay && !(ownership == Ownership::SingleId && name == ROOTLESS)
}

/// Sets one extended attribute.
pub fn set_xattr(target: &Target<'_>, name: &str, value: &[u8]) -> nix::Result<()> {
    let result = match target {
        Target::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        // There is no such call with a directory and a name; the working directory is this thread's own.
        Target::Named(directory, file) => {
            fchdir(directory)?;
            rustix::fs::lsetxattr(*file, name, value, XattrFlags::empty())
        }
    };
    result.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Sets the times of what has a name.
pub fn touch_named(directory: BorrowedFd<'_>, name: &OsStr, mtime: (i64, u32)) -> Result<()> {
    let time = TimeSpec::new(mtime.0, mtime.1.into());
    utimensat(directory, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .doing(|| format!("utimensat({})", mtime.0))
}

/// Field 1 is the uid, field 2 the gid, both as varints; zeros are left out.
fn owner_message(uid: u32, gid: u32) -> Vec<u8> {
    let mut message = Vec::new();
    for (tag, mut value) in [(0x08, uid), (0x10, gid)] {
        if value == 0 {
            continue;
        }
        message.push(tag);
        while value >= 0x80 {
            message.push(value as u8 | 0x80);
            value >>= 7;
        }
        message.push(value as u8);
    }
    message
}

/// The attributes that a file has: names and values.
pub fn xattrs(target: &Target<'_>) -> nix::Result<Vec<(String, Vec<u8>)>> {
    let errno = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let mut names = vec![0; 65536];
    let listed = match target {
        Target::Open(fd) => rustix::fs::flistxattr(fd, &mut names),
        Target::Named(directory, name) => {
            fchdir(directory)?;
            rustix::fs::llistxattr(*name, &mut names)
        }
    };
    let length = match listed {
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::BADF) => return Ok(Vec::new()),
        other => other.map_err(errno)?,
    };
    let mut all = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let key = OsStr::from_bytes(name);
        let length = match target {
            Target::Open(fd) => rustix::fs::fgetxattr(fd, key, &mut value),
            Target::Named(_, file) => rustix::fs::lgetxattr(*file, key, &mut value),
        };
        value.truncate(length.map_err(errno)?);
        all.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    Ok(all)
}

/// Copies owner, mode, attributes and time of a directory to another, both open.
pub fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ownership: Ownership) -> Result<()> {
    let stat = nix::sys::stat::fstat(from)?;
    if ownership == Ownership::Image {
        own(&Target::Open(to), stat.st_uid, stat.st_gid)?;
    }
    fchmod(to, Mode::from_bits_truncate(stat.st_mode)).doing(|| "fchmod".into())?;
    copy_xattrs(&Target::Open(from), &Target::Open(to))?;
    touch(to.as_fd(), (stat.st_mtime, stat.st_mtime_nsec as u32))
}

/// Makes one's attributes the other's, but for those of overlay file systems. What the security
/// module of this host puts on every file is left to it.
pub fn copy_xattrs(from: &Target<'_>, to: &Target<'_>) -> Result<()> {
    let mine = |name: &str| may_have(name, Ownership::Image);
    let wanted: Vec<_> = xattrs(from)?.into_iter().filter(|(name, _)| mine(name)).collect();
    for (name, _) in xattrs(to)? {
        if mine(&name) && !wanted.iter().any(|(other, _)| *other == name) {
            let _ = match to {
                Target::Open(fd) => rustix::fs::fremovexattr(fd, &*name),
                Target::Named(_, file) => rustix::fs::lremovexattr(*file, &*name),
            };
        }
    }
    for (name, value) in wanted {
        set_xattr(to, &name, &value).doing(|| format!("setxattr({name:?})"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_the_host_are_not_an_images() {
        for good in ["user.x", "security.capability", "system.posix_acl_access", "trusted.x"] {
            assert!(may_have(good, Ownership::Image), "{good}");
        }
        for bad in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "security.selinux",
            "security.ima",
            "system.nfs4_acl",
            "x",
        ] {
            assert!(!may_have(bad, Ownership::Image), "{bad}");
        }
        assert!(!may_have(ROOTLESS, Ownership::SingleId), "it would say who owns the file");
    }

    #[test]
    fn the_owner_as_a_message() {
        assert_eq!(owner_message(1, 300), [0x08, 1, 0x10, 0xac, 0x02]);
        assert_eq!(owner_message(0, 5), [0x10, 5]);
    }

    #[test]
    fn ids_are_in_range() {
        assert_eq!(id(4_294_967_294, "user").ok(), Some(4_294_967_294));
        for bad in [4_294_967_295, 4_294_967_296, u64::MAX] {
            assert!(id(bad, "user").is_err(), "{bad}");
        }
    }
}
