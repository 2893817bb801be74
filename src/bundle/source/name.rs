//! From what people write to a source.

use super::archive::{Archive, Members, split_name, spool};
use super::docker::DockerArchive;
use super::embedded::Embedded;
use super::layout::{INDEX, Layout};
use super::{Source, directory};
use crate::arguments::From;
use crate::error::{Error, Result};
use crate::image::{self, Image};
use crate::limits::Limits;
use crate::reference::Reference;
use crate::registry::{Options, Registry};
use std::path::{Path, PathBuf};

/// What a name leads to.
pub enum Opened {
    /// Something with layers.
    Image(Box<dyn Source>),
    /// As `Image`, but with Docker's manifest.
    Saved(Box<DockerArchive>),
    /// A root file system.
    Directory(PathBuf),
}

impl Opened {
    /// Opens what `name` names. `directory` is where what comes from stdin may be put.
    pub fn open(name: &str, from: &From, limits: &Limits, directory_of_spool: &Path) -> Result<Self> {
        let (scheme, rest) = name.split_once(':').unwrap_or((name, ""));
        match scheme {
            "oci" => Ok(Opened::Image(Box::new(Layout::open(rest)?))),
            "oci-archive" => {
                let (path, tag) = split_name(rest);
                Ok(Opened::Image(Box::new(Archive::of(Members::open(&path)?, tag)?)))
            }
            "docker-archive" => {
                let (path, tag) = split_name(rest);
                Ok(Opened::Saved(Box::new(DockerArchive::of(Members::open(&path)?, tag)?)))
            }
            "dir" => Ok(Opened::Directory(directory::open(rest)?)),
            "embedded" if rest.is_empty() => Ok(Opened::Image(Box::new(Embedded::new()?))),
            "-" if rest.is_empty() => {
                let file = spool(std::io::stdin().lock(), directory_of_spool, limits.size)?;
                archive(Members::of(file, Path::new("stdin"))?, None)
            }
            _ if name.starts_with(['/', '.']) => path(name),
            _ => registry(name, from),
        }
    }

    /// The image.
    pub fn resolve(&self, from: &From, limits: &Limits) -> Result<Option<Image>> {
        match self {
            Opened::Image(source) => image::resolve(&**source, from.platform.as_ref(), limits).map(Some),
            Opened::Saved(archive) => image::saved(archive, from.platform.as_ref(), limits).map(Some),
            Opened::Directory(_) => Ok(None),
        }
    }

    /// Where its blobs are.
    pub fn source(&self) -> Option<&dyn Source> {
        match self {
            Opened::Image(source) => Some(&**source),
            Opened::Saved(archive) => Some(&**archive),
            Opened::Directory(_) => None,
        }
    }
}

/// An archive of either kind. Those of newer Dockers are both; an image layout has more digests.
fn archive(members: Members, tag: Option<String>) -> Result<Opened> {
    match members.has(INDEX) {
        true => Ok(Opened::Image(Box::new(Archive::of(members, tag)?))),
        false => Ok(Opened::Saved(Box::new(DockerArchive::of(members, tag)?))),
    }
}

/// A path without a word before it: an archive or a layout.
fn path(name: &str) -> Result<Opened> {
    let (path, tag) = split_name(name);
    if path.is_dir() {
        return Ok(Opened::Image(Box::new(
            Layout::open(name).map_err(|error| error.hint("a root file system is named dir:PATH"))?,
        )));
    }
    archive(Members::open(&path)?, tag)
}

fn registry(name: &str, from: &From) -> Result<Opened> {
    let reference = Reference::parse(name)?;
    let options = Options {
        plain_http: from.plain_http,
        credentials: from.creds.as_deref().map(credentials).transpose()?,
        auth_file: from.authfile.clone(),
        mirrors: from.mirror.clone(),
        ..Options::default()
    };
    Ok(Opened::Image(Box::new(Registry::open(&reference, &options)?)))
}

/// A password on the command line can be seen by everybody on this machine: it may be in the
/// environment.
fn credentials(text: &str) -> Result<(String, String)> {
    match text.split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => match std::env::var("DAMDA_PASSWORD") {
            Ok(password) => Ok((text.to_owned(), password)),
            Err(_) => Err(Error::new("--creds has no password").hint("USER:PASSWORD, or set DAMDA_PASSWORD")),
        },
    }
}

/// The same name from any directory: a bundle remembers it.
pub fn absolute(name: &str) -> String {
    let (scheme, rest) = match name.split_once(':') {
        Some((scheme @ ("oci" | "oci-archive" | "docker-archive" | "dir"), rest)) => {
            (format!("{scheme}:"), rest)
        }
        _ if name.starts_with(['/', '.']) => (String::new(), name),
        _ => return name.to_owned(),
    };
    match std::path::absolute(rest) {
        Ok(path) => format!("{scheme}{}", path.display()),
        Err(_) => name.to_owned(),
    }
}
