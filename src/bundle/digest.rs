//! Digests, as the image specification writes them (descriptor.md, "Digests").

use crate::error::{Error, Result, escape};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// An algorithm and what it makes of some content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:…` or `sha512:…`: it becomes a part of paths, so nothing else gets through.
    pub fn parse(text: &str) -> Result<Self> {
        let length = match text.split_once(':') {
            Some(("sha256", _)) => 64,
            Some(("sha512", _)) => 128,
            Some((other, _)) => {
                return Err(Error::new(format!("digests by {:?} can't be verified", escape(other)))
                    .hint("sha256 and sha512 can"));
            }
            None => return Err(Error::new(format!("{:?} is no digest", escape(text)))),
        };
        let hex = &text[7..];
        if hex.len() != length || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::new(format!("{:?} is no digest", escape(text))));
        }
        Ok(Digest(text.to_owned()))
    }

    /// The sha256 of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::Sha256(Sha256::new());
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256`
    pub fn algorithm(&self) -> &str {
        &self.0[..6]
    }

    /// What comes after the colon.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    /// As much as people need to tell one from another.
    pub fn short(&self) -> &str {
        &self.0[..19]
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Computes a digest of the same kind.
    pub fn hasher(&self) -> Hasher {
        match self.algorithm() {
            "sha512" => Hasher::Sha512(Box::new(Sha512::new())),
            _ => Hasher::Sha256(Sha256::new()),
        }
    }

    /// Fails unless this is the digest of `bytes`.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        self.check(&hasher.finish())
    }

    /// Fails unless `found` is this one.
    pub fn check(&self, found: &Digest) -> Result<()> {
        if self == found {
            return Ok(());
        }
        Err(Error::new(format!("its digest is {found}, but must be {self}"))
            .hint("it is damaged, or isn't what it says it is"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Digest::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// A digest that is being computed.
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Digest(match self {
            Hasher::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Hasher::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_get_through() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::parse(empty), Ok(Digest::of(b"")));
        let long = format!("sha512:{}", "a".repeat(128));
        assert!(Digest::parse(&long).is_ok());
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &empty.to_uppercase(),
            &empty.replace("e3", ".."),
            &empty.replace("e3b0", "../x"),
            &format!("{empty}0"),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::of(b"").verify(b"x").is_err());
    }
}
