//! `bundle` that is killed, that isn't alone, that has a store; and `--verify`.

use super::bundle_life::small;
use super::bundle_world::{World, mounted, needs_overlay, row, snapshot};
use crate::case::{Case, Output, text, until};
use crate::harness::{Stop, Verdict};
use crate::image::tar::{Entry, archive};
use crate::image::{Image, Layer, Packing};
use crate::{ensure, ensure_eq, tests};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

tests![
    "bundle: kill -9 at any moment, directly" => killed,
    "bundle: kill -9 at any moment, with a store" => killed_with_a_store,
    "bundle: an interrupted one leaves nothing" => interrupted,
    "bundle: several with one store at the same time" => several_at_once,
    "bundle --gc beside one that unpacks" => gc_beside_an_unpacking_one,
    "bundle: the second one takes the layers from the store" => second_from_the_store,
    "bundle: images with layers in common, another order" => layers_in_common,
    "bundle --copy=full, hardlink, auto, reflink" => kinds_of_copies,
    "bundle --list, --gc" => list_and_collect,
    "bundle --gc=SIZE" => collect_to_a_size,
    "bundle: a store that was damaged, or isn't one" => damaged_store,
    "bundle --verify" => verify,
    "bundle --verify of what isn't a bundle" => verify_of_nothing,
];

/// An image that takes a while.
fn slow() -> Image {
    let file = |layer: usize, number: usize| {
        let content = format!("{layer} {number}").repeat(200 + number);
        Entry::file(format!("d{layer}/{}/{number}", number % 17), content)
    };
    let layer = |layer: usize| {
        let mut entries: Vec<Entry> = (0..60).map(|number| file(layer, number)).collect();
        entries.push(Entry::file(format!("d{}/.wh.0", layer.wrapping_sub(1)), ""));
        Layer::new(&archive(&entries), Packing::Gzip)
    };
    Image::new(&(0..4).map(layer).collect::<Vec<_>>())
}

/// What there is at OUT is a whole bundle.
fn is_whole(bundle: &Path) -> Verdict {
    ensure!(bundle.join("config.json").is_file(), "there is no config.json");
    let check = |rootfs: &Path| {
        for layer in 0..4 {
            let names = fs::read_dir(rootfs.join(format!("d{layer}")))?.count();
            ensure_eq!(names, if layer == 3 { 17 } else { 16 }, "directories of layer {layer}");
        }
        Ok(())
    };
    in_bundle(bundle, check)
}

/// Does it at the bundle's root file system, mounted if it is an overlay.
fn in_bundle(bundle: &Path, check: impl FnOnce(&Path) -> Verdict + Send) -> Verdict {
    if config_has_overlay(bundle)? { mounted(bundle, check) } else { check(&bundle.join("rootfs")) }
}

fn config_has_overlay(bundle: &Path) -> Verdict<bool> {
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    Ok(config["mounts"]
        .as_array()
        .is_some_and(|mounts| mounts.iter().any(|mount| mount["type"] == "overlay")))
}

/// Starts a command that makes a bundle.
pub fn spawn(world: &World, options: &[&str], source: &str, out: &Path) -> Verdict<Child> {
    let mut command = world.case.command(&[&["bundle"], options, &[source, text(out)]].concat());
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Waits until it ends, and tells whether it succeeded. One that waits for another that waits for it
/// never does.
fn succeeds(child: &mut Child) -> Verdict<bool> {
    let limit = Instant::now() + Duration::from_secs(60);
    while child.try_wait()?.is_none() {
        if Instant::now() > limit {
            child.kill()?;
            child.wait()?;
            return Err(Stop::Failed("it didn't end".into()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child.wait()?.success())
}

/// The processes below this one, however deep.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found.remove(0);
    found
}

/// When a process began, if it is there. Its number may be another's later: the same one, not another with its number.
fn start_time(pid: i32) -> Option<u64> {
    let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
    (stat.state != 'Z').then_some(stat.starttime)
}

/// Sends the signal after `delay`; returns whether the command had not ended by itself.
fn strike(mut child: Child, signal: Signal, delay: Duration) -> Verdict<bool> {
    std::thread::sleep(delay);
    let early = child.try_wait()?.is_none();
    let pid = child.id() as i32;
    let below: Vec<_> = descendants(pid).into_iter().map(|pid| (pid, start_time(pid))).collect();
    if early {
        kill(Pid::from_raw(pid), signal)?;
    }
    child.wait()?;
    until("the end of its children", || {
        Ok(below.iter().all(|&(pid, started)| started.is_none() || start_time(pid) != started))
    })?;
    Ok(early)
}

/// Strikes at moments all over the time that it takes, and looks each time.
fn strike_often(world: &World, options: &[&str], signal: Signal, times: u32) -> Verdict {
    let source = world.write(&slow().layout())?;
    let began = Instant::now();
    world.bundle(options, &source)?.succeeded()?;
    let takes = began.elapsed();
    is_whole(&world.out())?;
    world.remove_out()?;
    for number in 0..times {
        let store = world.directory.join("store");
        if store.exists() && number % 2 == 0 {
            fs::remove_dir_all(&store)?;
        }
        let delay = takes * number / times;
        let struck = strike(spawn(world, options, &source, &world.out())?, signal, delay)?;
        let what = format!("{signal} after {delay:?} of {takes:?}");
        if world.out().exists() {
            row(&format!("{what}: OUT is there"), is_whole(&world.out()))?;
            world.remove_out()?;
        } else {
            ensure!(struck, "{what}: it ended by itself, without OUT");
        }
        if signal != Signal::SIGKILL {
            row(&what, world.unchanged())?;
        }
        row(&what, world.bundle(options, &source)?.succeeded().map(drop))?;
        row(
            &format!("{what}, then the second run"),
            is_whole(&world.out()).and_then(|()| world.unchanged()),
        )?;
        world.remove_out()?;
    }
    world.unchanged()
}

fn killed(case: &Case) -> Verdict {
    strike_often(&World::new(case)?, &[], Signal::SIGKILL, 7)
}

fn killed_with_a_store(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    for way in ["--copy", "--overlay"] {
        let world = World::new(case)?;
        let store = world.directory.join("store");
        row(way, strike_often(&world, &["--store", text(&store), way], Signal::SIGKILL, 4))?;
        // What the killed ones left in the store goes with the rest.
        case.call(&["bundle", "--store", text(&store), "--gc=0"])?.succeeded()?;
    }
    Ok(())
}

fn interrupted(case: &Case) -> Verdict {
    let world = World::new(case)?;
    strike_often(&world, &[], Signal::SIGTERM, 2)?;
    strike_often(&world, &[], Signal::SIGINT, 2)
}

fn several_at_once(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let source = world.write(&slow().layout())?;
    let store = world.directory.join("store");
    let outs: Vec<_> = (0..6).map(|number| world.directory.join(format!("out-{number}"))).collect();
    let mut children = Vec::new();
    for (number, out) in outs.iter().enumerate() {
        let way = if number % 2 == 0 { "--copy" } else { "--overlay" };
        children.push(spawn(&world, &["--store", text(&store), way], &source, out)?);
    }
    // All of them, before one that failed is told: none may outlive the test.
    let ended: Vec<_> = children.iter_mut().map(succeeds).collect();
    for (number, succeeded) in ended.into_iter().enumerate() {
        ensure!(succeeded?, "number {number} failed");
    }
    for out in &outs {
        row(&format!("{out:?}"), is_whole(out))?;
    }
    // Two to one OUT: one of them has it, whole.
    let mut pair = [spawn(&world, &[], &source, &world.out())?, spawn(&world, &[], &source, &world.out())?];
    let ended = pair.each_mut().map(succeeds);
    let ended: Vec<bool> = ended.into_iter().collect::<Verdict<_>>()?;
    ensure!(ended.iter().any(|success| *success), "neither of two succeeded");
    is_whole(&world.out())?;
    world.unchanged()
}

fn gc_beside_an_unpacking_one(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let source = world.write(&slow().layout())?;
    let store = world.directory.join("store");
    for way in ["--copy", "--overlay", "--copy", "--overlay"] {
        let mut child = spawn(&world, &["--store", text(&store), way], &source, &world.out())?;
        while child.try_wait()?.is_none() {
            let collected = case.call(&["bundle", "--store", text(&store), "--gc=0"]);
            if let Err(stop) = collected.and_then(Output::succeeded) {
                child.kill()?;
                child.wait()?;
                return Err(stop);
            }
        }
        ensure!(succeeds(&mut child)?, "{way} failed beside --gc");
        case.call(&["bundle", "--store", text(&store), "--gc=0"])?.succeeded()?;
        // Also when all is over: an overlay's layers are in use as long as its bundle is there.
        row(way, is_whole(&world.out()))?;
        world.remove_out()?;
    }
    world.unchanged()
}

fn second_from_the_store(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let image = small();
    let source = world.write(&image.layout())?;
    let store = world.directory.join("store");
    let other = world.directory.join("other");
    for way in ["--overlay", "--copy"] {
        let options = ["--store", text(&store), way];
        world.bundle(&options, &source)?.succeeded()?;
        world.remove_out()?;
        // The layers' blobs aren't needed any more.
        let mut without = image.layout();
        without.files.retain(|name, _| {
            !image.layers.iter().any(|layer| name == &crate::image::blob_path(&layer.descriptor()))
        });
        let source = world.write(&without)?;
        row(way, world.bundle(&options, &source)?.succeeded().map(drop))?;
        world.remove_out()?;
        let elsewhere = world.bundle(&["--store", text(&other), way], &source)?;
        world.left_nothing(elsewhere, &["layer "])?;
    }
    Ok(())
}

/// A layer in the store is what it is over those below it.
fn layers_in_common(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let directory = Layer::of(&[Entry::directory("d").mode(0o700), Entry::file("d/old", "")]);
    let link = Layer::of(&[Entry::directory("real"), Entry::symlink("d", "real")]);
    let upper = Layer::of(&[Entry::file("d/new", ""), Entry::file("d/.wh.old", "")]);
    let store = world.directory.join("store");
    for way in ["--copy", "--overlay"] {
        for (name, below, path, count) in [
            ("a directory", &directory, "d/new", 1),
            ("a link", &link, "real/new", 1),
            ("nothing", &upper, "d/new", 1),
        ] {
            let image = Image::new(&[below.clone(), upper.clone()]);
            world.bundle_image(&["--store", text(&store), way], &image)?.succeeded()?;
            let check = |rootfs: &Path| {
                ensure!(rootfs.join(path).is_file(), "{path} isn't there over {name}");
                let parent = rootfs.join(path.trim_end_matches("/new"));
                ensure_eq!(fs::read_dir(parent)?.count(), count, "entries over {name}");
                Ok(())
            };
            row(way, in_bundle(&world.out(), check))?;
            world.remove_out()?;
        }
    }
    Ok(())
}

fn kinds_of_copies(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let store = world.directory.join("store");
    for kind in ["full", "auto", "hardlink", "reflink"] {
        let option = format!("--copy={kind}");
        let read_only: &[&str] = if kind == "hardlink" { &["--read-only"] } else { &[] };
        let output =
            world.bundle(&[&["--store", text(&store), option.as_str()], read_only].concat(), &source)?;
        if kind == "reflink" && output.status == 1 {
            // Not every file system can.
            world.left_nothing(output, &["FICLONE"])?;
            continue;
        }
        output.succeeded()?;
        let found = fs::metadata(world.rootfs().join("a"))?;
        ensure_eq!(found.nlink() > 1, kind == "hardlink", "whether {kind} shares files with the store");
        world.unchanged()?;
        world.remove_out()?;
    }
    // A change of what is a hard link would be one of the store.
    let output = world.bundle(&["--store", text(&store), "--copy=hardlink"], &source)?;
    if output.status != 0 {
        return world.left_nothing(output, &["--read-only"]);
    }
    Ok(())
}

/// How many bytes of disk a directory takes.
fn disk(path: &Path) -> Verdict<u64> {
    let mut all = path.symlink_metadata()?.blocks() * 512;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)?.flatten() {
            all += disk(&entry.path())?;
        }
    }
    Ok(all)
}

fn list_and_collect(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let store = world.directory.join("store");
    let with = |option: &str| case.call(&["bundle", "--store", text(&store), option]);
    // Of a store that isn't there yet.
    with("--list")?.succeeded()?;
    with("--gc")?.succeeded()?;
    let image = small();
    let source = world.write(&image.layout())?;
    world.bundle(&["--store", text(&store), "--overlay"], &source)?.succeeded()?;
    let list = with("--list")?.succeeded()?.stdout;
    ensure!(list.lines().count() >= 2, "the list of two layers: {list:?}");
    let json = case.call(&["bundle", "--store", text(&store), "--list", "--json"])?.succeeded()?.json()?;
    ensure!(json.to_string().contains("sha256:"), "the list as JSON: {json:#}");
    // In use.
    with("--gc=0")?.succeeded()?;
    in_bundle(&world.out(), |rootfs| {
        ensure!(rootfs.join("b").is_file(), "a layer in use is gone");
        Ok(())
    })?;
    world.remove_out()?;
    with("--gc=0")?.succeeded()?;
    let list = with("--list")?.succeeded()?.stdout;
    ensure!(!list.contains("sha256:"), "after --gc there is still {list:?}");
    world.bundle(&["--store", text(&store), "--copy"], &source)?.succeeded()?;
    ensure!(world.rootfs().join("b").is_file(), "the image isn't there");
    world.unchanged()
}

fn collect_to_a_size(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let store = world.directory.join("store");
    for number in 0..4u8 {
        let image = Image::new(&[Layer::of(&[Entry::file("f", vec![number; 1 << 20])])]);
        world.bundle_image(&["--store", text(&store), "--copy"], &image)?.succeeded()?;
        world.remove_out()?;
    }
    ensure!(disk(&store)? >= 4 << 20, "four layers take {} bytes", disk(&store)?);
    case.call(&["bundle", "--store", text(&store), "--gc=2500000"])?.succeeded()?;
    let left = disk(&store)?;
    ensure!((1 << 20..2_600_000).contains(&left), "{left} bytes are left of 4 MiB, with --gc=2500000");
    // The one that was used last is among them.
    let last = Image::new(&[Layer::of(&[Entry::file("f", vec![3; 1 << 20])])]);
    let mut layout = last.layout();
    layout.files.remove(&crate::image::blob_path(&last.layers[0].descriptor()));
    let source = world.write(&layout)?;
    world.bundle(&["--store", text(&store), "--copy"], &source)?.succeeded().map(drop)
}

fn damaged_store(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let source = world.write(&small().layout())?;
    let prize = text(&world.prize);
    let not_a_store = format!("{prize}/file");
    world.refuses(&["--store", &not_a_store, "--copy"], &source, &[&not_a_store])?;
    for option in ["--list", "--gc=0"] {
        case.call(&["bundle", "--store", &not_a_store, option])?.failed_with(&[&not_a_store])?;
        world.unchanged()?;
    }
    // Others' directories and links in it.
    let store = world.directory.join("store");
    world.bundle(&["--store", text(&store), "--copy"], &source)?.succeeded()?;
    world.remove_out()?;
    let mut directories = vec![store.clone()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory)?.flatten();
        directories.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        symlink(prize, directory.join("link"))?;
    }
    let _ = case.call(&["bundle", "--store", text(&store), "--list"])?;
    let _ = case.call(&["bundle", "--store", text(&store), "--gc=0"])?;
    world.unchanged()?;
    ensure_eq!(fs::metadata(&store)?.mode() & 0o066, 0, "others may list the store, or write to it");
    Ok(())
}

/// What is changed, of which path, and how.
type Change = (&'static str, &'static str, fn(&Path) -> std::io::Result<()>);

fn verify(case: &Case) -> Verdict {
    needs_overlay(&case.directory)?;
    let world = World::new(case)?;
    let image = Image::new(&[
        Layer::of(&[
            Entry::directory("d").mode(0o750),
            Entry::file("d/file", "content"),
            Entry::symlink("link", "d/file"),
            Entry::file("owned", "").owner(5, 6),
        ]),
        Layer::of(&[
            Entry::file("upper", "upper"),
            Entry::new(b'6', "fifo"),
            Entry::file("capable", "x").xattr("user.x", "1"),
            Entry::file(".wh.owned", ""),
        ]),
    ]);
    let source = world.write(&image.layout())?;
    let store = world.directory.join("store");
    let out = world.out();
    let verified = || case.call(&["bundle", "--verify", text(&out)]);
    for options in [&[][..], &["--store", text(&store), "--copy"]] {
        world.bundle(options, &source)?.succeeded()?;
        row("untouched", verified()?.succeeded().map(drop))?;
        let before = snapshot(&out)?;
        world.remove_out()?;
        let changes: [Change; 9] = [
            ("content", "d/file", |root| fs::write(root.join("d/file"), "CONTENT")),
            ("size", "d/file", |root| fs::write(root.join("d/file"), "longer content")),
            ("mode", "upper", |root| fs::set_permissions(root.join("upper"), Permissions::from_mode(0o666))),
            ("mode of a directory", "d", |root| {
                fs::set_permissions(root.join("d"), Permissions::from_mode(0o777))
            }),
            ("owner", "upper", |root| std::os::unix::fs::lchown(root.join("upper"), Some(7), None)),
            ("missing", "fifo", |root| fs::remove_file(root.join("fifo"))),
            ("added", "d/new", |root| fs::write(root.join("d/new"), "")),
            ("link", "link", |root| {
                fs::remove_file(root.join("link")).and_then(|()| symlink("upper", root.join("link")))
            }),
            ("type", "upper", |root| {
                fs::remove_file(root.join("upper")).and_then(|()| fs::create_dir(root.join("upper")))
            }),
        ];
        for (name, path, change) in changes {
            world.bundle(options, &source)?.succeeded()?;
            change(&world.rootfs())?;
            let output = verified()?;
            ensure!(output.status == 1, "{options:?}: {name} of {path:?}: status {}", output.status);
            let said = output.stdout + &output.stderr;
            ensure!(said.contains(path), "{options:?}: {name}: {path:?} is not in {said:?}");
            world.remove_out()?;
        }
        ensure!(!before.is_empty(), "there was nothing to verify");
    }
    // By an overlay: what its container has written is a change.
    world.bundle(&["--store", text(&store), "--overlay"], &source)?.succeeded()?;
    row("an untouched overlay", verified()?.succeeded().map(drop))?;
    world.unchanged()
}

fn verify_of_nothing(case: &Case) -> Verdict {
    let world = World::new(case)?;
    let prize = text(&world.prize).to_owned();
    for path in ["/no/such", "/etc/passwd", "", &prize] {
        case.call(&["bundle", "--verify", path])?.failed_with(&["damda bundle failed: "])?;
    }
    // One that the runtime's own bundle is of no image.
    let bundle = case.bundle(|_| ())?;
    case.call(&["bundle", "--verify", text(&bundle.path)])?.failed_with(&["damda bundle failed: "])?;
    world.unchanged()
}
