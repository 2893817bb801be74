//! Attacks. Each is mounted, and must fail with nothing written outside of the container.

use crate::case::{Case, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

tests![
    "CVE-2019-5736: the runtime's binary through /proc/self/exe" => the_binary_is_out_of_reach,
    "CVE-2019-5736, by exec" => the_binary_is_out_of_reach_of_exec,
    "CVE-2024-21626: cwd through a leaked descriptor" => working_directory_of_the_host,
    "CVE-2019-19921, CVE-2023-27561: /proc is a link" => proc_is_a_link,
    "CVE-2019-18837, CVE-2021-30465: a link as a mount's target" => mount_target_is_a_link,
    "CVE-2025-31133: /dev/null is a link" => null_is_a_link,
    "CVE-2025-52565, CVE-2026-41579: /dev is a link" => dev_is_a_link,
    "CVE-2026-88264: no /dev mount, and links below /dev" => links_in_dev,
    "CVE-2025-52881: a sysctl written elsewhere" => sysctl_through_a_link,
    "CVE-2022-29162: inheritable capabilities" => no_inheritable_capabilities,
    "CVE-2023-25809: the host's cgroups" => cgroups_of_the_host_are_read_only,
    "CVE-2024-25621: state directories" => state_is_private,
    "delete removes nothing outside of --root" => state_directory_is_a_link,
    "delete --force of a damaged state" => damaged_state,
    "/etc/passwd of the container: a fifo, a link, a long line" => hostile_passwd,
    "control characters in messages" => control_characters,
    "the environment of the host" => no_environment_of_the_host,
    "CVE-2016-9962: the process can't be traced while it has the host's descriptors" => exec_is_not_traceable,
];

/// A directory that the attack is to reach, and whether it did.
fn prize(case: &Case) -> Verdict<PathBuf> {
    let prize = case.directory.join("prize");
    fs::create_dir(&prize)?;
    fs::write(prize.join("file"), "untouched")?;
    Ok(prize)
}

fn untouched(prize: &std::path::Path) -> Verdict {
    let names: Vec<_> = fs::read_dir(prize)?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq!(names, ["file"], "entries of the host's directory");
    ensure_eq!(fs::read_to_string(prize.join("file"))?, "untouched", "the host's file");
    Ok(())
}

fn binary(case: &Case) -> Verdict<(PathBuf, Vec<u8>)> {
    let output = std::process::Command::new("sh")
        .args(["-c", "command -v \"$0\"", text(&case.runtime.binary)])
        .output()?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let content = fs::read(&path)?;
    Ok((path, content))
}

/// The container's program is /proc/self/exe, that is the runtime, and a hostile interpreter of it
/// would have it open: here the file is reached and written through the kernel's own link.
fn the_binary_is_out_of_reach(case: &Case) -> Verdict {
    let (path, before) = binary(case)?;
    let bundle = case.bundle(|config| config["process"]["args"] = json!(["/proc/self/exe", "--version"]))?;
    case.run(&bundle)?;
    // The runtime's process as the container sees it, while it waits in start's gate.
    case.create(|config| {
        config["process"]["args"] = probe(&["exit", "0"]);
        config["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    })?;
    let pid = case.state()?["pid"].to_string();
    let written = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/exe"));
    ensure!(written.is_err(), "the binary can be opened for writing through init's /proc/PID/exe");
    let link = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(
        link != path || fs::metadata(format!("/proc/{pid}/exe")).is_err() || written.is_err(),
        "exe is {link:?}"
    );
    ensure!(fs::read(&path)? == before, "the binary has changed");
    Ok(())
}

fn the_binary_is_out_of_reach_of_exec(case: &Case) -> Verdict {
    let (path, before) = binary(case)?;
    case.start(|_| ())?;
    let output = case.call(&["exec", &case.id, "/proc/self/exe", "--version"])?;
    ensure!(!output.stdout.contains("rtt"), "output: {}", output.stdout);
    ensure!(fs::read(&path)? == before, "the binary has changed");
    Ok(())
}

fn working_directory_of_the_host(case: &Case) -> Verdict {
    for number in 3..16 {
        let bundle = case.bundle(|config| {
            config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
            config["process"]["args"] = probe(&["list", "../../../.."]);
        })?;
        let output = case.run(&bundle)?;
        // A directory of the container's own does no harm.
        ensure!(
            !output.stdout.contains("usr"),
            "cwd /proc/self/fd/{number} leads to the host: {:?}",
            output.stdout
        );
        case.nothing_left()?;
    }
    Ok(())
}

fn proc_is_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    let bundle = case.bundle(|_| ())?;
    fs::remove_dir(bundle.rootfs().join("proc"))?;
    symlink(&prize, bundle.rootfs().join("proc"))?;
    case.run(&bundle)?.failed_with(&[])?;
    fs::remove_file(bundle.rootfs().join("proc"))?;
    symlink("tmp", bundle.rootfs().join("proc"))?;
    let output = case.run(&bundle)?;
    ensure!(output.status != 0, "a /proc that is a link inside the root was accepted");
    untouched(&prize)?;
    case.nothing_left()
}

fn mount_target_is_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    for link in [
        prize.clone(),
        PathBuf::from("../../prize"),
        PathBuf::from("../../../../../../../../").join(prize.strip_prefix("/")?),
    ] {
        let bundle = case.bundle(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({ "destination": "/trap/below", "type": "tmpfs", "source": "tmpfs" }));
            mounts.push(json!({ "destination": "/trap/file", "type": "bind", "source": "/etc/hosts", "options": ["bind"] }));
        })?;
        symlink(&link, bundle.rootfs().join("trap"))?;
        let _ = case.run(&bundle)?;
        untouched(&prize)?;
        case.nothing_left()?;
        fs::remove_file(bundle.rootfs().join("trap"))?;
    }
    Ok(())
}

fn null_is_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    let bundle = case.bundle(|config| {
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev")));
        config["process"]["args"] = probe(&["write", "/proc/kcore", "changed"]);
    })?;
    symlink(prize.join("file"), bundle.rootfs().join("dev/null"))?;
    let _ = case.run(&bundle)?;
    untouched(&prize)?;
    // The link in place of null must not be what masks.
    let _ = fs::remove_file(bundle.rootfs().join("dev/zero"));
    symlink("/proc/sysrq-trigger", bundle.rootfs().join("dev/zero"))?;
    let _ = case.run(&bundle)?;
    case.nothing_left()
}

fn dev_is_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    for link in [prize.as_path(), std::path::Path::new("../../prize")] {
        let bundle = case
            .bundle(|config| config["linux"]["devices"] = json!([{ "path": "/dev/thing", "type": "p" }]))?;
        fs::remove_dir(bundle.rootfs().join("dev"))
            .or_else(|_| fs::remove_file(bundle.rootfs().join("dev")))?;
        symlink(link, bundle.rootfs().join("dev"))?;
        let _ = case.run(&bundle)?;
        untouched(&prize)?;
        case.nothing_left()?;
        fs::remove_file(bundle.rootfs().join("dev"))?;
    }
    Ok(())
}

fn links_in_dev(case: &Case) -> Verdict {
    let prize = prize(case)?;
    for name in ["console", "null", "ptmx", "pts", "fd", "stdin", "tty", "shm", "thing"] {
        let bundle = case.bundle(|config| {
            config["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|mount| !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev")));
            config["linux"]["devices"] =
                json!([{ "path": "/dev/thing", "type": "c", "major": 1, "minor": 3 }]);
        })?;
        for target in [prize.join("new"), PathBuf::from("../../../prize/new")] {
            symlink(&target, bundle.rootfs().join("dev").join(name))?;
            let _ = case.run(&bundle)?;
            untouched(&prize)?;
            case.nothing_left()?;
            fs::remove_dir_all(bundle.rootfs().join("dev"))?;
            fs::create_dir(bundle.rootfs().join("dev"))?;
        }
    }
    Ok(())
}

fn sysctl_through_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    // A hostile image in place of /proc/sys, where the configuration mounts no /proc.
    let bundle = case.bundle(|config| {
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    })?;
    fs::create_dir_all(bundle.rootfs().join("proc/sys/net/ipv4"))?;
    symlink(prize.join("file"), bundle.rootfs().join("proc/sys/net/ipv4/ip_forward"))?;
    let _ = case.run(&bundle)?;
    untouched(&prize)?;
    case.nothing_left()
}

fn no_inheritable_capabilities(case: &Case) -> Verdict {
    ensure_eq!(case.report(|_| ())?["capabilities"]["inheritable"], json!([]), "inheritable");
    Ok(())
}

fn cgroups_of_the_host_are_read_only(case: &Case) -> Verdict {
    // Without a cgroup namespace, and without ro.
    let bundle = case.bundle(|config| {
        config["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
        config["process"]["args"] = probe(&["mkdir", "/sys/fs/cgroup/pids/rtt-escaped"]);
    })?;
    let output = case.run(&bundle)?;
    ensure!(output.status != 0, "a cgroup was made through a read-only mount");
    ensure!(
        !std::path::Path::new("/sys/fs/cgroup/pids/rtt-escaped").exists(),
        "a cgroup was made on the host"
    );
    Ok(())
}

fn state_is_private(case: &Case) -> Verdict {
    use std::os::unix::fs::MetadataExt;
    case.create(|_| ())?;
    let directory = case.state_directory().join(&case.id);
    let mode = |path: &std::path::Path| fs::metadata(path).map(|metadata| metadata.mode() & 0o777);
    let mine = mode(&directory)? & 0o077;
    let root = mode(&case.state_directory())? & 0o077;
    ensure!(mine & 0o066 == 0 || root == 0, "others may enter the state: {mine:o} in {root:o}");
    Ok(())
}

fn state_directory_is_a_link(case: &Case) -> Verdict {
    let prize = prize(case)?;
    fs::create_dir_all(case.state_directory())?;
    let link = case.state_directory().join(&case.id);
    symlink(&prize, &link)?;
    let _ = case.call(&["delete", "--force", &case.id])?;
    let _ = case.call(&["state", &case.id])?;
    untouched(&prize)?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    Ok(())
}

fn damaged_state(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun can't delete a container with a damaged state");
    }
    for damage in ["", "{", "{\"id\": 7}", "nonsense"] {
        case.start(|_| ())?;
        for entry in fs::read_dir(case.state_directory().join(&case.id))?.flatten() {
            if entry.file_type()?.is_file() {
                fs::write(entry.path(), damage)?;
            }
        }
        case.call(&["state", &case.id])?.failed_with(&[])?;
        let pids = case.cgroups();
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
        // Without the state nobody can know of the cgroup: but what can be known must be used.
        for cgroup in pids {
            let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|line| line.parse().ok()) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
            }
            crate::case::until(
                "an empty cgroup",
                || Ok(!cgroup.exists() || fs::remove_dir(&cgroup).is_ok()),
            )?;
        }
        case.nothing_left()?;
    }
    Ok(())
}

fn hostile_passwd(case: &Case) -> Verdict {
    let secret = case.directory.join("secret");
    fs::write(&secret, "root:x:0:0::/stolen:/bin/sh\n")?;
    let bundle = case.bundle(|_| ())?;
    let passwd = bundle.rootfs().join("etc/passwd");
    symlink(&secret, &passwd)?;
    let home = |output: crate::case::Output| -> Verdict<Value> {
        Ok(if output.status == 0 { output.json()?["environment"]["HOME"].clone() } else { Value::Null })
    };
    let found = home(case.run(&bundle)?)?;
    ensure!(found != "/stolen", "HOME is from a file of the host");
    fs::remove_file(&passwd)?;
    if case.runtime.name != "damda" {
        return Ok(()); // runc and crun hang on a fifo
    }
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644))?;
    let _ = case.run(&bundle)?;
    fs::remove_file(&passwd)?;
    fs::write(&passwd, vec![b'a'; 64 << 20])?;
    let _ = case.run(&bundle)?;
    case.nothing_left()
}

fn control_characters(case: &Case) -> Verdict {
    let bundle =
        case.bundle(|config| config["process"]["args"] = json!(["/no\u{1b}[31m\nlevel=error such"]))?;
    let output = case.run(&bundle)?.failed_with(&[])?;
    ensure!(!output.stderr.contains('\u{1b}'), "an escape sequence in {:?}", output.stderr);
    ensure_eq!(output.stderr.trim().lines().count(), 1, "lines of {:?}", output.stderr);
    Ok(())
}

fn no_environment_of_the_host(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let mut command = case.command(&["run", "--bundle", text(&bundle.path), &case.id]);
    command.env("SECRET_OF_THE_HOST", "1");
    let report = case.finish(command)?.succeeded()?.json()?;
    ensure!(report["environment"]["SECRET_OF_THE_HOST"].is_null(), "the host's environment is inside");
    Ok(())
}

/// exec's process, while it is still the runtime's, in the container's pid namespace: one of the
/// container's with CAP_SYS_PTRACE must not read its descriptors. The window is short, so its end is
/// held: the program is a fifo's worth of waiting in a paused container.
fn exec_is_not_traceable(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun has no --ignore-paused to hold the window open");
    }
    case.start(|config| {
        let set = json!(["CAP_SYS_PTRACE"]);
        config["process"]["capabilities"] = json!({ "bounding": set, "effective": set, "permitted": set });
    })?;
    for _ in 0..5 {
        let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
        ensure_eq!(report["descriptors"].as_object().map(serde_json::Map::len), Some(3), "descriptors");
    }
    Ok(())
}
