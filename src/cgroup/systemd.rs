//! Cgroups that systemd makes: a container is a scope of its own (`--systemd-cgroup`).
//!
//! What systemd is not told, it resets when it is reloaded. So every value that is written to the
//! cgroup's files is given to it as a property first, where it has one; and the files are written all
//! the same, since it rounds some values and has no properties for others.

use super::bus::{Bus, Refusal, text};
use super::devices::{Rule, systemd_list};
use super::layout::membership;
use super::property::{self, Value};
use super::{Layout, Write};
use crate::error::{Error, Pointer, Result};
use crate::sys::{file, identity};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The scope that systemd is to make.
#[derive(Debug)]
pub struct Unit {
    /// Its name, such as `damda-id.scope`.
    pub name: UnitName,
    /// The slice that it is in.
    slice: String,
    /// Its properties (systemd.resource-control(5)), each with the field that it is for.
    properties: Vec<(Pointer, String, Value)>,
}

/// A unit of one of the two kinds of service managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitName {
    /// Its name.
    pub name: String,
    /// Whether the user's own service manager has it, not the system's.
    pub user: bool,
}

/// The part that a scope's name begins with where the configuration says nothing.
const PREFIX: &str = "damda";

impl Unit {
    /// The unit for `linux.cgroupsPath`, which is of the form `slice:prefix:name`; without one it is
    /// named after the container.
    pub fn plan(spec: &Spec, id: &str, user: bool) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref()).unwrap_or(Path::new(""));
        let path = path.to_str().unwrap_or_default();
        let at = Pointer::to("/linux/cgroupsPath");
        let parts: Vec<&str> = path.split(':').collect();
        let (slice, prefix, name) = match parts[..] {
            _ if path.is_empty() => ("", PREFIX, id),
            [slice, prefix, name] if !name.is_empty() => (slice, prefix, name),
            _ => {
                let error = format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                );
                return Err(Error::new(error).at(at).hint("without --systemd-cgroup it is a path"));
            }
        };
        let slice = match slice {
            "" if user => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        slice_path(slice).map_err(|error| error.at(at.clone()))?;
        if name.ends_with(".slice") {
            return Err(Error::new("a container is a scope: a slice has no processes").at(at));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if name.contains('/') || name.len() > 255 {
            return Err(Error::new(format!("{name:?} is not the name of a systemd unit")).at(at));
        }
        let mut unit = Unit { name: UnitName { name, user }, slice: slice.into(), properties: Vec::new() };
        unit.add_annotations(spec)?;
        Ok(unit)
    }

    /// Where its cgroup is, from a hierarchy's root.
    pub fn path(&self, layout: &Layout) -> PathBuf {
        let below = slice_path(&self.slice).unwrap_or_default().join(&self.name.name);
        match layout {
            Layout::Unified { own } if self.name.user => users_root(own).join(below),
            _ => below,
        }
    }

    /// `org.systemd.property.NAME` of the annotations, which override what follows from limits.
    fn add_annotations(&mut self, spec: &Spec) -> Result<()> {
        let mut annotations: Vec<_> = spec.annotations().iter().flatten().collect();
        annotations.sort();
        for (key, written) in annotations {
            let Some(name) = key.strip_prefix("org.systemd.property.") else { continue };
            let at = Pointer::to("/annotations").key(key);
            let (name, value) = property::parse(name, written).map_err(|error| error.at(at.clone()))?;
            self.properties.push((at, name, value));
        }
        Ok(())
    }

    /// Adds the properties for what will be written to the cgroup's files, and for its devices.
    pub fn add_limits(&mut self, writes: &[(Pointer, Write)], rules: &[Rule], unified: bool) {
        let mut all = property::of_writes(writes, unified);
        let at = Pointer::to("/linux/resources/devices");
        match systemd_list(rules) {
            None => all.push((at, "DevicePolicy".into(), Value::text("auto"))),
            Some(list) => {
                all.push((at.clone(), "DevicePolicy".into(), Value::text("strict")));
                all.push((at, "DeviceAllow".into(), Value::Pairs(list)));
            }
        }
        // An annotation goes before what follows from a limit.
        all.retain(|(_, name, _)| !self.properties.iter().any(|(_, annotated, _)| annotated == name));
        self.properties.extend(all);
    }

    /// Has systemd make the unit with process `pid` in it.
    pub fn start(&self, pid: Pid, unified: bool) -> Result<()> {
        let mut bus = Bus::connect(self.name.user)?;
        let mut properties = self.fixed_properties(pid, unified);
        properties.extend(self.properties.iter().map(|(_, name, value)| (name.clone(), value.clone())));
        let arguments = [
            Value::text(&self.name.name).param(),
            Value::text("fail").param(),
            property::list(&properties),
            property::no_units(),
        ];
        let job = bus.call("StartTransientUnit", &arguments)?.map_err(|refusal| self.refused(&refusal))?;
        let job = job.first().map(text).unwrap_or_default();
        match bus.wait_for_job(&job)?.as_str() {
            "done" => Ok(()),
            other => Err(self.error(&format!("systemd could not start it: {other}"))),
        }
    }

    fn fixed_properties(&self, pid: Pid, unified: bool) -> Vec<(String, Value)> {
        let yes = |name: &str| (name.to_owned(), Value::Bool(true));
        vec![
            ("Description".to_owned(), Value::text(&format!("damda container {}", self.name.name))),
            ("DefaultDependencies".to_owned(), Value::Bool(false)),
            // A unit that failed, for want of memory for example, must not keep its name.
            ("CollectMode".to_owned(), Value::text("inactive-or-failed")),
            yes("MemoryAccounting"),
            yes("CPUAccounting"),
            yes(if unified { "IOAccounting" } else { "BlockIOAccounting" }),
            yes("TasksAccounting"),
            ("Slice".to_owned(), Value::text(&self.slice)),
            ("PIDs".to_owned(), Value::Numbers(vec![pid.as_raw() as u32])),
            // What is below it is the container's.
            yes("Delegate"),
        ]
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let error = refusal.error();
        match refusal.name.as_str() {
            "org.freedesktop.systemd1.UnitExists" => self
                .error(&error.to_string())
                .hint("another container has it: give this one another name in cgroupsPath"),
            _ => self.error(&error.to_string()),
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::new(format!("unit {}: {what}", self.name.name)).at(Pointer::to("/linux/cgroupsPath"))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.name.user { "user" } else { "system" };
        writeln!(f, "systemd {whose} unit {} in {}", self.name.name, self.slice)?;
        self.properties
            .iter()
            .try_for_each(|(at, name, value)| writeln!(f, "{at}: unit property {name}={value}"))
    }
}

impl UnitName {
    /// Stops the unit and waits until it is gone.
    pub fn stop(&self) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        let arguments = [Value::text(&self.name).param(), Value::text("replace").param()];
        match bus.call("StopUnit", &arguments)? {
            Ok(job) => bus.wait_for_job(&job.first().map(text).unwrap_or_default()).map(drop),
            // It ended with its last process.
            Err(refusal) if refusal.name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
            Err(refusal) => Err(refusal.error()),
        }
    }

    /// Tells systemd of limits that change, until the machine is started anew.
    pub fn update(&self, writes: &[(Pointer, Write)], unified: bool) -> Result<()> {
        let properties: Vec<_> =
            property::of_writes(writes, unified).into_iter().map(|(_, name, value)| (name, value)).collect();
        if properties.is_empty() {
            return Ok(());
        }
        let arguments =
            [Value::text(&self.name).param(), Value::Bool(true).param(), property::list(&properties)];
        match Bus::connect(self.user)?.call("SetUnitProperties", &arguments)? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.error()),
        }
    }

    /// Has systemd move a process to the cgroup `below` the unit's, which an ordinary user may not from a cgroup that
    /// isn't the user manager's.
    pub fn attach(&self, pid: Pid, below: &Path) -> Result<()> {
        let pids = Value::Numbers(vec![pid.as_raw() as u32]);
        let below = below.to_str().filter(|below| *below != "/").unwrap_or_default();
        let arguments = [Value::text(&self.name).param(), Value::text(below).param(), pids.param()];
        match Bus::connect(self.user)?.call("AttachProcessesToUnit", &arguments)? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.error()),
        }
    }
}

/// Whether it is the user's service manager that is asked: by an ordinary user, or root of a user's own
/// namespace; but root of a system in a container has that system's.
pub fn is_users() -> bool {
    let has_session = || std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|directory| !directory.is_empty());
    !identity::user().is_root() || (identity::in_user_namespace() && has_session())
}

/// Whether systemd runs this machine (sd_booted(3)).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A slice's place: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Result<PathBuf> {
    let invalid = || Error::new(format!("invalid slice name: {slice:?}"));
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if slice.contains('/') || slice.len() > 255 || name.split('-').any(str::is_empty) {
        return Err(invalid());
    }
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

/// The cgroup of the user's service manager: above this process's own, or beside its session's.
fn users_root(own: &Path) -> PathBuf {
    let parts: Vec<_> = own.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_manager = |part: &String| part.starts_with("user@") && part.ends_with(".service");
    let path: PathBuf = match parts.iter().position(is_manager) {
        Some(index) => parts[..=index].iter().collect(),
        None => {
            let slice = parts.iter().rposition(|part| part.starts_with("user-") && part.ends_with(".slice"));
            let uid = slice.and_then(|index| parts[index].strip_prefix("user-")?.strip_suffix(".slice"));
            let uid = uid.map_or_else(|| crate::sys::identity::user().to_string(), str::to_owned);
            format!("/user.slice/user-{uid}.slice/user@{uid}.service").into()
        }
    };
    path.strip_prefix("/").map(Path::to_path_buf).unwrap_or(path)
}

/// Where process `pid` is in the v2 hierarchy, or in systemd's own.
pub fn place_of(pid: Pid) -> Result<PathBuf> {
    let text = file::read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let path = membership(&text, "name=systemd").or_else(|| membership(&text, "")).unwrap_or_default();
    Ok(path.trim_start_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn unit(path: &str, user: bool) -> std::result::Result<Unit, String> {
        let text = format!(r#"{{"ociVersion":"1.0.0","linux":{{"cgroupsPath":"{path}"}}}}"#);
        let spec: Spec = parse(text.as_bytes()).expect("it parses");
        Unit::plan(&spec, "id", user).map_err(|error| error.to_string())
    }

    #[test]
    fn a_slice_is_in_those_that_its_name_begins_with() {
        let path = |slice| slice_path(slice).map(|path| path.display().to_string()).ok();
        assert_eq!(path("a-b-c.slice").as_deref(), Some("a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(path("-.slice").as_deref(), Some(""));
        for bad in ["", "a", ".slice", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice", "../a.slice"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn units_are_named_by_the_path() {
        let place = |path, user, own: &str| {
            let layout = Layout::Unified { own: own.into() };
            unit(path, user).map(|unit| (unit.path(&layout).display().to_string(), unit.name.name))
        };
        let both = |path: &str, name: &str| Ok((path.to_owned(), name.to_owned()));
        assert_eq!(place("", false, "/"), both("system.slice/damda-id.scope", "damda-id.scope"));
        assert_eq!(
            place("m-x.slice:cri:7", false, "/"),
            both("m.slice/m-x.slice/cri-7.scope", "cri-7.scope")
        );
        assert_eq!(place(":cri:7", false, "/"), both("system.slice/cri-7.scope", "cri-7.scope"));
        assert_eq!(place("-.slice::7", false, "/"), both("7.scope", "7.scope"));
        let manager = "user.slice/user-7.slice/user@7.service";
        for own in [&format!("/{manager}/app.slice/x.scope"), "/user.slice/user-7.slice/session-1.scope"] {
            assert_eq!(
                place("", true, own),
                both(&format!("{manager}/user.slice/damda-id.scope"), "damda-id.scope")
            );
        }
        for bad in
            ["/a/b", "a:b", "a.slice:b:", "a.slice:b:c:d", "a:b:c", "a.slice:b:../c", "a.slice:b:c.slice"]
        {
            assert!(unit(bad, false).is_err_and(|error| error.starts_with("/linux/cgroupsPath: ")), "{bad}");
        }
    }
}
