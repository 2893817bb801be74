//! How this host mounts its cgroups (cgroups(7)).

use crate::error::{Context, Error, Result};
use crate::sys::{Call, file, identity};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};
use std::path::{Path, PathBuf};

/// Where systems mount cgroups.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of this host and this process's place in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One cgroup v2 hierarchy with every controller.
    Unified {
        /// This process's cgroup, from the hierarchy's root.
        own: PathBuf,
    },
    /// cgroup v1, one hierarchy for each set of controllers, perhaps beside a v2 one ("hybrid"),
    /// which is left alone.
    Legacy(Vec<Hierarchy>),
}

/// A v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, separated by commas, or `name=systemd`.
    pub controllers: String,
    /// This process's cgroup, from the hierarchy's root.
    pub own: PathBuf,
}

impl Hierarchy {
    /// Where it is mounted: its directory bears the controllers' names.
    pub fn mount_point(&self) -> PathBuf {
        Path::new(ROOT).join(self.directory())
    }

    /// The name of that directory.
    pub fn directory(&self) -> &str {
        match self.controllers.as_str() {
            // The v2 hierarchy of a hybrid host.
            "" => "unified",
            controllers => controllers.strip_prefix("name=").unwrap_or(controllers),
        }
    }
}

impl Layout {
    /// Looks at this host. /proc/self/mountinfo isn't read for it: a busy host has 36,000 lines
    /// there (containerd#5113).
    pub fn probe() -> Result<Self> {
        Self::of_process("self")
    }

    /// The same, with the place of another process: its id, or `self`.
    pub fn of_process(pid: &str) -> Result<Self> {
        let kind =
            statfs(ROOT).call(|| format!("statfs({ROOT:?})")).doing(|| "cgroups".into())?.filesystem_type();
        let text = file::read(Path::new(&format!("/proc/{pid}/cgroup"))).doing(|| "cgroups".into())?;
        Self::of(kind, &text)
    }

    /// The layout of a host whose ROOT is a file system of type `kind`; `text` is of /proc/PID/cgroup.
    pub fn of(kind: FsType, text: &str) -> Result<Self> {
        match kind {
            CGROUP2_SUPER_MAGIC => Ok(Layout::Unified { own: membership(text, "").unwrap_or("/").into() }),
            TMPFS_MAGIC => {
                let hierarchy = |(controllers, own): (&str, &str)| Hierarchy {
                    controllers: controllers.into(),
                    own: own.into(),
                };
                Ok(Layout::Legacy(memberships(text).map(hierarchy).collect()))
            }
            _ => Err(Error::new(format!("no cgroup file system at {ROOT}"))
                .hint("mount cgroup2 there, or run with a cgroup mount namespace of the host")),
        }
    }

    /// Whether controllers are in the one v2 hierarchy.
    pub fn is_unified(&self) -> bool {
        matches!(self, Layout::Unified { .. })
    }
}

/// What /proc/PID/cgroup says: the controllers of each hierarchy, as in `Hierarchy`, and the process's
/// cgroup in it.
pub fn memberships(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// The cgroup in the hierarchy with exactly these controllers.
pub fn membership<'a>(text: &'a str, controllers: &str) -> Option<&'a str> {
    memberships(text).find(|(other, _)| *other == controllers).map(|(_, path)| path)
}

/// Whether this process lacks the host's full rights: an ordinary user, or root in a user
/// namespace. Asked only after the kernel has refused something.
pub fn is_unprivileged() -> bool {
    !identity::user().is_root() || identity::in_user_namespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_are_legacy_ones() {
        let text = "3:cpu,cpuacct:/a\n2:name=systemd:/user/b:c\n0::/\n";
        let layout = Layout::of(TMPFS_MAGIC, text).expect("a layout");
        let Layout::Legacy(hierarchies) = layout else { panic!("{layout:?}") };
        let seen: Vec<_> =
            hierarchies.iter().map(|one| (one.mount_point(), one.own.to_str().unwrap_or_default())).collect();
        assert_eq!(
            seen,
            [
                (PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), "/a"),
                (PathBuf::from("/sys/fs/cgroup/systemd"), "/user/b:c"),
                (PathBuf::from("/sys/fs/cgroup/unified"), "/")
            ]
        );
    }

    #[test]
    fn unified_hosts_have_one_place() {
        let layout = Layout::of(CGROUP2_SUPER_MAGIC, "0::/user.slice/x.scope\n");
        assert_eq!(layout, Ok(Layout::Unified { own: "/user.slice/x.scope".into() }));
    }
}
