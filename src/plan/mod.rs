//! From a configuration to the list of steps that make the container: the order of a container.
//!
//! Nothing here touches the system. What comes out can be printed, compared, and run.

mod container;
mod exec;
mod namespaces;

pub use container::{Request, create};
pub use exec::{ExecRequest, exec};
pub use namespaces::{IdMaps, Join, Namespaces, flag as namespace_flag, name as namespace_name};

use crate::cgroup;
use crate::error::{Error, Pointer, Result};
use crate::resctrl;
use crate::steps::limits::Limit;
use crate::steps::net_devices::NetDevice;
use crate::steps::program::Program;
use crate::steps::trees::Tree;
use crate::steps::{Init, Step};
use std::fmt;

/// All that is to be done.
pub struct Plan {
    /// The namespaces that the process is cloned into, and those that it joins.
    pub namespaces: Namespaces,
    /// The container's cgroups; None for `exec`, which enters those that are there.
    pub cgroup: Option<cgroup::Plan>,
    /// Its groups of the resctrl file system.
    pub resctrl: Option<resctrl::Plan>,
    /// Mounts that the runtime opens.
    pub trees: Vec<Tree>,
    /// Network devices that the runtime moves to the container.
    pub net_devices: Vec<NetDevice>,
    /// Signals that the caller ignores and the container's process must not.
    pub ignored_signals: Vec<i32>,
    /// Limits that the runtime allows a process in a user namespace.
    pub limits: Vec<Limit>,
    /// `process.oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// CPUs that a process of `exec` may run on before and after it enters its cgroup.
    pub affinity: [Option<Vec<u64>>; 2],
    /// What the process does until it is ready to start.
    pub steps: Steps,
    /// What it does when it is started.
    pub finish: Steps,
    /// What it executes; None for a container that can't be started.
    pub program: Option<Program>,
}

/// Steps in the order in which they are done, each with the field that it is for.
#[derive(Default)]
pub struct Steps(Vec<(Pointer, Box<dyn Step>)>);

impl Steps {
    fn add(&mut self, at: &Pointer, step: impl Step + 'static) {
        self.0.push((at.clone(), Box::new(step)));
    }

    fn add_some(&mut self, at: &Pointer, step: Option<impl Step + 'static>) {
        if let Some(step) = step {
            self.add(at, step);
        }
    }

    /// Does them. A failure names the field that the step is for.
    pub fn apply(&self, init: &mut Init) -> Result<()> {
        self.0.iter().try_for_each(|(at, step)| step.apply(init).map_err(|error: Error| error.at(at.clone())))
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(at, step)| writeln!(f, "{at}: {step}"))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cgroup) = &self.cgroup {
            write!(f, "{cgroup}")?;
        }
        if let Some(resctrl) = &self.resctrl {
            write!(f, "{resctrl}")?;
        }
        write!(f, "{}", self.namespaces)?;
        self.net_devices.iter().try_for_each(|device| writeln!(f, "{device}"))?;
        write!(f, "{}", self.steps)?;
        writeln!(f, "(ready; wait for start)")?;
        write!(f, "{}", self.finish)?;
        match &self.program {
            Some(program) => writeln!(f, "execute {program}"),
            None => writeln!(f, "(no process to start)"),
        }
    }
}

#[cfg(test)]
mod tests;
