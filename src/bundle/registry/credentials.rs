//! Where logins are kept: the files of Podman and Docker, and Docker's credential helpers.
//!
//! The documentation of both: containers-auth.json(5), and `docker login`.

use crate::error::{Context, Error, Result};
use crate::reference::Reference;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Of a file or a helper's answer, in bytes.
const MOST: u64 = 1024 * 1024;
/// A helper may have to ask its user, or a server.
const HELPER_TIME: Duration = Duration::from_secs(60);
/// The user that a helper names when the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a registry knows somebody by. Without `Debug`, so that no message has it by accident.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password.
    Password(String, String),
    /// A token of the registry's token service, for which that one gives others.
    Identity(String),
}

/// The files that are looked into, the first with a login wins.
pub struct Places {
    files: Vec<PathBuf>,
    /// The user named the file: then it has to be there.
    named: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthFile {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Places {
    /// The named file, or the one of `$REGISTRY_AUTH_FILE`: that one alone, as with Podman. Otherwise
    /// Podman's and Docker's own.
    pub fn new(named: Option<&Path>) -> Places {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = named.map(PathBuf::from).or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Places { files: vec![file], named: true };
        }
        let runtime = variable("XDG_RUNTIME_DIR").map(|runtime| runtime.join("containers"));
        let podman = runtime.unwrap_or_else(|| format!("/run/containers/{}", nix::unistd::getuid()).into());
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
        let docker = docker.map(|docker| docker.join("config.json"));
        Places { files: [podman.join("auth.json")].into_iter().chain(docker).collect(), named: false }
    }

    /// Whether the user named the file.
    pub fn named(&self) -> bool {
        self.named
    }

    /// Looks for the login to a registry; one for a part of its names goes before one for all of it.
    /// `host` is the registry's name, not that of its API.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        for file in &self.files {
            let Some(content) = self.read(file)? else { continue };
            if let Some(found) = in_file(&content, host, repository).doing(|| file.display().to_string())? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read(&self, path: &Path) -> Result<Option<AuthFile>> {
        let what = || format!("file of logins {}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            // The runtime directory may be another user's, as under sudo or in a user namespace.
            Err(error) if !self.named && is_absence(error.kind()) => return Ok(None),
            Err(error) => return Err(Error::from(error).prefix(what())),
        };
        let mut bytes = Vec::new();
        file.take(MOST + 1).read_to_end(&mut bytes).doing(what)?;
        if bytes.len() as u64 > MOST {
            return Err(Error::new(format!("larger than {MOST} bytes")).prefix(what()));
        }
        // serde_json's messages quote what they don't like, and that may be a password.
        let parsed = serde_json::from_slice(&bytes);
        let place = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        parsed.map(Some).map_err(|error| {
            Error::new(format!("isn't JSON of the right form: {}", place(error))).prefix(what())
        })
    }
}

fn is_absence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied)
}

fn in_file(content: &AuthFile, host: &str, repository: &str) -> Result<Option<Credential>> {
    let keys = Reference::credential_keys(host);
    if let Some(name) = keys.iter().find_map(|key| content.helpers.get(key)) {
        return ask(name, &keys[0]);
    }
    if let Some(found) = in_auths(&content.auths, &keys, repository)? {
        return Ok(Some(found));
    }
    if content.store.is_empty() { Ok(None) } else { ask(&content.store, &keys[0]) }
}

/// The longest key that is the host, or the host and the first parts of the path.
fn in_auths(auths: &BTreeMap<String, Auth>, keys: &[String], repository: &str) -> Result<Option<Credential>> {
    let mut path = Some(repository);
    loop {
        for (key, auth) in auths {
            let (host, part) = place_of(key);
            let same_host = keys.iter().any(|key| place_of(key).0.eq_ignore_ascii_case(host));
            if same_host
                && part == path.unwrap_or("")
                && let Some(found) = credential(auth).doing(|| format!("login for {key:?}"))?
            {
                return Ok(Some(found));
            }
        }
        path = match path {
            Some(path) => path.rsplit_once('/').map(|(parent, _)| parent),
            None => return Ok(None),
        };
    }
}

/// A key's host and path. Docker's keys may be addresses, of whose path nothing counts.
fn place_of(key: &str) -> (&str, &str) {
    let address = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = address.unwrap_or(key).split_once('/').unwrap_or((address.unwrap_or(key), ""));
    match path.trim_end_matches('/') {
        _ if address.is_some() => (host, ""),
        "v1" | "v2" => (host, ""),
        path => (host, path),
    }
}

/// Docker leaves an empty entry for what it has given to a helper.
fn credential(auth: &Auth) -> Result<Option<Credential>> {
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Credential::Identity(auth.identitytoken.clone())));
    }
    if auth.auth.is_empty() {
        let password = Credential::Password(auth.username.clone(), auth.password.clone());
        return Ok((!auth.username.is_empty()).then_some(password));
    }
    let bytes = STANDARD.decode(&auth.auth).or_else(|_| STANDARD_NO_PAD.decode(&auth.auth));
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let both = text.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = both.ok_or_else(|| Error::new("isn't USER:PASSWORD in base64"))?;
    // Docker's older versions filled it up with zeros.
    Ok(Some(Credential::Password(user.to_owned(), password.trim_end_matches('\0').to_owned())))
}

/// Asks `docker-credential-NAME`, which is looked for in $PATH, for the login to a server.
fn ask(name: &str, server: &str) -> Result<Option<Credential>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(Error::new(format!("credential helper {name:?}: isn't the plain name of one"))
            .hint("for a program docker-credential-NAME it is NAME"));
    }
    let program = format!("docker-credential-{name}");
    ask_program(OsStr::new(&program), server, HELPER_TIME).map_err(|error| error.prefix(program))
}

fn ask_program(program: &OsStr, server: &str, time: Duration) -> Result<Option<Credential>> {
    let mut command = Command::new(program);
    let mut child = command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let answer = exchange(&mut child, server, time);
    if answer.is_err() {
        // Out of time, or it says too much: it isn't waited for.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let answer = answer?;
    if !status.success() {
        // The protocol: the reason is in the output, and "not found" has always the same words.
        let said = String::from_utf8_lossy(&answer);
        return match said.trim() {
            said if said.starts_with("credentials not found") => Ok(None),
            said => Err(Error::new(format!("{status}: {}", said.chars().take(200).collect::<String>()))),
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| Error::new("its answer isn't JSON with a Username and a Secret"))?;
    Ok(match answer.user.as_str() {
        TOKEN_USER => Some(Credential::Identity(answer.secret)),
        "" if answer.secret.is_empty() => None,
        _ => Some(Credential::Password(answer.user, answer.secret)),
    })
}

/// Tells a helper the server, and reads its answer. By a thread, since a pipe has no time limit.
fn exchange(child: &mut Child, server: &str, time: Duration) -> Result<Vec<u8>> {
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(server.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let output = child.stdout.take().ok_or_else(|| Error::new("has no output"))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = Vec::new();
        let read = output.take(MOST + 1).read_to_end(&mut answer);
        // Nobody listens any more if the time is over.
        let _ = sender.send(read.map(|_| answer));
    });
    let late = || Error::new(format!("has not answered within {} s", time.as_secs()));
    let answer = receiver.recv_timeout(time).map_err(|_| late())??;
    if answer.len() as u64 > MOST {
        return Err(Error::new(format!("its answer is larger than {MOST} bytes")));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn found(content: &str, host: &str, repository: &str) -> String {
        let content: AuthFile = serde_json::from_str(content).unwrap();
        match in_file(&content, host, repository) {
            Ok(None) => "nothing".into(),
            Ok(Some(Credential::Password(user, password))) => format!("{user}:{password}"),
            Ok(Some(Credential::Identity(token))) => format!("token {token}"),
            Err(error) => format!("error: {error}"),
        }
    }

    fn auths(entries: &[(&str, &str)]) -> String {
        let entry =
            |(key, login): &(&str, &str)| format!("{key:?}: {{\"auth\": {:?}}}", STANDARD.encode(login));
        format!("{{\"auths\": {{{}}}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn the_most_specific_key_wins() {
        let file = auths(&[
            ("r.example", "host:1"),
            ("r.example/team", "team:2"),
            ("r.example/team/x", "x:3:4"),
            ("other.example", "other:5"),
        ]);
        for (repository, expected) in [
            ("team/x", "x:3:4"),
            ("team/y", "team:2"),
            ("team/x/y", "x:3:4"),
            ("teams", "host:1"),
            ("a", "host:1"),
        ] {
            assert_eq!(found(&file, "r.example", repository), expected, "{repository}");
        }
        assert_eq!(found(&file, "r.example:5000", "team/x"), "nothing");
        assert_eq!(found(&file, "example", "team/x"), "nothing");
    }

    #[test]
    fn keys_that_are_addresses() {
        for key in
            ["https://r.example", "http://r.example/", "https://r.example/v1/", "r.example/v2/", "R.example"]
        {
            assert_eq!(found(&auths(&[(key, "u:p")]), "r.example", "x"), "u:p", "{key}");
        }
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!(found(&auths(&[(key, "u:p")]), "docker.io", "library/x"), "u:p", "{key}");
        }
        assert_eq!(found(&auths(&[("docker.io/team", "u:p")]), "docker.io", "library/x"), "nothing");
        assert_eq!(found(&auths(&[("https://index.docker.io/v1/", "u:p")]), "r.example", "x"), "nothing");
    }

    #[test]
    fn kinds_of_entries() {
        let one = |entry: &str| found(&format!("{{\"auths\": {{\"r\": {entry}}}}}"), "r", "x");
        assert_eq!(one(r#"{"identitytoken": "t", "auth": "PHRva2VuPjo="}"#), "token t");
        assert_eq!(one(r#"{"username": "u", "password": "p"}"#), "u:p");
        assert_eq!(one("{}"), "nothing");
        assert_eq!(one(r#"{"auth": "dTpwAAA="}"#), "u:p");
        assert_eq!(one(r#"{"auth": "dTpw"}"#), "u:p");
        assert!(one(r#"{"auth": "!"}"#).contains("isn't USER:PASSWORD in base64"));
        assert_eq!(found("{}", "r", "x"), "nothing");
        assert_eq!(found(r#"{"auths": {}, "HttpHeaders": {}, "detachKeys": "x"}"#, "r", "x"), "nothing");
    }

    #[test]
    fn helpers_have_plain_names() {
        for name in ["../x", "/bin/sh", "a b", ""] {
            let file = format!(r#"{{"credHelpers": {{"r": {name:?}}}}}"#);
            assert!(found(&file, "r", "x").contains("isn't the plain name"), "{name}");
        }
        let missing = found(r#"{"credsStore": "no-such-one"}"#, "r", "x");
        assert!(missing.contains("docker-credential-no-such-one: no such file"), "{missing}");
    }

    /// A program for `ask_program`. It is written by another process: one that this process has open for
    /// writing can't be executed, and a child of another thread's may keep it open.
    fn helper(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("helper");
        let made = Command::new("/bin/sh")
            .args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 700 \"$0\""])
            .arg(&path)
            .arg(script)
            .status();
        assert!(made.unwrap().success());
        path
    }

    fn answer(script: &str, time: Duration) -> std::result::Result<Option<Credential>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = helper(dir.path(), script);
        ask_program(path.as_os_str(), "r.example", time).map_err(|error| error.to_string())
    }

    #[test]
    fn helpers_answer() {
        let password = |user: &str, password: &str| Some(Credential::Password(user.into(), password.into()));
        let says = |script: &str| answer(script, HELPER_TIME);
        let echo = r#"read -r server; [ "$1" = get ] && echo "{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"$server\"}""#;
        assert!(says(echo) == Ok(password("u", "r.example")));
        assert!(
            says(r#"echo '{"Username":"<token>","Secret":"t"}'"#)
                == Ok(Some(Credential::Identity("t".into())))
        );
        assert!(says("echo 'credentials not found in native keychain'; exit 1") == Ok(None));
        assert!(says("echo 'no daemon'; exit 3").is_err_and(|error| error.contains("3: no daemon")));
        assert!(says("echo s3cret").is_err_and(|error| error.contains("JSON") && !error.contains("s3cret")));
        assert!(says("head -c 2000000 /dev/zero").is_err_and(|error| error.contains("larger than")));
        let late = answer("exec sleep 1000", Duration::from_millis(100));
        assert!(late.is_err_and(|error| error.contains("has not answered")));
    }

    #[test]
    fn files_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("1"), auths(&[("r.example", "first:1")])).unwrap();
        fs::write(path("2"), auths(&[("r.example", "second:2"), ("s.example", "s:3")])).unwrap();
        let places = Places { files: vec![path("none"), path("1"), path("2")], named: false };
        assert!(
            places.find("r.example", "x").unwrap() == Some(Credential::Password("first".into(), "1".into()))
        );
        assert!(places.find("s.example", "x").unwrap() == Some(Credential::Password("s".into(), "3".into())));
        assert!(places.find("t.example", "x").unwrap().is_none());

        let named = Places::new(Some(&path("none")));
        assert!(named.find("r.example", "x").err().unwrap().to_string().contains("no such file"));
        fs::write(path("damaged"), r#"{"auths": {"r": {"auth": ["s3cret"]}}}"#).unwrap();
        let damaged = Places::new(Some(&path("damaged"))).find("r", "x").err().unwrap().to_string();
        assert!(damaged.contains("line 1") && !damaged.contains("s3cret"), "{damaged}");
    }
}
