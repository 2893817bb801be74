//! The other commands: list, ps, pause, resume, spec, features, --version, --help.

use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;

tests![
    "runc list" => list_as_a_table,
    "runc list --format json" => list_as_json,
    "runc list --quiet" => list_of_ids,
    "runc list" => list_of_nothing,
    "runc ps --format json: an array of pids" => ps_as_json,
    "runc ps: ps(1) with its options" => ps_as_a_table,
    "runc pause, resume" => pause_and_resume,
    "runc pause" => pause_of_what_is_not_running,
    "runc spec" => spec_writes_a_configuration,
    "runc spec: an existing file is kept" => spec_keeps_an_existing_file,
    "runc spec --rootless" => spec_for_an_ordinary_user,
    "features.md" => features,
    "go-runc, dockerd: --version" => version,
    "runc --help" => help,
    "runc: a usage error" => unknown_command_and_flag,
    "runc --log" => log_file_has_the_error,
];

fn list_as_a_table(case: &Case) -> Verdict {
    let bundle = case.start(|_| ())?;
    let table = case.call(&["list"])?.succeeded()?.stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure_eq!(lines[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], "head");
    let pid = case.state()?["pid"].to_string();
    ensure_eq!(lines[1][..4], [&case.id, pid.as_str(), "running", text(&bundle.path)], "line");
    ensure_eq!(lines[1][5], "root", "owner");
    Ok(())
}

fn list_as_json(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let list = case.call(&["list", "--format=json"])?.succeeded()?.json()?;
    ensure_eq!(list.as_array().map(Vec::len), Some(1), "length");
    let state = case.state()?;
    for field in ["id", "pid", "status", "bundle", "ociVersion", "rootfs", "created"] {
        ensure_eq!(list[0][field], state[field], "{field}");
    }
    Ok(())
}

fn list_of_ids(case: &Case) -> Verdict {
    case.start(|_| ())?;
    ensure_eq!(case.call(&["list", "-q"])?.succeeded()?.stdout, format!("{}\n", case.id), "output");
    Ok(())
}

fn list_of_nothing(case: &Case) -> Verdict {
    if case.runtime.name == "damda" {
        // As runc has it since 1.3; of an empty list nobody would learn of a wrong --root.
        case.call(&["list"])?.failed_with(&["--root"])?;
    }
    std::fs::create_dir(case.state_directory())?;
    ensure_eq!(case.call(&["list", "-q"])?.succeeded()?.stdout, "", "ids");
    let list = case.call(&["list", "--format", "json"])?.succeeded()?.stdout;
    ensure!(["null", "[]"].contains(&list.trim()), "JSON: {list:?}");
    ensure_eq!(case.call(&["list"])?.succeeded()?.stdout.lines().count(), 1, "lines of the table");
    Ok(())
}

fn ps_as_json(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let pids = case.call(&["ps", "--format", "json", &case.id])?.succeeded()?.json()?;
    ensure_eq!(pids, json!([case.state()?["pid"]]), "pids");
    Ok(())
}

fn ps_as_a_table(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let table = case.call(&["ps", &case.id])?.succeeded()?.stdout;
    ensure!(table.starts_with("UID"), "head: {table}");
    ensure_eq!(table.lines().count(), 2, "lines of {table:?}");
    let table = case.call(&["ps", &case.id, "-o", "pid,args"])?.succeeded()?.stdout;
    ensure!(table.contains("/probe wait"), "table: {table:?}");
    Ok(())
}

fn pause_and_resume(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["pause", &case.id])?.succeeded()?;
    ensure_eq!(case.state()?["status"], "paused", "status");
    case.exec(&[], &["exit", "0"])?.failed_with(&["paused"])?;
    case.call(&["resume", &case.id])?.succeeded()?;
    ensure_eq!(case.state()?["status"], "running", "status");
    case.exec(&[], &["exit", "0"])?.succeeded()?;
    // One that is paused can be ended and deleted.
    case.call(&["pause", &case.id])?.succeeded()?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn pause_of_what_is_not_running(case: &Case) -> Verdict {
    case.call(&["pause", &case.id])?.failed_with(&["does not exist"])?;
    case.start(|_| ())?;
    case.call(&["resume", &case.id])?.failed_with(&["not paused"])?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["pause", &case.id])?.failed_with(&[])?;
    Ok(())
}

fn spec_writes_a_configuration(case: &Case) -> Verdict {
    case.call(&["spec"])?.succeeded()?;
    let config: Value = serde_json::from_str(&fs::read_to_string(case.directory.join("config.json"))?)?;
    ensure_eq!(config["process"]["args"], json!(["sh"]), "args");
    ensure_eq!(config["process"]["terminal"], true, "terminal");
    ensure_eq!(config["root"], json!({ "path": "rootfs", "readonly": true }), "root");
    let types: Vec<_> =
        config["linux"]["namespaces"].as_array().into_iter().flatten().map(|entry| &entry["type"]).collect();
    for kind in ["pid", "network", "ipc", "uts", "mount"] {
        ensure!(types.iter().any(|found| **found == kind), "namespaces lack {kind}: {types:?}");
    }
    Ok(())
}

fn spec_keeps_an_existing_file(case: &Case) -> Verdict {
    let directory = case.directory.join("there");
    fs::create_dir(&directory)?;
    fs::write(directory.join("config.json"), "mine")?;
    case.call(&["spec", "--bundle", text(&directory)])?.failed_with(&["exists"])?;
    ensure_eq!(fs::read_to_string(directory.join("config.json"))?, "mine", "the file");
    Ok(())
}

fn spec_for_an_ordinary_user(case: &Case) -> Verdict {
    case.call(&["spec", "--rootless"])?.succeeded()?;
    let config: Value = serde_json::from_str(&fs::read_to_string(case.directory.join("config.json"))?)?;
    let types: Vec<_> =
        config["linux"]["namespaces"].as_array().into_iter().flatten().map(|entry| &entry["type"]).collect();
    ensure!(types.iter().any(|kind| **kind == "user"), "no user namespace: {types:?}");
    ensure!(
        !types.iter().any(|kind| **kind == "network"),
        "a network namespace, in which nothing would work"
    );
    ensure_eq!(config["linux"]["uidMappings"][0]["size"], 1, "uids");
    Ok(())
}

fn features(case: &Case) -> Verdict {
    let output = case.call(&["features"])?;
    if output.status != 0 {
        crate::skip!("the runtime has no features");
    }
    let features = output.json()?;
    for field in ["ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "linux"] {
        ensure!(!features[field].is_null(), "{field} is missing");
    }
    let hooks = features["hooks"].as_array().map_or(0, Vec::len);
    ensure_eq!(hooks, 6, "hooks");
    for (field, needed) in [("namespaces", "time"), ("capabilities", "CAP_CHOWN")] {
        let list = features["linux"][field].as_array();
        ensure!(
            list.is_some_and(|list| list.iter().any(|entry| entry == needed)),
            "linux.{field} lacks {needed}"
        );
    }
    ensure_eq!(features["linux"]["seccomp"]["enabled"], true, "seccomp");
    Ok(())
}

fn version(case: &Case) -> Verdict {
    let version = case.call(&["--version"])?.succeeded()?.stdout;
    let words: Vec<&str> = version.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure_eq!(words.get(1).copied(), Some("version"), "second word of the first line");
    ensure_eq!(version.matches("version").count(), 1, "lines with the word version: dockerd takes any");
    ensure!(version.lines().any(|line| line.starts_with("commit:")), "no commit line: {version}");
    ensure!(version.lines().any(|line| line.starts_with("spec:")), "no spec line: {version}");
    Ok(())
}

fn help(case: &Case) -> Verdict {
    for arguments in [&["--help"][..], &["-h"], &["create", "--help"], &["exec", "-h"]] {
        let output = case.call(arguments)?.succeeded()?;
        ensure!(!output.stdout.is_empty(), "{arguments:?} prints nothing on stdout");
    }
    let help = case.call(&["--help"])?.stdout;
    for command in [
        "create", "start", "run", "state", "kill", "delete", "exec", "list", "ps", "pause", "resume", "spec",
        "features",
    ] {
        ensure!(help.contains(command), "--help lacks {command}");
    }
    Ok(())
}

fn unknown_command_and_flag(case: &Case) -> Verdict {
    case.call(&["state", "--no-such-flag", &case.id])?.failed_with(&[])?;
    case.call(&["state"])?.failed_with(&[])?;
    case.call(&["create", "a", "b"])?.failed_with(&[])?;
    Ok(())
}

fn log_file_has_the_error(case: &Case) -> Verdict {
    let log = case.directory.join("log.json");
    case.call(&["--log", text(&log), "--log-format", "json", "start", &case.id])?
        .failed_with(&["does not exist"])?;
    let text = fs::read_to_string(&log)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure_eq!(lines.len(), 1, "lines of {text:?}: podman reads the file as one object");
    ensure_eq!(lines[0]["level"], "error", "level");
    ensure!(
        lines[0]["msg"].as_str().is_some_and(|message| message.contains("does not exist")),
        "msg: {}",
        lines[0]["msg"]
    );
    ensure!(lines[0]["time"].as_str().is_some_and(|time| time.contains('T')), "time: {}", lines[0]["time"]);
    Ok(())
}
