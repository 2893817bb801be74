//! The container's /etc/passwd, which may be anything.

use super::{Init, Step};
use crate::error::Result;
use crate::root::{Links, Root};
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most that is read of it: real ones have some kilobytes.
const MOST_BYTES: u64 = 1 << 20;

/// Finds the user's home directory, for a process whose environment has no HOME.
pub struct FindHome {
    /// The user.
    pub uid: u32,
}

impl fmt::Display for FindHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "find the home directory of user {}", self.uid)
    }
}

impl Step for FindHome {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let text = read(init.root()?).unwrap_or_default();
        init.found.home = Some(home(&text, self.uid).unwrap_or("/").to_owned());
        Ok(())
    }
}

/// A regular file within the root and of a sane size, or nothing: a fifo would stop the runtime
/// for good, a device or a link could lead to the host.
fn read(root: &Root) -> Option<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = root.resolve(Path::new("/etc/passwd"), flags, Links::Follow).ok()?;
    let stat = fstat(&file).ok()?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return None;
    }
    let mut text = String::with_capacity(stat.st_size.clamp(0, MOST_BYTES as i64) as usize + 1);
    File::from(file).take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The home directory in the first entry for `uid` (passwd(5)).
fn home(text: &str, uid: u32) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let id: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2)?;
        (id == uid && home.starts_with('/')).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_counts() {
        let text =
            "root:x:0:0:root:/root:/bin/sh\nbad line\nx:x:y:\na:x:5:5::/a:\nb:x:5:5::/b:\nc:x:6:6::rel:\n";
        assert_eq!(home(text, 0), Some("/root"));
        assert_eq!(home(text, 5), Some("/a"));
        assert_eq!(home(text, 6), None);
        assert_eq!(home(text, 7), None);
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        let root = Root::open(dir.path()).expect("open");
        assert_eq!(read(&root), None);
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert_eq!(read(&root), None, "and doesn't wait for a writer");
    }
}
