//! sd_notify(3): what the program says reaches who asked the runtime for it.

use crate::case::{Case, probe, text};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, tests};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread::JoinHandle;

tests![
    "runc start: NOTIFY_SOCKET" => by_start,
    "runc run --detach: NOTIFY_SOCKET" => by_run,
    "runc run: NOTIFY_SOCKET" => in_the_foreground,
    "runc start: NOTIFY_SOCKET, of a program that ends without a word" => without_a_word,
];

/// Listens as systemd does, until the first message that says READY=1, and answers a barrier.
fn listener(case: &Case) -> Verdict<(PathBuf, JoinHandle<String>)> {
    let path = case.directory.join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    let listen = move || {
        let mut heard = String::new();
        loop {
            let mut buffer = [0; 4096];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let mut space = nix::cmsg_space!([i32; 1]);
            let length = {
                let Ok(message) =
                    recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())
                else {
                    return heard;
                };
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        // SAFETY: just received. Closing them is the answer.
                        drop(
                            fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect::<Vec<_>>(),
                        );
                    }
                }
                message.bytes
            };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains("BARRIER=1") {
                return heard;
            }
            heard += &text;
            heard.push('\n');
            // crun sends no barrier.
            if text.contains("READY=1") {
                let _ = socket.set_read_timeout(Some(std::time::Duration::from_millis(500)));
            }
        }
    };
    Ok((path, std::thread::spawn(listen)))
}

fn heard(thread: JoinHandle<String>) -> String {
    thread.join().unwrap_or_default()
}

fn says_ready(config: &mut serde_json::Value) {
    config["process"]["args"] = probe(&["notify", "STATUS=up\nREADY=1\nMAINPID=1"]);
}

fn check(case: &Case, heard: &str) -> Verdict {
    ensure!(heard.contains("READY=1"), "heard: {heard:?}");
    // runc 1.1 and crun say so as well; the program's own number must not be taken for it.
    if case.runtime.name == "damda" {
        let pid = case.state()?["pid"].clone();
        ensure!(heard.lines().any(|line| line == format!("MAINPID={pid}")), "heard: {heard:?}, pid {pid}");
        ensure!(!heard.lines().any(|line| line == "MAINPID=1"), "heard: {heard:?}");
    }
    Ok(())
}

fn by_start(case: &Case) -> Verdict {
    let (path, thread) = listener(case)?;
    let bundle = case.bundle(says_ready)?;
    let with = format!("export NOTIFY_SOCKET={}", text(&path));
    case.call_after(&with, &["create", "--bundle", text(&bundle.path), &case.id])?.succeeded()?;
    case.call_after(&with, &["start", &case.id])?.succeeded()?;
    check(case, &heard(thread))
}

fn by_run(case: &Case) -> Verdict {
    let (path, thread) = listener(case)?;
    let bundle = case.bundle(says_ready)?;
    let with = format!("export NOTIFY_SOCKET={}", text(&path));
    case.call_after(&with, &["run", "--detach", "--bundle", text(&bundle.path), &case.id])?.succeeded()?;
    check(case, &heard(thread))
}

fn in_the_foreground(case: &Case) -> Verdict {
    let (path, thread) = listener(case)?;
    let bundle = case.bundle(|config| {
        says_ready(config);
        config["process"]["env"] = serde_json::json!(["THEN=exit"]);
    })?;
    let with = format!("export NOTIFY_SOCKET={}", text(&path));
    let output = case.call_after(&with, &["run", "--bundle", text(&bundle.path), &case.id])?.succeeded()?;
    ensure_eq!(output.stdout.trim(), "/run/notify/notify.sock", "NOTIFY_SOCKET in the container");
    let heard = heard(thread);
    ensure!(heard.contains("READY=1"), "heard: {heard:?}");
    case.nothing_left()
}

fn without_a_word(case: &Case) -> Verdict {
    let (path, thread) = listener(case)?;
    let bundle = case.bundle(|config| config["process"]["args"] = probe(&["exit", "0"]))?;
    let with = format!("export NOTIFY_SOCKET={}", text(&path));
    case.call_after(&with, &["create", "--bundle", text(&bundle.path), &case.id])?.succeeded()?;
    case.call_after(&with, &["start", &case.id])?.succeeded()?;
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    // Ends the listener.
    UnixDatagram::unbound()?.send_to(b"BARRIER=1", &path)?;
    ensure_eq!(heard(thread), "", "heard");
    case.nothing_left()
}
