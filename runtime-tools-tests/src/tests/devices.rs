//! Device nodes, and which ones a container may use.

use crate::case::{Case, add_user_namespace, probe};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use nix::sys::stat::{Mode, SFlag};
use serde_json::{Value, json};
use std::fs;

tests![
    "config-linux.md, Default Devices" => default_devices,
    "config-linux.md, Devices" => devices,
    "config-linux.md, Devices: a fifo" => fifo,
    "config-linux.md, Devices: a path below a directory that isn't there" => device_in_a_new_directory,
    "config-linux.md, Device allowlist" => access_is_denied,
    "config-linux.md, Device allowlist" => access_is_allowed,
    "config-linux.md, Device allowlist: mknod" => nodes_can_be_made_but_not_used,
    "config-linux.md, Default Devices in a user namespace" => devices_in_a_user_namespace,
    "config-linux.md, Devices: another file at path MUST give an error" => another_file_at_the_path,
    "config-linux.md, Device allowlist: MUST be applied in the listed order" => rules_in_order,
    "config-linux.md, Devices: a bind-mounted /dev is left alone" => bound_dev_is_left_alone,
];

const DEFAULT: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn default_devices(case: &Case) -> Verdict {
    let paths = DEFAULT.map(|(name, ..)| format!("/dev/{name}"));
    let mut words = vec!["stat"];
    words.extend(paths.iter().map(String::as_str));
    let stat = case.probed(&words, |_| ())?.succeeded()?.json()?;
    for (name, major, minor) in DEFAULT {
        let device = &stat[format!("/dev/{name}")];
        ensure_eq!(device["type"], "c", "type of {name}");
        ensure_eq!(device["mode"], 0o666, "mode of {name}");
        ensure_eq!(
            (device["major"].as_u64(), device["minor"].as_u64()),
            (Some(major), Some(minor)),
            "number of {name}"
        );
    }
    // They work.
    case.probed(&["write", "/dev/null", "text"], |_| ())?.succeeded()?;
    Ok(())
}

fn devices(case: &Case) -> Verdict {
    let stat = case.probed(&["stat", "/dev/loop-x", "/dev/tty-x"], |config| {
        config["linux"]["devices"] = json!([
            { "path": "/dev/loop-x", "type": "b", "major": 7, "minor": 77, "fileMode": 0o640, "uid": 3, "gid": 4 },
            { "path": "/dev/tty-x", "type": "u", "major": 4, "minor": 7 },
        ]);
    })?;
    let stat = stat.succeeded()?.json()?;
    let device = &stat["/dev/loop-x"];
    ensure_eq!(device["type"], "b", "type");
    ensure_eq!(device["mode"], 0o640, "mode");
    ensure_eq!((device["uid"].as_u64(), device["gid"].as_u64()), (Some(3), Some(4)), "owner");
    ensure_eq!((device["major"].as_u64(), device["minor"].as_u64()), (Some(7), Some(77)), "number");
    ensure_eq!(stat["/dev/tty-x"]["type"], "c", "type 'u'");
    Ok(())
}

fn fifo(case: &Case) -> Verdict {
    let stat = case.probed(&["stat", "/dev/pipe"], |config| {
        config["linux"]["devices"] = json!([{ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }]);
    })?;
    ensure_eq!(stat.succeeded()?.json()?["/dev/pipe"]["type"], "p", "type");
    Ok(())
}

fn device_in_a_new_directory(case: &Case) -> Verdict {
    let stat = case.probed(&["stat", "/dev/a/b/zero"], |config| {
        config["linux"]["devices"] =
            json!([{ "path": "/dev/a/b/zero", "type": "c", "major": 1, "minor": 5 }]);
    })?;
    ensure_eq!(stat.succeeded()?.json()?["/dev/a/b/zero"]["type"], "c", "type");
    Ok(())
}

/// A device that is no default one: /dev/kmsg's number, under another name.
fn with_kmsg(config: &mut Value, rules: Value) {
    config["linux"]["devices"] =
        json!([{ "path": "/dev/messages", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }]);
    config["linux"]["resources"]["devices"] = rules;
}

fn access_is_denied(case: &Case) -> Verdict {
    let output = case.probed(&["append", "/dev/messages", ""], |config| {
        with_kmsg(config, json!([{ "allow": false, "access": "rwm" }]))
    })?;
    ensure_eq!(output.status, libc::EPERM, "exit status of opening a denied device");
    // The default ones can be used all the same.
    case.probed(&["write", "/dev/full", ""], |_| ())?.succeeded()?;
    Ok(())
}

fn access_is_allowed(case: &Case) -> Verdict {
    let rules = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" }]);
    case.probed(&["append", "/dev/messages", ""], |config| with_kmsg(config, rules))?.succeeded()?;
    Ok(())
}

fn nodes_can_be_made_but_not_used(case: &Case) -> Verdict {
    let mknod = |device: u64| {
        [
            "syscall".into(),
            libc::SYS_mknodat.to_string(),
            "-100".into(),
            "0".into(),
            (0o020_666).to_string(),
            device.to_string(),
        ]
    };
    // A null path is EFAULT, which is after the check of capabilities: enough to tell EPERM from it.
    let words = mknod(libc::makedev(1, 11));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output =
        case.probed(&words, |config| config["process"]["capabilities"]["bounding"] = json!(["CAP_MKNOD"]))?;
    ensure!([libc::EFAULT, libc::EPERM].contains(&output.status), "exit status {}", output.status);
    Ok(())
}

fn devices_in_a_user_namespace(case: &Case) -> Verdict {
    let output = case.probed(&["stat", "/dev/null", "/dev/zero", "/dev/ptmx"], |config| {
        add_user_namespace(config, 1000);
    })?;
    let stat = output.succeeded()?.json()?;
    ensure_eq!(stat["/dev/null"]["minor"], 3, "/dev/null");
    ensure_eq!(stat["/dev/zero"]["minor"], 5, "/dev/zero");
    Ok(())
}

fn bound_dev_is_left_alone(case: &Case) -> Verdict {
    let dev = case.directory.join("dev");
    fs::create_dir(&dev)?;
    nix::sys::stat::mknod(
        &dev.join("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        libc::makedev(1, 3),
    )?;
    let bundle = case.bundle(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev")));
        mounts.push(json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"] }));
        config["process"]["args"] = probe(&["exit", "0"]);
    })?;
    case.run(&bundle)?.succeeded()?;
    let names: Vec<_> = fs::read_dir(&dev)?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq!(names, ["null"], "entries of the host's directory");
    Ok(())
}

fn another_file_at_the_path(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun leave it to mknod(2), or take what is there");
    }
    let device = json!([{ "path": "/etc/thing", "type": "c", "major": 1, "minor": 3 }]);
    let bundle = case.bundle(|config| config["linux"]["devices"] = device)?;
    let path = bundle.rootfs().join("etc/thing");
    let run = || case.call(&["run", "--bundle", crate::case::text(&bundle.path), &case.id]);
    fs::write(&path, "")?;
    run()?.failed_with(&["/linux/devices/0", "/etc/thing"])?;
    case.nothing_left()?;
    fs::remove_file(&path)?;
    let node = |minor| nix::sys::stat::mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR, libc::makedev(1, minor));
    node(5)?;
    run()?.failed_with(&["/linux/devices/0", "/etc/thing"])?;
    case.nothing_left()?;
    fs::remove_file(&path)?;
    // One that matches is what was asked for.
    node(3)?;
    run()?.succeeded()?;
    Ok(())
}

fn rules_in_order(case: &Case) -> Verdict {
    let allow = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" });
    let deny = json!({ "allow": false, "type": "c", "major": 1, "minor": 11, "access": "rw" });
    let all = json!({ "allow": false, "access": "rwm" });
    for (rules, status) in [
        (json!([all, allow]), 0),
        (json!([all, allow, deny]), libc::EPERM),
        (json!([all, deny, allow]), 0),
        (json!([allow, all]), libc::EPERM),
    ] {
        let output =
            case.probed(&["append", "/dev/messages", ""], |config| with_kmsg(config, rules.clone()))?;
        ensure_eq!(output.status, status, "exit status with {rules} (stderr {:?})", output.stderr);
    }
    Ok(())
}
