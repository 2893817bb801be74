//! `docker-archive:TAR`: what `docker save` writes. Its manifest.json names members instead of digests,
//! so its layers are verified by the digests of their content (diffIDs) alone.

use super::archive::Members;
use super::{Blob, Root, Source, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Result, escape};
use serde::Deserialize;
use std::path::Path;

/// What manifest.json says of an image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Vec<String>,
}

/// An archive by `docker save`.
pub struct DockerArchive {
    members: Members,
    name: Option<String>,
}

/// The list of images.
pub const MANIFEST: &str = "manifest.json";

impl DockerArchive {
    /// Of an archive's members; `name` says which image, if there are several.
    pub fn of(members: Members, name: Option<String>) -> Result<Self> {
        match members.has(MANIFEST) {
            true => Ok(DockerArchive { members, name }),
            false => Err(Error::new(format!("there is no {MANIFEST}: it isn't from docker save"))),
        }
    }

    /// The image that is asked for.
    pub fn saved(&self, most: u64) -> Result<Saved> {
        let images: Vec<Saved> = serde_json::from_slice(&self.members.text(MANIFEST, most)?)
            .map_err(|error| Error::new(format!("{MANIFEST}: {error}")))?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let all: Vec<String> = images.iter().flat_map(tags).map(|tag| escape(&tag)).collect();
        let which = |image: &&Saved| match &self.name {
            None => true,
            Some(name) => tags(image).iter().any(|tag| {
                let full = tag.strip_prefix("docker.io/").unwrap_or(tag);
                [tag.as_str(), full, full.strip_prefix("library/").unwrap_or(full)]
                    .iter()
                    .any(|tag| tag == name || tag.strip_suffix(":latest") == Some(name))
            }),
        };
        let mut found = images.iter().filter(which);
        match (found.next(), found.next()) {
            (Some(image), None) => Ok(image.clone()),
            (None, _) => {
                Err(Error::new(format!("no such image in the archive; there are: {}", all.join(", "))))
            }
            (Some(_), Some(_)) => {
                Err(Error::new(format!("the archive has several images: {}", all.join(", ")))
                    .hint("name one: docker-archive:TAR:NAME:TAG"))
            }
        }
    }

    /// The image's configuration, and its digest, which its name may have.
    pub fn config(&self, saved: &Saved, most: u64) -> Result<(Vec<u8>, Digest)> {
        let bytes = self.members.text(&saved.config, most)?;
        let digest = Digest::of(&bytes);
        let name = Path::new(&saved.config).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(named) = Digest::parse(&format!("sha256:{}", name.trim_end_matches(".json"))) {
            named.check(&digest).map_err(|error| error.prefix(&saved.config))?;
        }
        Ok((bytes, digest))
    }

    /// A layer's size.
    pub fn size(&self, layer: &str) -> Result<u64> {
        Ok(self.members.member(Path::new(layer))?.1)
    }
}

impl Source for DockerArchive {
    fn root(&self, _most: u64) -> Result<Root> {
        Err(Error::new("an archive by docker save has no manifest of the image specification"))
    }

    fn blob(&self, wanted: &Wanted) -> Result<Blob> {
        Ok(Blob::File(self.members.member(Path::new(&wanted.digest))?.0))
    }
}
