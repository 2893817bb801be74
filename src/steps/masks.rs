//! `linux.maskedPaths` and `linux.readonlyPaths`.
//!
//! Both are done on descriptors before the root is changed, while the host's /proc and /dev are at
//! hand: nothing of the container's is used to hide something from it (CVE-2025-31133).

use super::devices::{cover_with_null, hosts_null};
use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Pointer, Result};
use crate::root::Links;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use oci_spec::runtime::Linux;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Hides files behind the null device, and directories behind an empty one.
pub struct MaskedPaths {
    /// Each once, with its index in the configuration.
    paths: Vec<(usize, PathBuf)>,
    label: Option<String>,
}

impl MaskedPaths {
    /// None where there is nothing to hide.
    pub fn plan(linux: &Linux) -> Option<Self> {
        let mut paths: Vec<(usize, PathBuf)> = Vec::new();
        for (index, path) in list(linux.masked_paths()).iter().enumerate() {
            if paths.iter().all(|(_, other)| other != Path::new(path)) {
                paths.push((index, path.into()));
            }
        }
        let label = linux.mount_label().clone().filter(|label| !label.is_empty());
        (!paths.is_empty()).then_some(MaskedPaths { paths, label })
    }
}

impl fmt::Display for MaskedPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mask")?;
        self.paths.iter().try_for_each(|(_, path)| write!(f, " {}", path.display()))
    }
}

impl Step for MaskedPaths {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let null = hosts_null()?;
        let mut empty = Empty::default();
        for (index, path) in &self.paths {
            let target = match init.root()?.resolve(path, OFlag::O_PATH, Links::Follow) {
                Err(failed) if matches!(failed.errno, Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other.doing(|| format!("can't mask path {path:?}"))?,
            };
            match cover_with_null(&null, target.as_fd()) {
                Err(failed) if failed.errno == Errno::ENOTDIR => {
                    self.cover_directory(init, target.as_fd(), path, &mut empty)
                }
                other => Ok(other?),
            }
            .doing(|| format!("can't mask path {path:?}"))
            .at(&Pointer::to("/linux/maskedPaths").index(*index))?;
            file::leave(target);
        }
        Ok(())
    }
}

impl MaskedPaths {
    fn cover_directory(
        &self,
        init: &Init,
        target: BorrowedFd<'_>,
        path: &Path,
        empty: &mut Empty,
    ) -> Result<()> {
        let place = file::through_proc(target);
        if let Some(shared) = empty.shared(init)? {
            let source =
                CString::new(file::through_proc(shared).as_os_str().as_encoded_bytes()).unwrap_or_default();
            return Ok(mount::mount(Some(&source), &place, None, libc::MS_BIND, None)?);
        }
        let label = self.label.as_ref().map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
        let data = CString::new(format!("nr_blocks=1,nr_inodes=1{label}")).unwrap_or_default();
        mount::mount(Some(c"tmpfs"), &place, Some(c"tmpfs"), libc::MS_RDONLY, Some(&data))?;
        empty.covered.push(path.into());
        Ok(())
    }
}

/// The empty directories that cover others: the first few are file systems of their own, which is one
/// call each; from then on one serves for all, since a host has hundreds to mask (runc#5275).
#[derive(Default)]
struct Empty {
    covered: Vec<PathBuf>,
    shared: Option<OwnedFd>,
}

impl Empty {
    /// How many there are before one is shared.
    const OWN: usize = 3;

    fn shared(&mut self, init: &Init) -> Result<Option<BorrowedFd<'_>>> {
        if let (None, Some(last)) = (&self.shared, self.covered.get(Self::OWN - 1)) {
            // Looked up by its path it could be another directory by now, on a shared volume; but
            // nothing can be in a tmpfs with a single inode.
            let covering = init.root()?.resolve(last, OFlag::O_PATH, Links::Follow)?;
            let stat = fstatfs(&covering).call(|| format!("fstatfs({last:?})"))?;
            if stat.filesystem_type() == TMPFS_MAGIC && stat.files() == 1 {
                self.shared = Some(covering);
            }
        }
        Ok(self.shared.as_ref().map(AsFd::as_fd))
    }
}

/// Makes files and directories read-only.
pub struct ReadOnlyPaths {
    paths: Vec<PathBuf>,
}

impl ReadOnlyPaths {
    /// None where there is nothing to protect.
    pub fn plan(linux: &Linux) -> Option<Self> {
        let paths: Vec<_> = list(linux.readonly_paths()).iter().map(PathBuf::from).collect();
        (!paths.is_empty()).then_some(ReadOnlyPaths { paths })
    }
}

impl fmt::Display for ReadOnlyPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("make read-only")?;
        self.paths.iter().try_for_each(|path| write!(f, " {}", path.display()))
    }
}

impl Step for ReadOnlyPaths {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        for (index, path) in self.paths.iter().enumerate() {
            let target = match init.root()?.resolve(path, OFlag::O_PATH, Links::Follow) {
                Err(failed) if matches!(failed.errno, Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other?,
            };
            // A copy that is read-only before it is attached: there is no moment in between.
            let cover = || -> crate::sys::Result<()> {
                let copy = mount::clone_tree(target.as_fd(), Path::new(""), Depth::Tree)?;
                mount::set_attributes(copy.as_fd(), Depth::Tree, &attr)?;
                mount::attach(copy.as_fd(), target.as_fd(), c"")?;
                file::leave(copy);
                Ok(())
            };
            cover()
                .doing(|| format!("can't make {path:?} read-only"))
                .at(&Pointer::to("/linux/readonlyPaths").index(index))?;
            file::leave(target);
        }
        Ok(())
    }
}
