//! The one error: which field of config.json, what failed, which call said so, what to do.

use crate::sys;
use std::borrow::Cow;
use std::fmt;

/// A JSON pointer (RFC 6901) into config.json, such as `/mounts/3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Cow<'static, str>);

impl Pointer {
    /// A pointer that is known when damda is compiled.
    pub const fn to(path: &'static str) -> Self {
        Pointer(Cow::Borrowed(path))
    }

    /// This pointer's child `index` of an array.
    pub fn index(&self, index: usize) -> Self {
        Pointer(format!("{}/{index}", self.0).into())
    }

    /// This pointer's child `key` of an object.
    pub fn key(&self, key: &str) -> Self {
        Pointer(format!("{}/{}", self.0, key.replace('~', "~0").replace('/', "~1")).into())
    }

    /// The pointer as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Pointer {
    fn from(path: String) -> Self {
        Pointer(path.into())
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What went wrong.
///
/// It reads `damda create failed: /mounts/3: error mounting "a" to rootfs at "b": open_tree(…): no
/// such file or directory (hint)`. It is wrapped once, where the field is known, and printed once, in `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Parts>); // one pointer: every function's result has room for it

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Parts {
    command: Option<&'static str>,
    at: Option<Pointer>,
    what: String,
    cause: Option<sys::Failed>,
    hint: Option<String>,
    status: Option<i32>,
}

/// A result with damda's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that no system call reported.
    pub fn new(what: impl Into<String>) -> Self {
        Error(Box::new(Parts { what: what.into(), ..Parts::default() }))
    }

    /// Says which field of config.json it comes from, unless that is known already.
    pub fn at(mut self, pointer: Pointer) -> Self {
        self.0.at.get_or_insert(pointer);
        self
    }

    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The status to exit with, where it isn't the command's usual one.
    pub fn with_status(mut self, status: i32) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Puts what was being done before the text.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.0.what =
            if self.0.what.is_empty() { prefix.into() } else { format!("{prefix}: {}", self.0.what) };
        self
    }

    /// Says which command failed, in the words that engines know.
    pub fn of_command(mut self, failed: &'static str) -> Self {
        self.0.command = Some(failed);
        self
    }

    /// Says which file the text is of, unless a field of it is known.
    pub fn in_file(self, path: &std::path::Path) -> Self {
        if self.0.at.is_some() { self } else { self.prefix(&format!("{path:?}")) }
    }

    /// See `with_status`.
    pub fn status(&self) -> Option<i32> {
        self.0.status
    }

    /// The errno, where a system call reported one.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        self.0.cause.as_ref().map(|cause| cause.errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.0.cause.as_ref().map(ToString::to_string);
        let at = self.0.at.as_ref().map(|at| escape(at.as_str()));
        let parts = [self.0.command, at.as_deref(), Some(&*self.0.what), cause.as_deref()];
        let text = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        f.write_str(&escape(&text))?;
        match &self.0.hint {
            Some(hint) => write!(f, " ({})", escape(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<sys::Failed> for Error {
    fn from(cause: sys::Failed) -> Self {
        Error(Box::new(Parts { cause: Some(cause), ..Parts::default() }))
    }
}

/// Text from a bundle or a container, made fit for a line of a log: control characters are
/// escaped, so that it can't forge lines or drive the reader's terminal.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        if char.is_control() { escaped.extend(char.escape_default()) } else { escaped.push(char) }
    }
    escaped.into()
}

/// Adds to an error what only the caller knows.
pub trait Context<T> {
    /// Says which field of config.json the failure comes from.
    fn at(self, pointer: &Pointer) -> Result<T>;
    /// Says what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, pointer: &Pointer) -> Result<T> {
        self.map_err(|error| error.into().at(pointer.clone()))
    }

    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.into().prefix(&what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    fn failed() -> sys::Failed {
        sys::Failed { call: "open(\"/x\")".into(), errno: Errno::ENOENT }
    }

    #[test]
    fn reads_from_the_field_to_the_hint() {
        let error = Error::from(failed()).prefix("cannot mount").at(Pointer::to("/mounts/3")).hint("make it");
        assert_eq!(
            error.to_string(),
            "/mounts/3: cannot mount: open(\"/x\"): no such file or directory (make it)"
        );
    }

    #[test]
    fn the_first_pointer_stays() {
        let error = Error::new("bad").at(Pointer::to("/process").key("a/b")).at(Pointer::to("/other"));
        assert_eq!(error.to_string(), "/process/a~1b: bad");
    }

    #[test]
    fn control_characters_cannot_forge_lines() {
        assert_eq!(Error::new("a\nlevel=error\u{1b}[2J").to_string(), "a\\nlevel=error\\u{1b}[2J");
    }
}
