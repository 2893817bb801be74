//! The first of `/mounts`, if it is on `/`: a file system that is the container's root, in place of the
//! directory that `root.path` names (config.md, "Mounts", which doesn't forbid it).
//!
//! It is for overlay file systems, which need nobody then who mounts them on the host beforehand, and
//! unmounts them when the container is gone.

use super::file_systems::explained;
use super::mount_options::Options;
use super::mounts::bind_depth;
use super::{Init, Step};
use crate::config::list;
use crate::error::{Error, Result};
use crate::root::{Root, normal};
use crate::sys::file::through_proc;
use crate::sys::mount;
use oci_spec::runtime::Mount as Configured;
use std::ffi::CString;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A file system on `/`.
pub struct RootMount {
    /// The directory of the root file system on the host, which it is mounted on.
    path: PathBuf,
    kind: CString,
    source: CString,
    data: CString,
    flags: libc::c_ulong,
    /// The options, for messages.
    text: String,
}

/// Whether it is the root that something is to be mounted on.
pub fn is_one(mount: &Configured) -> bool {
    let options = Options::parse(list(mount.options()));
    normal(mount.destination()) == Path::new("/")
        && !options.remount
        && bind_depth(mount, &options).is_none()
        && mount.typ().as_ref().is_some_and(|kind| !kind.is_empty())
}

impl RootMount {
    /// Decides on it. `own` says whether the container has a mount namespace of its own.
    pub fn plan(mount: &Configured, path: PathBuf, own: bool) -> Result<Self> {
        if !own {
            return Err(Error::new("a mount on \"/\" needs a mount namespace of the container's own"));
        }
        let options = Options::parse(list(mount.options()));
        let text = options.to_string();
        if options.copy_up
            || options.recursive.is_some()
            || options.idmap.is_some()
            || !options.propagation.is_empty()
        {
            return Err(Error::new(format!("a mount on \"/\" can't have all of the options {text:?}"))
                .hint("propagation is set by linux.rootfsPropagation"));
        }
        let string =
            |text: &str| CString::new(text).map_err(|_| Error::new("a string contains a NUL character"));
        let kind = mount.typ().clone().unwrap_or_default();
        let source =
            mount.source().as_ref().map_or(kind.clone(), |source| source.to_string_lossy().into_owned());
        let (kind, source, data) = (string(&kind)?, string(&source)?, string(&options.data)?);
        Ok(RootMount { path, kind, source, data, flags: options.set, text })
    }
}

impl fmt::Display for RootMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount {} on /: {}", self.kind.to_string_lossy(), self.text)
    }
}

impl Step for RootMount {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let target = through_proc(init.root()?.as_fd());
        mount::mount(Some(&self.source), &target, Some(&self.kind), self.flags, Some(&self.data))
            .map_err(|failed| explained(failed, &self.kind, &self.source, &self.data))
            .map_err(|error| error.prefix("error mounting the root file system"))?;
        // A descriptor from before is below the mount. The path is the caller's, as it was a moment ago.
        init.root = Some(Root::open(&self.path)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: &str) -> Configured {
        serde_json::from_str(json).expect("it parses")
    }

    #[test]
    fn a_file_system_can_be_the_root() {
        let overlay = mount(
            r#"{"destination":"/","type":"overlay","source":"overlay","options":["lowerdir=/a:/b","ro"]}"#,
        );
        assert!(is_one(&overlay));
        let planned = RootMount::plan(&overlay, "/bundle/rootfs".into(), true).expect("it is possible");
        assert_eq!(planned.to_string(), "mount overlay on /: ro,lowerdir=/a:/b");
        assert!(RootMount::plan(&overlay, "/bundle/rootfs".into(), false).is_err(), "it would be the host's");
        let shared = mount(r#"{"destination":"/","type":"overlay","options":["rshared"]}"#);
        assert!(RootMount::plan(&shared, "/bundle/rootfs".into(), true).is_err());
        for other in [
            r#"{"destination":"/","source":"/a","type":"bind"}"#,
            r#"{"destination":"/","options":["remount"]}"#,
            r#"{"destination":"/a","type":"tmpfs"}"#,
        ] {
            assert!(!is_one(&mount(other)), "{other}");
        }
    }
}
