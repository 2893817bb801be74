//! `bundle` as a command: the kinds of images that it takes, the bundle that comes of them and runs,
//! OUT, and what its options say.

use super::bundle_store::{descendants, spawn};
use super::bundle_world::{World, mounted, needs_overlay, row};
use crate::case::{Bundle, Case, Output, text, until};
use crate::harness::{Stop, Verdict};
use crate::image::tar::{Entry, archive};
use crate::image::{Image, Layer, Layout, Packing, architecture, entries, tagged, zstd_frame};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

tests![
    "bundle, then run: oci:DIR, with and without a tag" => layouts_run,
    "bundle, then run: oci-archive:TAR" => oci_archives_run,
    "bundle, then run: docker-archive:TAR, old and new" => docker_archives_run,
    "bundle, then run: -, known by its content" => stdin_runs,
    "bundle, then run: dir:ROOTFS" => directories_run,
    "bundle, then run: embedded:" => embedded_runs,
    "bundle, then run: --overlay" => overlays_run,
    "bundle: -- CMD" => commands_replace_the_images,
    "bundle: --platform, nested indexes" => platforms,
    "bundle: several images, by their tags" => tags,
    "bundle: OUT that isn't empty" => out_that_is_not_empty,
    "bundle: OUT that is empty" => out_that_is_empty,
    "bundle: OUT without a parent, or no directory" => out_that_can_not_be,
    "bundle --dry-run" => dry_run,
    "bundle --json" => machine_readable,
    "bundle --quiet" => quiet,
    "bundle: usage" => usage,
    "bundle: a layer's reader can reach nothing" => unpacker_is_confined,
    "bundle --overlay: a store and a bundle with odd names" => odd_names,
];

/// The suite's program as an image, with a layer above it.
pub fn program(case: &Case) -> Verdict<Image> {
    let probe = Entry::file("probe", loaded(fs::read(case.probe())?)).mode(0o755);
    let directories = ["proc", "sys", "dev", "tmp", "etc"].map(Entry::directory);
    let below = archive(&[&directories[..], &[probe]].concat());
    let above = archive(&[Entry::file("etc/hostname", "image\n"), Entry::file("etc/marker", "of the image")]);
    Ok(Image::new(&[Layer::new(&below, Packing::Plain), Layer::new(&above, Packing::Gzip)]))
}

/// What of a static program is loaded, by its program headers (elf(5)): all but what is for debuggers,
/// which is much more.
fn loaded(mut elf: Vec<u8>) -> Vec<u8> {
    let number = |at: usize, width: usize| {
        elf.get(at..at + width)
            .map_or(0, |bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    // e_phoff, e_phentsize and e_phnum; p_offset and p_filesz of each.
    let headers = (0..number(56, 2)).map(|index| number(32, 8) + index * number(54, 2));
    let end = headers.map(|header| number(header + 8, 8) + number(header + 32, 8)).max();
    elf.truncate(end.unwrap_or(usize::MAX));
    elf
}

/// Runs what was made of `program`, and checks that it is that.
fn runs(world: &World, made: Output) -> Verdict {
    made.succeeded()?;
    let bundle = Bundle { path: world.out() };
    let report = world.case.run(&bundle)?.succeeded()?.json()?;
    ensure_eq!(report["environment"]["FROM"], "image", "the image's environment");
    world.case.nothing_left()?;
    world.unchanged()?;
    world.remove_out()
}

fn layouts_run(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&program(case)?.layout())?;
    runs(&world, world.bundle(&[], &source)?)?;
    runs(&world, world.bundle(&[], &format!("{source}:latest"))?)
}

fn oci_archives_run(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write_archive("oci-archive", &archive(&entries(&program(case)?.layout().files)))?;
    runs(&world, world.bundle(&[], &source)?)
}

fn docker_archives_run(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let image = program(case)?;
    let old = world.write_archive("docker-archive", &archive(&entries(&image.docker_save("a:b"))))?;
    runs(&world, world.bundle(&[], &old)?)?;
    let new =
        world.write_archive("docker-archive", &archive(&entries(&image.docker_save_with_blobs("a:b"))))?;
    runs(&world, world.bundle(&[], &new)?)?;
    // Two layers with the same content, of which the second is a link to the first.
    let twice = Layer::of(&[Entry::file("twice", "x")]);
    let image = Image::new(&[twice.clone(), Layer::of(&[Entry::file(".wh.twice", "")]), twice]);
    let linked = world.write_archive("docker-archive", &archive(&entries(&image.docker_save("a:b"))))?;
    world.bundle(&[], &linked)?.succeeded()?;
    ensure_eq!(
        fs::read_to_string(world.rootfs().join("twice"))?,
        "x",
        "the file of the layer that is linked"
    );
    Ok(())
}

fn stdin_runs(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let image = program(case)?;
    let kinds = [image.layout().files, image.docker_save("a:b"), image.docker_save_with_blobs("a:b")];
    for (number, files) in kinds.iter().enumerate() {
        let source = world.write_archive("", &archive(&entries(files)))?;
        row(&format!("kind {number}"), runs(&world, world.bundle_stdin(&[], &source[1..])?))?;
    }
    Ok(())
}

fn directories_run(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let rootfs = case.bundle(|_| ())?.rootfs();
    let source = format!("dir:{}", text(&rootfs));
    let out = world.out();
    case.call(&["bundle", &source, text(&out), "--", "/probe", "report"])?.succeeded()?;
    case.run(&Bundle { path: out })?.succeeded()?.json()?;
    ensure!(rootfs.join("probe").exists(), "the directory has lost something");
    world.unchanged()
}

fn embedded_runs(case: &Case) -> Verdict {
    let world = World::new(case)?;
    world.bundle(&[], "embedded:")?.succeeded()?;
    case.run(&Bundle { path: world.out() })?.succeeded()?;
    case.nothing_left()?;
    world.unchanged()
}

fn overlays_run(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let source = world.write(&program(case)?.layout())?;
    let store = world.directory.join("store");
    let options = ["--store", text(&store), "--overlay"];
    world.bundle(&options, &source)?.succeeded()?;
    let bundle = Bundle { path: world.out() };
    let report = case.run(&bundle)?.succeeded()?.json()?;
    ensure_eq!(report["environment"]["FROM"], "image", "the image's environment");
    case.nothing_left()?;
    // What a container writes is its bundle's alone.
    let mut config: Value = serde_json::from_slice(&fs::read(bundle.path.join("config.json"))?)?;
    config["process"]["args"] = crate::case::probe(&["write", "/etc/marker", "changed"]);
    fs::write(bundle.path.join("config.json"), config.to_string())?;
    case.run(&bundle)?.succeeded()?;
    let marker = |expected: &'static str| {
        move |rootfs: &Path| {
            ensure_eq!(fs::read_to_string(rootfs.join("etc/marker"))?, expected, "the file");
            Ok(())
        }
    };
    mounted(&bundle.path, marker("changed"))?;
    let second = world.directory.join("second");
    case.call(&[&["bundle"], &options[..], &[source.as_str(), text(&second)]].concat())?.succeeded()?;
    mounted(&second, marker("of the image"))
}

fn commands_replace_the_images(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&program(case)?.layout())?;
    let out = world.out();
    case.call(&["bundle", &source, text(&out), "--", "/probe", "exit", "7"])?.succeeded()?;
    ensure_eq!(case.run(&Bundle { path: out })?.status, 7, "exit status of the command");
    Ok(())
}

fn platforms(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let image = |name: &'static str, architecture: &'static str| {
        let image = Image::new(&[Layer::of(&[Entry::file(name, "")])]);
        image.change_config(move |config| config["architecture"] = architecture.into())
    };
    let mut layout = Layout::default();
    let mut for_platform = |name, architecture: &'static str, variant: Option<&str>| {
        let mut descriptor = layout.add(&image(name, architecture));
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            descriptor["platform"]["variant"] = variant.into();
        }
        descriptor
    };
    let (own, s390) = (for_platform("own", architecture(), None), for_platform("s390x", "s390x", None));
    let (v6, v7) = (for_platform("v6", "arm", Some("v6")), for_platform("v7", "arm", Some("v7")));
    let inner = layout.index(&[v6, s390, own, v7]);
    layout.top(&[tagged(inner, "latest")]);
    let source = world.write(&layout)?;
    let mine = format!("linux/{}", architecture());
    for (options, name) in [
        (&[][..], "own"),
        (&["--platform", &mine], "own"),
        (&["--platform", "linux/s390x"], "s390x"),
        (&["--platform", "linux/arm/v6"], "v6"),
        (&["--platform", "linux/arm/v7"], "v7"),
    ] {
        row(&format!("{options:?}"), world.bundle(options, &source)?.succeeded().map(drop))?;
        ensure!(world.rootfs().join(name).exists(), "with {options:?} it isn't the image {name}");
        world.remove_out()?;
    }
    world.refuses(&["--platform", "linux/riscv64"], &source, &["riscv64", "s390x"])?;
    world.refuses(&["--platform", "plan9/amd64"], &source, &["plan9"])
}

fn tags(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let mut layout = Layout::default();
    let mut tagged_image = |tag| {
        let descriptor = layout.add(&Image::new(&[Layer::of(&[Entry::file(tag, "")])]));
        tagged(descriptor, tag)
    };
    let all = ["one", "two", "latest"].map(&mut tagged_image);
    layout.top(&all);
    let source = world.write(&layout)?;
    for (suffix, name) in [(":one", "one"), (":two", "two"), (":latest", "latest"), ("", "latest")] {
        world.bundle(&[], &format!("{source}{suffix}"))?.succeeded()?;
        ensure!(world.rootfs().join(name).exists(), "{suffix:?} isn't the image {name}");
        world.remove_out()?;
    }
    world.refuses(&[], &format!("{source}:three"), &["three", "one", "two"])?;
    layout.top(&all[..2]);
    let source = world.write(&layout)?;
    world.refuses(&[], &source, &["one", "two"])
}

/// A small image.
pub fn small() -> Image {
    Image::new(&[Layer::of(&[Entry::file("a", "a")]), Layer::of(&[Entry::file("b", "b")])])
}

fn out_that_is_not_empty(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    fs::create_dir_all(world.rootfs())?;
    fs::write(world.rootfs().join("mine"), "mine")?;
    fs::write(world.out().join("config.json"), "mine")?;
    let before = super::bundle_world::snapshot(&world.out())?;
    let store = world.directory.join("store");
    for options in [&[][..], &["--store", text(&store), "--copy"], &["--store", text(&store), "--overlay"]] {
        let output = world.bundle(options, &source)?;
        ensure_eq!(output.status, 1, "exit status");
        output.failed_with(&["damda bundle failed: ", text(&world.out()), "empty"])?;
        ensure_eq!(super::bundle_world::snapshot(&world.out())?, before, "OUT");
        world.unchanged()?;
    }
    Ok(())
}

fn out_that_is_empty(case: &Case) -> Verdict {
    let world = World::new(case)?;
    fs::create_dir(world.out())?;
    fs::set_permissions(world.out(), Permissions::from_mode(0o710))?;
    world.bundle_image(&[], &small())?.succeeded()?;
    ensure!(world.rootfs().join("b").exists(), "the image isn't in OUT");
    ensure!(world.out().join("config.json").exists(), "there is no config.json");
    world.unchanged()?;
    world.remove_out()?;
    // With a slash, and as a relative path.
    let source = world.write(&small().layout())?;
    for out in [format!("{}/", text(&world.out())), format!("{}/./out", text(&world.place))] {
        case.call(&["bundle", &source, &out])?.succeeded()?;
        ensure!(world.rootfs().join("b").exists(), "the image isn't in {out:?}");
        world.unchanged()?;
        world.remove_out()?;
    }
    let mut relative = case.command(&["bundle", &source, "out"]);
    relative.current_dir(&world.place);
    case.finish(relative)?.succeeded()?;
    ensure!(world.rootfs().join("b").exists(), "the image isn't in a relative OUT");
    // Others may see a bundle or not, but never write into it.
    ensure_eq!(fs::metadata(world.out())?.mode() & 0o022, 0, "OUT is others' to write");
    world.unchanged()
}

fn out_that_can_not_be(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let prize = text(&world.prize);
    for out in [
        format!("{prize}/file"),
        format!("{prize}/file/x"),
        "/proc/rtt-out".into(),
        String::new(),
        "/".into(),
    ] {
        let output = case.call(&["bundle", &source, &out])?;
        ensure!(output.status != 0, "OUT {out:?} was accepted");
        output.failed_with(&[])?;
        world.unchanged()?;
    }
    // A link to an empty directory, to one that isn't, to nothing: the link itself stays.
    let empty = world.directory.join("empty");
    fs::create_dir(&empty)?;
    for target in [text(&empty), prize, "/no/such"] {
        symlink(target, world.out())?;
        let _ = case.call(&["bundle", &source, text(&world.out())])?;
        ensure!(world.out().symlink_metadata()?.is_symlink(), "the link to {target} is gone");
        world.unchanged()?;
        fs::remove_file(world.out())?;
    }
    Ok(())
}

fn dry_run(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let store = world.directory.join("store");
    for options in [
        &["--dry-run"][..],
        &["--dry-run", "--store", text(&store), "--overlay"],
        &["--dry-run", "--store", text(&store), "--copy"],
    ] {
        let output = world.bundle(options, &source)?.succeeded()?;
        ensure!(!(output.stdout + &output.stderr).trim().is_empty(), "{options:?} says nothing");
        ensure!(!world.out().exists(), "OUT is there after {options:?}");
        ensure!(!store.exists(), "the store is there after {options:?}");
        world.unchanged()?;
    }
    // What would fail for its manifest's sake fails.
    let wrong = small().change_config(|config| config["rootfs"]["diff_ids"] = json!([]));
    let source = world.write(&wrong.layout())?;
    world.refuses(&["--dry-run"], &source, &["diffIDs"])
}

fn machine_readable(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let image = small();
    let source = world.write(&image.layout())?;
    let output = world.bundle(&["--json"], &source)?.succeeded()?;
    let json = output.json()?;
    let text = json.to_string();
    let manifest = crate::image::digest(&image.manifest(&image.config()));
    for digest in [&manifest, &crate::image::digest(&image.layers[0].blob), &image.layers[1].diff_id] {
        ensure!(text.contains(digest.as_str()), "{digest} is not in {json:#}");
    }
    let phases = json["milliseconds"].as_object().map_or(0, serde_json::Map::len);
    ensure!(phases > 1, "there are no timings by phase in {json:#}");
    world.unchanged()
}

fn quiet(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let output = world.bundle(&["--quiet"], &source)?.succeeded()?;
    ensure_eq!(output.stdout + &output.stderr, "", "output");
    world.remove_out()?;
    // A failure is told all the same.
    world.refuses(&["--quiet"], "oci:/no/such", &["/no/such"])
}

fn usage(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let out = world.out();
    for arguments in [
        &["bundle"][..],
        &["bundle", &source],
        &["bundle", "--nonsense", &source, text(&out)],
        &["bundle", "--max-size", "x", &source, text(&out)],
        &["bundle", "--copy=nonsense", &source, text(&out)],
        &["bundle", "--platform", "", &source, text(&out)],
        &["bundle", &source, text(&out), "third"],
        &["bundle", "--copy", "--overlay", &source, text(&out)],
    ] {
        let output = case.call(arguments)?;
        row(&format!("{arguments:?}"), output.failed_with(&[]).map(drop))?;
        ensure!(!out.exists(), "OUT is there after {arguments:?}");
    }
    world.unchanged()
}

/// It has a mount namespace, a root and a network of its own, no privileges to win, and few system calls.
fn unpacker_is_confined(case: &Case) -> Verdict {
    let world = World::new(case)?;
    // The data of a volume's label is read and not written: this takes a while, and no disk.
    let label = Entry::new(b'V', "label").size(60 << 30).bytes();
    let blob = [zstd::encode_all(&label[..], 1)?, zstd_frame(0, 60 << 30, 20)].concat();
    let source = world.write(&Image::new(&[Layer { blob, ..Layer::new(&[], Packing::Zstd) }]).layout())?;
    let options = ["--max-ratio", "1000000", "--max-size", "1t"];
    let mut child = spawn(&world, &options, &source, &world.out())?;
    let seen = until("an unpacker with a filter", || {
        Ok(confined(child.id() as i32).is_some() || child.try_wait()?.is_some())
    });
    let found = seen.and_then(|()| look_at(confined(child.id() as i32)));
    child.kill()?;
    child.wait()?;
    found?;
    world.remove_out()
}

/// The process below this one that has a seccomp filter.
fn confined(pid: i32) -> Option<i32> {
    let filtered = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("\nSeccomp:\t2\n")
    };
    descendants(pid).into_iter().find(filtered)
}

fn look_at(pid: Option<i32>) -> Verdict {
    let Some(pid) = pid else {
        return Err(Stop::Failed("there is no unpacker with a seccomp filter".into()));
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("\nNoNewPrivs:\t1\n"), "it could win privileges: {status}");
    for namespace in ["mnt", "net", "ipc"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        ensure!(of(&pid.to_string())? != of("self")?, "its {namespace} namespace is the host's");
    }
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap_or_default();
    let capabilities = u64::from_str_radix(capabilities, 16)?;
    // CAP_SYS_ADMIN stays, for attributes named trusted.*: the filter has none of its other calls.
    for (name, number) in [
        ("CAP_SYS_PTRACE", 19),
        ("CAP_SYS_MODULE", 16),
        ("CAP_NET_ADMIN", 12),
        ("CAP_BPF", 39),
        ("CAP_KILL", 5),
    ] {
        ensure!(capabilities & 1 << number == 0, "it has {name}");
    }
    let names: Vec<_> =
        fs::read_dir(format!("/proc/{pid}/root/"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names.is_empty(), "its root isn't the layer's: {names:?}");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let open = fs::read_link(entry.path())?;
        let outside =
            ["/proc", "/etc", "/var", "/root", "/home", "/dev/pts"].iter().any(|path| open.starts_with(path));
        ensure!(!outside, "it has {open:?} open");
    }
    Ok(())
}

/// Commas and colons separate the options of an overlay mount, and its layers.
fn odd_names(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let source = world.write(&program(case)?.layout())?;
    for name in ["with,comma", "with:colon", "with\\backslash", "with space", "umläut", "-dash"] {
        let directory = world.directory.join(name);
        fs::create_dir(&directory)?;
        let (store, out) = (directory.join("store"), directory.join("out"));
        let made = case.call(&["bundle", "--store", text(&store), "--overlay", &source, text(&out)])?;
        row(name, made.succeeded().map(drop))?;
        row(name, case.run(&Bundle { path: out })?.succeeded().map(drop))?;
        case.nothing_left()?;
    }
    Ok(())
}
