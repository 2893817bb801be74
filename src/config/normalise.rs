//! Brings JSON that the specification allows into the form that oci-spec's types accept.
//!
//! Each rule is for a difference found by running oci-spec 0.10 (docs/dependencies.md).

use serde_json::{Map, Value};
use std::str::FromStr;

/// Changes `value` in place; returns what the specification says to warn of.
///
/// `value` may be a whole configuration or, for `exec --process`, a process alone.
pub fn normalise(value: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    drop_nulls(value);
    match value.get_mut("process") {
        Some(process) => normalise_process(process, "/process", &mut warnings),
        None => {
            // A process alone: without a user it is root, as under runc.
            if let Some(process) = value.as_object_mut().filter(|process| process.contains_key("cwd")) {
                process.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
            }
            normalise_process(value, "", &mut warnings);
        }
    }
    if let Some(resources) = value.pointer_mut("/linux/resources") {
        normalise_resources(resources);
    }
    warnings
}

/// Go, and so every engine, reads a `null` as an absent property.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(array) => array.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn normalise_process(process: &mut Value, pointer: &str, warnings: &mut Vec<String>) {
    if let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) {
        for (set, names) in sets {
            let pointer = format!("{pointer}/capabilities/{set}");
            keep_known_capabilities(names, &pointer, warnings);
        }
    }
    if let Some(affinity) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) {
        for list in affinity.values_mut() {
            if let Value::String(list) = list {
                list.retain(|char| char != ' ');
            }
        }
        affinity.retain(|_, list| list != "");
    }
    for flag in process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut).into_iter().flatten() {
        // oci-spec derives these two names from its own and gets them wrong.
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// config.md, "Linux Process", capabilities: a value that can't be mapped is a warning.
fn keep_known_capabilities(names: &mut Value, pointer: &str, warnings: &mut Vec<String>) {
    let Some(names) = names.as_array_mut() else { return };
    names.retain(|name| {
        let known = match name.as_str() {
            Some(name) => caps::Capability::from_str(name).is_ok(),
            None => return true, // not a string: an error, which parsing reports
        };
        if !known {
            warnings.push(format!("{pointer}: ignoring unknown capability {name}"));
        }
        known
    });
}

fn normalise_resources(resources: &mut Value) {
    for device in array(resources, "devices") {
        // runc's own `spec` and older engines write an empty type for "all".
        if device.get("type").is_some_and(|kind| kind == "") {
            device.remove("type");
        }
    }
    for limit in array(resources, "hugepageLimits") {
        // Unsigned in the specification, signed in oci-spec: anything above is no limit at all.
        if limit.get("limit").and_then(Value::as_u64).is_some_and(|limit| limit > i64::MAX as u64) {
            limit.insert("limit".into(), i64::MAX.into());
        }
    }
}

fn array<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_capabilities_are_dropped_with_a_warning() {
        let mut value = json!({"process": {"capabilities": {"bounding": ["CAP_KILL", "CAP_MOON"]}}});
        let warnings = normalise(&mut value);
        assert_eq!(value.pointer("/process/capabilities/bounding"), Some(&json!(["CAP_KILL"])));
        assert_eq!(warnings, ["/process/capabilities/bounding: ignoring unknown capability \"CAP_MOON\""]);
    }

    #[test]
    fn a_process_alone_is_normalised_too() {
        let mut value =
            json!({"cwd": "/", "args": null, "execCPUAffinity": {"initial": "0 - 3, 7", "final": ""}});
        assert!(normalise(&mut value).is_empty());
        let user = json!({"uid": 0, "gid": 0});
        assert_eq!(value, json!({"cwd": "/", "user": user, "execCPUAffinity": {"initial": "0-3,7"}}));
    }

    #[test]
    fn limits_beyond_the_type_are_clamped() {
        let mut value = json!({"linux": {"resources": {"hugepageLimits": [{"limit": u64::MAX}]}}});
        normalise(&mut value);
        assert_eq!(value.pointer("/linux/resources/hugepageLimits/0/limit"), Some(&json!(i64::MAX)));
    }
}
