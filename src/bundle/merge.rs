//! Layers made into one tree: by moving what they have, or by copying it.

use crate::error::{Context, Error, Result};
use crate::settle::Hidden;
use crate::stack::{is_opaque, is_whiteout};
use crate::store::Kept;
use crate::tree::{self, Inner, Tree};
use crate::unpack;
use crate::unpack::attributes::{self, Ownership, Target};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, copy_file_range, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence, fchownat, ftruncate, linkat, lseek, symlinkat, unlinkat};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Copy {
    /// sharing the data where the file system can, and else by copying it
    Auto,
    /// sharing the data, until one of them is changed
    Reflink,
    /// the same files (needs --read-only: to change one would change it for all)
    Hardlink,
    /// all of the data
    Full,
}

/// Moves a layer, which is settled, over a tree; nothing of it stays where it was.
pub fn move_over(layer: &Tree, hidden: &Hidden, root: bool, over: &Tree) -> Result<()> {
    for path in &hidden.whiteouts {
        let Some((parent, name)) = tree::split(path) else { continue };
        let parent = directory(over, parent)?;
        let before = nix::sys::stat::fstat(&parent)?;
        tree::remove(parent.as_fd(), name)?;
        attributes::touch(parent.as_fd(), time(&before))?;
    }
    for path in &hidden.opaque {
        let emptied = directory(over, path)?;
        for name in tree::names(emptied.as_fd())? {
            tree::remove(emptied.as_fd(), &name)?;
        }
    }
    let (from, to) = (directory(layer, Path::new(""))?, directory(over, Path::new(""))?);
    let (mine, before) = (nix::sys::stat::fstat(&from)?, nix::sys::stat::fstat(&to)?);
    move_children(from.as_fd(), to.as_fd())?;
    if root {
        attributes::touch(from.as_fd(), time(&mine))?;
        return attributes::copy_directory(from.as_fd(), to.as_fd(), Ownership::Image);
    }
    attributes::touch(to.as_fd(), time(&before))
}

fn directory(tree: &Tree, path: &Path) -> Result<OwnedFd> {
    tree.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).doing(|| format!("open {path:?}"))
}

fn time(stat: &FileStat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}

/// Moves what is in one directory to another; directories that both have become one, with the
/// attributes of the first. Whole subtrees are moved where the other has none.
pub fn move_children(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in tree::names(from)? {
        let mine = tree::stat(from, &name)?.is_some_and(|stat| tree::is_directory(&stat));
        let there = tree::stat(to, &name)?;
        match there {
            Some(stat) if mine && tree::is_directory(&stat) => {
                let inner = tree::open_directory(from, &name).doing(|| format!("open {name:?}"))?;
                let over = tree::open_directory(to, &name).doing(|| format!("open {name:?}"))?;
                let before = nix::sys::stat::fstat(&inner)?;
                move_children(inner.as_fd(), over.as_fd())?;
                attributes::touch(inner.as_fd(), time(&before))?;
                attributes::copy_directory(inner.as_fd(), over.as_fd(), Ownership::Image)?;
                unlinkat(from, name.as_os_str(), UnlinkatFlags::RemoveDir)
                    .doing(|| format!("rmdir({name:?})"))?;
                continue;
            }
            Some(_) => tree::remove(to, &name)?,
            None => {}
        }
        renameat(from, name.as_os_str(), to, name.as_os_str()).doing(|| format!("renameat({name:?})"))?;
    }
    Ok(())
}

/// Copies layers of the store.
pub struct Copying {
    how: Copy,
    /// Where files with several names were copied to: by device and inode.
    linked: HashMap<(u64, u64), (OwnedFd, OsString)>,
    /// Files that are there already, from the layers below.
    there: BTreeSet<Inner>,
}

impl Copying {
    /// Nothing is copied yet.
    pub fn new(how: Copy) -> Self {
        Copying { how, linked: HashMap::new(), there: BTreeSet::new() }
    }

    /// Copies a layer of the store over what was copied from those below it.
    pub fn over(&mut self, layer: &Tree, kept: &Kept, over: &Tree) -> Result<()> {
        // An inode's number says nothing in another layer, whose file system may be the same.
        self.linked.clear();
        self.there = kept.copied.iter().map(|path| unpack::read(path)).collect();
        for path in &self.there {
            let Some((parent, name)) = tree::split(path) else { continue };
            if let Some(mine) = tree::stat(directory(layer, parent)?.as_fd(), name)? {
                let there = (directory(over, parent)?, name.to_owned());
                self.linked.insert((mine.st_dev, mine.st_ino), there);
            }
        }
        let (from, to) = (directory(layer, Path::new(""))?, directory(over, Path::new(""))?);
        let before = nix::sys::stat::fstat(&to)?;
        self.children(Path::new(""), from.as_fd(), to.as_fd())?;
        if kept.root {
            return attributes::copy_directory(from.as_fd(), to.as_fd(), Ownership::Image);
        }
        attributes::touch(to.as_fd(), time(&before))
    }

    /// Copies a whole tree.
    pub fn all(&mut self, tree: &Tree, over: &Tree) -> Result<()> {
        let (from, to) = (directory(tree, Path::new(""))?, directory(over, Path::new(""))?);
        self.children(Path::new(""), from.as_fd(), to.as_fd())?;
        attributes::copy_directory(from.as_fd(), to.as_fd(), Ownership::Image)
    }

    fn children(&mut self, path: &Path, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        for name in tree::names(from)? {
            let Some(mine) = tree::stat(from, &name)? else { continue };
            let there = tree::stat(to, &name)?;
            let path = path.join(&name);
            if is_whiteout(&mine) {
                tree::remove(to, &name)?;
            } else if !tree::is_directory(&mine) {
                if self.there.contains(&path) {
                    continue;
                }
                if there.is_some() {
                    tree::remove(to, &name)?;
                }
                self.file(from, to, &name, &mine).map_err(|error| error.prefix(format!("{path:?}")))?;
            } else {
                let inner = tree::open_directory(from, &name).doing(|| format!("open {path:?}"))?;
                if !there.is_some_and(|stat| tree::is_directory(&stat)) || is_opaque(inner.as_fd()) {
                    tree::remove(to, &name)?;
                    mkdirat(to, name.as_os_str(), Mode::from_bits_truncate(0o700))
                        .doing(|| format!("mkdirat({path:?})"))?;
                }
                let over = tree::open_directory(to, &name).doing(|| format!("open {path:?}"))?;
                self.children(&path, inner.as_fd(), over.as_fd())?;
                attributes::copy_directory(inner.as_fd(), over.as_fd(), Ownership::Image)?;
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        mine: &FileStat,
    ) -> Result<()> {
        let flags = AtFlags::empty();
        let key = (mine.st_dev, mine.st_ino);
        if let Some((parent, first)) = self.linked.get(&key) {
            return linkat(parent, first.as_os_str(), to, name, flags).doing(|| "linkat".into());
        }
        if self.how == Copy::Hardlink {
            return linkat(from, name, to, name, flags).doing(|| "linkat".into());
        }
        copy((from, name), (to, name), mine, self.how, Ownership::Image)?;
        if mine.st_nlink > 1 {
            self.linked.insert(key, (to.try_clone_to_owned()?, name.to_owned()));
        }
        Ok(())
    }
}

/// A name in a directory.
pub type At<'a> = (BorrowedFd<'a>, &'a OsStr);

/// Copies a file that isn't a directory.
pub fn copy_file(from: At<'_>, to: At<'_>, ownership: Ownership) -> Result<()> {
    match tree::stat(from.0, from.1)? {
        Some(stat) => copy(from, to, &stat, Copy::Auto, ownership),
        None => Err(Errno::ENOENT.into()),
    }
}

fn copy(
    (from, from_name): At<'_>,
    (to, name): At<'_>,
    stat: &FileStat,
    how: Copy,
    ownership: Ownership,
) -> Result<()> {
    let (source, target) = (Target::Named(from, from_name), Target::Named(to, name));
    match tree::kind(stat) {
        SFlag::S_IFREG => {
            let file = tree::open(from, from_name, OFlag::O_RDONLY).doing(|| "open it".into())?;
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let copy = openat(to, name, flags, Mode::from_bits_truncate(0o600)).doing(|| "make it".into())?;
            copy_data(&file, &copy, stat.st_size, how)?;
        }
        SFlag::S_IFLNK => {
            let link = readlinkat(from, from_name).doing(|| "readlinkat".into())?;
            symlinkat(link.as_os_str(), to, name).doing(|| "symlinkat".into())?;
        }
        kind => mknodat(to, name, kind, Mode::from_bits_truncate(0o600), stat.st_rdev)
            .doing(|| "mknodat".into())?,
    }
    if ownership == Ownership::Image {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).doing(|| "fchownat".into())?;
    }
    if tree::kind(stat) != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode);
        fchmodat(to, name, mode, FchmodatFlags::FollowSymlink).doing(|| "fchmodat".into())?;
    }
    attributes::copy_xattrs(&source, &target)?;
    attributes::touch_named(to, name, time(stat))
}

/// Copies what a file holds, and its holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: i64, how: Copy) -> Result<()> {
    if how != Copy::Full {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            Err(errno) if how == Copy::Reflink => {
                return Err(Error::from(errno)
                    .prefix("ioctl(FICLONE)")
                    .hint("this file system can't share data: --copy=auto copies it"));
            }
            Err(_) => {}
        }
    }
    let mut position = 0;
    while position < size {
        let data = match lseek(from, position, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other.doing(|| "lseek(SEEK_DATA)".into())?,
        };
        let hole = lseek(from, data, Whence::SeekHole).doing(|| "lseek(SEEK_HOLE)".into())?;
        let (mut source, mut target) = (data, data);
        while source < hole {
            let length = usize::try_from(hole - source).unwrap_or(usize::MAX).min(1 << 30);
            if copy_file_range(from, Some(&mut source), to, Some(&mut target), length)
                .doing(|| "copy_file_range".into())?
                == 0
            {
                break;
            }
        }
        position = hole;
    }
    ftruncate(to, size).doing(|| "ftruncate".into())
}
