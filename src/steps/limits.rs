//! `process.rlimits`.

use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Pointer, Result};
use crate::sys::Call;
use crate::sys::process::prlimit;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{PosixRlimitType, Process};
use std::fmt;

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    at: Pointer,
    kind: PosixRlimitType,
    soft: u64,
    hard: u64,
}

impl Limit {
    fn resource(&self) -> u32 {
        use PosixRlimitType as Type;
        let resource = match self.kind {
            Type::RlimitCpu => libc::RLIMIT_CPU,
            Type::RlimitFsize => libc::RLIMIT_FSIZE,
            Type::RlimitData => libc::RLIMIT_DATA,
            Type::RlimitStack => libc::RLIMIT_STACK,
            Type::RlimitCore => libc::RLIMIT_CORE,
            Type::RlimitRss => libc::RLIMIT_RSS,
            Type::RlimitNproc => libc::RLIMIT_NPROC,
            Type::RlimitNofile => libc::RLIMIT_NOFILE,
            Type::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            Type::RlimitAs => libc::RLIMIT_AS,
            Type::RlimitLocks => libc::RLIMIT_LOCKS,
            Type::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            Type::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            Type::RlimitNice => libc::RLIMIT_NICE,
            Type::RlimitRtprio => libc::RLIMIT_RTPRIO,
            Type::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        #[allow(clippy::unnecessary_cast)] // its type is not the same in musl and glibc
        let resource = resource as u32;
        resource
    }

    /// Lets process `pid` raise its hard limit this far, which a user namespace takes the right
    /// from it to do itself.
    pub fn allow(&self, pid: Pid) -> Result<()> {
        let now = prlimit(pid, self.resource(), None)
            .call(|| format!("prlimit({pid}, {})", self.kind))
            .at(&self.at)?;
        match self.hard > now.1 {
            true => self.set(pid, (now.0, self.hard)),
            false => Ok(()),
        }
    }

    fn set(&self, pid: Pid, (soft, hard): (u64, u64)) -> Result<()> {
        match prlimit(pid, self.resource(), Some((soft, hard))) {
            Ok(_) => Ok(()),
            Err(errno) => {
                let call = || format!("prlimit({pid}, {}, {{{soft}, {hard}}})", self.kind);
                let error = Err::<(), _>(errno)
                    .call(call)
                    .doing(|| format!("error setting rlimit type {}", self.kind))
                    .at(&self.at);
                let hint = "the runtime has no CAP_SYS_RESOURCE, and may only lower a hard limit";
                error.map_err(|error| if errno == Errno::EPERM { error.hint(hint) } else { error })
            }
        }
    }
}

/// The limits of a process.
pub fn plan(process: &Process, at: &Pointer) -> Vec<Limit> {
    let limit = |(index, rlimit): (usize, &oci_spec::runtime::PosixRlimit)| Limit {
        at: at.key("rlimits").index(index),
        kind: rlimit.typ(),
        soft: rlimit.soft(),
        hard: rlimit.hard(),
    };
    list(process.rlimits()).iter().enumerate().map(limit).collect()
}

/// Sets the limits of this process: late, so that a low number of open files isn't in our own way.
pub struct Limits(pub Vec<Limit>);

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("limit")?;
        self.0.iter().try_for_each(|limit| write!(f, " {}={}:{}", limit.kind, limit.soft, limit.hard))
    }
}

impl Step for Limits {
    fn apply(&self, _: &mut Init) -> Result<()> {
        self.0.iter().try_for_each(|limit| limit.set(Pid::from_raw(0), (limit.soft, limit.hard)))
    }
}
