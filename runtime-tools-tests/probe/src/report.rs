//! What a process can know of itself.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, umask};
use nix::sys::utsname::uname;
use nix::unistd::{getcwd, getgroups, gethostname, getresgid, getresuid, getsid};
use procfs::process::{Process, Status};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

/// All of it. What can't be found out (no /proc, say) is null.
pub fn json() -> Value {
    // Before anything else is opened.
    let descriptors = descriptors();
    let this = Process::myself().ok();
    let status = this.as_ref().and_then(|process| process.status().ok());
    let mask = umask(Mode::empty());
    umask(mask);
    let ids = |id: [u32; 3]| json!(id);
    let (uid, gid) = (getresuid().ok(), getresgid().ok());
    json!({
        "pid": std::process::id(),
        "ppid": nix::unistd::getppid().as_raw(),
        "session": getsid(None).ok().map(|session| session.as_raw()),
        "uid": uid.map(|id| ids([id.real.as_raw(), id.effective.as_raw(), id.saved.as_raw()])),
        "gid": gid.map(|id| ids([id.real.as_raw(), id.effective.as_raw(), id.saved.as_raw()])),
        "groups": getgroups().ok().map(|all| all.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>()),
        "umask": mask.bits(),
        "cwd": getcwd().ok(),
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars().collect::<BTreeMap<_, _>>(),
        "hostname": gethostname().ok().map(|name| name.to_string_lossy().into_owned()),
        "domainname": uname().ok().map(|name| name.domainname().to_string_lossy().into_owned()),
        "release": uname().ok().map(|name| name.release().to_string_lossy().into_owned()),
        "machine": uname().ok().map(|name| name.machine().to_string_lossy().into_owned()),
        "capabilities": status.as_ref().map(capabilities),
        "noNewPrivileges": status.as_ref().and_then(|status| status.nonewprivs),
        "seccomp": status.as_ref().and_then(|status| status.seccomp),
        "ignored": status.as_ref().map(|status| status.sigign),
        "blocked": status.as_ref().map(|status| status.sigblk),
        "rlimits": rlimits(),
        "oomScoreAdj": text("/proc/self/oom_score_adj").and_then(|text| text.trim().parse::<i32>().ok()),
        "personality": text("/proc/self/personality").map(|text| text.trim().to_owned()),
        "cgroup": text("/proc/self/cgroup"),
        "apparmor": text("/proc/self/attr/current"),
        "uidMap": text("/proc/self/uid_map"),
        "gidMap": text("/proc/self/gid_map"),
        "timens": text("/proc/self/timens_offsets"),
        "namespaces": namespaces(),
        "mounts": this.as_ref().and_then(mounts),
        "descriptors": descriptors,
        "terminal": terminal(),
        "interfaces": interfaces(),
        "scheduler": scheduler(),
    })
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn capabilities(status: &Status) -> Value {
    let names = |bits: u64| -> Vec<String> {
        let mut names: Vec<String> = caps::all()
            .into_iter()
            .filter(|capability| bits & capability.bitmask() != 0)
            .map(|capability| capability.to_string())
            .collect();
        names.sort();
        names
    };
    json!({
        "bounding": names(status.capbnd.unwrap_or(0)),
        "effective": names(status.capeff),
        "inheritable": names(status.capinh),
        "permitted": names(status.capprm),
        "ambient": names(status.capamb.unwrap_or(0)),
    })
}

fn rlimits() -> Value {
    let limits = RESOURCES.iter().filter_map(|(name, resource)| {
        let (soft, hard) = getrlimit(*resource).ok()?;
        Some((name.to_string(), json!({ "soft": soft, "hard": hard })))
    });
    Value::Object(limits.collect())
}

fn namespaces() -> BTreeMap<String, String> {
    let entries = fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect()
}

fn descriptors() -> BTreeMap<String, String> {
    let Ok(directory) = fs::read_dir("/proc/self/fd") else { return BTreeMap::new() };
    let names: Vec<_> =
        directory.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // The directory's own descriptor is closed by now, so its link is gone.
    let target = |name: String| {
        Some((
            name.clone(),
            fs::read_link(format!("/proc/self/fd/{name}")).ok()?.to_string_lossy().into_owned(),
        ))
    };
    names.into_iter().filter_map(target).collect()
}

fn mounts(process: &Process) -> Option<Value> {
    let mounts = process.mountinfo().ok()?;
    let entries = mounts.into_iter().map(|mount| {
        let flags = |options: std::collections::HashMap<String, Option<String>>| {
            let mut words: Vec<String> = options
                .into_iter()
                .map(|(name, value)| value.map_or(name.clone(), |value| format!("{name}={value}")))
                .collect();
            words.sort();
            words
        };
        json!({
            "root": mount.root,
            "target": mount.mount_point,
            "type": mount.fs_type,
            "source": mount.mount_source,
            "options": flags(mount.mount_options),
            "superOptions": flags(mount.super_options),
            "propagation": mount.opt_fields.iter().map(|field| format!("{field:?}")).collect::<Vec<_>>(),
        })
    });
    Some(entries.collect())
}

/// Network devices, by name: whether each is up, and its addresses with the length of their prefix.
fn interfaces() -> Value {
    let mut all = BTreeMap::new();
    for entry in getifaddrs().into_iter().flatten() {
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        let interface =
            all.entry(entry.interface_name.clone()).or_insert_with(|| json!({ "up": up, "addresses": [] }));
        let prefix = |mask: &[u8]| mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let (Some(address), Some(mask)) = (entry.address, entry.netmask) else { continue };
        let text = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(four), _) => {
                let length = mask.as_sockaddr_in().map_or(0, |mask| prefix(&mask.ip().octets()));
                format!("{}/{length}", four.ip())
            }
            (_, Some(six)) => {
                let length = mask.as_sockaddr_in6().map_or(0, |mask| prefix(&mask.ip().octets()));
                format!("{}/{length}", six.ip())
            }
            _ => continue,
        };
        interface["addresses"].as_array_mut().expect("made above").push(text.into());
    }
    json!(all)
}

fn terminal() -> Value {
    let is_terminal = |fd: i32| -> bool {
        // SAFETY: asks about a descriptor, whatever it is.
        unsafe { libc::isatty(fd) == 1 }
    };
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize.
    let known = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &mut size) } == 0;
    json!({
        "stdin": is_terminal(0),
        "stdout": is_terminal(1),
        "stderr": is_terminal(2),
        "height": known.then_some(size.ws_row),
        "width": known.then_some(size.ws_col),
        "controlling": fs::File::open("/dev/tty").is_ok(),
    })
}

fn scheduler() -> Value {
    // musl has no sched_getscheduler(2).
    // SAFETY: these ask about this process.
    let (policy, nice, io) = unsafe {
        (
            libc::syscall(libc::SYS_sched_getscheduler, 0),
            libc::getpriority(libc::PRIO_PROCESS, 0),
            libc::syscall(libc::SYS_ioprio_get, 1, 0),
        )
    };
    let cpus = text("/proc/self/status").and_then(|text| {
        text.lines().find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned()))
    });
    json!({ "policy": policy, "nice": nice, "ioClass": io >> 13, "ioPriority": io & 0x1fff, "cpus": cpus })
}

/// For people.
pub fn tour() -> String {
    let report = json();
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes =
        processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count();
    let root = fs::read_dir("/").into_iter().flatten().flatten();
    let mut root: Vec<_> = root.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    root.sort();
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let interfaces: Vec<_> =
        interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let written = fs::write("/here", "").and_then(|()| fs::remove_file("/here"));
    let writable = written.map_or_else(|error| format!("no ({error})"), |()| "yes".into());
    let lines = [
        ("host name", report["hostname"].as_str().unwrap_or("?").to_owned()),
        ("process id", format!("{}, of {processes} in sight", report["pid"])),
        (
            "user",
            format!(
                "{}, with {} of {} capabilities",
                report["uid"][1],
                count(&report["capabilities"]["effective"]),
                caps::all().len()
            ),
        ),
        ("root directory", format!("{}; writable: {writable}", root.join(" "))),
        ("mounts", count(&report["mounts"]).to_string()),
        ("network devices", interfaces.join(" ")),
        (
            "kernel",
            format!("{}, the host's: there is no virtual machine", report["release"].as_str().unwrap_or("?")),
        ),
    ];
    let lines = lines.iter().map(|(name, value)| format!("  {name:<16} {value}\n"));
    format!("Inside the container:\n{}", lines.collect::<String>())
}
