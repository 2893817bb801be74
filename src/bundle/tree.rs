//! A directory tree that somebody else made up: every path in it is walked by descriptors, one name at
//! a time, without following links; links are followed by reading them, and never lead out of it.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows in one path.
const MOST_LINKS: usize = 40;

/// What the kernel takes (limits.h).
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// A path from the tree's root: without links, without `.` and `..`, without a slash at its beginning.
pub type Inner = PathBuf;

/// A name from an archive as a path from the root. Whatever leads upwards is refused rather than
/// interpreted: to what, depends on the links on the way.
pub fn inner(name: &[u8]) -> Result<Inner> {
    if name.len() >= PATH_MAX || name.split(|byte| *byte == b'/').any(|part| part.len() > NAME_MAX) {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => return Err(Error::new("a path with \"..\" could lead out of the root")),
        }
    }
    Ok(path)
}

/// Opens a name in a directory, which isn't a link.
pub fn open(directory: BorrowedFd<'_>, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(directory, name, how)
}

/// Opens a directory in a directory, to read what is in it.
pub fn open_directory(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    open(directory, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// What a name in a directory is; None if there is nothing of that name.
pub fn stat(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The type of a file.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether it is a directory.
pub fn is_directory(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

/// The names in a directory, but `.` and `..`. The directory is opened anew, so that its position
/// stays.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    let opened = open_directory(directory, OsStr::new(".")).doing(|| "open a directory".into())?;
    for entry in nix::dir::Dir::from_fd(opened)?.iter() {
        let entry = entry.doing(|| "read a directory".into())?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// The time of what no layer has an entry for: the same whenever it is made.
pub const NO_TIME: (i64, u32) = (0, 0);

/// Sets the times of what is open.
pub fn touch(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    let time = TimeSpec::new(mtime.0, mtime.1.into());
    futimens(fd, &time, &time).doing(|| format!("futimens({})", mtime.0))
}

/// Removes whatever has this name, and all below it.
pub fn remove(directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno).doing(|| format!("unlinkat({name:?})")),
    }
    // By a stack of its own, since an image decides how deep it is.
    let mut stack =
        vec![(open_directory(directory, name).doing(|| format!("open {name:?}"))?, name.to_owned())];
    while let Some((current, _)) = stack.last() {
        let mut deeper = None;
        for name in names(current.as_fd())? {
            match unlinkat(current, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) => {}
                Err(Errno::EISDIR | Errno::EPERM) => {
                    deeper = Some(name);
                    break;
                }
                Err(errno) => return Err(errno).doing(|| format!("unlinkat({name:?})")),
            }
        }
        match deeper {
            Some(name) => {
                let next = open_directory(current.as_fd(), &name).doing(|| format!("open {name:?}"))?;
                stack.push((next, name));
            }
            None => {
                let Some((_, name)) = stack.pop() else { break };
                let parent = stack.last().map_or(directory, |(parent, _)| parent.as_fd());
                unlinkat(parent, name.as_os_str(), UnlinkatFlags::RemoveDir)
                    .doing(|| format!("rmdir({name:?})"))?;
            }
        }
    }
    Ok(())
}

/// The parts of a path, `..` among them.
pub fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// A tree that is being made.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

/// A directory of a tree.
#[derive(Debug)]
pub struct Place {
    pub directory: OwnedFd,
    /// Its real path.
    pub path: Inner,
    /// Directories on the way that had to be made, by their real paths.
    pub made: Vec<Inner>,
}

impl Tree {
    /// The tree below an open directory.
    pub fn new(root: OwnedFd) -> Self {
        Tree { root }
    }

    /// Its root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a real path.
    pub fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { OsStr::new(".") } else { path.as_os_str() };
        open(self.root(), path, flags)
    }

    /// Opens the directory at a path, through links, and makes what of it is missing with mode 0755; the
    /// times of those around stay.
    pub fn directory(&self, path: &Path) -> Result<Place> {
        match self.walk(path, Missing::Make)? {
            Some(place) => Ok(place),
            None => Err(Errno::ENOENT).doing(|| format!("open {path:?}")),
        }
    }

    /// Opens the directory at a path, through links; None if there is none.
    pub fn find_directory(&self, path: &Path) -> Result<Option<Place>> {
        self.walk(path, Missing::IsNone)
    }

    fn walk(&self, path: &Path, missing: Missing) -> Result<Option<Place>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Ok(directory) => return Ok(Some(Place { directory, path: path.to_owned(), made: Vec::new() })),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV) => {}
            Err(errno) => return Err(errno).doing(|| format!("open {path:?}")),
        }
        let mut stack: Vec<(OwnedFd, OsString)> = Vec::new();
        let root = self.open(Path::new(""), flags)?;
        let mut ahead: Vec<OsString> = parts(path).rev().collect();
        let (mut links, mut made) = (0, Vec::new());
        while let Some(name) = ahead.pop() {
            if name == ".." {
                stack.pop();
                continue;
            }
            let current = stack.last().map_or(root.as_fd(), |(directory, _)| directory.as_fd());
            match open_directory(current, &name) {
                Ok(next) => stack.push((next, name)),
                Err(Errno::ENOENT) if missing == Missing::IsNone => return Ok(None),
                Err(Errno::ENOENT) => {
                    let before = fstat(current)?;
                    mkdirat(current, name.as_os_str(), Mode::from_bits_truncate(0o755))
                        .doing(|| format!("mkdirat({name:?})"))?;
                    touch(current, (before.st_mtime, before.st_mtime_nsec as u32))?;
                    let next = open_directory(current, &name)?;
                    touch(next.as_fd(), NO_TIME)?;
                    stack.push((next, name));
                    made.push(stack.iter().map(|(_, name)| name).collect());
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    let target = match readlinkat(current, name.as_os_str()) {
                        Err(Errno::EINVAL) if missing == Missing::IsNone => return Ok(None),
                        Err(Errno::EINVAL) => return Err(Errno::ENOTDIR).doing(|| format!("{name:?}")),
                        other => other.doing(|| format!("readlinkat({name:?})"))?,
                    };
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP).doing(|| format!("{path:?}"));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        stack.clear();
                    }
                    ahead.extend(parts(Path::new(&target)).rev());
                }
                Err(errno) => return Err(errno).doing(|| format!("open {name:?}")),
            }
        }
        let path = stack.iter().map(|(_, name)| name).collect();
        let directory = match stack.pop() {
            Some((directory, _)) => directory,
            None => root,
        };
        Ok(Some(Place { directory, path, made }))
    }
}

/// What becomes of a directory that isn't there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    IsNone,
}

/// A path's directory and its last name; None for the root itself.
pub fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree(of: &Path) -> Tree {
        Tree::new(OwnedFd::from(fs::File::open(of).expect("it opens")))
    }

    #[test]
    fn names_become_paths_below_the_root() {
        for (name, path) in [("./a//b/", "a/b"), ("/etc/passwd", "etc/passwd"), (".", ""), ("...", "...")] {
            assert_eq!(inner(name.as_bytes()).expect(name), Path::new(path));
        }
        for bad in ["..", "a/../b", "/../x", "a/.."] {
            assert!(inner(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_stay_within_the_tree() {
        let outside = tempfile::tempdir().expect("a directory");
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("real")).expect("it is made");
        symlink("../../../..", root.join("up")).expect("it is made");
        symlink("/real", root.join("absolute")).expect("it is made");
        symlink("new/deep", root.join("dangling")).expect("it is made");
        symlink("loop", root.join("loop")).expect("it is made");
        fs::write(root.join("file"), "").expect("it is written");
        let tree = tree(&root);
        let real = |path: &str| tree.directory(Path::new(path)).map(|place| place.path);
        assert_eq!(real("up/x"), Ok("x".into()));
        assert_eq!(real("absolute/y"), Ok("real/y".into()));
        assert_eq!(real("dangling/z"), Ok("new/deep/z".into()));
        assert_eq!(real("up/up/real/y"), Ok("real/y".into()));
        assert!(real("loop/x").is_err());
        assert!(real("file/x").is_err());
        let before = fs::metadata(&root).and_then(|data| data.modified()).expect("it is there");
        let made = tree.directory(Path::new("p/q")).expect("it is made").made;
        assert_eq!(made, [Path::new("p"), Path::new("p/q")]);
        assert_eq!(fs::metadata(&root).and_then(|data| data.modified()).ok(), Some(before), "its time stays");
        let time = fs::metadata(root.join("p")).and_then(|data| data.modified()).expect("it is there");
        assert_eq!(time, std::time::UNIX_EPOCH);
        let mut names: Vec<_> = names(File::open_parent(outside.path())).expect("they are read");
        names.sort();
        assert_eq!(names, ["root"], "nothing is outside");
    }

    /// The directory around the tree, kept open for the test's life.
    struct File;
    impl File {
        fn open_parent(path: &Path) -> BorrowedFd<'static> {
            let file: &'static fs::File = Box::leak(Box::new(fs::File::open(path).expect("it opens")));
            file.as_fd()
        }
    }

    #[test]
    fn a_deep_tree_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = tree(directory.path());
        let deep: PathBuf = std::iter::repeat_n("d", 200).collect();
        tree.directory(&deep).expect("it is made");
        remove(tree.root(), OsStr::new("d")).expect("it is removed");
        assert!(names(tree.root()).expect("they are read").is_empty());
    }
}
