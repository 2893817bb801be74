//! Archives of images: `oci-archive:TAR`, and what is common with Docker's.

use super::layout::{INDEX, MARK, blob_path, bounded, check_mark};
use super::{Blob, Root, Source, Wanted};
use crate::error::{Context, Error, Result};
use crate::limits::check;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

/// As many members as an archive of an image may have; layers have each at most three.
const MOST: u64 = 20_000;

/// Where in a tar archive its members are.
pub struct Members {
    path: PathBuf,
    /// The archive; it needn't have a name any more.
    file: File,
    places: HashMap<PathBuf, Place>,
}

enum Place {
    File {
        offset: u64,
        size: u64,
    },
    /// Old archives of Docker's have links between layers.
    Link(PathBuf),
}

impl Members {
    /// Looks through an archive; its members' data isn't read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).doing(|| format!("{path:?}"))?;
        if !file.metadata()?.is_file() {
            return Err(
                Error::new(format!("{path:?} is not a regular file")).hint("give a pipe by the name -")
            );
        }
        Members::of(file, path)
    }

    /// As `open`, of a file that is open; `path` is for messages.
    pub fn of(file: File, path: &Path) -> Result<Self> {
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0)?;
        let compressed = magic[..read].starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd];
        if compressed {
            return Err(Error::new(format!("{path:?} is compressed"))
                .hint("only its layers may be; decompress it, or pipe it: zcat … | damda bundle - DIR"));
        }
        let places = Members::look(&file).doing(|| format!("{path:?}"))?;
        Ok(Members { path: path.to_owned(), file, places })
    }

    fn look(file: &File) -> Result<HashMap<PathBuf, Place>> {
        let length = file.metadata()?.len();
        let mut places = HashMap::new();
        let mut reader = file.try_clone()?;
        reader.seek(SeekFrom::Start(0))?;
        let mut archive = tar::Archive::new(reader);
        for (count, entry) in archive.entries_with_seek()?.enumerate() {
            check("members", count as u64, MOST, "an archive of an image has fewer; nothing")?;
            let entry = entry?;
            let Some(path) = plain(&entry.path()?) else { continue };
            let (offset, size) = (entry.raw_file_position(), entry.size());
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    if offset.checked_add(size).is_none_or(|end| end > length) {
                        return Err(Error::new(format!("{path:?} ends after the archive does")));
                    }
                    places.insert(path, Place::File { offset, size });
                }
                EntryType::Symlink | EntryType::Link => {
                    let Some(target) = entry.link_name()? else { continue };
                    let relative = entry.header().entry_type() == EntryType::Symlink;
                    let from = path.parent().filter(|_| relative).unwrap_or(Path::new(""));
                    if let Some(target) = within(&from.join(target)) {
                        places.insert(path, Place::Link(target));
                    }
                }
                _ => {}
            }
        }
        Ok(places)
    }

    /// Whether there is a member of this name.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(Path::new(name))
    }

    /// Opens a member: a file that stands where it begins, and its size.
    pub fn member(&self, name: &Path) -> Result<(File, u64)> {
        let lacks = || Error::new(format!("{:?} has no {name:?}", self.path));
        let name = plain(name).ok_or_else(lacks)?;
        let mut place = self.places.get(&name).ok_or_else(lacks)?;
        if let Place::Link(target) = place {
            place = self.places.get(target).ok_or_else(lacks)?;
        }
        let Place::File { offset, size } = place else { return Err(lacks()) };
        // A description of its own: several are read at the same time.
        let mut file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file)))?;
        file.seek(SeekFrom::Start(*offset))?;
        Ok((file, *size))
    }

    /// A member that is short.
    pub fn text(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let (file, size) = self.member(Path::new(name))?;
        bounded(file, size, most, name)
    }
}

/// A member's name without `./`; None if it leads anywhere else.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(plain)
}

/// A link's target, as a member's name.
fn within(path: &Path) -> Option<PathBuf> {
    let mut within = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => within.push(name),
            Component::CurDir => {}
            Component::ParentDir if within.pop() => {}
            _ => return None,
        }
    }
    Some(within)
}

/// An image layout in a tar archive.
pub struct Archive {
    members: Members,
    tag: Option<String>,
}

impl Archive {
    /// Of an archive's members.
    pub fn of(members: Members, tag: Option<String>) -> Result<Self> {
        check_mark(&members.text(MARK, 4096)?)?;
        Ok(Archive { members, tag })
    }
}

impl Source for Archive {
    fn root(&self, most: u64) -> Result<Root> {
        Ok(Root { media_type: None, bytes: self.members.text(INDEX, most)? })
    }

    fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    fn blob(&self, wanted: &Wanted) -> Result<Blob> {
        let (file, size) = self.members.member(&blob_path(&wanted.digest)?)?;
        if size != wanted.size {
            return Err(Error::new(format!("it has {size} bytes, but its size is {}", wanted.size)));
        }
        Ok(Blob::File(file))
    }
}

/// `PATH[:NAME]`: the archive's path, and which image in it.
pub fn split_name(name: &str) -> (PathBuf, Option<String>) {
    if Path::new(name).exists() {
        return (name.into(), None);
    }
    // A tag has a colon of its own: the path is the longest that is there.
    let colons = name.match_indices(':').map(|(index, _)| index).collect::<Vec<_>>();
    for index in colons.into_iter().rev() {
        if Path::new(&name[..index]).exists() {
            return (name[..index].into(), Some(name[index + 1..].to_owned()));
        }
    }
    (name.into(), None)
}

/// Puts what comes by a pipe into a file without a name: an archive's index is often at its end.
pub fn spool(mut input: impl Read, directory: &Path, most: u64) -> Result<File> {
    let mut file = nameless(directory)?;
    let mut input = input.by_ref().take(most.saturating_add(1));
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let length = input.read(&mut buffer).doing(|| "read stdin".into())?;
        if length == 0 {
            return Ok(file);
        }
        total += length as u64;
        check("bytes of stdin", total, most, "--max-size")?;
        file.write_all(&buffer[..length]).doing(|| format!("write to {directory:?}"))?;
    }
}

fn nameless(directory: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
        .doing(|| format!("make a temporary file in {directory:?}"))
}
