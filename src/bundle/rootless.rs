//! Being root in a user namespace, for an ordinary user: with his subordinate ids if he has any
//! (subuid(5)), and with his own one alone if not.

use crate::error::{Context, Error, Result};
use crate::unpack::attributes::Ownership;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, User, getegid, geteuid};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

/// The option that makes this program the one that maps ids, from outside of the namespace.
pub const OPTION: &str = "--map-ids";

/// Ids of a user namespace: of it, of the one around it, and how many.
pub type Map = Vec<(u32, u32, u32)>;

/// Whose ids files get.
#[derive(Debug, Clone)]
pub struct Ids {
    pub ownership: Ownership,
    /// For users and for groups; None for root, who needs no namespace.
    pub maps: Option<(Map, Map)>,
}

/// Becomes root in a user namespace, unless this is root, who does so only if it is asked for. Called
/// while there is one thread.
pub fn enter(asked: bool) -> Result<Ids> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() && !asked {
        return Ok(Ids { ownership: Ownership::Image, maps: None });
    }
    let user = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
    let subordinate = |path: &str| ranges(&fs::read_to_string(path).unwrap_or_default(), &user, uid);
    let (uids, gids) = (subordinate("/etc/subuid"), subordinate("/etc/subgid"));
    if uids.is_empty() || gids.is_empty() {
        return single(uid, gid);
    }
    let maps = (map(uid.as_raw(), &uids), map(gid.as_raw(), &gids));
    match with_helpers(&maps) {
        Ok(()) => Ok(Ids { ownership: Ownership::Image, maps: Some(maps) }),
        Err(error) => {
            Err(error.hint("newuidmap and newgidmap (Debian's package uidmap) map the ids of /etc/subuid"))
        }
    }
}

/// A user's ranges: `NAME-OR-UID:FIRST:COUNT`.
fn ranges(text: &str, user: &str, uid: Uid) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let numbers = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mine = !owner.is_empty() && (owner == user || owner.parse() == Ok(uid.as_raw()));
        (mine && numbers.1 > 0).then_some(numbers)
    };
    text.lines().filter_map(range).collect()
}

/// The user himself is root, his other ids follow.
fn map(own: u32, ranges: &[(u32, u32)]) -> Map {
    let mut map = vec![(0, own, 1)];
    let mut next = 1;
    for (first, count) in ranges {
        map.push((next, *first, *count));
        next += count;
    }
    map
}

/// Only a process outside of the namespace, of the same user, may have the helpers map its ids.
fn with_helpers(maps: &(Map, Map)) -> Result<()> {
    let maps = serde_json::to_string(maps).map_err(|error| Error::new(error.to_string()))?;
    let mut mapper = Command::new("/proc/self/exe")
        .args([OPTION, &std::process::id().to_string(), &maps])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "start what maps ids".into())?;
    namespaces()?;
    if let Some(mut go) = mapper.stdin.take() {
        go.write_all(b"go")?;
    }
    let output = mapper.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::new(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn namespaces() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| {
        Error::from(errno).prefix("unshare(CLONE_NEWUSER)").hint(
            "the kernel must let ordinary users make user namespaces: see sysctl user.max_user_namespaces",
        )
    })
}

fn single(uid: Uid, gid: Gid) -> Result<Ids> {
    namespaces()?;
    let write =
        |file: &str, text: String| fs::write(file, &text).doing(|| format!("write({file:?}, {text:?})"));
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    let maps = (vec![(0, uid.as_raw(), 1)], vec![(0, gid.as_raw(), 1)]);
    Ok(Ids { ownership: Ownership::SingleId, maps: Some(maps) })
}

/// The process outside: waits until the other one is in its namespace, and maps its ids.
pub fn map_ids(pid: &str, maps: &str) -> Result<()> {
    let (uids, gids): (Map, Map) =
        serde_json::from_str(maps).map_err(|error| Error::new(error.to_string()))?;
    let mut go = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut go)?;
    if go != "go" {
        return Err(Error::new("there is no namespace to map ids of"));
    }
    for (helper, map) in [("newuidmap", uids), ("newgidmap", gids)] {
        let numbers = map.iter().flat_map(|(inside, outside, count)| [inside, outside, count]);
        let status = Command::new(helper)
            .arg(pid)
            .args(numbers.map(u32::to_string))
            .status()
            .doing(|| helper.into())?;
        if !status.success() {
            return Err(Error::new(format!("{helper}: {status}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_by_name_or_number() {
        let text = "joe:100000:65536\n1000:300000:10\nann:1:1\nbad\njoe:x:1\n";
        assert_eq!(ranges(text, "joe", Uid::from_raw(1000)), [(100_000, 65_536), (300_000, 10)]);
        assert!(ranges(text, "", Uid::from_raw(7)).is_empty());
        assert_eq!(
            map(1000, &[(100_000, 65_536), (300_000, 10)]),
            [(0, 1000, 1), (1, 100_000, 65_536), (65_537, 300_000, 10)]
        );
    }
}
