//! `linux.resources` as files of cgroup v1 (Documentation/admin-guide/cgroup-v1).

use super::{Missing, Write, common_writes, set};
use crate::config::list;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The values to write, in an order that the kernel takes in a new cgroup.
pub(super) fn writes(resources: &LinuxResources, at: &Pointer) -> Result<Vec<(Pointer, Write)>> {
    let mut writes = common_writes(resources, at);
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &at.key("memory"), &mut writes);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &at.key("cpu"), &mut writes);
    }
    if let Some(block_io) = resources.block_io() {
        block_io_writes(block_io, &at.key("blockIO"), &mut writes);
    }
    for (index, limit) in list(resources.hugepage_limits()).iter().enumerate() {
        let at = at.key("hugepageLimits").index(index);
        let size = limit.page_size();
        // Both kinds of accounting, where the kernel has both: reservations fail cleanly, faults
        // of unreserved pages are limited all the same.
        for (kind, missing) in [("", Missing::Error), (".rsvd", Missing::Skip)] {
            let file = format!("hugetlb.{size}{kind}.limit_in_bytes");
            writes.push((at.clone(), Write::new("hugetlb", file, limit.limit()).or(missing)));
        }
    }
    if let Some(network) = resources.network() {
        let at = at.key("network");
        if let Some(class) = network.class_id().filter(|&class| class != 0) {
            writes.push((at.key("classID"), Write::new("net_cls", "net_cls.classid", class)));
        }
        for (index, priority) in list(network.priorities()).iter().enumerate() {
            let value = format!("{} {}", priority.name(), priority.priority());
            writes.push((
                at.key("priorities").index(index),
                Write::new("net_prio", "net_prio.ifpriomap", value),
            ));
        }
    }
    match resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        true => Err(Error::new("invalid configuration: these are files of cgroup v2, and the host has v1")
            .at(at.key("unified"))
            .hint("boot it with systemd.unified_cgroup_hierarchy=1")),
        false => Ok(writes),
    }
}

#[allow(deprecated)] // kernel memory is deprecated in the specification, and still to be honoured
fn memory_writes(memory: &LinuxMemory, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) {
    let mut push = |key: &str, file: &str, value: i64, missing: Missing| {
        writes.push((at.key(key), Write::new("memory", file, value).or(missing)));
    };
    let limit = set(memory.limit());
    // Memory alone first: the kernel refuses a sum below it.
    if let Some(limit) = limit {
        push("limit", "memory.limit_in_bytes", limit, Missing::Error);
    }
    // Without swap accounting there is no limit on swap, and -1 asks for none.
    let swap_missing = |swap| if swap == -1 { Missing::Skip } else { Missing::Error };
    match set(memory.swap()) {
        Some(swap) => push("swap", "memory.memsw.limit_in_bytes", swap, swap_missing(swap)),
        None if limit == Some(-1) => push("limit", "memory.memsw.limit_in_bytes", -1, Missing::Skip),
        None => {}
    }
    if let Some(reservation) = set(memory.reservation()) {
        push("reservation", "memory.soft_limit_in_bytes", reservation, Missing::Error);
    }
    if let Some(kernel) = set(memory.kernel()).filter(|&kernel| kernel != -1) {
        push("kernel", "memory.kmem.limit_in_bytes", kernel, Missing::Error);
    }
    if let Some(kernel_tcp) = set(memory.kernel_tcp()).filter(|&kernel| kernel != -1) {
        push("kernelTCP", "memory.kmem.tcp.limit_in_bytes", kernel_tcp, Missing::Error);
    }
    // -1 as an unsigned number is how Podman says "not set".
    if let Some(swappiness) = memory.swappiness().filter(|&value| value <= 100) {
        push("swappiness", "memory.swappiness", swappiness as i64, Missing::Error);
    }
    if memory.disable_oom_killer() == Some(true) {
        push("disableOOMKiller", "memory.oom_control", 1, Missing::Error);
    }
    if let Some(hierarchy) = memory.use_hierarchy() {
        // Since Linux 5.11 every memory cgroup is hierarchical and only 1 is accepted.
        push("useHierarchy", "memory.use_hierarchy", hierarchy.into(), Missing::Error);
    }
}

fn cpu_writes(cpu: &LinuxCpu, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) {
    let mut push = |key: &str, file: &str, value: String| {
        writes.push((at.key(key), Write::new("cpu", file, value)));
    };
    if let Some(idle) = cpu.idle() {
        push("idle", "cpu.idle", idle.to_string());
    }
    // An idle group has the least weight of all, and refuses shares.
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && cpu.idle() != Some(1)) {
        push("shares", "cpu.shares", shares.to_string());
    }
    if let Some(period) = cpu.period().filter(|&period| period != 0) {
        push("period", "cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = set(cpu.quota()) {
        push("quota", "cpu.cfs_quota_us", quota.to_string());
    }
    // After the quota, which it must not exceed.
    if let Some(burst) = cpu.burst() {
        push("burst", "cpu.cfs_burst_us", burst.to_string());
    }
    if let Some(period) = cpu.realtime_period().filter(|&period| period != 0) {
        push("realtimePeriod", "cpu.rt_period_us", period.to_string());
    }
    if let Some(runtime) = set(cpu.realtime_runtime()) {
        push("realtimeRuntime", "cpu.rt_runtime_us", runtime.to_string());
    }
}

fn block_io_writes(block_io: &LinuxBlockIo, at: &Pointer, writes: &mut Vec<(Pointer, Write)>) {
    let mut push = |at: Pointer, file: &str, value: String, instead: Option<&str>| {
        let missing = match instead {
            Some(other) => Missing::Instead(other.into(), value.clone()),
            None => Missing::Error,
        };
        writes.push((at, Write::new("blkio", file, value).or(missing)));
    };
    // The weight belongs to the BFQ scheduler; until Linux 5.0 it was CFQ's.
    if let Some(weight) = block_io.weight().filter(|&weight| weight != 0) {
        push(at.key("weight"), "blkio.bfq.weight", weight.to_string(), Some("blkio.weight"));
    }
    if let Some(weight) = block_io.leaf_weight().filter(|&weight| weight != 0) {
        push(at.key("leafWeight"), "blkio.leaf_weight", weight.to_string(), None);
    }
    for (index, device) in list(block_io.weight_device()).iter().enumerate() {
        let at = at.key("weightDevice").index(index);
        let number = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = device.weight() {
            push(
                at.key("weight"),
                "blkio.bfq.weight_device",
                format!("{number} {weight}"),
                Some("blkio.weight_device"),
            );
        }
        if let Some(weight) = device.leaf_weight() {
            push(at.key("leafWeight"), "blkio.leaf_weight_device", format!("{number} {weight}"), None);
        }
    }
    let throttles = [
        ("throttleReadBpsDevice", "read_bps", block_io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "write_bps", block_io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "read_iops", block_io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "write_iops", block_io.throttle_write_iops_device()),
    ];
    for (key, what, devices) in throttles {
        for (index, device) in list(devices).iter().enumerate() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            push(at.key(key).index(index), &format!("blkio.throttle.{what}_device"), value, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn plan(resources: &str) -> Vec<String> {
        let resources: LinuxResources = parse(resources.as_bytes()).expect("it parses");
        let writes = writes(&resources, &Pointer::to("/linux/resources")).expect("a plan");
        writes.into_iter().map(|(_, write)| format!("{}={}", write.file, write.value)).collect()
    }

    #[test]
    fn memory_comes_before_the_sum_with_swap() {
        assert_eq!(
            plan(
                r#"{"memory":{"swap":200,"limit":100,"reservation":50,"swappiness":10,"disableOOMKiller":true}}"#
            ),
            [
                "memory.limit_in_bytes=100",
                "memory.memsw.limit_in_bytes=200",
                "memory.soft_limit_in_bytes=50",
                "memory.swappiness=10",
                "memory.oom_control=1"
            ]
        );
        assert_eq!(
            plan(r#"{"memory":{"limit":-1}}"#),
            ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]
        );
        assert_eq!(plan(r#"{"memory":{"limit":0,"swap":0}}"#), [""; 0], "0 is how engines say: not set");
    }

    #[test]
    fn cpu_and_pids() {
        assert_eq!(
            plan(
                r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"burst":1,"cpus":"0-1","mems":"0"},"pids":{"limit":-1}}"#
            ),
            [
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=max",
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpu.cfs_burst_us=1"
            ]
        );
        assert_eq!(plan(r#"{"cpu":{"shares":512,"idle":1}}"#), ["cpu.idle=1"]);
    }

    #[test]
    fn the_rest() {
        assert_eq!(
            plan(
                r#"{"blockIO":{"weight":100,"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":600}]},
                    "hugepageLimits":[{"pageSize":"2MB","limit":4}],
                    "network":{"classID":1,"priorities":[{"name":"eth0","priority":5}]},
                    "rdma":{"mlx5_1":{"hcaHandles":3},"a":{"hcaHandles":1,"hcaObjects":2}}}"#
            ),
            [
                "rdma.max=a hca_handle=1 hca_object=2",
                "rdma.max=mlx5_1 hca_handle=3",
                "blkio.bfq.weight=100",
                "blkio.throttle.read_bps_device=8:1 600",
                "hugetlb.2MB.limit_in_bytes=4",
                "hugetlb.2MB.rsvd.limit_in_bytes=4",
                "net_cls.classid=1",
                "net_prio.ifpriomap=eth0 5"
            ]
        );
    }

    #[test]
    fn unified_needs_v2() {
        let resources: LinuxResources = parse(br#"{"unified":{"memory.high":"1"}}"#).expect("it parses");
        assert!(
            writes(&resources, &Pointer::to("/linux/resources"))
                .is_err_and(|error| error.to_string().starts_with("/linux/resources/unified:"))
        );
    }
}
