//! What one entry of a layer means: its type, name, owner, times, attributes, holes.

use super::bundle_world::{Tree, Way, World, look, look_at_image, needs_user_attributes};
use crate::case::Case;
use crate::harness::Verdict;
use crate::image::tar::{BLOCK, Entry, Format, Sparse, archive, base256, global, number, sparse, unended};
use crate::image::{Image, Layer, Packing, descriptor, gzip, tagged};
use crate::{ensure, ensure_eq, tests};
use std::os::unix::fs::MetadataExt;

tests![
    "image-spec layer.md, File Types" => types,
    "image-spec layer.md, File Types: the old formats'" => old_types,
    "image-spec layer.md, File Attributes: mode" => modes,
    "image-spec layer.md, File Attributes: uid, gid" => owners,
    "image-spec layer.md, File Attributes: mtime" => times,
    "image-spec layer.md, File Attributes: mtime of directories, whatever the order" => directory_times,
    "image-spec layer.md, File Attributes: xattrs" => attributes,
    "security-relevant xattrs are dropped, and that is said" => dropped_attributes,
    "image-spec layer.md, Attributes for hole-y files" => holes,
    "tar(5), sparse: the map goes on after the header" => many_holes,
    "tar(5): long names, by GNU and PAX" => long_names,
    "tar(5): prefix of ustar" => prefixes,
    "tar(5): names of any bytes" => names_of_any_bytes,
    "tar(5): ./ and trailing slashes" => spellings,
    "tar(5), PAX: path and linkpath replace the header's" => pax_names,
    "tar(5), PAX: global headers" => global_headers,
    "tar(5): base-256 numbers" => base256_numbers,
    "RFC 1952, 2.2: a series of members" => gzip_members,
    "RFC 8878, 3.1: concatenated frames, skippable frames" => zstd_frames,
    "tar(5): no end, more than an end" => ends,
    "image-spec manifest.md, layers: media types of Docker" => docker_media_types,
];

fn types(case: &Case) -> Verdict {
    let layer = [
        Entry::directory("directory"),
        Entry::file("file", "content"),
        Entry::symlink("symlink", "/no/such"),
        Entry::new(b'6', "fifo").mode(0o622).owner(1, 2),
        Entry::device(b'3', "null", 1, 3).mode(0o666),
        Entry::device(b'4', "block", 259, 300_000).mode(0o660).owner(0, 6),
        Entry::hard_link("hard", "file"),
        Entry::file("empty", ""),
        Entry::file("block-long", [7; BLOCK]),
        Entry::file("large", vec![9; 700_001]),
    ];
    look(case, &[&layer], |tree| {
        tree.directory("directory", &[])?;
        tree.symlink("symlink", "/no/such")?;
        tree.file("hard", "content")?;
        tree.file("empty", "")?;
        tree.file("block-long", [7; BLOCK])?;
        tree.file("large", vec![9; 700_001])?;
        for (path, kind, device) in [
            ("fifo", libc::S_IFIFO, 0),
            ("null", libc::S_IFCHR, libc::makedev(1, 3)),
            ("block", libc::S_IFBLK, libc::makedev(259, 300_000)),
        ] {
            let found = tree.metadata(path)?;
            ensure_eq!((found.mode() & libc::S_IFMT, found.rdev()), (kind, device), "type of {path:?}");
        }
        tree.mode("fifo", 0o622, 1, 2)?;
        tree.mode("null", 0o666, 0, 0)?;
        tree.mode("block", 0o660, 0, 6)
    })
}

fn old_types(case: &Case) -> Verdict {
    let layer = [
        Entry::new(0, "nul").data("old").format(Format::V7),
        Entry::new(b'7', "contiguous").data("content"),
        Entry::new(0, "slash/").mode(0o750).format(Format::V7),
        Entry::symlink("link", "nul").format(Format::V7),
        Entry::hard_link("hard", "nul").format(Format::V7),
        Entry::file("gnu", "gnu").format(Format::Gnu).owner(7, 8),
    ];
    look(case, &[&layer], |tree| {
        tree.file("nul", "old")?;
        tree.file("contiguous", "content")?;
        tree.directory("slash", &[])?;
        tree.mode("slash", 0o750, 0, 0)?;
        tree.symlink("link", "nul")?;
        tree.linked(&["hard", "nul"])?;
        tree.mode("gnu", 0o644, 7, 8)
    })
}

fn modes(case: &Case) -> Verdict {
    let modes = [0o000, 0o400, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o222];
    let files = modes.map(|mode| Entry::file(format!("f{mode:o}"), "x").mode(mode).owner(3, 4));
    let directories = modes.map(|mode| Entry::directory(format!("d{mode:o}")).mode(mode).owner(5, 6));
    // The type's bits, which some archivers write into the mode.
    let full = [Entry::file("full", "").mode(libc::S_IFREG | 0o4711), Entry::file("d0/inside", "")];
    look(case, &[&files, &directories, &full], |tree| {
        for mode in modes {
            tree.mode(format!("f{mode:o}"), mode, 3, 4)?;
            tree.mode(format!("d{mode:o}"), mode, 5, 6)?;
        }
        tree.file("d0/inside", "")?;
        tree.mode("full", 0o4711, 0, 0)
    })
}

fn owners(case: &Case) -> Verdict {
    let layer = [
        Entry::file("root", ""),
        Entry::file("octal", "").owner(2_097_151, 65534),
        Entry::file("base256", "").owner(2_097_152, 4_294_967_294).format(Format::Gnu),
        Entry::file("pax", "").pax("uid", "4294967294").pax("gid", "3000000000"),
        Entry::symlink("link", "none").owner(12, 13),
        // Names of owners are of another machine's, and don't count.
        Entry::file("named", "").owner(14, 15).patch(265, "daemon").patch(297, "daemon").pax("uname", "bin"),
    ];
    look(case, &[&layer], |tree| {
        tree.mode("root", 0o644, 0, 0)?;
        tree.mode("octal", 0o644, 2_097_151, 65534)?;
        tree.mode("base256", 0o644, 2_097_152, 4_294_967_294)?;
        tree.mode("pax", 0o644, 4_294_967_294, 3_000_000_000)?;
        tree.mode("named", 0o644, 14, 15)?;
        let link = tree.metadata("link")?;
        ensure_eq!((link.uid(), link.gid()), (12, 13), "owner of the link");
        Ok(())
    })
}

fn times(case: &Case) -> Verdict {
    let layer = [
        Entry::file("zero", "").mtime(0),
        Entry::file("old", "").mtime(-86_400),
        Entry::file("future", "").mtime(8_600_000_000).format(Format::Gnu),
        Entry::file("fraction", "").pax("mtime", "1500000001.123456789"),
        Entry::file("short", "").pax("mtime", "1500000001.5"),
        Entry::file("fine", "").pax("mtime", "1500000001.1234567891"),
        Entry::file("negative", "").pax("mtime", "-1.25"),
        Entry::directory("directory").pax("mtime", "1500000002.000000001"),
        Entry::file("directory/x", ""),
        Entry::symlink("link", "none").pax("mtime", "1500000003.000000003"),
        Entry::new(b'6', "fifo").mtime(5),
        Entry::device(b'3', "device", 1, 3).mtime(6),
    ];
    look(case, &[&layer], |tree| {
        tree.mtime("zero", 0, 0)?;
        tree.mtime("old", -86_400, 0)?;
        // Some file systems end in 2038, or before.
        let file = std::fs::File::create(tree.path("latest"))?;
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(8_600_000_000))?;
        tree.mtime("future", file.metadata()?.mtime(), 0)?;
        tree.mtime("fraction", 1_500_000_001, 123_456_789)?;
        tree.mtime("short", 1_500_000_001, 500_000_000)?;
        tree.mtime("fine", 1_500_000_001, 123_456_789)?;
        tree.mtime("negative", -2, 750_000_000)?;
        tree.mtime("directory", 1_500_000_002, 1)?;
        tree.mtime("link", 1_500_000_003, 3)?;
        tree.mtime("fifo", 5, 0)?;
        tree.mtime("device", 6, 0)
    })
}

fn directory_times(case: &Case) -> Verdict {
    let lower = [
        Entry::file("first/x", ""),
        Entry::directory("first").mtime(1),
        Entry::directory("first/sub").mtime(2),
        Entry::file("first/sub/y", ""),
        Entry::directory("last").mtime(3),
        Entry::file("last/x", ""),
        Entry::directory("hidden").mtime(4),
        Entry::file("hidden/x", ""),
        Entry::directory("./").mtime(5),
        Entry::directory("linked").mtime(6),
        Entry::hard_link("linked/x", "last/x"),
    ];
    let upper = [
        Entry::file("last/.wh.x", ""),
        Entry::file("first/sub/.wh..wh..opq", ""),
        Entry::file("linked/n", ""),
    ];
    look(case, &[&lower, &upper], |tree| {
        for (path, time) in
            [("first", 1), ("first/sub", 2), ("last", 3), ("hidden", 4), ("", 5), ("linked", 6)]
        {
            tree.mtime(path, time, 0)?;
        }
        tree.directory("last", &[])
    })
}

/// `cap_net_raw+ep`, in version 2.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`.
fn acl() -> Vec<u8> {
    let entries =
        [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
    let bytes = entries.iter().flat_map(|(tag, permissions, id)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    2u32.to_le_bytes().into_iter().chain(bytes).collect()
}

fn attributes(case: &Case) -> Verdict {
    needs_user_attributes(case)?;
    let layer = [
        Entry::file("capable", "x").mode(0o755).owner(1, 1).xattr("security.capability", CAPABILITY),
        Entry::file("user", "x")
            .xattr("user.one", "1")
            .xattr("user.two", b"\x00\xff")
            .xattr("user.empty", ""),
        Entry::file("acl", "x").mode(0o640).xattr("system.posix_acl_access", acl()),
        Entry::directory("d").mode(0o750).xattr("system.posix_acl_default", acl()).xattr("user.d", "d"),
        Entry::file("d/x", "").mode(0o666),
        Entry::file("read-only", "").mode(0o400).xattr("user.one", "1"),
        Entry::file("libarchive", "x").pax("LIBARCHIVE.xattr.user.b64", "AP8="),
        Entry::file("equals", "x").xattr("user.a", "b=c\nd"),
    ];
    let is = |tree: &Tree, path: &str, name: &str, value: &[u8]| -> Verdict {
        ensure_eq!(tree.xattr(path, name)?.as_deref(), Some(value), "{name} of {path:?}");
        Ok(())
    };
    look(case, &[&layer], |tree| {
        is(tree, "capable", "security.capability", CAPABILITY)?;
        is(tree, "user", "user.one", b"1")?;
        is(tree, "user", "user.two", b"\x00\xff")?;
        is(tree, "user", "user.empty", b"")?;
        is(tree, "acl", "system.posix_acl_access", &acl())?;
        tree.mode("acl", 0o640, 0, 0)?;
        is(tree, "d", "system.posix_acl_default", &acl())?;
        is(tree, "d", "user.d", b"d")?;
        // What the directory would give to new files isn't what the image says of this one.
        ensure_eq!(tree.xattr("d/x", "system.posix_acl_access")?, None, "an ACL of the directory's");
        tree.mode("d/x", 0o666, 0, 0)?;
        is(tree, "read-only", "user.one", b"1")?;
        is(tree, "equals", "user.a", b"b=c\nd")
    })
}

fn dropped_attributes(case: &Case) -> Verdict {
    let names = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "security.selinux",
        "security.ima",
        "security.evm",
        "security.apparmor",
    ];
    let entry = |(index, name): (usize, &&str)| Entry::directory(format!("d{index}")).xattr(name, "y");
    let layer: Vec<Entry> = names.iter().enumerate().map(entry).collect();
    look(case, &[&layer], |tree| {
        for (index, name) in names.iter().enumerate() {
            ensure_eq!(tree.xattr(&format!("d{index}"), name)?, None, "{name}");
            // What the store already has has been told when it came there.
            let told = tree.said.contains(name) || tree.way != Way::Directly;
            ensure!(told, "that {name} is dropped is not said: {:?}", tree.said);
        }
        Ok(())
    })
}

const KINDS: [Sparse; 4] = [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10];

/// The content of a file of this size with data at these places.
fn filled(size: u64, parts: &[(u64, &[u8])]) -> Vec<u8> {
    let mut content = vec![0; size as usize];
    for (offset, data) in parts {
        content[*offset as usize..][..data.len()].copy_from_slice(data);
    }
    content
}

fn holes(case: &Case) -> Verdict {
    let size = 3 << 20;
    let middle = vec![b'm'; 5000];
    let all: [&[(u64, &[u8])]; 4] = [
        &[(0, b"begin"), (1 << 20, &middle), (size - 3, b"end")],
        &[(1 << 20, &middle)],
        // GNU tar ends the map of a file that ends in a hole so.
        &[(0, b"begin"), (size, b"")],
        &[(size, b"")],
    ];
    let name = |kind: Sparse, index: usize| format!("{kind:?}{index}");
    let mut layer = Vec::new();
    for kind in KINDS {
        for (index, parts) in all.iter().enumerate() {
            layer.push(sparse(kind, &name(kind, index), size, parts).mode(0o640).owner(1, 2).mtime(3));
        }
    }
    layer.push(Entry::file("after", "after"));
    look(case, &[&layer], |tree| {
        for kind in KINDS {
            for (index, parts) in all.iter().enumerate() {
                let path = name(kind, index);
                tree.file(&path, filled(size, parts))?;
                tree.mode(&path, 0o640, 1, 2)?;
                tree.mtime(&path, 3, 0)?;
                let blocks = tree.metadata(&path)?.blocks() * 512;
                ensure!(blocks < size / 4, "{path:?} takes {blocks} bytes of disk: the holes are filled");
            }
        }
        let missing = std::fs::read_dir(tree.path(""))?.flatten();
        ensure_eq!(missing.count(), 17, "entries: is there a GNUSparseFile.1?");
        tree.file("after", "after")
    })
}

fn many_holes(case: &Case) -> Verdict {
    // 4 parts are in a GNU header, 21 in each block after it.
    let data = [b'x'; 10];
    let parts: Vec<(u64, &[u8])> = (0..60).map(|index| (index * 8192, &data[..])).collect();
    let size = 60 * 8192;
    let layer = KINDS.map(|kind| sparse(kind, &format!("d/{kind:?}"), size, &parts));
    look(case, &[&layer, &[Entry::file("after", "after")]], |tree| {
        for kind in KINDS {
            tree.file(format!("d/{kind:?}"), filled(size, &parts))?;
        }
        tree.file("after", "after")
    })
}

fn long_names(case: &Case) -> Verdict {
    let long = "n".repeat(255);
    let deep = vec!["d".repeat(200); 15].join("/");
    let target = "t".repeat(4000);
    let mut layer = Vec::new();
    for (prefix, format) in [("gnu", Format::Gnu), ("pax", Format::Ustar)] {
        let path = |rest: &str| format!("{prefix}/{rest}");
        layer.push(Entry::file(path(&long), "long").format(format));
        layer.push(Entry::file(path(&deep), "deep").format(format));
        layer.push(Entry::symlink(path("link"), &target).format(format));
        layer.push(Entry::hard_link(path("hard"), path(&deep)).format(format));
        layer.push(Entry::file(path(&"x".repeat(100 - 4)), "a hundred").format(format));
    }
    look(case, &[&layer], |tree| {
        for prefix in ["gnu", "pax"] {
            tree.file(format!("{prefix}/{long}"), "long")?;
            tree.file(format!("{prefix}/hard"), "deep")?;
            tree.symlink(format!("{prefix}/link"), &target)?;
            tree.file(format!("{prefix}/{}", "x".repeat(96)), "a hundred")?;
        }
        Ok(())
    })
}

fn prefixes(case: &Case) -> Verdict {
    let deep = ["p".repeat(70), "q".repeat(80)].join("/");
    let layer = [
        Entry::file("name", "prefixed").patch(345, &deep),
        Entry::directory("empty/").patch(345, "short"),
        // In GNU's format other things are there.
        Entry::file("gnu", "gnu").format(Format::Gnu).patch(345, number(1, 12)),
    ];
    look(case, &[&layer], |tree| {
        tree.file(format!("{deep}/name"), "prefixed")?;
        tree.directory("short/empty", &[])?;
        tree.file("gnu", "gnu")
    })
}

fn names_of_any_bytes(case: &Case) -> Verdict {
    let names: [&[u8]; 6] =
        [b"latin\xe9", b"\xff\xfe", "umläut".as_bytes(), b"new\nline", b"\x1b[31m", b"back\\slash"];
    let entry = |name: &[u8]| Entry::file(name, name);
    let mut layer: Vec<Entry> = names.iter().map(|name| entry(name)).collect();
    layer.push(Entry::file("short", "pax").pax("path", b"pax\xe9").pax("hdrcharset", "BINARY"));
    layer.push(Entry::symlink("link", b"\xe9\xff"));
    look(case, &[&layer], |tree| {
        for name in names {
            tree.file(name, name)?;
        }
        tree.file(b"pax\xe9", "pax")?;
        tree.symlink("link", b"\xe9\xff")
    })
}

fn spellings(case: &Case) -> Verdict {
    let lower = [
        Entry::directory("./").mode(0o711),
        Entry::directory("./a/"),
        Entry::file("./a/one", "1"),
        Entry::file("a//two", "2"),
        Entry::file("././a/./three", "3"),
        Entry::hard_link("./a/four", "./a/one"),
        Entry::directory("b/."),
        Entry::file("..dots", ""),
        Entry::file("...", ""),
        Entry::file("a/x..", ""),
    ];
    look(case, &[&lower, &[Entry::file("./a/.wh.two", "")]], |tree| {
        tree.directory("", &["...", "..dots", "a", "b"])?;
        tree.directory("a", &["four", "one", "three", "x.."])?;
        tree.mode("", 0o711, 0, 0)
    })
}

fn pax_names(case: &Case) -> Verdict {
    let layer = [
        Entry::file("header", "x").pax("path", "pax/name"),
        Entry::symlink("link", "header").pax("linkpath", "pax"),
        Entry::hard_link("hard", "none").pax("linkpath", "pax/name"),
        Entry::file("both", "y").patch(345, "prefix").pax("path", "whole"),
        Entry::file("other", "z")
            .pax("comment", "a comment")
            .pax("VENDOR.key", "value")
            .pax("atime", "1.5")
            .pax("ctime", "2.5"),
        Entry::file("sized", "12345").pax("size", "5"),
    ];
    look(case, &[&layer], |tree| {
        tree.directory("", &["hard", "link", "other", "pax", "sized", "whole"])?;
        tree.linked(&["pax/name", "hard"])?;
        tree.symlink("link", "pax")?;
        tree.file("sized", "12345")
    })
}

fn global_headers(case: &Case) -> Verdict {
    let layer = [
        global(&[("comment", "0123456789abcdef")]),
        Entry::file("a", "a"),
        global(&[("VENDOR.x", "y")]),
        Entry::file("b", "b"),
    ];
    look(case, &[&layer], |tree| {
        tree.directory("", &["a", "b"])?;
        tree.file("a", "a")
    })
}

fn base256_numbers(case: &Case) -> Verdict {
    let entry =
        Entry::file("f", "12345").format(Format::Gnu).patch(100, base256(0o640, 8)).patch(108, base256(7, 8));
    let entry = entry.patch(116, base256(8, 8)).patch(124, base256(5, 12)).patch(136, base256(9, 12));
    // Spaces before, no NUL after: as old archivers wrote.
    let spaces =
        Entry::file("s", "123").patch(100, b"   640 \0").patch(108, b"     11 ").patch(124, b"          3 ");
    look(case, &[&[entry, spaces]], |tree| {
        tree.file("f", "12345")?;
        tree.mode("f", 0o640, 7, 8)?;
        tree.mtime("f", 9, 0)?;
        tree.file("s", "123")?;
        tree.mode("s", 0o640, 9, 0)
    })
}

/// A layer whose blob is `blob`, of an archive with three files.
fn repacked(packing: Packing, repack: impl Fn(&[u8]) -> Vec<u8>) -> Layer {
    let tar = archive(&["a", "b", "c"].map(|name| Entry::file(name, name.repeat(700))));
    Layer { blob: repack(&tar), ..Layer::new(&tar, packing) }
}

fn all_there(tree: &Tree) -> Verdict {
    tree.directory("", &["a", "b", "c"])?;
    tree.file("c", "c".repeat(700))
}

fn gzip_members(case: &Case) -> Verdict {
    let members = repacked(Packing::Gzip, |tar| tar.chunks(700).flat_map(gzip).collect());
    look_at_image(case, &Image::new(&[members]), all_there)?;
    let with_empty = repacked(Packing::Gzip, |tar| [gzip(&[]), gzip(tar), gzip(&[])].concat());
    look_at_image(case, &Image::new(&[with_empty]), all_there)
}

fn zstd_frames(case: &Case) -> Verdict {
    let pack = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("memory doesn't fail");
    let frames = repacked(Packing::Zstd, |tar| tar.chunks(700).flat_map(pack).collect());
    look_at_image(case, &Image::new(&[frames]), all_there)?;
    // As zstd:chunked and seekable zstd have them.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let chunked = repacked(Packing::Zstd, |tar| [pack(tar), skippable.clone()].concat());
    look_at_image(case, &Image::new(&[chunked]), all_there)
}

fn ends(case: &Case) -> Verdict {
    let entries = ["a", "b", "c"].map(|name| Entry::file(name, name.repeat(700)));
    let without = unended(&entries);
    let one_block = [&without[..], &[0; BLOCK]].concat();
    let many = [&without[..], &[0; 40 * BLOCK]].concat();
    let odd = [&without[..], &[0; 2 * BLOCK + 100]].concat();
    let no_padding = without[..without.len() - (BLOCK - 700 % BLOCK)].to_vec();
    for (name, tar) in [
        ("no padding", no_padding),
        ("none", without),
        ("one block", one_block),
        ("many", many),
        ("an odd size", odd),
    ] {
        let image = Image::new(&[Layer::new(&tar, Packing::Gzip)]);
        super::bundle_world::row(name, look_at_image(case, &image, all_there))?;
    }
    Ok(())
}

fn docker_media_types(case: &Case) -> Verdict {
    let tar = |name: &str| archive(&[Entry::file(name, name)]);
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    let mut layers = vec![Layer::new(&tar("a"), Packing::Plain), Layer::new(&tar("b"), Packing::Gzip)];
    layers.push(Layer::new(&tar("c"), Packing::Zstd));
    for (layer, suffix) in layers.iter_mut().zip(["", ".gzip", ".zstd"]) {
        layer.media_type = format!("{docker}{suffix}");
    }
    let world = World::new(case)?;
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let image = Image::new(&layers).change_manifest(move |manifest| {
        manifest["mediaType"] = media_type.into();
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    });
    let mut layout = image.layout();
    layout.top(&[tagged(descriptor(media_type, &image.manifest(&image.config())), "latest")]);
    let source = world.write(&layout)?;
    world.bundle(&[], &source)?.succeeded()?;
    let tree = Tree { root: world.rootfs(), way: Way::Directly, said: String::new() };
    tree.directory("", &["a", "b", "c"])
}
