//! `update`: other limits for a container that exists.

use super::Global;
use crate::config::resources_of;
use crate::container::{Container, Status};
use crate::error::{Error, Pointer, Result};
use crate::resctrl;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::Path;

/// The most bytes that are read of `--resources`.
const MOST_BYTES: u64 = 1 << 20;

/// A limit that an option sets.
#[derive(Debug, Clone)]
pub struct Change {
    /// The part of `linux.resources`.
    pub part: &'static str,
    /// The field in it.
    pub field: &'static str,
    /// The value, as it is written on the command line.
    pub value: String,
    /// How it is written.
    pub kind: Kind,
}

/// How a limit is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Text,
    /// As a number.
    Number,
    /// As a number of bytes, with or without a unit.
    Size,
}

/// The command. With `resources`, a file or `-`, the changes are those in it. `schemata` are lines for
/// the container's group of the resctrl file system.
pub fn run(
    global: &Global,
    id: &str,
    resources: Option<&Path>,
    changes: &[Change],
    schemata: &[String],
) -> Result<()> {
    let mut container = Container::load(&global.store, id)?;
    match container.status()? {
        Status::Running | Status::Created | Status::Paused => {}
        Status::Stopped | Status::Creating => return Err(Error::new("container not running")),
    }
    let text = match resources {
        Some(path) => read(path)?,
        None => as_json(changes)?.into_bytes(),
    };
    let resources = resources_of(&text).map_err(|error| error.prefix("cannot read the resources"))?;
    if !schemata.is_empty() {
        update_schemata(&mut container, schemata)?;
    }
    container.state.cgroup.update(&resources, &Pointer::to(""))
}

/// Changes the container's group, or makes it one.
fn update_schemata(container: &mut Container, schemata: &[String]) -> Result<()> {
    if container.state.resctrl.is_none() {
        let root = resctrl::mount_point()?;
        let root = root.ok_or_else(|| Error::new("Intel RDT: there is no mounted resctrl file system"))?;
        let pids = container.state.cgroup.processes()?;
        container.state.resctrl = Some(resctrl::Plan::own(&container.state.id).apply_in(&root, &pids)?);
        container.save_init()?;
    }
    let groups = container.state.resctrl.iter();
    groups.flat_map(|groups| schemata.iter().map(move |line| groups.write_schema(line))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(MOST_BYTES).read_to_end(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text)),
    };
    read.map_err(|error| Error::new(format!("cannot read {path:?}: {error}")))?;
    Ok(text)
}

/// The options as a file with the same content would have them.
fn as_json(changes: &[Change]) -> Result<String> {
    let mut parts: Map<String, Value> = Map::new();
    for change in changes {
        let number = match change.kind {
            Kind::Text => None,
            Kind::Number => Some(change.value.parse().ok()),
            Kind::Size => Some(bytes(&change.value)),
        };
        let value = match number {
            None => Value::from(change.value.clone()),
            // No more than there is: a limit of 0 means not to change it, from engines.
            Some(Some(0)) if change.part == "pids" => Value::from(1),
            Some(Some(number)) => Value::from(number),
            Some(None) => {
                return Err(Error::new(format!("{:?} is not a number", change.value))
                    .at(Pointer::to("").key(change.part).key(change.field)));
            }
        };
        parts.entry(change.part).or_insert_with(|| Value::Object(Map::new()))[change.field] = value;
    }
    Ok(Value::Object(parts).to_string())
}

/// A number of bytes, with or without a unit, of which each is 1024 of the one before: `64M`, `1.5g`,
/// `2GiB`.
fn bytes(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim().to_ascii_lowercase());
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|one| *one == unit)?;
    let bytes = number * 1024f64.powi(power as i32);
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in
            [("50M", 50 << 20), ("-1", -1), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("7b", 7)]
        {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in ["", "M", "5x", "-5M", "1.2.3k", "99999999p"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn options_are_a_file() {
        let change = |part, field, value: &str, kind| Change { part, field, value: value.into(), kind };
        let changes = [
            change("memory", "limit", "100", Kind::Size),
            change("memory", "swap", "-1", Kind::Number),
            change("cpu", "cpus", "0-1", Kind::Text),
        ];
        assert_eq!(
            as_json(&changes).as_deref(),
            Ok(r#"{"cpu":{"cpus":"0-1"},"memory":{"limit":100,"swap":-1}}"#)
        );
        assert!(as_json(&[change("cpu", "quota", "much", Kind::Number)]).is_err());
    }
}
