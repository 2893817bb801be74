//! Containers as they are kept: one directory each under the state root, with all that a later
//! command needs. What a container is doing is never stored, but found out.

mod directory;
pub mod gate;
mod host_mounts;
mod state;

pub use directory::{Directory, Store};
pub use host_mounts::HostMounts;
pub use state::{Container, Init, Listener, State, Status, spec_state};

use crate::error::{Error, Result};

/// Checks a container's id: it names a directory, and engines put it into paths and messages.
pub fn check_id(id: &str) -> Result<()> {
    const MOST_BYTES: usize = 1024;
    let allowed = |char: char| char.is_ascii_alphanumeric() || "_+-.".contains(char);
    match id {
        "" => Err(Error::new("container id cannot be empty")),
        "." | ".." => Err(Error::new(format!("invalid container ID format: {id:?}"))),
        id if id.len() > MOST_BYTES || !id.chars().all(allowed) => {
            let error = Error::new(format!("invalid container ID format: {id:?}"));
            Err(error.hint("letters, digits and _ + - . only, at most 1024"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A-b_c.d+1", "..a"] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\n", "a b", "é", &"x".repeat(1025)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
