//! What CRIU's log says of a failure.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// How many errors are quoted. CRIU goes on for a while after the first, and says at the end what
/// follows from it.
const MOST: usize = 4;

/// The last errors of the log at `path`, from the first to the last.
pub fn reasons(path: &Path) -> Option<String> {
    errors(BufReader::new(File::open(path).ok()?))
}

fn errors(log: impl BufRead) -> Option<String> {
    let mut last: VecDeque<String> = VecDeque::new();
    for line in log.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let Some(text) = error(&line) else { continue };
        if last.back().is_none_or(|before| before != text) {
            last.push_back(text.to_owned());
        }
        if last.len() > MOST {
            last.pop_front();
        }
    }
    (!last.is_empty()).then(|| Vec::from(last).join("; "))
}

/// The text of a line such as `(00.010203)      7: Error (criu/mount.c:123): mnt: No such mount`,
/// unless it only says that there was an error.
fn error(line: &str) -> Option<&str> {
    let (_, text) = line.split_once("Error (")?;
    let (_, text) = text.split_once("): ")?;
    let text = text.trim();
    (!matches!(text, "Dumping FAILED." | "Pre-dumping FAILED." | "Restoring FAILED.")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found() {
        let log = "(00.000001) Version: 3.17.1\n(00.01) Error (criu/files.c:12): Can't lookup mount=24\n\
            (00.02) Warn  (criu/x.c:1): no Error\n(00.03)     7: Error (criu/cr-dump.c:3): Dump files failed\n\
            (00.04) Error (criu/cr-dump.c:9): Dumping FAILED.\n";
        let expected = "Can't lookup mount=24; Dump files failed";
        assert_eq!(errors(log.as_bytes()).as_deref(), Some(expected));
        assert_eq!(errors(&b"(00.1) all is well\n"[..]), None);
    }

    #[test]
    fn the_last_ones_are_quoted_and_each_once() {
        let line = |number: u32| format!("Error (a.c:1): no {number}\n");
        let log: String = (1..=6).map(|number| line(number) + &line(number)).collect();
        assert_eq!(errors(log.as_bytes()).as_deref(), Some("no 3; no 4; no 5; no 6"));
    }
}
