//! Measures runtimes against each other: hack/bench prepares what it needs, and calls it.
//!
//! One round starts each runtime once, one after the other, so that what else the machine is doing
//! hits all of them; the figures are medians over many rounds, and ratios of them.

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures OCI runtimes against each other")]
struct Options {
    /// NAME=BINARY of each runtime; ratios are to the last one
    #[arg(required = true)]
    runtimes: Vec<String>,
    /// the bundle, whose program ends at once
    #[arg(long)]
    bundle: PathBuf,
    /// the bundle for exec, whose program waits
    #[arg(long)]
    waiting: PathBuf,
    /// the floor program, with the root file system and the program for it
    #[arg(long, num_args = 3)]
    floor: Vec<String>,
    /// how many rounds
    #[arg(short = 'n', long, default_value_t = 60)]
    rounds: usize,
    /// milliseconds of rest before each measurement
    #[arg(long, default_value_t = 0)]
    gap: u64,
    /// directory for state
    #[arg(long, default_value = "/run/damda-bench")]
    state: PathBuf,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

/// A runtime, or the floor, which can do only one thing.
struct Subject {
    name: String,
    binary: PathBuf,
    root: PathBuf,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> io::Result<()> {
    // Containers that are created come to this process when their runtime ends; their time counts.
    nix::sys::prctl::set_child_subreaper(true)?;
    let subjects: Vec<Subject> = options
        .runtimes
        .iter()
        .map(|given| {
            let (name, binary) =
                given.split_once('=').ok_or_else(|| io::Error::other(format!("{given}: NAME=BINARY")))?;
            let root = options.state.join(name);
            Ok(Subject { name: name.into(), binary: binary.into(), root })
        })
        .collect::<io::Result<_>>()?;
    let floor = || -> io::Result<Cost> {
        let [program, rest @ ..] = &options.floor[..] else { return Ok(Cost::default()) };
        timed(|| end(Command::new(program).args(rest)))
    };

    println!(
        "{} rounds, {} ms of rest between; times in ms, ratios of medians to {}",
        options.rounds,
        options.gap,
        subjects[subjects.len() - 1].name
    );
    println!("{:<22} {:<8} {:>7} {:>7} {:>7} {:>7} {:>7}", "", "", "min", "median", "ratio", "CPU", "ratio");
    let has_floor = !options.floor.is_empty();
    table("run", options, &subjects, has_floor.then_some(&floor), |subject| {
        subject.call(&["run", "--bundle", text(&options.bundle), "bench-run"])
    })?;
    table("create, start, delete", options, &subjects, None, |subject| {
        subject.call(&["create", "--bundle", text(&options.bundle), "bench-csd"])?;
        subject.call(&["start", "bench-csd"])?;
        subject.call(&["delete", "--force", "bench-csd"])
    })?;
    for subject in &subjects {
        subject.call(&["run", "--detach", "--bundle", text(&options.waiting), &subject.waiting()])?;
    }
    memory(options, &subjects)?;
    let result = table("exec", options, &subjects, None, |subject| {
        subject.call(&["exec", &subject.waiting(), "/bin/true"])
    });
    let state =
        table("state", options, &subjects, None, |subject| subject.call(&["state", &subject.waiting()]));
    for subject in &subjects {
        subject.call(&["delete", "--force", &subject.waiting()])?;
    }
    reap();
    result.and(state)
}

/// Prints the peak memory of the largest process of each command.
fn memory(options: &Options, subjects: &[Subject]) -> io::Result<()> {
    for subject in subjects {
        let peak = |arguments: &[&str]| {
            peak(Command::new(&subject.binary).arg("--root").arg(&subject.root).args(arguments))
        };
        let run = peak(&["run", "--bundle", text(&options.bundle), "bench-memory"])?;
        let create = peak(&["create", "--bundle", text(&options.bundle), "bench-memory"])?;
        subject.call(&["delete", "--force", "bench-memory"])?;
        let exec = peak(&["exec", &subject.waiting(), "/bin/true"])?;
        println!(
            "{:<22} {:<8} run {run}, create {create}, exec {exec} KiB",
            "peak resident memory", subject.name
        );
    }
    Ok(())
}

/// Runs a command; its peak memory in KiB.
fn peak(command: &mut Command) -> io::Result<i64> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    // SAFETY: wait4(2) fills both in; zeroes are valid for plain integers.
    let (usage, status) = unsafe {
        let (mut usage, mut status) = (std::mem::zeroed::<libc::rusage>(), 0);
        if libc::wait4(child.id() as i32, &mut status, 0, &mut usage) < 0 {
            return Err(io::Error::last_os_error());
        }
        (usage, status)
    };
    if status == 0 {
        Ok(usage.ru_maxrss)
    } else {
        Err(io::Error::other(format!("{command:?}: status {status:#x}")))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

impl Subject {
    fn call(&self, arguments: &[&str]) -> io::Result<()> {
        end(Command::new(&self.binary).arg("--root").arg(&self.root).args(arguments))
    }

    fn waiting(&self) -> String {
        format!("bench-{}", self.name)
    }
}

fn end(command: &mut Command) -> io::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}

/// Collects what was left to this process.
fn reap() {
    while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
        .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
    {}
}

fn timed(what: impl FnOnce() -> io::Result<()>) -> io::Result<Cost> {
    let used = || -> io::Result<Duration> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let time = usage.user_time() + usage.system_time();
        Ok(Duration::from_micros(time.num_microseconds() as u64))
    };
    let before = used()?;
    let began = Instant::now();
    what()?;
    let wall = began.elapsed();
    reap();
    Ok(Cost { wall, cpu: used()? - before })
}

/// Measures one thing with every subject, and prints it.
fn table(
    name: &str,
    options: &Options,
    subjects: &[Subject],
    floor: Option<&dyn Fn() -> io::Result<Cost>>,
    what: impl Fn(&Subject) -> io::Result<()>,
) -> io::Result<()> {
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); subjects.len() + 1];
    // The first round warms caches up and doesn't count.
    for round in 0..=options.rounds {
        for (index, subject) in subjects.iter().enumerate() {
            std::thread::sleep(Duration::from_millis(options.gap));
            let cost = timed(|| what(subject))?;
            if round > 0 {
                costs[index].push(cost);
            }
        }
        if let Some(floor) = floor {
            std::thread::sleep(Duration::from_millis(options.gap));
            let cost = floor()?;
            if round > 0 {
                costs[subjects.len()].push(cost);
            }
        }
    }
    let median = |costs: &[Cost], of: fn(&Cost) -> Duration| -> f64 {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2].as_secs_f64() * 1000.0
    };
    let reference = &costs[subjects.len() - 1];
    let names = subjects.iter().map(|subject| subject.name.as_str()).chain(["floor"]);
    for (subject, costs) in names.zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
        let wall = median(costs, |cost| cost.wall);
        let cpu = median(costs, |cost| cost.cpu);
        let least = costs.iter().map(|cost| cost.wall).min().unwrap_or_default().as_secs_f64() * 1000.0;
        println!(
            "{name:<22} {subject:<8} {least:>7.2} {wall:>7.2} {:>7.2} {cpu:>7.2} {:>7.2}",
            wall / median(reference, |cost| cost.wall),
            cpu / median(reference, |cost| cost.cpu),
        );
    }
    Ok(())
}
