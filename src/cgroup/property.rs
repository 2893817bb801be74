//! Properties of systemd's units: from what is written to a cgroup's files, and from annotations.

use super::gvariant::{self, signature};
use super::{Missing, Write};
use crate::error::{Error, Pointer, Result};
use rustbus::params::{Array, Base, Container, Param, Variant};
use std::fmt;

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(st)`
    Rates(Vec<(String, u64)>),
    /// Of any other type, from an annotation: as it was written, and what it is.
    Other(String, Param<'static, 'static>),
}

impl Value {
    /// A text.
    pub fn text(text: &str) -> Self {
        Value::Text(text.into())
    }

    /// As an argument of a call.
    pub fn param(&self) -> Param<'static, 'static> {
        let strings = |text: &String| Base::String(text.clone()).into();
        match self {
            Value::Bool(value) => Base::Boolean(*value).into(),
            Value::Number(value) => Base::Uint64(*value).into(),
            Value::Text(text) => strings(text),
            Value::Numbers(numbers) => array("u", numbers.iter().map(|&number| Base::Uint32(number).into())),
            Value::Bytes(bytes) => array("y", bytes.iter().map(|&byte| Base::Byte(byte).into())),
            Value::Pairs(pairs) => {
                array("(ss)", pairs.iter().map(|(one, other)| tuple(vec![strings(one), strings(other)])))
            }
            Value::Rates(rates) => array(
                "(st)",
                rates.iter().map(|(path, rate)| tuple(vec![strings(path), Base::Uint64(*rate).into()])),
            ),
            Value::Other(_, param) => param.clone(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(u64::MAX) => f.write_str("infinity"),
            Value::Number(value) => write!(f, "{value}"),
            Value::Text(text) => f.write_str(text),
            Value::Numbers(numbers) => write!(f, "{numbers:?}"),
            Value::Bytes(bytes) => bytes.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::Pairs(pairs) => f.write_str(
                &pairs.iter().map(|(one, other)| format!("{one} {other}")).collect::<Vec<_>>().join(", "),
            ),
            Value::Rates(rates) => f.write_str(
                &rates.iter().map(|(path, rate)| format!("{path} {rate}")).collect::<Vec<_>>().join(", "),
            ),
            Value::Other(written, _) => f.write_str(written),
        }
    }
}

fn array(element: &str, values: impl Iterator<Item = Param<'static, 'static>>) -> Param<'static, 'static> {
    Param::Container(Container::Array(Array { element_sig: signature(element), values: values.collect() }))
}

fn tuple(parts: Vec<Param<'static, 'static>>) -> Param<'static, 'static> {
    Param::Container(Container::Struct(parts))
}

/// A list of properties as an argument: `a(sv)`.
pub fn list(properties: &[(String, Value)]) -> Param<'static, 'static> {
    array(
        "(sv)",
        properties.iter().map(|(name, value)| {
            let value = value.param();
            let variant = Variant { sig: value.sig(), value };
            tuple(vec![
                Base::String(name.clone()).into(),
                Param::Container(Container::Variant(Box::new(variant))),
            ])
        }),
    )
}

/// No auxiliary units, as an argument: `a(sa(sv))`.
pub fn no_units() -> Param<'static, 'static> {
    array("(sa(sv))", std::iter::empty())
}

/// What systemd calls the values that are written to a cgroup's files; those that it has no property
/// for are left out.
pub fn of_writes(writes: &[(Pointer, Write)], unified: bool) -> Vec<(Pointer, String, Value)> {
    let mut properties: Vec<(Pointer, String, Value)> = Vec::new();
    let period = v1_period(writes);
    for (at, write) in writes {
        let new = match unified {
            true => of_v2(write),
            false => of_v1(write, period),
        };
        for (name, value) in new {
            // A later write overrides an earlier one, and limits of several devices are one property.
            match properties.iter_mut().find(|(_, other, _)| *other == name) {
                Some((_, _, Value::Rates(rates))) => {
                    if let Value::Rates(more) = value {
                        rates.extend(more);
                    }
                }
                Some(entry) => *entry = (at.clone(), name.into(), value),
                None => properties.push((at.clone(), name.into(), value)),
            }
        }
    }
    properties
}

/// A limit: `max` is none.
fn limit(text: &str) -> Option<Value> {
    match text {
        "max" | "-1" => Some(Value::Number(u64::MAX)),
        text => {
            let digits = text.trim_end_matches(['K', 'k', 'M', 'm', 'G', 'g', 'T', 't']);
            let power = match text[digits.len()..].to_ascii_lowercase().as_str() {
                "" => 0,
                "k" => 1,
                "m" => 2,
                "g" => 3,
                "t" => 4,
                _ => return None,
            };
            digits.parse::<u64>().ok()?.checked_mul(1 << (10 * power)).map(Value::Number)
        }
    }
}

fn of_v2(write: &Write) -> Vec<(&'static str, Value)> {
    let one = |name, value: Option<Value>| value.map(|value| (name, value)).into_iter().collect();
    let value = write.value.as_str();
    match write.file.as_str() {
        "cpu.weight" => one("CPUWeight", limit(value)),
        "cpu.max" => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
            quota_properties(quota, period.parse().unwrap_or(100_000))
        }
        "cpuset.cpus" => one("AllowedCPUs", mask(value)),
        "cpuset.mems" => one("AllowedMemoryNodes", mask(value)),
        "memory.max" => one("MemoryMax", limit(value)),
        "memory.high" => one("MemoryHigh", limit(value)),
        "memory.low" => one("MemoryLow", limit(value)),
        "memory.min" => one("MemoryMin", limit(value)),
        "memory.swap.max" => one("MemorySwapMax", limit(value)),
        "pids.max" => one("TasksMax", limit(value)),
        "io.weight" | "io.bfq.weight" => {
            let weight = match &write.missing {
                Missing::Instead(_, converted) => converted,
                _ => &write.value,
            };
            match weight.split_once(' ') {
                Some(("default", weight)) => one("IOWeight", limit(weight)),
                Some((number, weight)) => one("IODeviceWeight", rate(number, weight)),
                None => one("IOWeight", limit(weight)),
            }
        }
        "io.max" => {
            let (number, limits) = value.split_once(' ').unwrap_or((value, ""));
            let property = |limit: &str| {
                let (what, rate_of) = limit.split_once('=')?;
                let name = match what {
                    "rbps" => "IOReadBandwidthMax",
                    "wbps" => "IOWriteBandwidthMax",
                    "riops" => "IOReadIOPSMax",
                    "wiops" => "IOWriteIOPSMax",
                    _ => return None,
                };
                Some((name, rate(number, rate_of)?))
            };
            limits.split_whitespace().filter_map(property).collect()
        }
        _ => Vec::new(),
    }
}

fn of_v1(write: &Write, period: u64) -> Vec<(&'static str, Value)> {
    let one = |name, value: Option<Value>| value.map(|value| (name, value)).into_iter().collect();
    let value = write.value.as_str();
    match write.file.as_str() {
        "cpu.shares" => one("CPUShares", limit(value)),
        "cpu.cfs_quota_us" => quota_properties(value, period),
        "memory.limit_in_bytes" => one("MemoryLimit", limit(value)),
        "pids.max" => one("TasksMax", limit(value)),
        "blkio.bfq.weight" | "blkio.weight" => one("BlockIOWeight", limit(value)),
        _ => Vec::new(),
    }
}

fn v1_period(writes: &[(Pointer, Write)]) -> u64 {
    let written = writes.iter().find(|(_, write)| write.file == "cpu.cfs_period_us");
    written.and_then(|(_, write)| write.value.parse().ok()).unwrap_or(100_000)
}

/// CPU time for each second, which systemd keeps in whole percents: rounded up, so that the cgroup's
/// own files can be given the exact value within it.
fn quota_properties(quota: &str, period: u64) -> Vec<(&'static str, Value)> {
    const PERCENT: u64 = 10_000;
    let second = match quota.parse::<u64>() {
        Ok(quota) if period > 0 => (quota.saturating_mul(1_000_000) / period).next_multiple_of(PERCENT),
        _ => u64::MAX,
    };
    vec![("CPUQuotaPerSecUSec", Value::Number(second)), ("CPUQuotaPeriodUSec", Value::Number(period))]
}

fn rate(number: &str, rate: &str) -> Option<Value> {
    let Some(Value::Number(rate)) = limit(rate) else { return None };
    Some(Value::Rates(vec![(format!("/dev/block/{number}"), rate)]))
}

/// A list such as `0-3,7` as a mask of bits, the lowest byte first.
fn mask(list: &str) -> Option<Value> {
    const MOST: usize = 8192;
    let mut bytes = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        for bit in first..=last.min(MOST) {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(Value::Bytes(bytes))
}

/// Reads an annotation: a property's name, and its value in GVariant's text form
/// (docs.gtk.org/glib, "GVariant Text Format").
///
/// `Sec` at the end of a name means seconds, which systemd has as microseconds in `USec`.
pub fn parse(name: &str, written: &str) -> Result<(String, Value)> {
    let mut characters = name.chars();
    let valid = characters.next().is_some_and(|first| first.is_ascii_uppercase())
        && name.len() > 2
        && name.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !valid {
        return Err(Error::new(format!("{name:?} is not the name of a property")));
    }
    let bad = || {
        Error::new(format!("{written:?} is not a value in GVariant's text form"))
            .hint("a text needs quotes: 'text'")
    };
    let param = gvariant::parse(written).ok_or_else(bad)?;
    match name.strip_suffix("Sec").filter(|rest| !rest.ends_with('U')) {
        Some(rest) => {
            let microseconds = seconds(&param)
                .ok_or_else(|| Error::new(format!("{written:?} is not a number of seconds")))?;
            Ok((format!("{rest}USec"), Value::Number(microseconds)))
        }
        None => Ok((name.into(), Value::Other(written.trim().into(), param))),
    }
}

fn seconds(param: &Param<'_, '_>) -> Option<u64> {
    const IN_ONE: u64 = 1_000_000;
    let Param::Base(base) = param else { return None };
    let whole = match *base {
        Base::Double(bits) => {
            let seconds = f64::from_bits(bits);
            return (0.0..1e12).contains(&seconds).then_some((seconds * 1e6) as u64);
        }
        Base::Byte(value) => value.into(),
        Base::Int16(value) => u64::try_from(value).ok()?,
        Base::Uint16(value) => value.into(),
        Base::Int32(value) => u64::try_from(value).ok()?,
        Base::Uint32(value) => value.into(),
        Base::Int64(value) => u64::try_from(value).ok()?,
        Base::Uint64(value) => value,
        _ => return None,
    };
    whole.checked_mul(IN_ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(files: &[(&str, &str)], unified: bool) -> Vec<String> {
        let writes: Vec<_> =
            files.iter().map(|(file, value)| (Pointer::to("/x"), Write::new("cpu", *file, value))).collect();
        of_writes(&writes, unified).into_iter().map(|(_, name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn files_of_v2_are_properties() {
        assert_eq!(
            properties(
                &[
                    ("cpu.max", "12345 100000"),
                    ("cpuset.cpus", "0-1,9"),
                    ("memory.max", "100"),
                    ("memory.swap.max", "max"),
                    ("pids.max", "7"),
                    ("io.max", "8:0 rbps=5 wiops=6"),
                    ("io.max", "8:16 rbps=max"),
                    ("hugetlb.2MB.max", "1"),
                    ("memory.max", "2K"),
                ],
                true
            ),
            [
                "CPUQuotaPerSecUSec=130000",
                "CPUQuotaPeriodUSec=100000",
                "AllowedCPUs=0203",
                "MemoryMax=2048",
                "MemorySwapMax=infinity",
                "TasksMax=7",
                "IOReadBandwidthMax=/dev/block/8:0 5, /dev/block/8:16 18446744073709551615",
                "IOWriteIOPSMax=/dev/block/8:0 6",
            ]
        );
    }

    #[test]
    fn files_of_v1_are_properties() {
        assert_eq!(
            properties(
                &[
                    ("cpu.shares", "512"),
                    ("cpu.cfs_period_us", "50000"),
                    ("cpu.cfs_quota_us", "-1"),
                    ("memory.limit_in_bytes", "-1"),
                    ("memory.memsw.limit_in_bytes", "5"),
                ],
                false
            ),
            [
                "CPUShares=512",
                "CPUQuotaPerSecUSec=infinity",
                "CPUQuotaPeriodUSec=50000",
                "MemoryLimit=infinity"
            ]
        );
    }

    #[test]
    fn annotations_are_in_gvariants_text_form() {
        let signature = |name: &str, text: &str| {
            parse(name, text).map(|(name, value)| {
                let mut signature = String::new();
                value.param().make_signature(&mut signature);
                format!("{name} {signature}")
            })
        };
        for (name, text, expected) in [
            ("CollectMode", "'inactive-or-failed'", "CollectMode s"),
            ("TimeoutStopUSec", "uint64 123456789", "TimeoutStopUSec t"),
            ("TimeoutStopSec", "5", "TimeoutStopUSec t"),
            ("DefaultDependencies", "true", "DefaultDependencies b"),
            ("After", "['a.service', \"b\\'c\"]", "After as"),
            ("Before", "@as []", "Before as"),
            ("X", "7", "X"),
            ("CPUWeight", "@t 50", "CPUWeight t"),
            ("Ab", "7", "Ab"),
            ("DeviceAllow", "[('/dev/null', 'rw')]", "DeviceAllow a(ss)"),
        ] {
            match signature(name, text) {
                Ok(signature) => assert_eq!(signature, expected, "{text}"),
                Err(_) => assert!(name.len() < 3, "{name}={text}"),
            }
        }
        assert_eq!(parse("TimeoutStopSec", "1.5").map(|(_, value)| value), Ok(Value::Number(1_500_000)));
        for (name, text) in [
            ("collectMode", "'x'"),
            ("Collect.Mode", "'x'"),
            ("CollectMode", "x"),
            ("CollectMode", "'x"),
            ("CollectMode", "'x' y"),
            ("After", "['a', 1]"),
            ("After", "[]"),
            ("TimeoutStopSec", "'x'"),
            ("TimeoutStopSec", "-1"),
            ("Number", "@t 'a'"),
            ("Number", "uint64 -1"),
            ("Number", &"[".repeat(100_000)),
        ] {
            assert!(parse(name, text).is_err(), "{name}={text}");
        }
    }
}
