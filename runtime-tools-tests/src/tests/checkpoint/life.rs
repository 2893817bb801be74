//! What a checkpoint and a restore are: what goes on, what fails, what is left.

use super::{
    checkpoint, count, counting, images, needs_criu, quiet, restore, restoring, try_restore, went_on,
};
use crate::case::{Case, text, until};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, skip};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Stdio;

pub(super) fn goes_on_where_it_was(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let pid_file = case.directory.join("pid");
    for _ in 0..2 {
        checkpoint(case, &[])?;
        case.call(&["state", &case.id])?.failed_with(&["does not exist"])?;
        ensure!(case.cgroups().is_empty(), "its cgroups are left");
        let before = count(&bundle)?;
        restore(case, &bundle, &["--pid-file", text(&pid_file)])?;
        let state = case.state()?;
        ensure_eq!(state["status"], "running", "status");
        ensure_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file)?.trim(), "pid");
        went_on(&bundle, &before)?;
    }
    case.call(&["kill", &case.id, "TERM"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

pub(super) fn leave_running(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let before = count(&bundle)?;
    checkpoint(case, &["--leave-running"])?;
    went_on(&bundle, &before)?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)
}

pub(super) fn states(case: &Case) -> Verdict {
    needs_criu(case)?;
    let images = images(case);
    let arguments = ["checkpoint", "--image-path", text(&images), &case.id];
    case.call(&arguments)?.failed_with(&["does not exist"])?;
    case.create(|_| ())?;
    case.call(&arguments)?.failed_with(&["cannot be checkpointed in created state"])?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&arguments)?.failed_with(&["cannot be checkpointed in stopped state"])?;
    Ok(())
}

pub(super) fn paused(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    case.call(&["pause", &case.id])?.succeeded()?;
    let before = count(&bundle)?;
    checkpoint(case, &[])?;
    ensure_eq!(count(&bundle)?, before, "the count");
    restore(case, &bundle, &[])?;
    ensure_eq!(case.state()?["status"], "running", "status");
    went_on(&bundle, &before)
}

/// Its standard output is a file of the host's, which CRIU can't save.
pub(super) fn failure_has_a_reason(case: &Case) -> Verdict {
    needs_criu(case)?;
    case.start(|_| ())?;
    let images = images(case);
    let failed = case.call(&["checkpoint", "--image-path", text(&images), &case.id])?;
    // Debian's runc says "criu failed: type NOTIFY errno 0".
    let words: &[&str] =
        if case.runtime.name == "damda" { &["criu failed: ", "mount", "dump.log"] } else { &["criu failed"] };
    failed.failed_with(words)?;
    ensure_eq!(case.state()?["status"], "running", "status");
    case.exec(&[], &["exit", "0"])?.succeeded()?;
    Ok(())
}

pub(super) fn missing_image(case: &Case) -> Verdict {
    needs_criu(case)?;
    let bundle = case.bundle(|_| ())?;
    try_restore(case, &bundle)?.failed_with(&["no such file or directory"])?;
    if case.runtime.name == "damda" {
        case.nothing_left()?;
        ensure!(!images(case).exists(), "the directory was made");
    }
    Ok(())
}

pub(super) fn damaged_image(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    fs::write(images(case).join("core-1.img"), "damaged")?;
    let words: &[&str] = if case.runtime.name == "damda" {
        &["criu failed: ", "magic", "restore.log"]
    } else {
        &["criu failed"]
    };
    try_restore(case, &bundle)?.failed_with(words)?;
    if case.runtime.name == "damda" {
        case.until_nothing_left()?;
    }
    Ok(())
}

pub(super) fn taken_id(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &["--leave-running"])?;
    try_restore(case, &bundle)?.failed_with(&["already exists"])?;
    went_on(&bundle, &count(&bundle)?)
}

pub(super) fn exec_afterwards(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    for _ in 0..2 {
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
        ensure_eq!(report["hostname"], "vessel", "host name");
        // What it leaves behind is the first process's child, and saved by the next checkpoint.
        quiet(case, &["exec", &case.id, "/probe", "orphan", "apart"])?;
    }
    let processes = case.call(&["ps", "--format", "json", &case.id])?.succeeded()?.json()?;
    ensure_eq!(processes.as_array().map(Vec::len), Some(3), "processes");
    Ok(())
}

fn hook(case: &Case, file: &Path, status: &str) -> Value {
    json!([{ "path": text(case.probe()), "args": ["probe", "hook", text(file), status] }])
}

pub(super) fn hooks(case: &Case) -> Verdict {
    let file = |name: &str| case.directory.join(name);
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    // Those of the container's own namespaces can't see the host's files.
    let seen = [kinds[0], kinds[1], kinds[4], kinds[5]];
    let bundle = counting(case, |config| {
        for kind in seen {
            config["hooks"][kind] = hook(case, &file(kind), "0");
        }
    })?;
    let times = |kind: &str| fs::read_to_string(file(kind)).unwrap_or_default().lines().count();
    ensure_eq!(seen.map(times), [1, 1, 1, 0], "hooks of run");
    checkpoint(case, &[])?;
    ensure_eq!(seen.map(times), [1, 1, 1, 1], "hooks after checkpoint");
    restore(case, &bundle, &[])?;
    ensure_eq!(seen.map(times), [2, 2, 1, 1], "hooks after restore");
    let last = fs::read_to_string(file(kinds[0]))?;
    let last: Value = serde_json::from_str(last.lines().last().unwrap_or_default())?;
    ensure_eq!(last["state"]["id"], case.id.as_str(), "id");
    ensure_eq!(last["state"]["pid"], case.state()?["pid"], "pid");
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure_eq!(seen.map(times), [2, 2, 1, 2], "hooks after delete");
    Ok(())
}

pub(super) fn failing_hook(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    let fails = hook(case, &case.directory.join("hook"), "3");
    bundle.change(|config| config["hooks"]["createRuntime"] = fails)?;
    try_restore(case, &bundle)?.failed_with(&["exit status 3"])?;
    if case.runtime.name == "damda" {
        case.until_nothing_left()?;
    }
    Ok(())
}

pub(super) fn deleted_while_restored(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        skip!("others keep nothing of a container before it is restored");
    }
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    let begun = case.directory.join("begun");
    let script = format!("touch {}; exec sleep 1000", text(&begun));
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20 }]);
    bundle.change(|config| config["hooks"]["createRuntime"] = hook)?;
    let arguments = restoring(case, &bundle, &["--detach", &case.id]);
    let mut child =
        case.command(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let seen = until("the hook", || Ok(begun.exists())).and_then(|()| {
        ensure_eq!(case.state()?["status"], "creating", "status");
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
        case.nothing_left()
    });
    let ended = until("its end", || Ok(child.try_wait()?.is_some())).inspect_err(|_| drop(child.kill()));
    let status = child.wait()?;
    seen.and(ended)?;
    ensure!(!status.success(), "restore says that it has done it");
    case.nothing_left()
}
