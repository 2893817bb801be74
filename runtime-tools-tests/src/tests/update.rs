//! update: other limits for a container that exists.

use crate::case::{Case, Output, text};
use crate::harness::Verdict;
use crate::machine::{self, Cgroups};
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs::{self, File};

tests![
    "runc update: options" => options,
    "runc update --resources FILE" => resources_from_a_file,
    "containerd: update --resources -, --resources=-" => resources_from_stdin,
    "runc update: memory above the limit with swap, and back" => memory_and_swap,
    "runc update: what isn't named stays" => what_is_not_named_stays,
    "runc update: a container that is stopped, or missing" => where_there_is_none,
    "runc update: values that can't be" => bad_values,
    "config-linux.md, Memory: checkBeforeUpdate" => check_before_update,
    "config-linux.md, CPU: quota and period" => quota_and_period,
];

fn update(case: &Case, arguments: &[&str]) -> Verdict<Output> {
    case.call(&[&["update"], arguments, &[case.id.as_str()]].concat())
}

fn needs_controllers() -> Verdict {
    ["memory", "cpu", "pids", "cpuset"].into_iter().try_for_each(machine::needs_controller)
}

/// The memory limit, whatever the version of cgroups.
fn memory(case: &Case) -> Verdict<String> {
    match machine::cgroups() {
        Cgroups::V1 => case.cgroup_file("memory", "memory.limit_in_bytes"),
        Cgroups::V2 => case.cgroup_file("memory", "memory.max"),
    }
}

fn options(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|_| ())?;
    update(
        case,
        &["--memory", "67108864", "--pids-limit", "20", "--cpu-period", "50000", "--cpu-quota", "20000"],
    )?
    .succeeded()?;
    update(case, &["--cpu-share", "200", "--cpuset-cpus", "0"])?.succeeded()?;
    ensure_eq!(memory(case)?, "67108864", "memory");
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "20", "pids");
    ensure_eq!(case.cgroup_file("cpuset", "cpuset.cpus")?, "0", "cpus");
    match machine::cgroups() {
        Cgroups::V1 => {
            ensure_eq!(case.cgroup_file("cpu", "cpu.cfs_quota_us")?, "20000", "quota");
            ensure_eq!(case.cgroup_file("cpu", "cpu.cfs_period_us")?, "50000", "period");
            ensure_eq!(case.cgroup_file("cpu", "cpu.shares")?, "200", "shares");
        }
        Cgroups::V2 => ensure_eq!(case.cgroup_file("cpu", "cpu.max")?, "20000 50000", "quota and period"),
    }
    update(case, &["--pids-limit", "-1"])?.succeeded()?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "max", "pids without a limit");
    Ok(())
}

fn resources() -> serde_json::Value {
    // As an engine writes it: 0 and "" are what isn't to change.
    json!({
        "memory": { "limit": 50 << 20, "reservation": 0, "swap": 0, "kernel": 0, "kernelTCP": 0 },
        "cpu": { "shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0, "cpus": "", "mems": "" },
        "blockIO": { "weight": 0 },
        "pids": { "limit": 30 },
    })
}

fn resources_from_a_file(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|_| ())?;
    let file = case.directory.join("resources.json");
    fs::write(&file, resources().to_string())?;
    update(case, &["-r", text(&file)])?.succeeded()?;
    ensure_eq!(memory(case)?, (50 << 20).to_string(), "memory");
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "30", "pids");
    update(case, &["--resources", "/no/such/file"])?.failed_with(&["/no/such/file"])?;
    Ok(())
}

fn resources_from_stdin(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|_| ())?;
    let file = case.directory.join("resources.json");
    for (limit, option) in [(40, &["--resources", "-"][..]), (60, &["--resources=-"])] {
        fs::write(&file, json!({ "memory": { "limit": limit << 20 } }).to_string())?;
        let mut command = case.command(&[&["update"], option, &[case.id.as_str()]].concat());
        let status = command.stdin(File::open(&file)?).status()?;
        ensure!(status.success(), "{option:?}: {status}");
        ensure_eq!(memory(case)?, (limit << 20).to_string(), "memory by {option:?}");
    }
    Ok(())
}

fn memory_and_swap(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 48 << 20 });
    })?;
    for (limit, swap) in [(100, 120), (20, 30), (64, 64)] {
        let (limit, swap) = ((limit << 20).to_string(), (swap << 20).to_string());
        update(case, &["--memory", &limit, "--memory-swap", &swap])?.succeeded()?;
        ensure_eq!(memory(case)?, limit, "memory");
        if let Ok(both) = case.cgroup_file("memory", "memory.memsw.limit_in_bytes") {
            ensure_eq!(both, swap, "memory and swap");
        }
    }
    Ok(())
}

fn what_is_not_named_stays(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        config["linux"]["resources"]["pids"] = json!({ "limit": 44 });
    })?;
    update(case, &["--cpu-share", "300"])?.succeeded()?;
    ensure_eq!(memory(case)?, (64 << 20).to_string(), "memory");
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "44", "pids");
    // Devices stay denied.
    ensure_eq!(case.exec(&[], &["write", "/dev/null", ""])?.status, 0, "a default device");
    Ok(())
}

fn where_there_is_none(case: &Case) -> Verdict {
    update(case, &["--pids-limit", "5"])?.failed_with(&["does not exist"])?;
    case.start(|_| ())?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    update(case, &["--pids-limit", "5"])?.failed_with(&["not running"])?;
    Ok(())
}

fn bad_values(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|_| ())?;
    for arguments in [["--memory", "much"], ["--cpuset-cpus", "900"], ["--pids-limit", "x"]] {
        update(case, &arguments)?.failed_with(&[])?;
    }
    let file = case.directory.join("resources.json");
    for text_ in ["", "{", "[]", "{\"memory\": {\"limit\": \"x\"}}"] {
        fs::write(&file, text_)?;
        update(case, &["-r", text(&file)])?.failed_with(&[])?;
    }
    Ok(())
}

fn check_before_update(case: &Case) -> Verdict {
    needs_controllers()?;
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than this property");
    }
    case.start(|_| ())?;
    let before = memory(case)?;
    let file = case.directory.join("resources.json");
    fs::write(&file, json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } }).to_string())?;
    update(case, &["-r", text(&file)])?.failed_with(&["/memory/limit"])?;
    ensure_eq!(memory(case)?, before, "memory after a refused update");
    Ok(())
}

fn quota_and_period(case: &Case) -> Verdict {
    needs_controllers()?;
    case.start(|config| {
        config["linux"]["resources"]["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
    })?;
    let quota_now = |quota| ["--cpu-quota", quota];
    let period_now = |period| ["--cpu-period", period];
    for (options, expected) in [
        ([quota_now("5000"), period_now("10000")].concat(), "5000 10000"),
        ([quota_now("900000"), period_now("1000000")].concat(), "900000 1000000"),
        ([quota_now("20000"), period_now("40000")].concat(), "20000 40000"),
        (quota_now("30000").to_vec(), "30000 40000"),
        (period_now("50000").to_vec(), "30000 50000"),
    ] {
        update(case, &options)?.succeeded()?;
        let now = match machine::cgroups() {
            Cgroups::V1 => {
                let quota = case.cgroup_file("cpu", "cpu.cfs_quota_us")?;
                format!("{quota} {}", case.cgroup_file("cpu", "cpu.cfs_period_us")?)
            }
            Cgroups::V2 => case.cgroup_file("cpu", "cpu.max")?,
        };
        ensure_eq!(now, expected, "quota and period");
    }
    Ok(())
}
