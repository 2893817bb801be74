//! `/hostname` and `/domainname`.

use super::{Init, Step};
use crate::error::Result;
use crate::sys::Call;
use crate::sys::process::set_domain_name;
use std::fmt;

/// Sets the host name of the container's UTS namespace.
pub struct Hostname(pub String);

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hostname {:?}", self.0)
    }
}

impl Step for Hostname {
    fn apply(&self, _: &mut Init) -> Result<()> {
        Ok(nix::unistd::sethostname(&self.0).call(|| format!("sethostname({:?})", self.0))?)
    }
}

/// Sets its NIS domain name.
pub struct Domainname(pub String);

impl fmt::Display for Domainname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domainname {:?}", self.0)
    }
}

impl Step for Domainname {
    fn apply(&self, _: &mut Init) -> Result<()> {
        Ok(set_domain_name(&self.0)?)
    }
}
