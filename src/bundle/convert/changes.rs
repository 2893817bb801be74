//! What people want to be other than the image has it.

use super::capabilities;
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;

// Their values are checked when they are parsed, as far as the text tells; what needs the image or the host
// is checked by `convert`, whose errors name the option. (Documentation of a flattened struct would become
// that of the whole command.)
#[derive(Debug, Clone, Default, Args)]
#[allow(missing_docs)] // the comments are what --help says
pub struct Changes {
    /// what is run, instead of all that the image says; an option for each word
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// the image's entrypoint instead; its own arguments aren't used then ("": none)
    #[arg(long, value_name = "PROGRAM", conflicts_with = "args")]
    pub entrypoint: Option<String>,
    /// What comes after `--`: instead of the image's cmd, after its entrypoint.
    #[arg(skip)]
    pub command: Vec<String>,
    /// set an environment variable, NAME=VALUE; NAME alone: to what it is here
    #[arg(short, long, value_name = "VARIABLE", value_parser = variable)]
    pub env: Vec<String>,
    /// run as this user: USER[:GROUP], names of the image or numbers
    #[arg(short, long, value_parser = user, allow_hyphen_values = true)]
    pub user: Option<String>,
    /// working directory in the container
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub cwd: Option<String>,
    /// mount a directory or file of the host; options: ro, rw, nosuid, nodev, noexec, rslave, …
    #[arg(long, value_name = "SOURCE:DESTINATION[:OPTIONS]")]
    pub volume: Vec<Volume>,
    /// what the image's volumes are: a tmpfs each, with what the image has there, or nothing special
    #[arg(long, value_enum, value_name = "KIND", default_value = "tmpfs")]
    pub image_volume: ImageVolume,
    /// give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// name of the host as the container sees it
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,
    /// mount the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// memory, in bytes, or with a unit: 512m, 1g
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// CPU time, in CPUs: 1.5
    #[arg(long, value_name = "NUMBER", value_parser = cpus, allow_hyphen_values = true)]
    pub cpus: Option<Cpus>,
    /// tasks; -1: no limit
    #[arg(long, value_name = "N", value_parser = pids, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::parse)]
    pub cap_add: Vec<capabilities::Named>,
    /// take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::parse)]
    pub cap_drop: Vec<capabilities::Named>,
    /// none: one with nothing but lo; host: the host's; or that of a file, such as /run/netns/NAME
    #[arg(long, value_name = "host|none|PATH", default_value = "none")]
    pub network: Network,
    /// as for an ordinary user, also for root: in a user namespace with his subordinate ids
    #[arg(long)]
    pub rootless: bool,
}

/// `--volume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// A path on the host, absolute.
    pub source: String,
    /// A path in the container, absolute and without `..`.
    pub destination: String,
    /// Of the runtime specification's, with those that Docker has by default.
    pub options: Vec<String>,
    /// Whether the contents were to be labelled anew for SELinux (z, Z).
    pub relabel: bool,
}

/// `--image-volume`: a tmpfs that begins with what the image has there, or a part of the root file system as
/// any other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)] // --help would print it at length
pub enum ImageVolume {
    #[default]
    Tmpfs,
    Ignore,
}

/// `--network`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// A new namespace.
    #[default]
    None,
    /// No namespace.
    Host,
    /// An existing one.
    Path(PathBuf),
}

/// `--cpus`: microseconds in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub i64);

/// The period of `Cpus`, in microseconds: the kernel's default.
pub const PERIOD: u32 = 100_000;

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Network::None),
            "host" => Ok(Network::Host),
            path if path.starts_with('/') => Ok(Network::Path(path.into())),
            _ => Err("neither host nor none nor an absolute path".into()),
        }
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let (source, destination, options) = match parts[..] {
            [source, destination] => (source, destination, ""),
            [source, destination, options] => (source, destination, options),
            _ => return Err("not of the form SOURCE:DESTINATION[:OPTIONS]".into()),
        };
        if !source.starts_with('/') {
            return Err(format!(
                "the source {source:?} is not an absolute path, and there are no named volumes"
            ));
        }
        destination_within(destination)
            .map_err(|error| format!("the destination {destination:?} {error}"))?;
        let mut volume = Volume {
            source: source.into(),
            destination: destination.into(),
            options: vec![],
            relabel: false,
        };
        volume.read_options(options)?;
        Ok(volume)
    }
}

impl Volume {
    /// Docker's defaults: all that is mounted below the source comes along, and neither side sees what the
    /// other mounts later. `ro` holds for all that is below, too, as there.
    fn read_options(&mut self, text: &str) -> Result<(), String> {
        const FLAGS: [&str; 11] = [
            "rw",
            "rro",
            "nosuid",
            "suid",
            "nodev",
            "dev",
            "noexec",
            "exec",
            "noatime",
            "relatime",
            "nosymfollow",
        ];
        const PROPAGATION: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
        let (mut bind, mut propagation, mut read_only) = ("rbind", "rprivate", false);
        let mut flags = Vec::new();
        for option in text.split(',').filter(|_| !text.is_empty()) {
            match option {
                "bind" | "rbind" => bind = if option == "bind" { "bind" } else { "rbind" },
                "ro" => read_only = true,
                "z" | "Z" => self.relabel = true,
                _ if FLAGS.contains(&option) => flags.push(option.to_owned()),
                _ => {
                    let known = PROPAGATION.iter().find(|known| **known == option);
                    propagation = known.ok_or_else(|| format!("unknown option {option:?}"))?;
                }
            }
        }
        if read_only && flags.iter().any(|flag| flag == "rw") {
            return Err("both ro and rw".into());
        }
        self.options = vec![bind.into(), propagation.into()];
        self.options.extend(read_only.then(|| if bind == "rbind" { "rro" } else { "ro" }.into()));
        self.options.append(&mut flags);
        Ok(())
    }
}

/// Whether something can be mounted there: an absolute path other than the root, that goes nowhere up.
pub fn destination_within(path: &str) -> Result<(), &'static str> {
    let mut names = path.split('/').filter(|name| !name.is_empty() && *name != ".");
    if !path.starts_with('/') {
        return Err("is not an absolute path");
    }
    if path.contains('\0') {
        return Err("contains a NUL character");
    }
    match names.next() {
        None => Err("is the root itself"),
        Some("..") => Err("contains .."),
        Some(_) if names.any(|name| name == "..") => Err("contains .."),
        Some(_) => Ok(()),
    }
}

fn absolute(text: &str) -> Result<String, String> {
    match Path::new(text).is_absolute() {
        true => Ok(text.into()),
        false => Err("not an absolute path".into()),
    }
}

/// Who it is, only the image knows.
fn user(text: &str) -> Result<String, String> {
    match text {
        "" => Err("it is empty".into()),
        _ => Ok(text.into()),
    }
}

fn variable(text: &str) -> Result<String, String> {
    match text.split('=').next() {
        None | Some("") => Err("the variable has no name".into()),
        Some(_) => Ok(text.into()),
    }
}

/// sethostname(2) takes anything; what is no name of a host confuses whoever reads it.
fn hostname(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match text.len() {
        1..=64 if text.bytes().all(good) => Ok(text.into()),
        1..=64 => Err("a name has letters, digits, - and .".into()),
        _ => Err("a name has 1 to 64 characters".into()),
    }
}

fn bytes(text: &str) -> Result<i64, String> {
    let form = "not a number of bytes, such as 64000000, 512m or 1g";
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(form.into()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(form.into());
    }
    let number = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match number {
        Some(0) => Err("nothing runs without memory".into()),
        Some(number) => Ok(number),
        None => Err("more than the kernel can count".into()),
    }
}

fn cpus(text: &str) -> Result<Cpus, String> {
    const LEAST: i64 = 1000; // the kernel's least quota
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !number(whole) || !number(fraction) || text.trim_matches('.').is_empty() {
        return Err("not a number of CPUs, such as 2 or 0.5".into());
    }
    let micro: String = fraction.chars().chain(std::iter::repeat('0')).take(5).collect();
    let quota = format!("{whole}{micro}").parse().map_err(|_| "more than there can be".to_owned())?;
    match quota {
        LEAST.. => Ok(Cpus(quota)),
        _ => Err("less than the kernel's least, 0.01".into()),
    }
}

fn pids(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(limit @ (-1 | 1..)) => Ok(limit),
        _ => Err("neither a number from 1 on nor -1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        changes: Changes,
    }

    fn parse(words: &[&str]) -> Result<Changes, String> {
        let parsed = Line::try_parse_from([&["bundle"], words].concat());
        parsed.map(|line| line.changes).map_err(|error| error.to_string())
    }

    #[test]
    fn values() {
        let changes = parse(&[
            "--args=sh",
            "--args",
            "-c",
            "--args",
            "--help",
            "--env",
            "A=b=c",
            "-e",
            "HOME",
            "--memory",
            "512m",
            "--cpus",
            "1.5",
            "--pids-limit",
            "-1",
            "--cap-add",
            "net_admin",
            "--cap-drop",
            "ALL",
            "--network",
            "/run/netns/a",
            "--volume",
            "/a:/b:ro",
            "--volume",
            "/c:/d",
            "-u",
            "1:2",
            "--tty",
            "--hostname",
            "a-1.b",
        ])
        .expect("it parses");
        assert_eq!(changes.args, ["sh", "-c", "--help"]);
        assert_eq!(changes.env, ["A=b=c", "HOME"]);
        assert_eq!(changes.memory, Some(512 << 20));
        assert_eq!(changes.cpus, Some(Cpus(150_000)));
        assert_eq!(changes.pids_limit, Some(-1));
        assert_eq!(changes.network, Network::Path("/run/netns/a".into()));
        assert_eq!(changes.volume.len(), 2);
        assert_eq!(parse(&[]).expect("it parses").network, Network::None);
    }

    #[test]
    fn errors_name_the_option() {
        let bad: [(&[&str], &str); 15] = [
            (&["--user", ""], "--user <USER>': it is empty"),
            (&["--memory", "1x"], "--memory <BYTES>': not a number of bytes"),
            (&["--memory", "9999999t"], "more than the kernel can count"),
            (&["--memory", "0"], "nothing runs without memory"),
            (&["--cpus", "0.001"], "--cpus <NUMBER>': less than"),
            (&["--cpus", "-1"], "--cpus"),
            (&["--cpus", "."], "not a number of CPUs"),
            (&["--pids-limit", "0"], "--pids-limit <N>': neither"),
            (&["--cap-add", "CAP_FLY"], "--cap-add <CAPABILITY>': there is no capability CAP_FLY"),
            (&["--network", "bridge"], "--network <host|none|PATH>': neither host nor none"),
            (&["--env", "=x"], "the variable has no name"),
            (&["--cwd", "x"], "--cwd <DIR>': not an absolute path"),
            (&["--hostname", "a/b"], "a name has letters"),
            (&["--volume", "data:/x"], "there are no named volumes"),
            (&["--entrypoint", "a", "--args", "b"], "cannot be used with"),
        ];
        for (words, expected) in bad {
            let error = parse(words).expect_err("it is wrong");
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }

    #[test]
    fn volumes() {
        let options = |text: &str| text.parse::<Volume>().map(|volume| volume.options.join(","));
        assert_eq!(options("/a:/b"), Ok("rbind,rprivate".into()));
        assert_eq!(options("/a:/b:ro"), Ok("rbind,rprivate,rro".into()));
        assert_eq!(options("/a:/b:bind,ro,nosuid"), Ok("bind,rprivate,ro,nosuid".into()));
        assert_eq!(options("/a:/b:rw,rslave,z"), Ok("rbind,rslave,rw".into()));
        for bad in [
            "/a",
            "/a:b",
            "/a:/b:c:d",
            "/a:/b:ro,rw",
            "/a:/b:fast",
            "/a:/b:,",
            "a:/b",
            "./a:/b",
            "/a:/",
            "/a:/../b",
        ] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_are_exact() {
        let quota = |text: &str| cpus(text).map(|cpus| cpus.0);
        assert_eq!(quota("0.1"), Ok(10_000));
        assert_eq!(quota("2"), Ok(200_000));
        assert_eq!(quota(".5"), Ok(50_000));
        assert_eq!(quota("1.000019"), Ok(100_001));
        assert!(quota("99999999999999999999").is_err());
        for bad in ["nan", "1e3", "+1", "", "1.2.3"] {
            assert!(quota(bad).is_err(), "{bad}");
        }
    }
}
