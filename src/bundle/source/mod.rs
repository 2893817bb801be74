//! Where the bytes of an image come from.
//!
//! A source hands out bytes and decides nothing: whoever takes them verifies them, against the digest
//! and the size that the descriptor names.

pub mod archive;
pub mod directory;
pub mod docker;
pub mod embedded;
pub mod layout;
pub mod name;

use crate::digest::Digest;
use crate::error::Result;
use std::fs::File;
use std::io::Read;

/// An index or manifest that an image's name leads to.
pub struct Root {
    /// What the source says that it is, if it says so.
    pub media_type: Option<String>,
    /// Its bytes, not verified yet.
    pub bytes: Vec<u8>,
}

/// A blob's bytes, not verified yet.
pub enum Blob {
    /// From a file, from its position on: for whoever can read it himself.
    File(File),
    /// As they come.
    Stream(Box<dyn Read + Send>),
}

/// Which blob: a part of a descriptor of the image specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `sha256:…` or `sha512:…`, its form checked. In an archive by `docker save`, whose layers have no
    /// digests: the name of the archive's member.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// For what is asked of a registry: manifests are elsewhere than blobs.
    pub is_manifest: bool,
}

/// An image's home. Several blobs are read at the same time.
pub trait Source: Send + Sync {
    /// What the name leads to. No more than `most` bytes: a longer one is an error.
    fn root(&self, most: u64) -> Result<Root>;

    /// The tag to look for, if the root is an index of images rather than of platforms.
    fn tag(&self) -> Option<&str> {
        None
    }

    /// The digest that the root must have, if the name has one.
    fn digest(&self) -> Result<Option<Digest>> {
        Ok(None)
    }

    /// The bytes of a blob, at least its `size` and at most one byte more.
    fn blob(&self, wanted: &Wanted) -> Result<Blob>;
}
