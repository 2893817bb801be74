//! Measures `damda bundle` against umoci, skopeo and tar: hack/bench-bundle prepares what it needs, and
//! calls it.
//!
//! One round runs each subject once, one after the other, beginning with another one each time; so what
//! else the machine is doing, and what the subject before has left behind in the kernel, hits all of
//! them. The figures are medians over the rounds, and ratios of them.
//!
//! Memory is measured in a round of its own, the first, whose times don't count: every 5 ms the sum of
//! the proportional set sizes (Pss in /proc/PID/smaps_rollup) of the command and all that it has
//! started. A peak shorter than that is missed, but not by "largest", which is the kernel's own record
//! of the largest resident set of any one process (ru_maxrss). Neither counts the page cache.

use clap::Parser;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(name = "bench-bundle", about = "Measures `damda bundle` against umoci, skopeo and tar")]
struct Options {
    /// how many rounds
    #[arg(default_value_t = 5)]
    rounds: usize,
    /// the binary
    #[arg(long)]
    damda: PathBuf,
    /// directory of images: one/oci and ten/oci are OCI layouts
    #[arg(long)]
    images: PathBuf,
    /// HOST:PORT of a registry that has one:latest and ten:latest
    #[arg(long)]
    registry: String,
    /// directory to unpack in, on the file system that is measured
    #[arg(long)]
    work: PathBuf,
    /// fail when a bound isn't met
    #[arg(long)]
    bounds: bool,
    /// only the tables whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

/// One way to do a table's job: a shell script that makes $OUT and may use $TMP.
struct Subject {
    name: &'static str,
    script: String,
}

/// One job, done by each subject.
struct Table {
    name: &'static str,
    /// what is done once before, and isn't measured
    before: Option<String>,
    subjects: Vec<Subject>,
    bounds: Vec<Bound>,
}

/// What a subject must keep, by its name.
enum Bound {
    /// median wall time, as a share of another subject's
    Ratio(&'static str, &'static str, f64),
    /// median wall time
    Time(&'static str, Duration),
}

/// The peak memory that damda must keep in every table.
const MEMORY: u64 = 64 << 20;

/// One measurement. Memory in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    cpu: Duration,
    largest: u64,
}

/// A subject's measurements in a table.
#[derive(Default)]
struct Result {
    costs: Vec<Cost>,
    pss: u64,
}

impl Result {
    fn wall(&self) -> f64 {
        self.median(|cost| cost.wall)
    }

    /// In milliseconds.
    fn median(&self, of: fn(&Cost) -> Duration) -> f64 {
        let mut all: Vec<Duration> = self.costs.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).map_or(f64::NAN, |median| median.as_secs_f64() * 1000.0)
    }

    fn largest(&self) -> u64 {
        self.costs.iter().map(|cost| cost.largest).max().unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options) {
        Ok(broken) if broken == 0 || !options.bounds => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-bundle: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many bounds aren't kept.
fn measure(options: &Options) -> io::Result<usize> {
    // What outlives its parent comes to this process, so that its time counts.
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut broken = 0;
    for table in tables(options)?.iter().filter(|table| table.name.contains(&options.only)) {
        if let Some(before) = &table.before {
            run(options, before, false)?;
        }
        let results = rounds(options, table)?;
        print(table, &results);
        broken += judge(table, &results);
        println!();
    }
    Ok(broken)
}

fn tables(options: &Options) -> io::Result<Vec<Table>> {
    let Options { damda, images, registry, work, .. } = options;
    let (damda, images, work) = (damda.display(), images.display(), work.display());
    let bundle = format!("'{damda}' bundle --quiet");
    let damda = |script: String| Subject { name: "damda", script };
    let umoci = |script: String| Subject { name: "umoci", script };
    let mut tables = Vec::new();
    for (image, name, bounds) in [
        (
            "one",
            "one layer",
            vec![Bound::Ratio("damda", "umoci", 0.5), Bound::Ratio("damda", "gzip | tar", 1.0)],
        ),
        ("ten", "ten layers", vec![Bound::Ratio("damda", "umoci", 0.35)]),
    ] {
        let tar: String = layers(&options.images.join(image).join("oci"))?
            .iter()
            .map(|blob| {
                let options = "--numeric-owner --xattrs --xattrs-include='*'";
                format!("gzip -dc '{}' | tar -x {options} -C \"$OUT\"\n", blob.display())
            })
            .collect();
        tables.push(Table {
            name,
            before: None,
            subjects: vec![
                damda(format!("exec {bundle} oci:{images}/{image}/oci \"$OUT\"")),
                umoci(format!("exec umoci unpack --image {images}/{image}/oci \"$OUT\"")),
                Subject { name: "gzip | tar", script: format!("mkdir \"$OUT\"\n{tar}") },
                Subject { name: "and sync", script: format!("mkdir \"$OUT\"\n{tar} sync -f \"$OUT\"") },
            ],
            bounds,
        });
    }
    for (image, name) in [("one", "registry, one layer"), ("ten", "registry, ten layers")] {
        let copy = format!(
            "skopeo copy -q --src-tls-verify=false docker://{registry}/{image} oci:\"$TMP/image\":latest"
        );
        tables.push(Table {
            name,
            before: None,
            subjects: vec![
                damda(format!("exec {bundle} docker://{registry}/{image} \"$OUT\"")),
                umoci(format!("{copy} && umoci unpack --image \"$TMP/image\" \"$OUT\"")),
            ],
            bounds: vec![Bound::Ratio("damda", "umoci", 0.6)],
        });
    }
    for (image, name) in [("one", "second bundle, one layer"), ("ten", "second bundle, ten layers")] {
        let again =
            |how: &str| format!("{bundle} --store '{work}/store' {how} oci:{images}/{image}/oci \"$OUT\"");
        tables.push(Table {
            name,
            before: Some(again("--overlay")),
            subjects: vec![
                Subject { name: "--overlay", script: format!("exec {}", again("--overlay")) },
                Subject { name: "--copy", script: format!("exec {}", again("--copy")) },
                Subject {
                    name: "umoci",
                    script: format!("exec umoci unpack --image {images}/{image}/oci \"$OUT\""),
                },
            ],
            bounds: vec![Bound::Time("--overlay", Duration::from_millis(50))],
        });
    }
    Ok(tables)
}

/// The layers' files of a layout's only image.
fn layers(layout: &Path) -> io::Result<Vec<PathBuf>> {
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let read = |path: PathBuf| -> io::Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(&index["manifests"][0]))?;
    Ok(manifest["layers"].as_array().into_iter().flatten().map(blob).collect())
}

fn rounds(options: &Options, table: &Table) -> io::Result<Vec<Result>> {
    let count = table.subjects.len();
    let mut results: Vec<Result> = table.subjects.iter().map(|_| Result::default()).collect();
    for round in 0..=options.rounds {
        for place in 0..count {
            let index = (round + place) % count;
            let (cost, pss) = run(options, &table.subjects[index].script, round == 0)?;
            if round > 0 {
                results[index].costs.push(cost);
            } else {
                results[index].pss = pss;
            }
        }
    }
    Ok(results)
}

/// Runs a script, and removes what it has made. The second value is the peak of memory, if asked for.
fn run(options: &Options, script: &str, sample: bool) -> io::Result<(Cost, u64)> {
    // Another name each time: see hack/bench-bundle on ext4.
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let (output, temporary) =
        (options.work.join(format!("out-{number}")), options.work.join(format!("tmp-{number}")));
    fs::create_dir(&temporary)?;
    // What was written before is not this one's to pay for.
    nix::unistd::sync();
    let began = Instant::now();
    let child = Command::new("sh")
        .args(["-ec", script])
        .env("OUT", &output)
        .env("TMP", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let ended = AtomicBool::new(false);
    let (waited, pss) = std::thread::scope(|scope| {
        let sampler = sample.then(|| scope.spawn(|| peak(pid, &ended)));
        let waited = wait(pid);
        ended.store(true, Ordering::Relaxed);
        let pss = sampler.map_or(0, |sampler| sampler.join().unwrap_or_default());
        (waited, pss)
    });
    let (cpu, largest, status) = waited?;
    let cost = Cost { wall: began.elapsed(), cpu, largest };
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    discard(&output)?;
    discard(&temporary)?;
    if status == 0 { Ok((cost, pss)) } else { Err(io::Error::other(format!("{script}: status {status:#x}"))) }
}

/// Waits for a process: its CPU time and largest resident set, with those that it has waited for.
fn wait(pid: u32) -> io::Result<(Duration, u64, i32)> {
    // SAFETY: wait4(2) fills both in; zeroes are valid for plain integers.
    let (usage, status) = unsafe {
        let (mut usage, mut status) = (std::mem::zeroed::<libc::rusage>(), 0);
        if libc::wait4(pid as i32, &mut status, 0, &mut usage) < 0 {
            return Err(io::Error::last_os_error());
        }
        (usage, status)
    };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    Ok((time(usage.ru_utime) + time(usage.ru_stime), usage.ru_maxrss as u64 * 1024, status))
}

/// The largest sum of the memory of a process and those below it, until it has ended.
fn peak(pid: u32, ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !ended.load(Ordering::Relaxed) {
        peak = peak.max(memory(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// Processes that end meanwhile count nothing.
fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let own = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String =
        tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();
    let below: u64 = children.split_whitespace().filter_map(|child| child.parse().ok()).map(memory).sum();
    own.unwrap_or_default() * 1024 + below
}

/// Removes a directory tree, whatever rights its directories have.
fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

fn print(table: &Table, results: &[Result]) {
    println!(
        "{:<26} {:>8} {:>8} {:>7} {:>8} {:>7} {:>8} {:>8}",
        table.name, "min ms", "median", "ratio", "CPU ms", "ratio", "Pss MiB", "largest"
    );
    // Ratios are to umoci where it takes part, otherwise to the first.
    let reference = table.subjects.iter().position(|subject| subject.name == "umoci").unwrap_or(0);
    let reference = &results[reference];
    for (subject, result) in table.subjects.iter().zip(results) {
        let least =
            result.costs.iter().map(|cost| cost.wall).min().unwrap_or_default().as_secs_f64() * 1000.0;
        let cpu = result.median(|cost| cost.cpu);
        println!(
            "  {:<24} {least:>8.1} {:>8.1} {:>7.3} {cpu:>8.1} {:>7.3} {:>8.1} {:>8.1}",
            subject.name,
            result.wall(),
            result.wall() / reference.wall(),
            cpu / reference.median(|cost| cost.cpu),
            mebibytes(result.pss),
            mebibytes(result.largest()),
        );
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Prints each bound of a table; how many aren't kept.
fn judge(table: &Table, results: &[Result]) -> usize {
    let of = |name: &str| -> &Result {
        &results[table.subjects.iter().position(|subject| subject.name == name).unwrap_or_default()]
    };
    let mut broken = 0;
    let mut line = |kept: bool, text: String| {
        println!("{} {text}", if kept { "kept    " } else { "BROKEN  " });
        broken += usize::from(!kept);
    };
    for bound in &table.bounds {
        match *bound {
            Bound::Ratio(one, other, bound) => {
                let ratio = of(one).wall() / of(other).wall();
                line(
                    ratio <= bound,
                    format!("{one} in {ratio:.2} of the time of {other}: at most {bound:.2}"),
                );
            }
            Bound::Time(one, bound) => {
                let (wall, bound) = (of(one).wall(), bound.as_secs_f64() * 1000.0);
                line(wall <= bound, format!("{one} in {wall:.1} ms: at most {bound:.0}"));
            }
        }
    }
    for (subject, result) in table.subjects.iter().zip(results) {
        if subject.script.contains(" bundle ") {
            let peak = result.pss.max(result.largest());
            let text =
                format!("{} with {:.1} MiB: at most {:.0}", subject.name, mebibytes(peak), mebibytes(MEMORY));
            line(peak <= MEMORY, text);
        }
    }
    broken
}
