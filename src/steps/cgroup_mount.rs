//! A mount of type `cgroup`: the container's view of its cgroups.

use super::file_systems::new_file_system;
use super::mount_options::Options;
use super::{Init, Step};
use crate::cgroup::{Place, ROOT};
use crate::config::list;
use crate::error::{Context, Result};
use crate::root::{Kind, normal};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;
use oci_spec::runtime::Mount;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Mounts the container's cgroups where the configuration has a mount of type `cgroup`.
pub struct CgroupMount {
    destination: PathBuf,
    options: Options,
    places: Vec<Place>,
    unified: bool,
    /// Whether the container has a cgroup namespace of its own: then what is mounted begins at its
    /// cgroup by itself.
    own_namespace: bool,
    /// Whether it is read-only whatever the configuration says.
    read_only: bool,
}

/// What every mount of cgroups is.
const ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

impl CgroupMount {
    /// For the entry `mount` of `/mounts`.
    pub fn plan(
        mount: &Mount,
        places: &[Place],
        unified: bool,
        own_namespace: bool,
        user_namespace: bool,
    ) -> Self {
        CgroupMount {
            destination: normal(mount.destination()),
            options: Options::parse(list(mount.options())),
            places: places.to_vec(),
            unified,
            own_namespace,
            // It would be the host's, with nothing but file permissions before it (CVE-2023-25809).
            read_only: user_namespace && !own_namespace,
        }
    }

    fn attributes(&self) -> MountAttr {
        let mut attr = self.options.named_attributes();
        attr.attr_set |= ATTRIBUTES & !attr.attr_clr;
        if self.read_only {
            attr.attr_set |= libc::MOUNT_ATTR_RDONLY;
            attr.attr_clr &= !libc::MOUNT_ATTR_RDONLY;
        }
        attr
    }
}

impl fmt::Display for CgroupMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.unified { "cgroup2" } else { "cgroup hierarchies" };
        let from = if self.own_namespace { "from the container's namespace" } else { "of the container" };
        write!(f, "mount {version} {from} on {}: nosuid,nodev,noexec", self.destination.display())?;
        let read_only = self.attributes().attr_set & libc::MOUNT_ATTR_RDONLY != 0;
        f.write_str(if read_only { ",ro" } else { "" })
    }
}

impl Step for CgroupMount {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let target = init.root()?.ensure(&self.destination, Kind::Directory)?;
        if self.unified { self.mount_v2(target) } else { self.mount_v1(target) }
            .doing(|| format!("error mounting \"cgroup\" to rootfs at {:?}", self.destination))
    }
}

impl CgroupMount {
    fn mount_v2(&self, target: OwnedFd) -> Result<()> {
        if self.own_namespace {
            match new_file_system(c"cgroup2", c"cgroup2", c"", 0, self.attributes().attr_set) {
                Ok(tree) => {
                    mount::attach(tree.as_fd(), target.as_fd(), c"")?;
                    return Ok(self.options.propagate(tree.as_fd())?);
                }
                // Not in a user namespace on every kernel: the container's part of the host's does.
                Err(failed) if matches!(failed.errno, Errno::EPERM | Errno::EBUSY) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        let own = self.places.first().filter(|_| self.own_namespace).map(Place::directory);
        // A copy of the host's mount. A new one of the same file system would wait 12 ms for the
        // kernel, and show the same.
        let source = own.unwrap_or_else(|| ROOT.into());
        let tree = nearest(&source, |source| mount::clone_tree(nix::fcntl::AT_FDCWD, source, Depth::Tree))?;
        mount::set_attributes(tree.as_fd(), Depth::Tree, &self.attributes())?;
        mount::attach(tree.as_fd(), target.as_fd(), c"")?;
        Ok(self.options.propagate(tree.as_fd())?)
    }

    /// A tmpfs with a directory for each hierarchy.
    fn mount_v1(&self, target: OwnedFd) -> Result<()> {
        let tmpfs = new_file_system(c"tmpfs", c"tmpfs", c"mode=755", 0, ATTRIBUTES)?;
        mount::attach(tmpfs.as_fd(), target.as_fd(), c"")?;
        // The v2 hierarchy of a hybrid host has no controllers that a container would look for.
        for hierarchy in self.places.iter().filter(|place| !place.controllers.is_empty()) {
            self.mount_hierarchy(tmpfs.as_fd(), hierarchy)?;
        }
        mount::set_attributes(tmpfs.as_fd(), Depth::Tree, &self.attributes())?;
        self.options.propagate(tmpfs.as_fd())?;
        file::leave(target);
        file::leave(tmpfs);
        Ok(())
    }

    fn mount_hierarchy(&self, tmpfs: BorrowedFd<'_>, hierarchy: &Place) -> Result<()> {
        let name = hierarchy.mount_point.file_name().unwrap_or_default();
        mkdirat(tmpfs, name, Mode::from_bits_truncate(0o755)).call(|| format!("mkdirat({name:?})"))?;
        // In a tmpfs that nobody else has a way to: the name means what was just made.
        let place = file::through_proc(tmpfs).join(name);
        if self.own_namespace {
            let data = CString::new(hierarchy.controllers.as_str()).unwrap_or_default();
            mount::mount(Some(c"cgroup"), &place, Some(c"cgroup"), 0, Some(&data))?;
        } else {
            let bind = |source: &Path| {
                let source = CString::new(source.as_os_str().as_encoded_bytes()).unwrap_or_default();
                mount::mount(Some(&source), &place, None, libc::MS_BIND, None)
            };
            nearest(&hierarchy.directory(), bind)?;
        }
        // Programs look for each controller by its own name.
        for controller in hierarchy.controllers.split(',').filter(|controller| OsStr::new(controller) != name)
        {
            if !controller.contains('=') {
                symlinkat(name, tmpfs, controller).call(|| format!("symlinkat({name:?}, {controller:?})"))?;
            }
        }
        Ok(())
    }
}

/// Does something with a cgroup's directory, or with the nearest one above it that exists: an ordinary
/// user's container may have had to stay in the cgroup that the runtime is in.
fn nearest<T>(
    directory: &Path,
    mut with: impl FnMut(&Path) -> crate::sys::Result<T>,
) -> crate::sys::Result<T> {
    let mut result = with(directory);
    for above in directory.ancestors().skip(1).take_while(|above| above.starts_with(ROOT)) {
        match &result {
            Err(failed) if failed.errno == Errno::ENOENT => result = with(above),
            _ => break,
        }
    }
    result
}

/// Whether an entry of `/mounts` is one of cgroups, and not a bind mount that says so.
pub fn is_one(mount: &Mount) -> bool {
    let kind = matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"));
    kind && Options::parse(list(mount.options())).bind.is_none() && mount.destination() != Path::new("/")
}
