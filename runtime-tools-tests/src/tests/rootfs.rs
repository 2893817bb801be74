//! The root file system: pivot, propagation, read-only, masks, default links.

use crate::case::{Bundle, Case, Output, probe, text};
use crate::harness::Verdict;
use crate::inside::{find_mount, has_option, mount};
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

tests![
    "config.md, Root: readonly" => read_only_root,
    "config.md, Root: path, absolute" => absolute_root_path,
    "config.md, Root: path" => root_path_through_a_link,
    "pivot_root(2): nothing of the host's is left" => no_mount_of_the_host,
    "config-linux.md, Masked Paths" => masked_paths,
    "config-linux.md, Masked Paths" => masked_directory_is_read_only_and_empty,
    "config-linux.md, Masked Paths: many directories" => many_masked_directories,
    "config-linux.md, Readonly Paths" => read_only_paths,
    "config-linux.md, Masked Paths: one that is not there" => masks_of_what_is_not_there,
    "runtime-linux.md, Dev symbolic links" => device_links,
    "config-linux.md, Rootfs Mount Propagation" => propagation,
    "config-linux.md, Rootfs Mount Propagation: shared, and cwd /" => current_directory_with_shared_propagation,
    "runc --no-pivot" => without_pivot,
    "config-linux.md, Default Filesystems" => default_file_systems,
];

fn read_only_root(case: &Case) -> Verdict {
    let output = case.probed(&["write", "/file", ""], |config| config["root"]["readonly"] = json!(true))?;
    ensure_eq!(output.status, libc::EROFS, "exit status of a write to a read-only root");
    case.probed(&["write", "/dev/shm/file", ""], |config| config["root"]["readonly"] = json!(true))?
        .succeeded()?;
    case.probed(&["write", "/file", ""], |_| ())?.succeeded()?;
    Ok(())
}

fn absolute_root_path(case: &Case) -> Verdict {
    let directory = case.directory.clone();
    case.report(|config| config["root"]["path"] = json!(directory.join("bundle/rootfs")))?;
    Ok(())
}

fn root_path_through_a_link(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["root"]["path"] = json!("link"))?;
    symlink("rootfs", bundle.path.join("link"))?;
    // runc refuses it, crun follows it, the specification is silent: no harm is all that is asked.
    case.run(&bundle)?;
    case.nothing_left()
}

fn no_mount_of_the_host(case: &Case) -> Verdict {
    let report = case.report(|_| ())?;
    let targets: Vec<_> = report["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["target"].as_str())
        .collect();
    for target in &targets {
        let ours = ["/", "/proc", "/dev", "/sys"].contains(target)
            || target.starts_with("/proc/")
            || target.starts_with("/dev/");
        ensure!(ours, "{target} is mounted: {targets:?}");
    }
    ensure_eq!(targets.iter().filter(|target| **target == "/").count(), 1, "mounts at /");
    Ok(())
}

fn masked_paths(case: &Case) -> Verdict {
    let stat = case.probed(&["stat", "/proc/version"], |config| {
        config["linux"]["maskedPaths"] = json!(["/proc/version"])
    })?;
    let stat = stat.succeeded()?.json()?;
    ensure_eq!(stat["/proc/version"]["type"], "c", "type of a masked file");
    ensure_eq!(stat["/proc/version"]["minor"], 3, "minor number of a masked file: /dev/null's");
    let bundle = case.bundle(|config| {
        config["linux"]["maskedPaths"] = json!(["/secret"]);
        config["process"]["args"] = probe(&["read", "/secret"]);
    })?;
    fs::write(bundle.rootfs().join("secret"), "secret")?;
    ensure_eq!(case.run(&bundle)?.succeeded()?.stdout, "", "content of a masked file");
    Ok(())
}

fn masked_directory_is_read_only_and_empty(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["linux"]["maskedPaths"] = json!(["/etc"]);
        config["process"]["args"] = probe(&["list", "/etc"]);
    })?;
    fs::write(bundle.rootfs().join("etc/secret"), "secret")?;
    ensure_eq!(case.run(&bundle)?.succeeded()?.stdout.trim(), "", "entries");
    let output =
        case.probed(&["write", "/etc/new", ""], |config| config["linux"]["maskedPaths"] = json!(["/etc"]))?;
    ensure_eq!(output.status, libc::EROFS, "exit status of a write to a masked directory");
    Ok(())
}

fn many_masked_directories(case: &Case) -> Verdict {
    let paths: Vec<String> = (0..9).map(|number| format!("/secret{number}")).collect();
    for path in [&paths[0], &paths[8]] {
        let bundle = case.bundle(|config| {
            config["linux"]["maskedPaths"] = json!(paths);
            config["process"]["args"] = probe(&["list", path]);
        })?;
        for path in &paths {
            fs::create_dir_all(bundle.path.join("rootfs").join(&path[1..]).join("file"))?;
        }
        ensure_eq!(case.run(&bundle)?.succeeded()?.stdout.trim(), "", "entries of {path}");
        let output = case.probed(&["write", &format!("{path}/new"), ""], |config| {
            config["linux"]["maskedPaths"] = json!(paths);
        })?;
        ensure_eq!(output.status, libc::EROFS, "exit status of a write to {path}");
    }
    Ok(())
}

fn read_only_paths(case: &Case) -> Verdict {
    let change =
        |config: &mut serde_json::Value| config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/etc"]);
    ensure_eq!(
        case.probed(&["write", "/etc/new", ""], change)?.status,
        libc::EROFS,
        "exit status of a write in /etc"
    );
    ensure_eq!(
        case.probed(&["write", "/proc/sys/kernel/hostname", "x"], change)?.status,
        libc::EROFS,
        "exit status of a write in /proc/sys"
    );
    let report = case.report(change)?;
    let sys = mount(&report, "/proc/sys")?;
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        // What /proc's mount doesn't have, runtimes need not add.
        if option == "ro" || has_option(mount(&report, "/proc")?, option) {
            ensure!(has_option(sys, option), "/proc/sys lacks {option}: {sys}");
        }
    }
    Ok(())
}

fn masks_of_what_is_not_there(case: &Case) -> Verdict {
    case.report(|config| {
        config["linux"]["maskedPaths"] = json!(["/no/where", "/proc/nowhere"]);
        config["linux"]["readonlyPaths"] = json!(["/no/where", "/proc/nowhere"]);
    })?;
    Ok(())
}

fn device_links(case: &Case) -> Verdict {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ];
    let mut words = vec!["stat", "/dev/ptmx"];
    words.extend(links.map(|(path, _)| path));
    let stat = case.probed(&words, |_| ())?.succeeded()?.json()?;
    for (path, target) in links {
        ensure_eq!(stat[path]["target"], target, "{path}");
    }
    ensure!(
        ["pts/ptmx", "/dev/pts/ptmx"].iter().any(|target| stat["/dev/ptmx"]["target"] == *target),
        "/dev/ptmx: {}",
        stat["/dev/ptmx"]
    );
    Ok(())
}

/// Runs the bundle on a mount that is shared: a slave needs a master.
fn run_below_shared(case: &Case, bundle: &Bundle) -> Verdict<Output> {
    let mounts = format!("mount --bind {0:?} {0:?} && mount --make-shared {0:?}", case.directory);
    case.call_after_mounts(&mounts, &["run", "--bundle", text(&bundle.path), &case.id])
}

fn propagation(case: &Case) -> Verdict {
    let expected = [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "Master"),
        ("rslave", "Master"),
        ("shared", "Shared"),
        ("rshared", "Shared"),
        ("unbindable", "Unbindable"),
        ("runbindable", "Unbindable"),
    ];
    for (name, field) in expected {
        let bundle = case.bundle(|config| config["linux"]["rootfsPropagation"] = json!(name))?;
        let report = run_below_shared(case, &bundle)?.succeeded()?.json()?;
        let root = mount(&report, "/")?;
        let fields = root["propagation"].to_string();
        ensure!(
            if field.is_empty() { fields == "[]" } else { fields.contains(field) },
            "rootfsPropagation {name}: {fields}"
        );
    }
    Ok(())
}

fn current_directory_with_shared_propagation(case: &Case) -> Verdict {
    for name in ["shared", "rshared", "private", "slave"] {
        let bundle = case.bundle(|config| {
            config["linux"]["rootfsPropagation"] = json!(name);
            config["process"]["args"] = probe(&["list", "."]);
        })?;
        let names = run_below_shared(case, &bundle)?.succeeded()?.stdout;
        ensure!(
            names.contains("probe") && !names.contains("usr"),
            "{name}: the current directory has {names}"
        );
    }
    Ok(())
}

fn without_pivot(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let report =
        case.call(&["run", "--no-pivot", "--bundle", text(&bundle.path), &case.id])?.succeeded()?.json()?;
    ensure!(find_mount(&report, "/proc").is_some(), "no /proc");
    Ok(())
}

fn default_file_systems(case: &Case) -> Verdict {
    let report = case.report(|_| ())?;
    for (target, kind) in
        [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")]
    {
        ensure_eq!(mount(&report, target)?["type"], kind, "type of {target}");
    }
    ensure!(has_option(mount(&report, "/sys")?, "ro"), "/sys is writable");
    ensure!(
        has_option(mount(&report, "/dev/shm")?, "size=65536k"),
        "/dev/shm: {}",
        mount(&report, "/dev/shm")?
    );
    Ok(())
}
