//! The standard streams, the terminal and the caller of a restored container.

use super::{checkpoint, count, counting, needs_criu, quiet, restore, restoring, try_restore, went_on};
use crate::case::{Case, probe, text, until};
use crate::harness::{Stop, Verdict};
use crate::receive::receive;
use crate::{ensure, ensure_eq};
use nix::poll::{PollFd, PollFlags, poll};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

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

pub(super) fn pipes(case: &Case) -> Verdict {
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

pub(super) fn terminal(case: &Case) -> Verdict {
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

pub(super) fn in_the_foreground(case: &Case) -> Verdict {
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
