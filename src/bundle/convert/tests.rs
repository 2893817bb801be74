use super::*;
use std::fs::File;
use std::os::fd::AsFd;
use tempfile::TempDir;

/// What the golden texts are compared with; `BLESS=1` writes them.
fn golden(name: &str, spec: &Spec) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("convert/golden").join(name);
    let text = spec.text();
    serde_json::from_str::<oci_spec::runtime::Spec>(&text).expect("the runtime can read it");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).expect("write");
    }
    assert_eq!(fs::read_to_string(&path).expect("read"), text, "{name}: BLESS=1 writes it anew");
}

/// Of no real host.
fn host() -> Host {
    let (root, masked) = ("rootfs".to_owned(), vec![]);
    Host { root, mounts: vec![], mappings: None, architecture: "x86_64", masked }
}

fn root(passwd: &str, group: &str) -> (TempDir, File) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("etc")).expect("mkdir");
    fs::write(dir.path().join("etc/passwd"), passwd).expect("write");
    fs::write(dir.path().join("etc/group"), group).expect("write");
    let fd = File::open(dir.path()).expect("open");
    (dir, fd)
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\npostgres:x:999:999::/var/lib/postgresql:/bin/bash\n";
const GROUP: &str = "root:x:0:\nssl-cert:x:101:postgres\npostgres:x:999:\n";

fn image(config: &str) -> ImageConfiguration {
    let text = format!(
        r#"{{"created": "2026-06-10T00:00:00Z", "architecture": "amd64", "os": "linux", "config": {config},
            "rootfs": {{"type": "layers", "diff_ids": []}}, "history": [{{"created_by": "x", "new": 1}}]}}"#
    );
    serde_json::from_str(&text).expect("it parses")
}

const POSTGRES: &str = r#"{"User": "postgres", "ExposedPorts": {"5432/tcp": {}}, "StopSignal": "SIGINT",
    "Env": ["PATH=/usr/lib/postgresql/17/bin:/usr/bin:/bin", "PGDATA=/var/lib/postgresql/data"],
    "Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["postgres"], "Volumes": {"/var/lib/postgresql/data": {}},
    "WorkingDir": "/var/lib/postgresql", "Labels": {"maintainer": "A <a@example.org>", "run.oci.x": "1"}}"#;

#[test]
fn debian() {
    let (_dir, root) = root(PASSWD, GROUP);
    let image = image(r#"{"Env": ["PATH=/usr/local/sbin:/usr/bin"], "Cmd": ["bash"], "Volumes": null}"#);
    let converted = convert(Some(&image), root.as_fd(), &Changes::default(), &host()).expect("converted");
    golden("debian.json", &converted.spec);
    assert!(converted.notes.is_empty(), "{:?}", converted.notes);
}

#[test]
fn postgres_with_every_change() {
    let (dir, root) = root(PASSWD, GROUP);
    fs::create_dir_all(dir.path().join("var/lib/postgresql/data")).expect("mkdir");
    let text = |text: &str| text.to_owned();
    let changes = Changes {
        command: vec![text("postgres"), text("-c"), text("fsync=off")],
        env: vec![text("PGDATA=/data"), text("POSTGRES_PASSWORD=x")],
        tty: true,
        hostname: Some(text("db")),
        read_only: true,
        memory: Some(512 << 20),
        cpus: Some(changes::Cpus(150_000)),
        pids_limit: Some(100),
        cap_add: vec![capabilities::parse("SYS_ADMIN").expect("a name")],
        cap_drop: vec![capabilities::parse("MKNOD").expect("a name")],
        volume: vec!["/usr:/var/lib/postgresql/data:ro,nosuid".parse().expect("it parses")],
        ..Changes::default()
    };
    let overlay = Mount {
        destination: text("/"),
        kind: text("overlay"),
        source: text("overlay"),
        options: vec![text("lowerdir=/a:/b")],
    };
    let host =
        Host { mounts: vec![overlay], masked: vec![text("/sys/x")], architecture: "aarch64", ..host() };
    let converted = convert(Some(&image(POSTGRES)), root.as_fd(), &changes, &host).expect("converted");
    golden("postgres.json", &converted.spec);
    assert_eq!(converted.notes.len(), 1, "{:?}", converted.notes);
}

#[test]
fn rootless() {
    let (_dir, root) = root(PASSWD, GROUP);
    let range = |container_id, host_id, size| IdMapping { container_id, host_id, size };
    let ids = vec![range(0, 1000, 1), range(1, 100_000, 65_536)];
    let host = Host { mappings: Some(Mappings { uids: ids.clone(), gids: ids }), ..host() };
    let changes = Changes { rootless: true, ..Changes::default() };
    let converted = convert(Some(&image(POSTGRES)), root.as_fd(), &changes, &host).expect("converted");
    golden("rootless.json", &converted.spec);
    assert_eq!(converted.notes.len(), 2, "{:?}", converted.notes);

    let one = vec![range(0, 1000, 1)];
    let host = Host { mappings: Some(Mappings { uids: one.clone(), gids: one }), ..host };
    let error = convert(Some(&image(POSTGRES)), root.as_fd(), &changes, &host).expect_err("not mapped");
    let expected = "the image's user \"postgres\": user id 999 is not mapped in the user namespace (--user 0";
    assert!(error.to_string().starts_with(expected), "{error}");
    let changes = Changes { user: Some("root".into()), ..changes };
    let spec = convert(Some(&image(POSTGRES)), root.as_fd(), &changes, &host).expect("converted").spec;
    assert_eq!(spec.process.user.additional_gids, [0; 0]);
    assert_eq!(spec.linux.resources.devices.len(), 1);
    assert_eq!(spec.linux.resources.memory, None);
}

#[test]
fn errors_say_whose_they_are() {
    let (_dir, root) = root(PASSWD, GROUP);
    let error = |config: &str, changes: &Changes| {
        let image = image(config);
        convert(Some(&image), root.as_fd(), changes, &host()).expect_err("it is wrong").to_string()
    };
    let none = Changes::default();
    assert!(error("{}", &none).contains("doesn't say what to run"));
    assert!(error("null", &none).contains("doesn't say what to run"));
    assert!(
        error(r#"{"Cmd": ["a"], "User": "4294967296"}"#, &none)
            .starts_with("the image's user \"4294967296\": ")
    );
    let user = Changes { user: Some("bob".into()), ..Changes::default() };
    assert!(error(r#"{"Cmd": ["a"]}"#, &user).starts_with("--user \"bob\": there is no user"));
    assert!(error(r#"{"Cmd": ["a"], "WorkingDir": "x"}"#, &none).contains("not an absolute path"));
    assert_eq!(error(r#"{"Cmd": ["a\u0000"]}"#, &none), "the image's Cmd contains a NUL character");
    let network = Changes { network: Network::Path("/no/such".into()), ..Changes::default() };
    assert!(error(r#"{"Cmd": ["a"]}"#, &network).starts_with("--network /no/such: "));
}

#[test]
fn a_root_file_system_without_an_image() {
    let (_dir, root) = root("", "");
    let changes = Changes { args: vec!["sh".into()], network: Network::Host, ..Changes::default() };
    let spec = convert(None, root.as_fd(), &changes, &Host::here("/r")).expect("converted").spec;
    assert!(spec.annotations.is_empty());
    assert_eq!((spec.hostname, spec.process.user.uid, spec.process.cwd.as_str()), (None, 0, "/"));
    assert!(spec.linux.namespaces.iter().all(|namespace| namespace.kind != "network"));
    assert!(spec.linux.sysctl.is_empty());
}
