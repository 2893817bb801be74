//! Attacks of images on `bundle`: archives of images, and what an image's configuration asks for.

use super::bundle_world::{World, row};
use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::image::tar::{BLOCK, Entry, archive};
use crate::image::{Files, Image, Layer, Node, entries, write_directory};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs;

tests![
    "docker CVE-2019-14271: names in an archive by docker save" => names_in_docker_archives,
    "links in an archive by docker save" => links_in_docker_archives,
    "an archive by docker save of no image, of several" => images_of_docker_archives,
    "names in an archive of a layout" => names_in_oci_archives,
    "archives that end early, or are none" => damaged_archives,
    "CVE-2026-53488: labels that try to be policy" => labels_are_data,
    "CVE-2024-40635, CVE-2026-46680: users out of range" => users_out_of_range,
    "CVE-2026-46680: ids out of range in /etc/passwd and /etc/group" => user_files_with_large_ids,
    "CVE-2026-47262: /etc/passwd that is no file, or never ends" => user_files_that_cost,
    "buildah CVE-2024-1753: the working directory and volumes through links" => paths_in_the_configuration,
];

const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nme:x:5:6:me:/home/me:/bin/sh\n";

fn layer() -> Layer {
    Layer::of(&[Entry::directory("etc"), Entry::file("etc/passwd", PASSWD), Entry::file("x", "x")])
}

fn image() -> Image {
    Image::new(&[Layer::of(&[Entry::file("first", "")]), layer()])
}

/// The archive of these files is refused, as one by docker save and on stdin.
fn refused(world: &World, name: &str, files: &[Entry]) -> Verdict {
    let source = world.write_archive("docker-archive", &archive(files))?;
    row(name, world.refuses(&[], &source, &[]))?;
    let by_stdin = world.bundle_stdin(&[], source.trim_start_matches("docker-archive:"))?;
    row(&format!("{name} by stdin"), world.left_nothing(by_stdin, &[]))
}

fn change_manifest(files: &Files, change: impl FnOnce(&mut Value)) -> Files {
    let mut files = files.clone();
    if let Some(Node::File(bytes)) = files.get_mut("manifest.json") {
        let mut manifest: Value = serde_json::from_slice(bytes).expect("it was just made");
        change(&mut manifest);
        *bytes = manifest.to_string().into_bytes();
    }
    files
}

/// A layer that is on the host.
fn outside(world: &World) -> Verdict<String> {
    let path = world.directory.join("layer.tar");
    fs::write(&path, &layer().blob)?;
    Ok(text(&path).to_owned())
}

fn names_in_docker_archives(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let outside = outside(&world)?;
    let save = image().docker_save("a:b");
    let ways = ["../layer.tar", "../../layer.tar", "missing/layer.tar", "", ".", "/dev/zero", "layer.tar\0"];
    for bad in
        ways.map(str::to_owned).into_iter().chain([outside.clone(), format!("/proc/self/root{outside}")])
    {
        for of in ["Layers", "Config"] {
            let files = change_manifest(&save, |manifest| match of {
                "Layers" => manifest[0]["Layers"][1] = bad.clone().into(),
                _ => manifest[0]["Config"] = bad.clone().into(),
            });
            refused(&world, &format!("{of}: {bad:?}"), &entries(&files))?;
        }
    }
    Ok(())
}

fn links_in_docker_archives(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let outside = outside(&world)?;
    let save = image().docker_save("a:b");
    let path = save.keys().filter(|name| name.ends_with("layer.tar")).nth(1).cloned().unwrap_or_default();
    for target in [
        outside.as_str(),
        "../../layer.tar",
        "../../../../../../layer.tar",
        "layer.tar",
        "../manifest.json",
        "/dev/zero",
        "..",
        "",
    ] {
        let others = || {
            entries(&save)
                .into_iter()
                .zip(save.keys())
                .filter(|(_, name)| **name != path)
                .map(|(entry, _)| entry)
        };
        for link in [Entry::symlink(&path, target), Entry::hard_link(&path, target)] {
            refused(&world, target, &others().chain([link]).collect::<Vec<_>>())?;
        }
    }
    for node in [Node::Fifo, Node::Symlink("manifest.json".into()), Node::Symlink(outside.clone())] {
        let mut files = save.clone();
        files.insert("manifest.json".into(), node.clone());
        refused(&world, &format!("manifest.json is {node:?}"), &entries(&files))?;
    }
    Ok(())
}

fn images_of_docker_archives(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let save = image().docker_save("a:b");
    type Change = (&'static str, fn(&mut Value));
    let changes: [Change; 6] = [
        ("none", |manifest| *manifest = json!([])),
        ("two", |manifest| *manifest = json!([manifest[0], manifest[0]])),
        ("no layers", |manifest| manifest[0]["Layers"] = json!([])),
        ("no configuration", |manifest| manifest[0]["Config"] = Value::Null),
        ("layers that are no names", |manifest| manifest[0]["Layers"] = json!([1, 2])),
        ("too many layers", |manifest| manifest[0]["Layers"] = json!(vec!["x"; 10_000])),
    ];
    for (name, change) in changes {
        refused(&world, name, &entries(&change_manifest(&save, change)))?;
    }
    Ok(())
}

/// An archive of a layout is read where it is, or unpacked: either way nothing is made outside.
fn names_in_oci_archives(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize);
    let good = entries(&image().layout().files);
    let hostile = [
        vec![Entry::file("../../prize/new", "hostile")],
        vec![Entry::file(format!("{prize}/new"), "hostile")],
        vec![Entry::file("../../../../../../../../etc/rtt-hostile", "hostile")],
        vec![Entry::symlink("link", prize), Entry::file("link/new", "hostile")],
        vec![Entry::symlink("blobs", prize), Entry::file("blobs/new", "hostile")],
        vec![Entry::hard_link("hard", format!("{prize}/file")), Entry::file("hard", "hostile")],
        vec![Entry::device(b'3', "blobs/sha256/device", 1, 5), Entry::new(b'6', "blobs/sha256/fifo")],
        vec![Entry::directory("..").mode(0o777), Entry::directory(".").mode(0o777)],
    ];
    for entries in hostile {
        for all in [[&entries[..], &good].concat(), [&good[..], &entries].concat()] {
            let source = world.write_archive("oci-archive", &archive(&all))?;
            for output in
                [world.bundle(&[], &source)?, world.bundle_stdin(&[], &source["oci-archive:".len()..])?]
            {
                ensure!(matches!(output.status, 0 | 1), "status {}: {:?}", output.status, output.stderr);
                row(&entries[0].to_string(), world.unchanged())?;
                world.remove_out()?;
            }
        }
    }
    // In place of what the layout has: the links aren't followed out of the archive.
    let outside = world.image_path();
    write_directory(&image().layout().files, &outside)?;
    for name in image().layout().files.keys() {
        let mut files = image().layout().files;
        files.insert(name.clone(), Node::Symlink(format!("{}/{name}", text(&outside))));
        let source = world.write_archive("oci-archive", &archive(&entries(&files)))?;
        row(name, world.refuses(&[], &source, &[]))?;
    }
    Ok(())
}

fn damaged_archives(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for (kind, files) in
        [("oci-archive", image().layout().files), ("docker-archive", image().docker_save("a:b"))]
    {
        let whole = archive(&entries(&files));
        let mut bytes = vec![
            whole[..whole.len() / 2].to_vec(),
            whole[..100].to_vec(),
            Vec::new(),
            vec![0; 10 * BLOCK],
            vec![b'x'; 4096],
        ];
        bytes.push([&[0x1f, 0x8b][..], &whole].concat());
        for (number, bytes) in bytes.iter().enumerate() {
            let source = world.write_archive(kind, bytes)?;
            row(&format!("{kind} {number}"), world.refuses(&[], &source, &[]))?;
            let output = world.bundle_stdin(&[], &source[kind.len() + 1..])?;
            row(&format!("{kind} {number} by stdin"), world.left_nothing(output, &[]))?;
        }
    }
    // One kind for the other, and a header whose size lies.
    let docker = world.write_archive("oci-archive", &archive(&entries(&image().docker_save("a:b"))))?;
    world.refuses(&[], &docker, &[])?;
    let oci = world.write_archive("docker-archive", &archive(&entries(&image().layout().files)))?;
    world.refuses(&[], &oci, &["manifest.json"])?;
    for size in [1i64 << 40, i64::MAX, -1] {
        let mut all = entries(&image().layout().files);
        let last = all.pop().expect("there are some");
        all.push(last.size(size));
        let source = world.write_archive("oci-archive", &archive(&all))?;
        row(&format!("size {size}"), world.refuses(&[], &source, &[]))?;
    }
    Ok(())
}

fn config(world: &World) -> Verdict<Value> {
    Ok(serde_json::from_slice(&fs::read(world.out().join("config.json"))?)?)
}

/// Labels become annotations, as the image specification says, and change nothing else.
fn labels_are_data(case: &Case) -> Verdict {
    let world = World::new(case)?;
    world.bundle_image(&[], &image())?.succeeded()?;
    let mut plain = config(&world)?;
    world.remove_out()?;
    let labels = json!({
        "io.containerd.runc.options": "privileged", "org.criu.config": "/tmp/evil", "run.oci.handler": "krun",
        "run.oci.hooks.stdout": "/etc/evil", "io.podman.annotations.privileged": "TRUE", "seccomp": "unconfined",
        "io.kubernetes.cri-o.Devices": "/dev/sda", "privileged": "true", "org.opencontainers.image.stopSignal": "SIGHUP",
        "org.systemd.property.ExecStart": "'evil'", "\u{1b}[31m": "x", "": "empty",
    });
    let hostile = image().change_config(move |config| config["config"]["Labels"] = labels.clone());
    world.bundle_image(&[], &hostile)?.succeeded()?;
    let mut labelled = config(&world)?;
    for config in [&mut plain, &mut labelled] {
        config.as_object_mut().expect("an object").remove("annotations");
    }
    ensure_eq!(labelled, plain, "config.json but for its annotations");
    world.unchanged()
}

fn users_out_of_range(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let users = [
        "4294967295",
        "4294967296",
        "-1",
        "18446744073709551616",
        "99999999999999999999999",
        "0:4294967296",
        "5:-1",
        "5:18446744073709551616",
        "nobody-there",
        "me:nobody-there",
        "+0",
        "0x0",
        "1e3",
        "5:6:7",
        ":",
        "root:",
        "me\0root",
        "../root",
    ];
    for user in users {
        let named = image().change_config(move |config| config["config"]["User"] = user.into());
        let output = world.bundle_image(&[], &named)?;
        if matches!(user, "root:" | ":") && output.status == 0 {
            // Nothing after the colon may be no group at all, as Docker has it.
            ensure_eq!(config(&world)?["process"]["user"]["uid"], 0, "uid of {user:?}");
            world.remove_out()?;
            continue;
        }
        row(&format!("{user:?}"), world.left_nothing(output, &["ser"]))?;
    }
    for (user, uid, gid) in [
        ("", 0, 0),
        ("0", 0, 0),
        ("me", 5, 6),
        ("5", 5, 6),
        ("7:8", 7, 8),
        ("4294967294", 4_294_967_294u32, 0),
        ("me:0", 5, 0),
    ] {
        let named = image().change_config(move |config| config["config"]["User"] = user.into());
        row(&format!("{user:?}"), world.bundle_image(&[], &named)?.succeeded().map(drop))?;
        let found = config(&world)?["process"]["user"].clone();
        ensure_eq!((&found["uid"], &found["gid"]), (&json!(uid), &json!(gid)), "ids of {user:?}");
        world.remove_out()?;
    }
    Ok(())
}

/// An image with these entries, whose user is `me`.
fn with_user(layers: &[&[Entry]], user: &'static str) -> Image {
    let layers: Vec<Layer> = layers.iter().map(|entries| Layer::of(entries)).collect();
    Image::new(&layers).change_config(move |config| config["config"]["User"] = user.into())
}

fn user_files_with_large_ids(case: &Case) -> Verdict {
    let world = World::new(case)?;
    for id in ["4294967295", "4294967296", "-1", "18446744073709551616", "x", "", "0x0"] {
        let passwd = Entry::file("etc/passwd", format!("me:x:{id}:6::/:\n"));
        let output = world.bundle_image(&[], &with_user(&[&[passwd]], "me"))?;
        row(&format!("uid {id:?}"), world.left_nothing(output, &["user"]))?;
        let passwd = Entry::file("etc/passwd", format!("me:x:5:{id}::/:\n"));
        let output = world.bundle_image(&[], &with_user(&[&[passwd]], "me"))?;
        row(&format!("gid {id:?}"), world.left_nothing(output, &["user"]))?;
        let group = [Entry::file("etc/passwd", PASSWD), Entry::file("etc/group", format!("g:x:{id}:\n"))];
        let output = world.bundle_image(&[], &with_user(&[&group], "me:g"))?;
        row(&format!("group {id:?}"), world.left_nothing(output, &["group"]))?;
        // A supplementary group that is none must not become root's.
        let group = [Entry::file("etc/passwd", PASSWD), Entry::file("etc/group", format!("g:x:{id}:me\n"))];
        let output = world.bundle_image(&[], &with_user(&[&group], "me"))?;
        if output.status == 0 {
            let groups = config(&world)?["process"]["user"]["additionalGids"].clone();
            let groups: Vec<u64> =
                groups.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            ensure!(
                !groups.contains(&0) && groups.iter().all(|id| *id < 4_294_967_295),
                "groups with {id:?}: {groups:?}"
            );
            world.remove_out()?;
        }
        world.unchanged()?;
    }
    Ok(())
}

fn user_files_that_cost(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let secret = world.directory.join("passwd");
    fs::write(&secret, "me:x:0:0::/stolen:/bin/sh\n")?;
    let out = format!("../../../{}", secret.file_name().and_then(|name| name.to_str()).unwrap_or_default());
    let longest = "a".repeat((1 << 20) + 1);
    let hostile = [
        ("a fifo", Entry::new(b'6', "etc/passwd")),
        ("a device", Entry::device(b'3', "etc/passwd", 1, 5)),
        ("a link to the host", Entry::symlink("etc/passwd", text(&secret))),
        ("a relative one", Entry::symlink("etc/passwd", out)),
        ("by /proc", Entry::symlink("etc/passwd", format!("/proc/self/root{}", text(&secret)))),
        ("a directory", Entry::directory("etc/passwd")),
        ("a loop", Entry::symlink("etc/passwd", "passwd")),
        ("a long line", Entry::file("etc/passwd", &longest)),
        ("many lines", Entry::file("etc/passwd", "x:x:1:1::/:\n".repeat(17_000))),
    ];
    for (name, entry) in hostile {
        let output = world.bundle_image(&[], &with_user(&[&[entry]], "me"))?;
        row(name, world.left_nothing(output, &["me"]))?;
    }
    // By the directory.
    let etc = Entry::symlink("etc", text(&world.directory));
    let output = world.bundle_image(&[], &with_user(&[&[etc]], "me"))?;
    world.left_nothing(output, &["me"])
}

fn paths_in_the_configuration(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize).to_owned();
    let layer =
        [Entry::symlink("link", &prize), Entry::symlink("up", "../../prize"), Entry::file("file", "")];
    let paths = [
        "/link/new",
        "/up/new",
        "../../prize/new",
        "/../../prize/new",
        "link/new",
        "/file/new",
        "/link",
        "/up",
        "/file",
        "\u{1b}[31m",
        &format!("/proc/self/root{prize}/new"),
    ]
    .map(str::to_owned);
    for path in paths {
        let cwd = path.clone();
        let image = Image::new(&[Layer::of(&layer)])
            .change_config(move |config| config["config"]["WorkingDir"] = cwd.clone().into());
        row(&format!("WorkingDir {path:?}"), world.contains(&image).map(drop))?;
        let volume = path.clone();
        let image = Image::new(&[Layer::of(&layer)])
            .change_config(move |config| config["config"]["Volumes"] = json!({ volume.clone(): {} }));
        row(&format!("Volumes {path:?}"), world.contains(&image).map(drop))?;
    }
    Ok(())
}
