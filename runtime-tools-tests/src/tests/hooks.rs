//! Hooks: when, where, with what, and what a failure does.

use crate::case::{Case, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;

tests![
    "runtime.md, Lifecycle; config.md, POSIX-platform Hooks" => order_and_state,
    "config.md, Hooks: namespaces" => namespaces_of_hooks,
    "config.md, Hooks: entries MUST be called in the listed order" => order_within_a_kind,
    "config.md, Hooks: args, env" => arguments_and_environment,
    "runtime.md, Lifecycle: a failing prestart, createRuntime or createContainer hook" => failure_before_start,
    "runtime.md, Lifecycle: a failing startContainer hook" => failure_of_start_container,
    "runtime.md, Lifecycle: a failing poststart hook" => failure_after_start,
    "runtime.md, Lifecycle: a failing poststop hook MUST be a warning" => failure_of_poststop,
    "config.md, Hooks: timeout" => timeout,
    "config.md, Hooks: path MUST be absolute" => relative_path,
    "config.md, Hooks: path" => missing_program,
    "runtime.md, Lifecycle: poststop after a failed create" => poststop_after_failure,
    "config.md, Prestart, CreateRuntime, CreateContainer Hooks: before pivot_root" => before_the_root_changes,
    "config.md, StartContainer Hooks: before the program" => start_container_before_the_program,
    "config.md, Poststart: after the program is executed" => poststart_after_the_program,
    "config.md, Poststop: after the container is deleted" => poststop_after_the_deletion,
    "runtime.md, State: pid as the hook's namespace has it" => pid_of_the_state,
    "runtime.md, Lifecycle: a failing startContainer or poststart hook ends the container" => failed_start_ends_the_container,
    "runc: the umask of hooks is the caller's" => umask_of_hooks,
];

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that appends its kind to a file. startContainer's runs inside, where the file is in the
/// root file system.
fn hook(case: &Case, kind: &str, status: &str) -> Value {
    let (program, file) = match kind {
        "startContainer" => ("/probe", "/hooks"),
        _ => (text(case.probe()), ""),
    };
    let outside = case.directory.join("hooks");
    let file = if file.is_empty() { text(&outside) } else { file };
    json!({ "path": program, "args": [kind, "hook", file, status] })
}

/// The lines that hooks wrote, outside or inside.
fn written(file: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn outside(case: &Case) -> Vec<Value> {
    written(&case.directory.join("hooks"))
}

fn kinds(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| line["arguments"][0].as_str().unwrap_or_default().to_owned()).collect()
}

fn all(case: &Case) -> Value {
    KINDS
        .iter()
        .map(|kind| (kind.to_string(), json!([hook(case, kind, "0")])))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn order_and_state(case: &Case) -> Verdict {
    let bundle = case.create(|config| {
        config["hooks"] = all(case);
        config["process"]["args"] = probe(&["wait"]);
        config["annotations"] = json!({ "key": "value" });
    })?;
    ensure_eq!(kinds(&outside(case)), ["prestart", "createRuntime", "createContainer"], "hooks of create");
    let pid = case.state()?["pid"].clone();
    case.call(&["start", &case.id])?.succeeded()?;
    ensure_eq!(kinds(&outside(case))[3..], ["poststart"], "hooks of start");
    let inside = written(&bundle.rootfs().join("hooks"));
    ensure_eq!(kinds(&inside), ["startContainer"], "hooks of start, inside");
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    let lines = outside(case);
    ensure_eq!(kinds(&lines)[4..], ["poststop"], "hooks of delete");
    for line in lines.iter().chain(&inside) {
        let (kind, state) = (&line["arguments"][0], &line["state"]);
        ensure_eq!(state["id"], case.id.as_str(), "{kind}: id");
        ensure_eq!(state["bundle"], text(&bundle.path), "{kind}: bundle");
        ensure_eq!(state["annotations"]["key"], "value", "{kind}: annotations");
        let status = match kind.as_str() {
            Some("poststart") => "running",
            Some("poststop") => "stopped",
            Some("startContainer") => "created",
            _ => "creating",
        };
        // runc says "created" in createRuntime and createContainer.
        let allowed = [status, if status == "creating" { "created" } else { status }];
        ensure!(
            allowed.iter().any(|allowed| state["status"] == *allowed),
            "{kind}: status {}",
            state["status"]
        );
        if kind == "prestart" || kind == "createRuntime" || kind == "poststart" {
            ensure_eq!(state["pid"], pid, "{kind}: pid");
        }
    }
    Ok(())
}

fn namespaces_of_hooks(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["hooks"] = all(case);
        config["process"]["args"] = probe(&["exit", "0"]);
    })?;
    case.run(&bundle)?.succeeded()?;
    let own = fs::read_link("/proc/self/ns/mnt")?;
    for line in outside(case) {
        let kind = line["arguments"][0].as_str().unwrap_or_default();
        let in_runtimes = line["mount"] == text(&own);
        ensure_eq!(in_runtimes, kind != "createContainer", "{kind} runs in the runtime's mount namespace");
    }
    let inside = written(&bundle.rootfs().join("hooks"));
    ensure!(inside.len() == 1 && inside[0]["mount"] != text(&own), "startContainer: {inside:?}");
    Ok(())
}

fn order_within_a_kind(case: &Case) -> Verdict {
    let numbered = |number: &str| {
        let mut hook = hook(case, "prestart", "0");
        hook["args"][0] = json!(number);
        hook
    };
    let bundle = case.bundle(|config| {
        config["hooks"] = json!({ "prestart": [numbered("1"), numbered("2"), numbered("3")], "poststop": [numbered("4"), numbered("5")] });
    })?;
    case.run(&bundle)?.succeeded()?;
    ensure_eq!(kinds(&outside(case)), ["1", "2", "3", "4", "5"], "order");
    Ok(())
}

fn arguments_and_environment(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        let mut hook = hook(case, "prestart", "0");
        hook["env"] = json!(["ONE=1", "TWO=2"]);
        config["hooks"] = json!({ "prestart": [hook] });
    })?;
    case.run(&bundle)?.succeeded()?;
    let lines = outside(case);
    ensure_eq!(lines[0]["environment"], json!({ "ONE": "1", "TWO": "2" }), "environment");
    Ok(())
}

fn failure_before_start(case: &Case) -> Verdict {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = case.bundle(|config| {
            config["hooks"] = json!({ kind: [hook(case, kind, "3"), hook(case, kind, "0")] });
            config["process"]["args"] = probe(&["write", "/ran", ""]);
        })?;
        let words: Vec<String> =
            if case.runtime.name == "damda" { vec![format!("/hooks/{kind}/0"), "3".into()] } else { vec![] };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        case.call(&["create", "--bundle", text(&bundle.path), &case.id])?.failed_with(&words)?;
        case.nothing_left()?;
        ensure_eq!(outside(case).len(), 1, "hooks that ran: none after the one that failed");
        fs::remove_file(case.directory.join("hooks"))?;
        case.run(&bundle)?.failed_with(&words)?;
        case.nothing_left()?;
        ensure!(!bundle.rootfs().join("ran").exists(), "the program ran");
        fs::remove_file(case.directory.join("hooks"))?;
    }
    Ok(())
}

fn failure_of_start_container(case: &Case) -> Verdict {
    let bundle = case.create(|config| {
        config["hooks"] = json!({ "startContainer": [hook(case, "startContainer", "3")], "poststop": [hook(case, "poststop", "0")] });
        config["process"]["args"] = probe(&["write", "/ran", ""]);
    })?;
    let output = case.call(&["start", &case.id])?;
    if case.runtime.name != "runc" {
        output.failed_with(&[])?;
    }
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure!(!bundle.rootfs().join("ran").exists(), "the program ran");
    ensure_eq!(kinds(&outside(case)), ["poststop"], "hooks of the end");
    case.nothing_left()
}

fn failure_after_start(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun makes it a warning, as older specifications had it");
    }
    case.create(|config| {
        config["hooks"] =
            json!({ "poststart": [hook(case, "poststart", "3")], "poststop": [hook(case, "poststop", "0")] });
        config["process"]["args"] = probe(&["wait"]);
    })?;
    case.call(&["start", &case.id])?.failed_with(&[])?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn failure_of_poststop(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["hooks"] = json!({ "poststop": [hook(case, "poststop", "3"), hook(case, "poststop", "0")] });
        config["process"]["args"] = probe(&["exit", "0"]);
    })?;
    let output = case.run(&bundle)?;
    ensure_eq!(output.status, 0, "exit status (stderr {:?})", output.stderr);
    ensure_eq!(outside(case).len(), 2, "hooks that ran: the one after the failed one too");
    if case.runtime.name == "damda" {
        ensure!(output.stderr.contains("/hooks/poststop/0"), "no warning: {:?}", output.stderr);
    }
    case.nothing_left()
}

fn timeout(case: &Case) -> Verdict {
    let began = std::time::Instant::now();
    let bundle = case.bundle(|config| {
        config["hooks"] = json!({ "prestart": [{ "path": text(case.probe()), "args": ["probe", "wait"], "timeout": 1 }] });
    })?;
    case.run(&bundle)?.failed_with(&[])?;
    // It would wait for ever: that the command has ended is the proof.
    ensure!(began.elapsed().as_millis() >= 900, "it ended before the timeout");
    case.nothing_left()
}

fn relative_path(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["hooks"] = json!({ "prestart": [{ "path": "probe" }] }))?;
    let words: &[&str] = if case.runtime.name == "damda" { &["/hooks/prestart/0/path"] } else { &[] };
    case.run(&bundle)?.failed_with(words)?;
    case.nothing_left()
}

fn missing_program(case: &Case) -> Verdict {
    let bundle =
        case.bundle(|config| config["hooks"] = json!({ "createRuntime": [{ "path": "/no/such/hook" }] }))?;
    let words: &[&str] =
        if case.runtime.name == "damda" { &["/hooks/createRuntime/0", "/no/such/hook"] } else { &[] };
    case.run(&bundle)?.failed_with(words)?;
    case.nothing_left()
}

fn poststop_after_failure(case: &Case) -> Verdict {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = case.bundle(|config| {
            config["hooks"] =
                json!({ kind: [hook(case, kind, "1")], "poststop": [hook(case, "poststop", "0")] });
        })?;
        case.run(&bundle)?.failed_with(&[])?;
        ensure_eq!(kinds(&outside(case)), [kind, "poststop"], "hooks");
        fs::remove_file(case.directory.join("hooks"))?;
    }
    Ok(())
}

/// A hook of the shell's, in which PID is the container process's.
fn script(text: &str) -> Value {
    let pid = r#"PID=$(tr -d ' \n' | sed 's/.*"pid":\([0-9]*\).*/\1/');"#;
    json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("{pid} {text}")], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
}

fn before_the_root_changes(case: &Case) -> Verdict {
    let (seen, marker) = (case.directory.join("seen"), case.directory.join("marker"));
    fs::write(&marker, "")?;
    let (seen_by, marker) = (text(&seen), text(&marker));
    // The process still has the host's root, and its namespaces and cgroup are made.
    let look = |kind: &str| {
        script(&format!(
            "[ -e /proc/$PID/root{marker} ] && [ \"$(readlink /proc/$PID/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ] \
             && grep -q {id} /proc/$PID/cgroup && echo {kind} >>{seen_by}",
            id = case.id
        ))
    };
    let bundle = case.bundle(|config| {
        // Within, /bin/sh and the marker are there only as long as the root is the host's.
        let within = json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("[ -e {marker} ] && echo createContainer >>{seen_by}")] });
        config["hooks"] = json!({ "prestart": [look("prestart")], "createRuntime": [look("createRuntime")], "createContainer": [within] });
    })?;
    case.run(&bundle)?.succeeded()?;
    ensure_eq!(
        fs::read_to_string(&seen)?,
        "prestart\ncreateRuntime\ncreateContainer\n",
        "hooks that saw the host's root"
    );
    Ok(())
}

fn start_container_before_the_program(case: &Case) -> Verdict {
    let bundle = case.create(|config| {
        config["hooks"] = json!({ "startContainer": [{ "path": "/probe", "args": ["probe", "append", "/order", "hook "] }] });
        config["process"]["args"] = probe(&["append", "/order", "program"]);
    })?;
    let order = bundle.rootfs().join("order");
    ensure!(!order.exists(), "a startContainer hook ran in create");
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    ensure_eq!(fs::read_to_string(order)?, "hook program", "what ran");
    Ok(())
}

fn poststart_after_the_program(case: &Case) -> Verdict {
    let seen = case.directory.join("seen");
    case.create(|config| {
        // Within execve(2) there is a moment when the process has no arguments.
        let look = format!(
            "for i in 1 2 3 4 5 6 7 8 9; do C=$(tr '\\0' ' ' </proc/$PID/cmdline); [ -n \"$C\" ] && break; sleep 0.2; done; \
             printf %s \"$C\" >{}",
            text(&seen)
        );
        let look = script(&look);
        config["hooks"] = json!({ "poststart": [look] });
        config["process"]["args"] = probe(&["wait"]);
    })?;
    ensure!(!seen.exists(), "a poststart hook ran in create");
    case.call(&["start", &case.id])?.succeeded()?;
    ensure_eq!(fs::read_to_string(seen)?, "/probe wait ", "the process that the hook saw");
    Ok(())
}

fn poststop_after_the_deletion(case: &Case) -> Verdict {
    let seen = case.directory.join("seen");
    case.start(|config| {
        let cgroups = "ls -d /sys/fs/cgroup/$ID/cgroup.procs /sys/fs/cgroup/*/$ID/cgroup.procs 2>/dev/null"
            .replace("$ID", &case.id);
        let look = format!("echo \"cgroups: $({cgroups})\" >{}", text(&seen));
        config["hooks"] = json!({ "poststop": [script(&look)] });
    })?;
    ensure!(!case.cgroups().is_empty(), "the container has no cgroup to look for");
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    ensure!(!seen.exists(), "a poststop hook ran before delete");
    case.call(&["delete", &case.id])?.succeeded()?;
    ensure_eq!(fs::read_to_string(seen)?, "cgroups: \n", "what the hook saw of the container");
    Ok(())
}

fn pid_of_the_state(case: &Case) -> Verdict {
    let bundle = case.create(|config| {
        config["hooks"] = all(case);
        config["process"]["args"] = probe(&["wait"]);
    })?;
    let pid = case.state()?["pid"].clone();
    case.call(&["start", &case.id])?.succeeded()?;
    for line in outside(case) {
        let kind = line["arguments"][0].as_str().unwrap_or_default();
        // The first process of a pid namespace is 1 in it.
        let expected = if kind == "createContainer" { json!(1) } else { pid.clone() };
        ensure_eq!(line["state"]["pid"], expected, "{kind}: pid");
    }
    let inside = written(&bundle.rootfs().join("hooks"));
    ensure_eq!(inside[0]["state"]["pid"], 1, "startContainer: pid");
    Ok(())
}

fn failed_start_ends_the_container(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun leave the container to be deleted by the caller");
    }
    for kind in ["startContainer", "poststart"] {
        case.create(|config| {
            config["hooks"] =
                json!({ kind: [hook(case, kind, "3")], "poststop": [hook(case, "poststop", "0")] });
            config["process"]["args"] = probe(&["wait"]);
        })?;
        case.call(&["start", &case.id])?.failed_with(&[])?;
        ensure_eq!(kinds(&outside(case)).last().map(String::as_str), Some("poststop"), "the last hook");
        case.nothing_left()?;
        fs::remove_file(case.directory.join("hooks"))?;
    }
    Ok(())
}

fn umask_of_hooks(case: &Case) -> Verdict {
    use std::os::unix::fs::MetadataExt;
    for kind in ["createRuntime", "createContainer", "poststart"] {
        let bundle = case.bundle(|config| {
            config["hooks"] = json!({ kind: [hook(case, kind, "0")] });
        })?;
        case.run(&bundle)?.succeeded()?;
        let file = case.directory.join("hooks");
        ensure_eq!(fs::metadata(&file)?.mode() & 0o777, 0o644, "mode of the file that a {kind} hook made");
        fs::remove_file(&file)?;
    }
    Ok(())
}
