//! The command line, as runc has it.

mod arguments;
mod criu;
mod go;

use arguments::{Cli, Command, Exec, Update};
use go::as_go_reads_them;

use crate::cgroup::Manager;
use crate::config::SPEC_VERSION;
use crate::container::Store;
use crate::error::{Error, Result};
use crate::lifecycle::{self, Global, create, exec, run};
use crate::log;
use crate::sys::identity;
use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
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
    let given = cli.root.is_some();
    let store = Store::new(cli.root.unwrap_or_else(default_root));
    if given && matches!(command, Command::List(_)) {
        store.check_exists()?;
    }
    let flag = if cli.systemd_cgroup { Manager::Systemd } else { Manager::Cgroupfs };
    execute(&Global { store, cgroup_manager: cli.cgroup_manager.unwrap_or(flag) }, command)
}

fn execute(global: &Global, command: Command) -> Result<Done> {
    let nothing = |()| Done::default();
    match command {
        Command::Bundle(given) => {
            Err(lifecycle::bundle::run(&given.arguments).of_command("damda bundle failed"))
        }
        Command::Check(given) => {
            lifecycle::explain::check(&given.bundle, global.cgroup_manager).map(Done::from)
        }
        Command::Checkpoint(given) => lifecycle::checkpoint::run(global, &given.into())
            .map(nothing)
            .map_err(|error| error.of_command("damda checkpoint failed")),
        Command::Create(given) => create::run(global, &given.into())
            .map(nothing)
            .map_err(|error| error.of_command("damda create failed")),
        Command::Delete(given) => lifecycle::delete::run(global, &given.id, given.force).map(nothing),
        Command::Events(given) => {
            lifecycle::events::run(global, &given.id, given.interval, given.stats).map(nothing)
        }
        Command::Exec(given) => exec_command(global, given),
        Command::Explain(given) => {
            lifecycle::explain::explain(&given.bundle, global.cgroup_manager).map(Done::from)
        }
        Command::Features(_) => Ok(lifecycle::features::run().into()),
        Command::Kill(given) => {
            lifecycle::kill::run(global, &given.id, &given.signal, given.all).map(nothing)
        }
        Command::List(given) => lifecycle::list::run(global, given.format, given.quiet).map(Done::from),
        Command::Pause(given) => lifecycle::pause::pause(global, &given.id).map(nothing),
        Command::Ps(given) => {
            lifecycle::ps::run(global, &given.id, given.format, &given.arguments).map(Done::from)
        }
        Command::Restore(given) => lifecycle::restore::run(global, &given.into())
            .map(|status| Done { status, ..Done::default() })
            .map_err(|error| error.of_command("damda restore failed")),
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
    if given.resources.is_none() && (given.kernel_memory.is_some() || given.kernel_memory_tcp.is_some()) {
        log::warning("kernel memory has no limit of its own any more: ignored");
    }
    let schemata: Vec<_> = given.l3_cache_schema.iter().chain(&given.mem_bw_schema).cloned().collect();
    lifecycle::update::run(global, &given.id, given.resources.as_deref(), &given.changes(), &schemata)
}

fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    if let Some(option) = lacks_value(error) {
        return Error::new(format!("flag needs an argument: {option}")).hint("see damda --help");
    }
    let text =
        text.trim().strip_prefix("error: ").unwrap_or(&text).lines().next().unwrap_or_default().to_owned();
    if let (ErrorKind::InvalidSubcommand, Some(name)) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
    {
        return Error::new(format!("No help topic for '{name}': {text}")).hint("see damda --help");
    }
    Error::new(text).hint("see damda --help")
}

/// The option that was given without its value, in whose absence Podman looks for Go's words: it asks
/// so whether there is `restore --lsm-mount-context`.
fn lacks_value(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let empty = |kind| {
        matches!(error.get(kind), None | Some(ContextValue::None))
            || matches!(error.get(kind), Some(ContextValue::String(value)) if value.is_empty())
    };
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option))
            if error.kind() == ErrorKind::InvalidValue && empty(ContextKind::InvalidValue) =>
        {
            Some(option.split(' ').next().unwrap_or_default().into())
        }
        _ => None,
    }
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
            "damda checkpoint --image-path /i --work-path /w --leave-running --empty-ns network --status-fd 3 id",
            "damda restore --image-path /i --work-path /w --manage-cgroups-mode soft --detach --pid-file /p -no-subreaper -no-pivot --bundle /b id",
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
    fn an_option_without_its_value_is_named_as_go_does() {
        let error = parse("damda restore --lsm-mount-context").expect_err("a value is missing");
        assert!(usage(&error).to_string().starts_with("flag needs an argument: --lsm-mount-context ("));
        let error = parse("damda restore --manage-cgroups-mode no id").expect_err("no mode");
        assert!(usage(&error).to_string().starts_with("invalid value 'no'"), "{error}");
    }

    #[test]
    fn one_line_says_version() {
        assert_eq!(version().lines().filter(|line| line.contains("version")).count(), 1);
        assert!(version().starts_with("damda version 0."));
    }
}
