//! The state root and a container's directory in it.

use crate::error::{Context, Error, Result};
use crate::sys::file::{Lock, lock};
use crate::sys::{self, Call};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// All containers under one state root (`--root`).
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Store { root }
    }

    /// Takes `id`: from here on no other container can have it. The making of the directory is
    /// what decides between two that try.
    pub fn claim(&self, id: &str) -> Result<Directory> {
        super::check_id(id)?;
        let path = self.root.join(id);
        let mkdir = || nix::unistd::mkdir(&path, Mode::S_IRWXU);
        let made = match mkdir() {
            Err(Errno::ENOENT) => {
                make_private(&self.root)?;
                mkdir()
            }
            other => other,
        };
        match made {
            Err(Errno::EEXIST) => Err(Error::new("container with given ID already exists")),
            other => {
                other
                    .call(|| format!("mkdir({path:?})"))
                    .doing(|| "cannot make the state directory".into())?;
                self.open(id)?.ok_or_else(|| Error::new("the state directory went away"))
            }
        }
    }

    /// The directory of container `id`, if there is one.
    pub fn open(&self, id: &str) -> Result<Option<Directory>> {
        super::check_id(id)?;
        let path = self.root.join(id);
        // O_NOFOLLOW: a link in the state root could lead `delete` to any directory.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        match sys::file::open(AT_FDCWD, &path, flags) {
            Ok(fd) => Ok(Some(Directory { fd, path })),
            Err(failed) if failed.errno == Errno::ENOENT => Ok(None),
            Err(failed) => Err(Error::from(failed).prefix("cannot open the state directory")),
        }
    }

    /// An error where the directory doesn't exist: of a list that is empty for that reason nobody would
    /// learn of a wrong --root.
    pub fn check_exists(&self) -> Result<()> {
        let exists = nix::sys::stat::stat(&self.root).call(|| format!("stat({:?})", self.root));
        exists.map(drop).map_err(|failed| Error::from(failed).hint("see --root"))
    }

    /// Where container `id`'s directory is, absolute.
    pub fn place_of(&self, id: &str) -> PathBuf {
        let path = self.root.join(id);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// The ids of all containers, sorted.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.call(|| format!("open({:?})", self.root))?,
        };
        let mut ids: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|id| super::check_id(id).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// Makes a directory that only its owner can enter (containerd's CVE-2024-25621).
fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .call(|| format!("mkdir({path:?})"))
        .doing(|| "cannot make the state root".into())
}

/// A container's directory, held open: what is done in it can't be led elsewhere.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// The path of a file in it, for messages and for `Config::stored`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .call(|| format!("open({:?}, O_WRONLY|O_CREAT)", self.file(name)))?;
        let mut file = std::fs::File::from(file);
        file.write_all(content).call(|| format!("write({:?})", self.file(name)))?;
        sys::file::leave(file.into());
        Ok(())
    }

    /// What a file holds; None where there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            other => {
                let file = other.call(|| format!("open({:?})", self.file(name)))?;
                let mut content = Vec::with_capacity(4096);
                std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut content)
                    .call(|| format!("read({:?})", self.file(name)))?;
                Ok(Some(content))
            }
        }
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        nix::unistd::faccessat(&self.fd, name, nix::unistd::AccessFlags::F_OK, nix::fcntl::AtFlags::empty())
            .is_ok()
    }

    /// Removes a file, which may be gone already.
    pub fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Ok(Err(errno).call(|| format!("unlink({:?})", self.file(name)))?),
        }
    }

    /// Marks the container as being created, for as long as this process lives.
    pub fn lock(&self) -> Result<()> {
        lock(self.fd.as_fd(), Lock::Exclusive).call(|| format!("flock({:?}, LOCK_EX)", self.path))?;
        Ok(())
    }

    /// The container has been created.
    pub fn unlock(&self) -> Result<()> {
        lock(self.fd.as_fd(), Lock::Release).call(|| format!("flock({:?}, LOCK_UN)", self.path))?;
        Ok(())
    }

    /// Whether a process is creating the container right now.
    pub fn is_locked(&self) -> Result<bool> {
        // Through a descriptor of its own, so that the probe's lock ends with it.
        let probe =
            openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .call(|| format!("open({:?})", self.path))?;
        Ok(lock(probe.as_fd(), Lock::Probe) == Err(Errno::EWOULDBLOCK))
    }

    /// Removes the directory with all that is in it: first the files of these names, which are
    /// mostly all. Links are removed themselves, not what they lead to.
    pub fn remove(&self, names: &[&str]) -> Result<()> {
        for name in names {
            // What is still there then is found below.
            let _ = unlinkat(&self.fd, *name, UnlinkatFlags::NoRemoveDir);
        }
        match sys::file::rmdir(&self.path) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(_) => remove_entries(self.fd.as_fd(), &self.path)?,
        }
        match sys::file::rmdir(&self.path) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Ok(Err(errno).call(|| format!("rmdir({:?})", self.path))?),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn remove_entries(dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut list = Dir::openat(dir, ".", flags, Mode::empty()).call(|| format!("open({path:?})"))?;
    for entry in list.iter() {
        let entry = entry.call(|| format!("getdents({path:?})"))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR) => {
                let below =
                    openat(dir, name, flags, Mode::empty()).call(|| format!("open({path:?}/{name:?})"))?;
                remove_entries(below.as_fd(), path)?;
                unlinkat(dir, name, UnlinkatFlags::RemoveDir).call(|| format!("rmdir({path:?}/{name:?})"))?;
            }
            Err(errno) => Err(errno).call(|| format!("unlink({path:?}/{name:?})"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_can_be_taken_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("state/root"));
        assert_eq!(store.ids(), Ok(vec![]), "no root yet");
        store.claim("a").expect("free");
        assert_eq!(
            store.claim("a").expect_err("taken").to_string(),
            "container with given ID already exists"
        );
        assert_eq!(store.ids(), Ok(vec!["a".to_owned()]));
        assert!(store.claim("../b").is_err());
    }

    #[test]
    fn a_linked_directory_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).expect("mkdir");
        let store = Store::new(dir.path().join("root"));
        std::fs::create_dir(dir.path().join("root")).expect("mkdir");
        std::os::unix::fs::symlink(&outside, dir.path().join("root/a")).expect("symlink");
        assert!(store.open("a").is_err());
        let b = store.claim("b").expect("free");
        std::os::unix::fs::symlink(&outside, dir.path().join("root/b/link")).expect("symlink");
        std::fs::create_dir_all(dir.path().join("root/b/d/e")).expect("mkdir");
        b.remove(&["link"]).expect("removed");
        assert!(outside.join("kept").is_dir());
        assert!(!dir.path().join("root/b").exists());
    }

    #[test]
    fn files_are_written_and_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let a = Store::new(dir.path().into()).claim("a").expect("free");
        assert_eq!(a.read("f"), Ok(None));
        a.write("f", b"one, longer").expect("written");
        a.write("f", b"two").expect("written");
        assert_eq!(a.read("f"), Ok(Some(b"two".to_vec())));
        assert!(a.has("f") && !a.has("g"));
    }
}
