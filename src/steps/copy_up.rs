//! `tmpcopyup`: a new tmpfs begins with what it hides (config.md, "Linux mount options").

use crate::error::Result;
use crate::sys::{self, Call};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::sendfile::sendfile;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, mknodat};
use nix::unistd::{fchown, fchownat, symlinkat};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A readable descriptor of the directory that `target` refers to, from before it is hidden.
pub fn reopen(target: BorrowedFd<'_>) -> Result<OwnedFd> {
    Ok(sys::file::open(target, ".".as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)
}

/// Copies all that is in `from` into `to`: never through a link, never into another mount.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let device = fstat(from).call(|| "fstat".into())?.st_dev;
    copy_entries(from, to, device)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, device: u64) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut list =
        Dir::openat(from, ".", flags, Mode::empty()).call(|| "openat(\".\", O_DIRECTORY)".into())?;
    for entry in list.iter() {
        let entry = entry.call(|| "getdents".into())?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, device)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, device: u64) -> Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
    if stat.st_dev != device {
        return Ok(());
    }
    let mode = Mode::from_bits_truncate(stat.st_mode);
    let nofollow = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => {
            mkdirat(to, name, mode).call(|| format!("mkdirat({name:?})"))?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | nofollow;
            let source = openat(from, name, flags, Mode::empty()).call(|| format!("openat({name:?})"))?;
            let made = openat(to, name, flags, Mode::empty()).call(|| format!("openat({name:?})"))?;
            own(made.as_fd(), &stat, name)?;
            copy_entries(source.as_fd(), made.as_fd(), device)
        }
        SFlag::S_IFREG => {
            let source = openat(from, name, OFlag::O_RDONLY | nofollow, Mode::empty())
                .call(|| format!("openat({name:?})"))?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | nofollow;
            let made = openat(to, name, flags, mode).call(|| format!("openat({name:?}, O_CREAT)"))?;
            while sendfile(&made, &source, None, 1 << 30).call(|| format!("sendfile({name:?})"))? > 0 {}
            own(made.as_fd(), &stat, name)
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name).call(|| format!("readlinkat({name:?})"))?;
            symlinkat(target.as_os_str(), to, name).call(|| format!("symlinkat({name:?})"))?;
            own_entry(to, &stat, name)
        }
        kind => {
            mknodat(to, name, kind, mode, stat.st_rdev).call(|| format!("mknodat({name:?})"))?;
            own_entry(to, &stat, name)
        }
    }
}

/// The owner first: changing it takes the set-id bits away.
fn own(fd: BorrowedFd<'_>, stat: &FileStat, name: &CStr) -> Result<()> {
    fchown(fd, Some(stat.st_uid.into()), Some(stat.st_gid.into())).call(|| format!("fchown({name:?})"))?;
    Ok(fchmod(fd, Mode::from_bits_truncate(stat.st_mode)).call(|| format!("fchmod({name:?})"))?)
}

fn own_entry(dir: BorrowedFd<'_>, stat: &FileStat, name: &CStr) -> Result<()> {
    let (owner, group) = (Some(stat.st_uid.into()), Some(stat.st_gid.into()));
    Ok(fchownat(dir, name, owner, group, AtFlags::AT_SYMLINK_NOFOLLOW)
        .call(|| format!("fchownat({name:?})"))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn everything_is_copied_and_links_stay_links() {
        let (from, to) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        fs::create_dir(from.path().join("d")).expect("mkdir");
        fs::write(from.path().join("d/f"), "text").expect("write");
        fs::set_permissions(from.path().join("d/f"), fs::Permissions::from_mode(0o640)).expect("chmod");
        symlink("/etc/passwd", from.path().join("l")).expect("symlink");
        let open = |path| sys::file::open(nix::fcntl::AT_FDCWD, path, OFlag::O_RDONLY).expect("open");
        copy(open(from.path()).as_fd(), open(to.path()).as_fd()).expect("copied");
        assert_eq!(fs::read_to_string(to.path().join("d/f")).expect("read"), "text");
        assert_eq!(fs::metadata(to.path().join("d/f")).expect("stat").permissions().mode() & 0o777, 0o640);
        assert_eq!(
            fs::read_link(to.path().join("l")).expect("readlink"),
            std::path::Path::new("/etc/passwd")
        );
    }
}
