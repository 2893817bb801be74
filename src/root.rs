//! A container's root directory, and the only way to resolve a path in it.
//!
//! Every path is resolved by the kernel within the root (openat2(2), RESOLVE_IN_ROOT), once, to a
//! descriptor; what is done then is done to that. No symbolic link, no `..` and no rename in the
//! meantime leads out (CVE-2021-30465, CVE-2019-18837, CVE-2024-45310).

use crate::sys::{self, Call, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// A directory that paths can't leave.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// The directory in which something was made last, for what is made next in it: the mount points
    /// and nodes of /dev come one after the other. Whatever else is resolved may be about to be
    /// mounted on, which could hide this one: then it is forgotten.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
    /// A directory in which there is nothing yet: a new tmpfs.
    empty: RefCell<Option<PathBuf>>,
}

/// What a missing path is made to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, with mode 0755.
    Directory,
    /// An empty file, with mode 0644.
    File,
}

/// When something came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Just now, by `Root`.
    Now,
    /// It was there.
    Before,
}

/// How symbolic links on the way are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// They are followed within the root.
    Follow,
    /// They are an error (ELOOP).
    Refuse,
}

impl Root {
    /// The directory at `path` of this process's own file system.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = sys::file::open(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Root { fd, last: RefCell::default(), empty: RefCell::default() })
    }

    /// Opens `path` within the root.
    pub fn resolve(&self, path: &Path, flags: OFlag, links: Links) -> Result<OwnedFd> {
        self.forget_last();
        open_within(self.fd.as_fd(), path, flags, links)
            .call(|| format!("openat2({path:?}, {flags:?}, RESOLVE_IN_ROOT)"))
    }

    /// A reference (O_PATH) to `path` within the root, which is made as `kind` where it is
    /// missing, with its parents.
    pub fn ensure(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        self.ensure_as(path, || Ok(kind)).map(|(file, _)| file)
    }

    /// As `ensure`; what is made is decided only when it is, and told along.
    pub fn ensure_as(&self, path: &Path, kind: impl Fn() -> Result<Kind>) -> Result<(OwnedFd, Made)> {
        let calling = || format!("openat2({path:?}, O_CREAT, RESOLVE_IN_ROOT)");
        let dir = match self.last(path.parent()) {
            None => self.empty(path.parent()).call(calling)?,
            last => last,
        };
        if let (Some(dir), Some(name)) = (dir, path.file_name()) {
            match make_in(dir.as_fd(), name, kind()?) {
                Ok(made) => return Ok((made, Made::Now)),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).call(calling),
            }
        }
        self.forget_last();
        match open_within(self.fd.as_fd(), path, OFlag::O_PATH, Links::Follow) {
            Err(Errno::ENOENT) => self.make(path, kind()?).map(|file| (file, Made::Now)).call(calling),
            other => other.map(|file| (file, Made::Before)).call(calling),
        }
    }

    fn forget_last(&self) {
        if let Some(dir) = self.last.take().and_then(|(_, dir)| Rc::into_inner(dir)) {
            sys::file::leave(dir);
        }
    }

    /// Takes note that there is nothing in the directory at `path` yet: what is made in it next needn't be
    /// looked for first.
    pub fn note_empty(&self, path: &Path) {
        self.empty.replace(Some(path.into()));
    }

    /// That directory, if it is this one.
    fn empty(&self, path: Option<&Path>) -> nix::Result<Option<Rc<OwnedFd>>> {
        match self.empty.take().filter(|empty| Some(empty.as_path()) == path) {
            None => Ok(None),
            Some(path) => {
                let dir = Rc::new(open_within(self.fd.as_fd(), &path, OFlag::O_PATH, Links::Follow)?);
                self.forget_last();
                self.last.replace(Some((path, dir.clone())));
                Ok(Some(dir))
            }
        }
    }

    /// The directory in which something was made last, if it is this one.
    fn last(&self, path: Option<&Path>) -> Option<Rc<OwnedFd>> {
        let last = self.last.borrow();
        let (of, dir) = last.as_ref()?;
        (Some(of.as_path()) == path).then(|| dir.clone())
    }

    /// The directory that `path` is in, made where it is missing, and the last part of the path.
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(Rc<OwnedFd>, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::EINVAL).call(|| format!("dirname({path:?})"))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        if let Some(dir) = self.last(Some(parent)) {
            return Ok((dir, name));
        }
        let dir = Rc::new(self.ensure(parent, Kind::Directory)?);
        self.last.replace(Some((parent.into(), dir.clone())));
        Ok((dir, name))
    }

    /// Makes what is missing of `path`. A dangling link stands for where it points: many images
    /// have one as /etc/resolv.conf, and engines mount a file there.
    fn make(&self, path: &Path, kind: Kind) -> nix::Result<OwnedFd> {
        const MOST_LINKS: usize = 40; // as the kernel
        let mut path = normal(path);
        'link: for _ in 0..MOST_LINKS {
            let (mut dir, mut done, missing) = self.deepest(&path)?;
            for (index, name) in missing.iter().enumerate() {
                let kind = if index + 1 == missing.len() { kind } else { Kind::Directory };
                match make_in(dir.as_fd(), name, kind) {
                    Ok(made) => {
                        let parent = Rc::new(std::mem::replace(&mut dir, made));
                        self.forget_last();
                        self.last.replace(Some((done.clone(), parent)));
                    }
                    Err(Errno::EEXIST) => {
                        let target = match readlinkat(&dir, name.as_os_str()) {
                            // No link: somebody else has just made it, on a shared volume.
                            Err(Errno::EINVAL) => {
                                match open_within(self.fd.as_fd(), &path, OFlag::O_PATH, Links::Follow) {
                                    Err(Errno::ENOENT) => continue 'link,
                                    other => return other,
                                }
                            }
                            other => other?,
                        };
                        done.push(target); // an absolute target replaces it all, as it should
                        path = done.join(missing[index + 1..].iter().collect::<PathBuf>());
                        continue 'link;
                    }
                    Err(errno) => return Err(errno),
                }
                done.push(name);
            }
            return Ok(dir);
        }
        Err(Errno::ELOOP)
    }

    /// The longest part above the last of `path` that exists, and what is missing after it.
    fn deepest(&self, path: &Path) -> nix::Result<(OwnedFd, PathBuf, Vec<OsString>)> {
        let mut missing = vec![path.file_name().ok_or(Errno::ENOENT)?.to_owned()];
        let mut present = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        loop {
            match open_within(self.fd.as_fd(), &present, OFlag::O_PATH, Links::Follow) {
                Ok(dir) => {
                    missing.reverse();
                    return Ok((dir, present, missing));
                }
                Err(Errno::ENOENT) => {
                    missing.push(present.file_name().ok_or(Errno::ENOENT)?.to_owned());
                    present.pop();
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_within(root: BorrowedFd<'_>, path: &Path, flags: OFlag, links: Links) -> nix::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
    }
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        // EAGAIN: a rename somewhere meanwhile, after which the kernel can't vouch for `..`.
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Makes `name` in `dir` and refers to it, never through a link.
fn make_in(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match kind {
        Kind::Directory => {
            mkdirat(dir, name, Mode::from_bits_truncate(0o755))?;
            nix::fcntl::openat(dir, name, flags | OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
        }
        Kind::File => {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
            nix::fcntl::openat(dir, name, flags | create, Mode::from_bits_truncate(0o644))
        }
    }
}

/// `path` as from the root, without `.` and `..`, which a path that doesn't exist can't have.
pub fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// None, and a word, where there is no openat2(2): in an emulator of another processor.
    fn root() -> Option<(tempfile::TempDir, Root)> {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("mkdir");
        let root = Root::open(&dir.path().join("root")).expect("open");
        if root
            .resolve(Path::new("/"), OFlag::O_PATH, Links::Follow)
            .is_err_and(|failed| failed.errno == Errno::ENOSYS)
        {
            eprintln!("skipped: needs openat2(2)");
            return None;
        }
        Some((dir, root))
    }

    #[test]
    fn missing_paths_are_made() {
        let Some((dir, root)) = root() else { return };
        root.ensure(Path::new("/a/b/c"), Kind::Directory).expect("made");
        root.ensure(Path::new("a/b/f"), Kind::File).expect("made");
        assert!(dir.path().join("root/a/b/c").is_dir());
        assert!(dir.path().join("root/a/b/f").is_file());
        root.ensure(Path::new("/a/b/f"), Kind::File).expect("it may be there already");
    }

    #[test]
    fn links_stay_within_the_root() {
        let Some((dir, root)) = root() else { return };
        let inside = |path: &str| dir.path().join("root").join(path);
        fs::create_dir(inside("etc")).expect("mkdir");
        for (link, target) in [
            ("etc/up", "../../../../outside/file"),
            ("etc/absolute", "/outside/file2"),
            ("escape", "../.."),
            ("chain", "etc/up2"),
            ("etc/up2", "../run/chained"),
        ] {
            symlink(target, inside(link)).expect("symlink");
        }
        root.ensure(Path::new("/etc/up"), Kind::File).expect("made");
        root.ensure(Path::new("/etc/absolute"), Kind::File).expect("made");
        root.ensure(Path::new("/escape/new/dir"), Kind::Directory).expect("made");
        root.ensure(Path::new("/chain"), Kind::File).expect("made");
        assert!(inside("outside/file").is_file());
        assert!(inside("outside/file2").is_file());
        assert!(inside("new/dir").is_dir());
        assert!(inside("run/chained").is_file());
        let above: Vec<_> =
            fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(above, ["root"], "nothing outside");
    }

    #[test]
    fn loops_end() {
        let Some((dir, root)) = root() else { return };
        symlink("b", dir.path().join("root/a")).expect("symlink");
        symlink("a", dir.path().join("root/b")).expect("symlink");
        let error = root.ensure(Path::new("/a/c"), Kind::Directory).expect_err("a loop");
        assert_eq!(error.errno, Errno::ELOOP);
    }

    #[test]
    fn links_can_be_refused() {
        let Some((dir, root)) = root() else { return };
        fs::create_dir(dir.path().join("root/real")).expect("mkdir");
        symlink("real", dir.path().join("root/proc")).expect("symlink");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        assert!(root.resolve(Path::new("/real"), flags, Links::Refuse).is_ok());
        let error = root.resolve(Path::new("/proc"), flags, Links::Refuse).expect_err("a link");
        assert_eq!(error.errno, Errno::ELOOP);
    }

    #[test]
    fn what_is_made_next_is_made_beside_it() {
        let Some((dir, root)) = root() else { return };
        for name in ["pts", "shm", "pts"] {
            root.ensure(&Path::new("/dev").join(name), Kind::Directory).expect("made");
        }
        // As if something were mounted on it.
        std::fs::rename(dir.path().join("root/dev"), dir.path().join("root/hidden")).expect("rename");
        root.resolve(Path::new("/hidden"), OFlag::O_PATH, Links::Follow).expect("there");
        root.ensure(Path::new("/dev/mqueue"), Kind::Directory).expect("made");
        assert!(dir.path().join("root/dev/mqueue").is_dir());
        assert!(!dir.path().join("root/hidden/mqueue").exists());
        assert!(root.ensure(Path::new("/dev/mqueue/.."), Kind::Directory).is_ok());
    }

    #[test]
    fn normal_paths() {
        for (path, expected) in [("a//b/./c", "/a/b/c"), ("/../a/../../b", "/b"), ("", "/")] {
            assert_eq!(normal(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
