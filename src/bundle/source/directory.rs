//! `dir:ROOTFS`: a root file system that is there already. It has no layers and no configuration.

use crate::error::{Context, Result};
use std::path::{Path, PathBuf};

/// The directory, by a path that is right from anywhere.
pub fn open(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let path = path.canonicalize().doing(|| format!("{path:?}"))?;
    std::fs::read_dir(&path).doing(|| format!("{path:?}"))?;
    Ok(path)
}
