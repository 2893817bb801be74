//! The option strings of `mounts[].options` (config.md, "Linux mount options").

use crate::sys::mount::{self, Depth, MountAttr};
use libc::c_ulong;
use nix::sys::statvfs::FsFlags;
use std::fmt;
use std::os::fd::BorrowedFd;

/// What a list of options asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`, which make it a bind mount whatever its type says.
    pub bind: Option<Depth>,
    /// `remount`.
    pub remount: bool,
    /// MS_* that are set …
    pub set: c_ulong,
    /// … and that are cleared.
    pub clear: c_ulong,
    /// Propagation types, in order.
    pub propagation: Vec<(c_ulong, Depth)>,
    /// MOUNT_ATTR_* for the mount and all below it, where any is given.
    pub recursive: Option<MountAttr>,
    /// `idmap` or `ridmap`.
    pub idmap: Option<Depth>,
    /// `tmpcopyup`.
    pub copy_up: bool,
    /// What is left for the file system, separated by commas.
    pub data: String,
}

/// Flags of a mount and what mount(2) and mount_setattr(2) call them. RELATIME is the zero of the
/// access time's enumeration.
const ATTRIBUTES: [(c_ulong, u64); 9] = [
    (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (libc::MS_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
    (libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    (libc::MS_RELATIME, libc::MOUNT_ATTR_RELATIME),
];

/// The flags of the access time, of which a mount has one, and NODIRATIME beside it.
const ATIME: c_ulong = libc::MS_NOATIME | libc::MS_STRICTATIME | libc::MS_RELATIME | libc::MS_NODIRATIME;

/// The flags that a mount has, as opposed to a file system.
const PER_MOUNT: c_ulong =
    libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOSYMFOLLOW | ATIME;

/// Options that set (true) or clear (false) a flag.
const FLAGS: [(&str, c_ulong, bool); 31] = [
    ("async", libc::MS_SYNCHRONOUS, false),
    ("atime", libc::MS_NOATIME, false),
    ("dev", libc::MS_NODEV, false),
    ("diratime", libc::MS_NODIRATIME, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("iversion", libc::MS_I_VERSION, true),
    ("lazytime", libc::MS_LAZYTIME, true),
    ("loud", libc::MS_SILENT, false),
    ("mand", libc::MS_MANDLOCK, true),
    ("noatime", libc::MS_NOATIME, true),
    ("nodev", libc::MS_NODEV, true),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("noexec", libc::MS_NOEXEC, true),
    ("noiversion", libc::MS_I_VERSION, false),
    ("nolazytime", libc::MS_LAZYTIME, false),
    ("nomand", libc::MS_MANDLOCK, false),
    ("norelatime", libc::MS_RELATIME, false),
    ("nostrictatime", libc::MS_STRICTATIME, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("nosymfollow", libc::MS_NOSYMFOLLOW, true),
    ("relatime", libc::MS_RELATIME, true),
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("silent", libc::MS_SILENT, true),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("suid", libc::MS_NOSUID, false),
    ("symfollow", libc::MS_NOSYMFOLLOW, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("defaults", 0, true),
    ("remount", 0, true),
];

/// Options of the propagation (mount_namespaces(7)).
const PROPAGATION: [(&str, c_ulong, Depth); 8] = [
    ("private", libc::MS_PRIVATE, Depth::Mount),
    ("rprivate", libc::MS_PRIVATE, Depth::Tree),
    ("shared", libc::MS_SHARED, Depth::Mount),
    ("rshared", libc::MS_SHARED, Depth::Tree),
    ("slave", libc::MS_SLAVE, Depth::Mount),
    ("rslave", libc::MS_SLAVE, Depth::Tree),
    ("unbindable", libc::MS_UNBINDABLE, Depth::Mount),
    ("runbindable", libc::MS_UNBINDABLE, Depth::Tree),
];

/// Options whose counterparts with `r` before them hold for all mounts below as well.
const RECURSIVE: [(&str, u64, bool); 18] = [
    ("rro", libc::MOUNT_ATTR_RDONLY, true),
    ("rrw", libc::MOUNT_ATTR_RDONLY, false),
    ("rnosuid", libc::MOUNT_ATTR_NOSUID, true),
    ("rsuid", libc::MOUNT_ATTR_NOSUID, false),
    ("rnodev", libc::MOUNT_ATTR_NODEV, true),
    ("rdev", libc::MOUNT_ATTR_NODEV, false),
    ("rnoexec", libc::MOUNT_ATTR_NOEXEC, true),
    ("rexec", libc::MOUNT_ATTR_NOEXEC, false),
    ("rnodiratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("rdiratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("rrelatime", libc::MOUNT_ATTR_RELATIME, true),
    ("rnorelatime", libc::MOUNT_ATTR_RELATIME, false),
    ("rnoatime", libc::MOUNT_ATTR_NOATIME, true),
    ("ratime", libc::MOUNT_ATTR_NOATIME, false),
    ("rstrictatime", libc::MOUNT_ATTR_STRICTATIME, true),
    ("rnostrictatime", libc::MOUNT_ATTR_STRICTATIME, false),
    ("rnosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
    ("rsymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
];

/// The rest that isn't for the file system.
const OTHERS: [&str; 5] = ["bind", "rbind", "idmap", "ridmap", "tmpcopyup"];

/// All options that damda knows, sorted, for `features`.
pub fn known() -> Vec<&'static str> {
    let mut names: Vec<_> = FLAGS.iter().map(|(name, ..)| *name).collect();
    names.extend(PROPAGATION.iter().map(|(name, ..)| *name));
    names.extend(RECURSIVE.iter().map(|(name, ..)| *name));
    names.extend(OTHERS);
    names.sort_unstable();
    names
}

/// A propagation type by its name, as in `linux.rootfsPropagation`.
pub fn propagation(name: &str) -> Option<(c_ulong, Depth)> {
    PROPAGATION.iter().find(|(other, ..)| *other == name).map(|&(_, flag, depth)| (flag, depth))
}

/// The words for flags of mount(2), such as `ro`.
fn words(flags: c_ulong, sets: bool) -> impl Iterator<Item = &'static str> {
    FLAGS.iter().filter(move |(_, flag, set)| *set == sets && flags & flag != 0).map(|(name, ..)| *name)
}

/// The words for attributes of mount_setattr(2) on a mount and all below it, such as `rro`.
fn recursive_words(attr: MountAttr) -> impl Iterator<Item = &'static str> {
    let (set, clear) = (attr.attr_set, attr.attr_clr & !libc::MOUNT_ATTR__ATIME);
    let asked = move |flag: u64, sets: bool| if sets { set & flag != 0 } else { clear & flag != 0 };
    RECURSIVE.iter().filter(move |(_, flag, sets)| asked(*flag, *sets)).map(|(name, ..)| *name)
}

/// The word for a propagation type, such as `rslave`.
pub fn propagation_word(flag: c_ulong, depth: Depth) -> &'static str {
    PROPAGATION.iter().find(|(_, other, of)| (*other, *of) == (flag, depth)).map_or("?", |(name, ..)| *name)
}

/// What is asked for, in the words of the configuration, after the last of two that contradict each
/// other has won.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<&'static str> = words(self.set, true).chain(words(self.clear, false)).collect();
        all.extend(self.propagation.iter().map(|&(flag, depth)| propagation_word(flag, depth)));
        all.extend(self.recursive.into_iter().flat_map(recursive_words));
        all.extend(self.idmap.map(|_| "idmap"));
        all.extend(self.copy_up.then_some("tmpcopyup"));
        let comma = if all.is_empty() || self.data.is_empty() { "" } else { "," };
        write!(f, "{}{comma}{}", all.join(","), self.data)
    }
}

impl Options {
    /// Reads a list of options; a later one overrides an earlier one.
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    /// Gives a mount its propagation types, one after the other.
    pub fn propagate(&self, mounted: BorrowedFd<'_>) -> crate::sys::Result<()> {
        self.propagation.iter().try_for_each(|&(propagation, depth)| {
            mount::set_attributes(mounted, depth, &MountAttr { propagation, ..MountAttr::default() })
        })
    }

    fn add(&mut self, option: &str) {
        if let Some(&(_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            let (to, from) =
                if set { (&mut self.set, &mut self.clear) } else { (&mut self.clear, &mut self.set) };
            *to |= flag;
            *from &= !flag;
            self.remount |= option == "remount";
        } else if let Some(propagation) = propagation(option) {
            self.propagation.push(propagation);
        } else if let Some(&(_, flag, set)) = RECURSIVE.iter().find(|(name, ..)| *name == option) {
            self.add_recursive(flag, set);
        } else {
            match option {
                "bind" => self.bind = Some(Depth::Mount),
                "rbind" => self.bind = Some(Depth::Tree),
                "idmap" => self.idmap = Some(Depth::Mount),
                "ridmap" => self.idmap = Some(Depth::Tree),
                "tmpcopyup" => self.copy_up = true,
                _ => {
                    if !self.data.is_empty() {
                        self.data.push(',');
                    }
                    self.data.push_str(option);
                }
            }
        }
    }

    fn add_recursive(&mut self, flag: u64, set: bool) {
        let attr = self.recursive.get_or_insert_default();
        if flag & libc::MOUNT_ATTR__ATIME == flag {
            // The access time is one of three values, not three flags: the kernel wants the whole
            // field cleared before one is set.
            attr.attr_clr |= libc::MOUNT_ATTR__ATIME;
            attr.attr_set &= !libc::MOUNT_ATTR__ATIME;
            if set {
                attr.attr_set |= flag;
            }
        } else if set {
            attr.attr_set |= flag;
            attr.attr_clr &= !flag;
        } else {
            attr.attr_clr |= flag;
            attr.attr_set &= !flag;
        }
    }

    /// The attributes for a bind mount; None where no option asks for a change.
    ///
    /// As `mount --bind -o …` does and runc after it, they are all of them: a flag that the source
    /// has and the options don't name is cleared. But for the access time, which stays unless an
    /// option sets it.
    pub fn bind_attributes(&self) -> Option<MountAttr> {
        if (self.set | self.clear) & PER_MOUNT == 0 {
            return None;
        }
        let mut attr = self.named_attributes();
        let others = PER_MOUNT & !ATIME & !self.set;
        attr.attr_clr |=
            ATTRIBUTES.iter().filter(|(flag, _)| others & flag != 0).map(|(_, attr)| attr).sum::<u64>();
        // Of the access time only a new way counts, all of it; to take one back changes nothing.
        let access_time = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
        if self.set & ATIME == 0 {
            attr.attr_clr &= !access_time;
        } else {
            attr.attr_clr |= access_time;
        }
        Some(attr)
    }

    /// Whether the options set another way of keeping the access time than a mount with these flags has.
    pub fn changes_access_time(&self, has: FsFlags) -> bool {
        if self.set & ATIME == 0 {
            return false;
        }
        let never = self.set & libc::MS_NOATIME != 0 && self.set & libc::MS_STRICTATIME == 0;
        let no_directories = self.set & libc::MS_NODIRATIME != 0;
        // musl doesn't tell relatime from strictatime, of which neither hides more than the other.
        (never, no_directories) != (has.contains(FsFlags::ST_NOATIME), has.contains(FsFlags::ST_NODIRATIME))
    }

    /// Only what the options name: for a mount whose other flags are locked, as all are that a
    /// user namespace got from its parent.
    pub fn named_attributes(&self) -> MountAttr {
        let of = |flags: c_ulong| {
            ATTRIBUTES.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |attrs, (_, attr)| attrs | attr)
        };
        let mut attr = MountAttr { attr_set: of(self.set), attr_clr: of(self.clear), ..MountAttr::default() };
        if self.set & ATIME & !libc::MS_NODIRATIME != 0 || attr.attr_clr & libc::MOUNT_ATTR__ATIME != 0 {
            attr.attr_clr |= libc::MOUNT_ATTR__ATIME;
        }
        attr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn every_option_of_the_specification_is_known() {
        let specified = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime \
            nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
            ratime rbind rdev rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime \
            rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid \
            rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable idmap \
            ridmap";
        for option in specified.split_whitespace() {
            assert!(known().contains(&option), "{option}");
            assert_eq!(parse(&[option]).data, "", "{option} is not for the file system");
        }
    }

    #[test]
    fn the_last_word_counts() {
        let options = parse(&["ro", "nosuid", "rw", "mode=755", "size=1k"]);
        assert_eq!((options.set, options.clear), (libc::MS_NOSUID, libc::MS_RDONLY));
        assert_eq!(options.data, "mode=755,size=1k");
    }

    #[test]
    fn a_bind_mount_gets_all_its_attributes_or_none() {
        assert_eq!(parse(&["rbind", "rprivate"]).bind_attributes(), None);
        let attr = parse(&["bind", "ro"]).bind_attributes().expect("a change");
        assert_eq!(attr.attr_set, libc::MOUNT_ATTR_RDONLY);
        let others = libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOSYMFOLLOW;
        assert_eq!(attr.attr_clr, others);
        let attr = parse(&["bind", "rw"]).bind_attributes().expect("a change");
        assert_eq!((attr.attr_set, attr.attr_clr), (0, others | libc::MOUNT_ATTR_RDONLY));
    }

    #[test]
    fn the_access_time_is_one_field() {
        let attr = parse(&["bind", "noatime"]).named_attributes();
        assert_eq!((attr.attr_set, attr.attr_clr), (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME));
        let attr = parse(&["rnoatime", "rstrictatime", "rro"]).recursive.expect("given");
        assert_eq!(attr.attr_set, libc::MOUNT_ATTR_STRICTATIME | libc::MOUNT_ATTR_RDONLY);
        assert_eq!(attr.attr_clr, libc::MOUNT_ATTR__ATIME);
    }
}
