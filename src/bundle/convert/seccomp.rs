//! `linux.seccomp`: what Docker allows by default (moby/profiles, June 2026), so that an image that works
//! there works here.
//!
//! What isn't allowed fails with EPERM. Names that an architecture doesn't have are skipped by runtimes.

use super::spec::{Argument, Seccomp, Syscall};
use caps::Capability;

/// Calls that everybody may make, by what they are for.
const ALLOWED: [&str; 14] = [
    FILES,
    ATTRIBUTES,
    DESCRIPTORS,
    INPUT_OUTPUT,
    EVENTS,
    SOCKETS,
    IPC,
    MEMORY,
    PROCESSES,
    SCHEDULING,
    SIGNALS,
    IDENTITY,
    TIME,
    SYSTEM,
];

const FILES: &str = "access chdir creat faccessat faccessat2 fallocate fchdir fstat fstat64 fstatat64 fstatfs \
    fstatfs64 ftruncate ftruncate64 getcwd getdents getdents64 link linkat listmount lstat lstat64 mkdir mkdirat \
    mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename renameat renameat2 \
    rmdir stat stat64 statfs statfs64 statmount statx symlink symlinkat truncate truncate64 umask unlink unlinkat";

const ATTRIBUTES: &str = "chmod chown chown32 fchmod fchmodat fchmodat2 fchown fchown32 fchownat fgetxattr \
    flistxattr fremovexattr fsetxattr futimesat getxattr getxattrat lchown lchown32 lgetxattr listxattr listxattrat \
    llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat utime utimensat \
    utimensat_time64 utimes";

const DESCRIPTORS: &str =
    "close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl memfd_create memfd_secret pipe pipe2";

const INPUT_OUTPUT: &str = "_llseek copy_file_range fadvise64 fadvise64_64 fdatasync fsync io_cancel io_destroy \
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit lseek pread64 preadv preadv2 pwrite64 \
    pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee vmsplice write \
    writev";

const EVENTS: &str = "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64";

const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";

const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2 \
    mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease \
    remap_file_pages";

const PROCESSES: &str = "execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv \
    futex_wake get_robust_list get_thread_area getpgid getpgrp getpid getppid getrlimit getrusage getsid gettid \
    pidfd_open prctl prlimit64 process_vm_readv process_vm_writev ptrace rseq set_robust_list set_thread_area \
    set_tid_address setpgid setrlimit setsid ugetrlimit uretprobe vfork wait4 waitid waitpid";

const SCHEDULING: &str = "getcpu getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    setpriority";

const SIGNALS: &str = "alarm kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack \
    sigprocmask sigreturn tgkill tkill";

const IDENTITY: &str = "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getresgid getresgid32 getresuid getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32";

const TIME: &str = "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times";

const SYSTEM: &str = "getrandom riscv_hwprobe sysinfo uname";

/// What a capability is for is of no use without its calls.
const WITH_CAPABILITY: [(Capability, &str); 14] = [
    (Capability::CAP_DAC_READ_SEARCH, "open_by_handle_at"),
    (
        Capability::CAP_SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::CAP_SYS_BOOT, "reboot"),
    (Capability::CAP_SYS_CHROOT, "chroot"),
    (Capability::CAP_SYS_MODULE, "delete_module finit_module init_module"),
    (Capability::CAP_SYS_PACCT, "acct"),
    (
        Capability::CAP_SYS_PTRACE,
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    (Capability::CAP_SYS_RAWIO, "ioperm iopl"),
    (Capability::CAP_SYS_TIME, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::CAP_SYS_TTY_CONFIG, "vhangup"),
    (Capability::CAP_SYS_NICE, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::CAP_SYSLOG, "syslog"),
    (Capability::CAP_BPF, "bpf"),
    (Capability::CAP_PERFMON, "perf_event_open"),
];

/// An architecture.
struct Architecture {
    /// As Rust has it.
    name: &'static str,
    /// Its own name in the specification, and those of whose programs it runs as well.
    names: &'static [&'static str],
    /// Calls that are its own, or of those.
    calls: &'static str,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "x86_64",
        names: &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        calls: "arch_prctl modify_ldt",
    },
    Architecture {
        name: "aarch64",
        names: &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        calls: "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    },
];

/// CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET.
const CLONE_NEW: u64 = 0x7e02_0000;

/// Address families that a guest talks to its host by, and the kernel's cryptography, whose sockets have
/// been a way to become root: the host's, in both cases.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Linux and its historic variants (personality(2)), without and with UNAME26, and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";

/// The profile for a host of this architecture and a process that is bounded by these capabilities. On
/// another architecture than those above it holds for that one's own programs only.
pub fn profile(architecture: &str, bounding: &[Capability]) -> Seccomp {
    let architecture = ARCHITECTURES.iter().find(|other| other.name == architecture);
    let mut names: Vec<_> = ALLOWED.iter().flat_map(|names| names.split_whitespace()).collect();
    names.extend(architecture.iter().flat_map(|architecture| architecture.calls.split_whitespace()));
    for (capability, calls) in WITH_CAPABILITY {
        names.extend(calls.split_whitespace().filter(|_| bounding.contains(&capability)));
    }
    names.sort_unstable();
    names.dedup();
    let mut syscalls = vec![Syscall { names, action: ALLOW, errno_ret: None, args: vec![] }];
    syscalls.extend([
        with("socket", "SCMP_CMP_LT", AF_ALG),
        with("socket", "SCMP_CMP_EQ", AF_ALG + 1),
        with("socket", "SCMP_CMP_GT", AF_VSOCK),
    ]);
    syscalls.extend(PERSONALITIES.map(|persona| with("personality", "SCMP_CMP_EQ", persona)));
    if !bounding.contains(&Capability::CAP_SYS_ADMIN) {
        let mut clone = with("clone", "SCMP_CMP_MASKED_EQ", CLONE_NEW);
        clone.args[0].value_two = Some(0);
        syscalls.push(clone);
        // Its flags are in memory, where no filter sees them. Told that there is no such call, libraries
        // fall back to clone.
        syscalls.push(Syscall {
            names: vec!["clone3"],
            action: ERRNO,
            errno_ret: Some(ENOSYS),
            args: vec![],
        });
    }
    Seccomp {
        default_action: ERRNO,
        default_errno_ret: EPERM,
        architectures: architecture.map(|architecture| architecture.names.to_vec()).unwrap_or_default(),
        syscalls,
    }
}

/// Allows a call whose first argument is such.
fn with(name: &'static str, op: &'static str, value: u64) -> Syscall {
    let args = vec![Argument { index: 0, value, value_two: None, op }];
    Syscall { names: vec![name], action: ALLOW, errno_ret: None, args }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Seccomp, name: &str) -> bool {
        profile.syscalls[0].names.contains(&name)
    }

    #[test]
    fn capabilities_bring_their_calls() {
        let none = profile("x86_64", &[]);
        let admin = profile("x86_64", &[Capability::CAP_SYS_ADMIN]);
        for call in ["mount", "clone", "clone3", "setns", "bpf"] {
            assert!(!allowed(&none, call) && allowed(&admin, call), "{call}");
        }
        let rule = |profile: &Seccomp, name| {
            profile.syscalls.iter().find(|syscall| syscall.names == [name]).map(|found| found.errno_ret)
        };
        assert_eq!((rule(&none, "clone3"), rule(&admin, "clone3")), (Some(Some(38)), None));
        assert_eq!((rule(&none, "clone"), rule(&admin, "clone")), (Some(None), None));
        assert!(
            !allowed(&none, "chroot") && allowed(&profile("x86_64", &[Capability::CAP_SYS_CHROOT]), "chroot")
        );
    }

    #[test]
    fn architectures() {
        let (x86, arm) = (profile("x86_64", &[]), profile("aarch64", &[]));
        assert_eq!(x86.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(arm.architectures, ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
        assert!(allowed(&x86, "arch_prctl") && !allowed(&arm, "arch_prctl"));
        assert!(allowed(&arm, "set_tls") && !allowed(&x86, "set_tls"));
        assert_eq!(profile("riscv64", &[]).architectures, [""; 0]);
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut names: Vec<_> = ALLOWED.iter().flat_map(|names| names.split_whitespace()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
