//! What the documents say of tests is true: those that they name are there, and the counts are right.

use std::path::{Path, PathBuf};

/// The project's directory.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    std::fs::read_to_string(project().join("docs").join(name)).expect("the document is there")
}

/// The last column of each row of the document's tables.
fn cells(text: &str) -> impl Iterator<Item = &str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let cells = rows.filter_map(|row| row.rsplit('|').next()).map(str::trim);
    cells.filter(|cell| !cell.starts_with("---") && !["shown by", "test"].contains(cell))
}

/// What is in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || b"_*".contains(&byte) || byte.is_ascii_digit())
}

/// Whether a test of the suite is named so; a `*` is any end.
fn in_suite(name: &str) -> bool {
    let all = crate::tests::all();
    let prefix = "runtime_tools_tests::tests::";
    let mut names = all.iter().map(|test| test.name.strip_prefix(prefix).unwrap_or(test.name));
    match name.strip_suffix('*') {
        Some(beginning) => names.any(|test| test.starts_with(beginning)),
        None => names.any(|test| test == name),
    }
}

/// Whether `src/file.rs::test` is a unit test.
fn in_source(name: &str) -> bool {
    let (file, test) = name.split_once("::").unwrap_or((name, ""));
    let text = std::fs::read_to_string(project().join(file)).unwrap_or_default();
    text.contains(&format!("#[test]\n    fn {test}()")) || text.contains(&format!("#[test]\nfn {test}()"))
}

/// The tests that a cell names: those of the suite in full, and unit tests. A name alone is of the
/// module that was named last.
fn tests(cell: &str) -> Vec<String> {
    let mut module = "";
    let mut found = Vec::new();
    for word in quoted(cell) {
        match word.split_once("::") {
            _ if word.starts_with("src/") => found.push(word.to_owned()),
            Some((named, test)) if is_name(named) && is_name(test) => {
                module = named;
                found.push(word.to_owned());
            }
            None if is_name(word) && !module.is_empty() => found.push(format!("{module}::{word}")),
            _ => {}
        }
    }
    found
}

#[test]
fn tests_that_documents_name_are_there() {
    for name in ["spec-musts.md", "spec-coverage.md"] {
        let text = document(name);
        let all: Vec<String> = cells(&text).flat_map(tests).collect();
        assert!(all.len() > 20, "{name} names only {all:?}");
        for test in all {
            let there = if test.starts_with("src/") { in_source(&test) } else { in_suite(&test) };
            assert!(there, "{name}: there is no test {test}");
        }
    }
    for missing in ["mounts::no_such_test", "nowhere::*"] {
        assert!(!in_suite(missing), "{missing}");
    }
    assert!(!in_source("src/resctrl.rs::no_such_test"));
}

#[test]
fn demands_are_counted() {
    let text = document("spec-musts.md");
    let (mut all, mut suite, mut unit) = (0, 0, 0);
    for cell in cells(&text) {
        let tests = tests(cell);
        all += 1;
        match tests.iter().any(|test| !test.starts_with("src/")) {
            // What binds somebody else may be checked all the same: it is no demand on a runtime.
            _ if cell.starts_with("binds") || cell.starts_with("not this platform") => {}
            true => suite += 1,
            false if !tests.is_empty() => unit += 1,
            false => {}
        }
    }
    let counts = format!(
        "{all} demands: {suite} shown by the suite, {unit} by unit tests alone, {} otherwise.",
        all - suite - unit
    );
    assert!(text.contains(&counts), "spec-musts.md should end in: {counts}");
}
