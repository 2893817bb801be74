//! Requests by HTTP: of whom something may be asked, over what, and for how long.
//!
//! Redirects are followed here and not by the library, since each step has to be allowed: `Client::allow`
//! is the one place that decides it, for registries, their redirects and their token services alike.

use crate::error::{Error, Result};
use crate::reference::is_loopback;
use std::env;
use std::io::{self, ErrorKind, Read};
use std::time::Duration;
use ureq::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, Timeout};

/// What may be worth another try.
pub type Attempt<T> = std::result::Result<T, Failure>;

/// For the name server, and for the connection with its handshake.
const CONNECT_TIME: Duration = Duration::from_secs(30);
/// Without a byte. There is no limit for the whole: a large layer over a slow line is in order.
const SILENCE: Duration = Duration::from_secs(60);
/// As curl and Go's library have it, about.
const REDIRECTS: usize = 10;
/// Of an answer's header, in bytes.
const HEADER_MOST: usize = 64 * 1024;
/// Of the body of an answer that isn't wanted: its error message is read, or it is read away so that the
/// connection can be used again.
const UNWANTED_MOST: u64 = 64 * 1024;
/// As long as a server may have us wait before the next try.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

/// What asks.
pub struct Client {
    /// To this machine itself. Never through a proxy, which would be another machine.
    direct: Agent,
    /// To all others, through the proxy of the environment if there is one.
    outward: Agent,
    plain_http: bool,
}

/// A request, which is a GET.
pub struct Ask<'a> {
    /// Of which part of a blob, from this byte on.
    pub from: u64,
    /// Whether the registry that this is about is on this machine.
    pub near: bool,
    /// Where.
    pub url: Uri,
    /// Appended to the address.
    pub query: Vec<(&'a str, &'a str)>,
    /// Media types.
    pub accept: &'a str,
    /// Sent to the address's own host only, never to where that one redirects to.
    pub authorization: Option<&'a HeaderValue>,
}

/// An answer with any status but a redirect.
pub struct Answer {
    /// Status, header and body.
    pub response: Response<Body>,
    /// Whose it is: not the host that was asked if it redirected.
    pub host: String,
    /// Whether it is the host that was asked.
    pub is_own: bool,
}

/// Why there is no answer that is of use.
pub struct Failure {
    /// In words.
    pub error: Error,
    /// What can be done.
    pub kind: Kind,
}

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It may be over in a moment, which may be known.
    Passing(Option<Duration>),
    /// The connection broke, or was silent for too long: the same.
    Broken,
    /// Nobody is there.
    Absent,
    /// Somebody is, who doesn't speak TLS.
    NoTls,
    /// Nothing.
    Final,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, kind: Kind::Final }
    }
}

impl Failure {
    /// Puts something before the text.
    pub fn prefix(self, prefix: impl std::fmt::Display) -> Self {
        Failure { error: self.error.prefix(prefix), ..self }
    }
}

impl Client {
    /// `plain_http`: http is allowed to any host.
    pub fn new(plain_http: bool) -> Result<Client> {
        let certificates = root_certificates()?;
        let agent = |proxy| {
            let tls = TlsConfig::builder().root_certs(certificates.clone()).build();
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("damda/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .timeout_resolve(Some(CONNECT_TIME))
                .timeout_connect(Some(CONNECT_TIME))
                .timeout_send_request(Some(SILENCE))
                .timeout_recv_response(Some(SILENCE))
                .timeout_per_read(Some(SILENCE))
                .max_response_header_size(HEADER_MOST)
                .max_idle_connections_per_host(8)
                .tls_config(tls)
                .proxy(proxy);
            Agent::new_with_config(config.build())
        };
        Ok(Client { direct: agent(None), outward: agent(Proxy::try_from_env()), plain_http })
    }

    /// Asks, and follows redirects.
    pub fn get(&self, ask: &Ask) -> Attempt<Answer> {
        let mut url = ask.url.clone();
        for redirects in 0..=REDIRECTS {
            self.allow(&url, ask.near)?;
            let is_own = same_host(&url, &ask.url);
            let mut request = self.agent(&url).get(&url).header(header::ACCEPT, ask.accept);
            if redirects == 0 {
                request = request.query_pairs(ask.query.iter().copied());
            }
            if ask.from > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.from));
            }
            if let Some(authorization) = ask.authorization.filter(|_| is_own) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response =
                request.call().map_err(|error| self.failure(error, &url)).map_err(
                    |failure| match is_own {
                        true => failure,
                        false => failure.prefix(format!("redirected to {}", host(&url))),
                    },
                )?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, host: host(&url).to_owned(), is_own });
            }
            let next = redirected(&url, response.headers()).map_err(|error| error.prefix("redirect"))?;
            discard(response.into_body());
            url = next;
        }
        Err(Error::new(format!("redirects more than {REDIRECTS} times")).into())
    }

    /// Sends a form. Nothing is redirected: a form has secrets.
    pub fn post(&self, url: &Uri, near: bool, form: &[(&str, &str)]) -> Attempt<Answer> {
        self.allow(url, near)?;
        let response = self.agent(url).post(url).send_form(form.iter().copied());
        let response = response.map_err(|error| self.failure(error, url))?;
        Ok(Answer { response, host: host(url).to_owned(), is_own: true })
    }

    /// Whether anything at all may be sent there. By TLS, always. Without it only on this machine, or if
    /// the user allowed it. `near`: the registry is on this machine; one that isn't has no business to
    /// send us to the services that only listen here.
    fn allow(&self, url: &Uri, near: bool) -> Result<()> {
        let Some(authority) = url.authority().map(|authority| authority.as_str()) else {
            return Err(Error::new(format!("{url} names no host")));
        };
        if authority.contains('@') {
            return Err(Error::new("an address with a user and a password isn't followed"));
        }
        let is_loopback = is_loopback(authority);
        if is_loopback && !near {
            return Err(Error::new(format!("a registry elsewhere leads to {authority} on this machine")));
        }
        match url.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if is_loopback || self.plain_http => Ok(()),
            Some("http") => Err(Error::new(format!("{authority} is to be asked without TLS")).hint(
                "--plain-http allows it: anybody on the way could read passwords and change what is sent",
            )),
            _ => Err(Error::new(format!("{url} is neither https nor http"))),
        }
    }

    fn agent(&self, url: &Uri) -> &Agent {
        if is_loopback(host(url)) { &self.direct } else { &self.outward }
    }

    /// An error of the library in our words.
    fn failure(&self, error: ureq::Error, url: &Uri) -> Failure {
        let failure = in_words(error);
        let proxy = self.agent(url).config().proxy().filter(|proxy| !proxy.is_no_proxy(url));
        match proxy {
            Some(proxy) => failure.prefix(format!("through the proxy {}:{}", proxy.host(), proxy.port())),
            None => failure,
        }
    }
}

/// Reads a body to its end.
pub fn read(body: Body, most: u64) -> Attempt<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = body.into_reader().take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| in_words(error.into()))?;
    if bytes.len() as u64 > most {
        return Err(Error::new(format!("the answer is larger than {most} bytes")).into());
    }
    Ok(bytes)
}

/// Reads away what isn't wanted, so that the connection can be used again.
pub fn discard(body: Body) {
    let _ = read(body, UNWANTED_MOST);
}

/// The message of a registry's error, if it has one, as the distribution specification has it.
pub fn message(body: Body) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(&read(body, UNWANTED_MOST).ok()?).ok()?;
    let first = answer.pointer("/errors/0")?;
    let text = [first.get("message")?, first.get("code")?].into_iter().find_map(|text| text.as_str())?;
    (!text.is_empty()).then(|| text.chars().take(200).collect())
}

/// A failure that may be over in a moment, unless the server says that it takes longer than anybody would
/// wait for.
pub fn passing(error: Error, headers: &HeaderMap) -> Failure {
    match retry_after(headers) {
        Some(after) if after > RETRY_AFTER_MOST => {
            error.prefix(format!("asks for a pause of {} s", after.as_secs())).into()
        }
        after => Failure { error, kind: Kind::Passing(after) },
    }
}

/// How long the server wants to be left alone. In seconds: a date, which is allowed as well, is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An address's host with its port.
pub fn host(url: &Uri) -> &str {
    url.authority().map_or("", |authority| authority.as_str())
}

/// The system's root certificates, or those of `$SSL_CERT_FILE` and `$SSL_CERT_DIR`. Where there are none,
/// as in many containers, Mozilla's as of when this was built.
fn root_certificates() -> Result<RootCerts> {
    let loaded = rustls_native_certs::load_native_certs();
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find(|name| env::var_os(name).is_some());
    if !loaded.certs.is_empty() {
        return Ok(loaded
            .certs
            .iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .into());
    }
    match (named, loaded.errors.into_iter().next()) {
        (None, _) => Ok(RootCerts::WebPki),
        (Some(name), Some(error)) => Err(Error::new(format!("root certificates of ${name}: {error}"))),
        (Some(name), None) => Err(Error::new(format!("root certificates of ${name}: there are none"))),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Scheme, name and port: what is meant for one isn't for another.
fn same_host(one: &Uri, other: &Uri) -> bool {
    let port =
        |url: &Uri| url.port_u16().or((url.scheme_str() == Some("https")).then_some(443)).unwrap_or(80);
    one.scheme() == other.scheme()
        && one.host().unwrap_or("").eq_ignore_ascii_case(other.host().unwrap_or(""))
        && port(one) == port(other)
}

/// Where an answer of `url` leads to (RFC 3986, 5.2, without dot segments, which are the server's business).
fn redirected(url: &Uri, headers: &HeaderMap) -> Result<Uri> {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| Error::new("it doesn't say where to"))?;
    let location = location.split('#').next().unwrap_or(location);
    let scheme = url.scheme_str().unwrap_or("https");
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", host(url))
    } else if location.split_once(':').is_some_and(|(before, _)| !before.contains(['/', '?'])) {
        location.to_owned()
    } else {
        let directory = url.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{}{directory}/{location}", host(url))
    };
    absolute.parse().map_err(|_| Error::new("where it leads to isn't an address"))
}

fn in_words(error: ureq::Error) -> Failure {
    let broken = |text: String| Failure { error: Error::new(text), kind: Kind::Broken };
    match error {
        ureq::Error::Io(error) => of_the_connection(error),
        ureq::Error::Rustls(error) => of_tls(&error),
        ureq::Error::Tls(text) => Error::new(format!("TLS: {text}")).into(),
        ureq::Error::HostNotFound => Failure { error: Error::new("no such host"), kind: Kind::Absent },
        ureq::Error::Timeout(what) => {
            let (text, time) = match what {
                Timeout::Resolve => ("no answer of a name server", CONNECT_TIME),
                Timeout::Connect => ("no connection", CONNECT_TIME),
                _ => ("no answer", SILENCE),
            };
            let is_there = !matches!(what, Timeout::Resolve | Timeout::Connect);
            let kind = if is_there { Kind::Passing(None) } else { Kind::Absent };
            Failure { error: Error::new(format!("{text} within {} s", time.as_secs())), kind }
        }
        ureq::Error::ConnectionFailed => broken("no connection".into()),
        ureq::Error::BodyStalled => broken("the connection stalled".into()),
        ureq::Error::LargeResponseHeader(..) => {
            Error::new(format!("the answer's header is larger than {HEADER_MOST} bytes")).into()
        }
        other => Error::new(other.to_string()).into(),
    }
}

fn of_the_connection(error: io::Error) -> Failure {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return of_tls(tls);
    }
    let kind = match error.kind() {
        ErrorKind::ConnectionRefused => Kind::Absent,
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Kind::Broken,
        _ => Kind::Passing(None),
    };
    let words = match error.kind() {
        ErrorKind::ConnectionRefused => Error::new("connection refused"),
        ErrorKind::UnexpectedEof => Error::new("the connection was closed too early"),
        _ => error.into(),
    };
    Failure { error: words, kind }
}

fn of_tls(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(wrong) => Error::new(of_a_certificate(wrong))
            .hint(
                "trusted are the system's authorities (on Debian: /usr/local/share/ca-certificates and \
                 update-ca-certificates), or those of $SSL_CERT_FILE",
            )
            .into(),
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            let error =
                Error::new("doesn't speak TLS").hint("for a registry without TLS there is --plain-http");
            Failure { error, kind: Kind::NoTls }
        }
        _ => Error::new(format!("TLS: {error}")).into(),
    }
}

fn of_a_certificate(wrong: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Wrong;
    match wrong {
        Wrong::UnknownIssuer => "its certificate is signed by nobody who is trusted here".into(),
        Wrong::Expired | Wrong::ExpiredContext { .. } => "its certificate has expired".into(),
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "its certificate isn't valid yet".into(),
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "its certificate is for another name".into()
        }
        // Self-signed, as by `openssl req -x509` without more. Go takes it, webpki by its design doesn't.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own (CA:TRUE), which a server's can't be".into()
        }
        other => format!("its certificate is invalid: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(plain_http: bool, near: bool, url: &str) -> Result<()> {
        Client::new(plain_http).unwrap().allow(&url.parse().unwrap(), near)
    }

    #[test]
    fn who_may_be_asked() {
        for (plain_http, near, url, expected) in [
            (false, false, "https://r.example/v2/", true),
            (false, false, "https://10.0.0.1/v2/", true),
            (false, false, "http://r.example/v2/", false),
            (true, false, "http://r.example/v2/", true),
            (false, true, "http://localhost:5000/v2/", true),
            (false, true, "http://127.0.0.1/v2/", true),
            (false, true, "http://r.example/v2/", false),
            (false, false, "http://localhost:5000/v2/", false),
            (true, false, "http://127.0.0.1:5000/v2/", false),
            (false, false, "https://[::1]:5000/v2/", false),
            (false, false, "https://u:p@r.example/v2/", false),
            (true, true, "ftp://localhost/v2/", false),
            (true, true, "/v2/", false),
        ] {
            assert_eq!(allowed(plain_http, near, url).is_ok(), expected, "{plain_http} {near} {url}");
        }
    }

    #[test]
    fn whose_secrets() {
        let same = |one: &str, other: &str| same_host(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://r.example/a", "https://R.example:443/b"));
        assert!(!same("https://r.example/", "http://r.example/"));
        assert!(!same("https://r.example/", "https://r.example:444/"));
        assert!(!same("https://r.example/", "https://cdn.r.example/"));
        assert!(!same("http://localhost:1/", "http://127.0.0.1:1/"));
    }

    #[test]
    fn where_a_redirect_leads_to() {
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_str(location).unwrap());
            redirected(&"https://r.example:5/v2/x/blobs/y?q=1".parse().unwrap(), &headers)
                .map(|url| url.to_string())
        };
        for (location, expected) in [
            ("https://cdn.example/a?b=c%2F", "https://cdn.example/a?b=c%2F"),
            ("/a?u=https://x", "https://r.example:5/a?u=https://x"),
            ("//cdn.example/a#part", "https://cdn.example/a"),
            ("z?u=https://x", "https://r.example:5/v2/x/blobs/z?u=https://x"),
        ] {
            assert_eq!(to(location).unwrap(), expected);
        }
        assert!(to("https://a b/").is_err());
        assert!(redirected(&"https://r.example/".parse().unwrap(), &HeaderMap::new()).is_err());
    }

    #[test]
    fn how_long_to_wait() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("-1"), None);
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }
}
