//! The tests, by what they are about.

mod apparmor;
mod bundle_entries;
mod bundle_hostile;
mod bundle_hostile_archive;
mod bundle_hostile_image;
mod bundle_hostile_tar;
mod bundle_life;
mod bundle_store;
mod bundle_unpack;
mod bundle_world;
mod cgroup_paths;
mod cgroups;
mod checkpoint;
mod commands;
mod contracts;
mod devices;
mod engines;
mod errors;
mod events;
mod exec;
mod features;
mod hooks;
mod lifecycle;
mod mount_options;
mod mounts;
mod namespaces;
mod net_devices;
mod notify;
mod process;
mod rootfs;
mod rootless;
mod seccomp;
mod security;
mod systemd;
mod terminal;
mod update;
mod values;

use crate::harness::Test;

/// All of them.
pub fn all() -> Vec<Test> {
    [
        lifecycle::TESTS,
        commands::TESTS,
        features::TESTS,
        errors::TESTS,
        values::TESTS,
        process::TESTS,
        namespaces::TESTS,
        net_devices::TESTS,
        rootfs::TESTS,
        mounts::TESTS,
        mount_options::TESTS,
        devices::TESTS,
        cgroups::TESTS,
        cgroup_paths::TESTS,
        seccomp::TESTS,
        hooks::TESTS,
        terminal::TESTS,
        exec::TESTS,
        update::TESTS,
        events::TESTS,
        checkpoint::TESTS,
        engines::TESTS,
        apparmor::TESTS,
        notify::TESTS,
        contracts::TESTS,
        rootless::TESTS,
        systemd::TESTS,
        security::TESTS,
        bundle_unpack::TESTS,
        bundle_entries::TESTS,
        bundle_hostile::TESTS,
        bundle_hostile_tar::TESTS,
        bundle_hostile_image::TESTS,
        bundle_hostile_archive::TESTS,
        bundle_life::TESTS,
        bundle_store::TESTS,
    ]
    .concat()
}
