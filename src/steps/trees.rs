//! Mounts that are opened before there is a container, and the id mappings on them (config.md,
//! "Mounts": `uidMappings`, `gidMappings`, `idmap`).

use super::mount_options::Options;
use super::mounts::bind_depth;
use crate::config::list;
use crate::root::normal;
use crate::sys::mount::Depth;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount as Configured, Spec};
use std::path::{Path, PathBuf};

/// A mount that the runtime opens before it makes the container, with rights that the container's
/// processes don't have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The index in `/mounts`.
    pub index: usize,
    /// What is bound.
    pub path: PathBuf,
    /// How much of it.
    pub depth: Depth,
    /// The id mapping to put on it.
    pub idmap: Option<IdMap>,
    /// Whether the container's process opens it, because what is bound is in the container itself: then
    /// only the mapping is the runtime's part.
    pub late: bool,
}

/// A mapping of ids on a mount (mount_setattr(2), "ID-mapped mounts").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// The mapping.
    pub mapping: Mapping,
    /// Whether mounts below are mapped as well.
    pub depth: Depth,
}

/// Where a mapping comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// uid_map and gid_map as they are written.
    Ids {
        /// Of users.
        uids: String,
        /// Of groups.
        gids: String,
    },
    /// That of a user namespace.
    Of(PathBuf),
}

/// The mounts that the runtime has to open: those with an id mapping and, if `all`, all bind mounts:
/// the root of a container's user namespace may not be able to reach the source.
pub fn plan(spec: &Spec, bundle: &Path, all: bool) -> Vec<Tree> {
    let mut trees = Vec::new();
    for (index, configured) in list(spec.mounts()).iter().enumerate() {
        let options = Options::parse(list(configured.options()));
        let Some(depth) = bind_depth(configured, &options).filter(|_| !options.remount) else { continue };
        let idmap = idmap(spec, configured, &options);
        let path = bundle.join(configured.source().as_deref().unwrap_or(Path::new("")));
        let late = within_rootfs(spec, bundle, &path).is_some();
        if idmap.is_some() || (all && !late) {
            trees.push(Tree { index, path, depth, idmap, late });
        }
    }
    trees
}

/// The first mount whose source or destination is such a path, if there is any.
pub fn from_within(spec: &Spec, bundle: &Path) -> Option<usize> {
    list(spec.mounts()).iter().position(|mount| {
        let bound = bind_depth(mount, &Options::parse(list(mount.options()))).is_some();
        let source = mount.source().as_ref().filter(|_| bound).map(|source| bundle.join(source));
        let leads_in = |path: &Path| within_rootfs(spec, bundle, path).is_some();
        leads_in(mount.destination()) || source.is_some_and(|source| leads_in(&source))
    })
}

/// A path of the host that leads into the container's root file system, from there: what is mounted in it
/// is seen only from within, and its links are the container's.
pub(super) fn within_rootfs(spec: &Spec, bundle: &Path, path: &Path) -> Option<PathBuf> {
    let rootfs = normal(&bundle.join(spec.root().as_ref()?.path()));
    let within = normal(path).strip_prefix(&rootfs).ok().map(Path::to_path_buf)?;
    (rootfs != Path::new("/")).then(|| Path::new("/").join(within))
}

/// The mount's own mapping, or the container's where it asks for one and has none.
pub(super) fn idmap(spec: &Spec, configured: &Configured, options: &Options) -> Option<IdMap> {
    let depth = options.idmap.unwrap_or(Depth::Mount);
    let ids = |uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]| Mapping::Ids {
        uids: map_text(uids),
        gids: map_text(gids),
    };
    let own = list(configured.uid_mappings());
    if !own.is_empty() {
        return Some(IdMap { mapping: ids(own, list(configured.gid_mappings())), depth });
    }
    options.idmap?;
    let linux = spec.linux().as_ref()?;
    let user =
        list(linux.namespaces()).iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User)?;
    let mapping = match user.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Mapping::Of(path.clone()),
        None => ids(list(linux.uid_mappings()), list(linux.gid_mappings())),
    };
    Some(IdMap { mapping, depth })
}

/// Id mappings in the form of /proc/PID/uid_map (user_namespaces(7)).
pub fn map_text(map: &[LinuxIdMapping]) -> String {
    map.iter()
        .map(|entry| format!("{} {} {}\n", entry.container_id(), entry.host_id(), entry.size()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn id_mappings_come_from_the_mount_or_the_container() {
        let spec: Spec = parse(
            br#"{"ociVersion":"1.0.0","mounts":[
                {"destination":"/a","source":"a","options":["bind"]},
                {"destination":"/b","source":"b","options":["rbind","ridmap"]},
                {"destination":"/c","source":"c","options":["bind","idmap"],
                 "uidMappings":[{"containerID":1,"hostID":2,"size":3}],"gidMappings":[{"containerID":4,"hostID":5,"size":6}]}],
                "linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":7,"size":8}],"gidMappings":[{"containerID":0,"hostID":9,"size":8}]}}"#,
        )
        .expect("it parses");
        let trees = plan(&spec, Path::new("/bundle"), false);
        let seen: Vec<_> =
            trees.iter().map(|tree| (tree.index, tree.idmap.clone().expect("a map"))).collect();
        let map = |uids: &str, gids: &str, depth| IdMap {
            mapping: Mapping::Ids { uids: uids.into(), gids: gids.into() },
            depth,
        };
        assert_eq!(
            seen,
            [(1, map("0 7 8\n", "0 9 8\n", Depth::Tree)), (2, map("1 2 3\n", "4 5 6\n", Depth::Mount))]
        );
    }
}
