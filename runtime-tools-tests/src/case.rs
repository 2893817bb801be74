//! One test's world: a directory of its own, the containers that it makes, and their removal.

use crate::harness::{Stop, Verdict};
use crate::{ensure, ensure_eq};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What nothing here takes, on the slowest machine: a test that waits this long fails.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The runtime under test.
pub struct Runtime {
    /// Its binary.
    pub binary: PathBuf,
    /// Its name, as `--version` has it.
    pub name: String,
    probe: PathBuf,
}

impl Runtime {
    /// Looks whether it is there and runs.
    pub fn find(binary: &Path, probe: &Path) -> Result<Self, String> {
        let output = Command::new(binary)
            .arg("--version")
            .output()
            .map_err(|error| format!("cannot run the runtime {binary:?}: {error} (set RUNTIME)"))?;
        let name =
            String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or("?").to_owned();
        if !probe.exists() {
            return Err(format!("{probe:?} is missing: build it with hack/build (or set PROBE)"));
        }
        Ok(Runtime { binary: binary.to_owned(), name, probe: probe.to_owned() })
    }
}

/// What a command of the runtime did.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; -n where signal n ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Fails unless it exited with 0.
    pub fn succeeded(self) -> Verdict<Output> {
        ensure_eq!(self.status, 0, "exit status (stderr: {:?})", self.stderr.trim());
        Ok(self)
    }

    /// Fails unless it failed with a message in which all of `words` are, and which says nothing on
    /// stdout.
    pub fn failed_with(self, words: &[&str]) -> Verdict<Output> {
        ensure!(self.status != 0, "exit status is 0, but this must fail (stdout: {:?})", self.stdout);
        ensure!(self.status > 0, "ended by signal {} (stderr: {:?})", -self.status, self.stderr);
        for word in words {
            ensure!(self.stderr.contains(word), "stderr lacks {word:?}: {:?}", self.stderr.trim());
        }
        Ok(self)
    }

    /// What a `probe report` printed.
    pub fn json(&self) -> Verdict<Value> {
        serde_json::from_str(&self.stdout).map_err(|error| {
            Stop::Failed(format!(
                "no JSON ({error}): stdout {:?}, stderr {:?}",
                self.stdout,
                self.stderr.trim()
            ))
        })
    }
}

/// A bundle directory.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub path: PathBuf,
}

impl Bundle {
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Changes the configuration.
    pub fn change(&self, change: impl FnOnce(&mut Value)) -> Verdict {
        let path = self.path.join("config.json");
        let mut config = serde_json::from_str(&fs::read_to_string(&path)?)?;
        change(&mut config);
        Ok(fs::write(path, serde_json::to_string_pretty(&config)?)?)
    }
}

/// One test's world.
pub struct Case<'a> {
    pub runtime: &'a Runtime,
    /// A directory of its own, which others may enter.
    pub directory: PathBuf,
    /// The name of its first container, and of that one's cgroup.
    pub id: String,
    temporary: RefCell<Option<TempDir>>,
    ids: RefCell<Vec<String>>,
    commands: Cell<u32>,
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl<'a> Case<'a> {
    pub fn new(runtime: &'a Runtime) -> Verdict<Self> {
        let temporary = tempfile::Builder::new().prefix("rtt-").tempdir()?;
        fs::set_permissions(temporary.path(), Permissions::from_mode(0o755))?;
        let id = format!("rtt-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        Ok(Case {
            runtime,
            directory: temporary.path().to_owned(),
            ids: RefCell::new(vec![id.clone()]),
            id,
            temporary: RefCell::new(Some(temporary)),
            commands: Cell::new(0),
        })
    }

    /// The static program, on the host.
    pub fn probe(&self) -> &Path {
        &self.runtime.probe
    }

    /// The directory that is `--root`.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Another container's id, which is cleaned up too.
    pub fn another_id(&self, suffix: &str) -> String {
        let id = format!("{}-{suffix}", self.id);
        self.ids.borrow_mut().push(id.clone());
        id
    }

    /// A bundle whose root file system is the probe alone, with the default configuration as
    /// `change` leaves it.
    pub fn bundle(&self, change: impl FnOnce(&mut Value)) -> Verdict<Bundle> {
        let path = self.directory.join("bundle");
        let rootfs = path.join("rootfs");
        for name in ["", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        // A link where it can be: a copy that is being written while another test forks is busy.
        if !rootfs.join("probe").exists() && fs::hard_link(self.probe(), rootfs.join("probe")).is_err() {
            fs::copy(self.probe(), rootfs.join("probe"))?;
        }
        let mut config = default_config(&self.id);
        change(&mut config);
        fs::write(path.join("config.json"), serde_json::to_string_pretty(&config)?)?;
        Ok(Bundle { path })
    }

    /// A command of the runtime, with this case's `--root`.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.runtime.binary);
        command.arg("--root").arg(self.state_directory()).args(arguments).current_dir(&self.directory);
        command
    }

    /// Runs a command of the runtime to its end, by a shell that does `before` and then becomes it.
    pub fn call_after<S: AsRef<OsStr>>(&self, before: &str, arguments: &[S]) -> Verdict<Output> {
        self.finish(self.shell(&["sh"], before, arguments))
    }

    /// The same, where the mounts that `before` makes are nobody else's.
    pub fn call_after_mounts<S: AsRef<OsStr>>(&self, before: &str, arguments: &[S]) -> Verdict<Output> {
        self.finish(self.shell(&["unshare", "-m", "--propagation", "private", "sh"], before, arguments))
    }

    /// The same, in a network namespace that `before` and the runtime have for themselves.
    pub fn call_in_network<S: AsRef<OsStr>>(&self, before: &str, arguments: &[S]) -> Verdict<Output> {
        self.finish(self.shell(&["unshare", "--net", "sh"], before, arguments))
    }

    fn shell<S: AsRef<OsStr>>(&self, shell: &[&str], before: &str, arguments: &[S]) -> Command {
        let runtime = self.command(arguments);
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", &format!("{before} && exec \"$@\""), "sh"]);
        command.arg(runtime.get_program()).args(runtime.get_args());
        command
    }

    /// Runs a command of the runtime to its end.
    pub fn call<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Verdict<Output> {
        self.finish(self.command(arguments))
    }

    /// Runs any command to its end. Its output goes through files: a container that outlives the
    /// command keeps them open.
    pub fn finish(&self, mut command: Command) -> Verdict<Output> {
        let number = self.commands.replace(self.commands.get() + 1);
        let file = |name: &str| self.directory.join(format!("{number}.{name}"));
        let status = {
            let mut child = command
                .stdin(Stdio::null())
                .stdout(File::create(file("stdout"))?)
                .stderr(File::create(file("stderr"))?)
                .spawn()?;
            let until = Instant::now() + TIMEOUT;
            loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                if Instant::now() > until {
                    child.kill()?;
                    child.wait()?;
                    let stderr = fs::read_to_string(file("stderr"))?;
                    return Err(Stop::Failed(format!("{command:?} didn't end (stderr: {stderr:?})")));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let read = |name| fs::read(file(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let ended_by = std::os::unix::process::ExitStatusExt::signal(&status).map_or(0, |signal| -signal);
        Ok(Output {
            status: status.code().unwrap_or(ended_by),
            stdout: read("stdout")?,
            stderr: read("stderr")?,
        })
    }

    /// What the container of the last `create` has printed by now.
    pub fn printed(&self) -> String {
        let numbers = (0..self.commands.get()).rev();
        let read =
            |number| fs::read_to_string(self.directory.join(format!("{number}.stdout"))).unwrap_or_default();
        numbers.map(read).find(|text| !text.is_empty()).unwrap_or_default()
    }

    /// `run`s the bundle to its end.
    pub fn run(&self, bundle: &Bundle) -> Verdict<Output> {
        self.call(&["run", "--bundle", text(&bundle.path), &self.id])
    }

    /// What a process sees in a container of the configuration.
    pub fn report(&self, change: impl FnOnce(&mut Value)) -> Verdict<Value> {
        let bundle = self.bundle(change)?;
        self.run(&bundle)?.succeeded()?.json()
    }

    /// Runs the probe with these arguments, and fails unless it exits with 0.
    pub fn probed(&self, words: &[&str], change: impl FnOnce(&mut Value)) -> Verdict<Output> {
        let bundle = self.bundle(|config| {
            change(config);
            config["process"]["args"] = probe(words);
        })?;
        self.run(&bundle)
    }

    /// Creates and starts a container that waits.
    pub fn start(&self, change: impl FnOnce(&mut Value)) -> Verdict<Bundle> {
        let mut waits = false;
        let bundle = self.create(|config| {
            config["process"]["args"] = probe(&["wait"]);
            change(config);
            waits = config["process"]["args"] == probe(&["wait"]);
        })?;
        let created = self.commands.get() - 1;
        self.call(&["start", &self.id])?.succeeded()?;
        if waits {
            // Before it has said so, it is deaf to signals, as every first process is.
            let printed = self.directory.join(format!("{created}.stdout"));
            until("the program", || Ok(fs::read_to_string(&printed)?.contains("waiting")))?;
        }
        Ok(bundle)
    }

    /// Creates a container.
    pub fn create(&self, change: impl FnOnce(&mut Value)) -> Verdict<Bundle> {
        let bundle = self.bundle(change)?;
        self.call(&["create", "--bundle", text(&bundle.path), &self.id])?.succeeded()?;
        Ok(bundle)
    }

    /// Runs the probe in the container by `exec`, with flags.
    pub fn exec(&self, flags: &[&str], words: &[&str]) -> Verdict<Output> {
        self.call(&[&["exec"], flags, &[self.id.as_str(), "/probe"], words].concat())
    }

    /// The container's state.
    pub fn state(&self) -> Verdict<Value> {
        self.call(&["state", &self.id])?.succeeded()?.json()
    }

    /// Waits until the container's status is this one.
    pub fn until_status(&self, status: &str) -> Verdict {
        until(&format!("status {status}"), || Ok(self.state()?["status"] == status))
    }

    /// The directories of the container's cgroup, in each hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.filter(|path| path.is_dir()).chain([root.to_owned()]) {
            for id in self.ids.borrow().iter() {
                found.extend(Some(hierarchy.join(id)).filter(|path| is_cgroup(path)));
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// The file of the container's cgroup, in the hierarchy of the v1 controller, or in v2's.
    pub fn cgroup_file(&self, controller: &str, name: &str) -> Verdict<String> {
        let root = Path::new("/sys/fs/cgroup");
        let v1 = root.join(controller).join(&self.id).join(name);
        let path = if v1.exists() { v1 } else { root.join(&self.id).join(name) };
        let read = fs::read_to_string(&path).map_err(|error| Stop::Failed(format!("{path:?}: {error}")))?;
        Ok(read.trim().to_owned())
    }

    /// Fails if anything is left: of the state, cgroups, mounts.
    pub fn nothing_left(&self) -> Verdict {
        let left = self.cgroups();
        ensure!(left.is_empty(), "cgroups are left: {left:?}");
        let state: Vec<_> = fs::read_dir(self.state_directory()).into_iter().flatten().flatten().collect();
        let state: Vec<_> = state.iter().map(fs::DirEntry::path).filter(|path| path.is_dir()).collect();
        ensure!(state.is_empty(), "state is left: {state:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(text(&self.directory)));
        ensure!(mount.is_none(), "a mount is left: {mount:?}");
        Ok(())
    }

    /// Waits until nothing is left; where it is in vain, the failure says what is.
    pub fn until_nothing_left(&self) -> Verdict {
        until("nothing left", || Ok(self.nothing_left().is_ok())).or_else(|_| self.nothing_left())
    }

    /// Removes all that is left, and fails if the runtime can't.
    pub fn clean_up(&self) -> Verdict {
        let mut verdict = Ok(());
        for id in self.ids.borrow().iter() {
            let deleted = self.call(&["delete", "--force", id]).and_then(Output::succeeded);
            verdict = verdict.and(deleted.map(drop));
        }
        // A killed process may take a while to leave its cgroup.
        verdict = verdict.and(self.until_nothing_left());
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        self.temporary.take().map(TempDir::close).transpose()?;
        verdict
    }
}

/// Whether it is a directory of a cgroup file system. Where one is hidden, crun makes directories of
/// the same name in what is below.
fn is_cgroup(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| matches!(stat.filesystem_type(), CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC))
}

/// Last resort: what a broken runtime left would disturb the tests after this one.
fn remove_cgroup(path: &Path) {
    for process in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid) = process.parse() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let _ = fs::remove_dir(path);
}

/// Waits until the condition holds.
pub fn until(what: &str, mut condition: impl FnMut() -> Verdict<bool>) -> Verdict {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition()? {
        ensure!(Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The arguments of a process that is the probe.
pub fn probe(words: &[&str]) -> Value {
    ["/probe"].iter().chain(words).copied().collect()
}

/// Gives the container a user namespace, with `size` ids that are those from 100,000 on the host.
pub fn add_user_namespace(config: &mut Value, size: u32) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": size }]);
    config["linux"]["uidMappings"] = mapping.clone();
    config["linux"]["gidMappings"] = mapping;
}

/// A path of ours, which is text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the suite's own is UTF-8")
}

/// The configuration that tests start from: what `spec` writes, but for the terminal, the program
/// and a cgroup of the test's own.
fn default_config(id: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/probe", "report"],
            "env": ["PATH=/bin:/", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "vessel",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

/// How many capabilities this process could give.
pub fn own_bounding_set() -> Verdict<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(u64::from_str_radix(line.unwrap_or_default().trim(), 16)?.count_ones())
}
