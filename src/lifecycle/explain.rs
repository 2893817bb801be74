//! `explain` and `check`: what would happen, without its happening.

use crate::cgroup::Manager;
use crate::config::{Config, check as problems};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::{self, Request};
use std::path::Path;

/// The plan for a bundle.
pub fn explain(bundle: &Path, cgroup_manager: Manager) -> Result<String> {
    let config = Config::load(bundle)?;
    let request = Request { id: "CONTAINER-ID".into(), cgroup_manager, ..Request::default() };
    Ok(plan::create(&config, &Host::probe()?, &request)?.to_string())
}

/// All that is wrong with a bundle's configuration.
pub fn check(bundle: &Path, cgroup_manager: Manager) -> Result<String> {
    let config = Config::read(bundle)?;
    let problems = problems(&config.spec);
    if problems.is_empty() {
        explain(bundle, cgroup_manager)?;
        return Ok("nothing is wrong with config.json\n".into());
    }
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    for line in &lines {
        crate::log::error(line);
    }
    Err(Error::new(format!("{} problems in config.json", lines.len())))
}
