//! Reading what `probe report` says.

use crate::harness::{Stop, Verdict};
use serde_json::Value;

/// The topmost mount at a path, if there is one.
pub fn find_mount<'a>(report: &'a Value, target: &str) -> Option<&'a Value> {
    report["mounts"].as_array()?.iter().rev().find(|mount| mount["target"] == target)
}

/// The topmost mount at a path.
pub fn mount<'a>(report: &'a Value, target: &str) -> Verdict<&'a Value> {
    find_mount(report, target).ok_or_else(|| Stop::Failed(format!("nothing is mounted at {target}")))
}

/// Whether a mount has the option, of its own or of its file system.
pub fn has_option(mount: &Value, option: &str) -> bool {
    let has =
        |name: &str| mount[name].as_array().is_some_and(|options| options.iter().any(|word| word == option));
    has("options") || has("superOptions")
}
