//! Records of PAX extended headers (pax(1), "pax Extended Header").

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Records by their keys; those of lists in their order.
#[derive(Debug, Default)]
pub struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    lists: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of all, for a limit.
    size: u64,
}

/// These may be repeated: they are a list.
const LISTS: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// Parses `LENGTH KEY=VALUE\n` over and over: strictly, and no key twice with different values.
    pub fn parse(mut text: &[u8]) -> Result<Self> {
        let wrong = || Error::new("a record of an extended header is malformed");
        let mut records = Records::default();
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = usize::try_from(decimal(&text[..space])?).map_err(|_| wrong())?;
            let record = text.get(space + 1..length).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() {
                return Err(wrong());
            }
            records.size += length as u64;
            let (key, value) = (key.to_vec(), value.to_vec());
            if LISTS.contains(&&key[..]) {
                records.lists.push((key, value));
                text = &text[length..];
                continue;
            }
            match records.values.get(&key) {
                Some(before) if *before != value => {
                    let key = String::from_utf8_lossy(&key);
                    return Err(Error::new(format!(
                        "its extended header has {key:?} twice, with different values"
                    )));
                }
                _ => drop(records.values.insert(key, value)),
            }
            text = &text[length..];
        }
        Ok(records)
    }

    /// A record's value; an empty one says nothing.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The records of lists, in their order.
    pub fn lists(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lists.iter().map(|(key, value)| (&key[..], &value[..]))
    }

    /// Bytes of all records.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.values.iter().filter_map(|(name, value)| Some((name.strip_prefix(XATTR)?, &value[..])))
    }

    /// What is true of all entries that follow can't be their names or sizes.
    pub fn check_global(&self) -> Result<()> {
        let of_one = |key: &[u8]| {
            matches!(key, b"path" | b"linkpath" | b"size")
                || key.starts_with(b"GNU.sparse")
                || key.starts_with(XATTR)
        };
        match self.values.keys().chain(self.lists.iter().map(|(key, _)| key)).find(|key| of_one(key)) {
            None => Ok(()),
            Some(key) => {
                let key = String::from_utf8_lossy(key);
                Err(Error::new(format!("a global header has {key:?}, which is a single entry's")))
            }
        }
    }

    /// Adds records, which count before those that were there.
    pub fn extend(&mut self, records: Records) {
        self.values.extend(records.values);
        self.size += records.size;
    }
}

/// A decimal number without a sign.
pub fn decimal(text: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        Error::new(format!("{:?} in an extended header is no number", String::from_utf8_lossy(text)))
    })
}

/// A time: seconds with a fraction, as seconds and nanoseconds after that.
pub fn time(text: &[u8]) -> Result<(i64, u32)> {
    let wrong =
        || Error::new(format!("{:?} in an extended header is no time", String::from_utf8_lossy(text)));
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    if digits.is_empty() || !digits.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = fraction.parse().map_err(|_| wrong())?;
    // A fraction is away from zero; what follows it counts forwards.
    if negative && nanoseconds > 0 {
        return Ok((seconds.checked_sub(1).ok_or_else(wrong)?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_strictly() {
        let records = Records::parse(b"12 path=abc\n21 SCHILY.xattr.u=a\n\n").expect("they are right");
        assert_eq!(records.get("path"), Some(&b"abc"[..]));
        assert_eq!(records.xattrs().collect::<Vec<_>>(), [(&b"u"[..], &b"a\n"[..])]);
        for bad in [
            &b"12 path=abc"[..],
            b"13 path=abc\n",
            b"11 path=abc\n",
            b"x path=abc\n",
            b"+12 path=abc\n",
            b"5 =a\n",
            b"6 abc\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"12 path=abc\n12 path=abd\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert!(Records::parse(b"12 path=abc\n12 path=abc\n").is_ok(), "they agree");
    }

    #[test]
    fn times_have_fractions() {
        assert_eq!(time(b"1700000000.5").ok(), Some((1_700_000_000, 500_000_000)));
        assert_eq!(time(b"12").ok(), Some((12, 0)));
        assert_eq!(time(b"0.1234567891").ok(), Some((0, 123_456_789)));
        assert_eq!(time(b"-1.25").ok(), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.5").ok(), Some((-1, 500_000_000)));
        for bad in [&b""[..], b"-", b"1.-5", b"1e5", b"99999999999999999999"] {
            assert!(time(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
