//! The options that every runtime has to know (config.md, "Linux mount options").

use crate::case::{Case, Output, probe, text};
use crate::harness::Verdict;
use crate::inside::{has_option, mount};
use crate::{ensure, ensure_eq, tests};
use nix::unistd::chown;
use serde_json::{Value, json};
use std::fs;

tests![
    "config.md, Linux mount options: those of mount(8)" => options_of_a_file_system,
    "config.md, Linux mount options: the later one counts" => opposites,
    "config.md, Linux mount options: remount" => remount,
    "config.md, Linux mount options: bind, rbind" => depth_of_a_bind,
    "config.md, Linux mount options: propagation" => propagation,
    "config.md, Linux mount options: ridmap" => recursive_id_map,
    "config.md, Linux mount options: idmap without mappings MUST give an error" => id_map_without_mappings,
    "config.md, POSIX-platform Mounts: uidMappings and gidMappings go together" => mappings_go_together,
];

fn add(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn tmpfs(options: &[&str]) -> Value {
    json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options })
}

/// The tmpfs that was made with these options, as the container sees it.
fn made_with(case: &Case, options: &[&str]) -> Verdict<Value> {
    let report = case.report(|config| add(config, tmpfs(options)))?;
    Ok(mount(&report, "/tmp")?.clone())
}

fn options_of_a_file_system(case: &Case) -> Verdict {
    for option in [
        "dirsync",
        "lazytime",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "nosuid",
        "relatime",
        "ro",
        "sync",
    ] {
        let made = made_with(case, &[option])?;
        ensure!(has_option(&made, option), "{option} is missing: {made}");
    }
    ensure!(!has_option(&made_with(case, &["strictatime"])?, "relatime"), "strictatime: relatime is set");
    // The kernel shows nothing of these.
    for option in ["defaults", "iversion", "loud", "noiversion", "norelatime", "silent"] {
        if case.runtime.name != "damda" && ["defaults", "iversion"].contains(&option) {
            continue; // runc 1.1 and crun 1.8 pass these on to tmpfs, which knows neither
        }
        made_with(case, &[option])?;
    }
    Ok(())
}

fn opposites(case: &Case) -> Verdict {
    for (option, taken_back_by) in [
        ("sync", "async"),
        ("noatime", "atime"),
        ("nodev", "dev"),
        ("nodiratime", "diratime"),
        ("noexec", "exec"),
        ("lazytime", "nolazytime"),
        ("ro", "rw"),
        ("nosuid", "suid"),
    ] {
        if case.runtime.name == "crun" && taken_back_by == "async" {
            continue; // crun 1.8 leaves it at sync
        }
        let made = made_with(case, &[option, taken_back_by])?;
        ensure!(!has_option(&made, option), "{option} is set in spite of {taken_back_by}: {made}");
    }
    let made = made_with(case, &["strictatime", "nostrictatime"])?;
    ensure!(has_option(&made, "relatime"), "strictatime in spite of nostrictatime: {made}");
    Ok(())
}

fn remount(case: &Case) -> Verdict {
    let report = case.report(|config| {
        add(config, tmpfs(&["nosuid"]));
        add(config, tmpfs(&["remount", "ro", "nosuid"]));
    })?;
    let mounts = report["mounts"].as_array().into_iter().flatten();
    ensure_eq!(mounts.filter(|mount| mount["target"] == "/tmp").count(), 1, "mounts at /tmp");
    ensure!(has_option(mount(&report, "/tmp")?, "ro"), "it isn't read-only: {}", mount(&report, "/tmp")?);
    Ok(())
}

/// Runs the probe where /data is a directory of the host with a mount below it, which is shared with
/// its parent.
fn with_volume(case: &Case, words: &[&str], options: &[&str]) -> Verdict<Output> {
    let volume = case.directory.join("volume");
    fs::create_dir_all(volume.join("below"))?;
    let bundle = case.bundle(|config| {
        add(config, json!({ "destination": "/data", "type": "bind", "source": volume, "options": options }));
        config["process"]["args"] = probe(words);
    })?;
    let volume = text(&volume);
    let mounts = format!(
        "mount -t tmpfs tmpfs {volume} && mount --make-shared {volume} && mkdir {volume}/below && \
         mount -t tmpfs tmpfs {volume}/below && mount --make-shared {volume}/below && echo inner >{volume}/below/file"
    );
    case.call_after_mounts(&mounts, &["run", "--bundle", text(&bundle.path), &case.id])
}

fn depth_of_a_bind(case: &Case) -> Verdict {
    let read = ["read", "/data/below/file"];
    ensure_eq!(with_volume(case, &read, &["bind"])?.status, libc::ENOENT, "bind: the mount below it");
    ensure_eq!(
        with_volume(case, &read, &["rbind"])?.succeeded()?.stdout,
        "inner\n",
        "rbind: the mount below it"
    );
    Ok(())
}

fn propagation(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun 1.8 makes what is bound private again");
    }
    for (option, field, recursive) in [
        ("private", "", false),
        ("rprivate", "", true),
        ("shared", "Shared", false),
        ("rshared", "Shared", true),
        ("slave", "Master", false),
        ("rslave", "Master", true),
        ("unbindable", "Unbindable", false),
        ("runbindable", "Unbindable", true),
    ] {
        let report = with_volume(case, &["report"], &["rbind", option])?.succeeded()?.json()?;
        for path in ["/data", "/data/below"] {
            let fields = mount(&report, path)?["propagation"].to_string();
            let is = if field.is_empty() { fields == "[]" } else { fields.contains(field) };
            ensure!(is || (path != "/data" && !recursive), "{option}: {path} is {fields}");
        }
    }
    Ok(())
}

fn mapped(volume: &std::path::Path, option: &str) -> Value {
    json!({ "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", option],
        "uidMappings": [{ "containerID": 0, "hostID": 5000, "size": 1 }],
        "gidMappings": [{ "containerID": 0, "hostID": 5000, "size": 1 }] })
}

fn recursive_id_map(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc is older than this property, and crun wants it otherwise");
    }
    let volume = case.directory.join("volume");
    fs::create_dir_all(volume.join("below"))?;
    chown(&volume, Some(0.into()), Some(0.into()))?;
    for (option, below) in [("idmap", 0), ("ridmap", 5000)] {
        let bundle = case.bundle(|config| {
            add(config, mapped(&volume, option));
            config["process"]["args"] = probe(&["stat", "/data", "/data/below"]);
        })?;
        let source = text(&volume);
        let mounts = format!("mount --bind {source} {source}/below");
        let output = case.call_after_mounts(&mounts, &["run", "--bundle", text(&bundle.path), &case.id])?;
        if output.stderr.contains("may not support id-mapped") {
            crate::skip!("the file system of {:?} has no id-mapped mounts", case.directory);
        }
        let stat = output.succeeded()?.json()?;
        ensure_eq!(stat["/data"]["uid"], 5000, "{option}: uid of /data");
        ensure_eq!(stat["/data/below"]["uid"], below, "{option}: uid of the mount below it");
    }
    Ok(())
}

fn id_map_without_mappings(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc is older than this property, and crun's is another");
    }
    for option in ["idmap", "ridmap"] {
        super::errors::refused(case, &["/mounts/6", "idmap"], |config| {
            let entry = json!({ "destination": "/data", "type": "bind", "source": "/tmp", "options": ["bind", option] });
            add(config, entry);
        })?;
    }
    Ok(())
}

fn mappings_go_together(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    for field in ["uidMappings", "gidMappings"] {
        super::errors::refused(case, &["/mounts/6", field], |config| {
            let mut entry = mapped(&case.directory, "bind");
            entry.as_object_mut().unwrap().remove(field);
            add(config, entry);
        })?;
    }
    Ok(())
}
