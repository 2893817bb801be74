//! Attacks of images on `bundle`: archives that two readers would read differently, that are damaged,
//! or that cost more than an image may.

use super::bundle_world::{World, row};
use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::image::tar::{BLOCK, Entry, Format, Sparse, archive, base256, global, record, sparse, unended};
use crate::image::{Image, Layer, Packing, gzip, gzip_at, zstd_frame};
use crate::{ensure, ensure_eq, tests};
use std::fs;

tests![
    "tokio-tar CVE-2025-62518, tar-rs CVE-2026-33055: PAX and header disagree about the size" => sizes_that_disagree,
    "CVE-2026-32766: records and headers that disagree" => records_that_disagree,
    "pax(1): records that are malformed" => malformed_records,
    "pax(1): headers for headers, headers for nothing" => headers_without_entries,
    "tar(5): numbers that are none, or too large" => numbers,
    "CVE-2024-40635: owners out of range" => owners_out_of_range,
    "tar(5): a wrong checksum, no archive at all" => checksums,
    "tar(5): truncated archives" => truncated,
    "tar(5): data after the end" => after_the_end,
    "tar(5): types that nobody knows" => unknown_types,
    "names with NUL, without anything, too long" => impossible_names,
    "sparse maps that lie" => sparse_maps_that_lie,
    "containerd CVE-2023-25153: too many bytes" => too_many_bytes,
    "c/storage CVE-2021-20291: a bomb" => bombs,
    "a zstd window that fills the memory" => windows,
    "too many entries, too deep, headers too large" => too_much,
    "too deep by links" => a_deep_tree_by_links,
    "many records, many global headers: in time" => many_records,
    "damaged compression" => damaged_compression,
    "media types and compression disagree" => other_compression,
];

fn refused_bytes(world: &World, options: &[&str], layer: Layer, words: &[&str]) -> Verdict {
    let output = world.bundle_image(options, &Image::new(&[layer]))?;
    world.left_nothing(output, &[&["layer 1 (sha256:"], words].concat())
}

fn refused(world: &World, entries: &[Entry], words: &[&str]) -> Verdict {
    let layer = Layer::new(&archive(entries), Packing::Gzip);
    row(&format!("{words:?}"), refused_bytes(world, &[], layer, words))
}

fn refused_with(world: &World, option: &str, value: &str, entries: &[Entry], words: &[&str]) -> Verdict {
    let layer = Layer::new(&archive(entries), Packing::Gzip);
    let words = [&[option, value], words].concat();
    row(option, refused_bytes(world, &[option, value], layer, &words))
}

/// By its headers the file is empty or longer than it is; another reader takes what is in it, or what
/// is after it, for entries.
fn sizes_that_disagree(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let nested = unended(&[Entry::file("smuggled", "hostile")]);
    let length = nested.len();
    let words: &[&str] = &["outer", "disagree", "size"];
    // The header says nothing, the record says all; and the other way round.
    refused(&world, &[Entry::file("outer", &nested).size(0).pax("size", length.to_string())], words)?;
    refused(&world, &[Entry::file("outer", &nested).pax("size", "0")], words)?;
    refused(&world, &[Entry::file("outer", &nested).pax("size", (length - BLOCK).to_string())], words)?;
    refused(&world, &[Entry::file("outer", &nested).size(7).pax("size", length.to_string())], words)?;
    // A size for what has no data: the next entry would be its data.
    for kind in [b'1', b'2', b'3', b'5', b'6'] {
        let next = Entry::file("next", "x");
        refused(
            &world,
            &[Entry::file("x", ""), Entry::new(kind, "odd").target("x").size(512), next.clone()],
            &["odd"],
        )?;
        refused(
            &world,
            &[Entry::file("x", ""), Entry::new(kind, "odd").target("x").pax("size", "512"), next],
            &["odd"],
        )?;
    }
    // A global header that gives a size, a name, a link to all that follow.
    for (key, value) in [
        ("size", "0"),
        ("path", "all"),
        ("linkpath", "all"),
        ("GNU.sparse.map", "0,1"),
        ("SCHILY.xattr.user.x", "1"),
    ] {
        refused(&world, &[global(&[(key, value)]), Entry::file("x", "hostile")], &["global", key])?;
    }
    Ok(())
}

fn records_that_disagree(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let entry = || Entry::file("header", "12345");
    refused(&world, &[entry().pax("path", "one").pax("path", "two")], &["path", "twice"])?;
    refused(&world, &[entry().pax("size", "5").pax("size", "6")], &["size", "twice"])?;
    refused(&world, &[entry().pax("uid", "1").pax("uid", "0")], &["uid", "twice"])?;
    refused(&world, &[entry().xattr("user.x", "1").xattr("user.x", "2")], &["user.x", "twice"])?;
    refused(
        &world,
        &[Entry::symlink("s", "x").pax("linkpath", "a").pax("linkpath", "b")],
        &["linkpath", "twice"],
    )?;
    // GNU's long name and PAX's.
    let long = Entry::file("l".repeat(120), "").format(Format::Gnu);
    refused(&world, &[long.clone().pax("path", "pax")], &["disagree", "path"])?;
    let link = Entry::symlink("s", "l".repeat(120)).format(Format::Gnu);
    refused(&world, &[link.pax("linkpath", "pax")], &["disagree", "link"])?;
    // A name that only those see who know of sparse files, of one that is none.
    refused(&world, &[entry().pax("GNU.sparse.name", "other")], &["sparse"])?;
    refused(&world, &[Entry::directory("d").pax("GNU.sparse.name", "other")], &["sparse"])?;
    refused(
        &world,
        &[Entry::symlink("d", "x")
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", "other")
            .pax("GNU.sparse.realsize", "0")],
        &["sparse"],
    )
}

fn malformed_records(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let good = record("path", "good");
    let all: [&[u8]; 16] = [
        b"12 path=abc",
        b"13 path=abc\n",
        b"11 path=abc\n",
        b"999 path=abc\n",
        b"0 path=abc\n",
        b"-12 path=abc\n",
        b"+12 path=abc\n",
        b"99999999999999999999999 path=abc\n",
        b"18446744073709551615 path=abc\n",
        b" 12 path=abc\n",
        b"12path=abc\n",
        b"path=abc\n",
        b"8 =abcd\n",
        b"9 pathab\n",
        b"\n",
        b"0x0c path=abc\n",
    ];
    for bad in all {
        for bytes in [bad.to_vec(), [&good[..], bad].concat()] {
            let verdict = refused(&world, &[Entry::file("x", "").pax_bytes(bytes)], &[]);
            row(&String::from_utf8_lossy(bad), verdict)?;
        }
    }
    for (key, value) in [
        ("size", "1e3"),
        ("size", "-1"),
        ("size", "0x10"),
        ("size", "18446744073709551616"),
        ("uid", "root"),
        ("uid", "-1"),
        ("gid", " 1"),
        ("mtime", "now"),
        ("mtime", "1.2.3"),
        ("mtime", "99999999999999999999"),
    ] {
        row(value, refused(&world, &[Entry::file("bad", "").pax(key, value)], &["bad"]))?;
    }
    Ok(())
}

fn headers_without_entries(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let header = |kind: u8| Entry::new(kind, "header").data(record("path", "name"));
    refused(&world, &[Entry::file("x", ""), header(b'x')], &["extended header"])?;
    refused(&world, &[header(b'L')], &["extended header"])?;
    refused(&world, &[header(b'K')], &["extended header"])?;
    refused(&world, &[header(b'x'), header(b'x'), Entry::file("x", "")], &["extended header"])?;
    refused(&world, &[header(b'L'), header(b'L'), Entry::file("x", "")], &["two"])?;
    refused(&world, &[header(b'K'), header(b'K'), Entry::symlink("x", "y")], &["two"])?;
    // A header for a header: whose size does the record give?
    let nested = Entry::new(b'x', "header").data(record("path", "a")).pax("size", "0");
    refused(&world, &[nested, Entry::file("x", "")], &["extended header"])?;
    let before_long = Entry::new(b'L', "long").data("name").pax("size", "512");
    refused(&world, &[before_long, Entry::file("x", "")], &[])
}

fn numbers(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let file = || Entry::file("bad", "12345");
    for (offset, name, width) in [(100, "mode", 8), (108, "uid", 8), (116, "gid", 8), (124, "size", 12)] {
        row(name, refused(&world, &[file().patch(offset, base256(-1, width))], &["bad", name]))?;
        row(name, refused(&world, &[file().patch(offset, "0000-1\0")], &["bad", name]))?;
        row(name, refused(&world, &[file().patch(offset, "000 089\0")], &["bad", name]))?;
        row(name, refused(&world, &[file().patch(offset, "zzzzzz\0")], &["bad", name]))?;
    }
    for size in [i64::MAX, i64::MAX - 511, 1 << 62] {
        refused(&world, &[file().size(size)], &["bad"])?;
    }
    let overflow = [&[0xbf][..], &[0xff; 11]].concat();
    refused(&world, &[file().patch(124, &overflow)], &["bad", "size"])?;
    refused(&world, &[file().patch(136, &overflow)], &["bad", "mtime"])?;
    refused(&world, &[Entry::device(b'3', "bad", 1, 3).patch(329, base256(1 << 40, 8))], &["bad", "device"])?;
    refused(
        &world,
        &[Entry::new(b'x', "header").patch(124, base256(-512, 12)), Entry::file("x", "")],
        &["size"],
    )
}

fn owners_out_of_range(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for id in ["4294967295", "4294967296", "4294967296000000", "18446744073709551615", "18446744073709551616"]
    {
        refused(&world, &[Entry::file("bad", "").pax("uid", id)], &["bad", id])?;
        refused(&world, &[Entry::symlink("bad", "x").pax("gid", id)], &["bad", id])?;
    }
    refused(&world, &[Entry::directory("bad").owner(1 << 32, 0)], &["bad", "4294967296"])?;
    refused(&world, &[Entry::file("bad", "").owner(0, u32::MAX.into())], &["bad", "4294967295"])
}

fn checksums(case: &Case) -> Verdict {
    let world = World::new(case)?;
    refused(&world, &[Entry::file("a", "x"), Entry::file("bad", "").checksum(0)], &["checksum"])?;
    refused(&world, &[Entry::file("bad", "").checksum(0o777777)], &["checksum"])?;
    for (name, bytes) in [
        ("text", b"no archive at all\n".to_vec()),
        ("ones", vec![1; 2048]),
        ("a short one", vec![0; 100]),
        ("ELF", fs::read(case.probe())?[..4096].to_vec()),
    ] {
        row(name, refused_bytes(&world, &[], Layer::new(&bytes, Packing::Gzip), &[]))?;
    }
    Ok(())
}

fn truncated(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let whole = unended(&[
        Entry::file("first", "1"),
        Entry::file("second", "x".repeat(2000)),
        Entry::file("y".repeat(200), "3"),
    ]);
    // In the first header, in the second's data, in the PAX header, between it and its entry.
    for at in [1, 511, 1025, 1024 + 100, 1024 + 512 + 1999, 3584 + 5, 3584 + 512 + 20, 3584 + 1024] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            row(
                &format!("at {at}"),
                refused_bytes(&world, &[], Layer::new(&whole[..at], packing), &["end"]),
            )?;
        }
    }
    Ok(())
}

fn after_the_end(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let (one, two) = (archive(&[Entry::file("one", "")]), archive(&[Entry::file("two", "")]));
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let bytes = [&one[..], &two].concat();
        refused_bytes(&world, &[], Layer::new(&bytes, packing), &["after the end"])?;
        let rubbish = [&one[..], b"rubbish"].concat();
        refused_bytes(&world, &[], Layer::new(&rubbish, packing), &["after the end"])?;
    }
    // One block of zeros between entries: some readers go on after it.
    let gap = [&unended(&[Entry::file("one", "")])[..], &[0; BLOCK], &two].concat();
    refused_bytes(&world, &[], Layer::new(&gap, Packing::Gzip), &["after the end"])
}

fn unknown_types(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for kind in [b'8', b'9', b'A', b'D', b'M', b'N', b'z', b'\n', 0xff] {
        refused(&world, &[Entry::new(kind, "odd").data("x")], &["odd", "type"])?;
    }
    Ok(())
}

fn impossible_names(case: &Case) -> Verdict {
    let world = World::new(case)?;
    refused(&world, &[Entry::file("x", "").pax("path", "nul\0/../../x")], &["NUL"])?;
    refused(&world, &[Entry::symlink("x", "").pax("linkpath", "nul\0x")], &["NUL"])?;
    refused(&world, &[Entry::file("", "hostile")], &[])?;
    refused(&world, &[Entry::symlink("empty-target", "")], &["empty-target"])?;
    let long = "n".repeat(256);
    refused(&world, &[Entry::file(&long, "")], &["name"])?;
    refused(&world, &[Entry::directory(format!("d/{long}/x"))], &["name"])?;
    refused(&world, &[Entry::file(format!("d/.wh.{long}"), "")], &["name"])?;
    refused(&world, &[Entry::symlink("long", "t".repeat(5000))], &["long", "name"])?;
    refused(&world, &[Entry::file("x", ""), Entry::hard_link("h", &long)], &["name"])?;
    // Longer than what a system call takes, with no part that is too long.
    let deep = ["d"; 250].map(|part| part.repeat(200)).join("/");
    row("a long path", world.contains(&Image::new(&[Layer::of(&[Entry::file(&deep, "")])])).map(drop))?;
    row(
        "its whiteout",
        world
            .contains(&Image::new(&[Layer::of(&[]), Layer::of(&[Entry::file(format!("{deep}/.wh.x"), "")])]))
            .map(drop),
    )
}

fn sparse_maps_that_lie(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let data = [b'x'; 100];
    for kind in [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let bad = |size: u64, parts: &[(u64, &[u8])]| {
            row(
                &format!("{kind:?}"),
                refused(&world, &[sparse(kind, "bad", size, parts)], &["bad", "sparse"]),
            )
        };
        bad(50, &[(0, &data)])?; // longer than the file
        bad(1000, &[(0, &data), (50, &data)])?; // overlapping
        bad(1000, &[(500, &data), (0, &data)])?; // backwards
        bad(1 << 40, &[((1 << 62), &data)])?;
    }
    for map in ["0", "0,10,5", "0,-1", "a,b", "0,10,", "18446744073709551615,10"] {
        let entry =
            Entry::file("x", "0123456789").pax("GNU.sparse.size", "100").pax("GNU.sparse.numblocks", "1");
        row(map, refused(&world, &[entry.pax("GNU.sparse.map", map).pax("GNU.sparse.name", "bad")], &[]))?;
    }
    for text in [
        "",
        "1\n",
        "1\n0\n",
        "99999999999999999999\n",
        "18446744073709551615\n0\n1\n",
        "x\n",
        "-1\n",
        "2\n0\n10\n",
    ] {
        let entry = Entry::file("x", [text.as_bytes(), &vec![0; BLOCK - text.len()]].concat());
        let entry =
            entry.pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.name", "bad");
        row(text, refused(&world, &[entry.pax("GNU.sparse.realsize", "100")], &["bad"]))?;
    }
    // A file of holes that is larger than the limit.
    refused_with(
        &world,
        "--max-size",
        "1000000",
        &[sparse(Sparse::Pax10, "bad", 1 << 30, &[(0, b"x")])],
        &["bad"],
    )?;
    refused(&world, &[sparse(Sparse::Gnu, "bad", 1 << 60, &[(0, b"x")])], &["bad", "--max-size"])
}

fn too_many_bytes(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let files =
        |count: usize| (0..count).map(|n| Entry::file(format!("f{n}"), vec![1; 10_000])).collect::<Vec<_>>();
    refused_with(&world, "--max-size", "100000", &files(11), &[])?;
    refused_with(&world, "--max-size", "9999", &files(1), &[])?;
    // What is all within, and all layers together aren't.
    let layers: Vec<Layer> = (0..5).map(|_| Layer::of(&files(3))).collect();
    let image = Image::new(&layers);
    let output = world.bundle_image(&["--max-size", "100000"], &image)?;
    world.left_nothing(output, &["--max-size", "100000"])?;
    world.bundle_image(&["--max-size", "200000"], &image)?.succeeded().map(drop)
}

/// Nothing of what they would unpack to may be written: they would fill the disk.
fn bombs(case: &Case) -> Verdict {
    let world = World::new(case)?;
    const SIZE: usize = 4 << 30;
    let header = Entry::file("bomb", "").size(SIZE as i64).bytes();
    let mebibyte = gzip_at(&vec![0; 1 << 20], 9);
    let gzipped = [gzip(&header), mebibyte.repeat(SIZE >> 20)].concat();
    let plain = zstd::encode_all(&header[..], 1)?;
    let zstandard = [plain, zstd_frame(0, SIZE, 20)].concat();
    let layer = |packing, blob| Layer { blob, ..Layer::new(&[], packing) };
    refused_bytes(&world, &[], layer(Packing::Zstd, zstandard), &["--max-ratio"])?;
    refused_bytes(&world, &["--max-size", "8m"], layer(Packing::Gzip, gzipped), &["--max-size"])
}

fn windows(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let tar = archive(&[Entry::file("x", "")]);
    for log in [24, 27, 31, 41] {
        // A frame of the archive in blocks that aren't compressed, but in such a window.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        frame.extend(&((tar.len() as u32) << 3 | 1).to_le_bytes()[..3]);
        frame.extend(&tar);
        let layer = Layer { blob: frame, ..Layer::new(&tar, Packing::Zstd) };
        row(&format!("2^{log}"), refused_bytes(&world, &[], layer.clone(), &["window", "--max-window"]))?;
        if log == 24 {
            world.bundle_image(&["--max-window", "16777216"], &Image::new(&[layer]))?.succeeded()?;
            world.remove_out()?;
        }
    }
    Ok(())
}

fn too_much(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let many: Vec<Entry> = (0..101).map(|n| Entry::file(format!("{n}"), "")).collect();
    refused_with(&world, "--max-entries", "100", &many, &[])?;
    let same: Vec<Entry> = (0..101).map(|_| Entry::file(".wh.x", "")).collect();
    refused_with(&world, "--max-entries", "100", &same, &[])?;
    let deep = |levels: usize| vec!["d"; levels].join("/");
    refused_with(&world, "--max-depth", "10", &[Entry::directory(deep(11))], &["d/d/d"])?;
    refused(&world, &[Entry::directory(deep(2000))], &["--max-depth"])?;
    refused(&world, &[Entry::file(format!("{}/.wh.x", deep(2000)), "")], &["--max-depth"])?;
    let long = "c".repeat(2000);
    for header in [
        vec![Entry::file("x", "").pax("comment", &long)],
        vec![Entry::new(b'L', "long").data(&long), Entry::file("x", "")],
        vec![global(&[("comment", &long)]), Entry::file("x", "")],
        vec![Entry::file("x", "").xattr("user.x", &long)],
    ] {
        refused_with(&world, "--max-headers", "1999", &header, &[])?;
    }
    // A header that says so, and nothing comes.
    let huge = Entry::new(b'x', "header").size(1 << 40);
    refused_bytes(&world, &[], Layer::new(&unended(&[huge]), Packing::Gzip), &["--max-headers"])
}

/// Each step is in the one before, by a link that shortens the way: no path that is written is deep.
fn a_deep_tree_by_links(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let below = vec!["d"; 60].join("/");
    let mut entries = vec![Entry::directory("d"), Entry::symlink("l0", "d")];
    for step in 1..30 {
        let place = format!("l{}/{below}", step - 1);
        entries.extend([Entry::directory(&place), Entry::symlink(format!("l{step}"), &place)]);
    }
    let source = world.write(&Image::new(&[Layer::of(&entries)]).layout())?;
    let good = world.write(&Image::new(&[Layer::of(&[Entry::file("x", "")])]).layout())?;
    let bundle = |source: &str| case.call_after("ulimit -n 1024", &["bundle", source, text(&world.out())]);
    let output = bundle(&source)?;
    ensure!(matches!(output.status, 0 | 1), "status {}: {:?}", output.status, output.stderr);
    world.unchanged()?;
    if output.status == 0 {
        fs::rename(world.out(), world.directory.join("deep"))?;
    }
    // What it left doesn't stand in the way of others.
    bundle(&good)?.succeeded()?;
    world.unchanged()
}

fn many_records(case: &Case) -> Verdict {
    let world = World::new(case)?;
    // Each of 16 bytes, and no two alike.
    let records = |part: u32| -> Vec<u8> {
        (0..50_000).map(|n| format!("16 {:011x}=\n", part << 16 | n)).collect::<String>().into_bytes()
    };
    let one = Entry::file("x", "").pax_bytes(records(0));
    let image = Image::new(&[Layer::new(&archive(&[one]), Packing::Gzip)]);
    row("in one header", world.contains(&image).map(drop))?;
    let global = |part| [Entry::new(b'g', "global").data(records(part)), Entry::file("x", "")];
    let all = (0..3).flat_map(global).collect::<Vec<_>>();
    row(
        "in global headers",
        world.contains(&Image::new(&[Layer::new(&archive(&all), Packing::Gzip)])).map(drop),
    )
}

fn damaged_compression(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let tar = archive(&[Entry::file("x", "content".repeat(1000))]);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let whole = Layer::new(&tar, packing);
        let middle = whole.blob.len() / 2;
        let mut flipped = whole.blob.clone();
        flipped[middle] ^= 0x55;
        let mut end = whole.blob.clone();
        *end.last_mut().expect("there is one") ^= 0xff;
        let cut = whole.blob[..whole.blob.len() - 3].to_vec();
        let header = whole.blob[..5].to_vec();
        let rubbish = [&whole.blob[..], b"rubbish after it"].concat();
        for (name, blob) in [
            ("flipped", flipped),
            ("checksum", end),
            ("cut", cut),
            ("header alone", header),
            ("rubbish", rubbish),
        ] {
            // zstd's encoder here writes no checksum: the last byte is data.
            let layer = Layer { blob, ..whole.clone() };
            row(&format!("{packing:?} {name}"), refused_bytes(&world, &[], layer, &[]))?;
        }
    }
    Ok(())
}

fn other_compression(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let tar = archive(&[Entry::file("x", "")]);
    let all = [Packing::Plain, Packing::Gzip, Packing::Zstd].map(|packing| Layer::new(&tar, packing));
    for one in &all {
        for other in all.iter().filter(|other| other.media_type != one.media_type) {
            let layer = Layer { media_type: other.media_type.clone(), ..one.clone() };
            row(
                &format!("{} is {}", one.media_type, other.media_type),
                refused_bytes(&world, &[], layer, &[]),
            )?;
        }
    }
    ensure_eq!(all.len(), 3, "packings");
    ensure!(!world.out().exists(), "OUT is there");
    Ok(())
}
