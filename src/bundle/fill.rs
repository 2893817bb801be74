//! A bundle's root file system from an image's layers: made in place, or from the store.

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::image::{Image, Layer};
use crate::layers::{self, Budget};
use crate::limits::Limits;
use crate::merge;
use crate::progress::Progress;
use crate::settle::{self, Hidden, Links};
use crate::source::Source;
use crate::stack::Stack;
use crate::staging::Staging;
use crate::store::{Entry, Kept, Store};
use crate::tree::Tree;
use crate::unpack::attributes::{self, NO_TIME, Ownership};
use crate::unpack::{Report, written};
use nix::fcntl::Flock;
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// What filling needs.
pub struct Fill<'a> {
    pub source: &'a dyn Source,
    pub image: &'a Image,
    pub ownership: Ownership,
    pub limits: &'a Limits,
    pub budget: Budget,
    pub progress: &'a Progress,
}

/// What became of a layer, for those who want to know.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    pub digest: Option<Digest>,
    #[serde(rename = "diffID")]
    pub diff_id: Digest,
    /// Of the blob.
    pub size: u64,
    /// Of its files.
    pub bytes: u64,
    pub entries: u64,
    /// It was in the store already.
    pub kept: bool,
    pub milliseconds: u128,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
}

impl Done {
    fn new(layer: &Layer, kept: &Kept, was_there: bool, began: Instant) -> Self {
        Done {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.wanted.size,
            bytes: kept.bytes,
            entries: kept.entries,
            kept: was_there,
            milliseconds: began.elapsed().as_millis(),
            dropped: kept.dropped.clone(),
        }
    }
}

fn kept(layer: &Layer, report: &Report, hidden: &Hidden) -> Kept {
    Kept {
        diff_id: layer.diff_id.clone(),
        bytes: report.bytes,
        entries: report.entries,
        root: !report.implicit.contains(Path::new("")),
        dropped: report.dropped.clone(),
        copied: hidden.copied.iter().map(written).collect(),
    }
}

/// A directory whose files are an image's.
fn directory(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o755).create(path).doing(|| format!("mkdir({path:?})"))
}

fn tree(path: &Path) -> Result<Tree> {
    Ok(Tree::new(OwnedFd::from(File::open(path).doing(|| format!("{path:?}"))?)))
}

/// A layer that is unpacked and becomes the store's.
struct Pending<'a> {
    staging: Staging,
    report: Report,
    /// Nobody else unpacks it meanwhile.
    _claim: &'a Flock<File>,
}

impl Fill<'_> {
    /// Unpacks all layers to a root file system; `beside` is where each is at first.
    pub fn in_place(&self, rootfs: &Path, beside: &Path) -> Result<Vec<Done>> {
        directory(beside)?;
        let unpacked = self.each(|layer| {
            let began = Instant::now();
            let path = beside.join(layer.number.to_string());
            directory(&path)?;
            let report = self.unpack(layer, &path)?;
            Ok((path, Done::new(layer, &kept(layer, &report, &Hidden::default()), false, began), report))
        })?;
        let mut done = Vec::new();
        let mut root_is_told = false;
        for (layer, (path, one, report)) in self.image.layers.iter().zip(unpacked) {
            let failed = |error: Error| error.prefix(layer);
            match done.is_empty() {
                true => {
                    settle::settle(&tree(&path)?, &report, &Stack::default(), self.ownership, Links::Same)
                        .map_err(failed)?;
                    fs::rename(&path, rootfs)?;
                }
                false => {
                    let (mine, over) = (tree(&path)?, tree(rootfs)?);
                    let below = Stack(vec![tree(rootfs)?]);
                    let hidden = settle::settle(&mine, &report, &below, self.ownership, Links::Same)
                        .map_err(failed)?;
                    let root = !report.implicit.contains(Path::new(""));
                    merge::move_over(&mine, &hidden, root, &over).map_err(failed)?;
                }
            }
            root_is_told |= !report.implicit.contains(Path::new(""));
            done.push(one);
        }
        if done.is_empty() {
            directory(rootfs)?; // an image without layers is an empty one
        }
        if !root_is_told {
            attributes::touch(File::open(rootfs)?.as_fd(), NO_TIME)?;
        }
        crate::staging::remove(beside)?;
        Ok(done)
    }

    /// Has all layers in the store; `opaque` is how overlay file systems mark a directory.
    pub fn in_store(&self, store: &Store, opaque: &str) -> Result<(Vec<Entry>, Vec<Done>)> {
        let chain = self.image.chain_ids();
        let claimed = self.claim(store, &chain)?;
        let found = self.each(|layer| {
            let began = Instant::now();
            let index = layer.number - 1;
            let claim = match &claimed[index] {
                Ok(entry) => return Ok((Ok(entry.clone()), began)),
                Err(claim) => claim,
            };
            let staging = Staging::make(&store.temporary(), OsStr::new(chain[index].hex()))?;
            let path = staging.path.join("fs");
            directory(&path)?;
            let report = self.unpack(layer, &path)?;
            Ok((Err(Pending { staging, report, _claim: claim }), began))
        })?;
        let mut below: Vec<PathBuf> = Vec::new();
        let mut settled: Vec<(Option<Hidden>, std::result::Result<Entry, Pending<'_>>, Instant)> = Vec::new();
        for (layer, (state, began)) in self.image.layers.iter().zip(found) {
            let (path, hidden) = match &state {
                Ok(entry) => (entry.path.clone(), None),
                Err(pending) => {
                    let path = pending.staging.path.join("fs");
                    let stack = Stack(below.iter().rev().map(|path| tree(path)).collect::<Result<_>>()?);
                    let mine = tree(&path)?;
                    let hidden =
                        settle::settle(&mine, &pending.report, &stack, self.ownership, Links::Copies)
                            .and_then(|hidden| settle::mark(&mine, &hidden, opaque).map(|()| hidden))
                            .map_err(|error| error.prefix(layer))?;
                    (path, Some(hidden))
                }
            };
            below.push(path);
            settled.push((hidden, state, began));
        }
        if settled.iter().any(|(_, state, _)| state.is_err()) {
            let directory = File::open(store.temporary())?;
            nix::unistd::syncfs(&directory).doing(|| "syncfs".into())?;
        }
        let mut all = (Vec::new(), Vec::new());
        for ((layer, chain), (hidden, state, began)) in self.image.layers.iter().zip(&chain).zip(settled) {
            let was_there = state.is_ok();
            let entry = match state {
                Ok(entry) => entry,
                Err(pending) => {
                    let hidden = hidden.unwrap_or_default();
                    let id = self.diff_id(layer).filter(|_| !hidden.depends).unwrap_or(chain);
                    let kept = kept(layer, &pending.report, &hidden);
                    let entry = store.keep(id.hex(), &pending.staging.path, kept)?;
                    pending.staging.moved();
                    entry
                }
            };
            all.1.push(Done::new(layer, &entry.kept, was_there, began));
            all.0.push(entry);
        }
        Ok(all)
    }

    /// The layers that are kept, and claims on the others. One after the other, the lowest first: a chain
    /// id says what is below, so whoever waits for one holds none that its holder waits for.
    fn claim(&self, store: &Store, chain: &[Digest]) -> Result<Vec<std::result::Result<Entry, Flock<File>>>> {
        let mut all = Vec::new();
        for (layer, id) in self.image.layers.iter().zip(chain) {
            let find = || store.find(id, self.diff_id(layer)).map_err(|error| error.prefix(layer));
            all.push(match find()? {
                Some(entry) => Ok(entry),
                None => {
                    let claim = store.claim(id)?;
                    // Whoever had it may have unpacked just this layer.
                    find()?.ok_or(claim)
                }
            });
        }
        all.iter().flatten().for_each(Entry::touch);
        Ok(all)
    }

    /// By what a layer is known if it is the same over any others. The second of two alike has to be
    /// another directory: an overlay can't have one twice.
    fn diff_id<'a>(&self, layer: &'a Layer) -> Option<&'a Digest> {
        let before = &self.image.layers[..layer.number - 1];
        (!before.iter().any(|other| other.diff_id == layer.diff_id)).then_some(&layer.diff_id)
    }

    fn unpack(&self, layer: &Layer, path: &Path) -> Result<Report> {
        let bar = self.progress.layer(layer);
        let report =
            layers::unpack(self.source, layer, path, self.ownership, self.limits, &self.budget, &bar)?;
        for dropped in &report.dropped {
            self.progress.warn(&format!("{layer}: left out: {dropped}"));
        }
        bar.done("unpacked");
        Ok(report)
    }

    /// Does something with each layer, several at a time, and returns the results in their order. After
    /// a failure no other layer is begun.
    fn each<T: Send>(&self, call: impl Fn(&Layer) -> Result<T> + Sync) -> Result<Vec<T>> {
        let all = &self.image.layers;
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..layers::workers(all.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let Some(layer) = all.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        let result = call(layer).map_err(|error| error.prefix(layer));
                        failed.fetch_or(result.is_err(), Ordering::Relaxed);
                        results
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push((layer.number, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
    }
}
