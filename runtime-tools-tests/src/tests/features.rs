//! What `features` lists has to be taken where the configuration has it.

use crate::case::{Case, Output};
use crate::harness::Verdict;
use crate::{ensure, tests};
use serde_json::{Value, json};

tests![
    "features.md, Specification version" => versions,
    "features.md: only properties of the specification" => only_known_properties,
    "features.md, Hooks" => hooks,
    "features.md, Mount Options" => mount_options,
    "features.md, Annotations" => annotations,
    "features-linux.md, Namespaces" => namespaces,
    "features-linux.md, Capabilities" => capabilities,
    "features-linux.md, Seccomp" => seccomp,
    "features-linux.md, MemoryPolicy" => memory_policy,
    "features-linux.md, MountExtensions" => id_mapped_mounts,
];

fn features(case: &Case) -> Verdict<Value> {
    let output = case.call(&["features"])?;
    if output.status != 0 {
        crate::skip!("the runtime has no features");
    }
    output.json()
}

/// The names in a list; there are none where the property is missing.
fn names<'a>(features: &'a Value, pointer: &str) -> Vec<&'a str> {
    features
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Every name of the list is known where `change` puts it, and one that nobody knows is not.
fn all_recognised(case: &Case, pointer: &str, change: impl Fn(&mut Value, &str)) -> Verdict {
    let features = features(case)?;
    let listed = names(&features, pointer);
    for name in &listed {
        let output = run(case, name, &change)?;
        ensure!(!is_unknown(&output), "{name} is listed, but: {:?}", output.stderr.trim());
    }
    if !listed.is_empty() {
        let output = run(case, "NO_SUCH_NAME", &change)?;
        ensure!(is_unknown(&output), "the test doesn't notice what is unknown: {:?}", output.stderr.trim());
    }
    Ok(())
}

fn run(case: &Case, name: &str, change: impl Fn(&mut Value, &str)) -> Verdict<Output> {
    let bundle = case.bundle(|config| change(config, name))?;
    case.run(&bundle)
}

/// Whether the runtime failed because it doesn't know a name. The host may lack what the runtime
/// knows: that is another failure.
fn is_unknown(output: &Output) -> bool {
    let says = |text: &&str| output.stderr.contains(text);
    output.status != 0
        && ["unknown", "not recognized", "string NO_SUCH_NAME", "NO_SUCH_NAME is not", "\\\"NO_SUCH_NAME"]
            .iter()
            .any(says)
}

fn versions(case: &Case) -> Verdict {
    let features = features(case)?;
    let numbers = |field: &str| -> Vec<u32> {
        let version = features[field].as_str().unwrap_or_default();
        let core = version.split(['-', '+']).next().unwrap_or_default();
        core.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    let (least, most) = (numbers("ociVersionMin"), numbers("ociVersionMax"));
    ensure!(least.len() == 3 && most.len() == 3, "versions: {features}");
    ensure!(least <= most, "ociVersionMax {most:?} is less than ociVersionMin {least:?}");
    for field in ["ociVersionMin", "ociVersionMax"] {
        case.report(|config| config["ociVersion"] = features[field].clone())?;
    }
    Ok(())
}

fn only_known_properties(case: &Case) -> Verdict {
    let features = features(case)?;
    let known: [(&str, &[&str]); 11] = [
        (
            "",
            &[
                "ociVersionMin",
                "ociVersionMax",
                "hooks",
                "mountOptions",
                "linux",
                "annotations",
                "potentiallyUnsafeConfigAnnotations",
            ],
        ),
        (
            "/linux",
            &[
                "namespaces",
                "capabilities",
                "cgroup",
                "seccomp",
                "apparmor",
                "selinux",
                "memoryPolicy",
                "intelRdt",
                "mountExtensions",
                "netDevices",
            ],
        ),
        ("/linux/cgroup", &["v1", "v2", "systemd", "systemdUser", "rdma"]),
        ("/linux/seccomp", &["enabled", "actions", "operators", "archs", "knownFlags", "supportedFlags"]),
        ("/linux/apparmor", &["enabled"]),
        ("/linux/selinux", &["enabled"]),
        ("/linux/memoryPolicy", &["modes", "flags"]),
        ("/linux/intelRdt", &["enabled", "schemata", "monitoring"]),
        ("/linux/mountExtensions", &["idmap"]),
        ("/linux/mountExtensions/idmap", &["enabled"]),
        ("/linux/netDevices", &["enabled"]),
    ];
    for (pointer, known) in known {
        for (name, _) in features.pointer(pointer).and_then(Value::as_object).into_iter().flatten() {
            ensure!(known.contains(&name.as_str()), "{pointer}/{name} is not in the specification");
        }
    }
    Ok(())
}

fn hooks(case: &Case) -> Verdict {
    let features = features(case)?;
    for name in names(&features, "/hooks") {
        let bundle = case.bundle(|config| {
            // It is executed: without a program it fails, except where a failure is a warning.
            config["hooks"] = json!({ name: [{ "path": "/no/such/hook" }] });
        })?;
        let output = case.run(&bundle)?;
        let warned = ["poststop", "poststart"].contains(&name) && output.stderr.contains("/no/such/hook");
        ensure!(output.status != 0 || warned, "{name} is listed, but not executed");
    }
    Ok(())
}

fn mount_options(case: &Case) -> Verdict {
    let features = features(case)?;
    for option in names(&features, "/mountOptions") {
        let bundle = case.bundle(|config| {
            let bind = ["bind", "rbind"].contains(&option);
            let mut mount =
                json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [option] });
            if bind {
                mount["source"] = json!("/etc");
            }
            let mounts = config["mounts"].as_array_mut().unwrap();
            if option == "remount" {
                mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
            }
            mounts.push(mount);
            config["process"]["args"] = crate::case::probe(&["exit", "0"]);
        })?;
        let output = case.run(&bundle)?;
        // tmpfs has no mandatory locks, POSIX ACLs everywhere, nor id-mapped mounts of old.
        let excused = ["acl", "noacl", "mand", "nomand", "idmap", "ridmap"].contains(&option)
            || (case.runtime.name == "runc" && ["defaults", "iversion"].contains(&option));
        ensure!(output.status == 0 || excused, "{option} is listed, but: {:?}", output.stderr.trim());
        // One that it doesn't know would go to the file system as data.
        ensure!(
            !output.stderr.contains(&format!("unknown option {option:?}"))
                && !output.stderr.contains("Unknown parameter"),
            "{option} is listed, but: {:?}",
            output.stderr.trim()
        );
    }
    Ok(())
}

fn annotations(case: &Case) -> Verdict {
    let features = features(case)?;
    for (key, value) in features["annotations"].as_object().into_iter().flatten() {
        ensure!(!key.is_empty() && value.is_string(), "{key:?}: {value}");
    }
    ensure!(features["annotations"].is_object() || features["annotations"].is_null(), "no map: {features}");
    Ok(())
}

fn namespaces(case: &Case) -> Verdict {
    all_recognised(case, "/linux/namespaces", |config, kind| {
        let all = config["linux"]["namespaces"].as_array_mut().unwrap();
        if kind == "user" {
            return crate::case::add_user_namespace(config, 65_536);
        }
        if !all.iter().any(|entry| entry["type"] == kind) {
            all.push(json!({ "type": kind }));
        }
    })
}

fn capabilities(case: &Case) -> Verdict {
    let features = features(case)?;
    let all = names(&features, "/linux/capabilities");
    if all.is_empty() {
        crate::skip!("the runtime lists none");
    }
    let report = case.report(|config| config["process"]["capabilities"]["bounding"] = json!(all))?;
    let own = crate::case::own_bounding_set()?;
    let inside = report["capabilities"]["bounding"].as_array().map_or(0, Vec::len);
    ensure!(inside == own as usize, "{inside} of the {own} capabilities that the host has are inside");
    Ok(())
}

/// A filter that is of no consequence.
fn filter(config: &mut Value, action: &str, args: Value) {
    let rule = json!({ "names": ["getpgid"], "action": action, "args": args });
    config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
}

fn seccomp(case: &Case) -> Verdict {
    all_recognised(case, "/linux/seccomp/actions", |config, action| {
        // A notification needs an agent: seccomp::notify.
        if action != "SCMP_ACT_NOTIFY" {
            filter(config, action, json!([]));
        }
    })?;
    all_recognised(case, "/linux/seccomp/operators", |config, operator| {
        let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": operator }]);
        filter(config, "SCMP_ACT_ERRNO", args);
    })?;
    all_recognised(case, "/linux/seccomp/archs", |config, name| {
        filter(config, "SCMP_ACT_ERRNO", json!([]));
        config["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", name]);
    })?;
    for list in ["knownFlags", "supportedFlags"] {
        all_recognised(case, &format!("/linux/seccomp/{list}"), |config, name| {
            filter(config, "SCMP_ACT_ERRNO", json!([]));
            config["linux"]["seccomp"]["flags"] = json!([name]);
        })?;
    }
    Ok(())
}

fn memory_policy(case: &Case) -> Verdict {
    all_recognised(case, "/linux/memoryPolicy/modes", |config, mode| {
        config["linux"]["memoryPolicy"] = json!({ "mode": mode });
        if !["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode) {
            config["linux"]["memoryPolicy"]["nodes"] = json!("0");
        }
    })?;
    all_recognised(case, "/linux/memoryPolicy/flags", |config, flag| {
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] });
    })
}

fn id_mapped_mounts(case: &Case) -> Verdict {
    let features = features(case)?;
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1 }]);
    let bundle = case.bundle(|config| {
        let mount = json!({ "destination": "/data", "type": "bind", "source": "/nowhere", "options": ["bind"], "uidMappings": map });
        config["mounts"].as_array_mut().unwrap().push(mount);
    })?;
    // One that recognises them misses the others first.
    let recognised = case.run(&bundle)?.stderr.contains("gidMappings");
    let enabled = features["linux"]["mountExtensions"]["idmap"]["enabled"] == true;
    ensure!(enabled || !recognised, "mappings are recognised, but not listed");
    ensure!(recognised || !enabled, "mappings are listed, but not recognised");
    Ok(())
}
