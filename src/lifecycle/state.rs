//! `state`: what a container is doing (runtime.md, "Query State").

use super::Global;
use crate::container::{Container, Status};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A container as `state` and `list` print it, with runc's additions to the specification.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// The first process's id; 0 when it has ended.
    pub pid: i32,
    /// What it is doing.
    pub status: String,
    /// Its bundle.
    pub bundle: &'a Path,
    rootfs: &'a Path,
    /// When it was created.
    pub created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    /// Who created it.
    pub owner: String,
}

impl<'a> Report<'a> {
    /// Asks what `container` is doing.
    pub fn of(container: &'a Container) -> Result<Self> {
        let state = &container.state;
        let status = container.status()?;
        let pid = state.init.filter(|_| status != Status::Stopped).map_or(0, |init| init.pid);
        Ok(Report {
            oci_version: &state.oci_version,
            id: &state.id,
            pid,
            status: status.to_string(),
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: &state.annotations,
            owner: String::new(),
        })
    }
}

/// The command; returns what it prints.
pub fn run(global: &Global, id: &str) -> Result<String> {
    let container = Container::load(&global.store, id)?;
    let report = Report::of(&container)?;
    serde_json::to_string_pretty(&report)
        .map(|text| text + "\n")
        .map_err(|error| Error::new(error.to_string()))
}
