//! `process.scheduler`, `process.ioPriority`, `linux.memoryPolicy`, `linux.personality`.

use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::process::personality;
use crate::sys::scheduling::{SchedAttr, set_io_priority, set_memory_policy, set_scheduler};
use nix::errno::Errno;
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};
use std::fmt;

/// The scheduling policy (sched(7)).
#[derive(Debug)]
pub struct Scheduler {
    at: Pointer,
    attr: SchedAttr,
}

impl Scheduler {
    /// None where the configuration has none.
    pub fn plan(process: &Process, at: &Pointer) -> Result<Option<Self>> {
        let Some(scheduler) = process.scheduler() else { return Ok(None) };
        let at = at.key("scheduler");
        use LinuxSchedulerPolicy as Policy;
        let policy = match scheduler.policy() {
            Policy::SchedOther => libc::SCHED_OTHER,
            Policy::SchedFifo => libc::SCHED_FIFO,
            Policy::SchedRr => libc::SCHED_RR,
            Policy::SchedBatch => libc::SCHED_BATCH,
            Policy::SchedIso => 4, // reserved, and never in a released kernel: it says EINVAL
            Policy::SchedIdle => libc::SCHED_IDLE,
            Policy::SchedDeadline => libc::SCHED_DEADLINE,
        };
        let flag = |flag: &LinuxSchedulerFlag| match flag {
            LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
            LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
            LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
            LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
        };
        let nice = scheduler.nice().unwrap_or(0);
        if !(-20..=19).contains(&nice) {
            return Err(Error::new(format!("{nice} is not within -20 to 19")).at(at.key("nice")));
        }
        let priority = scheduler.priority().unwrap_or(0);
        let real_time = matches!(scheduler.policy(), Policy::SchedFifo | Policy::SchedRr);
        if if real_time { !(1..=99).contains(&priority) } else { priority != 0 } {
            let range = if real_time { "1 to 99" } else { "0, which is all this policy has" };
            return Err(Error::new(format!("{priority} is not within {range}")).at(at.key("priority")));
        }
        let deadline =
            [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or(0));
        if *scheduler.policy() != Policy::SchedDeadline && deadline != [0; 3] {
            return Err(Error::new("runtime, deadline and period are for SCHED_DEADLINE").at(at));
        }
        let attr = SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            policy: policy as u32,
            flags: list(scheduler.flags()).iter().map(flag).fold(0, |all, flag| all | flag as u64),
            nice,
            priority: priority as u32,
            runtime: deadline[0],
            deadline: deadline[1],
            period: deadline[2],
            ..SchedAttr::default()
        };
        Ok(Some(Scheduler { at, attr }))
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SchedAttr { policy, nice, priority, runtime, deadline, period, .. } = self.attr;
        write!(f, "scheduler: policy {policy}, nice {nice}, priority {priority}")?;
        if deadline == 0 { Ok(()) } else { write!(f, ", {runtime} of {period} ns within {deadline} ns") }
    }
}

impl Step for Scheduler {
    fn apply(&self, _: &mut Init) -> Result<()> {
        set_scheduler(&self.attr).map_err(|failed| {
            let deadline = self.attr.policy == libc::SCHED_DEADLINE as u32;
            let hint =
                "process scheduler can't be used together with AllowedCPUs: a deadline needs all of them";
            let refused = failed.errno == Errno::EPERM && deadline;
            let error = Error::from(failed).at(self.at.clone());
            if refused { error.hint(hint) } else { error }
        })
    }
}

/// The I/O priority (ioprio_set(2)).
pub struct IoPriority {
    at: Pointer,
    class: u16,
    priority: u16,
}

impl IoPriority {
    /// None where the configuration has none.
    pub fn plan(process: &Process, at: &Pointer) -> Result<Option<Self>> {
        let Some(configured) = process.io_priority() else { return Ok(None) };
        let at = at.key("ioPriority");
        let class = match configured.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        match configured.priority() {
            priority @ 0..=7 => Ok(Some(IoPriority { at, class, priority: priority as u16 })),
            other => Err(Error::new(format!("{other} is not within 0 to 7")).at(at.key("priority"))),
        }
    }
}

impl fmt::Display for IoPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I/O priority: class {}, {}", self.class, self.priority)
    }
}

impl Step for IoPriority {
    fn apply(&self, _: &mut Init) -> Result<()> {
        set_io_priority(self.class, self.priority).at(&self.at)
    }
}

/// The NUMA memory policy (set_mempolicy(2)).
pub struct MemoryPolicy {
    mode: u32,
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    /// None where the configuration has none.
    pub fn plan(linux: &Linux) -> Result<Option<Self>> {
        let Some(policy) = linux.memory_policy() else { return Ok(None) };
        let at = Pointer::to("/linux/memoryPolicy");
        use MemoryPolicyModeType as Mode;
        let mode = match policy.mode() {
            Mode::MpolDefault => libc::MPOL_DEFAULT,
            Mode::MpolPreferred => libc::MPOL_PREFERRED,
            Mode::MpolBind => libc::MPOL_BIND,
            Mode::MpolInterleave => libc::MPOL_INTERLEAVE,
            Mode::MpolLocal => libc::MPOL_LOCAL,
            Mode::MpolPreferredMany => 5,
            Mode::MpolWeightedInterleave => 6,
        };
        let flag = |flag: &MemoryPolicyFlagType| match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
            MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
            MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
        };
        let mode = list(policy.flags()).iter().map(flag).fold(mode, |all, flag| all | flag) as u32;
        let nodes = policy.nodes().as_deref().unwrap_or_default();
        let nodes =
            numbers(nodes).map_err(|error| error.prefix("invalid memory policy node").at(at.key("nodes")))?;
        let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
        let (takes_none, takes_some) = match policy.mode() {
            Mode::MpolDefault | Mode::MpolLocal => (true, false),
            Mode::MpolPreferred => (true, true),
            _ => (false, true),
        };
        match (nodes.is_empty(), takes_none, takes_some) {
            (true, false, _) => {
                Err(Error::new("invalid memory policy: the mode needs at least one node").at(at.key("nodes")))
            }
            (false, _, false) => {
                let error = format!("invalid memory policy: the mode requires 0 nodes but got {count}");
                Err(Error::new(error).at(at.key("nodes")))
            }
            _ => Ok(Some(MemoryPolicy { mode, nodes })),
        }
    }
}

/// A list like `0-3,7` as a bit mask.
pub fn numbers(text: &str) -> Result<Vec<u64>> {
    const MOST: usize = 8192; // more CPUs or nodes than any kernel is built for
    let bad = || Error::new(format!("{text:?} is not a list of numbers and ranges like 0-3,7"));
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&number| number < MOST);
        let (first, last) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
        if first > last {
            return Err(bad());
        }
        mask.resize(mask.len().max(last / 64 + 1), 0u64);
        (first..=last).for_each(|number| mask[number / 64] |= 1 << (number % 64));
    }
    Ok(mask)
}

impl fmt::Display for MemoryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory policy {:#x}, nodes {:x?}", self.mode, self.nodes)
    }
}

impl Step for MemoryPolicy {
    fn apply(&self, _: &mut Init) -> Result<()> {
        set_memory_policy(self.mode, &self.nodes).at(&Pointer::to("/linux/memoryPolicy"))
    }
}

/// The execution domain (personality(2)).
pub struct Personality(libc::c_ulong);

impl Personality {
    /// None where the configuration has none.
    pub fn plan(linux: &Linux) -> Option<Self> {
        let domain = match linux.personality().as_ref()?.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        };
        Some(Personality(domain))
    }
}

impl fmt::Display for Personality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == 0 { "personality LINUX" } else { "personality LINUX32" })
    }
}

impl Step for Personality {
    fn apply(&self, _: &mut Init) -> Result<()> {
        personality(self.0).at(&Pointer::to("/linux/personality"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("0-3, 7"), Ok(vec![0b1000_1111]));
        assert_eq!(numbers("64"), Ok(vec![0, 1]));
        assert_eq!(numbers(""), Ok(vec![]));
        for bad in ["3-1", "x", "1-", "99999", "-1"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictory_policies_are_refused() {
        let scheduler = |text: &str| {
            let process: Process = parse(
                format!(r#"{{"cwd":"/","user":{{"uid":0,"gid":0}},"scheduler":{{{text}}}}}"#).as_bytes(),
            )
            .expect("it parses");
            Scheduler::plan(&process, &Pointer::to("/process")).map_err(|error| error.to_string())
        };
        assert!(scheduler(r#""policy":"SCHED_FIFO","priority":5"#).is_ok());
        let flags = scheduler(r#""policy":"SCHED_OTHER","flags":["SCHED_FLAG_RESET_ON_FORK"]"#);
        assert_eq!(flags.expect("accepted").expect("given").attr.flags, 1);
        for bad in [
            r#""policy":"SCHED_FIFO""#,
            r#""policy":"SCHED_OTHER","priority":1"#,
            r#""policy":"SCHED_OTHER","nice":20"#,
            r#""policy":"SCHED_BATCH","runtime":1"#,
        ] {
            assert!(scheduler(bad).is_err_and(|error| error.starts_with("/process/scheduler")), "{bad}");
        }
    }

    #[test]
    fn memory_policies_take_the_nodes_they_need() {
        let policy = |text: &str| {
            let linux: Linux =
                parse(format!(r#"{{"memoryPolicy":{{{text}}}}}"#).as_bytes()).expect("it parses");
            MemoryPolicy::plan(&linux)
        };
        let interleave = policy(r#""mode":"MPOL_INTERLEAVE","nodes":"2-3","flags":["MPOL_F_STATIC_NODES"]"#);
        assert!(interleave.is_ok_and(|policy| {
            policy.is_some_and(|policy| policy.mode == 0x8003 && policy.nodes == [0b1100])
        }));
        assert!(policy(r#""mode":"MPOL_BIND""#).is_err());
        assert!(policy(r#""mode":"MPOL_LOCAL","nodes":"0""#).is_err());
    }
}
