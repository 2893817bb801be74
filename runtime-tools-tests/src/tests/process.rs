//! The process: user, capabilities, limits, environment.

use crate::case::{Case, probe, text};
use crate::harness::Verdict;
use crate::machine;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;

tests![
    "config.md, Process: args, env, cwd" => arguments_environment_directory,
    "config.md, Process: args[0] by PATH" => program_by_path,
    "IEEE Std 1003.1-2008: HOME" => home_from_passwd,
    "config.md, User: uid, gid, additionalGids" => user_and_groups,
    "config.md, User" => no_group_of_the_caller,
    "config.md, User: umask" => umask,
    "config.md, Linux Process: capabilities" => capability_sets,
    "config.md, Linux Process: capabilities" => ambient_capabilities_of_a_user,
    "config.md, Linux Process: a capability that can't be mapped MUST be a warning" => unknown_capability,
    "config.md, Linux Process: capabilities" => no_capabilities,
    "config.md, Linux Process: noNewPrivileges" => no_new_privileges,
    "config.md, POSIX process: rlimits" => rlimits,
    "config.md, Linux Process: oomScoreAdj" => oom_score_adjustment,
    "config.md, Linux Process: scheduler" => scheduler,
    "config.md, Linux Process: ioPriority" => io_priority,
    "config-linux.md, Personality" => personality,
    "config.md, Hostname, Domainname" => hostname_and_domainname,
    "execve(2): descriptors" => no_descriptors_but_three,
    "runc --preserve-fds" => preserved_descriptors,
    "sd_listen_fds(3)" => descriptors_of_socket_activation,
    "signal(7): what execve keeps" => signals_are_as_at_the_start,
    "signal(7): signals that the caller ignores" => ignored_signals_of_the_caller,
    "credentials(7): a session of its own" => session,
    "keyrings(7), runc --no-new-keyring" => session_keyring,
];

fn arguments_environment_directory(case: &Case) -> Verdict {
    let report = case.report(|config| {
        config["process"]["args"] = json!(["/probe", "report"]);
        config["process"]["env"] = json!(["PATH=/bin", "ONE=1", "EMPTY=", "EQUALS=a=b"]);
        config["process"]["cwd"] = json!("/tmp");
    })?;
    ensure_eq!(report["arguments"], json!(["/probe", "report"]), "arguments");
    ensure_eq!(report["cwd"], "/tmp", "cwd");
    let environment = &report["environment"];
    for (name, value) in [("PATH", "/bin"), ("ONE", "1"), ("EMPTY", ""), ("EQUALS", "a=b")] {
        ensure_eq!(environment[name], value, "{name}");
    }
    let others: Vec<_> =
        environment.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    ensure_eq!(others, ["EMPTY", "EQUALS", "HOME", "ONE", "PATH"], "names");
    Ok(())
}

fn program_by_path(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["process"]["args"] = json!(["tool", "exit", "3"]);
        config["process"]["env"] = json!(["PATH=/nowhere:/opt/bin:/bin"]);
    })?;
    fs::create_dir_all(bundle.rootfs().join("opt/bin"))?;
    fs::copy(case.probe(), bundle.rootfs().join("opt/bin/tool"))?;
    ensure_eq!(case.run(&bundle)?.status, 3, "exit status");
    Ok(())
}

fn home_from_passwd(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }))?;
    fs::write(
        bundle.rootfs().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    ensure_eq!(case.run(&bundle)?.succeeded()?.json()?["environment"]["HOME"], "/home/user", "HOME");
    let bundle = case.bundle(|config| config["process"]["env"] = json!(["HOME=/mine"]))?;
    ensure_eq!(case.run(&bundle)?.succeeded()?.json()?["environment"]["HOME"], "/mine", "HOME that is set");
    Ok(())
}

fn user_and_groups(case: &Case) -> Verdict {
    let report = case.report(|config| {
        config["process"]["user"] = json!({ "uid": 1234, "gid": 5678, "additionalGids": [9, 10] });
    })?;
    ensure_eq!(report["uid"], json!([1234, 1234, 1234]), "uids");
    ensure_eq!(report["gid"], json!([5678, 5678, 5678]), "gids");
    let mut groups: Vec<u64> =
        report["groups"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    groups.retain(|gid| *gid != 5678);
    ensure_eq!(groups, [9, 10], "groups");
    Ok(())
}

fn no_group_of_the_caller(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let mut command = std::process::Command::new("setpriv");
    command.args(["--groups", "4,20", "--inh-caps", "+chown"]).arg(&case.runtime.binary);
    command.arg("--root").arg(case.state_directory()).args([
        "run",
        "--bundle",
        crate::case::text(&bundle.path),
        &case.id,
    ]);
    let report = case.finish(command)?.succeeded()?.json()?;
    let groups: Vec<_> = report["groups"].as_array().into_iter().flatten().filter(|gid| **gid != 0).collect();
    ensure!(groups.is_empty(), "groups of the caller: {groups:?}");
    ensure_eq!(report["capabilities"]["inheritable"], json!([]), "inheritable capabilities of the caller");
    Ok(())
}

fn umask(case: &Case) -> Verdict {
    let report = case.report(|config| config["process"]["user"]["umask"] = json!(0o027))?;
    ensure_eq!(report["umask"], 0o027, "umask");
    let report = case.report(|_| ())?;
    ensure_eq!(report["umask"], 0o022, "umask where none is set");
    Ok(())
}

fn capability_sets(case: &Case) -> Verdict {
    let sets = json!({
        "bounding": ["CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_AUDIT_WRITE", "CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    });
    // As an ordinary user: execve(2) gives root all of the bounding set.
    let report = case.report(|config| {
        config["process"]["capabilities"] = sets.clone();
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    })?;
    let after = &report["capabilities"];
    ensure_eq!(after["bounding"], sets["bounding"], "bounding");
    ensure_eq!(after["inheritable"], sets["inheritable"], "inheritable");
    for set in ["ambient", "permitted", "effective"] {
        ensure_eq!(after[set], json!(["CAP_CHOWN"]), "{set}, which is ambient's after execve");
    }
    Ok(())
}

fn ambient_capabilities_of_a_user(case: &Case) -> Verdict {
    let report = case.report(|config| {
        let set = json!(["CAP_NET_BIND_SERVICE"]);
        config["process"]["capabilities"] = json!({ "bounding": set, "permitted": set, "effective": set, "inheritable": set, "ambient": set });
        config["process"]["user"] = json!({ "uid": 65534, "gid": 65534 });
    })?;
    ensure_eq!(report["capabilities"]["effective"], json!(["CAP_NET_BIND_SERVICE"]), "effective");
    Ok(())
}

fn unknown_capability(case: &Case) -> Verdict {
    let bundle =
        case.bundle(|config| config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FLY"]))?;
    let output = case.run(&bundle)?.succeeded()?;
    ensure!(output.stderr.contains("CAP_FLY"), "no warning: {:?}", output.stderr);
    ensure_eq!(output.json()?["capabilities"]["bounding"], json!(["CAP_KILL"]), "bounding");
    Ok(())
}

fn no_capabilities(case: &Case) -> Verdict {
    let report = case.report(|config| config["process"]["capabilities"] = json!({}))?;
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        ensure_eq!(report["capabilities"][set], json!([]), "{set}");
    }
    Ok(())
}

fn no_new_privileges(case: &Case) -> Verdict {
    ensure_eq!(case.report(|_| ())?["noNewPrivileges"], 1, "noNewPrivileges: true");
    let report = case.report(|config| config["process"]["noNewPrivileges"] = json!(false))?;
    ensure_eq!(report["noNewPrivileges"], 0, "noNewPrivileges: false");
    Ok(())
}

fn rlimits(case: &Case) -> Verdict {
    let limits = [
        ("RLIMIT_NOFILE", 512, 1024),
        ("RLIMIT_CORE", 0, 100),
        ("RLIMIT_NPROC", 50, 60),
        ("RLIMIT_STACK", 1 << 22, 1 << 23),
    ];
    let list = limits.map(|(name, soft, hard)| json!({ "type": name, "soft": soft, "hard": hard }));
    let report = case.report(|config| config["process"]["rlimits"] = json!(list))?;
    for (name, soft, hard) in limits {
        ensure_eq!(report["rlimits"][name], json!({ "soft": soft, "hard": hard }), "{name}");
    }
    Ok(())
}

fn oom_score_adjustment(case: &Case) -> Verdict {
    let report = case.report(|config| config["process"]["oomScoreAdj"] = json!(500))?;
    ensure_eq!(report["oomScoreAdj"], 500, "oom_score_adj");
    // Not set, it is the caller's.
    let bundle = case.bundle(|_| ())?;
    let arguments = ["run", "--bundle", crate::case::text(&bundle.path), &case.id];
    let report = case.call_after("echo 77 >/proc/self/oom_score_adj", &arguments)?.succeeded()?.json()?;
    ensure_eq!(report["oomScoreAdj"], 77, "oom_score_adj that is not set");
    Ok(())
}

fn scheduler(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    let report =
        case.report(|config| config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 }))?;
    ensure_eq!(report["scheduler"]["policy"], 3, "policy");
    ensure_eq!(report["scheduler"]["nice"], 5, "nice");
    Ok(())
}

fn io_priority(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    let report = case.report(|config| {
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 })
    })?;
    ensure_eq!(report["scheduler"]["ioClass"], 2, "class");
    ensure_eq!(report["scheduler"]["ioPriority"], 6, "priority");
    Ok(())
}

fn personality(case: &Case) -> Verdict {
    let report = case.report(|config| config["linux"]["personality"] = json!({ "domain": "LINUX32" }))?;
    ensure_eq!(report["machine"], "i686", "machine");
    Ok(())
}

fn hostname_and_domainname(case: &Case) -> Verdict {
    let report = case.report(|config| config["hostname"] = json!("a-name"))?;
    ensure_eq!(report["hostname"], "a-name", "hostname");
    if case.runtime.name == "damda" {
        let report = case.report(|config| config["domainname"] = json!("example.org"))?;
        ensure_eq!(report["domainname"], "example.org", "domainname");
    }
    Ok(())
}

/// The descriptors of the report, but for the one that lists them.
fn descriptors(report: &Value) -> Vec<String> {
    report["descriptors"].as_object().into_iter().flatten().map(|(number, _)| number.clone()).collect()
}

fn no_descriptors_but_three(case: &Case) -> Verdict {
    ensure_eq!(descriptors(&case.report(|_| ())?), ["0", "1", "2"], "descriptors");
    Ok(())
}

/// Runs a shell that opens descriptors before it becomes the runtime.
fn with_descriptors(case: &Case, before: &str, flags: &[&str]) -> Verdict<Value> {
    let bundle = case.bundle(|_| ())?;
    let run = [&["run"], flags, &["--bundle", text(&bundle.path), &case.id]].concat();
    case.call_after(before, &run)?.succeeded()?.json()
}

fn preserved_descriptors(case: &Case) -> Verdict {
    let report =
        with_descriptors(case, "exec 3</etc/hosts 4</etc/passwd 5</etc/group", &["--preserve-fds", "2"])?;
    ensure_eq!(descriptors(&report), ["0", "1", "2", "3", "4"], "descriptors");
    ensure_eq!(report["descriptors"]["4"], "/etc/passwd", "descriptor 4");
    let report = with_descriptors(case, "exec 3</etc/hosts 4</etc/passwd", &[])?;
    ensure_eq!(descriptors(&report), ["0", "1", "2"], "descriptors without --preserve-fds");
    Ok(())
}

fn descriptors_of_socket_activation(case: &Case) -> Verdict {
    let report = with_descriptors(case, "exec 3</etc/hosts; export LISTEN_PID=$$ LISTEN_FDS=1", &[])?;
    ensure_eq!(descriptors(&report), ["0", "1", "2", "3"], "descriptors");
    ensure_eq!(report["environment"]["LISTEN_FDS"], "1", "LISTEN_FDS");
    ensure_eq!(report["environment"]["LISTEN_PID"], "1", "LISTEN_PID");
    Ok(())
}

fn signals_are_as_at_the_start(case: &Case) -> Verdict {
    let report = case.report(|_| ())?;
    ensure_eq!(report["blocked"], 0, "blocked signals");
    // The probe itself, as any Rust program, ignores SIGPIPE.
    let sigpipe = 1 << (libc::SIGPIPE - 1);
    ensure_eq!(report["ignored"].as_u64().unwrap_or(1) & !sigpipe, 0, "ignored signals");
    Ok(())
}

fn ignored_signals_of_the_caller(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let run = ["run", "--bundle", text(&bundle.path), &case.id];
    let report = case.call_after("trap '' PIPE TERM HUP CHLD USR1", &run)?.succeeded()?.json()?;
    let sigpipe = 1 << (libc::SIGPIPE - 1);
    ensure_eq!(report["ignored"].as_u64().unwrap_or(1) & !sigpipe, 0, "ignored signals");
    case.nothing_left()
}

fn session(case: &Case) -> Verdict {
    let report = case.report(|_| ())?;
    ensure_eq!(report["pid"], 1, "pid");
    ensure_eq!(report["session"], 1, "session");
    Ok(())
}

/// keyctl(2): KEYCTL_GET_KEYRING_ID of the session keyring, by the caller and in the container.
fn session_keyring(case: &Case) -> Verdict {
    let words = ["syscall", &libc::SYS_keyctl.to_string(), "0", "-3", "0"];
    let own = std::process::Command::new(case.probe()).args(words).output()?;
    if !own.status.success() {
        crate::skip!("keyctl(2) doesn't work here");
    }
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&words))?;
    let inside = case.run(&bundle)?.succeeded()?.stdout;
    ensure!(inside != own, "the container has the caller's session keyring");
    let path = crate::case::text(&bundle.path).to_owned();
    let inside = case.call(&["run", "--no-new-keyring", "--bundle", &path, &case.id])?.succeeded()?.stdout;
    ensure_eq!(inside, own, "session keyring with --no-new-keyring");
    machine::needs_file("/proc/keys", "keys in /proc")
}
