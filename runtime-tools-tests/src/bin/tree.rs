//! Compares two directory trees file by file, and prints every difference.
//!
//! What is compared: which files there are, type, mode, owner and group, time of change in nanoseconds,
//! extended attributes, device numbers, targets of symbolic links, which names are hard links of one
//! file, and content. Not compared: the times of access and of the inode's change, which nobody can keep.
//!
//! A line is `WHAT PATH: LEFT | RIGHT`. Exit status: 0 without differences, 1 with some, 2 for an error.

use clap::Parser;
use rustix::fs::{SeekFrom, major, minor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, FileType};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "tree", about = "Compares two directory trees file by file")]
struct Options {
    left: PathBuf,
    right: PathBuf,
    /// ids of the left tree, in the right one's terms, as a line of uid_map; both users' and groups'
    #[arg(long, value_name = "LEFT:RIGHT:COUNT", value_parser = range)]
    map: Vec<[u32; 3]>,
    /// a difference that isn't counted: a word that lines begin with, and a path, or * for any;
    /// it is an error if there is no such difference
    #[arg(long, value_name = "WHAT:PATH")]
    except: Vec<String>,
    /// says also where only one file has holes
    #[arg(long)]
    holes: bool,
}

fn range(text: &str) -> Result<[u32; 3], String> {
    let numbers: Vec<u32> = text
        .split(':')
        .map(|number| number.parse().map_err(|_| format!("{number} is no id")))
        .collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|_| "three numbers are needed".into())
}

/// How many differences are printed.
const MOST: usize = 40;

/// A file of a tree, by its path from the top.
#[derive(Debug)]
struct Entry {
    meta: fs::Metadata,
    target: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// the first of its names, where it has several
    first: Option<PathBuf>,
}

type Tree = BTreeMap<PathBuf, Entry>;

fn main() -> ExitCode {
    let options = Options::parse();
    match compare(&options) {
        Ok(differences) => report(&options, &differences),
        Err(error) => {
            eprintln!("tree: {error}");
            ExitCode::from(2)
        }
    }
}

/// One difference: its kind, the path, and what it is on both sides.
struct Difference {
    what: String,
    path: String,
    left: String,
    right: String,
}

fn report(options: &Options, differences: &[Difference]) -> ExitCode {
    let mut excepted = BTreeSet::new();
    let mut counted = 0;
    for Difference { what, path, left, right } in differences {
        let except = options.except.iter().find(|except| {
            let (kind, place) = except.split_once(':').unwrap_or((except, "*"));
            kind == what && (place == "*" || place == path)
        });
        if let Some(except) = except {
            excepted.insert(except);
        } else {
            counted += 1;
            if counted <= MOST {
                println!("{what} {path}: {left} | {right}");
            }
        }
    }
    if counted > MOST {
        println!("and {} more", counted - MOST);
    }
    for except in options.except.iter().filter(|except| !excepted.contains(except)) {
        counted += 1;
        println!("excepted {except}: there is no such difference");
    }
    if counted == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_tree(top: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    walk(top, Path::new(""), &mut tree)?;
    // A file may have more names elsewhere: those in the tree count.
    let mut names: HashMap<(u64, u64), Vec<PathBuf>> = HashMap::new();
    for (path, entry) in tree.iter().filter(|(_, entry)| !entry.meta.is_dir() && entry.meta.nlink() > 1) {
        names.entry((entry.meta.dev(), entry.meta.ino())).or_default().push(path.clone());
    }
    for same in names.values().filter(|same| same.len() > 1) {
        for path in same {
            if let Some(entry) = tree.get_mut(path) {
                entry.first = same.first().cloned();
            }
        }
    }
    Ok(tree)
}

fn walk(top: &Path, path: &Path, tree: &mut Tree) -> io::Result<()> {
    let full = if path.as_os_str().is_empty() { top.to_path_buf() } else { top.join(path) };
    let failed = |error: io::Error| io::Error::other(format!("{}: {error}", full.display()));
    let meta = fs::symlink_metadata(&full).map_err(failed)?;
    if meta.is_dir() {
        for below in fs::read_dir(&full).map_err(failed)? {
            walk(top, &path.join(below?.file_name()), tree)?;
        }
    }
    let target = if meta.is_symlink() { Some(fs::read_link(&full)?) } else { None };
    let attributes = attributes(&full).map_err(failed)?;
    tree.insert(path.to_path_buf(), Entry { meta, target, attributes, first: None });
    Ok(())
}

fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The kernel's own limit for names, and for a value.
    let mut names = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut value = vec![0; 65536];
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::lgetxattr(path, CString::new(name)?.as_c_str(), &mut value)?;
        found.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(found)
}

fn compare(options: &Options) -> io::Result<Vec<Difference>> {
    let (left, right) = (read_tree(&options.left)?, read_tree(&options.right)?);
    let mut differences = Vec::new();
    let paths: BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let mut differs = |what: &str, left: String, right: String| {
            let path = if path.as_os_str().is_empty() { ".".into() } else { text(path.as_os_str()) };
            differences.push(Difference { what: what.into(), path, left, right });
        };
        match (left.get(path), right.get(path)) {
            (Some(one), Some(other)) => {
                compare_meta(options, one, other, &mut differs);
                if one.meta.is_file() && other.meta.is_file() && one.meta.len() == other.meta.len() {
                    let at = first_difference(
                        &options.left.join(path),
                        &options.right.join(path),
                        one.meta.len(),
                    )?;
                    if let Some(at) = at {
                        differs("content", format!("differs at byte {at}"), String::new());
                    }
                }
            }
            (one, other) => {
                let kind = |entry: Option<&Entry>| {
                    entry.map_or("missing", |entry| type_name(entry.meta.file_type())).to_string()
                };
                differs("name", kind(one), kind(other));
            }
        }
    }
    Ok(differences)
}

fn compare_meta(
    options: &Options,
    one: &Entry,
    other: &Entry,
    differs: &mut impl FnMut(&str, String, String),
) {
    let (left, right) = (&one.meta, &other.meta);
    if left.file_type() != right.file_type() {
        differs("type", type_name(left.file_type()).into(), type_name(right.file_type()).into());
        return;
    }
    let mut check = |what: &str, of: &dyn Fn(&Entry) -> String| {
        let (left, right) = (of(one), of(other));
        if left != right {
            differs(what, left, right);
        }
    };
    check("mode", &|entry| format!("{:o}", entry.meta.mode() & 0o7777));
    check("time", &|entry| format!("{}.{:09}", entry.meta.mtime(), entry.meta.mtime_nsec()));
    check("target", &|entry| {
        entry.target.as_ref().map(|target| text(target.as_os_str())).unwrap_or_default()
    });
    check("links", &|entry| entry.first.as_ref().map_or("alone".into(), |first| text(first.as_os_str())));
    if left.is_file() {
        check("size", &|entry| entry.meta.len().to_string());
    }
    if left.file_type().is_char_device() || left.file_type().is_block_device() {
        check("device", &|entry| format!("{}:{}", major(entry.meta.rdev()), minor(entry.meta.rdev())));
    }
    if options.holes && left.is_file() {
        check("holes", &|entry| (entry.meta.blocks() * 512 < entry.meta.len()).to_string());
    }
    let names: BTreeSet<&Vec<u8>> = one.attributes.keys().chain(other.attributes.keys()).collect();
    for name in names {
        check("attribute", &|entry| {
            let value = entry.attributes.get(name).map(|value| value.escape_ascii().to_string());
            format!("{}={}", name.escape_ascii(), value.unwrap_or("(none)".into()))
        });
    }
    let owners = (mapped(options, left.uid()), mapped(options, left.gid()));
    if owners != (Some(right.uid()), Some(right.gid())) {
        differs(
            "owner",
            format!("{}:{}", left.uid(), left.gid()),
            format!("{}:{}", right.uid(), right.gid()),
        );
    }
}

/// An id of the left tree in the right one's terms; none if the map has no place for it.
fn mapped(options: &Options, id: u32) -> Option<u32> {
    if options.map.is_empty() {
        return Some(id);
    }
    options
        .map
        .iter()
        .find(|[from, _, count]| id >= *from && id - from < *count)
        .map(|[from, to, _]| to + (id - from))
}

/// Where two files of one size begin to differ. What is a hole in both isn't read.
fn first_difference(left: &Path, right: &Path, size: u64) -> io::Result<Option<u64>> {
    let (left, right) = (File::open(left)?, File::open(right)?);
    let (mut one, mut other) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    while at < size {
        at = next_data(&left, at, size)?.min(next_data(&right, at, size)?);
        let length = (size - at).min(one.len() as u64) as usize;
        left.read_exact_at(&mut one[..length], at)?;
        right.read_exact_at(&mut other[..length], at)?;
        if let Some(index) = (0..length).find(|index| one[*index] != other[*index]) {
            return Ok(Some(at + index as u64));
        }
        at += length as u64;
    }
    Ok(None)
}

fn next_data(file: &File, from: u64, size: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(at),
        // Only a hole is left.
        Err(rustix::io::Errno::NXIO) => Ok(size),
        Err(error) => Err(error.into()),
    }
}

fn type_name(of: FileType) -> &'static str {
    match of {
        of if of.is_dir() => "directory",
        of if of.is_file() => "file",
        of if of.is_symlink() => "symlink",
        of if of.is_fifo() => "fifo",
        of if of.is_char_device() => "character device",
        of if of.is_block_device() => "block device",
        _ => "socket",
    }
}

/// A name as text: control characters and what isn't UTF-8 escaped.
fn text(name: &OsStr) -> String {
    match std::str::from_utf8(name.as_bytes()) {
        Ok(name) => name.escape_debug().to_string(),
        Err(_) => name.to_os_string().into_vec().escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    /// What differs, as `WHAT PATH`.
    fn differences(left: &Path, right: &Path, more: &[&str]) -> Vec<String> {
        let paths = [left.as_os_str(), right.as_os_str()];
        let arguments = [OsStr::new("tree")].into_iter().chain(paths).chain(more.iter().map(OsStr::new));
        let found = compare(&Options::parse_from(arguments)).expect("both are there");
        found.into_iter().map(|difference| format!("{} {}", difference.what, difference.path)).collect()
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let top = tempfile::tempdir().expect("a directory");
        let sides = ["left", "right"].map(|name| top.path().join(name));
        for side in &sides {
            fs::create_dir(side).expect("mkdir");
            for name in ["mode", "content", "size", "time", "a", "linked", "type"] {
                fs::write(side.join(name), "text").expect("write");
            }
            symlink("somewhere", side.join("target")).expect("symlink");
            let hole = File::create(side.join("hole")).expect("create");
            hole.set_len(1 << 30).expect("truncate");
            hole.write_at(b"end", (1 << 30) - 3).expect("write");
        }
        let now = SystemTime::now();
        let set_times = |side: &Path| {
            for entry in fs::read_dir(side).expect("readdir").flatten() {
                if entry.file_type().is_ok_and(|of| of.is_file()) {
                    File::open(entry.path()).and_then(|file| file.set_modified(now)).expect("utimens");
                }
            }
            let link = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 1 };
            let times = rustix::fs::Timestamps { last_access: link, last_modification: link };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, side.join("target"), &times, flags).expect("utimensat");
            File::open(side).and_then(|directory| directory.set_modified(now)).expect("utimens");
        };
        sides.iter().for_each(|side| set_times(side));
        assert_eq!(differences(&sides[0], &sides[1], &[]), [""; 0]);

        let right = &sides[1];
        fs::set_permissions(right.join("mode"), PermissionsExt::from_mode(0o600)).expect("chmod");
        fs::write(right.join("content"), "tent").expect("write");
        fs::write(right.join("size"), "longer").expect("write");
        File::options()
            .write(true)
            .open(right.join("hole"))
            .and_then(|hole| hole.write_at(b"x", 7))
            .expect("write");
        fs::remove_file(right.join("linked")).expect("unlink");
        fs::hard_link(right.join("a"), right.join("linked")).expect("link");
        fs::remove_file(right.join("target")).expect("unlink");
        symlink("elsewhere", right.join("target")).expect("symlink");
        fs::remove_file(right.join("type")).expect("unlink");
        symlink("text", right.join("type")).expect("symlink");
        fs::write(right.join("name"), "").expect("write");
        set_times(right);
        let later = now + Duration::from_nanos(1);
        File::open(right.join("time")).and_then(|file| file.set_modified(later)).expect("utimens");
        assert_eq!(
            differences(&sides[0], right, &[]),
            [
                "links a",
                "content content",
                "content hole",
                "links linked",
                "mode mode",
                "name name",
                "size size",
                "target target",
                "time time",
                "type type"
            ]
        );
    }

    #[test]
    fn owners_are_mapped() {
        let parse = |maps: &[&str]| Options::parse_from([&["tree", "a", "b"], maps].concat());
        let options = parse(&["--map", "0:54321:1", "--map", "1:100000:10"]);
        assert_eq!(mapped(&options, 0), Some(54321));
        assert_eq!(mapped(&options, 10), Some(100_009));
        assert_eq!(mapped(&options, 11), None);
        assert_eq!(mapped(&parse(&[]), 11), Some(11));
    }
}
