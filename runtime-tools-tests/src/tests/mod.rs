//! The tests, by what they are about.

mod apparmor;
mod cgroups;
mod commands;
mod contracts;
mod devices;
mod engines;
mod errors;
mod events;
mod exec;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod notify;
mod process;
mod rootfs;
mod rootless;
mod seccomp;
mod security;
mod terminal;
mod update;

use crate::harness::Test;

/// All of them.
pub fn all() -> Vec<Test> {
    [
        lifecycle::TESTS,
        commands::TESTS,
        errors::TESTS,
        process::TESTS,
        namespaces::TESTS,
        rootfs::TESTS,
        mounts::TESTS,
        devices::TESTS,
        cgroups::TESTS,
        seccomp::TESTS,
        hooks::TESTS,
        terminal::TESTS,
        exec::TESTS,
        update::TESTS,
        events::TESTS,
        engines::TESTS,
        apparmor::TESTS,
        notify::TESTS,
        contracts::TESTS,
        rootless::TESTS,
        security::TESTS,
    ]
    .concat()
}
