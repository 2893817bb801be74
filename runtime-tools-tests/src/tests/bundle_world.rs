//! What tests of `bundle` share: the directory around OUT, which must stay as it is, and the three
//! ways to a root file system, which must look the same.

use crate::case::{Case, Output, text};
use crate::harness::{Stop, Verdict};
use crate::image::{self, Image, Layer, Layout, Packing, tar};
use crate::{ensure, ensure_eq, skip};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Skips unless the runtime has the command. The specification knows nothing of it.
pub fn needs_command(case: &Case) -> Verdict {
    static THERE: OnceLock<bool> = OnceLock::new();
    if !THERE.get_or_init(|| case.call(&["bundle", "--help"]).is_ok_and(|output| output.status == 0)) {
        skip!("{} has no command bundle", case.runtime.name);
    }
    Ok(())
}

/// A directory in which OUT is made, with neighbours that nobody may touch.
pub struct World<'a> {
    pub case: &'a Case<'a>,
    /// For images and stores, outside of what is watched.
    pub directory: PathBuf,
    /// The parent of OUT.
    pub place: PathBuf,
    /// What attacks are to reach.
    pub prize: PathBuf,
    before: BTreeMap<PathBuf, String>,
    images: Cell<u32>,
}

impl<'a> World<'a> {
    pub fn new(case: &'a Case<'a>) -> Verdict<Self> {
        needs_command(case)?;
        let number = (0..).find(|number| !case.directory.join(format!("world-{number}")).exists());
        let directory = case.directory.join(format!("world-{}", number.unwrap_or(0)));
        let place = directory.join("place");
        let prize = place.join("prize");
        fs::create_dir_all(prize.join("directory"))?;
        fs::write(prize.join("file"), "untouched")?;
        fs::write(prize.join("directory/below"), "untouched")?;
        fs::set_permissions(prize.join("file"), Permissions::from_mode(0o640))?;
        symlink("file", prize.join("link"))?;
        // Not every file system has such attributes; then none can be changed.
        let _ = set_user_attribute(&prize.join("file"));
        let before = snapshot(&place)?;
        Ok(World { case, directory, place, prize, before, images: Cell::new(0) })
    }

    pub fn out(&self) -> PathBuf {
        self.place.join("out")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.out().join("rootfs")
    }

    /// A path for a new image, outside of the place that is watched.
    pub fn image_path(&self) -> PathBuf {
        let number = self.images.replace(self.images.get() + 1);
        self.directory.join(format!("image-{number}"))
    }

    /// Writes the layout, and returns how the command line names it.
    pub fn write(&self, layout: &Layout) -> Verdict<String> {
        let path = self.image_path();
        image::write_directory(&layout.files, &path)?;
        Ok(format!("oci:{}", text(&path)))
    }

    /// Writes a file, and returns `kind` with its path: an archive of a kind.
    pub fn write_archive(&self, kind: &str, bytes: &[u8]) -> Verdict<String> {
        let path = self.image_path();
        fs::write(&path, bytes)?;
        Ok(format!("{kind}:{}", text(&path)))
    }

    /// `bundle OPTIONS IMAGE OUT`.
    pub fn bundle(&self, options: &[&str], source: &str) -> Verdict<Output> {
        self.case.call(&[&["bundle"], options, &[source, text(&self.out())]].concat())
    }

    /// The same with this file as its stdin.
    pub fn bundle_stdin(&self, options: &[&str], path: &str) -> Verdict<Output> {
        let out = self.out();
        self.case.call_after(&format!("exec <{path}"), &[&["bundle"], options, &["-", text(&out)]].concat())
    }

    /// `bundle OPTIONS IMAGE OUT` of an image in memory.
    pub fn bundle_image(&self, options: &[&str], image: &Image) -> Verdict<Output> {
        let source = self.write(&image.layout())?;
        self.bundle(options, &source)
    }

    /// The neighbours are as they were, and OUT is the only new one, if it may be there.
    pub fn unchanged(&self) -> Verdict {
        let now = snapshot(&self.place)?;
        for (path, was) in &self.before {
            let is = now.get(path).map_or("gone", String::as_str);
            ensure_eq!(is, was, "outside of the bundle, {path:?}");
        }
        let new = now.keys().find(|path| !self.before.contains_key(*path) && !path.starts_with("out"));
        ensure!(new.is_none(), "outside of the bundle, {new:?} is new");
        Ok(())
    }

    /// It failed with these words, and left nothing.
    pub fn left_nothing(&self, output: Output, words: &[&str]) -> Verdict {
        ensure_eq!(output.status, 1, "exit status (stderr: {:?})", output.stderr.trim());
        output.failed_with(&[&["damda bundle failed: "], words].concat())?;
        ensure!(self.out().symlink_metadata().is_err(), "OUT is there after a failure");
        self.unchanged()
    }

    /// Fails unless the source is refused with these words.
    pub fn refuses(&self, options: &[&str], source: &str, words: &[&str]) -> Verdict {
        let output = self.bundle(options, source)?;
        self.left_nothing(output, words)
    }

    /// Fails unless an image in memory is refused with these words.
    pub fn refuses_layout(&self, layout: &Layout, words: &[&str]) -> Verdict {
        let source = self.write(layout)?;
        self.refuses(&[], &source, words)
    }

    /// Fails unless it is unpacked or refused with nothing outside of OUT touched; removes OUT.
    pub fn contains(&self, image: &Image) -> Verdict<Output> {
        let output = self.bundle_image(&[], image)?;
        ensure!(matches!(output.status, 0 | 1), "status {}: {:?}", output.status, output.stderr);
        self.unchanged()?;
        self.remove_out()?;
        Ok(output)
    }

    pub fn remove_out(&self) -> Verdict {
        if self.out().exists() {
            fs::remove_dir_all(self.out())?;
        }
        Ok(())
    }
}

/// Tells of which row of a table a failure is.
pub fn row(name: &str, verdict: Verdict) -> Verdict {
    verdict.map_err(|stop| match stop {
        Stop::Failed(why) => Stop::Failed(format!("{name}: {why}")),
        skipped => skipped,
    })
}

/// Everything below a directory but what may be made in it: the directory's own times.
pub fn snapshot(directory: &Path) -> Verdict<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(path) = rest.pop() {
        let metadata = path.symlink_metadata()?;
        let name = path.strip_prefix(directory)?.to_owned();
        let own = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
        let text = if path == directory { own } else { format!("{own} {}", particulars(&path, &metadata)?) };
        if metadata.is_dir() && !name.starts_with("out") {
            rest.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
        found.insert(name, text);
    }
    Ok(found)
}

fn particulars(path: &Path, metadata: &Metadata) -> Verdict<String> {
    let content = match metadata.file_type() {
        kind if kind.is_file() => format!("{:?}", fs::read(path)?),
        kind if kind.is_symlink() => format!("{:?}", fs::read_link(path)?),
        _ => String::new(),
    };
    let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
    Ok(format!("links {} times {times:?} {:?} {content}", metadata.nlink(), xattr_names(path)?))
}

/// The names of a file's extended attributes, sorted.
pub fn xattr_names(path: &Path) -> Verdict<Vec<String>> {
    let mut buffer = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..])?;
    let names = buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// How a bundle's root file system comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Unpacked into the bundle.
    Directly,
    /// Copied from the store.
    Copied,
    /// An overlay mount over the store's layers.
    Overlaid,
}

/// All of them.
pub const WAYS: [Way; 3] = [Way::Directly, Way::Copied, Way::Overlaid];

/// Unpacks the layers in each way, and looks at the result. The layers are packed in turn plain, by
/// gzip and by zstd.
pub fn look(case: &Case, layers: &[&[tar::Entry]], check: impl Fn(&Tree) -> Verdict + Sync) -> Verdict {
    let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain].into_iter().cycle();
    let layers = layers.iter().zip(packings);
    let layers: Vec<Layer> =
        layers.map(|(entries, packing)| Layer::new(&tar::archive(entries), packing)).collect();
    look_at_image(case, &Image::new(&layers), check)
}

/// The same of an image.
pub fn look_at_image(case: &Case, image: &Image, check: impl Fn(&Tree) -> Verdict + Sync) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&image.layout())?;
    for way in WAYS {
        if way == Way::Overlaid {
            needs_overlay(&world.directory)?;
        }
        row(&format!("{way:?}"), look_one_way(&world, way, &source, &check))?;
    }
    Ok(())
}

fn set_user_attribute(path: &Path) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path, "user.prize", b"1", rustix::fs::XattrFlags::empty())
}

/// Skips unless files there can have attributes of the user's.
pub fn needs_user_attributes(case: &Case) -> Verdict {
    if set_user_attribute(&case.directory).is_err() {
        skip!("needs a file system with user.* attributes at {:?}", case.directory);
    }
    Ok(())
}

/// Skips unless an overlay can have its upper directory there: not on another overlay.
pub fn needs_overlay(directory: &Path) -> Verdict {
    let found = nix::sys::statfs::statfs(directory)?.filesystem_type();
    if found == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC {
        skip!("the overlay needs a file system that isn't one itself at {directory:?}");
    }
    Ok(())
}

fn look_one_way(
    world: &World,
    way: Way,
    source: &str,
    check: &(impl Fn(&Tree) -> Verdict + Sync),
) -> Verdict {
    let store = world.directory.join("store");
    let options: &[&str] = match way {
        Way::Directly => &[],
        Way::Copied => &["--store", text(&store), "--copy"],
        Way::Overlaid => &["--store", text(&store), "--overlay"],
    };
    let output = world.bundle(options, source)?.succeeded()?;
    let tree = Tree { root: world.rootfs(), way, said: output.stderr };
    if way == Way::Overlaid {
        mounted(&world.out(), |_| check(&tree))?
    } else {
        check(&tree)?
    }
    world.unchanged()?;
    world.remove_out()
}

/// Does it where config.json's overlay mount of `/` is mounted at the root file system. Only this
/// thread has the mount.
pub fn mounted(bundle: &Path, check: impl FnOnce(&Path) -> Verdict + Send) -> Verdict {
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    let mounts = config["mounts"].as_array().into_iter().flatten();
    let overlay = mounts.clone().find(|mount| mount["type"] == "overlay" && mount["destination"] == "/");
    let Some(overlay) = overlay else {
        return Err(Stop::Failed(format!("config.json has no overlay mount of /: {:?}", config["mounts"])));
    };
    let options = overlay["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let options: Vec<&str> = options.collect();
    let rootfs = bundle.join("rootfs");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            let mut command = Command::new("mount");
            command.args(["-t", "overlay", "overlay", "-o", &options.join(",")]).arg(&rootfs);
            let output = command.current_dir(bundle).output()?;
            ensure!(
                output.status.success(),
                "mount -o {options:?}: {:?}",
                String::from_utf8_lossy(&output.stderr)
            );
            check(&rootfs)
        });
        thread.join().unwrap_or_else(|_| Err(Stop::Failed("the check panicked".into())))
    })
}

/// A root file system to look at. Paths are relative to it.
pub struct Tree {
    pub root: PathBuf,
    pub way: Way,
    /// The command's stderr.
    pub said: String,
}

impl Tree {
    pub fn path(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path.as_ref()))
    }

    pub fn metadata(&self, path: impl AsRef<[u8]>) -> Verdict<Metadata> {
        let path = self.path(path);
        path.symlink_metadata().map_err(|error| Stop::Failed(format!("{path:?}: {error}")))
    }

    /// It is a regular file with this content.
    pub fn file(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Verdict {
        ensure!(self.metadata(&path)?.is_file(), "{:?} is no file", self.path(&path));
        let found = fs::read(self.path(&path))?;
        ensure!(
            found == content.as_ref(),
            "content of {:?}: {:?}",
            self.path(&path),
            String::from_utf8_lossy(&found[..found.len().min(200)])
        );
        Ok(())
    }

    /// It is a directory with entries of exactly these names.
    pub fn directory(&self, path: &str, names: &[&str]) -> Verdict {
        ensure!(self.metadata(path)?.is_dir(), "{path:?} is no directory");
        let entries = fs::read_dir(self.path(path))?.flatten();
        let mut found: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        found.sort();
        ensure_eq!(found, names, "entries of {path:?}");
        Ok(())
    }

    pub fn symlink(&self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Verdict {
        ensure!(self.metadata(&path)?.is_symlink(), "{:?} is no symbolic link", self.path(&path));
        let found = fs::read_link(self.path(&path))?;
        ensure!(found.as_os_str().as_bytes() == target.as_ref(), "{:?} leads to {found:?}", self.path(&path));
        Ok(())
    }

    /// Permissions with the three bits above them, owner, group.
    pub fn mode(&self, path: impl AsRef<[u8]>, mode: u32, uid: u32, gid: u32) -> Verdict {
        let found = self.metadata(&path)?;
        let (is, should) = ((found.mode() & 0o7777, found.uid(), found.gid()), (mode, uid, gid));
        ensure!(is == should, "{:?} is {:o} of {}:{}", self.path(&path), is.0, is.1, is.2);
        Ok(())
    }

    pub fn mtime(&self, path: impl AsRef<[u8]>, seconds: i64, nanoseconds: i64) -> Verdict {
        let found = self.metadata(&path)?;
        ensure_eq!(
            (found.mtime(), found.mtime_nsec()),
            (seconds, nanoseconds),
            "time of {:?}",
            self.path(&path)
        );
        Ok(())
    }

    /// An extended attribute, if it is there.
    pub fn xattr(&self, path: &str, name: &str) -> Verdict<Option<Vec<u8>>> {
        let mut buffer = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(self.path(path), name, &mut buffer[..]) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(rustix::io::Errno::NODATA) => Ok(None),
            Err(error) => Err(Stop::Failed(format!("{path:?}: {name}: {error}"))),
        }
    }

    /// They are the same file.
    pub fn linked(&self, paths: &[&str]) -> Verdict {
        let first = self.metadata(paths[0])?;
        for path in paths {
            let other = self.metadata(path)?;
            ensure!(
                (other.dev(), other.ino()) == (first.dev(), first.ino()),
                "{path:?} is not the same file as {:?}",
                paths[0]
            );
        }
        ensure_eq!(first.nlink(), paths.len() as u64, "links of {:?}", paths[0]);
        Ok(())
    }
}
