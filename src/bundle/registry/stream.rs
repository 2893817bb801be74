//! A blob's bytes, over as many connections as it takes.

use super::client::{Answer, Attempt};
use super::{Shared, What, pause};
use crate::error::{Error, Result};
use crate::source::Wanted;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use ureq::BodyReader;
use ureq::http::{HeaderMap, StatusCode, header};

/// So much has to come over a connection that it counts as progress. It bounds how often a registry that
/// sends little at a time is asked again.
const PROGRESS: u64 = 1024 * 1024;
/// How often a download is taken up again without progress.
const RESUMED_MOST: u32 = 5;

/// The bytes of a blob: its size, and one more if there is one. A connection that breaks, or ends too
/// early, is replaced by one that goes on where it was. That this gives the bytes of one blob isn't
/// checked here but by the digest.
pub struct Stream {
    shared: Arc<Shared>,
    wanted: Wanted,
    body: BodyReader<'static>,
    /// How many bytes have been handed out.
    at: u64,
    /// How many are to be read away first: the server began anew.
    skip: u64,
    /// Where it was when the resumptions began to count.
    since: u64,
    resumed: u32,
}

impl Stream {
    /// Asks for the blob.
    pub fn open(shared: Arc<Shared>, wanted: &Wanted) -> Result<Stream> {
        let (body, skip) =
            connect(&shared, wanted, 0).map_err(|error| error.prefix(name(&shared, wanted)))?;
        Ok(Stream { shared, wanted: wanted.clone(), body, at: 0, skip, since: 0, resumed: 0 })
    }

    fn resume(&mut self, cause: &str) -> Result<()> {
        if self.at - self.since >= PROGRESS {
            self.since = self.at;
            self.resumed = 0;
        }
        let (at, size, resumed) = (self.at, self.wanted.size, self.resumed);
        let name = name(&self.shared, &self.wanted);
        let what = || format!("{name}: broke off after {at} of {size} bytes");
        if self.resumed == RESUMED_MOST {
            return Err(Error::new(cause).prefix(format!("taken up {resumed} times")).prefix(what()));
        }
        pause(self.resumed, None);
        self.resumed += 1;
        let (body, skip) = connect(&self.shared, &self.wanted, at).map_err(|error| error.prefix(what()))?;
        self.body = body;
        self.skip = skip;
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = (self.wanted.size - self.at.min(self.wanted.size)).max(1);
        if buffer.is_empty() || self.at > self.wanted.size {
            return Ok(0);
        }
        loop {
            // One more than the size, but never a byte of it in the same call: so the size is reached
            // even if what is behind it can't be read.
            let most = if self.skip > 0 { self.skip } else { left };
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
            let cause = match self.body.read(&mut buffer[..most]) {
                Ok(0) | Err(_) if self.at == self.wanted.size => return Ok(0),
                Ok(0) => "the registry sent no more".to_owned(),
                Ok(read) if self.skip > 0 => {
                    self.skip -= read as u64;
                    continue;
                }
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error.to_string(),
            };
            self.resume(&cause)?;
        }
    }
}

fn name(shared: &Shared, wanted: &Wanted) -> String {
    format!("{}: blob {}", shared.reference, wanted.digest)
}

/// The bytes from `from` on, after those that are to be skipped.
fn connect(shared: &Shared, wanted: &Wanted, from: u64) -> Result<(BodyReader<'static>, u64)> {
    let what = if wanted.is_manifest { What::Manifest(&wanted.digest) } else { What::Blob(&wanted.digest) };
    shared.ask(&what, from, |answer| {
        let skip = begins(&answer, from)?;
        Ok((answer.response.into_body().into_reader(), skip))
    })
}

/// How many bytes an answer has before `from`: none of a part, all of the whole.
fn begins(answer: &Answer, from: u64) -> Attempt<u64> {
    if answer.response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(from);
    }
    match first_byte(answer.response.headers()) {
        Some(first) if first == from => Ok(0),
        _ => {
            Err(Error::new(format!("the part of the blob that was sent isn't that from byte {from} on"))
                .into())
        }
    }
}

/// `Content-Range: bytes FIRST-LAST/LENGTH`, RFC 9110, 14.4. The length may be `*`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (unit, range) = value.split_once(' ')?;
    let (range, length) = range.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (first, last) = (number(first)?, number(last)?);
    let is_within = length == "*" || number(length).is_some_and(|length| last < length);
    (unit.eq_ignore_ascii_case("bytes") && first <= last && is_within).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::HeaderValue;

    #[test]
    fn content_ranges() {
        let first = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(text).unwrap());
            first_byte(&headers)
        };
        assert_eq!(first("bytes 5-9/10"), Some(5));
        assert_eq!(first("Bytes 5-5/*"), Some(5));
        for wrong in [
            "bytes */10",
            "bytes 5-10/10",
            "bytes 9-5/10",
            "items 5-9/10",
            "bytes 5-9",
            "5-9/10",
            "bytes +5-9/10",
            "",
        ] {
            assert_eq!(first(wrong), None, "{wrong}");
        }
        assert_eq!(first("bytes 99999999999999999999-99999999999999999999/*"), None);
    }
}
