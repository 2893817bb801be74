//! Looking into an image's root file system, which may be anything.
//!
//! Every path is resolved by the kernel within the root, to a descriptor (openat2(2), RESOLVE_IN_ROOT):
//! no link leads out of it.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};
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

/// Makes the working directory `cwd` where it is missing, with its parents, as Docker does: mode 0755, and
/// root's, not the process's user's. `owner` is root's ids as the files of the bundle have them, None where
/// they are those of whoever makes files. Returns whether anything was made.
///
/// It is for the caller of `convert` to say where that is: the root file system, or the upper layer of one.
pub fn make_cwd(rootfs: BorrowedFd<'_>, cwd: &str, owner: Option<(u32, u32)>) -> Result<bool> {
    let failed = || format!("the working directory {cwd:?}");
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(Error::new("not an absolute path").prefix(failed()));
    }
    match open(rootfs, cwd, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT) => {}
        other => return other.doing(failed).map(|_| false),
    }
    let mut done = String::from("/");
    let mut dir = open(rootfs, &done, OFlag::O_PATH | OFlag::O_DIRECTORY).doing(failed)?;
    for name in cwd.split('/').filter(|name| !name.is_empty()) {
        done.push_str(name);
        dir = match open(rootfs, &done, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => make_directory(rootfs, &dir, &done, name, owner).doing(failed)?,
            other => other.doing(failed)?,
        };
        done.push('/');
    }
    Ok(true)
}

/// Makes `name` in `parent`, which is `path` from the root.
fn make_directory(
    rootfs: BorrowedFd<'_>,
    parent: &OwnedFd,
    path: &str,
    name: &str,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(0o755);
    match mkdirat(parent, name, mode) {
        Err(Errno::EEXIST) => return Err(Error::new(format!("{path} is a link to nothing"))),
        other => other.doing(|| format!("mkdirat({path:?})"))?,
    }
    let made = open(rootfs, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchown(&made, Some(uid), Some(gid)).doing(|| format!("fchown({path:?}, {uid}, {gid})"))?;
    }
    fchmod(&made, mode).doing(|| format!("fchmod({path:?})"))?; // whatever the umask
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
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

        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("mkfifo");
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

    #[test]
    fn a_working_directory_is_made_within_the_root() {
        let (dir, fd) = root();
        let make = |cwd: &str| make_cwd(fd.as_fd(), cwd, None).map_err(|error| error.to_string());
        assert_eq!(make("/"), Ok(false));
        assert_eq!(make("/a/b//c/"), Ok(true));
        assert_eq!(make("/a/b/c"), Ok(false));
        let mode = fs::metadata(dir.path().join("a/b/c")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(make("/a/../../../x"), Ok(true));
        assert!(dir.path().join("x").is_dir());

        let outside = tempfile::tempdir().expect("a directory");
        symlink(outside.path(), dir.path().join("link")).expect("symlink");
        symlink("a", dir.path().join("good")).expect("symlink");
        assert_eq!(make("/good/d"), Ok(true));
        assert!(dir.path().join("a/d").is_dir());
        let error = make("/link/y").expect_err("nothing is there within the root");
        assert_eq!(error, "the working directory \"/link/y\": /link is a link to nothing");
        assert_eq!(fs::read_dir(outside.path()).expect("readdir").count(), 0);
        fs::write(dir.path().join("file"), "").expect("write");
        assert_eq!(make("/file").unwrap_err(), "the working directory \"/file\": not a directory");
        assert!(make("/file/x").unwrap_err().contains("not a directory"));
        assert!(make("relative").is_err());
    }
}
