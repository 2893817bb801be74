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
//! | `convert` | an image's configuration to config.json |
//! | `registry` | the source that is a registry |
//! | `source` | where the bytes of an image come from |
//! | `error` | messages |

mod convert;
mod digest;
mod error;
mod limits;
mod merge;
mod registry;
mod settle;
mod source;
mod stack;
mod tree;
mod unpack;

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let [_, option, job] = &arguments[..]
        && option == unpack::OPTION
    {
        return std::process::ExitCode::from(unpack::run(&job.to_string_lossy()) as u8);
    }
    std::process::ExitCode::SUCCESS
}
