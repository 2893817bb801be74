//! `linux.resources` as files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).
//!
//! Values that the specification defines for v1 are converted where v2 has a counterpart; where it
//! has none, the field is an error (config-linux.md, "Unified").

use super::{Missing, Write, common_writes, set};
use crate::config::list;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The kernel's default period in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The values to write, in an order that the kernel takes in a new cgroup.
pub(super) fn writes(resources: &LinuxResources, at: &Pointer) -> Result<Vec<(Pointer, Write)>> {
    let mut writes = common_writes(resources, at);
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &at.key("memory"), &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &at.key("cpu"), &mut writes)?;
    }
    if let Some(block_io) = resources.block_io() {
        block_io_writes(block_io, &at.key("blockIO"), &mut writes)?;
    }
    for (index, limit) in list(resources.hugepage_limits()).iter().enumerate() {
        let at = at.key("hugepageLimits").index(index);
        let size = limit.page_size();
        for (kind, missing) in [("", Missing::Error), (".rsvd", Missing::Skip)] {
            let file = format!("hugetlb.{size}{kind}.max");
            writes.push((at.clone(), Write::new("hugetlb", file, limit.limit()).or(missing)));
        }
    }
    if let Some(network) = resources.network() {
        let class = network.class_id().is_some_and(|class| class != 0);
        if class || !list(network.priorities()).is_empty() {
            return Err(no_counterpart(at.key("network")));
        }
    }
    // Last: it is the most exact, and may correct a conversion.
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let write = Write::new(controller_of(file), file, value);
        writes.push((at.key("unified").key(file), write));
    }
    Ok(writes)
}

/// The controller that a file belongs to, so that it can be enabled; files of the core need none.
fn controller_of(file: &str) -> &'static str {
    let prefix = file.split('.').next().unwrap_or_default();
    ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"]
        .into_iter()
        .find(|&controller| controller == prefix)
        .unwrap_or_default()
}

fn no_counterpart(at: Pointer) -> Error {
    Error::new("cgroup v2 has no counterpart").at(at)
}

fn bytes(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

#[allow(deprecated)]
fn memory_writes(memory: &LinuxMemory, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) -> Result<()> {
    let limit = set(memory.limit());
    if let Some(swap) = swap_max(limit, set(memory.swap())).map_err(|error| error.at(at.key("swap")))? {
        // Where swap isn't accounted, none can be used up either.
        let missing = if swap == "max" || swap == "0" { Missing::Skip } else { Missing::Error };
        writes.push((at.key("swap"), Write::new("memory", "memory.swap.max", swap).or(missing)));
    }
    if let Some(limit) = limit {
        writes.push((at.key("limit"), Write::new("memory", "memory.max", bytes(limit))));
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push((at.key("reservation"), Write::new("memory", "memory.low", bytes(reservation))));
    }
    let refused = [
        ("kernel", set(memory.kernel()).is_some_and(|value| value != -1)),
        ("kernelTCP", set(memory.kernel_tcp()).is_some_and(|value| value != -1)),
        ("swappiness", memory.swappiness().is_some_and(|value| value <= 100)),
        ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
        ("useHierarchy", memory.use_hierarchy() == Some(false)),
    ];
    match refused.into_iter().find(|(_, refused)| *refused) {
        Some((key, _)) => Err(no_counterpart(at.key(key))),
        None => Ok(()),
    }
}

/// The limit of swap alone, from v1's limits of memory and of memory and swap together.
fn swap_max(limit: Option<i64>, together: Option<i64>) -> Result<Option<String>> {
    match (limit, together) {
        // No limit on memory and nothing said of swap: v1 means no limit on either.
        (Some(-1), None) => Ok(Some("max".into())),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some("max".into())),
        (Some(-1), Some(together)) => Ok(Some(together.to_string())),
        (Some(limit), Some(together)) => Ok(Some((together - limit).to_string())),
        (None, Some(_)) => {
            Err(Error::new("needs /linux/resources/memory/limit: it is for memory and swap together"))
        }
    }
}

fn cpu_writes(cpu: &LinuxCpu, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) -> Result<()> {
    if let Some(idle) = cpu.idle() {
        writes.push((at.key("idle"), Write::new("cpu", "cpu.idle", idle)));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && cpu.idle() != Some(1)) {
        writes.push((at.key("shares"), Write::new("cpu", "cpu.weight", weight_of(shares))));
    }
    let (quota, period) = (set(cpu.quota()), cpu.period().filter(|&period| period != 0));
    if quota.is_some() || period.is_some() {
        let value = format!("{} {}", bytes(quota.unwrap_or(-1)), period.unwrap_or(DEFAULT_PERIOD));
        let key = if quota.is_some() { "quota" } else { "period" };
        writes.push((at.key(key), Write::new("cpu", "cpu.max", value)));
    }
    if let Some(burst) = cpu.burst() {
        writes.push((at.key("burst"), Write::new("cpu", "cpu.max.burst", burst)));
    }
    let realtime = [
        ("realtimePeriod", cpu.realtime_period().is_some_and(|value| value != 0)),
        ("realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
    ];
    match realtime.into_iter().find(|(_, set)| *set) {
        Some((key, _)) => Err(no_counterpart(at.key(key))),
        None => Ok(()),
    }
}

/// v1's shares (2 to 262144, 1024 by default) as v2's weight (1 to 10000, 100 by default).
///
/// The curve is the one that runc, crun and systemd use, so that a container weighs the same
/// under each: quadratic in the logarithm, through the three points.
fn weight_of(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

fn block_io_writes(block_io: &LinuxBlockIo, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) -> Result<()> {
    // BFQ takes v1's scale, 1 to 1000; io.weight has 1 to 10000.
    let scaled = |weight: u16| 1 + u64::from(weight.max(10) - 10) * 9999 / 990;
    if let Some(weight) = block_io.weight().filter(|&weight| weight != 0) {
        let instead = Missing::Instead("io.weight".into(), scaled(weight).to_string());
        writes.push((at.key("weight"), Write::new("io", "io.bfq.weight", weight).or(instead)));
    }
    if block_io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(no_counterpart(at.key("leafWeight")));
    }
    for (index, device) in list(block_io.weight_device()).iter().enumerate() {
        let at = at.key("weightDevice").index(index);
        if device.leaf_weight().is_some() {
            return Err(no_counterpart(at.key("leafWeight")));
        }
        if let Some(weight) = device.weight() {
            let number = format!("{}:{}", device.major(), device.minor());
            let instead = Missing::Instead("io.weight".into(), format!("{number} {}", scaled(weight)));
            writes.push((
                at.key("weight"),
                Write::new("io", "io.bfq.weight", format!("{number} {weight}")).or(instead),
            ));
        }
    }
    let throttles = [
        ("throttleReadBpsDevice", "rbps", block_io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "wbps", block_io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "riops", block_io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "wiops", block_io.throttle_write_iops_device()),
    ];
    for (key, what, devices) in throttles {
        for (index, device) in list(devices).iter().enumerate() {
            let value = format!("{}:{} {what}={}", device.major(), device.minor(), device.rate());
            writes.push((at.key(key).index(index), Write::new("io", "io.max", value)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn plan(resources: &str) -> std::result::Result<Vec<String>, String> {
        let resources: LinuxResources = parse(resources.as_bytes()).expect("it parses");
        let text = |(_, write): (Pointer, Write)| format!("{}={}", write.file, write.value);
        writes(&resources, &Pointer::to("/linux/resources"))
            .map(|writes| writes.into_iter().map(text).collect())
            .map_err(|error| error.to_string())
    }

    fn lines(lines: &[&str]) -> std::result::Result<Vec<String>, String> {
        Ok(lines.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn swap_is_without_memory() {
        let memory = |text: &str| plan(&format!(r#"{{"memory":{text}}}"#));
        assert_eq!(memory(r#"{"limit":100,"swap":300}"#), lines(&["memory.swap.max=200", "memory.max=100"]));
        assert_eq!(memory(r#"{"limit":100,"swap":100}"#), lines(&["memory.swap.max=0", "memory.max=100"]));
        assert_eq!(memory(r#"{"limit":100,"swap":-1}"#), lines(&["memory.swap.max=max", "memory.max=100"]));
        assert_eq!(memory(r#"{"limit":-1}"#), lines(&["memory.swap.max=max", "memory.max=max"]));
        assert_eq!(memory(r#"{"limit":100,"reservation":-1}"#), lines(&["memory.max=100", "memory.low=max"]));
        assert!(memory(r#"{"swap":100}"#).is_err());
        assert!(
            memory(r#"{"swappiness":10}"#)
                .is_err_and(|error| error.starts_with("/linux/resources/memory/swappiness"))
        );
    }

    #[test]
    fn weights() {
        for (shares, weight) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_of(shares), weight, "{shares}");
        }
        assert!((3..262_144).step_by(7).is_sorted_by_key(weight_of));
    }

    #[test]
    fn cpu() {
        let cpu = |text: &str| plan(&format!(r#"{{"cpu":{text}}}"#));
        assert_eq!(cpu(r#"{"quota":50000}"#), lines(&["cpu.max=50000 100000"]));
        assert_eq!(
            cpu(r#"{"quota":-1,"period":1000,"burst":5}"#),
            lines(&["cpu.max=max 1000", "cpu.max.burst=5"])
        );
        assert!(cpu(r#"{"realtimeRuntime":1}"#).is_err());
    }

    #[test]
    fn io_and_unified() {
        assert_eq!(
            plan(
                r#"{"blockIO":{"weight":1000,"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":9}]},
                    "unified":{"memory.high":"5","cpu.weight":"7"}}"#
            ),
            lines(&["io.bfq.weight=1000", "io.max=8:0 wiops=9", "cpu.weight=7", "memory.high=5"])
        );
        let resources: LinuxResources = parse(br#"{"blockIO":{"weight":1000}}"#).expect("it parses");
        let (_, write) = writes(&resources, &Pointer::to("/linux/resources")).expect("a plan").remove(0);
        assert_eq!(write.missing, Missing::Instead("io.weight".into(), "10000".into()));
    }
}
