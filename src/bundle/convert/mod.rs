//! An image's configuration to config.json, as conversion.md of the image specification has it; where that
//! leaves a choice, as Docker's engine 28 does.
//!
//! | | |
//! |---|---|
//! | `convert`, `Host` | the whole |
//! | `process`, `mounts`, `annotations`, `seccomp` | parts of it |
//! | `changes` | options that change it |
//! | `user` | who the user is, in the image's /etc/passwd and /etc/group |
//! | `capabilities` | names of options to sets |
//! | `rootfs` | the only way to look into the image's root file system |
//! | `spec` | what is written |
//!
//! What is not Docker's:
//! - Labels that would make a runtime do something are left out, and notes say so.
//! - A volume of the image is a tmpfs that begins with what the image has there, not a directory that is
//!   kept elsewhere.
//! - There is a cgroup namespace on every host, where Docker has one on cgroup v2 only.
//! - There is no network but `lo`, unless one is named.
//! - The host's name is `damda`, not the container's id, which isn't known yet.

mod annotations;
mod capabilities;
mod changes;
mod mounts;
mod process;
mod rootfs;
mod seccomp;
mod spec;
mod user;

pub use changes::{Changes, Network};
pub use spec::{IdMapping, Mount, Spec};
pub use user::Mappings;

use crate::error::{Error, Result};
use oci_spec::image::{Config, ImageConfiguration};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// What the bundle is for, apart from the image.
#[derive(Debug, Clone)]
pub struct Host {
    /// `root.path`: relative to the bundle, or absolute.
    pub root: String,
    /// Mounts before all others: for an overlay, that on "/".
    pub mounts: Vec<Mount>,
    /// The ids of the user namespace, for a container that is to have one.
    pub mappings: Option<Mappings>,
    /// Of the kernel, as Rust names it: whose system calls are filtered, whatever the image is for.
    pub architecture: &'static str,
    /// More paths to mask, which this host has.
    pub masked: Vec<String>,
}

impl Host {
    /// This one, with a root file system in `root` and no user namespace.
    pub fn here(root: &str) -> Self {
        let (mounts, mappings, architecture) = (Vec::new(), None, std::env::consts::ARCH);
        Host { root: root.into(), mounts, mappings, architecture, masked: thermal_throttle() }
    }
}

/// How often a CPU was too hot, from which a container could learn what others do (GHSA-6fw5-f8r9-fgfm).
fn thermal_throttle() -> Vec<String> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let paths = cpus.map(|cpu| cpu.path().join("thermal_throttle")).filter(|path| path.exists());
    let mut paths: Vec<_> = paths.filter_map(|path| path.to_str().map(str::to_owned)).collect();
    paths.sort_by_key(|path| (path.len(), path.clone())); // cpu2 before cpu10
    paths
}

/// A configuration, and what people should know of it.
#[derive(Debug)]
pub struct Converted {
    /// The configuration.
    pub spec: Spec,
    /// A sentence for each thing of the image that was left out, or is other than under Docker.
    pub notes: Vec<String>,
}

/// The configuration of a container of an image (None: of a root file system without one). Names of users
/// and groups are looked up in `rootfs`.
pub fn convert(
    image: Option<&ImageConfiguration>,
    rootfs: BorrowedFd<'_>,
    changes: &Changes,
    host: &Host,
) -> Result<Converted> {
    let nothing = Config::default();
    let config = image.and_then(|image| image.config().as_ref()).unwrap_or(&nothing);
    without_nul(config)?;
    let user = find_user(rootfs, config, changes, host.mappings.as_ref())?;
    let hostname = hostname(changes);
    let chosen = capabilities::choose(&changes.cap_add, &changes.cap_drop);
    let (env, mut notes) = process::env(config, changes, hostname.as_deref(), &user.home)?;
    let process = spec::Process {
        terminal: changes.tty,
        user: spec::User {
            uid: user.uid,
            gid: user.gid,
            umask: 0o022,
            additional_gids: user.additional_gids.clone(),
        },
        args: process::args(config, changes)?,
        env,
        cwd: cwd(config, changes)?,
        capabilities: capabilities::sets(&chosen, user.uid),
        no_new_privileges: false, // sudo and su are in images to be used
    };
    let mut volumes = config.volumes().clone().unwrap_or_default();
    volumes.sort(); // oci-spec has them in no order
    let (more, told) = mounts::mounts(&volumes, rootfs, changes, host.mappings.as_ref())?;
    notes.extend(told);
    let (annotations, told) = image.map(annotations::annotations).unwrap_or_default();
    notes.extend(told);
    let spec = Spec {
        oci_version: spec::VERSION,
        process,
        root: spec::Root { path: host.root.clone(), readonly: changes.read_only },
        hostname,
        mounts: [host.mounts.clone(), more].concat(),
        annotations,
        linux: linux(changes, host, seccomp::profile(host.architecture, &chosen))?,
    };
    Ok(Converted { spec, notes })
}

/// What the kernel couldn't be told is an error now, not when the bundle runs.
fn without_nul(config: &Config) -> Result<()> {
    let texts = [("User", config.user()), ("WorkingDir", config.working_dir())];
    let texts = texts.into_iter().flat_map(|(field, text)| text.iter().map(move |text| (field, text)));
    let lists = [("Env", config.env()), ("Entrypoint", config.entrypoint()), ("Cmd", config.cmd())];
    let lists =
        lists.into_iter().flat_map(|(field, list)| list.iter().flatten().map(move |text| (field, text)));
    match texts.chain(lists).find(|(_, text)| text.contains('\0')) {
        Some((field, _)) => Err(Error::new(format!("the image's {field} contains a NUL character"))),
        None => Ok(()),
    }
}

fn find_user(
    rootfs: BorrowedFd<'_>,
    config: &Config,
    changes: &Changes,
    mappings: Option<&Mappings>,
) -> Result<user::User> {
    let image = config.user().as_deref().unwrap_or_default();
    let text = changes.user.as_deref().unwrap_or(image);
    let whose = match &changes.user {
        Some(user) => format!("--user {user:?}"),
        None if image.is_empty() => "root, as the image names no user".into(),
        None => format!("the image's user {image:?}"),
    };
    let found = user::User::find(rootfs, text).and_then(|mut user| {
        mappings.map_or(Ok(()), |mappings| user.map(mappings))?;
        Ok(user)
    });
    found.map_err(|error| error.prefix(whose))
}

/// One that joins the host's network keeps the host's name, which that network knows it by.
fn hostname(changes: &Changes) -> Option<String> {
    let default = (changes.network != Network::Host).then(|| "damda".to_owned());
    changes.hostname.clone().or(default)
}

fn cwd(config: &Config, changes: &Changes) -> Result<String> {
    let image = config.working_dir().as_deref().filter(|dir| !dir.is_empty());
    let dir = changes.cwd.as_deref().or(image).unwrap_or("/");
    match dir.starts_with('/') {
        true => Ok(dir.into()),
        false => Err(Error::new(format!("the image's working directory {dir:?} is not an absolute path"))
            .hint("--cwd names another")),
    }
}

/// Docker's, of engine 28.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn linux(changes: &Changes, host: &Host, seccomp: spec::Seccomp) -> Result<spec::Linux> {
    let mut sysctl = BTreeMap::new();
    if changes.network == Network::None {
        // As Docker: neither a low port nor ping needs a capability. The second names a group that a user
        // namespace doesn't have.
        sysctl.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        if host.mappings.is_none() {
            sysctl.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    let (uid_mappings, gid_mappings) =
        host.mappings.clone().map(|mappings| (mappings.uids, mappings.gids)).unwrap_or_default();
    Ok(spec::Linux {
        uid_mappings,
        gid_mappings,
        sysctl,
        resources: resources(changes),
        namespaces: namespaces(changes, host)?,
        seccomp,
        masked_paths: MASKED.iter().map(|path| (*path).to_owned()).chain(host.masked.clone()).collect(),
        readonly_paths: READONLY.map(str::to_owned).into(),
    })
}

/// Devices are denied but for the default ones, which the runtime adds; also in a user namespace: it can make
/// none, but an image's that root unpacked are there. (An ordinary user, who may set no rules, has not
/// unpacked any, and runtimes go without.) Limits only as far as they are asked for: he may have no cgroups.
fn resources(changes: &Changes) -> spec::Resources {
    spec::Resources {
        devices: vec![spec::DeviceRule { allow: false, access: "rwm" }],
        memory: changes.memory.map(|limit| spec::Memory { limit }),
        cpu: changes.cpus.map(|cpus| spec::Cpu { quota: cpus.0, period: changes::PERIOD.into() }),
        pids: changes.pids_limit.map(|limit| spec::Pids { limit }),
    }
}

fn namespaces(changes: &Changes, host: &Host) -> Result<Vec<spec::Namespace>> {
    let new = |kind| spec::Namespace { kind, path: None };
    let mut namespaces = vec![new("pid")];
    match &changes.network {
        Network::Host => {}
        Network::None => namespaces.push(new("network")),
        Network::Path(path) => {
            let text = path.to_str().filter(|_| Path::new(path).exists());
            let text = text.ok_or_else(|| {
                Error::new(format!("--network {}: there is no such file", path.display()))
                    .hint("`ip netns add NAME` makes /run/netns/NAME")
            })?;
            namespaces.push(spec::Namespace { kind: "network", path: Some(text.to_owned()) });
        }
    }
    namespaces.extend(["ipc", "uts", "mount", "cgroup"].map(new));
    namespaces.extend(host.mappings.is_some().then(|| new("user")));
    Ok(namespaces)
}

#[cfg(test)]
mod tests;
