//! Terminals.

use crate::case::{Case, probe, text};
use crate::harness::{Stop, Verdict};
use crate::receive::receive;
use crate::{ensure, ensure_eq, tests};
use nix::pty::openpty;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;

tests![
    "runc create --console-socket" => console_socket,
    "config-linux.md, Default Devices: /dev/console" => console_device,
    "config.md, Process: consoleSize" => console_size,
    "config.md, Process: terminal" => terminal_without_a_socket,
    "config.md, Process: terminal" => socket_without_a_terminal,
    "runc run, in a terminal" => run_in_the_foreground,
    "runc exec --tty --console-socket" => exec_with_a_terminal,
    "pty(7): the container's own devpts" => terminal_is_of_the_containers_devpts,
    "runc run, in a terminal: much input while there is output" => input_that_is_not_read,
];

/// Listens on a socket, and receives what the runtime sends: one descriptor.
fn receiver(case: &Case, name: &str) -> Verdict<(PathBuf, JoinHandle<Verdict<File>>)> {
    let path = case.directory.join(name);
    let listener = UnixListener::bind(&path)?;
    let thread = std::thread::spawn(move || Ok(File::from(receive(&listener)?.1)));
    Ok((path, thread))
}

fn received(thread: JoinHandle<Verdict<File>>) -> Verdict<File> {
    thread.join().map_err(|_| Stop::Failed("the receiver panicked".into()))?
}

/// Reads a terminal until its other side is closed, or until `enough` is in what was read.
fn read_until(terminal: &mut File, enough: &str) -> Verdict<String> {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    loop {
        let mut poll = [nix::poll::PollFd::new(terminal.as_fd(), nix::poll::PollFlags::POLLIN)];
        ensure!(nix::poll::poll(&mut poll, 20_000u16)? > 0, "nothing came from the terminal after {all:?}");
        match terminal.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(length) => all += &String::from_utf8_lossy(&buffer[..length]),
            // EIO: the other side is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(all),
            Err(error) => return Err(error.into()),
        }
        if !enough.is_empty() && all.contains(enough) {
            return Ok(all);
        }
    }
}

fn created_with_terminal(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict<File> {
    let bundle = case.bundle(|config| {
        config["process"]["terminal"] = json!(true);
        change(config);
    })?;
    let (path, thread) = receiver(case, "console")?;
    case.call(&["create", "--bundle", text(&bundle.path), "--console-socket", text(&path), &case.id])?
        .succeeded()?;
    let terminal = received(thread)?;
    case.call(&["start", &case.id])?.succeeded()?;
    Ok(terminal)
}

fn console_socket(case: &Case) -> Verdict {
    let mut terminal = created_with_terminal(case, |_| ())?;
    let printed = read_until(&mut terminal, "")?;
    let report: Value = serde_json::from_str(printed.trim())?;
    for stream in ["stdin", "stdout", "stderr", "controlling"] {
        ensure_eq!(report["terminal"][stream], true, "{stream}");
    }
    ensure_eq!(report["descriptors"].as_object().map(serde_json::Map::len), Some(3), "descriptors");
    Ok(())
}

fn console_device(case: &Case) -> Verdict {
    let mut terminal = created_with_terminal(case, |config| {
        config["process"]["args"] = crate::case::probe(&["stat", "/dev/console"]);
    })?;
    let stat: Value = serde_json::from_str(read_until(&mut terminal, "")?.trim())?;
    ensure_eq!(stat["/dev/console"]["type"], "c", "/dev/console");
    // Of a terminal of devpts (Documentation/admin-guide/devices.txt: 136 to 143).
    let major = stat["/dev/console"]["major"].as_u64();
    ensure!(major.is_some_and(|major| (136..=143).contains(&major)), "/dev/console: {stat}");
    Ok(())
}

fn console_size(case: &Case) -> Verdict {
    let mut terminal = created_with_terminal(case, |config| {
        config["process"]["consoleSize"] = json!({ "height": 31, "width": 97 })
    })?;
    let report: Value = serde_json::from_str(read_until(&mut terminal, "")?.trim())?;
    ensure_eq!(report["terminal"]["height"], 31, "height");
    ensure_eq!(report["terminal"]["width"], 97, "width");
    Ok(())
}

fn terminal_without_a_socket(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["terminal"] = json!(true))?;
    case.call(&["create", "--bundle", text(&bundle.path), &case.id])?.failed_with(&["console"])?;
    case.nothing_left()
}

fn socket_without_a_terminal(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun ignores the socket");
    }
    let bundle = case.bundle(|_| ())?;
    let (path, _thread) = receiver(case, "console")?;
    case.call(&["create", "--bundle", text(&bundle.path), "--console-socket", text(&path), &case.id])?
        .failed_with(&["console"])?;
    case.nothing_left()
}

/// As a person runs it: the runtime's own stdio is a terminal.
fn run_in_the_foreground(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = probe(&["cat"]);
    })?;
    let size = nix::pty::Winsize { ws_row: 20, ws_col: 70, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None)?;
    let mut command = case.command(&["run", "--bundle", text(&bundle.path), &case.id]);
    let side = || -> Verdict<std::process::Stdio> { Ok(pty.slave.try_clone()?.into()) };
    let mut child = command.stdin(side()?).stdout(side()?).stderr(side()?).spawn()?;
    drop(command);
    let mut ours = File::from(pty.master);
    ours.write_all(b"hello\n")?;
    // The echo of the container's terminal, and cat's answer.
    let answer = read_until(&mut ours, "hello\r\nhello\r\n");
    ours.write_all(&[4])?; // end of file
    let status = child.wait()?;
    answer?;
    ensure_eq!(status.code(), Some(0), "exit status");
    case.nothing_left()
}

fn exec_with_a_terminal(case: &Case) -> Verdict {
    case.start(|_| ())?;
    let (path, thread) = receiver(case, "console")?;
    let flags = ["--tty", "--detach", "--console-socket", text(&path)];
    case.exec(&flags, &["report"])?.succeeded()?;
    let mut terminal = received(thread)?;
    let report: Value = serde_json::from_str(read_until(&mut terminal, "")?.trim())?;
    for stream in ["stdin", "stdout", "stderr", "controlling"] {
        ensure_eq!(report["terminal"][stream], true, "{stream}");
    }
    Ok(())
}

fn terminal_is_of_the_containers_devpts(case: &Case) -> Verdict {
    let mut terminal = created_with_terminal(case, |_| ())?;
    let report: Value = serde_json::from_str(read_until(&mut terminal, "")?.trim())?;
    ensure_eq!(report["descriptors"]["0"], "/dev/pts/0", "stdin");
    let console = crate::inside::mount(&report, "/dev/console")?;
    ensure_eq!(console["type"], "devpts", "type of /dev/console");
    Ok(())
}

/// The program prints without reading, while its terminal's buffer for input is full: neither may
/// wait for the other.
fn input_that_is_not_read(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun need a terminal of their own for it");
    }
    let bundle = case.bundle(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = probe(&["flood", "300000"]);
    })?;
    let mut input = String::new();
    (0..60_000).for_each(|number| input += &format!("{number}\n"));
    let file = case.directory.join("input");
    std::fs::write(&file, input)?;
    let mut command = case.command(&["run", "--bundle", text(&bundle.path), &case.id]);
    command.stdin(File::open(&file)?).stdout(File::create(case.directory.join("output"))?);
    let mut child = command.spawn()?;
    let ended = crate::case::until("its end", || Ok(child.try_wait()?.is_some()));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended?;
    let output = std::fs::read_to_string(case.directory.join("output"))?;
    ensure!(output.matches('x').count() == 300_000, "{} bytes of the program's", output.matches('x').count());
    Ok(())
}
