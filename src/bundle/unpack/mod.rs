//! Unpacking one layer, in a process of its own that can do nothing else.
//!
//! ```text
//! damda-bundle                      damda-bundle --unpack-layer JOB
//!   │  stdin: the blob ──────────────►  working directory: an empty one, which becomes its root
//!   │  ◄──────────── stdout: {"read": …}…, then {"unpacked": …} or {"failed": …}
//! ```

mod acl;
pub mod attributes;
mod layer;
mod pax;
mod sandbox;
mod sparse;
pub mod stream;
mod tar;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::tree::Inner;
use attributes::Ownership;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::Ordering;
use stream::Compression;

/// The option that makes this program an unpacker; its argument is a job.
pub const OPTION: &str = "--unpack-layer";

/// What an unpacker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Of the blob; an archive by `docker save` has none for layers.
    pub digest: Option<Digest>,
    /// Of the blob.
    pub size: Option<u64>,
    /// Whether there is nothing after the blob in the input.
    pub whole: bool,
    /// The digest of the archive that is in the blob.
    pub diff_id: Digest,
    pub compression: Compression,
    pub ownership: Ownership,
    pub limits: Limits,
}

/// What a layer says about those below it, and what of it couldn't be kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Directories that the layer has no entry for: what they are like is told by the layers below.
    pub implicit: BTreeSet<Inner>,
    /// Hard links, by their paths, to files that a layer below has.
    pub links: BTreeMap<Inner, Inner>,
    /// What isn't there any more: paths as they are written, links not followed yet.
    pub whiteouts: BTreeSet<Inner>,
    /// Directories of which nothing is there any more that layers below have; as they are written.
    pub opaque: BTreeSet<Inner>,
    /// What was left out.
    pub dropped: Vec<String>,
    /// Entries, and bytes of files.
    pub entries: u64,
    pub bytes: u64,
}

impl Report {
    /// Where a link to a layer below leads, which may be by another such link.
    pub fn target<'a>(&'a self, link: &'a Inner) -> Result<&'a Inner> {
        let mut target = link;
        for _ in 0..=self.links.len() {
            match self.links.get(target) {
                Some(next) => target = next,
                None => return Ok(target),
            }
        }
        Err(Error::new(format!("{}: a hard link to itself", link.display())))
    }
}

/// A report's form between processes: paths needn't be UTF-8, so other bytes are written as `%ff`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    implicit: Vec<String>,
    links: Vec<(String, String)>,
    whiteouts: Vec<String>,
    opaque: Vec<String>,
    dropped: Vec<String>,
    entries: u64,
    bytes: u64,
}

/// A path as text, from which `read` makes it again.
pub fn written(path: &Inner) -> String {
    let byte = |byte: &u8| match byte {
        b'%' | 0x80.. => format!("%{byte:02x}"),
        byte => char::from(*byte).to_string(),
    };
    path.as_os_str().as_bytes().iter().map(byte).collect()
}

/// The path that `written` wrote.
pub fn read(text: &str) -> Inner {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%').then(|| text.get(text.len() - after.len()..)?.get(..2)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// What an unpacker says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// Of the blob, and of what it became.
    Read(u64, u64),
    Unpacked(Written),
    Failed {
        what: String,
        hint: Option<String>,
    },
}

/// What comes from an unpacker.
pub enum Said {
    /// Bytes of the blob so far, and of the archive in it.
    Read(u64, u64),
    /// It is done.
    Unpacked(Report),
}

impl From<Report> for Written {
    fn from(report: Report) -> Self {
        let paths = |paths: BTreeSet<Inner>| paths.iter().map(written).collect();
        Written {
            implicit: paths(report.implicit),
            links: report.links.iter().map(|(path, to)| (written(path), written(to))).collect(),
            whiteouts: paths(report.whiteouts),
            opaque: paths(report.opaque),
            dropped: report.dropped,
            entries: report.entries,
            bytes: report.bytes,
        }
    }
}

impl From<Written> for Report {
    fn from(written: Written) -> Self {
        let paths = |paths: Vec<String>| paths.iter().map(|path| read(path)).collect();
        Report {
            implicit: paths(written.implicit),
            links: written.links.iter().map(|(path, to)| (read(path), read(to))).collect(),
            whiteouts: paths(written.whiteouts),
            opaque: paths(written.opaque),
            dropped: written.dropped,
            entries: written.entries,
            bytes: written.bytes,
        }
    }
}

/// Understands a line of an unpacker's.
pub fn said(line: &str) -> Result<Said> {
    match serde_json::from_str(line) {
        Ok(Line::Read(blob, archive)) => Ok(Said::Read(blob, archive)),
        Ok(Line::Unpacked(written)) => Ok(Said::Unpacked(written.into())),
        Ok(Line::Failed { what, hint: None }) => Err(Error::new(what)),
        Ok(Line::Failed { what, hint: Some(hint) }) => Err(Error::new(what).hint(hint)),
        Err(_) => Err(Error::new("the unpacker said something that can't be understood")),
    }
}

/// The unpacker: does its job, and says how it went. Returns the status to exit with.
pub fn run(job: &str) -> i32 {
    let result = serde_json::from_str(job)
        .map_err(|error| Error::new(format!("its job can't be understood: {error}")))
        .and_then(|job: Job| unpack(&job));
    // The last of these counts for the limit on all layers together.
    if say(&progress()).is_err() {
        return 1;
    }
    let (line, status) = match result {
        Ok(report) => (Line::Unpacked(report.into()), 0),
        Err(error) => {
            let (what, hint) = error.parts();
            (Line::Failed { what, hint }, 1)
        }
    };
    if say(&line).is_err() { 1 } else { status }
}

fn progress() -> Line {
    Line::Read(stream::READ.load(Ordering::Relaxed), stream::UNPACKED.load(Ordering::Relaxed))
}

fn say(line: &Line) -> Result<()> {
    let mut text = serde_json::to_string(line).map_err(|error| Error::new(error.to_string()))?;
    text.push('\n');
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn unpack(job: &Job) -> Result<Report> {
    let root: OwnedFd = sandbox::enter()?;
    let (sender, mut pieces) = stream::pieces();
    std::thread::scope(|scope| {
        // A scope's thread can't be started without memory; there is nothing to do then anyhow.
        scope.spawn(|| {
            stream::send(std::io::stdin().lock(), job, &sender);
            drop(sender);
        });
        let result = layer::unpack(&mut pieces, root, job);
        if result.is_err() {
            // If the blob isn't what it must be, that is why.
            pieces.drain()?;
        }
        drop(pieces);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_text_get_through() {
        for bytes in [&b"a/b c"[..], b"100%", b"%41", b"\xff\xc3(\n", "\u{e9}".as_bytes()] {
            let path = Inner::from(OsString::from_vec(bytes.to_vec()));
            assert_eq!(read(&written(&path)), path, "{bytes:?}");
        }
    }
}
