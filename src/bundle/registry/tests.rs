//! A registry of ours, which does what real ones rarely do: breaks connections, lies, redirects.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A request that a server has got.
#[derive(Debug, Clone, Default)]
struct Request {
    /// Method and target: `GET /v2/…?…`.
    line: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where the range begins that is asked for.
    fn from(&self) -> usize {
        self.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0)
    }
}

/// What a server answers.
#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    cut: Option<usize>,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, body: body.into(), ..Reply::default() }
}

impl Reply {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    fn cut(self, after: usize) -> Reply {
        Reply { cut: Some(after), ..self }
    }
}

struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Without the logins of whoever runs the tests.
    nobody: tempfile::NamedTempFile,
}

impl Server {
    /// Its threads end with the process.
    fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::listen(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    fn at(port: u16) -> Server {
        let nobody = tempfile::NamedTempFile::new().unwrap();
        fs::write(nobody.path(), "{}").unwrap();
        Server { port, requests: Arc::default(), nobody }
    }

    fn listen(listener: TcpListener, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let server = Server::at(listener.local_addr().unwrap().port());
        let (seen, answer) = (server.requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || serve(&connection, &seen, &*answer));
            }
        });
        server
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn registry(&self) -> Registry {
        self.registry_with(&Options::default())
    }

    fn registry_with(&self, options: &Options) -> Registry {
        let reference = Reference::parse(&format!("{}/x:t", self.host())).unwrap();
        let auth_file = options.auth_file.clone().or(Some(self.nobody.path().to_owned()));
        Registry::open(&reference, &Options { auth_file, ..options.clone() }).unwrap()
    }
}

fn serve(connection: &TcpStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut first = [0];
    if connection.peek(&mut first).unwrap_or(0) == 0 {
        return;
    }
    if first[0] == 0x16 {
        // A TLS handshake. Go's server says this in return, others just close the connection.
        let _ = (&*connection).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request");
        let _ = connection.shutdown(Shutdown::Both);
        return;
    }
    let mut reader = BufReader::new(connection);
    while let Some(request) = receive(&mut reader) {
        seen.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        let mut text = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            text += &format!("{name}: {value}\r\n");
        }
        let _ = (&*connection).write_all(format!("{text}\r\n").as_bytes());
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
        let _ = (&*connection).write_all(body);
        if reply.cut.is_some() {
            let _ = connection.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn receive(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut request = Request::default();
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 0 {
        match line.trim_end() {
            "" => {
                let length = request.header("content-length").parse().unwrap_or(0);
                reader.take(length).read_to_string(&mut request.body).ok()?;
                return Some(request);
            }
            text if request.line.is_empty() => request.line = text.trim_end_matches(" HTTP/1.1").to_owned(),
            text => {
                let (name, value) = text.split_once(':')?;
                request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        line.clear();
    }
    None
}

/// Bytes that are different wherever one looks.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn wanted(size: usize) -> Wanted {
    Wanted { digest: format!("sha256:{}", "a".repeat(64)), size: size as u64, is_manifest: false }
}

fn blob(registry: &Registry, size: usize) -> Result<Vec<u8>> {
    let Blob::Stream(mut stream) = registry.blob(&wanted(size))? else { panic!("not a stream") };
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn root_error(registry: &Registry) -> String {
    registry.root(100).err().expect("an error").to_string()
}

fn has_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} isn't in: {text}");
    }
}

#[test]
fn manifest_and_its_limit() {
    let server =
        Server::start(|_| reply(200, "0123456789").with("Content-Type", format!("{MANIFEST}; charset=x")));
    let root = server.registry().root(10).unwrap();
    assert_eq!((root.media_type.as_deref(), &root.bytes[..]), (Some(MANIFEST), &b"0123456789"[..]));
    let request = &server.requests()[0];
    assert_eq!(request.line, "GET /v2/x/manifests/t");
    has_parts(request.header("accept"), &[MANIFEST, "image.index.v1+json", "manifest.list.v2+json"]);
    assert_eq!(request.header("authorization"), "");
    let error = server.registry().root(9).err().unwrap().to_string();
    has_parts(&error, &["larger than 9 bytes", &server.host(), "/x:t"]);
}

#[test]
fn a_manifest_by_its_digest_is_elsewhere_than_a_blob() {
    let server = Server::start(|_| reply(200, "abc"));
    let registry = server.registry();
    let asked = Wanted { is_manifest: true, ..wanted(3) };
    let Blob::Stream(mut stream) = registry.blob(&asked).unwrap() else { panic!("not a stream") };
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(blob(&registry, 3).unwrap(), b"abc");
    let digest = asked.digest;
    let [manifest, blob] = [format!("GET /v2/x/manifests/{digest}"), format!("GET /v2/x/blobs/{digest}")];
    assert_eq!(server.lines(), [manifest, blob]);
}

#[test]
fn the_digest_of_a_name_is_what_its_manifest_must_have() {
    let server = Server::start(|_| reply(200, "something else"));
    assert!(server.registry().digest().unwrap().is_none());
    let digest = format!("sha256:{}", "a".repeat(64));
    let reference = Reference::parse(&format!("{}/x:t@{digest}", server.host())).unwrap();
    let registry = Registry::open(&reference, &Options::default()).unwrap();
    assert_eq!(registry.digest().unwrap().unwrap().to_string(), digest);
    registry.root(100).unwrap();
    assert_eq!(server.lines(), [format!("GET /v2/x/manifests/{digest}")]);
}

/// A registry that wants a token which a service on another port has.
fn with_tokens() -> (Server, Server) {
    let tokens = Server::start(|_| reply(200, r#"{"token": "t0ken", "expires_in": 300}"#));
    let realm = format!("http://{}/token?a=b", tokens.host());
    let registry = Server::start(move |request| match request.header("authorization") {
        "Bearer t0ken" => reply(200, "abc"),
        _ => reply(401, "{}").with("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s v\"")),
    });
    (registry, tokens)
}

#[test]
fn a_token_is_fetched_once() {
    let (server, tokens) = with_tokens();
    let registry = server.registry();
    registry.root(100).unwrap();
    let one = || assert_eq!(blob(&registry, 3).unwrap(), b"abc");
    thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(one))));
    assert_eq!(tokens.lines(), ["GET /token?a=b&scope=repository%3Ax%3Apull&service=s%20v"]);
    assert_eq!(tokens.requests()[0].header("authorization"), "");
    assert_eq!(server.requests().len(), 10);
}

#[test]
fn a_login_goes_to_the_token_service() {
    let (server, tokens) = with_tokens();
    let credentials = Some(("u".into(), "p".into()));
    server.registry_with(&Options { credentials, ..Options::default() }).root(100).unwrap();
    has_parts(&tokens.lines()[0], &["account=u"]);
    assert_eq!(tokens.requests()[0].header("authorization"), "Basic dTpw");
    assert!(server.requests().iter().all(|request| request.header("authorization") != "Basic dTpw"));
}

#[test]
fn an_identity_token_is_posted() {
    let (server, tokens) = with_tokens();
    let file = tempfile::NamedTempFile::new().unwrap();
    let entry = format!(r#"{{"auths": {{"{}": {{"identitytoken": "i&d"}}}}}}"#, server.host());
    fs::write(file.path(), entry).unwrap();
    let auth_file = Some(file.path().to_owned());
    server.registry_with(&Options { auth_file, ..Options::default() }).root(100).unwrap();
    let request = &tokens.requests()[0];
    assert_eq!(request.line, "POST /token?a=b");
    has_parts(
        &request.body,
        &["grant_type=refresh_token", "refresh_token=i%26d", "scope=repository%3Ax%3Apull"],
    );
    assert_eq!(request.header("authorization"), "");
}

#[test]
fn an_expired_token_is_replaced() {
    let count = Mutex::new(0);
    let tokens = Server::start(move |_| {
        *count.lock().unwrap() += 1;
        reply(200, format!(r#"{{"token": "t{}"}}"#, count.lock().unwrap()))
    });
    let realm = format!("http://{}/", tokens.host());
    let server = Server::start(move |request| {
        match (request.header("authorization"), request.line.contains("blobs")) {
            ("Bearer t1", false) | ("Bearer t2", true) => reply(200, "abc"),
            _ => reply(401, "").with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
        }
    });
    let registry = server.registry();
    registry.root(100).unwrap();
    assert_eq!(blob(&registry, 3).unwrap(), b"abc");
    assert_eq!(tokens.requests().len(), 2);
}

#[test]
fn basic_with_and_without_a_login() {
    let server = Server::start(|request| match request.header("authorization") {
        "Basic dTpw" => reply(200, "{}"),
        _ => reply(
            401,
            r#"{"errors": [{"code": "UNAUTHORIZED", "message": "authentication\u001b[2J required"}]}"#,
        )
        .with("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let with = |user: &str| Options { credentials: Some((user.into(), "p".into())), ..Options::default() };
    server.registry_with(&with("u")).root(100).unwrap();
    let without = root_error(&server.registry());
    has_parts(
        &without,
        &["401 Unauthorized: authentication\\u{1b}[2J required", "no image x:t in 127.0.0.1", "docker login"],
    );
    let wrong = root_error(&server.registry_with(&with("other")));
    has_parts(&wrong, &["the login for 127.0.0.1", "is not accepted"]);
    // Twice for each: without a login, and with what there is.
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn realms_that_are_evil() {
    let login = Some(("u".to_owned(), "p".to_owned()));
    for (realm, expected) in [
        ("http://r.example/token", "without TLS"),
        ("http://169.254.169.254/latest", "without TLS"),
        ("https://u:p@r.example/token", "a user and a password"),
        ("ftp://localhost/token", "neither https nor http"),
        ("/token", "names no host"),
        ("http://a b/", "isn't an address"),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let server = Server::start(move |_| reply(401, "").with("WWW-Authenticate", &challenge));
        let error =
            root_error(&server.registry_with(&Options { credentials: login.clone(), ..Options::default() }));
        has_parts(&error, &["token service", expected]);
        assert_eq!(server.requests().len(), 1, "{realm}");
    }
}

#[test]
fn token_services_that_fail() {
    for (answer, expected) in [
        (reply(200, "x".repeat(2 << 20)), "larger than 1048576 bytes"),
        (reply(200, "{}"), "no token"),
        (reply(401, "{}"), "it needs a login"),
        (reply(418, ""), "418"),
    ] {
        let tokens = Server::start(move |_| answer.clone());
        let challenge = format!("Bearer realm=\"http://{}/\"", tokens.host());
        let server = Server::start(move |_| reply(401, "").with("WWW-Authenticate", &challenge));
        has_parts(&root_error(&server.registry()), &["token service", expected]);
        assert_eq!(tokens.requests().len(), 1);
    }
}

#[test]
fn a_token_service_that_redirects_passes_no_password_on() {
    let other = Server::start(|_| reply(200, r#"{"token": "t"}"#));
    let to = format!("http://{}/", other.host());
    let tokens = Server::start(move |_| reply(307, "").with("Location", &to));
    let challenge = format!("Bearer realm=\"http://{}/\"", tokens.host());
    let server = Server::start(move |request| match request.header("authorization") {
        "Bearer t" => reply(200, "{}"),
        _ => reply(401, "").with("WWW-Authenticate", &challenge),
    });
    let credentials = Some(("u".into(), "p".into()));
    server.registry_with(&Options { credentials, ..Options::default() }).root(100).unwrap();
    assert_eq!(tokens.requests()[0].header("authorization"), "Basic dTpw");
    assert_eq!(other.requests()[0].header("authorization"), "");
}

#[test]
fn a_redirect_drops_the_authorization_and_keeps_the_range() {
    let bytes = content(3 << 20);
    let store = Server::start({
        let bytes = bytes.clone();
        move |request| part(&bytes, request.from()).cut(1 << 20)
    });
    let to = format!("http://{}/store?signature=%2F", store.host());
    let server = Server::start(move |request| {
        match (request.header("authorization"), request.line.contains("/blobs/")) {
            ("Basic dTpw", true) => reply(307, "elsewhere").with("Location", &to),
            // To itself: with the authorization.
            ("Basic dTpw", false) if request.line.ends_with("/t") => {
                reply(302, "").with("Location", "/moved")
            }
            ("Basic dTpw", false) => reply(200, "{}"),
            _ => reply(401, "").with("WWW-Authenticate", "Basic"),
        }
    });
    let credentials = Some(("u".into(), "p".into()));
    let registry = server.registry_with(&Options { credentials, ..Options::default() });
    registry.root(100).unwrap();
    assert_eq!(server.lines().last().unwrap(), "GET /moved");
    assert!(blob(&registry, bytes.len()).unwrap() == bytes);
    assert!(store.requests().iter().all(|request| request.header("authorization").is_empty()));
    let ranges: Vec<_> = store.requests().iter().map(Request::from).collect();
    assert_eq!(ranges, [0, 1 << 20, 2 << 20]);
    assert_eq!(store.lines()[0], "GET /store?signature=%2F");
}

#[test]
fn redirects_that_are_refused() {
    for (location, expected) in [
        ("http://r.example/x", "without TLS"),
        ("https://u:p@r.example/x", "a user and a password"),
        ("file:///etc/passwd", "isn't an address"),
        ("gopher://localhost/x", "neither https nor http"),
        ("/again", "redirects more than 10 times"),
    ] {
        let server = Server::start(move |_| reply(302, "").with("Location", location));
        has_parts(&root_error(&server.registry()), &[expected]);
    }
    let server = Server::start(|_| reply(302, ""));
    has_parts(&root_error(&server.registry()), &["doesn't say where to"]);
}

#[test]
fn the_store_of_a_registry_that_refuses_gets_no_login() {
    let store = Server::start(|_| reply(401, "").with("WWW-Authenticate", "Basic"));
    let to = format!("http://{}/", store.host());
    let server = Server::start(move |_| reply(307, "").with("Location", &to));
    let credentials = Some(("u".into(), "p".into()));
    let error = root_error(&server.registry_with(&Options { credentials, ..Options::default() }));
    has_parts(&error, &[&format!("redirected to {}", store.host()), "401"]);
    assert_eq!(store.requests().len(), 1);
}

/// 206, or 200 if it begins at the beginning.
fn part(bytes: &[u8], from: usize) -> Reply {
    match from {
        0 => reply(200, bytes),
        _ => reply(206, &bytes[from..])
            .with("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
    }
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let bytes = content(10 << 20);
    let server = Server::start({
        let bytes = bytes.clone();
        move |request| match part(&bytes, request.from()) {
            reply if reply.body.len() > 1_200_000 => reply.cut(1_200_000),
            reply => reply,
        }
    });
    assert!(blob(&server.registry(), bytes.len()).unwrap() == bytes);
    assert_eq!(server.requests().len(), 9);
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning() {
    let bytes = content(3 << 20);
    let cut = Mutex::new(1 << 20);
    let server = Server::start({
        let bytes = bytes.clone();
        move |_| {
            let mut cut = cut.lock().unwrap();
            *cut += 1 << 20;
            reply(200, bytes.clone()).cut((*cut - 1000).min(bytes.len()))
        }
    });
    assert!(blob(&server.registry(), bytes.len()).unwrap() == bytes);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn without_progress_it_ends() {
    // One byte a connection.
    let bytes = content(1000);
    let server = Server::start(move |request| part(&bytes, request.from()).cut(1));
    let error = blob(&server.registry(), 1000).unwrap_err().to_string();
    has_parts(&error, &["broke off after 6 of 1000 bytes", "taken up 5 times", "disconnected"]);
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn a_part_that_is_not_the_one_asked_for() {
    let server = Server::start(|request| match request.from() {
        0 => reply(200, content(1000)).cut(500),
        _ => reply(206, content(1000)).with("Content-Range", "bytes 0-999/1000"),
    });
    has_parts(&blob(&server.registry(), 1000).unwrap_err().to_string(), &["isn't that from byte 500 on"]);
    let server = Server::start(|_| reply(206, "abc").with("Content-Range", "bytes 0-2/3"));
    has_parts(&blob(&server.registry(), 3).unwrap_err().to_string(), &["206"]);
}

#[test]
fn sizes_that_are_wrong() {
    let server = Server::start(|request| match request.from() {
        0 => reply(200, content(1000)),
        _ => reply(416, ""),
    });
    // One byte more shows that there is more, and that's enough.
    assert_eq!(blob(&server.registry(), 10).unwrap().len(), 11);
    assert_eq!(blob(&server.registry(), 1000).unwrap().len(), 1000);
    assert_eq!(server.requests().len(), 2);
    assert_eq!(blob(&server.registry(), 0).unwrap().len(), 1);
    let error = blob(&server.registry(), 2000).unwrap_err().to_string();
    has_parts(&error, &["broke off after 1000 of 2000 bytes", "416"]);
}

#[test]
fn too_many_requests_is_over_in_a_moment() {
    for status in [429, 500, 502, 503, 504] {
        let count = Mutex::new(0);
        let server = Server::start(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            match *count {
                1..=3 => reply(status, "").with("Retry-After", "0"),
                _ => reply(200, "{}"),
            }
        });
        server.registry().root(100).unwrap();
        assert_eq!(server.requests().len(), 4, "{status}");
    }
    let server = Server::start(|_| reply(429, "").with("Retry-After", "3600"));
    has_parts(&root_error(&server.registry()), &["asks for a pause of 3600 s: 429", "--mirror"]);
    assert_eq!(server.requests().len(), 1);
    let server = Server::start(|_| reply(429, ""));
    has_parts(&root_error(&server.registry()), &["tried 6 times", "429 Too Many Requests", "--mirror"]);
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn what_is_not_there_is_asked_for_once() {
    let missing = r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#;
    for status in [400, 403, 404, 501] {
        let server = Server::start(move |_| reply(status, missing));
        has_parts(&root_error(&server.registry()), &[&status.to_string(), "manifest unknown"]);
        assert_eq!(server.requests().len(), 1, "{status}");
    }
    let server = Server::start(|_| reply(404, ""));
    has_parts(
        &root_error(&server.registry()),
        &["404 Not Found (no image x:t in 127.0.0.1", "or it needs a login"],
    );
    has_parts(
        &blob(&server.registry(), 1).unwrap_err().to_string(),
        &["blob sha256:", "not all of its blobs"],
    );
}

#[test]
fn a_manifest_that_breaks_off_is_asked_for_again() {
    let count = Mutex::new(0);
    let server = Server::start(move |_| {
        *count.lock().unwrap() += 1;
        let whole = reply(200, "0123456789");
        if *count.lock().unwrap() < 3 { whole.cut(5) } else { whole }
    });
    assert_eq!(server.registry().root(100).unwrap().bytes, b"0123456789");
}

#[test]
fn nobody_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::at(listener.local_addr().unwrap().port());
    drop(listener);
    let error = root_error(&server.registry());
    has_parts(&error, &[&format!("{}/x:t: connection refused", server.host())]);
    assert!(!error.contains("tried"), "{error}");
}

#[test]
fn a_server_that_closes_on_a_handshake_has_no_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut request = [0; 1000];
            if connection.read(&mut request).is_ok() && request[0] != 0x16 {
                let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            }
        }
    });
    let server = Server::at(port);
    assert_eq!(server.registry().root(100).unwrap().bytes, b"{}");
}

fn mirrored(server: &Server, mirror: &Server, prefix: &str) -> Registry {
    let mirrors =
        ["other.example=https://m.example".into(), format!("{}={}{prefix}", server.host(), mirror.host())];
    let mirrors = mirrors.iter().map(|text| Mirror::parse(text).unwrap()).collect();
    server.registry_with(&Options {
        mirrors,
        credentials: Some(("u".into(), "p".into())),
        ..Options::default()
    })
}

#[test]
fn a_mirror_is_asked_first() {
    let server = Server::start(|_| reply(500, ""));
    let mirror = Server::start(|_| reply(200, "abc"));
    let registry = mirrored(&server, &mirror, "/hub/");
    assert_eq!(registry.root(100).unwrap().bytes, b"abc");
    assert_eq!(blob(&registry, 3).unwrap(), b"abc");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(mirror.lines()[0], "GET /v2/hub/x/manifests/t");
}

#[test]
fn a_mirror_that_fails_is_asked_no_more_and_gets_no_password() {
    for status in [401, 404, 429, 500] {
        let server = Server::start(|request| match request.header("authorization") {
            "Basic dTpw" => reply(200, "abc"),
            _ => reply(401, "").with("WWW-Authenticate", "Basic"),
        });
        let mirror = Server::start(move |_| reply(status, "").with("WWW-Authenticate", "Basic"));
        let registry = mirrored(&server, &mirror, "");
        assert_eq!(registry.root(100).unwrap().bytes, b"abc");
        assert_eq!(blob(&registry, 3).unwrap(), b"abc");
        assert_eq!(mirror.requests().len(), 1, "{status}");
        assert_eq!(mirror.requests()[0].header("authorization"), "");
    }
}

#[test]
fn a_download_that_a_mirror_breaks_off_is_finished_by_the_registry() {
    let bytes = content(1000);
    let whole = bytes.clone();
    let server = Server::start(move |request| part(&whole, request.from()));
    let first = bytes.clone();
    let mirror = Server::start(move |request| match request.from() {
        0 => reply(200, first.clone()).cut(400),
        _ => reply(503, ""),
    });
    assert!(blob(&mirrored(&server, &mirror, ""), 1000).unwrap() == bytes);
    assert_eq!(server.requests()[0].from(), 400);
}

#[test]
fn when_all_fail_all_are_named() {
    let server = Server::start(|_| reply(404, ""));
    let mirror = Server::start(|_| reply(403, ""));
    let error = root_error(&mirrored(&server, &mirror, ""));
    has_parts(
        &error,
        &[&format!("mirror {}: 403", mirror.host()), &format!("registry {}: 404", server.host())],
    );
}

#[test]
fn mirrors_as_people_write_them() {
    let mirror = |text: &str| Mirror::parse(text).map_err(|error| error.to_string());
    let of = |of: &str, plain_http, host: &str, prefix: &str| Mirror {
        of: of.into(),
        plain_http,
        host: host.into(),
        prefix: prefix.into(),
    };
    assert_eq!(mirror("docker.io=https://m.example").unwrap(), of("docker.io", false, "m.example", ""));
    assert_eq!(
        mirror("index.docker.io=m.example:1/a/b/").unwrap(),
        of("docker.io", false, "m.example:1", "a/b")
    );
    assert_eq!(mirror("r:5=http://[::1]:5").unwrap(), of("r:5", true, "[::1]:5", ""));
    for wrong in ["docker.io", "=m", "docker.io=", "a/b=m", "r=ftp://m", "r=u:p@m", "r=m/A", "r=m?x"] {
        assert!(mirror(wrong).is_err_and(|error| error.starts_with("mirror ")), "{wrong}");
    }
    let plain = mirror("127.0.0.1:1=http://m.example").unwrap();
    let reference = Reference::parse("127.0.0.1:1/x").unwrap();
    let open = |plain_http| {
        let mirrors = vec![plain.clone()];
        Registry::open(&reference, &Options { mirrors, plain_http, ..Options::default() })
    };
    assert!(open(false).is_err_and(|error| error.to_string().contains("--plain-http")));
    assert!(open(true).is_ok());
}
