//! Layers, fetched and unpacked, several at a time: each by an unpacker, a process of its own.

use crate::error::{Context, Error, Result};
use crate::image::Layer;
use crate::limits::{Limits, check};
use crate::progress::Bar;
use crate::signals;
use crate::source::{Blob, Source};
use crate::unpack::attributes::Ownership;
use crate::unpack::{self, Job, Report, Said};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// More at a time need more memory than they save time.
const MOST: usize = 4;

/// How many layers are unpacked at the same time.
pub fn workers(layers: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(1, MOST).min(layers)
}

/// What all layers of an image may unpack to together.
pub struct Budget {
    used: AtomicU64,
    most: u64,
}

impl Budget {
    /// Nothing is used yet.
    pub fn new(most: u64) -> Self {
        Budget { used: AtomicU64::new(0), most }
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        check("bytes unpacked, with the other layers", used, self.most, "--max-size")
    }
}

/// Fetches a layer and unpacks it to an empty directory.
pub fn unpack(
    source: &dyn Source,
    layer: &Layer,
    directory: &Path,
    ownership: Ownership,
    limits: &Limits,
    budget: &Budget,
    bar: &Bar,
) -> Result<Report> {
    let job = Job {
        digest: layer.digest.clone(),
        size: Some(layer.wanted.size),
        whole: false,
        diff_id: layer.diff_id.clone(),
        compression: layer.compression,
        ownership,
        limits: limits.clone(),
    };
    match source.blob(&layer.wanted)? {
        Blob::File(file) => {
            let child = start(&job, directory, file.into())?;
            wait(child, budget, bar)
        }
        Blob::Stream(mut stream) => {
            let job = Job { whole: true, ..job };
            let mut child = start(&job, directory, Stdio::piped())?;
            let Some(mut to) = child.stdin.take() else {
                return Err(Error::new("the unpacker has no input"));
            };
            std::thread::scope(|scope| {
                let feeder = scope.spawn(move || feed(&mut *stream, &mut to));
                let unpacked = wait(child, budget, bar);
                match (feeder.join(), unpacked) {
                    // What ended the stream explains what the unpacker says.
                    (Ok(Err(error)), Err(_)) => Err(error),
                    (_, unpacked) => unpacked,
                }
            })
        }
    }
}

/// Hands on what comes. That the unpacker doesn't want any more isn't an error: it says why itself.
fn feed(from: &mut dyn std::io::Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = match from.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            return Ok(());
        }
    }
}

/// Starts an unpacker: with nothing of the environment.
fn start(job: &Job, directory: &Path, input: Stdio) -> Result<Child> {
    let job = serde_json::to_string(job).map_err(|error| Error::new(error.to_string()))?;
    Command::new("/proc/self/exe")
        .args([unpack::OPTION, &job])
        .env_clear()
        .current_dir(directory)
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .doing(|| "start the unpacker".into())
}

/// Listens to an unpacker until it ends.
fn wait(mut child: Child, budget: &Budget, bar: &Bar) -> Result<Report> {
    let (mut result, mut before) = (None, 0);
    signals::started(child.id());
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            match line.map_err(Error::from).and_then(|line| unpack::said(&line)) {
                Ok(Said::Read(blob, archive)) => {
                    bar.at(blob);
                    if let Err(error) = budget.take(archive - before) {
                        child.kill()?;
                        result = Some(Err(error));
                        break;
                    }
                    before = archive;
                }
                Ok(Said::Unpacked(report)) => result = Some(Ok(report)),
                Err(error) => result = Some(Err(error)),
            }
        }
    }
    signals::ended(child.id());
    let status = child.wait().doing(|| "wait for the unpacker".into())?;
    match result {
        Some(Err(error)) => Err(error),
        Some(Ok(report)) if status.success() => Ok(report),
        _ => Err(Error::new(format!("the unpacker ended early: {status}"))),
    }
}
