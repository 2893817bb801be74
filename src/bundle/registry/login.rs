//! What a registry is told about who asks: Basic, and Bearer tokens of a token service.
//!
//! The distribution project's documents: `spec/auth/token`, `spec/auth/oauth`.
//!
//! ```text
//! GET /v2/…            ─►  registry
//!                      ◄─  401, WWW-Authenticate: Bearer realm="https://auth…",service="…"
//! GET realm?service=…&scope=repository:NAME:pull   (Basic, if there is a login)  ─►  token service
//!                      ◄─  {"token": …}
//! GET /v2/…, Authorization: Bearer …  ─►  registry
//! ```
//!
//! # A registry that is evil
//! It chooses the realm. What goes there is the login for this registry and for no other one, whichever
//! host the realm is on: the registry could ask for it by Basic as well, so it learns nothing. A token
//! that comes back goes to the registry. So it could have us fetch something from inside of a network and
//! hand it over: if that answers to a GET by TLS with JSON that has a `token`. The realm needs TLS like the
//! registry, and services of this machine are out of reach. We never ask for more than to pull this one
//! image, whatever scope the registry names.

use super::client::{self, Ask, Attempt, Client, Failure};
use super::credentials::{Credential, Places};
use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

/// Of a token service's answer, in bytes.
const TOKEN_MOST: u64 = 1024 * 1024;
/// A token that doesn't say how long it is good is so for this long, by the specification.
const TOKEN_TIME: u64 = 60;
/// It has to be good until the request has arrived.
const TOKEN_MARGIN: u64 = 5;

/// The login to one registry, for one image.
pub struct Login {
    /// The registry's name.
    pub host: String,
    /// The image's path.
    pub repository: String,
    /// Whether the registry is on this machine.
    pub near: bool,
    given: Option<Credential>,
    places: Places,
    /// Looked up once, when the registry first asks for it: a helper may ask its user.
    found: OnceLock<Found>,
    current: Mutex<Option<Authorization>>,
}

struct Found {
    credential: Option<Credential>,
    /// Why there is none, if not because nobody has one.
    error: Option<Error>,
}

struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// In seconds, mostly as a whole number.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Bearer { realm: String, service: Option<String> },
    Basic,
}

impl Login {
    /// `given` goes before what is kept in `places`.
    pub fn new(host: &str, repository: &str, near: bool, given: Option<Credential>, places: Places) -> Login {
        Login {
            host: host.to_owned(),
            repository: repository.to_owned(),
            near,
            given,
            places,
            found: OnceLock::new(),
            current: Mutex::new(None),
        }
    }

    /// The value of the Authorization header, as far as is known and good.
    pub fn current(&self) -> Option<HeaderValue> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|current| current.is_good()).map(|current| current.value.clone())
    }

    /// Answers the challenge of a registry that refused a request, which had `refused` as its header.
    /// Nothing if there is no answer. One thread asks the token service, the others wait for it.
    pub fn answer(
        &self,
        client: &Client,
        refused: Option<&HeaderValue>,
        headers: &HeaderMap,
    ) -> Attempt<Option<HeaderValue>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) =
            current.as_ref().filter(|current| current.is_good() && Some(&current.value) != refused)
        {
            return Ok(Some(other.value.clone()));
        }
        let credential = self.credential()?;
        let answer = match (challenge(headers), credential) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                Some(self.token(client, &realm, service.as_deref(), credential)?)
            }
            (Some(Challenge::Basic), Some(Credential::Password(user, password))) => {
                Some(Authorization { value: basic(user, password)?, until: None })
            }
            _ => None,
        };
        *current = answer;
        Ok(current.as_ref().map(|current| current.value.clone()))
    }

    /// What to do when the registry refuses all the same.
    pub fn hint(&self) -> String {
        let found = self.found.get();
        match found.map(|found| (&found.credential, &found.error)) {
            Some((_, Some(error))) => format!("the login could not be looked up: {error}"),
            Some((Some(_), _)) => {
                format!("the login for {} is not accepted, or has no right to it", self.host)
            }
            _ => format!(
                "it needs a login: --creds, or one that `docker login {0}` or `podman login {0}` kept",
                self.host
            ),
        }
    }

    fn credential(&self) -> Attempt<Option<&Credential>> {
        let found = self.found.get_or_init(|| {
            if let Some(given) = &self.given {
                return Found { credential: Some(given.clone()), error: None };
            }
            match self.places.find(&self.host, &self.repository) {
                Ok(credential) => Found { credential, error: None },
                Err(error) => Found { credential: None, error: Some(error) },
            }
        });
        match &found.error {
            // Without a login most images can be had as well; the error is told if not.
            Some(error) if self.places.named() => Err(error.clone().into()),
            _ => Ok(found.credential.as_ref()),
        }
    }

    fn token(
        &self,
        client: &Client,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Attempt<Authorization> {
        let what = format!("token service {realm}");
        let url: Uri = realm.parse().map_err(|_| Error::new("isn't an address").prefix(&what))?;
        let scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.map(|service| ("service", service)));
        let answer = match credential {
            Some(Credential::Identity(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "damda"),
                    ("refresh_token", token),
                ]);
                client.post(&url, self.near, &fields)
            }
            Some(Credential::Password(user, password)) => {
                fields.push(("account", user));
                let authorization = basic(user, password)?;
                client.get(&self.ask(url, fields, Some(&authorization)))
            }
            None => client.get(&self.ask(url, fields, None)),
        };
        let answer = answer.map_err(|failure| failure.prefix(&what))?.response;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(self.refusal(status, answer.headers()).prefix(what));
        }
        let bytes = client::read(answer.into_body(), TOKEN_MOST).map_err(|failure| failure.prefix(&what))?;
        authorization(&bytes).map_err(|error| error.prefix(what).into())
    }

    fn ask<'a>(
        &self,
        url: Uri,
        query: Vec<(&'a str, &'a str)>,
        authorization: Option<&'a HeaderValue>,
    ) -> Ask<'a> {
        Ask { url, query, authorization, near: self.near, from: 0, accept: "application/json" }
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Failure {
        let error = Error::new(status.to_string());
        match status.as_u16() {
            429 | 500..=599 => client::passing(error, headers),
            400 | 401 | 403 => error.hint(self.hint()).into(),
            _ => error.into(),
        }
    }
}

impl Authorization {
    fn is_good(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

fn authorization(answer: &[u8]) -> Result<Authorization> {
    // No error of serde_json's: it would quote the answer.
    let answer: TokenAnswer =
        serde_json::from_slice(answer).map_err(|_| Error::new("its answer isn't JSON of the right form"))?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| Error::new("its answer has no token"))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Error::new("its token has characters that no header can have"))?;
    value.set_sensitive(true);
    let seconds = answer
        .expires_in
        .and_then(|seconds| seconds.as_u64())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(TOKEN_TIME);
    let until = Instant::now().checked_add(Duration::from_secs(seconds.saturating_sub(TOKEN_MARGIN)));
    Ok(Authorization { value, until })
}

fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    if user.contains(':') {
        return Err(Error::new("a user's name can't have a colon"));
    }
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| Error::new("a login that no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The best of the challenges in an answer: Bearer goes before Basic, as with Docker.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|text| text.to_str().ok());
    let all: Vec<Challenge> = texts.flat_map(challenges).collect();
    let best = all.iter().position(|one| matches!(one, Challenge::Bearer { .. }));
    all.into_iter().nth(best.unwrap_or(0))
}

/// The challenges that we know in a header's value, up to where it can't be read.
fn challenges(text: &str) -> Vec<Challenge> {
    let parsed = http_auth::ChallengeParser::new(text).map_while(|one| one.ok());
    let known = parsed.filter_map(|one| {
        let parameter = |name: &str| {
            let found = one.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        match one.scheme {
            scheme if scheme.eq_ignore_ascii_case("Basic") => Some(Challenge::Basic),
            scheme if scheme.eq_ignore_ascii_case("Bearer") => {
                Some(Challenge::Bearer { realm: parameter("realm")?, service: parameter("service") })
            }
            _ => None,
        }
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let value = |text: &&str| (header::WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
        values.iter().map(value).collect()
    }

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(String::from) })
    }

    #[test]
    fn challenges_of_registries() {
        for (values, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull,push""#,
                ][..],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (&[r#"bearer Realm="https://a/" , SERVICE=x"#], bearer("https://a/", Some("x"))),
            (&[r#"Bearer realm="https://a/?x=\"y\"""#], bearer("https://a/?x=\"y\"", None)),
            (&[r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a/""#], bearer("https://a/", None)),
            (&[r#"Basic realm="x", Bearer realm="https://a/",service="s""#], bearer("https://a/", Some("s"))),
            (&[r#"Negotiate, Basic realm="x""#], Some(Challenge::Basic)),
            (&[r#"Digest realm="x", nonce="y""#], None),
            (&["Bearer"], None),
            (&[""], None),
            (&[r#"Bearer realm="https://a"#], None),
            (&[], None),
        ] {
            assert_eq!(challenge(&headers(values)), expected, "{values:?}");
        }
    }

    #[test]
    fn answers_of_token_services() {
        let value = |text: &str| {
            let authorization = authorization(text.as_bytes());
            authorization.map(|authorization| authorization.value.to_str().unwrap().to_owned())
        };
        let wrong = |text: &str| value(text).unwrap_err().to_string();
        assert_eq!(value(r#"{"token": "a"}"#).unwrap(), "Bearer a");
        assert_eq!(
            value(r#"{"access_token": "b", "expires_in": 300, "issued_at": "…"}"#).unwrap(),
            "Bearer b"
        );
        assert_eq!(value(r#"{"token": "a", "access_token": "b"}"#).unwrap(), "Bearer a");
        assert_eq!(value(r#"{"token": "", "access_token": "b"}"#).unwrap(), "Bearer b");
        assert!(wrong("{}").contains("no token"));
        assert!(wrong(r#"{"token": ["s3cret"]}"#).contains("right form"));
        assert!(!wrong(r#"{"token": ["s3cret"]}"#).contains("s3cret"));
        assert!(wrong(r#"{"token": "a\r\nX: y"}"#).contains("no header can have"));
        assert!(authorization(br#"{"token": "a", "expires_in": 18446744073709551615}"#).unwrap().is_good());
        assert!(!authorization(br#"{"token": "a", "expires_in": 1}"#).unwrap().is_good());
    }

    #[test]
    fn basic_is_base64() {
        assert_eq!(basic("Aladdin", "open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(basic("a:b", "c").is_err());
    }
}
