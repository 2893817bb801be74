//! `create`: the container's environment is made, and its first process waits for `start`
//! (runtime.md, "Create").

use super::{Global, connect_to, delete, send_pidfd, write_pid_file};
use crate::cgroup::{self, Cgroup, Manager};
use crate::config::{Config, SPEC_VERSION, list, sysctl_namespace, sysctl_path};
use crate::container::{Container, HostMounts, Init, Listener, State, Status, gate};
use crate::error::{Context, Error, Pointer, Result};
use crate::host::Host;
use crate::launch::foreground::take_signals;
use crate::launch::init::{self, Luggage, Start};
use crate::launch::notify::Notify;
use crate::launch::spawn::{Destination, Joined, close_to_tracers, open_namespaces, spawn};
use crate::launch::start::Waits;
use crate::launch::{Child, idmap, notify, trees};
use crate::link::{Link, Message};
use crate::log;
use crate::plan::{self, Plan, Request};
use crate::steps::hooks::{self, Kind};
use crate::steps::namespaces::{self, is_own};
use crate::steps::net_devices;
use crate::steps::rootfs::check_directory;
use crate::steps::trees::Tree;
use crate::sys::process::pidfd_getfd;
use crate::sys::scheduling::set_affinity;
use crate::sys::{Call, file, identity};
use nix::sched::CloneFlags;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The container's id.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Where the terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Where the process's id is written.
    pub pid_file: Option<PathBuf>,
    /// Where the process's descriptor is sent.
    pub pidfd_socket: Option<PathBuf>,
    /// Don't use pivot_root(2).
    pub no_pivot: bool,
    /// Leave the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors after the standard streams the program keeps.
    pub preserve_fds: u32,
}

/// How the container will be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By `start`, later.
    Create,
    /// By this process, which then leaves it alone (`run --detach`).
    Detached,
    /// By this process, which stays with it (`run`).
    Foreground,
}

/// A container whose first process is ready.
pub struct Created {
    /// It.
    pub container: Container,
    /// Its first process.
    pub child: Child,
    /// The connection to it.
    pub link: Link,
    /// Where the terminal comes from, for a foreground process that has one.
    pub terminal: Option<OwnedFd>,
    /// Whether it waits.
    pub waits: Waits,
    /// This process's signals, where it will stay with the container.
    pub signals: Option<SignalFd>,
    /// Where the program will say that it is ready, if it starts before this process comes back to it.
    pub notify: Option<Notify>,
}

/// The command.
pub fn run(global: &Global, options: &Options) -> Result<()> {
    let config = Config::load(&options.bundle)?;
    let created = create(global, options, &config, Mode::Create)?;
    if let Some(path) = &options.pid_file {
        // The last thing: an engine that finds it takes the container as created.
        write_pid_file(path, created.child.pid)
            .inspect_err(|_| undo(&created.container, Some(&created.child)))?;
    }
    created.container.directory.unlock()
}

/// Makes the container. On failure nothing of it is left.
pub fn create(global: &Global, options: &Options, config: &Config, mode: Mode) -> Result<Created> {
    check_terminal(config, mode != Mode::Foreground, options.console_socket.as_deref())?;
    check_manager(global)?;
    check_directory(&config.rootfs())?;
    let kept = kept_descriptors(options)?;
    let request = Request {
        id: options.id.clone(),
        no_pivot: options.no_pivot,
        cgroup_manager: global.cgroup_manager,
        no_new_keyring: options.no_new_keyring,
        listen_fds: kept.listen,
    };
    let mut notified = None;
    if notify::is_wanted() {
        let mut with_socket = config.clone();
        notify::add_to(&mut with_socket.spec, &global.store.place_of(&options.id));
        notified = Some(with_socket);
    }
    let plan = plan::create(notified.as_ref().unwrap_or(config), &Host::probe()?, &request)?;
    log::debug_lines(|| plan.to_string());
    let mut state = describe(config, &plan, &options.id);
    if !plan.namespaces.has(CloneFlags::CLONE_NEWNS) {
        state.host_mounts = Some(HostMounts::before(&state.rootfs)?);
    }
    let directory = global.store.claim(&options.id)?;
    let mut attempt = Attempt { container: Container { directory, state }, child: None, notify: None };
    match attempt.make(config, plan, options, kept.listen + kept.preserved, mode) {
        Ok((link, terminal, signals)) => {
            let child = attempt.child.ok_or_else(|| Error::new("the container has no process"))?;
            let waits = if mode == Mode::Create || terminal.is_some() { Waits::ToBeTold } else { Waits::Not };
            let (container, notify) = (attempt.container, attempt.notify);
            Ok(Created { container, child, link, terminal, waits, signals, notify })
        }
        Err(error) => {
            undo(&attempt.container, attempt.child.as_ref());
            Err(error)
        }
    }
}

/// systemd makes cgroups only where it runs.
pub fn check_manager(global: &Global) -> Result<()> {
    if global.cgroup_manager != Manager::Systemd || cgroup::systemd_is_running() {
        return Ok(());
    }
    let error = "systemd cgroup flag passed, but systemd support for managing cgroups is not available";
    Err(Error::new(error)
        .hint("systemd doesn't run this machine: leave out --systemd-cgroup, or set the engine's cgroup driver to cgroupfs"))
}

/// Takes back what was made. The error that led here is the one to report.
fn undo(container: &Container, child: Option<&Child>) {
    if let Some(child) = child {
        let _ = child.kill();
    }
    delete::clean_up(container, child.is_some());
}

/// A terminal needs somebody who holds its other end: this process, unless it is `detached`, or whoever
/// listens at the console socket, if there is one.
pub fn check_terminal(config: &Config, detached: bool, socket: Option<&Path>) -> Result<()> {
    let checked = check_console_socket(config.has_terminal(), detached, socket.is_some());
    checked.at(&Pointer::to("/process/terminal"))
}

/// As `check_terminal`, for `exec` too.
pub fn check_console_socket(terminal: bool, detached: bool, socket: bool) -> Result<()> {
    match (terminal && detached, socket) {
        (true, false) => {
            Err(Error::new("cannot allocate tty if damda will detach without setting console socket"))
        }
        (false, true) => {
            Err(Error::new("cannot use console socket if damda will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// Descriptors after the standard streams that the program keeps.
pub struct Kept {
    /// Those of socket activation (sd_listen_fds(3)).
    pub listen: u32,
    /// Those of `--preserve-fds`.
    pub preserved: u32,
}

fn kept_descriptors(options: &Options) -> Result<Kept> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let for_us = || number("LISTEN_PID") == Some(std::process::id());
    let listen = number("LISTEN_FDS").filter(|_| for_us()).unwrap_or(0);
    check_preserved(listen, options.preserve_fds)?;
    Ok(Kept { listen, preserved: options.preserve_fds })
}

/// A descriptor that isn't there would become one of the runtime's own.
pub fn check_preserved(listen: u32, preserved: u32) -> Result<()> {
    for index in 0..listen.saturating_add(preserved) {
        let fd = 3 + index;
        let path = format!("/proc/self/fd/{fd}");
        if !Path::new(&path).exists() && std::fs::symlink_metadata(&path).is_err() {
            return Err(Error::new(format!(
                "unable to stat preserved-fd {index} (of {preserved}, LISTEN_FDS {listen}): no such file or directory"
            )));
        }
    }
    Ok(())
}

/// What is kept of the container.
pub fn describe(config: &Config, plan: &Plan, id: &str) -> State {
    let spec = &config.spec;
    let hooks = |kind: Kind| kind.of(spec.hooks()).to_vec();
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let listener = seccomp.filter(|seccomp| crate::seccomp::notifies(seccomp)).and_then(|seccomp| {
        let path = seccomp.listener_path().clone()?;
        Some(Listener { path, metadata: seccomp.listener_metadata().clone() })
    });
    let namespaces = plan::Namespaces::plan(spec).all();
    State {
        oci_version: SPEC_VERSION.into(),
        id: id.into(),
        bundle: config.bundle.clone(),
        rootfs: config.rootfs(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: identity::user().as_raw(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        init: None,
        resctrl: None,
        host_mounts: None,
        cgroup: plan.cgroup.as_ref().map(Cgroup::planned).unwrap_or_default(),
        namespaces: namespaces.bits(),
        own_pid_namespace: plan.namespaces.new.contains(CloneFlags::CLONE_NEWPID),
        has_process: spec.process().is_some(),
        poststart: hooks(Kind::Poststart),
        poststop: hooks(Kind::Poststop),
        listener,
    }
}

/// A container in the making.
struct Attempt {
    container: Container,
    child: Option<Child>,
    notify: Option<Notify>,
}

impl Attempt {
    fn make(
        &mut self,
        config: &Config,
        plan: Plan,
        options: &Options,
        kept: u32,
        mode: Mode,
    ) -> Result<(Link, Option<OwnedFd>, Option<SignalFd>)> {
        self.begin(config, mode)?;
        let container = &mut self.container;
        // What hasn't been made yet is nothing to take back.
        container.state.cgroup = Cgroup::default();

        let (pid_namespace, user_namespace, joined) = open_namespaces(&plan.namespaces)?;
        refuse_the_hosts(config, &joined)?;
        let trees = trees::open(&plan.trees)?;
        let network = network_to_join(&plan, &joined)?;
        let (console, terminal) = console(config, options, mode)?;
        let start = match mode {
            Mode::Create => Start::AtGate(gate::make(&container.directory)?),
            // Its terminal must have its size and mode before the program asks.
            Mode::Detached | Mode::Foreground if terminal.is_some() => Start::WhenTold,
            Mode::Detached | Mode::Foreground => Start::AtOnce,
        };
        container.make_cgroup(plan.cgroup.as_ref())?;
        let cgroup = container.state.cgroup.descriptor()?;
        if container.state.host_mounts.is_some() {
            // Before there are any: a killed `create` must not leave them to the host.
            container.save_init()?;
        }

        let (link, inits) = Link::pair()?;
        let new = plan.namespaces.new;
        let maps_itself = new.contains(CloneFlags::CLONE_NEWUSER) && !identity::user().is_root();
        if !maps_itself {
            // An ordinary user's process must stay reachable until its maps are written, which
            // it is then closed after.
            close_to_tracers()?;
        }
        let early = match user_namespace {
            Some(_) => copies(&joined)?,
            None => Joined::new(),
        };
        let destination = Destination {
            new,
            joined: early,
            runs_hooks: true,
            pid_namespace: pid_namespace.map(|fd| (CloneFlags::CLONE_NEWPID, fd)),
            user_namespace: user_namespace.map(|fd| (CloneFlags::CLONE_NEWUSER, fd)),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            if_busy: None,
        };
        let directory = container.directory.as_fd().as_raw_fd();
        let luggage = Luggage {
            link: inits,
            console,
            trees,
            root: None,
            namespaces: joined,
            kept: kept as i32,
            start,
            abandoned: [directory, link.as_fd().as_raw_fd()],
        };
        let child = spawn(destination, || init::run(&plan, luggage))?;
        let pid = child.pid;
        self.child = Some(child);
        self.equip(&plan, pid, network)?;
        let signals = (mode == Mode::Foreground).then(take_signals).transpose()?;
        link.send(&Message::Go)?;
        file::close_left();
        until_ready(&link, &self.container, config, &plan.trees, self.child.as_ref())?;
        if let (Some(path), Some(child)) = (&options.pidfd_socket, &self.child) {
            send_pidfd(path, "standard", child.pidfd.as_fd())?;
        }
        if let Some(mounts) = &mut self.container.state.host_mounts {
            mounts.note()?;
            self.container.save_init()?;
        }
        Ok((link, terminal, signals))
    }

    /// The container exists from here on.
    fn begin(&mut self, config: &Config, mode: Mode) -> Result<()> {
        let container = &self.container;
        container.directory.lock()?;
        // Before there is a cgroup: what a killed `create` leaves must be found by `delete --force`.
        container.save(config)?;
        if notify::is_wanted() {
            notify::make_directory(&container.directory)?;
            let starts_it = mode != Mode::Create;
            self.notify = starts_it.then(|| Notify::listen(&container.directory)).transpose()?.flatten();
        }
        Ok(())
    }

    /// Gives the new process what it can't have by itself, before it goes on. `network` is where network
    /// devices go, if not to its own namespace.
    fn equip(&mut self, plan: &Plan, pid: Pid, network: Option<OwnedFd>) -> Result<()> {
        let container = &mut self.container;
        container.state.init = Init::now(pid);
        container.save_init()?;
        container.make_unit(plan.cgroup.as_ref(), pid)?;
        container.make_resctrl(plan.resctrl.as_ref(), pid)?;
        prepare_process(pid, plan, &container.state.cgroup)?;
        if plan.net_devices.is_empty() {
            return Ok(());
        }
        let network = network.map_or_else(|| namespaces::open(pid, CloneFlags::CLONE_NEWNET), Ok)?;
        net_devices::move_all(&plan.net_devices, network.as_fd())
    }
}

/// A namespace can be joined that is the host's own: then what is set in it would be set on the host.
fn refuse_the_hosts(config: &Config, joined: &Joined) -> Result<()> {
    for (kind, at) in set_in_namespaces(config)? {
        let Some((_, namespace)) = joined.iter().find(|(other, _)| *other == kind) else { continue };
        if is_own(kind, namespace.as_fd())? {
            let name = plan::namespace_name(kind);
            return Err(Error::new(format!(
                "would change the host's: the {name} namespace that is joined is the host's own"
            ))
            .at(at));
        }
    }
    Ok(())
}

/// The fields that set something in a namespace, with its type.
fn set_in_namespaces(config: &Config) -> Result<Vec<(CloneFlags, Pointer)>> {
    let mut fields = Vec::new();
    let is_set = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if is_set(config.spec.hostname()) {
        fields.push((CloneFlags::CLONE_NEWUTS, Pointer::to("/hostname")));
    }
    if !list(config.spec.mounts()).is_empty() {
        fields.push((CloneFlags::CLONE_NEWNS, Pointer::to("/mounts")));
    }
    if is_set(config.spec.domainname()) {
        fields.push((CloneFlags::CLONE_NEWUTS, Pointer::to("/domainname")));
    }
    let linux = config.spec.linux().as_ref();
    for key in linux.and_then(|linux| linux.sysctl().as_ref()).into_iter().flat_map(|sysctls| sysctls.keys())
    {
        if let Some(kind) = sysctl_namespace(&sysctl_path(key)?) {
            fields.push((plan::namespace_flag(kind), Pointer::to("/linux/sysctl").key(key)));
        }
    }
    Ok(fields)
}

/// The network namespace that devices are moved to, where the process joins it: it may not be in it yet.
fn network_to_join(plan: &Plan, joined: &Joined) -> Result<Option<OwnedFd>> {
    let network = joined.iter().find(|(kind, _)| *kind == CloneFlags::CLONE_NEWNET);
    let network = network.filter(|_| !plan.net_devices.is_empty());
    Ok(network.map(|(_, fd)| fd.try_clone()).transpose().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?)
}

fn copies(joined: &Joined) -> Result<Joined> {
    let copy = |(kind, fd): &(CloneFlags, OwnedFd)| Ok((*kind, fd.try_clone()?));
    Ok(joined.iter().map(copy).collect::<std::io::Result<_>>().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?)
}

/// More CPUs than any kernel is built for.
const MOST_CPUS: usize = 8192;

/// Does to the new process what it can't do itself.
pub fn prepare_process(pid: Pid, plan: &Plan, cgroup: &Cgroup) -> Result<()> {
    if let Some(maps) = &plan.namespaces.maps {
        idmap::write(pid, maps)?;
    }
    cgroup.enter(pid).map_err(|error| error.at(Pointer::to("/linux/cgroupsPath")))?;
    if plan.affinity == [None, None] {
        // The caller's own is none of the container's business: its cgroup says which CPUs it may have.
        if let Err(failed) = set_affinity(pid, &[u64::MAX; MOST_CPUS / 64]) {
            crate::log::debug(|| failed.to_string());
        }
    }
    plan.limits.iter().try_for_each(|limit| limit.allow(pid))?;
    if let Some(value) = plan.oom_score_adj {
        let path = format!("/proc/{pid}/oom_score_adj");
        let path = Path::new(&path);
        match file::write(path, &value.to_string()) {
            // An ordinary user's process has inherited it.
            Err(_) if file::read(path).is_ok_and(|now| now.trim() == value.to_string()) => {}
            other => other.at(&Pointer::to("/process/oomScoreAdj")).map_err(|error| {
                error
                    .hint("only CAP_SYS_RESOURCE may make a process less likely to be killed than its parent")
            })?,
        }
    }
    Ok(())
}

/// Answers what the first process asks for until it says that it is ready.
fn until_ready(
    link: &Link,
    container: &Container,
    config: &Config,
    trees: &[Tree],
    child: Option<&Child>,
) -> Result<()> {
    let child = child.ok_or_else(|| Error::new("the container has no process"))?;
    loop {
        match link.receive()? {
            Some(Message::Ready) => return Ok(()),
            Some(Message::HooksPlease) => {
                let state = container.state.for_hooks(Status::Creating, Some(child.pid));
                for kind in [Kind::Prestart, Kind::CreateRuntime] {
                    hooks::run(kind, kind.of(config.spec.hooks()), &state, &config.bundle)?;
                }
                link.send(&Message::HooksDone)?;
            }
            Some(Message::IdMapPlease { index, fd }) => {
                let tree = trees.iter().find(|tree| tree.index == index);
                let tree = tree.ok_or_else(|| Error::new("unexpected message: no such mount"))?;
                trees::map(tree, pidfd_getfd(child.pidfd.as_fd(), fd)?.as_fd())?;
                link.send(&Message::IdMapped)?;
            }
            Some(Message::Failed(text)) => return Err(Error::new(text)),
            Some(other) => return Err(Error::new(format!("unexpected message {other:?}"))),
            None => return Err(died(container)),
        }
    }
}

/// Says what is known of a first process that died without a word.
fn died(container: &Container) -> Error {
    let error = Error::new("the container's first process died while it was set up");
    let memory = container.state.cgroup.ran_out_of_memory();
    let at = Pointer::to("/linux/resources/memory/limit");
    if memory { error.at(at).hint("it was killed for want of memory: the limit is too low") } else { error }
}

/// Where the process sends its terminal: to the caller's socket, or to this process.
fn console(config: &Config, options: &Options, mode: Mode) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    if let Some(path) = &options.console_socket {
        return Ok((Some(connect_to(path, "console")?), None));
    }
    if !config.has_terminal() || mode != Mode::Foreground {
        return Ok((None, None));
    }
    terminal_pair().map(|(theirs, ours)| (Some(theirs), Some(ours)))
}

/// Two ends of a connection for a terminal.
pub fn terminal_pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .call(|| "socketpair(AF_UNIX, SOCK_STREAM)".into())?)
}
