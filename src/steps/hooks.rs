//! Hooks (config.md, "POSIX-platform Hooks").

use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::Call;
use crate::sys::poll::until_ended;
use crate::sys::process::pidfd_open;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::umask;
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Hooks};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Before the root is changed, in the runtime's namespaces (deprecated).
    Prestart,
    /// The same, after those.
    CreateRuntime,
    /// The same, in the container's namespaces.
    CreateContainer,
    /// Before the program, in the container.
    StartContainer,
    /// After the program has begun.
    Poststart,
    /// After the container is deleted.
    Poststop,
}

impl Kind {
    /// All of them, in the order in which they run.
    pub const ALL: [Kind; 6] = [
        Kind::Prestart,
        Kind::CreateRuntime,
        Kind::CreateContainer,
        Kind::StartContainer,
        Kind::Poststart,
        Kind::Poststop,
    ];

    /// Its name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prestart => "prestart",
            Kind::CreateRuntime => "createRuntime",
            Kind::CreateContainer => "createContainer",
            Kind::StartContainer => "startContainer",
            Kind::Poststart => "poststart",
            Kind::Poststop => "poststop",
        }
    }

    /// The hooks of this kind.
    #[allow(deprecated)] // prestart is deprecated, not gone
    pub fn of(self, hooks: &Option<Hooks>) -> &[Hook] {
        let Some(hooks) = hooks else { return &[] };
        list(match self {
            Kind::Prestart => hooks.prestart(),
            Kind::CreateRuntime => hooks.create_runtime(),
            Kind::CreateContainer => hooks.create_container(),
            Kind::StartContainer => hooks.start_container(),
            Kind::Poststart => hooks.poststart(),
            Kind::Poststop => hooks.poststop(),
        })
    }
}

/// Runs `hooks` one after the other, until one fails.
pub fn run(kind: Kind, hooks: &[Hook], state: &Value, directory: &Path) -> Result<()> {
    run_with(kind, hooks, state, directory, &[])
}

/// The same; a hook without an environment of its own has `inherited`.
fn run_with(kind: Kind, hooks: &[Hook], state: &Value, directory: &Path, inherited: &[String]) -> Result<()> {
    (0..hooks.len()).try_for_each(|index| run_one(kind, index, hooks, state, directory, inherited))
}

/// Runs all of `hooks`; a failure is a warning (poststop hooks).
pub fn run_all(kind: Kind, hooks: &[Hook], state: &Value, directory: &Path) {
    for index in 0..hooks.len() {
        if let Err(error) = run_one(kind, index, hooks, state, directory, &[]) {
            crate::log::warning(&error.to_string());
        }
    }
}

fn run_one(
    kind: Kind,
    index: usize,
    hooks: &[Hook],
    state: &Value,
    directory: &Path,
    inherited: &[String],
) -> Result<()> {
    execute(&hooks[index], state, directory, inherited)
        .doing(|| format!("error running {} hook #{index}", kind.name()))
        .at(&Pointer::to("/hooks").key(kind.name()).index(index))
}

fn execute(hook: &Hook, state: &Value, directory: &Path, inherited: &[String]) -> Result<()> {
    let environment = hook.env().as_deref().unwrap_or(inherited);
    let (input, output, errors) = (memory(state.to_string().as_bytes())?, memory(b"")?, memory(b"")?);
    let copy = |file: &File| file.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".into());
    let args = list(hook.args());
    let mut command = Command::new(hook.path());
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    command
        .args(args.iter().skip(1))
        .env_clear()
        .envs(environment.iter().filter_map(|entry| entry.split_once('=')))
        .current_dir(directory)
        .stdin(input)
        .stdout(copy(&output)?)
        .stderr(copy(&errors)?);
    let mut child = command.spawn().call(|| format!("execve({:?})", hook.path()))?;
    let timeout = hook.timeout().map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
    let status = wait(&mut child, timeout)?;
    keep("run.oci.hooks.stdout", &output, state);
    keep("run.oci.hooks.stderr", &errors, state);
    if status.success() {
        return Ok(());
    }
    let code = status.code().map(|code| format!("exit status {code}"));
    let ended = code.unwrap_or_else(|| format!("signal: {}", signal_name(status.signal().unwrap_or(0))));
    Err(Error::new(format!("{ended}, stdout: {}, stderr: {}", text_of(output), text_of(errors))))
}

/// Appends what a hook has written to the file that an annotation names, as crun has it. A file that
/// can't be written is no reason for a container not to run.
fn keep(annotation: &str, written: &File, state: &Value) {
    let Some(path) = state["annotations"][annotation].as_str() else { return };
    let path = Path::new(state["bundle"].as_str().unwrap_or_default()).join(path);
    let append = || -> std::io::Result<u64> {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let mut written = written.try_clone()?;
        written.rewind()?;
        std::io::copy(&mut written, &mut file)
    };
    if let Err(error) = append() {
        crate::log::warning(&format!("{annotation}: {path:?}: {error}"));
    }
}

fn signal_name(number: i32) -> String {
    // The kernel's words, as Go has them: `killed`, `bad system call`.
    let name = crate::sys::process::signal_text(number);
    name.map_or_else(|| number.to_string(), |name| name.to_lowercase())
}

/// A file in memory: unlike a pipe it neither fills up nor kills its writer.
fn memory(content: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC).call(|| "memfd_create".into())?);
    file.write_all(content).and_then(|()| file.rewind()).call(|| "write(memfd)".into())?;
    Ok(file)
}

/// The beginning of what a hook has written.
fn text_of(mut file: File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.take(1024).read_to_end(&mut bytes));
    if read.is_err() { String::new() } else { String::from_utf8_lossy(&bytes).trim_end().to_owned() }
}

/// Waits for a hook to end, and ends it when its time is up.
fn wait(child: &mut Child, timeout: Option<Duration>) -> Result<ExitStatus> {
    // One that ends after the clock does is none.
    let end = timeout.and_then(|timeout| Some((timeout, Instant::now().checked_add(timeout)?)));
    if let Some((timeout, end)) = end {
        let pidfd = pidfd_open(Pid::from_raw(child.id() as i32))?;
        if !until_ended(pidfd.as_fd(), end)? {
            // It is still our child, so the id is its own.
            let _ = child.kill();
            let _ = child.wait();
            let seconds = timeout.as_secs_f32();
            return Err(Error::new(format!("hook ran past specified timeout of {seconds:.1}s")));
        }
    }
    Ok(child.wait().call(|| "wait4".into())?)
}

/// Hooks that the container's first process runs: createContainer and startContainer.
pub struct RunHooks {
    /// Which.
    pub kind: Kind,
    /// What.
    pub hooks: Vec<Hook>,
    /// What they are told, but for the pid, which is the one that the container sees.
    pub state: Value,
    /// Where they run; None: where this process is.
    pub directory: Option<PathBuf>,
    /// The environment of those that have none of their own.
    pub environment: Vec<String>,
}

impl fmt::Display for RunHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} hooks", self.kind.name())?;
        self.hooks.iter().try_for_each(|hook| write!(f, " {}", hook.path().display()))
    }
}

impl Step for RunHooks {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let mut state = self.state.clone();
        state["pid"] = std::process::id().into();
        let own = (self.kind == Kind::CreateContainer).then(|| umask(init.umask));
        let directory = self.directory.as_deref().unwrap_or(Path::new("."));
        let home = init.found.home.as_ref().map(|home| format!("HOME={home}"));
        let environment: Vec<_> = self.environment.iter().cloned().chain(home).collect();
        let result = run_with(self.kind, &self.hooks, &state, directory, &environment);
        own.map(umask);
        result
    }
}

/// Has the runtime run its hooks: prestart and createRuntime.
pub struct RuntimeHooks;

impl fmt::Display for RuntimeHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("let the runtime run prestart and createRuntime hooks")
    }
}

impl Step for RuntimeHooks {
    fn apply(&self, init: &mut Init) -> Result<()> {
        use crate::link::Message;
        init.link.send(&Message::HooksPlease)?;
        init.wait_for(&Message::HooksDone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use serde_json::json;

    fn hook(script: &str, extra: &str) -> Vec<Hook> {
        let script = json!(script);
        let text = format!(r#"[{{"path":"/bin/sh","args":["hook","-c",{script}]{extra}}}]"#);
        parse(text.as_bytes()).expect("it parses")
    }

    fn run_here(hooks: &[Hook]) -> std::result::Result<(), String> {
        run(Kind::Prestart, hooks, &json!({"id": "x"}), Path::new("/")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_gets_the_state_and_its_own_environment_only() {
        let check = r#"read -r state && [ "$state" = '{"id":"x"}' ] || [ "$state" = '{"id":"x"}' ] && [ "$A" = 1 ] && [ -z "$CARGO" ]"#;
        assert_eq!(run_here(&hook(check, r#","env":["A=1"]"#)), Ok(()));
    }

    #[test]
    fn failures_are_told_with_what_was_said() {
        assert_eq!(
            run_here(&hook("echo out; echo err >&2; exit 3", "")),
            Err("/hooks/prestart/0: error running prestart hook #0: exit status 3, stdout: out, stderr: err"
                .into())
        );
        let error = run_here(&hook("kill -9 $$", "")).expect_err("it failed");
        assert!(error.contains("signal: killed"), "{error}");
    }

    #[test]
    fn time_is_up_at_some_point() {
        let error = run_here(&hook("exec sleep 60", r#","timeout":1"#)).expect_err("it failed");
        assert!(error.contains("hook ran past specified timeout of 1.0s"), "{error}");
    }
}
