//! What a container has used, from the files of its cgroups, in the form of runc's `events`.

use super::group::Cgroup;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Nanoseconds in a clock tick of cpuacct.stat (USER_HZ, which is 100 everywhere).
const TICK: u64 = 10_000_000;

impl Cgroup {
    /// All statistics. What the kernel or the container's cgroups don't have is 0.
    pub fn stats(&self) -> Value {
        let (cpu, memory, block_io) = match self.unified {
            true => (self.cpu_v2(), self.memory_v2(), self.io_v2()),
            false => (self.cpu_v1(), self.memory_v1(), self.block_io_v1()),
        };
        json!({
            "cpu": cpu,
            "cpuset": self.cpuset(),
            "memory": memory,
            "pids": { "current": self.number("pids", "pids.current"), "limit": self.number("pids", "pids.max") },
            "blkio": block_io,
            "hugetlb": self.huge_pages(),
            "intel_rdt": {},
            "network_interfaces": null,
        })
    }

    /// How many processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let name = if self.unified { "memory.events" } else { "memory.oom_control" };
        keyed(&self.text("memory", name)).get("oom_kill").copied().unwrap_or(0)
    }

    /// The directory with the memory controller, and whether it is v2's.
    pub fn memory_directory(&self) -> Option<(std::path::PathBuf, bool)> {
        Some((self.directory_of("memory")?.file(""), self.unified))
    }

    /// A file's content; empty where there is none.
    fn text(&self, controller: &str, name: &str) -> String {
        let read = |path: &std::path::Path| std::fs::read_to_string(path).ok();
        self.directory_of(controller).and_then(|directory| read(&directory.file(name))).unwrap_or_default()
    }

    /// A file with one number; `max` and what isn't there are 0.
    fn number(&self, controller: &str, name: &str) -> u64 {
        self.text(controller, name).trim().parse().unwrap_or(0)
    }

    fn cpu_v1(&self) -> Value {
        let stat = keyed(&self.text("cpu", "cpu.stat"));
        let ticks = keyed(&self.text("cpuacct", "cpuacct.stat"));
        let per_cpu: Vec<u64> = self
            .text("cpuacct", "cpuacct.usage_percpu")
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        json!({
            "usage": {
                "total": self.number("cpuacct", "cpuacct.usage"),
                "percpu": per_cpu,
                "kernel": get(&ticks, "system") * TICK,
                "user": get(&ticks, "user") * TICK,
            },
            "throttling": {
                "periods": get(&stat, "nr_periods"),
                "throttledPeriods": get(&stat, "nr_throttled"),
                "throttledTime": get(&stat, "throttled_time"),
            },
        })
    }

    fn cpu_v2(&self) -> Value {
        let stat = keyed(&self.text("cpu", "cpu.stat"));
        json!({
            "usage": {
                "total": get(&stat, "usage_usec") * 1000,
                "kernel": get(&stat, "system_usec") * 1000,
                "user": get(&stat, "user_usec") * 1000,
            },
            "throttling": {
                "periods": get(&stat, "nr_periods"),
                "throttledPeriods": get(&stat, "nr_throttled"),
                "throttledTime": get(&stat, "throttled_usec") * 1000,
            },
            "psi": pressure(&self.text("cpu", "cpu.pressure")),
        })
    }

    fn cpuset(&self) -> Value {
        let list = |name: &str| numbers(self.text("cpuset", name).trim());
        let number = |name: &str| self.number("cpuset", name);
        if self.unified {
            return json!({ "cpus": list("cpuset.cpus.effective"), "mems": list("cpuset.mems.effective") });
        }
        json!({
            "cpus": list("cpuset.cpus"),
            "mems": list("cpuset.mems"),
            "cpu_exclusive": number("cpuset.cpu_exclusive"),
            "mem_hardwall": number("cpuset.mem_hardwall"),
            "mem_exclusive": number("cpuset.mem_exclusive"),
            "memory_migrate": number("cpuset.memory_migrate"),
            "memory_spread_page": number("cpuset.memory_spread_page"),
            "memory_spread_slab": number("cpuset.memory_spread_slab"),
            "memory_pressure": number("cpuset.memory_pressure"),
            "sched_load_balance": number("cpuset.sched_load_balance"),
            "sched_relax_domain_level": number("cpuset.sched_relax_domain_level"),
        })
    }

    fn memory_v1(&self) -> Value {
        let raw = keyed(&self.text("memory", "memory.stat"));
        let entry = |kind: &str| {
            let number = |name: &str| self.number("memory", &format!("memory.{kind}{name}"));
            json!({
                "limit": number("limit_in_bytes"),
                "usage": number("usage_in_bytes"),
                "max": number("max_usage_in_bytes"),
                "failcnt": number("failcnt"),
            })
        };
        json!({
            "cache": get(&raw, "cache"),
            "usage": entry(""),
            "swap": entry("memsw."),
            "kernel": entry("kmem."),
            "kernelTCP": entry("kmem.tcp."),
            "raw": raw,
        })
    }

    /// v1's figures, which readers expect: "swap" is memory and swap together.
    fn memory_v2(&self) -> Value {
        let raw = keyed(&self.text("memory", "memory.stat"));
        let events = keyed(&self.text("memory", "memory.events"));
        let number = |name: &str| self.number("memory", name);
        let limit = |name: &str| self.text("memory", name).trim().parse().unwrap_or(u64::MAX);
        let (used, swapped) = (number("memory.current"), number("memory.swap.current"));
        let most = limit("memory.max");
        json!({
            "cache": get(&raw, "file"),
            "usage": { "limit": most, "usage": used, "max": number("memory.peak"), "failcnt": get(&events, "max") },
            "swap": { "limit": most.saturating_add(limit("memory.swap.max")), "usage": used + swapped, "failcnt": 0 },
            "kernel": { "limit": u64::MAX, "usage": get(&raw, "kernel"), "failcnt": 0 },
            "raw": raw,
            "psi": pressure(&self.text("memory", "memory.pressure")),
        })
    }

    fn block_io_v1(&self) -> Value {
        let entries = |name: &str| -> Vec<Value> {
            // The first that has anything: which one does depends on the device's scheduler.
            let files = [format!("blkio.bfq.{name}_recursive"), format!("blkio.throttle.{name}_recursive")];
            let texts = files.iter().map(|name| self.text("blkio", name));
            let text = texts.into_iter().find(|text| text.contains(':')).unwrap_or_default();
            text.lines().filter_map(block_entry).collect()
        };
        json!({
            "ioServiceBytesRecursive": entries("io_service_bytes"),
            "ioServicedRecursive": entries("io_serviced"),
        })
    }

    fn io_v2(&self) -> Value {
        let text = self.text("io", "io.stat");
        let entries = |read: &str, write: &str| -> Vec<Value> {
            let of_device = |line: &str| -> Option<[Value; 2]> {
                let (device, rest) = line.split_once(' ')?;
                let (major, minor) = device.split_once(':')?;
                let (major, minor): (u64, u64) = (major.parse().ok()?, minor.parse().ok()?);
                let value = |key: &str| {
                    let values = rest.split(' ').filter_map(|pair| pair.split_once('='));
                    values.into_iter().find(|(name, _)| *name == key)?.1.parse::<u64>().ok()
                };
                let entry = |op: &str, key: &str| json!({ "major": major, "minor": minor, "op": op, "value": value(key).unwrap_or(0) });
                Some([entry("Read", read), entry("Write", write)])
            };
            text.lines().filter_map(of_device).flatten().collect()
        };
        json!({
            "ioServiceBytesRecursive": entries("rbytes", "wbytes"),
            "ioServicedRecursive": entries("rios", "wios"),
            "psi": pressure(&self.text("io", "io.pressure")),
        })
    }

    fn huge_pages(&self) -> Value {
        let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let sizes = sizes.filter_map(|entry| size_name(entry.file_name().to_str()?));
        let (used, most) =
            if self.unified { ("current", "") } else { ("usage_in_bytes", "max_usage_in_bytes") };
        let entry = |size: &str| {
            let number = |name: &str| self.number("hugetlb", &format!("hugetlb.{size}.{name}"));
            json!({ "usage": number(used), "max": number(most), "failcnt": number("failcnt") })
        };
        Value::Object(sizes.map(|size| (size.clone(), entry(&size))).collect::<Map<_, _>>())
    }
}

fn get(values: &BTreeMap<String, u64>, key: &str) -> u64 {
    values.get(key).copied().unwrap_or(0)
}

/// Lines of a name and a number.
fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// A list of numbers such as `0-2,7` (cpuset(7), "List format").
fn numbers(list: &str) -> Vec<u64> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// A line such as `8:0 Read 4096`; the sum, which has no device, is none.
fn block_entry(line: &str) -> Option<Value> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (major, minor): (u64, u64) = (major.parse().ok()?, minor.parse().ok()?);
    let op = words.next()?;
    Some(json!({ "major": major, "minor": minor, "op": op, "value": words.next()?.parse::<u64>().ok()? }))
}

/// Pressure stall information (Documentation/accounting/psi.rst); null where the kernel has none.
fn pressure(text: &str) -> Value {
    let mut all = Map::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let pairs = words.filter_map(|word| word.split_once('='));
        let values = pairs.map(|(name, value)| {
            let number = match name {
                "total" => value.parse::<u64>().map(Value::from).ok(),
                _ => value.parse::<f64>().map(Value::from).ok(),
            };
            (name.to_owned(), number.unwrap_or_default())
        });
        all.insert(kind.to_owned(), Value::Object(values.collect()));
    }
    if all.is_empty() { Value::Null } else { Value::Object(all) }
}

/// `hugepages-2048kB` as cgroups call it: `2MB`.
fn size_name(directory: &str) -> Option<String> {
    let kilobytes: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        assert_eq!(get(&keyed("usage_usec 12\nnr_periods 3\n"), "nr_periods"), 3);
        assert_eq!(numbers("0-2,7"), [0, 1, 2, 7]);
        assert!(numbers("").is_empty());
        let entry = json!({ "major": 8, "minor": 0, "op": "Read", "value": 4096 });
        assert_eq!(block_entry("8:0 Read 4096"), Some(entry));
        assert_eq!(block_entry("Total 4096"), None);
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n";
        assert_eq!(pressure(text)["some"]["avg10"], 1.5);
        assert_eq!(pressure(text)["some"]["total"], 12);
        assert_eq!(pressure(""), Value::Null);
        assert_eq!(size_name("hugepages-2048kB").as_deref(), Some("2MB"));
        assert_eq!(size_name("hugepages-1048576kB").as_deref(), Some("1GB"));
    }
}
