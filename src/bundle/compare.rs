//! `--verify`: a bundle's root file system against what the image makes, file by file.

use crate::error::{Context, Result, escape};
use crate::tree;
use crate::unpack::attributes::{Target, xattrs};
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// All differences, a line each: `PATH: WHAT`.
pub fn compare(found: BorrowedFd<'_>, expected: BorrowedFd<'_>) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let (here, there) = (nix::sys::stat::fstat(found)?, nix::sys::stat::fstat(expected)?);
    attributes(Path::new("."), &here, &there, &mut differences);
    directory(Path::new(""), found, expected, &mut differences)?;
    Ok(differences)
}

fn line(path: &Path, what: &str) -> String {
    format!("{}: {what}", escape(&path.to_string_lossy()))
}

fn directory(
    path: &Path,
    found: BorrowedFd<'_>,
    expected: BorrowedFd<'_>,
    differences: &mut Vec<String>,
) -> Result<()> {
    let names: BTreeSet<OsString> = tree::names(found)?.into_iter().chain(tree::names(expected)?).collect();
    for name in names {
        let path: PathBuf = path.join(&name);
        let (here, there) = (tree::stat(found, &name)?, tree::stat(expected, &name)?);
        let (here, there) = match (here, there) {
            (Some(here), Some(there)) => (here, there),
            (Some(_), None) => {
                differences.push(line(&path, "added"));
                continue;
            }
            _ => {
                differences.push(line(&path, "missing"));
                continue;
            }
        };
        if tree::kind(&here) != tree::kind(&there) {
            let (here, there) = (kind_name(&here), kind_name(&there));
            differences.push(line(&path, &format!("type {here}, expected {there}")));
            continue;
        }
        attributes(&path, &here, &there, differences);
        let mine = xattrs(&Target::Named(found, &name)).doing(|| format!("{path:?}"))?;
        let theirs = xattrs(&Target::Named(expected, &name)).doing(|| format!("{path:?}"))?;
        let set = |all: Vec<(String, Vec<u8>)>| all.into_iter().collect::<BTreeSet<_>>();
        let (mine, theirs) = (set(mine), set(theirs));
        let changed: BTreeSet<_> = mine.symmetric_difference(&theirs).map(|(name, _)| name).collect();
        differences.extend(changed.iter().map(|name| line(&path, &format!("attribute {name}"))));
        match tree::kind(&here) {
            SFlag::S_IFDIR => {
                let found = tree::open_directory(found, &name).doing(|| format!("{path:?}"))?;
                let expected = tree::open_directory(expected, &name).doing(|| format!("{path:?}"))?;
                directory(&path, found.as_fd(), expected.as_fd(), differences)?;
            }
            SFlag::S_IFLNK => {
                let target = |directory| readlinkat(directory, name.as_os_str());
                if target(found)? != target(expected)? {
                    differences.push(line(&path, "link"));
                }
            }
            SFlag::S_IFREG if here.st_size == there.st_size => {
                let open = |directory| tree::open(directory, &name, OFlag::O_RDONLY).map(File::from);
                if !same(open(found)?, open(expected)?)? {
                    differences.push(line(&path, "content"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn kind_name(stat: &FileStat) -> &'static str {
    match tree::kind(stat) {
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFLNK => "link",
        SFlag::S_IFREG => "file",
        SFlag::S_IFCHR => "character device",
        SFlag::S_IFBLK => "block device",
        SFlag::S_IFIFO => "fifo",
        _ => "socket",
    }
}

fn attributes(path: &Path, here: &FileStat, there: &FileStat, differences: &mut Vec<String>) {
    let mode = |stat: &FileStat| format!("{:04o}", stat.st_mode & 0o7777);
    let time = |stat: &FileStat| format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
    let number = |stat: &FileStat| {
        format!("{}:{}", nix::sys::stat::major(stat.st_rdev), nix::sys::stat::minor(stat.st_rdev))
    };
    let link = tree::kind(there) == SFlag::S_IFLNK;
    let directory = tree::is_directory(there);
    let all = [
        ("mode", (!link).then(|| (mode(here), mode(there)))),
        ("user", Some((here.st_uid.to_string(), there.st_uid.to_string()))),
        ("group", Some((here.st_gid.to_string(), there.st_gid.to_string()))),
        ("size", (!directory).then(|| (here.st_size.to_string(), there.st_size.to_string()))),
        ("time", Some((time(here), time(there)))),
        ("device", Some((number(here), number(there)))),
    ];
    for (what, values) in all {
        if let Some((here, there)) = values
            && here != there
        {
            differences.push(line(path, &format!("{what} {here}, expected {there}")));
        }
    }
}

fn same(mut one: File, mut other: File) -> Result<bool> {
    let (mut mine, mut theirs) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = one.read(&mut mine)?;
        if length == 0 {
            return Ok(other.read(&mut theirs)? == 0);
        }
        match other.read_exact(&mut theirs[..length]) {
            Ok(()) if mine[..length] == theirs[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}
