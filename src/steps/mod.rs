//! What is done to a process to make it a container's: one feature a file.
//!
//! Each has its data, a pure `plan` that makes it from the configuration, and `apply`, which
//! carries it out in the process itself. Decisions are made in `plan`; `apply` resolves paths and
//! makes system calls.

pub mod capabilities;
pub mod cgroup_mount;
pub mod console;
pub mod copy_up;
pub mod devices;
pub mod file_systems;
pub mod hooks;
pub mod keyring;
pub mod labels;
pub mod limits;
pub mod masks;
pub mod mount_options;
pub mod mounts;
pub mod names;
pub mod namespaces;
pub mod net_devices;
pub mod passwd;
pub mod program;
pub mod root_mount;
pub mod rootfs;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;
pub mod trees;
pub mod user;

use crate::error::{Error, Result};
use crate::link::{Link, Message};
use crate::root::Root;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A part of a container's making, as large as the specification's own parts.
pub trait Step: fmt::Display {
    /// Carries it out in this process.
    fn apply(&self, init: &mut Init) -> Result<()>;
}

/// What the steps work with: the state of the process that becomes the container's.
pub struct Init {
    /// The container's root directory: none at first, then one below the host's, then the root
    /// itself.
    pub root: Option<Root>,
    /// The connection to the runtime.
    pub link: Link,
    /// The socket that is sent the terminal.
    pub console: Option<OwnedFd>,
    /// Mounts that the runtime opened because this process may not: by index in `/mounts`.
    pub trees: Vec<(usize, OwnedFd)>,
    /// Namespaces to join: their types, and a descriptor of the namespace or of a process in it.
    pub namespaces: Vec<(CloneFlags, OwnedFd)>,
    /// The caller's umask, for hooks. The process's own is 0 until it has its user.
    pub umask: Mode,
    /// Mounts that become read-only once everything in them is made.
    pub read_only_later: Vec<OwnedFd>,
    /// A verified /dev/null of the container's, to mask files with.
    pub null: Option<OwnedFd>,
    /// What execve(2) will be told, where a step had to find it out.
    pub found: Found,
}

/// What the container's own files had to be asked for.
#[derive(Default)]
pub struct Found {
    /// The executable.
    pub executable: PathBuf,
    /// The user's home directory.
    pub home: Option<String>,
    /// Whether the working directory is reached.
    pub in_directory: bool,
}

impl Init {
    /// The container's root directory.
    pub fn root(&self) -> Result<&Root> {
        self.root.as_ref().ok_or_else(|| Error::new("the root directory is not open yet"))
    }

    /// Waits for the runtime to say `expected`; it is an error if the runtime has gone away.
    pub fn wait_for(&self, expected: &Message) -> Result<()> {
        match self.link.expect(expected)? {
            true => Ok(()),
            false => Err(Error::new("the runtime went away")),
        }
    }
}

/// Waits until the runtime has mapped the ids and moved this process into its cgroups.
pub struct WaitForRuntime;

impl fmt::Display for WaitForRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wait for id mappings and cgroups")
    }
}

impl Step for WaitForRuntime {
    fn apply(&self, init: &mut Init) -> Result<()> {
        init.wait_for(&Message::Go)
    }
}
