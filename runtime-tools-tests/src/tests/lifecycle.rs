//! create, start, kill, delete and what a container's state says in between.

use crate::case::{Case, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs;

tests![
    "runtime.md, State" => state_of_a_created_container,
    "runtime.md, Create: the program MUST NOT run" => create_does_not_run_the_program,
    "runtime.md, Lifecycle: changes to config.json after create MUST NOT take effect" => configuration_is_read_once,
    "runtime.md, Create: the id MUST be unique" => second_container_of_the_same_id,
    "runtime.md, Start" => from_created_to_stopped,
    "runtime.md, Start: a container that is not created MUST give an error" => start_of_a_started_container,
    "runtime.md, Start" => start_of_a_missing_container,
    "runtime.md, Kill: a container that is neither created nor running MUST give an error" => kill_of_a_stopped_container,
    "runtime.md, Kill" => kill_of_a_created_container,
    "runtime.md, Kill" => signals_by_name_and_number,
    "runtime.md, Kill" => kill_of_a_missing_container,
    "runtime.md, Delete: a container that is not stopped MUST give an error" => delete_of_a_running_container,
    "runtime.md, Delete" => delete_of_a_created_container_by_force,
    "runtime.md, Delete: what create made MUST be deleted" => delete_removes_everything,
    "runc delete --force: a missing container is no error" => delete_by_force_of_a_missing_container,
    "runtime.md, Query State" => state_of_a_missing_container,
    "runtime.md, State: annotations" => annotations_are_in_the_state,
    "runc run: the exit status is the program's" => run_exits_as_the_program,
    "runc run: 128 and the signal that ended the program" => run_exits_by_signal,
    "runc run: the container is deleted" => run_leaves_nothing,
    "runc run --keep" => run_keeps_the_container,
    "runc run --detach, --pid-file" => run_detached,
    "runc: flags before and after the id" => flags_after_the_id,
    "runc kill --all" => kill_of_all_processes,
    "runtime.md, Delete: processes without a pid namespace" => delete_ends_what_shares_the_hosts_pids,
    "runc run: signals are forwarded" => run_forwards_signals,
    "a runtime that is killed in a hook" => killed_in_a_hook,
    "state and delete of a container that is stopped by a signal" => created_and_stopped,
    "runtime.md, State: as the JSON Schema has it" => state_is_of_the_schema,
    "runtime.md, Create: all but process MUST be applied" => create_applies_all_but_the_process,
    "runtime.md, Delete: what create didn't make MUST NOT be deleted" => delete_keeps_what_it_did_not_make,
    "Go's flags: the last one counts, and switches can have values" => flags_as_go_reads_them,
];

fn state_of_a_created_container(case: &Case) -> Verdict {
    let bundle = case.create(|_| ())?;
    let state = case.state()?;
    ensure_eq!(state["id"], case.id.as_str(), "id");
    ensure_eq!(state["status"], "created", "status");
    ensure_eq!(state["bundle"], text(&bundle.path), "bundle");
    ensure!(state["pid"].as_u64().is_some_and(|pid| pid > 1), "pid: {}", state["pid"]);
    ensure!(
        state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")),
        "ociVersion: {}",
        state["ociVersion"]
    );
    Ok(())
}

fn create_does_not_run_the_program(case: &Case) -> Verdict {
    let bundle = case.create(|config| config["process"]["args"] = probe(&["write", "/ran", "yes"]))?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    ensure!(!bundle.rootfs().join("ran").exists(), "the program ran before start");
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    ensure!(bundle.rootfs().join("ran").exists(), "the program didn't run after start");
    Ok(())
}

fn configuration_is_read_once(case: &Case) -> Verdict {
    let bundle = case.create(|config| config["process"]["args"] = probe(&["write", "/first", ""]))?;
    case.bundle(|config| config["process"]["args"] = probe(&["write", "/second", ""]))?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    ensure!(bundle.rootfs().join("first").exists(), "the program of create's time didn't run");
    ensure!(!bundle.rootfs().join("second").exists(), "the changed program ran");
    Ok(())
}

fn second_container_of_the_same_id(case: &Case) -> Verdict {
    let bundle = case.create(|_| ())?;
    let before = case.state()?;
    case.call(&["create", "--bundle", text(&bundle.path), &case.id])?.failed_with(&["exist"])?;
    case.run(&bundle)?.failed_with(&["exist"])?;
    ensure_eq!(case.state()?, before, "the first one's state");
    case.call(&["start", &case.id])?.succeeded()?;
    Ok(())
}

fn from_created_to_stopped(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let state = case.state()?;
    ensure_eq!(state["status"], "running", "status after start");
    case.call(&["kill", &case.id, "TERM"])?.succeeded()?;
    case.until_status("stopped")?;
    let pid = case.state()?["pid"].as_u64().unwrap_or(0);
    ensure_eq!(pid, 0, "a stopped container's pid");
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn start_of_a_started_container(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["start", &case.id])?.failed_with(&[])?;
    ensure_eq!(case.state()?["status"], "running", "status after the second start");
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["start", &case.id])?.failed_with(&[])?;
    Ok(())
}

fn start_of_a_missing_container(case: &Case) -> Verdict {
    case.call(&["start", &case.id])?.failed_with(&["does not exist"])?;
    Ok(())
}

fn kill_of_a_stopped_container(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["kill", &case.id, "KILL"])?.failed_with(&["not running"])?;
    Ok(())
}

fn kill_of_a_created_container(case: &Case) -> Verdict {
    case.create(|_| ())?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn signals_by_name_and_number(case: &Case) -> Verdict {
    for (signal, ended) in [("TERM", true), ("SIGTERM", true), ("15", true), ("sigterm", true), ("0", false)]
    {
        case.start(|_| ())?;
        case.call(&["kill", &case.id, signal])?.succeeded()?;
        if ended {
            case.until_status("stopped")?;
        }
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
    }
    case.start(|_| ())?;
    for signal in ["NOSUCH", "", "99"] {
        if case.runtime.name != "damda" && signal != "NOSUCH" {
            continue; // an empty one is TERM to runc, and 99 the kernel's business
        }
        case.call(&["kill", &case.id, signal])?.failed_with(&[])?;
    }
    case.call(&["kill", &case.id])?.succeeded()?;
    case.until_status("stopped")
}

fn kill_of_a_missing_container(case: &Case) -> Verdict {
    case.call(&["kill", &case.id, "TERM"])?.failed_with(&["does not exist"])?;
    Ok(())
}

fn delete_of_a_running_container(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["delete", &case.id])?.failed_with(&[])?;
    ensure_eq!(case.state()?["status"], "running", "status after the refused delete");
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn delete_of_a_created_container_by_force(case: &Case) -> Verdict {
    case.create(|_| ())?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn delete_removes_everything(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()?;
    case.call(&["delete", &case.id])?.failed_with(&["does not exist"])?;
    // The id is free again.
    case.start(|_| ())?;
    Ok(())
}

fn delete_by_force_of_a_missing_container(case: &Case) -> Verdict {
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.call(&["delete", "-f", &case.id])?.succeeded()?;
    Ok(())
}

fn state_of_a_missing_container(case: &Case) -> Verdict {
    case.call(&["state", &case.id])?.failed_with(&["does not exist"])?;
    Ok(())
}

fn annotations_are_in_the_state(case: &Case) -> Verdict {
    case.create(|config| config["annotations"] = json!({ "org.example.key": "value", "empty": "" }))?;
    let state = case.state()?;
    ensure_eq!(state["annotations"]["org.example.key"], "value", "annotation");
    ensure_eq!(state["annotations"]["empty"], "", "empty annotation");
    Ok(())
}

fn run_exits_as_the_program(case: &Case) -> Verdict {
    for status in [0, 1, 7, 255] {
        let bundle =
            case.bundle(|config| config["process"]["args"] = probe(&["exit", &status.to_string()]))?;
        ensure_eq!(case.run(&bundle)?.status, status, "exit status");
    }
    Ok(())
}

fn run_exits_by_signal(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let mut command = case.command(&["run", "--bundle", text(&bundle.path), &case.id]);
    let mut child = command.stdout(fs::File::create(case.directory.join("out"))?).spawn()?;
    let killed = crate::case::until("a running container", || {
        let state = case.call(&["state", &case.id])?;
        Ok(state.status == 0 && state.json()?["status"] == "running")
    })
    .and_then(|()| case.call(&["kill", &case.id, "KILL"])?.succeeded().map(drop));
    let status = child.wait()?;
    killed?;
    ensure_eq!(status.code(), Some(137), "exit status");
    Ok(())
}

fn run_leaves_nothing(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    case.run(&bundle)?.succeeded()?;
    case.nothing_left()?;
    case.call(&["state", &case.id])?.failed_with(&["does not exist"])?;
    Ok(())
}

fn run_keeps_the_container(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let output = case.call(&["run", "--keep", "--bundle", text(&bundle.path), &case.id])?;
    if output.status != 0 && output.stderr.contains("keep") && !output.stderr.contains("failed") {
        crate::skip!("the runtime has no run --keep");
    }
    output.succeeded()?;
    ensure_eq!(case.state()?["status"], "stopped", "status");
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn run_detached(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let file = case.directory.join("pid");
    case.call(&["run", "--detach", "--bundle", text(&bundle.path), "--pid-file", text(&file), &case.id])?
        .succeeded()?;
    let state = case.state()?;
    ensure_eq!(state["status"], "running", "status");
    ensure_eq!(fs::read_to_string(&file)?, state["pid"].to_string(), "the pid file");
    Ok(())
}

fn flags_after_the_id(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    case.call(&["create", &case.id, "--bundle", text(&bundle.path)])?.succeeded()?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.call(&["delete", &case.id, "--force"])?.succeeded()?;
    Ok(())
}

fn kill_of_all_processes(case: &Case) -> Verdict {
    case.start(|config| config["process"]["args"] = probe(&["family", "3"]))?;
    crate::case::until("the children", || Ok(case.printed().matches("waiting").count() == 4))?;
    case.call(&["kill", "--all", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    // containerd calls it on a container that has stopped.
    case.call(&["kill", "--all", &case.id, "KILL"])?.succeeded()?;
    Ok(())
}

fn delete_ends_what_shares_the_hosts_pids(case: &Case) -> Verdict {
    case.start(|config| {
        config["process"]["args"] = probe(&["orphan"]);
        config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "ipc" }]);
        config.as_object_mut().unwrap().remove("hostname");
    })?;
    case.until_status("stopped")?;
    ensure!(!case.cgroups().is_empty(), "the container that is left behind has no cgroup");
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.until_nothing_left()
}

fn run_forwards_signals(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let output = case.directory.join("out");
    let mut command = case.command(&["run", "--bundle", text(&bundle.path), &case.id]);
    let mut child = command.stdout(fs::File::create(&output)?).spawn()?;
    let waiting = crate::case::until("the program", || Ok(fs::read_to_string(&output)?.contains("waiting")));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let status = child.wait()?;
    waiting?;
    ensure_eq!(status.code(), Some(15), "exit status of a program that SIGTERM reached");
    Ok(())
}

fn killed_in_a_hook(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun leave processes behind then");
    }
    let bundle = case.bundle(|config| {
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "3"] }] });
    })?;
    let mut command = case.command(&["create", "--bundle", text(&bundle.path), &case.id]);
    let mut child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
    let made = case.state_directory().join(&case.id).join("init.json");
    crate::case::until("the first process", || Ok(made.exists()))?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    child.kill()?;
    child.wait()?;
    // Its first process notices that it is alone.
    case.until_status("stopped")?;
    case.call(&["start", &case.id])?.failed_with(&[])?;
    case.call(&["list"])?.succeeded()?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.until_nothing_left()
}

fn created_and_stopped(case: &Case) -> Verdict {
    case.create(|_| ())?;
    let pid = nix::unistd::Pid::from_raw(case.state()?["pid"].as_i64().unwrap_or(0) as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    for _ in 0..5 {
        ensure_eq!(case.state()?["status"], "created", "status");
    }
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn flags_as_go_reads_them(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun isn't written in Go");
    }
    std::fs::create_dir(case.state_directory())?;
    let format = ["--log-format", "text", "--log-format", "json", "--debug=false", "--systemd-cgroup=false"];
    case.call(&[&format[..], &["list", "--quiet=false", "--format", "table", "--format=json"]].concat())?
        .succeeded()?;
    Ok(())
}

/// schema/state-schema.json, and what State says of the values.
fn check_state(state: &serde_json::Value, bundle: &str, statuses: &[&str]) -> Verdict {
    ensure!(state["ociVersion"].is_string() && state["id"].is_string(), "ociVersion, id: {state}");
    ensure!(statuses.iter().any(|status| state["status"] == *status), "status: {state}");
    ensure_eq!(state["bundle"], bundle, "bundle");
    ensure!(state["pid"].is_null() || state["pid"].is_u64(), "pid: {state}");
    let annotations = state["annotations"].as_object().cloned().unwrap_or_default();
    ensure!(annotations.values().all(serde_json::Value::is_string), "annotations: {state}");
    if state["status"] != "stopped" {
        let alive = std::path::Path::new("/proc").join(state["pid"].to_string()).exists();
        ensure!(alive, "pid is of no process: {state}");
    }
    Ok(())
}

fn state_is_of_the_schema(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["annotations"] = json!({ "org.example.key": "value" });
        config["process"]["args"] = probe(&["wait"]);
    })?;
    // The path of the bundle is absolute, also where it wasn't given as one.
    case.call(&["create", "--bundle", "bundle", &case.id])?.succeeded()?;
    let path = text(&bundle.path);
    check_state(&case.state()?, path, &["created"])?;
    case.call(&["start", &case.id])?.succeeded()?;
    check_state(&case.state()?, path, &["running"])?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    check_state(&case.state()?, path, &["stopped"])
}

fn create_applies_all_but_the_process(case: &Case) -> Verdict {
    let bundle = case.create(|config| {
        let mount = json!({ "destination": "/tmp/made", "type": "tmpfs", "source": "by-create" });
        config["mounts"].as_array_mut().unwrap().push(mount);
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
        config["process"]["oomScoreAdj"] = json!(321);
        config["process"]["args"] = probe(&["write", "/ran", "yes"]);
    })?;
    let process = std::path::PathBuf::from(format!("/proc/{}", case.state()?["pid"]));
    for kind in ["pid_for_children", "net", "ipc", "uts", "mnt"] {
        let (theirs, own) = (process.join("ns").join(kind), std::path::Path::new("/proc/self/ns").join(kind));
        ensure!(fs::read_link(theirs)? != fs::read_link(own)?, "{kind} is the host's");
    }
    ensure!(fs::read_to_string(process.join("mountinfo"))?.contains("by-create"), "the mount isn't made");
    let root = process.join("root");
    ensure!(root.join("probe").exists() && !root.join("usr").exists(), "the root isn't the container's");
    ensure!(root.join("dev/null").exists(), "there are no devices");
    let mut inside = std::process::Command::new("nsenter");
    inside.args(["--net", "--uts", "-t", &case.state()?["pid"].to_string()]);
    inside.args(["sh", "-c", "cat /proc/sys/net/ipv4/ip_default_ttl; uname -n"]);
    ensure_eq!(case.finish(inside)?.succeeded()?.stdout, "77\nvessel\n", "sysctl and hostname");
    ensure!(!case.cgroups().is_empty(), "there is no cgroup");
    ensure!(!bundle.rootfs().join("ran").exists(), "process.args are applied");
    Ok(())
}

fn delete_keeps_what_it_did_not_make(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    let bundle = case.start(|config| {
        let mount = json!({ "destination": "/data", "type": "bind", "source": volume, "options": ["rbind"] });
        config["mounts"].as_array_mut().unwrap().push(mount);
    })?;
    case.exec(&[], &["write", "/data/new", "of the container"])?.succeeded()?;
    case.exec(&[], &["write", "/etc/new", "of the container"])?.succeeded()?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure_eq!(fs::read_to_string(volume.join("file"))?, "content", "the volume's file");
    ensure_eq!(fs::read_to_string(volume.join("new"))?, "of the container", "the file in the volume");
    ensure!(bundle.path.join("config.json").exists(), "config.json is gone");
    ensure!(bundle.rootfs().join("etc/new").exists(), "a file of the root file system is gone");
    Ok(())
}
