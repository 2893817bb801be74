//! `oci:DIR`: an image layout (image-spec image-layout.md).

use super::{Blob, Root, Source, Wanted};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::limits::check;
use crate::tree::Tree;
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The index that a layout begins with.
pub const INDEX: &str = "index.json";
/// The file that says that it is one.
pub const MARK: &str = "oci-layout";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

/// An image layout.
pub struct Layout {
    path: PathBuf,
    tree: Tree,
    tag: Option<String>,
}

impl Layout {
    /// Opens `DIR[:TAG]`; a directory may have a colon in its name.
    pub fn open(name: &str) -> Result<Self> {
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !Path::new(name).exists() => (PathBuf::from(path), Some(tag.to_owned())),
            _ => (PathBuf::from(name), None),
        };
        let directory = File::open(&path).doing(|| format!("{path:?}"))?;
        let layout = Layout { tree: Tree::new(OwnedFd::from(directory)), path: path.clone(), tag };
        let mut mark = String::new();
        layout
            .file(Path::new(MARK))
            .and_then(|file| Ok(file.take(4096).read_to_string(&mut mark)?))
            .map_err(|error| error.prefix(format!("{path:?} is no image layout")))?;
        check_mark(mark.as_bytes()).map_err(|error| error.prefix(format!("{path:?}")))?;
        Ok(layout)
    }

    /// A regular file of the layout. Links could lead out of it, and a fifo would never end.
    fn file(&self, path: &Path) -> Result<File> {
        let opened = self
            .tree
            .open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            .doing(|| format!("{:?}", self.path.join(path)))?;
        let file = File::from(opened);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(Error::new(format!("{path:?} is not a regular file"))),
        }
    }
}

/// Whether a layout is of a version that is known.
pub fn check_mark(text: &[u8]) -> Result<()> {
    let mark: Mark = serde_json::from_slice(text).map_err(|error| Error::new(format!("{MARK}: {error}")))?;
    match mark.image_layout_version.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(Error::new(format!("an image layout of version {:?}", mark.image_layout_version))),
    }
}

/// Where a layout has a blob.
pub fn blob_path(digest: &str) -> Result<PathBuf> {
    let digest = Digest::parse(digest)?;
    Ok(Path::new("blobs").join(digest.algorithm()).join(digest.hex()))
}

/// Reads a file whose size is limited.
pub fn bounded(mut file: impl Read, size: u64, most: u64, what: &str) -> Result<Vec<u8>> {
    check(&format!("bytes of {what}"), size, most, "--max-manifest")?;
    let mut bytes = Vec::new();
    file.by_ref().take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Source for Layout {
    fn root(&self, most: u64) -> Result<Root> {
        let file = self.file(Path::new(INDEX))?;
        let size = file.metadata()?.len();
        Ok(Root { media_type: None, bytes: bounded(file, size, most, INDEX)? })
    }

    fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    fn blob(&self, wanted: &Wanted) -> Result<Blob> {
        let file = self.file(&blob_path(&wanted.digest)?)?;
        let size = file.metadata()?.len();
        if size != wanted.size {
            return Err(Error::new(format!("it has {size} bytes, but its size is {}", wanted.size)));
        }
        Ok(Blob::File(file))
    }
}
