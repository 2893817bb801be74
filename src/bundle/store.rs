//! Layers that are kept unpacked, once for all bundles.
//!
//! ```text
//! STORE/lock              shared by whoever uses the store, exclusive for --gc
//!       layers/ID/fs      a layer as overlay file systems take it
//!       layers/ID/layer.json
//!       l/SHORT           links to them: the options of a mount have little room
//!       bundles/ID        which bundles use which layers
//!       empty/            a layer with nothing in it
//!       tmp/              what is being unpacked, and locks
//! ```
//! A layer's id is its diffID, or, if it would be another one over other layers, its chain id.

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::rootless::Ids;
use crate::signals;
use crate::staging;
use crate::tree::Tree;
use crate::unpack::attributes::Ownership;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// A store that is in use: as long as this lives, nothing of it is removed.
pub struct Store {
    path: PathBuf,
    _lock: Flock<File>,
}

/// What is written down about a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    pub diff_id: Digest,
    /// Bytes of its files.
    pub bytes: u64,
    pub entries: u64,
    /// Whether it says what the root directory is like.
    pub root: bool,
    pub dropped: Vec<String>,
    /// Files that are those of the layers below, and only here because links lead to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copied: Vec<String>,
}

/// A bundle that uses layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct User {
    pub path: PathBuf,
    pub image: String,
    pub digest: Digest,
    pub layers: Vec<String>,
}

/// A layer in the store.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: String,
    pub path: PathBuf,
    pub kept: Kept,
}

/// The store of whoever runs this.
pub fn default_path(ids: &Ids) -> Result<PathBuf> {
    // In a user namespace everybody is root.
    if ids.maps.is_none() {
        return Ok("/var/lib/damda/store".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("damda/store"))
        .ok_or_else(|| Error::new("neither XDG_DATA_HOME nor HOME is set").hint("--store names a directory"))
}

impl Store {
    /// Opens a store, and makes it if it isn't there. Each kind of files has a directory of its own.
    pub fn open(path: &Path, ids: &Ids) -> Result<Self> {
        let kind = match (ids.ownership, &ids.maps) {
            (Ownership::Image, None) => KINDS[0],
            (Ownership::Image, Some(_)) => KINDS[1],
            (Ownership::SingleId, _) => KINDS[2],
        };
        check(path)?;
        let path = path.join(kind);
        for directory in ["layers", "l", "bundles", "tmp", "empty"] {
            let path = path.join(directory);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.doing(|| format!("the store: mkdir({path:?})"))?;
        }
        let path = path.canonicalize()?;
        let lock = lock(&path.join("lock"), FlockArg::LockShared)?;
        Ok(Store { path, _lock: lock })
    }

    /// Where something that becomes a part of the store is made.
    pub fn temporary(&self) -> PathBuf {
        self.path.join("tmp")
    }

    /// The layer, if it is kept: as it is over this chain, or over any.
    pub fn find(&self, chain: &Digest, diff_id: Option<&Digest>) -> Result<Option<Entry>> {
        for id in [Some(chain), diff_id].into_iter().flatten() {
            let id = id.hex();
            let path = self.path.join("layers").join(id);
            match fs::read(path.join("layer.json")) {
                Ok(text) => {
                    let kept = serde_json::from_slice(&text)
                        .map_err(|error| Error::new(format!("{path:?}: layer.json: {error}")))?;
                    return Ok(Some(Entry { id: id.to_owned(), path: path.join("fs"), kept }));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).doing(|| format!("{path:?}")),
            }
        }
        Ok(None)
    }

    /// Waits until nobody else unpacks this layer.
    pub fn claim(&self, chain: &Digest) -> Result<Flock<File>> {
        lock(&self.temporary().join(format!("{}.lock", chain.hex())), FlockArg::LockExclusive)
    }

    /// Makes a layer, which is on the disk, a part of the store. `made` has `fs` in it.
    pub fn keep(&self, id: &str, made: &Path, kept: Kept) -> Result<Entry> {
        let text = serde_json::to_vec_pretty(&kept).map_err(|error| Error::new(error.to_string()))?;
        let mut file = File::create_new(made.join("layer.json"))?;
        file.write_all(&text)?;
        file.sync_all()?;
        let path = self.path.join("layers").join(id);
        match signals::complete(made, || fs::rename(made, &path)) {
            Ok(()) => {}
            // Somebody was as quick, under another chain.
            Err(_) if path.join("layer.json").exists() => staging::remove(made)?,
            Err(error) => return Err(error).doing(|| format!("rename({made:?}, {path:?})")),
        }
        File::open(self.path.join("layers"))?.sync_all()?;
        let entry = Entry { id: id.to_owned(), path: path.join("fs"), kept };
        entry.touch();
        Ok(entry)
    }

    /// A layer with nothing in it, for an image without any.
    pub fn empty(&self) -> PathBuf {
        self.path.join("empty")
    }

    /// A short path to a layer, for the options of a mount.
    pub fn short(&self, entry: &Entry) -> Result<PathBuf> {
        let target = Path::new("../layers").join(&entry.id).join("fs");
        for length in (10..=entry.id.len()).step_by(6) {
            let link = self.path.join("l").join(&entry.id[..length]);
            match symlink(&target, &link) {
                Ok(()) => return Ok(link),
                Err(_) if fs::read_link(&link).is_ok_and(|there| there == target) => return Ok(link),
                // Another layer's id begins like this one's.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).doing(|| format!("symlink({link:?})")),
            }
        }
        Err(Error::new(format!("no name is left for layer {}", entry.id)))
    }

    /// Writes down that a bundle uses layers, so that `--gc` leaves them.
    pub fn note(&self, user: &User) -> Result<()> {
        let id = Digest::of(user.path.as_os_str().as_encoded_bytes());
        let text = serde_json::to_vec_pretty(user).map_err(|error| Error::new(error.to_string()))?;
        let temporary = self.temporary().join(format!("{}.bundle", id.hex()));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, self.path.join("bundles").join(id.hex()))
            .doing(|| format!("note the bundle {:?}", user.path))
    }

    /// Bundles that are there still.
    pub fn users(&self) -> Result<Vec<User>> {
        let mut users = Vec::new();
        for entry in fs::read_dir(self.path.join("bundles"))? {
            let path = entry?.path();
            let user: User = serde_json::from_slice(&fs::read(&path)?)
                .map_err(|error| Error::new(format!("{path:?}: {error}")))?;
            if user.path.join("config.json").exists() {
                users.push(user);
            }
        }
        users.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(users)
    }

    /// All layers.
    pub fn layers(&self) -> Result<Vec<Entry>> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.path.join("layers"))? {
            let entry = entry?;
            let Ok(text) = fs::read(entry.path().join("layer.json")) else { continue };
            let kept = serde_json::from_slice(&text)
                .map_err(|error| Error::new(format!("{:?}: {error}", entry.path())))?;
            let id = entry.file_name().to_string_lossy().into_owned();
            layers.push(Entry { id, path: entry.path().join("fs"), kept });
        }
        layers.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(layers)
    }

    /// Removes layers that no bundle uses, the longest unused first, until no more than `most` bytes of
    /// such are left; and what killed processes left. Returns how many layers went, and their bytes.
    pub fn collect(self, most: u64) -> Result<(usize, u64)> {
        let Store { path, _lock: shared } = self;
        // Nobody may be at work: a layer that is found must not go before its bundle is noted.
        drop(shared);
        let lock = lock(&path.join("lock"), FlockArg::LockExclusive)?;
        let store = Store { path, _lock: lock };
        staging::remove_left(&store.temporary(), OsStr::new("."))?;
        let users = store.users()?;
        for entry in fs::read_dir(store.path.join("bundles"))? {
            let entry = entry?.path();
            let user: Option<User> =
                fs::read(&entry).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if !user.is_some_and(|user| user.path.join("config.json").exists()) {
                fs::remove_file(&entry)?;
            }
        }
        let used: BTreeSet<&String> = users.iter().flat_map(|user| &user.layers).collect();
        let mut unused: Vec<Entry> =
            store.layers()?.into_iter().filter(|layer| !used.contains(&layer.id)).collect();
        unused.sort_by_key(|layer| {
            fs::metadata(layer.path.with_file_name("used")).and_then(|data| data.modified()).ok()
        });
        let mut left: u64 = unused.iter().map(|layer| layer.kept.bytes).sum();
        let (mut count, mut bytes) = (0, 0);
        for layer in unused {
            // An empty layer costs nothing, but isn't wanted either when everything goes.
            if left <= most && (most > 0 || count == usize::MAX) {
                break;
            }
            let directory = layer.path.parent().unwrap_or(&layer.path);
            // Without its description it isn't one any more, however much of it is removed.
            fs::remove_file(directory.join("layer.json"))?;
            staging::remove(directory)?;
            left -= layer.kept.bytes;
            bytes += layer.kept.bytes;
            count += 1;
        }
        for link in fs::read_dir(store.path.join("l"))? {
            let link = link?.path();
            if !link.exists() {
                fs::remove_file(&link)?;
            }
        }
        Ok((count, bytes))
    }
}

impl Entry {
    /// Its files.
    pub fn tree(&self) -> Result<Tree> {
        Ok(Tree::new(OwnedFd::from(File::open(&self.path).doing(|| format!("{:?}", self.path))?)))
    }

    /// Notes that it was used just now.
    pub fn touch(&self) {
        // The time decides only what is removed first.
        let _ = File::create(self.path.with_file_name("used"));
    }
}

/// Refuses a directory that is something else: nobody wants a store in his home directory itself.
fn check(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    if names.is_empty() || names.iter().any(|name| KINDS.iter().any(|kind| name == kind)) {
        return Ok(());
    }
    Err(Error::new(format!("{path:?} is no store")).hint("--store names a directory of its own"))
}

/// Files of root's, of a user namespace's, and of one user's alone don't mix.
const KINDS: [&str; 3] = ["root", "user-namespace", "single-id"];

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.doing(|| format!("{path:?}"))?;
    Flock::lock(file, how).map_err(|(_, errno)| Error::from(errno).prefix(format!("flock({path:?})")))
}
