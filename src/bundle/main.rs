//! `damda bundle`: from an image to a bundle.
//!
//! A program of its own, which `damda bundle` executes: what talks to a network, checks certificates and
//! decompresses is not in the runtime, which runs as root under an engine. It has no unsafe line.
//!
//! # The map of the house
//! Imports run downward only.
//!
//! | | |
//! |---|---|
//! | `main`, `arguments` | the command line, exit codes |
//! | `make`, `check` | making a bundle from beginning to end; verifying one; looking after the store |
//! | `fill`, `layers` | a root file system from layers: several at a time, each by an unpacker |
//! | `unpack` | the unpacker: one layer, in a process that can do nothing else |
//! | `settle`, `merge`, `stack`, `overlay`, `compare` | layers on top of each other |
//! | `store`, `staging`, `signals`, `rootless` | layers that are kept; what is being made; ids of ordinary users |
//! | `convert` | an image's configuration to config.json |
//! | `image` | from a name to layers and configuration, each verified |
//! | `source`, `registry`, `reference` | where the bytes of an image come from |
//! | `tree`, `digest`, `limits`, `progress`, `error` | paths in a tree that somebody else made up; … |

mod arguments;
mod check;
mod compare;
mod convert;
mod digest;
mod error;
mod fill;
mod image;
mod layers;
mod limits;
mod make;
mod merge;
mod overlay;
mod progress;
mod reference;
mod registry;
mod rootless;
mod settle;
mod signals;
mod source;
mod stack;
mod staging;
mod store;
mod tree;
mod unpack;

use arguments::Arguments;
use clap::Parser;
use error::Result;
use progress::Progress;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let texts: Vec<_> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match texts[..] {
        [_, unpack::OPTION, job] => ExitCode::from(unpack::run(job) as u8),
        [_, rootless::OPTION, pid, maps] => {
            status(rootless::map_ids(pid, maps).map(|()| (String::new(), true)))
        }
        _ => match Arguments::try_parse_from(&arguments) {
            Ok(arguments) => status(run(&arguments)),
            Err(error) if !error.use_stderr() => {
                print!("{error}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                let text = error.to_string();
                eprintln!("damda bundle failed: {}", text.trim().trim_start_matches("error: "));
                ExitCode::FAILURE
            }
        },
    }
}

/// Tells how it went.
fn status(result: Result<(String, bool)>) -> ExitCode {
    match result {
        Ok((text, all_right)) => {
            let written = std::io::stdout().write_all(text.as_bytes());
            if written.is_ok() && all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("damda bundle failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says. In this order because the first two want a single thread.
fn run(arguments: &Arguments) -> Result<(String, bool)> {
    let ids = rootless::enter(arguments.changes.rootless)?;
    signals::handle()?;
    raise_descriptors();
    // Modes are the image's, not the caller's to take from.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let progress = Progress::new(arguments.quiet || arguments.json);
    let keeping = &arguments.keeping;
    let told = |text| (text, true);
    match (keeping.list, keeping.gc, &keeping.verify) {
        (true, ..) => check::list(arguments, &ids).map(told),
        (_, Some(most), _) => check::collect(arguments, &ids, most).map(told),
        (_, _, Some(bundle)) => check::verify(arguments, bundle, &ids, &progress),
        _ => make::make(arguments, &ids, &progress).map(told),
    }
}

/// A stack of many layers, each with a directory open, or a deep one.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With less it works as well, but for the largest images.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65536), hard);
    }
}
