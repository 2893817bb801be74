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
use std::path::PathBuf;
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

/// A report's form between processes: paths needn't be UTF-8.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    implicit: Vec<OsString>,
    links: Vec<(OsString, OsString)>,
    whiteouts: Vec<OsString>,
    opaque: Vec<OsString>,
    dropped: Vec<String>,
    entries: u64,
    bytes: u64,
}

/// What an unpacker says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Read(u64),
    Unpacked(Written),
    Failed { what: String, hint: Option<String> },
}

/// What comes from an unpacker.
pub enum Said {
    /// Bytes of the blob so far.
    Read(u64),
    /// It is done.
    Unpacked(Report),
}

impl From<Report> for Written {
    fn from(report: Report) -> Self {
        let paths = |paths: BTreeSet<Inner>| paths.into_iter().map(PathBuf::into_os_string).collect();
        Written {
            implicit: paths(report.implicit),
            links: report.links.into_iter().map(|(path, to)| (path.into(), to.into())).collect(),
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
        let paths = |paths: Vec<OsString>| paths.into_iter().map(PathBuf::from).collect();
        Report {
            implicit: paths(written.implicit),
            links: written.links.into_iter().map(|(path, to)| (path.into(), to.into())).collect(),
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
        Ok(Line::Read(bytes)) => Ok(Said::Read(bytes)),
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
    let (line, status) = match result {
        Ok(report) => (Line::Unpacked(report.into()), 0),
        Err(error) => {
            let (what, hint) = error.parts();
            (Line::Failed { what, hint }, 1)
        }
    };
    if say(&line).is_err() { 1 } else { status }
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
