//! The source that is a registry, by the distribution specification's API.
//!
//! | | |
//! |---|---|
//! | this file | mirrors and the registry itself, one after the other; patience |
//! | `stream` | a blob's bytes, over as many connections as it takes |
//! | `login` | challenges and tokens |
//! | `credentials` | where logins are kept |
//! | `client` | requests, redirects, what may be asked of whom |
//!
//! What a registry sends is verified by whoever takes it, so nothing here depends on it being honest:
//! what it can do is to waste time and to have us ask others (`client`, `login`). The addresses that a
//! manifest has for a blob (`urls`) are never used.

mod client;
mod credentials;
mod login;
mod stream;
#[cfg(test)]
mod tests;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{Reference, check_host, check_repository, is_loopback};
use crate::source::{Blob, Root, Source, Wanted};
use client::{Answer, Ask, Attempt, Client, Failure, Kind};
use credentials::{Credential, Places};
use login::Login;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use stream::Stream;
use ureq::http::{HeaderValue, StatusCode, Uri, header};

/// The first pause before something is tried again; each one is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
/// The longest of them.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// Indexes and manifests of the image specification and of Docker.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// How a registry is used.
#[derive(Clone)]
pub struct Options {
    /// Http, to the registry and to where it redirects. On this machine http is used where TLS isn't spoken.
    pub plain_http: bool,
    /// User and password for the registry, not for its mirrors.
    pub credentials: Option<(String, String)>,
    /// The file with logins, instead of Podman's and Docker's.
    pub auth_file: Option<PathBuf>,
    /// Those of the image's registry are asked before it, in this order; the others don't matter.
    pub mirrors: Vec<Mirror>,
    /// How often something that may be over in a moment is tried again.
    pub retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { plain_http: false, credentials: None, auth_file: None, mirrors: Vec::new(), retries: 5 }
    }
}

/// A registry that has the images of another one. What a tag means is what it says; who doesn't trust it
/// with that names a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Of which one.
    pub of: String,
    /// Whether its address said http.
    pub plain_http: bool,
    /// Its host, with its port if one was named.
    pub host: String,
    /// What is before the path of an image there, as of a project that is a cache; or nothing.
    pub prefix: String,
}

impl Mirror {
    /// Reads `HOST=URL`: `docker.io=https://mirror.example`, `docker.io=harbor.example/hub`.
    pub fn parse(text: &str) -> Result<Mirror> {
        Mirror::read(text).map_err(|error| error.prefix(format!("mirror {text:?}")))
    }

    fn read(text: &str) -> Result<Mirror> {
        let (of, url) = text.split_once('=').ok_or_else(|| Error::new("isn't HOST=URL"))?;
        check_host(of)?;
        let (plain_http, rest) = match url.strip_prefix("http://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("https://").unwrap_or(url)),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        check_host(host)?;
        if !prefix.is_empty() {
            check_repository(prefix)?;
        }
        let of = if of == "index.docker.io" { "docker.io" } else { of };
        Ok(Mirror { of: of.to_owned(), plain_http, host: host.to_owned(), prefix: prefix.to_owned() })
    }
}

/// An image's registry, with its mirrors.
pub struct Registry(Arc<Shared>);

/// What the streams of blobs have as well, for when they need another connection.
struct Shared {
    client: Client,
    reference: Reference,
    /// The registry itself is the last.
    endpoints: Vec<Endpoint>,
    retries: u32,
}

/// One host that may have the image.
struct Endpoint {
    host: String,
    /// Known from the start but on this machine, where it is found out.
    scheme: OnceLock<&'static str>,
    is_mirror: bool,
    login: Login,
    /// It answered once: so if it doesn't now, that is for a moment.
    answered: AtomicBool,
    /// A mirror that failed. It isn't asked for the next blob.
    failed: AtomicBool,
}

/// What is asked for.
enum What<'a> {
    /// By tag or digest.
    Manifest(&'a str),
    Blob(&'a str),
}

impl Registry {
    /// Asks nobody yet.
    pub fn open(reference: &Reference, options: &Options) -> Result<Registry> {
        let mirrors = options.mirrors.iter().filter(|mirror| mirror.of == reference.host);
        let mut endpoints = mirrors
            .map(|mirror| Endpoint::of_mirror(mirror, reference, options))
            .collect::<Result<Vec<_>>>()?;
        endpoints.push(Endpoint::of_registry(reference, options));
        let client = Client::new(options.plain_http)?;
        Ok(Registry(Arc::new(Shared {
            client,
            reference: reference.clone(),
            endpoints,
            retries: options.retries,
        })))
    }
}

impl Source for Registry {
    fn root(&self, most: u64) -> Result<Root> {
        let what = What::Manifest(self.0.reference.identifier());
        let root = self.0.ask(&what, 0, |answer| {
            let media_type = answer.response.headers().get(header::CONTENT_TYPE);
            let media_type = media_type.and_then(|value| value.to_str().ok()).map(|value| {
                let (plain, _parameters) = value.split_once(';').unwrap_or((value, ""));
                plain.trim().to_owned()
            });
            let bytes = client::read(answer.response.into_body(), most)?;
            Ok(Root { media_type, bytes })
        });
        root.map_err(|error| error.prefix(&self.0.reference))
    }

    fn digest(&self) -> Result<Option<Digest>> {
        Ok(self.0.reference.digest.clone())
    }

    fn blob(&self, wanted: &Wanted) -> Result<Blob> {
        Ok(Blob::Stream(Box::new(Stream::open(self.0.clone(), wanted)?)))
    }
}

impl Shared {
    /// Asks the mirrors and then the registry. `take` makes what is wanted of an answer; if that fails, it
    /// is tried again as if there had been no answer.
    fn ask<T>(&self, what: &What, from: u64, take: impl Fn(Answer) -> Attempt<T>) -> Result<T> {
        let mut before: Vec<Error> = Vec::new();
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.failed.load(Ordering::Relaxed)) {
            // A mirror has somebody behind it.
            let retries = if endpoint.is_mirror { 0 } else { self.retries };
            let once =
                || endpoint.once(self, what, from).and_then(&take).map_err(|failure| endpoint.judge(failure));
            match patiently(retries, once) {
                Ok(taken) => return Ok(taken),
                Err(error) if endpoint.is_mirror => {
                    endpoint.failed.store(true, Ordering::Relaxed);
                    before.push(error.prefix(format!("mirror {}", endpoint.host)));
                }
                // Who it was needn't be said if the image's name says so.
                Err(error) if before.is_empty() && endpoint.host == self.reference.host => before.push(error),
                Err(error) => before.push(error.prefix(format!("registry {}", endpoint.host))),
            }
        }
        let last = before.pop().unwrap_or_else(|| Error::new("nobody to ask"));
        Err(before.iter().rev().fold(last, |error, mirror| error.prefix(format!("{mirror}; then"))))
    }
}

impl Endpoint {
    fn of_registry(reference: &Reference, options: &Options) -> Endpoint {
        let host = reference.api_host();
        let near = is_loopback(host);
        let given = options.credentials.clone().map(|(user, password)| Credential::Password(user, password));
        let places = Places::new(options.auth_file.as_deref());
        let scheme = match options.plain_http {
            true => Some("http"),
            false if near => None,
            false => Some("https"),
        };
        let login = Login::new(&reference.host, &reference.repository, near, given, places);
        Endpoint::new(host, scheme, false, login)
    }

    fn of_mirror(mirror: &Mirror, reference: &Reference, options: &Options) -> Result<Endpoint> {
        let near = is_loopback(&mirror.host);
        if mirror.plain_http && !near && !options.plain_http {
            return Err(Error::new(format!("mirror {}: is to be asked without TLS", mirror.host)).hint(
                "--plain-http allows it: anybody on the way could read passwords and change what is sent",
            ));
        }
        let scheme = match mirror.plain_http {
            true => Some("http"),
            false if near => None,
            false => Some("https"),
        };
        let repository = match mirror.prefix.as_str() {
            "" => reference.repository.clone(),
            prefix => format!("{prefix}/{}", reference.repository),
        };
        let places = Places::new(options.auth_file.as_deref());
        let login = Login::new(&mirror.host, &repository, near, None, places);
        Ok(Endpoint::new(&mirror.host, scheme, true, login))
    }

    fn new(host: &str, scheme: Option<&'static str>, is_mirror: bool, login: Login) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            scheme: scheme.map(OnceLock::from).unwrap_or_default(),
            is_mirror,
            login,
            answered: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// Asks once, or twice with a login. The answer's status is 200, or 206 from where it was asked for.
    fn once(&self, shared: &Shared, what: &What, from: u64) -> Attempt<Answer> {
        let known = self.login.current();
        let mut answer = self.get(&shared.client, what, from, known.as_ref())?;
        self.answered.store(true, Ordering::Relaxed);
        if answer.response.status() == StatusCode::UNAUTHORIZED && answer.is_own {
            let login = self.login.answer(&shared.client, known.as_ref(), answer.response.headers())?;
            if let Some(login) = login {
                client::discard(answer.response.into_body());
                answer = self.get(&shared.client, what, from, Some(&login))?;
            }
        }
        match answer.response.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::PARTIAL_CONTENT if from > 0 => Ok(answer),
            _ => Err(self.refusal(answer, what)),
        }
    }

    /// One request, without TLS if there is none on this machine.
    fn get(
        &self,
        client: &Client,
        what: &What,
        from: u64,
        authorization: Option<&HeaderValue>,
    ) -> Attempt<Answer> {
        let by = |scheme: &str| {
            let url = self.url(scheme, what)?;
            let accept = match what {
                What::Manifest(_) => MANIFESTS,
                What::Blob(_) => "*/*",
            };
            client.get(&Ask { url, query: Vec::new(), from, near: self.login.near, accept, authorization })
        };
        if let Some(scheme) = self.scheme.get() {
            return by(scheme);
        }
        let (scheme, answer) = match by("https") {
            // Some close the connection when they see a handshake, others answer that they don't understand.
            Err(Failure { kind: Kind::NoTls | Kind::Broken, .. }) => ("http", by("http")),
            answer => ("https", answer),
        };
        if answer.is_ok() {
            // Another thread may have found it out as well.
            let _ = self.scheme.set(scheme);
        }
        answer
    }

    fn url(&self, scheme: &str, what: &What) -> Result<Uri> {
        let (kind, identifier) = match what {
            What::Manifest(identifier) => ("manifests", identifier),
            What::Blob(digest) => ("blobs", digest),
        };
        let url = format!("{scheme}://{}/v2/{}/{kind}/{identifier}", self.host, self.login.repository);
        url.parse().map_err(|_| Error::new(format!("{url:?} isn't an address")))
    }

    /// Whoever isn't there will hardly be there in a moment, unless he was.
    fn judge(&self, failure: Failure) -> Failure {
        match failure.kind {
            Kind::Absent if self.answered.load(Ordering::Relaxed) => {
                Failure { kind: Kind::Passing(None), ..failure }
            }
            Kind::Broken => Failure { kind: Kind::Passing(None), ..failure },
            _ => failure,
        }
    }

    /// An answer that isn't what was asked for, in words.
    fn refusal(&self, answer: Answer, what: &What) -> Failure {
        let status = answer.response.status();
        let headers = answer.response.headers().clone();
        let message = client::message(answer.response.into_body());
        let error = Error::new(message.map_or(status.to_string(), |message| format!("{status}: {message}")));
        if !answer.is_own {
            // Of a store that the registry redirects to.
            let error = error.prefix(format!("redirected to {}", answer.host));
            return match status.is_server_error() {
                true => client::passing(error, &headers),
                false => error.into(),
            };
        }
        match (status.as_u16(), what) {
            (408 | 500 | 502..=504, _) => client::passing(error, &headers),
            (429, _) => {
                let hint = "wait, log in (a login may ask more often), or use --mirror";
                client::passing(error.hint(hint), &headers)
            }
            (401 | 403 | 404, What::Manifest(identifier)) => {
                let (name, host) = (&self.login.repository, &self.login.host);
                let separator = if identifier.contains(':') { '@' } else { ':' };
                let hint =
                    format!("no image {name}{separator}{identifier} in {host}, or {}", self.login.hint());
                error.hint(hint).into()
            }
            (401 | 403, What::Blob(_)) => error.hint(self.login.hint()).into(),
            (404, What::Blob(_)) => {
                error.hint("the registry has the image's manifest, but not all of its blobs").into()
            }
            _ => error.into(),
        }
    }
}

/// Tries until it succeeds, fails for good, or has been tried again as often as `retries` allows.
fn patiently<T>(retries: u32, mut once: impl FnMut() -> Attempt<T>) -> Result<T> {
    let mut tried = 0;
    loop {
        match once() {
            Ok(done) => return Ok(done),
            Err(Failure { kind: Kind::Passing(after), .. }) if tried < retries => {
                pause(tried, after);
                tried += 1;
            }
            Err(failure) if tried > 0 => {
                return Err(failure.error.prefix(format!("tried {} times", tried + 1)));
            }
            Err(failure) => return Err(failure.error),
        }
    }
}

/// Waits before the try after `tried` ones. Not always as long, so that those who failed together don't
/// come back together.
fn pause(tried: u32, after: Option<Duration>) {
    let longest = PAUSE.saturating_mul(1 << tried.min(16)).min(PAUSE_MOST);
    // What std has at random: the keys of a hash.
    let part = 500 + u32::try_from(RandomState::new().hash_one(tried) % 501).unwrap_or(0);
    thread::sleep(after.unwrap_or_default().max(longest * part / 1000));
}
