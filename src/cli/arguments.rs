//! The commands and their options, as runc has them.
#![allow(missing_docs)] // the comments are what --help says

use super::criu::{Checkpoint, Restore};
use crate::cgroup::Manager;
use crate::lifecycle::list::Format as ListFormat;
use crate::lifecycle::update::{Change, Kind};
use crate::lifecycle::{create, exec};
use crate::log;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// As runc's begins, which people and tests look at.
pub const HELP: &str = "NAME:\n   {usage} - {about}\n\n{all-args}{after-help}";

/// Open Container Initiative runtime
#[derive(Debug, Parser)]
#[command(
    name = "damda",
    args_override_self = true,
    help_template = "NAME:\n   {bin} - {about}\n\nUSAGE:\n   {usage}\n\n{all-args}{after-help}",
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_required = false
)]
pub struct Cli {
    /// directory for the state of containers (should be on a tmpfs)
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// write the log to this file as well as to stderr
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// format of the log
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: log::Format,
    /// how much is logged (default: errors to the file, warnings to stderr)
    #[arg(long, value_enum)]
    pub log_level: Option<log::Level>,
    /// log everything
    #[arg(long)]
    pub debug: bool,
    /// have systemd make the cgroups; cgroupsPath is then of the form "slice:prefix:name"
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// who makes the cgroups
    #[arg(long, value_enum, value_name = "MANAGER", hide = true)]
    pub cgroup_manager: Option<Manager>,
    /// whether to go on without permission for cgroups ('true', 'false' or 'auto')
    #[arg(long, value_enum, default_value = "auto", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub rootless: Rootless,
    /// print the version
    #[arg(long, short = 'v')]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rootless {
    True,
    False,
    Auto,
}

// Deferred: only the arguments of the command that is used are built, which saves 0.1 ms.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Make a bundle from an image: see `damda bundle --help`
    #[command(disable_help_flag = true)]
    Bundle(Foreign),
    /// Say what is wrong with a bundle's configuration, all of it
    Check(Bundle),
    /// Save a running container to files, by CRIU, to be restored later
    Checkpoint(Checkpoint),
    /// Create a container from a bundle; its program waits for `start`
    Create(Create),
    /// Delete a container that has stopped
    Delete(Delete),
    /// Print what a container uses, and that it ran out of memory, as JSON
    Events(Events),
    /// Run another process in a container
    Exec(Exec),
    /// Print what would be done to create a container, without doing it
    Explain(Bundle),
    /// Print what damda can do, as JSON
    Features(Nothing),
    /// Send a signal to a container's first process (default: SIGTERM)
    Kill(Kill),
    /// List containers
    List(List),
    /// Stop all processes of a container until `resume`
    Pause(Id),
    /// List the processes of a container
    Ps(Ps),
    /// Make a container go on from where it was saved by `checkpoint`
    Restore(Restore),
    /// Let the processes of a paused container go on
    Resume(Id),
    /// Create and start a container, and delete it when its program ends
    Run(Run),
    /// Write an example config.json
    Spec(Spec),
    /// Start the program of a created container
    Start(Id),
    /// Print the state of a container, as JSON
    State(Id),
    /// Change the limits of a container
    Update(Update),
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Nothing {}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Id {
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Foreign {
    /// what another program reads
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Bundle {
    /// the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Create {
    /// the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// unix socket that is sent the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// file to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// unix socket that is sent a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// change the root without pivot_root(2), for a host on an initramfs
    #[arg(long)]
    pub no_pivot: bool,
    /// leave the caller's session keyring to the container
    #[arg(long)]
    pub no_new_keyring: bool,
    /// pass N more file descriptors to the container, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// the container's id, unique on the host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Run {
    /// leave the container when its program runs
    #[arg(short, long)]
    pub detach: bool,
    /// keep the container when its program has ended
    #[arg(long)]
    pub keep: bool,
    /// don't collect processes that the container leaves behind
    #[arg(long)]
    pub no_subreaper: bool,
    #[command(flatten)]
    pub create: Create,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Delete {
    /// kill the container if it runs, and remove it even if its state is damaged or missing
    #[arg(short, long)]
    pub force: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Events {
    /// how often what it uses is printed, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub interval: std::time::Duration,
    /// print what it uses once
    #[arg(long)]
    pub stats: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Kill {
    /// send the signal to all processes of the container
    #[arg(short, long)]
    pub all: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// the signal, by name or number
    #[arg(default_value = "SIGTERM", allow_negative_numbers = true)]
    pub signal: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct List {
    /// the form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Ps {
    /// the form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Spec {
    /// directory to write config.json to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// for an ordinary user
    #[arg(long)]
    pub rootless: bool,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Update {
    /// file with the limits as in linux.resources, or - for stdin; other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// weight of block I/O
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<String>,
    /// period of the CPU quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<String>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<String>,
    /// CPU time beyond the quota that can be saved up, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_burst: Option<String>,
    /// weight of CPU time
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<String>,
    /// period of real-time scheduling, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_rt_period: Option<String>,
    /// real-time CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<String>,
    /// whether it runs only when nothing else does (0 or 1)
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<String>,
    /// CPUs, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// memory nodes, such as 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// memory, in bytes, or with a unit: 64M
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// memory that is reserved, in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// memory and swap together, in bytes; -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// kernel memory, which the kernel counts as memory: ignored
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub kernel_memory: Option<String>,
    /// kernel memory for TCP, as above
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<String>,
    /// tasks; -1: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<String>,
    /// schema of the L3 cache (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// schema of memory bandwidth (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

impl Update {
    /// The limits that the options set.
    pub fn changes(&self) -> Vec<Change> {
        let numbers = [
            ("blockIO", "weight", &self.blkio_weight),
            ("cpu", "period", &self.cpu_period),
            ("cpu", "quota", &self.cpu_quota),
            ("cpu", "burst", &self.cpu_burst),
            ("cpu", "shares", &self.cpu_share),
            ("cpu", "realtimePeriod", &self.cpu_rt_period),
            ("cpu", "realtimeRuntime", &self.cpu_rt_runtime),
            ("cpu", "idle", &self.cpu_idle),
            ("pids", "limit", &self.pids_limit),
        ];
        let sizes = [
            ("memory", "limit", &self.memory),
            ("memory", "reservation", &self.memory_reservation),
            ("memory", "swap", &self.memory_swap),
        ];
        let texts = [("cpu", "cpus", &self.cpuset_cpus), ("cpu", "mems", &self.cpuset_mems)];
        let change = |(part, field, value): (&'static str, &'static str, &Option<String>), kind| {
            Some(Change { part, field, value: value.clone()?, kind })
        };
        let numbers = numbers.into_iter().filter_map(|entry| change(entry, Kind::Number));
        let sizes = sizes.into_iter().filter_map(|entry| change(entry, Kind::Size));
        numbers.chain(sizes).chain(texts.into_iter().filter_map(|entry| change(entry, Kind::Text))).collect()
    }
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Exec {
    /// file that describes the process
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// unix socket that is sent the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// unix socket that is sent a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// file to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// set an environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// run as this user: UID[:GID]
    #[arg(short, long)]
    pub user: Option<String>,
    /// run with this additional group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// leave the process when it runs
    #[arg(short, long)]
    pub detach: bool,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// let the process gain no privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// pass N more file descriptors to the process, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// run in a cgroup below the container's: [CONTROLLERS:]PATH
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// also in a paused container, where it waits for `resume`
    #[arg(long)]
    pub ignore_paused: bool,
    /// the container's id, and the command with its arguments
    #[arg(value_name = "CONTAINER-ID [COMMAND]", trailing_var_arg = true, allow_hyphen_values = true, num_args = 1.., required = true)]
    pub words: Vec<String>,
}

impl From<Create> for create::Options {
    fn from(given: Create) -> Self {
        create::Options {
            id: given.id,
            bundle: given.bundle,
            console_socket: given.console_socket,
            pid_file: given.pid_file,
            pidfd_socket: given.pidfd_socket,
            no_pivot: given.no_pivot,
            no_new_keyring: given.no_new_keyring,
            preserve_fds: given.preserve_fds,
        }
    }
}

impl From<Exec> for exec::Options {
    fn from(given: Exec) -> Self {
        let mut words = given.words.into_iter();
        exec::Options {
            id: words.next().unwrap_or_default(),
            arguments: words.collect(),
            process: given.process,
            console_socket: given.console_socket,
            pidfd_socket: given.pidfd_socket,
            pid_file: given.pid_file,
            cwd: given.cwd,
            env: given.env,
            tty: given.tty,
            user: given.user,
            additional_gids: given.additional_gids,
            detach: given.detach,
            process_label: given.process_label,
            apparmor: given.apparmor,
            no_new_privs: given.no_new_privs,
            cap: given.cap,
            preserve_fds: given.preserve_fds,
            cgroup: given.cgroup,
            ignore_paused: given.ignore_paused,
        }
    }
}
