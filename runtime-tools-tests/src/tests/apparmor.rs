//! AppArmor: the profile of a process.

use crate::case::{Case, text};
use crate::harness::Verdict;
use crate::machine::needs_file;
use crate::{ensure, ensure_eq, tests};
use serde_json::json;
use std::fs;
use std::process::Command;

tests![
    "config.md, Linux Process: apparmorProfile" => profile,
    "runc exec --apparmor" => profile_of_exec,
    "config.md, Linux Process: an apparmorProfile that isn't loaded" => unknown_profile,
];

/// A profile that is loaded, and goes with the test.
struct Profile(std::path::PathBuf);

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = Command::new("apparmor_parser").arg("-R").arg(&self.0).status();
    }
}

/// Loads a profile under the case's name: anything is allowed but writing /tmp/forbidden.
fn load(case: &Case) -> Verdict<Profile> {
    needs_file("/sys/kernel/security/apparmor/profiles", "a kernel with AppArmor")?;
    let path = case.directory.join("profile");
    let text_of_it = format!(
        "profile {} flags=(attach_disconnected) {{\n  file,\n  capability,\n  signal,\n  network,\n  umount,\n  deny /tmp/forbidden w,\n}}\n",
        case.id
    );
    fs::write(&path, text_of_it)?;
    let mut command = Command::new("apparmor_parser");
    command.args(["-r", "-K", text(&path)]);
    match case.finish(command) {
        Err(_) => crate::skip!("needs apparmor_parser"),
        Ok(output) => output.succeeded()?,
    };
    Ok(Profile(path))
}

fn profile(case: &Case) -> Verdict {
    let _loaded = load(case)?;
    let report = case.report(|config| config["process"]["apparmorProfile"] = json!(case.id))?;
    ensure_eq!(
        report["apparmor"].as_str().map(str::trim),
        Some(format!("{} (enforce)", case.id).as_str()),
        "profile"
    );
    let write = |path| {
        case.probed(&["write", path, "x"], |config| {
            config["root"]["readonly"] = json!(false);
            config["process"]["apparmorProfile"] = json!(case.id);
        })
    };
    write("/tmp/allowed")?.succeeded()?;
    let refused = write("/tmp/forbidden")?;
    ensure_eq!(refused.status, libc::EACCES, "exit status ({})", refused.stderr);
    Ok(())
}

fn profile_of_exec(case: &Case) -> Verdict {
    let _loaded = load(case)?;
    case.start(|_| ())?;
    let of = |flags: &[&str]| -> Verdict<String> {
        let report = case.exec(flags, &["report"])?.succeeded()?.json()?;
        Ok(report["apparmor"].as_str().unwrap_or_default().trim().to_owned())
    };
    ensure_eq!(of(&["--apparmor", &case.id])?, format!("{} (enforce)", case.id), "profile");
    ensure!(!of(&[])?.contains(&case.id), "without it: {}", of(&[])?);
    case.call(&["delete", "--force", &case.id])?.succeeded()?;
    Ok(())
}

fn unknown_profile(case: &Case) -> Verdict {
    needs_file("/sys/kernel/security/apparmor/profiles", "a kernel with AppArmor")?;
    let bundle = case.bundle(|config| config["process"]["apparmorProfile"] = json!("no-such-profile"))?;
    let words: &[&str] =
        if case.runtime.name == "damda" { &["/process/apparmorProfile"] } else { &["apparmor"] };
    case.run(&bundle)?.failed_with(words)?;
    case.nothing_left()
}
