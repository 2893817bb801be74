//! `linux.sysctl`: what each one is called below /proc/sys, and whose it is.

use super::check_linux::has_namespace;
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{Linux, LinuxNamespaceType};
use std::path::{Path, PathBuf};

/// What is wrong with `linux.sysctl`.
pub(super) fn check(linux: &Linux) -> Result<()> {
    let mut keys: Vec<_> = linux.sysctl().iter().flatten().collect();
    keys.sort();
    keys.into_iter().try_for_each(|(key, value)| {
        check_one(linux, key, value).map_err(|error| error.at(Pointer::to("/linux/sysctl").key(key)))
    })
}

fn check_one(linux: &Linux, key: &str, value: &str) -> Result<()> {
    let path = sysctl_path(key)?;
    if value.contains('\0') {
        return Err(Error::new("contains a NUL character"));
    }
    let Some(namespace) = sysctl_namespace(&path) else {
        let error =
            format!("sysctl {key:?} is not in a separate kernel namespace: it would change the host's");
        return Err(Error::new(error));
    };
    if path == Path::new("kernel/hostname") {
        return Err(Error::new("set by /hostname"));
    }
    if !has_namespace(linux, namespace) {
        let error =
            format!("sysctl {key:?} would change the host's: the container has no {namespace} namespace");
        return Err(Error::new(error));
    }
    Ok(())
}

/// The namespace that the sysctl at `path` below /proc/sys belongs to, if it is not the whole
/// machine's (namespaces(7)).
pub fn sysctl_namespace(path: &Path) -> Option<LinuxNamespaceType> {
    match path.to_str().unwrap_or_default() {
        path if path.starts_with("net/") => Some(LinuxNamespaceType::Network),
        path if path.starts_with("user/") => Some(LinuxNamespaceType::User),
        path if path.starts_with("fs/mqueue/") => Some(LinuxNamespaceType::Ipc),
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => Some(LinuxNamespaceType::Ipc),
        "kernel/domainname" | "kernel/hostname" => Some(LinuxNamespaceType::Uts),
        _ => None,
    }
}

/// The path below /proc/sys of a sysctl key, written with dots or with slashes (sysctl(8)): what
/// separates the first two parts separates them all, and the other one is part of a name.
pub fn sysctl_path(key: &str) -> Result<PathBuf> {
    let dotted = key.find(['.', '/']).is_none_or(|position| key.as_bytes()[position] == b'.');
    let swap = |char| match char {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dotted { key.chars().map(swap).collect() } else { key.into() };
    let parts = path.split('/');
    if parts.clone().count() < 2
        || parts.into_iter().any(|part| matches!(part, "" | "." | ".."))
        || key.contains('\0')
    {
        return Err(Error::new(format!("{key:?} is not the name of a sysctl")));
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{check, parse};
    use oci_spec::runtime::Spec;

    #[test]
    fn names_are_paths_below_proc_sys() {
        let path = |key| sysctl_path(key).map(|path| path.to_str().unwrap_or_default().to_owned()).ok();
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.100/forwarding").as_deref(),
            Some("net/ipv4/conf/eth0.100/forwarding")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding").as_deref(),
            Some("net/ipv4/conf/eth0.100/forwarding")
        );
        for bad in ["", "net", "net..x", "/net/x", "net/../kernel/x", "../x", "net.ipv4."] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_container_must_have_the_namespace_of_each() {
        let error = |key: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},"linux":{{
                    "sysctl":{{"{key}":"1"}},"namespaces":[{{"type":"network"}},{{"type":"uts"}}]}}}}"#
            );
            let spec: Spec = parse(text.as_bytes()).expect("it parses");
            check(&spec).first().map(ToString::to_string).unwrap_or_default()
        };
        assert_eq!(error("net.ipv4.ip_forward"), "");
        assert_eq!(error("kernel.domainname"), "");
        assert_eq!(error("kernel.hostname"), "/linux/sysctl/kernel.hostname: set by /hostname");
        assert!(error("kernel.shmmax").contains("no ipc namespace"));
        assert!(error("user.max_user_namespaces").contains("no user namespace"));
        assert!(error("vm.swappiness").contains("is not in a separate kernel namespace"));
    }
}
