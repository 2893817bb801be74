//! What the whole run has left on the machine: processes, mounts, cgroups, network devices, directories,
//! eBPF programs. Each test looks after itself; this finds what no test thought of.

use crate::harness::Verdict;
use crate::{ensure, ensure_eq};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to let go of what was removed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine before the run.
pub struct Before {
    devices: BTreeSet<String>,
    directories: BTreeSet<String>,
    programs: BTreeSet<u32>,
}

impl Before {
    /// Looks at it.
    pub fn look() -> Self {
        Before {
            devices: names("/sys/class/net"),
            directories: test_directories(),
            programs: device_programs(),
        }
    }

    /// Fails if anything is there now that wasn't, and is ours.
    pub fn compare(&self) -> Verdict {
        let until = Instant::now() + PATIENCE;
        while self.compare_now().is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.compare_now()
    }

    fn compare_now(&self) -> Verdict {
        let processes = processes()?;
        ensure!(processes.is_empty(), "processes are left: {processes:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains("/rtt-")).collect();
        ensure!(mounts.is_empty(), "mounts are left: {mounts:?}");
        let mut cgroups = Vec::new();
        find(Path::new("/sys/fs/cgroup"), &format!("rtt-{}-", std::process::id()), 4, &mut cgroups);
        ensure!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
        ensure_eq!(names("/sys/class/net"), self.devices, "network devices");
        let directories: Vec<_> = test_directories().difference(&self.directories).cloned().collect();
        ensure!(directories.is_empty(), "directories are left: {directories:?}");
        let programs: Vec<_> = device_programs().difference(&self.programs).copied().collect();
        ensure!(programs.is_empty(), "eBPF programs for devices are left: {programs:?}");
        Ok(())
    }
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn test_directories() -> BTreeSet<String> {
    let temporary = std::env::temp_dir();
    names(&temporary.to_string_lossy()).into_iter().filter(|name| name.starts_with("rtt-")).collect()
}

/// Processes that began after this one, and are a container's program, or a runtime's with a state
/// directory of a test's.
fn processes() -> Verdict<Vec<String>> {
    let own = procfs::process::Process::myself()?.stat()?;
    let mut found = Vec::new();
    for pid in names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()).filter(|&pid| pid != own.pid)
    {
        let Ok(process) = procfs::process::Process::new(pid) else { continue };
        let Ok(stat) = process.stat() else { continue };
        let words = process.cmdline().unwrap_or_default();
        let ours = words.first().is_some_and(|word| word == "/probe")
            || words.iter().any(|word| word.contains("/rtt-") && word.ends_with("/state"));
        if stat.starttime >= own.starttime && ours && !matches!(stat.state, 'Z' | 'X') {
            found.push(format!("{pid} {words:?}"));
        }
    }
    Ok(found)
}

/// Directories at most `depth` below whose name contains `part`.
fn find(directory: &Path, part: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(part) {
            found.push(entry.path());
        }
        if depth > 0 {
            find(&entry.path(), part, depth - 1, found);
        }
    }
}

/// The numbers of all loaded programs of type BPF_PROG_TYPE_CGROUP_DEVICE (bpf(2)) but systemd's; none
/// where this user may not ask.
fn device_programs() -> BTreeSet<u32> {
    const PROG_GET_NEXT_ID: usize = 11;
    const PROG_GET_FD_BY_ID: usize = 13;
    const OBJ_GET_INFO_BY_FD: usize = 15;
    const CGROUP_DEVICE: u32 = 15;
    let bpf = |command: usize, attributes: &mut [u32]| {
        let size = size_of_val(attributes);
        // SAFETY: each of these commands reads and writes no more than this structure, and what the last
        // one's pointer leads to, which is as long as it says.
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) }
    };
    let mut all = BTreeSet::new();
    let mut number = 0;
    loop {
        let mut next = [number, 0, 0];
        if bpf(PROG_GET_NEXT_ID, &mut next) != 0 {
            return all;
        }
        number = next[1];
        let fd = bpf(PROG_GET_FD_BY_ID, &mut [number, 0, 0]);
        if fd < 0 {
            continue;
        }
        // The first word of `struct bpf_prog_info` is its type, its name begins with the 17th.
        let mut info = [0u32; 64];
        let place = info.as_mut_ptr() as u64;
        let mut request = [fd as u32, size_of_val(&info) as u32, place as u32, (place >> 32) as u32];
        if bpf(OBJ_GET_INFO_BY_FD, &mut request) == 0 && info[0] == CGROUP_DEVICE {
            let name: Vec<u8> = info[16..20].iter().flat_map(|word| word.to_ne_bytes()).collect();
            // systemd makes those of its services anew when it is told to read its files again. One of a
            // unit that a test left is found by the unit's cgroup.
            if !name.starts_with(b"sd_devices") {
                all.insert(number);
            }
        }
        // SAFETY: the descriptor was just made, and is nobody else's.
        unsafe { libc::close(fd as i32) };
    }
}
