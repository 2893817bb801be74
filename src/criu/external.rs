//! Mounts that come from outside of the container: CRIU leaves them out of the image, and binds them
//! anew.

use super::message::Pair;
use crate::cgroup::{Cgroup, ROOT};
use crate::config::{Config, list};
use crate::error::{Context, Result};
use crate::plan::Namespaces;
use crate::root::{Links, Root, normal};
use crate::steps::mount_options::Options;
use crate::steps::mounts::{bind_depth, kind_of};
use crate::steps::{cgroup_mount, devices};
use crate::sys::mount::{self, Depth};
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, readlink};
use nix::sched::CloneFlags;
use oci_spec::runtime::Mount;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A mount from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Where it is in the container, as config.json has it: its name in the image.
    pub destination: PathBuf,
    /// What it is of, on the host.
    pub source: PathBuf,
}

/// The name in the image for everything that hides a file.
const NULL: &str = "/dev/null";

/// All that a configuration mounts from outside, but for what hides files.
pub fn mounts(config: &Config, cgroup: &Cgroup) -> Vec<External> {
    let mut external = Vec::new();
    for mount in list(config.spec.mounts()) {
        let destination = normal(mount.destination());
        if bound(mount).is_some() {
            external.push(External { destination, source: source(config, mount) });
        } else if cgroup_mount::is_one(mount) {
            external.extend(cgroups(config, cgroup, &destination));
        }
    }
    // In a user namespace they are bound from the host; otherwise nothing is mounted there.
    let devices = devices::paths(config.spec.linux().as_ref());
    external.extend(devices.into_iter().map(|path| External { destination: path.clone(), source: path }));
    external
}

/// How much of the host's is bound, if it is a bind mount.
fn bound(mount: &Mount) -> Option<Depth> {
    let options = Options::parse(list(mount.options()));
    bind_depth(mount, &options).filter(|_| !options.remount)
}

fn source(config: &Config, mount: &Mount) -> PathBuf {
    config.bundle.join(mount.source().clone().unwrap_or_default())
}

/// The container's view of its cgroups, where it isn't a mount of a cgroup namespace of its own.
fn cgroups(config: &Config, cgroup: &Cgroup, destination: &Path) -> Vec<External> {
    if Namespaces::plan(&config.spec).has(CloneFlags::CLONE_NEWCGROUP) {
        return Vec::new();
    }
    if cgroup.is_unified() {
        return vec![External { destination: destination.into(), source: ROOT.into() }];
    }
    let hierarchies = cgroup.directories().filter_map(|(_, path)| {
        let name = path.strip_prefix(ROOT).ok()?.components().next()?;
        Some(External { destination: destination.join(name), source: path.into() })
    });
    hierarchies.collect()
}

/// For a checkpoint: from the mount points, as the container with the root `root` has them, to names.
pub fn at_checkpoint(config: &Config, cgroup: &Cgroup, root: &Root) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for External { destination, .. } in mounts(config, cgroup) {
        let place = place(root, &destination)?.unwrap_or_else(|| destination.clone());
        pairs.push(Pair { key: text(&place), value: text(&destination) });
    }
    let linux = config.spec.linux().as_ref();
    for path in linux.map_or(&[][..], |linux| list(linux.masked_paths())) {
        // Directories are hidden by file systems of the container's own.
        let Some(place) = place(root, Path::new(path))?.filter(|place| !is_directory(root, place)) else {
            continue;
        };
        pairs.push(Pair { key: text(&place), value: NULL.into() });
    }
    Ok(pairs)
}

/// For a restore: from the names to paths on the host.
pub fn at_restore(config: &Config, cgroup: &Cgroup) -> Vec<Pair> {
    let pair = |External { destination, source }| Pair { key: text(&destination), value: text(&source) };
    let mut pairs: Vec<_> = mounts(config, cgroup).into_iter().map(pair).collect();
    if !pairs.iter().any(|pair| pair.key == NULL) {
        pairs.push(Pair { key: NULL.into(), value: NULL.into() });
    }
    pairs
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Where a path of the configuration's leads to in the container; None where nothing is there.
fn place(root: &Root, path: &Path) -> Result<Option<PathBuf>> {
    let file = match root.resolve(path, OFlag::O_PATH, Links::Follow) {
        Err(failed) if matches!(failed.errno, Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        other => other?,
    };
    // Of another mount namespace: the kernel knows no path to it but the one from its root.
    let link = file::through_proc(file.as_fd());
    let place = readlink(&link).call(|| format!("readlink({link:?})"))?;
    Ok(Some(place.into()))
}

fn is_directory(root: &Root, path: &Path) -> bool {
    root.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Links::Follow).is_ok()
}

/// Makes the mount points that are missing in the root file system, as `create` does, and makes it a
/// mount, as CRIU needs it. It is done in a mount namespace that goes away with CRIU, so nothing is to
/// be taken back but the mount points, which stay.
pub fn prepare_root(config: &Config) -> Result<()> {
    mount::mount(None, Path::new("/"), None, libc::MS_SLAVE | libc::MS_REC, None)?;
    let path = config.rootfs();
    // A copy without what is mounted below, which is there for the mount points in it.
    let copy = mount::clone_tree(AT_FDCWD, &path, Depth::Tree)?;
    let root = Root::open(&path)?;
    let mounts = list(config.spec.mounts());
    for (index, mount) in mounts.iter().enumerate() {
        let destination = normal(mount.destination());
        // What is within a file system of the container's own comes with that.
        if is_within_another(&destination, mounts) {
            continue;
        }
        make_mount_point(config, mount, &destination, &root)
            .doing(|| format!("cannot make the mount point {destination:?}"))
            .map_err(|error| error.at(crate::error::Pointer::to("/mounts").index(index)))?;
    }
    let place = file::open(AT_FDCWD, &path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    Ok(mount::attach(copy.as_fd(), place.as_fd(), c"")?)
}

fn make_mount_point(config: &Config, mount: &Mount, destination: &Path, root: &Root) -> Result<()> {
    let Some(depth) = bound(mount) else {
        return Ok(root.ensure(destination, crate::root::Kind::Directory).map(drop)?);
    };
    let tree = mount::clone_tree(AT_FDCWD, &source(config, mount), depth)?;
    let (target, _) = root.ensure_as(destination, || kind_of(tree.as_fd()))?;
    // The mount points of those that come after it can be in it.
    Ok(mount::attach(tree.as_fd(), target.as_fd(), c"")?)
}

/// Whether a mount point is in a file system that the configuration mounts, other than by a bind mount.
fn is_within_another(destination: &Path, mounts: &[Mount]) -> bool {
    mounts.iter().filter(|mount| bound(mount).is_none()).any(|mount| {
        let place = normal(mount.destination());
        destination != place && place != Path::new("/") && destination.starts_with(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(mounts: serde_json::Value) -> Config {
        let text = json!({
            "ociVersion": "1.0.2", "mounts": mounts, "root": {"path": "rootfs"},
            "linux": {"devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]},
        })
        .to_string();
        let spec = crate::config::parse(text.as_bytes()).expect("it parses");
        Config { spec, bundle: "/b".into(), text: text.into() }
    }

    fn pairs(mounts: serde_json::Value, cgroup: &Cgroup) -> Vec<(String, String)> {
        let pairs = at_restore(&config(mounts), cgroup).into_iter().map(|pair| (pair.key, pair.value));
        pairs.filter(|(key, _)| !key.starts_with("/dev/")).collect()
    }

    #[test]
    fn bind_mounts_are_external() {
        let mounts = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a/../b", "source": "/host", "options": ["rbind"]},
            {"destination": "/c", "type": "bind", "source": "relative"},
            {"destination": "/b", "type": "bind", "source": "/host", "options": ["remount", "ro"]},
        ]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs(mounts, &Cgroup::default()), [pair("/b", "/host"), pair("/c", "/b/relative")]);
    }

    #[test]
    fn devices_and_what_masks_are_external() {
        let all = at_restore(&config(json!([])), &Cgroup::default());
        let has = |path: &str| all.iter().filter(|pair| pair.key == path && pair.value == path).count();
        for path in ["/dev/null", "/dev/tty", "/dev/fuse"] {
            assert_eq!(has(path), 1, "{path}");
        }
    }

    #[test]
    fn what_is_within_a_file_system_comes_with_it() {
        let config = config(json!([
            {"destination": "/dev", "type": "tmpfs"}, {"destination": "/dev/shm", "type": "tmpfs"},
            {"destination": "/device", "source": "/x", "options": ["bind"]},
        ]));
        let mounts = list(config.spec.mounts());
        let places = [("/dev", false), ("/dev/shm", true), ("/dev/shm/x", true), ("/device/x", false)];
        for (path, is) in places {
            assert_eq!(is_within_another(Path::new(path), mounts), is, "{path}");
        }
    }
}
