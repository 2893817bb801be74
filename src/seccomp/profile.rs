//! What a profile decides for every system call number of an architecture.

use super::Architecture;
use super::syscalls::{NONE, SYSCALLS};
use crate::config::list;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use std::collections::BTreeMap;

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Rules that look at arguments, in order; the first that fits decides.
    pub rules: Vec<Rule>,
    /// SECCOMP_RET_* for when none does.
    pub otherwise: u32,
}

/// An action for calls whose arguments fit all of the conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// SECCOMP_RET_*.
    pub action: u32,
}

/// What an argument must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which argument.
    pub index: usize,
    /// How it is compared …
    pub operator: LinuxSeccompOperator,
    /// … with what; the mask for a masked comparison, …
    pub value: u64,
    /// … whose other side this is.
    pub masked: u64,
}

impl From<&LinuxSeccompArg> for Condition {
    fn from(arg: &LinuxSeccompArg) -> Self {
        Condition {
            index: arg.index(),
            operator: arg.op(),
            value: arg.value(),
            masked: arg.value_two().unwrap_or(0),
        }
    }
}

/// The numbers from `first` on, up to the next range's, and what is decided for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first number.
    pub first: u32,
    /// What is decided.
    pub decision: Decision,
}

impl Decision {
    fn always(action: u32) -> Self {
        Decision { rules: Vec::new(), otherwise: action }
    }
}

/// Calls that i386 programs can also make through one call with a number for the kind.
const SOCKETCALL: [(&str, u64); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// As `SOCKETCALL`, for ipc(2).
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The number of a call, if the architecture has it.
pub fn number(name: &str, architecture: Architecture) -> Option<u32> {
    let index = SYSCALLS.binary_search_by_key(&name, |(name, _)| name).ok()?;
    let number = SYSCALLS[index].1[architecture as usize];
    (number != NONE).then_some(number)
}

/// Decides for all numbers, in ranges that begin at 0.
pub fn decide(seccomp: &LinuxSeccomp, architecture: Architecture) -> Vec<Range> {
    let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for syscall in list(seccomp.syscalls()) {
        let action = syscall.action().as_u32(syscall.errno_ret());
        if action == default {
            // It says nothing, and must not come between those that do.
            continue;
        }
        for name in syscall.names() {
            // Names that the table doesn't have are of other architectures, or newer than it.
            if let Some(number) = number(name, architecture) {
                add(&mut calls, number, syscall, action, default);
            }
            if let Some((number, kind)) =
                multiplexed(name, architecture).filter(|_| list(syscall.args()).is_empty())
            {
                let operator = LinuxSeccompOperator::ScmpCmpEq;
                let condition = Condition { index: 0, operator, value: kind, masked: 0 };
                let decision = calls.entry(number).or_insert_with(|| Decision::always(default));
                decision.rules.push(Rule { conditions: vec![condition], action });
            }
        }
    }
    ranges(calls, default, newer_than_profile(seccomp))
}

fn multiplexed(name: &str, architecture: Architecture) -> Option<(u32, u64)> {
    let kind = |table: &[(&str, u64)]| table.iter().find(|(other, _)| *other == name).map(|&(_, kind)| kind);
    let (call, kind) = match (kind(&SOCKETCALL), kind(&IPC)) {
        (Some(kind), _) => ("socketcall", kind),
        (_, Some(kind)) => ("ipc", kind),
        _ => return None,
    };
    let number = (architecture == Architecture::X86).then(|| number(call, architecture)).flatten()?;
    Some((number, kind))
}

fn add(calls: &mut BTreeMap<u32, Decision>, number: u32, syscall: &LinuxSyscall, action: u32, default: u32) {
    let args = list(syscall.args());
    let unconditional = |decision: &Decision| decision.rules.is_empty() && decision.otherwise != default;
    let decision = calls.entry(number).or_insert_with(|| Decision::always(default));
    // As under libseccomp, a rule about all calls settles the matter for those about some,
    // wherever it stands; of two about all, the first does.
    if unconditional(decision) {
        return;
    }
    if args.is_empty() {
        *decision = Decision::always(action);
        return;
    }
    let doubled = args
        .iter()
        .enumerate()
        .any(|(index, arg)| args[..index].iter().any(|other| other.index() == arg.index()));
    if doubled {
        // Two conditions on one argument are alternatives: libseccomp can't say "and" there, and
        // runc has always made two rules of it.
        decision.rules.extend(args.iter().map(|arg| Rule { conditions: vec![arg.into()], action }));
    } else {
        decision.rules.push(Rule { conditions: args.iter().map(Condition::from).collect(), action });
    }
}

/// What is answered to calls newer than any that the profile names: that there is no such call, so
/// that programs fall back to older ones, where the profile's answer would be an error that they
/// take for a real one (runc#2750).
fn newer_than_profile(seccomp: &LinuxSeccomp) -> Option<u32> {
    use LinuxSeccompAction as Action;
    match seccomp.default_action() {
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace => None,
        _ => Some(Action::ScmpActErrno.as_u32(Some(libc::ENOSYS as u32))),
    }
}

fn ranges(calls: BTreeMap<u32, Decision>, default: u32, newer: Option<u32>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |first: u32, decision: Decision| match ranges.last() {
        Some(last) if last.decision == decision => {}
        _ => ranges.push(Range { first, decision }),
    };
    let mut next = 0;
    for (number, decision) in calls {
        if number > next {
            push(next, Decision::always(default));
        }
        push(number, decision);
        next = number + 1;
    }
    push(next, Decision::always(newer.filter(|_| next > 0).unwrap_or(default)));
    ranges
}
