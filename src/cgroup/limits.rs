//! A container's limits: their values in the files of its cgroups, and its devices.

use super::group::{Cgroup, open_directory};
use super::{Missing, Write, devices};
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::{Call, bpf, file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use oci_spec::runtime::LinuxResources;
use std::os::fd::{AsFd, BorrowedFd};

impl Cgroup {
    /// Changes limits of a container that exists. `resources` are at `at` of what they were read from.
    pub fn update(&self, resources: &LinuxResources, at: &Pointer) -> Result<()> {
        if self.directories.is_empty() {
            return Err(Error::new("the container has no cgroup whose limits could be changed"));
        }
        self.check_memory(resources, at)?;
        let writes = super::writes(&self.with_both_of_quota(resources), at, self.unified)?;
        if let Some(unit) = &self.unit {
            unit.update(&writes, self.unified)?;
        }
        // Some values limit each other, as memory alone and with swap, or a quota and its period: what
        // the kernel refuses is tried once more when the others are written.
        let mut refused = Vec::new();
        for (at, write) in writes {
            match self.write(&write) {
                Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EBUSY)) => {
                    refused.push((at, write));
                }
                other => other.at(&at)?,
            }
        }
        refused.iter().try_for_each(|(at, write)| self.write(write).at(at))
    }

    /// A quota and its period are one value to v2 and to systemd: where one is given, the other is what it is.
    fn with_both_of_quota(&self, resources: &LinuxResources) -> LinuxResources {
        let mut resources = resources.clone();
        let Some(cpu) = resources.cpu_mut() else { return resources };
        let (quota, period) =
            (cpu.quota().filter(|&quota| quota != 0), cpu.period().filter(|&period| period != 0));
        if quota.is_some() == period.is_some() {
            return resources;
        }
        let text = |name: &str| {
            let directory = self.directory_of("cpu");
            directory.and_then(|directory| file::read(&directory.file(name)).ok()).unwrap_or_default()
        };
        let now = match self.unified {
            true => text("cpu.max"),
            false => format!("{} {}", text("cpu.cfs_quota_us").trim(), text("cpu.cfs_period_us").trim()),
        };
        let mut now = now.split_whitespace();
        // `max`, which is no number, is no quota.
        let (quota_now, period_now) = (now.next().map(|quota| quota.parse().unwrap_or(-1)), now.next());
        if quota.is_none() {
            cpu.set_quota(quota_now);
        } else {
            cpu.set_period(period_now.and_then(|period| period.parse().ok()));
        }
        resources
    }

    /// config-linux.md, "Memory", checkBeforeUpdate: a limit below what is used would have processes
    /// killed.
    fn check_memory(&self, resources: &LinuxResources, at: &Pointer) -> Result<()> {
        let Some(memory) = resources.memory().filter(|memory| memory.check_before_update() == Some(true))
        else {
            return Ok(());
        };
        let name = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        let (Some(limit @ 1..), Some(directory)) = (memory.limit(), self.directory_of("memory")) else {
            return Ok(());
        };
        let used: i64 = file::read(&directory.file(name))?.trim().parse().unwrap_or(0);
        if used <= limit {
            return Ok(());
        }
        let error = format!("unable to set the limit to {limit}: the container uses {used} bytes now");
        Err(Error::new(error).at(at.key("memory").key("limit")).hint("checkBeforeUpdate is set"))
    }

    /// Writes one value.
    pub(super) fn write(&self, write: &Write) -> Result<()> {
        let mut missing = &write.missing;
        let (mut name, mut value) = (&write.file, &write.value);
        loop {
            let result = match self.directory_of(write.controller) {
                None => Err(crate::sys::Failed { call: format!("open({name:?})"), errno: Errno::ENOENT }),
                Some(directory) => file::write(&directory.file(name), value),
            };
            match (result, missing) {
                (Ok(()), _) => return Ok(()),
                (Err(failed), Missing::Skip) if failed.errno == Errno::ENOENT => return Ok(()),
                (Err(failed), Missing::Instead(other, converted)) if failed.errno == Errno::ENOENT => {
                    (name, value, missing) = (other, converted, &Missing::Error);
                }
                (Err(failed), _) => {
                    let absent = failed.errno == Errno::ENOENT;
                    let error = Error::from(failed).prefix(&format!("cannot set {name} to {value:?}"));
                    let hint = format!(
                        "this host has no cgroup controller {:?}, or not this part of it",
                        write.controller
                    );
                    return Err(if absent { error.hint(hint) } else { error });
                }
            }
        }
    }

    /// Lets the container use the devices that `rules` allow.
    pub(super) fn set_devices(&self, rules: &[devices::Rule]) -> Result<()> {
        let Some(directory) = self.directory_of("devices") else { return Ok(()) };
        if self.unified {
            return set_device_program(open_directory(&directory.path)?.as_fd(), rules);
        }
        let open = |name| file::open(AT_FDCWD, &directory.file(name), OFlag::O_WRONLY);
        let (mut allow, mut deny) = (None, None);
        for (allowed, line) in devices::v1_lines(rules)? {
            let (slot, name) =
                if allowed { (&mut allow, "devices.allow") } else { (&mut deny, "devices.deny") };
            let file = match slot {
                Some(file) => file,
                None => slot.insert(open(name)?),
            };
            file::write_to(file.as_fd(), &line)
                .call(|| format!("write({name:?}, {line:?})"))
                .at(&Pointer::to("/linux/resources/devices"))?;
        }
        allow.into_iter().chain(deny).for_each(file::leave);
        Ok(())
    }
}

/// Puts a program for `rules` in place of those that are attached, without a moment in between
/// in which there is none.
fn set_device_program(cgroup: BorrowedFd<'_>, rules: &[devices::Rule]) -> Result<()> {
    let at = Pointer::to("/linux/resources/devices");
    let program = bpf::load_device_program(&devices::program(rules)).at(&at)?;
    let attached = bpf::device_programs(cgroup).at(&at)?;
    let mut old = Vec::new();
    for id in attached {
        old.push(bpf::program_by_id(id).at(&at)?);
    }
    bpf::attach_device_program(cgroup, program.as_fd(), old.first().map(AsFd::as_fd)).at(&at)?;
    for other in old.iter().skip(1) {
        bpf::detach_device_program(cgroup, other).at(&at)?;
    }
    Ok(())
}
