//! `process.user`: who `Config.User` or `--user` is, in the image.

use super::rootfs;
use super::spec::IdMapping;
use crate::error::{Error, Result};
use std::os::fd::BorrowedFd;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// More entries than any image has.
const MOST_LINES: usize = 16_384;

/// The ids of a container's user namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Mappings {
    /// `linux.uidMappings`.
    pub uids: Vec<IdMapping>,
    /// `linux.gidMappings`.
    pub gids: Vec<IdMapping>,
}

impl Mappings {
    /// Whether the process may have additional groups: not if its one group is all that is mapped, which
    /// is what an ordinary user can do without newgidmap(1), and then setgroups(2) is denied
    /// (user_namespaces(7)).
    fn has_groups(&self) -> bool {
        self.gids.iter().map(|range| u64::from(range.size)).sum::<u64>() > 1
    }
}

/// Whether an id of the container is one that the user namespace has.
pub fn is_mapped(ranges: &[IdMapping], id: u32) -> bool {
    ranges.iter().any(|range| id.checked_sub(range.container_id).is_some_and(|offset| offset < range.size))
}

/// An entry of /etc/passwd has seven.
const MOST_FIELDS: usize = 8;

/// Who a process runs as.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// Its id …
    pub uid: u32,
    /// … and its group's.
    pub gid: u32,
    /// Its other groups, the primary one among them (CVE-2022-2989, CVE-2022-2990, CVE-2022-2995,
    /// CVE-2022-36109: without it, a file that its group may not read could be read after setgid(2)).
    pub additional_gids: Vec<u32>,
    /// Its home directory.
    pub home: String,
}

impl User {
    /// Looks `text` up: `user`, `uid`, `user:group`, `uid:group`, `user:gid`, `uid:gid`, or nothing for
    /// root. Without a group, the primary and the additional groups are those of the user's entry, also if
    /// the user is a number: as Docker does, and the image specification's config.md has it (conversion.md
    /// would rather not). A number is never looked up as a name.
    pub fn find(rootfs: BorrowedFd<'_>, text: &str) -> Result<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if text.is_empty() { "0" } else { user };
        if user.is_empty() || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
            return Err(Error::new("not of the form USER[:GROUP]"));
        }
        let passwd = rootfs::read(rootfs, PASSWD)?.unwrap_or_default();
        let mut found = match id(user, "user")? {
            Some(uid) => {
                find_id(&passwd, uid)?.unwrap_or(Entry { name: None, uid, gid: 0, home: "/".into() })
            }
            None => find_name(&passwd, user)?,
        };
        let groups = match group.is_some() || found.name.is_some() {
            true => rootfs::read(rootfs, GROUP)?.unwrap_or_default(),
            false => Vec::new(),
        };
        let mut additional_gids = Vec::new();
        match (group, &found.name) {
            (Some(group), _) => found.gid = find_group(&groups, group)?,
            (None, Some(name)) => additional_gids = groups_of(&groups, name)?,
            (None, None) => {}
        }
        additional_gids.retain(|gid| *gid != found.gid);
        additional_gids.insert(0, found.gid);
        Ok(User { uid: found.uid, gid: found.gid, additional_gids, home: found.home })
    }

    /// Leaves those of the groups that the user namespace has. An id of the user's own that it doesn't
    /// have is an error.
    pub fn map(&mut self, mappings: &Mappings) -> Result<()> {
        let ids = [("user", self.uid, &mappings.uids), ("group", self.gid, &mappings.gids)];
        if let Some((kind, id, _)) = ids.into_iter().find(|(_, id, ranges)| !is_mapped(ranges, *id)) {
            return Err(Error::new(format!("{kind} id {id} is not mapped in the user namespace"))
                .hint("--user 0, or more subordinate ids: subuid(5), subgid(5)"));
        }
        self.additional_gids.retain(|gid| mappings.has_groups() && is_mapped(&mappings.gids, *gid));
        Ok(())
    }
}

/// A user of /etc/passwd (passwd(5)).
struct Entry {
    /// None: a number without an entry.
    name: Option<Vec<u8>>,
    uid: u32,
    gid: u32,
    home: String,
}

/// A user or group as a number, None if it is a name. What looks like a number is one or an error, never a
/// name and never the id that it overflows to (CVE-2016-3697, CVE-2024-40635, CVE-2026-46680); and
/// 2³²−1, to the kernel "leave it as it is", is no id.
fn id(text: &str, kind: &str) -> Result<Option<u32>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match valid(text.as_bytes()) {
        Some(id) => Ok(Some(id)),
        None => Err(Error::new(format!("{text} is not a {kind} id: those are 0 to {}", u32::MAX - 1))),
    }
}

fn valid(field: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(field).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// The fields of the lines of a file, with their number; an error if there are too many.
fn lines<'a>(bytes: &'a [u8], path: &str) -> Result<impl Iterator<Item = (usize, Vec<&'a [u8]>)> + use<'a>> {
    if bytes.iter().filter(|byte| **byte == b'\n').count() > MOST_LINES {
        return Err(Error::new(format!("the image's {path} has more than {MOST_LINES} lines")));
    }
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    Ok(lines.map(|(index, line)| (index + 1, line.splitn(MOST_FIELDS, |byte| *byte == b':').collect())))
}

fn find_id(passwd: &[u8], uid: u32) -> Result<Option<Entry>> {
    let mut lines = lines(passwd, PASSWD)?;
    let found = lines.find(|(_, fields)| fields.get(2).is_some_and(|field| valid(field) == Some(uid)));
    found.map(|(line, fields)| entry(line, &fields)).transpose()
}

fn find_name(passwd: &[u8], name: &str) -> Result<Entry> {
    match lines(passwd, PASSWD)?.find(|(_, fields)| fields[0] == name.as_bytes()) {
        Some((line, fields)) => entry(line, &fields),
        None => Err(Error::new(format!("there is no user {name:?} in the image's {PASSWD}"))),
    }
}

fn entry(line: usize, fields: &[&[u8]]) -> Result<Entry> {
    let number = |index: usize| {
        fields.get(index).and_then(|field| valid(field)).ok_or_else(|| {
            Error::new(format!("the image's {PASSWD}, line {line}: field {} is not an id", index + 1))
        })
    };
    let home = fields.get(5).and_then(|home| std::str::from_utf8(home).ok());
    let home = home.filter(|home| home.starts_with('/') && !home.contains('\0')).unwrap_or("/");
    Ok(Entry { name: Some(fields[0].into()), uid: number(2)?, gid: number(3)?, home: home.into() })
}

/// The id of a group that is given as a number or by its name (group(5)).
fn find_group(groups: &[u8], group: &str) -> Result<u32> {
    if let Some(gid) = id(group, "group")? {
        return Ok(gid);
    }
    match lines(groups, GROUP)?.find(|(_, fields)| fields[0] == group.as_bytes()) {
        Some((line, fields)) => gid_of(line, &fields),
        None => Err(Error::new(format!("there is no group {group:?} in the image's {GROUP}"))),
    }
}

fn gid_of(line: usize, fields: &[&[u8]]) -> Result<u32> {
    let gid = fields.get(2).and_then(|field| valid(field));
    gid.ok_or_else(|| Error::new(format!("the image's {GROUP}, line {line}: field 3 is not an id")))
}

/// The groups that `user` is a member of, each once.
fn groups_of(groups: &[u8], user: &[u8]) -> Result<Vec<u32>> {
    let mut gids = std::collections::BTreeSet::new();
    for (line, fields) in lines(groups, GROUP)? {
        let members = fields.get(3).copied().unwrap_or_default();
        if !user.is_empty() && members.split(|byte| *byte == b',').any(|member| member == user) {
            gids.insert(gid_of(line, &fields)?);
        }
    }
    Ok(gids.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    const DEBIAN: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n\
        postgres:x:999:999::/var/lib/postgresql:/bin/bash\n1000:x:7:8::/numeric:/bin/sh\n\
        alice:x:1000:100::/home/alice:\nalice:x:0:0::/second:\n";
    const GROUPS: &str = "root:x:0:\nstaff:x:50:alice,bob\nssl-cert:x:101:postgres\nstaff2:x:50:alice\n\
        alice:x:100:alice\n20:x:21:\n";

    fn find_in(passwd: &[u8], groups: &[u8], text: &str) -> std::result::Result<User, String> {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("etc")).expect("mkdir");
        fs::write(dir.path().join("etc/passwd"), passwd).expect("write");
        fs::write(dir.path().join("etc/group"), groups).expect("write");
        let root = File::open(dir.path()).expect("open");
        User::find(root.as_fd(), text).map_err(|error| error.to_string())
    }

    fn find(text: &str) -> std::result::Result<(u32, u32, Vec<u32>, String), String> {
        let user = find_in(DEBIAN.as_bytes(), GROUPS.as_bytes(), text)?;
        Ok((user.uid, user.gid, user.additional_gids, user.home))
    }

    #[test]
    fn every_form() {
        let good = [
            ("", (0, 0, vec![0], "/root")),
            ("0", (0, 0, vec![0], "/root")),
            ("postgres", (999, 999, vec![999, 101], "/var/lib/postgresql")),
            ("999", (999, 999, vec![999, 101], "/var/lib/postgresql")),
            ("alice", (1000, 100, vec![100, 50], "/home/alice")),
            ("alice:staff", (1000, 50, vec![50], "/home/alice")),
            ("alice:7", (1000, 7, vec![7], "/home/alice")),
            ("1000:staff", (1000, 50, vec![50], "/home/alice")),
            // A user and a group of that name are not looked up.
            ("1000", (1000, 100, vec![100, 50], "/home/alice")),
            ("7:20", (7, 20, vec![20], "/numeric")),
            ("4242", (4242, 0, vec![0], "/")),
            ("4242:4243", (4242, 4243, vec![4243], "/")),
            ("4294967294:4294967294", (4_294_967_294, 4_294_967_294, vec![4_294_967_294], "/")),
        ];
        for (text, (uid, gid, groups, home)) in good {
            assert_eq!(find(text), Ok((uid, gid, groups, home.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_is_no_user() {
        let bad = [
            ("bob", "there is no user \"bob\" in the image's /etc/passwd"),
            ("alice:wheel", "there is no group \"wheel\" in the image's /etc/group"),
            (":0", "not of the form USER[:GROUP]"),
            ("0:", "not of the form USER[:GROUP]"),
            (":", "not of the form USER[:GROUP]"),
            ("0:0:0", "not of the form USER[:GROUP]"),
            ("-1", "-1 is not a user id: those are 0 to 4294967294"),
            ("+1", "+1 is not a user id: those are 0 to 4294967294"),
            ("4294967295", "4294967295 is not a user id: those are 0 to 4294967294"),
            ("4294967296", "4294967296 is not a user id: those are 0 to 4294967294"),
            ("18446744073709551616:0", "18446744073709551616 is not a user id: those are 0 to 4294967294"),
            ("0:4294967296", "4294967296 is not a group id: those are 0 to 4294967294"),
            ("0:-1", "-1 is not a group id: those are 0 to 4294967294"),
            ("0x0", "there is no user \"0x0\" in the image's /etc/passwd"),
            (" 0", "there is no user \" 0\" in the image's /etc/passwd"),
            ("root\n", "there is no user \"root\\n\" in the image's /etc/passwd"),
        ];
        for (text, error) in bad {
            assert_eq!(find(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn hostile_files() {
        let line = |text: &str| find_in(text.as_bytes(), b"", "evil").map(|user| (user.uid, user.gid));
        let field = |field| Err(format!("the image's /etc/passwd, line 1: field {field} is not an id"));
        assert_eq!(line("evil:x:4294967296:0::/:\n"), field(3));
        assert_eq!(line("evil:x:4294967295:0::/:\n"), field(3));
        assert_eq!(line("evil:x:-1:0::/:\n"), field(3));
        assert_eq!(line("evil:x::0::/:\n"), field(3));
        assert_eq!(line("evil\n"), field(3));
        assert_eq!(line("evil:x:5:4294967296::/:\n"), field(4));
        assert_eq!(line("evil:x:5\n"), field(4));
        assert_eq!(line("evil:x:5:6"), Ok((5, 6)));

        let home = |home: &[u8]| {
            let passwd = [b"evil:x:5:6::", home, b":\n"].concat();
            find_in(&passwd, b"", "evil").map(|user| user.home)
        };
        for bad in [&b"rel"[..], b"", b"/a\0b", b"/\xff"] {
            assert_eq!(home(bad), Ok("/".to_owned()), "{bad:?}");
        }

        // Not the first user whose id overflows to it, nor the one whose id isn't one.
        let passwd = b"a:x:4294967296:1::/:\nb:x::2::/:\nc:x:0:3::/:\n";
        assert_eq!(find_in(passwd, b"", "0").map(|user| (user.uid, user.gid)), Ok((0, 3)));
        let group = find_in(b"u:x:1:1::/:\n", b"g:x:4294967296:u\n", "u").map(|user| user.gid);
        assert_eq!(group, Err("the image's /etc/group, line 1: field 3 is not an id".to_owned()));

        let endless = vec![b'\n'; MOST_LINES + 1];
        assert_eq!(
            find_in(DEBIAN.as_bytes(), &endless, "alice").map(|user| user.gid),
            Err("the image's /etc/group has more than 16384 lines".to_owned())
        );
        let huge = vec![b'x'; rootfs::MOST_BYTES as usize + 1];
        assert_eq!(
            find_in(DEBIAN.as_bytes(), &huge, "alice").map(|user| user.gid),
            Err("the image's /etc/group is larger than 1024 KiB".to_owned())
        );
        assert!(find_in(&huge, b"", "0").is_err());
    }

    #[test]
    fn in_a_user_namespace() {
        let range = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let subordinate = Mappings {
            uids: vec![range(0, 1000, 1), range(1, 100_000, 65_536)],
            gids: vec![range(0, 1000, 1), range(1, 100_000, 100)],
        };
        let user = |uid, gid, additional_gids| User { uid, gid, additional_gids, home: "/".into() };
        let mut mapped = user(65_536, 100, vec![100, 50, 101]);
        assert_eq!(mapped.map(&subordinate), Ok(()));
        assert_eq!(mapped.additional_gids, [100, 50]);
        let error = |mut user: User| user.map(&subordinate).expect_err("it isn't mapped").to_string();
        assert!(error(user(65_537, 0, vec![])).starts_with("user id 65537 is not mapped in the user"));
        assert!(error(user(0, 101, vec![])).starts_with("group id 101 is not mapped in the user"));

        let single = Mappings { uids: vec![range(0, 1000, 1)], gids: vec![range(0, 1000, 1)] };
        let mut root = user(0, 0, vec![0, 1, 2]);
        assert_eq!(root.map(&single), Ok(()));
        assert_eq!(root.additional_gids, [0; 0]);
    }
}
