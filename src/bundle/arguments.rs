//! The command line.
#![allow(missing_docs)] // the comments are what --help says

use crate::convert::Changes;
use crate::error::{Error, Result};
use crate::image::Platform;
use crate::limits::{Limits, bytes};
use crate::merge::Copy;
use crate::registry::Mirror;
use clap::{Args, Parser};
use std::path::PathBuf;

/// Make a bundle from an image
///
/// IMAGE is one of
///   NAME[:TAG][@DIGEST]              of a registry: alpine, localhost:5000/x, docker://…
///   oci:DIR[:TAG]                    an image layout
///   oci-archive:FILE[:TAG]           an image layout in a tar archive
///   docker-archive:FILE[:NAME:TAG]   what docker save writes
///   -                                an archive of either kind, from stdin
///   dir:ROOTFS                       a root file system that is there already
///   embedded:                        an image of one small program, which damda brings along
#[derive(Debug, Parser)]
#[command(
    name = "damda bundle",
    bin_name = "damda bundle",
    verbatim_doc_comment,
    disable_version_flag = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// what to make a bundle from
    pub image: Option<String>,
    /// where to make it: a directory that isn't there yet, or is empty
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// what is run, after the image's entrypoint
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    #[command(flatten)]
    pub from: From,
    #[command(flatten, next_help_heading = "The container")]
    pub changes: Changes,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub limits: Limits,
    /// say what would be done, and do nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// describe what was done, as JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// no progress
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where the image comes from")]
pub struct From {
    /// which of several images: os/architecture/variant
    #[arg(long, value_name = "PLATFORM", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// http without TLS, also to other hosts than this one
    #[arg(long)]
    pub plain_http: bool,
    /// log in to the registry as this user
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,
    /// file with logins, as ~/.docker/config.json
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// ask this registry before HOST, docker.io for example
    #[arg(long, value_name = "HOST=URL", value_parser = mirror)]
    pub mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Layers that are kept")]
pub struct Keeping {
    /// where unpacked layers are kept for --overlay and --copy
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// the bundle's root is an overlay mount of the store's layers, made when a container is
    #[arg(long, conflicts_with = "copy")]
    pub overlay: bool,
    /// the bundle's root is a copy of the store's layers
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub copy: Option<Copy>,
    /// list what the store has
    #[arg(long, exclusive = false, group = "instead")]
    pub list: bool,
    /// remove layers that no bundle uses, until no more than this is left of them
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "0", value_parser = bytes, group = "instead")]
    pub gc: Option<u64>,
    /// say what in a bundle is other than the image has it
    #[arg(long, value_name = "BUNDLE", group = "instead")]
    pub verify: Option<PathBuf>,
}

fn mirror(text: &str) -> std::result::Result<Mirror, String> {
    Mirror::parse(text).map_err(|error| error.to_string())
}

impl Arguments {
    /// The image and the directory, which a bundle can't be made without.
    pub fn image_and_directory(&self) -> Result<(&str, &PathBuf)> {
        match (&self.image, &self.directory) {
            (Some(image), Some(directory)) => Ok((image, directory)),
            (None, _) => {
                Err(Error::new("no image is named").hint("damda bundle IMAGE DIR; see damda bundle --help"))
            }
            (_, None) => Err(Error::new("no directory is named").hint("damda bundle IMAGE DIR")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_comes_after_the_dashes_is_the_command() {
        let arguments =
            Arguments::parse_from(["damda bundle", "--copy", "alpine", "out", "--", "echo", "--list"]);
        assert_eq!(arguments.command, ["echo", "--list"]);
        assert_eq!(arguments.keeping.copy, Some(Copy::Auto));
        assert!(!arguments.keeping.list);
    }
}
