//! Control groups: where a container's are, what is written to them, and their life.
//!
//! `compile` is pure: it turns `linux.resources` into a list of files and values, which
//! `Cgroup::create` writes. Both versions follow the same path, with the files in `v1` and `v2`.

mod bus;
mod devices;
mod group;
mod gvariant;
mod layout;
mod limits;
mod members;
mod property;
mod stats;
mod systemd;
mod v1;
mod v2;

use crate::config::list;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{LinuxResources, Spec};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use systemd::Unit;

pub use devices::Rule;
pub use group::Cgroup;
pub use layout::{Layout, ROOT, memberships};
pub use members::Freeze;
pub use systemd::is_running as systemd_is_running;

/// What a container's cgroups are to be.
#[derive(Debug)]
pub struct Plan {
    /// Its directories: one a v1 hierarchy, or one.
    pub places: Vec<Place>,
    /// The values to write, in order.
    pub writes: Vec<(Pointer, Write)>,
    /// The devices it may use, in order; a later rule overrides an earlier one.
    pub devices: Vec<Rule>,
    /// Whether the host has cgroup v2.
    pub unified: bool,
    /// The unit, where systemd makes the directories.
    pub unit: Option<Unit>,
    /// The user who gets the directory, in a container with a writable cgroup mount of its own.
    pub owner: Option<u32>,
}

/// A cgroup's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `cpu,cpuacct`, `name=systemd`; empty on v2.
    pub controllers: String,
    /// Where the hierarchy is mounted.
    pub mount_point: PathBuf,
    /// The cgroup in it, without a leading slash.
    pub path: PathBuf,
}

impl Place {
    /// The directory.
    pub fn directory(&self) -> PathBuf {
        self.mount_point.join(&self.path)
    }
}

/// A value for a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Whose hierarchy the file is in.
    pub controller: &'static str,
    /// The file's name.
    pub file: String,
    /// What is written to it.
    pub value: String,
    /// What it means when there is no such file.
    pub missing: Missing,
}

/// What to do where a file is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It is an error: the kernel or its configuration lacks what was asked for.
    Error,
    /// Nothing: the value asks for what is the case without the file.
    Skip,
    /// Write another value to another file.
    Instead(String, String),
}

impl Write {
    fn new(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Write { controller, file: file.into(), value: value.to_string(), missing: Missing::Error }
    }

    fn or(self, missing: Missing) -> Self {
        Write { missing, ..self }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(unit) = &self.unit {
            write!(f, "{unit}")?;
        }
        for place in &self.places {
            writeln!(f, "cgroup {}", place.directory().display())?;
        }
        for (at, write) in &self.writes {
            writeln!(f, "{at}: write {:?} to {}", write.value, write.file)?;
        }
        for rule in &self.devices {
            writeln!(f, "{}: {rule}", rule.at)?;
        }
        Ok(())
    }
}

/// Who makes a container's cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Manager {
    /// damda, in the file system.
    #[default]
    Cgroupfs,
    /// systemd (`--systemd-cgroup`).
    Systemd,
    /// Nobody: there are none.
    Disabled,
}

/// Decides on the cgroups of container `id`.
pub fn compile(spec: &Spec, id: &str, layout: &Layout, manager: Manager) -> Result<Plan> {
    let linux = spec.linux().as_ref();
    let empty = LinuxResources::default();
    let resources = linux.and_then(|linux| linux.resources().as_ref()).unwrap_or(&empty);
    let asked =
        linux.and_then(|linux| linux.cgroups_path().as_deref()).filter(|path| !path.as_os_str().is_empty());
    let writes = writes(resources, &Pointer::to("/linux/resources"), layout.is_unified())?;
    let devices = devices::rules(list(resources.devices()));
    if !layout.is_unified() {
        devices::check_v1(&devices)?;
    }
    let unified = layout.is_unified();
    let mut plan = Plan { places: Vec::new(), writes, devices, unified, unit: None, owner: None };
    match manager {
        Manager::Cgroupfs => plan.places = places(asked, id, layout),
        Manager::Systemd => {
            let mut unit = Unit::plan(spec, id, systemd::is_users())?;
            unit.add_limits(&plan.writes, &plan.devices, unified);
            plan.places = places(Some(&Path::new("/").join(unit.path(layout))), id, layout);
            plan.unit = Some(unit);
        }
        Manager::Disabled => plan = plan.without_cgroups()?,
    }
    Ok(plan)
}

/// What `resources`, which are at `at` of what they were read from, are in a cgroup's files.
fn writes(resources: &LinuxResources, at: &Pointer, unified: bool) -> Result<Vec<(Pointer, Write)>> {
    if unified { v2::writes(resources, at) } else { v1::writes(resources, at) }
}

impl Plan {
    /// Makes none; it is an error if limits are asked for.
    fn without_cgroups(mut self) -> Result<Self> {
        if let Some((at, _)) = self.writes.first() {
            return Err(
                Error::new("a limit needs a cgroup, and --cgroup-manager says disabled").at(at.clone())
            );
        }
        self.places.clear();
        self.devices.clear();
        Ok(self)
    }
}

/// The directories for `linux.cgroupsPath` (config-linux.md, "Cgroups Path"): an absolute path is
/// from the hierarchies' roots, a relative one, or none, from where the runtime is.
fn places(asked: Option<&Path>, id: &str, layout: &Layout) -> Vec<Place> {
    let path = asked.unwrap_or(Path::new(id));
    let below =
        |own: &Path| if path.is_absolute() { relative(path) } else { relative(own).join(relative(path)) };
    match layout {
        Layout::Unified { own } => {
            // A v2 cgroup can't have both processes and controllers for its children, and the
            // runtime is in its own: the container's goes beside it.
            let beside = own.parent().unwrap_or(Path::new("/"));
            vec![Place { controllers: String::new(), mount_point: ROOT.into(), path: below(beside) }]
        }
        Layout::Legacy(hierarchies) => hierarchies
            .iter()
            .map(|hierarchy| Place {
                controllers: hierarchy.controllers.clone(),
                mount_point: hierarchy.mount_point(),
                path: below(&hierarchy.own),
            })
            .collect(),
    }
}

/// `path` without its root and without `.`; `..` was refused by `config::cgroups_path`.
fn relative(path: &Path) -> PathBuf {
    path.components().filter(|component| matches!(component, Component::Normal(_))).collect()
}

/// Whether a resource is set: engines write 0 for "not set" where it makes no sense as a limit.
fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|&value| value != 0)
}

/// The values that both versions write in the same form.
fn common_writes(resources: &LinuxResources, at: &Pointer) -> Vec<(Pointer, Write)> {
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        for (key, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                writes.push((at.key("cpu").key(key), Write::new("cpuset", format!("cpuset.{key}"), list)));
            }
        }
    }
    if let Some(pids) = resources.pids() {
        // With 0 the first process itself couldn't be made.
        let value = if pids.limit() < 0 { "max".into() } else { pids.limit().max(1).to_string() };
        writes.push((at.key("pids").key("limit"), Write::new("pids", "pids.max", value)));
    }
    let mut rdma: Vec<_> = resources.rdma().iter().flatten().collect();
    rdma.sort_by_key(|(device, _)| *device);
    for (device, limits) in rdma {
        let part = |name: &str, value: Option<u32>| {
            value.map(|value| format!(" {name}={value}")).unwrap_or_default()
        };
        let handles = part("hca_handle", limits.hca_handles());
        let objects = part("hca_object", limits.hca_objects());
        let write = Write::new("rdma", "rdma.max", format!("{device}{handles}{objects}"));
        writes.push((at.key("rdma").key(device), write));
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::layout::Hierarchy;
    use super::*;

    fn layout(own: &str) -> Layout {
        Layout::Legacy(vec![Hierarchy { controllers: "memory".into(), own: own.into() }])
    }

    fn place(asked: Option<&str>, layout: &Layout) -> String {
        places(asked.map(Path::new), "id", layout)[0].directory().display().to_string()
    }

    #[test]
    fn absolute_paths_are_from_the_root_and_others_from_the_runtime() {
        assert_eq!(place(Some("/a/./b/"), &layout("/own")), "/sys/fs/cgroup/memory/a/b");
        assert_eq!(place(Some("a/b"), &layout("/own")), "/sys/fs/cgroup/memory/own/a/b");
        assert_eq!(place(None, &layout("/own")), "/sys/fs/cgroup/memory/own/id");
        assert_eq!(place(None, &layout("/")), "/sys/fs/cgroup/memory/id");
    }

    #[test]
    fn on_v2_the_container_goes_beside_the_runtime() {
        let layout = Layout::Unified { own: "/user.slice/session.scope".into() };
        assert_eq!(place(None, &layout), "/sys/fs/cgroup/user.slice/id");
        assert_eq!(place(Some("/a"), &layout), "/sys/fs/cgroup/a");
        assert_eq!(place(None, &Layout::Unified { own: "/".into() }), "/sys/fs/cgroup/id");
    }
}
