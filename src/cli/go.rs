//! How Go's programs read their flags, which engines rely on.

use std::ffi::OsString;

/// Go's flags can be written with one dash, and containerd writes some so; those that are on or off
/// can be written with a value. What belongs to a command in a container (exec) or to ps(1) is left
/// alone.
pub fn as_go_reads_them(arguments: Vec<OsString>) -> Vec<OsString> {
    const SWITCHES: [&str; 23] = [
        "debug",
        "systemd-cgroup",
        "no-pivot",
        "no-new-keyring",
        "detach",
        "keep",
        "no-subreaper",
        "force",
        "all",
        "quiet",
        "tty",
        "no-new-privs",
        "ignore-paused",
        "leave-running",
        "tcp-established",
        "tcp-skip-in-flight",
        "link-remap",
        "ext-unix-sk",
        "shell-job",
        "lazy-pages",
        "file-locks",
        "pre-dump",
        "auto-dedup",
    ];
    const OTHERS: [&str; 21] = [
        "root",
        "log",
        "log-format",
        "log-level",
        "rootless",
        "version",
        "bundle",
        "console-socket",
        "pid-file",
        "pidfd-socket",
        "preserve-fds",
        "format",
        "image-path",
        "work-path",
        "parent-path",
        "status-fd",
        "page-server",
        "manage-cgroups-mode",
        "empty-ns",
        "lsm-profile",
        "lsm-mount-context",
    ];
    let mut foreign = false;
    let fix = |argument: OsString| {
        let text = argument.to_str().unwrap_or_default();
        foreign |= matches!(text, "exec" | "ps" | "--");
        let name = text.strip_prefix('-').and_then(|text| text.split('=').next()).unwrap_or_default();
        if foreign {
            return Some(argument);
        }
        let long = SWITCHES.contains(&name) || OTHERS.contains(&name) || name == "help";
        let argument = if long { OsString::from(format!("-{text}")) } else { argument };
        let text = argument.to_str().unwrap_or_default();
        match text.strip_prefix("--").and_then(|text| text.split_once('=')) {
            Some((name, "true")) if SWITCHES.contains(&name) => Some(OsString::from(format!("--{name}"))),
            Some((name, "false")) if SWITCHES.contains(&name) => None,
            _ => Some(argument),
        }
    };
    arguments.into_iter().filter_map(fix).collect()
}
