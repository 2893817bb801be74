//! `linux.namespaces`, `linux.uidMappings`, `linux.gidMappings`.

use crate::config::list;
use crate::error::Pointer;
use crate::steps::namespaces::{CLONE_NEWTIME, TYPES};
use crate::steps::trees::map_text;
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType as Type, Spec};
use std::fmt;
use std::path::PathBuf;

/// The namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// Made for it.
    pub new: CloneFlags,
    /// Joined.
    pub joined: Vec<Join>,
    /// How ids are mapped in a new user namespace.
    pub maps: Option<IdMaps>,
}

/// A namespace to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The field of its path.
    pub at: Pointer,
    /// CLONE_NEW* of its type.
    pub kind: CloneFlags,
    /// Its file.
    pub path: PathBuf,
}

/// The contents of uid_map and gid_map (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// For users.
    pub uids: String,
    /// For groups.
    pub gids: String,
}

/// CLONE_NEW* of a type.
pub fn flag(kind: Type) -> CloneFlags {
    match kind {
        Type::Mount => CloneFlags::CLONE_NEWNS,
        Type::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Type::Uts => CloneFlags::CLONE_NEWUTS,
        Type::Ipc => CloneFlags::CLONE_NEWIPC,
        Type::User => CloneFlags::CLONE_NEWUSER,
        Type::Pid => CloneFlags::CLONE_NEWPID,
        Type::Network => CloneFlags::CLONE_NEWNET,
        Type::Time => CLONE_NEWTIME,
    }
}

impl Namespaces {
    /// As configured.
    pub fn plan(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let configured = linux.map_or(&[][..], |linux| list(linux.namespaces()));
        let mut namespaces = Namespaces { new: CloneFlags::empty(), joined: Vec::new(), maps: None };
        for (index, namespace) in configured.iter().enumerate() {
            let kind = flag(namespace.typ());
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => namespaces.new |= kind,
                Some(path) => {
                    let at = Pointer::to("/linux/namespaces").index(index).key("path");
                    namespaces.joined.push(Join { at, kind, path: path.clone() });
                }
            }
        }
        if namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
            let map = |map: Option<&[_]>| map_text(map.unwrap_or_default());
            let uids = map(linux.map(|linux| list(linux.uid_mappings())));
            let gids = map(linux.map(|linux| list(linux.gid_mappings())));
            namespaces.maps = Some(IdMaps { uids, gids });
        }
        namespaces
    }

    /// Whether the container has its own namespace of this type, new or joined.
    pub fn has(&self, kind: CloneFlags) -> bool {
        self.new.contains(kind) || self.joined(kind).is_some()
    }

    /// The namespace of this type that is joined.
    pub fn joined(&self, kind: CloneFlags) -> Option<&Join> {
        self.joined.iter().find(|join| join.kind == kind)
    }

    /// All types that the container has its own of.
    pub fn all(&self) -> CloneFlags {
        self.joined.iter().fold(self.new, |all, join| all | join.kind)
    }
}

/// The name of a type.
pub fn name(kind: CloneFlags) -> &'static str {
    TYPES.iter().find(|(other, ..)| *other == kind).map_or("unknown", |(_, name, _)| name)
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/linux/namespaces: new")?;
        for (_, name, _) in TYPES.iter().filter(|(kind, ..)| self.new.contains(*kind)) {
            write!(f, " {name}")?;
        }
        writeln!(f)?;
        for join in &self.joined {
            writeln!(f, "{}: join {} {}", join.at, name(join.kind), join.path.display())?;
        }
        if let Some(maps) = &self.maps {
            writeln!(f, "/linux/uidMappings: {}", maps.uids.trim_end().replace('\n', ", "))?;
            writeln!(f, "/linux/gidMappings: {}", maps.gids.trim_end().replace('\n', ", "))?;
        }
        Ok(())
    }
}
