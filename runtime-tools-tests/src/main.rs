//! Conformance tests for OCI runtimes: they drive a runtime's binary from outside, as an engine or a
//! person does, and name the clause of the specification or the contract that they check.
//!
//! ```text
//! RUNTIME=runc runtime-tools-tests [FILTER]...
//! ```
//! Exit status: 0 when nothing failed. A test that needs what the machine lacks is skipped, with
//! the reason; skips are counted and listed.

mod case;
mod compare;
#[cfg(test)]
mod documents;
mod harness;
mod image;
mod inside;
mod leaks;
mod machine;
mod receive;
mod tests;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "runtime-tools-tests", about = "Conformance tests for OCI runtimes")]
struct Options {
    /// the runtime to test
    #[arg(long, env = "RUNTIME", default_value = "damda")]
    runtime: PathBuf,
    /// the static program that runs inside the containers (default: beside this one)
    #[arg(long, env = "PROBE")]
    probe: Option<PathBuf>,
    /// run only the tests whose name contains one of these
    filter: Vec<String>,
    /// only the test of exactly this name
    #[arg(long)]
    exact: bool,
    /// list the tests with their clauses
    #[arg(long)]
    list: bool,
    /// how many run at a time
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// run nothing, but print where the results in these files (of --json) differ
    #[arg(long, value_name = "FILE", num_args = 1..)]
    compare: Vec<PathBuf>,
    /// write the results to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.compare.is_empty() {
        return match compare::print(&options.compare) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::from(2)
            }
        };
    }
    let probe = options.probe.unwrap_or_else(|| {
        std::env::current_exe().map(|path| path.with_file_name("probe")).unwrap_or_else(|_| "probe".into())
    });
    let chosen = |name: &str| match &options.filter[..] {
        [] => true,
        filter if options.exact => filter.iter().any(|exact| exact == name),
        filter => filter.iter().any(|part| name.contains(part.as_str())),
    };
    let tests: Vec<_> = tests::all().into_iter().filter(|test| chosen(test.name)).collect();
    if options.list {
        for test in &tests {
            println!("{:<70} {}", test.name, test.clause);
        }
        return ExitCode::SUCCESS;
    }
    let under_test = match case::Runtime::find(&options.runtime, &probe) {
        Ok(under_test) => under_test,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let before = leaks::Before::look();
    let mut results = harness::run(&tests, &under_test, options.jobs.max(1));
    results.push(harness::Finished::of_the_whole(before.compare()));
    let written = options.json.as_ref().map(|path| std::fs::write(path, harness::json(&results).to_string()));
    if let Some(Err(error)) = written {
        eprintln!("cannot write the results: {error}");
        return ExitCode::from(2);
    }
    harness::print(&results);
    if results.iter().any(harness::Finished::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
