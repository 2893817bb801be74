//! events: what a container uses, and that it ran out of memory.

use crate::case::{Case, probe, until};
use crate::harness::Verdict;
use crate::machine;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs::{self, File};

tests![
    "runc events --stats" => stats,
    "runc events: until the container ends" => continuously,
    "runc events: oom" => out_of_memory,
    "runc events: a container that is stopped, or missing" => where_there_is_none,
];

fn stats(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun has no events");
    }
    machine::needs_controller("memory")?;
    machine::needs_controller("pids")?;
    case.start(|config| config["linux"]["resources"]["pids"] = json!({ "limit": 33 }))?;
    let event = case.call(&["events", "--stats", &case.id])?.succeeded()?.json()?;
    ensure_eq!(event["type"], "stats", "type");
    ensure_eq!(event["id"], case.id.as_str(), "id");
    let data = &event["data"];
    let positive =
        |pointer: &str| data.pointer(pointer).and_then(Value::as_u64).is_some_and(|number| number > 0);
    for pointer in ["/cpu/usage/total", "/memory/usage/usage", "/memory/usage/limit", "/pids/current"] {
        ensure!(positive(pointer), "{pointer} of {data}");
    }
    ensure_eq!(data["pids"]["limit"], 33, "pids.limit");
    ensure!(
        data["memory"]["raw"].as_object().is_some_and(|raw| raw.len() > 10),
        "memory.raw: {}",
        data["memory"]["raw"]
    );
    ensure!(
        data["cpuset"]["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty()),
        "cpuset: {}",
        data["cpuset"]
    );
    Ok(())
}

fn lines(path: &std::path::Path) -> Verdict<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn continuously(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun has no events");
    }
    machine::needs_controller("memory")?;
    case.start(|_| ())?;
    let output = case.directory.join("events");
    let mut child =
        case.command(&["events", "--interval", "100ms", &case.id]).stdout(File::create(&output)?).spawn()?;
    let seen = until("two statistics", || {
        Ok(lines(&output)?.iter().filter(|event| event["type"] == "stats").count() >= 2)
    });
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    let ended = until("its end", || Ok(child.try_wait()?.is_some()));
    let _ = child.kill();
    child.wait()?;
    seen.and(ended)
}

fn out_of_memory(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun has no events");
    }
    machine::needs_controller("memory")?;
    case.create(|config| {
        config["process"]["args"] = probe(&["wait"]);
        config["linux"]["resources"]["memory"] = json!({ "limit": 24 << 20, "swap": 24 << 20 });
    })?;
    case.call(&["start", &case.id])?.succeeded()?;
    let output = case.directory.join("events");
    let mut child =
        case.command(&["events", "--interval", "60s", &case.id]).stdout(File::create(&output)?).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let eaten = case.exec(&[], &["eat", "64"])?.status;
    let seen = until("an oom event", || Ok(lines(&output)?.iter().any(|event| event["type"] == "oom")));
    let _ = child.kill();
    child.wait()?;
    ensure_eq!(eaten, 137, "exit status of the program that needs too much");
    seen
}

fn where_there_is_none(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun has no events");
    }
    case.call(&["events", "--stats", &case.id])?.failed_with(&["does not exist"])?;
    case.start(|_| ())?;
    case.call(&["events", "--interval", "0s", &case.id])?.failed_with(&[])?;
    case.call(&["kill", &case.id, "KILL"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["events", "--stats", &case.id])?.failed_with(&["not running"])?;
    Ok(())
}
