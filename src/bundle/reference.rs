//! Names of images in registries, as people write them: `alpine`, `localhost:5000/x`,
//! `docker://registry.example/team/name:tag@sha256:…`.
//!
//! The grammar is that of the distribution project's package `reference`. It has no way to tell a host
//! from the first part of a path but by its form; that rule is here as well: the part before the first
//! slash is a host if it has a dot or a colon, or is `localhost`.

use crate::digest::Digest;
use crate::error::{Error, Result};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The registry of a name without one.
const DOCKER_HUB: &str = "docker.io";
/// As the distribution project has it, for the host and the path together.
const NAME_MOST: usize = 255;
/// Of a tag, in bytes.
const TAG_MOST: usize = 128;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry: a name or an address, IPv6 in brackets, with its port if one was named.
    pub host: String,
    /// The path of the image there: `library/alpine`.
    pub repository: String,
    /// `latest` if neither a tag nor a digest was named.
    pub tag: Option<String>,
    /// It wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name, with or without `docker://` before it.
    pub fn parse(text: &str) -> Result<Reference> {
        parse(text.strip_prefix("docker://").unwrap_or(text))
            .map_err(|error| error.prefix(format!("image {text:?}")))
    }

    /// Where the registry's API is: Docker Hub's is elsewhere than its name says.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB { "registry-1.docker.io" } else { &self.host }
    }

    /// By which names the registry's credentials may be kept; the first is what a credential helper is
    /// asked for. Docker keeps those of its Hub by the address of an API that is no more.
    pub fn credential_keys(host: &str) -> Vec<String> {
        match host {
            DOCKER_HUB => {
                ["https://index.docker.io/v1/", DOCKER_HUB, "index.docker.io", "registry-1.docker.io"]
                    .map(String::from)
                    .to_vec()
            }
            _ => vec![host.to_owned()],
        }
    }

    /// What a manifest is asked for by: the digest if there is one.
    pub fn identifier(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether a host, with or without a port, is this machine. Only names and addresses that say so by
/// themselves: what a name server answers isn't asked.
pub fn is_loopback(host: &str) -> bool {
    let (name, _) = split_port(host);
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Checks a registry's host, with or without a port.
pub fn check_host(host: &str) -> Result<()> {
    let (name, port) = split_port(host);
    if let Some(port) = port {
        let number =
            port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok()).flatten();
        if number.is_none_or(|number| number == 0) {
            return Err(Error::new(format!("port {port:?} of the registry isn't one of 1 to 65535")));
        }
    }
    if let Some(inner) = name.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        return match address {
            Some(_) => Ok(()),
            None => Err(Error::new(format!("registry {name:?} isn't an IPv6 address in brackets"))),
        };
    }
    let component = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if name.split('.').all(component) {
        return Ok(());
    }
    Err(Error::new(format!("registry {host:?} isn't HOST[:PORT]")))
}

/// Checks a repository's path.
pub fn check_repository(path: &str) -> Result<()> {
    let wrong = |part: &str| {
        let error = Error::new(format!("{part:?} can't be a part of an image's name"));
        if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            error.hint("names are in lower case")
        } else if part.is_empty() {
            error.hint("a part between slashes is empty")
        } else {
            error.hint("letters a to z and digits, between them a dot, one or two underscores, or hyphens")
        }
    };
    path.split('/').find(|part| !is_path_component(part)).map_or(Ok(()), |part| Err(wrong(part)))
}

fn parse(text: &str) -> Result<Reference> {
    if text.is_empty() {
        return Err(Error::new("the name is empty"));
    }
    if text.contains("://") {
        return Err(Error::new("a name has no scheme but docker://").hint("for http there is --plain-http"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let digest = digest.map(Digest::parse).transpose()?;
    let (host, path) = match rest.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DOCKER_HUB, rest),
    };
    // A colon in the path: what is before the first slash has been taken off.
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    check_host(host)?;
    let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
    check_repository(path)?;
    let repository = match path {
        _ if host == DOCKER_HUB && !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    if host.len() + 1 + repository.len() > NAME_MOST {
        return Err(Error::new(format!("the name is longer than {NAME_MOST} bytes")));
    }
    // Refused as Docker does: there it would be an image's id.
    if host == DOCKER_HUB && rest.len() == 64 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::new("64 hexadecimal digits aren't a name").hint("a digest is NAME@sha256:DIGITS"));
    }
    tag.map(check_tag).transpose()?;
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        _ => tag.map(String::from),
    };
    Ok(Reference { host: host.to_owned(), repository, tag, digest })
}

/// By its form; upper case, which no path has, makes a host as well.
fn is_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.starts_with('[')
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The host, and what is after its last colon that isn't in brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let from = host.rfind(']').unwrap_or(0);
    match host[from..].rfind(':') {
        Some(colon) => (&host[..from + colon], Some(&host[from + colon + 1..])),
        None => (host, None),
    }
}

/// `[a-z0-9]+` with separators between them, each `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    if !part.starts_with(is_plain) || !part.ends_with(is_plain) {
        return false;
    }
    part.split(is_plain)
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

fn check_tag(tag: &str) -> Result<()> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let right = tag.len() <= TAG_MOST
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if right {
        return Ok(());
    }
    Err(Error::new(format!("tag {tag:?} isn't one")).hint(format!(
        "letters, digits, '_', '.' and '-', at most {TAG_MOST}, and neither '.' nor '-' at first"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    fn wrong(text: &str) -> String {
        Reference::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn names_as_people_write_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("alpine:3.20", "docker.io/library/alpine:3.20".to_owned()),
            ("docker://alpine", "docker.io/library/alpine:latest".to_owned()),
            ("grafana/grafana", "docker.io/grafana/grafana:latest".to_owned()),
            ("docker.io/alpine", "docker.io/library/alpine:latest".to_owned()),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            ("localhost/x:y", "localhost/x:y".to_owned()),
            ("127.0.0.1:1/a/b__c/d--e.f:T_1", "127.0.0.1:1/a/b__c/d--e.f:T_1".to_owned()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            ("[2001:db8::1]/x:1", "[2001:db8::1]/x:1".to_owned()),
            ("Registry/x", "Registry/x:latest".to_owned()),
            ("team/x:1", "docker.io/team/x:1".to_owned()),
            (&format!("x@{digest}"), format!("docker.io/library/x@{digest}")),
            (&format!("docker://r.example/a/x:t@{digest}"), format!("r.example/a/x:t@{digest}")),
            (&format!("x:{}", "t".repeat(128)), format!("docker.io/library/x:{}", "t".repeat(128))),
        ] {
            assert_eq!(whole(text), expected, "{text}");
            assert_eq!(whole(&expected), expected);
        }
        let sha512 = format!("r.example/x@sha512:{}", "0".repeat(128));
        assert_eq!(whole(&sha512), sha512);
    }

    #[test]
    fn the_digest_wins() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(Reference::parse(&format!("x:t@{digest}")).unwrap().identifier(), digest);
        assert_eq!(Reference::parse("x:t").unwrap().identifier(), "t");
    }

    #[test]
    fn names_that_are_wrong() {
        for (text, expected) in [
            ("", "the name is empty"),
            ("docker://", "the name is empty"),
            ("Alpine", "names are in lower case"),
            ("r.example/Team/x", "names are in lower case"),
            ("r.example/", "a part between slashes is empty"),
            ("/x", "a part between slashes is empty"),
            ("a//b", "a part between slashes is empty"),
            ("a/../b", "can't be a part"),
            ("x..y", "can't be a part"),
            ("x___y", "can't be a part"),
            ("x_-y", "can't be a part"),
            ("-x", "can't be a part"),
            ("x.", "can't be a part"),
            ("x y", "can't be a part"),
            ("x%2fy", "can't be a part"),
            ("x?y", "can't be a part"),
            ("ä", "can't be a part"),
            ("x:", "tag \"\" isn't one"),
            ("x:-t", "tag \"-t\" isn't one"),
            ("x:a/b", "port \"a\""),
            ("r.example/x:a/b", "tag \"a/b\" isn't one"),
            ("x:a:b", "tag \"a:b\" isn't one"),
            ("x@sha256:abc", "is no digest"),
            ("x@md5:abc", "sha256 and sha512 can"),
            ("x@", "is no digest"),
            ("https://r.example/x", "no scheme but docker://"),
            ("r.example:0/x", "port \"0\""),
            ("r.example:65536/x", "port \"65536\""),
            ("r.example:+1/x", "port \"+1\""),
            ("r.example:/x", "port \"\""),
            ("-r.example/x", "isn't HOST[:PORT]"),
            ("r..example/x", "isn't HOST[:PORT]"),
            ("u:p@r.example/x", "is no digest"),
            ("::1/x", "isn't HOST[:PORT]"),
            ("[::1/x", "isn't an IPv6 address"),
            ("[fe80::1%eth0]/x", "isn't an IPv6 address"),
            ("[::1]x/x", "isn't an IPv6 address"),
            ("r.ex ample/x", "isn't HOST[:PORT]"),
            (&"a".repeat(64), "64 hexadecimal digits"),
            (&"x".repeat(300), "longer than 255"),
            (&format!("x:{}", "t".repeat(129)), "isn't one"),
            (&format!("x@sha256:{}", "A".repeat(64)), "is no digest"),
        ] {
            assert!(wrong(text).contains(expected), "{text}: {}", wrong(text));
        }
        assert!(!wrong("a\u{1b}[2J").contains('\u{1b}'));
    }

    #[test]
    fn docker_hub_is_elsewhere() {
        let hub = Reference::parse("alpine").unwrap();
        assert_eq!(hub.api_host(), "registry-1.docker.io");
        assert_eq!(Reference::credential_keys(&hub.host)[0], "https://index.docker.io/v1/");
        assert_eq!(Reference::parse("ghcr.io/a/b").unwrap().api_host(), "ghcr.io");
        assert_eq!(Reference::credential_keys("ghcr.io"), ["ghcr.io"]);
    }

    #[test]
    fn loopback_by_form_alone() {
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["localhost.example", "x.localhost", "128.0.0.1", "[::2]", "127.0.0.1.example", "127.1", ""]
        {
            assert!(!is_loopback(host), "{host}");
        }
        assert!(is_loopback("[::ffff:127.0.0.1]:1"));
    }
}
