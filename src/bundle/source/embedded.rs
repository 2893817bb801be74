//! `embedded:`, an image of one program, which is in this one: for a first container without network.

use super::{Blob, Root, Source, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Result};
use serde_json::json;
use std::io::Cursor;

/// Made by build.rs from embedded/hello.rs.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// The image, made anew each time.
pub struct Embedded {
    manifest: Vec<u8>,
    blobs: [(Digest, Vec<u8>); 2],
}

impl Embedded {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let layer = layer()?;
        let diff_id = Digest::of(&layer);
        let config = json!({
            "architecture": crate::image::Platform::host().architecture,
            "os": "linux",
            "config": { "Entrypoint": ["/hello"], "Env": ["PATH=/"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        })
        .to_string()
        .into_bytes();
        let config_digest = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id,
                "size": layer.len(),
            }],
        });
        let blobs = [(config_digest, config), (diff_id, layer)];
        Ok(Embedded { manifest: manifest.to_string().into_bytes(), blobs })
    }
}

fn layer() -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    for directory in ["dev/", "proc/", "sys/", "tmp/"] {
        archive.append_data(&mut header.clone(), directory, std::io::empty())?;
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(PROGRAM.len() as u64);
    archive.append_data(&mut header, "hello", PROGRAM)?;
    Ok(archive.into_inner()?)
}

impl Source for Embedded {
    fn root(&self, _most: u64) -> Result<Root> {
        Ok(Root { media_type: None, bytes: self.manifest.clone() })
    }

    fn blob(&self, wanted: &Wanted) -> Result<Blob> {
        let found = self.blobs.iter().find(|(digest, _)| digest.as_str() == wanted.digest);
        let (_, bytes) = found.ok_or_else(|| Error::new("the embedded image has no such blob"))?;
        Ok(Blob::Stream(Box::new(Cursor::new(bytes.clone()))))
    }
}
