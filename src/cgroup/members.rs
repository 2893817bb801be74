//! What is in a container's cgroups: stopping it, signalling it, and removing them with what is nested.

use super::ROOT;
use super::group::{Cgroup, Claim, Directory};
use crate::error::{Context, Error, Result};
use crate::sys::Call;
use crate::sys::file::{self, Failures};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether a container's processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// They are stopped.
    Frozen,
    /// They run.
    Thawed,
}

/// How often a step is tried that the kernel makes wait for processes to go away, with a pause
/// that doubles from 1 ms up to 100 ms: 10 s in all.
const TRIES: u32 = 105;

fn pause_before(attempt: u32) {
    std::thread::sleep(Duration::from_millis(1 << attempt.min(6)).min(Duration::from_millis(100)));
}

impl Cgroup {
    /// Stops all processes, or lets them go on.
    pub fn set_freeze(&self, freeze: Freeze) -> Result<()> {
        let Some(directory) = self.directory_of("freezer") else {
            return Err(Error::new("the container has no freezer cgroup"));
        };
        let frozen = freeze == Freeze::Frozen;
        if self.unified {
            file::write(&directory.file("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        } else {
            file::write(&directory.file("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })?;
        }
        for attempt in 0..TRIES {
            if self.is_settled(directory, freeze)? {
                return Ok(());
            }
            pause_before(attempt);
            if frozen && !self.unified {
                // v1 can miss processes that are made meanwhile: thawing and starting again helps.
                if attempt % 50 == 49 {
                    file::write(&directory.file("freezer.state"), "THAWED")?;
                }
                file::write(&directory.file("freezer.state"), "FROZEN")?;
            }
        }
        if frozen {
            // A half-frozen container is worse than a running one.
            self.set_freeze(Freeze::Thawed)?;
        }
        Err(Error::new("the container's processes could not be stopped in 10 s"))
    }

    fn is_settled(&self, directory: &Directory, freeze: Freeze) -> Result<bool> {
        if self.unified {
            let events = file::read(&directory.file("cgroup.events"))?;
            let wanted = if freeze == Freeze::Frozen { "frozen 1" } else { "frozen 0" };
            return Ok(events.lines().any(|line| line == wanted));
        }
        let state = file::read(&directory.file("freezer.state"))?;
        Ok(state.trim() == if freeze == Freeze::Frozen { "FROZEN" } else { "THAWED" })
    }

    /// Whether the container itself was frozen, and not a cgroup above it.
    pub fn freeze(&self) -> Freeze {
        let frozen = self.directory_of("freezer").is_some_and(|directory| {
            let name = if self.unified { "cgroup.freeze" } else { "freezer.self_freezing" };
            file::read(&directory.file(name)).is_ok_and(|state| state.trim() == "1")
        });
        if frozen { Freeze::Frozen } else { Freeze::Thawed }
    }

    /// Lets processes go on that were killed while they were frozen: on v1 they end only then.
    pub fn thaw_for_kill(&self) -> Result<()> {
        match !self.unified && self.freeze() == Freeze::Frozen {
            true => self.set_freeze(Freeze::Thawed),
            false => Ok(()),
        }
    }

    /// The processes in the container's cgroups, nested ones included.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        match self.directories.first() {
            None => Err(Error::new("the container has no cgroup that lists its processes")),
            Some(directory) => Ok(processes_below(&directory.path)?.into_iter().map(Pid::from_raw).collect()),
        }
    }

    /// Sends `signal` to all processes.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let Some(first) = self.own().next() else { return Ok(()) };
        if self.unified
            && signal == Signal::SIGKILL as i32
            && file::write(&first.file("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        // Frozen, they can neither fork nor end while their ids are read and used.
        let was = self.freeze();
        let frozen = self.set_freeze(Freeze::Frozen);
        let mut failures = Failures::default();
        for pid in processes_below(&first.path)? {
            match send(pid, signal) {
                Err(Errno::ESRCH) | Ok(()) => {}
                Err(errno) => failures.note(Err::<(), _>(errno).call(|| format!("kill({pid}, {signal})"))),
            }
        }
        // A frozen process gets even SIGKILL only when it thaws.
        if frozen.is_ok() && (was == Freeze::Thawed || signal == Signal::SIGKILL as i32) {
            self.set_freeze(Freeze::Thawed)?;
        }
        failures.into_result()
    }

    /// Whether the kernel has killed a process of the container for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let Some(directory) = self.directory_of("memory") else { return false };
        let (file, key) =
            if self.unified { ("memory.events", "oom_kill ") } else { ("memory.oom_control", "oom_kill ") };
        let events = file::read(&directory.file(file)).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix(key).is_some_and(|count| count != "0"))
    }

    /// Removes the directories with all cgroups that the container made in them. Waits for
    /// processes that are on their way out.
    pub fn remove(&self) -> Result<()> {
        let mut failures = Failures::default();
        if let Some(unit) = self.unit.as_ref().filter(|_| self.own().next().is_some()) {
            unit.stop()?;
        }
        for directory in &self.directories {
            match directory.claim {
                Claim::Made => failures.note(remove_tree(&directory.path)),
                // Ours if `create` was killed just then, and then there is nothing in it.
                Claim::Planned => drop(file::rmdir(&directory.path)),
                Claim::Found => {}
            }
        }
        self.remove_parents();
        failures.into_result().doing(|| "cannot remove the container's cgroup".into())
    }

    /// In the v2 hierarchy of a hybrid host nobody else may know of the cgroups above the container's,
    /// which were made for it or one beside it: those that are empty go, unless they are systemd's.
    fn remove_parents(&self) {
        let hybrid = self.own().filter(|directory| !self.unified && directory.is_v2());
        for directory in hybrid {
            let below_root = |above: &&Path| above.parent().is_some_and(|parent| parent != Path::new(ROOT));
            for above in directory.path.ancestors().skip(1).take_while(below_root) {
                let name = above.to_string_lossy();
                let is_systemds =
                    [".slice", ".scope", ".service"].iter().any(|suffix| name.ends_with(suffix));
                if is_systemds || file::rmdir(above).is_err() {
                    break;
                }
            }
        }
    }
}

fn send(pid: i32, signal: i32) -> nix::Result<()> {
    match Signal::try_from(signal) {
        Ok(signal) => kill(Pid::from_raw(pid), signal),
        Err(_) => {
            let pidfd = crate::sys::process::pidfd_open(Pid::from_raw(pid)).map_err(|failed| failed.errno)?;
            crate::sys::process::pidfd_send_signal(pidfd.as_fd(), signal).map_err(|failed| failed.errno)
        }
    }
}

/// The processes in a cgroup itself.
pub(super) fn processes_in(directory: &Path) -> Result<Vec<i32>> {
    let path = directory.join("cgroup.procs");
    // Longer than one read in a container with thousands of processes.
    let text = std::fs::read_to_string(&path).call(|| format!("read({path:?})"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The processes in a cgroup and those nested in it. A nested one may go away meanwhile.
fn processes_below(directory: &Path) -> Result<BTreeSet<i32>> {
    let mut processes: BTreeSet<i32> = match processes_in(directory) {
        // A threaded cgroup lists its processes in the domain above; one being removed has none.
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP)) => {
            BTreeSet::new()
        }
        other => other?.into_iter().collect(),
    };
    for child in children(directory) {
        processes.extend(processes_below(&child)?);
    }
    Ok(processes)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(directory: &Path) -> crate::sys::Result<()> {
    for attempt in 0..TRIES {
        match file::rmdir(directory) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => {
                for child in children(directory) {
                    remove_tree(&child)?;
                }
                pause_before(attempt);
            }
            Err(errno) => return Err(errno).call(|| format!("rmdir({directory:?})")),
        }
    }
    Err(Errno::EBUSY).call(|| format!("rmdir({directory:?})"))
}
