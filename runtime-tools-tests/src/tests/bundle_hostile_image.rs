//! Attacks of images on `bundle`: what is said about layers. Digests, sizes, media types, indexes,
//! configurations, and the files and archives that all of this comes in.

use super::bundle_world::{World, row};
use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::image::tar::{Entry, archive};
use crate::image::{
    CONFIG, INDEX, Image, LAYER, Layer, Layout, MANIFEST, Node, blob_path, descriptor, digest, entries,
    tagged,
};
use crate::{ensure, tests};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

tests![
    "image-spec descriptor.md, Digests: a blob that isn't it" => digests_that_are_wrong,
    "image-spec descriptor.md, size" => sizes_that_are_wrong,
    "image-spec config.md, rootfs.diff_ids" => diff_ids_that_are_wrong,
    "CVE-2021-41190: a manifest that is an index, too" => manifest_and_index,
    "CVE-2021-41190: media types that disagree" => media_types_that_disagree,
    "image-spec manifest.md: layers that can't be unpacked, by name" => layers_of_other_types,
    "image-spec descriptor.md, Digests: what isn't one" => digests_that_are_none,
    "image-spec annotations.md: names that are paths" => names_that_are_paths,
    "image-spec image-index.md: nested deeply, empty, too wide" => indexes,
    "image-spec image-layout.md: links, fifos, devices in its place" => layout_of_other_files,
    "image-spec image-layout.md: what is missing" => layout_with_gaps,
    "JSON that is deep, huge, or none" => documents_that_cost,
];

fn layer() -> Layer {
    Layer::of(&[
        Entry::directory("etc"),
        Entry::file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"),
        Entry::file("x", "x"),
    ])
}

fn image() -> Image {
    Image::new(&[Layer::of(&[Entry::file("first", "")]), layer()])
}

/// A document of a layout that is changed in the place where it is.
fn damaged(layout: &Layout, of: &Value, change: impl Fn(&mut Vec<u8>)) -> Layout {
    let mut layout = layout.clone();
    if let Some(Node::File(bytes)) = layout.files.get_mut(&blob_path(of)) {
        change(bytes);
    }
    layout
}

/// The descriptors of an image: manifest, configuration, second layer.
fn descriptors(image: &Image) -> [Value; 3] {
    let config = image.config();
    let manifest = descriptor(MANIFEST, &image.manifest(&config));
    [manifest, descriptor(CONFIG, &config), image.layers[1].descriptor()]
}

const NAMES: [&str; 3] = ["manifest sha256:", "configuration", "layer 2 (sha256:"];

fn digests_that_are_wrong(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let (image, layout) = (image(), image().layout());
    for (of, name) in descriptors(&image).iter().zip(NAMES) {
        // A space more and one less, or another letter: still JSON, and still an archive.
        let changed = damaged(&layout, of, |bytes| {
            let at = bytes.iter().position(|&byte| byte == b'x' || byte == b'2').unwrap_or(600);
            bytes[at] ^= 1;
        });
        row(name, world.refuses_layout(&changed, &[name, "digest"]))?;
    }
    // A layer that is another one, with a manifest that is right.
    let other = Layer::of(&[Entry::file("y", "hostile")]);
    let swapped = damaged(&layout, &image.layers[1].descriptor(), |bytes| *bytes = other.blob.clone());
    world.refuses_layout(&swapped, &["layer 2 (sha256:"])
}

fn sizes_that_are_wrong(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let (image, layout) = (image(), image().layout());
    for (of, name) in descriptors(&image).iter().zip(NAMES) {
        for change in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| bytes.push(b' '),
            Vec::clear,
        ] {
            row(name, world.refuses_layout(&damaged(&layout, of, change), &[name, "size"]))?;
        }
    }
    // The right bytes, and a descriptor that lies.
    for size in [
        json!(0),
        json!(1),
        json!(1u64 << 40),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(-1),
        json!("10"),
        json!(1.5),
        json!(1e300),
    ] {
        let lying = size.clone();
        let of_layer = Image::new(&image.layers)
            .change_manifest(move |manifest| manifest["layers"][1]["size"] = lying.clone());
        row(&format!("layer of size {size}"), world.refuses_layout(&of_layer.layout(), &[]))?;
        let lying = size.clone();
        let of_config = Image::new(&image.layers)
            .change_manifest(move |manifest| manifest["config"]["size"] = lying.clone());
        row(&format!("configuration of size {size}"), world.refuses_layout(&of_config.layout(), &[]))?;
    }
    Ok(())
}

fn diff_ids_that_are_wrong(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let with = |change: fn(&mut Vec<Value>)| {
        let change =
            move |config: &mut Value| change(config["rootfs"]["diff_ids"].as_array_mut().expect("an array"));
        image().change_config(change).layout()
    };
    world.refuses_layout(&with(|ids| ids[1] = json!(digest(b"other"))), &["layer 2 (sha256:", "diffID"])?;
    world.refuses_layout(&with(|ids| ids.swap(0, 1)), &["layer ", "diffID"])?;
    world.refuses_layout(&with(|ids| drop(ids.pop())), &["diffIDs"])?;
    world.refuses_layout(&with(|ids| ids.push(json!(digest(b"")))), &["diffIDs"])?;
    world.refuses_layout(&with(Vec::clear), &["diffIDs"])?;
    world.refuses_layout(&with(|ids| ids[1] = json!("sha256:../../../prize/file")), &["diffID"])?;
    world.refuses_layout(&with(|ids| ids[1] = json!(7)), &["configuration"])?;
    let other = image().change_config(|config| config["rootfs"]["type"] = "windows".into());
    world.refuses_layout(&other.layout(), &["windows"])?;
    // By docker save nothing else is known of a layer.
    let wrong = image().change_config(|config| config["rootfs"]["diff_ids"][0] = json!(digest(b"other")));
    let source = world.write_archive("docker-archive", &archive(&entries(&wrong.docker_save("a:b"))))?;
    world.refuses(&[], &source, &["layer 1 (sha256:", "diffID"])
}

fn manifest_and_index(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let good = descriptors(&image())[0].clone();
    for media_type in [json!(MANIFEST), json!(INDEX), Value::Null] {
        let (own, inner) = (media_type.clone(), good.clone());
        let both = image().change_manifest(move |manifest| {
            manifest["manifests"] = json!([inner]);
            manifest["mediaType"] = own.clone();
            if own.is_null() {
                manifest.as_object_mut().expect("an object").remove("mediaType");
            }
        });
        let bytes = both.manifest(&both.config());
        for said in [MANIFEST, INDEX] {
            let mut layout = both.layout();
            layout.add(&image());
            layout.top(&[tagged(descriptor(said, &bytes), "latest")]);
            row(&format!("{media_type}, announced as {said}"), world.refuses_layout(&layout, &["manifest"]))?;
        }
        // index.json itself.
        let mut layout = both.layout();
        layout.put("index.json", &bytes);
        row(&format!("index.json, {media_type}"), world.refuses_layout(&layout, &["index"]))?;
    }
    Ok(())
}

fn media_types_that_disagree(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let image = image();
    let bytes = image.manifest(&image.config());
    for said in [
        INDEX,
        CONFIG,
        LAYER,
        "application/json+hostile",
        "application/vnd.docker.distribution.manifest.v1+json",
        "text/html",
    ] {
        let mut layout = image.layout();
        layout.top(&[tagged(descriptor(said, &bytes), "latest")]);
        row(said, world.refuses_layout(&layout, &["manifest", said]))?;
    }
    let mut as_manifest = image.layout();
    let inner = as_manifest.index(&[descriptors(&image)[0].clone()]);
    as_manifest.top(&[tagged(
        json!({ "mediaType": MANIFEST, "digest": inner["digest"], "size": inner["size"] }),
        "latest",
    )]);
    world.refuses_layout(&as_manifest, &["manifest"])?;
    for version in [json!(1), json!(3), json!("2"), Value::Null] {
        let of = version.clone();
        let old =
            Image::new(&image.layers).change_manifest(move |manifest| manifest["schemaVersion"] = of.clone());
        row(&format!("version {version}"), world.refuses_layout(&old.layout(), &["manifest"]))?;
    }
    for other in ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json", LAYER, ""]
    {
        let changed = Image::new(&image.layers)
            .change_manifest(move |manifest| manifest["config"]["mediaType"] = other.into());
        row(other, world.refuses_layout(&changed.layout(), &["configuration", other]))?;
    }
    Ok(())
}

fn layers_of_other_types(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for media_type in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+bzip2",
        "application/vnd.oci.image.layer.v1.squashfs",
        "application/vnd.oci.empty.v1+json",
        "text/plain",
        "",
        LAYER.to_uppercase().as_str(),
    ] {
        let named = media_type.to_owned();
        let changed = image().change_manifest(move |manifest| {
            manifest["layers"][1]["mediaType"] = named.clone().into();
            manifest["layers"][1]["urls"] = json!(["http://127.0.0.1:1/layer", "file:///etc/passwd"]);
        });
        row(media_type, world.refuses_layout(&changed.layout(), &["layer 2", media_type]))?;
    }
    Ok(())
}

fn digests_that_are_none(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let hex = digest(b"")["sha256:".len()..].to_owned();
    let prize = text(&world.prize);
    for bad in [
        "sha256:../../../place/prize/file".to_owned(),
        format!("sha256:{prize}/file"),
        "../../place/prize/file".to_owned(),
        format!("../..:{hex}"),
        "sha256:".to_owned(),
        "sha256".to_owned(),
        String::new(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{hex}0"),
        format!("sha256:{}", &hex[1..]),
        format!("sha512:{hex}"),
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        format!("sha256:{}/..", &hex[..61]),
        format!("sha256:{}\0", &hex[..63]),
    ] {
        for of in ["config", "layer", "manifest"] {
            let named = bad.clone();
            let changed = image().change_manifest(move |manifest| match of {
                "config" => manifest["config"]["digest"] = named.clone().into(),
                "layer" => manifest["layers"][1]["digest"] = named.clone().into(),
                _ => {}
            });
            let mut layout = changed.layout();
            if of == "manifest" {
                layout.top(&[tagged(json!({ "mediaType": MANIFEST, "digest": bad, "size": 10 }), "latest")]);
            }
            row(&format!("{bad:?} of the {of}"), world.refuses_layout(&layout, &["digest"]))?;
        }
    }
    Ok(())
}

fn names_that_are_paths(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let mut layout = image().layout();
    let manifest = descriptors(&image())[0].clone();
    let path = world.image_path();
    let names = ["../../place/prize", "/etc", "..", "a/b", "\u{1b}[31m"];
    layout.top(&names.map(|name| tagged(manifest.clone(), name)));
    crate::image::write_directory(&layout.files, &path)?;
    for name in ["../prize", "missing", "", "../../place/prize/file", "@sha256:x"] {
        let output = world.bundle(&[], &format!("oci:{}:{name}", text(&path)))?;
        ensure!(!output.stderr.contains('\u{1b}'), "an escape sequence in {:?}", output.stderr);
        row(name, world.left_nothing(output, &[]))?;
    }
    // A name is a name, though it looks like a path.
    world.bundle(&[], &format!("oci:{}:../../place/prize", text(&path)))?.succeeded()?;
    world.unchanged()
}

fn indexes(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for depth in [30, 1000] {
        let mut layout = Layout::default();
        let mut inner = layout.add(&image());
        for _ in 0..depth {
            inner = layout.index(&[inner]);
        }
        layout.top(&[tagged(inner, "latest")]);
        row(&format!("{depth} deep"), world.refuses_layout(&layout, &["deep"]))?;
    }
    world.refuses_layout(&Layout::default(), &[])?;
    let mut empty = Layout::default();
    let inner = empty.index(&[]);
    empty.top(&[tagged(inner, "latest")]);
    world.refuses_layout(&empty, &["empty"])?;
    let mut elsewhere = image().layout();
    let mut other = descriptors(&image())[0].clone();
    other["platform"] = json!({ "os": "plan9", "architecture": "vax\u{1b}[31m" });
    elsewhere.top(&[tagged(other, "latest")]);
    world.refuses_layout(&elsewhere, &["linux/", "plan9/vax", "--platform"])?;
    let mut wide = image().layout();
    let manifest = descriptors(&image())[0].clone();
    wide.top(&vec![manifest; 30_000]);
    world.refuses_layout(&wide, &["--max-manifest"])
}

fn layout_of_other_files(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let (image, layout) = (image(), image().layout());
    let paths = descriptors(&image).map(|of| blob_path(&of));
    let names = paths.iter().map(String::as_str).chain(["index.json", "oci-layout"]);
    for name in names {
        let Some(Node::File(bytes)) = layout.files.get(name) else { continue };
        // The very bytes, but elsewhere; a device and a directory can't have them.
        let outside = world.directory.join("outside");
        fs::write(&outside, bytes)?;
        for node in [
            Node::Symlink(text(&outside).into()),
            Node::Fifo,
            Node::Symlink("/dev/zero".into()),
            Node::Symlink(name.into()),
        ] {
            let mut changed = layout.clone();
            changed.files.insert(name.into(), node.clone());
            row(&format!("{name} is {node:?}"), world.refuses_layout(&changed, &[]))?;
        }
        for node in ["directory", "device"] {
            let path = world.image_path();
            crate::image::write_directory(&layout.files, &path)?;
            fs::remove_file(path.join(name))?;
            match node {
                "directory" => fs::create_dir(path.join(name))?,
                _ => zero(&path.join(name))?,
            }
            row(&format!("{name} is a {node}"), world.refuses(&[], &format!("oci:{}", text(&path)), &[]))?;
        }
    }
    // The directories of blobs.
    for name in ["blobs", "blobs/sha256"] {
        let path = world.image_path();
        crate::image::write_directory(&layout.files, &path)?;
        let elsewhere = world.image_path();
        fs::rename(path.join(name), &elsewhere)?;
        symlink(&elsewhere, path.join(name))?;
        row(name, world.refuses(&[], &format!("oci:{}", text(&path)), &[]))?;
    }
    Ok(())
}

/// A device that never ends.
fn zero(path: &std::path::Path) -> Verdict {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    Ok(mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5))?)
}

fn layout_with_gaps(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let layout = image().layout();
    for name in layout.files.keys().filter(|name| !name.contains(&digest(&image().layers[0].blob)[7..])) {
        let mut without = layout.clone();
        without.files.remove(name);
        row(name, world.refuses_layout(&without, &[]))?;
    }
    for mark in ["", "{}", "{\"imageLayoutVersion\":\"2.0.0\"}", "[]"] {
        let mut other = layout.clone();
        other.put("oci-layout", mark);
        row(mark, world.refuses_layout(&other, &[]))?;
    }
    for source in [
        "oci:",
        "oci:/no/such/directory",
        "oci:/etc/passwd",
        "oci-archive:/no/such",
        "docker-archive:/dev/zero",
        "oci-archive:/",
        "dir:/no/such",
        "dir:/etc/passwd",
    ] {
        row(source, world.refuses(&[], source, &[]))?;
    }
    Ok(())
}

fn documents_that_cost(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let deep = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    let long = format!("{{\"schemaVersion\":2,\"manifests\":[],\"x\":\"{}\"}}", "x".repeat(5 << 20));
    for (name, text, words) in [
        ("deep", deep(100_000), &[][..]),
        ("deep arrays", "[".repeat(500_000), &[]),
        ("long", long, &["--max-manifest"]),
        ("none", "nonsense".into(), &[]),
        ("empty", String::new(), &[]),
        ("null", "null".into(), &[]),
        ("array", "[]".into(), &[]),
        ("twice", "{\"schemaVersion\":2,\"manifests\":[],\"manifests\":[]}".into(), &[]),
    ] {
        let mut top = Layout::default();
        top.put("index.json", &text);
        row(&format!("index.json: {name}"), world.refuses_layout(&top, words))?;
        let mut inner = Layout::default();
        let manifest = inner.blob(MANIFEST, &text);
        inner.top(&[tagged(manifest, "latest")]);
        row(&format!("manifest: {name}"), world.refuses_layout(&inner, &[&["manifest"], words].concat()))?;
        let words: &[&str] = if name == "long" { &["--max-config"] } else { &[] };
        let config = text.clone();
        let replaced = image()
            .change_manifest(move |manifest| manifest["config"] = descriptor(CONFIG, config.as_bytes()));
        let mut layout = replaced.layout();
        layout.blob(CONFIG, &text);
        row(
            &format!("configuration: {name}"),
            world.refuses_layout(&layout, &[&["configuration"], words].concat()),
        )?;
        let mut docker = image().docker_save("a:b");
        docker.insert("manifest.json".into(), Node::File(text.into_bytes()));
        let source = world.write_archive("docker-archive", &archive(&entries(&docker)))?;
        row(&format!("manifest.json: {name}"), world.refuses(&[], &source, &[]))?;
    }
    let wrong: [fn(&mut Value); 6] = [
        |config| config["config"]["Env"] = json!(7),
        |config| config["config"]["Env"] = json!(["A\0B=c"]),
        |config| config["config"]["Cmd"] = json!([7]),
        |config| config["config"]["Cmd"] = json!(["a\0b"]),
        |config| config["config"]["User"] = json!({}),
        |config| config["rootfs"] = json!([]),
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        row(
            &format!("configuration {number}"),
            world.refuses_layout(&image().change_config(change).layout(), &[]),
        )?;
    }
    let source = world.write(&image().layout())?;
    for option in ["--max-manifest", "--max-config"] {
        world.refuses(&[option, "100"], &source, &[option, "100"])?;
    }
    Ok(())
}
