//! `process.capabilities`.

use super::spec;
use caps::Capability;
use std::collections::BTreeSet;
use std::str::FromStr;

/// Docker's, of engine 28.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_MKNOD,
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_SETFCAP,
];

/// What an option names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// `ALL`.
    All,
    /// One.
    One(Capability),
}

/// Reads a name in any case, with or without `CAP_`.
pub fn parse(text: &str) -> Result<Named, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match Capability::from_str(&format!("CAP_{name}")) {
        _ if upper == "ALL" => Ok(Named::All),
        Ok(capability) => Ok(Named::One(capability)),
        Err(_) => Err(format!("there is no capability CAP_{name}: see capabilities(7)")),
    }
}

/// The capabilities by number, the defaults changed as Docker changes them: with all added, all but what
/// is dropped; with all dropped, nothing but what is added; otherwise what is both is added.
pub fn choose(add: &[Named], drop: &[Named]) -> Vec<Capability> {
    let named = |list: &[Named]| -> BTreeSet<u8> {
        list.iter()
            .filter_map(|named| if let Named::One(one) = named { Some(one.index()) } else { None })
            .collect()
    };
    let (added, dropped) = (named(add), named(drop));
    let default = |number: &u8| DEFAULT.iter().any(|one| one.index() == *number);
    let has = |number: u8| match (add.contains(&Named::All), drop.contains(&Named::All)) {
        (true, _) => !dropped.contains(&number),
        (false, true) => added.contains(&number),
        (false, false) => added.contains(&number) || default(&number) && !dropped.contains(&number),
    };
    let mut chosen: Vec<_> = caps::all().into_iter().filter(|one| has(one.index())).collect();
    chosen.sort_by_key(Capability::index);
    chosen
}

/// The sets of a process. A user other than root has none in effect, as after execve(2): they bound what
/// it can gain. None is inheritable or ambient.
pub fn sets(chosen: &[Capability], uid: u32) -> spec::Capabilities {
    let names: Vec<_> = chosen.iter().map(ToString::to_string).collect();
    let effective = if uid == 0 { names.clone() } else { Vec::new() };
    spec::Capabilities { bounding: names, effective: effective.clone(), permitted: effective }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(add: &[&str], drop: &[&str]) -> String {
        let named = |list: &[&str]| list.iter().map(|text| parse(text).expect("a name")).collect::<Vec<_>>();
        let names: Vec<_> = choose(&named(add), &named(drop)).iter().map(ToString::to_string).collect();
        names.join(" ")
    }

    #[test]
    fn added_and_dropped() {
        assert_eq!(choose(&[], &[]), DEFAULT);
        assert_eq!(chosen(&["sys_admin", "CAP_kill"], &["all"]), "CAP_KILL CAP_SYS_ADMIN");
        assert_eq!(chosen(&[], &["ALL"]), "");
        assert_eq!(choose(&[Named::All], &[]).len(), 41);
        assert!(!chosen(&["ALL"], &["cap_sys_admin"]).contains("CAP_SYS_ADMIN"));
        assert!(!chosen(&[], &["mknod"]).contains("CAP_MKNOD"));
        assert!(chosen(&["mknod"], &["mknod"]).contains("CAP_MKNOD"));
        assert!(chosen(&["bpf"], &[]).ends_with("CAP_SETFCAP CAP_BPF"));
    }
}
