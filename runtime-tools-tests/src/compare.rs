//! The results of several runtimes side by side.

use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// Prints the tests that not all of them passed, each with its clause, as a table in Markdown.
pub fn print(files: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let mut tests: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for file in files {
        let results: Vec<Value> = serde_json::from_str(&fs::read_to_string(file)?)?;
        for result in &results {
            let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
            let entry = tests.entry(text("name")).or_insert_with(|| (text("clause"), Vec::new()));
            entry.1.push(text("result"));
        }
    }
    let names: Vec<_> = files.iter().filter_map(|file| file.file_stem()?.to_str()).collect();
    println!("| test | clause | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
    for (name, (clause, results)) in &tests {
        if results.iter().any(|result| result != "passed") {
            println!("| {name} | {clause} | {} |", results.join(" | "));
        }
    }
    Ok(())
}
