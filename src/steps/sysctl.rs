//! `linux.sysctl`.

use super::{Init, Step};
use crate::config::sysctl_path;
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::Call;
use crate::sys::file;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use oci_spec::runtime::Linux;
use std::fmt;
use std::path::{Path, PathBuf};

const PROC_SYS: &str = "/proc/sys";

/// Sets kernel parameters of the container's namespaces.
///
/// By the host's procfs, which shows a process the parameters of its own namespaces: the
/// container's /proc is made of what the bundle says and could lead anywhere (CVE-2025-52881).
pub struct Sysctls {
    entries: Vec<(Pointer, PathBuf, String)>,
}

impl Sysctls {
    /// None where there are none.
    pub fn plan(linux: &Linux) -> Result<Option<Self>> {
        let mut entries = Vec::new();
        for (key, value) in linux.sysctl().iter().flatten() {
            entries.push((Pointer::to("/linux/sysctl").key(key), sysctl_path(key)?, value.clone()));
        }
        entries.sort_by(|a, b| a.1.cmp(&b.1));
        Ok((!entries.is_empty()).then_some(Sysctls { entries }))
    }
}

impl fmt::Display for Sysctls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sysctl")?;
        self.entries.iter().try_for_each(|(_, path, value)| write!(f, " {}={value:?}", path.display()))
    }
}

impl Step for Sysctls {
    fn apply(&self, _: &mut Init) -> Result<()> {
        if statfs(PROC_SYS).call(|| format!("statfs({PROC_SYS:?})"))?.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Error::new("/proc is not a procfs").at(Pointer::to("/linux/sysctl")));
        }
        for (at, path, value) in &self.entries {
            file::write(&Path::new(PROC_SYS).join(path), value).at(at)?;
        }
        Ok(())
    }
}
