//! `mounts`.

use super::changes::{Changes, ImageVolume, Network, destination_within};
use super::rootfs;
use super::spec::Mount;
use super::user::{Mappings, is_mapped};
use crate::error::{Context, Error, Result};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// The group of terminals, on Linux everywhere.
const TTY: u32 = 5;

/// The mounts after those that the caller puts first, and in words what people should know of them.
///
/// Docker's default ones, but for those whose place `--volume` takes; then the image's volumes and those
/// of the command line, the upper ones of two first.
pub fn mounts(
    volumes: &[String],
    rootfs: BorrowedFd<'_>,
    changes: &Changes,
    mappings: Option<&Mappings>,
) -> Result<(Vec<Mount>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut taken = Vec::new();
    let mut given = Vec::new();
    for volume in &changes.volume {
        let at = || format!("--volume {}:{}", volume.source, volume.destination);
        std::fs::metadata(&volume.source).doing(at)?;
        if taken.contains(&normal(&volume.destination)) {
            return Err(Error::new("something else is mounted there already").prefix(at()));
        }
        taken.push(normal(&volume.destination));
        if volume.relabel {
            notes.push(format!("{}: z, Z: files aren't labelled for SELinux", at()));
        }
        let options = volume.options.iter().map(String::as_str).collect::<Vec<_>>();
        given.push(mount(&volume.destination, "bind", &volume.source, &options));
    }
    if changes.image_volume == ImageVolume::Tmpfs {
        for volume in volumes.iter().filter(|volume| !taken.contains(&normal(volume))) {
            given.push(image_volume(volume, rootfs, mappings).map_err(|error| {
                let error = error.prefix(format!("the image's volume {volume:?}"));
                error.hint("--image-volume ignore leaves it out")
            })?);
            notes.push(format!(
                "the image's volume {volume} is a tmpfs, in memory: what is written there is gone with the \
                 container (--volume DIR:{volume} keeps it)"
            ));
        }
    }
    given.sort_by_key(|mount| normal(&mount.destination).matches('/').count());
    // What takes /dev's place brings its own /dev/pts, if any, as under Docker.
    let replaced = |mount: &Mount| {
        let dev = mount.destination.starts_with("/dev/") && taken.iter().any(|taken| taken == "/dev");
        dev || taken.contains(&mount.destination)
    };
    let mut mounts = defaults(changes, mappings);
    mounts.retain(|mount| !replaced(mount));
    mounts.append(&mut given);
    Ok((mounts, notes))
}

/// Without doubled slashes, `.` and one at the end.
fn normal(path: &str) -> String {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(|name| format!("/{name}")).collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { destination: destination.into(), kind: kind.into(), source: source.into(), options }
}

/// Docker's, with podman's two files for the host's network.
fn defaults(changes: &Changes, mappings: Option<&Mappings>) -> Vec<Mount> {
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    pts.extend(mappings.is_none_or(|mappings| is_mapped(&mappings.gids, TTY)).then_some("gid=5"));
    // A sysfs shows a network namespace, and is mounted by who owns that.
    let sys = match (&changes.network, mappings) {
        (Network::None, _) | (_, None) => {
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])
        }
        _ => mount("/sys", "bind", "/sys", &["rbind", "rslave", "nosuid", "noexec", "nodev", "rro"]),
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    if changes.network == Network::Host {
        let names = ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|path| Path::new(path).exists());
        mounts.extend(names.map(|path| mount(path, "bind", path, &["bind", "rprivate", "ro"])));
    }
    mounts
}

/// A tmpfs that begins with what the image has there, the owner and the mode of the directory among it, as
/// Docker's anonymous volumes do. One more directory of the host, as Docker keeps them, would be hidden
/// state: who wants the data names a directory for it.
fn image_volume(volume: &str, rootfs: BorrowedFd<'_>, mappings: Option<&Mappings>) -> Result<Mount> {
    destination_within(volume).map_err(Error::new)?;
    let normal = normal(volume);
    let own = ["/proc", "/sys", "/dev"]
        .into_iter()
        .find(|own| normal.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if let Some(own) = own {
        return Err(Error::new(format!("it would hide a part of {own}")));
    }
    let mut options: Vec<String> = ["nosuid", "nodev", "tmpcopyup"].map(str::to_owned).into();
    match rootfs::directory(rootfs, volume)? {
        None => options.push("mode=755".into()),
        Some(stat) => {
            // In the container's user namespace, or one like it, as this process is.
            let uid = mappings.is_none_or(|mappings| is_mapped(&mappings.uids, stat.st_uid));
            let gid = mappings.is_none_or(|mappings| is_mapped(&mappings.gids, stat.st_gid));
            options.push(format!("mode={:o}", stat.st_mode & 0o7777));
            options.extend(uid.then(|| format!("uid={}", stat.st_uid)));
            options.extend(gid.then(|| format!("gid={}", stat.st_gid)));
        }
    }
    Ok(Mount { destination: volume.into(), kind: "tmpfs".into(), source: "tmpfs".into(), options })
}

#[cfg(test)]
mod tests {
    use super::super::spec::IdMapping;
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    fn list(volumes: &[&str], changes: &Changes, mappings: Option<&Mappings>) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("data")).expect("mkdir");
        let root = File::open(dir.path()).expect("open");
        let volumes: Vec<_> = volumes.iter().map(|volume| (*volume).to_owned()).collect();
        let (mounts, _) = mounts(&volumes, root.as_fd(), changes, mappings)?;
        let line = |mount: &Mount| {
            format!("{} {} {} {}", mount.kind, mount.source, mount.destination, mount.options.join(","))
        };
        Ok(mounts.iter().map(line).collect())
    }

    fn volume(text: &str) -> Changes {
        Changes { volume: vec![text.parse().expect("it parses")], ..Changes::default() }
    }

    #[test]
    fn volumes_take_the_place_of_others() {
        let plain = list(&[], &Changes::default(), None).expect("mounts");
        assert_eq!(plain.len(), 7);
        let dev = list(&[], &volume("/dev:/dev"), None).expect("mounts");
        assert_eq!(dev.len(), 4);
        assert_eq!(dev[3], "bind /dev /dev rbind,rprivate");
        let data = list(&["/data/"], &volume("/usr:/data:ro"), None).expect("mounts");
        assert_eq!(data[7..], ["bind /usr /data rbind,rprivate,rro"]);
        let nested = list(&["/data"], &volume("/usr:/data/usr"), None).expect("mounts");
        assert!(
            nested[7].starts_with("tmpfs tmpfs /data nosuid,nodev,tmpcopyup,mode=755,uid="),
            "{nested:?}"
        );
        assert!(nested[8].starts_with("bind /usr /data/usr"), "{nested:?}");
        let ignored = Changes { image_volume: ImageVolume::Ignore, ..Changes::default() };
        assert_eq!(list(&["/data", "/proc"], &ignored, None).expect("mounts").len(), 7);
    }

    #[test]
    fn errors_name_the_volume() {
        fn error(volumes: &[&str], changes: &Changes) -> String {
            list(volumes, changes, None).expect_err("it can't be").to_string()
        }
        let none = Changes::default();
        assert_eq!(
            error(&[], &volume("/no/such:/data")),
            "--volume /no/such:/data: no such file or directory"
        );
        let mut twice = volume("/usr:/data");
        twice.volume.push("/etc:/data/.".parse().expect("it parses"));
        assert!(error(&[], &twice).starts_with("--volume /etc:/data/.: something else is mounted"));
        for bad in ["/", "//.", "data", "", "/../x", "/proc", "/sys/fs", "/dev/shm", "/a\0b"] {
            let error = error(&[bad], &none);
            assert!(error.starts_with("the image's volume"), "{error}");
            assert!(error.ends_with("(--image-volume ignore leaves it out)"), "{error}");
        }
    }

    #[test]
    fn without_the_ids_and_the_network() {
        let one = |id| vec![IdMapping { container_id: 0, host_id: id, size: 1 }];
        let mappings = Mappings { uids: one(7), gids: one(8) };
        let host = Changes { network: Network::Host, ..Changes::default() };
        let all = list(&["/data"], &host, Some(&mappings)).expect("mounts").join("\n");
        assert!(!all.contains("gid=5"), "{all}");
        assert!(all.contains("bind /sys /sys rbind,rslave,nosuid,noexec,nodev,rro"), "{all}");
        let own = list(&[], &Changes::default(), Some(&mappings)).expect("mounts").join("\n");
        assert!(own.contains("sysfs sysfs /sys"), "{own}");
        let host = list(&[], &host, None).expect("mounts").join("\n");
        assert!(host.contains("sysfs sysfs /sys"), "{host}");
    }
}
