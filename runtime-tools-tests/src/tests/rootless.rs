//! As an ordinary user: no privileges on the host, one id mapped, no cgroup of one's own.

use crate::case::{Case, Output, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

tests![
    "runc spec --rootless, run" => the_example_runs,
    "runc run: an ordinary user" => what_it_sees,
    "runc create, exec, delete: an ordinary user" => lifecycle,
    "config-linux.md, Control groups: limits that can't be set are errors" => limits_without_a_cgroup,
    "CVE-2019-5736, rootless: a sealed copy" => the_binary_is_sealed,
];

/// Somebody without an account.
const USER: u32 = 54_321;

fn needs_user_namespaces() -> Verdict {
    let set = |path: &str| fs::read_to_string(path).map_or(true, |text| text.trim() != "0");
    if !set("/proc/sys/kernel/unprivileged_userns_clone") || !set("/proc/sys/user/max_user_namespaces") {
        crate::skip!("ordinary users may not make user namespaces here");
    }
    Ok(())
}

fn give(path: &Path) -> Verdict {
    chown(path, Some(USER), Some(USER))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)?.flatten() {
            give(&entry.path())?;
        }
    }
    Ok(())
}

/// Calls the runtime as the user, with a home of its own.
fn call(case: &Case, arguments: &[&str]) -> Verdict<Output> {
    let id = USER.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&case.runtime.binary);
    command.arg("--root").arg(case.state_directory()).args(arguments).current_dir(&case.directory);
    command.env("XDG_RUNTIME_DIR", &case.directory).env("HOME", &case.directory);
    case.finish(command)
}

/// A bundle as `spec --rootless` describes it, that belongs to the user.
fn bundle(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict<String> {
    needs_user_namespaces()?;
    let bundle = case.bundle(|_| ())?;
    // A copy of its own: the user must not be given the probe that all tests use.
    let own = bundle.rootfs().join("probe");
    fs::remove_file(&own)?;
    fs::copy(case.probe(), &own)?;
    fs::remove_file(bundle.path.join("config.json"))?;
    give(&case.directory)?;
    let path = text(&bundle.path).to_owned();
    call(case, &["spec", "--rootless", "--bundle", &path])?.succeeded()?;
    let file = bundle.path.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = probe(&["report"]);
    config["ociVersion"] = json!("1.0.2");
    change(&mut config);
    fs::write(&file, config.to_string())?;
    Ok(path)
}

fn the_example_runs(case: &Case) -> Verdict {
    let path = bundle(case, |_| ())?;
    let report = call(case, &["run", "--bundle", &path, &case.id])?.succeeded()?.json()?;
    ensure_eq!(report["uid"], json!([0, 0, 0]), "uid");
    let map: Vec<&str> = report["uidMap"].as_str().unwrap_or_default().split_whitespace().collect();
    ensure_eq!(map, ["0", &USER.to_string(), "1"], "uid map");
    case.nothing_left()
}

fn what_it_sees(case: &Case) -> Verdict {
    let path = bundle(case, |config| {
        config["process"]["args"] =
            probe(&["stat", "/dev/null", "/dev/pts/ptmx", "/proc/self", "/sys/kernel"]);
    })?;
    let stat = call(case, &["run", "--bundle", &path, &case.id])?.succeeded()?.json()?;
    ensure_eq!(stat["/dev/null"]["minor"], 3, "/dev/null");
    ensure_eq!(stat["/sys/kernel"]["type"], "directory", "/sys/kernel");
    Ok(())
}

fn lifecycle(case: &Case) -> Verdict {
    let path = bundle(case, |config| {
        config["process"]["args"] = probe(&["wait"]);
        config["process"]["oomScoreAdj"] = json!(300);
    })?;
    call(case, &["create", "--bundle", &path, &case.id])?.succeeded()?;
    call(case, &["start", &case.id])?.succeeded()?;
    crate::case::until("the program", || Ok(case.printed().contains("waiting")))?;
    let state = call(case, &["state", &case.id])?.succeeded()?.json()?;
    ensure_eq!(state["status"], "running", "status");
    let report = call(case, &["exec", &case.id, "/probe", "report"])?.succeeded()?.json()?;
    ensure_eq!(report["oomScoreAdj"], 300, "oom_score_adj in exec");
    ensure_eq!(report["uid"], json!([0, 0, 0]), "uid in exec");
    let link = fs::read_link(format!("/proc/{}/ns/user", state["pid"]))?;
    ensure_eq!(report["namespaces"]["user"], text(&link), "user namespace of exec");
    call(case, &["kill", &case.id, "TERM"])?.succeeded()?;
    case.until_status("stopped")?;
    call(case, &["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn limits_without_a_cgroup(case: &Case) -> Verdict {
    let path = bundle(case, |config| config["linux"]["resources"]["pids"] = json!({ "limit": 10 }))?;
    let words: &[&str] = if case.runtime.name == "damda" { &["/linux/resources/pids/limit"] } else { &[] };
    call(case, &["run", "--bundle", &path, &case.id])?.failed_with(words)?;
    case.nothing_left()
}

fn the_binary_is_sealed(case: &Case) -> Verdict {
    let path = bundle(case, |config| config["process"]["args"] = probe(&["wait"]))?;
    call(case, &["create", "--bundle", &path, &case.id])?.succeeded()?;
    let pid = call(case, &["state", &case.id])?.succeeded()?.json()?["pid"].to_string();
    let written = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/exe"));
    ensure!(written.is_err(), "the binary of a rootless container can be opened for writing");
    Ok(())
}
