//! Mounts that the runtime opens for a container, with rights that the container doesn't have.

use super::idmap;
use crate::error::{Context, Error, Pointer, Result};
use crate::plan::IdMaps;
use crate::steps::namespaces;
use crate::steps::trees::{Mapping, Tree};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::process::{Fork, clone3, exit};
use crate::sys::{file, socket};
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Opens each as a detached mount: (index in `/mounts`, mount).
pub fn open(trees: &[Tree]) -> Result<Vec<(usize, OwnedFd)>> {
    let mut opened = Vec::with_capacity(trees.len());
    for tree in trees.iter().filter(|tree| !tree.late) {
        let at = Pointer::to("/mounts").index(tree.index);
        let mount = open_one(tree).doing(|| format!("error mounting {:?}", tree.path)).at(&at)?;
        opened.push((tree.index, mount));
    }
    Ok(opened)
}

fn open_one(tree: &Tree) -> Result<OwnedFd> {
    let mount = mount::clone_tree(AT_FDCWD, &tree.path, tree.depth)?;
    // It is a copy of one of the host's own, and what is mounted in it would appear there.
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    mount::set_attributes(mount.as_fd(), Depth::Tree, &slave)?;
    map(tree, mount.as_fd())?;
    Ok(mount)
}

/// Gives a mount its id mapping, if it is to have one.
pub fn map(tree: &Tree, mount: BorrowedFd<'_>) -> Result<()> {
    if let Some(idmap) = &tree.idmap {
        let namespace = match &idmap.mapping {
            Mapping::Ids { uids, gids } => {
                namespace_with(&IdMaps { uids: uids.clone(), gids: gids.clone() })?
            }
            Mapping::Of(path) => file::open(AT_FDCWD, path, OFlag::O_RDONLY)?,
        };
        let attr = MountAttr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            userns_fd: std::os::fd::AsRawFd::as_raw_fd(&namespace) as u64,
            ..MountAttr::default()
        };
        mount::set_attributes(mount, idmap.depth, &attr)
            .map_err(|failed| Error::from(failed).hint("the file system may not support id-mapped mounts"))?;
    }
    Ok(())
}

/// A user namespace with these maps, which lives in its descriptor: a process makes it and goes.
fn namespace_with(maps: &IdMaps) -> Result<OwnedFd> {
    use crate::sys::Call;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .call(|| "socketpair(AF_UNIX)".into())?;
    let pid = match clone3(CloneFlags::CLONE_NEWUSER, None)? {
        Fork::Parent(pid, _) => pid,
        Fork::Child => {
            // Waits until the other side is closed, also by the runtime's death.
            drop(ours);
            let _ = socket::receive(theirs.as_fd(), &mut [0; 1]);
            exit(0)
        }
    };
    drop(theirs);
    let namespace =
        idmap::write(pid, maps).and_then(|()| Ok(namespaces::open(pid, CloneFlags::CLONE_NEWUSER)?));
    drop(ours);
    let _ = waitpid(pid, None);
    namespace
}
