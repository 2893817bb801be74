//! Endurance: many containers and many execs at a time, with the runtime itself killed at random
//! moments. Afterwards everything can be deleted by force, and nothing is left.

use clap::Parser;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(name = "soak", about = "Endurance test of an OCI runtime")]
struct Options {
    /// the runtime
    #[arg(long, env = "RUNTIME")]
    runtime: PathBuf,
    /// the bundle, whose program waits for a signal
    #[arg(long)]
    bundle: PathBuf,
    /// directory for state
    #[arg(long)]
    state: PathBuf,
    /// create, start, kill, delete: how often
    #[arg(long, default_value_t = 2000)]
    cycles: u32,
    /// execs into one container: how many
    #[arg(long, default_value_t = 5000)]
    execs: u32,
    /// how many at a time
    #[arg(long, default_value_t = 16)]
    jobs: u32,
    /// of how many commands one is killed at a random moment
    #[arg(long, default_value_t = 10)]
    kill_one_in: u32,
    /// begins the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

/// What happened.
#[derive(Debug, Default)]
struct Counts {
    commands: AtomicU32,
    killed: AtomicU32,
    failed: AtomicU32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match soak(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

fn soak(options: &Options) -> io::Result<bool> {
    let counts = Counts::default();
    let began = Instant::now();
    in_parallel(options.jobs, options.cycles, |number| cycle(options, &counts, number))?;
    println!("{} cycles in {:.0} s: {}", options.cycles, began.elapsed().as_secs_f64(), counts.report());

    let counts = Counts::default();
    let began = Instant::now();
    let id = format!("soak-{}-exec", std::process::id());
    let bundle = text(&options.bundle);
    let started = call(options, &counts, &mut Random(0), &["run", "--detach", "--bundle", bundle, &id])?;
    if started != Some(0) {
        return Err(io::Error::other("the container for exec doesn't start"));
    }
    in_parallel(options.jobs, options.execs, |number| {
        let mut random = Random::new(options.seed, number ^ 0x5555);
        let status = call(options, &counts, &mut random, &["exec", &id, "/probe", "exit", "7"])?;
        if status.is_some_and(|status| status != 7) {
            counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    println!("{} execs in {:.0} s: {}", options.execs, began.elapsed().as_secs_f64(), counts.report());
    clean_up(options)
}

fn in_parallel(jobs: u32, count: u32, work: impl Fn(u32) -> io::Result<()> + Sync) -> io::Result<()> {
    let next = AtomicU32::new(0);
    let run = || -> io::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            work(number)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread that doesn't panic"))
    })
}

fn cycle(options: &Options, counts: &Counts, number: u32) -> io::Result<()> {
    let mut random = Random::new(options.seed, number);
    let id = format!("soak-{}-{number}", std::process::id());
    let bundle = text(&options.bundle).to_owned();
    let steps: [&[&str]; 4] = [
        &["create", "--bundle", &bundle, &id],
        &["start", &id],
        &["kill", &id, "KILL"],
        &["delete", "--force", &id],
    ];
    let mut disturbed = false;
    for step in steps {
        match call(options, counts, &mut random, step)? {
            None => disturbed = true,
            Some(0) => {}
            // What follows a command that was killed may fail.
            Some(_) if disturbed => {}
            Some(_) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// The command's exit status; None if it was killed.
fn call(
    options: &Options,
    counts: &Counts,
    random: &mut Random,
    arguments: &[&str],
) -> io::Result<Option<i32>> {
    counts.commands.fetch_add(1, Ordering::Relaxed);
    let mut child = Command::new(&options.runtime)
        .arg("--root")
        .arg(&options.state)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Random(0) is for what must not be disturbed.
    if random.0 != 0 && options.kill_one_in > 0 && random.next().is_multiple_of(options.kill_one_in) {
        std::thread::sleep(Duration::from_micros(u64::from(random.next() % 20_000)));
        if child.try_wait()?.is_none() {
            child.kill()?;
            child.wait()?;
            counts.killed.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
    }
    Ok(child.wait()?.code())
}

/// Deletes all that is left; whether nothing was in the end.
fn clean_up(options: &Options) -> io::Result<bool> {
    let ids =
        Command::new(&options.runtime).arg("--root").arg(&options.state).args(["list", "-q"]).output()?;
    let ids = String::from_utf8_lossy(&ids.stdout).into_owned();
    let mut fine = true;
    for id in ids.lines() {
        let output = Command::new(&options.runtime)
            .arg("--root")
            .arg(&options.state)
            .args(["delete", "--force", id])
            .output()?;
        if !output.status.success() {
            println!("cannot be deleted: {id}: {}", String::from_utf8_lossy(&output.stderr).trim());
            fine = false;
        }
    }
    println!("{} containers were left by commands that were killed, and deleted", ids.lines().count());
    std::thread::sleep(Duration::from_millis(300));
    let prefix = format!("soak-{}-", std::process::id());
    for (what, left) in [
        ("cgroups", cgroups(&prefix)),
        ("state", names(&options.state)),
        ("mounts", lines("/proc/self/mountinfo", text(&options.bundle))),
        ("processes", processes(&prefix)),
    ] {
        if !left.is_empty() {
            println!("left: {} {what}: {:?}", left.len(), &left[..left.len().min(5)]);
            fine = false;
        }
    }
    println!("{}", if fine { "1 passed: nothing is left" } else { "1 failed: something is left" });
    Ok(fine)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

fn cgroups(prefix: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |directory: &Path| {
        names(directory).into_iter().filter(|name| name.contains(prefix)).collect::<Vec<_>>()
    };
    names(root).iter().flat_map(|hierarchy| below(Path::new(hierarchy))).chain(below(root)).collect()
}

fn lines(file: &str, with: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
}

/// Processes in a cgroup of ours, or that are one of the runtime's for us. A zombie is none: it keeps its
/// cgroup's name on v2 until whoever inherited it has collected it.
fn processes(prefix: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    names(Path::new("/proc"))
        .into_iter()
        .filter(|path| path.rsplit('/').next().is_some_and(|name| name != own && name.parse::<u32>().is_ok()))
        .filter(|path| {
            let has = |file: &str| {
                fs::read_to_string(format!("{path}/{file}")).is_ok_and(|text| text.contains(prefix))
            };
            let state = fs::read_to_string(format!("{path}/status")).unwrap_or_default();
            !state.contains("\nState:\tZ") && (has("cgroup") || has("cmdline"))
        })
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

impl Counts {
    fn report(&self) -> String {
        let number = |count: &AtomicU32| count.load(Ordering::Relaxed);
        format!(
            "{} commands, {} of them killed, {} failed without having been disturbed",
            number(&self.commands),
            number(&self.killed),
            number(&self.failed)
        )
    }
}

/// xorshift32: the same numbers for the same seed.
struct Random(u32);

impl Random {
    fn new(seed: u32, stream: u32) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9) ^ stream.wrapping_mul(0x85eb_ca6b) | 1);
        (0..8).for_each(|_| _ = random.next());
        random
    }

    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}
