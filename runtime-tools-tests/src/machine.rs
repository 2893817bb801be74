//! What the machine has. A test asks before it needs something, and skips with the answer.

use crate::harness::{Stop, Verdict};
use std::path::Path;

/// The version of the cgroup file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// v1, with or without a v2 hierarchy beside it.
    V1,
    /// v2 alone.
    V2,
}

/// Which cgroups there are.
pub fn cgroups() -> Cgroups {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Cgroups::V2 } else { Cgroups::V1 }
}

/// Skips unless the cgroups are of this version.
pub fn needs_cgroups(version: Cgroups) -> Verdict {
    if cgroups() == version { Ok(()) } else { Err(Stop::Skipped(format!("needs cgroup {version:?}"))) }
}

/// Skips unless the controller is there.
pub fn needs_controller(name: &str) -> Verdict {
    let there = match cgroups() {
        Cgroups::V1 => controller_v1(name),
        Cgroups::V2 => {
            let all = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
            all.split_whitespace().any(|controller| controller == name)
        }
    };
    if there { Ok(()) } else { Err(Stop::Skipped(format!("needs the cgroup controller {name}"))) }
}

fn controller_v1(name: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(name).join("cgroup.procs").exists()
}

/// Skips unless the file exists.
pub fn needs_file(path: &str, what: &str) -> Verdict {
    if Path::new(path).exists() { Ok(()) } else { Err(Stop::Skipped(format!("needs {what} ({path})"))) }
}
