//! What is kept of a container, and what can be found out about it (runtime.md, "State").

use super::{Directory, HostMounts, Store, gate};
use crate::cgroup::{self, Cgroup, Freeze};
use crate::config::{self, Config, SPEC_VERSION};
use crate::error::{Error, Result};
use crate::resctrl::{self, Groups};
use crate::sys::file;
use crate::sys::process::{pidfd_open, pidfd_send_signal};
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::Hook;
use procfs::FromRead;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const INIT: &str = "init.json";

/// What `create` keeps for the commands that follow.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The specification's version that this state complies with.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The root file system's absolute path.
    pub rootfs: PathBuf,
    /// When it was created, as RFC 3339 has it.
    pub created: String,
    /// The user who created it.
    pub owner: u32,
    /// The annotations of config.json.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The container's first process; None until it is made. Kept in a file of its own: all else
    /// is known before, and never changes.
    #[serde(skip)]
    pub init: Option<Init>,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// Its groups of the resctrl file system, kept as `init` is.
    #[serde(skip)]
    pub resctrl: Option<Groups>,
    /// Its mounts, where they are the host's; kept as `init` is.
    #[serde(skip)]
    pub host_mounts: Option<HostMounts>,
    /// CLONE_NEW* of the namespaces that it has, new or joined.
    pub namespaces: i32,
    /// Whether it has a pid namespace of its own, which ends with its first process.
    pub own_pid_namespace: bool,
    /// Whether config.json has a process to start.
    pub has_process: bool,
    /// Hooks that later commands run.
    #[serde(default)]
    pub poststart: Vec<Hook>,
    /// See `poststart`.
    #[serde(default)]
    pub poststop: Vec<Hook>,
    /// Who is sent the seccomp listener at the start.
    pub listener: Option<Listener>,
}

/// A process, told apart from a later one with the same id by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Init {
    /// Its process id on the host.
    pub pid: i32,
    /// When it started, in clock ticks after boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
}

impl Init {
    /// Process `pid` as it is now; None if it is gone.
    pub fn now(pid: Pid) -> Option<Self> {
        let text = file::read(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
        let stat = procfs::process::Stat::from_read(text.as_bytes()).ok()?;
        // A zombie has ended, whoever may still have to collect it.
        (!matches!(stat.state, 'Z' | 'X')).then_some(Init { pid: pid.as_raw(), start_time: stat.starttime })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// Whether it hasn't ended.
    pub fn is_alive(&self) -> bool {
        Init::now(self.pid()) == Some(*self)
    }

    /// Sends it signal number `signal`; false where it has ended.
    pub fn signal(&self, signal: i32) -> Result<bool> {
        let Some(pidfd) = self.pidfd()? else { return Ok(false) };
        match pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(failed) if failed.errno == Errno::ESRCH => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    /// A descriptor of this very process; None if it has ended.
    pub fn pidfd(&self) -> Result<Option<OwnedFd>> {
        match pidfd_open(self.pid()) {
            // Checked after opening: the descriptor can't change its meaning, the number can.
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(failed) if failed.errno == Errno::ESRCH => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }
}

/// What `create` has made: kept apart from the state, which is written before.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Made {
    /// The first process.
    pub init: Option<Init>,
    /// The cgroups.
    pub cgroup: Cgroup,
    /// The groups of the resctrl file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Groups>,
    /// The mounts on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mounts: Option<HostMounts>,
}

/// The seccomp agent (config-linux.md, "Seccomp", listenerPath).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its socket.
    pub path: PathBuf,
    /// What it is told beside the state.
    pub metadata: Option<String>,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

impl State {
    /// The state as the specification defines it, for hooks and the seccomp agent.
    pub fn for_hooks(&self, status: Status, pid: Option<Pid>) -> Value {
        spec_state(&self.id, &status.to_string(), &self.bundle, &self.annotations, pid)
    }
}

/// A state as the specification defines it (runtime.md, "State").
pub fn spec_state(
    id: &str,
    status: &str,
    bundle: &Path,
    annotations: &BTreeMap<String, String>,
    pid: Option<Pid>,
) -> Value {
    let mut state =
        serde_json::json!({"ociVersion": SPEC_VERSION, "id": id, "status": status, "bundle": bundle});
    if let Some(pid) = pid {
        state["pid"] = pid.as_raw().into();
    }
    if !annotations.is_empty() {
        state["annotations"] = serde_json::json!(annotations);
    }
    state
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::new(error.to_string()))
}

/// A container that exists: its directory and its state.
#[derive(Debug)]
pub struct Container {
    /// Where it is kept.
    pub directory: Directory,
    /// What is kept.
    pub state: State,
}

impl Container {
    /// Container `id`, or the error that engines know.
    pub fn load(store: &Store, id: &str) -> Result<Self> {
        let missing = || Error::new("container does not exist");
        let directory = store.open(id)?.ok_or_else(missing)?;
        let text = directory.read(STATE)?.ok_or_else(missing)?;
        let mut state: State = serde_json::from_slice(&text)
            .map_err(|error| Error::new(format!("{:?} is damaged: {error}", directory.file(STATE))))?;
        if let Some(made) = Self::made(&directory) {
            state.init = made.init;
            state.cgroup = made.cgroup;
            state.resctrl = made.resctrl;
            state.host_mounts = made.host_mounts;
        }
        Ok(Container { directory, state })
    }

    /// None where `create` was killed before it was written down as a whole.
    fn made(directory: &Directory) -> Option<Made> {
        serde_json::from_slice(&directory.read(INIT).ok()??).ok()
    }

    /// What was made for a container whose state can't be read as a whole.
    pub fn salvage(directory: &Directory) -> Made {
        if let Some(made) = Self::made(directory) {
            return made;
        }
        let text = directory.read(STATE).ok().flatten().unwrap_or_default();
        let mut state: Value = serde_json::from_slice(&text).unwrap_or_default();
        Made { cgroup: serde_json::from_value(state["cgroup"].take()).unwrap_or_default(), ..Made::default() }
    }

    /// Keeps the state, and the configuration for `exec`.
    pub fn save(&self, config: &Config) -> Result<()> {
        self.directory.write(config::FILE, &config.text)?;
        self.save_state()
    }

    /// Keeps the state alone.
    pub fn save_state(&self) -> Result<()> {
        self.directory.write(STATE, &json(&self.state)?)
    }

    /// Keeps which process is the first, and which cgroups turned out to be the container's.
    pub fn save_init(&self) -> Result<()> {
        let State { init, cgroup, resctrl, host_mounts, .. } = &self.state;
        let made = Made {
            init: *init,
            cgroup: cgroup.clone(),
            resctrl: resctrl.clone(),
            host_mounts: host_mounts.clone(),
        };
        self.directory.write(INIT, &json(&made)?)
    }

    /// Makes its cgroups, but for those that systemd makes when there is a process.
    pub fn make_cgroup(&mut self, plan: Option<&cgroup::Plan>) -> Result<()> {
        let Some(plan) = plan else { return Ok(()) };
        self.state.cgroup = Cgroup::planned(plan);
        if plan.unit.is_none() { self.state.cgroup.create(plan) } else { Ok(()) }
    }

    /// Has systemd make its cgroups, where it is to, with process `pid` in them.
    pub fn make_unit(&mut self, plan: Option<&cgroup::Plan>, pid: Pid) -> Result<()> {
        let Some(plan) = plan.filter(|plan| plan.unit.is_some()) else { return Ok(()) };
        self.state.cgroup.create_unit(plan, pid)?;
        self.save_init()
    }

    /// Makes its groups of the resctrl file system, if it is to have any, and puts process `pid` into them.
    pub fn make_resctrl(&mut self, plan: Option<&resctrl::Plan>, pid: Pid) -> Result<()> {
        let Some(plan) = plan else { return Ok(()) };
        self.state.resctrl = Some(plan.apply(pid)?);
        self.save_init()
    }

    /// Removes all that is kept of it.
    pub fn forget(&self) -> Result<()> {
        self.directory.remove(&[STATE, INIT, config::FILE])
    }

    /// The configuration that the container was created with.
    pub fn config(&self) -> Result<Config> {
        Config::stored(&self.directory.file(config::FILE), &self.state.bundle)
    }

    /// What the container is doing.
    pub fn status(&self) -> Result<Status> {
        let Some(init) = self.state.init else {
            return Ok(if self.directory.is_locked()? { Status::Creating } else { Status::Stopped });
        };
        if !init.is_alive() {
            return Ok(Status::Stopped);
        }
        if self.state.cgroup.freeze() == Freeze::Frozen {
            return Ok(Status::Paused);
        }
        if self.directory.is_locked()? {
            return Ok(Status::Creating);
        }
        // A `start` that was killed leaves the gate behind, and nobody at it.
        if gate::is_there(&self.directory) && gate::is_guarded(&self.directory)? {
            return Ok(Status::Created);
        }
        Ok(Status::Running)
    }

    /// The first process, if it hasn't ended.
    pub fn live_init(&self) -> Option<Init> {
        self.state.init.filter(Init::is_alive)
    }

    /// Sends signal number `signal` to the first process; false where it has ended.
    pub fn signal_init(&self, signal: i32) -> Result<bool> {
        self.state.init.map_or(Ok(false), |init| init.signal(signal))
    }
}
