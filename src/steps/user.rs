//! `process.user`, and no_new_privs.

use super::{Init, Step};
use crate::config::list;
use crate::error::{Context, Error, Pointer, Result};
use crate::sys::{Call, identity, process};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Process;
use std::fmt;

/// Becomes the container's user. Capabilities stay permitted for the steps that follow, but for a
/// user other than root they are no longer effective: what is looked up next is seen as the user
/// sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    at: Pointer,
    uid: u32,
    gid: u32,
    /// None: the caller's are kept.
    groups: Option<Vec<u32>>,
    umask: u32,
}

/// config.md leaves it to the caller's; runc's is this, and images are tested with it.
const DEFAULT_UMASK: u32 = 0o022;

impl User {
    /// The process's user. With `keep_groups` the caller's supplementary groups stay (crun's annotation
    /// run.oci.keep_original_groups): the only way for an ordinary user to have them, who may not set
    /// them.
    pub fn plan(process: &Process, at: &Pointer, keep_groups: bool) -> Self {
        let user = process.user();
        User {
            at: at.key("user"),
            uid: user.uid(),
            gid: user.gid(),
            groups: (!keep_groups).then(|| list(user.additional_gids()).to_vec()),
            umask: user.umask().unwrap_or(DEFAULT_UMASK),
        }
    }

    fn refused(&self, key: &str, id: u32, errno: Errno) -> Error {
        let error = match errno {
            Errno::EINVAL => Error::new(format!("cannot set{key} to unmapped {key} {id} in user namespace")),
            _ => Error::from(crate::sys::Failed { call: format!("setres{key}({id}, {id}, {id})"), errno }),
        };
        error.at(self.at.key(key))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}, ", self.uid, self.gid)?;
        match &self.groups {
            Some(groups) => write!(f, "groups {groups:?}, ")?,
            None => f.write_str("the caller's groups, ")?,
        }
        write!(f, "umask {:04o}", self.umask)
    }
}

impl Step for User {
    fn apply(&self, _: &mut Init) -> Result<()> {
        umask(Mode::from_bits_truncate(self.umask));
        if self.uid != 0 {
            // A change from root to another takes the capabilities away unless told otherwise.
            identity::set_keep_capabilities(true)?;
        }
        // Else always, also to none: the caller's groups are not the container's.
        if let Some(groups) = &self.groups {
            match identity::set_groups(groups).call(|| format!("setgroups({groups:?})")) {
                // A user namespace whose mapping an ordinary user made may not set any.
                Err(failed) if failed.errno == Errno::EPERM && groups.is_empty() => {}
                other => other.at(&self.at.key("additionalGids"))?,
            }
        }
        // In a user namespace it became root there before.
        if (self.uid, self.gid) != (0, 0) || !identity::is_root_throughout() {
            identity::set_group(self.gid).map_err(|errno| self.refused("gid", self.gid, errno))?;
            identity::set_user(self.uid).map_err(|errno| self.refused("uid", self.uid, errno))?;
            // The change may have made this process one that others of its user can trace.
            process::prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
        }
        Ok(())
    }
}

/// `process.noNewPrivileges`.
pub struct NoNewPrivileges;

impl fmt::Display for NoNewPrivileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no new privileges")
    }
}

impl Step for NoNewPrivileges {
    fn apply(&self, _: &mut Init) -> Result<()> {
        Ok(nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS, 1)".into())?)
    }
}
