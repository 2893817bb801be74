//! `checkpoint`: a running container is saved to files, by CRIU.

use super::{Global, delete};
use crate::config::Config;
use crate::container::{Container, Init, Status};
use crate::criu::message::{self, Features, Kind, Request};
use crate::criu::options::{self, DESCRIPTORS, Directories, check_parent_path, external_namespaces};
use crate::criu::{Criu, Place, external};
use crate::error::{Context, Error, Pointer, Result};
use crate::plan::Namespaces;
use crate::root::Root;
use crate::steps::trees;
use crate::sys::{Call, inherited};
use nix::fcntl::{FcntlArg, OFlag, fcntl, readlink};
use nix::sched::CloneFlags;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the command line says.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // each is the option of its name, described in cli/arguments.rs
pub struct Options {
    pub id: String,
    pub criu: options::Options,
    pub parent_path: Option<PathBuf>,
    pub leave_running: bool,
    pub tcp_skip_in_flight: bool,
    pub link_remap: bool,
    pub status_fd: Option<i32>,
    pub page_server: Option<String>,
    pub pre_dump: bool,
}

/// The command.
pub fn run(global: &Global, options: &Options) -> Result<()> {
    let container = Container::load(&global.store, &options.id)?;
    let status = container.status()?;
    let (Status::Running | Status::Paused, Some(init)) = (status, container.live_init()) else {
        return Err(Error::new(format!("Container cannot be checkpointed in {status} state")));
    };
    let config = container.config()?;
    check_restorable(&config)?;
    let page_server = options.page_server.as_deref().map(options::page_server).transpose()?;
    check_status_fd(options)?;
    let directories = Directories::make(&options.criu)?;
    if let Some(parent) = &options.parent_path {
        check_parent_path(&options.criu.image_path, parent)?;
    }

    let mut criu = Criu::start(&Place::here(), || Ok(()))?;
    check_abilities(&mut criu, options, &config)?;
    let mut message = message(options, &directories, &container, &config, &init)?;
    message.page_server = page_server;
    if !options.pre_dump {
        let root = Root::open(Path::new(&format!("/proc/{}/root", init.pid)))?;
        message.ext_mnt = external::at_checkpoint(&config, &container.state.cgroup, &root)?;
        write_descriptors(&options.criu.image_path, &init)?;
    }
    // Older ones write to the descriptor themselves.
    let mut status_fd = options.status_fd.filter(|_| options.criu.lazy_pages);
    if criu.version < 31_500 {
        message.status_fd = status_fd.take();
    }
    let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
    let request = Request { kind: kind as i32, options: Some(message), ..Request::default() };
    criu.ask(&request, Some(&directories), |notify, _| {
        if let Some(fd) = status_fd.take_if(|_| notify.script() == "status-ready") {
            tell_ready(fd)?;
        }
        Ok(())
    })?;
    criu.finish();
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    delete::destroy(&container, true)
}

/// What CRIU would restore as something else is refused, before it is saved.
pub fn check_restorable(config: &Config) -> Result<()> {
    // The container's mounts would be the host's.
    if !Namespaces::plan(&config.spec).new.contains(CloneFlags::CLONE_NEWNS) {
        let error = "a container without a mount namespace of its own can't be saved or restored";
        return Err(Error::new(error).at(Pointer::to("/linux/namespaces")));
    }
    // CRIU follows paths on the host, where the container's links lead elsewhere.
    if let Some(index) = trees::from_within(&config.spec, &config.bundle) {
        let error = "a mount whose source or destination is given by the container's own path on the host can't be saved or restored";
        return Err(Error::new(error).at(Pointer::to("/mounts").index(index)));
    }
    // CRIU would bind it without, and files would be others'.
    match trees::plan(&config.spec, &config.bundle, false).first() {
        None => Ok(()),
        Some(mapped) => {
            let at = Pointer::to("/mounts").index(mapped.index);
            Err(Error::new("a mount with id mappings can't be saved or restored").at(at))
        }
    }
}

fn check_status_fd(options: &Options) -> Result<()> {
    let Some(fd) = options.status_fd.filter(|_| options.criu.lazy_pages) else { return Ok(()) };
    let invalid = || format!("invalid --status-fd argument {fd}");
    let flags = fcntl(inherited(fd), FcntlArg::F_GETFL).call(|| format!("fcntl({fd}, F_GETFL)"));
    let flags = OFlag::from_bits_truncate(flags.doing(invalid)?);
    match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => Err(Error::new(format!("{}: not writable", invalid()))),
        _ => Ok(()),
    }
}

/// Tells whoever waits for it that memory pages can be asked for.
fn tell_ready(fd: i32) -> Result<()> {
    nix::unistd::write(inherited(fd), &[0])
        .map(drop)
        .call(|| format!("write({fd})"))
        .doing(|| "cannot write to --status-fd".into())?;
    // The last copy of it here: its other end may wait for that.
    crate::sys::process::abandon(fd);
    Ok(())
}

/// What is asked for must be what this CRIU, on this kernel, can do.
fn check_abilities(criu: &mut Criu, options: &Options, config: &Config) -> Result<()> {
    criu.check_version(0, "damda checkpoint")?;
    check_external_namespaces(criu, config)?;
    if options.pre_dump {
        criu.check_features(Features { mem_track: Some(true), lazy_pages: None })?;
    }
    if options.criu.lazy_pages {
        criu.check_features(Features { lazy_pages: Some(true), mem_track: None })?;
    }
    Ok(())
}

/// Leaving a namespace out of the image came to CRIU one type after the other.
pub fn check_external_namespaces(criu: &mut Criu, config: &Config) -> Result<()> {
    let namespaces = Namespaces::plan(&config.spec);
    for (kind, since) in [(CloneFlags::CLONE_NEWNET, 31_100), (CloneFlags::CLONE_NEWPID, 31_500)] {
        if let Some(join) = namespaces.joined(kind) {
            let what = format!("a {} namespace that is joined", crate::plan::namespace_name(kind));
            criu.check_version(since, &what).at(&join.at)?;
        }
    }
    Ok(())
}

/// What CRIU is told for a dump and for a pre-dump.
fn message(
    options: &Options,
    directories: &Directories,
    container: &Container,
    config: &Config,
    init: &Init,
) -> Result<message::Options> {
    let freezer = container.state.cgroup.freezer();
    Ok(message::Options {
        pid: Some(init.pid),
        root: Some(container.state.rootfs.to_string_lossy().into_owned()),
        leave_running: Some(options.leave_running),
        tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
        link_remap: Some(options.link_remap),
        external: external_namespaces(&Namespaces::plan(&config.spec).joined)?,
        freeze_cgroup: freezer.map(|path| path.to_string_lossy().into_owned()),
        parent_img: options.parent_path.as_ref().map(|path| path.to_string_lossy().into_owned()),
        track_mem: options.parent_path.as_ref().map(|_| true),
        ..options.criu.message(directories, &container.state.annotations)
    })
}

/// Keeps what the standard streams are, so that `restore` can put others in their place.
fn write_descriptors(images: &Path, init: &Init) -> Result<()> {
    let mut names = Vec::new();
    for stream in 0..3 {
        let link = format!("/proc/{}/fd/{stream}", init.pid);
        let name = readlink(link.as_str()).unwrap_or_default();
        names.push(name.to_string_lossy().into_owned());
    }
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&names).map_err(|error| Error::new(error.to_string()))?;
    let mut file = std::fs::OpenOptions::new();
    file.write(true).create(true).truncate(true).mode(0o600);
    file.open(&path)
        .and_then(|mut file| file.write_all(&text))
        .call(|| format!("write({path:?})"))
        .doing(|| "cannot keep the names of the standard streams".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_would_be_restored_as_something_else_is_refused() {
        let check = |namespaces: serde_json::Value, options: serde_json::Value| {
            let text = json!({
                "ociVersion": "1.0.2",
                "mounts": [{"destination": "/a", "source": "/a", "options": options}],
                "linux": {"namespaces": namespaces, "uidMappings": [{"containerID": 0, "hostID": 7, "size": 8}]},
            })
            .to_string();
            let spec = crate::config::parse(text.as_bytes()).expect("it parses");
            let config = Config { spec, bundle: "/b".into(), text: text.into() };
            check_restorable(&config).map_err(|error| error.to_string())
        };
        let own = json!([{"type": "mount"}, {"type": "user"}]);
        assert_eq!(check(own.clone(), json!(["bind"])), Ok(()));
        assert!(check(own, json!(["bind", "idmap"])).is_err_and(|error| error.starts_with("/mounts/0: ")));
        assert!(
            check(json!([]), json!(["bind"])).is_err_and(|error| error.starts_with("/linux/namespaces: "))
        );
    }
}
