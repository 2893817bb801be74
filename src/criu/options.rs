//! From what the command line says to what CRIU is told.

use super::message::{self, CgroupsMode};
use crate::config::list;
use crate::error::{Context, Error, Result};
use crate::plan::Join;
use crate::steps::namespaces::file_name;
use crate::sys::{Call, file};
use nix::fcntl::{AT_FDCWD, OFlag, readlink};
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The options that `checkpoint` and `restore` have in common.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // each is the option of its name, described in cli/arguments.rs
pub struct Options {
    pub image_path: PathBuf,
    pub work_path: Option<PathBuf>,
    pub tcp_established: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub manage_cgroups_mode: CgroupsMode,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
}

/// The directories that CRIU reads and writes.
pub struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
    /// Where it logs: the work directory, or that of the images.
    logs: PathBuf,
    log_file: &'static str,
}

impl Directories {
    /// Those of a checkpoint that is to be made.
    pub fn make(options: &Options) -> Result<Self> {
        make(&options.image_path).doing(|| "cannot make the directory of the images".into())?;
        Self::open(options, "dump.log")
    }

    /// Those of a checkpoint that is there.
    pub fn find(options: &Options) -> Result<Self> {
        // Without it CRIU would say so in a log that nobody expects there.
        let inventory = options.image_path.join("inventory.img");
        nix::sys::stat::stat(&inventory)
            .call(|| format!("stat({inventory:?})"))
            .doing(|| format!("no checkpoint at {:?}", options.image_path))?;
        Self::open(options, "restore.log")
    }

    fn open(options: &Options, log_file: &'static str) -> Result<Self> {
        let open = |path: &Path| file::open(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let images = open(&options.image_path).doing(|| "cannot open the directory of the images".into())?;
        let work = options.work_path.as_ref().map(|path| {
            make(path).doing(|| "cannot make the work directory".into())?;
            open(path).doing(|| "cannot open the work directory".into())
        });
        let logs = options.work_path.as_ref().unwrap_or(&options.image_path).clone();
        Ok(Directories { images, work: work.transpose()?, logs, log_file })
    }

    /// The same ones in the mount namespace of process `pid`: CRIU mounts in its working directory,
    /// which the kernel allows only in a mount of its own namespace.
    pub fn seen_by(&self, pid: Pid) -> Result<Self> {
        let open = |fd: &OwnedFd| -> Result<OwnedFd> {
            let link = file::through_proc(fd.as_fd());
            let path = readlink(&link).call(|| format!("readlink({link:?})"))?;
            let mut there = std::ffi::OsString::from(format!("/proc/{pid}/root"));
            there.push(path);
            file::open(AT_FDCWD, Path::new(&there), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
                .doing(|| "cannot open CRIU's directories".into())
        };
        Ok(Directories {
            images: open(&self.images)?,
            work: self.work.as_ref().map(open).transpose()?,
            logs: self.logs.clone(),
            log_file: self.log_file,
        })
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.logs.join(self.log_file)
    }
}

/// Others may go through it, and see nothing: a user of a user namespace looks there for files that are
/// missing. CRIU's files are root's.
fn make(path: &Path) -> crate::sys::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o711).create(path).call(|| format!("mkdir({path:?})"))
}

impl Options {
    /// What CRIU is told in either case.
    pub fn message(
        &self,
        directories: &Directories,
        annotations: &BTreeMap<String, String>,
    ) -> message::Options {
        message::Options {
            images_dir_fd: directories.images.as_raw_fd(),
            work_dir_fd: directories.work.as_ref().map(AsRawFd::as_raw_fd),
            log_level: Some(4),
            log_file: Some(directories.log_file.into()),
            notify_scripts: Some(true),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(self.manage_cgroups_mode as i32),
            tcp_established: Some(self.tcp_established),
            ext_unix_sk: Some(self.ext_unix_sk),
            shell_job: Some(self.shell_job),
            file_locks: Some(self.file_locks),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            orphan_pts_master: Some(true),
            // Network devices are the engine's.
            empty_ns: Some(CloneFlags::CLONE_NEWNET.bits() as u32),
            config_file: config_file(annotations, Path::exists),
            ..message::Options::default()
        }
    }
}

/// Damda's own configuration file for CRIU, or runc's, whose place it takes.
const CONFIG_FILES: [&str; 2] = ["/etc/criu/damda.conf", "/etc/criu/runc.conf"];

/// The configuration file that CRIU reads after its own: the container's, which its annotation may say
/// is none, or one for all. CRIU doesn't mind if it is missing.
fn config_file(annotations: &BTreeMap<String, String>, exists: impl Fn(&Path) -> bool) -> Option<String> {
    match annotations.get("org.criu.config") {
        Some(path) => Some(path.clone()).filter(|path| !path.is_empty()),
        None => CONFIG_FILES.into_iter().find(|path| exists(Path::new(path))).map(str::to_owned),
    }
}

/// `--page-server`: ADDRESS:PORT.
pub fn page_server(text: &str) -> Result<message::PageServer> {
    let wrong = || Error::new("Use --page-server ADDRESS:PORT to specify page server");
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    if address.is_empty() || port.is_empty() || bare.is_none() && address.contains(':') {
        return Err(wrong());
    }
    let port: u16 = port.parse().map_err(|_| Error::new(format!("Invalid port number: {port:?}")))?;
    Ok(message::PageServer { address: Some(address.into()), port: Some(port.into()) })
}

/// `--parent-path` must be relative to the images, since CRIU makes it a link in them.
pub fn check_parent_path(images: &Path, parent: &Path) -> Result<()> {
    if parent.is_absolute() {
        return Err(Error::new("--parent-path must be relative").hint("it is relative to --image-path"));
    }
    let path = images.join(parent);
    let stat = nix::sys::stat::stat(&path).call(|| format!("stat({path:?})"));
    let stat = stat.doing(|| "invalid --parent-path".into())?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Ok(()),
        _ => Err(Error::new(format!("invalid --parent-path: {path:?}: not a directory"))),
    }
}

/// CRIU's name of a type of namespace, which is that in /proc, and the key of one from outside.
pub fn namespace(kind: CloneFlags) -> Option<(&'static str, Option<&'static str>)> {
    let key = match kind {
        CloneFlags::CLONE_NEWNET => Some("extRootNetNS"),
        CloneFlags::CLONE_NEWPID => Some("extRootPidNS"),
        // It joins none.
        CloneFlags::CLONE_NEWCGROUP => return None,
        _ => None,
    };
    Some((file_name(kind)?, key))
}

/// The joined namespaces that aren't put into the image: `net[INODE]:KEY`.
pub fn external_namespaces(joined: &[Join]) -> Result<Vec<String>> {
    let mut external = Vec::new();
    for join in joined {
        let Some((name, Some(key))) = namespace(join.kind) else { continue };
        let stat = nix::sys::stat::stat(&join.path).call(|| format!("stat({:?})", join.path)).at(&join.at)?;
        external.push(format!("{name}[{}]:{key}", stat.st_ino));
    }
    Ok(external)
}

/// What `restore` does about a namespace that is joined.
#[derive(Debug)]
pub enum Joining {
    /// CRIU is given it, for what it has left out of the image under this key.
    Given(&'static str, OwnedFd),
    /// CRIU joins it.
    Joined(message::Pair),
}

/// The namespaces that a restored container joins.
pub fn joining(joined: &[Join]) -> Result<Vec<Joining>> {
    let one = |join: &Join| {
        let missing = || Error::new("CRIU cannot restore into a namespace of this type").at(join.at.clone());
        match namespace(join.kind).ok_or_else(missing)? {
            (_, Some(key)) => {
                let fd = file::open(AT_FDCWD, &join.path, OFlag::O_RDONLY).at(&join.at)?;
                Ok(Joining::Given(key, fd))
            }
            (name, None) => {
                let value = join.path.to_string_lossy().into_owned();
                Ok(Joining::Joined(message::Pair { key: name.into(), value }))
            }
        }
    };
    joined.iter().map(one).collect()
}

/// The file in the images that says what the standard streams were, by what /proc calls them.
pub const DESCRIPTORS: &str = "descriptors.json";

/// The streams that CRIU is to put this process's in place of: those that were pipes.
pub fn inherited_pipes(descriptors: &Option<Vec<String>>) -> Vec<message::InheritFd> {
    // An image names no more than the standard streams.
    let streams = list(descriptors).iter().zip(0..3);
    let pipes = streams.filter(|(name, _)| name.contains("pipe:"));
    pipes.map(|(name, fd)| message::InheritFd { key: name.clone(), fd }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_files() {
        let annotated = |value: &str| BTreeMap::from([("org.criu.config".to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        assert_eq!(config_file(&annotated(""), |_| true), None);
        assert_eq!(config_file(&annotated("/x"), |_| false).as_deref(), Some("/x"));
        assert_eq!(config_file(&none, |_| false), None);
        assert_eq!(config_file(&none, |_| true).as_deref(), Some("/etc/criu/damda.conf"));
        let only_runcs = |path: &Path| path.ends_with("runc.conf");
        assert_eq!(config_file(&none, only_runcs).as_deref(), Some("/etc/criu/runc.conf"));
    }

    #[test]
    fn page_servers() {
        let read = |text| page_server(text).map(|server| (server.address().to_owned(), server.port()));
        assert_eq!(read("0.0.0.0:27"), Ok(("0.0.0.0".into(), 27)));
        assert_eq!(read("[::1]:27"), Ok(("::1".into(), 27)));
        for bad in ["", "host", "host:", ":27", "::1:27"] {
            assert!(read(bad).is_err_and(|error| error.to_string().contains("ADDRESS:PORT")), "{bad}");
        }
        assert!(read("host:99999").is_err_and(|error| error.to_string().contains("Invalid port number")));
    }

    #[test]
    fn parents_are_beside_the_images() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("parent")).expect("mkdir");
        std::fs::write(dir.path().join("file"), "").expect("write");
        let images = dir.path().join("images");
        std::fs::create_dir(&images).expect("mkdir");
        assert_eq!(check_parent_path(&images, Path::new("../parent")), Ok(()));
        for bad in [dir.path().join("parent").as_path(), Path::new("../missing"), Path::new("../file")] {
            let error = check_parent_path(&images, bad).expect_err("refused");
            assert!(error.to_string().contains("--parent-path"), "{error}");
        }
    }

    #[test]
    fn only_pipes_are_inherited() {
        let names = ["/dev/null", "pipe:[17]", "/dev/pts/0"].map(str::to_owned).to_vec();
        let expected = message::InheritFd { key: "pipe:[17]".into(), fd: 1 };
        assert_eq!(inherited_pipes(&Some(names)), [expected]);
        assert_eq!(inherited_pipes(&None), []);
    }
}
