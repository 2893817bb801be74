//! Golden plans: what is done for a configuration, in which order, as text.
//!
//! `golden/NAME.json` is the configuration, `golden/NAME.plan` its plan. To accept a change, run the
//! tests with UPDATE_GOLDEN=1, and read the difference.

use super::{ExecRequest, Request, create, exec};
use crate::cgroup::Layout;
use crate::config::{Config, check, parse};
use crate::error::Pointer;
use crate::host::Host;
use nix::sched::CloneFlags;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, TMPFS_MAGIC};
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan/golden").join(name)
}

fn config(name: &str) -> Config {
    let text = fs::read(golden(&format!("{name}.json"))).expect("a configuration");
    Config { spec: parse(&text).expect("it parses"), bundle: "/bundle".into(), text }
}

fn host(unified: bool) -> Host {
    let (kind, memberships) = match unified {
        true => (CGROUP2_SUPER_MAGIC, "0::/own"),
        false => (
            TMPFS_MAGIC,
            "7:name=systemd:/own\n6:pids:/own\n5:freezer:/own\n4:devices:/own\n3:memory:/own\n2:cpuset:/own\n1:cpu,cpuacct:/own\n0::/",
        ),
    };
    Host {
        cgroups: Layout::of(kind, memberships).expect("a layout"),
        capabilities: !0,
        ignored_signals: Vec::new(),
    }
}

fn compare(name: &str, actual: &str) {
    let file = golden(&format!("{name}.plan"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, actual).expect("written");
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    // A filter is another one for each processor.
    let native = |text: &str| match text.split_once("load seccomp filter: ") {
        Some((before, after)) if cfg!(not(target_arch = "x86_64")) => {
            format!("{before}{}", after.split_once(' ').map_or("", |(_, after)| after))
        }
        _ => text.to_owned(),
    };
    let (expected, actual) = (native(&expected), native(actual));
    let difference = expected.lines().zip(actual.lines()).find(|(expected, actual)| expected != actual);
    assert!(expected == actual, "{name}.plan differs first in {difference:?}; the plan is now:\n{actual}");
}

fn created(name: &str, unified: bool) -> String {
    let config = config(name);
    assert_eq!(check(&config.spec), vec![], "{name}.json is valid");
    let request = Request { id: "id".into(), ..Request::default() };
    create(&config, &host(unified), &request).expect("a plan").to_string()
}

#[test]
fn the_example_of_spec() {
    compare("spec", &created("spec", true));
}

#[test]
fn a_container_as_docker_asks_for_it_on_cgroup_v1() {
    compare("docker", &created("docker", false));
}

#[test]
fn a_user_namespace_with_everything_that_depends_on_it() {
    compare("user-namespace", &created("user-namespace", true));
}

#[test]
fn a_process_of_exec() {
    let config = config("user-namespace");
    let process = config.spec.process().as_ref().expect("a process");
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    let request = ExecRequest { id: "id", config: &config, namespaces, process, at: Pointer::to("/process") };
    compare("exec", &exec(&request, &host(true)).expect("a plan").to_string());
}
