//! Classic BPF from what is decided for each number.
//!
//! Jumps go forward only, and conditional ones 255 instructions at most; code is therefore put
//! together from the leaves, whose lengths are known when the jump over them is made.

use super::Architecture;
use super::profile::{Condition, Decision, Range, Rule};
use crate::sys::seccomp::Instruction;
use oci_spec::runtime::LinuxSeccompOperator as Operator;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Set in the numbers of x32's calls.
pub const X32_BIT: u32 = 0x4000_0000;

/// What becomes of a program of an architecture that the profile doesn't name.
pub const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

fn load(offset: u32) -> Instruction {
    Instruction { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn give(action: u32) -> Instruction {
    Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn and(mask: u32) -> Instruction {
    Instruction { code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, jt: 0, jf: 0, k: mask }
}

fn skip(count: usize) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: count as u32 }
}

/// Comparisons of the accumulator with a constant.
#[derive(Clone, Copy)]
enum Test {
    Equal,
    AtLeast,
    Above,
}

fn compare(test: Test, constant: u32, jt: u8, jf: u8) -> Instruction {
    let test = match test {
        Test::Equal => libc::BPF_JEQ,
        Test::AtLeast => libc::BPF_JGE,
        Test::Above => libc::BPF_JGT,
    };
    Instruction { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k: constant }
}

/// Goes on with `yes` where the test holds, and with `no` where it doesn't. Both end in a return.
fn branch(test: Test, constant: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = Vec::with_capacity(yes.len() + no.len() + 2);
    match u8::try_from(no.len()) {
        Ok(over) => code.push(compare(test, constant, over, 0)),
        Err(_) => code.extend([compare(test, constant, 0, 1), skip(no.len())]),
    }
    code.extend(no);
    code.extend(yes);
    code
}

/// The whole filter.
pub fn program(decisions: &[(Architecture, Vec<Range>)]) -> Vec<Instruction> {
    let ranges_of =
        |wanted| decisions.iter().find(|(one, _)| *one == wanted).map(|(_, ranges)| ranges.as_slice());
    let mut code = vec![give(KILL)];
    for (architecture, ranges) in decisions.iter().rev() {
        let own = match architecture {
            // It shares its AUDIT_ARCH with x86_64.
            Architecture::X32 => continue,
            Architecture::X86_64 => x86_64(ranges, ranges_of(Architecture::X32)),
            other => [vec![load(NUMBER)], tree(ranges, *other)].concat(),
        };
        code = branch(Test::Equal, architecture.audit(), own, code);
    }
    code.insert(0, load(ARCHITECTURE));
    code
}

/// x86_64 and x32, told apart by a bit of the number.
fn x86_64(wide: &[Range], narrow: Option<&[Range]>) -> Vec<Instruction> {
    let x32 = match narrow {
        None => vec![give(KILL)],
        Some(ranges) => {
            let mut code = vec![and(!X32_BIT)];
            code.extend(tree(ranges, Architecture::X32));
            code
        }
    };
    let mut code = vec![load(NUMBER)];
    code.extend(branch(Test::AtLeast, X32_BIT, x32, tree(wide, Architecture::X86_64)));
    code
}

/// A binary search for the range that the number is in.
fn tree(ranges: &[Range], architecture: Architecture) -> Vec<Instruction> {
    match ranges {
        [] => vec![give(KILL)],
        [range] => leaf(&range.decision, architecture),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(Test::AtLeast, high[0].first, tree(high, architecture), tree(low, architecture))
        }
    }
}

fn leaf(decision: &Decision, architecture: Architecture) -> Vec<Instruction> {
    let mut code = vec![give(decision.otherwise)];
    for rule in decision.rules.iter().rev() {
        code = rule_code(rule, code, architecture);
    }
    code
}

/// The rule's action where all conditions hold, else `next`.
fn rule_code(rule: &Rule, next: Vec<Instruction>, architecture: Architecture) -> Vec<Instruction> {
    // From the last condition to the first: what follows each where it fails is the rest of the
    // conditions' code, the action, and then `next`.
    let mut body = vec![give(rule.action)];
    for condition in rule.conditions.iter().rev() {
        body = condition_code(condition, body, architecture);
    }
    body.extend(next);
    body
}

/// Goes on with `then` where the condition holds, and past its end where it doesn't.
fn condition_code(
    condition: &Condition,
    then: Vec<Instruction>,
    architecture: Architecture,
) -> Vec<Instruction> {
    let offset = ARGUMENTS + 8 * condition.index as u32;
    let (low_at, high_at) =
        if cfg!(target_endian = "little") { (offset, offset + 4) } else { (offset + 4, offset) };
    // With a mask, `value` is the mask and `valueTwo` what is compared.
    let (mask, value) = match condition.operator {
        Operator::ScmpCmpMaskedEq => (Some(condition.value), condition.masked & condition.value),
        _ => (None, condition.value),
    };
    let (test, negated) = match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (Test::Equal, false),
        Operator::ScmpCmpNe => (Test::Equal, true),
        Operator::ScmpCmpGe => (Test::AtLeast, false),
        Operator::ScmpCmpLt => (Test::AtLeast, true),
        Operator::ScmpCmpGt => (Test::Above, false),
        Operator::ScmpCmpLe => (Test::Above, true),
    };
    let word = |at: u32, mask: Option<u64>| -> Vec<Instruction> {
        [load(at)].into_iter().chain(mask.map(|mask| and(mask as u32))).collect()
    };
    let to_end = then.len();
    let mut code = word(low_at, mask);
    code.extend(go_on_if(test, negated, value as u32, to_end));
    let to_then = code.len();
    code.extend(then);
    if architecture.is_narrow() {
        return code;
    }
    // The high word decides, unless it is equal.
    let (high, to_end) = ((value >> 32) as u32, code.len());
    let mut whole = word(high_at, mask.map(|mask| mask >> 32));
    match test {
        Test::Equal => {
            whole.extend(go_on_if(Test::Equal, false, high, if negated { to_then } else { to_end }))
        }
        Test::AtLeast | Test::Above => {
            let (if_larger, if_smaller) = if negated { (to_end, to_then) } else { (to_then, to_end) };
            let smaller = go_on_if(Test::Equal, false, high, if_smaller);
            whole.extend(go_on_if(Test::Above, true, high, if_larger + smaller.len()));
            whole.extend(smaller);
        }
    }
    whole.extend(code);
    whole
}

/// Goes on where the test (or its negation) holds, else skips `over` instructions.
fn go_on_if(test: Test, negated: bool, constant: u32, over: usize) -> Vec<Instruction> {
    match (u8::try_from(over), negated) {
        (Ok(over), false) => vec![compare(test, constant, 0, over)],
        (Ok(over), true) => vec![compare(test, constant, over, 0)],
        (Err(_), false) => vec![compare(test, constant, 1, 0), skip(over)],
        (Err(_), true) => vec![compare(test, constant, 0, 1), skip(over)],
    }
}
