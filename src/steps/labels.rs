//! `process.apparmorProfile` and `process.selinuxLabel`.

use super::{Init, Step};
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::file;
use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use std::fmt;
use std::path::Path;

/// Sets under which label of a security module the program is executed.
///
/// It is written through the host's procfs, before the root is changed: the container's could be
/// made to swallow it (CVE-2019-16884, CVE-2025-52881).
pub struct ExecLabel {
    at: Pointer,
    module: Module,
    /// What is written: `exec PROFILE` or a context.
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    AppArmor,
    SELinux,
}

impl Module {
    /// Fails where the host doesn't have it.
    fn check(self) -> Result<()> {
        match self {
            Module::AppArmor => {
                let enabled = file::read(Path::new("/sys/module/apparmor/parameters/enabled"));
                let enabled = enabled.is_ok_and(|enabled| enabled.starts_with('Y'));
                if enabled {
                    Ok(())
                } else {
                    Err(Error::new("apparmor: config provided but apparmor not supported"))
                }
            }
            Module::SELinux if Path::new("/sys/fs/selinux/enforce").exists() => Ok(()),
            Module::SELinux => Err(Error::new(
                "selinux label is specified in config, but selinux is disabled or not supported",
            )),
        }
    }

    /// Where its labels are written; the first one that exists.
    fn files(self) -> &'static [&'static str] {
        match self {
            // The first since Linux 5.8, for hosts with several modules.
            Module::AppArmor => &["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"],
            Module::SELinux => &["/proc/self/attr/exec"],
        }
    }
}

impl ExecLabel {
    /// An AppArmor profile.
    pub fn apparmor(profile: &str, at: Pointer) -> Self {
        ExecLabel { at, module: Module::AppArmor, value: format!("exec {profile}") }
    }

    /// An SELinux context.
    pub fn selinux(label: &str, at: Pointer) -> Self {
        ExecLabel { at, module: Module::SELinux, value: label.into() }
    }
}

impl fmt::Display for ExecLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "label {:?}", self.value)
    }
}

impl Step for ExecLabel {
    fn apply(&self, _: &mut Init) -> Result<()> {
        self.module.check().at(&self.at)?;
        if !statfs("/proc/self/attr").is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC) {
            return Err(Error::new("/proc is not a procfs").at(self.at.clone()));
        }
        for name in self.module.files() {
            match file::write(Path::new(name), &self.value) {
                Err(failed) if failed.errno == Errno::ENOENT && self.module.files().last() != Some(name) => {}
                other => {
                    return other.doing(|| format!("unable to apply label {:?}", self.value)).at(&self.at);
                }
            }
        }
        Ok(())
    }
}
