//! Attacks of images on `bundle`: paths that lead out of the root. Each is mounted, and nothing beside
//! OUT may change; what isn't refused stays inside.

use super::bundle_world::{World, row};
use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::image::tar::Entry;
use crate::image::{Image, Layer};
use crate::{ensure, ensure_eq, tests};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

tests![
    "umoci CVE-2021-29136, tar-rs CVE-2018-20990: names that lead upwards" => names_upwards,
    "names that are absolute" => absolute_names,
    "containerd CVE-2021-32760, docker CVE-2018-15664: through links of the same layer" => through_links,
    "umoci CVE-2021-29136: a link below, a file above" => through_links_of_a_lower_layer,
    "umoci CVE-2021-29136: the root is a link" => root_is_a_link,
    "tar-rs CVE-2021-38511: a directory that becomes a link" => directory_becomes_a_link,
    "buildah CVE-2024-11218: loops of links" => loops_of_links,
    "tar-rs CVE-2018-20990: hard links to the host" => hard_links_to_the_host,
    "hard links to what can't be linked" => hard_links_to_nothing,
    "tar-rs CVE-2026-33056: attributes through links" => attributes_through_links,
    "containerd CVE-2021-32760: a hard link to a link, then its attributes" => attributes_through_hard_links,
    "whiteouts that lead upwards, or name nothing" => whiteouts_upwards,
    "whiteouts through links to the host" => whiteouts_through_links,
    "whiteouts: AUFS's own files" => files_of_aufs,
    "overlayfs: what hides files in one" => marks_of_overlay,
    "fifos and devices are not opened" => fifos_and_devices_are_not_opened,
    "containerd CVE-2024-25621: other users reach an image's setuid programs" => setuid_programs_are_out_of_reach,
    "docker CVE-2019-14271: files with the names of the bundle's own" => files_of_the_bundle,
    "control characters in messages" => control_characters,
];

fn file(name: &str) -> Entry {
    Entry::file(name, "hostile").mode(0o777)
}

fn image(layers: &[&[Entry]]) -> Image {
    Image::new(&layers.iter().map(|entries| Layer::of(entries)).collect::<Vec<_>>())
}

/// The image is refused, for the last layer's sake and with these words.
fn refused(world: &World, layers: &[&[Entry]], words: &[&str]) -> Verdict {
    let layer = format!("layer {} (sha256:", layers.len());
    let output = world.bundle_image(&[], &image(layers))?;
    let last = layers.last().and_then(|entries| entries.last()).map(Entry::to_string);
    row(&last.unwrap_or_default(), world.left_nothing(output, &[&[layer.as_str()], words].concat()))
}

/// The image is unpacked, and `path` is in the root: what was to be outside.
fn inside(world: &World, layers: &[&[Entry]], path: &str) -> Verdict {
    let output = world.bundle_image(&[], &image(layers))?.succeeded()?;
    world.unchanged()?;
    let there = world.rootfs().join(path.trim_start_matches('/')).symlink_metadata();
    ensure!(there.is_ok(), "{path} is not inside of the root: {there:?} (stderr: {:?})", output.stderr);
    world.remove_out()
}

/// The image is unpacked.
fn unpacked(world: &World, layers: &[&[Entry]]) -> Verdict {
    inside(world, layers, "")
}

/// Entries for each of the ways out, where a link of the name that they are given leads there.
fn each_way(world: &World, entries: impl Fn(&str, &str) -> Vec<Entry>) -> Vec<Entry> {
    let ways = ways_out(world).into_iter().enumerate();
    ways.flat_map(|(number, target)| entries(&format!("link{number}"), &target)).collect()
}

/// Ways to say where the prize is, from the root of the image.
fn ways_out(world: &World) -> Vec<String> {
    let prize = text(&world.prize);
    vec![
        prize.to_owned(),
        "../../prize".to_owned(),
        format!("../../../../../../../../../../..{prize}"),
        format!("/proc/self/root{prize}"),
        format!("/proc/1/root{prize}"),
        "/proc/self/cwd/../../prize".to_owned(),
        "/proc/self/fd/3".to_owned(),
        "/../../prize".to_owned(),
    ]
}

fn names_upwards(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for name in [
        "../new",
        "../../prize/file",
        "a/../../../prize/file",
        "..",
        "../",
        "./..",
        "a/..",
        "/..",
        "/../../prize/new",
        ".././new",
    ] {
        refused(&world, &[&[file(name)]], &["..", "out of the root"])?;
        refused(&world, &[&[Entry::directory(name)]], &[".."])?;
    }
    refused(&world, &[&[Entry::file("x", "").pax("path", "../new")]], &[".."])?;
    refused(&world, &[&[Entry::file("new", "").patch(345, "..")]], &[".."])?;
    for entry in [
        Entry::symlink("../new", "x"),
        Entry::new(b'6', "../new"),
        Entry::device(b'3', "../new", 1, 3),
        Entry::hard_link("../new", "x"),
    ] {
        refused(&world, &[&[file("x"), entry]], &[".."])?;
    }
    Ok(())
}

fn absolute_names(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize);
    for name in [
        format!("{prize}/file"),
        format!("/{prize}/new"),
        format!("///{prize}/new"),
        "/etc/rtt-hostile".into(),
    ] {
        inside(&world, &[&[file(&name)]], name.trim_start_matches('/'))?;
    }
    ensure!(!fs::exists("/etc/rtt-hostile")?, "/etc/rtt-hostile is on the host");
    Ok(())
}

fn through_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let below = |link: &str| {
        let path = |name: &str| format!("{link}/{name}");
        let mut entries = vec![
            file(&path("file")),
            file(&path("new")),
            file(&path("directory/below")),
            file(&path("sub/new")),
        ];
        entries.extend([
            Entry::directory(path("directory")).mode(0o777),
            Entry::symlink(path("link"), "x"),
            Entry::new(b'6', path("fifo")),
        ]);
        entries
    };
    unpacked(
        &world,
        &[&each_way(&world, |link, target| [vec![Entry::symlink(link, target)], below(link)].concat())],
    )?;
    // By a second link, and with one in the middle.
    let chain = each_way(&world, |link, target| {
        let (last, middle) = (format!("{link}-last"), format!("/{link}-middle"));
        let links = vec![
            Entry::symlink(&last, target),
            Entry::symlink(&middle, &last),
            Entry::symlink(link, &middle),
        ];
        [links, below(link)].concat()
    });
    unpacked(&world, &[&chain])?;
    let middle = each_way(&world, |link, target| {
        [
            vec![Entry::directory(format!("{link}-d")), Entry::symlink(format!("{link}-d/up"), target)],
            below(&format!("{link}-d/up")),
        ]
        .concat()
    });
    unpacked(&world, &[&middle])?;
    // An absolute link is one from the image's root.
    inside(
        &world,
        &[&[Entry::directory("real"), Entry::symlink("link", "/real"), file("link/x")]],
        "real/x",
    )?;
    inside(
        &world,
        &[&[Entry::directory("real"), Entry::symlink("link", "../../real"), file("link/x")]],
        "real/x",
    )
}

fn through_links_of_a_lower_layer(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let lower = each_way(&world, |link, target| vec![Entry::symlink(link, target)]);
    let upper = each_way(&world, |link, _| {
        let path = |name: &str| format!("{link}/{name}");
        let mut entries = vec![
            file(&path("file")),
            file(&path("sub/new")),
            Entry::directory(path("directory")).mode(0o777),
        ];
        entries.extend([
            Entry::symlink(path("link"), "x"),
            Entry::hard_link(format!("{link}-hard"), path("file")),
        ]);
        entries
    });
    unpacked(&world, &[&lower, &upper])?;
    unpacked(&world, &[&lower, &[], &upper])?;
    // Alone, so that nothing was made there before.
    for name in ["file", "new", "directory/below", "link"] {
        unpacked(&world, &[&lower, &each_way(&world, |link, _| vec![file(&format!("{link}/{name}"))])])?;
    }
    for name in ["file", "directory/below"] {
        let hard = [Entry::hard_link("hard", format!("link1/{name}"))];
        world.contains(&image(&[&lower, &hard]))?;
    }
    Ok(())
}

fn root_is_a_link(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize);
    for name in [".", "./", "/", "//", "/."] {
        refused(&world, &[&[Entry::symlink(name, prize), file("file")]], &["root must be a directory"])?;
        refused(&world, &[&[file("x"), Entry::hard_link(name, "x")]], &["root must be a directory"])?;
        refused(&world, &[&[file("x")], &[file(name)]], &["root must be a directory"])?;
    }
    Ok(())
}

/// What the unpacker remembers of a directory must not outlive it.
fn directory_becomes_a_link(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let path = |link: &str, name: &str| format!("{link}/{name}");
    let between = each_way(&world, |link, target| {
        vec![
            Entry::directory(link),
            file(&path(link, "x")),
            Entry::symlink(link, target),
            file(&path(link, "file")),
            file(&path(link, "new")),
        ]
    });
    unpacked(&world, &[&between])?;
    let parent = each_way(&world, |link, target| {
        let (below, x) = (Entry::directory(path(link, "d")), file(&path(link, "d/x")));
        vec![
            below,
            x,
            Entry::symlink(link, target),
            file(&path(link, "d/file")),
            Entry::directory(path(link, "directory")).mode(0o777),
        ]
    });
    unpacked(&world, &[&parent])?;
    let directories =
        each_way(&world, |link, _| vec![Entry::directory(link).mtime(1), file(&path(link, "file"))]);
    let links = each_way(&world, |link, target| vec![Entry::symlink(link, target)]);
    unpacked(&world, &[&[&directories[..], &links].concat()])?;
    unpacked(&world, &[&directories, &links])?;
    unpacked(&world, &[&directories, &links, &directories])?;
    unpacked(&world, &[&directories, &links, &each_way(&world, |link, _| vec![file(&path(link, "file"))])])
}

fn loops_of_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let own = [Entry::symlink("a", "a"), file("a/x")];
    refused(&world, &[&own], &["a", "symbolic links"])?;
    let two = [Entry::symlink("a", "b"), Entry::symlink("b", "a")];
    refused(&world, &[&[&two[..], &[file("a/x")]].concat()], &["symbolic links"])?;
    // 2^n links in n entries.
    let mut many = vec![Entry::directory("l0")];
    many.extend((1..40).map(|n| Entry::symlink(format!("l{n}"), format!("l{}/../l{}", n - 1, n - 1))));
    many.push(file("l39/x"));
    refused(&world, &[&many], &["symbolic links"])?;
    // Links that nobody goes through are what an image may have.
    inside(&world, &[&two], "a")?;
    world.contains(&image(&[&two, &[Entry::file("a/.wh.x", "")]]))?;
    world.contains(&image(&[&two, &[file("b/x")]])).map(drop)
}

fn hard_links_to_the_host(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize);
    let file_there = format!("{prize}/file");
    refused(&world, &[&[Entry::hard_link("h", "../../prize/file")]], &["h", ".."])?;
    refused(&world, &[&[Entry::hard_link("h", "a/../../../prize/file")]], &[".."])?;
    refused(&world, &[&[Entry::hard_link("h", &file_there)]], &["h", &file_there[1..]])?;
    refused(
        &world,
        &[&[
            Entry::file("h", "").pax("linkpath", &file_there),
            Entry::hard_link("h", "x").pax("linkpath", &file_there),
        ]],
        &["h"],
    )?;
    let into = |link: &str| Entry::hard_link(format!("{link}/new"), "x");
    let links = each_way(&world, |link, target| vec![Entry::symlink(link, target)]);
    let intos = each_way(&world, |link, _| vec![into(link)]);
    unpacked(&world, &[&[&[file("x")], &links[..], &intos].concat()])?;
    unpacked(&world, &[&[&[file("x")], &links[..]].concat(), &intos])?;
    for target in ways_out(&world) {
        let (link, last) = (Entry::symlink("link", &target), Entry::hard_link("h", "link/file"));
        // Replaced by what comes after it, it needn't lead anywhere.
        world.contains(&image(&[&[link.clone(), last.clone(), file("h")]]))?;
        refused(&world, &[&[link], &[last]], &["h", "link/file"])?;
    }
    Ok(())
}

fn hard_links_to_nothing(case: &Case) -> Verdict {
    let world = World::new(case)?;
    refused(&world, &[&[Entry::hard_link("h", "missing")]], &["h", "missing"])?;
    refused(&world, &[&[file("x")], &[Entry::hard_link("h", "missing")]], &["h", "missing"])?;
    refused(&world, &[&[Entry::directory("d"), Entry::hard_link("h", "d")]], &["h", "d"])?;
    refused(&world, &[&[Entry::directory("d")], &[Entry::hard_link("h", "d")]], &["h", "d"])?;
    for target in ["", ".", "/"] {
        refused(&world, &[&[Entry::hard_link("h", target)]], &["h"])?;
    }
    // To themselves, and in a circle.
    refused(&world, &[&[Entry::hard_link("h", "h")]], &["h"])?;
    refused(&world, &[&[Entry::hard_link("h", "i"), Entry::hard_link("i", "h")]], &["h"])?;
    inside(&world, &[&[file("h"), Entry::hard_link("h", "h")]], "h")?;
    // What is hidden isn't there any more.
    world.contains(&image(&[&[file("x")], &[Entry::file(".wh.x", ""), Entry::hard_link("h", "x")]])).map(drop)
}

/// What an entry gives to a path must not arrive at what a link of that path leads to.
fn attributes_through_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let hostile = |entry: Entry| {
        entry.mode(0o4777).owner(12, 13).mtime(1).xattr("user.hostile", "1").xattr("trusted.hostile", "1")
    };
    let targets: Vec<String> =
        ways_out(&world).into_iter().flat_map(|way| [format!("{way}/file"), way]).collect();
    let links = |entry: &dyn Fn(&str, &str) -> Entry| -> Vec<Entry> {
        targets
            .iter()
            .enumerate()
            .map(|(number, target)| hostile(entry(&format!("link{number}"), target)))
            .collect()
    };
    let lower = links(&|link, target| Entry::symlink(link, target));
    type Second<'a> = &'a dyn Fn(&str, &str) -> Entry;
    let seconds: [Second; 8] = [
        &|link, target| Entry::symlink(link, target),
        &|link, _| Entry::directory(format!("{link}/")),
        &|link, _| Entry::directory(link),
        &|link, _| Entry::file(link, ""),
        &|link, _| Entry::file(format!("{link}/"), "hostile"),
        &|link, _| Entry::directory(format!("{link}/.")),
        &|link, _| Entry::new(b'6', link),
        &|link, target| Entry::symlink(format!("{link}/"), target),
    ];
    for second in seconds {
        let upper = links(second);
        unpacked(&world, &[&[&lower[..], &upper].concat()])?;
        unpacked(&world, &[&lower, &upper])?;
    }
    Ok(())
}

fn attributes_through_hard_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let target = format!("{}/file", text(&world.prize));
    let link =
        [Entry::symlink("link", &target), Entry::hard_link("hard", "link").mode(0o4777).owner(1, 1).mtime(1)];
    for second in [
        file("hard"),
        Entry::directory("hard/").mode(0o777),
        Entry::hard_link("again", "hard"),
        Entry::file("hard", "x").xattr("user.x", "1"),
    ] {
        world.contains(&image(&[&[&link[..], std::slice::from_ref(&second)].concat()]))?;
        world.contains(&image(&[&link[..], &[second]]))?;
    }
    world.bundle_image(&[], &image(&[&link]))?.succeeded()?;
    ensure!(
        world.rootfs().join("hard").symlink_metadata()?.is_symlink(),
        "a hard link to a link is one to what it leads to"
    );
    world.unchanged()
}

fn whiteouts_upwards(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for name in [".wh...", ".wh..", ".wh.", "d/.wh...", "d/.wh..", "d/.wh.", "./.wh..."] {
        for lower in [&[][..], &[Entry::directory("d"), file("d/x")]] {
            refused(&world, &[lower, &[Entry::file(name, "")]], &["whiteout"])?;
        }
    }
    for name in ["../.wh.prize", "d/../../.wh.prize", "../prize/.wh..wh..opq"] {
        refused(&world, &[&[Entry::directory("d")], &[Entry::file(name, "")]], &[".."])?;
    }
    Ok(())
}

fn whiteouts_through_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let links = each_way(&world, |link, target| vec![Entry::symlink(link, target)]);
    for name in [".wh.file", "directory/.wh.below", ".wh..wh..opq", "directory/.wh..wh..opq", ".wh.link"] {
        let whiteouts = each_way(&world, |link, _| vec![Entry::file(format!("{link}/{name}"), "")]);
        row(name, unpacked(&world, &[&links, &whiteouts]))?;
        row(name, unpacked(&world, &[&[&links[..], &whiteouts].concat()]))?;
    }
    let of_links = each_way(&world, |link, _| vec![Entry::file(format!(".wh.{link}"), "")]);
    unpacked(&world, &[&links, &of_links])
}

fn files_of_aufs(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let layer = [
        Entry::directory(".wh..wh.plnk"),
        Entry::file(".wh..wh.aufs", ""),
        Entry::directory(".wh..wh.orph"),
        Entry::file("x", ""),
    ];
    world.bundle_image(&[], &image(&[&layer]))?.succeeded()?;
    let names: Vec<_> = fs::read_dir(world.rootfs())?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq!(names, ["x"], "entries of the root");
    world.unchanged()
}

/// Devices 0:0 and some attributes hide files in an overlay: a layer must say that by whiteouts only.
fn marks_of_overlay(case: &Case) -> Verdict {
    let lower = [Entry::directory("d"), file("d/x"), file("f"), Entry::directory("e"), file("e/x")];
    let upper = [
        Entry::device(b'3', "f", 0, 0),
        Entry::directory("d").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y"),
        Entry::directory("e").xattr("trusted.overlay.redirect", "/d"),
        Entry::file("m", "x").xattr("trusted.overlay.metacopy", ""),
    ];
    super::bundle_world::look(case, &[&lower, &upper], |tree| {
        tree.directory("d", &["x"])?;
        tree.directory("e", &["x"])?;
        tree.file("m", "x")?;
        ensure!(
            !tree.metadata("f").is_ok_and(|found| found.file_type().is_char_device()),
            "a device 0:0 is there"
        );
        Ok(())
    })
}

fn fifos_and_devices_are_not_opened(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let nodes = |name: &str| {
        [(b'6', 0, 0), (b'3', 1, 1), (b'4', 7, 200), (b'3', 5, 1)]
            .map(|(kind, major, minor)| Entry::device(kind, &format!("{name}{major}"), major, minor))
    };
    let first: Vec<Entry> =
        ["file", "directory", "hard", "fifo"].iter().flat_map(|name| nodes(name)).collect();
    let mut second = vec![file("z")];
    for number in [0, 1, 7, 5] {
        second.extend([
            file(&format!("file{number}")),
            Entry::directory(format!("directory{number}")),
            Entry::hard_link(format!("hard{number}"), "z"),
        ]);
        second.push(Entry::new(b'6', format!("fifo{number}")));
    }
    unpacked(&world, &[&first, &second])?;
    for number in [0, 1, 7, 5] {
        let below = [file(&format!("file{number}/x"))];
        world.contains(&image(&[&[&first[..], &below].concat()]))?;
        world.contains(&image(&[&first, &below]))?;
    }
    world.bundle_image(&[], &image(&[&[&first[..], &second].concat()]))?.succeeded()?;
    ensure!(world.rootfs().join("file0").metadata()?.is_file(), "the file is no file");
    world.unchanged()
}

fn files_of_the_bundle(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let layer = [file("config.json"), file("rootfs"), Entry::directory("out"), file("out/config.json")];
    world.bundle_image(&[], &image(&[&layer]))?.succeeded()?;
    world.unchanged()?;
    let config = fs::read_to_string(world.out().join("config.json"))?;
    ensure!(config.contains("ociVersion"), "config.json is the image's: {config:?}");
    ensure_eq!(fs::read_to_string(world.rootfs().join("config.json"))?, "hostile", "the image's own");
    ensure_eq!(fs::metadata(world.rootfs().join("rootfs"))?.mode() & 0o7777, 0o777, "its mode");
    Ok(())
}

fn setuid_programs_are_out_of_reach(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let store = world.directory.join("store");
    let store = store.to_string_lossy();
    for options in [&[][..], &["--store", &store, "--overlay"]] {
        world.bundle_image(options, &image(&[&[file("su").mode(0o4755)]]))?.succeeded()?;
        ensure_eq!(fs::metadata(world.out())?.mode() & 0o7777, 0o700, "the bundle's mode with {options:?}");
        world.remove_out()?;
    }
    for entry in fs::read_dir(format!("{store}/root"))? {
        let (path, mode) = entry.map(|entry| (entry.path(), entry.metadata().map(|data| data.mode())))?;
        let directory = path.is_dir();
        ensure!(!directory || mode? & 0o077 == 0, "others reach {path:?}");
    }
    Ok(())
}

fn control_characters(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for name in ["../\u{1b}[31mred\nlevel=error", "\u{1b}[31m/../x"] {
        let output = world.bundle_image(&[], &image(&[&[file(name)]]))?.failed_with(&[".."])?;
        ensure!(!output.stderr.contains('\u{1b}'), "an escape sequence in {:?}", output.stderr);
        ensure_eq!(output.stderr.trim().lines().count(), 1, "lines of {:?}", output.stderr);
    }
    Ok(())
}
