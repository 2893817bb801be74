//! A tar archive as a stream of entries: ustar, GNU, PAX and V7 (pax(1), tar(5)).
//!
//! The fields of a header are the tar crate's; what several headers together mean is decided here,
//! because it has to be decided strictly: where two readers of one archive could see two different
//! file systems (CVE-2025-62518, CVE-2026-33055, CVE-2026-32766) it is refused.

use super::pax::Records;
use super::sparse::{self, Extent};
use crate::error::{Context, Error, Result, escape};
use std::io::BufRead;
use tar::{EntryType, Header};

/// The unit of the format.
const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    File,
    /// Another name for a file that was there before.
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry: what several headers together say of it.
#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    /// As it is written.
    pub path: Vec<u8>,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// Permissions, without the type.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds after that.
    pub mtime: (i64, u32),
    /// Of the file, holes included.
    pub size: u64,
    /// Of a sparse file, where its data is.
    pub extents: Option<Vec<Extent>>,
    pub device: (u32, u32),
    /// Names without the namespace of tar's, and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists in text form: for the access, the default.
    pub acls: (Option<Vec<u8>>, Option<Vec<u8>>),
}

/// Reads an archive.
pub struct Archive<R> {
    input: R,
    /// Bytes of data that the entry before still has, and its padding.
    data: u64,
    padding: u64,
    /// Records of global headers.
    global: Records,
    /// The most that extended headers of one entry may have.
    most: u64,
}

/// Headers that come before an entry.
#[derive(Default)]
struct Before {
    pax: Option<Records>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    size: u64,
}

impl<R: BufRead> Archive<R> {
    /// `most` is the limit for extended headers of one entry, in bytes.
    pub fn new(input: R, most: u64) -> Self {
        Archive { input, data: 0, padding: 0, global: Records::default(), most }
    }

    /// The next entry; `None` at the end of the archive. What is left of the data before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        self.skip(self.data)?;
        self.data = 0;
        let ended = self.skip_padding()?;
        let mut before = Before::default();
        loop {
            let header = if ended { None } else { self.header()? };
            let Some(header) = header else {
                if before.pax.is_some() || before.long_path.is_some() || before.long_link.is_some() {
                    return Err(Error::new("an extended header has no entry after it"));
                }
                return Ok(None);
            };
            let kind = header.entry_type();
            match kind.as_byte() {
                b'x' | b'X' => {
                    if before.pax.is_some() {
                        return Err(Error::new("two extended headers for one entry"));
                    }
                    before.pax = Some(Records::parse(&self.body(&header, &mut before.size)?)?);
                }
                b'g' => {
                    let records = Records::parse(&self.body(&header, &mut before.size)?)?;
                    records.check_global()?;
                    self.global.extend(records);
                    let size = self.global.size();
                    crate::limits::check("bytes of global headers", size, self.most, "--max-headers")?;
                }
                b'L' => {
                    let name = self.long_name(&header, &mut before)?;
                    once(&mut before.long_path, name)?;
                }
                b'K' => {
                    let name = self.long_name(&header, &mut before)?;
                    once(&mut before.long_link, name)?;
                }
                // The name of a volume: says nothing about files.
                b'V' => {
                    let size = number(&header.as_old().size, "size")?;
                    self.skip(padded(size)?)?;
                }
                _ => return self.entry(&header, before).map(Some),
            }
        }
    }

    /// The rest of the entry's data, as it comes, in pieces. Empty at its end.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let piece = self.input.fill_buf()?;
        if piece.is_empty() {
            return Err(truncated());
        }
        let length = piece.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        Ok(&piece[..length])
    }

    /// Says that `length` bytes of what `data` returned are done with.
    pub fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.data -= length as u64;
    }

    /// A header whose checksum is right; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None); // without the end that it ought to have, as many writers leave it
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return self.end().map(|()| None);
        }
        let expected = number(&header.as_old().cksum, "checksum")?;
        let bytes = header.as_bytes();
        let sum: u64 = bytes
            .iter()
            .enumerate()
            .map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u64::from(*byte) })
            .sum();
        // Old writers took bytes for signed.
        let signed: i64 = bytes
            .iter()
            .enumerate()
            .map(|(index, byte)| if (148..156).contains(&index) { 32 } else { i64::from(*byte as i8) })
            .sum();
        if sum != expected && i64::try_from(expected) != Ok(signed) {
            return Err(Error::new(
                "the checksum of a header is wrong: this is no tar archive, or a damaged one",
            ));
        }
        Ok(Some(header))
    }

    /// After the first block of zeros: nothing but zeros.
    fn end(&mut self) -> Result<()> {
        loop {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            if piece.iter().any(|byte| *byte != 0) {
                return Err(Error::new("data after the end of the archive"));
            }
            let length = piece.len();
            self.input.consume(length);
        }
    }

    /// Reads a block; false at the end of the input.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(truncated()) };
            }
            let length = piece.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            filled += length;
        }
        Ok(true)
    }

    /// What fills up the last block of the entry before. Some writers leave it out at the end of the
    /// archive: then this is its end.
    fn skip_padding(&mut self) -> Result<bool> {
        let mut padding = std::mem::take(&mut self.padding) as usize;
        while padding > 0 {
            let length = self.input.fill_buf()?.len().min(padding);
            if length == 0 {
                return Ok(true);
            }
            self.input.consume(length);
            padding -= length;
        }
        Ok(false)
    }

    fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let piece = self.input.fill_buf()?.len();
            if piece == 0 {
                return Err(truncated());
            }
            let step = piece.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.input.consume(step);
            length -= step as u64;
        }
        Ok(())
    }

    /// The data of an extended header.
    fn body(&mut self, header: &Header, before: &mut u64) -> Result<Vec<u8>> {
        let size = number(&header.as_old().size, "size")?;
        *before = before.saturating_add(size);
        crate::limits::check("bytes of an entry's extended headers", *before, self.most, "--max-headers")?;
        let mut body = vec![0; size as usize];
        let mut filled = 0;
        while filled < body.len() {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return Err(truncated());
            }
            let length = piece.len().min(body.len() - filled);
            body[filled..filled + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            filled += length;
        }
        self.skip(padded(size)? - size)?;
        Ok(body)
    }

    fn long_name(&mut self, header: &Header, before: &mut Before) -> Result<Vec<u8>> {
        let mut name = self.body(header, &mut before.size)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Puts together what the headers say.
    fn entry(&mut self, header: &Header, before: Before) -> Result<Entry> {
        let pax = before.pax.unwrap_or_default();
        // The path of a sparse file is elsewhere, so that other readers see that it is one.
        let sparse = pax.get("GNU.sparse.name");
        if sparse.is_some() && sparse::version(&pax)?.is_none() {
            return Err(Error::new("an extended header has a sparse file's name, but it isn't one"));
        }
        let path = match sparse {
            Some(name) => name.to_vec(),
            None => agreed("path", pax.get("path").map(<[u8]>::to_vec), before.long_path)?
                .unwrap_or_else(|| header.path_bytes().into_owned()),
        };
        if path.is_empty() {
            return Err(Error::new("an entry without a name"));
        }
        self.put_together(header, &pax, path.clone(), before.long_link)
            .map_err(|error| error.prefix(escape(&String::from_utf8_lossy(&path))))
    }

    fn put_together(
        &mut self,
        header: &Header,
        pax: &Records,
        path: Vec<u8>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let old = header.as_old();
        let kind = kind(old.linkflag[0], &path)?;
        let link = agreed("link", pax.get("linkpath").map(<[u8]>::to_vec), long_link)?
            .unwrap_or_else(|| until_nul(&old.linkname).to_vec());
        no_nul(&path)?;
        no_nul(&link)?;
        let stored = stored_size(number(&old.size, "size")?, pax)?;
        if stored != 0 && kind != Kind::File {
            return Err(Error::new(format!("{kind:?} with {stored} bytes of data")));
        }
        self.data = stored;
        self.padding = padded(stored)? - stored;
        let (extents, size) = self.extents(header, pax, stored)?;
        let time = |name| pax.get(name).or_else(|| self.global.get(name)).map(super::pax::time).transpose();
        let id = |name, field: &[u8]| match pax.get(name).or_else(|| self.global.get(name)) {
            Some(text) => super::pax::decimal(text),
            None => number(field, name),
        };
        let device = match (&kind, header.as_ustar().is_some() || header.as_gnu().is_some()) {
            (Kind::CharacterDevice | Kind::BlockDevice, true) => {
                let field = |bytes: &[u8]| {
                    u32::try_from(number(bytes, "device number")?)
                        .map_err(|_| Error::new("a device number is too large"))
                };
                (field(&header.as_bytes()[329..337])?, field(&header.as_bytes()[337..345])?)
            }
            _ => (0, 0),
        };
        Ok(Entry {
            link,
            mode: number(&old.mode, "mode")? as u32 & 0o7777,
            uid: id("uid", &old.uid)?,
            gid: id("gid", &old.gid)?,
            mtime: match time("mtime")? {
                Some(time) => time,
                None => (signed_number(&old.mtime, "mtime")?, 0),
            },
            size,
            extents,
            device,
            xattrs: pax.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            acls: (
                pax.get("SCHILY.acl.access").map(<[u8]>::to_vec),
                pax.get("SCHILY.acl.default").map(<[u8]>::to_vec),
            ),
            path,
            kind,
        })
    }

    /// Where a sparse file has its data, by any of the four ways to say so; and the file's size.
    fn extents(&mut self, header: &Header, pax: &Records, stored: u64) -> Result<(Option<Vec<Extent>>, u64)> {
        let (extents, size) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| Error::new("a sparse file, but not in GNU's format"))?;
            let mut extents = Vec::new();
            sparse::old(&gnu.sparse, &mut extents)?;
            let mut more = gnu.is_extended();
            while more {
                let mut block = tar::GnuExtSparseHeader::new();
                if !self.block(block.as_mut_bytes())? {
                    return Err(truncated());
                }
                sparse::old(&block.sparse, &mut extents)?;
                crate::limits::check(
                    "bytes of a sparse file's map",
                    extents.len() as u64 * 24,
                    self.most,
                    "--max-headers",
                )?;
                more = block.is_extended();
            }
            (extents, number(&gnu.realsize, "size of a sparse file")?)
        } else if let Some(version) = sparse::version(pax)? {
            let size = sparse::real_size(pax)?;
            let extents = match version {
                sparse::Version::InRecords => sparse::records(pax)?,
                sparse::Version::InData => {
                    let (extents, used) = self.map_in_data()?;
                    self.data = self
                        .data
                        .checked_sub(used)
                        .ok_or_else(|| Error::new("a sparse file's map is longer than its data"))?;
                    return sparse::check(&extents, size, stored - used).map(|()| (Some(extents), size));
                }
            };
            (extents, size)
        } else {
            return Ok((None, stored));
        };
        sparse::check(&extents, size, stored)?;
        Ok((Some(extents), size))
    }

    /// PAX 1.0's map: decimal numbers, one a line, in whole blocks at the beginning of the data.
    /// Returns how many bytes of the data it took.
    fn map_in_data(&mut self) -> Result<(Vec<Extent>, u64)> {
        let mut map = sparse::Map::default();
        let mut used = 0;
        while !map.complete() {
            let mut block = [0; BLOCK];
            if used + BLOCK as u64 > self.data || !self.block(&mut block)? {
                return Err(Error::new("a sparse file's map ends too early"));
            }
            used += BLOCK as u64;
            crate::limits::check("bytes of a sparse file's map", used, self.most, "--max-headers")?;
            map.take(&block)?;
        }
        Ok((map.extents()?, used))
    }
}

fn once(place: &mut Option<Vec<u8>>, name: Vec<u8>) -> Result<()> {
    match place.replace(name) {
        None => Ok(()),
        Some(_) => Err(Error::new("two long names for one entry")),
    }
}

/// PAX and GNU headers may both give a name, if it is the same.
fn agreed(what: &str, pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => {
            Err(Error::new(format!("its headers disagree about its {what}")))
        }
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// The size of the data: a PAX record counts, and the header may only have something else where the
/// number doesn't fit there.
fn stored_size(field: u64, pax: &Records) -> Result<u64> {
    const LARGEST: u64 = 0o77_777_777_777;
    let Some(text) = pax.get("size") else { return Ok(field) };
    let size = super::pax::decimal(text)?;
    if size == field || (size > LARGEST && (field == 0 || field == LARGEST)) {
        return Ok(size);
    }
    Err(Error::new(format!("its headers disagree about its size: {field} and {size}")))
}

fn kind(kind: u8, path: &[u8]) -> Result<Kind> {
    Ok(match kind {
        // V7 had no directories: a name that ends with a slash was one.
        0 if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharacterDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            return Err(Error::new(format!("entries of type {:?} can't be unpacked", char::from(other))));
        }
    })
}

fn truncated() -> Error {
    Error::new("the archive ends in the middle of an entry")
}

fn padded(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| Error::new("a size is too large"))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn no_nul(name: &[u8]) -> Result<()> {
    if name.contains(&0) { Err(Error::new("a name contains a NUL character")) } else { Ok(()) }
}

/// A number of a header: octal digits, or base 256 if its first bit is set.
pub fn number(field: &[u8], what: &str) -> Result<u64> {
    u64::try_from(signed_number(field, what)?).map_err(|_| Error::new(format!("its {what} is negative")))
}

/// As `number`, of a field that may be negative.
fn signed_number(field: &[u8], what: &str) -> Result<i64> {
    let wrong = || Error::new(format!("its {what} is no number"));
    if field[0] & 0x80 != 0 {
        // Two's complement, of which the first bit only marks the form.
        let first = (i128::from(field[0] & 0x7f) << 121) >> 121;
        let value = field[1..]
            .iter()
            .try_fold(first, |value, byte| value.checked_mul(256).map(|value| value | i128::from(*byte)));
        return i64::try_from(value.ok_or_else(wrong)?).map_err(|_| wrong());
    }
    let text = until_nul(field).trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with(['+', '-']));
    i64::from_str_radix(text.ok_or_else(wrong)?, 8).map_err(|_| wrong())
}

impl<R: BufRead> Archive<R> {
    /// Reads what is behind the archive's end, so that all of the input is verified.
    pub fn finish(mut self) -> Result<()> {
        self.end().doing(|| "after the last entry".into())
    }
}
