//! The command line, as runc has it.

use crate::config::SPEC_VERSION;
use crate::container::Store;
use crate::error::{Error, Result};
use crate::lifecycle::list::Format as ListFormat;
use crate::lifecycle::update::Change;
use crate::lifecycle::{self, Global, create, exec, run};
use crate::log;
use crate::sys::identity;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// What a command has to say, and the status to exit with.
#[derive(Debug, Default)]
pub struct Done {
    /// For stdout.
    pub output: String,
    /// 0, or the exit status of a container's program.
    pub status: i32,
}

impl From<String> for Done {
    fn from(output: String) -> Self {
        Done { output, status: 0 }
    }
}

/// Open Container Initiative runtime
#[derive(Debug, Parser)]
#[command(
    name = "damda",
    args_override_self = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_required = false
)]
struct Cli {
    /// directory for the state of containers (should be on a tmpfs)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// write the log to this file as well as to stderr
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// format of the log
    #[arg(long, value_enum, default_value = "text")]
    log_format: log::Format,
    /// how much is logged (default: errors to the file, warnings to stderr)
    #[arg(long, value_enum)]
    log_level: Option<log::Level>,
    /// log everything
    #[arg(long)]
    debug: bool,
    /// have systemd make the cgroups; cgroupsPath is then of the form "slice:prefix:name"
    #[arg(long)]
    systemd_cgroup: bool,
    /// who makes the cgroups
    #[arg(long, value_enum, value_name = "MANAGER", hide = true)]
    cgroup_manager: Option<CgroupManager>,
    /// whether to go on without permission for cgroups ('true', 'false' or 'auto')
    #[arg(long, value_enum, default_value = "auto", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    rootless: Rootless,
    /// print the version
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rootless {
    True,
    False,
    Auto,
}

// Deferred: only the arguments of the command that is used are built, which saves 0.1 ms.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Say what is wrong with a bundle's configuration, all of it
    Check(Bundle),
    /// Create a container from a bundle; its program waits for `start`
    Create(Create),
    /// Delete a container that has stopped
    Delete(Delete),
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
#[command(args_override_self = true)]
struct Nothing {}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Id {
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Bundle {
    /// the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Create {
    /// the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// unix socket that is sent the terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// file to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// unix socket that is sent a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,
    /// change the root without pivot_root(2), for a host on an initramfs
    #[arg(long)]
    no_pivot: bool,
    /// leave the caller's session keyring to the container
    #[arg(long)]
    no_new_keyring: bool,
    /// pass N more file descriptors to the container, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// the container's id, unique on the host
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Run {
    /// leave the container when its program runs
    #[arg(short, long)]
    detach: bool,
    /// keep the container when its program has ended
    #[arg(long)]
    keep: bool,
    /// don't collect processes that the container leaves behind
    #[arg(long)]
    no_subreaper: bool,
    #[command(flatten)]
    create: Create,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Delete {
    /// kill the container if it runs, and remove it even if its state is damaged or missing
    #[arg(short, long)]
    force: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Kill {
    /// send the signal to all processes of the container
    #[arg(short, long)]
    all: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// the signal, by name or number
    #[arg(default_value = "SIGTERM", allow_negative_numbers = true)]
    signal: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct List {
    /// the form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    format: ListFormat,
    /// print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Ps {
    /// the form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    format: ListFormat,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Spec {
    /// directory to write config.json to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// for an ordinary user
    #[arg(long)]
    rootless: bool,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Update {
    /// file with the limits as in linux.resources, or - for stdin; other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// weight of block I/O
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<String>,
    /// period of the CPU quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<String>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// CPU time beyond the quota that can be saved up, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<String>,
    /// weight of CPU time
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<String>,
    /// period of real-time scheduling, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<String>,
    /// real-time CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,
    /// whether it runs only when nothing else does (0 or 1)
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<String>,
    /// CPUs, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// memory nodes, such as 0-1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// memory, in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// memory that is reserved, in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// memory and swap together, in bytes; -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// kernel memory, which the kernel counts as memory: ignored
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    /// kernel memory for TCP, as above
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// tasks; -1: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// schema of the L3 cache (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// schema of memory bandwidth (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

impl Update {
    /// The limits that the options set.
    fn changes(&self) -> Vec<Change> {
        let numbers = [
            ("blockIO", "weight", &self.blkio_weight),
            ("cpu", "period", &self.cpu_period),
            ("cpu", "quota", &self.cpu_quota),
            ("cpu", "burst", &self.cpu_burst),
            ("cpu", "shares", &self.cpu_share),
            ("cpu", "realtimePeriod", &self.cpu_rt_period),
            ("cpu", "realtimeRuntime", &self.cpu_rt_runtime),
            ("cpu", "idle", &self.cpu_idle),
            ("memory", "limit", &self.memory),
            ("memory", "reservation", &self.memory_reservation),
            ("memory", "swap", &self.memory_swap),
            ("pids", "limit", &self.pids_limit),
        ];
        let texts = [("cpu", "cpus", &self.cpuset_cpus), ("cpu", "mems", &self.cpuset_mems)];
        let change = |(part, field, value): (&'static str, &'static str, &Option<String>), number| {
            Some(Change { part, field, value: value.clone()?, number })
        };
        let numbers = numbers.into_iter().filter_map(|entry| change(entry, true));
        numbers.chain(texts.into_iter().filter_map(|entry| change(entry, false))).collect()
    }
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Exec {
    /// file that describes the process
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// unix socket that is sent the terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// unix socket that is sent a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,
    /// file to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// set an environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// run as this user: UID[:GID]
    #[arg(short, long)]
    user: Option<String>,
    /// run with this additional group
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// leave the process when it runs
    #[arg(short, long)]
    detach: bool,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// let the process gain no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// pass N more file descriptors to the process, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// run in a cgroup below the container's: [CONTROLLERS:]PATH
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// also in a paused container, where it waits for `resume`
    #[arg(long)]
    ignore_paused: bool,
    /// the container's id, and the command with its arguments
    #[arg(value_name = "CONTAINER-ID [COMMAND]", trailing_var_arg = true, allow_hyphen_values = true, num_args = 1.., required = true)]
    words: Vec<String>,
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

/// Does what the command line says.
pub fn run(arguments: Vec<OsString>) -> Result<Done> {
    let matches = match Cli::command().try_get_matches_from(as_go_reads_them(arguments)) {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => return Ok(error.to_string().into()),
        Err(error) => return Err(usage(&error)),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| usage(&error))?;
    let level = if cli.debug { Some(log::Level::Debug) } else { cli.log_level };
    log::init(cli.log.as_deref(), cli.log_format, level)?;
    if cli.version {
        return Ok(version().into());
    }
    let Some(command) = cli.command else {
        return Ok(Cli::command().render_help().to_string().into());
    };
    let store = Store::new(cli.root.unwrap_or_else(default_root));
    let systemd_cgroup = cli.systemd_cgroup || cli.cgroup_manager == Some(CgroupManager::Systemd);
    let no_cgroups = cli.cgroup_manager == Some(CgroupManager::Disabled);
    execute(&Global { store, systemd_cgroup, no_cgroups }, command)
}

fn execute(global: &Global, command: Command) -> Result<Done> {
    let nothing = |()| Done::default();
    match command {
        Command::Check(given) => lifecycle::explain::check(&given.bundle).map(Done::from),
        Command::Create(given) => create::run(global, &given.into())
            .map(nothing)
            .map_err(|error| error.of_command("damda create failed")),
        Command::Delete(given) => lifecycle::delete::run(global, &given.id, given.force).map(nothing),
        Command::Exec(given) => exec_command(global, given),
        Command::Explain(given) => lifecycle::explain::explain(&given.bundle).map(Done::from),
        Command::Features(_) => Ok(lifecycle::features::run().into()),
        Command::Kill(given) => {
            lifecycle::kill::run(global, &given.id, &given.signal, given.all).map(nothing)
        }
        Command::List(given) => lifecycle::list::run(global, given.format, given.quiet).map(Done::from),
        Command::Pause(given) => lifecycle::pause::pause(global, &given.id).map(nothing),
        Command::Ps(given) => {
            lifecycle::ps::run(global, &given.id, given.format, &given.arguments).map(Done::from)
        }
        Command::Resume(given) => lifecycle::pause::resume(global, &given.id).map(nothing),
        Command::Run(given) => {
            let options = run::Options {
                create: given.create.into(),
                detach: given.detach,
                keep: given.keep,
                no_subreaper: given.no_subreaper,
            };
            let status = run::run(global, &options).map_err(|error| error.of_command("damda run failed"))?;
            Ok(Done { status, ..Done::default() })
        }
        Command::Spec(given) => lifecycle::spec::run(&given.bundle, given.rootless).map(nothing),
        Command::Start(given) => lifecycle::start::run(global, &given.id).map(nothing),
        Command::Update(given) => update(global, &given).map(nothing),
        Command::State(given) => lifecycle::state::run(global, &given.id).map(Done::from),
    }
}

fn exec_command(global: &Global, given: Exec) -> Result<Done> {
    let options = exec::Options::from(given);
    let failed = |error: Error| error.of_command("exec failed").with_status(255);
    if options.id.starts_with('-') {
        return Err(
            Error::new(format!("unexpected argument '{}' found", options.id)).hint("see damda exec --help")
        );
    }
    if options.process.is_none() && options.arguments.is_empty() {
        return Err(failed(Error::new("process args cannot be empty").hint("give a command, or --process")));
    }
    let status = exec::run(global, &options).map_err(failed)?;
    Ok(Done { status, ..Done::default() })
}

fn update(global: &Global, given: &Update) -> Result<()> {
    if given.resources.is_none() {
        let rdt = [("--l3-cache-schema", &given.l3_cache_schema), ("--mem-bw-schema", &given.mem_bw_schema)];
        if let Some((name, _)) = rdt.into_iter().find(|(_, schema)| schema.is_some()) {
            return Err(Error::new(format!("{name}: damda cannot apply this yet")));
        }
        if given.kernel_memory.is_some() || given.kernel_memory_tcp.is_some() {
            log::warning("kernel memory has no limit of its own any more: ignored");
        }
    }
    lifecycle::update::run(global, &given.id, given.resources.as_deref(), &given.changes())
}

fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    let text =
        text.trim().strip_prefix("error: ").unwrap_or(&text).lines().next().unwrap_or_default().to_owned();
    Error::new(text).hint("see damda --help")
}

/// The first line is what go-runc reads, the second dockerd; no other may have the word in it.
fn version() -> String {
    let commit = option_env!("DAMDA_COMMIT").unwrap_or("unknown");
    format!("damda version {}\ncommit: {commit}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

/// /run/damda, or a user's own directory for such. Root of a user namespace is such a user as well:
/// rootless Podman calls its runtime from one.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let is_root = identity::user().is_root();
    let is_users = || {
        !is_root
            || identity::in_user_namespace() && std::env::var_os("USER").is_none_or(|user| user != "root")
    };
    match own {
        Some(dir) if is_users() => PathBuf::from(dir).join("damda"),
        _ if is_root => "/run/damda".into(),
        _ => format!("/tmp/damda-{}", identity::user()).into(),
    }
}

/// Go's flags can be written with one dash, and containerd writes some so; those that are on or off
/// can be written with a value. What belongs to a command in a container (exec) or to ps(1) is left
/// alone.
fn as_go_reads_them(arguments: Vec<OsString>) -> Vec<OsString> {
    const SWITCHES: [&str; 13] = [
        "debug",
        "systemd-cgroup",
        "no-pivot",
        "no-new-keyring",
        "detach",
        "keep",
        "no-subreaper",
        "force",
        "all",
        "quiet",
        "tty",
        "no-new-privs",
        "ignore-paused",
    ];
    const LONG: [&str; 23] = [
        "root",
        "log",
        "log-format",
        "log-level",
        "debug",
        "systemd-cgroup",
        "rootless",
        "version",
        "bundle",
        "console-socket",
        "pid-file",
        "pidfd-socket",
        "no-pivot",
        "no-new-keyring",
        "preserve-fds",
        "detach",
        "keep",
        "no-subreaper",
        "force",
        "all",
        "format",
        "quiet",
        "help",
    ];
    let mut foreign = false;
    let fix = |argument: OsString| {
        let text = argument.to_str().unwrap_or_default();
        foreign |= matches!(text, "exec" | "ps" | "--");
        let name = text.strip_prefix('-').and_then(|text| text.split('=').next()).unwrap_or_default();
        if foreign {
            return Some(argument);
        }
        let argument = if LONG.contains(&name) { OsString::from(format!("-{text}")) } else { argument };
        let text = argument.to_str().unwrap_or_default();
        match text.strip_prefix("--").and_then(|text| text.split_once('=')) {
            Some((name, "true")) if SWITCHES.contains(&name) => Some(OsString::from(format!("--{name}"))),
            Some((name, "false")) if SWITCHES.contains(&name) => None,
            _ => Some(argument),
        }
    };
    arguments.into_iter().filter_map(fix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Cli, clap::Error> {
        let arguments = line.split_whitespace().map(OsString::from).collect();
        let matches = Cli::command().try_get_matches_from(as_go_reads_them(arguments))?;
        Cli::from_arg_matches(&matches)
    }

    #[test]
    fn the_definition_is_sound() {
        let mut command = Cli::command();
        command.build();
        command.debug_assert();
    }

    #[test]
    fn options_come_before_and_after_the_id() {
        for line in [
            "damda create --bundle /b -b /b2 id",
            "damda create id --bundle /b2",
            "damda create id -bundle=/b2",
        ] {
            let line = line.replace("--bundle /b -b", "-b");
            let Some(Command::Create(create)) = parse(&line).expect("parses").command else {
                panic!("{line}")
            };
            assert_eq!((create.id.as_str(), create.bundle.to_str()), ("id", Some("/b2")), "{line}");
        }
    }

    #[test]
    fn the_engines_command_lines_are_understood() {
        for line in [
            "damda --root /r --log /l/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid id",
            "damda --root /r --log /l --log-format=json create --bundle /b --pid-file /p --no-pivot --no-new-keyring --preserve-fds 1 --console-socket /s id",
            "damda --log-format=json exec --pid-file /p --process /f --detach --tty --console-socket /s id",
            "damda exec --process /f --console-socket /s --detach --pid-file /p id",
            "damda kill --all id 9",
            "damda kill id SIGTERM",
            "damda delete --force id",
            "damda ps --format json id",
            "damda --cgroup-manager disabled --rootless=true state id",
            "damda --rootless list --format=json",
            "damda run -no-subreaper -detach --bundle /b id",
            "damda features",
            "damda --version",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn a_containers_command_keeps_its_options() {
        let Some(Command::Exec(exec)) =
            parse("damda exec -t --cwd /x id ls -l --all -detach").expect("parses").command
        else {
            panic!("not exec")
        };
        assert_eq!(exec.words, ["id", "ls", "-l", "--all", "-detach"]);
        assert!(exec.tty && !exec.detach);
    }

    #[test]
    fn one_line_says_version() {
        assert_eq!(version().lines().filter(|line| line.contains("version")).count(), 1);
        assert!(version().starts_with("damda version 0."));
    }
}
