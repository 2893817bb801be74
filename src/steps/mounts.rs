//! `/mounts`: file systems and bind mounts (config.md, "Mounts").

use super::file_systems::{explained, new_file_system, with_mode_of};
use super::mount_options::Options;
use super::trees::{idmap, within_rootfs};
use super::{Init, Step, copy_up};
use crate::config::{has_namespace, list};
use crate::error::{Context, Error, Pointer, Result};
use crate::link::Message;
use crate::root::{Kind, Links, Made, Root, normal};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::{Call, Failed, file, identity};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::FsFlags;
use oci_spec::runtime::{LinuxNamespaceType, Mount as Configured, Spec};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One entry of `/mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    index: usize,
    /// Where, from the container's root.
    destination: PathBuf,
    /// As it is written, for messages.
    source_text: String,
    source: Source,
    options: Options,
    /// MS_RDONLY is set only after everything in the mount is made.
    read_only_later: bool,
    /// The container has a user namespace, in which flags of the host's mounts are never taken away:
    /// they would be locked, had the container's root mounted it.
    flags_stay: bool,
    /// Whether it has an id mapping, which the runtime puts on it.
    mapped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    FileSystem {
        kind: CString,
        source: CString,
        data: CString,
    },
    Bind {
        path: PathBuf,
        /// The same from the container's root, where it leads into that.
        within: Option<PathBuf>,
        depth: Depth,
    },
    /// The mount that is there, with other flags.
    Remount,
}

/// The flags that are locked in a user namespace (mount_namespaces(7)).
const LOCKED: [(FsFlags, u64); 4] = [
    (FsFlags::ST_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (FsFlags::ST_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (FsFlags::ST_NODEV, libc::MOUNT_ATTR_NODEV),
    (FsFlags::ST_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
];

/// What lxcfs and engines mount within /proc. Anything else there could fake what is read about
/// processes, and is refused (CVE-2019-16884, CVE-2019-19921).
const WITHIN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Decides on the mount at `index` of the configuration; `bundle` is what relative sources are
/// relative to.
pub fn plan(spec: &Spec, index: usize, bundle: &Path) -> Result<Mount> {
    let configured = &list(spec.mounts())[index];
    let options = Options::parse(list(configured.options()));
    let destination = destination_in(spec, configured, bundle);
    let written = configured.source().clone().unwrap_or_default();
    let kind = configured.typ().as_deref().unwrap_or_default();
    let source = if options.remount {
        Source::Remount
    } else if let Some(depth) = bind_depth(configured, &options) {
        let path = bundle.join(&written);
        Source::Bind { within: within_rootfs(spec, bundle, &path), path, depth }
    } else {
        let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
        let data = with_label(&options.data, kind, label);
        let source = if written.as_os_str().is_empty() { Path::new(kind) } else { &written };
        Source::FileSystem {
            kind: c_string(kind)?,
            source: c_string(&source.to_string_lossy())?,
            data: c_string(&data)?,
        }
    };
    check_place(&destination, &source)?;
    let file_system = matches!(source, Source::FileSystem { .. });
    let read_only_later = options.set & libc::MS_RDONLY != 0
        && file_system
        && (kind == "tmpfs" || destination == Path::new("/dev"));
    let source_text = written.display().to_string();
    let linux = spec.linux().as_ref();
    let flags_stay = linux.is_some_and(|linux| has_namespace(linux, LinuxNamespaceType::User));
    let mapped = idmap(spec, configured, &options).is_some();
    Ok(Mount { index, destination, source_text, source, options, read_only_later, flags_stay, mapped })
}

/// Where it is mounted, in the container's root. Some write the root's own path on the host before it.
fn destination_in(spec: &Spec, configured: &Configured, bundle: &Path) -> PathBuf {
    within_rootfs(spec, bundle, configured.destination()).unwrap_or_else(|| normal(configured.destination()))
}

/// How much is bound, if it is a bind mount: by its options or, as mount(8) says it, by its type.
pub fn bind_depth(configured: &Configured, options: &Options) -> Option<Depth> {
    let by_type = || (configured.typ().as_deref() == Some("bind")).then_some(Depth::Mount);
    options.bind.or_else(by_type)
}

fn with_label(data: &str, kind: &str, label: Option<&str>) -> String {
    match label.filter(|label| !label.is_empty() && !matches!(kind, "proc" | "sysfs" | "mqueue")) {
        None => data.into(),
        Some(label) if data.is_empty() => format!("context=\"{label}\""),
        Some(label) => format!("{data},context=\"{label}\""),
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new("a string contains a NUL character"))
}

/// Where nothing may be mounted.
fn check_place(destination: &Path, source: &Source) -> Result<()> {
    let remount = *source == Source::Remount;
    if destination == Path::new("/") && !remount {
        return Err(Error::new("cannot mount over the container's root itself")
            .hint("a file system can be the root: as the first mount"));
    }
    let below = destination.starts_with("/proc");
    if !below || remount || WITHIN_PROC.iter().any(|allowed| Path::new(allowed) == destination) {
        return Ok(());
    }
    match source {
        Source::FileSystem { kind, .. } if destination == Path::new("/proc") => match kind.as_bytes() {
            b"proc" => Ok(()),
            _ => Err(Error::new(format!("{destination:?} cannot be mounted because it is not of type proc"))),
        },
        // The type of what is bound is known only when it is open: see `check_bound_proc`.
        Source::Bind { .. } if destination == Path::new("/proc") => Ok(()),
        _ => Err(Error::new(format!("{destination:?} cannot be mounted because it is inside /proc"))),
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.destination.display();
        match &self.source {
            Source::FileSystem { kind, .. } => write!(f, "mount {} on {at}", kind.to_string_lossy())?,
            Source::Bind { path, depth: Depth::Mount, .. } => write!(f, "bind {} to {at}", path.display())?,
            Source::Bind { path, depth: Depth::Tree, .. } => {
                write!(f, "bind {} and below to {at}", path.display())?
            }
            Source::Remount => write!(f, "remount {at}")?,
        }
        let options = self.options.to_string();
        if !options.is_empty() {
            write!(f, ": {options}")?;
        }
        if self.read_only_later {
            f.write_str(" (ro once it is filled)")?;
        }
        Ok(())
    }
}

impl Step for Mount {
    fn apply(&self, init: &mut Init) -> Result<()> {
        self.mount(init)
            .doing(|| format!("error mounting {:?} to rootfs at {:?}", self.source_text, self.destination))
    }
}

impl Mount {
    fn mount(&self, init: &mut Init) -> Result<()> {
        let mounted = match &self.source {
            Source::FileSystem { kind, source, data } => self.mount_file_system(init, kind, source, data)?,
            Source::Bind { path, within, depth } => self.bind(init, path, within.as_deref(), *depth)?,
            Source::Remount => {
                let target = init.root()?.resolve(&self.destination, OFlag::O_PATH, Links::Follow)?;
                mount::set_attributes(target.as_fd(), Depth::Mount, &self.options.named_attributes())?;
                Some(target)
            }
        };
        if !self.needs_the_mount() {
            return Ok(());
        }
        let mounted = match mounted {
            Some(mounted) => mounted,
            None => init.root()?.resolve(&self.destination, OFlag::O_PATH, Links::Follow)?,
        };
        self.options.propagate(mounted.as_fd())?;
        if let Some(attr) = &self.options.recursive {
            mount::set_attributes(mounted.as_fd(), Depth::Tree, attr)?;
        }
        if self.read_only_later {
            init.read_only_later.push(mounted);
        }
        Ok(())
    }

    fn needs_the_mount(&self) -> bool {
        let later = self.options.recursive.is_some() || self.read_only_later;
        later || self.options.copy_up || !self.options.propagation.is_empty()
    }

    /// Mounts in the classic way, on a descriptor: it takes all options at once and in any length,
    /// which the calls of `FileSystem` don't.
    fn mount_file_system(
        &self,
        init: &Init,
        kind: &CString,
        source: &CString,
        data: &CString,
    ) -> Result<Option<OwnedFd>> {
        let (target, made) = self.target(init.root()?, kind)?;
        let mut flags = self.options.set;
        if self.read_only_later {
            flags &= !libc::MS_RDONLY;
        }
        let mut data = data.clone();
        if kind.as_bytes() == b"tmpfs" && made == Made::Before && !self.options.data.contains("mode=") {
            data = with_mode_of(target.as_fd(), &data)?;
        }
        if self.needs_the_mount() && !data.as_bytes().contains(&b'"') {
            return self.mount_detached(target, kind, source, &data, flags).map(Some);
        }
        let path = file::through_proc(target.as_fd());
        match mount::mount(Some(source), &path, Some(kind), flags, Some(&data)) {
            Err(failed)
                if failed.errno == Errno::EPERM && (self.flags_stay || identity::in_user_namespace()) =>
            {
                return self
                    .bind_outer(target, kind)
                    .unwrap_or_else(|| Err(explained(failed, kind, source, &data)));
            }
            other => other.map_err(|failed| explained(failed, kind, source, &data))?,
        }
        file::leave(target);
        if kind.as_bytes() == b"tmpfs" {
            init.root()?.note_empty(&self.destination);
        }
        Ok(None)
    }

    /// The kernel gives a user namespace no new procfs or sysfs where those around it have something masked,
    /// as in another container, or where it has no network namespace of its own (runc#3672, runc#3970).
    /// Then it gets the ones that are around it, as they are: None for other file systems.
    fn bind_outer(&self, target: OwnedFd, kind: &CString) -> Option<Result<Option<OwnedFd>>> {
        let path = match kind.as_bytes() {
            b"proc" => "/proc",
            b"sysfs" => "/sys",
            _ => return None,
        };
        let bind = || -> Result<Option<OwnedFd>> {
            let tree = mount::clone_tree(AT_FDCWD, Path::new(path), Depth::Tree)?;
            let attr = MountAttr { attr_clr: 0, ..self.options.named_attributes() };
            mount::set_attributes(tree.as_fd(), Depth::Tree, &attr)?;
            mount::attach(tree.as_fd(), target.as_fd(), c"")?;
            crate::log::debug(|| format!("{path} is that of the namespaces around the container"));
            Ok(Some(tree))
        };
        Some(bind())
    }

    /// Makes the mount before it is attached, for what is to be done with it later: to look it up by
    /// its path again could find another one (CVE-2021-30465).
    fn mount_detached(
        &self,
        target: OwnedFd,
        kind: &CString,
        source: &CString,
        data: &CString,
        flags: libc::c_ulong,
    ) -> Result<OwnedFd> {
        let attributes = Options { set: flags, ..self.options.clone() }.named_attributes().attr_set;
        let tree = new_file_system(kind, source, data, flags, attributes)
            .map_err(|failed| explained(failed, kind, source, data))?;
        if self.options.copy_up {
            copy_up::copy(copy_up::reopen(target.as_fd())?.as_fd(), copy_up::reopen(tree.as_fd())?.as_fd())?;
        }
        mount::attach(tree.as_fd(), target.as_fd(), c"")?;
        file::leave(target);
        Ok(tree)
    }

    /// The directory to mount on. For procfs and sysfs it must be a real one: a link could put
    /// them where they aren't masked, or leave /proc to the image (CVE-2019-19921, CVE-2023-27561).
    fn target(&self, root: &Root, kind: &CString) -> Result<(OwnedFd, Made)> {
        if !matches!(kind.as_bytes(), b"proc" | b"sysfs") {
            let (target, made) = root.ensure_as(&self.destination, || Ok(Kind::Directory))?;
            return Ok((self.outside_proc(target, made)?, made));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match root.resolve(&self.destination, flags, Links::Refuse) {
            Err(failed) if failed.errno == Errno::ENOENT => {
                Ok(root.ensure_as(&self.destination, || Ok(Kind::Directory))?)
            }
            Err(failed) if matches!(failed.errno, Errno::ELOOP | Errno::ENOTDIR) => {
                let error = format!("filesystem {kind:?} must be mounted on ordinary directory");
                Err(Error::from(failed).prefix(&error))
            }
            other => Ok((other?, Made::Before)),
        }
    }

    fn bind(
        &self,
        init: &mut Init,
        path: &Path,
        within: Option<&Path>,
        depth: Depth,
    ) -> Result<Option<OwnedFd>> {
        let opened = init.trees.iter().position(|(index, _)| *index == self.index);
        let tree = match (opened, within) {
            (Some(position), _) => init.trees.swap_remove(position).1,
            (None, Some(within)) => self.open_within(init, within, depth)?,
            (None, None) => mount::clone_tree(AT_FDCWD, path, depth)?,
        };
        let (target, made) = init.root()?.ensure_as(&self.destination, || kind_of(tree.as_fd()))?;
        if self.destination == Path::new("/proc") {
            check_bound_proc(tree.as_fd())?;
        }
        let target = self.outside_proc(target, made)?;
        if self.flags_stay {
            if let Some(attr) = self.unlocked_attributes(tree.as_fd())? {
                mount::set_attributes(tree.as_fd(), Depth::Mount, &attr)?;
            }
        } else if let Some(attr) = self.options.bind_attributes() {
            match mount::set_attributes(tree.as_fd(), Depth::Mount, &attr) {
                // damda itself is in a user namespace, and the host's flags are locked; what was
                // asked for by name must still be done.
                Err(failed) if failed.errno == Errno::EPERM => {
                    mount::set_attributes(tree.as_fd(), Depth::Mount, &self.options.named_attributes())?;
                }
                other => other?,
            }
        }
        mount::attach(tree.as_fd(), target.as_fd(), c"")
            .map_err(|failed| mismatch(failed, tree.as_fd(), target.as_fd()))?;
        Ok(Some(tree))
    }

    /// The attributes of a bind mount in a container with a user namespace: the flags that its source
    /// has stay, and to ask for less is an error, as if the container's root had mounted it.
    fn unlocked_attributes(&self, tree: BorrowedFd<'_>) -> Result<Option<MountAttr>> {
        let recursive = self.options.recursive.as_ref().map_or(0, |attr| attr.attr_clr);
        if recursive & LOCKED.iter().map(|(_, locked)| locked).sum::<u64>() != 0 {
            let call = format!("mount_setattr({}, AT_RECURSIVE, attr_clr={recursive:#x})", tree.as_raw_fd());
            let hint = "in a user namespace mounts keep the flags that they have on the host";
            return Err(Error::from(Failed { call, errno: Errno::EPERM }).hint(hint));
        }
        let Some(mut attr) = self.options.bind_attributes() else { return Ok(None) };
        let flags = fstatfs(tree).call(|| format!("fstatfs({})", tree.as_raw_fd()))?.flags();
        let named = self.options.named_attributes().attr_clr;
        for (flag, locked) in LOCKED {
            if flags.contains(flag) && attr.attr_clr & locked != 0 {
                if named & locked != 0 {
                    let call = format!("mount_setattr({}, attr_clr={:#x})", tree.as_raw_fd(), locked);
                    let hint = "in a user namespace a mount keeps the flags that its source has on the host";
                    return Err(Error::from(Failed { call, errno: Errno::EPERM }).hint(hint));
                }
                attr.attr_clr &= !locked;
            }
        }
        if self.options.changes_access_time(flags) {
            let call = format!("mount_setattr({}, attr_set={:#x})", tree.as_raw_fd(), attr.attr_set);
            let hint = "in a user namespace a mount keeps the access time that its source has on the host";
            return Err(Error::from(Failed { call, errno: Errno::EPERM }).hint(hint));
        }
        Ok(Some(attr))
    }

    /// Opens what is bound from within the container.
    fn open_within(&self, init: &Init, path: &Path, depth: Depth) -> Result<OwnedFd> {
        let source = init.root()?.resolve(path, OFlag::O_PATH, Links::Follow)?;
        let tree = mount::clone_tree(source.as_fd(), Path::new(""), depth)?;
        if self.mapped {
            init.link.send(&Message::IdMapPlease { index: self.index, fd: tree.as_raw_fd() })?;
            init.wait_for(&Message::IdMapped)?;
        }
        Ok(tree)
    }

    /// Refuses a target that a link of the image's put on a procfs.
    fn outside_proc(&self, target: OwnedFd, made: Made) -> Result<OwnedFd> {
        if made == Made::Now || self.destination.starts_with("/proc") || !is_proc(target.as_fd())? {
            return Ok(target);
        }
        Err(Error::new(format!("{:?} cannot be mounted because it leads into /proc", self.destination)))
    }
}

fn is_proc(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fstatfs(fd).call(|| format!("fstatfs({})", fd.as_raw_fd()))?.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Only a procfs may be bound to /proc.
fn check_bound_proc(tree: BorrowedFd<'_>) -> Result<()> {
    match is_proc(tree)? {
        true => Ok(()),
        false => Err(Error::new("\"/proc\" cannot be mounted because it is not of type proc")),
    }
}

/// What something can be mounted on: a directory for a directory, a file for anything else.
pub fn kind_of(fd: BorrowedFd<'_>) -> crate::sys::Result<Kind> {
    let stat = fstat(fd).call(|| format!("fstat({})", fd.as_raw_fd()))?;
    let directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    Ok(if directory { Kind::Directory } else { Kind::File })
}

/// The kernel says only EINVAL of a file on a directory, or a directory on a file; engines look for
/// the words.
fn mismatch(failed: Failed, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Error {
    let error = Error::from(failed);
    match (kind_of(source), kind_of(target)) {
        (Ok(Kind::File), Ok(Kind::Directory)) => {
            error.prefix("the source is not a directory, and the destination is one: not a directory")
        }
        (Ok(Kind::Directory), Ok(Kind::File)) => {
            error.prefix("the source is a directory, and the destination is not: not a directory")
        }
        _ => error,
    }
}

/// Makes mounts read-only that had to be written to until now.
pub struct ReadOnlyLater;

impl fmt::Display for ReadOnlyLater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("make tmpfs mounts with the option ro read-only")
    }
}

impl Step for ReadOnlyLater {
    fn apply(&self, init: &mut Init) -> Result<()> {
        for mounted in init.read_only_later.drain(..) {
            let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            mount::set_attributes(mounted.as_fd(), Depth::Mount, &attr).at(&Pointer::to("/mounts"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn planned(mount: &str) -> std::result::Result<String, String> {
        let spec: Spec =
            parse(format!(r#"{{"ociVersion":"1.0.0","mounts":[{mount}]}}"#).as_bytes()).expect("it parses");
        plan(&spec, 0, Path::new("/bundle")).map(|mount| mount.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bind_mount_is_one_by_its_options_or_its_type() {
        assert_eq!(
            planned(
                r#"{"destination":"a/../b","type":"tmpfs","source":"vol","options":["rbind","rslave","ro"]}"#
            ),
            Ok("bind /bundle/vol and below to /b: ro,rslave".into())
        );
        assert_eq!(
            planned(r#"{"destination":"/a","type":"bind","source":"/x","options":["mode=755"]}"#),
            Ok("bind /x to /a: mode=755".into()),
            "the type is enough, as for mount(8)"
        );
    }

    #[test]
    fn nothing_is_mounted_over_the_root_or_within_proc() {
        for bad in [
            r#"{"destination":"/","type":"tmpfs"}"#,
            r#"{"destination":"/x/..","type":"tmpfs"}"#,
            r#"{"destination":"/proc","type":"tmpfs"}"#,
            r#"{"destination":"/proc/self","type":"tmpfs"}"#,
            r#"{"destination":"/proc/sys","source":"/x","options":["bind"]}"#,
        ] {
            assert!(planned(bad).is_err(), "{bad}");
        }
        for good in [
            r#"{"destination":"/proc","type":"proc"}"#,
            r#"{"destination":"/proc/meminfo","source":"/x","options":["bind"]}"#,
            r#"{"destination":"/process","type":"tmpfs"}"#,
        ] {
            assert!(planned(good).is_ok(), "{good}");
        }
    }
}
