//! `exec`: another process in a container.

use super::create::{check_console_socket, check_preserved, prepare_process, terminal_pair};
use super::{Global, connect_to, send_pidfd, write_pid_file};
use crate::cgroup::Cgroup;
use crate::config::{Config, check_process, group_id, load_process, user_id};
use crate::container::{Container, Init, Status};
use crate::error::{Context, Error, Pointer, Result};
use crate::host::Host;
use crate::launch::Child;
use crate::launch::foreground::{Foreground, become_subreaper, take_signals};
use crate::launch::init::{self, Luggage, Start};
use crate::launch::spawn::{Destination, Joined, close_to_tracers, spawn};
use crate::launch::start::{self, Waits};
use crate::link::{Link, Message};
use crate::plan::{self, ExecRequest, Plan};
use crate::root::Root;
use crate::sys::scheduling::set_affinity;
use crate::sys::{Call, file, identity};
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What the command line says.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // each is the option of its name, described in cli.rs
pub struct Options {
    pub id: String,
    pub arguments: Vec<String>,
    pub process: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    pub env: Vec<String>,
    pub tty: bool,
    pub user: Option<String>,
    pub additional_gids: Vec<u32>,
    pub detach: bool,
    pub process_label: Option<String>,
    pub apparmor: Option<String>,
    pub no_new_privs: bool,
    pub cap: Vec<String>,
    pub preserve_fds: u32,
    pub cgroup: Vec<String>,
    pub ignore_paused: bool,
}

/// The command; returns the process's exit status, or 0 when it is left alone.
pub fn run(global: &Global, options: &Options) -> Result<i32> {
    let container = Container::load(&global.store, &options.id)?;
    let stopped = || Error::new("cannot exec in a stopped container");
    match container.status()? {
        Status::Stopped => return Err(stopped()),
        Status::Creating => return Err(Error::new("cannot exec in a container that is being created")),
        Status::Paused if !options.ignore_paused => {
            return Err(Error::new("cannot exec in a paused container (use --ignore-paused to override)"));
        }
        _ => {}
    }
    let init = container.live_init().ok_or_else(stopped)?;
    let config = container.config()?;
    let (process, at) = process(options, &config)?;
    let has_terminal = process.terminal() == Some(true);
    check_console_socket(has_terminal, options.detach, options.console_socket.is_some())?;
    check_preserved(0, options.preserve_fds)?;

    let namespaces = CloneFlags::from_bits_retain(container.state.namespaces);
    let request = ExecRequest { id: &options.id, config: &config, namespaces, process: &process, at };
    let plan = plan::exec(&request, &Host::probe()?)?;
    let (console, terminal) = match &options.console_socket {
        Some(path) => (Some(connect_to(path, "console")?), None),
        None if has_terminal => terminal_pair().map(|(theirs, ours)| (Some(theirs), Some(ours)))?,
        None => (None, None),
    };
    if !options.detach {
        become_subreaper()?;
    }
    let cgroup = sub_cgroup(&container.state.cgroup, &options.cgroup)?;
    let (link, inits) = Link::pair()?;
    let luggage = Luggage {
        link: inits,
        console,
        trees: Vec::new(),
        root: root_of(&init, namespaces)?,
        namespaces: Vec::new(),
        kept: options.preserve_fds as i32,
        // Its terminal must have its size and mode before the program asks.
        start: if terminal.is_some() { Start::WhenTold } else { Start::AtOnce },
        abandoned: [container.directory.as_fd().as_raw_fd(), link.as_fd().as_raw_fd()],
    };
    let target = init.pidfd()?.ok_or_else(stopped)?;
    if let [Some(initial), _] = &plan.affinity {
        set_affinity(Pid::from_raw(0), initial)?;
        // runc's words, which are looked for.
        let mask = initial.iter().rev().fold(0u128, |mask, word| mask << 64 | u128::from(*word));
        crate::log::debug(|| format!("nsexec: affinity: {mask:#x}"));
    }
    if let Some(value) = plan.oom_score_adj.filter(|_| !identity::user().is_root()) {
        // Inherited by the process, whose own file is root's once it is closed to tracers.
        let own = file::write(Path::new("/proc/self/oom_score_adj"), &value.to_string());
        own.at(&Pointer::to("/process/oomScoreAdj"))?;
    }
    close_to_tracers()?;
    let child = enter(&plan, luggage, &target, namespaces, &cgroup, &init)?;
    let begun = begin(&container, &plan, &cgroup, &link, &child, terminal, options);
    match begun.inspect_err(|_| drop(child.kill()))? {
        Some(mut foreground) => foreground.wait_for(&child, None),
        None => Ok(0),
    }
}

/// The root directory of a container that has no mount namespace: it is in the host's, and only its
/// processes' own root is another.
fn root_of(init: &Init, namespaces: CloneFlags) -> Result<Option<Root>> {
    if namespaces.contains(CloneFlags::CLONE_NEWNS) {
        return Ok(None);
    }
    // That it is still the same process is checked after this, when its pidfd is opened.
    Ok(Some(Root::open(Path::new(&format!("/proc/{}/root", init.pid())))?))
}

/// Makes the process in the container's namespaces and cgroup.
fn enter(
    plan: &Plan,
    mut luggage: Luggage,
    target: &OwnedFd,
    namespaces: CloneFlags,
    cgroup: &Cgroup,
    init: &Init,
) -> Result<Child> {
    let part = |kinds: CloneFlags| -> Result<Option<(CloneFlags, OwnedFd)>> {
        let kinds = namespaces & kinds;
        let copy = (!kinds.is_empty()).then(|| target.try_clone()).transpose();
        Ok(copy.call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?.map(|fd| (kinds, fd)))
    };
    // Root enters the user namespace with all the others at once; an ordinary user has to be in
    // it to be allowed to enter them.
    let first = if identity::user().is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    luggage.namespaces.extend(part(namespaces - first - CloneFlags::CLONE_NEWPID)?);
    let directory = cgroup.descriptor()?;
    let init = init.pid();
    let beside_init = move || Cgroup::of_process(init)?.descriptor();
    let destination = Destination {
        new: CloneFlags::empty(),
        joined: Joined::new(),
        runs_hooks: false,
        pid_namespace: part(CloneFlags::CLONE_NEWPID)?,
        user_namespace: part(first)?,
        cgroup: directory.as_ref().map(AsFd::as_fd),
        // systemd in a container makes cgroups in the container's own, which then takes no
        // processes any more.
        if_busy: Some(&beside_init),
    };
    spawn(destination, || init::run(plan, luggage))
}

/// From the new process to its running program.
fn begin(
    container: &Container,
    plan: &Plan,
    cgroup: &Cgroup,
    link: &Link,
    child: &Child,
    terminal: Option<OwnedFd>,
    options: &Options,
) -> Result<Option<Foreground>> {
    prepare_process(child.pid, plan, cgroup)?;
    container.state.resctrl.iter().try_for_each(|groups| groups.enter(child.pid))?;
    if let [_, Some(last)] = &plan.affinity {
        set_affinity(child.pid, last)?;
    }
    let signals = if options.detach { None } else { Some(take_signals()?) };
    link.send(&Message::Go)?;
    match link.receive()? {
        Some(Message::Ready) => {}
        Some(Message::Failed(text)) => return Err(Error::new(text)),
        _ => return Err(Error::new("the process died while it was set up")),
    }
    file::close_left();
    let waits = if terminal.is_some() { Waits::ToBeTold } else { Waits::Not };
    let foreground = signals.map(|signals| Foreground::prepare(signals, terminal)).transpose()?;
    let state = || container.state.for_hooks(Status::Running, container.state.init.map(|init| init.pid()));
    // Where this fails the caller's terminal is given back before anything is printed to it.
    start::begin(link, waits, |fd| {
        start::send_listener(container, child.pidfd.as_fd(), child.pid, fd, state())
    })?;
    if let Some(path) = &options.pidfd_socket {
        send_pidfd(path, "setns", child.pidfd.as_fd())?;
    }
    if let Some(path) = &options.pid_file {
        write_pid_file(path, child.pid)?;
    }
    Ok(foreground)
}

/// The process to run, and the field of config.json that it is, or the root of a file of its own.
fn process(options: &Options, config: &Config) -> Result<(Process, Pointer)> {
    if let Some(path) = &options.process {
        return Ok((load_process(path)?, Pointer::to("")));
    }
    let at = Pointer::to("/process");
    let configured = config.spec.process().clone();
    let mut process =
        configured.ok_or_else(|| Error::new("missing: give one with --process").at(at.clone()))?;
    process.set_args(Some(options.arguments.clone()));
    process.set_terminal(Some(options.tty));
    process.env_mut().get_or_insert_default().extend(options.env.iter().cloned());
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !options.cap.is_empty() {
        let sets = with_capabilities(process.capabilities().clone(), &options.cap);
        process.set_capabilities(Some(sets));
    }
    let user = process.user_mut();
    if let Some(text) = &options.user {
        let (uid, gid) = parse_user(text)?;
        let gid = gid.unwrap_or(user.gid());
        user.set_uid(uid).set_gid(gid);
    }
    for &gid in &options.additional_gids {
        user.additional_gids_mut().get_or_insert_default().push(group_id(gid)?);
    }
    check_process(&process, &at)?;
    Ok((process, at))
}

/// `uid[:gid]`, numbers only: a name would have to be looked up in files of the container's, and
/// what isn't a number must not come to mean root (CVE-2016-3697, CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str| -> Result<u32> {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let bad = || Error::new(format!("--user {text:?} is not of the form UID[:GID]"));
        if digits { part.parse().map_err(|_| bad()) } else { Err(bad()) }
    };
    match text.split_once(':') {
        None => Ok((user_id(number(text)?)?, None)),
        Some((uid, gid)) => Ok((user_id(number(uid)?)?, Some(group_id(number(gid)?)?))),
    }
}

/// Adds capabilities to what the process may have and has.
fn with_capabilities(sets: Option<LinuxCapabilities>, names: &[String]) -> LinuxCapabilities {
    let mut sets = sets.unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_permitted(None)
            .set_inheritable(None)
            .set_ambient(None);
        none
    });
    for name in names {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let Ok(capability) = Capability::from_str(short) else {
            crate::log::warning(&format!("--cap: ignoring unknown capability {name:?}"));
            continue;
        };
        let with = |set: &Option<_>| {
            let mut set: oci_spec::runtime::Capabilities = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective, permitted) =
            (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        // Ambient it can only be where it is inheritable, which this doesn't make it.
        if sets.inheritable().is_some() {
            let ambient = with(sets.ambient());
            sets.set_ambient(ambient);
        }
    }
    sets
}

/// The cgroup for `--cgroup [CONTROLLERS:]PATH`, each below the container's own.
fn sub_cgroup(cgroup: &Cgroup, options: &[String]) -> Result<Cgroup> {
    let mut below = cgroup.clone();
    for option in options {
        let (controllers, path) = match option.split_once(':') {
            Some((controllers, path)) => (Some(controllers), path),
            None => (None, option.as_str()),
        };
        let path = path.trim_start_matches('/');
        if Path::new(path)
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir))
        {
            let error =
                format!("--cgroup {option:?}: bad sub cgroup path: it leads out of the container's cgroup");
            return Err(Error::new(error));
        }
        if let Some(unknown) = controllers.and_then(|list| list.split(',').find(|one| !below.has(one))) {
            let error = format!("--cgroup {option:?}: unknown controller {unknown:?}");
            return Err(Error::new(error).hint("the container has no cgroup of that one"));
        }
        below = below.below(controllers, Path::new(path));
    }
    let missing = below.directories().find(|(_, path)| !options.is_empty() && !path.is_dir());
    if let Some((_, path)) = missing {
        let error = format!("--cgroup: adding pid to cgroup {path:?}: no such file or directory");
        return Err(Error::new(error));
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("0"), Ok((0, None)));
        assert_eq!(parse_user("1000:5"), Ok((1000, Some(5))));
        for bad in
            ["", ":", "root", "0:", ":0", "-1", "4294967295", "4294967296", "1:2:3", "0x0", "+0", " 0", "1 "]
        {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn added_capabilities_are_in_force() {
        let sets = with_capabilities(None, &["CAP_KILL".into(), "NET_RAW".into(), "CAP_MOON".into()]);
        let count = |set: &Option<oci_spec::runtime::Capabilities>| set.as_ref().map_or(0, |set| set.len());
        assert_eq!((count(sets.bounding()), count(sets.effective()), count(sets.permitted())), (2, 2, 2));
        assert_eq!((count(sets.ambient()), count(sets.inheritable())), (0, 0));
    }

    #[test]
    fn sub_cgroups_stay_below() {
        assert!(sub_cgroup(&Cgroup::default(), &["../x".into()]).is_err());
        assert!(sub_cgroup(&Cgroup::default(), &["cpu:a/../../x".into()]).is_err());
    }
}
