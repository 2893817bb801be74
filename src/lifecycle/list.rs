//! `list`: all containers under the state root.

use super::Global;
use super::state::Report;
use crate::container::Container;
use crate::error::{Error, Result};
use nix::unistd::{Uid, User};
use std::fmt::Write;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The command; returns what it prints.
pub fn run(global: &Global, format: Format, quiet: bool) -> Result<String> {
    let ids = global.store.ids()?;
    if quiet {
        return Ok(ids.iter().fold(String::new(), |text, id| text + id + "\n"));
    }
    let mut containers = Vec::new();
    for id in &ids {
        match Container::load(&global.store, id) {
            Ok(container) => containers.push(container),
            // One that is deleted meanwhile, or damaged, must not hide the others.
            Err(error) => crate::log::warning(&format!("container {id}: {error}")),
        }
    }
    let mut reports = Vec::new();
    for container in &containers {
        let mut report = match Report::of(container) {
            Ok(report) => report,
            Err(error) => {
                crate::log::warning(&format!("container {}: {error}", container.state.id));
                continue;
            }
        };
        let uid = Uid::from_raw(container.state.owner);
        report.owner = User::from_uid(uid).ok().flatten().map_or_else(|| format!("#{uid}"), |user| user.name);
        reports.push(report);
    }
    match format {
        Format::Json => serde_json::to_string(&reports)
            .map(|text| text + "\n")
            .map_err(|error| Error::new(error.to_string())),
        Format::Table => Ok(table(&reports)),
    }
}

fn table(reports: &[Report<'_>]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |report: &Report<'_>| {
        [
            report.id.to_owned(),
            report.pid.to_string(),
            report.status.clone(),
            report.bundle.display().to_string(),
            report.created.to_owned(),
            report.owner.clone(),
        ]
    };
    let rows: Vec<_> = std::iter::once(header).chain(reports.iter().map(row)).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(9) + 3;
    let mut text = String::new();
    for row in &rows {
        let (last, others) = row.split_last().expect("six columns");
        for (column, cell) in others.iter().enumerate() {
            let _ = write!(text, "{cell:<width$}", width = width(column));
        }
        let _ = writeln!(text, "{last}");
    }
    text
}
