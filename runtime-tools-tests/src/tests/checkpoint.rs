//! checkpoint and restore, which need CRIU.

use crate::case::{Bundle, Case, Output, add_user_namespace, probe, text, until};
use crate::harness::{Stop, Verdict};
use crate::receive::receive;
use crate::{ensure, ensure_eq, skip, tests};
use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

tests![
    "runc checkpoint; runc restore" => goes_on_where_it_was,
    "runc checkpoint --leave-running" => leave_running,
    "runc checkpoint --pre-dump; --parent-path" => pre_dump,
    "runc checkpoint --parent-path: relative, and there" => bad_parent_path,
    "runc checkpoint: what is not running" => states,
    "runc checkpoint: paused" => paused,
    "runc checkpoint: CRIU's reason" => failure_has_a_reason,
    "runc restore: missing image" => missing_image,
    "runc restore: damaged image" => damaged_image,
    "runc restore: an id that is taken" => taken_id,
    "runc restore: the standard streams" => pipes,
    "runc restore --console-socket" => terminal,
    "runc restore, in the foreground" => in_the_foreground,
    "runc restore: bind mounts, nested" => bind_mounts,
    "runc restore: bind mounts to links" => bind_mounts_to_links,
    "runc restore; runc exec" => exec_afterwards,
    "runc restore: cgroups and their limits" => cgroups,
    "runc restore --manage-cgroups-mode ignore: another cgroup" => another_cgroup,
    "runc restore: mounted cgroups" => mounted_cgroups,
    "runc restore: a network namespace that is joined" => joined_network,
    "runc restore: a user namespace" => user_namespace,
    "runc restore: hooks" => hooks,
    "runc restore: a hook that fails" => failing_hook,
    "runc delete --force, during restore" => deleted_while_restored,
    "runc checkpoint: the annotation org.criu.config" => configuration_file,
    "runc checkpoint --lazy-pages" => lazy_pages,
    "runc restore --systemd-cgroup" => systemd,
    "podman: what it asks of a runtime" => what_podman_asks,
];

/// Skips where CRIU is missing, or can't work on this kernel.
fn needs_criu(case: &Case) -> Verdict {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    if case.runtime.name == "crun" {
        skip!("crun keeps other files");
    }
    let tried = TRIED.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Err("CRIU needs root".into());
        }
        let check = criu().arg("check").output();
        let check = check.map_err(|error| format!("needs CRIU: {error}"))?;
        match check.status.success() {
            true => can_dump().map_err(|why| format!("CRIU can't save processes here: {why}")),
            false => Err(format!("criu check: {}", first_error(&[check.stdout, check.stderr].concat()))),
        }
    });
    tried.clone().map_err(Stop::Skipped)
}

/// Whether CRIU can save a process, which `criu check` doesn't try.
fn can_dump() -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let directory = tempfile::tempdir().map_err(told)?;
    let sleep = ["setsid", "sleep", "100"];
    let mut command = Command::new(sleep[0]);
    command.args(&sleep[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(told)?;
    // Not before it has become what it is to be.
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    let mut dump = criu();
    dump.args(["dump", "--shell-job", "--leave-running", "-t", &id, "-D"]).arg(directory.path());
    let dump = dump.output().map_err(told);
    let _ = child.kill();
    let _ = child.wait();
    let dump = dump?;
    let said = [dump.stdout, dump.stderr].concat();
    if dump.status.success() { Ok(()) } else { Err(first_error(&said)) }
}

/// CRIU without this machine's configuration, which could have it log to who knows where.
fn criu() -> Command {
    let mut command = Command::new("criu");
    command.arg("--no-default-config");
    command
}

/// The first error of what CRIU prints.
fn first_error(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().find(|line| line.contains("Error")).unwrap_or("it failed").trim().into()
}

/// Runs a command whose standard streams a container may keep: none of them is a file of the host's,
/// which CRIU couldn't save.
fn quiet<S: AsRef<OsStr> + Debug>(case: &Case, arguments: &[S]) -> Verdict {
    let log = case.directory.join("quiet.log");
    let _ = fs::remove_file(&log);
    let mut command = case.command(&["--log", text(&log)]);
    command.args(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // In an emulated machine CRIU takes its time.
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > Duration::from_secs(100) {
            child.kill()?;
            child.wait()?;
            return Err(Stop::Failed(format!("{arguments:?} didn't end")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait()?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    if said.contains("Invalid manage cgroups mode") {
        skip!("this {} is too old for the mode ignore", case.runtime.name);
    }
    ensure!(status.success(), "{arguments:?}: {status}: {said}");
    Ok(())
}

/// Runs a container that counts.
fn counting(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict<Bundle> {
    needs_criu(case)?;
    let bundle = case.bundle(|config| {
        config["process"]["args"] = probe(&["count", "/tmp/count"]);
        change(config);
    })?;
    quiet(case, &["run", "--detach", "--bundle", text(&bundle.path), &case.id])?;
    until("the program", || Ok(bundle.rootfs().join("tmp/count").exists()))?;
    Ok(bundle)
}

/// The number that is the process's own, and how far it is.
fn count(bundle: &Bundle) -> Verdict<(String, u64)> {
    let written = fs::read_to_string(bundle.rootfs().join("tmp/count"))?;
    let (own, counter) =
        written.split_once(' ').ok_or_else(|| Stop::Failed(format!("count: {written:?}")))?;
    Ok((own.into(), counter.parse()?))
}

fn images(case: &Case) -> PathBuf {
    case.directory.join("images")
}

fn checkpoint(case: &Case, options: &[&str]) -> Verdict {
    let images = images(case);
    quiet(case, &[&["checkpoint", "--image-path", text(&images)], options, &[&case.id]].concat())
}

/// The arguments of a `restore` from the case's images; `rest` are more options, and the id.
fn restoring(case: &Case, bundle: &Bundle, rest: &[&str]) -> Vec<String> {
    let images = images(case);
    let first = ["restore", "--image-path", text(&images), "--bundle", text(&bundle.path)];
    first.iter().chain(rest).copied().map(str::to_owned).collect()
}

fn restore(case: &Case, bundle: &Bundle, options: &[&str]) -> Verdict {
    quiet(case, &restoring(case, bundle, &[&["--detach"], options, &[&case.id]].concat()))
}

/// A `restore` that is to fail, with what it says.
fn try_restore(case: &Case, bundle: &Bundle) -> Verdict<Output> {
    case.call(&restoring(case, bundle, &["--detach", &case.id]))
}

/// Fails unless the process went on from `before`.
fn went_on(bundle: &Bundle, before: &(String, u64)) -> Verdict {
    until("more counting", || Ok(count(bundle)?.1 > before.1 + 3))?;
    ensure_eq!(count(bundle)?.0, before.0, "the process's own number");
    Ok(())
}

fn goes_on_where_it_was(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let pid_file = case.directory.join("pid");
    for _ in 0..2 {
        checkpoint(case, &[])?;
        case.call(&["state", &case.id])?.failed_with(&["does not exist"])?;
        ensure!(case.cgroups().is_empty(), "its cgroups are left");
        let before = count(&bundle)?;
        restore(case, &bundle, &["--pid-file", text(&pid_file)])?;
        let state = case.state()?;
        ensure_eq!(state["status"], "running", "status");
        ensure_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file)?.trim(), "pid");
        went_on(&bundle, &before)?;
    }
    case.call(&["kill", &case.id, "TERM"])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&["delete", &case.id])?.succeeded()?;
    case.nothing_left()
}

fn leave_running(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let before = count(&bundle)?;
    checkpoint(case, &["--leave-running"])?;
    went_on(&bundle, &before)?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)
}

fn pre_dump(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let feature = criu().args(["check", "--feature", "mem_dirty_track"]).output()?;
    if !feature.status.success() {
        skip!("needs a kernel that tracks changes of memory");
    }
    let parent = case.directory.join("parent");
    quiet(case, &["checkpoint", "--pre-dump", "--image-path", text(&parent), &case.id])?;
    ensure_eq!(case.state()?["status"], "running", "status");
    let before = count(&bundle)?;
    went_on(&bundle, &before)?;
    checkpoint(case, &["--parent-path", "../parent"])?;
    ensure!(images(case).join("parent").join("pagemap-1.img").exists(), "the parent isn't linked");
    let before = count(&bundle)?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)
}

fn bad_parent_path(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let (images, missing) = (images(case), case.directory.join("missing"));
    for parent in [text(&case.directory), text(&missing), "../missing"] {
        let arguments = ["checkpoint", "--image-path", text(&images), "--parent-path", parent, &case.id];
        case.call(&arguments)?.failed_with(&["--parent-path"])?;
    }
    went_on(&bundle, &count(&bundle)?)
}

fn states(case: &Case) -> Verdict {
    needs_criu(case)?;
    let images = images(case);
    let arguments = ["checkpoint", "--image-path", text(&images), &case.id];
    case.call(&arguments)?.failed_with(&["does not exist"])?;
    case.create(|_| ())?;
    case.call(&arguments)?.failed_with(&["cannot be checkpointed in created state"])?;
    case.call(&["start", &case.id])?.succeeded()?;
    case.until_status("stopped")?;
    case.call(&arguments)?.failed_with(&["cannot be checkpointed in stopped state"])?;
    Ok(())
}

fn paused(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    case.call(&["pause", &case.id])?.succeeded()?;
    let before = count(&bundle)?;
    checkpoint(case, &[])?;
    ensure_eq!(count(&bundle)?, before, "the count");
    restore(case, &bundle, &[])?;
    ensure_eq!(case.state()?["status"], "running", "status");
    went_on(&bundle, &before)
}

/// Its standard output is a file of the host's, which CRIU can't save.
fn failure_has_a_reason(case: &Case) -> Verdict {
    needs_criu(case)?;
    case.start(|_| ())?;
    let images = images(case);
    let failed = case.call(&["checkpoint", "--image-path", text(&images), &case.id])?;
    // Debian's runc says "criu failed: type NOTIFY errno 0".
    let words: &[&str] =
        if case.runtime.name == "damda" { &["criu failed: ", "mount", "dump.log"] } else { &["criu failed"] };
    failed.failed_with(words)?;
    ensure_eq!(case.state()?["status"], "running", "status");
    case.exec(&[], &["exit", "0"])?.succeeded()?;
    Ok(())
}

fn missing_image(case: &Case) -> Verdict {
    needs_criu(case)?;
    let bundle = case.bundle(|_| ())?;
    try_restore(case, &bundle)?.failed_with(&["no such file or directory"])?;
    if case.runtime.name == "damda" {
        case.nothing_left()?;
        ensure!(!images(case).exists(), "the directory was made");
    }
    Ok(())
}

fn damaged_image(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    fs::write(images(case).join("core-1.img"), "damaged")?;
    let words: &[&str] = if case.runtime.name == "damda" {
        &["criu failed: ", "magic", "restore.log"]
    } else {
        &["criu failed"]
    };
    try_restore(case, &bundle)?.failed_with(words)?;
    if case.runtime.name == "damda" {
        case.until_nothing_left()?;
    }
    Ok(())
}

fn taken_id(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &["--leave-running"])?;
    try_restore(case, &bundle)?.failed_with(&["already exists"])?;
    went_on(&bundle, &count(&bundle)?)
}

/// A process with three pipes.
fn piped<S: AsRef<OsStr>>(case: &Case, arguments: &[S]) -> Verdict<Child> {
    let mut command = case.command(arguments);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

fn answers(child: &mut Child, said: &str) -> Verdict {
    let (Some(input), Some(output)) = (&mut child.stdin, &mut child.stdout) else {
        return Err(Stop::Failed("no pipes".into()));
    };
    input.write_all(said.as_bytes())?;
    read_until(output, said).map(drop)
}

fn pipes(case: &Case) -> Verdict {
    needs_criu(case)?;
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["cat"]))?;
    let mut first = piped(case, &["run", "--detach", "--bundle", text(&bundle.path), &case.id])?;
    // Not by `wait`, which closes the program's input.
    until("run", || Ok(first.try_wait()?.is_some()))?;
    answers(&mut first, "one\n")?;
    checkpoint(case, &[])?;
    let mut second = piped(case, &restoring(case, &bundle, &[&case.id]))?;
    case_running(case)?;
    let answered = answers(&mut second, "hello\n");
    drop(second.stdin.take());
    let ended = until("its end", || Ok(second.try_wait()?.is_some())).inspect_err(|_| drop(second.kill()));
    let status = second.wait()?;
    answered.and(ended)?;
    ensure_eq!(status.code(), Some(0), "exit status");
    case.nothing_left()
}

/// Waits until the container, which another process restores, runs.
fn case_running(case: &Case) -> Verdict {
    until("status running", || {
        let output = case.call(&["state", &case.id])?;
        Ok(output.status == 0 && output.json()?["status"] == "running")
    })
}

fn read_until<F: Read + AsFd>(from: &mut F, enough: &str) -> Verdict<String> {
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while !all.contains(enough) {
        ensure!(
            poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], 20_000u16)? > 0,
            "nothing came after {all:?}"
        );
        match from.read(&mut buffer)? {
            0 => return Err(Stop::Failed(format!("the end came after {all:?}"))),
            length => all += &String::from_utf8_lossy(&buffer[..length]),
        }
    }
    Ok(all)
}

fn terminal(case: &Case) -> Verdict {
    needs_criu(case)?;
    let bundle = case.bundle(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = probe(&["cat"]);
    })?;
    let console = |name: &str| -> Verdict<_> {
        let path = case.directory.join(name);
        let listener = UnixListener::bind(&path)?;
        Ok((path, std::thread::spawn(move || -> Verdict<File> { Ok(File::from(receive(&listener)?.1)) })))
    };
    let received = |thread: std::thread::JoinHandle<Verdict<File>>| {
        thread.join().map_err(|_| Stop::Failed("the receiver panicked".into()))?
    };
    let (path, thread) = console("first")?;
    quiet(
        case,
        &["run", "--detach", "--console-socket", text(&path), "--bundle", text(&bundle.path), &case.id],
    )?;
    let mut master = received(thread)?;
    master.write_all(b"one\n")?;
    read_until(&mut master, "one\r\none\r\n")?;
    checkpoint(case, &[])?;
    drop(master);

    try_restore(case, &bundle)?.failed_with(&["console"])?;
    let (path, thread) = console("second")?;
    restore(case, &bundle, &["--console-socket", text(&path)])?;
    let mut master = received(thread)?;
    master.write_all(b"two\n")?;
    read_until(&mut master, "two\r\ntwo\r\n")?;
    Ok(())
}

fn in_the_foreground(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    let before = count(&bundle)?;
    let arguments = restoring(case, &bundle, &[&case.id]);
    let mut child =
        case.command(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let running = case_running(case).and_then(|()| went_on(&bundle, &before));
    // It passes signals on.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)?;
    let ended = until("its end", || Ok(child.try_wait()?.is_some())).inspect_err(|_| drop(child.kill()));
    let status = child.wait()?;
    running.and(ended)?;
    ensure_eq!(status.code(), Some(15), "exit status");
    case.nothing_left()
}

fn bind_mounts(case: &Case) -> Verdict {
    let (outer, inner) = (case.directory.join("outer"), case.directory.join("inner"));
    fs::create_dir_all(&outer)?;
    fs::create_dir_all(&inner)?;
    fs::write(case.directory.join("file"), "a file")?;
    fs::write(inner.join("there"), "nested")?;
    let bundle = counting(case, |config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        let bind = |source: &str, destination: &str| {
            let source = case.directory.join(source);
            json!({ "source": text(&source), "destination": destination, "type": "bind", "options": ["bind"] })
        };
        let mut read_only = bind("file", "/etc/file");
        read_only["options"] = json!(["bind", "ro"]);
        mounts.extend([bind("outer", "/test"), bind("inner", "/test/for/nested"), read_only]);
    })?;
    checkpoint(case, &[])?;
    // The mount points are made anew.
    fs::remove_dir_all(outer.join("for"))?;
    fs::remove_file(bundle.rootfs().join("etc/file"))?;
    restore(case, &bundle, &[])?;
    for (path, content) in [("/test/for/nested/there", "nested"), ("/etc/file", "a file")] {
        ensure_eq!(case.exec(&[], &["read", path])?.succeeded()?.stdout, content, "{path}");
    }
    ensure_eq!(
        case.exec(&[], &["write", "/etc/file", "x"])?.status,
        libc::EROFS,
        "writing to a read-only mount"
    );
    case.exec(&[], &["write", "/test/new", "new"])?.succeeded()?;
    ensure_eq!(fs::read_to_string(outer.join("new"))?, "new", "what was written");
    Ok(())
}

fn bind_mounts_to_links(case: &Case) -> Verdict {
    fs::create_dir_all(case.directory.join("bundle/rootfs/real/conf"))?;
    std::os::unix::fs::symlink("/real/conf", case.directory.join("bundle/rootfs/conf"))?;
    let source = case.directory.join("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("there"), "yes")?;
    let bundle = counting(case, |config| {
        let mount = json!({ "source": text(&source), "destination": "/conf", "options": ["bind"] });
        config["mounts"].as_array_mut().expect("mounts").push(mount);
    })?;
    for _ in 0..2 {
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        ensure_eq!(case.exec(&[], &["read", "/real/conf/there"])?.succeeded()?.stdout, "yes", "the file");
    }
    Ok(())
}

fn exec_afterwards(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    for _ in 0..2 {
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
        ensure_eq!(report["hostname"], "vessel", "host name");
        // What it leaves behind is the first process's child, and saved by the next checkpoint.
        quiet(case, &["exec", &case.id, "/probe", "orphan", "apart"])?;
    }
    let processes = case.call(&["ps", "--format", "json", &case.id])?.succeeded()?.json()?;
    ensure_eq!(processes.as_array().map(Vec::len), Some(3), "processes");
    Ok(())
}

fn cgroups(case: &Case) -> Verdict {
    crate::machine::needs_controller("pids")?;
    let bundle = counting(case, |config| config["linux"]["resources"]["pids"] = json!({ "limit": 77 }))?;
    checkpoint(case, &[])?;
    restore(case, &bundle, &[])?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "77", "pids.max");
    let pid = case.state()?["pid"].to_string();
    ensure!(
        case.cgroup_file("pids", "cgroup.procs")?.lines().any(|line| line == pid),
        "it isn't in its cgroup"
    );
    case.call(&["pause", &case.id])?.succeeded()?;
    ensure_eq!(case.state()?["status"], "paused", "status");
    case.call(&["resume", &case.id])?.succeeded()?;
    case.call(&["update", "--pids-limit", "78", &case.id])?.succeeded()?;
    ensure_eq!(case.cgroup_file("pids", "pids.max")?, "78", "pids.max");
    Ok(())
}

fn another_cgroup(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &["--manage-cgroups-mode", "ignore"])?;
    let before = count(&bundle)?;
    let other = case.another_id("other");
    bundle.change(|config| config["linux"]["cgroupsPath"] = json!(format!("/{other}")))?;
    let rest = ["--detach", "--manage-cgroups-mode", "ignore", &other];
    quiet(case, &restoring(case, &bundle, &rest))?;
    went_on(&bundle, &before)?;
    let state = case.call(&["state", &other])?.succeeded()?.json()?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    ensure!(own.contains(&format!("/{other}\n")), "its cgroup: {own:?}");
    let left = case.cgroups().into_iter().find(|path| path.ends_with(&case.id));
    ensure!(left.is_none(), "the old cgroup is there: {left:?}");
    Ok(())
}

/// With a namespace of their own and without.
fn mounted_cgroups(case: &Case) -> Verdict {
    for own in [false, true] {
        let bundle = counting(case, |config| {
            let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
            config["mounts"].as_array_mut().expect("mounts").push(mount);
            if own {
                config["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("namespaces")
                    .push(json!({ "type": "cgroup" }));
            }
        })?;
        // Without those of other tests.
        let list = || -> Verdict<Vec<String>> {
            let all = case.exec(&[], &["list", "/sys/fs/cgroup"])?.succeeded()?.stdout;
            Ok(all.lines().filter(|name| !name.starts_with("rtt-")).map(str::to_owned).collect())
        };
        let before = list()?;
        checkpoint(case, &[])?;
        restore(case, &bundle, &[])?;
        ensure_eq!(list()?, before, "files of /sys/fs/cgroup (namespace: {own})");
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
        fs::remove_dir_all(images(case))?;
        fs::remove_file(bundle.rootfs().join("tmp/count"))?;
    }
    Ok(())
}

fn joined_network(case: &Case) -> Verdict {
    needs_criu(case)?;
    let mut holder = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn()?;
    let verdict = in_network(case, holder.id());
    let _ = holder.kill();
    holder.wait()?;
    verdict
}

fn in_network(case: &Case, holder: u32) -> Verdict {
    let path = format!("/proc/{holder}/ns/net");
    let own = fs::read_link("/proc/self/ns/net")?;
    until("the namespace", || Ok(fs::read_link(&path)? != own))?;
    let bundle = counting(case, |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    })?;
    checkpoint(case, &[])?;
    let before = count(&bundle)?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)?;
    let joined = fs::read_link(format!("/proc/{}/ns/net", case.state()?["pid"]))?;
    ensure_eq!(joined, fs::read_link(&path)?, "network namespace");
    Ok(())
}

fn user_namespace(case: &Case) -> Verdict {
    needs_criu(case)?;
    let tmp = case.directory.join("bundle/rootfs/tmp");
    fs::create_dir_all(&tmp)?;
    std::os::unix::fs::chown(&tmp, Some(100_000), Some(100_000))?;
    let bundle = counting(case, |config| add_user_namespace(config, 65_536))?;
    checkpoint(case, &[])?;
    let before = count(&bundle)?;
    restore(case, &bundle, &[])?;
    went_on(&bundle, &before)?;
    let report = case.exec(&[], &["report"])?.succeeded()?.json()?;
    ensure_eq!(report["hostname"], "vessel", "host name");
    Ok(())
}

fn hook(case: &Case, file: &Path, status: &str) -> Value {
    json!([{ "path": text(case.probe()), "args": ["probe", "hook", text(file), status] }])
}

fn hooks(case: &Case) -> Verdict {
    let file = |name: &str| case.directory.join(name);
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    // Those of the container's own namespaces can't see the host's files.
    let seen = [kinds[0], kinds[1], kinds[4], kinds[5]];
    let bundle = counting(case, |config| {
        for kind in seen {
            config["hooks"][kind] = hook(case, &file(kind), "0");
        }
    })?;
    let times = |kind: &str| fs::read_to_string(file(kind)).unwrap_or_default().lines().count();
    ensure_eq!(seen.map(times), [1, 1, 1, 0], "hooks of run");
    checkpoint(case, &[])?;
    ensure_eq!(seen.map(times), [1, 1, 1, 1], "hooks after checkpoint");
    restore(case, &bundle, &[])?;
    ensure_eq!(seen.map(times), [2, 2, 1, 1], "hooks after restore");
    let last = fs::read_to_string(file(kinds[0]))?;
    let last: Value = serde_json::from_str(last.lines().last().unwrap_or_default())?;
    ensure_eq!(last["state"]["id"], case.id.as_str(), "id");
    ensure_eq!(last["state"]["pid"], case.state()?["pid"], "pid");
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    ensure_eq!(seen.map(times), [2, 2, 1, 2], "hooks after delete");
    Ok(())
}

fn failing_hook(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    let fails = hook(case, &case.directory.join("hook"), "3");
    bundle.change(|config| config["hooks"]["createRuntime"] = fails)?;
    try_restore(case, &bundle)?.failed_with(&["exit status 3"])?;
    if case.runtime.name == "damda" {
        case.until_nothing_left()?;
    }
    Ok(())
}

fn deleted_while_restored(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        skip!("others keep nothing of a container before it is restored");
    }
    let bundle = counting(case, |_| ())?;
    checkpoint(case, &[])?;
    let begun = case.directory.join("begun");
    let script = format!("touch {}; exec sleep 1000", text(&begun));
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20 }]);
    bundle.change(|config| config["hooks"]["createRuntime"] = hook)?;
    let arguments = restoring(case, &bundle, &["--detach", &case.id]);
    let mut child =
        case.command(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let seen = until("the hook", || Ok(begun.exists())).and_then(|()| {
        ensure_eq!(case.state()?["status"], "creating", "status");
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
        case.nothing_left()
    });
    let ended = until("its end", || Ok(child.try_wait()?.is_some())).inspect_err(|_| drop(child.kill()));
    let status = child.wait()?;
    seen.and(ended)?;
    ensure!(!status.success(), "restore says that it has done it");
    case.nothing_left()
}

fn configuration_file(case: &Case) -> Verdict {
    let file = case.directory.join("criu.conf");
    fs::write(&file, "log-file another.log\n")?;
    counting(case, |config| config["annotations"] = json!({ "org.criu.config": text(&file) }))?;
    checkpoint(case, &[])?;
    ensure!(images(case).join("another.log").exists(), "the file wasn't used");
    Ok(())
}

fn lazy_pages(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let feature = criu().args(["check", "--feature", "uffd-noncoop"]).output()?;
    if !feature.status.success() {
        skip!("needs a kernel with userfaultfd");
    }
    let (images, port) = (images(case), 20_000 + std::process::id() % 10_000);
    let server = format!("127.0.0.1:{port}");
    let (mut ready, writer) = std::io::pipe()?;
    // The shell gives the descriptor its number.
    let arguments = [
        "checkpoint",
        "--lazy-pages",
        "--page-server",
        &server,
        "--status-fd",
        "7",
        "--manage-cgroups-mode",
        "ignore",
        "--image-path",
        text(&images),
        &case.id,
    ];
    let runtime = case.command(&arguments);
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$@\" 7>&0 0</dev/null", "sh"])
        .arg(runtime.get_program())
        .args(runtime.get_args());
    command.current_dir(&case.directory).stdin(writer).stdout(Stdio::null());
    let mut saving = command.stderr(File::create(case.directory.join("saving"))?).spawn()?;
    drop(command);
    let restored = (|| {
        let mut byte = [1];
        let said = || fs::read_to_string(case.directory.join("saving")).unwrap_or_default();
        ensure!(
            poll(&mut [PollFd::new(ready.as_fd(), PollFlags::POLLIN)], 60_000u16)? > 0,
            "no pages are served"
        );
        let length = ready.read(&mut byte)?;
        if said().contains("Invalid manage cgroups mode") {
            skip!("this {} is too old for the mode ignore", case.runtime.name);
        }
        ensure_eq!((length, byte), (1, [0]), "what is written to the status descriptor ({})", said());
        let before = count(&bundle)?;
        let mut pages = criu();
        pages.args([
            "lazy-pages",
            "--page-server",
            "--address",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "-D",
        ]);
        let mut pages = pages.arg(&images).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        until("the pages' socket", || Ok(images.join("lazy-pages.socket").exists()))?;
        // The old one is there until its last page is taken.
        let other = case.another_id("other");
        bundle.change(|config| config["linux"]["cgroupsPath"] = json!(format!("/{other}")))?;
        let rest = ["--detach", "--lazy-pages", "--manage-cgroups-mode", "ignore", &other];
        let arguments = restoring(case, &bundle, &rest);
        let restored = quiet(case, &arguments).and_then(|()| went_on(&bundle, &before));
        let ended = until("its pages' end", || Ok(pages.try_wait()?.is_some()));
        let _ = pages.kill();
        pages.wait()?;
        restored.and(ended)
    })();
    let ended = until("its end", || Ok(saving.try_wait()?.is_some())).inspect_err(|_| drop(saving.kill()));
    let status = saving.wait()?;
    restored.and(ended)?;
    let said = fs::read_to_string(case.directory.join("saving"))?;
    ensure_eq!(status.code(), Some(0), "exit status ({said})");
    case.call(&["state", &case.id])?.failed_with(&["does not exist"])?;
    Ok(())
}

fn systemd(case: &Case) -> Verdict {
    crate::machine::needs_file("/run/systemd/system", "systemd")?;
    needs_criu(case)?;
    let bundle = case.bundle(|config| {
        config["process"]["args"] = probe(&["count", "/tmp/count"]);
        config["linux"]["cgroupsPath"] = json!(format!("system.slice:rtt:{}", case.id));
    })?;
    let images = images(case);
    let (path, id) = (text(&bundle.path), case.id.as_str());
    quiet(case, &["--systemd-cgroup", "run", "--detach", "--bundle", path, id])?;
    until("the program", || Ok(bundle.rootfs().join("tmp/count").exists()))?;
    quiet(case, &["--systemd-cgroup", "checkpoint", "--image-path", text(&images), id])?;
    let before = count(&bundle)?;
    let restore = restoring(case, &bundle, &["--detach", id]);
    quiet(case, &[&["--systemd-cgroup".to_owned()], &restore[..]].concat())?;
    went_on(&bundle, &before)?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", case.state()?["pid"]))?;
    ensure!(own.contains(&format!("/system.slice/rtt-{id}.scope")), "its cgroup: {own:?}");
    case.call(&["delete", "--force", id])?.succeeded()?;
    case.nothing_left()
}

fn what_podman_asks(case: &Case) -> Verdict {
    case.call(&["checkpoint", "--help"])?.succeeded()?;
    let asked = case.call(&["restore", "--lsm-mount-context"])?;
    let words = if case.runtime.name == "crun" { "requires an argument" } else { "flag needs an argument" };
    // runc says it on stdout, with its help.
    ensure!(asked.status != 0 && (asked.stderr + &asked.stdout).contains(words), "{words:?} isn't said");
    Ok(())
}
