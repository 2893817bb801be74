//! A container's cgroups on the host: making them, their limits, entering them.

use super::members::processes_in;
use super::systemd::{self, UnitName};
use super::{Plan, layout};
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::Call;
use crate::sys::file;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The cgroups of one container, as its state keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Whether they are in the v2 hierarchy.
    pub(super) unified: bool,
    /// One directory a v1 hierarchy, or one; none where the user may not have any.
    pub(super) directories: Vec<Directory>,
    /// The unit, where systemd made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<UnitName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    /// As in `Place`.
    controllers: String,
    /// The directory in the host's file system.
    pub(super) path: PathBuf,
    /// What is known of who made it.
    pub(super) claim: Claim,
}

/// Whose a directory is: nothing is ever done to processes and cgroups that may be others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Claim {
    /// Nobody knows yet: `create` is about to make it, or was killed when it was.
    Planned,
    /// It was made for the container.
    Made,
    /// It was there, and empty. It stays, but what is in it is the container's (runtime.md, "Delete").
    Found,
}

impl Directory {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it is in the v2 hierarchy.
    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|one| one == controller)
    }
}

impl Cgroup {
    /// What `create` will make, to be stored before it does.
    pub fn planned(plan: &Plan) -> Self {
        let directories = plan.places.iter().map(|place| Directory {
            controllers: place.controllers.clone(),
            path: place.directory(),
            claim: Claim::Planned,
        });
        let unit = plan.unit.as_ref().map(|unit| unit.name.clone());
        Cgroup { unified: plan.unified, directories: directories.collect(), unit }
    }

    /// Has systemd make them with process `pid` in them, and writes the limits. On failure they are
    /// the container's if systemd made them.
    pub fn create_unit(&mut self, plan: &Plan, pid: Pid) -> Result<()> {
        let Some(unit) = &plan.unit else { return Ok(()) };
        let started = unit.start(pid, self.unified);
        if started.is_err() {
            (self.directories, self.unit) = (Vec::new(), None);
        }
        started?;
        let (is, expected) = (systemd::place_of(pid)?, plan.places.first().map(|place| place.path.clone()));
        if let Some(expected) = expected.filter(|expected| *expected != is) {
            // What is at the expected place is somebody else's.
            unit.name.stop()?;
            (self.directories, self.unit) = (Vec::new(), None);
            return Err(Error::new(format!("systemd made the cgroup {is:?}, not {expected:?}"))
                .at(Pointer::to("/linux/cgroupsPath")));
        }
        self.directories.iter_mut().for_each(|directory| directory.claim = Claim::Made);
        self.make(plan, &mut Vec::new())
    }

    /// Makes the directories and writes the limits. On failure what was made is removed, and none of
    /// them is the container's any more.
    pub fn create(&mut self, plan: &Plan) -> Result<()> {
        let mut made = Vec::new();
        let result = self.make(plan, &mut made);
        if result.is_err() {
            for directory in made.iter().rev() {
                // The error that led here is the one to report.
                let _ = file::rmdir(directory);
            }
            self.directories.clear();
        }
        result
    }

    /// Those that process `pid` is in and that bear the container's name: for a container whose state
    /// is lost. Others may be shared with who knows whom.
    pub fn bearing(id: &str, pid: Pid) -> Result<Self> {
        let layout = layout::Layout::of_process(&pid.to_string())?;
        let unified = layout.is_unified();
        let places = match layout {
            layout::Layout::Unified { own } => vec![(String::new(), PathBuf::from(layout::ROOT), own)],
            layout::Layout::Legacy(hierarchies) => hierarchies
                .into_iter()
                .map(|hierarchy| (hierarchy.controllers.clone(), hierarchy.mount_point(), hierarchy.own))
                .collect(),
        };
        let named = |own: &Path| own.file_name().is_some_and(|name| name.to_string_lossy().contains(id));
        let directories =
            places.into_iter().filter(|(_, _, own)| named(own)).map(|(controllers, mount_point, own)| {
                let path = mount_point.join(own.strip_prefix("/").unwrap_or(&own));
                Directory { controllers, path, claim: Claim::Made }
            });
        Ok(Cgroup { unified, directories: directories.collect(), unit: None })
    }

    /// Whether any is known.
    pub fn is_known(&self) -> bool {
        !self.directories.is_empty()
    }

    /// The directories whose processes are the container's.
    pub(super) fn own(&self) -> impl Iterator<Item = &Directory> {
        self.directories.iter().filter(|directory| directory.claim != Claim::Planned)
    }

    fn make(&mut self, plan: &Plan, made: &mut Vec<PathBuf>) -> Result<()> {
        let mut index = 0;
        for place in &plan.places {
            match self.make_directory(&mut index, &place.mount_point, made) {
                Err(error) if is_refusal(&error) && layout::is_unprivileged() => {
                    return self.go_without(plan);
                }
                other => other?,
            }
        }
        if self.unified {
            self.enable_controllers(plan)?;
        } else {
            self.inherit_cpusets(plan)?;
        }
        for (at, write) in &plan.writes {
            self.write(write).at(at)?;
        }
        match self.set_devices(&plan.devices) {
            // In a user namespace devices can't be made, and the kernel lets nobody set rules.
            Err(error) if is_refusal(&error) && layout::is_unprivileged() => {}
            other => other?,
        }
        if let Some(owner) = plan.owner {
            self.give_to(owner)?;
        }
        Ok(())
    }

    /// Makes the directory at `index`; advances it, or drops the entry where the hierarchy isn't
    /// mounted.
    fn make_directory(
        &mut self,
        index: &mut usize,
        mount_point: &Path,
        made: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let path = self.directories[*index].path.clone();
        // A hybrid host's v2 hierarchy may be hidden, and another file system be in its place.
        if !self.unified && self.directories[*index].is_v2() && !mount_point.join("cgroup.procs").exists() {
            self.directories.remove(*index);
            return Ok(());
        }
        match make_with_parents(&path, mount_point, made)? {
            Made::New => self.directories[*index].claim = Claim::Made,
            Made::Before if self.unit.is_some() => {}
            Made::Before => {
                let inside = processes_in(&path)?.len();
                if inside > 0 {
                    let error =
                        format!("container's cgroup is not empty: {inside} process(es) found in {path:?}");
                    return Err(Error::new(error).at(Pointer::to("/linux/cgroupsPath")));
                }
                self.directories[*index].claim = Claim::Found;
                self.refuse_frozen(*index)?;
            }
            Made::NoHierarchy => {
                self.directories.remove(*index);
                return Ok(());
            }
        }
        *index += 1;
        Ok(())
    }

    /// In a cgroup that was frozen by somebody else the container's first process would never run.
    fn refuse_frozen(&self, index: usize) -> Result<()> {
        let directory = &self.directories[index];
        let (file, frozen) = match self.unified {
            true => ("cgroup.freeze", "1"),
            false if directory.has("freezer") => ("freezer.state", "FROZEN"),
            false => return Ok(()),
        };
        match file::read(&directory.file(file)) {
            Ok(state) if state.trim() == frozen => {
                let error = format!("container's cgroup unexpectedly frozen: {:?}", directory.path);
                Err(Error::new(error).at(Pointer::to("/linux/cgroupsPath")))
            }
            _ => Ok(()),
        }
    }

    /// An ordinary user without a cgroup to delegate goes without, unless limits are asked for.
    fn go_without(&mut self, plan: &Plan) -> Result<()> {
        self.directories.clear();
        match plan.writes.first() {
            None => Ok(()),
            Some((at, _)) => Err(Error::new("this user may not make a cgroup, which the limit needs")
                .at(at.clone())
                .hint("run in a delegated cgroup, for example with `systemd-run --user --scope -p Delegate=yes`")),
        }
    }

    /// The v2 directory, for clone3(2), if there is one that this user may put a process into: one
    /// that the user's service manager made may be out of reach, and is entered with its help.
    pub fn descriptor(&self) -> Result<Option<OwnedFd>> {
        let users = self.unit.as_ref().is_some_and(|unit| unit.user);
        match self.own().next().filter(|_| self.unified && !users) {
            None => Ok(None),
            Some(directory) => Ok(Some(open_directory(&directory.path)?)),
        }
    }

    /// Moves process `pid` in, if it was not cloned into its cgroup or put there by systemd.
    pub fn enter(&self, pid: Pid) -> Result<()> {
        if self.unified {
            return match (&self.unit, self.directories.first()) {
                (Some(unit), Some(directory)) if unit.user => enter_users(unit, &directory.path, pid),
                _ => Ok(()),
            };
        }
        for directory in &self.directories {
            file::write(&directory.file("cgroup.procs"), &pid.to_string())
                .doing(|| "cannot enter the container's cgroup".into())?;
        }
        Ok(())
    }

    /// Whether one of the directories is of this v1 controller.
    pub fn has(&self, controller: &str) -> bool {
        self.directories.iter().any(|directory| directory.has(controller))
    }

    /// The cgroup `path` below this one, for `exec --cgroup` ([controllers:]path).
    pub fn below(&self, controllers: Option<&str>, path: &Path) -> Self {
        let mut below = self.clone();
        for directory in &mut below.directories {
            if controllers.is_none_or(|wanted| wanted.split(',').any(|one| directory.has(one))) {
                directory.path = directory.path.join(path);
            }
        }
        below
    }

    /// The v2 cgroup that process `pid` is in.
    pub fn of_process(pid: Pid) -> Result<Self> {
        let text = file::read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        let own = layout::membership(&text, "").unwrap_or_default();
        let path = Path::new(layout::ROOT).join(own.trim_start_matches('/'));
        Ok(Cgroup {
            unified: true,
            directories: vec![Directory { controllers: String::new(), path, claim: Claim::Found }],
            unit: None,
        })
    }

    /// Whether they are in the v2 hierarchy.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// The directory whose processes can be frozen.
    pub fn freezer(&self) -> Option<&Path> {
        self.directory_of("freezer").map(|directory| directory.path.as_path())
    }

    /// The directories: (controllers, path).
    pub fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.directories.iter().map(|directory| (directory.controllers.as_str(), directory.path.as_path()))
    }

    pub(super) fn directory_of(&self, controller: &str) -> Option<&Directory> {
        if self.unified {
            self.directories.first()
        } else {
            self.directories.iter().find(|one| one.has(controller))
        }
    }

    /// Enables in every ancestor the controllers that it has and its children don't.
    fn enable_controllers(&self, plan: &Plan) -> Result<()> {
        let Some(place) = plan.places.first() else { return Ok(()) };
        let available = file::read(&place.mount_point.join("cgroup.controllers"))?;
        let enabled = file::read(&place.directory().join("cgroup.controllers"))?;
        let has = |controllers: &str, one: &str| controllers.split_whitespace().any(|other| other == one);
        if available.split_whitespace().all(|controller| has(&enabled, controller)) {
            return Ok(());
        }
        let mut level = place.mount_point.clone();
        for part in &place.path {
            let control = level.join("cgroup.subtree_control");
            let have = file::read(&level.join("cgroup.controllers"))?;
            let passed_on = file::read(&control)?;
            for controller in have.split_whitespace().filter(|controller| !has(&passed_on, controller)) {
                // One at a time: a single one that can't be had would take the others with it.
                // Whether it is needed shows when a limit is written.
                if let Err(failed) = file::write(&control, &format!("+{controller}")) {
                    crate::log::debug(|| failed.to_string());
                }
            }
            level.push(part);
        }
        Ok(())
    }

    /// A new v1 cpuset has neither CPUs nor memory nodes and takes no process.
    fn inherit_cpusets(&self, plan: &Plan) -> Result<()> {
        let place = plan.places.iter().find(|place| place.controllers.split(',').any(|one| one == "cpuset"));
        let (Some(directory), Some(place)) = (self.directory_of("cpuset"), place) else { return Ok(()) };
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let parent = directory.path.parent().unwrap_or(&place.mount_point);
            let inherited = cpuset_of(parent, name, &place.mount_point)?;
            let configured = plan.writes.iter().any(|(_, write)| write.file == name);
            let unset = || file::read(&directory.file(name)).is_ok_and(|own| own.trim().is_empty());
            if !configured && (directory.claim == Claim::Made || unset()) {
                file::write(&directory.file(name), inherited.trim())?;
            }
        }
        Ok(())
    }

    /// Hands the v2 cgroup to `owner`, so that the container can make its own below it
    /// (config-linux.md, "Cgroup ownership").
    fn give_to(&self, owner: u32) -> Result<()> {
        let Some(directory) = self.directories.first().filter(|_| self.unified) else { return Ok(()) };
        let listed = file::read(Path::new("/sys/kernel/cgroup/delegate"))
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads".into());
        let files = listed.lines().filter(|name| !name.is_empty()).map(|name| directory.file(name));
        for path in std::iter::once(directory.path.clone()).chain(files) {
            match nix::unistd::chown(&path, Some(owner.into()), None) {
                Err(Errno::ENOENT) => {}
                other => other.call(|| format!("chown({path:?}, {owner})"))?,
            }
        }
        Ok(())
    }
}

/// Moves a process into a cgroup of the user's service manager.
fn enter_users(unit: &UnitName, directory: &Path, pid: Pid) -> Result<()> {
    if directory == Path::new(layout::ROOT).join(systemd::place_of(pid)?) {
        return Ok(());
    }
    match file::write(&directory.join("cgroup.procs"), &pid.to_string()) {
        Err(failed) if matches!(failed.errno, Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {
            let parts = directory.iter().skip_while(|part| *part != unit.name.as_str()).skip(1);
            unit.attach(pid, &Path::new("/").join(parts.collect::<PathBuf>()))
        }
        other => Ok(other?),
    }
}

/// Whether an error is the kernel's no to a user without the right.
fn is_refusal(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}

enum Made {
    New,
    Before,
    NoHierarchy,
}

/// Makes the cgroup at `path` in the hierarchy at `mount_point`, with those above it.
fn make_with_parents(path: &Path, mount_point: &Path, made: &mut Vec<PathBuf>) -> Result<Made> {
    let mkdir = |path: &Path| nix::unistd::mkdir(path, nix::sys::stat::Mode::from_bits_truncate(0o755));
    match mkdir(path) {
        Ok(()) => {
            made.push(path.into());
            Ok(Made::New)
        }
        Err(Errno::EEXIST) => Ok(Made::Before),
        // Never the mount point: a directory made in its place would be one of the tmpfs below.
        Err(Errno::ENOENT) if !mount_point.is_dir() => Ok(Made::NoHierarchy),
        Err(Errno::ENOENT) => {
            let parent =
                path.parent().filter(|parent| parent.starts_with(mount_point) && *parent != mount_point);
            if let Some(parent) = parent {
                make_with_parents(parent, mount_point, made)?;
            }
            mkdir(path)
                .call(|| format!("mkdir({path:?})"))
                .doing(|| "cannot make the container's cgroup".into())?;
            made.push(path.into());
            Ok(Made::New)
        }
        Err(errno) => Err::<Made, _>(errno)
            .call(|| format!("mkdir({path:?})"))
            .doing(|| "cannot make the container's cgroup".into()),
    }
}

/// The value of a cpuset file, taken over from the parent where it is empty.
fn cpuset_of(directory: &Path, name: &str, mount_point: &Path) -> Result<String> {
    let path = directory.join(name);
    let own = file::read(&path)?;
    if !own.trim().is_empty() || directory == mount_point {
        return Ok(own);
    }
    let inherited = cpuset_of(directory.parent().unwrap_or(mount_point), name, mount_point)?;
    file::write(&path, inherited.trim())?;
    Ok(inherited)
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    Ok(file::open(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)
}
