//! `restore`: a container goes on from where `checkpoint` has saved it, by CRIU.

use super::checkpoint::{check_external_namespaces, check_restorable};
use super::create::{check_manager, check_terminal, describe, terminal_pair};
use super::{Global, connect_to, delete, write_pid_file};
use crate::cgroup::{Cgroup, memberships};
use crate::config::Config;
use crate::container::{Container, Init, Status};
use crate::criu::message::{self, CgroupRoot, InheritFd, Kind, Notify, Request};
use crate::criu::options::{self, DESCRIPTORS, Directories, Joining, inherited_pipes, joining};
use crate::criu::{Criu, Place, external};
use crate::error::{Context, Error, Pointer, Result};
use crate::host::Host;
use crate::launch::Child;
use crate::launch::foreground::{Foreground, become_subreaper, take_signals};
use crate::plan::{self, Plan};
use crate::steps::hooks::{self, Kind as HookKind};
use crate::steps::namespaces::{self, CLONE_NEWTIME, is_own};
use crate::steps::rootfs::check_directory;
use crate::sys::process::pidfd_open;
use crate::sys::{Call, file, socket};
use nix::sched::CloneFlags;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the command line says.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // each is the option of its name, described in cli/arguments.rs
pub struct Options {
    pub id: String,
    pub criu: options::Options,
    pub bundle: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub detach: bool,
    pub pid_file: Option<PathBuf>,
    pub no_subreaper: bool,
    pub no_pivot: bool,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

/// The command; returns the program's exit status, or 0 when it is left alone.
pub fn run(global: &Global, options: &Options) -> Result<i32> {
    let config = Config::load(&options.bundle)?;
    check_terminal(&config, options.detach, options.console_socket.as_deref())?;
    check_manager(global)?;
    check_restorable(&config)?;
    check_directory(&config.rootfs())?;
    let directories = Directories::find(&options.criu)?;
    let request = plan::Request {
        id: options.id.clone(),
        no_pivot: options.no_pivot,
        cgroup_manager: global.cgroup_manager,
        ..plan::Request::default()
    };
    let plan = plan::create(&config, &Host::probe()?, &request)?;
    if !options.detach && !options.no_subreaper && !plan.namespaces.new.contains(CloneFlags::CLONE_NEWPID) {
        become_subreaper()?;
    }
    let directory = global.store.claim(&options.id)?;
    let state = describe(&config, &plan, &options.id);
    let mut attempt = Attempt { container: Container { directory, state }, child: None, master: None };
    let restored = attempt
        .make(&config, &plan, options, &directories)
        .and_then(|signals| attempt.hand_over(options, signals));
    let stay = restored.inspect_err(|_| attempt.undo())?;
    let (Some(mut stay), Some(child)) = (stay, attempt.child) else { return Ok(0) };
    let mut container = attempt.container;
    let status = stay.wait_for(&child, None)?;
    // It has been waited for: its number may be another process's already.
    container.state.init = None;
    delete::destroy(&container, true)?;
    stay.give_back();
    Ok(status)
}

/// A container that is being restored.
struct Attempt {
    container: Container,
    /// Its first process, once CRIU has made it.
    child: Option<Child>,
    /// Its terminal, which stays with this process.
    master: Option<OwnedFd>,
}

impl Attempt {
    fn make(
        &mut self,
        config: &Config,
        plan: &Plan,
        options: &Options,
        directories: &Directories,
    ) -> Result<Option<SignalFd>> {
        let container = &mut self.container;
        container.directory.lock()?;
        container.save(config)?;
        // What hasn't been made yet is nothing to take back.
        container.state.cgroup = Cgroup::default();
        let joining = joining(&plan.namespaces.joined)?;
        let console = options.console_socket.as_ref().map(|path| connect_to(path, "console")).transpose()?;
        container.make_cgroup(plan.cgroup.as_ref())?;
        container.save_init()?;

        let mut criu = self.start(config, &joining)?;
        self.place(criu.pid, plan)?;
        let signals = if options.detach { None } else { Some(take_signals()?) };
        check_abilities(&mut criu, options, config)?;
        let directories = directories.seen_by(criu.pid)?;
        let mut message = self.message(options, &directories, config, &joining)?;
        message.cg_root = cgroup_roots(criu.pid)?;
        let request = Request { kind: Kind::Restore as i32, options: Some(message), ..Request::default() };
        criu.ask(&request, Some(&directories), |notify, passed| {
            self.notified(notify, passed, config, console.as_ref())
        })?;
        criu.finish();
        match self.child {
            Some(_) => Ok(signals),
            None => Err(Error::new("criu has restored nothing")),
        }
    }

    /// Starts CRIU where the container will be.
    fn start(&self, config: &Config, joining: &[Joining]) -> Result<Criu> {
        let cgroup = self.container.state.cgroup.descriptor()?;
        let given = joining.iter().filter_map(|one| match one {
            Joining::Given(_, fd) => Some(fd.as_fd()),
            Joining::Joined(_) => None,
        });
        let place = Place {
            new: CloneFlags::CLONE_NEWNS,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            given: given.collect(),
            streams: true,
        };
        Criu::start(&place, || external::prepare_root(config))
    }

    /// Puts CRIU where those that it restores are to be: they are where it is.
    fn place(&mut self, criu: Pid, plan: &Plan) -> Result<()> {
        let container = &mut self.container;
        container.make_unit(plan.cgroup.as_ref(), criu)?;
        container.state.cgroup.enter(criu).map_err(|error| error.at(Pointer::to("/linux/cgroupsPath")))?;
        container.make_resctrl(plan.resctrl.as_ref(), criu)
    }

    fn message(
        &self,
        options: &Options,
        directories: &Directories,
        config: &Config,
        joining: &[Joining],
    ) -> Result<message::Options> {
        let mut message = message::Options {
            root: Some(config.rootfs().to_string_lossy().into_owned()),
            rst_sibling: Some(true),
            evasive_devices: Some(true),
            ext_mnt: external::at_restore(config, &self.container.state.cgroup),
            inherit_fd: inherited_pipes(&descriptors(&options.criu.image_path)?),
            lsm_profile: options.lsm_profile.clone(),
            lsm_mount_context: options.lsm_mount_context.clone(),
            ..options.criu.message(directories, &self.container.state.annotations)
        };
        for one in joining {
            match one {
                Joining::Joined(pair) => message.join_ns.push(pair.clone()),
                Joining::Given(key, fd) => {
                    message.inherit_fd.push(InheritFd { key: (*key).into(), fd: fd.as_raw_fd() });
                }
            }
        }
        Ok(message)
    }

    fn notified(
        &mut self,
        notify: &Notify,
        passed: Option<OwnedFd>,
        config: &Config,
        console: Option<&OwnedFd>,
    ) -> Result<()> {
        match notify.script() {
            // There are namespaces, and nothing in them.
            "setup-namespaces" => {
                let state =
                    self.container.state.for_hooks(Status::Creating, Some(Pid::from_raw(notify.pid())));
                for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                    hooks::run(kind, kind.of(config.spec.hooks()), &state, &config.bundle)?;
                }
                Ok(())
            }
            "orphan-pts-master" => match (console, passed) {
                (Some(console), Some(master)) => {
                    socket::send(console.as_fd(), b"/dev/ptmx", Some(master.as_fd()))
                        .doing(|| "cannot send the terminal to the console socket".into())
                }
                (None, master) => {
                    self.master = master;
                    Ok(())
                }
                (Some(_), None) => Err(Error::new("criu sent no terminal")),
            },
            "post-restore" => self.made(Pid::from_raw(notify.pid())),
            _ => Ok(()),
        }
    }

    /// The processes are there, and about to go on.
    fn made(&mut self, pid: Pid) -> Result<()> {
        self.child = Some(Child { pid, pidfd: pidfd_open(pid)? });
        let state = &mut self.container.state;
        state.init = Init::now(pid);
        // CRIU gives every container a time namespace, which `exec` is to join then.
        if Path::new("/proc/self/ns/time").exists()
            && !is_own(CLONE_NEWTIME, namespaces::open(pid, CLONE_NEWTIME)?.as_fd())?
        {
            state.namespaces |= CLONE_NEWTIME.bits();
        }
        self.container.save_state()?;
        self.container.save_init()
    }

    /// What is left to do when the container runs.
    fn hand_over(&mut self, options: &Options, signals: Option<SignalFd>) -> Result<Option<Foreground>> {
        let child = self.child.as_ref().ok_or_else(|| Error::new("criu has restored nothing"))?;
        let terminal = match self.master.take() {
            Some(master) if signals.is_some() => {
                let (theirs, ours) = terminal_pair()?;
                socket::send(theirs.as_fd(), b"/dev/ptmx", Some(master.as_fd()))?;
                Some(ours)
            }
            _ => None,
        };
        let stay = signals.map(|signals| Foreground::prepare(signals, terminal)).transpose()?;
        if let Some(path) = &options.pid_file {
            write_pid_file(path, child.pid)?;
        }
        self.container.directory.unlock()?;
        Ok(stay)
    }

    /// Takes back what was made. The error that led here is the one to report.
    fn undo(&mut self) {
        if let Some(child) = &self.child {
            let _ = child.kill();
        }
        // What CRIU hadn't said yet that it had made.
        let _ = self.container.state.cgroup.signal_all(libc::SIGKILL);
        delete::clean_up(&self.container, self.child.is_some());
    }
}

/// What is asked for must be what this CRIU can do.
fn check_abilities(criu: &mut Criu, options: &Options, config: &Config) -> Result<()> {
    criu.check_version(0, "damda restore")?;
    check_external_namespaces(criu, config)?;
    for (name, set) in [
        ("--lsm-profile", options.lsm_profile.is_some()),
        ("--lsm-mount-context", options.lsm_mount_context.is_some()),
    ] {
        if set {
            criu.check_version(31_600, name)?;
        }
    }
    Ok(())
}

/// What the standard streams were at the checkpoint; an image without it had none to put in place of.
fn descriptors(images: &Path) -> Result<Option<Vec<String>>> {
    let path = images.join(DESCRIPTORS);
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).call(|| format!("read({path:?})"))?,
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::new(format!("{path:?} is damaged: {error}"))),
    }
}

/// Where the container's cgroups are now, by controller, whatever they were called at the checkpoint.
fn cgroup_roots(criu: Pid) -> Result<Vec<CgroupRoot>> {
    let text = file::read(Path::new(&format!("/proc/{criu}/cgroup")))?;
    Ok(roots(&text))
}

fn roots(text: &str) -> Vec<CgroupRoot> {
    let of_one = |(controllers, path): (&str, &str)| -> Vec<_> {
        let root = |controller: &str| CgroupRoot { controllers: Some(controller.into()), path: path.into() };
        controllers.split(',').map(root).collect()
    };
    memberships(text).flat_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_its_root() {
        let text = "3:cpu,cpuacct:/a\n2:name=systemd:/b:c\n0::/d\n";
        let seen: Vec<_> =
            roots(text).into_iter().map(|root| (root.controllers.unwrap_or_default(), root.path)).collect();
        let expected = [("cpu", "/a"), ("cpuacct", "/a"), ("name=systemd", "/b:c"), ("", "/d")];
        assert_eq!(seen, expected.map(|(controller, path)| (controller.to_owned(), path.to_owned())));
    }

    #[test]
    fn an_image_without_descriptors_has_none() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(descriptors(dir.path()), Ok(None));
        std::fs::write(dir.path().join(DESCRIPTORS), r#"["pipe:[1]","",""]"#).expect("write");
        let names = descriptors(dir.path()).expect("it parses").expect("there are some");
        assert_eq!(inherited_pipes(&Some(names)).len(), 1);
        std::fs::write(dir.path().join(DESCRIPTORS), "x").expect("write");
        assert!(descriptors(dir.path()).is_err());
    }
}
