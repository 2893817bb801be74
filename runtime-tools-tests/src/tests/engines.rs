//! The command lines of engines, as they were traced.

use crate::case::{Case, Output, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;

tests![
    "containerd-shim-runc-v2: the calls for a container" => containerd,
    "containerd-shim-runc-v2: kill after the end" => containerd_kills_what_has_ended,
    "conmon, podman: the calls for a container" => podman,
    "buildah: the calls for a step" => buildah,
    "BuildKit: run" => buildkit,
    "go-runc: single-dash -no-subreaper" => single_dash,
    "dockerd: lower-case errnos" => words_that_docker_reads,
    "conmon: init is the caller's child in time" => init_is_reparented,
];

fn containerd(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let log = bundle.path.join("log.json");
    let pid_file = bundle.path.join("init.pid");
    let call = |arguments: &[&str]| -> Verdict<Output> {
        let global = ["--log", text(&log), "--log-format", "json"];
        case.call(&[&global[..], arguments].concat())
    };
    call(&["create", "--bundle", text(&bundle.path), "--pid-file", text(&pid_file), &case.id])?
        .succeeded()?;
    let pid: u64 = fs::read_to_string(&pid_file)?.parse()?;
    ensure_eq!(case.state()?["pid"], pid, "pid");
    call(&["start", &case.id])?.succeeded()?;
    let process = bundle.path.join("process.json");
    fs::write(
        &process,
        json!({ "args": ["/probe", "wait"], "cwd": "/", "user": { "uid": 0, "gid": 0 } }).to_string(),
    )?;
    let exec_pid = bundle.path.join("exec.pid");
    call(&["exec", "--process", text(&process), "--detach", "--pid-file", text(&exec_pid), &case.id])?
        .succeeded()?;
    let exec_pid: u64 = fs::read_to_string(&exec_pid)?.parse()?;
    let mut pids: Vec<u64> =
        serde_json::from_str(&call(&["ps", "--format", "json", &case.id])?.succeeded()?.stdout)?;
    pids.sort_unstable();
    let mut expected = [pid, exec_pid];
    expected.sort_unstable();
    ensure_eq!(pids, expected, "pids");
    call(&["pause", &case.id])?.succeeded()?;
    call(&["resume", &case.id])?.succeeded()?;
    call(&["kill", &case.id, "15"])?.succeeded()?;
    case.until_status("stopped")?;
    call(&["kill", "--all", &case.id, "9"])?.succeeded()?;
    call(&["delete", &case.id])?.succeeded()?;
    call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure_eq!(fs::read_to_string(&log).unwrap_or_default(), "", "log of commands that succeeded");
    case.nothing_left()
}

fn containerd_kills_what_has_ended(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["kill", &case.id, "9"])?.succeeded()?;
    case.until_status("stopped")?;
    let output = case.call(&["kill", &case.id, "9"])?.failed_with(&[])?;
    let known =
        ["os: process already finished", "container not running", "no such process", "does not exist"];
    ensure!(
        known.iter().any(|words| output.stderr.to_lowercase().contains(words)),
        "containerd doesn't take {:?} for an end",
        output.stderr
    );
    Ok(())
}

fn podman(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let (log, pid_file) = (bundle.path.join("oci-log"), bundle.path.join("pidfile"));
    let global = ["--log-format=json", "--log", text(&log)];
    let create = ["create", "--bundle", text(&bundle.path), "--pid-file", text(&pid_file), &case.id];
    case.call(&[&global[..], &create].concat())?.succeeded()?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.call(&["state", &case.id])?.succeeded()?;
    case.call(&["kill", &case.id, "15"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    // A failure is one JSON object in the log.
    let bundle = case.bundle(|config| config["process"]["args"] = json!(["nosuch"]))?;
    let create = ["create", "--bundle", text(&bundle.path), "--pid-file", text(&pid_file), &case.id];
    case.call(&[&global[..], &create].concat())?.failed_with(&["executable file not found in"])?;
    let object: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    ensure!(
        object["msg"].as_str().is_some_and(|message| message.contains("executable file not found in")),
        "msg: {object}"
    );
    case.nothing_left()
}

fn buildah(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        config["process"]["args"] = probe(&["exit", "0"]);
    })?;
    let pid_file = bundle.path.join("pid");
    case.call(&[
        "create",
        "--bundle",
        text(&bundle.path),
        "--pid-file",
        text(&pid_file),
        "--no-new-keyring",
        &case.id,
    ])?
    .succeeded()?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn buildkit(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["exit", "3"]))?;
    let log = case.directory.join("log");
    let run = |keep: &[&str]| {
        let log = ["--log", text(&log), "--log-format", "json"];
        case.call(&[&log[..], &["run", "--bundle", text(&bundle.path)], keep, &[&case.id]].concat())
    };
    let mut output = run(&["--keep=false"])?;
    // Older releases have no --keep.
    if output.stderr.contains("keep") {
        output = run(&[])?;
    }
    ensure_eq!(output.status, 3, "exit status (stderr {:?})", output.stderr);
    case.nothing_left()
}

fn single_dash(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun takes no long option with a single dash");
    }
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["exit", "0"]))?;
    case.call(&["run", "-no-subreaper", "-bundle", text(&bundle.path), &case.id])?.succeeded()?;
    Ok(())
}

fn words_that_docker_reads(case: &Case) -> Verdict {
    let failure = |arguments: Value| -> Verdict<String> {
        let bundle = case.bundle(|config| config["process"]["args"] = arguments)?;
        fs::write(bundle.rootfs().join("tmp/plain"), "")?;
        Ok(case.call(&["create", "--bundle", text(&bundle.path), &case.id])?.failed_with(&[])?.stderr)
    };
    for (arguments, words) in [
        (json!(["nosuch"]), "executable file not found"),
        (json!(["/no/such"]), "no such file or directory"),
        (json!(["/tmp/plain"]), "permission denied"),
    ] {
        let message = failure(arguments)?;
        if case.runtime.name == "crun" {
            ensure!(message.to_lowercase().contains(words), "{message:?} lacks {words:?}");
        } else {
            ensure!(message.contains(words), "{message:?} lacks {words:?}");
        }
    }
    Ok(())
}

fn init_is_reparented(case: &Case) -> Verdict {
    case.create(|_| ())?;
    let pid = case.state()?["pid"].to_string();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let parent = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(1))
        .unwrap_or_default()
        .to_owned();
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    ensure!(
        !name.contains(case.runtime.name.as_str()),
        "a process of the runtime's is left as the parent: {parent} {name}"
    );
    Ok(())
}
