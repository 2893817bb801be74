//! What CRIU is told.

use super::{checkpoint, count, counting, criu, images, quiet, restore, restoring, went_on};
use crate::case::{Case, text, until};
use crate::harness::Verdict;
use crate::{ensure, ensure_eq, skip};
use nix::poll::{PollFd, PollFlags, poll};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

pub(super) fn pre_dump(case: &Case) -> Verdict {
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

pub(super) fn bad_parent_path(case: &Case) -> Verdict {
    let bundle = counting(case, |_| ())?;
    let (images, missing) = (images(case), case.directory.join("missing"));
    for parent in [text(&case.directory), text(&missing), "../missing"] {
        let arguments = ["checkpoint", "--image-path", text(&images), "--parent-path", parent, &case.id];
        case.call(&arguments)?.failed_with(&["--parent-path"])?;
    }
    went_on(&bundle, &count(&bundle)?)
}

pub(super) fn configuration_file(case: &Case) -> Verdict {
    let file = case.directory.join("criu.conf");
    fs::write(&file, "log-file another.log\n")?;
    counting(case, |config| config["annotations"] = json!({ "org.criu.config": text(&file) }))?;
    checkpoint(case, &[])?;
    ensure!(images(case).join("another.log").exists(), "the file wasn't used");
    Ok(())
}

pub(super) fn lazy_pages(case: &Case) -> Verdict {
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

pub(super) fn what_podman_asks(case: &Case) -> Verdict {
    case.call(&["checkpoint", "--help"])?.succeeded()?;
    let asked = case.call(&["restore", "--lsm-mount-context"])?;
    let words = if case.runtime.name == "crun" { "requires an argument" } else { "flag needs an argument" };
    // runc says it on stdout, with its help.
    ensure!(asked.status != 0 && (asked.stderr + &asked.stdout).contains(words), "{words:?} isn't said");
    Ok(())
}
