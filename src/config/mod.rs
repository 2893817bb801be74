//! config.json: read once, checked, and never looked at again by what it configures.

mod check;
mod check_linux;
mod check_resources;
mod normalise;
mod sysctl;

use crate::error::{Context, Error, Pointer, Result};
use crate::sys::{Call, file};
use nix::fcntl::{AT_FDCWD, OFlag};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

pub use check::{check, check_process, group_id, user_id};
pub use check_linux::has_namespace;
pub use sysctl::{sysctl_namespace, sysctl_path};

/// The file's name in a bundle (bundle.md, "config.json").
pub const FILE: &str = "config.json";

/// The most bytes that are read of it: 36,000 mounts fit, a machine's memory isn't at risk.
const MOST_BYTES: u64 = 32 << 20;

/// The specification's version that damda implements.
pub const SPEC_VERSION: &str = "1.3.0";

/// A bundle's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What config.json says.
    pub spec: Spec,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The file as it was, kept for `exec`, which must not see later changes (runtime.md,
    /// "Create").
    pub text: Vec<u8>,
}

impl Config {
    /// Reads the configuration of the bundle at `bundle`, and checks it against the specification.
    pub fn load(bundle: &Path) -> Result<Self> {
        let config = Self::read(bundle)?;
        match check(&config.spec).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    /// Reads the configuration of the bundle at `bundle` without checking it.
    pub fn read(bundle: &Path) -> Result<Self> {
        let bundle =
            std::path::absolute(bundle).map_err(|error| Error::new(format!("bundle {bundle:?}: {error}")))?;
        let path = bundle.join(FILE);
        let text = read(&path)?;
        let mut spec = parse(&text).map_err(|error| error.in_file(&path))?;
        without_empty_pids(&mut spec, &text);
        Ok(Config { spec, bundle, text })
    }

    /// Reads back what was stored for `exec` in a container's state directory.
    pub fn stored(path: &Path, bundle: &Path) -> Result<Self> {
        let text = read(path)?;
        Ok(Config { spec: parse(&text)?, bundle: bundle.into(), text })
    }

    /// The root file system's directory, absolute (config.md, "Root").
    pub fn rootfs(&self) -> PathBuf {
        let path = self.spec.root().as_ref().map_or(Path::new(""), |root| root.path());
        self.bundle.join(path)
    }

    /// Whether the program has a terminal of its own.
    pub fn has_terminal(&self) -> bool {
        self.spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true))
    }
}

/// Reads the process description of `exec --process`.
pub fn load_process(path: &Path) -> Result<Process> {
    let process = parse(&read(path)?).map_err(|error| error.in_file(path))?;
    check_process(&process, &Pointer::to(""))?;
    Ok(process)
}

/// `pids` without its optional limit asks for nothing; oci-spec reads it as a limit of 0.
fn without_empty_pids(spec: &mut Spec, text: &[u8]) {
    let Some(resources) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) else {
        return;
    };
    if resources.pids().is_some_and(|pids| pids.limit() == 0) {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        if value.pointer("/linux/resources/pids/limit").is_none_or(Value::is_null) {
            resources.set_pids(None);
        }
    }
}

/// Reads the resources of `update --resources`, as text.
pub fn resources_of(text: &[u8]) -> Result<LinuxResources> {
    // serde takes a list for an object's properties in order, of which there need be none.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Error::new("not an object but a list"));
    }
    let mut resources: LinuxResources = parse(text)?;
    // What engines write that don't mean to change it.
    if resources.pids().is_some_and(|pids| pids.limit() == 0) {
        resources.set_pids(None);
    }
    check_resources::check(&resources, &Pointer::to(""))?;
    Ok(resources)
}

/// A list that may be absent.
pub fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or(&[])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = file::open(AT_FDCWD, path, OFlag::O_RDONLY).map_err(|failed| {
        let missing = failed.errno == nix::errno::Errno::ENOENT;
        let error = Error::from(failed).prefix("cannot read the configuration");
        if missing {
            error.hint("a bundle has config.json beside its root file system; `damda spec` writes one")
        } else {
            error
        }
    })?;
    let text = file::read_all(file.as_fd(), MOST_BYTES as usize + 1)
        .call(|| format!("read({path:?})"))
        .doing(|| "cannot read the configuration".into())?;
    file::leave(file);
    match text.len() as u64 {
        ..=MOST_BYTES => Ok(text),
        _ => Err(Error::new(format!("{path:?} is larger than {} MiB", MOST_BYTES >> 20))),
    }
}

/// Parses JSON as `T`.
///
/// The fast way first. Where that fails, the text may still be what the specification allows and
/// the types of oci-spec don't (an unknown capability is a warning, `null` is absent, …), so it is
/// brought into their form and tried again; only then is it an error.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(error) if error.is_data() => parse_normalised(text),
        Err(error) => Err(not_json(text, &error)),
    }
}

fn parse_normalised<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    let mut value: Value = serde_json::from_slice(text).map_err(|error| not_json(text, &error))?;
    for warning in normalise::normalise(&mut value) {
        crate::log::warning(&warning);
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = pointer_of(error.path());
        let place = place_of::<T>(text, &pointer);
        let error = Error::new(format!("{}{place}", error.inner()));
        // Words that runc's users look for.
        let error = match pointer.as_str() {
            "/linux/memoryPolicy" | "/linux/memoryPolicy/mode" => error.prefix("invalid memory policy mode"),
            at if at.starts_with("/linux/memoryPolicy/flags") => error.prefix("invalid memory policy flag"),
            _ => error,
        };
        error.at(pointer)
    })
}

fn not_json(text: &[u8], error: &serde_json::Error) -> Error {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Error::new("empty: unexpected EOF");
    }
    let (line, column) = (error.line(), error.column());
    // The text ends in " at line 1 column 2", which is put in words of its own.
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    Error::new(format!("not valid JSON: {message} in line {line}, column {column}"))
}

/// ` (line 3, column 7)` of the error that parsing finds first, if that is the one at `pointer`.
fn place_of<T: DeserializeOwned>(text: &[u8], pointer: &Pointer) -> String {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) if pointer_of(error.path()) == *pointer => {
            format!(" (line {}, column {})", error.inner().line(), error.inner().column())
        }
        _ => String::new(),
    }
}

fn pointer_of(path: &serde_path_to_error::Path) -> Pointer {
    use serde_path_to_error::Segment;
    path.iter().fold(Pointer::to(""), |pointer, segment| match segment {
        Segment::Seq { index } => pointer.index(*index),
        Segment::Map { key } | Segment::Enum { variant: key } => pointer.key(key),
        Segment::Unknown => pointer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec> {
        parse(text.as_bytes())
    }

    fn message(text: &str) -> String {
        spec(text).expect_err("an error").to_string()
    }

    #[test]
    fn a_broken_file_gives_line_and_column() {
        assert_eq!(
            message("{\n  \"ociVersion\": \"1.0.0\"\n  \"root\": {}\n}"),
            "not valid JSON: expected `,` or `}` in line 3, column 3"
        );
        assert_eq!(
            message("{\"ociVersion\": "),
            "not valid JSON: EOF while parsing a value in line 1, column 15"
        );
        assert_eq!(message(" \n"), "empty: unexpected EOF");
    }

    #[test]
    fn a_wrong_type_gives_pointer_line_and_column() {
        let text = "{\"ociVersion\":\"1.0.0\",\n\"mounts\":[{\"destination\":\"/a\"},{\"destination\":7}]}";
        let message = message(text);
        assert!(message.starts_with("/mounts/1/destination: invalid type: integer `7`"), "{message}");
        assert!(message.ends_with("(line 2, column 47)"), "{message}");
    }

    #[test]
    fn what_the_specification_allows_is_accepted() {
        let spec = spec(
            r#"{"ociVersion":"1.0.0","mounts":null,"ociVersion":"1.2.0",
                "process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["sh"],
                    "capabilities":{"bounding":["CAP_KILL","CAP_MOON"]}},
                "linux":{"resources":{"devices":[{"allow":false,"type":"","access":"rwm"}],
                    "hugepageLimits":[{"pageSize":"2MB","limit":9223372036854772000}]}}}"#,
        )
        .expect("accepted");
        assert_eq!(spec.version(), "1.2.0", "the last of a doubled key counts, as in Go");
        assert_eq!(spec.mounts(), &None);
        let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().clone());
        assert_eq!(capabilities.and_then(|sets| sets.bounding().as_ref().map(|set| set.len())), Some(1));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(spec(&format!("{{\"unknown\":{deep}}}")).is_ok(), "what isn't known is skipped");
        assert!(message(&format!("{{\"mounts\":{{}},\"x\":{deep}}}")).contains("recursion limit exceeded"));
    }
}
