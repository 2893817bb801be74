//! What a configuration has to have, what it may not have, and what it may have besides.

use super::errors::refused;
use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};

tests![
    "config.md, config-linux.md: REQUIRED properties" => required_properties,
    "config.md, Extensibility: unknown properties MUST be ignored" => unknown_properties,
    "config.md, Annotations" => annotations,
    "config.md, Hooks: timeout MUST be greater than zero" => timeouts_of_hooks,
    "config.md, Process: consoleSize without a terminal MUST be ignored" => console_size_without_a_terminal,
    "config-linux.md: paths MUST be absolute" => relative_paths,
    "config-linux.md, Seccomp: values that don't go together" => seccomp,
    "config-linux.md, Block IO, RDMA: an entry that says nothing" => entries_without_a_limit,
    "config-linux.md, IntelRdt: no mounted resctrl MUST give an error" => intel_rdt_without_resctrl,
    "config-linux.md, IntelRdt" => intel_rdt_values,
    "runtime.md, Start: process that is not set MUST give an error" => start_without_a_process,
    "runtime.md, Operations: no id MUST give an error" => operations_without_an_id,
    "runtime.md, Create: no bundle MUST give an error" => create_without_a_bundle,
];

/// Objects that are complete, and those of their REQUIRED properties that have no zero: a number that
/// is missing is 0 to every runtime, as it is to Go.
fn required() -> Vec<(&'static str, Value, &'static [&'static str])> {
    let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ALLOW" });
    let condition = json!({ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" });
    vec![
        ("", Value::Null, &["ociVersion", "root"]),
        ("/root", Value::Null, &["path"]),
        ("/mounts/0", Value::Null, &["destination"]),
        ("/process", Value::Null, &["cwd", "args"]),
        ("/process/rlimits/0", json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }), &["type"]),
        ("/process/scheduler", json!({ "policy": "SCHED_OTHER" }), &["policy"]),
        ("/hooks/prestart/0", json!({ "path": "/bin/true" }), &["path"]),
        ("/hooks/startContainer/0", json!({ "path": "/probe" }), &["path"]),
        ("/linux/namespaces/0", Value::Null, &["type"]),
        ("/linux/devices/0", json!({ "path": "/dev/x", "type": "p" }), &["path", "type"]),
        (
            "/linux/resources/hugepageLimits/0",
            json!({ "pageSize": "2MB", "limit": 2_097_152 }),
            &["pageSize"],
        ),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_DEFAULT" }), &["mode"]),
        ("/linux/personality", json!({ "domain": "LINUX" }), &["domain"]),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW" }), &["defaultAction"]),
        ("/linux/seccomp/syscalls/0", rule, &["names", "action"]),
        ("/linux/seccomp/syscalls/0/args/0", condition, &["index", "value", "op"]),
    ]
}

/// The value at a pointer, made on the way where it is missing.
fn reach<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer.split('/').skip(1).fold(config, |value, key| match key.parse::<usize>() {
        Ok(index) => {
            if !value.is_array() {
                *value = json!([{}]);
            }
            &mut value[index]
        }
        Err(_) => &mut value[key],
    })
}

fn required_properties(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun take 0 or nothing for most of what is missing");
    }
    let mut taken = Vec::new();
    for (pointer, complete, properties) in required() {
        for property in properties {
            let bundle = case.bundle(|config| {
                if pointer.starts_with("/linux/seccomp/") {
                    let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ALLOW" });
                    config["linux"]["seccomp"] =
                        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
                }
                let object = reach(config, pointer);
                if !complete.is_null() {
                    *object = complete.clone();
                }
                object.as_object_mut().unwrap().remove(*property);
            })?;
            let output = case.call(&["create", "--bundle", text(&bundle.path), &case.id])?;
            // It is this one that is missed.
            if output.status == 0 || !output.stderr.contains(property) {
                taken.push(format!("{pointer}/{property}: {:?}", output.stderr.trim()));
            }
            case.call(&["delete", "--force", &case.id])?.succeeded()?;
            case.nothing_left()?;
        }
    }
    ensure!(taken.is_empty(), "without these nothing was said of them:\n{}", taken.join("\n"));
    Ok(())
}

fn unknown_properties(case: &Case) -> Verdict {
    fn add(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(add);
                map.insert("org.example.unknown".into(), json!({ "nested": [1, null, "text"] }));
            }
            Value::Array(list) => list.iter_mut().for_each(add),
            _ => {}
        }
    }
    case.report(|config| {
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 7, "op": "SCMP_CMP_EQ" }] }] });
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
        add(config);
        // A key of the specification's own namespace that it doesn't describe is unknown, too.
        config["annotations"] = json!({ "org.opencontainers.image.unheard": "of" });
    })?;
    Ok(())
}

fn annotations(case: &Case) -> Verdict {
    for bad in [
        json!({ "key": 7 }),
        json!({ "key": { "nested": "value" } }),
        json!(["key"]),
        json!("key"),
        json!({ "": "value" }),
    ] {
        if case.runtime.name != "damda" && bad.get("").is_some() {
            continue;
        }
        if case.runtime.name == "crun" {
            crate::skip!("crun takes them");
        }
        refused(case, &["/annotations"], |config| config["annotations"] = bad)?;
    }
    Ok(())
}

fn timeouts_of_hooks(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun take 0 for no timeout");
    }
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        for timeout in [0, -1] {
            refused(case, &["/hooks", kind, "timeout"], |config| {
                config["hooks"] = json!({ kind: [{ "path": "/bin/true", "timeout": timeout }] });
            })?;
        }
    }
    Ok(())
}

fn console_size_without_a_terminal(case: &Case) -> Verdict {
    for terminal in [json!(false), Value::Null] {
        let report = case.report(|config| {
            config["process"]["consoleSize"] = json!({ "height": 31, "width": 97 });
            if !terminal.is_null() {
                config["process"]["terminal"] = terminal;
            }
        })?;
        ensure_eq!(report["terminal"]["stdout"], false, "stdout is a terminal");
    }
    Ok(())
}

fn relative_paths(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun take relative ones for absolute ones, or ignore them");
    }
    for field in ["maskedPaths", "readonlyPaths"] {
        let pointer = format!("/linux/{field}/0");
        refused(case, &[&pointer, "absolute"], |config| config["linux"][field] = json!(["proc/keys"]))?;
    }
    refused(case, &["/linux/namespaces/1/path", "absolute"], |config| {
        config["linux"]["namespaces"][1]["path"] = json!("proc/self/ns/net");
    })?;
    for kind in ["createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        let pointer = format!("/hooks/{kind}/0/path");
        refused(case, &[&pointer], |config| config["hooks"] = json!({ kind: [{ "path": "bin/true" }] }))?;
    }
    Ok(())
}

fn seccomp(case: &Case) -> Verdict {
    let set = |more: Value| {
        move |config: &mut Value| {
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }] });
            config["linux"]["seccomp"]
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().cloned().unwrap_or_default());
        }
    };
    if case.runtime.name == "damda" {
        refused(case, &["/linux/seccomp/defaultErrnoRet", "errno"], set(json!({ "defaultErrnoRet": 1 })))?;
        let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 1 }]);
        refused(case, &["/linux/seccomp/syscalls/0/errnoRet", "errno"], set(json!({ "syscalls": rule })))?;
        let rule = json!([{ "names": [], "action": "SCMP_ACT_ERRNO" }]);
        refused(case, &["/linux/seccomp/syscalls/0/names"], set(json!({ "syscalls": rule })))?;
        refused(case, &["/linux/seccomp/listenerMetadata"], set(json!({ "listenerMetadata": "data" })))?;
    }
    if case.runtime.name == "crun" {
        crate::skip!("crun takes these");
    }
    let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]);
    refused(case, &["/linux/seccomp/syscalls/0/action"], set(json!({ "syscalls": rule })))
}

fn entries_without_a_limit(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun leave these to the kernel, or ignore them");
    }
    refused(case, &["/linux/resources/blockIO/weightDevice/0"], |config| {
        config["linux"]["resources"]["blockIO"] = json!({ "weightDevice": [{ "major": 8, "minor": 0 }] });
    })?;
    refused(case, &["/linux/resources/rdma/mlx5_0"], |config| {
        config["linux"]["resources"]["rdma"] = json!({ "mlx5_0": {} });
    })
}

fn intel_rdt_without_resctrl(case: &Case) -> Verdict {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.contains(" - resctrl ") {
        crate::skip!("resctrl is mounted");
    }
    if case.runtime.name == "crun" {
        crate::skip!("crun 1.8 says it as a message of mkdir");
    }
    for rdt in [json!({}), json!({ "closID": "/" }), json!({ "closID": "gold", "l3CacheSchema": "L3:0=f" })] {
        if case.runtime.name == "runc" && rdt.get("l3CacheSchema").is_none() {
            continue; // runc takes it for not set
        }
        let word = if case.runtime.name == "damda" { "resctrl" } else { "Intel RDT" };
        refused(case, &["/linux/intelRdt", word], |config| config["linux"]["intelRdt"] = rdt)?;
    }
    Ok(())
}

fn intel_rdt_values(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun don't look");
    }
    for (field, value) in [
        ("memBwSchema", json!("L3:0=f")),
        ("memBwSchema", json!("MB:0=10\nMB:1=20")),
        ("schemata", json!(["L3:0=f\nMB:0=10"])),
        ("closID", json!("../elsewhere")),
    ] {
        let pointer = format!("/linux/intelRdt/{field}");
        refused(case, &[&pointer], |config| config["linux"]["intelRdt"] = json!({ field: value }))?;
    }
    Ok(())
}

fn start_without_a_process(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config.as_object_mut().unwrap().remove("process");
    })?;
    let create = case.call(&["create", "--bundle", text(&bundle.path), &case.id])?;
    if create.status == 0 {
        case.call(&["start", &case.id])?.failed_with(&["process"])?;
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
    } else {
        create.failed_with(if case.runtime.name == "crun" { &[] } else { &["process"] })?;
    }
    case.nothing_left()
}

fn operations_without_an_id(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    for command in ["state", "start", "kill", "delete"] {
        case.call(&[command])?.failed_with(&[])?;
    }
    for command in ["create", "run"] {
        case.call(&[command, "--bundle", text(&bundle.path)])?.failed_with(&[])?;
    }
    case.nothing_left()
}

fn create_without_a_bundle(case: &Case) -> Verdict {
    // What isn't given is the current directory, which is none.
    case.call(&["create", &case.id])?.failed_with(&["config.json"])?;
    case.nothing_left()
}
