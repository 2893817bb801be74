//! POSIX access control lists in their text form (acl(5)), as GNU tar and star write them, to the
//! form of the kernel's attributes (include/uapi/linux/posix_acl_xattr.h).

use crate::error::{Error, Result};

/// No qualifier.
const NOBODY: u32 = u32::MAX;

/// The attribute's value: a version, and for each entry a tag, permissions and an id, sorted.
pub fn attribute(text: &[u8]) -> Result<Vec<u8>> {
    let text = String::from_utf8_lossy(text);
    let mut entries = text
        .split(['\n', ','])
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(entry)
        .collect::<Result<Vec<_>>>()?;
    entries.sort_unstable();
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(value)
}

/// `user:NAME:rwx:ID` (star adds the number), `user:ID:rwx`, `mask::r-x`. A name is the archive's
/// host's and says nothing here.
fn entry(line: &str) -> Result<(u16, u32, u16)> {
    let wrong = || Error::new(format!("{line:?} is no entry of an access control list"));
    let fields: Vec<&str> = line.split(':').collect();
    let [kind, name, permissions, rest @ ..] = &fields[..] else { return Err(wrong()) };
    let id = match (*name, rest.first().copied()) {
        ("", _) => NOBODY,
        (_, Some(number)) | (number, None) => {
            number.parse().ok().filter(|id| *id != NOBODY).ok_or_else(wrong)?
        }
    };
    let tag = match (*kind, id) {
        ("user" | "u", NOBODY) => 0x01,
        ("user" | "u", _) => 0x02,
        ("group" | "g", NOBODY) => 0x04,
        ("group" | "g", _) => 0x08,
        ("mask" | "m", NOBODY) => 0x10,
        ("other" | "o", NOBODY) => 0x20,
        _ => return Err(wrong()),
    };
    let bits = permissions.chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    });
    Ok((tag, id, bits.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kernels_form() {
        let value =
            attribute(b"user::rw-\nuser:joe:r--:1001\ngroup::r--,mask::r--\nother::---\n").expect("a list");
        let entry = |tag: u8, permissions: u8, id: u32| {
            let mut entry = vec![tag, 0, permissions, 0];
            entry.extend(id.to_le_bytes());
            entry
        };
        let expected = [
            vec![2, 0, 0, 0],
            entry(1, 6, NOBODY),
            entry(2, 4, 1001),
            entry(4, 4, NOBODY),
            entry(16, 4, NOBODY),
            entry(32, 0, NOBODY),
        ]
        .concat();
        assert_eq!(value, expected);
        for bad in [&b"user:joe:rw-"[..], b"x::rw-", b"user::rwq", b"user"] {
            assert!(attribute(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
