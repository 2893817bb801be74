//! Network devices that are moved into the container. The host's network is left alone: the runtime
//! runs in a network namespace of the test's own, and the devices are made there.

use crate::case::{Bundle, Case, Output, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

tests![
    "config-linux.md, Network Devices: moved, with its addresses, and up" => moved_with_its_addresses,
    "config-linux.md, Network Devices: name" => renamed,
    "config-linux.md, Network Devices: name with %d" => numbered,
    "config-linux.md, Network Devices: a name that is taken MUST give an error" => name_that_is_taken,
    "config-linux.md, Network Devices: a device that isn't there" => missing_device,
    "config-linux.md, Network Devices: no network namespace" => without_a_network_namespace,
    "config-linux.md, Namespace Lifecycle: the runtime MUST NOT move devices out" => stays_in_a_joined_namespace,
];

/// Two ends of a cable, one of which has addresses.
const MADE: &str = "ip link add rtt0 type veth peer name rtt1 && ip link set rtt0 mtu 1400 && \
    ip addr add 10.77.0.1/24 dev rtt0 && ip addr add 10.78.0.1/16 dev rtt0";

fn needs_net_devices(case: &Case) -> Verdict {
    let features = case.call(&["features"])?;
    let known = features.status == 0 && features.json()?["linux"]["netDevices"]["enabled"] == true;
    if !known {
        crate::skip!("the runtime's features don't have netDevices");
    }
    let made = Command::new("unshare").args(["--net", "sh", "-c", MADE]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        crate::skip!("needs ip(8), and veth devices in the kernel");
    }
    Ok(())
}

fn with(devices: Value) -> impl Fn(&mut Value) {
    move |config| config["linux"]["netDevices"] = devices.clone()
}

fn run(case: &Case, bundle: &Bundle) -> Verdict<Output> {
    case.call_in_network(MADE, &["run", "--bundle", text(&bundle.path), &case.id])
}

fn moved_with_its_addresses(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    let bundle = case.bundle(with(json!({ "rtt0": {} })))?;
    let six = std::path::Path::new("/proc/sys/net/ipv6").exists();
    let more = if six { " && ip addr add fd77::1/64 dev rtt0" } else { "" };
    let arguments = ["run", "--bundle", text(&bundle.path), &case.id];
    let report = case.call_in_network(&format!("{MADE}{more}"), &arguments)?.succeeded()?.json()?;
    let device = &report["interfaces"]["rtt0"];
    ensure_eq!(device["up"], true, "rtt0 is up");
    let addresses = device["addresses"].as_array().cloned().unwrap_or_default();
    let expected = ["10.77.0.1/24", "10.78.0.1/16", "fd77::1/64"];
    for address in &expected[..if six { 3 } else { 2 }] {
        ensure!(addresses.iter().any(|found| found == address), "{address} is missing: {device}");
    }
    ensure!(report["interfaces"]["rtt1"].is_null(), "the other end was moved too: {}", report["interfaces"]);
    let mtu = case.bundle(|config| {
        with(json!({ "rtt0": {} }))(config);
        config["process"]["args"] = probe(&["read", "/sys/class/net/rtt0/mtu"]);
    })?;
    ensure_eq!(run(case, &mtu)?.succeeded()?.stdout.trim(), "1400", "mtu, an attribute that is kept");
    case.nothing_left()
}

fn renamed(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    let bundle = case.bundle(with(json!({ "rtt0": { "name": "inside" }, "rtt1": { "name": "rtt0" } })))?;
    let report = run(case, &bundle)?.succeeded()?.json()?;
    let devices = &report["interfaces"];
    ensure!(
        devices["inside"]["addresses"].to_string().contains("10.77.0.1/24"),
        "rtt0 isn't inside, with its addresses: {devices}"
    );
    ensure_eq!(devices["inside"]["up"], true, "it is up");
    ensure!(!devices["rtt0"].is_null() && devices["rtt1"].is_null(), "rtt1 isn't rtt0 now: {devices}");
    Ok(())
}

fn numbered(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    let bundle = case.bundle(with(json!({ "rtt0": { "name": "eth%d" }, "rtt1": { "name": "eth%d" } })))?;
    let report = run(case, &bundle)?.succeeded()?.json()?;
    let mut names: Vec<&String> =
        report["interfaces"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
    names.retain(|name| name.starts_with("eth"));
    ensure_eq!(names, ["eth0", "eth1"], "names that the kernel chose");
    Ok(())
}

/// Fails with the pointer, and leaves nothing, neither by create nor by run.
fn refused(case: &Case, words: &[&str], change: impl Fn(&mut Value)) -> Verdict {
    let bundle = case.bundle(change)?;
    for command in ["create", "run"] {
        let arguments = [command, "--bundle", text(&bundle.path), &case.id];
        let output = case.call_in_network(MADE, &arguments)?;
        let words: Vec<&str> = words
            .iter()
            .filter(|word| !word.starts_with('/') || case.runtime.name == "damda")
            .copied()
            .collect();
        output.failed_with(&words)?;
        case.nothing_left()?;
    }
    Ok(())
}

fn name_that_is_taken(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    refused(case, &["/linux/netDevices/rtt0", "exists"], with(json!({ "rtt0": { "name": "lo" } })))?;
    refused(
        case,
        &["/linux/netDevices/rtt1"],
        with(json!({ "rtt0": { "name": "x" }, "rtt1": { "name": "x" } })),
    )
}

fn missing_device(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    refused(case, &["/linux/netDevices/nosuch", "nosuch"], with(json!({ "nosuch": {} })))
}

fn without_a_network_namespace(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    refused(case, &["/linux/netDevices/rtt0"], |config| {
        with(json!({ "rtt0": {} }))(config);
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != "network");
    })
}

fn stays_in_a_joined_namespace(case: &Case) -> Verdict {
    needs_net_devices(case)?;
    case.start(|_| ())?;
    let other = case.another_id("joins");
    let path = format!("/proc/{}/ns/net", case.state()?["pid"]);
    let bundle = case.bundle(|config| {
        // Both ends: what is left in the test's namespace ends with it, and so would the other end.
        with(json!({ "rtt0": { "name": "stays" }, "rtt1": {} }))(config);
        config["linux"]["cgroupsPath"] = json!(format!("/{other}"));
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    })?;
    case.call_in_network(MADE, &["run", "--bundle", text(&bundle.path), &other])?.succeeded()?;
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    let devices = &report["interfaces"];
    ensure!(!devices["stays"].is_null(), "the device left with the container that brought it: {devices}");
    Ok(())
}
