//! The entries of a layer, made in an empty directory (image-spec layer.md).

use super::attributes::{self, Dropped, NO_TIME, Ownership, Target};
use super::stream::Pieces;
use super::tar::{Archive, Entry, Kind};
use super::{Job, Report, progress, say};
use crate::error::{Context, Error, Result, escape};
use crate::limits::{Limits, check};
use crate::tree::{self, Inner, Place, Tree};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{Whence, ftruncate, linkat, lseek, symlinkat};
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What marks something as removed (layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// What marks everything of a directory as removed.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files, which some old images have.
const AUFS: &[u8] = b".wh..wh.";

/// How often the progress is told.
const OFTEN: Duration = Duration::from_millis(100);

/// How many drops are told one by one.
const DROPS: usize = 100;

/// A layer that is being made.
struct Layer<'a> {
    tree: Tree,
    ownership: Ownership,
    limits: &'a Limits,
    report: Report,
    /// Times of directories, set when nothing is put into them any more.
    times: Vec<(Inner, (i64, u32))>,
    /// Default access control lists of directories, set then, too.
    defaults: Vec<(Inner, Vec<u8>)>,
    /// The directory of the entry before, by the path that was written: the next is mostly there, too.
    last: Option<(PathBuf, Place)>,
    drops: usize,
    /// Bytes of paths that are in the report, or for the end.
    paths: u64,
}

/// Makes the archive's entries below `root`.
pub fn unpack(pieces: &mut Pieces, root: OwnedFd, job: &Job) -> Result<Report> {
    let mut layer = Layer {
        tree: Tree::new(root),
        ownership: job.ownership,
        limits: &job.limits,
        // The root, too, until there is an entry for it.
        report: Report { implicit: [Inner::new()].into(), ..Report::default() },
        times: Vec::new(),
        defaults: Vec::new(),
        last: None,
        drops: 0,
        paths: 0,
    };
    let mut archive = Archive::new(pieces, job.limits.headers);
    let mut told = Instant::now();
    while let Some(entry) = archive.next()? {
        layer.report.entries += 1;
        check("entries", layer.report.entries, job.limits.entries, "--max-entries")?;
        let dropped = layer.entry(&entry, &mut archive).map_err(|error| error.prefix(shown(&entry.path)))?;
        layer.note(&entry.path, dropped);
        if told.elapsed() > OFTEN {
            say(&progress())?;
            told = Instant::now();
        }
    }
    archive.finish()?;
    layer.finish()
}

fn shown(path: &[u8]) -> String {
    escape(&String::from_utf8_lossy(path))
}

impl Layer<'_> {
    fn note(&mut self, path: &[u8], dropped: Vec<Dropped>) {
        for what in dropped {
            self.drops += 1;
            if self.drops <= DROPS {
                self.report.dropped.push(format!("{}: {what}", shown(path)));
            }
        }
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<Vec<Dropped>> {
        let path = tree::inner(&entry.path)?;
        self.check_depth(&path)?;
        check("bytes of the file", entry.size, self.limits.size, "--max-size")?;
        let Some((parent, name)) = tree::split(&path) else { return self.root(entry) };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden);
        }
        let place = self.parent(parent)?;
        let at = place.path.join(name);
        self.check_depth(&at)?; // links on the way may have led deeper
        self.report.links.remove(&at);
        let result = match entry.kind {
            Kind::Directory => self.directory(&place, name, &at, entry),
            Kind::File => self.file(&place, name, entry, archive),
            Kind::HardLink => self.hard_link(&place, name, &at, entry),
            Kind::Symlink => self.symlink(&place, name, entry),
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => self.node(&place, name, entry),
        };
        self.last = Some((parent.to_owned(), place));
        result
    }

    fn check_depth(&self, path: &Path) -> Result<()> {
        let depth = path.components().count() as u64;
        check("directories in the path", depth, self.limits.depth as u64, "--max-depth")
    }

    /// The directory that an entry is in.
    fn parent(&mut self, parent: &Path) -> Result<Place> {
        if let Some((path, place)) = self.last.take()
            && path == parent
        {
            return Ok(place);
        }
        let mut place = self.tree.directory(parent)?;
        for path in std::mem::take(&mut place.made) {
            self.keep(&path)?;
            self.report.implicit.insert(path);
        }
        Ok(place)
    }

    /// Counts a path that is kept in mind.
    fn keep(&mut self, path: &Path) -> Result<()> {
        self.paths += path.as_os_str().len() as u64 + 64;
        check("bytes of paths to keep in mind", self.paths, self.limits.paths, "--max-paths")
    }

    /// The layer's own root has attributes, too.
    fn root(&mut self, entry: &Entry) -> Result<Vec<Dropped>> {
        if entry.kind != Kind::Directory {
            return Err(Error::new("the root must be a directory"));
        }
        let root = self.tree.open(Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        self.report.implicit.remove(Path::new(""));
        self.times.push((PathBuf::new(), entry.mtime));
        attributes::set(&Target::Open(root.as_fd()), entry, self.ownership, false)
    }

    fn whiteout(&mut self, parent: &Path, name: &OsStr, hidden: &[u8]) -> Result<Vec<Dropped>> {
        self.keep(parent)?;
        self.keep(Path::new(name))?;
        if name.as_bytes() == OPAQUE {
            self.report.opaque.insert(parent.to_owned());
        } else if name.as_bytes().starts_with(AUFS) {
            return Ok(vec!["a file of AUFS's own".into()]);
        } else if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::new("a whiteout of nothing"));
        } else {
            self.report.whiteouts.insert(parent.join(OsStr::from_bytes(hidden)));
        }
        Ok(Vec::new())
    }

    /// Makes something by a call that fails if there is something of its name: an entry of the same
    /// layer, which this one replaces.
    fn make<T>(&mut self, place: &Place, name: &OsStr, call: impl Fn() -> nix::Result<T>) -> Result<T> {
        match call() {
            Err(Errno::EEXIST) => {}
            other => return other.doing(|| format!("make {name:?}")),
        }
        let at = place.path.join(name);
        // What is below a path comes after it in order.
        let below = |path: &&Inner| path.starts_with(&at);
        let implicit: Vec<_> = self.report.implicit.range(at.clone()..).take_while(below).cloned().collect();
        for path in &implicit {
            self.report.implicit.remove(path);
        }
        let links: Vec<_> =
            self.report.links.range(at.clone()..).map(|(path, _)| path).take_while(below).cloned().collect();
        for path in &links {
            self.report.links.remove(path);
        }
        tree::remove(place.directory.as_fd(), name)?;
        call().doing(|| format!("make {name:?}"))
    }

    fn directory(&mut self, place: &Place, name: &OsStr, at: &Path, entry: &Entry) -> Result<Vec<Dropped>> {
        let there = tree::stat(place.directory.as_fd(), name)?;
        if !there.is_some_and(|stat| tree::is_directory(&stat)) {
            self.make(place, name, || mkdirat(&place.directory, name, Mode::from_bits_truncate(0o700)))?;
        }
        self.report.implicit.remove(at);
        let opened =
            tree::open_directory(place.directory.as_fd(), name).doing(|| format!("open {name:?}"))?;
        self.keep(at)?;
        self.times.push((at.to_owned(), entry.mtime));
        self.defaults.extend(attributes::default_acl(entry)?.map(|acl| (at.to_owned(), acl)));
        attributes::set(&Target::Open(opened.as_fd()), entry, self.ownership, false)
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place,
        name: &OsStr,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<Vec<Dropped>> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = self.make(place, name, || openat(&place.directory, name, flags, mode))?;
        match &entry.extents {
            None => self.report.bytes += copy(archive, &file, u64::MAX)?,
            Some(extents) => {
                for extent in extents {
                    let offset = i64::try_from(extent.offset).map_err(|_| Errno::EFBIG)?;
                    lseek(&file, offset, Whence::SeekSet).doing(|| format!("lseek({offset})"))?;
                    self.report.bytes += copy(archive, &file, extent.length)?;
                }
                let size = i64::try_from(entry.size).map_err(|_| Errno::EFBIG)?;
                ftruncate(&file, size).doing(|| format!("ftruncate({size})"))?;
            }
        }
        let dropped = attributes::set(&Target::Open(file.as_fd()), entry, self.ownership, false)?;
        attributes::touch(file.as_fd(), entry.mtime)?;
        Ok(dropped)
    }

    /// A second name for a file, by its path; links on the way to it are followed within the root,
    /// but it isn't, if it is one.
    fn hard_link(&mut self, place: &Place, name: &OsStr, at: &Path, entry: &Entry) -> Result<Vec<Dropped>> {
        let target = tree::inner(&entry.link).doing(|| format!("link to {:?}", shown(&entry.link)))?;
        if !self.link(place, name, at, &target)? {
            self.make_room(place, name)?;
            self.keep(at)?;
            self.keep(&target)?;
            self.report.links.insert(at.to_owned(), target);
        }
        Ok(Vec::new())
    }

    fn make_room(&mut self, place: &Place, name: &OsStr) -> Result<()> {
        match tree::stat(place.directory.as_fd(), name)? {
            Some(_) => tree::remove(place.directory.as_fd(), name),
            None => Ok(()),
        }
    }

    /// Links, if the target is in this layer.
    fn link(&mut self, place: &Place, name: &OsStr, at: &Path, target: &Path) -> Result<bool> {
        let Some((parent, last)) = tree::split(target) else {
            return Err(Error::new("a hard link to the root"));
        };
        let Some(from) = self.tree.find_directory(parent)? else { return Ok(false) };
        if tree::stat(from.directory.as_fd(), last)?.is_none() {
            return Ok(false);
        }
        if from.path.join(last) == at {
            return Ok(true); // to itself, which is there
        }
        self.make(place, name, || linkat(&from.directory, last, &place.directory, name, AtFlags::empty()))
            .doing(|| format!("link to {target:?}"))?;
        Ok(true)
    }

    fn symlink(&mut self, place: &Place, name: &OsStr, entry: &Entry) -> Result<Vec<Dropped>> {
        let target = OsString::from_vec(entry.link.clone());
        self.make(place, name, || symlinkat(target.as_os_str(), &place.directory, name))?;
        let target = Target::Named(place.directory.as_fd(), name);
        let dropped = attributes::set(&target, entry, self.ownership, true)?;
        attributes::touch_named(place.directory.as_fd(), name, entry.mtime)?;
        Ok(dropped)
    }

    /// A device or a fifo.
    fn node(&mut self, place: &Place, name: &OsStr, entry: &Entry) -> Result<Vec<Dropped>> {
        let kind = match entry.kind {
            Kind::CharacterDevice => SFlag::S_IFCHR,
            Kind::BlockDevice => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let (major, minor) = entry.device;
        if kind == SFlag::S_IFCHR && (major, minor) == (0, 0) {
            self.make_room(place, name)?;
            return Ok(vec!["a device 0:0, which hides files in an overlay".into()]);
        }
        let mode = Mode::from_bits_truncate(0o600);
        let device = makedev(major.into(), minor.into());
        let mut dropped = Vec::new();
        self.make(place, name, || match mknodat(&place.directory, name, kind, mode, device) {
            // In a user namespace nobody may make devices.
            Err(Errno::EPERM) => mknodat(&place.directory, name, SFlag::S_IFREG, mode, 0),
            other => other,
        })?;
        let stat = tree::stat(place.directory.as_fd(), name)?;
        if stat.is_some_and(|stat| tree::kind(&stat) != kind) {
            dropped.push(format!("a device {major}:{minor}, an empty file in its place (needs root)"));
        }
        let target = Target::Named(place.directory.as_fd(), name);
        dropped.extend(attributes::set(&target, entry, self.ownership, false)?);
        attributes::touch_named(place.directory.as_fd(), name, entry.mtime)?;
        Ok(dropped)
    }

    /// What can only be done when all entries are there.
    fn finish(mut self) -> Result<Report> {
        // A link may come before its target, which may be a link that does, too.
        let mut before = usize::MAX;
        while self.report.links.len() < before {
            before = self.report.links.len();
            for (at, target) in std::mem::take(&mut self.report.links) {
                let Some((parent, name)) = tree::split(&at) else { continue };
                let place = self.tree.directory(parent)?;
                if !self.link(&place, name, &at, &target)? {
                    self.report.links.insert(at, target);
                }
            }
        }
        for (path, acl) in std::mem::take(&mut self.defaults) {
            if let Ok(directory) = self.tree.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                let dropped = attributes::set_default_acl(directory.as_fd(), &acl)?;
                self.note(path.as_os_str().as_bytes(), dropped.into_iter().collect());
            }
        }
        for path in &self.report.implicit {
            let directory = self.tree.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            attributes::touch(directory.doing(|| format!("open {path:?}"))?.as_fd(), NO_TIME)?;
        }
        // The last entry of a directory counts, and what was replaced later isn't one any more.
        for (path, time) in &self.times {
            match self.tree.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(directory) => attributes::touch(directory.as_fd(), *time)?,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno).doing(|| format!("open {path:?}")),
            }
        }
        if self.drops > DROPS {
            self.report.dropped.push(format!("and {} more", self.drops - DROPS));
        }
        Ok(self.report)
    }
}

/// Copies up to `most` bytes of the entry's data to where the file is at.
fn copy<R: BufRead>(archive: &mut Archive<R>, file: &OwnedFd, most: u64) -> Result<u64> {
    let mut copied = 0;
    while copied < most {
        let piece = archive.data()?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len().min(usize::try_from(most - copied).unwrap_or(usize::MAX));
        let written = match nix::unistd::write(file, &piece[..length]) {
            Err(Errno::EINTR) => 0,
            other => other.doing(|| "write".into())?,
        };
        archive.consume(written);
        copied += written as u64;
    }
    Ok(copied)
}
