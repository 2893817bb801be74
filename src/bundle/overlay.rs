//! An overlay mount of layers (Documentation/filesystems/overlayfs.rst): its options, and the mount itself
//! for as long as something has to be looked up in it.

use crate::convert::Mount;
use crate::error::{Context, Error, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// mount(2) takes a page of options.
const MOST: usize = 4095;

/// What is mounted.
pub struct Overlay {
    /// The topmost first.
    pub lower: Vec<PathBuf>,
    /// In a user namespace the marks of an overlay are other attributes.
    pub in_user_namespace: bool,
}

impl Overlay {
    /// The options, with what is written going to `upper` in `bundle`.
    fn options(&self, bundle: &Path) -> Result<Vec<String>> {
        let lower = self.lower.iter().map(|path| escaped(path, true)).collect::<Result<Vec<_>>>()?;
        let mut options = vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", escaped(&bundle.join("upper"), false)?),
            format!("workdir={}", escaped(&bundle.join("work"), false)?),
        ];
        if self.in_user_namespace {
            options.push("userxattr".into());
        }
        let length = options.join(",").len();
        if length > MOST {
            return Err(Error::new(format!(
                "the options of the overlay mount have {length} bytes, and the kernel takes {MOST}"
            ))
            .hint("name the store and the bundle by shorter paths, or use --copy"));
        }
        Ok(options)
    }

    /// As an entry of `/mounts`.
    pub fn entry(&self, bundle: &Path) -> Result<Mount> {
        let options = self.options(bundle)?;
        Ok(Mount { destination: "/".into(), kind: "overlay".into(), source: "overlay".into(), options })
    }

    /// Mounts it on `rootfs`, in a mount namespace of this thread's own, so that it is nowhere else.
    pub fn mount(&self, bundle: &Path, rootfs: &Path) -> Result<Mounted> {
        unshare(CloneFlags::CLONE_NEWNS).doing(|| "unshare(CLONE_NEWNS)".into())?;
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
            .doing(|| "mount(\"/\", MS_SLAVE)".into())?;
        let options = self.options(bundle)?.join(",");
        mount(Some("overlay"), rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .doing(|| format!("mount({rootfs:?}, \"overlay\", {options:?})"))
            .map_err(|error| error.hint("--copy needs no overlay file system"))?;
        Ok(Mounted(rootfs.to_owned()))
    }
}

/// A mount that goes with this.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // It is only in a mount namespace that ends with this process anyhow.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A path in an option: commas separate options, and colons layers.
fn escaped(path: &Path, layer: bool) -> Result<String> {
    let text = std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(format!("{path:?} is no text, so config.json can't have it")))?;
    let mut escaped = String::new();
    for letter in text.chars() {
        if letter == '\\' || letter == ',' || (layer && letter == ':') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d"), true).as_deref(), Ok("/a\\:b\\,c\\\\d"));
        assert_eq!(escaped(Path::new("/a:b"), false).as_deref(), Ok("/a:b"));
    }

    #[test]
    fn options_that_are_too_long_are_refused() {
        let lower = vec![PathBuf::from("/var/lib/damda/store/root/l/0123456789"); 100];
        let overlay = Overlay { lower: lower.clone(), in_user_namespace: false };
        assert!(overlay.entry(Path::new("/bundle")).is_ok(), "as many layers as Docker's images have");
        let overlay = Overlay { lower: [lower.clone(), lower].concat(), in_user_namespace: false };
        assert!(overlay.entry(Path::new("/bundle")).is_err());
    }
}
