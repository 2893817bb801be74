//! Mounts and their options.

use crate::case::{Case, add_user_namespace, probe, text};
use crate::harness::Verdict;
use crate::inside::{has_option, mount};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

tests![
    "config.md, Mounts: bind" => bind_of_a_directory_and_a_file,
    "config.md, Mounts: the target is made" => bind_makes_its_target,
    "config.md, Mounts: ro" => bind_read_only,
    "config.md, Mounts: rbind, rro" => recursive_read_only,
    "config.md, Mounts: recursive attributes" => recursive_attributes,
    "config.md, Mounts: options" => attributes_of_a_bind,
    "config.md, Mounts: MUST be mounted in the listed order" => order,
    "config.md, Mounts: tmpfs with data" => tmpfs_with_options,
    "config.md, Mounts: tmpcopyup" => copy_up,
    "config.md, Mounts: propagation" => propagation_of_a_mount,
    "config.md, Mounts: idmap, uidMappings" => id_mapped_mount,
    "config.md, Mounts: source relative to the bundle" => relative_source,
    "config.md, Mounts: a type 'bind' or 'none'" => bind_by_option_and_by_type,
    "runc: a destination without the leading slash" => relative_destination,
    "config.md, Mounts: cgroup" => cgroup_mount,
    "config.md, Mounts: option of the file system that it doesn't know" => unknown_option,
    "config.md, Mounts: a directory that is a link" => target_through_a_link,
    "config.md, Mounts: times" => access_time_options,
    "config.md, Mounts: a socket, a fifo" => bind_of_special_files,
    "mount_namespaces(7): a user namespace can't take flags away" => flags_stay_in_a_user_namespace,
    "CVE-2023-25809: cgroups in a user namespace" => cgroups_in_a_user_namespace_are_read_only,
];

fn add(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn bind(source: &std::path::Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

fn bind_of_a_directory_and_a_file(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    let read =
        case.probed(&["read", "/data/file"], |config| add(config, bind(&volume, "/data", &["bind"])))?;
    ensure_eq!(read.succeeded()?.stdout, "content", "the file in the directory");
    let read =
        case.probed(&["read", "/one"], |config| add(config, bind(&volume.join("file"), "/one", &["rbind"])))?;
    ensure_eq!(read.succeeded()?.stdout, "content", "the file");
    case.probed(&["write", "/data/new", "new"], |config| {
        add(config, bind(&volume, "/data", &["bind", "rw"]))
    })?
    .succeeded()?;
    ensure_eq!(fs::read_to_string(volume.join("new"))?, "new", "what the container wrote");
    Ok(())
}

fn bind_makes_its_target(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    let bundle = case.bundle(|config| {
        add(config, bind(&volume, "/a/b/c", &["bind"]));
        add(config, bind(&volume.join("file"), "/d/e/f", &["bind"]));
        config["process"]["args"] = probe(&["read", "/a/b/c/file"]);
    })?;
    case.run(&bundle)?.succeeded()?;
    ensure!(bundle.rootfs().join("a/b/c").is_dir(), "no directory was made");
    ensure!(bundle.rootfs().join("d/e/f").is_file(), "no file was made");
    ensure_eq!(fs::metadata(bundle.rootfs().join("a/b"))?.mode() & 0o777, 0o755, "mode of the directory");
    Ok(())
}

fn bind_read_only(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    let output = case
        .probed(&["write", "/data/new", ""], |config| add(config, bind(&volume, "/data", &["bind", "ro"])))?;
    ensure_eq!(output.status, libc::EROFS, "exit status of a write");
    Ok(())
}

/// Runs the bundle where there is a mount below `volume`, at `volume/below`.
fn with_nested_mount(case: &Case, words: &[&str], options: &[&str]) -> Verdict<crate::case::Output> {
    let volume = case.directory.join("volume");
    fs::create_dir_all(volume.join("below"))?;
    let bundle = case.bundle(|config| {
        add(config, bind(&volume, "/data", options));
        config["process"]["args"] = probe(words);
    })?;
    let mounts = format!("mount -t tmpfs tmpfs {:?}", volume.join("below"));
    case.call_after_mounts(&mounts, &["run", "--bundle", text(&bundle.path), &case.id])
}

fn recursive_read_only(case: &Case) -> Verdict {
    let write = ["write", "/data/below/new", ""];
    with_nested_mount(case, &write, &["rbind", "ro"])?.succeeded()?;
    let output = with_nested_mount(case, &write, &["rbind", "rro"])?;
    ensure_eq!(output.status, libc::EROFS, "exit status of a write with rro");
    Ok(())
}

fn recursive_attributes(case: &Case) -> Verdict {
    let options = ["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnosymfollow"];
    let report = with_nested_mount(case, &["report"], &options)?.succeeded()?.json()?;
    let nested = mount(&report, "/data/below")?;
    for option in ["nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
        ensure!(has_option(nested, option), "the nested mount lacks {option}: {nested}");
    }
    let report = with_nested_mount(case, &["report"], &["rbind"])?.succeeded()?.json()?;
    ensure!(!has_option(mount(&report, "/data/below")?, "noexec"), "noexec without being asked for");
    Ok(())
}

fn attributes_of_a_bind(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    let report = case
        .report(|config| add(config, bind(&volume, "/data", &["bind", "nosuid", "nodev", "noexec", "ro"])))?;
    let data = mount(&report, "/data")?;
    for option in ["nosuid", "nodev", "noexec", "ro"] {
        ensure!(has_option(data, option), "{option} is missing: {data}");
    }
    Ok(())
}

fn order(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    let read = case.probed(&["read", "/tmp/deep/file"], |config| {
        add(config, json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
        add(config, bind(&volume, "/tmp/deep", &["bind"]));
    })?;
    ensure_eq!(read.succeeded()?.stdout, "content", "the file below the tmpfs");
    Ok(())
}

fn tmpfs_with_options(case: &Case) -> Verdict {
    let options = json!(["size=4m", "mode=1711", "uid=7", "gid=8", "nr_inodes=99", "noexec"]);
    let entry = json!({ "destination": "/tmp", "type": "tmpfs", "source": "scratch", "options": options });
    let report = case.report(|config| add(config, entry.clone()))?;
    let tmp = mount(&report, "/tmp")?;
    ensure_eq!(tmp["source"], "scratch", "source");
    for option in ["size=4096k", "nr_inodes=99", "noexec"] {
        ensure!(has_option(tmp, option), "{option} is missing: {tmp}");
    }
    let stat = case.probed(&["stat", "/tmp"], |config| add(config, entry))?.succeeded()?.json()?;
    ensure_eq!(stat["/tmp"]["mode"], 0o1711, "mode");
    ensure_eq!(stat["/tmp"]["uid"], 7, "uid");
    ensure_eq!(stat["/tmp"]["gid"], 8, "gid");
    Ok(())
}

fn copy_up(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        add(
            config,
            json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }),
        );
        config["process"]["args"] = probe(&["stat", "/etc/plain", "/etc/link", "/etc/sub/deep", "/etc/sub"]);
    })?;
    let etc = bundle.rootfs().join("etc");
    fs::create_dir(etc.join("sub"))?;
    fs::write(etc.join("plain"), "12345")?;
    fs::write(etc.join("sub/deep"), "")?;
    fs::set_permissions(etc.join("plain"), Permissions::from_mode(0o640))?;
    chown(etc.join("sub/deep"), Some(12), Some(34))?;
    symlink("plain", etc.join("link"))?;
    let stat = case.run(&bundle)?.succeeded()?.json()?;
    ensure_eq!(stat["/etc/plain"]["size"], 5, "size of the file");
    ensure_eq!(stat["/etc/plain"]["mode"], 0o640, "mode of the file");
    ensure_eq!(stat["/etc/link"]["target"], "plain", "link");
    ensure_eq!(stat["/etc/sub/deep"]["uid"], 12, "owner of the nested file");
    ensure_eq!(stat["/etc/sub"]["type"], "directory", "directory");
    case.probed(&["write", "/etc/plain", "changed"], |config| {
        add(
            config,
            json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }),
        );
    })?
    .succeeded()?;
    ensure_eq!(fs::read_to_string(etc.join("plain"))?, "12345", "the file in the root file system");
    Ok(())
}

fn propagation_of_a_mount(case: &Case) -> Verdict {
    for (option, field) in
        [("shared", "Shared"), ("rshared", "Shared"), ("unbindable", "Unbindable"), ("private", "")]
    {
        let entry = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [option] });
        let report = case.report(|config| add(config, entry))?;
        let fields = mount(&report, "/tmp")?["propagation"].to_string();
        ensure!(if field.is_empty() { fields == "[]" } else { fields.contains(field) }, "{option}: {fields}");
    }
    Ok(())
}

fn id_mapped_mount(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc is older than this property, and crun wants it otherwise");
    }
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "")?;
    chown(volume.join("file"), Some(1000), Some(1001))?;
    let mut entry = bind(&volume, "/data", &["bind", "idmap"]);
    entry["uidMappings"] = json!([{ "containerID": 1000, "hostID": 5000, "size": 1 }]);
    entry["gidMappings"] = json!([{ "containerID": 1001, "hostID": 5001, "size": 1 }]);
    let output = case.probed(&["stat", "/data/file"], |config| add(config, entry))?;
    if output.stderr.contains("may not support id-mapped") {
        crate::skip!("the file system of {:?} has no id-mapped mounts", case.directory);
    }
    let stat = output.succeeded()?.json()?;
    ensure_eq!(stat["/data/file"]["uid"], 5000, "uid");
    ensure_eq!(stat["/data/file"]["gid"], 5001, "gid");
    Ok(())
}

fn relative_source(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        add(
            config,
            json!({ "destination": "/data", "type": "bind", "source": "beside", "options": ["bind"] }),
        );
        config["process"]["args"] = probe(&["read", "/data/file"]);
    })?;
    fs::create_dir(bundle.path.join("beside"))?;
    fs::write(bundle.path.join("beside/file"), "content")?;
    ensure_eq!(case.run(&bundle)?.succeeded()?.stdout, "content", "the file");
    Ok(())
}

fn bind_by_option_and_by_type(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    for entry in [
        json!({ "destination": "/data", "type": "none", "source": volume, "options": ["rbind"] }),
        json!({ "destination": "/data", "source": volume, "options": ["bind"] }),
        json!({ "destination": "/data", "type": "bind", "source": volume }),
    ] {
        if case.runtime.name != "damda" && entry["options"].is_null() {
            continue; // runc and crun need the option
        }
        let read = case.probed(&["read", "/data/file"], |config| add(config, entry.clone()))?;
        ensure_eq!(read.succeeded()?.stdout, "content", "with {entry}");
    }
    Ok(())
}

fn relative_destination(case: &Case) -> Verdict {
    let output = case.probed(&["write", "/tmp/file", ""], |config| {
        add(config, json!({ "destination": "tmp", "type": "tmpfs", "source": "tmpfs" }));
    })?;
    output.succeeded()?;
    Ok(())
}

fn cgroup_mount(case: &Case) -> Verdict {
    for namespace in [false, true] {
        let output = case.probed(&["list", "/sys/fs/cgroup"], |config| {
            add(config, json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"] }));
            if namespace {
                config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
            }
        })?;
        let names = output.succeeded()?.stdout;
        ensure!(names.contains("memory") || names.contains("cgroup.procs"), "entries: {names:?}");
        let output = case.probed(&["write", "/sys/fs/cgroup/memory/cgroup.procs", "1"], |config| {
            add(config, json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
            if namespace {
                config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
            }
        })?;
        ensure!(
            [libc::EROFS, libc::EACCES, libc::ENOENT].contains(&output.status),
            "a write to a read-only cgroup: {}",
            output.status
        );
    }
    Ok(())
}

fn unknown_option(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        add(config, json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuchoption=1"] }));
    })?;
    let words: &[&str] = if case.runtime.name == "damda" { &["/mounts/6", "nosuchoption"] } else { &[] };
    case.run(&bundle)?.failed_with(words)?;
    case.nothing_left()
}

fn target_through_a_link(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        add(config, json!({ "destination": "/var/run/it", "type": "tmpfs", "source": "tmpfs" }));
        config["process"]["args"] = probe(&["stat", "/run/it"]);
    })?;
    fs::create_dir_all(bundle.rootfs().join("run"))?;
    fs::create_dir_all(bundle.rootfs().join("var"))?;
    symlink("/run", bundle.rootfs().join("var/run"))?;
    let stat = case.run(&bundle)?.succeeded()?.json()?;
    ensure_eq!(stat["/run/it"]["type"], "directory", "/run/it");
    ensure!(!std::path::Path::new("/run/it").exists(), "/run/it was made on the host");
    Ok(())
}

fn access_time_options(case: &Case) -> Verdict {
    for option in ["noatime", "relatime", "nodiratime"] {
        let entry = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [option] });
        let report = case.report(|config| add(config, entry))?;
        ensure!(has_option(mount(&report, "/tmp")?, option), "{option}: {}", mount(&report, "/tmp")?);
    }
    let report = case.report(|config| {
        add(
            config,
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["strictatime"] }),
        );
    })?;
    ensure!(!has_option(mount(&report, "/tmp")?, "relatime"), "strictatime: {}", mount(&report, "/tmp")?);
    Ok(())
}

fn bind_of_special_files(case: &Case) -> Verdict {
    let socket = case.directory.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let stat =
        case.probed(&["stat", "/run/socket"], |config| add(config, bind(&socket, "/run/socket", &["bind"])))?;
    ensure_eq!(stat.succeeded()?.json()?["/run/socket"]["type"], "socket", "type");
    Ok(())
}

fn flags_stay_in_a_user_namespace(case: &Case) -> Verdict {
    let volume = case.directory.join("volume");
    fs::create_dir_all(&volume)?;
    let bundle = case.bundle(|config| {
        add_user_namespace(config, 1000);
        add(config, bind(&volume, "/data", &["rbind", "nodev"]));
    })?;
    fs::create_dir_all(bundle.rootfs().join("data"))?;
    let mounts =
        format!("mount --bind {volume:?} {volume:?} && mount -o remount,bind,ro,nosuid,noexec {volume:?}");
    let output = case.call_after_mounts(&mounts, &["run", "--bundle", text(&bundle.path), &case.id])?;
    if output.status != 0 && case.runtime.name != "damda" {
        return Ok(()); // runc refuses the mount: no harm
    }
    let report = output.succeeded()?.json()?;
    for option in ["ro", "nosuid", "noexec", "nodev"] {
        ensure!(
            has_option(mount(&report, "/data")?, option),
            "{option} is gone: {}",
            mount(&report, "/data")?
        );
    }
    Ok(())
}

fn cgroups_in_a_user_namespace_are_read_only(case: &Case) -> Verdict {
    let report = case.report(|config| {
        add_user_namespace(config, 1000);
        add(config, json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] }));
    })?;
    let mounts = report["mounts"].as_array().into_iter().flatten();
    for mount in mounts.filter(|mount| mount["type"].as_str().is_some_and(|kind| kind.starts_with("cgroup")))
    {
        ensure!(has_option(mount, "ro"), "writable: {mount}");
    }
    Ok(())
}
