//! `linux.seccomp` as a filter of the kernel's (config-linux.md, "Seccomp").
//!
//! A profile becomes, for each architecture, a list of ranges of system call numbers with what is
//! decided for them (`profile`), and that becomes a binary tree of comparisons (`compiler`): half
//! as long to load as libseccomp's lists, and a few comparisons for each call instead of hundreds.

mod compiler;
mod profile;
mod syscalls;

use crate::config::list;
use crate::error::{Error, Pointer, Result};
use crate::sys::seccomp::Instruction;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

/// The most instructions that the kernel takes (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;

/// A filter, ready to be loaded.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The instructions.
    pub program: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
}

/// An architecture that one of the kernels damda runs on can have programs of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Architecture {
    /// The one that damda is built for.
    pub fn native() -> Self {
        if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 }
    }

    /// AUDIT_ARCH_*, which the kernel tells a filter (<linux/audit.h>).
    fn audit(self) -> u32 {
        match self {
            Architecture::X86_64 | Architecture::X32 => 0xc000_003e,
            Architecture::X86 => 0x4000_0003,
            Architecture::Aarch64 => 0xc000_00b7,
            Architecture::Arm => 0x4000_0028,
        }
    }

    /// Whether an argument is 32 bits wide.
    fn is_narrow(self) -> bool {
        matches!(self, Architecture::X86 | Architecture::X32 | Architecture::Arm)
    }

    /// The name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "SCMP_ARCH_X86_64",
            Architecture::X86 => "SCMP_ARCH_X86",
            Architecture::X32 => "SCMP_ARCH_X32",
            Architecture::Aarch64 => "SCMP_ARCH_AARCH64",
            Architecture::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// The architectures whose programs this one's kernel runs.
    fn family(self) -> &'static [Architecture] {
        match self {
            Architecture::X86_64 | Architecture::X86 | Architecture::X32 => {
                &[Architecture::X86_64, Architecture::X32, Architecture::X86]
            }
            Architecture::Aarch64 | Architecture::Arm => &[Architecture::Aarch64, Architecture::Arm],
        }
    }
}

/// Compiles a profile; None for one that allows everything.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Option<Filter>> {
    compile_for(seccomp, Architecture::native())
}

fn compile_for(seccomp: &LinuxSeccomp, native: Architecture) -> Result<Option<Filter>> {
    let at = Pointer::to("/linux/seccomp");
    if seccomp.default_action() == LinuxSeccompAction::ScmpActAllow && list(seccomp.syscalls()).is_empty() {
        return Ok(None);
    }
    let named = |architecture: Architecture| {
        list(seccomp.architectures()).iter().any(|name| name.to_string() == architecture.name())
    };
    // The machine's own is always filtered; of the others those that are named. A program of one
    // that isn't named is killed, as libseccomp does.
    let architectures = native.family().iter().copied().filter(|&one| one == native || named(one));
    let decisions: Vec<_> = architectures.map(|one| (one, profile::decide(seccomp, one))).collect();
    let program = compiler::program(&decisions);
    if program.len() > MOST_INSTRUCTIONS {
        let error =
            format!("the profile takes {} instructions, the kernel {MOST_INSTRUCTIONS}", program.len());
        return Err(Error::new(error).at(at));
    }
    Ok(Some(Filter { program, flags: flags(seccomp) }))
}

/// Whether an agent decides on some calls.
pub fn notifies(seccomp: &LinuxSeccomp) -> bool {
    list(seccomp.syscalls()).iter().any(|syscall| syscall.action() == LinuxSeccompAction::ScmpActNotify)
}

fn flags(seccomp: &LinuxSeccomp) -> u32 {
    use LinuxSeccompFilterFlag as Flag;
    let notifies = notifies(seccomp);
    let listener = if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let Some(configured) = seccomp.flags() else {
        // Without this, a filter also turns off speculation, at a price on every context switch;
        // runc's default since 1.1.
        return listener | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    };
    configured.iter().fold(listener, |flags, flag| {
        flags
            | match flag {
                Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                // There is one thread; and the kernel takes it beside a listener only in another form.
                Flag::SeccompFilterFlagTsync if notifies => 0,
                Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC as u32,
                // About waiting for the agent: without one the kernel refuses it.
                Flag::SeccompFilterFlagWaitKillableRecv if notifies => {
                    libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32
                }
                Flag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

#[cfg(test)]
mod tests;
