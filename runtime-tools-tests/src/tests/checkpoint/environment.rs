//! The mounts, cgroups and namespaces of a restored container.

use super::{checkpoint, count, counting, images, needs_criu, quiet, restore, restoring, went_on};
use crate::case::{Case, add_user_namespace, probe, text, until};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq};
use serde_json::json;
use std::fs;
use std::process::Command;

pub(super) fn bind_mounts(case: &Case) -> Verdict {
    let (outer, inner) = (case.directory.join("outer"), case.directory.join("inner"));
    fs::create_dir_all(&outer)?;
    fs::create_dir_all(&inner)?;
    fs::write(case.directory.join("file"), "a file")?;
    fs::write(inner.join("there"), "nested")?;
    let bundle = counting(case, |config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        let bind = |source: &str, destination: &str| {
            let source = case.directory.join(source);
            json!({ "source": text(&source), "destination": destination, "type": "bind", "options": ["bind"] })
        };
        let mut read_only = bind("file", "/etc/file");
        read_only["options"] = json!(["bind", "ro"]);
        mounts.extend([bind("outer", "/test"), bind("inner", "/test/for/nested"), read_only]);
    })?;
    checkpoint(case, &[])?;
    // The mount points are made anew.
    fs::remove_dir_all(outer.join("for"))?;
    fs::remove_file(bundle.rootfs().join("etc/file"))?;
    restore(case, &bundle, &[])?;
    for (path, content) in [("/test/for/nested/there", "nested"), ("/etc/file", "a file")] {
        ensure_eq!(case.exec(&[], &["read", path])?.succeeded()?.stdout, content, "{path}");
    }
    ensure_eq!(
        case.exec(&[], &["write", "/etc/file", "x"])?.status,
        libc::EROFS,
        "writing to a read-only mount"
    );
    case.exec(&[], &["write", "/test/new", "new"])?.succeeded()?;
    ensure_eq!(fs::read_to_string(outer.join("new"))?, "new", "what was written");
    Ok(())
}

pub(super) fn bind_mounts_to_links(case: &Case) -> Verdict {
    fs::create_dir_all(case.directory.join("bundle/rootfs/real/conf"))?;
    std::os::unix::fs::symlink("/real/conf", case.directory.join("bundle/rootfs/conf"))?;
    let source = case.directory.join("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("there"), "yes")?;
    let bundle = counting(case, |config| {
        let mount = json!({ "source": text(&source), "destination": "/conf", "options": ["bind"] });
        config["mounts"].as_array_mut().expect("mounts").push(mount);
    })?;
    for _ in 0..2 {
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        ensure_eq!(case.exec(&[], &["read", "/real/conf/there"])?.succeeded()?.stdout, "yes", "the file");
    }
    Ok(())
}

pub(super) fn cgroups(case: &Case) -> Verdict {
    crate::machine::needs_controller("pids")?;
    let bundle = counting(case, |config| config["linux"]["resources"]["pids"] = json!({ "limit": 77 }))?;
    checkpoint(case, &[])?;
    restore(case, &bundle, &[])?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "77", "pids.max");
    let pid = case.state()?["pid"].to_string();
    ensure!(
        case.cgroup_file("pids", "cgroup.procs")?.lines().any(|line| line == pid),
        "it isn't in its cgroup"
    );
    case.call(&["pause", &case.id])?.succeeded()?;
    ensure_eq!(case.state()?["status"], "paused", "status");
    case.call(&["resume", &case.id])?.succeeded()?;
    case.call(&["update", "--pids-limit", "78", &case.id])?.succeeded()?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "78", "pids.max");
    Ok(())
}

pub(super) fn another_cgroup(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &["--manage-cgroups-mode", "ignore"])?;
    let before = count(&bundle)?;
    let other = case.another_id("other");
    bundle.change(|config| config["linux"]["cgroupsPath"] = json!(format!("/{other}")))?;
    let rest = ["--detach", "--manage-cgroups-mode", "ignore", &other];
    quiet(case, &restoring(case, &bundle, &rest))?;
    went_on(&bundle, &before)?;
    let state = case.call(&["state", &other])?.succeeded()?.json()?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    ensure!(own.contains(&format!("/{other}\n")), "its cgroup: {own:?}");
    let left = case.cgroups().into_iter().find(|path| path.ends_with(&case.id));
    ensure!(left.is_none(), "the old cgroup is there: {left:?}");
    Ok(())
}

/// With a namespace of their own and without.
pub(super) fn mounted_cgroups(case: &Case) -> Verdict {
    for own in [false, true] {
        let bundle = counting(case, |config| {
            let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
            config["mounts"].as_array_mut().expect("mounts").push(mount);
            if own {
                config["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("namespaces")
                    .push(json!({ "type": "cgroup" }));
            }
        })?;
        // Without those of other tests.
        let list = || -> Verdict<Vec<String>> {
            let all = case.exec(&[], &["list", "/sys/fs/cgroup"])?.succeeded()?.stdout;
            Ok(all.lines().filter(|name| !name.starts_with("rtt-")).map(str::to_owned).collect())
        };
        let before = list()?;
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        ensure_eq!(list()?, before, "files of /sys/fs/cgroup (namespace: {own})");
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
        fs::remove_dir_all(images(case))?;
        fs::remove_file(bundle.rootfs().join("tmp/count"))?;
    }
    Ok(())
}

pub(super) fn joined_network(case: &Case) -> Verdict {
    needs_criu(case)?;
    let mut holder = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn()?;
    let verdict = in_network(case, holder.id());
    let _ = holder.kill();
    holder.wait()?;
    verdict
}

fn in_network(case: &Case, holder: u32) -> Verdict {
    let path = format!("/proc/{holder}/ns/net");
    let own = fs::read_link("/proc/self/ns/net")?;
    until("the namespace", || Ok(fs::read_link(&path)? != own))?;
    let bundle = counting(case, |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    })?;
    checkpoint(case, &[])?;
    let before = count(&bundle)?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)?;
    let joined = fs::read_link(format!("/proc/{}/ns/net", case.state()?["pid"]))?;
    ensure_eq!(joined, fs::read_link(&path)?, "network namespace");
    Ok(())
}

pub(super) fn user_namespace(case: &Case) -> Verdict {
    needs_criu(case)?;
    let tmp = case.directory.join("bundle/rootfs/tmp");
    fs::create_dir_all(&tmp)?;
    std::os::unix::fs::chown(&tmp, Some(100_000), Some(100_000))?;
    let bundle = counting(case, |config| add_user_namespace(config, 65_536))?;
    checkpoint(case, &[])?;
    let before = count(&bundle)?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)?;
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["hostname"], "vessel", "host name");
    Ok(())
}

pub(super) fn systemd(case: &Case) -> Verdict {
    crate::machine::needs_file("/run/systemd/system", "systemd")?;
    needs_criu(case)?;
    let bundle = case.bundle(|config| {
        config["process"]["args"] = probe(&["count", "/tmp/count"]);
        config["linux"]["cgroupsPath"] = json!(format!("system.slice:rtt:{}", case.id));
    })?;
    let images = images(case);
    let (path, id) = (text(&bundle.path), case.id.as_str());
    quiet(case, &["--systemd-cgroup", "run", "--detach", "--bundle", path, id])?;
    until("the program", || Ok(bundle.rootfs().join("tmp/count").exists()))?;
    quiet(case, &["--systemd-cgroup", "checkpoint", "--image-path", text(&images), id])?;
    let before = count(&bundle)?;
    let restore = restoring(case, &bundle, &["--detach", id]);
    quiet(case, &[&["--systemd-cgroup".to_owned()], &restore[..]].concat())?;
    went_on(&bundle, &before)?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", case.state()?["pid"]))?;
    ensure!(own.contains(&format!("/system.slice/rtt-{id}.scope")), "its cgroup: {own:?}");
    case.call(&["delete", "--force", id])?.succeeded()?;
    case.nothing_left()
}
