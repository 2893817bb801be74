//! `events`: what a container uses, and that it ran out of memory.

use super::Global;
use crate::cgroup::Cgroup;
use crate::container::{Container, Status};
use crate::error::{Error, Result};
use crate::sys::Call;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// The command. Without `once` it goes on until the container ends.
pub fn run(global: &Global, id: &str, interval: Duration, once: bool) -> Result<()> {
    if interval.is_zero() {
        return Err(Error::new("duration interval must be greater than 0"));
    }
    let container = Container::load(&global.store, id)?;
    if matches!(container.status()?, Status::Stopped | Status::Creating) {
        return Err(Error::new(format!("container with id {id} is not running")));
    }
    let stats = || {
        let mut data = container.state.cgroup.stats();
        if let Some(groups) = &container.state.resctrl {
            data["intel_rdt"] = groups.stats();
        }
        event("stats", id, Some(&data))
    };
    if once {
        return print(&stats());
    }
    let init = container.live_init().ok_or_else(|| Error::new("container not running"))?;
    let pidfd = init.pidfd()?.ok_or_else(|| Error::new("container not running"))?;
    let notice = Notice::of(&container.state.cgroup)?;
    let mut kills = container.state.cgroup.oom_kills();
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(notice.as_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up: not woken before it is time.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => Err(errno).call(|| "poll".into())?,
        }
        let ended = fds[0].any() == Some(true);
        if ended {
            return Ok(());
        }
        // v1 tells of it before the process is killed, v2 when it has been.
        let now = container.state.cgroup.oom_kills();
        let times = notice.take().unwrap_or(now.saturating_sub(kills));
        for _ in 0..times {
            print(&event("oom", id, None))?;
        }
        kills = kills.max(now);
        if Instant::now() >= next {
            print(&stats())?;
            next += interval;
        }
    }
}

/// A line of the output. In this order: there are readers who look at its beginning alone.
fn event(kind: &str, id: &str, data: Option<&Value>) -> String {
    let data = data.map(|data| format!(",\"data\":{data}")).unwrap_or_default();
    format!("{{\"type\":\"{kind}\",\"id\":{}{data}}}", Value::from(id))
}

fn print(event: &str) -> Result<()> {
    let mut out = std::io::stdout();
    let written = writeln!(out, "{event}").and_then(|()| out.flush());
    Ok(written.call(|| "write(stdout)".into())?)
}

/// How the kernel says that a cgroup ran out of memory.
enum Notice {
    /// v1: an eventfd.
    Event(EventFd),
    /// v2: a change of memory.events.
    Change(Inotify),
    /// There is no memory controller.
    Never,
}

impl Notice {
    fn of(cgroup: &Cgroup) -> Result<Self> {
        let Some((directory, unified)) = cgroup.memory_directory() else { return Ok(Notice::Never) };
        if unified {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
                .call(|| "inotify_init1".into())?;
            let file = directory.join("memory.events");
            return match inotify.add_watch(&file, AddWatchFlags::IN_MODIFY) {
                Err(Errno::ENOENT) => Ok(Notice::Never),
                other => Ok(other
                    .map(|_| Notice::Change(inotify))
                    .call(|| format!("inotify_add_watch({file:?})"))?),
            };
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).call(|| "eventfd2".into())?;
        let file = directory.join("memory.oom_control");
        let control = crate::sys::file::open(nix::fcntl::AT_FDCWD, &file, nix::fcntl::OFlag::O_RDONLY)?;
        use std::os::fd::AsRawFd;
        let request = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        crate::sys::file::write(&directory.join("cgroup.event_control"), &request)?;
        Ok(Notice::Event(event))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Notice::Event(event) => Some(event.as_fd()),
            Notice::Change(inotify) => Some(inotify.as_fd()),
            Notice::Never => None,
        }
    }

    /// Takes what has come. How often it happened, where it says so: else the cgroup's count does.
    fn take(&self) -> Option<u64> {
        match self {
            // The kernel writes to it as well when the cgroup is removed.
            Notice::Event(event) => Some(event.read().unwrap_or(0)),
            Notice::Change(inotify) => {
                let _ = inotify.read_events();
                None
            }
            Notice::Never => None,
        }
    }
}
