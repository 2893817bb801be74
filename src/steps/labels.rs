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
    /// What is written: `exec PROFILE` or a context.
    value: String,
    /// Where; the first one that exists.
    files: &'static [&'static str],
}

impl ExecLabel {
    /// An AppArmor profile, for a host that has AppArmor.
    pub fn apparmor(profile: &str, at: Pointer) -> Result<Self> {
        let enabled = file::read(Path::new("/sys/module/apparmor/parameters/enabled"));
        if !enabled.is_ok_and(|enabled| enabled.starts_with('Y')) {
            return Err(Error::new("apparmor: config provided but apparmor not supported").at(at));
        }
        // The first since Linux 5.8, for hosts with several modules.
        let files = &["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"];
        Ok(ExecLabel { at, value: format!("exec {profile}"), files })
    }

    /// An SELinux context, for a host that has SELinux.
    pub fn selinux(label: &str, at: Pointer) -> Result<Self> {
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            let error = "selinux label is specified in config, but selinux is disabled or not supported";
            return Err(Error::new(error).at(at));
        }
        Ok(ExecLabel { at, value: label.into(), files: &["/proc/self/attr/exec"] })
    }
}

impl fmt::Display for ExecLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "label {:?}", self.value)
    }
}

impl Step for ExecLabel {
    fn apply(&self, _: &mut Init) -> Result<()> {
        if !statfs("/proc/self/attr").is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC) {
            return Err(Error::new("/proc is not a procfs").at(self.at.clone()));
        }
        for name in self.files {
            match file::write(Path::new(name), &self.value) {
                Err(failed) if failed.errno == Errno::ENOENT && self.files.last() != Some(name) => {}
                other => {
                    return other.doing(|| format!("unable to apply label {:?}", self.value)).at(&self.at);
                }
            }
        }
        Ok(())
    }
}
