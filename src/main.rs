//! damda is an OCI runtime: it makes containers out of bundle directories.
//!
//! # The map of the house
//! Imports run downward only.
//!
//! | | |
//! |---|---|
//! | `main`, `cli` | the command line, exit codes |
//! | `lifecycle` | the commands, one a file |
//! | `launch` | the one fork, both processes' sides of it |
//! | `plan` | from a configuration to the steps that make the container: their order |
//! | `steps` | what is done to the process: one feature a file |
//! | `container` | what is kept of a container, and what it is doing |
//! | `criu` | the program behind `checkpoint` and `restore`: what it is told, and what it says |
//! | `link` | what the two processes say to each other |
//! | `cgroup`, `seccomp` | the two features that are compiled to something of the kernel's |
//! | `config` | config.json: read, checked |
//! | `host`, `root`, `log`, `error` | what the host is; paths in a container; messages |
//! | `sys` | every unsafe line and every raw system call |
#![cfg_attr(not(test), no_main)]

mod cgroup;
mod cli;
mod config;
mod container;
mod criu;
mod error;
mod host;
mod launch;
mod lifecycle;
mod link;
mod log;
mod plan;
mod resctrl;
mod root;
mod seccomp;
mod steps;
mod sys;

use std::ffi::OsString;
use std::io::Write;

#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: sys::alloc::Allocator = sys::alloc::Allocator::new();

/// The commands whose processes go into a container, and so must run from a sealed binary.
const SEALED: [&str; 3] = ["create", "run", "exec"];

/// From the arguments to the exit status. Called by `sys::entry`.
#[cfg_attr(test, allow(dead_code))]
fn run(arguments: Vec<OsString>) -> i32 {
    std::panic::set_hook(Box::new(|panic| {
        log::error(&format!("this is a bug in damda: {panic}"));
        // Not abort(3), which in a fork signals the thread id of the process it was forked from.
        sys::process::exit(70)
    }));
    if arguments.get(1).is_some_and(|command| command == "bundle") {
        sys::entry::fill_standard_descriptors();
        // Its arguments are read by another program, not as Go's.
        let error = lifecycle::bundle::run(&arguments[2..]);
        log::error(&error.of_command("damda bundle failed").to_string());
        return 1;
    }
    // Before anything else, since it begins anew; so the command is only guessed at. A wrong guess
    // costs 0.1 ms.
    if arguments.iter().skip(1).any(|argument| SEALED.iter().any(|command| argument == command)) {
        if let Err(error) = launch::seal::seal(&arguments) {
            log::error(&error.to_string());
            return 1;
        }
    } else {
        sys::entry::fill_standard_descriptors();
    }
    match cli::run(arguments) {
        Ok(done) => {
            let written = std::io::stdout().write_all(done.output.as_bytes());
            if written.is_err() { 1 } else { done.status }
        }
        Err(error) => {
            log::error(&error.to_string());
            error.status().unwrap_or(1)
        }
    }
}
