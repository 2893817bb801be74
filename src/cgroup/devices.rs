//! Which devices a container may use: the rules, and both kernels' ways to say them.
//!
//! A rule overrides the ones before it, access by access; what no rule allows is denied
//! (config-linux.md, "Allowed Device list").

use crate::error::{Error, Pointer, Result};
use crate::sys::bpf::Instruction;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::fmt;

/// Accesses as bits, in the kernel's order (BPF_DEVCG_ACC_*).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Char,
    Block,
}

/// Allows or denies accesses to devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The field that it comes from.
    pub at: Pointer,
    allow: bool,
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} devices {}", if self.allow { "allow" } else { "deny" }, self.line())
    }
}

impl Rule {
    /// A rule for everything, which makes all before it void.
    fn is_blanket(&self) -> bool {
        self.kind == Kind::Any && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    /// The rule in the form of v1's files: `c 1:3 rwm`.
    fn line(&self) -> String {
        let kind = match self.kind {
            Kind::Any => 'a',
            Kind::Char => 'c',
            Kind::Block => 'b',
        };
        let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.accesses())
    }

    /// Its accesses as letters.
    fn accesses(&self) -> String {
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, char)| char).collect()
    }

    /// Whether every device that `other` is about, this is about as well.
    fn covers(&self, other: &Rule) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| ours.is_none() || ours == theirs;
        (self.kind == Kind::Any || self.kind == other.kind)
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }

    /// Whether there are devices that both are about.
    fn meets(&self, other: &Rule) -> bool {
        let number =
            |ours: Option<u32>, theirs: Option<u32>| ours.is_none() || theirs.is_none() || ours == theirs;
        (self.kind == Kind::Any || other.kind == Kind::Any || self.kind == other.kind)
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }
}

/// The rules of `linux.resources.devices`, with what every container has: nothing at first, and
/// the default devices after the last rule about everything, so that a configuration that begins
/// by denying all still has /dev/null, and one that denies it later doesn't.
pub fn rules(configured: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let at = Pointer::to("/linux/resources/devices");
    let nothing =
        Rule { at: at.clone(), allow: false, kind: Kind::Any, major: None, minor: None, access: ALL };
    let mut rules = vec![nothing];
    rules.extend(configured.iter().enumerate().map(|(index, device)| rule(device, at.index(index))));
    let blanket = rules.iter().rposition(Rule::is_blanket).unwrap_or(0);
    rules.drain(..blanket);
    if !rules[0].allow {
        rules.splice(1..1, defaults());
    }
    rules
}

fn rule(device: &LinuxDeviceCgroup, at: Pointer) -> Rule {
    let access = device.access().as_deref().unwrap_or_default().chars().fold(0, |access, char| {
        access
            | match char {
                'r' => READ,
                'w' => WRITE,
                'a' => ALL,
                _ => MKNOD,
            }
    });
    let kind = match device.typ() {
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        Some(LinuxDeviceType::B) => Kind::Block,
        _ => Kind::Any,
    };
    // -1 is how engines write "all".
    let number = |number: Option<i64>| number.filter(|&number| number >= 0).map(|number| number as u32);
    Rule {
        at,
        allow: device.allow(),
        kind,
        major: number(device.major()),
        minor: number(device.minor()),
        access,
    }
}

/// The devices that each container is given (config-linux.md, "Default Devices"), and what goes
/// with them: pseudoterminals, and making nodes, which alone gives access to nothing. /dev/net/tun
/// has always been there under runc, and VPN images count on it.
fn defaults() -> impl Iterator<Item = Rule> {
    let at = Pointer::to("/linux/resources/devices");
    let list: [(Kind, Option<u32>, Option<u32>, u8); 11] = [
        (Kind::Char, None, None, MKNOD),
        (Kind::Block, None, None, MKNOD),
        (Kind::Char, Some(1), Some(3), ALL),    // null
        (Kind::Char, Some(1), Some(5), ALL),    // zero
        (Kind::Char, Some(1), Some(7), ALL),    // full
        (Kind::Char, Some(1), Some(8), ALL),    // random
        (Kind::Char, Some(1), Some(9), ALL),    // urandom
        (Kind::Char, Some(5), Some(0), ALL),    // tty
        (Kind::Char, Some(5), Some(2), ALL),    // ptmx
        (Kind::Char, Some(136), None, ALL),     // pts/*
        (Kind::Char, Some(10), Some(200), ALL), // net/tun
    ];
    list.into_iter().map(move |(kind, major, minor, access)| Rule {
        at: at.clone(),
        allow: true,
        kind,
        major,
        minor,
        access,
    })
}

/// The rules in the form of systemd's DeviceAllow (systemd.resource-control(5)), which allows at least
/// what they do: (devices, access). None if everything is allowed but for exceptions, which it has no
/// words for. The cgroup's own rules or program say the rest.
pub fn systemd_list(rules: &[Rule]) -> Option<Vec<(String, String)>> {
    let blanket = rules.iter().rposition(Rule::is_blanket).unwrap_or(0);
    if rules.get(blanket).is_some_and(|first| first.is_blanket() && first.allow) {
        return None;
    }
    let mut list = Vec::new();
    for rule in rules[blanket..].iter().filter(|rule| rule.allow) {
        let kinds: &[&str] = match rule.kind {
            Kind::Any => &["char", "block"],
            Kind::Char => &["char"],
            Kind::Block => &["block"],
        };
        for kind in kinds {
            let devices = match (rule.major, rule.minor) {
                (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                (Some(major), None) => format!("{kind}-{major}"),
                (None, _) => format!("{kind}-*"),
            };
            list.push((devices, rule.accesses()));
        }
    }
    Some(list)
}

/// Whether v1 can express the rules.
pub fn check_v1(rules: &[Rule]) -> Result<()> {
    v1_lines(rules).map(drop)
}

/// The lines to write to `devices.allow` (true) and `devices.deny` (false), in order.
///
/// A v1 cgroup is a default and a list of exceptions (Documentation/admin-guide/cgroup-v1/
/// devices.rst). The kernel takes an exception back only in the very words that made it, and
/// silently ignores what it can't: so the list is kept here as well, and a rule that would deny
/// part of an exception is refused.
pub fn v1_lines(rules: &[Rule]) -> Result<Vec<(bool, String)>> {
    let mut lines = Vec::new();
    let mut default = false;
    let mut exceptions: Vec<Rule> = Vec::new();
    for rule in rules {
        if rule.is_blanket() {
            default = rule.allow;
            exceptions.clear();
            lines.push((rule.allow, "a".into()));
            continue;
        }
        // The kernel takes `a` for everything, whatever else the line says.
        let kinds: &[Kind] = match rule.kind {
            Kind::Any => &[Kind::Char, Kind::Block],
            Kind::Char => &[Kind::Char],
            Kind::Block => &[Kind::Block],
        };
        for &kind in kinds {
            let rule = Rule { kind, ..rule.clone() };
            if rule.allow != default {
                lines.push((rule.allow, rule.line()));
                exceptions.push(rule);
                continue;
            }
            for exception in &mut exceptions {
                let common = exception.access & rule.access;
                if common == 0 || !rule.meets(exception) {
                    continue;
                }
                if rule.covers(exception) {
                    lines.push((rule.allow, Rule { access: common, ..exception.clone() }.line()));
                    exception.access &= !rule.access;
                } else if common != MKNOD {
                    // Making a node of a device that can't be opened is left: it is harmless.
                    let what = if rule.allow { "allow" } else { "deny" };
                    let error =
                        format!("cgroup v1 cannot {what} {:?} within {:?}", rule.line(), exception.line());
                    return Err(Error::new(error).at(rule.at));
                }
            }
        }
    }
    Ok(lines)
}

/// The rules as an eBPF program: from the last to the first, each decides on the accesses that it
/// names and the later ones didn't.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        load(2, 0), // accesses << 16 | kind
        load(4, 4), // major
        load(5, 8), // minor
        move_register(3, 2),
        operation(AND, 3, 0xffff),
        operation(SHIFT_RIGHT, 2, 16),
    ];
    for rule in rules.iter().rev() {
        let mut body = Vec::new();
        let verdict = [operation(MOVE, 0, rule.allow.into()), EXIT];
        match (rule.access, rule.allow) {
            (ALL, _) => {}
            (access, true) => {
                body.push(operation(AND, 2, !i32::from(access)));
                body.push(jump_unless_equal(2, 0, verdict.len()));
            }
            (access, false) => {
                body.push(move_register(6, 2));
                body.push(operation(AND, 6, access.into()));
                body.push(jump_if_equal(6, 0, verdict.len()));
            }
        }
        body.extend(verdict);
        let kind = match rule.kind {
            Kind::Any => None,
            Kind::Block => Some(1),
            Kind::Char => Some(2),
        };
        let conditions: Vec<_> = [(3, kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        for (index, &(register, value)) in conditions.iter().enumerate() {
            let to_next_rule = conditions.len() - index - 1 + body.len();
            program.push(jump_unless_equal(register, value as i32, to_next_rule));
        }
        program.extend(body);
        if conditions.is_empty() && rule.access == ALL {
            // It decides on everything. The kernel refuses a program with a part that is never
            // reached.
            return program;
        }
    }
    program.extend([operation(MOVE, 0, 0), EXIT]);
    program
}

// Operations on a register with a constant (BPF_ALU64 | BPF_K).
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const LOAD_WORD: u8 = 0x61;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

/// Loads the word at `offset` of the context (register 1).
fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: 1 << 4 | register, offset, immediate: 0 }
}

fn operation(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn move_register(to: u8, from: u8) -> Instruction {
    Instruction { code: MOVE_REGISTER, registers: from << 4 | to, offset: 0, immediate: 0 }
}

fn jump_if_equal(register: u8, immediate: i32, over: usize) -> Instruction {
    Instruction { code: JUMP_IF_EQUAL, registers: register, offset: over as i16, immediate }
}

fn jump_unless_equal(register: u8, immediate: i32, over: usize) -> Instruction {
    Instruction { code: JUMP_UNLESS_EQUAL, ..jump_if_equal(register, immediate, over) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn rules_of(json: &str) -> Vec<Rule> {
        let devices: Vec<LinuxDeviceCgroup> = parse(json.as_bytes()).expect("it parses");
        rules(&devices)
    }

    /// What the rules say of one access, by their definition.
    fn by_definition(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let device =
            Rule { at: Pointer::to(""), allow: true, kind, major: Some(major), minor: Some(minor), access };
        [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| rule.access & bit != 0 && rule.covers(&device))
                .is_some_and(|rule| rule.allow)
        })
    }

    /// Runs the program as the kernel would.
    fn by_program(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        let context = [u64::from(access) << 16 | kind, major.into(), minor.into()];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            match code {
                LOAD_WORD => registers[to] = context[offset as usize / 4],
                AND => registers[to] &= immediate as i64 as u64,
                SHIFT_RIGHT => registers[to] >>= immediate,
                MOVE => registers[to] = immediate as u64,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_IF_EQUAL if registers[to] == immediate as u64 => at += offset as usize,
                JUMP_UNLESS_EQUAL if registers[to] != immediate as u64 => at += offset as usize,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {}
                _ => return registers[0] == 1,
            }
        }
    }

    #[test]
    fn the_program_means_what_the_rules_mean() {
        let lists = [
            "[]",
            r#"[{"allow":false,"access":"rwm"}]"#,
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#,
            r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"r"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"w"},
                {"allow":false,"type":"c","major":10,"access":"m"},
                {"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#,
        ];
        for list in lists {
            let rules = rules_of(list);
            let program = program(&rules);
            for kind in [Kind::Char, Kind::Block] {
                for (major, minor) in
                    [(1, 3), (1, 4), (5, 2), (8, 0), (10, 229), (10, 200), (136, 7), (250, 1)]
                {
                    for access in 1..=ALL {
                        assert_eq!(
                            by_program(&program, kind, major, minor, access),
                            by_definition(&rules, kind, major, minor, access),
                            "{list} {kind:?} {major}:{minor} {access:#b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_is_reached() {
        for list in ["[]", r#"[{"allow":false,"access":"rwm"}]"#, r#"[{"allow":false,"access":"w"}]"#] {
            let program = program(&rules_of(list));
            let mut reached = vec![false; program.len()];
            let mut to_visit = vec![0];
            while let Some(at) = to_visit.pop() {
                if std::mem::replace(&mut reached[at], true) || program[at] == EXIT {
                    continue;
                }
                to_visit.push(at + 1);
                if matches!(program[at].code, JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL) {
                    to_visit.push(at + 1 + program[at].offset as usize);
                }
            }
            assert!(reached.iter().all(|reached| *reached), "{list}: {reached:?}");
        }
    }

    #[test]
    fn without_rules_only_the_default_devices_are_there() {
        let rules = rules_of("[]");
        assert!(by_definition(&rules, Kind::Char, 1, 3, READ | WRITE));
        assert!(!by_definition(&rules, Kind::Block, 8, 0, READ));
    }

    #[test]
    fn v1_begins_with_everything_denied() {
        let lines = v1_lines(&rules_of(r#"[{"allow":false,"access":"rwm"}]"#)).expect("expressible");
        assert_eq!(lines[..3], [(false, "a".into()), (true, "c *:* m".into()), (true, "b *:* m".into())]);
        let lines = v1_lines(&rules_of(r#"[{"allow":true,"access":"rwm"}]"#)).expect("expressible");
        assert_eq!(lines, [(true, "a".into())], "a privileged container");
    }

    #[test]
    fn v1_takes_back_what_it_can_and_refuses_the_rest() {
        let with = |rule: &str| {
            v1_lines(&rules_of(&format!(
                r#"[{{"allow":false,"access":"rwm"}},{{"allow":true,"type":"b","major":8,"access":"rw"}},{rule}]"#
            )))
        };
        let lines = with(r#"{"allow":false,"type":"b","access":"w"}"#).expect("expressible");
        assert_eq!(lines.last(), Some(&(false, "b 8:* w".into())));
        let error = with(r#"{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}"#)
            .expect_err("inexpressible");
        assert_eq!(
            error.to_string(),
            "/linux/resources/devices/2: cgroup v1 cannot deny \"b 8:1 w\" within \"b 8:* rw\""
        );
    }
}
