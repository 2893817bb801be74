//! Looking into an image's root file system, which may be anything.
//!
//! Every path is resolved by the kernel within the root, to a descriptor (openat2(2), RESOLVE_IN_ROOT):
//! no link leads out of it.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};
use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The most that is read of a file: real ones have some kilobytes (CVE-2026-47262).
pub const MOST_BYTES: u64 = 1 << 20;

fn open(rootfs: BorrowedFd<'_>, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(rootfs, path, how)
}

/// What is in the file at `path`; None where there is none.
///
/// Only a regular file is read: a fifo would stop us for good, a device would answer with what it likes.
pub fn read(rootfs: BorrowedFd<'_>, path: &str) -> Result<Option<Vec<u8>>> {
    let file = match open(rootfs, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        other => other.doing(|| format!("the image's {path}"))?,
    };
    let stat = fstat(&file).doing(|| format!("the image's {path}"))?;
    if kind(&stat) != SFlag::S_IFREG {
        return Err(Error::new(format!("the image's {path} is not a regular file")));
    }
    let mut bytes = Vec::new();
    File::from(file).take(MOST_BYTES + 1).read_to_end(&mut bytes).doing(|| format!("the image's {path}"))?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(Error::new(format!("the image's {path} is larger than {} KiB", MOST_BYTES >> 10))),
        false => Ok(Some(bytes)),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// What the directory at `path` is like; None where there is nothing.
pub fn directory(rootfs: BorrowedFd<'_>, path: &str) -> Result<Option<FileStat>> {
    match open(rootfs, path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT) => Ok(None),
        other => {
            let dir = other.doing(|| format!("the image's {path}"))?;
            fstat(dir).doing(|| format!("the image's {path}")).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn root() -> (TempDir, File) {
        let dir = tempfile::tempdir().expect("a directory");
        let fd = File::open(dir.path()).expect("open");
        (dir, fd)
    }

    #[test]
    fn only_a_regular_file_within_the_root_and_of_a_sane_size_is_read() {
        let (dir, fd) = root();
        let read = || read(fd.as_fd(), "/etc/passwd").map_err(|error| error.to_string());
        assert_eq!(read(), Ok(None));
        fs::write(dir.path().join("etc"), "").expect("write");
        assert_eq!(read(), Ok(None), "/etc is a file");
        fs::remove_file(dir.path().join("etc")).expect("rm");
        fs::create_dir(dir.path().join("etc")).expect("mkdir");
        let path = dir.path().join("etc/passwd");

        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert_eq!(read(), Err("the image's /etc/passwd is not a regular file".into()));
        fs::remove_file(&path).expect("rm");

        let outside = tempfile::NamedTempFile::new().expect("a file");
        fs::write(outside.path(), "secret").expect("write");
        symlink(outside.path(), &path).expect("symlink");
        assert_eq!(read(), Ok(None), "a link is followed within the root, where that isn't");
        fs::remove_file(&path).expect("rm");
        symlink("../../../../../../../../../../../../etc/hostname", &path).expect("symlink");
        assert_eq!(read(), Ok(None));
        fs::write(dir.path().join("etc/hostname"), "within").expect("write");
        assert_eq!(read(), Ok(Some(b"within".to_vec())));
        fs::remove_file(&path).expect("rm");
        symlink("/proc/self/exe", &path).expect("symlink");
        assert_eq!(read(), Ok(None));
        fs::remove_file(&path).expect("rm");
        symlink("passwd", &path).expect("symlink");
        assert!(read().is_err_and(|error| error.contains("symbolic links")), "a link to itself");
        fs::remove_file(&path).expect("rm");

        File::create(&path).expect("create").set_len(1 << 40).expect("truncate");
        assert_eq!(read(), Err("the image's /etc/passwd is larger than 1024 KiB".into()));
        File::create(&path).expect("create").set_len(MOST_BYTES).expect("truncate");
        assert!(read().is_ok_and(|bytes| bytes.is_some_and(|bytes| bytes.len() as u64 == MOST_BYTES)));
    }
}
