//! The mounts of this process's mount namespace (proc_pid_mountinfo(5)).

use super::{Call, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other mount has as long as it is there.
    pub number: i32,
    /// What of its file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
}

/// All of them, in the kernel's order.
pub fn mounts() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).call(|| format!("read({path:?})"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

/// The mount of one line: `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn mount(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mut fields = line.split(|byte| *byte == b' ');
    let number = text(fields.next()?).parse().ok()?;
    let (root, point) = (unescaped(fields.nth(2)?), unescaped(fields.next()?));
    // Before the hyphen there are as many fields as there are kinds of propagation.
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?);
    Some(Mount { number, root, point, kind })
}

/// A path without its escapes: blanks and backslashes are written as octal numbers.
fn unescaped(mut path: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    while let [first, rest @ ..] = path {
        let number = rest.get(..3).filter(|_| *first == b'\\');
        let number = number.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(*first));
        path = if number.is_some() { &rest[3..] } else { rest };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let expected = |point: &str| {
            Some(Mount { number: 36, root: "/r s".into(), point: point.into(), kind: "ext3".into() })
        };
        for propagation in ["", "shared:2 ", "shared:2 master:1 "] {
            let line = format!("36 35 98:0 /r\\040s /mnt rw,noatime {propagation}- ext3 /dev/root rw,x");
            assert_eq!(mount(line.as_bytes()), expected("/mnt"), "{line}");
        }
        for line in ["", "36 35 98:0 /", "x 35 98:0 / / rw - ext3 /dev/root rw"] {
            assert_eq!(mount(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn escapes() {
        for (escaped, path) in
            [("/a\\040b", "/a b"), ("/a\\134b", "/a\\b"), ("/plain", "/plain"), ("/a\\9", "/a\\9")]
        {
            assert_eq!(unescaped(escaped.as_bytes()), Path::new(path), "{escaped}");
        }
    }
}
