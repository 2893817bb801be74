//! `process.args` and `process.env`.

use super::changes::Changes;
use crate::error::{Error, Result};
use oci_spec::image::Config;

/// Docker's, where the image has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is run: the image's entrypoint and then its cmd, or what is given instead. As `docker run` and
/// `podman run` do: a command takes cmd's place only, an entrypoint that of both.
pub fn args(config: &Config, changes: &Changes) -> Result<Vec<String>> {
    if !changes.args.is_empty() {
        return match changes.command.is_empty() {
            true => not_empty(changes.args.clone()),
            false => Err(Error::new("--args: not together with a command after --")),
        };
    }
    let mut args = match &changes.entrypoint {
        Some(program) => Some(program.clone()).into_iter().filter(|program| !program.is_empty()).collect(),
        None => config.entrypoint().clone().unwrap_or_default(),
    };
    match (changes.command.is_empty(), &changes.entrypoint) {
        (false, _) => args.extend(changes.command.iter().cloned()),
        (true, None) => args.extend(config.cmd().iter().flatten().cloned()),
        (true, Some(_)) => {}
    }
    not_empty(args)
}

fn not_empty(args: Vec<String>) -> Result<Vec<String>> {
    match args.first().map(String::as_str) {
        None => Err(Error::new("the image doesn't say what to run")
            .hint("say it after --, as in `damda bundle IMAGE DIR -- CMD`")),
        Some("") => Err(Error::new("the program to run has an empty name")),
        Some(_) => Ok(args),
    }
}

/// The environment, and in words what was left out of the image's. Nothing of the image's is changed but by
/// `--env`; what it doesn't set of PATH, HOSTNAME, TERM and HOME is as under Docker, where `home` is that of
/// the image's user.
pub fn env(
    config: &Config,
    changes: &Changes,
    hostname: Option<&str>,
    home: &str,
) -> Result<(Vec<String>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut env: Vec<String> = Vec::new();
    for entry in config.env().iter().flatten() {
        match name(entry) {
            Some(_) => env.push(entry.clone()),
            None => notes.push(format!("the image's Env: {entry:?} is not of the form NAME=VALUE: left out")),
        }
    }
    for change in &changes.env {
        let entry = match (name(change), std::env::var(change)) {
            (Some(_), _) => change.clone(),
            (None, Ok(value)) => format!("{change}={value}"),
            (None, Err(std::env::VarError::NotPresent)) => continue, // as Docker
            (None, Err(std::env::VarError::NotUnicode(_))) => {
                return Err(Error::new(format!("--env {change}: its value is not UTF-8")));
            }
        };
        match env.iter_mut().find(|other| name(other) == name(&entry)) {
            Some(other) => *other = entry,
            None => env.push(entry),
        }
    }
    let has = |env: &[String], key| env.iter().any(|entry| name(entry) == Some(key));
    let hostname = hostname.map(|hostname| ("HOSTNAME", hostname));
    let term = changes.tty.then_some(("TERM", "xterm"));
    let mut first = Vec::new();
    for (key, value) in [Some(("PATH", PATH)), hostname, term, Some(("HOME", home))].into_iter().flatten() {
        if !has(&env, key) {
            first.push(format!("{key}={value}"));
        }
    }
    first.append(&mut env);
    Ok((first, notes))
}

/// What a variable is called; None if it has no name or no value.
fn name(entry: &str) -> Option<&str> {
    entry.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).expect("it parses")
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_is_run() {
        let config = config(r#"{"Entrypoint": ["e", "1"], "Cmd": ["c", "2"]}"#);
        let run = |given: &[&str], entrypoint: Option<&str>, command: &[&str]| {
            let entrypoint = entrypoint.map(str::to_owned);
            let changes =
                Changes { args: words(given), entrypoint, command: words(command), ..Changes::default() };
            args(&config, &changes).map(|args| args.join(" ")).map_err(|error| error.to_string())
        };
        assert_eq!(run(&[], None, &[]), Ok("e 1 c 2".into()));
        assert_eq!(run(&[], None, &["x", "-y"]), Ok("e 1 x -y".into()));
        assert_eq!(run(&[], Some("p"), &[]), Ok("p".into()));
        assert_eq!(run(&[], Some("p"), &["x"]), Ok("p x".into()));
        assert_eq!(run(&[], Some(""), &["x"]), Ok("x".into()));
        assert_eq!(run(&["a", "b"], None, &[]), Ok("a b".into()));
        assert!(run(&[], Some(""), &[]).is_err_and(|error| error.contains("-- CMD")));
        assert!(run(&["a"], None, &["x"]).is_err_and(|error| error.starts_with("--args: ")));
        assert!(run(&[""], None, &[]).is_err());
        assert!(args(&Config::default(), &Changes::default()).is_err());
    }

    #[test]
    fn environment() {
        let config = config(r#"{"Env": ["A=1", "TERM=dumb", "A=1", "B", "=x", "LAST=="]}"#);
        let changes = Changes {
            env: words(&["LAST=", "NEW=a=b", "DAMDA_IS_NOT_SET", "CARGO_MANIFEST_DIR"]),
            tty: true,
            ..Changes::default()
        };
        let (env, notes) = env(&config, &changes, Some("h"), "/root").expect("an environment");
        let here = format!("CARGO_MANIFEST_DIR={}", env!("CARGO_MANIFEST_DIR"));
        let path = format!("PATH={PATH}");
        let expected =
            [&path, "HOSTNAME=h", "HOME=/root", "A=1", "TERM=dumb", "A=1", "LAST=", "NEW=a=b", &here];
        assert_eq!(env, expected);
        assert_eq!(notes.len(), 2, "{notes:?}");
    }
}
