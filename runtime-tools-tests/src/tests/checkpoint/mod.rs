//! checkpoint and restore, which need CRIU. The list is here, so that all are called `checkpoint`.

mod environment;
mod life;
mod options;
mod streams;

use crate::case::{Bundle, Case, Output, probe, text, until};
use crate::harness::{Stop, Verdict};
use crate::{ensure, ensure_eq, skip, tests};
use environment::{
    another_cgroup, bind_mounts, bind_mounts_to_links, cgroups, joined_network, mounted_cgroups, systemd,
    user_namespace,
};
use life::{
    damaged_image, deleted_while_restored, exec_afterwards, failing_hook, failure_has_a_reason,
    goes_on_where_it_was, hooks, leave_running, missing_image, paused, states, taken_id,
};
use options::{bad_parent_path, configuration_file, lazy_pages, pre_dump, what_podman_asks};
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use streams::{in_the_foreground, pipes, terminal};

tests![
    "runc checkpoint; runc restore" => goes_on_where_it_was,
    "runc checkpoint --leave-running" => leave_running,
    "runc checkpoint --pre-dump; --parent-path" => pre_dump,
    "runc checkpoint --parent-path: relative, and there" => bad_parent_path,
    "runc checkpoint: what is not running" => states,
    "runc checkpoint: paused" => paused,
    "runc checkpoint: CRIU's reason" => failure_has_a_reason,
    "runc restore: missing image" => missing_image,
    "runc restore: damaged image" => damaged_image,
    "runc restore: an id that is taken" => taken_id,
    "runc restore: the standard streams" => pipes,
    "runc restore --console-socket" => terminal,
    "runc restore, in the foreground" => in_the_foreground,
    "runc restore: bind mounts, nested" => bind_mounts,
    "runc restore: bind mounts to links" => bind_mounts_to_links,
    "runc restore; runc exec" => exec_afterwards,
    "runc restore: cgroups and their limits" => cgroups,
    "runc restore --manage-cgroups-mode ignore: another cgroup" => another_cgroup,
    "runc restore: mounted cgroups" => mounted_cgroups,
    "runc restore: a network namespace that is joined" => joined_network,
    "runc restore: a user namespace" => user_namespace,
    "runc restore: hooks" => hooks,
    "runc restore: a hook that fails" => failing_hook,
    "runc delete --force, during restore" => deleted_while_restored,
    "runc checkpoint: the annotation org.criu.config" => configuration_file,
    "runc checkpoint --lazy-pages" => lazy_pages,
    "runc restore --systemd-cgroup" => systemd,
    "podman: what it asks of a runtime" => what_podman_asks,
];

/// Skips where CRIU is missing, or can't work on this kernel.
fn needs_criu(case: &Case) -> Verdict {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    if case.runtime.name == "crun" {
        skip!("crun keeps other files");
    }
    let tried = TRIED.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Err("CRIU needs root".into());
        }
        let check = criu().arg("check").output();
        let check = check.map_err(|error| format!("needs CRIU: {error}"))?;
        match check.status.success() {
            true => can_dump().map_err(|why| format!("CRIU can't save processes here: {why}")),
            false => Err(format!("criu check: {}", first_error(&[check.stdout, check.stderr].concat()))),
        }
    });
    tried.clone().map_err(Stop::Skipped)
}

/// Whether CRIU can save a process, which `criu check` doesn't try.
fn can_dump() -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let directory = tempfile::tempdir().map_err(told)?;
    let sleep = ["setsid", "sleep", "100"];
    let mut command = Command::new(sleep[0]);
    command.args(&sleep[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(told)?;
    // Not before it has become what it is to be.
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    let mut dump = criu();
    dump.args(["dump", "--shell-job", "--leave-running", "-t", &id, "-D"]).arg(directory.path());
    let dump = dump.output().map_err(told);
    let _ = child.kill();
    let _ = child.wait();
    let dump = dump?;
    let said = [dump.stdout, dump.stderr].concat();
    if dump.status.success() { Ok(()) } else { Err(first_error(&said)) }
}

/// CRIU without this machine's configuration, which could have it log to who knows where.
fn criu() -> Command {
    let mut command = Command::new("criu");
    command.arg("--no-default-config");
    command
}

/// The first error of what CRIU prints.
fn first_error(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().find(|line| line.contains("Error")).unwrap_or("it failed").trim().into()
}

/// Runs a command whose standard streams a container may keep: none of them is a file of the host's,
/// which CRIU couldn't save.
fn quiet<S: AsRef<OsStr> + Debug>(case: &Case, arguments: &[S]) -> Verdict {
    let log = case.directory.join("quiet.log");
    let _ = fs::remove_file(&log);
    let mut command = case.command(&["--log", text(&log)]);
    command.args(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // In an emulated machine CRIU takes its time.
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > Duration::from_secs(100) {
            child.kill()?;
            child.wait()?;
            return Err(Stop::Failed(format!("{arguments:?} didn't end")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait()?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    if said.contains("Invalid manage cgroups mode") {
        skip!("this {} is too old for the mode ignore", case.runtime.name);
    }
    ensure!(status.success(), "{arguments:?}: {status}: {said}");
    Ok(())
}

/// Runs a container that counts.
fn counting(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict<Bundle> {
    needs_criu(case)?;
    let bundle = case.bundle(|config| {
        config["process"]["args"] = probe(&["count", "/tmp/count"]);
        change(config);
    })?;
    quiet(case, &["run", "--detach", "--bundle", text(&bundle.path), &case.id])?;
    until("the program", || Ok(bundle.rootfs().join("tmp/count").exists()))?;
    Ok(bundle)
}

/// The number that is the process's own, and how far it is.
fn count(bundle: &Bundle) -> Verdict<(String, u64)> {
    let written = fs::read_to_string(bundle.rootfs().join("tmp/count"))?;
    let (own, counter) =
        written.split_once(' ').ok_or_else(|| Stop::Failed(format!("count: {written:?}")))?;
    Ok((own.into(), counter.parse()?))
}

fn images(case: &Case) -> PathBuf {
    case.directory.join("images")
}

fn checkpoint(case: &Case, options: &[&str]) -> Verdict {
    let images = images(case);
    quiet(case, &[&["checkpoint", "--image-path", text(&images)], options, &[&case.id]].concat())
}

/// The arguments of a `restore` from the case's images; `rest` are more options, and the id.
fn restoring(case: &Case, bundle: &Bundle, rest: &[&str]) -> Vec<String> {
    let images = images(case);
    let first = ["restore", "--image-path", text(&images), "--bundle", text(&bundle.path)];
    first.iter().chain(rest).copied().map(str::to_owned).collect()
}

fn restore(case: &Case, bundle: &Bundle, options: &[&str]) -> Verdict {
    quiet(case, &restoring(case, bundle, &[&["--detach"], options, &[&case.id]].concat()))
}

/// A `restore` that is to fail, with what it says.
fn try_restore(case: &Case, bundle: &Bundle) -> Verdict<Output> {
    case.call(&restoring(case, bundle, &["--detach", &case.id]))
}

/// Fails unless the process went on from `before`.
fn went_on(bundle: &Bundle, before: &(String, u64)) -> Verdict {
    until("more counting", || Ok(count(bundle)?.1 > before.1 + 3))?;
    ensure_eq!(count(bundle)?.0, before.0, "the process's own number");
    Ok(())
}
