//! What people rely on in runc and crun, and no specification says.

use crate::case::{Case, add_user_namespace, probe, text, until};
use crate::harness::Verdict;
use crate::machine::{Cgroups, cgroups};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

tests![
    "runc kill: SIGTERM ends a container that waits for start" => signal_before_the_start,
    "runc kill KILL: without a pid namespace" => kill_without_a_pid_namespace,
    "runc run: the caller's CPU affinity" => affinity_of_the_caller,
    "runc exec --process: without a user" => process_without_a_user,
    "runc: the environment of startContainer hooks" => hooks_have_the_programs_environment,
    "runc: executable by CAP_DAC_OVERRIDE" => executable_by_capability,
    "runc: the mode of a tmpfs on a new directory" => tmpfs_on_a_new_directory,
    "runc: a bind mount from within the container" => bind_from_within,
    "runc: a bind mount from within the container, in a user namespace" => bind_from_within_a_user_namespace,
    "runc: locked flags of a bind mount in a user namespace" => locked_flags,
    "runc: masked paths given twice, and many" => masked_paths,
    "runc: the host's mount namespace" => hosts_mount_namespace,
    "runc delete --force: a killed create in the host's mount namespace" => hosts_mount_namespace_killed,
    "runc: the v2 hierarchy of a hybrid host" => hybrid_hierarchy,
    "runc#3672: /proc where it can't be mounted anew" => nested,
    "crun: run.oci.keep_original_groups" => original_groups,
    "crun: run.oci.hooks.stdout" => output_of_hooks,
];

fn signal_before_the_start(case: &Case) -> Verdict {
    case.create(|_| ())?;
    case.call(&["kill", &case.id, "TERM"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn without(config: &mut Value, kind: &str) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != kind);
}

fn kill_without_a_pid_namespace(case: &Case) -> Verdict {
    case.start(|config| without(config, "pid"))?;
    for _ in 0..3 {
        case.exec(&["--detach"], &["wait"])?.succeeded()?;
    }
    let pids = case.call(&["ps", "--format", "json", &case.id])?.succeeded()?.json()?;
    ensure_eq!(pids.as_array().map(Vec::len), Some(4), "processes");
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    until("the others' end", || {
        let left = case.cgroups().iter().any(|path| {
            fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| !pids.trim().is_empty())
        });
        Ok(!left)
    })
}

fn affinity_of_the_caller(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("since runc 1.3");
    }
    let all = case.report(|_| ())?["scheduler"]["cpus"].clone();
    if all == json!("0") {
        crate::skip!("needs two CPUs");
    }
    let bundle = case.bundle(|_| ())?;
    let arguments = ["run", "--bundle", text(&bundle.path), &case.id];
    let pinned = case.call_after("taskset -pc 0 $$ >/dev/null", &arguments)?.succeeded()?.json()?;
    ensure_eq!(pinned["scheduler"]["cpus"], all, "CPUs");
    Ok(())
}

fn process_without_a_user(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let file = case.directory.join("process.json");
    fs::write(&file, json!({ "cwd": "/", "args": probe(&["report"]) }).to_string())?;
    let report = case.call(&["exec", "--process", text(&file), &case.id])?.succeeded()?.json()?;
    ensure_eq!(report["uid"], json!([0, 0, 0]), "uid");
    Ok(())
}

fn hooks_have_the_programs_environment(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("since runc 1.3; not crun");
    }
    case.probed(&["read", "/tmp/hook"], |config| {
        config["process"]["env"] = json!(["ONE=two"]);
        config["hooks"] =
            json!({ "startContainer": [{ "path": "/probe", "args": ["probe", "hook", "/tmp/hook"] }] });
        config["root"]["readonly"] = json!(false);
    })?
    .json()
    .and_then(|hook| {
        ensure_eq!(hook["environment"]["ONE"], json!("two"), "ONE");
        ensure!(hook["environment"]["HOME"].is_string(), "HOME: {}", hook["environment"]);
        Ok(())
    })
}

fn executable_by_capability(case: &Case) -> Verdict {
    let run = |sets: Value| {
        let bundle = case.bundle(|config| {
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            config["process"]["args"] = json!(["/closed", "echo", "it runs"]);
            config["process"]["capabilities"] = sets;
        })?;
        let closed = bundle.rootfs().join("closed");
        if !closed.exists() {
            fs::copy(case.probe(), &closed)?;
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
        }
        case.run(&bundle)
    };
    run(json!({}))?.failed_with(&["permission denied"])?;
    let one = json!(["CAP_DAC_OVERRIDE"]);
    let all =
        json!({ "bounding": one, "permitted": one, "effective": one, "inheritable": one, "ambient": one });
    ensure_eq!(run(all)?.succeeded()?.stdout.trim(), "it runs", "output");
    Ok(())
}

fn tmpfs_on_a_new_directory(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("since runc 1.4");
    }
    let stat = case.probed(&["stat", "/new/place"], |config| {
        let mount = json!({ "destination": "/new/place", "type": "tmpfs", "source": "tmpfs" });
        config["mounts"].as_array_mut().unwrap().push(mount);
    })?;
    ensure_eq!(stat.succeeded()?.json()?["/new/place"]["mode"], json!(0o1777), "mode");
    Ok(())
}

/// Binds /there, a mount of the container's, by its path on the host, to /here.
fn bind_within(case: &Case, options: &[&str], userns: bool) -> Verdict<Value> {
    let bundle = case.bundle(|config| {
        let rootfs = case.directory.join("bundle/rootfs");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({ "destination": "/there", "type": "tmpfs", "source": "tmpfs", "options": ["mode=751"] }),
        );
        mounts.push(
            json!({ "destination": rootfs.join("here"), "source": rootfs.join("there"), "options": options }),
        );
        if userns {
            add_user_namespace(config, 65536);
        }
        config["process"]["args"] = probe(&["report"]);
    })?;
    for name in ["there", "here"] {
        fs::create_dir(bundle.rootfs().join(name))?;
    }
    if userns {
        chown(bundle.rootfs(), Some(100_000), Some(100_000))?;
    }
    let report = case.run(&bundle)?.succeeded()?.json()?;
    let mounts = report["mounts"].as_array().cloned().unwrap_or_default();
    let here = mounts.iter().find(|mount| mount["target"] == "/here").cloned();
    here.ok_or_else(|| crate::harness::Stop::Failed(format!("nothing is mounted on /here: {mounts:?}")))
}

fn bind_from_within(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc since 1.2; crun doesn't take the root's own path off a destination");
    }
    ensure_eq!(bind_within(case, &["rbind"], false)?["type"], json!("tmpfs"), "type");
    Ok(())
}

fn bind_from_within_a_user_namespace(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc since 1.2; crun doesn't take the root's own path off a destination");
    }
    ensure_eq!(bind_within(case, &["rbind"], true)?["type"], json!("tmpfs"), "type");
    Ok(())
}

fn locked_flags(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc since 1.2; crun takes flags away");
    }
    let run = |options: &[&str]| {
        let source = case.directory.join("volume");
        let bundle = case.bundle(|config| {
            add_user_namespace(config, 65536);
            let mount = json!({ "destination": "/data", "source": source, "options": options });
            config["mounts"].as_array_mut().unwrap().push(mount);
        })?;
        chown(bundle.rootfs(), Some(100_000), Some(100_000))?;
        let volume = text(&source);
        let mount = format!(
            "mkdir -p {volume} && mount -t tmpfs -o mode=755 x {volume} && mount -o remount,bind,ro,nosuid {volume}"
        );
        case.call_after_mounts(&mount, &["run", "--bundle", text(&bundle.path), &case.id])
    };
    let report = run(&["bind", "nodev"])?.succeeded()?.json()?;
    let mounts = report["mounts"].as_array().cloned().unwrap_or_default();
    let options =
        mounts.iter().find(|mount| mount["target"] == "/data").map(|mount| mount["options"].to_string());
    let options = options.unwrap_or_default();
    ensure!(["ro", "nosuid", "nodev"].iter().all(|flag| options.contains(flag)), "options: {options}");
    run(&["bind", "rw"])?.failed_with(&["operation not permitted", "/mounts/"])?;
    case.nothing_left()
}

fn masked_paths(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("since runc 1.4; not crun");
    }
    let names: Vec<String> = (0..8).map(|number| format!("/hidden{number}")).collect();
    let bundle = case.bundle(|config| {
        config["linux"]["maskedPaths"] = json!([names.clone(), names.clone()].concat());
        config["process"]["args"] = probe(&["report"]);
    })?;
    for name in &names {
        fs::create_dir(bundle.rootfs().join(&name[1..]))?;
    }
    let report = case.run(&bundle)?.succeeded()?.json()?;
    let covers: Vec<_> = report["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mount| mount["target"].as_str().is_some_and(|target| target.starts_with("/hidden")))
        .collect();
    ensure_eq!(covers.len(), names.len(), "mounts");
    ensure!(covers.iter().all(|mount| mount["options"].to_string().contains("ro")), "read-only: {covers:?}");
    Ok(())
}

fn hosts_mount_namespace(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("others leave the mounts to the caller");
    }
    for read_only in [false, true] {
        let bundle = case.bundle(|config| {
            without(config, "mount");
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["root"]["readonly"] = json!(read_only);
            config["process"]["args"] = probe(&["write", "/proof", "written"]);
        })?;
        // In place of the host's namespace, a private one.
        let script = format!(
            "{:?} --root {:?} run --bundle {:?} {}; echo $? $(grep -c {:?} /proc/self/mountinfo)",
            case.runtime.binary,
            case.state_directory(),
            bundle.path,
            case.id,
            case.directory
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
        let output = case.finish(command)?.succeeded()?;
        let expected = if read_only { "30 0" } else { "0 0" };
        ensure_eq!(
            output.stdout.trim(),
            expected,
            "exit status, and mounts that are left ({})",
            output.stderr
        );
        let proof = bundle.rootfs().join("proof");
        ensure_eq!(proof.exists(), !read_only, "the file that was written is there");
        if proof.exists() {
            fs::remove_file(proof)?;
        }
    }
    case.nothing_left()
}

fn hosts_mount_namespace_killed(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("others leave the mounts to the caller");
    }
    let marker = case.directory.join("marker").display().to_string();
    let hook = format!("touch {marker}; sleep 30");
    let bundle = case.bundle(|config| {
        without(config, "mount");
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["hooks"] = json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", hook] }] });
    })?;
    // In place of the host's namespace, a private one. All is mounted when the hook runs.
    let damda = format!("{:?} --root {:?}", case.runtime.binary, case.state_directory());
    let mounts = format!("grep -c {:?} /proc/self/mountinfo", bundle.rootfs());
    let script = format!(
        "{damda} create --bundle {:?} {} & until [ -e {marker} ]; do sleep 0.01; done; {mounts}; \
         kill -KILL $!; wait $!; {damda} delete --force {}; {mounts}",
        bundle.path, case.id, case.id
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
    let output = case.finish(command)?;
    let counts: Vec<u32> = output.stdout.split_whitespace().flat_map(str::parse).collect();
    ensure!(
        matches!(counts[..], [before, 0] if before > 0),
        "mounts before and after: {:?}, {:?}",
        output.stdout,
        output.stderr
    );
    case.nothing_left()
}

fn hybrid_hierarchy(case: &Case) -> Verdict {
    let root = Path::new("/sys/fs/cgroup/unified");
    if cgroups() != Cgroups::V1 || !root.join("cgroup.procs").exists() {
        crate::skip!("needs a hybrid cgroup layout");
    }
    let above = format!("/{}-above", case.id);
    let path = format!("{above}/{}", case.id);
    let report = case.report(|config| config["linux"]["cgroupsPath"] = json!(path))?;
    let cgroup = report["cgroup"].as_str().unwrap_or_default().to_owned();
    ensure!(cgroup.lines().any(|line| line == format!("0::{path}")), "cgroups: {cgroup:?}");
    ensure!(!root.join(&above[1..]).exists(), "{above} is left");
    // Those of v1 are the caller's to remove, as under runc.
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(&above[1..]));
    }
    Ok(())
}

fn nested(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("not runc");
    }
    let bundle = case.bundle(|config| {
        add_user_namespace(config, 1);
        for kind in ["uidMappings", "gidMappings"] {
            config["linux"][kind] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
        }
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] == "/proc");
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["process"]["args"] = probe(&["read", "/proc/self/comm"]);
    })?;
    chown(&bundle.path, Some(0), Some(0))?;
    // As in a container: a user namespace with a /proc that has something masked.
    let script = format!(
        "mount -t tmpfs none /proc/bus && exec {:?} --root {:?} --cgroup-manager disabled run --bundle {:?} {}",
        case.runtime.binary,
        case.state_directory(),
        bundle.path,
        case.id
    );
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        &script,
    ]);
    ensure_eq!(case.finish(command)?.succeeded()?.stdout.trim(), "probe", "output");
    Ok(())
}

fn original_groups(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("not runc");
    }
    let groups = |keep: bool| -> Verdict<Value> {
        let bundle = case.bundle(|config| {
            if keep {
                config["annotations"] = json!({ "run.oci.keep_original_groups": "1" });
            }
        })?;
        let mut command = Command::new("setpriv");
        command.args(["--groups", "7,8"]).arg(&case.runtime.binary).arg("--root").arg(case.state_directory());
        command.args(["run", "--bundle", text(&bundle.path), &case.id]);
        Ok(case.finish(command)?.succeeded()?.json()?["groups"].clone())
    };
    ensure_eq!(groups(true)?, json!([7, 8]), "groups");
    let without = groups(false)?;
    ensure!(!without.to_string().contains('7'), "groups without the annotation: {without}");
    Ok(())
}

fn output_of_hooks(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("not runc");
    }
    let (out, err) = (case.directory.join("out"), case.directory.join("err"));
    case.report(|config| {
        config["annotations"] = json!({ "run.oci.hooks.stdout": out, "run.oci.hooks.stderr": err });
        let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo said; echo warned >&2"] }]);
        config["hooks"] = json!({ "createRuntime": hook });
    })?;
    ensure_eq!(fs::read_to_string(out)?.trim(), "said", "stdout");
    ensure_eq!(fs::read_to_string(err)?.trim(), "warned", "stderr");
    Ok(())
}
