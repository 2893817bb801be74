//! `damda bundle IMAGE DIR`, from beginning to end.

use crate::arguments::Arguments;
use crate::convert::{self, Host, IdMapping, Mappings};
use crate::digest::Digest;
use crate::error::{Context, Error, Result, escape};
use crate::fill::{Done, Fill};
use crate::image::Image;
use crate::layers::Budget;
use crate::merge::{Copy, Copying};
use crate::overlay::Overlay;
use crate::progress::Progress;
use crate::rootless::{Ids, Map};
use crate::source::name::{Opened, absolute};
use crate::staging::Staging;
use crate::store::{self, Entry, Store, User};
use crate::tree::Tree;
use crate::unpack::attributes::{self, NO_TIME};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The file in a bundle that says where it comes from.
pub const ORIGIN: &str = "damda.json";

/// Where a bundle comes from.
#[derive(Debug, Serialize, Deserialize)]
pub struct Origin {
    pub image: String,
    /// The image's; none for a directory.
    pub digest: Option<Digest>,
    /// Layers of the store that it is an overlay of, the topmost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lower: Vec<PathBuf>,
}

/// How the root file system is made.
enum Way {
    InPlace,
    Overlay(Store),
    Copy(Store, Copy),
}

/// How long what took.
struct Phases(Vec<(&'static str, u128)>, Instant);

impl Phases {
    fn end(&mut self, name: &'static str) {
        self.0.push((name, self.1.elapsed().as_millis()));
        self.1 = Instant::now();
    }
}

/// Makes a bundle, and returns what is to be told about it.
pub fn make(arguments: &Arguments, ids: &Ids, progress: &Progress) -> Result<String> {
    let (name, directory) = arguments.image_and_directory()?;
    let (parent, file_name) = place(directory)?;
    let to = parent.join(&file_name);
    let mut phases = Phases(Vec::new(), Instant::now());
    let opened = Opened::open(name, &arguments.from, &arguments.limits, &parent)?;
    let image = opened.resolve(&arguments.from, &arguments.limits)?;
    phases.end("resolve");
    image.iter().flat_map(|image| &image.warnings).for_each(|warning| progress.warn(warning));
    if arguments.dry_run {
        return dry_run(arguments, ids, image.as_ref(), &to);
    }
    let way = way(arguments, ids)?;
    let staging = Staging::make(&parent, &file_name)?;
    let mut made = Made { arguments, ids, progress, staging: &staging.path, to: &to, layers: Vec::new() };
    let overlay = made.root(&opened, image.as_ref(), &way)?;
    phases.end("layers");
    let origin = Origin {
        image: absolute(name),
        digest: image.as_ref().map(|image| image.digest.clone()),
        lower: overlay.as_ref().map(|overlay| overlay.lower.clone()).unwrap_or_default(),
    };
    let notes = made.configuration(image.as_ref(), overlay.as_ref())?;
    write_json(&staging.path.join(ORIGIN), &origin)?;
    phases.end("configuration");
    let layers = made.layers;
    staging.finish(&to)?;
    phases.end("sync");
    notes.iter().for_each(|note| progress.warn(note));
    if !arguments.json {
        return Ok(String::new());
    }
    let phases: serde_json::Map<_, _> =
        phases.0.into_iter().map(|(name, time)| (name.to_owned(), json!(time as u64))).collect();
    Ok(pretty(&json!({
        "bundle": to,
        "image": origin.image,
        "digest": origin.digest,
        "configDigest": image.map(|image| image.config_digest),
        "layers": layers,
        "notes": notes,
        "milliseconds": phases,
    })))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// The directory that the bundle will be in, and its name there. It may be there, if it is empty.
fn place(directory: &Path) -> Result<(PathBuf, std::ffi::OsString)> {
    let directory = std::path::absolute(directory)?;
    let no_name = || Error::new(format!("{directory:?} can't be made"));
    let (parent, name) =
        (directory.parent().ok_or_else(no_name)?, directory.file_name().ok_or_else(no_name)?);
    let parent = parent.canonicalize().doing(|| format!("{parent:?}"))?;
    match fs::read_dir(&directory).map(|mut entries| entries.next().is_none()) {
        Ok(false) => Err(Error::new(format!("{directory:?} is there already, and isn't empty"))),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("{directory:?}"))
        }
        _ => Ok((parent, name.to_owned())),
    }
}

/// The store that the command line names, or the usual one.
pub fn open_store(arguments: &Arguments, ids: &Ids) -> Result<Store> {
    let path = match &arguments.keeping.store {
        Some(path) => path.clone(),
        None => store::default_path(ids)?,
    };
    Store::open(&path, ids)
}

fn way(arguments: &Arguments, ids: &Ids) -> Result<Way> {
    let keeping = &arguments.keeping;
    match (keeping.overlay, keeping.copy) {
        (true, _) => Ok(Way::Overlay(open_store(arguments, ids)?)),
        (false, Some(Copy::Hardlink)) if !arguments.changes.read_only => {
            Err(Error::new("--copy=hardlink: what a container writes would be written to the store")
                .hint("--read-only keeps it from that; --copy=auto shares data where that is safe"))
        }
        (false, Some(how)) => Ok(Way::Copy(open_store(arguments, ids)?, how)),
        (false, None) => Ok(Way::InPlace),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    Ok(OwnedFd::from(File::open(path).doing(|| format!("{path:?}"))?))
}

fn tree(path: &Path) -> Result<Tree> {
    open_directory(path).map(Tree::new)
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o755).create(path).doing(|| format!("mkdir({path:?})"))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new(error.to_string()))?;
    fs::write(path, text + "\n").doing(|| format!("write {path:?}"))
}

/// A bundle that is being made.
struct Made<'a> {
    arguments: &'a Arguments,
    ids: &'a Ids,
    progress: &'a Progress,
    /// Where it is now.
    staging: &'a Path,
    /// Where it will be.
    to: &'a Path,
    layers: Vec<Done>,
}

impl Made<'_> {
    /// Makes the root file system, or everything for one that is an overlay.
    fn root(&mut self, opened: &Opened, image: Option<&Image>, way: &Way) -> Result<Option<Overlay>> {
        let rootfs = self.staging.join("rootfs");
        let (image, source) = match (image, opened.source(), opened) {
            (Some(image), Some(source), _) => (image, source),
            (_, _, Opened::Directory(path)) => return self.of_directory(path, way),
            _ => return Err(Error::new("an image without a source")),
        };
        let fill = Fill {
            source,
            image,
            ownership: self.ids.ownership,
            limits: &self.arguments.limits,
            budget: Budget::new(self.arguments.limits.size),
            progress: self.progress,
        };
        let store = match way {
            Way::InPlace => {
                self.layers = fill.in_place(&rootfs, &self.staging.join("layers"))?;
                return Ok(None);
            }
            Way::Overlay(store) | Way::Copy(store, _) => store,
        };
        let in_user_namespace = self.ids.maps.is_some();
        let opaque = if in_user_namespace { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        let (entries, done) = fill.in_store(store, opaque)?;
        self.layers = done;
        make_directory(&rootfs)?;
        if let Way::Copy(_, how) = way {
            let over = tree(&rootfs)?;
            let mut copying = Copying::new(*how);
            for entry in &entries {
                copying.over(&entry.tree()?, &entry.kept, &over)?;
            }
            if !entries.iter().any(|entry| entry.kept.root) {
                attributes::touch(open_directory(&rootfs)?.as_fd(), NO_TIME)?;
            }
            return Ok(None);
        }
        store.note(&User {
            path: self.to.to_owned(),
            image: absolute(self.arguments.image.as_deref().unwrap_or_default()),
            digest: image.digest.clone(),
            layers: entries.iter().map(|entry| entry.id.clone()).collect(),
        })?;
        let mut lower: Vec<_> =
            entries.iter().rev().map(|entry| store.short(entry)).collect::<Result<_>>()?;
        if lower.is_empty() {
            lower.push(store.empty());
        }
        self.upper(entries.iter().rev().find(|entry| entry.kept.root))?;
        Ok(Some(Overlay { lower, in_user_namespace }))
    }

    /// What is written to an overlay; its root is what the merged one is like.
    fn upper(&self, root: Option<&Entry>) -> Result<()> {
        let upper = self.staging.join("upper");
        make_directory(&upper)?;
        make_directory(&self.staging.join("work"))?;
        let Some(root) = root else {
            return attributes::touch(open_directory(&upper)?.as_fd(), NO_TIME);
        };
        attributes::copy_directory(
            open_directory(&root.path)?.as_fd(),
            open_directory(&upper)?.as_fd(),
            self.ids.ownership,
        )
    }

    /// A root file system that is there: copied, or below an overlay.
    fn of_directory(&self, path: &Path, way: &Way) -> Result<Option<Overlay>> {
        let rootfs = self.staging.join("rootfs");
        make_directory(&rootfs)?;
        if let Way::Overlay(_) = way {
            let upper = self.staging.join("upper");
            self.upper(None)?;
            attributes::copy_directory(
                open_directory(path)?.as_fd(),
                open_directory(&upper)?.as_fd(),
                self.ids.ownership,
            )?;
            return Ok(Some(Overlay {
                lower: vec![path.to_owned()],
                in_user_namespace: self.ids.maps.is_some(),
            }));
        }
        let how = if let Way::Copy(_, how) = way { *how } else { Copy::Auto };
        Copying::new(how).all(&tree(path)?, &tree(&rootfs)?)?;
        Ok(None)
    }

    /// Writes config.json, and returns what people should know.
    fn configuration(&self, image: Option<&Image>, overlay: Option<&Overlay>) -> Result<Vec<String>> {
        let rootfs = self.staging.join("rootfs");
        let mounted = overlay.map(|overlay| overlay.mount(self.staging, &rootfs)).transpose()?;
        let view = open_directory(&rootfs)?;
        let mappings =
            self.ids.maps.as_ref().map(|(uids, gids)| Mappings { uids: ranges(uids), gids: ranges(gids) });
        let mounts = overlay.map(|overlay| overlay.entry(self.to)).transpose()?.into_iter().collect();
        let host = Host { mounts, mappings, ..Host::here("rootfs") };
        let mut changes = self.arguments.changes.clone();
        changes.command.clone_from(&self.arguments.command);
        let converted = convert::convert(image.map(|image| &image.config), view.as_fd(), &changes, &host)?;
        make_working_directory(view, &converted.spec.process.cwd)?;
        drop(mounted);
        fs::write(self.staging.join("config.json"), converted.spec.text())
            .doing(|| "write config.json".into())?;
        Ok(converted.notes)
    }
}

/// Makes the working directory if the image lacks it, as Docker does.
pub fn make_working_directory(rootfs: OwnedFd, cwd: &str) -> Result<()> {
    let made = Tree::new(rootfs).directory(Path::new(cwd.trim_start_matches('/')));
    made.doing(|| format!("the working directory {cwd:?}")).map(drop)
}

fn ranges(map: &Map) -> Vec<IdMapping> {
    map.iter()
        .map(|(inside, outside, count)| IdMapping { container_id: *inside, host_id: *outside, size: *count })
        .collect()
}

/// Says what would be done.
fn dry_run(arguments: &Arguments, ids: &Ids, image: Option<&Image>, to: &Path) -> Result<String> {
    let Some(image) = image else {
        return Ok(format!("copy {} to {}\n", arguments.image.as_deref().unwrap_or_default(), to.display()));
    };
    let uses_store = arguments.keeping.overlay || arguments.keeping.copy.is_some();
    // Opening a store makes it; one that isn't there has nothing.
    let path = arguments.keeping.store.clone().map_or_else(|| store::default_path(ids), Ok)?;
    let store = (uses_store && path.exists()).then(|| open_store(arguments, ids)).transpose()?;
    let mut lines = Vec::new();
    let mut layers = Vec::new();
    for (layer, chain) in image.layers.iter().zip(image.chain_ids()) {
        let kept = match &store {
            Some(store) => store.find(&chain, Some(&layer.diff_id))?.is_some(),
            None => false,
        };
        let what = if kept { "is in the store" } else { "fetch and unpack" };
        lines.push(format!("{layer}: {what}, {} bytes", layer.wanted.size));
        layers.push(json!({ "digest": layer.digest, "diffID": layer.diff_id, "size": layer.wanted.size, "kept": kept }));
    }
    if arguments.json {
        return Ok(pretty(&json!({
            "bundle": to,
            "image": absolute(arguments.image.as_deref().unwrap_or_default()),
            "digest": image.digest,
            "configDigest": image.config_digest,
            "layers": layers,
        })));
    }
    Ok(format!("image {}\n{}\nbundle {}\n", image.digest, lines.join("\n"), escape(&to.to_string_lossy())))
}

/// Where a bundle comes from, and the options for asking there.
pub fn origin(bundle: &Path) -> Result<Origin> {
    let path = bundle.join(ORIGIN);
    let text = fs::read(&path).doing(|| format!("{path:?}"))?;
    serde_json::from_slice(&text).map_err(|error| Error::new(format!("{path:?}: {error}")))
}

/// The name under which something is made beside a bundle, to be compared with it.
pub fn beside(bundle: &Path) -> Result<(PathBuf, Staging)> {
    let bundle = bundle.canonicalize().doing(|| format!("{bundle:?}"))?;
    let parent = bundle.parent().unwrap_or(Path::new("/")).to_owned();
    let name = bundle.file_name().unwrap_or(OsStr::new("bundle")).to_owned();
    Ok((bundle, Staging::make(&parent, &name)?))
}
