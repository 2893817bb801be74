//! `features`: what damda can do, whatever the host can (features.md).

use crate::config::SPEC_VERSION;
use crate::seccomp::Architecture;
use crate::steps::hooks::Kind;
use crate::steps::mount_options;
use serde_json::json;

/// The command; returns what it prints.
pub fn run() -> String {
    let mut capabilities: Vec<_> = caps::all().into_iter().collect();
    capabilities.sort_by_key(|capability| capability.index());
    let capabilities: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    let architectures = [
        Architecture::Aarch64,
        Architecture::Arm,
        Architecture::X32,
        Architecture::X86,
        Architecture::X86_64,
    ];
    let flags = [
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": Kind::ALL.map(Kind::name),
        "mountOptions": mount_options::known(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": architectures.map(Architecture::name),
                "knownFlags": flags,
                "supportedFlags": flags,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": [
                    "MPOL_DEFAULT", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_LOCAL",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "io.github.damda.version": env!("CARGO_PKG_VERSION"),
            // The name under which engines look for it.
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    });
    format!("{features:#}\n")
}
