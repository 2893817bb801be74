//! exec: another process in a container.

use crate::case::{Case, add_user_namespace, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs;

tests![
    "runc exec" => namespaces_and_cgroups_of_the_container,
    "runc exec: the exit status is the program's" => exit_status,
    "runc exec --process" => process_file,
    "runc exec --env --cwd --user --additional-gids" => flags,
    "runc exec --cap, --no-new-privs" => privileges,
    "runc exec: capabilities" => capabilities_of_the_container,
    "runc exec --detach --pid-file" => detached,
    "runc exec: a container that is stopped, or missing" => where_there_is_none,
    "runc exec: a program that can't be executed, exit status 255" => failures,
    "runc exec --ignore-paused" => paused,
    "runc exec: in a created container" => created,
    "runc exec --user" => user_out_of_range,
    "runc exec --cgroup" => cgroup,
    "runc exec --preserve-fds" => descriptors,
    "runc exec: a user namespace" => user_namespace,
    "config.md, Linux Process: execCPUAffinity" => cpu_affinity,
    "runc exec: a container without a mount namespace" => without_a_mount_namespace,
    "runc exec: options end at the command" => options_of_the_command,
];

fn namespaces_and_cgroups_of_the_container(case: &Case) -> Verdict {
    case.start(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }))
    })?;
    let pid = case.state()?["pid"].to_string();
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        ensure_eq!(report["namespaces"][kind], text(&link), "{kind}");
    }
    ensure_eq!(report["hostname"], "vessel", "host name");
    ensure_eq!(report["descriptors"].as_object().map(serde_json::Map::len), Some(3), "descriptors");
    let cgroup = report["cgroup"].as_str().unwrap_or_default();
    ensure!(
        cgroup
            .lines()
            .filter(|line| line.contains("pids") || line.starts_with("0::"))
            .all(|line| line.ends_with(":/")),
        "cgroup: {cgroup}"
    );
    Ok(())
}

fn exit_status(case: &Case) -> Verdict {
    case.start(|_| ())?;
    for status in ["0", "1", "42", "255"] {
        ensure_eq!(case.exec(&[], &["exit", status])?.status.to_string(), status, "exit status");
    }
    ensure_eq!(case.exec(&["-e", "A=b"], &["exit", "9"])?.status, 9, "exit status after flags");
    Ok(())
}

fn process_file(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let file = case.directory.join("process.json");
    let process = json!({
        "user": { "uid": 11, "gid": 12, "additionalGids": [13] },
        "args": ["/probe", "report"],
        "env": ["ONLY=this"],
        "cwd": "/tmp",
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }],
        "noNewPrivileges": true,
        "oomScoreAdj": 300,
    });
    fs::write(&file, process.to_string())?;
    let report = case.call(&["exec", "--process", text(&file), &case.id])?.succeeded()?.json()?;
    ensure_eq!(report["uid"][1], 11, "uid");
    ensure_eq!(report["gid"][1], 12, "gid");
    ensure_eq!(report["environment"]["ONLY"], "this", "environment");
    ensure!(report["environment"]["TERM"].is_null(), "the container's own environment is there too");
    ensure_eq!(report["cwd"], "/tmp", "cwd");
    ensure_eq!(report["rlimits"]["RLIMIT_NOFILE"]["soft"], 100, "rlimit");
    Ok(())
}

fn flags(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let flags = ["--env", "ONE=1", "--env", "TWO=2", "--cwd", "/tmp", "-u", "21:22", "-g", "23", "-g", "24"];
    let report = case.exec(&flags, &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["environment"]["ONE"], "1", "--env");
    ensure_eq!(report["environment"]["TWO"], "2", "the second --env");
    ensure_eq!(report["environment"]["TERM"], "xterm", "the container's own environment");
    ensure_eq!(report["cwd"], "/tmp", "--cwd");
    ensure_eq!(report["uid"], json!([21, 21, 21]), "uid");
    ensure_eq!(report["gid"], json!([22, 22, 22]), "gid");
    let groups = report["groups"].to_string();
    ensure!(groups.contains("23") && groups.contains("24"), "groups: {groups}");
    Ok(())
}

fn privileges(case: &Case) -> Verdict {
    case.start(|config| config["process"]["noNewPrivileges"] = json!(false))?;
    let report = case.exec(&["--cap", "CAP_NET_RAW"], &["report"])?.succeeded()?.json()?;
    let effective = report["capabilities"]["effective"].to_string();
    ensure!(effective.contains("CAP_NET_RAW"), "--cap: {effective}");
    ensure_eq!(report["noNewPrivileges"], 0, "without --no-new-privs");
    let report = case.exec(&["--no-new-privs"], &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["noNewPrivileges"], 1, "--no-new-privs");
    Ok(())
}

fn capabilities_of_the_container(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    let set = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    ensure_eq!(report["capabilities"]["bounding"], set, "bounding");
    ensure_eq!(report["capabilities"]["effective"], set, "effective");
    ensure_eq!(report["capabilities"]["inheritable"], json!([]), "inheritable");
    Ok(())
}

fn detached(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let file = case.directory.join("pid");
    case.exec(&["--detach", "--pid-file", text(&file)], &["wait"])?.succeeded()?;
    let pid = fs::read_to_string(&file)?;
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
    ensure_eq!(
        link(&pid)?,
        link(&case.state()?["pid"].to_string())?,
        "pid namespace of the process in the pid file"
    );
    let pids = case.call(&["ps", "--format", "json", &case.id])?.succeeded()?.json()?;
    ensure!(
        pids.as_array().is_some_and(|all| all.iter().any(|one| one.as_u64() == pid.parse().ok())),
        "ps lacks {pid}: {pids}"
    );
    Ok(())
}

fn where_there_is_none(case: &Case) -> Verdict {
    case.exec(&[], &["exit", "0"])?.failed_with(&["does not exist"])?;
    case.start(|_| ())?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    let output = case.exec(&[], &["exit", "0"])?.failed_with(&[])?;
    if case.runtime.name != "crun" {
        ensure_eq!(output.status, 255, "exit status");
        ensure!(output.stderr.contains("cannot exec in a stopped container"), "stderr: {}", output.stderr);
    }
    Ok(())
}

fn failures(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let call = |words: &[&str]| case.call(&[&["exec", case.id.as_str()], words].concat());
    let missing = call(&["nosuch"])?.failed_with(&["executable file not found in $PATH"])?;
    let absolute = call(&["/no/such"])?.failed_with(&["no such file or directory"])?;
    let directory = call(&["/tmp"])?.failed_with(&[])?;
    if case.runtime.name != "crun" {
        for output in [missing, absolute, directory] {
            ensure_eq!(output.status, 255, "exit status");
        }
    }
    Ok(())
}

fn paused(case: &Case) -> Verdict {
    case.start(|_| ())?;
    case.call(&["pause", &case.id])?.succeeded()?;
    case.exec(&[], &["exit", "0"])?.failed_with(&["paused"])?;
    if case.runtime.name == "crun" {
        crate::skip!("crun has no --ignore-paused");
    }
    let mut child = case.command(&["exec", "--ignore-paused", &case.id, "/probe", "exit", "6"]).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let early = child.try_wait()?;
    case.call(&["resume", &case.id])?.succeeded()?;
    ensure!(early.is_none(), "it ended in the paused container: {early:?}");
    ensure_eq!(child.wait()?.code(), Some(6), "exit status after resume");
    Ok(())
}

fn created(case: &Case) -> Verdict {
    case.create(|_| ())?;
    ensure_eq!(case.exec(&[], &["exit", "5"])?.status, 5, "exit status");
    ensure_eq!(case.state()?["status"], "created", "status afterwards");
    Ok(())
}

fn user_out_of_range(case: &Case) -> Verdict {
    case.start(|_| ())?;
    for user in ["-1", "4294967295", "4294967296", "1:-1", "1:4294967296", "", ":", "1:2:3", "+1", "0x1"] {
        if case.runtime.name != "damda" && !user.contains("4294967296") {
            continue;
        }
        let output = case.exec(&["--user", user], &["report"])?;
        ensure!(output.status != 0, "--user {user:?} was accepted: {}", output.json()?["uid"]);
    }
    Ok(())
}

fn cgroup(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun's --cgroup is another");
    }
    case.start(|_| ())?;
    for directory in case.cgroups() {
        let sub = directory.join("sub");
        fs::create_dir(&sub)?;
        // v1's cpuset starts empty, and takes nobody in then.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if sub.join(file).exists() {
                fs::write(sub.join(file), fs::read(directory.join(file))?)?;
            }
        }
    }
    let report = case.exec(&["--cgroup", "sub"], &["report"])?.succeeded()?.json()?;
    let cgroup = report["cgroup"].as_str().unwrap_or_default();
    ensure!(cgroup.contains(&format!("/{}/sub", case.id)), "cgroup: {cgroup}");
    case.exec(&["--cgroup", "nowhere"], &["exit", "0"])?.failed_with(&[])?;
    case.exec(&["--cgroup", "../.."], &["exit", "0"])?.failed_with(&[])?;
    Ok(())
}

fn descriptors(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let exec = ["exec", "--preserve-fds", "1", &case.id, "/probe", "report"];
    let report = case.call_after("exec 3</etc/hosts 4</etc/passwd", &exec)?.succeeded()?.json()?;
    let numbers: Vec<_> =
        report["descriptors"].as_object().into_iter().flatten().map(|(number, _)| number.as_str()).collect();
    ensure_eq!(numbers, ["0", "1", "2", "3"], "descriptors");
    Ok(())
}

fn user_namespace(case: &Case) -> Verdict {
    case.start(|config| {
        add_user_namespace(config, 1000);
    })?;
    let report = case.exec(&["--user", "7:8"], &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["uid"], json!([7, 7, 7]), "uid");
    let map: Vec<&str> = report["uidMap"].as_str().unwrap_or_default().split_whitespace().collect();
    ensure_eq!(map, ["0", "100000", "1000"], "uid map");
    Ok(())
}

fn without_a_mount_namespace(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun need one, or run the process in the host's root");
    }
    case.start(|config| {
        config["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "ipc" }]);
        for field in ["hostname", "mounts"] {
            config.as_object_mut().unwrap().remove(field);
        }
        for field in ["maskedPaths", "readonlyPaths"] {
            config["linux"].as_object_mut().unwrap().remove(field);
        }
    })?;
    let inside = case.exec(&[], &["list", "/"])?.succeeded()?.stdout;
    ensure!(inside.contains("probe") && !inside.contains("usr"), "the root of the process: {inside}");
    Ok(())
}

fn cpu_affinity(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    case.start(|_| ())?;
    let file = case.directory.join("process.json");
    let mut process = json!({ "args": ["/probe", "report"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    process["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    fs::write(&file, process.to_string())?;
    let report = case.call(&["exec", "--process", text(&file), &case.id])?.succeeded()?.json()?;
    ensure_eq!(report["scheduler"]["cpus"], "0", "CPUs that are allowed");
    process["execCPUAffinity"] = json!({ "final": "none" });
    fs::write(&file, process.to_string())?;
    case.call(&["exec", "--process", text(&file), &case.id])?.failed_with(&["execCPUAffinity"])?;
    Ok(())
}

fn options_of_the_command(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let output = case.exec(&[], &["echo", "-t", "--help", "--", "-e"])?.succeeded()?;
    ensure_eq!(output.stdout, "-t --help -- -e\n", "output");
    Ok(())
}
