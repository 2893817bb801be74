//! `linux.intelRdt`: the share of caches and memory bandwidth that a container has, by groups of the
//! kernel's resctrl file system (config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst).

use crate::config::list;
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::mountinfo::mounts;
use crate::sys::{Call, file};
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a container's groups are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The control group's name; empty for the default one.
    group: String,
    /// Whether the group is the container's alone: it has no closID.
    own: bool,
    /// The lines for `schemata`, in order; the flag says that a group that is there must have them.
    lines: Vec<(Pointer, String, bool)>,
    /// The monitoring group's name, if there is to be one.
    monitor: Option<String>,
}

/// A container's groups, as its state keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// The file system's mount point.
    root: PathBuf,
    /// The control group's directory.
    group: PathBuf,
    /// Whether it was made for the container alone.
    own: bool,
    /// The monitoring group's directory.
    monitor: Option<PathBuf>,
}

impl Plan {
    /// For container `id`; None without `linux.intelRdt`.
    #[allow(deprecated)] // the two flags of specification 1.1 for monitoring
    pub fn new(linux: &Linux, id: &str) -> Option<Self> {
        let configured = linux.intel_rdt().as_ref()?;
        let at = Pointer::to("/linux/intelRdt");
        let mut lines = Vec::new();
        for (key, schema) in
            [("l3CacheSchema", configured.l3_cache_schema()), ("memBwSchema", configured.mem_bw_schema())]
        {
            let schema = schema.iter().filter(|schema| !schema.is_empty());
            lines.extend(schema.map(|schema| (at.key(key), schema.clone(), true)));
        }
        let more = list(configured.schemata()).iter().enumerate();
        lines.extend(more.map(|(index, line)| (at.key("schemata").index(index), line.clone(), false)));
        let name = configured.clos_id().as_deref().filter(|name| !name.is_empty());
        let monitoring = [configured.enable_monitoring(), configured.enable_cmt(), configured.enable_mbm()];
        Some(Plan {
            group: match name {
                Some("/") => String::new(),
                other => other.unwrap_or(id).into(),
            },
            own: name.is_none(),
            lines,
            monitor: monitoring.contains(&&Some(true)).then(|| id.into()),
        })
    }

    /// For a container that had none: a group of its own.
    pub fn own(id: &str) -> Self {
        Plan { group: id.into(), own: true, lines: Vec::new(), monitor: None }
    }

    /// Makes the groups and puts process `pid` into them, before it has others that would stay outside.
    pub fn apply(&self, pid: Pid) -> Result<Groups> {
        let root = mount_point()?.ok_or_else(|| {
            Error::new("intelRdt is set, but there is no mounted resctrl file system")
                .at(Pointer::to("/linux/intelRdt"))
                .hint("mount -t resctrl resctrl /sys/fs/resctrl, if the processor has it (rdt_a in /proc/cpuinfo)")
        })?;
        self.apply_in(&root, &[pid])
    }

    /// The same in the file system at `root`, for several processes.
    pub fn apply_in(&self, root: &Path, pids: &[Pid]) -> Result<Groups> {
        let group = root.join(&self.group);
        // Made by whoever comes first.
        let named = !self.own && self.lines.is_empty();
        let there = if named { group.is_dir() } else { !make(&group)? };
        let at = Pointer::to("/linux/intelRdt/closID");
        if !there && !self.own && self.lines.is_empty() {
            return Err(Error::new(format!(
                "there is no CLOS {:?}, and no schema to make it with",
                self.group
            ))
            .at(at));
        }
        if there && !self.own {
            self.compare(&group)?;
        }
        let mut groups = Groups { root: root.into(), own: false, monitor: None, group };
        self.fill(&mut groups, there, pids).inspect_err(|_| {
            // What led here is what to report.
            let _ = groups.remove();
            // A class of service stays once others may share it.
            let is_used = file::read(&groups.group.join("tasks")).is_ok_and(|tasks| !tasks.trim().is_empty());
            if !there && (self.own || !is_used) {
                let _ = file::rmdir(&groups.group);
            }
        })?;
        Ok(groups)
    }

    fn fill(&self, groups: &mut Groups, there: bool, pids: &[Pid]) -> Result<()> {
        groups.own = self.own && !there;
        for (at, line, _) in &self.lines {
            groups.write_schema(line).at(at)?;
        }
        if let Some(name) = &self.monitor {
            let monitor = groups.group.join("mon_groups").join(name);
            if !make(&monitor)? {
                // It would be removed with the container.
                return Err(Error::new(format!(
                    "the monitoring group {name:?} exists, and is somebody else's"
                ))
                .at(Pointer::to("/linux/intelRdt/enableMonitoring")));
            }
            groups.monitor = Some(monitor);
        }
        pids.iter().try_for_each(|pid| groups.enter(*pid))
    }

    /// A class of service that is there must be the one that is meant.
    fn compare(&self, group: &Path) -> Result<()> {
        let now = file::read(&group.join("schemata"))?;
        for (at, line, _) in self.lines.iter().filter(|(_, _, compared)| *compared) {
            if !now.lines().any(|other| same(other, line)) {
                let error = format!("the CLOS {:?} exists, and its schemata are not {line:?}", self.group);
                return Err(Error::new(error).at(at.clone()));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.group.is_empty() { "/" } else { &self.group };
        writeln!(f, "/linux/intelRdt: resctrl group {name}{}", if self.own { ", of its own" } else { "" })?;
        self.lines.iter().try_for_each(|(at, line, _)| writeln!(f, "{at}: write {line:?} to schemata"))?;
        match &self.monitor {
            Some(name) => writeln!(f, "/linux/intelRdt/enableMonitoring: monitoring group {name}"),
            None => Ok(()),
        }
    }
}

impl Groups {
    /// Writes a line to the group's `schemata`.
    pub fn write_schema(&self, line: &str) -> Result<()> {
        file::write(&self.group.join("schemata"), &format!("{line}\n")).map_err(|failed| {
            let status = file::read(&self.root.join("info/last_cmd_status")).unwrap_or_default();
            let error = Error::from(failed);
            // The kernel's own words for it.
            if status.trim().is_empty() || status.trim() == "ok" { error } else { error.hint(status.trim()) }
        })
    }

    /// Puts a process into the groups, with all its threads: the kernel moves them one by one.
    pub fn enter(&self, pid: Pid) -> Result<()> {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut threads: Vec<_> =
            threads.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if threads.is_empty() {
            threads.push(pid.to_string());
        }
        for directory in std::iter::once(&self.group).chain(&self.monitor) {
            for thread in &threads {
                match file::write(&directory.join("tasks"), thread) {
                    // It has ended.
                    Err(failed) if failed.errno == Errno::ESRCH && threads.len() > 1 => {}
                    other => other.at(&Pointer::to("/linux/intelRdt"))?,
                }
            }
        }
        Ok(())
    }

    /// Removes what was made for the container.
    pub fn remove(&self) -> Result<()> {
        let own = Some(&self.group).filter(|_| self.own);
        for directory in self.monitor.iter().chain(own) {
            match file::rmdir(directory) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => Err(errno).call(|| format!("rmdir({directory:?})"))?,
            }
        }
        Ok(())
    }

    /// What is used, in the form of runc's `events`.
    pub fn stats(&self) -> Value {
        let mut stats = Map::new();
        let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let (root, own) = (text(self.root.join("schemata")), text(self.group.join("schemata")));
        for (kind, key) in [("L3:", "l3_cache_schema"), ("MB:", "mem_bw_schema")] {
            for (suffix, schemata) in [("_root", &root), ("", &own)] {
                if let Some(line) = schemata.lines().map(str::trim).find(|line| line.starts_with(kind)) {
                    stats.insert(format!("{key}{suffix}"), line.into());
                }
            }
        }
        stats.insert("schemata".into(), own.lines().map(str::trim).collect());
        let info = |directory: &str, names: &[&str]| -> Option<Value> {
            let directory = self.root.join("info").join(directory);
            let entry = |name: &&str| {
                let text = file::read(&directory.join(name)).ok()?;
                let value = text.trim();
                let number = value.parse::<u64>().ok().filter(|_| *name != "cbm_mask");
                Some(((*name).to_owned(), number.map_or_else(|| value.into(), Value::from)))
            };
            directory.is_dir().then(|| names.iter().filter_map(entry).collect::<Map<_, _>>().into())
        };
        let cache = info("L3", &["cbm_mask", "min_cbm_bits", "num_closids"]);
        stats.extend(cache.map(|info| ("l3_cache_info".to_owned(), info)));
        let bandwidth = info("MB", &["bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids"]);
        stats.extend(bandwidth.map(|info| ("mem_bw_info".to_owned(), info)));
        let directory = self.monitor.as_ref().unwrap_or(&self.group).join("mon_data");
        let mut nodes: Vec<_> =
            std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        nodes.sort();
        let number = |node: &PathBuf, name: &str| text(node.join(name)).trim().parse::<u64>().ok();
        let traffic: Vec<_> = nodes
            .iter()
            .filter_map(|node| {
                let (total, local) = (number(node, "mbm_total_bytes")?, number(node, "mbm_local_bytes")?);
                Some(json!({ "mbm_total_bytes": total, "mbm_local_bytes": local }))
            })
            .collect();
        let occupied: Vec<_> = nodes
            .iter()
            .filter_map(|node| Some(json!({ "llc_occupancy": number(node, "llc_occupancy")? })))
            .collect();
        for (key, values) in [("mbm_stats", traffic), ("cmt_stats", occupied)] {
            if !values.is_empty() {
                stats.insert(key.into(), values.into());
            }
        }
        stats.into()
    }
}

/// Where resctrl is mounted.
pub fn mount_point() -> Result<Option<PathBuf>> {
    Ok(mounts()?.into_iter().find(|mount| mount.kind == "resctrl").map(|mount| mount.point))
}

/// Makes a group; false where there is one.
fn make(directory: &Path) -> Result<bool> {
    match nix::unistd::mkdir(directory, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => {
            Ok(Err(errno).call(|| format!("mkdir({directory:?})")).at(&Pointer::to("/linux/intelRdt"))?)
        }
    }
}

/// Whether two lines of schemata say the same, however their numbers are written.
fn same(one: &str, other: &str) -> bool {
    let parse = |line: &str| {
        let (resource, domains) = line.trim().split_once(':')?;
        let base = if resource.starts_with("MB") { 10 } else { 16 };
        let mut domains: Vec<(String, u64)> = domains
            .split(';')
            .map(|domain| {
                let (id, value) = domain.split_once('=')?;
                Some((
                    id.trim().to_owned(),
                    u64::from_str_radix(value.trim().trim_start_matches("0x"), base).ok()?,
                ))
            })
            .collect::<Option<_>>()?;
        domains.sort();
        Some((resource.trim().to_owned(), domains))
    };
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one.trim() == other.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::fs;

    fn plan(rdt: &str) -> Plan {
        let linux: Linux = parse(format!(r#"{{"intelRdt":{rdt}}}"#).as_bytes()).expect("it parses");
        Plan::new(&linux, "id").expect("a plan")
    }

    /// A file system like the kernel's: a group that is made has its files.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for group in ["", "there", "id", "new"] {
            let directory = root.path().join(group);
            fs::create_dir_all(directory.join("mon_groups/id")).expect("mkdir");
            fs::write(directory.join("schemata"), "    L3:0=7ff;1=01f\n    MB:0=100;1=70\n").expect("a file");
            fs::write(directory.join("tasks"), "").expect("a file");
            fs::write(directory.join("mon_groups/id/tasks"), "").expect("a file");
        }
        root
    }

    fn text(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path)).expect("a file")
    }

    #[test]
    fn schemata_are_written_in_order_and_the_process_enters() {
        let plan =
            plan(r#"{"schemata":["L2:0=f","MB:0=20"],"memBwSchema":"MB:0=1","l3CacheSchema":"L3:0=7"}"#);
        assert_eq!(
            plan.to_string(),
            "/linux/intelRdt: resctrl group id, of its own\n\
             /linux/intelRdt/l3CacheSchema: write \"L3:0=7\" to schemata\n\
             /linux/intelRdt/memBwSchema: write \"MB:0=1\" to schemata\n\
             /linux/intelRdt/schemata/0: write \"L2:0=f\" to schemata\n\
             /linux/intelRdt/schemata/1: write \"MB:0=20\" to schemata\n"
        );
        let root = root();
        let groups = plan.apply_in(root.path(), &[Pid::from_raw(42)]).expect("groups");
        // In a plain file each line is written over the one before.
        assert!(text(&root, "id/schemata").starts_with("MB:0=20\n=7ff"));
        assert_eq!(text(&root, "id/tasks"), "42");
        assert!(!groups.own, "it was there before, so it stays");
    }

    #[test]
    fn a_class_that_is_there_must_be_the_same() {
        let apply = |rdt: &str| {
            let root = root();
            plan(rdt).apply_in(root.path(), &[Pid::from_raw(1)]).map(|groups| {
                groups
                    .group
                    .strip_prefix(root.path())
                    .map(|group| group.display().to_string())
                    .unwrap_or_default()
            })
        };
        let there = |schema: &str| apply(&format!(r#"{{"closID":"there","l3CacheSchema":"{schema}"}}"#));
        assert_eq!(there("L3:1=1f;0=7FF").as_deref(), Ok("there"));
        assert!(
            there("L3:0=7ff;1=1")
                .is_err_and(|error| error.to_string().starts_with("/linux/intelRdt/l3CacheSchema: "))
        );
        assert_eq!(apply(r#"{"closID":"there"}"#).as_deref(), Ok("there"));
        assert_eq!(apply(r#"{"closID":"/"}"#).as_deref(), Ok(""));
        assert!(
            apply(r#"{"closID":"missing"}"#)
                .is_err_and(|error| error.to_string().contains("no CLOS \"missing\""))
        );
    }

    #[test]
    fn only_what_was_made_for_the_container_is_removed() {
        let root = root();
        fs::remove_dir_all(root.path().join("id")).expect("rm");
        // Without the kernel there are no files in what is made: the first write says so.
        let error = plan("{}").apply_in(root.path(), &[Pid::from_raw(1)]).expect_err("no tasks file");
        assert!(error.to_string().contains("tasks"), "{error}");
        assert!(!root.path().join("id").exists(), "and it is taken back");
        let groups = Groups {
            root: root.path().into(),
            group: root.path().join("there"),
            own: false,
            monitor: Some(root.path().join("there/mon_groups/gone")),
        };
        assert_eq!(groups.remove(), Ok(()));
        assert!(root.path().join("there").is_dir());
    }

    #[test]
    fn a_class_that_is_missing_is_made_and_taken_back_after_a_failure() {
        let root = root();
        let rdt = plan(r#"{"closID":"fresh","l3CacheSchema":"L3:0=7ff"}"#);
        // Without the kernel there are no files in what is made: the first write says so.
        let error = rdt.apply_in(root.path(), &[]).expect_err("no schemata file").to_string();
        assert!(error.contains("fresh/schemata"), "{error}");
        assert!(!root.path().join("fresh").exists());
        fs::write(root.path().join("fresh"), "").expect("a file in its place");
        let error = rdt.apply_in(root.path(), &[]).expect_err("no directory").to_string();
        assert!(error.contains("fresh/schemata"), "{error}");
    }

    #[test]
    fn without_schemata_nothing_is_written_to_them() {
        let root = root();
        let before = text(&root, "there/schemata");
        plan(r#"{"closID":"there"}"#).apply_in(root.path(), &[Pid::from_raw(7)]).expect("groups");
        assert_eq!(text(&root, "there/schemata"), before);
        assert_eq!(text(&root, "there/tasks"), "7");
    }

    #[test]
    fn a_monitoring_group_is_the_containers_alone() {
        let root = root();
        let rdt = plan(r#"{"closID":"there","enableMonitoring":true}"#);
        let error = rdt.apply_in(root.path(), &[]).expect_err("it is there already").to_string();
        assert!(error.starts_with("/linux/intelRdt/enableMonitoring: "), "{error}");
        fs::remove_dir_all(root.path().join("there/mon_groups/id")).expect("rm");
        let groups = rdt.apply_in(root.path(), &[]).expect("groups");
        assert!(root.path().join("there/mon_groups/id").is_dir());
        assert_eq!(groups.remove(), Ok(()));
        assert!(!root.path().join("there/mon_groups/id").exists() && root.path().join("there").is_dir());
    }

    #[test]
    fn monitoring_has_a_group_and_statistics() {
        let root = root();
        fs::remove_dir_all(root.path().join("there/mon_groups/id")).expect("rm");
        let rdt = plan(r#"{"closID":"there","enableMonitoring":true}"#);
        assert!(rdt.apply_in(root.path(), &[]).is_ok(), "the directory is made");
        let groups = Groups {
            root: root.path().into(),
            group: root.path().join("there"),
            own: false,
            monitor: Some(root.path().join("there/mon_groups/id")),
        };
        for (node, bytes) in [("mon_L3_00", "7"), ("mon_L3_01", "9")] {
            let directory = root.path().join("there/mon_groups/id/mon_data").join(node);
            fs::create_dir_all(&directory).expect("mkdir");
            for name in ["mbm_total_bytes", "mbm_local_bytes", "llc_occupancy"] {
                fs::write(directory.join(name), bytes).expect("a file");
            }
        }
        let stats = groups.stats();
        assert_eq!(stats["l3_cache_schema"], "L3:0=7ff;1=01f");
        assert_eq!(stats["mbm_stats"][1], json!({ "mbm_total_bytes": 9, "mbm_local_bytes": 9 }));
        assert_eq!(stats["cmt_stats"][0], json!({ "llc_occupancy": 7 }));
    }
}
