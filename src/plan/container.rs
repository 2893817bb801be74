//! A new container (runtime.md, "Create" and "Start").

use super::{Namespaces, Plan, Steps};
use crate::cgroup;
use crate::config::{Config, list};
use crate::container::spec_state;
use crate::error::{Pointer, Result};
use crate::host::Host;
use crate::resctrl;
use crate::steps::WaitForRuntime;
use crate::steps::capabilities::{BoundingSet, Capabilities};
use crate::steps::cgroup_mount::{self, CgroupMount};
use crate::steps::console::Console;
use crate::steps::devices::{DevLinks, Devices, OwnStandardStreams, has_hosts_dev, has_procfs};
use crate::steps::hooks::{Kind, RunHooks, RuntimeHooks};
use crate::steps::keyring::JoinKeyring;
use crate::steps::labels::ExecLabel;
use crate::steps::limits::{self, Limits};
use crate::steps::masks::{MaskedPaths, ReadOnlyPaths};
use crate::steps::mounts::{self, ReadOnlyLater};
use crate::steps::names::{Domainname, Hostname};
use crate::steps::namespaces::{
    BecomeRoot, CLONE_NEWTIME, JoinNamespaces, LoopbackUp, NewCgroupNamespace, NewIpcNamespace,
    NewTimeNamespace,
};
use crate::steps::net_devices;
use crate::steps::passwd::FindHome;
use crate::steps::program::{FindProgram, Program, WorkingDirectory};
use crate::steps::root_mount::{self, RootMount};
use crate::steps::rootfs::{Change, ChangeRoot, PrepareRoot, Propagation, ReadOnlyRoot};
use crate::steps::scheduling::{IoPriority, MemoryPolicy, Personality, Scheduler};
use crate::steps::seccomp::LoadSeccomp;
use crate::steps::sysctl::Sysctls;
use crate::steps::trees;
use crate::steps::user::{NoNewPrivileges, User};
use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, Process, Spec};

/// What the command line adds to the configuration.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// Who makes the cgroups.
    pub cgroup_manager: cgroup::Manager,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// How many descriptors of socket activation are passed on (sd_listen_fds(3)).
    pub listen_fds: u32,
}

/// Compiles a configuration that `config::check` found nothing wrong with.
pub fn create(config: &Config, host: &Host, request: &Request) -> Result<Plan> {
    let spec = &config.spec;
    let linux = spec.linux().as_ref();
    let mut namespaces = Namespaces::plan(spec);
    let mut cgroup = cgroup::compile(spec, &request.id, &host.cgroups, request.cgroup_manager)?;
    cgroup.owner = cgroup_owner(spec, &namespaces);
    let late = Late::take(&mut namespaces, &cgroup);
    let outline = Outline { config, request, cgroup: &cgroup, namespaces: &namespaces, late };
    let (user_namespace, own_dev) = (outline.user_namespace(), outline.own_dev());

    let mut steps = Steps::default();
    outline.add_entry(&mut steps)?;
    outline.add_files(&mut steps)?;
    outline.add_change(&mut steps)?;

    let mut plan = Plan {
        trees: trees::plan(spec, &config.bundle, user_namespace && host.may_mount()),
        net_devices: linux.map(net_devices::plan).unwrap_or_default(),
        cgroup: Some(cgroup),
        resctrl: linux.and_then(|linux| resctrl::Plan::new(linux, &request.id)),
        namespaces,
        ignored_signals: host.ignored_signals.clone(),
        limits: Vec::new(),
        oom_score_adj: None,
        affinity: [None, None],
        steps,
        finish: Steps::default(),
        program: None,
    };
    if let Some(process) = spec.process() {
        let available = if user_namespace { !0 } else { host.capabilities };
        let keep_groups = keeps_groups(spec);
        let credentials =
            Credentials { available, own_null: own_dev, user_namespace, at_root: true, keep_groups };
        add_process(&mut plan, process, linux, &Pointer::to("/process"), &credentials)?;
        add_hooks(&mut plan.finish, config, &request.id, Kind::StartContainer);
        if let Some(program) = plan.program.as_mut().filter(|_| request.listen_fds > 0) {
            program.set("LISTEN_FDS", &request.listen_fds.to_string())?;
            program.set("LISTEN_PID", "1")?;
        }
    }
    Ok(plan)
}

/// Namespaces that the process makes itself, after it was cloned into the others.
#[derive(Clone, Copy)]
struct Late {
    /// Where a process is cloned into its cgroup, it can be cloned into a namespace that begins there.
    /// On v1, or by systemd, it is moved afterwards, and makes the namespace then.
    cgroup: bool,
    /// See `NewIpcNamespace`.
    ipc: bool,
    /// See `NewTimeNamespace`.
    time: bool,
}

impl Late {
    /// Takes them out of those that it is cloned into.
    fn take(namespaces: &mut Namespaces, cgroup: &cgroup::Plan) -> Self {
        let moved = !cgroup.unified || cgroup.unit.is_some();
        let user_namespace = namespaces.has(CloneFlags::CLONE_NEWUSER);
        let mut take = |kind, late: bool| {
            let late = late && namespaces.new.contains(kind);
            namespaces.new.set(kind, namespaces.new.contains(kind) && !late);
            late
        };
        Late {
            cgroup: take(CloneFlags::CLONE_NEWCGROUP, moved),
            ipc: take(CloneFlags::CLONE_NEWIPC, user_namespace),
            time: take(CLONE_NEWTIME, true),
        }
    }
}

/// What the order of the steps depends on.
struct Outline<'a> {
    config: &'a Config,
    request: &'a Request,
    cgroup: &'a cgroup::Plan,
    namespaces: &'a Namespaces,
    late: Late,
}

impl Outline<'_> {
    fn user_namespace(&self) -> bool {
        self.namespaces.has(CloneFlags::CLONE_NEWUSER)
    }

    /// Whether /dev is damda's to fill.
    fn own_dev(&self) -> bool {
        !has_hosts_dev(&self.config.spec)
    }

    fn propagation(&self) -> Propagation {
        let linux = self.config.spec.linux().as_ref();
        Propagation::plan(linux.and_then(|linux| linux.rootfs_propagation().as_deref()))
    }

    fn change(&self) -> Change {
        match (self.namespaces.new.contains(CloneFlags::CLONE_NEWNS), self.request.no_pivot) {
            (false, _) => Change::Chroot,
            (true, true) => Change::Move,
            (true, false) => Change::Pivot,
        }
    }

    fn read_only(&self) -> bool {
        self.config.spec.root().as_ref().and_then(|root| root.readonly()) == Some(true)
    }

    /// Into the namespaces, and what is set in them.
    fn add_entry(&self, steps: &mut Steps) -> Result<()> {
        let at = Pointer::to;
        let spec = &self.config.spec;
        let user_namespace = self.user_namespace();
        if user_namespace {
            // Without its ids mapped a process is nobody and may nothing.
            steps.add(&at("/linux/uidMappings"), WaitForRuntime);
        }
        if !self.namespaces.joined.is_empty() {
            steps.add(&at("/linux/namespaces"), JoinNamespaces);
        }
        // Becoming root closes the process's own /proc files to it, where the offsets are written.
        if let Some(linux) = spec.linux().as_ref().filter(|_| self.late.time) {
            steps.add(&at("/linux/timeOffsets"), NewTimeNamespace::plan(linux));
        }
        if user_namespace {
            steps.add(&at("/linux/uidMappings"), BecomeRoot);
        }
        if self.late.ipc {
            steps.add(&at("/linux/namespaces"), NewIpcNamespace);
        }
        if !self.request.no_new_keyring {
            steps.add(&at("/process"), JoinKeyring::plan(&self.request.id, user_namespace)?);
        }
        if self.namespaces.new.contains(CloneFlags::CLONE_NEWNET) {
            steps.add(&at("/linux/namespaces"), LoopbackUp);
        }
        let name = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        steps.add_some(&at("/hostname"), name(spec.hostname()).map(Hostname));
        steps.add_some(&at("/domainname"), name(spec.domainname()).map(Domainname));
        // While the host's /proc and /dev are at hand.
        if let Some(process) = spec.process() {
            add_labels(steps, process, &at("/process"));
        }
        Ok(())
    }

    /// What the container sees of files, up to the hooks that may still change it from the host.
    fn add_files(&self, steps: &mut Steps) -> Result<()> {
        let at = Pointer::to;
        let spec = &self.config.spec;
        let path = self.config.rootfs();
        let (propagation, change, read_only) = (self.propagation(), self.change(), self.read_only());
        steps.add(&at("/root"), PrepareRoot { path, propagation, change, read_only });
        let mut in_cgroup = false;
        for (index, mount) in list(spec.mounts()).iter().enumerate() {
            let at = at("/mounts").index(index);
            if index == 0 && root_mount::is_one(mount) {
                let own = self.namespaces.new.contains(CloneFlags::CLONE_NEWNS);
                let mount = RootMount::plan(mount, self.config.rootfs(), own);
                steps.add(&at, mount.map_err(|error| error.at(at.clone()))?);
            } else if cgroup_mount::is_one(mount) {
                if !std::mem::replace(&mut in_cgroup, true) {
                    self.add_cgroup(steps);
                }
                let own = self.namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP) || self.late.cgroup;
                let (places, unified) = (&self.cgroup.places, self.cgroup.unified);
                steps.add(&at, CgroupMount::plan(mount, places, unified, own, self.user_namespace()));
            } else {
                let mount = mounts::plan(spec, index, &self.config.bundle);
                steps.add(&at, mount.map_err(|error| error.at(at.clone()))?);
            }
        }
        let linux = spec.linux().as_ref();
        if self.own_dev() {
            steps.add(&at("/linux/devices"), Devices::plan(linux, self.user_namespace()));
            steps.add(&at("/linux/devices"), DevLinks { procfs: has_procfs(spec) });
        }
        if let Some(linux) = linux {
            steps.add_some(&at("/linux/sysctl"), Sysctls::plan(linux)?);
            steps.add_some(&at("/linux/readonlyPaths"), ReadOnlyPaths::plan(linux));
            steps.add_some(&at("/linux/maskedPaths"), MaskedPaths::plan(linux));
        }
        if !in_cgroup {
            self.add_cgroup(steps);
        }
        let hooks = spec.hooks();
        if [Kind::Prestart, Kind::CreateRuntime].into_iter().any(|kind| !kind.of(hooks).is_empty()) {
            steps.add(&at("/hooks"), RuntimeHooks);
        }
        add_hooks(steps, self.config, &self.request.id, Kind::CreateContainer);
        Ok(())
    }

    /// The process is in its cgroup: as late as can be, so that the runtime moves it meanwhile.
    fn add_cgroup(&self, steps: &mut Steps) {
        // In a user namespace it has waited already.
        if !self.user_namespace() {
            steps.add(&Pointer::to("/linux/cgroupsPath"), WaitForRuntime);
        }
        if self.late.cgroup {
            steps.add(&Pointer::to("/linux/namespaces"), NewCgroupNamespace);
        }
    }

    /// The root changes: from here on the container's own files are all there is.
    fn add_change(&self, steps: &mut Steps) -> Result<()> {
        let at = Pointer::to;
        let spec = &self.config.spec;
        let (propagation, change, path) = (self.propagation(), self.change(), self.config.rootfs());
        steps.add(&at("/root"), ChangeRoot { change, propagation, path });
        if let Some(process) = spec.process() {
            steps.add_some(&at("/process/terminal"), Console::plan(process, &at("/process"), self.own_dev()));
        }
        steps.add(&at("/mounts"), ReadOnlyLater);
        if self.read_only() {
            steps.add(&at("/root/readonly"), ReadOnlyRoot);
        }
        spec.linux().as_ref().map_or(Ok(()), |linux| add_process_wide(steps, linux))
    }
}

/// The user whom the cgroup is given (config-linux.md, "Cgroup ownership"): of a container that
/// has a cgroup namespace of its own, and its cgroup mounted for writing.
fn cgroup_owner(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let writable = list(spec.mounts()).iter().any(|mount| {
        let source = mount.source().as_ref().is_some_and(|source| source.as_os_str() == "cgroup");
        let place = crate::root::normal(mount.destination()) == std::path::Path::new("/sys/fs/cgroup");
        source && place && !list(mount.options()).iter().any(|option| option == "ro")
    });
    if !writable || !namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP) {
        return None;
    }
    let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
    if !namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
        return Some(user);
    }
    list(spec.linux().as_ref()?.uid_mappings()).iter().find_map(|map| {
        let offset = user.checked_sub(map.container_id()).filter(|&offset| offset < map.size())?;
        Some(map.host_id() + offset)
    })
}

/// Whether an annotation says that the caller's supplementary groups are kept, as crun has it.
pub(super) fn keeps_groups(spec: &Spec) -> bool {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get("run.oci.keep_original_groups"));
    annotation.is_some_and(|value| value == "1")
}

/// Labels of security modules, for a new container and for `exec`.
pub(super) fn add_labels(steps: &mut Steps, process: &Process, at: &Pointer) {
    let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    if let Some(profile) = given(process.apparmor_profile()) {
        let at = at.key("apparmorProfile");
        steps.add(&at, ExecLabel::apparmor(&profile, at.clone()));
    }
    if let Some(label) = given(process.selinux_label()) {
        let at = at.key("selinuxLabel");
        steps.add(&at, ExecLabel::selinux(&label, at.clone()));
    }
}

/// What holds for every process of the container.
pub(super) fn add_process_wide(steps: &mut Steps, linux: &Linux) -> Result<()> {
    steps.add_some(&Pointer::to("/linux/memoryPolicy"), MemoryPolicy::plan(linux)?);
    steps.add_some(&Pointer::to("/linux/personality"), Personality::plan(linux));
    Ok(())
}

/// What the process's rights depend on beside its configuration.
pub(super) struct Credentials {
    /// The capabilities that there are to give.
    pub available: u64,
    /// Whether the container has a /dev/null of damda's making.
    pub own_null: bool,
    /// Whether it is in a user namespace.
    pub user_namespace: bool,
    /// Whether its current directory is the container's root already.
    pub at_root: bool,
    /// Whether it keeps the caller's supplementary groups.
    pub keep_groups: bool,
}

/// The process itself, for a new container and for `exec`: from its privileges, which it loses one
/// after the other, to the program.
pub(super) fn add_process(
    plan: &mut Plan,
    process: &Process,
    linux: Option<&Linux>,
    at: &Pointer,
    credentials: &Credentials,
) -> Result<()> {
    let steps = &mut plan.steps;
    let uid = process.user().uid();
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let limits = limits::plan(process, at);
    let capabilities = Capabilities::plan(process, credentials.available, at);
    let [first_try, second_try] = WorkingDirectory::plan(process, at);

    steps.add_some(&at.key("scheduler"), Scheduler::plan(process, at)?);
    steps.add_some(&at.key("ioPriority"), IoPriority::plan(process, at)?);
    steps.add(at, OwnStandardStreams { uid, own_null: credentials.own_null });
    let elsewhere = !credentials.at_root || crate::root::normal(process.cwd()) != std::path::Path::new("/");
    if elsewhere {
        steps.add(&at.key("cwd"), first_try);
    }
    // The last one counts.
    let home = list(process.env()).iter().rev().find_map(|entry| entry.strip_prefix("HOME="));
    if home.is_none_or(str::is_empty) {
        steps.add(&at.key("env"), FindHome { uid });
    }
    if !limits.is_empty() {
        steps.add(&at.key("rlimits"), Limits(limits.clone()));
    }
    steps.add(&at.key("capabilities").key("bounding"), BoundingSet::from(capabilities));
    steps.add(&at.key("user"), User::plan(process, at, credentials.keep_groups));
    if no_new_privileges {
        steps.add(&at.key("noNewPrivileges"), NoNewPrivileges);
    }
    if elsewhere {
        steps.add(&at.key("cwd"), second_try);
    }
    steps.add(&at.key("args"), FindProgram::plan(process, at)?);

    let filter = match linux.and_then(|linux| linux.seccomp().as_ref()) {
        Some(seccomp) => crate::seccomp::compile(seccomp)?,
        None => None,
    };
    if let Some(filter) = &filter {
        // Without TSYNC, which is for processes with threads: so runc counts them.
        let flags = filter.flags & !(libc::SECCOMP_FILTER_FLAG_TSYNC as u32);
        crate::log::debug(|| format!("seccomp filter flags: {flags}"));
    }
    let seccomp = filter.map(|filter| LoadSeccomp { filter, privileged: !no_new_privileges });
    let seccomp_at = Pointer::to("/linux/seccomp");
    // Without no_new_privs only an administrator may load a filter, so it comes before the
    // capabilities go; with it, after, so that fewer calls need the profile's consent.
    if no_new_privileges {
        plan.finish.add(&at.key("capabilities"), capabilities);
        plan.finish.add_some(&seccomp_at, seccomp);
    } else {
        plan.finish.add_some(&seccomp_at, seccomp);
        plan.finish.add(&at.key("capabilities"), capabilities);
    }
    plan.limits = if credentials.user_namespace { limits } else { Vec::new() };
    plan.oom_score_adj = process.oom_score_adj();
    plan.program = Some(Program::plan(process, at)?);
    Ok(())
}

/// The hooks that the container's own process runs: after the mounts, and just before the program.
fn add_hooks(steps: &mut Steps, config: &Config, id: &str, kind: Kind) {
    let hooks = kind.of(config.spec.hooks()).to_vec();
    if hooks.is_empty() {
        return;
    }
    let annotations =
        config.spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    let status = if kind == Kind::CreateContainer { "creating" } else { "created" };
    let state = spec_state(id, status, &config.bundle, &annotations.collect(), None);
    let directory = (kind == Kind::CreateContainer).then(|| config.rootfs());
    // One that runs in the container has what the program has, as under runc.
    let process = config.spec.process().as_ref().filter(|_| kind == Kind::StartContainer);
    let environment = process.map_or(Vec::new(), |process| list(process.env()).to_vec());
    let step = RunHooks { kind, hooks, state, directory, environment };
    steps.add(&Pointer::to("/hooks").key(kind.name()), step);
}
