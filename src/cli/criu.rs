//! The arguments of `checkpoint` and `restore`, as runc has them.
#![allow(missing_docs)] // the comments are what --help says

use super::arguments::HELP;
use crate::criu::message::CgroupsMode;
use crate::criu::options::Options as CriuOptions;
use crate::lifecycle::{checkpoint, restore};
use clap::Args;
use std::path::PathBuf;

// What `checkpoint` and `restore` have in common. A doc comment would become their help.
#[derive(Debug, Args)]
pub struct Criu {
    /// directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// directory of CRIU's log and other files of its work (default: that of the images)
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// allow open TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// allow unix sockets that are connected to outside of the container
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// allow a session whose leader is outside of the container
    #[arg(long)]
    pub shell_job: bool,
    /// allow file locks
    #[arg(long)]
    pub file_locks: bool,
    /// how cgroups are treated (default: soft)
    #[arg(long, value_enum, value_name = "MODE")]
    pub manage_cgroups_mode: Option<Mode>,
    /// make a namespace without what was in it (network: always so)
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub empty_ns: Vec<String>,
    /// drop memory pages from the parent images that are in newer ones
    #[arg(long)]
    pub auto_dedup: bool,
    /// move memory pages when they are used (userfaultfd)
    #[arg(long)]
    pub lazy_pages: bool,
}

// As CRIU's --manage-cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Soft,
    Full,
    Strict,
    Ignore,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Checkpoint {
    #[command(flatten)]
    pub criu: Criu,
    /// directory of the images of a pre-dump, relative to --image-path
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// leave the container running
    #[arg(long)]
    pub leave_running: bool,
    /// skip TCP connections that are being made
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// link files that have been removed back to names, where possible
    #[arg(long)]
    pub link_remap: bool,
    /// descriptor that is written a zero byte to when lazy pages can be asked for
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    pub status_fd: Option<i32>,
    /// serve memory pages there
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// save memory only, leave the container running, and save the rest later (--parent-path)
    #[arg(long)]
    pub pre_dump: bool,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Debug, Args)]
#[command(args_override_self = true, help_template = HELP)]
pub struct Restore {
    #[command(flatten)]
    pub criu: Criu,
    /// the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// unix socket that is sent the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// leave the container when it runs
    #[arg(short, long)]
    pub detach: bool,
    /// file to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// don't collect processes that the container leaves behind
    #[arg(long)]
    pub no_subreaper: bool,
    /// as for `create`; CRIU decides by itself
    #[arg(long)]
    pub no_pivot: bool,
    /// label of a security module for the processes, TYPE:LABEL
    #[arg(long, value_name = "LABEL")]
    pub lsm_profile: Option<String>,
    /// SELinux context of mounts that had one
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// the container's id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

impl From<Criu> for CriuOptions {
    fn from(given: Criu) -> Self {
        let mode = |mode| match mode {
            Mode::Soft => CgroupsMode::Soft,
            Mode::Full => CgroupsMode::Full,
            Mode::Strict => CgroupsMode::Strict,
            Mode::Ignore => CgroupsMode::Ignore,
        };
        CriuOptions {
            image_path: given.image_path,
            work_path: given.work_path,
            tcp_established: given.tcp_established,
            ext_unix_sk: given.ext_unix_sk,
            shell_job: given.shell_job,
            file_locks: given.file_locks,
            manage_cgroups_mode: given.manage_cgroups_mode.map_or(CgroupsMode::Default, mode),
            auto_dedup: given.auto_dedup,
            lazy_pages: given.lazy_pages,
        }
    }
}

impl From<Checkpoint> for checkpoint::Options {
    fn from(given: Checkpoint) -> Self {
        checkpoint::Options {
            id: given.id,
            criu: given.criu.into(),
            parent_path: given.parent_path,
            leave_running: given.leave_running,
            tcp_skip_in_flight: given.tcp_skip_in_flight,
            link_remap: given.link_remap,
            status_fd: given.status_fd.filter(|&fd| fd >= 0),
            page_server: given.page_server,
            pre_dump: given.pre_dump,
        }
    }
}

impl From<Restore> for restore::Options {
    fn from(given: Restore) -> Self {
        restore::Options {
            id: given.id,
            criu: given.criu.into(),
            bundle: given.bundle,
            console_socket: given.console_socket,
            detach: given.detach,
            pid_file: given.pid_file,
            no_subreaper: given.no_subreaper,
            no_pivot: given.no_pivot,
            lsm_profile: given.lsm_profile,
            lsm_mount_context: given.lsm_mount_context,
        }
    }
}
