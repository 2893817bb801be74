//! A process in a container that is there.

use super::container::{Credentials, add_labels, add_process, add_process_wide, keeps_groups};
use super::{Namespaces, Plan, Steps};
use crate::config::Config;
use crate::error::{Pointer, Result};
use crate::host::Host;
use crate::steps::WaitForRuntime;
use crate::steps::console::Console;
use crate::steps::keyring::JoinKeyring;
use crate::steps::namespaces::{BecomeRoot, JoinNamespaces};
use crate::steps::scheduling::numbers;
use nix::sched::CloneFlags;
use oci_spec::runtime::Process;

/// What `exec` is to run, and where.
pub struct ExecRequest<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its configuration at its creation.
    pub config: &'a Config,
    /// The namespaces that it has.
    pub namespaces: CloneFlags,
    /// The process.
    pub process: &'a Process,
    /// The field that the process is in: that of config.json, or the root of a file of its own.
    pub at: Pointer,
}

/// Compiles a process.
pub fn exec(request: &ExecRequest<'_>, host: &Host) -> Result<Plan> {
    let linux = request.config.spec.linux().as_ref();
    let user_namespace = request.namespaces.contains(CloneFlags::CLONE_NEWUSER);
    let mut steps = Steps::default();
    // While the host's /proc is at hand.
    add_labels(&mut steps, request.process, &request.at);
    steps.add(&Pointer::to("/linux/namespaces"), JoinNamespaces);
    if user_namespace {
        steps.add(&Pointer::to("/linux/uidMappings"), BecomeRoot);
    }
    steps.add(&Pointer::to("/process"), JoinKeyring::plan(request.id, user_namespace)?);
    steps.add_some(&request.at.key("terminal"), Console::plan(request.process, &request.at, false));
    if let Some(linux) = linux {
        add_process_wide(&mut steps, linux)?;
    }
    // Before it is limited by what it has in the container, it must be where that is counted.
    steps.add(&Pointer::to("/linux/cgroupsPath"), WaitForRuntime);
    let mut plan = Plan {
        namespaces: Namespaces { new: CloneFlags::empty(), joined: Vec::new(), maps: None },
        cgroup: None,
        resctrl: None,
        trees: Vec::new(),
        net_devices: Vec::new(),
        ignored_signals: host.ignored_signals.clone(),
        limits: Vec::new(),
        oom_score_adj: None,
        affinity: affinity(request)?,
        steps,
        finish: Steps::default(),
        program: None,
    };
    let available = if user_namespace { !0 } else { host.capabilities };
    let keep_groups = keeps_groups(&request.config.spec);
    let credentials = Credentials { available, own_null: false, user_namespace, at_root: false, keep_groups };
    add_process(&mut plan, request.process, linux, &request.at, &credentials)?;
    Ok(plan)
}

/// `process.execCPUAffinity`, of the process or else of the container's configuration.
fn affinity(request: &ExecRequest<'_>) -> Result<[Option<Vec<u64>>; 2]> {
    let own = request.process.exec_cpu_affinity().as_ref();
    let containers =
        || request.config.spec.process().as_ref().and_then(|process| process.exec_cpu_affinity().as_ref());
    let Some(affinity) = own.or_else(containers) else { return Ok([None, None]) };
    let at = request.at.key("execCPUAffinity");
    let mask = |key: &str, list: &Option<String>| match list.as_deref().filter(|list| !list.is_empty()) {
        None => Ok(None),
        Some(list) => numbers(list).map(Some).map_err(|error| error.at(at.key(key))),
    };
    Ok([mask("initial", affinity.initial())?, mask("final", affinity.cpu_affinity_final())?])
}
