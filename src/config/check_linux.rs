//! What config-linux.md forbids.

use super::check::{goes_up, without_nul};
use super::list;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Mount, Spec,
};
use std::path::Path;

/// Adds what is wrong with `spec`'s Linux part.
pub(super) fn check(spec: &Spec, errors: &mut Vec<Error>) {
    let Some(linux) = spec.linux() else { return };
    errors.extend(check_namespaces(linux).err());
    errors.extend(check_names(spec, linux).err());
    errors.extend(check_ids(linux, list(spec.mounts())).err());
    errors.extend(super::sysctl::check(linux).err());
    errors.extend(check_devices(linux).err());
    errors.extend(check_net_devices(linux).err());
    errors.extend(check_rdt(linux).err());
    errors.extend(check_paths(linux).err());
    if let Some(path) = linux.cgroups_path() {
        errors.extend(cgroups_path(path).err());
    }
    if let Some(resources) = linux.resources() {
        errors.extend(super::check_resources::check(resources, &Pointer::to("/linux/resources")).err());
    }
    if let Some(seccomp) = linux.seccomp() {
        errors.extend(check_seccomp(seccomp).err());
    }
    if linux.personality().as_ref().is_some_and(|personality| !list(personality.flags()).is_empty()) {
        let error = Error::new("no flag is defined by the specification");
        errors.push(error.at(Pointer::to("/linux/personality/flags")));
    }
}

/// Whether the container has its own namespace of this type, new or joined.
pub fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    list(linux.namespaces()).iter().any(|namespace| namespace.typ() == kind)
}

fn check_namespaces(linux: &Linux) -> Result<()> {
    let namespaces = list(linux.namespaces());
    for (index, namespace) in namespaces.iter().enumerate() {
        let at = Pointer::to("/linux/namespaces").index(index);
        if namespaces[..index].iter().any(|earlier| earlier.typ() == namespace.typ()) {
            return Err(Error::new(format!("a second namespace of type {}", namespace.typ())).at(at));
        }
        if let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            if !path.is_absolute() {
                return Err(Error::new(format!("{path:?} is not an absolute path")).at(at.key("path")));
            }
            without_nul(path, at.key("path"))?;
        }
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        let at = Pointer::to("/linux/timeOffsets");
        let new = namespaces.iter().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Time
                && namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty())
        });
        if !new {
            return Err(Error::new("needs a new time namespace in /linux/namespaces").at(at));
        }
        for (clock, offset) in linux.time_offsets().iter().flatten() {
            if clock != "monotonic" && clock != "boottime" {
                return Err(
                    Error::new("a time namespace has the clocks monotonic and boottime").at(at.key(clock))
                );
            }
            if offset.nanosecs().is_some_and(|nanoseconds| nanoseconds > 999_999_999) {
                return Err(Error::new("must be below a second").at(at.key(clock).key("nanosecs")));
            }
        }
    }
    Ok(())
}

/// A name set without a UTS namespace of its own would be the host's.
fn check_names(spec: &Spec, linux: &Linux) -> Result<()> {
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    for (pointer, name) in [("/hostname", spec.hostname()), ("/domainname", spec.domainname())] {
        if named(name) && !has_namespace(linux, LinuxNamespaceType::Uts) {
            let error = Error::new("it would change the host's: the container has no uts namespace");
            return Err(error.at(Pointer::to(pointer)).hint("add {\"type\": \"uts\"} to /linux/namespaces"));
        }
    }
    Ok(())
}

fn check_ids(linux: &Linux, mounts: &[Mount]) -> Result<()> {
    let user_namespace = has_namespace(linux, LinuxNamespaceType::User);
    let joined = list(linux.namespaces()).iter().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::User
            && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    });
    let maps = [("/linux/uidMappings", linux.uid_mappings()), ("/linux/gidMappings", linux.gid_mappings())];
    for (pointer, map) in maps {
        let at = Pointer::to(pointer);
        match (user_namespace, list(map).is_empty()) {
            (false, false) => {
                return Err(Error::new("mappings without a user namespace")
                    .at(at)
                    .hint("add {\"type\": \"user\"} to /linux/namespaces"));
            }
            (true, true) if !joined => {
                return Err(Error::new("missing: a new user namespace needs uid and gid mappings").at(at));
            }
            _ => check_map(list(map), &at)?,
        }
    }
    for (index, mount) in mounts.iter().enumerate() {
        let at = Pointer::to("/mounts").index(index);
        check_map(list(mount.uid_mappings()), &at.key("uidMappings"))?;
        check_map(list(mount.gid_mappings()), &at.key("gidMappings"))?;
        let idmap = list(mount.options()).iter().any(|option| option == "idmap" || option == "ridmap");
        if idmap && list(mount.uid_mappings()).is_empty() && !user_namespace {
            let error =
                Error::new("idmap needs uidMappings and gidMappings, or a user namespace to take them from");
            return Err(error.at(at));
        }
    }
    Ok(())
}

fn check_map(map: &[LinuxIdMapping], at: &Pointer) -> Result<()> {
    for (index, entry) in map.iter().enumerate() {
        let fits = |start: u32| start.checked_add(entry.size()).is_some();
        if entry.size() == 0 || !fits(entry.container_id()) || !fits(entry.host_id()) {
            return Err(Error::new("an empty range, or one beyond the largest id").at(at.index(index)));
        }
        let overlap = |a: u32, other: &LinuxIdMapping, b: u32| {
            u64::from(a) < u64::from(b) + u64::from(other.size())
                && u64::from(b) < u64::from(a) + u64::from(entry.size())
        };
        for other in &map[..index] {
            if overlap(entry.container_id(), other, other.container_id())
                || overlap(entry.host_id(), other, other.host_id())
            {
                return Err(Error::new("overlaps with an earlier range").at(at.index(index)));
            }
        }
    }
    Ok(())
}

/// config-linux.md, "IntelRdt".
fn check_rdt(linux: &Linux) -> Result<()> {
    let Some(rdt) = linux.intel_rdt() else { return Ok(()) };
    let at = Pointer::to("/linux/intelRdt");
    if let Some(name) = rdt.clos_id().as_ref().filter(|name| *name != "/") {
        // The others are the file system's own.
        let taken = matches!(name.as_str(), "." | ".." | "info" | "mon_groups" | "mon_data");
        if taken || name.contains(['/', '\0', '\n']) {
            return Err(Error::new(format!("invalid intelRdt.ClosID {name:?}")).at(at.key("closID")));
        }
    }
    let lines = list(rdt.schemata()).iter().enumerate();
    let mut lines: Vec<_> = lines.map(|(index, line)| (at.key("schemata").index(index), line)).collect();
    lines.extend(rdt.l3_cache_schema().as_ref().map(|line| (at.key("l3CacheSchema"), line)));
    lines.extend(rdt.mem_bw_schema().as_ref().map(|line| (at.key("memBwSchema"), line)));
    if let Some((at, _)) = lines.into_iter().find(|(_, line)| line.contains(['\n', '\0'])) {
        return Err(Error::new("must be one line").at(at));
    }
    match rdt.mem_bw_schema().as_ref().filter(|line| !line.is_empty() && !line.starts_with("MB:")) {
        Some(_) => Err(Error::new("must start with MB:").at(at.key("memBwSchema"))),
        None => Ok(()),
    }
}

/// config-linux.md, "Network Devices".
fn check_net_devices(linux: &Linux) -> Result<()> {
    let mut devices: Vec<_> = linux.net_devices().iter().flatten().collect();
    devices.sort_by_key(|(host, _)| *host);
    let mut taken = Vec::new();
    for (host, device) in devices {
        let at = Pointer::to("/linux/netDevices").key(host);
        if !has_namespace(linux, LinuxNamespaceType::Network) {
            let error = "unable to move network devices without a NET namespace";
            return Err(Error::new(error).at(at).hint("add {\"type\": \"network\"} to /linux/namespaces"));
        }
        let invalid = |name: &str| Error::new(format!("invalid network device name {name:?}"));
        if !is_device_name(host) || host.contains('%') {
            return Err(invalid(host).at(at));
        }
        let name = device.name().as_ref().filter(|name| !name.is_empty());
        // A template is a number that the kernel chooses, once.
        let template = |name: &str| name.matches('%').count() > 1 || name.replace("%d", "").contains('%');
        if let Some(name) = name.filter(|name| !is_device_name(name) || template(name)) {
            return Err(invalid(name).at(at.key("name")));
        }
        let name = name.unwrap_or(host);
        if taken.contains(&name) && !name.contains('%') {
            return Err(Error::new(format!("two devices would be named {name:?}")).at(at));
        }
        taken.push(name);
    }
    Ok(())
}

/// Whether the kernel takes it as a network device's name, of less than IFNAMSIZ bytes.
fn is_device_name(name: &str) -> bool {
    let whole = !name.is_empty() && name.len() < libc::IFNAMSIZ && !matches!(name, "." | "..");
    whole && !name.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace())
}

/// config-linux.md, "Devices".
fn check_devices(linux: &Linux) -> Result<()> {
    use oci_spec::runtime::LinuxDeviceType;
    for (index, device) in list(linux.devices()).iter().enumerate() {
        let at = Pointer::to("/linux/devices").index(index);
        let path = device.path();
        if !path.is_absolute() || goes_up(path) || path.file_name().is_none() {
            return Err(Error::new(format!("{path:?} is not the absolute path of a file")).at(at.key("path")));
        }
        without_nul(path, at.key("path"))?;
        if device.typ() == LinuxDeviceType::A {
            return Err(Error::new("a device is of type c, b, u or p").at(at.key("type")));
        }
        // dev_t has 12 bits for the major and 20 for the minor number.
        if device.typ() != LinuxDeviceType::P {
            for (key, number, end) in [("major", device.major(), 1 << 12), ("minor", device.minor(), 1 << 20)]
            {
                if !(0..end).contains(&number) {
                    return Err(
                        Error::new(format!("{number} is not within 0 to {}", end - 1)).at(at.key(key))
                    );
                }
            }
        }
    }
    Ok(())
}

/// maskedPaths, readonlyPaths and rootfsPropagation.
fn check_paths(linux: &Linux) -> Result<()> {
    let lists =
        [("/linux/maskedPaths", linux.masked_paths()), ("/linux/readonlyPaths", linux.readonly_paths())];
    for (pointer, paths) in lists {
        for (index, path) in list(paths).iter().enumerate() {
            let at = Pointer::to(pointer).index(index);
            if !Path::new(path).is_absolute() {
                return Err(Error::new(format!("{path:?} is not an absolute path")).at(at));
            }
            without_nul(Path::new(path), at)?;
        }
        if !list(paths).is_empty() && !has_namespace(linux, LinuxNamespaceType::Mount) {
            return Err(Error::new("needs a mount namespace in /linux/namespaces").at(Pointer::to(pointer)));
        }
    }
    match linux.rootfs_propagation().as_deref() {
        None
        | Some(
            "" | "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" | "unbindable"
            | "runbindable",
        ) => Ok(()),
        Some(other) => Err(Error::new(format!("rootfsPropagation={other} is not supported"))
            .at(Pointer::to("/linux/rootfsPropagation"))),
    }
}

/// A cgroups path that stays where it is put. `..` is refused rather than resolved.
pub fn cgroups_path(path: &Path) -> Result<()> {
    let at = Pointer::to("/linux/cgroupsPath");
    if goes_up(path) {
        return Err(Error::new(format!("{path:?} must not contain \"..\"")).at(at));
    }
    let is_part = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if !path.as_os_str().is_empty() && !path.components().any(is_part) {
        return Err(Error::new(format!("{path:?} is not the container's own cgroup")).at(at));
    }
    if path.as_os_str().as_encoded_bytes().contains(&b'\n') {
        return Err(Error::new("contains a newline").at(at));
    }
    without_nul(path, at)
}

/// The kernel takes 16 bits of it: the ones above would be another action.
fn check_errno(errno: Option<u32>, at: &Pointer) -> Result<()> {
    match errno {
        Some(errno) if errno > u32::from(u16::MAX) => {
            Err(Error::new(format!("{errno} is not an errno")).at(at.clone()))
        }
        _ => Ok(()),
    }
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<()> {
    let at = Pointer::to("/linux/seccomp");
    let takes_errno =
        |action| matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    if seccomp.default_errno_ret().is_some() && !takes_errno(seccomp.default_action()) {
        let error = format!("{} takes no errno", seccomp.default_action());
        return Err(Error::new(error).at(at.key("defaultErrnoRet")));
    }
    check_errno(seccomp.default_errno_ret(), &at.key("defaultErrnoRet"))?;
    if seccomp.listener_metadata().as_ref().is_some_and(|text| !text.is_empty())
        && seccomp.listener_path().is_none()
    {
        return Err(Error::new("without listenerPath").at(at.key("listenerMetadata")));
    }
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(Error::new("SCMP_ACT_NOTIFY cannot be the default action").at(at.key("defaultAction")));
    }
    for (index, syscall) in list(seccomp.syscalls()).iter().enumerate() {
        let at = at.key("syscalls").index(index);
        if syscall.names().is_empty() {
            return Err(Error::new("must name at least one system call").at(at.key("names")));
        }
        if syscall.errno_ret().is_some() && !takes_errno(syscall.action()) {
            return Err(Error::new(format!("{} takes no errno", syscall.action())).at(at.key("errnoRet")));
        }
        check_errno(syscall.errno_ret(), &at.key("errnoRet"))?;
        if syscall.action() == LinuxSeccompAction::ScmpActNotify {
            if seccomp.listener_path().is_none() {
                return Err(Error::new("SCMP_ACT_NOTIFY without listenerPath").at(at.key("action")));
            }
            // The runtime's own call that tells of the listener: nobody listens yet.
            if syscall.names().iter().any(|name| name == "write") {
                return Err(
                    Error::new("SCMP_ACT_NOTIFY cannot be used for the write syscall").at(at.key("action"))
                );
            }
        }
        if let Some(position) = list(syscall.args()).iter().position(|argument| argument.index() > 5) {
            return Err(Error::new("a system call has arguments 0 to 5")
                .at(at.key("args").index(position).key("index")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn first_error(linux: &str) -> String {
        let text = format!(
            r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},
                "process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}}}},"linux":{{{linux}}}}}"#
        );
        let spec: Spec = parse(text.as_bytes()).expect("it parses");
        super::super::check(&spec).first().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn namespaces_ids_and_paths() {
        let cases = [
            (
                r#""namespaces":[{"type":"pid"},{"type":"pid"}]"#,
                "/linux/namespaces/1: a second namespace of type pid",
            ),
            (
                r#""namespaces":[{"type":"pid","path":"x"}]"#,
                "/linux/namespaces/0/path: \"x\" is not an absolute path",
            ),
            (
                r#""namespaces":[{"type":"user"}]"#,
                "/linux/uidMappings: missing: a new user namespace needs uid and gid mappings",
            ),
            (
                r#""maskedPaths":["x"],"namespaces":[{"type":"mount"}]"#,
                "/linux/maskedPaths/0: \"x\" is not an absolute path",
            ),
            (
                r#""rootfsPropagation":"odd""#,
                "/linux/rootfsPropagation: rootfsPropagation=odd is not supported",
            ),
            (r#""cgroupsPath":"/a/../b""#, "/linux/cgroupsPath: \"/a/../b\" must not contain \"..\""),
        ];
        for (linux, expected) in cases {
            assert_eq!(first_error(linux), expected);
        }
    }

    #[test]
    fn mappings_must_not_overlap_or_overflow() {
        let map = |map: &str| {
            format!(r#""namespaces":[{{"type":"user"}}],"uidMappings":[{map}],"gidMappings":[{map}]"#)
        };
        let entry =
            |container, host, size| format!(r#"{{"containerID":{container},"hostID":{host},"size":{size}}}"#);
        assert_eq!(first_error(&map(&entry(0, 1000, 10))), "");
        assert!(first_error(&map(&entry(0, 1000, 0))).contains("empty range"));
        assert!(first_error(&map(&entry(0, u32::MAX, 10))).contains("beyond the largest"));
        let two = format!("{},{}", entry(0, 1000, 10), entry(20, 1009, 10));
        assert_eq!(first_error(&map(&two)), "/linux/uidMappings/1: overlaps with an earlier range");
    }

    #[test]
    fn rdt() {
        let rdt = |text: &str| first_error(&format!(r#""intelRdt":{{{text}}}"#));
        assert_eq!(rdt(r#""closID":"/","schemata":["L3:0=f"],"memBwSchema":"MB:0=1""#), "");
        for bad in [
            r#""closID":"..""#,
            r#""closID":"a/b""#,
            r#""closID":"info""#,
            r#""schemata":["L3:0=f\nMB:0=1"]"#,
            r#""memBwSchema":"L3:0=f""#,
        ] {
            assert!(rdt(bad).starts_with("/linux/intelRdt/"), "{bad}: {}", rdt(bad));
        }
    }

    #[test]
    fn network_devices() {
        let devices = |text: &str| {
            first_error(&format!(r#""namespaces":[{{"type":"network"}}],"netDevices":{{{text}}}"#))
        };
        for good in [
            r#""eth0":{}"#,
            r#""eth0":{"name":""}"#,
            r#""a.b-c_d@e":{"name":"eth%d"}"#,
            r#""fifteen-letters":{}"#,
        ] {
            assert_eq!(devices(good), "", "{good}");
        }
        for bad in [
            r#""":{}"#,
            r#""..":{}"#,
            r#""a/b":{}"#,
            r#""a b":{}"#,
            r#""eth%d":{}"#,
            r#""sixteen-letters!":{}"#,
            r#""eth0":{"name":"a:b"}"#,
            r#""eth0":{"name":"a%s"}"#,
            r#""eth0":{"name":"%d%d"}"#,
            r#""eth0":{},"eth1":{"name":"eth0"}"#,
        ] {
            assert!(devices(bad).starts_with("/linux/netDevices/"), "{bad}: {}", devices(bad));
        }
        assert!(first_error(r#""netDevices":{"eth0":{}}"#).contains("without a NET namespace"));
    }

    #[test]
    fn seccomp() {
        let seccomp =
            |text: &str| first_error(&format!(r#""seccomp":{{"defaultAction":"SCMP_ACT_ALLOW"{text}}}"#));
        assert_eq!(seccomp(""), "");
        assert!(seccomp(r#","defaultErrnoRet":1"#).contains("takes no errno"));
        assert!(seccomp(r#","listenerMetadata":"x""#).contains("without listenerPath"));
        assert!(seccomp(r#","syscalls":[{"names":[],"action":"SCMP_ACT_ERRNO"}]"#).contains("at least one"));
        assert!(
            seccomp(r#","syscalls":[{"names":["a"],"action":"SCMP_ACT_NOTIFY"}]"#)
                .contains("without listenerPath")
        );
        let index = r#","syscalls":[{"names":["a"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]"#;
        assert_eq!(
            seccomp(index),
            "/linux/seccomp/syscalls/0/args/0/index: a system call has arguments 0 to 5"
        );
    }
}
