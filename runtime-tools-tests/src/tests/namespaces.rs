//! Namespaces: new ones, joined ones, user namespaces.

use crate::case::{Case, add_user_namespace, probe, text};
use crate::harness::Verdict;
use crate::machine;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

tests![
    "config-linux.md, Namespaces: a new one for each that has no path" => new_namespaces,
    "config-linux.md, Namespaces: those not listed MUST be the runtime's" => namespaces_of_the_runtime,
    "config-linux.md, Namespaces: path" => joined_namespaces,
    "config-linux.md, Namespaces: path of a pid namespace" => joined_pid_namespace,
    "config-linux.md, Namespaces: cgroup" => cgroup_namespace,
    "config-linux.md, User namespace mappings" => user_namespace,
    "config-linux.md, User namespace mappings: the root of the root file system is the owner's" => user_namespace_files,
    "config-linux.md, Namespaces: path of a user namespace" => joined_user_namespace,
    "config-linux.md, Offset for Time Namespace" => time_offsets,
    "config-linux.md, Namespaces: network, lo" => loopback_is_up,
    "config-linux.md, Sysctl" => sysctl,
    "config-linux.md, Namespaces: a joined one that is the host's" => joined_host_namespace,
];

/// Those of this process, as links name them.
fn own() -> Verdict<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/ns")? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?;
        all.insert(entry.file_name().to_string_lossy().into_owned(), text(&target).to_owned());
    }
    Ok(all)
}

fn set(config: &mut Value, types: &[&str]) {
    config["linux"]["namespaces"] = types.iter().map(|kind| json!({ "type": kind })).collect();
    if !types.contains(&"uts") {
        config.as_object_mut().unwrap().remove("hostname");
    }
}

fn new_namespaces(case: &Case) -> Verdict {
    let report = case.report(|config| set(config, &["pid", "network", "ipc", "uts", "mount", "cgroup"]))?;
    let own = own()?;
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        ensure!(report["namespaces"][kind] != own[kind].as_str(), "{kind} is the runtime's");
    }
    for kind in ["user", "time"] {
        ensure_eq!(report["namespaces"][kind], own[kind].as_str(), "{kind}");
    }
    Ok(())
}

fn namespaces_of_the_runtime(case: &Case) -> Verdict {
    let report = case.report(|config| {
        set(config, &["mount"]);
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| mount["type"] != "sysfs" && mount["type"] != "mqueue");
    })?;
    let own = own()?;
    for kind in ["pid", "net", "ipc", "uts", "cgroup", "user"] {
        ensure_eq!(report["namespaces"][kind], own[kind].as_str(), "{kind}");
    }
    Ok(())
}

fn joined_namespaces(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let pid = case.state()?["pid"].to_string();
    let other = case.another_id("joins");
    let bundle = case.bundle(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("/{other}"));
        set(config, &["mount", "pid"]);
        for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
            let path = format!("/proc/{pid}/ns/{file}");
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind, "path": path }));
        }
    })?;
    let report = case.call(&["run", "--bundle", text(&bundle.path), &other])?.succeeded()?.json()?;
    for kind in ["net", "ipc", "uts"] {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        ensure_eq!(report["namespaces"][kind], text(&link), "{kind}");
    }
    ensure_eq!(report["hostname"], "vessel", "the first container's host name");
    Ok(())
}

fn joined_pid_namespace(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let pid = case.state()?["pid"].to_string();
    let other = case.another_id("joins");
    let bundle = case.bundle(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("/{other}"));
        config["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{pid}/ns/pid"));
        config["process"]["args"] = probe(&["wait"]);
    })?;
    case.call(&["run", "--detach", "--bundle", text(&bundle.path), &other])?.succeeded()?;
    let state = case.call(&["state", &other])?.succeeded()?.json()?;
    ensure_eq!(state["status"], "running", "status");
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
    ensure_eq!(link(&state["pid"].to_string())?, link(&pid)?, "pid namespace");
    // Deleting the one that joined leaves the other alone.
    case.call(&["delete", "--force", &other])?.succeeded()?;
    ensure_eq!(case.state()?["status"], "running", "status of the first one");
    Ok(())
}

fn cgroup_namespace(case: &Case) -> Verdict {
    let report = case.report(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
    })?;
    let cgroup = report["cgroup"].as_str().unwrap_or_default().to_owned();
    ensure!(cgroup.lines().any(|line| line.ends_with(":/")), "/proc/self/cgroup: {cgroup}");
    ensure!(!cgroup.contains(&case.id), "the path on the host shows: {cgroup}");
    Ok(())
}

fn with_user_namespace(config: &mut Value) {
    add_user_namespace(config, 65_536);
}

fn user_namespace(case: &Case) -> Verdict {
    let report = case.report(|config| {
        with_user_namespace(config);
        config["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    })?;
    let numbers = |field: &str| -> Vec<String> {
        report[field].as_str().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    ensure_eq!(numbers("uidMap"), ["0", "100000", "65536"], "uid_map");
    ensure_eq!(numbers("gidMap"), ["0", "100000", "65536"], "gid_map");
    ensure_eq!(report["uid"], json!([5, 5, 5]), "uids");
    ensure_eq!(report["gid"], json!([6, 6, 6]), "gids");
    ensure!(report["namespaces"]["user"] != own()?["user"].as_str(), "the user namespace is the runtime's");
    Ok(())
}

fn user_namespace_files(case: &Case) -> Verdict {
    let words = ["stat", "/dev/null", "/dev/pts/ptmx", "/dev/shm", "/dev/mqueue"];
    let output = case.probed(&words, with_user_namespace)?.succeeded()?;
    let stat = output.json()?;
    ensure_eq!(stat["/dev/null"]["type"], "c", "/dev/null");
    for path in ["/dev/shm", "/dev/mqueue"] {
        ensure_eq!(stat[path]["uid"], 0, "owner of {path} inside");
    }
    Ok(())
}

fn joined_user_namespace(case: &Case) -> Verdict {
    case.start(with_user_namespace)?;
    let pid = case.state()?["pid"].to_string();
    let other = case.another_id("joins");
    let bundle = case.bundle(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("/{other}"));
        let path = json!(format!("/proc/{pid}/ns/user"));
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user", "path": path }));
    })?;
    let report = case.call(&["run", "--bundle", text(&bundle.path), &other])?.succeeded()?.json()?;
    let link = fs::read_link(format!("/proc/{pid}/ns/user"))?;
    ensure_eq!(report["namespaces"]["user"], text(&link), "user namespace");
    ensure_eq!(report["uid"], json!([0, 0, 0]), "uids");
    Ok(())
}

fn time_offsets(case: &Case) -> Verdict {
    machine::needs_file("/proc/self/timens_offsets", "time namespaces")?;
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    let report = case.report(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 2000 } });
    })?;
    let in_user_namespace = case.report(|config| {
        with_user_namespace(config);
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 2000 } });
    })?;
    ensure_eq!(in_user_namespace["timens"], report["timens"], "offsets in a user namespace");
    let offsets: Vec<&str> = report["timens"].as_str().unwrap_or_default().split_whitespace().collect();
    ensure_eq!(offsets, ["monotonic", "1000", "5", "boottime", "2000", "0"], "offsets");
    Ok(())
}

fn loopback_is_up(case: &Case) -> Verdict {
    // IFF_UP is 1.
    let flags = case.probed(&["read", "/sys/class/net/lo/flags"], |_| ())?.succeeded()?.stdout;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    ensure!(flags & 1 == 1, "lo is down: flags {flags:#x}");
    Ok(())
}

fn sysctl(case: &Case) -> Verdict {
    let values = [("net.ipv4.ip_forward", "1"), ("kernel.msgmax", "4321"), ("net.core.somaxconn", "256")];
    for (name, value) in values {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let read =
            case.probed(&["read", &path], |config| config["linux"]["sysctl"] = json!({ name: value }))?;
        ensure_eq!(read.succeeded()?.stdout.trim(), value, "{name}");
    }
    Ok(())
}

fn joined_host_namespace(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("not tried: crun would change the host's");
    }
    for (kind, file, change) in [
        ("network", "net", json!({ "sysctl": { "net.ipv4.ip_default_ttl": "63" } })),
        ("ipc", "ipc", json!({ "sysctl": { "kernel.msgmax": "4321" } })),
        ("uts", "uts", json!({ "sysctl": { "kernel.domainname": "changed" } })),
    ] {
        let bundle = case.bundle(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|entry| entry["type"] != kind);
            namespaces.push(json!({ "type": kind, "path": format!("/proc/self/ns/{file}") }));
            config["linux"]["sysctl"] = change["sysctl"].clone();
            config.as_object_mut().unwrap().remove("hostname");
        })?;
        case.run(&bundle)?.failed_with(&["/linux/sysctl", "host"])?;
        case.nothing_left()?;
    }
    let bundle = case.bundle(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|entry| entry["type"] != "uts");
        namespaces.push(json!({ "type": "uts", "path": "/proc/self/ns/uts" }));
    })?;
    case.run(&bundle)?.failed_with(&["/hostname", "host"])?;
    let bundle = case.bundle(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|entry| entry["type"] != "mount");
        namespaces.push(json!({ "type": "mount", "path": "/proc/self/ns/mnt" }));
    })?;
    case.run(&bundle)?.failed_with(&["/mounts", "host"])?;
    case.nothing_left()
}
