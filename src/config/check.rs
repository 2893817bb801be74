//! What the specification forbids, found before anything is created.
//!
//! Each rule names its field. What can only be known on the host (is the directory there, can the
//! controller be enabled) is checked where it is used.

use super::{check_linux, list};
use crate::error::{Error, Pointer, Result};
use oci_spec::runtime::{Capabilities, Hook, Hooks, Mount, Process, Spec};
use std::collections::HashSet;
use std::path::{Component, Path};

/// All that is wrong with `spec`, in the order of the specification's chapters.
pub fn check(spec: &Spec) -> Vec<Error> {
    let mut errors = Vec::new();
    errors.extend(check_version(spec.version()).err());
    errors.extend(check_platform(spec).err());
    errors.extend(check_root(spec).err());
    for (index, mount) in list(spec.mounts()).iter().enumerate() {
        let at = Pointer::to("/mounts").index(index);
        errors.extend(check_mount(mount).err().map(|error| error.at(at)));
    }
    if let Some(process) = spec.process() {
        errors.extend(check_process(process, &Pointer::to("/process")).err());
    }
    if let Some(hooks) = spec.hooks() {
        errors.extend(check_hooks(hooks).err());
    }
    for name in [spec.hostname(), spec.domainname()].into_iter().flatten() {
        if name.len() > 64 {
            errors.push(Error::new("longer than the kernel's 64 bytes").at(Pointer::to("/hostname")));
        }
    }
    if spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key("")) {
        errors.push(Error::new("a key is empty").at(Pointer::to("/annotations")));
    }
    check_linux::check(spec, &mut errors);
    errors
}

/// config.md, "Specification version".
fn check_version(version: &str) -> Result<()> {
    let at = Pointer::to("/ociVersion");
    if version.is_empty() {
        return Err(Error::new("missing").at(at).hint(format!("for example \"{}\"", super::SPEC_VERSION)));
    }
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<_> = core.split('.').collect();
    if parts.len() != 3 || !parts.iter().all(|part| number(part)) {
        return Err(Error::new(format!("{version:?} is not a semantic version like 1.2.3")).at(at));
    }
    match parts[0] {
        "1" => Ok(()),
        _ => Err(Error::new(format!(
            "unsupported version {version:?}: damda knows 1.0.0 to {}",
            super::SPEC_VERSION
        ))
        .at(at)),
    }
}

/// config.md, "Platform-specific configuration".
fn check_platform(spec: &Spec) -> Result<()> {
    let other = [
        (spec.windows().is_some(), "/windows", "Windows"),
        (spec.solaris().is_some(), "/solaris", "Solaris"),
        (spec.vm().is_some(), "/vm", "a virtual machine"),
        (spec.zos().is_some(), "/zos", "z/OS"),
    ];
    match other.into_iter().find(|(present, _, _)| *present) {
        Some((_, at, platform)) if spec.linux().is_none() => {
            Err(Error::new(format!("the configuration is for {platform}, not for Linux")).at(Pointer::to(at)))
        }
        _ => Ok(()),
    }
}

/// config.md, "Root".
fn check_root(spec: &Spec) -> Result<()> {
    match spec.root() {
        None => Err(Error::new("missing: it says where the root file system is").at(Pointer::to("/root"))),
        Some(root) if root.path().as_os_str().is_empty() => {
            Err(Error::new("missing or empty").at(Pointer::to("/root/path")))
        }
        Some(root) => without_nul(root.path(), Pointer::to("/root/path")),
    }
}

/// config.md, "Mounts".
fn check_mount(mount: &Mount) -> Result<()> {
    if mount.destination().as_os_str().is_empty() {
        return Err(Error::new("destination is empty"));
    }
    let strings = [mount.destination().to_str(), mount.source().as_ref().and_then(|source| source.to_str())];
    let strings = strings.into_iter().flatten().chain(mount.typ().as_deref());
    if strings.chain(list(mount.options()).iter().map(String::as_str)).any(|string| string.contains('\0')) {
        return Err(Error::new("a string contains a NUL character"));
    }
    match (list(mount.uid_mappings()).is_empty(), list(mount.gid_mappings()).is_empty()) {
        (true, false) | (false, true) => {
            Err(Error::new("uidMappings and gidMappings must be given together"))
        }
        _ => Ok(()),
    }
}

/// config.md, "Process", for config.json and for `exec --process`.
pub fn check_process(process: &Process, at: &Pointer) -> Result<()> {
    let args = at.key("args");
    if list(process.args()).is_empty() {
        return Err(Error::new("args must not be empty").at(args));
    }
    for (key, strings) in [("args", process.args()), ("env", process.env())] {
        for (index, string) in list(strings).iter().enumerate() {
            if string.contains('\0') {
                return Err(Error::new("contains a NUL character").at(at.key(key).index(index)));
            }
        }
    }
    for (index, entry) in list(process.env()).iter().enumerate() {
        if entry.find('=').is_none_or(|position| position == 0) {
            return Err(
                Error::new(format!("{entry:?} is not of the form NAME=VALUE")).at(at.key("env").index(index))
            );
        }
    }
    let cwd = at.key("cwd");
    if !process.cwd().is_absolute() {
        let path = process.cwd();
        return Err(Error::new(format!("cwd must be an absolute path, not {path:?}")).at(cwd));
    }
    without_nul(process.cwd(), cwd)?;
    let user = process.user();
    user_id(user.uid()).map_err(|error| error.at(at.key("user").key("uid")))?;
    group_id(user.gid()).map_err(|error| error.at(at.key("user").key("gid")))?;
    for (index, &gid) in list(user.additional_gids()).iter().enumerate() {
        group_id(gid).map_err(|error| error.at(at.key("user").key("additionalGids").index(index)))?;
    }
    if user.umask().is_some_and(|umask| umask > 0o7777) {
        return Err(Error::new("beyond 4095 (octal 7777)").at(at.key("user").key("umask")));
    }
    let mut kinds = Vec::new();
    for (index, rlimit) in list(process.rlimits()).iter().enumerate() {
        let at = at.key("rlimits").index(index);
        if kinds.contains(&rlimit.typ()) {
            return Err(Error::new(format!("{} is given twice", rlimit.typ())).at(at));
        }
        if rlimit.soft() > rlimit.hard() {
            return Err(Error::new(format!(
                "soft limit {} is above hard limit {}",
                rlimit.soft(),
                rlimit.hard()
            ))
            .at(at));
        }
        kinds.push(rlimit.typ());
    }
    match process.oom_score_adj() {
        Some(value) if !(-1000..=1000).contains(&value) => {
            Err(Error::new(format!("{value} is not within -1000 to 1000")).at(at.key("oomScoreAdj")))
        }
        _ => check_ambient(process, at),
    }
}

/// capabilities(7): an ambient capability is permitted and inheritable, or it isn't ambient. The
/// specification makes that a warning; runc drops such capabilities silently.
fn check_ambient(process: &Process, at: &Pointer) -> Result<()> {
    let Some(sets) = process.capabilities() else { return Ok(()) };
    let empty = Capabilities::new();
    let set = |set: &'_ Option<Capabilities>| -> HashSet<_> {
        set.as_ref().unwrap_or(&empty).iter().copied().collect()
    };
    let missing = &set(sets.ambient()) - &(&set(sets.permitted()) & &set(sets.inheritable()));
    if let Some(capability) = missing.iter().next() {
        let at = at.key("capabilities").key("ambient");
        crate::log::debug(|| format!("{at}: CAP_{capability} is not permitted and inheritable as well"));
    }
    Ok(())
}

/// A user id that is no id at all but setresuid(2)'s "leave it" is refused: with it a process
/// would stay root.
pub fn user_id(id: u32) -> Result<u32> {
    valid_id(id, "user")
}

/// As `user_id`, for groups.
pub fn group_id(id: u32) -> Result<u32> {
    valid_id(id, "group")
}

fn valid_id(id: u32, kind: &str) -> Result<u32> {
    match id {
        u32::MAX => Err(Error::new(format!("{id} is not a valid {kind} id"))),
        id => Ok(id),
    }
}

/// config.md, "POSIX-platform Hooks".
#[allow(deprecated)] // prestart is deprecated, not gone
fn check_hooks(hooks: &Hooks) -> Result<()> {
    let kinds: [(&str, &Option<Vec<Hook>>); 6] = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, hooks) in kinds {
        for (index, hook) in list(hooks).iter().enumerate() {
            let at = Pointer::to("/hooks").key(kind).index(index);
            if !hook.path().is_absolute() {
                let path = hook.path();
                return Err(Error::new(format!("{path:?} is not an absolute path")).at(at.key("path")));
            }
            without_nul(hook.path(), at.key("path"))?;
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(Error::new("must be greater than zero").at(at.key("timeout")));
            }
            for (key, strings) in [("args", hook.args()), ("env", hook.env())] {
                if let Some(index) = list(strings).iter().position(|string| string.contains('\0')) {
                    return Err(Error::new("contains a NUL character").at(at.key(key).index(index)));
                }
            }
        }
    }
    Ok(())
}

/// A path that can be passed to the kernel.
pub(super) fn without_nul(path: &Path, at: Pointer) -> Result<()> {
    match path.as_os_str().as_encoded_bytes().contains(&0) {
        true => Err(Error::new("contains a NUL character").at(at)),
        false => Ok(()),
    }
}

/// Whether a path goes up somewhere.
pub(super) fn goes_up(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn first_error(text: &str) -> String {
        let spec: Spec = parse(text.as_bytes()).expect("it parses");
        check(&spec).first().map(ToString::to_string).unwrap_or_default()
    }

    /// A minimal configuration with `extra` properties of the process.
    fn with_process(extra: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},
                "process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}}{extra}}}}}"#
        )
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.2.0+x"] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        for bad in ["", "1", "1.0", "1.0.x", "0.9.0", "2.0.0", "v1.0.0"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_for_another_system_says_so() {
        let text = r#"{"ociVersion":"1.0.0","windows":{"layerFolders":["a"]}}"#;
        assert_eq!(first_error(text), "/windows: the configuration is for Windows, not for Linux");
    }

    #[test]
    fn process_fields() {
        assert_eq!(first_error(&with_process("")), "");
        let cases = [
            (r#","oomScoreAdj":1001"#, "/process/oomScoreAdj: 1001 is not within -1000 to 1000"),
            (r#","env":["A"]"#, "/process/env/0: \"A\" is not of the form NAME=VALUE"),
            (r#","env":["A=1","B=\u0000"]"#, "/process/env/1: contains a NUL character"),
            (
                r#","rlimits":[{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU","soft":1,"hard":1}]"#,
                "/process/rlimits/1: RLIMIT_CPU is given twice",
            ),
            (
                r#","rlimits":[{"type":"RLIMIT_CPU","soft":2,"hard":1}]"#,
                "/process/rlimits/0: soft limit 2 is above hard limit 1",
            ),
        ];
        for (extra, expected) in cases {
            assert_eq!(first_error(&with_process(extra)), expected);
        }
    }

    #[test]
    fn the_id_that_means_leave_it_is_refused() {
        let text = with_process("").replace("\"uid\":0", "\"uid\":4294967295");
        assert_eq!(first_error(&text), "/process/user/uid: 4294967295 is not a valid user id");
    }

    #[test]
    fn hooks_are_absolute_and_their_timeout_positive() {
        let hooks = |hook: &str| {
            with_process("").replace("\"root\"", &format!("\"hooks\":{{\"poststop\":[{hook}]}},\"root\""))
        };
        assert_eq!(
            first_error(&hooks(r#"{"path":"a"}"#)),
            "/hooks/poststop/0/path: \"a\" is not an absolute path"
        );
        assert_eq!(
            first_error(&hooks(r#"{"path":"/a","timeout":0}"#)),
            "/hooks/poststop/0/timeout: must be greater than zero"
        );
    }
}
