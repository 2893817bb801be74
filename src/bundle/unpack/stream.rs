//! A layer's blob as the bytes of its archive: counted, verified, decompressed.
//!
//! ```text
//! blob ─► its size and digest ─► gzip, zstd ─► limits, diffID ─► pieces ─► the archive's reader
//! ```
//! It runs in a thread of its own. The end of the archive is only told when everything has proved
//! right, so whoever reads to the end has verified bytes.

use super::Job;
use crate::digest::{Digest, Hasher};
use crate::error::{Context, Error, Result};
use crate::limits::{RATIO_FROM, check};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    /// Known by the content: Docker's archives don't say.
    Any,
}

/// Large enough that handing one over costs nothing, small enough to stay in the cache.
const PIECE: usize = 256 << 10;

/// As many as may be waiting.
const PIECES: usize = 6;

/// How much of the blob was read, for the progress.
pub static READ: AtomicU64 = AtomicU64::new(0);

/// How much that became.
pub static UNPACKED: AtomicU64 = AtomicU64::new(0);

type Piece = std::result::Result<Vec<u8>, Error>;

/// The archive's bytes, for its reader.
pub struct Pieces {
    from: Receiver<Piece>,
    back: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

/// The other end.
pub struct Sender {
    to: SyncSender<Piece>,
    used: Receiver<Vec<u8>>,
}

/// Both ends of what lies between the two threads.
pub fn pieces() -> (Sender, Pieces) {
    let (to, from) = sync_channel(PIECES);
    let (back, used) = sync_channel(2 * PIECES);
    (Sender { to, used }, Pieces { from, back, current: Vec::new(), position: 0, ended: false })
}

impl Pieces {
    /// Reads on to the end, for what the other side has to say of the blob.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            let _ = self.back.try_send(used);
            self.position = 0;
            match self.from.recv() {
                // An empty piece is the end; without it the other side has died.
                Ok(Ok(piece)) => {
                    self.ended = piece.is_empty();
                    self.current = piece;
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error.into());
                }
                Err(_) => return Err(io::Error::other("the reader of the blob ended early")),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, length: usize) {
        self.position += length;
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// The blob, counted and hashed.
struct Blob<R> {
    input: R,
    hasher: Option<Hasher>,
    /// What is left of its size, where that is known.
    left: Option<u64>,
    read: u64,
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self
            .left
            .map_or(buffer.len(), |left| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let length = self.input.read(&mut buffer[..most])?;
        if length == 0 && most > 0 && self.left.is_some() {
            let size = self.read + self.left.unwrap_or_default();
            return Err(
                Error::new(format!("it ends after {} bytes, but its size is {size}", self.read)).into()
            );
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        self.left = self.left.map(|left| left - length as u64);
        self.read += length as u64;
        READ.store(self.read, Ordering::Relaxed);
        Ok(length)
    }
}

/// Sends the archive's bytes, then the end, or what is wrong.
pub fn send(input: impl Read, job: &Job, sender: &Sender) {
    let mut blob = Blob { input, hasher: job.digest.as_ref().map(Digest::hasher), left: job.size, read: 0 };
    let unpacked = decompress(&mut blob, job, sender);
    let verified = verify(&mut blob, job);
    // What the blob isn't explains what can't be read in it.
    let result = match (unpacked, verified) {
        (Err(Stopped::Gone), _) => return,
        (_, Err(error)) | (Err(Stopped::Failed(error)), Ok(_)) => Err(error),
        (Ok(_), Ok(rest)) if rest > 0 => {
            Err(Error::new(format!("{rest} bytes come after what is compressed")))
        }
        (Ok(found), Ok(_)) => job.diff_id.check(&found).doing(|| "its content (diffID)".into()),
    };
    let _ = sender.to.send(result.map(|()| Vec::new()));
}

/// Reads what is left of the blob, and compares the whole with what it must be. Returns how much was
/// left.
fn verify(blob: &mut Blob<impl Read>, job: &Job) -> Result<u64> {
    let rest = io::copy(blob, &mut io::sink())?;
    if blob.left.is_some() && job.whole && blob.input.read(&mut [0])? != 0 {
        return Err(Error::new(format!("it is longer than its size, {} bytes", blob.read)));
    }
    if let (Some(digest), Some(hasher)) = (&job.digest, blob.hasher.take()) {
        digest.check(&hasher.finish())?;
    }
    Ok(rest)
}

enum Stopped {
    /// Nobody reads any more.
    Gone,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Stopped::Failed(error.into())
    }
}

fn decompress(
    blob: &mut Blob<impl Read>,
    job: &Job,
    sender: &Sender,
) -> std::result::Result<Digest, Stopped> {
    let mut buffered = BufReader::with_capacity(128 << 10, blob);
    let found = magic(&mut buffered)?;
    let wrong = |said: &str| {
        Stopped::Failed(Error::new(format!("its media type says that it is {said}, which it isn't")))
    };
    match (job.compression, found) {
        (Compression::Gzip, Compression::None | Compression::Zstd) => {
            return Err(wrong("compressed by gzip"));
        }
        (Compression::Zstd, Compression::None | Compression::Gzip) => {
            return Err(wrong("compressed by zstd"));
        }
        (Compression::None, Compression::Gzip | Compression::Zstd) => return Err(wrong("not compressed")),
        _ => {}
    }
    match found {
        Compression::Gzip => forward(flate2::bufread::MultiGzDecoder::new(buffered), "gunzip", job, sender),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(job.limits.window.max(1024).ilog2())?;
            forward(decoder, "zstd", job, sender)
        }
        _ => forward(buffered, "read", job, sender),
    }
}

/// By its first bytes (RFC 1952, RFC 8878). Nothing at all is an archive, too: an empty one.
fn magic(input: &mut impl BufRead) -> Result<Compression> {
    let beginning = input.fill_buf()?;
    Ok(match beginning {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    })
}

/// Sends what comes, in pieces; returns its digest.
fn forward(
    mut input: impl Read,
    call: &str,
    job: &Job,
    sender: &Sender,
) -> std::result::Result<Digest, Stopped> {
    let mut hasher = job.diff_id.hasher();
    let mut total = 0u64;
    loop {
        let mut piece = sender.used.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        while filled < PIECE {
            let length = input.read(&mut piece[filled..]).map_err(|error| explain(error, call, job))?;
            if length == 0 {
                break;
            }
            filled += length;
        }
        if filled == 0 {
            return Ok(hasher.finish());
        }
        piece.truncate(filled);
        hasher.update(&piece);
        total += filled as u64;
        UNPACKED.store(total, Ordering::Relaxed);
        check("bytes unpacked", total, job.limits.size, "--max-size")?;
        let ratio = total / READ.load(Ordering::Relaxed).max(1);
        if total > RATIO_FROM {
            check("bytes unpacked of each byte", ratio, job.limits.ratio, "--max-ratio")?;
        }
        sender.to.send(Ok(piece)).map_err(|_| Stopped::Gone)?;
    }
}

fn explain(error: io::Error, call: &str, job: &Job) -> Error {
    // The library says only that it needs too much memory.
    let window = call == "zstd" && error.to_string().contains("requires too much memory");
    let error = Error::from(error).prefix(call);
    if window {
        let limit = job.limits.window;
        return error
            .prefix(format!("its window is larger than the limit, {limit} bytes"))
            .hint("--max-window changes it");
    }
    error
}
