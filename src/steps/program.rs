//! The program: its directory, its file, and what is wrong with it if it can't be executed.

use super::{Init, Step};
use crate::config::list;
use crate::error::{Error, Pointer, Result};
use crate::sys::process::{Arguments, execve};
use crate::sys::{Call, errno_text, file, identity};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{AccessFlags, chdir, faccessat};
use oci_spec::runtime::{Capability, Process};
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is executed in the end.
pub struct Program {
    at: Pointer,
    arguments: Arguments,
    environment: Vec<CString>,
}

impl Program {
    /// The process's arguments and environment.
    pub fn plan(process: &Process, at: &Pointer) -> Result<Self> {
        let strings =
            |list: &[String]| -> Result<Vec<CString>> { list.iter().map(|text| c_string(text)).collect() };
        let environment = strings(&last_of_each(list(process.env())))?;
        Ok(Program {
            at: at.key("args"),
            arguments: Arguments::new(strings(list(process.args()))?),
            environment,
        })
    }

    /// Adds variables that the runtime provides, in place of ones of the same name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let prefix = format!("{name}=");
        self.environment.retain(|entry| !entry.as_bytes().starts_with(prefix.as_bytes()));
        self.environment.push(c_string(&format!("{prefix}{value}"))?);
        Ok(())
    }

    /// Executes it; returns only on failure.
    pub fn execute(&self, init: &Init) -> Error {
        let mut environment = self.environment.clone();
        if let Some(home) = init.found.home.as_ref().and_then(|home| c_string(&format!("HOME={home}")).ok()) {
            environment.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
            environment.push(home);
        }
        let path = &init.found.executable;
        let name = self.name();
        let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else {
            return Error::new("contains a NUL character").at(self.at.index(0));
        };
        let failed = execve(&c_path, &self.arguments, &Arguments::new(environment));
        let errno = failed.errno;
        let error = Error::new(format!("exec {name}: {}", errno_text(errno))).at(self.at.index(0));
        match reason(path, errno) {
            Some(reason) => error.hint(reason),
            None => error,
        }
    }

    fn name(&self) -> &str {
        self.arguments.strings().first().and_then(|name| name.to_str().ok()).unwrap_or_default()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, environment {:?}", self.arguments.strings(), self.environment)
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new("contains a NUL character"))
}

/// Of entries with the same name the last one, where it stands: shells and libc disagree on which
/// counts.
fn last_of_each(environment: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let later =
        |index: usize, entry: &str| environment[index + 1..].iter().any(|other| name(other) == name(entry));
    let entries = environment.iter().enumerate().filter(|(index, entry)| !later(*index, entry));
    entries.map(|(_, entry)| entry.clone()).collect()
}

/// Goes to `process.cwd`.
pub struct WorkingDirectory {
    at: Pointer,
    path: PathBuf,
    /// Whether the user is the container's already. Before, a directory may be out of reach that
    /// the user can enter, and the other way round: it is tried both times.
    second_try: bool,
}

impl WorkingDirectory {
    /// The two tries, for before and after the user is changed.
    pub fn plan(process: &Process, at: &Pointer) -> [Self; 2] {
        [false, true].map(|second_try| WorkingDirectory {
            at: at.key("cwd"),
            path: process.cwd().clone(),
            second_try,
        })
    }
}

impl fmt::Display for WorkingDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.second_try { "be in" } else { "go to" };
        write!(f, "{verb} directory {}", self.path.display())
    }
}

impl Step for WorkingDirectory {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let change = || chdir(&self.path).call(|| format!("chdir({:?})", self.path));
        if !self.second_try {
            return match change() {
                Ok(()) => {
                    init.found.in_directory = true;
                    Ok(())
                }
                Err(failed) if failed.errno == Errno::EACCES => Ok(()),
                Err(failed) => Err(self.refused(failed)),
            };
        }
        if !init.found.in_directory {
            change().map_err(|failed| self.refused(failed))?;
        }
        // A cwd like /proc/self/fd/7 could be a directory of the host that the runtime has open
        // (CVE-2024-21626): the kernel has no name for it within this root.
        match nix::unistd::getcwd() {
            Ok(path) if path.is_absolute() => Ok(()),
            _ => Err(Error::new(
                "current working directory is outside of container mount namespace root -- possible container breakout detected",
            )
            .at(self.at.clone())),
        }
    }
}

impl WorkingDirectory {
    fn refused(&self, failed: crate::sys::Failed) -> Error {
        let text = format!("chdir to cwd ({:?}) set in config.json failed", self.path);
        let missing = failed.errno == Errno::ENOENT;
        let error = Error::new(format!("{text}: {}", errno_text(failed.errno))).at(self.at.clone());
        if missing { error.hint("make the directory in the root file system") } else { error }
    }
}

/// Finds the executable as execvp(3) would, so that a missing one is an error of `create`.
pub struct FindProgram {
    at: Pointer,
    name: CString,
    path: Vec<PathBuf>,
    /// Whether the program's capabilities override file permissions.
    overrides: bool,
}

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
const OVERRIDING: u64 = 1 << 1 | 1 << 2;

/// Makes those of them effective that are permitted; false where there are none.
fn with_overriding_capabilities() -> Result<bool> {
    let sets = identity::capget()?;
    let more = sets.permitted & OVERRIDING & !sets.effective;
    if more != 0 {
        identity::capset(identity::CapabilitySets { effective: sets.effective | more, ..sets })?;
    }
    Ok(more != 0)
}

impl FindProgram {
    /// Looks for the first argument in the process's own PATH.
    pub fn plan(process: &Process, at: &Pointer) -> Result<Self> {
        let name = list(process.args()).first().map(String::as_str).unwrap_or_default();
        let path = last_of_each(list(process.env()));
        let path = path.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let path =
            path.split(':').map(|dir| if dir.is_empty() { "." } else { dir }).map(PathBuf::from).collect();
        let sets = process.capabilities().as_ref();
        let effective = sets.and_then(|sets| sets.effective().as_ref());
        let overrides = effective.is_some_and(|set| {
            [Capability::DacOverride, Capability::DacReadSearch].iter().any(|one| set.contains(one))
        });
        Ok(FindProgram { at: at.key("args").key("0"), name: c_string(name)?, path, overrides })
    }

    /// The executable and, if the user may read it, its head.
    fn find(&self) -> std::result::Result<(PathBuf, Option<Vec<u8>>), String> {
        let name = self.name.to_str().unwrap_or_default();
        if name.contains('/') {
            let path = PathBuf::from(name);
            return match executable(&path) {
                Ok(head) => Ok((path, head)),
                Err(Errno::ENOENT) => Err(format!("stat {name}: {}", errno_text(Errno::ENOENT))),
                Err(Errno::EISDIR) => Err("is a directory: permission denied".into()),
                Err(errno) => Err(errno_text(errno)),
            };
        }
        let mut denied = false;
        if !name.is_empty() {
            for dir in &self.path {
                let path = dir.join(name);
                match executable(&path) {
                    Ok(head) => return Ok((path, head)),
                    Err(errno) => denied |= errno == Errno::EACCES,
                }
            }
        }
        match denied {
            true => Err(errno_text(Errno::EACCES)),
            false => Err("executable file not found in $PATH".into()),
        }
    }
}

impl fmt::Display for FindProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "find executable {:?}", self.name)
    }
}

impl Step for FindProgram {
    fn apply(&self, init: &mut Init) -> Result<()> {
        let refused =
            |reason: &str| Error::new(format!("exec: {:?}: {reason}", self.name)).at(self.at.clone());
        let found = match self.find() {
            // The kernel will look when the program has its capabilities, which this user hasn't yet.
            Err(_) if self.overrides && with_overriding_capabilities()? => self.find(),
            other => other,
        };
        let (path, head) = found.map_err(|reason| refused(&reason))?;
        // An interpreter that isn't there makes execve(2) say ENOENT of a file that is.
        if let Some(missing) = head.and_then(|head| missing_interpreter(&path, &head)) {
            let reason = errno_text(Errno::ENOENT);
            let error = format!("exec {}: {reason}: {missing}", self.name.to_string_lossy());
            return Err(Error::new(error).at(self.at.clone()));
        }
        init.found.executable = path;
        Ok(())
    }
}

/// Whether this user may execute a file; its head, if the user may read it as well.
fn executable(path: &Path) -> std::result::Result<Option<Vec<u8>>, Errno> {
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)?;
    let head = head(path);
    // Nothing but a regular file begins like this.
    if head.as_ref().is_some_and(|head| head.starts_with(b"\x7fELF") || head.starts_with(b"#!")) {
        return Ok(head);
    }
    match nix::sys::stat::stat(path)?.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(head),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// How much of a file says what executes it.
const HEAD: usize = 1024;

/// The first bytes of a file that this user may read.
fn head(path: &Path) -> Option<Vec<u8>> {
    let file = file::open(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).ok()?;
    let mut head = vec![0; HEAD];
    let length = nix::unistd::read(&file, &mut head).ok()?;
    file::leave(file);
    head.truncate(length);
    Some(head)
}

/// Says which interpreter a file needs that isn't there.
fn missing_interpreter(path: &Path, head: &[u8]) -> Option<String> {
    if let Some(interpreter) = script_interpreter(head) {
        if exists(&interpreter) {
            return None;
        }
        let text = String::from_utf8_lossy(&interpreter);
        return Some(match text.strip_suffix('\r') {
            Some(text) => format!(
                "the first line of {path:?} ends in a carriage return, so that its interpreter would be {text:?}\\r: save it with Unix line ends"
            ),
            None => format!("{path:?} is a script, and its interpreter {text:?} is not in the container"),
        });
    }
    let elf = Elf::parse(head)?;
    let interpreter = elf.interpreter(head)?;
    if !elf.is_native() || exists(interpreter) {
        return None;
    }
    let text = String::from_utf8_lossy(interpreter);
    Some(format!("{path:?} is dynamically linked, and its interpreter {text:?} is not in the container"))
}

fn exists(path: &[u8]) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(path)).exists()
}

/// The interpreter in the first line of a script, as the kernel reads it.
fn script_interpreter(head: &[u8]) -> Option<Vec<u8>> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let start = line.iter().position(|byte| !b" \t".contains(byte))?;
    let end =
        line[start..].iter().position(|byte| b" \t\0".contains(byte)).map_or(line.len(), |end| start + end);
    Some(line[start..end].to_vec())
}

/// What an ELF header says that matters here (elf(5)).
struct Elf {
    wide: bool,
    little: bool,
    machine: u16,
}

impl Elf {
    fn parse(head: &[u8]) -> Option<Self> {
        let ident = head.get(..16)?.strip_prefix(b"\x7fELF")?;
        let mut elf = Elf { wide: ident[0] == 2, little: ident[1] == 1, machine: 0 };
        elf.machine = elf.number(head, 18, 2)? as u16;
        Some(elf)
    }

    fn number(&self, head: &[u8], at: usize, length: usize) -> Option<u64> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }

    /// The program header of type PT_INTERP, as far as it is in the head.
    fn interpreter<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        const PT_INTERP: u64 = 3;
        let (table, size_at, count_at) = if self.wide { (32, 54, 56) } else { (28, 42, 44) };
        let word = if self.wide { 8 } else { 4 };
        let table = usize::try_from(self.number(head, table, word)?).ok()?;
        let size = self.number(head, size_at, 2)? as usize;
        let count = self.number(head, count_at, 2)? as usize;
        for index in 0..count {
            let header = table.checked_add(index * size)?;
            if self.number(head, header, 4)? == PT_INTERP {
                let (offset, length) = if self.wide { (8, 32) } else { (4, 16) };
                let start = usize::try_from(self.number(head, header + offset, word)?).ok()?;
                let length = usize::try_from(self.number(head, header + length, word)?).ok()?;
                let path = head.get(start..start.checked_add(length)?)?;
                return CStr::from_bytes_until_nul(path).ok().map(CStr::to_bytes);
            }
        }
        None
    }

    /// Whether the machine runs it by itself, so that its interpreter is what is missing.
    fn is_native(&self) -> bool {
        const EM_386: u16 = 3;
        match std::env::consts::ARCH {
            "x86_64" => matches!(self.machine, 62 | EM_386),
            "aarch64" => matches!(self.machine, 183 | 40),
            _ => false,
        }
    }
}

/// Names of machines, for the message (elf.h, EM_*).
fn machine_name(machine: u16) -> String {
    let name = match machine {
        3 => "i386",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        258 => "loongarch",
        other => return format!("machine {other}"),
    };
    name.into()
}

/// Why execve(2) of a file that is there and executable failed, in words.
fn reason(path: &Path, errno: Errno) -> Option<String> {
    match errno {
        Errno::ENOENT => missing_interpreter(path, &head(path)?),
        Errno::ENOEXEC | Errno::ELIBBAD => {
            let head = head(path)?;
            match Elf::parse(&head) {
                Some(elf) if !elf.is_native() => {
                    let (theirs, ours) = (machine_name(elf.machine), std::env::consts::ARCH);
                    Some(format!("{path:?} is for {theirs}, and this machine is {ours}"))
                }
                Some(_) => Some(format!("{path:?} is a damaged ELF file")),
                None if head.is_empty() => Some(format!("{path:?} is empty")),
                None => Some(format!("{path:?} is neither an ELF file nor a script that begins with #!")),
            }
        }
        Errno::EACCES => Some(format!(
            "{path:?} may be on a file system mounted noexec, or its interpreter not executable"
        )),
        Errno::E2BIG => Some("the arguments and the environment are too long together".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn of_doubled_variables_the_last_counts() {
        let environment: Vec<_> = ["A=1", "B=2", "A=3"].map(String::from).to_vec();
        assert_eq!(last_of_each(&environment), ["B=2", "A=3"]);
    }

    #[test]
    fn interpreters_of_scripts() {
        for (head, expected) in [
            (&b"#!/bin/sh\nexit"[..], Some(&b"/bin/sh"[..])),
            (b"#! /usr/bin/env python\n", Some(b"/usr/bin/env")),
            (b"#!/bin/sh\r\n", Some(b"/bin/sh\r")),
            (b"exit", None),
        ] {
            assert_eq!(script_interpreter(head).as_deref(), expected);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("f");
        let missing = |file: &Path| missing_interpreter(file, &head(file).expect("readable"));
        fs::write(&file, "#!/no/such/interpreter -x\n").expect("write");
        assert!(missing(&file).is_some_and(|text| text.contains("\"/no/such/interpreter\" is not in")));
        fs::write(&file, "#!/bin/sh\r\n").expect("write");
        assert!(missing(&file).is_some_and(|text| text.contains("carriage return")));
        fs::write(&file, "#!/bin/sh\n").expect("write");
        assert_eq!(missing(&file), None);
    }

    #[test]
    fn elf_headers_are_read_and_never_trusted() {
        let own = head(Path::new("/proc/self/exe")).expect("readable");
        let elf = Elf::parse(&own).expect("an ELF file");
        assert!(elf.is_native());
        for length in 0..own.len() {
            if let Some(elf) = Elf::parse(&own[..length]) {
                elf.interpreter(&own[..length]);
            }
        }
        let mut foreign = own.clone();
        foreign[18..20].copy_from_slice(&22u16.to_le_bytes());
        assert!(
            Elf::parse(&foreign).is_some_and(|elf| machine_name(elf.machine) == "s390x" && !elf.is_native())
        );
    }

    #[test]
    fn a_directory_or_a_plain_file_is_not_executable() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("f");
        fs::write(&file, "").expect("write");
        assert_eq!(executable(dir.path()), Err(Errno::EISDIR));
        assert_eq!(executable(&file), Err(Errno::EACCES));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(executable(&file), Ok(Some(Vec::new())));
    }
}
