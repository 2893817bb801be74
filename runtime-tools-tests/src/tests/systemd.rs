//! `--systemd-cgroup`: a container is a scope of systemd's.

use crate::case::{Case, Output, probe, text, until};
use crate::harness::Verdict;
use crate::machine::{self, Cgroups};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

tests![
    "runc --systemd-cgroup: the unit's name and slice" => name_and_slice,
    "runc --systemd-cgroup: without cgroupsPath" => default_name,
    "runc --systemd-cgroup: limits are properties" => limits,
    "runc --systemd-cgroup: org.systemd.property annotations" => annotations,
    "runc --systemd-cgroup: an annotation that is none" => bad_annotation,
    "runc --systemd-cgroup: update" => update,
    "runc --systemd-cgroup: systemctl daemon-reload" => reload,
    "runc --systemd-cgroup: exec" => exec,
    "runc --systemd-cgroup: delete" => delete,
    "runc --systemd-cgroup: a name that is taken" => name_that_is_taken,
    "runc --systemd-cgroup: a cgroupsPath that isn't slice:prefix:name" => bad_path,
    "runc --systemd-cgroup: a create that fails after the unit was made" => failure_after_the_unit,
];

fn needs_systemd() -> Verdict {
    machine::needs_file("/run/systemd/system", "systemd as pid 1")
}

/// The unit of the container in most tests.
fn unit(case: &Case) -> String {
    format!("rtt-{}.scope", case.id)
}

fn path(case: &Case) -> Value {
    json!(format!("system.slice:rtt:{}", case.id))
}

fn systemctl(arguments: &[&str]) -> Verdict<String> {
    let output = Command::new("systemctl").args(arguments).output()?;
    ensure!(output.status.success(), "systemctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn needs_limits_as_properties(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun 1.8 tells systemd little: it writes limits to the cgroup's files");
    }
    needs_systemd()
}

/// What systemd says of a unit.
fn property(unit: &str, name: &str) -> Verdict<String> {
    systemctl(&["show", "--property", name, "--value", unit])
}

fn is_gone(unit: &str) -> Verdict {
    // It is collected after its last process.
    until(&format!("the end of {unit}"), || Ok(property(unit, "LoadState")? == "not-found"))
}

fn call(case: &Case, arguments: &[&str]) -> Verdict<Output> {
    case.call(&[&["--systemd-cgroup"], arguments].concat())
}

/// Runs a container that waits.
fn start(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict {
    start_as(case, &case.id, change)
}

fn start_as(case: &Case, id: &str, change: impl FnOnce(&mut Value)) -> Verdict {
    let bundle = case.bundle(|config| {
        config["linux"]["cgroupsPath"] = path(case);
        config["process"]["args"] = probe(&["wait"]);
        change(config);
    })?;
    call(case, &["run", "--detach", "--bundle", text(&bundle.path), id])?.succeeded()?;
    Ok(())
}

/// The lines of /proc/PID/cgroup.
fn cgroups(case: &Case) -> Verdict<String> {
    Ok(fs::read_to_string(format!("/proc/{}/cgroup", case.state()?["pid"]))?)
}

/// A file of the scope's directory, in the hierarchy of the v1 controller, or in v2's.
fn file(unit: &str, controller: &str, name: &str) -> Verdict<String> {
    let root = match machine::cgroups() {
        Cgroups::V1 => Path::new("/sys/fs/cgroup").join(controller),
        Cgroups::V2 => PathBuf::from("/sys/fs/cgroup"),
    };
    let path = root.join("system.slice").join(unit).join(name);
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// Slices are made as they are needed, and stay: this one is stopped with the test.
struct Slice(String);

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = systemctl(&["stop", &format!("{}.slice", self.0)]);
    }
}

fn name_and_slice(case: &Case) -> Verdict {
    needs_systemd()?;
    let made = Slice(format!("rtt{}", std::process::id()));
    let slice = &made.0;
    let unit = format!("cri-{}.scope", case.id);
    start(case, |config| {
        config["linux"]["cgroupsPath"] = json!(format!("{slice}-pod.slice:cri:{}", case.id));
    })?;
    let place = format!("/{slice}.slice/{slice}-pod.slice/{unit}");
    let cgroups = cgroups(case)?;
    let found = (property(&unit, "ActiveState")?, property(&unit, "Slice")?);
    let listed = property(&unit, "ControlGroup")?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure!(cgroups.contains(&place), "the process isn't in {place}: {cgroups}");
    ensure_eq!(found, ("active".to_owned(), format!("{slice}-pod.slice")), "state and slice of the unit");
    ensure_eq!(listed, place, "the unit's cgroup");
    is_gone(&unit)
}

fn default_name(case: &Case) -> Verdict {
    needs_systemd()?;
    start(case, |config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    })?;
    let unit = format!("{}-{}.scope", case.runtime.name, case.id);
    ensure_eq!(property(&unit, "ActiveState")?, "active", "state of {unit}");
    let cgroups = cgroups(case)?;
    ensure!(cgroups.contains(&format!("/system.slice/{unit}")), "the process isn't in {unit}: {cgroups}");
    Ok(())
}

fn limits(case: &Case) -> Verdict {
    needs_limits_as_properties(case)?;
    for controller in ["memory", "pids", "cpu"] {
        machine::needs_controller(controller)?;
    }
    start(case, |config| {
        let resources = &mut config["linux"]["resources"];
        resources["memory"] = json!({ "limit": 64 << 20 });
        resources["pids"] = json!({ "limit": 33 });
        resources["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
    })?;
    let memory = if machine::cgroups() == Cgroups::V2 { "MemoryMax" } else { "MemoryLimit" };
    for (name, value) in
        [(memory, "67108864"), ("TasksMax", "33"), ("CPUQuotaPerSecUSec", "500ms"), ("Delegate", "yes")]
    {
        ensure_eq!(property(&unit(case), name)?, value, "{name}");
    }
    ensure_eq!(file(&unit(case), "pids", "pids.max")?, "33", "the limit itself");
    Ok(())
}

fn annotations(case: &Case) -> Verdict {
    needs_limits_as_properties(case)?;
    start(case, |config| {
        config["annotations"] = json!({
            "org.systemd.property.Description": "'of the test'",
            "org.systemd.property.TimeoutStopUSec": "uint64 123000000",
            "org.systemd.property.TasksMax": "uint64 44",
        });
        config["linux"]["resources"]["pids"] = json!({ "limit": -1 });
    })?;
    ensure_eq!(property(&unit(case), "Description")?, "of the test", "Description");
    ensure_eq!(property(&unit(case), "TimeoutStopUSec")?, "2min 3s", "TimeoutStopUSec");
    Ok(())
}

fn bad_annotation(case: &Case) -> Verdict {
    needs_systemd()?;
    for (name, value) in [("Description", "no quotes"), ("lower", "'text'"), ("NoSuchProperty", "'text'")] {
        let key = format!("org.systemd.property.{name}");
        let bundle = case.bundle(|config| {
            config["linux"]["cgroupsPath"] = path(case);
            config["annotations"] = json!({ &key: value });
        })?;
        if case.runtime.name != "damda" && name == "lower" {
            continue; // the names are systemd's business to them
        }
        let output = call(case, &["run", "--bundle", text(&bundle.path), &case.id])?;
        output.failed_with(&[])?;
        is_gone(&unit(case))?;
        case.nothing_left()?;
    }
    Ok(())
}

fn update(case: &Case) -> Verdict {
    needs_limits_as_properties(case)?;
    machine::needs_controller("memory")?;
    machine::needs_controller("pids")?;
    start(case, |config| config["linux"]["resources"]["pids"] = json!({ "limit": 33 }))?;
    call(case, &["update", "--memory", "67108864", "--pids-limit", "21", &case.id])?.succeeded()?;
    let memory = if machine::cgroups() == Cgroups::V2 { "MemoryMax" } else { "MemoryLimit" };
    ensure_eq!(property(&unit(case), memory)?, "67108864", "{memory}");
    ensure_eq!(property(&unit(case), "TasksMax")?, "21", "TasksMax");
    ensure_eq!(file(&unit(case), "pids", "pids.max")?, "21", "the limit itself");
    Ok(())
}

fn reload(case: &Case) -> Verdict {
    needs_limits_as_properties(case)?;
    machine::needs_controller("pids")?;
    start(case, |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
        config["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" },
        ]);
        config["linux"]["devices"] = json!([
            { "path": "/dev/allowed", "type": "c", "major": 1, "minor": 11 },
            { "path": "/dev/denied", "type": "c", "major": 1, "minor": 4 },
        ]);
    })?;
    // The first time is the control, the others are the test.
    for time in ["before", "after a reload"] {
        ensure_eq!(file(&unit(case), "pids", "pids.max")?, "33", "the limit {time}");
        for (device, status) in [("allowed", 0), ("null", 0), ("denied", libc::EPERM)] {
            let output = case.exec(&[], &["append", &format!("/dev/{device}"), ""])?;
            ensure_eq!(output.status, status, "use of /dev/{device} {time} (stderr {:?})", output.stderr);
        }
        systemctl(&["daemon-reload"])?;
    }
    Ok(())
}

fn exec(case: &Case) -> Verdict {
    needs_systemd()?;
    start(case, |_| ())?;
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    let cgroup = report["cgroup"].as_str().unwrap_or_default();
    ensure!(cgroup.contains(&unit(case)), "a process of exec isn't in {}: {cgroup}", unit(case));
    Ok(())
}

fn delete(case: &Case) -> Verdict {
    needs_systemd()?;
    start(case, |_| ())?;
    ensure_eq!(property(&unit(case), "ActiveState")?, "active", "state of the unit");
    call(case, &["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    call(case, &["delete", &case.id])?.succeeded()?;
    is_gone(&unit(case))?;
    ensure!(file(&unit(case), "pids", "cgroup.procs").is_err(), "the cgroup is left");
    case.nothing_left()
}

fn name_that_is_taken(case: &Case) -> Verdict {
    needs_systemd()?;
    if case.runtime.name != "damda" {
        crate::skip!("crun and runc 1.1 join the unit");
    }
    start(case, |_| ())?;
    let other = case.another_id("taken");
    let bundle = case.bundle(|config| config["linux"]["cgroupsPath"] = path(case))?;
    for command in ["create", "run"] {
        call(case, &[command, "--bundle", text(&bundle.path), &other])?
            .failed_with(&["/linux/cgroupsPath", "already"])?;
        call(case, &["state", &other])?.failed_with(&["does not exist"])?;
    }
    ensure_eq!(case.state()?["status"], "running", "status of the container that has the name");
    ensure_eq!(property(&unit(case), "ActiveState")?, "active", "state of its unit");
    Ok(())
}

fn bad_path(case: &Case) -> Verdict {
    needs_systemd()?;
    for bad in
        ["/a/b", "a:b", "a.slice:b:", "a.slice:b:c:d", "nosuffix:b:c", "a--b.slice:b:c", "a.slice:b:../c"]
    {
        if case.runtime.name != "damda" && !["/a/b", "a:b"].contains(&bad) {
            continue;
        }
        let bundle = case.bundle(|config| config["linux"]["cgroupsPath"] = json!(bad))?;
        let words: &[&str] = if case.runtime.name == "damda" { &["/linux/cgroupsPath"] } else { &[] };
        for command in ["create", "run"] {
            call(case, &[command, "--bundle", text(&bundle.path), &case.id])?.failed_with(words)?;
            case.nothing_left()?;
        }
    }
    Ok(())
}

fn failure_after_the_unit(case: &Case) -> Verdict {
    needs_systemd()?;
    let hook = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    let limit = json!({ "nosuch.max": "1" });
    let changes: [&dyn Fn(&mut Value); 2] = [&|config| config["hooks"] = hook.clone(), &|config| {
        config["linux"]["resources"]["unified"] = limit.clone()
    }];
    for change in changes {
        let bundle = case.bundle(|config| {
            config["linux"]["cgroupsPath"] = path(case);
            change(config);
        })?;
        call(case, &["create", "--bundle", text(&bundle.path), &case.id])?.failed_with(&[])?;
        is_gone(&unit(case))?;
        case.nothing_left()?;
    }
    // The name is free again.
    start(case, |_| ())
}
