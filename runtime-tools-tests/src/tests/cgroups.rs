//! Control groups: limits are read back from the kernel's files, and some are felt.

use crate::case::{Case, probe};
use crate::harness::Verdict;
use crate::machine::{self, Cgroups};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

tests![
    "config-linux.md, Cgroups Path: absolute" => absolute_path,
    "config-linux.md, Cgroups Path: nested" => nested_path,
    "config-linux.md, Cgroups Path: none" => no_path,
    "config-linux.md, Memory" => memory,
    "config-linux.md, Memory: limit" => memory_limit_is_felt,
    "config-linux.md, CPU" => cpu,
    "config-linux.md, CPU: cpus, mems" => cpuset,
    "config-linux.md, PIDs" => pids,
    "config-linux.md, PIDs: limit" => pids_limit_is_felt,
    "config-linux.md, PIDs: 0 and -1" => pids_without_a_limit,
    "config-linux.md, Block IO" => block_io,
    "config-linux.md, Huge page limits" => huge_pages,
    "config-linux.md, Network" => network_classes,
    "config-linux.md, RDMA" => rdma,
    "config-linux.md, Unified" => unified,
    "config-linux.md, Unified: keys that the runtime doesn't know" => unified_keys_of_any_name,
    "config-linux.md, Unified: a controller that isn't there MUST give an error" => unified_without_its_controller,
    "config-linux.md, Unified on cgroup v1" => unified_on_v1,
    "runtime.md, Delete: cgroups nested in the container's" => nested_cgroups_are_removed,
    "config-linux.md, Control groups: the limits hold before the program runs" => limits_before_the_program,
    "runtime.md, Create: init is in its cgroups" => init_is_in_its_cgroups_after_create,
    "security: a cgroup that others are in" => others_in_the_cgroup_are_left_alone,
    "config-linux.md, Cgroups Path: the hierarchy's root" => root_of_the_hierarchy,
    "config-linux.md, Cgroups Path: one that is there, and empty" => cgroup_that_is_there,
    "config-linux.md, PIDs: no limit" => pids_without_the_property,
    "crun --cgroup-manager disabled" => without_cgroups,
];

fn with(resource: &str, value: Value) -> impl FnOnce(&mut Value) {
    move |config| config["linux"]["resources"][resource] = value
}

fn in_every_hierarchy(case: &Case, path: &str) -> Verdict {
    let pid = case.state()?["pid"].to_string();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let [_, controllers, place] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
        // A hierarchy that no controller is in, or that isn't mounted, may be left alone.
        if controllers.is_empty() == (machine::cgroups() == Cgroups::V1) {
            continue;
        }
        ensure!(place.ends_with(path), "{line} is not {path}");
    }
    Ok(())
}

fn absolute_path(case: &Case) -> Verdict {
    case.start(|_| ())?;
    in_every_hierarchy(case, &format!("/{}", case.id))
}

fn nested_path(case: &Case) -> Verdict {
    let path = format!("/{}/a/b", case.id);
    let bundle = case.start(|config| config["linux"]["cgroupsPath"] = json!(path))?;
    let _ = bundle;
    in_every_hierarchy(case, &path)?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    for cgroup in case.cgroups() {
        ensure!(!cgroup.join("a/b").exists(), "{cgroup:?}/a/b is left");
        // Parents may be shared with others: a runtime may leave them.
        let _ = fs::remove_dir(cgroup.join("a"));
        fs::remove_dir(&cgroup)?;
    }
    Ok(())
}

fn no_path(case: &Case) -> Verdict {
    case.start(|config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    })?;
    let pid = case.state()?["pid"].to_string();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(text.contains(&case.id), "the default path lacks the id: {text}");
    Ok(())
}

fn memory(case: &Case) -> Verdict {
    machine::needs_controller("memory")?;
    case.start(with("memory", json!({ "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 })))?;
    match machine::cgroups() {
        Cgroups::V1 => {
            ensure_eq!(case.cgroup_file("memory", "memory.limit_in_bytes")?, (64 << 20).to_string(), "limit");
            ensure_eq!(
                case.cgroup_file("memory", "memory.soft_limit_in_bytes")?,
                (32 << 20).to_string(),
                "reservation"
            );
            if let Ok(swap) = case.cgroup_file("memory", "memory.memsw.limit_in_bytes") {
                ensure_eq!(swap, (96 << 20).to_string(), "memory and swap");
            }
        }
        Cgroups::V2 => {
            ensure_eq!(case.cgroup_file("memory", "memory.max")?, (64 << 20).to_string(), "limit");
            ensure_eq!(case.cgroup_file("memory", "memory.low")?, (32 << 20).to_string(), "reservation");
            if let Ok(swap) = case.cgroup_file("memory", "memory.swap.max") {
                ensure_eq!(swap, (32 << 20).to_string(), "swap, without the memory");
            }
        }
    }
    Ok(())
}

fn memory_limit_is_felt(case: &Case) -> Verdict {
    machine::needs_controller("memory")?;
    let output =
        case.probed(&["eat", "64"], with("memory", json!({ "limit": 24 << 20, "swap": 24 << 20 })))?;
    ensure_eq!(
        output.status,
        137,
        "exit status of a program that needs more than the limit (stdout {:?})",
        output.stdout
    );
    let output =
        case.probed(&["eat", "8"], with("memory", json!({ "limit": 24 << 20, "swap": 24 << 20 })))?;
    ensure_eq!(output.succeeded()?.stdout, "ate 8\n", "output within the limit");
    Ok(())
}

fn cpu(case: &Case) -> Verdict {
    machine::needs_controller("cpu")?;
    case.start(with("cpu", json!({ "shares": 512, "quota": 30_000, "period": 60_000 })))?;
    match machine::cgroups() {
        Cgroups::V1 => {
            ensure_eq!(case.cgroup_file("cpu", "cpu.shares")?, "512", "shares");
            ensure_eq!(case.cgroup_file("cpu", "cpu.cfs_quota_us")?, "30000", "quota");
            ensure_eq!(case.cgroup_file("cpu", "cpu.cfs_period_us")?, "60000", "period");
        }
        Cgroups::V2 => {
            ensure_eq!(case.cgroup_file("cpu", "cpu.max")?, "30000 60000", "quota and period");
            let weight: u64 = case.cgroup_file("cpu", "cpu.weight")?.parse()?;
            // Runtimes differ in how they turn shares into a weight: 20 or 59 for 512.
            ensure!((20..=60).contains(&weight), "weight {weight}");
        }
    }
    Ok(())
}

fn cpuset(case: &Case) -> Verdict {
    machine::needs_controller("cpuset")?;
    case.start(with("cpu", json!({ "cpus": "0", "mems": "0" })))?;
    ensure_eq!(case.cgroup_file("cpuset", "cpuset.cpus")?, "0", "cpus");
    ensure_eq!(case.cgroup_file("cpuset", "cpuset.mems")?, "0", "mems");
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["scheduler"]["cpus"], "0", "cpus that are allowed");
    Ok(())
}

fn pids(case: &Case) -> Verdict {
    machine::needs_controller("pids")?;
    case.start(with("pids", json!({ "limit": 33 })))?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "33", "limit");
    Ok(())
}

fn pids_limit_is_felt(case: &Case) -> Verdict {
    machine::needs_controller("pids")?;
    let output = case.probed(&["family", "10"], with("pids", json!({ "limit": 4 })))?;
    ensure_eq!(output.status, libc::EAGAIN, "exit status of a program that forks too often");
    Ok(())
}

fn pids_without_a_limit(case: &Case) -> Verdict {
    machine::needs_controller("pids")?;
    case.start(with("pids", json!({ "limit": -1 })))?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "max", "limit");
    Ok(())
}

fn block_io(case: &Case) -> Verdict {
    let (controller, file) = match machine::cgroups() {
        Cgroups::V1 => ("blkio", "blkio.throttle.read_bps_device"),
        Cgroups::V2 => ("io", "io.max"),
    };
    machine::needs_controller(controller)?;
    let disk = fs::read_dir("/sys/block")?.flatten().find_map(|entry| {
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        Some((major.parse::<u64>().ok()?, minor.parse::<u64>().ok()?))
    });
    let Some((major, minor)) = disk else { crate::skip!("there is no block device") };
    let limit = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    case.start(with(
        "blockIO",
        json!({ "throttleReadBpsDevice": limit(1 << 20), "throttleWriteIOPSDevice": limit(99) }),
    ))?;
    let text = case.cgroup_file(controller, file)?;
    ensure!(text.contains(&format!("{major}:{minor}")) && text.contains("1048576"), "{file}: {text}");
    Ok(())
}

fn huge_pages(case: &Case) -> Verdict {
    let hybrid = machine::cgroups() == Cgroups::V1 && !Path::new("/sys/fs/cgroup/hugetlb").exists();
    if hybrid || !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        crate::skip!("needs the hugetlb controller, in a hierarchy that the runtime uses");
    }
    machine::needs_controller("hugetlb")?;
    case.start(with("hugepageLimits", json!([{ "pageSize": "2MB", "limit": 4 << 20 }])))?;
    let file =
        if machine::cgroups() == Cgroups::V1 { "hugetlb.2MB.limit_in_bytes" } else { "hugetlb.2MB.max" };
    ensure_eq!(case.cgroup_file("hugetlb", file)?, (4 << 20).to_string(), "limit");
    Ok(())
}

fn network_classes(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V1)?;
    machine::needs_controller("net_cls")?;
    case.start(with("network", json!({ "classID": 1_048_577 })))?;
    ensure_eq!(case.cgroup_file("net_cls", "net_cls.classid")?, "1048577", "class");
    Ok(())
}

fn rdma(case: &Case) -> Verdict {
    machine::needs_controller("rdma")?;
    let Some(device) = fs::read_dir("/sys/class/infiniband").ok().and_then(|mut all| all.next()?.ok()) else {
        crate::skip!("there is no RDMA device")
    };
    let name = device.file_name().to_string_lossy().into_owned();
    case.start(with("rdma", json!({ &name: { "hcaHandles": 3, "hcaObjects": 100 } })))?;
    ensure!(case.cgroup_file("rdma", "rdma.max")?.contains("hca_handle=3"), "rdma.max");
    Ok(())
}

fn unified(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    machine::needs_controller("memory")?;
    case.start(with("unified", json!({ "memory.high": "50331648", "pids.max": "44" })))?;
    ensure_eq!(case.cgroup_file("", "memory.high")?, "50331648", "memory.high");
    ensure_eq!(case.cgroup_file("", "pids.max")?, "44", "pids.max");
    Ok(())
}

fn unified_keys_of_any_name(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    machine::needs_controller("memory")?;
    case.start(with("unified", json!({ "cgroup.max.depth": "7", "memory.oom.group": "1" })))?;
    ensure_eq!(case.cgroup_file("", "cgroup.max.depth")?, "7", "cgroup.max.depth");
    ensure_eq!(case.cgroup_file("", "memory.oom.group")?, "1", "memory.oom.group");
    Ok(())
}

fn unified_without_its_controller(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V2)?;
    let bundle = case.bundle(with("unified", json!({ "nosuch.max": "1" })))?;
    case.run(&bundle)?.failed_with(&["nosuch"])?;
    case.nothing_left()
}

fn unified_on_v1(case: &Case) -> Verdict {
    machine::needs_cgroups(Cgroups::V1)?;
    if case.runtime.name != "damda" {
        crate::skip!("crun ignores it");
    }
    let bundle = case.bundle(with("unified", json!({ "memory.high": "50331648" })))?;
    case.run(&bundle)?.failed_with(&["/linux/resources/unified", "v2"])?;
    case.nothing_left()
}

fn nested_cgroups_are_removed(case: &Case) -> Verdict {
    case.start(|_| ())?;
    for cgroup in case.cgroups() {
        fs::create_dir_all(cgroup.join("one/two"))?;
    }
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn limits_before_the_program(case: &Case) -> Verdict {
    machine::needs_controller("pids")?;
    case.create(|config| {
        config["process"]["args"] = probe(&["wait"]);
        config["linux"]["resources"]["pids"] = json!({ "limit": 21 });
    })?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "21", "limit after create");
    Ok(())
}

fn init_is_in_its_cgroups_after_create(case: &Case) -> Verdict {
    case.create(|_| ())?;
    in_every_hierarchy(case, &format!("/{}", case.id))
}

/// Makes a cgroup of the case's name in every hierarchy, and returns the directories.
fn make_cgroups(case: &Case) -> Verdict<Vec<std::path::PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let mut made = Vec::new();
    let hierarchies: Vec<_> = match machine::cgroups() {
        Cgroups::V2 => vec![root.to_owned()],
        Cgroups::V1 => fs::read_dir(root)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.join("cgroup.procs").exists())
            .collect(),
    };
    for hierarchy in hierarchies {
        let directory = hierarchy.join(&case.id);
        fs::create_dir(&directory)?;
        made.push(directory);
    }
    Ok(made)
}

fn others_in_the_cgroup_are_left_alone(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("crun lets the container join them; runc 1.1 as well");
    }
    let directories = make_cgroups(case)?;
    let mut other =
        std::process::Command::new(case.probe()).arg("wait").stdout(std::process::Stdio::null()).spawn()?;
    let mut tried = Ok(());
    // v1's cpuset starts empty, and takes nobody in then.
    let taken =
        |path: &&std::path::PathBuf| machine::cgroups() == Cgroups::V2 || !path.join("cpuset.cpus").exists();
    for directory in directories.iter().filter(taken) {
        fs::write(directory.join("cgroup.procs"), other.id().to_string())?;
        fs::create_dir(directory.join("nested"))?;
    }
    for own_pids in [true, false] {
        let bundle = case.bundle(|config| {
            if !own_pids {
                config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != "pid");
            }
        })?;
        let path = crate::case::text(&bundle.path).to_owned();
        tried = tried
            .and(case.call(&["create", "--bundle", &path, &case.id])?.failed_with(&["not empty"]).map(drop));
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
    }
    let alive = other.try_wait()?.is_none();
    let nested = directories.iter().filter(taken).all(|path| path.join("nested").is_dir());
    other.kill()?;
    other.wait()?;
    for directory in &directories {
        let _ = fs::remove_dir(directory.join("nested"));
        fs::remove_dir(directory)?;
    }
    ensure!(alive, "a process that isn't the container's was killed");
    ensure!(nested, "a cgroup that isn't the container's was removed");
    tried
}

fn root_of_the_hierarchy(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("not tried: they would take the root for the container's");
    }
    for path in ["/", ".", "./", "//"] {
        let bundle = case.bundle(|config| config["linux"]["cgroupsPath"] = json!(path))?;
        case.run(&bundle)?.failed_with(&["/linux/cgroupsPath"])?;
        case.nothing_left()?;
    }
    Ok(())
}

fn cgroup_that_is_there(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun remove it");
    }
    let directories = make_cgroups(case)?;
    let broken = case.bundle(|config| config["linux"]["namespaces"][1]["path"] = json!("/no/where"))?;
    let failed = case.run(&broken)?.failed_with(&["/no/where"]);
    let stays = directories.iter().all(|path| path.is_dir());
    ensure!(stays && failed.is_ok(), "after a failed create: {failed:?}, the cgroups are there: {stays}");
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["exit", "3"]))?;
    let output = case.run(&bundle)?;
    let stays = directories.iter().all(|path| path.is_dir());
    for directory in &directories {
        let _ = fs::remove_dir(directory);
    }
    ensure_eq!(output.status, 3, "exit status (stderr {:?})", output.stderr);
    ensure!(stays, "a cgroup that was there before the container was removed");
    Ok(())
}

fn pids_without_the_property(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("Debian's runc and crun are older than the optional limit");
    }
    case.report(with("pids", json!({})))?;
    if machine::needs_controller("pids").is_ok() {
        case.report(with("pids", json!({ "limit": 0 })))?;
    }
    Ok(())
}

fn without_cgroups(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("runc has no --cgroup-manager");
    }
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["wait"]))?;
    let path = crate::case::text(&bundle.path).to_owned();
    case.call(&["--cgroup-manager", "disabled", "create", "--bundle", &path, &case.id])?.succeeded()?;
    let made = case.cgroups();
    ensure!(made.is_empty(), "cgroups were made: {made:?}");
    Ok(())
}
