//! Layers on top of each other, looked through from above as an overlay file system does.

use crate::error::{Context, Error, Result};
use crate::tree::{self, Inner, Tree};
use crate::unpack::attributes::{Target, xattrs};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MOST_LINKS: usize = 40;

/// Layers, the topmost first. A root file system is a stack of one.
#[derive(Debug, Default)]
pub struct Stack(pub Vec<Tree>);

/// A directory, as the layers that have a part of it, the topmost first.
type Merged = Vec<OwnedFd>;

/// Something that was found.
pub enum Found {
    Directory {
        /// Its real path.
        path: Inner,
        parts: Merged,
    },
    /// Anything else: where it is.
    Other { path: Inner, parent: OwnedFd },
}

enum Next {
    Nothing,
    Directory(Merged),
    Other(usize),
}

/// Whether it stands for something that isn't there any more (Documentation/filesystems/overlayfs.rst).
pub fn is_whiteout(stat: &FileStat) -> bool {
    tree::kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Whether nothing shows through this directory.
pub fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let marks = ["trusted.overlay.opaque", "user.overlay.opaque"];
    xattrs(&Target::Open(directory))
        .is_ok_and(|all| all.iter().any(|(name, value)| marks.contains(&name.as_str()) && value == b"y"))
}

impl Stack {
    /// What is at a path, links on the way followed within the stack; the last name only if `follow`.
    pub fn find(&self, path: &Path, follow: bool) -> Result<Option<Found>> {
        let mut at: Vec<(Merged, OsString)> = Vec::new();
        let roots = self
            .0
            .iter()
            .map(|tree| tree.open(Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY))
            .collect::<nix::Result<Merged>>()?;
        let mut ahead: Vec<OsString> = tree::parts(path).rev().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let current = at.last().map_or(&roots, |(merged, _)| merged);
            match step(current, &name)? {
                Next::Nothing => return Ok(None),
                Next::Directory(next) => at.push((next, name)),
                Next::Other(index) if ahead.is_empty() && !follow => {
                    let path = at.iter().map(|(_, name)| name).chain([&name]).collect();
                    let parent = current[index].try_clone()?;
                    return Ok(Some(Found::Other { path, parent }));
                }
                Next::Other(index) => {
                    let target = match readlinkat(&current[index], name.as_os_str()) {
                        Err(Errno::EINVAL) => return Ok(None), // a file, which nothing is below of
                        other => other.doing(|| format!("readlinkat({name:?})"))?,
                    };
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Error::from(Errno::ELOOP).prefix(format!("{path:?}")));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        at.clear();
                    }
                    ahead.extend(tree::parts(Path::new(&target)).rev());
                }
            }
        }
        let path = at.iter().map(|(_, name)| name).collect();
        let parts = at.pop().map_or(roots, |(merged, _)| merged);
        Ok((!parts.is_empty()).then_some(Found::Directory { path, parts }))
    }

    /// The directory at a path, links followed.
    pub fn find_directory(&self, path: &Path) -> Result<Option<(Inner, Merged)>> {
        Ok(match self.find(path, true)? {
            Some(Found::Directory { path, parts }) => Some((path, parts)),
            _ => None,
        })
    }
}

fn step(current: &Merged, name: &OsStr) -> Result<Next> {
    let mut parts = Merged::new();
    for (index, directory) in current.iter().enumerate() {
        let Some(stat) = tree::stat(directory.as_fd(), name).doing(|| format!("fstatat({name:?})"))? else {
            continue;
        };
        if is_whiteout(&stat) {
            break;
        }
        if !tree::is_directory(&stat) {
            if parts.is_empty() {
                return Ok(Next::Other(index));
            }
            break;
        }
        let opened = tree::open_directory(directory.as_fd(), name).doing(|| format!("open {name:?}"))?;
        let opaque = is_opaque(opened.as_fd());
        parts.push(opened);
        if opaque {
            break;
        }
    }
    Ok(if parts.is_empty() { Next::Nothing } else { Next::Directory(parts) })
}
