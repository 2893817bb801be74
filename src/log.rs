//! Where messages go: the log file and its format as engines read them, and stderr.

use crate::error::{Error, Result};
use crate::sys::Call;
use serde_json::json;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

/// How much is logged; each level includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Level {
    /// Errors that end the process.
    #[value(alias("panic"), alias("fatal"))]
    Error,
    /// What the specification says to warn of.
    #[value(alias("warn"))]
    Warning,
    /// The same as warnings: damda has no messages in between.
    Info,
    /// What is being done.
    #[value(alias("trace"))]
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

/// The format of the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    Text,
    /// One object a line: `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

struct Log {
    file: Option<File>,
    format: Format,
    /// What goes into the file: only errors unless asked for, since Podman reads a whole log
    /// file as one object.
    file_level: Level,
    stderr_level: Level,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Sets up logging from the command line; before this, everything goes to stderr as text.
pub fn init(file: Option<&Path>, format: Format, level: Option<Level>) -> Result<()> {
    let file = match file {
        None => None,
        Some(path) => Some(
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .call(|| format!("open({path:?}, O_WRONLY|O_CREAT|O_APPEND)"))
                .map_err(|error| Error::from(error).prefix("cannot open the log file"))?,
        ),
    };
    let file_level = level.unwrap_or(Level::Error);
    let stderr_level = level.unwrap_or(Level::Warning);
    let _ = LOG.set(Log { file, format, file_level, stderr_level });
    Ok(())
}

/// Reports what ends the process. Engines read it from the log file and from stderr.
pub fn error(message: &str) {
    write(Level::Error, message);
}

/// Reports what the specification says to warn of.
pub fn warning(message: &str) {
    write(Level::Warning, message);
}

/// Reports what is being done, for `--debug`; the text is only made when it is wanted.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.file_level >= Level::Debug || log.stderr_level >= Level::Debug) {
        write(Level::Debug, &message());
    }
}

/// The same for a text of several lines.
pub fn debug_lines(message: impl FnOnce() -> String) {
    let mut text = None;
    debug(|| text.insert(message()).lines().next().unwrap_or_default().to_owned());
    text.iter().flat_map(|text| text.lines().skip(1)).for_each(|line| write(Level::Debug, line));
}

fn write(level: Level, message: &str) {
    let default =
        Log { file: None, format: Format::Text, file_level: Level::Error, stderr_level: Level::Warning };
    let log = LOG.get().unwrap_or(&default);
    let mut lines = std::io::stderr();
    if let Some(mut file) = log.file.as_ref().filter(|_| level <= log.file_level) {
        // A log that can't be written to must not hide the error itself: stderr has it as well.
        let _ = file.write_all(line(log.format, level, message).as_bytes());
    }
    if level > log.stderr_level {
        return;
    }
    let text = if lines.is_terminal() || (log.file.is_some() && level == Level::Error) {
        format!("{message}\n")
    } else if log.file.is_none() {
        line(log.format, level, message)
    } else {
        line(Format::Text, level, message)
    };
    let _ = lines.write_all(text.as_bytes());
}

fn line(format: Format, level: Level, message: &str) -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let level = level.name();
    match format {
        Format::Json => format!("{}\n", json!({"level": level, "msg": message, "time": time})),
        Format::Text => format!("time=\"{time}\" level={level} msg={}\n", json!(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_engines_parse_them() {
        let json: serde_json::Value =
            serde_json::from_str(&line(Format::Json, Level::Error, "a \"b\"\n")).expect("one JSON object");
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("error"), Some("a \"b\"\n")));
        assert!(json["time"].as_str().is_some_and(|time| time.ends_with('Z')), "RFC 3339 with a zone");
        let text = line(Format::Text, Level::Warning, "a \"b\"");
        assert!(text.ends_with("level=warning msg=\"a \\\"b\\\"\"\n"), "{text}");
    }
}
