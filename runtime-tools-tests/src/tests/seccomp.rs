//! Seccomp.

use crate::case::{Case, probe};
use crate::harness::{Stop, Verdict};
use crate::receive::{receive, receive_all};
use crate::{ensure, ensure_eq, tests};
use serde_json::{Value, json};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

tests![
    "config-linux.md, Seccomp: a filter is set" => a_filter_is_set,
    "config-linux.md, Seccomp: SCMP_ACT_ERRNO, errnoRet" => errno,
    "config-linux.md, Seccomp: SCMP_ACT_KILL_PROCESS" => kill,
    "config-linux.md, Seccomp: SCMP_ACT_TRACE, SCMP_ACT_LOG" => other_actions,
    "config-linux.md, Seccomp: defaultAction, defaultErrnoRet" => default_action,
    "config-linux.md, Seccomp: args" => conditions,
    "config-linux.md, Seccomp: args, masked" => masked_condition,
    "config-linux.md, Seccomp: an unknown system call" => unknown_system_call,
    "config-linux.md, Seccomp: architectures" => other_architectures,
    "config-linux.md, Seccomp: flags" => flags,
    "config-linux.md, Seccomp: without noNewPrivileges" => without_no_new_privileges,
    "config-linux.md, Seccomp: listenerPath" => notify,
    "config-linux.md, The Container Process State: one per connection" => notify_state,
    "config-linux.md, Seccomp: listenerPath where nobody listens" => notify_without_an_agent,
    "runc exec: the container's filter" => exec_has_the_filter,
    "config-linux.md, Seccomp: a rule that is the default" => rule_that_is_the_default,
    "config-linux.md, Seccomp: errnoRet is 16 bits" => errno_that_would_be_another_action,
    "config-linux.md, Seccomp: architectures, of a 32-bit program" => program_of_32_bits,
];

const MKDIR: i64 = libc::SYS_mkdirat;

fn deny(action: Value) -> impl FnOnce(&mut Value) {
    move |config| {
        let mut rule = json!({ "names": ["mkdirat", "mkdir"] });
        rule.as_object_mut().unwrap().extend(action.as_object().cloned().unwrap_or_default());
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [rule],
        });
    }
}

fn mkdir() -> [String; 5] {
    ["syscall".into(), MKDIR.to_string(), "-100".into(), "0".into(), "0".into()]
}

/// Calls mkdirat(2) with a null path, which is EFAULT unless a filter answers.
fn status(case: &Case, change: impl FnOnce(&mut Value)) -> Verdict<i32> {
    let words = mkdir();
    Ok(case.probed(&words.each_ref().map(String::as_str), change)?.status)
}

fn a_filter_is_set(case: &Case) -> Verdict {
    let report = case.report(deny(json!({ "action": "SCMP_ACT_ERRNO" })))?;
    ensure_eq!(report["seccomp"], 2, "Seccomp in /proc/self/status");
    ensure_eq!(case.report(|_| ())?["seccomp"], 0, "Seccomp where none is set");
    ensure_eq!(status(case, |_| ())?, libc::EFAULT, "exit status without a filter");
    Ok(())
}

fn errno(case: &Case) -> Verdict {
    ensure_eq!(status(case, deny(json!({ "action": "SCMP_ACT_ERRNO" })))?, libc::EPERM, "errno by default");
    let action = json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY });
    ensure_eq!(status(case, deny(action))?, libc::ENOTTY, "errnoRet");
    Ok(())
}

fn kill(case: &Case) -> Verdict {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD"] {
        ensure_eq!(
            status(case, deny(json!({ "action": action })))?,
            128 + libc::SIGSYS,
            "exit status with {action}"
        );
    }
    Ok(())
}

fn other_actions(case: &Case) -> Verdict {
    ensure_eq!(status(case, deny(json!({ "action": "SCMP_ACT_LOG" })))?, libc::EFAULT, "SCMP_ACT_LOG");
    // Without a tracer the call is not made.
    ensure_eq!(status(case, deny(json!({ "action": "SCMP_ACT_TRACE" })))?, libc::ENOSYS, "SCMP_ACT_TRACE");
    ensure_eq!(
        status(case, deny(json!({ "action": "SCMP_ACT_TRAP" })))?,
        128 + libc::SIGSYS,
        "SCMP_ACT_TRAP"
    );
    Ok(())
}

fn default_action(case: &Case) -> Verdict {
    let names = ["chmod"];
    let result = status(case, |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": libc::EXDEV,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [
                { "names": ALLOWED, "action": "SCMP_ACT_ALLOW" },
                { "names": names, "action": "SCMP_ACT_ALLOW" },
            ],
        });
    })?;
    ensure_eq!(result, libc::EXDEV, "defaultErrnoRet");
    Ok(())
}

/// What the probe needs, and what a runtime needs after it has loaded the filter.
const ALLOWED: &[&str] = &[
    "read",
    "write",
    "writev",
    "close",
    "fstat",
    "newfstatat",
    "statx",
    "poll",
    "ppoll",
    "mmap",
    "mprotect",
    "munmap",
    "brk",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "execve",
    "exit",
    "exit_group",
    "arch_prctl",
    "prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "getrandom",
    "futex",
    "sched_getaffinity",
    "openat",
    "lseek",
    "getpid",
    "gettid",
    "tgkill",
    "fcntl",
    "ioctl",
    "capset",
    "capget",
    "setuid",
    "setgid",
    "setgroups",
    "chdir",
    "getdents64",
    "epoll_ctl",
    "uname",
    "clock_gettime",
];

fn conditions(case: &Case) -> Verdict {
    let rule = |operator: &str, value: i64| json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY, "args": [{ "index": 2, "value": value, "op": operator }] });
    // The third argument is 0.
    for (operator, value, hit) in [
        ("SCMP_CMP_EQ", 0, true),
        ("SCMP_CMP_EQ", 1, false),
        ("SCMP_CMP_NE", 1, true),
        ("SCMP_CMP_LT", 1, true),
        ("SCMP_CMP_LE", 0, true),
        ("SCMP_CMP_GT", 0, false),
        ("SCMP_CMP_GE", 0, true),
        ("SCMP_CMP_EQ", 1 << 32, false),
    ] {
        let expected = if hit { libc::ENOTTY } else { libc::EFAULT };
        ensure_eq!(
            status(case, deny(rule(operator, value)))?,
            expected,
            "exit status with {operator} {value}"
        );
    }
    Ok(())
}

fn masked_condition(case: &Case) -> Verdict {
    let rule = |mask: i64, value: i64| {
        let condition = json!({ "index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
        json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY, "args": [condition] })
    };
    // The first argument is -100: its last byte is 0x9c.
    ensure_eq!(status(case, deny(rule(0xff, 0x9c)))?, libc::ENOTTY, "exit status where the mask matches");
    ensure_eq!(status(case, deny(rule(0xff, 0x9d)))?, libc::EFAULT, "exit status where it doesn't");
    Ok(())
}

fn unknown_system_call(case: &Case) -> Verdict {
    case.report(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["no_such_call", "mkdir"], "action": "SCMP_ACT_ERRNO" }],
        });
    })?;
    Ok(())
}

fn other_architectures(case: &Case) -> Verdict {
    let architectures =
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
    let report = case.report(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": architectures,
            "syscalls": [{ "names": ["mkdirat"], "action": "SCMP_ACT_ERRNO" }],
        });
    })?;
    ensure_eq!(report["seccomp"], 2, "Seccomp");
    Ok(())
}

fn flags(case: &Case) -> Verdict {
    for flags in [
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        json!([]),
    ] {
        if case.runtime.name == "runc" && flags == json!(["SECCOMP_FILTER_FLAG_TSYNC"]) {
            continue; // runc 1.1 doesn't know the name
        }
        let report = case.report(|config| {
            deny(json!({ "action": "SCMP_ACT_ERRNO" }))(config);
            config["linux"]["seccomp"]["flags"] = flags.clone();
        })?;
        ensure_eq!(report["seccomp"], 2, "Seccomp with {flags}");
    }
    Ok(())
}

fn without_no_new_privileges(case: &Case) -> Verdict {
    let result = status(case, |config| {
        deny(json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY }))(config);
        config["process"]["noNewPrivileges"] = json!(false);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    })?;
    ensure_eq!(result, libc::ENOTTY, "exit status");
    Ok(())
}

fn notify(case: &Case) -> Verdict {
    let path = case.directory.join("agent");
    let listener = UnixListener::bind(&path)?;
    let bundle = case.bundle(|config| {
        deny(json!({ "action": "SCMP_ACT_NOTIFY" }))(config);
        config["linux"]["seccomp"]["listenerPath"] = json!(path);
        config["linux"]["seccomp"]["listenerMetadata"] = json!("some data");
        config["process"]["args"] = probe(&["exit", "4"]);
    })?;
    let agent = std::thread::spawn(move || receive(&listener));
    let output = case.run(&bundle)?;
    let (message, listener) = agent.join().map_err(|_| Stop::Failed("the agent panicked".into()))??;
    let message: Value = serde_json::from_slice(&message)?;
    ensure_eq!(output.status, 4, "exit status (stderr {:?})", output.stderr);
    ensure_eq!(message["fds"], json!(["seccompFd"]), "fds");
    ensure_eq!(message["metadata"], "some data", "metadata");
    ensure_eq!(message["state"]["id"], case.id.as_str(), "state.id");
    ensure!(message["pid"].as_u64().is_some_and(|pid| pid > 0), "pid: {}", message["pid"]);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd()))?;
    ensure_eq!(link.to_str(), Some("anon_inode:seccomp notify"), "the descriptor");
    Ok(())
}

/// Notifies an agent at `path` of what isn't called.
fn notifying(path: std::path::PathBuf) -> impl FnOnce(&mut Value) {
    move |config| {
        deny(json!({ "action": "SCMP_ACT_NOTIFY" }))(config);
        config["linux"]["seccomp"]["listenerPath"] = json!(path);
        config["process"]["args"] = probe(&["wait"]);
    }
}

fn notify_state(case: &Case) -> Verdict {
    let path = case.directory.join("agent");
    let listener = UnixListener::bind(&path)?;
    let bundle = case.bundle(notifying(path))?;
    let agent = std::thread::spawn(move || receive_all(&listener));
    let arguments = ["run", "--detach", "--bundle", crate::case::text(&bundle.path), &case.id];
    let ran = case.call(&arguments)?.succeeded();
    let (text, fds) = agent.join().map_err(|_| Stop::Failed("the agent panicked".into()))??;
    ran?;
    // All that came until the connection was closed is one object, with one descriptor.
    let message: Value = serde_json::from_slice(&text)?;
    ensure_eq!(fds, 1, "descriptors");
    ensure!(message["ociVersion"].is_string(), "ociVersion: {message}");
    let state = case.state()?;
    ensure_eq!(message["pid"], state["pid"], "pid");
    for field in ["ociVersion", "id", "pid", "bundle"] {
        ensure_eq!(message["state"][field], state[field], "state.{field}");
    }
    ensure!(message["state"]["status"].is_string(), "state.status: {message}");
    Ok(())
}

fn notify_without_an_agent(case: &Case) -> Verdict {
    let path = case.directory.join("nobody");
    let bundle = case.bundle(notifying(path))?;
    case.run(&bundle)?.failed_with(&["nobody"])?;
    case.nothing_left()
}

fn exec_has_the_filter(case: &Case) -> Verdict {
    case.start(deny(json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY })))?;
    let words = mkdir();
    let output = case.exec(&[], &words.each_ref().map(String::as_str))?;
    ensure_eq!(output.status, libc::ENOTTY, "exit status");
    Ok(())
}

fn rule_that_is_the_default(case: &Case) -> Verdict {
    let conditional = json!({ "names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY,
        "args": [{ "index": 2, "value": 0, "op": "SCMP_CMP_EQ" }] });
    let default = json!({ "names": ["mkdirat"], "action": "SCMP_ACT_ALLOW" });
    for syscalls in [json!([conditional, default]), json!([default, conditional])] {
        let result = status(case, |config| {
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls });
        })?;
        ensure_eq!(result, libc::ENOTTY, "exit status with {syscalls}");
    }
    Ok(())
}

fn errno_that_would_be_another_action(case: &Case) -> Verdict {
    let bundle = case.bundle(deny(json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 0x7ffa_0000u32 })))?;
    let output = case.run(&bundle)?;
    if output.status == 0 {
        // Cut to 16 bits, as runc does, it is still an error for the call.
        return Ok(());
    }
    output.failed_with(&["/linux/seccomp/syscalls/0/errnoRet"])?;
    Ok(())
}

/// A program of 32 bits that calls mkdir("/tmp/x", 0755) by `int 0x80`, and exits with its errno.
fn mkdir_in_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let mut code = vec![0xb8, 39, 0, 0, 0, 0xbb]; // mov eax, mkdir; mov ebx, …
    code.extend((BASE + HEADERS + 28).to_le_bytes()); // … what comes after the code
    code.extend([0xb9, 0xed, 1, 0, 0, 0xcd, 0x80]); // mov ecx, 0755; int 0x80
    code.extend([0x89, 0xc3, 0xf7, 0xdb]); // mov ebx, eax; neg ebx
    code.extend([0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // mov eax, exit; int 0x80
    code.extend(b"/tmp/x\0");
    let words = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    // elf(5): an executable for Intel 80386, with one segment.
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 3, 0]);
    file.extend(words(&[1, BASE + HEADERS, 52, 0, 0]));
    file.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let size = HEADERS + code.len() as u32;
    file.extend(words(&[1, 0, BASE, BASE, size, size, 5, 0x1000]));
    file.extend(code);
    file
}

fn program_of_32_bits(case: &Case) -> Verdict {
    if cfg!(not(target_arch = "x86_64")) {
        crate::skip!("for x86_64");
    }
    let run = |seccomp: Value| {
        let bundle = case.bundle(|config| {
            config["process"]["args"] = json!(["/small"]);
            config["root"]["readonly"] = json!(false);
            if !seccomp.is_null() {
                config["linux"]["seccomp"] = seccomp;
            }
        })?;
        let program = bundle.rootfs().join("small");
        if !program.exists() {
            std::fs::write(&program, mkdir_in_32_bits())?;
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let _ = std::fs::remove_dir(bundle.rootfs().join("tmp/x"));
        case.run(&bundle)
    };
    let without = run(Value::Null)?;
    if without.status != 0 {
        crate::skip!("the kernel runs no programs of 32 bits");
    }
    let rules = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }]);
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    let refused =
        run(json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": both, "syscalls": rules }))?;
    ensure_eq!(refused.status, 77, "exit status ({})", refused.stderr);
    // A profile that doesn't name the architecture lets none of its calls through.
    let one = json!(["SCMP_ARCH_X86_64"]);
    let killed = run(json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": one, "syscalls": rules }))?;
    ensure_eq!(killed.status, 128 + libc::SIGSYS, "exit status ({})", killed.stderr);
    Ok(())
}
