//! Where something is made before it has its name: a directory beside it, locked as long as somebody
//! works on it, and renamed in one step. What a killed process left is known by its lock being free.

use crate::error::{Context, Error, Result};
use crate::signals;
use crate::tree;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that is being filled.
#[derive(Debug)]
pub struct Staging {
    pub path: PathBuf,
    /// None once it has its name.
    lock: Option<Flock<OwnedFd>>,
}

fn prefix(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(".damda-")].into_iter().collect()
}

fn open(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(
        path,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

impl Staging {
    /// Makes a directory for what will be `name` in `parent`, and removes what was left of earlier ones for
    /// the same name. It is for its owner alone: other users of this host must not reach an image's setuid
    /// programs (as in CVE-2024-25621).
    pub fn make(parent: &Path, name: &OsStr) -> Result<Self> {
        remove_left(parent, &prefix(name))?;
        loop {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let mut own = prefix(name).into_vec();
            own.extend(format!("{:016x}", u64::from_ne_bytes(random)).into_bytes());
            let path = parent.join(OsString::from_vec(own));
            fs::DirBuilder::new().mode(0o700).create(&path).doing(|| format!("mkdir({path:?})"))?;
            let lock = Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock);
            // Between the two calls somebody may have taken it for left behind.
            if let Ok(lock) = lock
                && path.exists()
            {
                signals::begin(&path);
                return Ok(Staging { path, lock: Some(lock) });
            }
        }
    }

    /// Writes everything to the disk, and gives it its name. An empty directory may have it already.
    pub fn finish(mut self, to: &Path) -> Result<()> {
        let directory = open(&self.path)?;
        nix::unistd::syncfs(&directory).doing(|| "syncfs".into())?;
        signals::complete(&self.path, || fs::rename(&self.path, to))
            .doing(|| format!("rename({:?}, {to:?})", self.path))?;
        self.lock = None;
        if let Some(parent) = to.parent() {
            File::open(parent)?.sync_all().doing(|| format!("fsync({parent:?})"))?;
        }
        Ok(())
    }
}

impl Staging {
    /// It has been renamed by somebody else.
    pub fn moved(mut self) {
        self.lock = None;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        signals::end(&self.path);
        if self.lock.is_some() {
            // The next one for the same name removes what can't be removed now.
            let _ = remove(&self.path);
        }
    }
}

/// Removes a directory and all that is in it.
pub fn remove(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(format!("{path:?} can't be removed")));
    };
    tree::remove(open(parent)?.as_fd(), name)
}

/// Removes directories of this prefix that nobody works on any more.
pub fn remove_left(parent: &Path, prefix: &OsStr) -> Result<()> {
    for entry in fs::read_dir(parent).doing(|| format!("{parent:?}"))? {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        match open(&entry.path()) {
            Ok(directory) => {
                if let Ok(_free) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                    remove(&entry.path()).doing(|| format!("remove {:?}", entry.path()))?;
                }
            }
            // Something else of that name, or gone already.
            Err(Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) => {}
            Err(errno) => return Err(errno).doing(|| format!("open {:?}", entry.path())),
        }
    }
    Ok(())
}
