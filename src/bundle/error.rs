//! The one error: what failed, why, what to do about it.

use nix::errno::Errno;
use std::fmt;
use std::io;

/// What went wrong. It reads `layer 2 (sha256:…): usr/bin/x: link: …: no such file or directory (hint)`:
/// each level that knows something puts it before the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Parts {
    what: String,
    hint: Option<String>,
}

/// A result with this error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error in words.
    pub fn new(what: impl Into<String>) -> Self {
        Error(Box::new(Parts { what: what.into(), hint: None }))
    }

    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The text and the hint, for another process.
    pub fn parts(&self) -> (String, Option<String>) {
        (self.0.what.clone(), self.0.hint.clone())
    }

    /// Puts what was being done, or to what, before the text.
    pub fn prefix(mut self, prefix: impl fmt::Display) -> Self {
        self.0.what = format!("{prefix}: {}", self.0.what);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0.what))?;
        match &self.0.hint {
            Some(hint) => write!(f, " ({})", escape(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        // An error of ours that went through a reader comes out as it was.
        match (error.raw_os_error(), error.get_ref()) {
            (Some(number), _) => Errno::from_raw(number).into(),
            (None, Some(inner)) => match inner.downcast_ref::<Error>() {
                Some(ours) => ours.clone(),
                None => Error::new(inner.to_string()),
            },
            (None, None) => Error::new(error.to_string()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        let text = errno.desc();
        let mut letters = text.chars();
        let first = letters.next().map(|first| first.to_ascii_lowercase());
        Error::new(first.into_iter().chain(letters).collect::<String>())
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Errno::from_raw(errno.raw_os_error()).into()
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// `what` is only asked for when it failed: a call with its arguments, a path, a part of an image.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.into().prefix(what()))
    }
}

/// Control characters from an image don't reach a terminal.
pub fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|letter| {
            let escaped = letter.is_control().then(|| letter.escape_default());
            escaped.into_iter().flatten().chain((!letter.is_control()).then_some(letter))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_from_the_outside_to_the_inside() {
        let error = Err::<(), _>(Errno::ENOENT).doing(|| "openat2(3, \"a\")".into()).unwrap_err();
        let error = error.prefix("layer 1").hint("do something");
        assert_eq!(error.to_string(), "layer 1: openat2(3, \"a\"): no such file or directory (do something)");
        let through: Error = io::Error::from(error.clone()).into();
        assert_eq!(through, error);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
