//! What config-linux.md forbids of `linux.resources`, which `update` takes as well.

use super::list;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::LinuxResources;

pub fn check(resources: &LinuxResources, at: &Pointer) -> Result<()> {
    for (index, device) in list(resources.devices()).iter().enumerate() {
        let at = at.key("devices").index(index);
        use oci_spec::runtime::LinuxDeviceType::{P, U};
        if matches!(device.typ(), Some(U | P)) {
            return Err(Error::new("a rule is for type a, b or c").at(at.key("type")));
        }
        // Some write `a`, as the type has it, for all.
        let access = device.access().as_deref().unwrap_or_default();
        if access.is_empty() || !access.chars().all(|char| "rwma".contains(char)) {
            return Err(Error::new(format!("{access:?} is not made of r, w and m")).at(at.key("access")));
        }
        for (key, number) in [("major", device.major()), ("minor", device.minor())] {
            if number.is_some_and(|number| number < -1 || number > i64::from(i32::MAX)) {
                return Err(Error::new("not a device number").at(at.key(key)));
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        let at = at.key("cpu");
        if let (Some(burst), Some(quota @ 1..)) = (cpu.burst(), cpu.quota())
            && burst > quota as u64
        {
            return Err(Error::new(format!("{burst} is larger than the quota {quota}")).at(at.key("burst")));
        }
        if cpu.idle().is_some_and(|idle| !(0..=1).contains(&idle)) {
            return Err(Error::new("must be 0 or 1").at(at.key("idle")));
        }
    }
    if let Some(memory) = resources.memory() {
        let at = at.key("memory");
        if memory.swappiness().is_some_and(|value| value > 100 && value != u64::MAX) {
            return Err(Error::new("must be within 0 to 100").at(at.key("swappiness")));
        }
        for (key, value) in
            [("limit", memory.limit()), ("reservation", memory.reservation()), ("swap", memory.swap())]
        {
            if value.is_some_and(|value| value < -1) {
                return Err(Error::new("must be -1 (unlimited) or a number of bytes").at(at.key(key)));
            }
        }
        if let (Some(limit @ 1..), Some(swap @ 0..)) = (memory.limit(), memory.swap())
            && swap < limit
            && swap != 0
        {
            let error = format!("{swap} is for memory and swap together, and below the memory limit {limit}");
            return Err(Error::new(error).at(at.key("swap")));
        }
    }
    if resources.pids().is_some_and(|pids| pids.limit() < -1) {
        return Err(Error::new("must be -1 (unlimited) or a number of tasks").at(at.key("pids").key("limit")));
    }
    for (index, limit) in list(resources.hugepage_limits()).iter().enumerate() {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|char: char| !char.is_ascii_digit());
        if digits.is_empty()
            || !digits.bytes().all(|byte| byte.is_ascii_digit())
            || !["KB", "MB", "GB"].contains(&&size[digits.len()..])
        {
            let at = at.key("hugepageLimits").index(index).key("pageSize");
            return Err(Error::new(format!("{size:?} is not a size like 64KB, 2MB or 1GB")).at(at));
        }
    }
    let mut keys: Vec<_> = resources.unified().iter().flatten().map(|(key, _)| key).collect();
    keys.sort();
    for key in keys {
        if key.is_empty() || key.contains(['/', '\0']) || key.starts_with('.') || !key.contains('.') {
            return Err(Error::new("not the name of a file in a cgroup").at(at.key("unified").key(key)));
        }
    }
    check_devices_io(resources, at)
}

fn check_devices_io(resources: &LinuxResources, at: &Pointer) -> Result<()> {
    if let Some(block_io) = resources.block_io() {
        for (index, device) in list(block_io.weight_device()).iter().enumerate() {
            if device.weight().is_none() && device.leaf_weight().is_none() {
                let at = at.key("blockIO").key("weightDevice").index(index);
                return Err(Error::new("needs weight or leafWeight").at(at));
            }
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        if limits.hca_handles().is_none() && limits.hca_objects().is_none() {
            return Err(Error::new("needs hcaHandles or hcaObjects").at(at.key("rdma").key(device)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn resources() {
        let resources = |text: &str| {
            let resources: LinuxResources = parse(format!("{{{text}}}").as_bytes()).expect("it parses");
            check(&resources, &Pointer::to("/linux/resources"))
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        for bad in [
            r#""cpu":{"quota":1000,"burst":2000}"#,
            r#""cpu":{"idle":2}"#,
            r#""memory":{"swappiness":101}"#,
            r#""memory":{"limit":2000,"swap":1000}"#,
            r#""memory":{"limit":-2}"#,
            r#""hugepageLimits":[{"pageSize":"2M","limit":1}]"#,
            r#""unified":{"../x.y":"1"}"#,
            r#""unified":{"cgroup/procs.x":"1"}"#,
            r#""blockIO":{"weightDevice":[{"major":8,"minor":0}]}"#,
            r#""devices":[{"allow":true,"access":"x"}]"#,
        ] {
            assert!(resources(bad).starts_with("/linux/resources/"), "{bad}: {}", resources(bad));
        }
        assert_eq!(resources(r#""memory":{"limit":2000,"swap":-1},"unified":{"memory.high":"1"}"#), "");
    }
}
