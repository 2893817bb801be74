//! Tar archives, byte by byte: also those that no archiver writes.

/// The size of a header and of what data is padded to.
pub const BLOCK: usize = 512;

/// Which of the formats a header says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// POSIX.1-1988 with what PAX adds: what doesn't fit is in records.
    Ustar,
    /// What doesn't fit is in entries of type L and K, numbers are base-256.
    Gnu,
    /// No magic, no owner's names, no devices.
    V7,
}

/// One entry. All is settable, and nothing is checked.
#[derive(Debug, Clone)]
pub struct Entry {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u32,
    uid: i64,
    gid: i64,
    mtime: i64,
    size: Option<i64>,
    device: (u32, u32),
    format: Format,
    records: Vec<u8>,
    patches: Vec<(usize, Vec<u8>)>,
    checksum: Option<u32>,
    after_header: Vec<u8>,
    data: Vec<u8>,
}

/// When the entries that don't say otherwise were modified.
pub const MTIME: i64 = 1_500_000_000;

impl Entry {
    /// An entry of this type.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Entry {
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: MTIME,
            size: None,
            device: (0, 0),
            format: Format::Ustar,
            records: Vec::new(),
            patches: Vec::new(),
            checksum: None,
            after_header: Vec::new(),
            data: Vec::new(),
        }
    }

    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Entry { data: data.as_ref().to_vec(), ..Entry::new(b'0', name) }
    }

    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Entry::new(b'5', name).mode(0o755)
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Entry::new(b'2', name).target(target).mode(0o777)
    }

    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Entry::new(b'1', name).target(target)
    }

    /// A character (`3`) or block (`4`) device.
    pub fn device(kind: u8, name: &str, major: u32, minor: u32) -> Self {
        Entry { device: (major, minor), ..Entry::new(kind, name) }
    }

    pub fn target(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: i64, gid: i64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, seconds: i64) -> Self {
        self.mtime = seconds;
        self
    }

    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The size that the header claims.
    pub fn size(mut self, size: i64) -> Self {
        self.size = Some(size);
        self
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    /// A PAX record, in an extended header before this one.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.extend(record(key, value));
        self
    }

    /// Bytes in the place of PAX records.
    pub fn pax_bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.records.extend(bytes.as_ref());
        self
    }

    /// An extended attribute, as GNU tar, Docker and containerd write it.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Overwrites bytes of the header; its checksum is that of the result.
    pub fn patch(mut self, offset: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.patches.push((offset, bytes.as_ref().to_vec()));
        self
    }

    /// A checksum of this value.
    pub fn checksum(mut self, checksum: u32) -> Self {
        self.checksum = Some(checksum);
        self
    }

    /// The entry with what must come before it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut before = Vec::new();
        let mut records = self.records.clone();
        for (value, long_kind, key) in [(&self.name, b'L', "path"), (&self.link, b'K', "linkpath")] {
            match self.format {
                Format::Gnu if value.len() > 100 => {
                    let data = [value, &b"\0"[..]].concat();
                    let long = Entry::new(long_kind, "././@LongLink").format(Format::Gnu).data(data);
                    before.extend(long.mode(0).mtime(0).bytes());
                }
                Format::Ustar if value.len() > 100 => records.extend(record(key, value)),
                _ => {}
            }
        }
        if !records.is_empty() {
            before.extend(Entry::file("PaxHeaders/entry", records).kind(b'x').bytes());
        }
        before.extend(self.header());
        before.extend(&self.after_header);
        before.extend(&self.data);
        before.resize(before.len().next_multiple_of(BLOCK), 0);
        before
    }

    fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let mut put = |offset: usize, bytes: &[u8]| header[offset..][..bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &number(self.mode.into(), 8));
        put(108, &number(self.uid, 8));
        put(116, &number(self.gid, 8));
        put(124, &number(self.size.unwrap_or(self.data.len() as i64), 12));
        put(136, &number(self.mtime, 12));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        match self.format {
            Format::Ustar => put(257, b"ustar\x0000"),
            Format::Gnu => put(257, b"ustar  \0"),
            Format::V7 => {}
        }
        if self.format != Format::V7 {
            put(329, &number(self.device.0.into(), 8));
            put(337, &number(self.device.1.into(), 8));
        }
        for (offset, bytes) in &self.patches {
            put(*offset, bytes);
        }
        let sum = self.checksum.unwrap_or_else(|| header.iter().map(|&byte| u32::from(byte)).sum());
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// For messages: its type, its name, what it is a link to.
impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = (self.kind.escape_ascii(), self.name.escape_ascii());
        write!(f, "{kind} {name} {}", self.link.escape_ascii())
    }
}

/// A number as wide as the field: octal where it fits, base-256 where it doesn't or is negative.
pub fn number(value: i64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}\0", digits = width - 1);
    if value >= 0 && octal.len() == width {
        return octal.into_bytes();
    }
    base256(value, width)
}

/// A number in the way of GNU and star: the first bit is set, the rest is the number in two's
/// complement.
pub fn base256(value: i64, width: usize) -> Vec<u8> {
    let fill = if value < 0 { 0xff } else { 0 };
    let mut bytes = [vec![fill; 8], value.to_be_bytes().to_vec()].concat().split_off(16 - width);
    bytes[0] |= 0x80;
    bytes
}

/// A PAX record: its length counts itself.
pub fn record(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value.as_ref(), b"\n"].concat();
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().into_bytes(), rest].concat()
}

/// How a file with holes is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// Type S: the map is in the header and in blocks after it.
    Gnu,
    /// PAX records GNU.sparse.offset and GNU.sparse.numbytes, again and again.
    Pax00,
    /// PAX record GNU.sparse.map.
    Pax01,
    /// The map is at the beginning of the data.
    Pax10,
}

/// A file of this size with data at these offsets.
pub fn sparse(kind: Sparse, name: &str, size: u64, parts: &[(u64, &[u8])]) -> Entry {
    let stored: Vec<u8> = parts.iter().flat_map(|(_, data)| data.iter().copied()).collect();
    let map: Vec<(u64, u64)> = parts.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect();
    let hidden = format!("GNUSparseFile.1/{}", name.rsplit('/').next().unwrap_or(name));
    let count = map.len().to_string();
    match kind {
        Sparse::Gnu => old_sparse(name, size, &map, &stored),
        Sparse::Pax00 => {
            let entry = Entry::file(name, stored).pax("GNU.sparse.size", size.to_string());
            map.iter().fold(entry.pax("GNU.sparse.numblocks", count), |entry, (offset, length)| {
                let entry = entry.pax("GNU.sparse.offset", offset.to_string());
                entry.pax("GNU.sparse.numbytes", length.to_string())
            })
        }
        Sparse::Pax01 => {
            let numbers = map.iter().flat_map(|&(offset, length)| [offset, length]);
            let text: Vec<String> = numbers.map(|number| number.to_string()).collect();
            let entry = Entry::file(hidden, stored).pax("GNU.sparse.size", size.to_string());
            let entry = entry.pax("GNU.sparse.numblocks", count).pax("GNU.sparse.map", text.join(","));
            entry.pax("GNU.sparse.name", name)
        }
        Sparse::Pax10 => {
            let lines = map.iter().map(|(offset, length)| format!("{offset}\n{length}\n"));
            let mut data = format!("{count}\n{}", lines.collect::<String>()).into_bytes();
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            data.extend(stored);
            let entry = Entry::file(hidden, data).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
            entry.pax("GNU.sparse.name", name).pax("GNU.sparse.realsize", size.to_string())
        }
    }
}

fn old_sparse(name: &str, size: u64, map: &[(u64, u64)], stored: &[u8]) -> Entry {
    let pair =
        |&(offset, length): &(u64, u64)| [number(offset as i64, 12), number(length as i64, 12)].concat();
    let (first, rest) = map.split_at(map.len().min(4));
    let mut entry = Entry::file(name, stored).kind(b'S').format(Format::Gnu);
    entry = entry.patch(386, first.iter().flat_map(pair).collect::<Vec<_>>());
    entry = entry.patch(482, [u8::from(!rest.is_empty())]).patch(483, number(size as i64, 12));
    let blocks = rest.chunks(21);
    let last = blocks.len();
    for (index, chunk) in blocks.enumerate() {
        let mut block: Vec<u8> = chunk.iter().flat_map(pair).collect();
        block.resize(BLOCK, 0);
        block[504] = u8::from(index + 1 < last);
        entry.after_header.extend(block);
    }
    entry
}

/// An archive that ends as it should.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    [unended(entries), vec![0; 2 * BLOCK]].concat()
}

/// An archive without an end.
pub fn unended(entries: &[Entry]) -> Vec<u8> {
    entries.iter().map(Entry::bytes).collect::<Vec<_>>().concat()
}

/// A global header: PAX records for all entries after it.
pub fn global(records: &[(&str, &str)]) -> Entry {
    let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    Entry::file("pax_global_header", bytes).kind(b'g')
}
