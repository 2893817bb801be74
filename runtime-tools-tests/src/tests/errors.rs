//! Bad input: a clear error, the right exit status, and nothing left behind.

use crate::case::{Bundle, Case, add_user_namespace, text};
use crate::harness::Verdict;
use crate::{ensure, tests};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

tests![
    "bundle.md: config.json MUST be there" => missing_configuration,
    "bundle.md" => missing_bundle,
    "config.md: it is JSON" => malformed_configuration,
    "config.md: a property of the wrong type" => wrong_type_in_the_configuration,
    "config.md: the platform's own part" => configuration_for_another_system,
    "config.md, Root: path MUST be a directory" => missing_rootfs,
    "config.md, Root" => rootfs_that_is_a_file,
    "docker: exit status 127" => program_that_is_not_there,
    "docker: exit status 127" => program_that_is_not_in_path,
    "docker: exit status 126" => program_that_is_not_executable,
    "docker: exit status 126" => program_that_is_a_directory,
    "execve(2): ENOEXEC" => program_for_another_architecture,
    "execve(2): ENOENT of the interpreter" => script_without_interpreter,
    "config.md, Process: args" => no_arguments,
    "config.md, Process: cwd" => working_directory_that_is_not_there,
    "config.md, Process: cwd MUST be absolute" => working_directory_that_is_relative,
    "config-linux.md, Namespaces: path MUST be of the type" => namespace_path_that_is_not_one,
    "config-linux.md, Namespaces: a duplicate MUST be an error" => namespace_twice,
    "config-linux.md, Namespaces" => unknown_namespace,
    "config.md, Mounts: source" => mount_source_that_is_not_there,
    "config.md, Mounts: type" => unknown_file_system,
    "config.md, Mounts: a file on a directory" => mount_of_a_file_on_a_directory,
    "config.md, Specification version" => unsupported_version,
    "config.md, User: uid" => user_out_of_range,
    "config-linux.md, User namespace mappings" => user_that_is_not_mapped,
    "runtime.md, Create: id" => bad_ids,
    "config.md, Process: rlimits: a type twice MUST be an error" => rlimit_twice,
    "config.md, Process: rlimits" => unknown_rlimit,
    "config-linux.md, Sysctl: one that belongs to no namespace of the container" => sysctl_of_the_host,
    "config.md, Hostname needs a UTS namespace" => hostname_of_the_host,
    "config-linux.md, Seccomp" => unknown_seccomp_action,
    "config-linux.md, Control groups" => bad_limits,
    "config-linux.md, Devices" => bad_devices,
    "security: bounded input" => configuration_that_is_deep_or_huge,
    "runc create --pid-file" => pid_file_that_cannot_be_written,
];

/// Creating the container fails with these words, says so in the way of errors, and leaves nothing;
/// so does running it.
pub(super) fn refused(case: &Case, words: &[&str], change: impl FnOnce(&mut Value)) -> Verdict {
    let bundle = case.bundle(change)?;
    refused_bundle(case, &bundle, words)
}

fn refused_bundle(case: &Case, bundle: &Bundle, words: &[&str]) -> Verdict {
    // The pointer into the configuration is damda's own promise.
    let words: Vec<&str> =
        words.iter().filter(|word| !word.starts_with('/') || case.runtime.name == "damda").copied().collect();
    for command in ["create", "run"] {
        case.call(&[command, "--bundle", text(&bundle.path), &case.id])?.failed_with(&words)?;
        case.nothing_left()?;
    }
    Ok(())
}

fn missing_configuration(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    fs::remove_file(bundle.path.join("config.json"))?;
    refused_bundle(case, &bundle, &["config.json"])
}

fn missing_bundle(case: &Case) -> Verdict {
    refused_bundle(case, &Bundle { path: case.directory.join("nowhere") }, &["nowhere"])
}

fn malformed_configuration(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    for text in ["", "{", "{\"ociVersion\": \"1.0.2\",\n \"process\": nonsense}", "[]", "\"text\""] {
        fs::write(bundle.path.join("config.json"), text)?;
        refused_bundle(case, &bundle, &[])?;
    }
    if case.runtime.name == "damda" {
        fs::write(bundle.path.join("config.json"), "{\"ociVersion\": \"1.0.2\",\n \"process\": nonsense}")?;
        refused_bundle(case, &bundle, &["line 2", "column"])?;
    }
    Ok(())
}

fn wrong_type_in_the_configuration(case: &Case) -> Verdict {
    refused(case, &["/process/args"], |config| config["process"]["args"] = json!("not a list"))?;
    refused(case, &["/mounts/1/destination"], |config| config["mounts"][1]["destination"] = json!(7))
}

fn configuration_for_another_system(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun take a configuration without a process for one that starts nothing");
    }
    refused(case, &["Linux", "/windows"], |config| {
        config["windows"] = json!({ "layerFolders": [] });
        config.as_object_mut().unwrap().remove("linux");
    })
}

fn missing_rootfs(case: &Case) -> Verdict {
    refused(case, &["/root/path", "nowhere"], |config| config["root"]["path"] = json!("nowhere"))
}

fn rootfs_that_is_a_file(case: &Case) -> Verdict {
    refused(case, &["/root/path"], |config| config["root"]["path"] = json!("config.json"))
}

fn program_that_is_not_there(case: &Case) -> Verdict {
    refused(case, &["/no/such", "no such file or directory"], |config| {
        config["process"]["args"] = json!(["/no/such"])
    })
}

fn program_that_is_not_in_path(case: &Case) -> Verdict {
    refused(case, &["nosuch", "executable file not found in $PATH"], |config| {
        config["process"]["args"] = json!(["nosuch"])
    })
}

fn program_that_is_not_executable(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = json!(["/tmp/plain"]))?;
    fs::write(bundle.rootfs().join("tmp/plain"), "text")?;
    refused_bundle(case, &bundle, &["permission denied"])
}

fn program_that_is_a_directory(case: &Case) -> Verdict {
    refused(case, &["/tmp"], |config| config["process"]["args"] = json!(["/tmp"]))
}

/// Runtimes find these two only when the program is executed, some in `start`.
fn refused_by_the_kernel(case: &Case, bundle: &Bundle, words: &[&str]) -> Verdict {
    let create = case.call(&["create", "--bundle", text(&bundle.path), &case.id])?;
    if create.status == 0 {
        case.call(&["start", &case.id])?.failed_with(words)?;
        case.call(&["delete", "--force", &case.id])?.succeeded()?;
    } else {
        create.failed_with(words)?;
    }
    case.nothing_left()?;
    case.run(bundle)?.failed_with(words)?;
    case.nothing_left()
}

fn program_for_another_architecture(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = json!(["/other"]))?;
    let mut program = fs::read(case.probe())?;
    program[18..20].copy_from_slice(&243u16.to_le_bytes()); // EM_RISCV
    fs::write(bundle.rootfs().join("other"), program)?;
    fs::set_permissions(bundle.rootfs().join("other"), Permissions::from_mode(0o755))?;
    let words: &[&str] =
        if case.runtime.name == "damda" { &["exec format error", "riscv"] } else { &["xec format error"] };
    refused_by_the_kernel(case, &bundle, words)
}

fn script_without_interpreter(case: &Case) -> Verdict {
    let bundle = case.bundle(|config| config["process"]["args"] = json!(["/script"]))?;
    fs::write(bundle.rootfs().join("script"), "#!/no/interpreter\n")?;
    fs::set_permissions(bundle.rootfs().join("script"), Permissions::from_mode(0o755))?;
    let words: &[&str] = if case.runtime.name == "damda" {
        &["/no/interpreter", "no such file or directory"]
    } else {
        &["o such file or directory"]
    };
    refused_by_the_kernel(case, &bundle, words)
}

fn no_arguments(case: &Case) -> Verdict {
    refused(case, &["/process/args"], |config| config["process"]["args"] = json!([]))
}

fn working_directory_that_is_not_there(case: &Case) -> Verdict {
    if case.runtime.name == "runc" {
        crate::skip!("runc makes the directory");
    }
    refused(case, &["/process/cwd", "/no/where"], |config| config["process"]["cwd"] = json!("/no/where"))
}

fn working_directory_that_is_relative(case: &Case) -> Verdict {
    refused(case, &["/process/cwd"], |config| config["process"]["cwd"] = json!("tmp"))
}

fn namespace_path_that_is_not_one(case: &Case) -> Verdict {
    let set = |path: &str| {
        let path = path.to_owned();
        move |config: &mut Value| config["linux"]["namespaces"][1]["path"] = json!(path)
    };
    refused(case, &["/linux/namespaces/1", "/etc/hostname"], set("/etc/hostname"))?;
    refused(case, &["/linux/namespaces/1", "/no/where"], set("/no/where"))?;
    refused(case, &["/linux/namespaces/1"], set("/proc/self/ns/uts"))
}

fn namespace_twice(case: &Case) -> Verdict {
    refused(case, &["/linux/namespaces/1"], |config| config["linux"]["namespaces"][1]["type"] = json!("pid"))
}

fn unknown_namespace(case: &Case) -> Verdict {
    refused(case, &["/linux/namespaces/1"], |config| {
        config["linux"]["namespaces"][1]["type"] = json!("space")
    })
}

fn mount_source_that_is_not_there(case: &Case) -> Verdict {
    refused(case, &["/mounts/1", "/no/where"], |config| {
        config["mounts"][1] =
            json!({ "destination": "/tmp", "type": "bind", "source": "/no/where", "options": ["bind"] });
    })
}

fn unknown_file_system(case: &Case) -> Verdict {
    refused(case, &["/mounts/1", "nosuchfs"], |config| {
        config["mounts"][1] = json!({ "destination": "/tmp", "type": "nosuchfs", "source": "none" });
    })
}

fn mount_of_a_file_on_a_directory(case: &Case) -> Verdict {
    refused(case, &["/mounts/1", "not a directory"], |config| {
        config["mounts"][1] =
            json!({ "destination": "/tmp", "type": "bind", "source": "/etc/passwd", "options": ["bind"] });
    })
}

fn unsupported_version(case: &Case) -> Verdict {
    for version in ["2.0.0", "0.1", "nonsense", ""] {
        if case.runtime.name != "damda" && version != "2.0.0" {
            continue;
        }
        refused(case, &["/ociVersion"], |config| config["ociVersion"] = json!(version))?;
    }
    Ok(())
}

fn user_out_of_range(case: &Case) -> Verdict {
    for id in [json!(-1), json!(4_294_967_295u64), json!(4_294_967_296u64), json!(1.5)] {
        if case.runtime.name != "damda" && id == 4_294_967_295u64 {
            continue;
        }
        refused(case, &["/process/user"], |config| config["process"]["user"]["uid"] = id)?;
    }
    Ok(())
}

fn user_that_is_not_mapped(case: &Case) -> Verdict {
    refused(case, &["/process/user"], |config| {
        add_user_namespace(config, 1000);
        config["process"]["user"]["uid"] = json!(5000);
    })
}

fn bad_ids(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    let outside = case.directory.join("outside");
    fs::create_dir(&outside)?;
    for id in ["", ".", "..", "../outside", "a/b", "a b", "a\nb", "ä"] {
        for arguments in
            [&["create", "--bundle", text(&bundle.path), "--", id][..], &["delete", "--force", "--", id]]
        {
            if case.runtime.name != "damda" && arguments[0] == "delete" {
                continue;
            }
            let output = case.call(arguments)?;
            ensure!(output.status != 0, "{arguments:?} was accepted");
        }
        ensure!(outside.is_dir(), "a directory outside of --root is gone");
    }
    case.nothing_left()
}

fn rlimit_twice(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun take the last one");
    }
    refused(case, &["/process/rlimits/1"], |config| {
        let limit = json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 });
        config["process"]["rlimits"] = json!([limit, limit]);
    })
}

fn unknown_rlimit(case: &Case) -> Verdict {
    refused(case, &["/process/rlimits/0"], |config| {
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_SENSE", "soft": 0, "hard": 0 }]);
    })
}

fn sysctl_of_the_host(case: &Case) -> Verdict {
    refused(case, &["/linux/sysctl/vm.swappiness"], |config| {
        config["linux"]["sysctl"] = json!({ "vm.swappiness": "1" })
    })?;
    if case.runtime.name == "damda" {
        refused(case, &["/linux/sysctl"], |config| {
            config["linux"]["sysctl"] = json!({ "net/../vm/swappiness": "1" })
        })?;
    }
    refused(case, &["/linux/sysctl"], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().remove(1);
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    })
}

fn hostname_of_the_host(case: &Case) -> Verdict {
    if case.runtime.name == "crun" {
        crate::skip!("crun would change the host's name: not tried");
    }
    refused(case, &["/hostname"], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != "uts");
    })
}

fn unknown_seccomp_action(case: &Case) -> Verdict {
    refused(case, &["/linux/seccomp"], |config| {
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_WISH" });
    })
}

fn bad_limits(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun leave these to the kernel, or ignore them");
    }
    refused(case, &["/linux/cgroupsPath"], |config| config["linux"]["cgroupsPath"] = json!("/../elsewhere"))?;
    refused(case, &["/linux/resources/memory/limit"], |config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": "1G" });
    })?;
    refused(case, &["/linux/resources/cpu"], |config| {
        config["linux"]["resources"]["cpu"] = json!({ "cpus": "900" })
    })?;
    refused(case, &["/linux/resources/unified"], |config| {
        config["linux"]["resources"]["unified"] = json!({ "../memory.max": "1" });
    })
}

fn bad_devices(case: &Case) -> Verdict {
    let device = |kind: &str| json!([{ "path": "/dev/thing", "type": kind, "major": 1, "minor": 3 }]);
    refused(case, &["/linux/devices/0"], |config| config["linux"]["devices"] = device("x"))?;
    refused(case, &["/linux/resources/devices"], |config| {
        config["linux"]["resources"]["devices"][0]["access"] = json!("xyz");
    })
}

fn configuration_that_is_deep_or_huge(case: &Case) -> Verdict {
    if case.runtime.name != "damda" {
        crate::skip!("runc and crun read all of it");
    }
    let bundle = case.bundle(|_| ())?;
    let deep = format!("{{\"annotations\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    fs::write(bundle.path.join("config.json"), deep)?;
    refused_bundle(case, &bundle, &["config.json"])?;
    let file = fs::File::create(bundle.path.join("config.json"))?;
    file.set_len(1 << 30)?;
    refused_bundle(case, &bundle, &["config.json"])
}

fn pid_file_that_cannot_be_written(case: &Case) -> Verdict {
    let bundle = case.bundle(|_| ())?;
    case.call(&["create", "--bundle", text(&bundle.path), "--pid-file", "/no/where/pid", &case.id])?
        .failed_with(&["/no/where/"])?;
    case.nothing_left()
}
