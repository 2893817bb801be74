//! Where a container's cgroups are, whose they are, and in which state they may be found.

use crate::case::{Case, add_user_namespace, probe, text};
use crate::harness::Verdict;
use crate::machine::{self, Cgroups};
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

tests![
    "config-linux.md, Cgroups Path: the same value is the same place" => same_place_again,
    "config-linux.md, Control groups: a frozen cgroup MUST give an error" => frozen,
    "config-linux.md, Cgroup ownership" => owner,
    "config-linux.md, Cgroup ownership: files of the list that aren't there" => owner_of_files_that_are_not_there,
    "config-linux.md, Cgroup ownership: no list of the files" => owner_without_the_list,
];

/// The lines of /proc/PID/cgroup of the container that is running.
fn places(case: &Case, id: &str) -> Verdict<String> {
    let state = case.call(&["state", id])?.succeeded()?.json()?;
    Ok(fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?)
}

fn same_place_again(case: &Case) -> Verdict {
    for path in [format!("/{}", case.id), case.id.clone()] {
        let mut found = Vec::new();
        for _ in 0..2 {
            case.start(|config| config["linux"]["cgroupsPath"] = json!(path))?;
            found.push(places(case, &case.id)?);
            case.call(&["delete", "--force", &case.id])?.succeeded()?;
        }
        ensure!(found[0].contains(&case.id), "{path} isn't where the container is: {}", found[0]);
        ensure_eq!(found[1], found[0], "cgroups of the second container with the path {path}");
    }
    Ok(())
}

/// A cgroup with the file that freezes it; both are gone at the end.
struct Frozen {
    directory: PathBuf,
    file: PathBuf,
    thaw: &'static str,
}

impl Frozen {
    fn make(case: &Case) -> Verdict<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (directory, file, freeze, thaw) = match machine::cgroups() {
            Cgroups::V1 => (root.join("freezer").join(&case.id), "freezer.state", "FROZEN", "THAWED"),
            Cgroups::V2 => (root.join(&case.id), "cgroup.freeze", "1", "0"),
        };
        fs::create_dir(&directory)?;
        let made = Frozen { file: directory.join(file), directory, thaw };
        fs::write(&made.file, freeze)?;
        Ok(made)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, self.thaw);
        let _ = fs::remove_dir(&self.directory);
    }
}

fn frozen(case: &Case) -> Verdict {
    if machine::cgroups() == Cgroups::V1 {
        machine::needs_controller("freezer")?;
    }
    if case.runtime.name == "crun" {
        crate::skip!("crun doesn't look, and would wait for ever");
    }
    let bundle = case.bundle(|_| ())?;
    let cgroup = Frozen::make(case)?;
    for command in ["create", "run"] {
        case.call(&[command, "--bundle", text(&bundle.path), &case.id])?
            .failed_with(&["unexpectedly frozen"])?;
        let state = fs::read_to_string(&cgroup.file);
        // runc removes the cgroup that it refused.
        ensure!(
            case.runtime.name != "damda" || state.is_ok_and(|text| ["FROZEN", "1"].contains(&text.trim())),
            "the cgroup that isn't the container's was changed"
        );
        if case.runtime.name != "damda" {
            break;
        }
    }
    drop(cgroup);
    case.run(&bundle)?.succeeded()?;
    case.nothing_left()
}

/// A container whose cgroup is its own user's.
fn start_with_own_cgroup(case: &Case, before: &str) -> Verdict {
    let bundle = case.bundle(|config| {
        add_user_namespace(config, 65_536);
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
        let mounts = config["mounts"].as_array_mut().unwrap();
        // The kernel gives no sysfs to a user namespace where a part of it is hidden.
        mounts.retain(|mount| mount["type"] != "sysfs");
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] }));
        config["process"]["args"] = probe(&["wait"]);
    })?;
    // The container's root may not make it in the directory of the host's.
    fs::create_dir_all(bundle.rootfs().join("sys/fs/cgroup"))?;
    let arguments = ["run", "--detach", "--bundle", text(&bundle.path), &case.id];
    case.call_after_mounts(before, &arguments)?.succeeded()?;
    Ok(())
}

fn owned_by_the_user(case: &Case) -> Verdict {
    let directory = Path::new("/sys/fs/cgroup").join(&case.id);
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        ensure_eq!(fs::metadata(directory.join(name))?.uid(), 100_000, "owner of {name:?} in the cgroup");
    }
    for name in ["memory.max", "pids.max", "cgroup.freeze"] {
        let owner = fs::metadata(directory.join(name)).map_or(0, |file| file.uid());
        ensure_eq!(owner, 0, "owner of {name}, which the container must not change");
    }
    Ok(())
}

fn owner(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    if case.runtime.name == "runc" {
        crate::skip!("runc 1.1 changes the owner only where systemd makes the cgroup");
    }
    start_with_own_cgroup(case, "true")?;
    owned_by_the_user(case)
}

fn owner_of_files_that_are_not_there(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    if case.runtime.name == "runc" {
        crate::skip!("runc 1.1 changes the owner only where systemd makes the cgroup");
    }
    let list = "cgroup.procs\\ncgroup.subtree_control\\nno.such.file\\ncgroup.threads\\n";
    let hidden = "mount -t tmpfs none /sys/kernel/cgroup";
    start_with_own_cgroup(case, &format!("{hidden} && printf '{list}' >/sys/kernel/cgroup/delegate"))?;
    owned_by_the_user(case)
}

fn owner_without_the_list(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    if case.runtime.name != "damda" {
        crate::skip!("crun 1.8 changes no owner without the list, and runc 1.1 none but systemd's");
    }
    start_with_own_cgroup(case, "mount -t tmpfs none /sys/kernel/cgroup")?;
    owned_by_the_user(case)
}
