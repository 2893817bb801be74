//! Where a sparse file has its data: GNU's old form, and its three forms within PAX
//! (GNU tar manual, "Storing Sparse Files").

use super::pax::{Records, decimal};
use super::tar::number;
use crate::error::{Error, Result};
use tar::GnuSparseHeader;

/// A piece of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// In the file.
    pub offset: u64,
    pub length: u64,
}

/// Where PAX has the map.
pub enum Version {
    /// 0.0 and 0.1
    InRecords,
    /// 1.0
    InData,
}

/// Which form, if the file is sparse.
pub fn version(pax: &Records) -> Result<Option<Version>> {
    let major = pax.get("GNU.sparse.major");
    match (major, pax.get("GNU.sparse.minor")) {
        (Some(b"1"), Some(b"0")) => return Ok(Some(Version::InData)),
        (None, None) | (Some(b"0"), _) => {}
        _ => return Err(Error::new("a sparse file of a version that isn't known")),
    }
    let any = pax.get("GNU.sparse.map").is_some()
        || pax.get("GNU.sparse.size").is_some()
        || pax.get("GNU.sparse.numblocks").is_some();
    Ok(any.then_some(Version::InRecords))
}

/// The size with its holes.
pub fn real_size(pax: &Records) -> Result<u64> {
    let size = pax.get("GNU.sparse.realsize").or_else(|| pax.get("GNU.sparse.size"));
    decimal(size.ok_or_else(|| Error::new("a sparse file without its size"))?)
}

/// Of 0.0 (a record for each number) and 0.1 (one record with all).
pub fn records(pax: &Records) -> Result<Vec<Extent>> {
    let numbers: Vec<u64> = match pax.get("GNU.sparse.map") {
        Some(map) => map.split(|byte| *byte == b',').map(decimal).collect::<Result<_>>()?,
        None => {
            let mut numbers = Vec::new();
            for (key, value) in pax.lists() {
                if key.ends_with(b"offset") != numbers.len().is_multiple_of(2) {
                    return Err(Error::new("the records of a sparse file are out of order"));
                }
                numbers.push(decimal(value)?);
            }
            numbers
        }
    };
    let extents = pairs(&numbers)?;
    match pax.get("GNU.sparse.numblocks").map(decimal).transpose()? {
        Some(count) if count != extents.len() as u64 => {
            Err(Error::new("the records of a sparse file disagree about their number"))
        }
        _ => Ok(extents),
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<Extent>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::new("the map of a sparse file has an odd number of numbers"));
    }
    Ok(pairs.iter().map(|[offset, length]| Extent { offset: *offset, length: *length }).collect())
}

/// Of the old form: entries of a header, or of a block after it.
pub fn old(entries: &[GnuSparseHeader], extents: &mut Vec<Extent>) -> Result<()> {
    for entry in entries {
        if entry.is_empty() {
            continue;
        }
        let offset = number(&entry.offset, "place in a sparse file")?;
        extents.push(Extent { offset, length: number(&entry.numbytes, "length in a sparse file")? });
    }
    Ok(())
}

/// In order, within the file, and as much data as there is.
pub fn check(extents: &[Extent], size: u64, stored: u64) -> Result<()> {
    let (mut end, mut data) = (0u64, 0u64);
    for extent in extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| *next <= size);
        if extent.offset < end || next.is_none() {
            return Err(Error::new("the map of a sparse file is out of order, or longer than the file"));
        }
        end = next.unwrap_or_default();
        data += extent.length;
    }
    if data != stored {
        return Err(Error::new(format!("the map of a sparse file has {data} bytes, but {stored} are there")));
    }
    Ok(())
}

/// The numbers of 1.0: how many pairs, and the pairs.
#[derive(Default)]
pub struct Map {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl Map {
    /// Whether all numbers are there that the first one announces.
    pub fn complete(&self) -> bool {
        self.numbers.first().is_some_and(|count| self.numbers.len() as u64 > count.saturating_mul(2))
    }

    /// Takes a block.
    pub fn take(&mut self, block: &[u8]) -> Result<()> {
        for byte in block {
            match byte {
                b'\n' if !self.complete() => {
                    self.numbers.push(decimal(&std::mem::take(&mut self.digits))?);
                }
                _ if self.complete() => {}
                digit if digit.is_ascii_digit() && self.digits.len() < 20 => self.digits.push(*digit),
                _ => return Err(Error::new("the map of a sparse file is malformed")),
            }
        }
        Ok(())
    }

    /// What they mean.
    pub fn extents(&self) -> Result<Vec<Extent>> {
        pairs(&self.numbers[1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_in_the_data() {
        let mut map = Map::default();
        map.take(b"2\n0\n5").expect("digits");
        assert!(!map.complete());
        map.take(b"12\n1024\n1\n\0\0\0").expect("the rest is padding");
        assert!(map.complete());
        let extents = map.extents().expect("pairs");
        assert_eq!(extents, [Extent { offset: 0, length: 512 }, Extent { offset: 1024, length: 1 }]);
        assert!(check(&extents, 1025, 513).is_ok());
        assert!(check(&extents, 1024, 513).is_err(), "longer than the file");
        assert!(check(&extents, 1025, 512).is_err(), "not as much data");
        assert!(Map::default().take(b"x").is_err());
    }

    #[test]
    fn overlapping_data_is_refused() {
        let extents = [Extent { offset: 0, length: 10 }, Extent { offset: 9, length: 1 }];
        assert!(check(&extents, 100, 11).is_err());
        let extents = [Extent { offset: u64::MAX, length: 1 }];
        assert!(check(&extents, u64::MAX, 1).is_err());
    }
}
