//! A session keyring of the container's own, so that it doesn't see the caller's keys.

use super::{Init, Step};
use crate::error::{Context, Error, Result};
use crate::sys::process::{join_session_keyring, set_key_permissions};
use nix::errno::Errno;
use std::ffi::CString;
use std::fmt;

/// What the possessor may do (all), and what the owner may without possessing it: view, read,
/// search and link it. Search is what lets `exec` join it by name.
const PERMISSIONS: u32 = 0x3f00_0000 | 0x001b_0000;
/// In a user namespace, joining by name searches with the rights of others.
const OTHERS_SEARCH: u32 = 0x8;

/// Joins the session keyring of a container, which makes it for the first process.
pub struct JoinKeyring {
    name: CString,
    permissions: u32,
}

impl JoinKeyring {
    /// The keyring of container `id`.
    pub fn plan(id: &str, user_namespace: bool) -> Result<Self> {
        let name =
            CString::new(format!("_ses.{id}")).map_err(|_| Error::new("the id contains a NUL character"))?;
        let permissions = PERMISSIONS | if user_namespace { OTHERS_SEARCH } else { 0 };
        Ok(JoinKeyring { name, permissions })
    }
}

impl fmt::Display for JoinKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "join session keyring {:?}", self.name)
    }
}

impl Step for JoinKeyring {
    fn apply(&self, _: &mut Init) -> Result<()> {
        match join_session_keyring(&self.name) {
            // A kernel without keyrings has none to hide.
            Err(failed) if failed.errno == Errno::ENOSYS => Ok(()),
            Err(failed) => Err(Error::from(failed)
                .prefix("unable to join session keyring")
                .hint("see /proc/sys/kernel/keys for the quotas, or use --no-new-keyring")),
            Ok(key) => set_key_permissions(key, self.permissions)
                .doing(|| "unable to set the session keyring's permissions".into()),
        }
    }
}
