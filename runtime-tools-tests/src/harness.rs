//! Runs tests, several at a time, and tells how they went.

use crate::case::{Case, Runtime};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// The clause that it checks: a file of the specification and its heading, or a contract.
    pub clause: &'static str,
    /// Its path: `tests::mounts::bind_mount_is_read_only`, without the `tests::`.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&Case) -> Verdict,
}

/// How a test ends before its end.
#[derive(Debug)]
pub enum Stop {
    /// The runtime is wrong.
    Failed(String),
    /// The machine lacks something.
    Skipped(String),
}

/// What a test returns.
pub type Verdict<T = ()> = Result<T, Stop>;

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.to_string())
    }
}

/// Fails the test unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::harness::Stop::Failed(format!($($message)+)));
        }
    };
}

/// Fails the test unless both are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => if left != right {
                let what = format!($($message)+);
                return Err($crate::harness::Stop::Failed(format!("{what}: {left:?}, expected {right:?}")));
            }
        }
    };
}

/// Skips the test, for a reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => { return Err($crate::harness::Stop::Skipped(format!($($reason)+))) };
}

/// A module's list of tests: `tests!["clause" => function, …]`.
#[macro_export]
macro_rules! tests {
    ($($clause:literal => $name:ident,)+) => {
        /// The tests of this module.
        pub const TESTS: &[$crate::harness::Test] = &[$($crate::harness::Test {
            clause: $clause,
            name: concat!(module_path!(), "::", stringify!($name)),
            run: $name,
        }),+];
    };
}

/// A test's result.
pub struct Finished {
    test: Test,
    verdict: Verdict,
    took: Duration,
}

impl Finished {
    /// What the run as a whole has left.
    pub fn of_the_whole(verdict: Verdict) -> Self {
        let test = Test {
            clause: "nothing is left on the machine by the whole run",
            name: "leaks::nothing_is_left",
            run: |_| Ok(()),
        };
        Finished { test, verdict, took: Duration::ZERO }
    }

    /// Whether the runtime is wrong.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Err(Stop::Failed(_)))
    }
}

/// Runs them, `jobs` at a time, and returns the results in the order of the tests.
pub fn run(tests: &[Test], runtime: &Runtime, jobs: usize) -> Vec<Finished> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((index, test)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|index| Some((index, tests.get(index)?)))
                {
                    let finished = one(*test, runtime);
                    results.lock().unwrap().push((index, finished));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, finished)| finished).collect()
}

fn one(test: Test, runtime: &Runtime) -> Finished {
    let began = Instant::now();
    let verdict = Case::new(runtime).and_then(|case| {
        let verdict = catch_unwind(AssertUnwindSafe(|| (test.run)(&case)))
            .unwrap_or_else(|_| Err(Stop::Failed("the test panicked".into())));
        // Also after a failure: the next test must not meet what this one left.
        let cleaned = case.clean_up();
        verdict.and(cleaned)
    });
    Finished { test, verdict, took: began.elapsed() }
}

/// The results for people.
pub fn print(results: &[Finished]) {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for Finished { test, verdict, took } in results {
        match verdict {
            Ok(()) => {
                passed += 1;
                println!("ok      {} ({} ms)", name(test), took.as_millis());
            }
            Err(Stop::Skipped(_)) => skipped += 1,
            Err(Stop::Failed(why)) => {
                failed += 1;
                println!(
                    "FAILED  {}\n        checks {}\n        {}",
                    name(test),
                    test.clause,
                    why.replace('\n', "\n        ")
                );
            }
        }
    }
    for Finished { test, verdict, .. } in results {
        if let Err(Stop::Skipped(why)) = verdict {
            println!("skipped {}: {why}", name(test));
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
}

/// The results for programs.
pub fn json(results: &[Finished]) -> Value {
    let entry = |Finished { test, verdict, took }: &Finished| {
        let (result, why) = match verdict {
            Ok(()) => ("passed", None),
            Err(Stop::Failed(why)) => ("failed", Some(why)),
            Err(Stop::Skipped(why)) => ("skipped", Some(why)),
        };
        json!({ "name": name(test), "clause": test.clause, "result": result, "why": why, "ms": took.as_millis() as u64 })
    };
    results.iter().map(entry).collect()
}

fn name(test: &Test) -> &'static str {
    test.name.strip_prefix("runtime_tools_tests::tests::").unwrap_or(test.name)
}
