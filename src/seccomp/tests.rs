//! Filters are run here as the kernel would, and compared with what the profile says, and with
//! another compiler's.

use super::*;
use crate::config::parse;
use crate::seccomp::compiler::{KILL, X32_BIT};
use crate::seccomp::profile::number;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn errno(number: u32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number
}

/// Runs a filter; panics where the kernel would have refused it.
fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend([0; 8]);
    arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let class = u32::from(code) & 7;
        if class == libc::BPF_LD {
            let k = k as usize;
            accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().expect("within the data"));
        } else if class == libc::BPF_ALU {
            accumulator &= k;
        } else if class == libc::BPF_RET {
            return k;
        } else {
            let test = u32::from(code) & 0xf0;
            let holds = match test {
                libc::BPF_JA => {
                    at += k as usize;
                    continue;
                }
                libc::BPF_JEQ => accumulator == k,
                libc::BPF_JGE => accumulator >= k,
                libc::BPF_JGT => accumulator > k,
                other => panic!("unexpected jump {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }
}

fn filter(profile: &str, native: Architecture) -> Filter {
    let seccomp: LinuxSeccomp = parse(profile.as_bytes()).expect("it parses");
    compile_for(&seccomp, native).expect("it compiles").expect("it is a filter")
}

/// What a filter for x86_64 says of a call by name.
fn ask(filter: &Filter, architecture: Architecture, name: &str, arguments: [u64; 6]) -> u32 {
    let number = number(name, architecture).unwrap_or_else(|| panic!("{name} on {architecture:?}"));
    let number = if architecture == Architecture::X32 { number | X32_BIT } else { number };
    run(&filter.program, architecture.audit(), number, arguments)
}

const NO_ARGUMENTS: [u64; 6] = [0; 6];

#[test]
fn each_architecture_has_its_own_numbers() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "syscalls":[{"names":["read","ioctl","statmount"],"action":"SCMP_ACT_ALLOW"}]}"#,
        Architecture::X86_64,
    );
    for architecture in [Architecture::X86_64, Architecture::X86, Architecture::X32] {
        assert_eq!(ask(&filter, architecture, "read", NO_ARGUMENTS), ALLOW, "{architecture:?}");
        assert_eq!(ask(&filter, architecture, "ioctl", NO_ARGUMENTS), ALLOW, "{architecture:?}");
        assert_eq!(ask(&filter, architecture, "write", NO_ARGUMENTS), errno(1), "{architecture:?}");
    }
    assert_eq!(run(&filter.program, Architecture::Arm.audit(), 3, NO_ARGUMENTS), KILL);
}

#[test]
fn architectures_that_are_not_named_are_killed() {
    let filter = filter(r#"{"defaultAction":"SCMP_ACT_LOG"}"#, Architecture::X86_64);
    assert_eq!(ask(&filter, Architecture::X86_64, "read", NO_ARGUMENTS), libc::SECCOMP_RET_LOG);
    assert_eq!(ask(&filter, Architecture::X32, "read", NO_ARGUMENTS), KILL);
    assert_eq!(ask(&filter, Architecture::X86, "read", NO_ARGUMENTS), KILL);
}

#[test]
fn arm_has_calls_far_away() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_ARM"],
            "syscalls":[{"names":["read","cacheflush"],"action":"SCMP_ACT_ALLOW"}]}"#,
        Architecture::Aarch64,
    );
    assert_eq!(ask(&filter, Architecture::Arm, "cacheflush", NO_ARGUMENTS), ALLOW);
    assert_eq!(ask(&filter, Architecture::Arm, "set_tls", NO_ARGUMENTS), ENOSYS);
    assert_eq!(ask(&filter, Architecture::Aarch64, "read", NO_ARGUMENTS), ALLOW);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let text = |default| {
        format!(
            r#"{{"defaultAction":"{default}","syscalls":[{{"names":["read","openat2"],"action":"SCMP_ACT_TRAP"}}]}}"#
        )
    };
    let strict = filter(&text("SCMP_ACT_ERRNO"), Architecture::X86_64);
    assert_eq!(ask(&strict, Architecture::X86_64, "mount", NO_ARGUMENTS), errno(1), "older than openat2");
    assert_eq!(ask(&strict, Architecture::X86_64, "faccessat2", NO_ARGUMENTS), ENOSYS, "newer");
    let lax = filter(&text("SCMP_ACT_ALLOW"), Architecture::X86_64);
    assert_eq!(ask(&lax, Architecture::X86_64, "faccessat2", NO_ARGUMENTS), ALLOW);
}

#[test]
fn comparisons_are_of_whole_arguments() {
    let values = [0u64, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x5_0000_0001, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_GE", |a, b| a >= b),
        ("SCMP_CMP_GT", |a, b| a > b),
    ];
    for (operator, holds) in operators {
        for value in values {
            let filter = filter(
                &format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[{{"names":["read"],
                        "action":"SCMP_ACT_ALLOW","args":[{{"index":2,"value":{value},"op":"{operator}"}}]}}]}}"#
                ),
                Architecture::X86_64,
            );
            for argument in values {
                let arguments = [0, 0, argument, 0, 0, 0];
                let expected = |holds| if holds { ALLOW } else { errno(1) };
                assert_eq!(
                    ask(&filter, Architecture::X86_64, "read", arguments),
                    expected(holds(argument, value)),
                    "{argument:#x} {operator} {value:#x}"
                );
                assert_eq!(
                    ask(&filter, Architecture::X86, "read", [0, 0, argument & 0xffff_ffff, 0, 0, 0]),
                    expected(holds(argument & 0xffff_ffff, value & 0xffff_ffff)),
                    "{argument:#x} {operator} {value:#x} in 32 bits"
                );
            }
        }
    }
}

#[test]
fn masks_and_several_conditions() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["socket"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
            {"names":["kill"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]},
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS"},
            {"names":["kill"],"action":"SCMP_ACT_LOG"}]}"#,
        Architecture::X86_64,
    );
    let ask = |name, first, second| ask(&filter, Architecture::X86_64, name, [first, second, 0, 0, 0, 0]);
    assert_eq!(ask("clone", 0x11, 0), ALLOW);
    assert_eq!(ask("clone", 0x1000_0011, 0), errno(38));
    assert_eq!(ask("socket", 1, 2), libc::SECCOMP_RET_TRAP, "the first rule that fits");
    assert_eq!(ask("socket", 1, 3), ALLOW);
    assert_eq!(ask("socket", 2, 2), errno(38));
    assert_eq!((ask("personality", 8, 0), ask("personality", 1, 0)), (ALLOW, errno(38)), "alternatives");
    assert_eq!(ask("kill", 7, 0), libc::SECCOMP_RET_KILL_PROCESS, "a rule without conditions settles it");
}

#[test]
fn i386_has_a_second_way_to_sockets() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],
            "syscalls":[{"names":["socket","shmat"],"action":"SCMP_ACT_ERRNO"}]}"#,
        Architecture::X86_64,
    );
    let ask = |name, kind| ask(&filter, Architecture::X86, name, [kind, 0, 0, 0, 0, 0]);
    assert_eq!(ask("socket", 0), errno(1));
    assert_eq!((ask("socketcall", 1), ask("socketcall", 2)), (errno(1), ALLOW));
    assert_eq!((ask("ipc", 21), ask("ipc", 22)), (errno(1), ALLOW));
}

#[test]
fn flags_and_listeners() {
    let flags = |text: &str| {
        filter(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO"{text}}}"#), Architecture::X86_64).flags
            as libc::c_ulong
    };
    assert_eq!(flags(""), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as libc::c_ulong);
    assert_eq!(flags(r#","flags":[]"#), 0);
    let log = r#","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    assert_eq!(flags(log), libc::SECCOMP_FILTER_FLAG_LOG as libc::c_ulong);
    let notify = r#","listenerPath":"/x","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]"#;
    let expected = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_LOG
        | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    assert_eq!(flags(&format!("{log}{notify}")), expected as libc::c_ulong);
}

#[test]
fn a_filter_that_allows_everything_is_none() {
    let seccomp: LinuxSeccomp = parse(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).expect("it parses");
    assert!(compile_for(&seccomp, Architecture::X86_64).expect("it compiles").is_none());
}

/// Every call with many arguments, against seccompiler: another author's compiler of another kind.
#[test]
fn another_compiler_agrees() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let rules: [(&str, u8, SeccompCmpOp, &str, u64, u64); 5] = [
        ("read", 0, SeccompCmpOp::Eq, "SCMP_CMP_EQ", 7, 0),
        ("write", 1, SeccompCmpOp::Gt, "SCMP_CMP_GT", 0x1_0000_0000, 0),
        ("ioctl", 5, SeccompCmpOp::Ne, "SCMP_CMP_NE", 40, 0),
        ("futex", 2, SeccompCmpOp::Le, "SCMP_CMP_LE", 99, 0),
        ("clone", 0, SeccompCmpOp::MaskedEq(0x7e02_0000), "SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0),
    ];
    let plain = ["close", "openat", "execve", "mmap", "exit_group", "statx", "clone3", "openat2"];
    let id = |name| i64::from(number(name, Architecture::native()).expect("a number"));
    let mut theirs: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        plain.iter().map(|name| (id(*name), vec![])).collect();
    let mut ours = format!(r#"{{"names":{},"action":"SCMP_ACT_ALLOW"}}"#, serde_json::json!(plain));
    for (name, index, operator, operator_name, value, second) in rules {
        let compared = if operator_name == "SCMP_CMP_MASKED_EQ" { second } else { value };
        let condition =
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, compared).expect("valid");
        theirs.insert(id(name), vec![SeccompRule::new(vec![condition]).expect("valid")]);
        ours += &format!(
            r#",{{"names":["{name}"],"action":"SCMP_ACT_ALLOW","args":[{{"index":{index},"value":{value},"valueTwo":{second},"op":"{operator_name}"}}]}}"#
        );
    }
    let theirs = SeccompFilter::new(
        theirs,
        SeccompAction::Errno(1),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().expect("known"),
    );
    let theirs: BpfProgram = theirs.expect("valid").try_into().expect("it compiles");
    // Their instructions are ours by another name.
    let theirs: Vec<_> =
        theirs.iter().map(|one| Instruction { code: one.code, jt: one.jt, jf: one.jf, k: one.k }).collect();
    let profile = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{ours}]}}"#);
    let ours = filter(&profile, Architecture::native());
    let interesting = [0, 7, 40, 99, 100, 0x7e02_0000, 0x1_0000_0000, 0x1_0000_0001, u64::MAX];
    let audit = Architecture::native().audit();
    let last = number("openat2", Architecture::native()).expect("a number");
    for number in 0..=last {
        for argument in interesting {
            for index in 0..6 {
                let mut arguments = [3; 6];
                arguments[index] = argument;
                assert_eq!(
                    run(&ours.program, audit, number, arguments),
                    run(&theirs, audit, number, arguments),
                    "call {number}, argument {index} = {argument:#x}"
                );
            }
        }
    }
    assert!(ours.program.len() < 100, "{}", ours.program.len());
}
