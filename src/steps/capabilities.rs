//! `process.capabilities` (capabilities(7)).

use super::{Init, Step};
use crate::error::{Context, Pointer, Result};
use crate::sys::Call;
use crate::sys::identity::{self, CapabilitySets};
use nix::errno::Errno;
use oci_spec::runtime::{Capabilities as Names, Process};
use std::fmt;

/// The five sets, a bit for each capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    bounding: u64,
    sets: CapabilitySets,
    ambient: u64,
}

/// Sets of nothing: a set that the configuration doesn't have.
fn bits(names: &Option<Names>) -> u64 {
    use std::str::FromStr;
    let bit = |name: &oci_spec::runtime::Capability| {
        let name = name.to_string();
        let full = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
        caps::Capability::from_str(&full).map_or(0, |capability| capability.bitmask())
    };
    names.iter().flatten().map(bit).fold(0, |all, bit| all | bit)
}

/// The names of a set, for messages.
fn names(set: u64) -> String {
    let mut all: Vec<_> = caps::all().into_iter().filter(|one| set & one.bitmask() != 0).collect();
    all.sort_by_key(|capability| capability.index());
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Capabilities {
    /// The process's sets as far as they can be granted: within `available`, what the runtime
    /// itself has. The rest is warned of (config.md, "Linux Process", capabilities).
    pub fn plan(process: &Process, available: u64, at: &Pointer) -> Self {
        let Some(configured) = process.capabilities() else { return Capabilities::default() };
        let at = at.key("capabilities");
        let grant = |key: &str, names_of: &Option<Names>| {
            let wanted = bits(names_of);
            let missing = wanted & !available;
            if missing != 0 {
                crate::log::warning(&format!("{}: the runtime cannot grant {}", at.key(key), names(missing)));
            }
            wanted & available
        };
        let permitted = grant("permitted", configured.permitted());
        let inheritable = grant("inheritable", configured.inheritable());
        let sets = CapabilitySets {
            effective: grant("effective", configured.effective()) & permitted,
            permitted,
            // Never more than is asked for: what the caller has in it must not reach the container
            // (CVE-2022-24769, CVE-2022-27650).
            inheritable,
        };
        Capabilities {
            bounding: grant("bounding", configured.bounding()),
            sets,
            ambient: ambient(bits(configured.ambient()), permitted & inheritable, &at),
        }
    }
}

/// The kernel lets only those be ambient that are permitted and inheritable.
fn ambient(wanted: u64, possible: u64, at: &Pointer) -> u64 {
    if wanted & !possible != 0 {
        let names = names(wanted & !possible);
        crate::log::warning(&format!(
            "{}: can't raise ambient capability {names}: not permitted and inheritable",
            at.key("ambient")
        ));
    }
    wanted & possible
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CapabilitySets { effective, permitted, inheritable } = self.sets;
        let list = |set| if set == 0 { "none".to_owned() } else { names(set) };
        write!(f, "capabilities: effective {}, permitted {}", list(effective), list(permitted))?;
        write!(f, ", inheritable {}, ambient {}", list(inheritable), list(self.ambient))
    }
}

impl Step for Capabilities {
    fn apply(&self, _: &mut Init) -> Result<()> {
        identity::capset(self.sets).doing(|| "unable to apply caps".into())?;
        for capability in (0..64).filter(|capability| self.ambient & (1 << capability) != 0) {
            identity::raise_ambient(capability)
                .call(|| format!("prctl(PR_CAP_AMBIENT_RAISE, {capability})"))
                .doing(|| "unable to apply caps".into())?;
        }
        Ok(())
    }
}

/// Takes from the bounding set what the container shall never have. It needs CAP_SETPCAP, and so
/// comes before the user is changed.
pub struct BoundingSet(u64);

impl From<Capabilities> for BoundingSet {
    fn from(capabilities: Capabilities) -> Self {
        BoundingSet(capabilities.bounding)
    }
}

impl fmt::Display for BoundingSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bounding set: {}", if self.0 == 0 { "none".to_owned() } else { names(self.0) })
    }
}

impl Step for BoundingSet {
    fn apply(&self, _: &mut Init) -> Result<()> {
        for capability in (0..64).filter(|capability| self.0 & (1 << capability) == 0) {
            match identity::drop_from_bounding_set(capability) {
                Ok(()) => {}
                // There are no more.
                Err(Errno::EINVAL) => break,
                // An unprivileged caller's set is what it is: it can't be had from it either.
                Err(Errno::EPERM) if identity::in_bounding_set(capability) == Ok(false) => {}
                Err(errno) => Err(errno)
                    .call(|| format!("prctl(PR_CAPBSET_DROP, {capability})"))
                    .doing(|| "unable to apply bounding set".into())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn plan(capabilities: &str, available: u64) -> Capabilities {
        let process: Process = parse(
            format!(r#"{{"cwd":"/","user":{{"uid":0,"gid":0}},"capabilities":{{{capabilities}}}}}"#)
                .as_bytes(),
        )
        .expect("it parses");
        Capabilities::plan(&process, available, &Pointer::to("/process"))
    }

    const KILL: u64 = 1 << 5;
    const SYS_ADMIN: u64 = 1 << 21;

    #[test]
    fn unset_sets_are_empty() {
        assert_eq!(plan("", !0), Capabilities::default());
        let capabilities = plan(r#""permitted":["CAP_KILL"],"effective":["CAP_KILL"]"#, !0);
        assert_eq!(capabilities.sets, CapabilitySets { effective: KILL, permitted: KILL, inheritable: 0 });
        assert_eq!(capabilities.bounding, 0);
    }

    #[test]
    fn what_cannot_be_granted_is_left_out() {
        let both = r#"["CAP_KILL","CAP_SYS_ADMIN"]"#;
        let all = format!(
            r#""bounding":{both},"permitted":{both},"effective":{both},"inheritable":{both},"ambient":{both}"#
        );
        let capabilities = plan(&all, !SYS_ADMIN);
        assert_eq!(capabilities.bounding, KILL);
        assert_eq!(capabilities.sets, CapabilitySets { effective: KILL, permitted: KILL, inheritable: KILL });
        assert_eq!(capabilities.ambient, KILL);
        assert_eq!(plan(r#""ambient":["CAP_KILL"]"#, !0).ambient, 0, "not without the others");
    }

    #[test]
    fn the_plan_names_them() {
        let capabilities = plan(r#""permitted":["CAP_KILL","CAP_SYS_ADMIN"]"#, !0);
        let text = capabilities.to_string();
        assert!(text.contains("effective none, permitted CAP_KILL CAP_SYS_ADMIN"), "{text}");
    }
}
