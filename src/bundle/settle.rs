//! What a layer says about the layers below it, put into effect: a layer is unpacked on its own, so
//! that several are at a time, and this is what it couldn't know then.

use crate::error::{Context, Error, Result};
use crate::merge;
use crate::stack::{Found, Stack};
use crate::tree::{self, Inner, Tree};
use crate::unpack::Report;
use crate::unpack::attributes::{self, Ownership, Target};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// What is to disappear of the layers below, by real paths.
#[derive(Debug, Default)]
pub struct Hidden {
    pub whiteouts: BTreeSet<Inner>,
    /// Directories of this layer, of which those below show nothing.
    pub opaque: BTreeSet<Inner>,
    /// Files that were copied from layers below, for hard links to them.
    pub copied: BTreeSet<Inner>,
    /// Whether the layer would be another one over other layers.
    pub depends: bool,
}

struct Settling<'a> {
    layer: &'a Tree,
    below: &'a Stack,
    ownership: Ownership,
    links: Links,
    /// Files of layers below that links lead to, and where this layer has them.
    linked: HashMap<Inner, Inner>,
    /// Directories that were moved to where a link of a layer below leads.
    moved: Vec<(Inner, Inner)>,
    hidden: Hidden,
}

/// What a hard link to a file of a layer below is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The same file: for layers that become one tree.
    Same,
    /// A copy, which has both names: as when an overlay file system links a file of a lower layer.
    Copies,
}

/// Completes a layer over the layers below it.
pub fn settle(
    layer: &Tree,
    report: &Report,
    below: &Stack,
    ownership: Ownership,
    links: Links,
) -> Result<Hidden> {
    let (linked, moved, hidden) = (HashMap::new(), Vec::new(), Hidden::default());
    let mut settling = Settling { layer, below, ownership, links, linked, moved, hidden };
    for path in &report.implicit {
        settling.implicit(path)?;
    }
    for path in &report.whiteouts {
        settling.whiteout(path)?;
    }
    for path in &report.opaque {
        settling.opaque(path)?;
    }
    // Last: what they put into the layer isn't what hides something.
    for at in report.links.keys() {
        let target = report.target(at)?;
        settling
            .link(at, target)
            .map_err(|error| error.prefix(format!("{}: hard link to {target:?}", at.display())))?;
    }
    let named = report.implicit.len() > usize::from(report.implicit.contains(Path::new("")));
    settling.hidden.depends |= named || !report.links.is_empty();
    Ok(settling.hidden)
}

/// Writes down, as overlay file systems read it, what a layer hides. `opaque` is the attribute's name.
pub fn mark(layer: &Tree, hidden: &Hidden, opaque: &str) -> Result<()> {
    for path in &hidden.whiteouts {
        let Some((parent, name)) = tree::split(path) else { continue };
        let parent = open_directory(layer, parent)?;
        keeping_time(parent.as_fd(), || {
            mknodat(&parent, name, SFlag::S_IFCHR, Mode::empty(), 0).doing(|| format!("mknodat({path:?})"))
        })?;
    }
    for path in &hidden.opaque {
        let directory = open_directory(layer, path)?;
        attributes::set_xattr(&Target::Open(directory.as_fd()), opaque, b"y")
            .doing(|| format!("setxattr({opaque:?})"))?;
    }
    Ok(())
}

fn open_directory(tree: &Tree, path: &Path) -> Result<std::os::fd::OwnedFd> {
    tree.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).doing(|| format!("open {path:?}"))
}

/// Does something in a directory, whose time stays.
fn keeping_time<T>(directory: BorrowedFd<'_>, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = fstat(directory)?;
    let result = call()?;
    attributes::touch(directory, (before.st_mtime, before.st_mtime_nsec as u32))?;
    Ok(result)
}

impl Settling<'_> {
    /// Where a path of the layer's is by now.
    fn now(&self, path: &Path) -> Inner {
        self.moved.iter().fold(path.to_owned(), |path, (from, to)| match path.strip_prefix(from) {
            Ok(rest) => to.join(rest),
            Err(_) => path,
        })
    }

    /// A directory without an entry is the one below, if there is one: it has its attributes, or is
    /// where the link leads that has its name there (`lib` to `usr/lib`).
    fn implicit(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(()); // the root's are taken from the layer that has an entry for it
        }
        let path = self.now(path);
        let Some((real, parts)) = self.below.find_directory(&path)? else { return Ok(()) };
        if real == path {
            let mine = open_directory(self.layer, &path)?;
            return attributes::copy_directory(parts[0].as_fd(), mine.as_fd(), self.ownership);
        }
        let from = open_directory(self.layer, &path)?;
        self.ensure(&real)?;
        let to = open_directory(self.layer, &real)?;
        keeping_time(to.as_fd(), || merge::move_children(from.as_fd(), to.as_fd()))?;
        if let Some((parent, name)) = tree::split(&path) {
            let parent = open_directory(self.layer, parent)?;
            keeping_time(parent.as_fd(), || {
                unlinkat(&parent, name, UnlinkatFlags::RemoveDir).doing(|| format!("rmdir({path:?})"))
            })?;
        }
        self.moved.push((path, real));
        Ok(())
    }

    /// Makes a directory of the layers below one of this layer, too.
    fn ensure(&mut self, path: &Path) -> Result<()> {
        let mut above = path.ancestors().collect::<Vec<_>>();
        above.reverse();
        for path in above {
            let Some((parent, name)) = tree::split(path) else { continue };
            let parent = open_directory(self.layer, parent)?;
            match tree::stat(parent.as_fd(), name)? {
                Some(stat) if tree::is_directory(&stat) => continue,
                Some(_) => return Err(Error::from(Errno::ENOTDIR).prefix(format!("{path:?}"))),
                None => {}
            }
            keeping_time(parent.as_fd(), || {
                mkdirat(&parent, name, Mode::from_bits_truncate(0o755)).doing(|| format!("mkdirat({path:?})"))
            })?;
            let mine = open_directory(self.layer, path)?;
            if let Some((_, parts)) = self.below.find_directory(path)? {
                attributes::copy_directory(parts[0].as_fd(), mine.as_fd(), self.ownership)?;
            }
            self.hidden.depends = true;
        }
        Ok(())
    }

    /// A second name for a file of a layer below.
    fn link(&mut self, at: &Path, target: &Path) -> Result<()> {
        let at = self.now(at);
        let Some((at_parent, at_name)) = tree::split(&at) else { return Err(Errno::EINVAL.into()) };
        let to = open_directory(self.layer, at_parent)?;
        let Some(Found::Other { path, parent }) = self.below.find(target, false)? else {
            return Err(Error::new("there is no such file in this layer or in one below"));
        };
        let Some((directory, name)) = tree::split(&path) else { return Err(Errno::EINVAL.into()) };
        let flags = AtFlags::empty();
        if self.links == Links::Same {
            return keeping_time(to.as_fd(), || {
                linkat(&parent, name, &to, at_name, flags).doing(|| "linkat".into())
            });
        }
        let first = match self.linked.get(&path) {
            Some(first) => first.clone(),
            None => {
                // Where it is, or, if that name isn't there any more, where the link is.
                let first = if self.hides(&path) { at.clone() } else { path.clone() };
                if first == path {
                    self.ensure(directory)?;
                    self.hidden.copied.insert(path.clone());
                }
                self.copy_from_below((parent.as_fd(), name), &first)?;
                self.linked.insert(path, first.clone());
                first
            }
        };
        let Some((first_parent, first_name)) = tree::split(&first).filter(|_| first != at) else {
            return Ok(());
        };
        let from = open_directory(self.layer, first_parent)?;
        keeping_time(to.as_fd(), || linkat(&from, first_name, &to, at_name, flags).doing(|| "linkat".into()))
    }

    /// Makes a file of a layer below this layer's, unless it has one of that name.
    fn copy_from_below(&self, (parent, name): merge::At<'_>, to: &Path) -> Result<()> {
        let Some((to_parent, to_name)) = tree::split(to) else { return Err(Errno::EINVAL.into()) };
        let mine = open_directory(self.layer, to_parent)?;
        if tree::stat(mine.as_fd(), to_name)?.is_some() {
            return Ok(());
        }
        keeping_time(mine.as_fd(), || {
            merge::copy_file((parent, name), (mine.as_fd(), to_name), self.ownership)
        })
    }

    /// Whether what layers below have there isn't there any more.
    fn hides(&self, path: &Path) -> bool {
        let gone = |above: &Path| self.hidden.whiteouts.contains(above) || self.hidden.opaque.contains(above);
        path.ancestors().any(gone)
    }

    /// Something of a layer below isn't there any more, unless it was never there.
    fn whiteout(&mut self, path: &Path) -> Result<()> {
        let Some((parent, name)) = tree::split(path) else { return Ok(()) };
        if self.replaces_a_link(parent)? {
            return Ok(());
        }
        let Some((real, _)) = self.below.find_directory(parent)? else { return Ok(()) };
        let path = real.join(name);
        if self.below.find(&path, false)?.is_none() {
            return Ok(());
        }
        self.ensure(&real)?;
        let mine = open_directory(self.layer, &real)?;
        match tree::stat(mine.as_fd(), name)? {
            None => self.hidden.whiteouts.insert(path),
            // What this layer has of the same name stays, and hides it, if only by this.
            Some(stat) if tree::is_directory(&stat) => self.hidden.opaque.insert(path),
            Some(_) => false,
        };
        Ok(())
    }

    fn opaque(&mut self, path: &Path) -> Result<()> {
        if self.replaces_a_link(path)? {
            return Ok(());
        }
        let Some((real, _)) = self.below.find_directory(path)? else { return Ok(()) };
        if real.as_os_str().is_empty() {
            // An overlay's root can't be opaque: each of its names is hidden.
            let names = match self.below.find_directory(Path::new(""))? {
                Some((_, parts)) => {
                    parts.iter().map(|part| tree::names(part.as_fd())).collect::<Result<Vec<_>>>()?.concat()
                }
                None => Vec::new(),
            };
            return names.iter().try_for_each(|name| self.whiteout(Path::new(name)));
        }
        self.ensure(&real)?;
        self.hidden.opaque.insert(real);
        Ok(())
    }

    /// Whether this layer has a directory of its own where those below have a link: then what it says
    /// of that path isn't about where the link leads.
    fn replaces_a_link(&self, path: &Path) -> Result<bool> {
        for above in path.ancestors() {
            let Some((parent, name)) = tree::split(above) else { continue };
            let here = match self.layer.open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(parent) => tree::stat(parent.as_fd(), name)?,
                Err(_) => None,
            };
            let mine = here.is_some_and(|stat| tree::is_directory(&stat));
            if mine && matches!(self.below.find(above, false)?, Some(Found::Other { .. })) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
