//! The program inside the test suite's containers. It is static and needs nothing but itself, so a
//! root file system is one file.
//!
//! `probe report` prints all that a process can know of itself as JSON; the other commands each do
//! one thing. What fails, fails with the errno as the exit status and its name on stderr.

mod report;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::ExitCode;

type Result<T> = std::result::Result<T, std::io::Error>;

const USAGE: &str = "usage: probe COMMAND
  report                  all about this process, as JSON
  tour                    the same for people
  stat PATH...            all about these files, as JSON
  read PATH | write PATH TEXT | append PATH TEXT | mkdir PATH | unlink PATH | list PATH
  mount SOURCE TARGET TYPE
  echo TEXT...            print it
  cat                     copy stdin to stdout
  flood BYTES             print that many x
  exit STATUS
  wait                    until SIGTERM (exit status 15) or SIGINT (2)
  deaf                    as wait, but ignores SIGTERM
  count FILE              as wait, but writes to FILE ever anew: a number of its own, and how often
  family N                make N children, then all wait
  orphan [apart]          leave a child behind, which waits (apart: with streams of its own)
  syscall NUMBER [ARGUMENT]...  print what it returns
  eat MIB                 use that much memory, then print 'ate'
  notify TEXT             send TEXT to NOTIFY_SOCKET, and wait, or end with THEN=exit
  hook FILE [STATUS]      append arguments, environment and stdin to FILE as a line of JSON
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match run(&words) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(255);
            eprintln!("{:?}: {error}", Errno::from_raw(errno));
            ExitCode::from(errno as u8)
        }
    }
}

fn run(words: &[&str]) -> Result<u8> {
    let number = |text: &str| text.parse::<i64>().map_err(std::io::Error::other);
    match words {
        ["report"] => println!("{}", report::json()),
        ["tour"] => print!("{}", report::tour()),
        ["stat", paths @ ..] => {
            let all: serde_json::Map<_, _> = paths.iter().map(|path| ((*path).into(), stat(path))).collect();
            println!("{}", serde_json::Value::from(all));
        }
        ["read", path] => std::io::stdout().write_all(&fs::read(path)?)?,
        ["write", path, text] => fs::write(path, text)?,
        ["append", path, text] => {
            OpenOptions::new().append(true).create(true).open(path)?.write_all(text.as_bytes())?
        }
        ["mkdir", path] => fs::create_dir(path)?,
        ["unlink", path] => fs::remove_file(path)?,
        ["list", path] => {
            let mut names = fs::read_dir(path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<Vec<_>>>()?;
            names.sort();
            println!("{}", names.join("\n"));
        }
        ["mount", source, target, kind] => {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some(*source), *target, Some(*kind), flags, None::<&str>)?;
        }
        ["echo", text @ ..] => println!("{}", text.join(" ")),
        ["cat"] => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout())?;
        }
        ["flood", bytes] => print!("{}", "x".repeat(number(bytes)? as usize)),
        ["exit", status] => return Ok(number(status)? as u8),
        ["wait"] => return wait(&[Signal::SIGTERM, Signal::SIGINT]),
        ["count", file] => return count(file),
        ["deaf"] => return wait(&[Signal::SIGINT]),
        ["family", count] => {
            for _ in 0..number(count)? {
                if child()? {
                    return wait(&[Signal::SIGTERM]);
                }
            }
            return wait(&[Signal::SIGTERM, Signal::SIGINT]);
        }
        ["orphan", rest @ ..] => {
            if *rest == ["apart"] {
                let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
                nix::unistd::dup2_stdin(&null)?;
                nix::unistd::dup2_stdout(&null)?;
                nix::unistd::dup2_stderr(&null)?;
            }
            if child()? {
                return wait(&[Signal::SIGTERM]);
            }
        }
        ["syscall", number_, arguments @ ..] => {
            let mut values = [0; 6];
            for (value, argument) in values.iter_mut().zip(arguments) {
                *value = number(argument)?;
            }
            let [a, b, c, d, e, f] = values;
            // SAFETY: the test that asks for a system call chooses one that leaves this process whole.
            let result = unsafe { libc::syscall(number(number_)?, a, b, c, d, e, f) };
            println!("{}", Errno::result(result)?);
        }
        ["eat", mebibytes] => {
            let mut memory = vec![0u8; number(mebibytes)? as usize * 1024 * 1024];
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            println!("ate {}", std::hint::black_box(memory).len() >> 20);
        }
        ["notify", text] => return notify(text),
        ["hook", file, rest @ ..] => return hook(file, rest),
        _ => {
            eprint!("{USAGE}");
            return Ok(64);
        }
    }
    Ok(0)
}

/// Whether this is the child.
fn child() -> Result<bool> {
    // SAFETY: there is one thread.
    Ok(matches!(unsafe { fork() }?, ForkResult::Child))
}

fn wait(signals: &[Signal]) -> Result<u8> {
    let set: SigSet = signals.iter().copied().chain([Signal::SIGCHLD]).collect();
    set.thread_block()?;
    println!("waiting");
    loop {
        let signal = set.wait()?;
        if signal != Signal::SIGCHLD {
            return Ok(signal as u8);
        }
    }
}

/// Only this process, or one restored from it, can go on with both numbers.
fn count(file: &str) -> Result<u8> {
    let own =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    set.thread_block()?;
    let signals = nix::sys::signalfd::SignalFd::with_flags(&set, nix::sys::signalfd::SfdFlags::SFD_NONBLOCK)?;
    for counter in 0u64.. {
        let new = format!("{file}.new");
        fs::write(&new, format!("{own} {counter}"))?;
        fs::rename(&new, file)?;
        if let Some(signal) = signals.read_signal()? {
            return Ok(signal.ssi_signo as u8);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(0)
}

fn stat(path: &str) -> serde_json::Value {
    let stat = match fs::symlink_metadata(path) {
        Ok(stat) => stat,
        Err(error) => {
            return json!({ "error": format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap_or(0))) });
        }
    };
    let kind = stat.file_type();
    let name = match kind {
        _ if kind.is_dir() => "directory",
        _ if kind.is_symlink() => "symlink",
        _ if kind.is_char_device() => "c",
        _ if kind.is_block_device() => "b",
        _ if kind.is_fifo() => "p",
        _ if kind.is_socket() => "socket",
        _ => "file",
    };
    json!({
        "type": name,
        "mode": stat.mode() & 0o7777,
        "uid": stat.uid(),
        "gid": stat.gid(),
        "size": stat.size(),
        "major": nix::sys::stat::major(stat.rdev()),
        "minor": nix::sys::stat::minor(stat.rdev()),
        "target": fs::read_link(path).ok(),
    })
}

fn notify(text: &str) -> Result<u8> {
    let path = std::env::var("NOTIFY_SOCKET").map_err(std::io::Error::other)?;
    std::os::unix::net::UnixDatagram::unbound()?.send_to(text.as_bytes(), &path)?;
    if std::env::var_os("THEN").is_some() {
        println!("{path}");
        return Ok(0);
    }
    wait(&[Signal::SIGTERM, Signal::SIGINT])
}

fn hook(file: &str, rest: &[&str]) -> Result<u8> {
    let mut state = String::new();
    std::io::stdin().read_to_string(&mut state)?;
    let line = json!({
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars().collect::<std::collections::BTreeMap<_, _>>(),
        "state": serde_json::from_str::<serde_json::Value>(&state).unwrap_or(state.into()),
        "mount": fs::read_link("/proc/self/ns/mnt").ok(),
        "uts": fs::read_link("/proc/self/ns/uts").ok(),
        "cwd": std::env::current_dir().ok(),
    });
    OpenOptions::new().append(true).create(true).open(file)?.write_all(format!("{line}\n").as_bytes())?;
    Ok(rest.first().and_then(|status| status.parse().ok()).unwrap_or(0))
}
