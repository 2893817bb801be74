//! `annotations`: what an image says of itself.
//!
//! Annotations of the manifest and the index are not among them: conversion.md advises against it.

use oci_spec::image::ImageConfiguration;
use std::collections::BTreeMap;

/// Keys, or beginnings of keys, that make a runtime do something: damda, or another one that is given the
/// bundle. A label is what whoever made the image wrote, and no instruction (CVE-2026-53488).
const INTERPRETED: [(&str, &str); 9] = [
    ("org.systemd.property.", "damda, runc and crun set it on the systemd unit"),
    ("org.criu.config", "damda, runc and crun have CRIU read that file"),
    ("run.oci.", "damda and crun act on it"),
    ("bundle", "runc takes it for the path of the bundle"),
    ("module.wasm.image/", "crun acts on it"),
    ("io.katacontainers.", "Kata Containers configures its virtual machine by it"),
    ("dev.gvisor.", "gVisor takes flags from it"),
    ("io.kubernetes.cri.", "gVisor and Kata Containers look for the container's sandbox by it"),
    ("io.kubernetes.cri-o.", "as io.kubernetes.cri."),
];

fn interpreted(key: &str) -> Option<&'static str> {
    let matches = |known: &str| match known.ends_with(['.', '/']) {
        true => key.starts_with(known),
        false => key == known,
    };
    INTERPRETED.iter().find(|(known, _)| matches(known)).map(|(_, why)| *why)
}

/// The annotations, and in words what was left out. Labels go before what the image's other properties
/// imply (conversion.md, "Annotations").
pub fn annotations(image: &ImageConfiguration) -> (BTreeMap<String, String>, Vec<String>) {
    let mut annotations: BTreeMap<_, _> = implied(image)
        .into_iter()
        .filter_map(|(key, value)| Some((format!("org.opencontainers.image.{key}"), value?)))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let mut notes = Vec::new();
    for (key, value) in image.labels_of_config().into_iter().flatten() {
        if key.is_empty() {
            notes.push("a label of the image has no name: left out".to_owned());
        } else if let Some(why) = interpreted(key) {
            notes.push(format!("the image's label {key:?} is left out: as an annotation {why}"));
        } else {
            annotations.insert(key.clone(), value.clone());
        }
    }
    notes.sort();
    (annotations, notes)
}

fn implied(image: &ImageConfiguration) -> [(&'static str, Option<String>); 9] {
    let config = image.config().as_ref();
    let ports = config.and_then(|config| config.exposed_ports().clone()).map(|mut ports| {
        ports.sort(); // oci-spec has them in no order
        ports.join(",")
    });
    [
        ("os", Some(image.os().to_string())),
        ("architecture", Some(image.architecture().to_string())),
        ("variant", image.variant().clone()),
        ("os.version", image.os_version().clone()),
        ("os.features", image.os_features().as_ref().map(|features| features.join(","))),
        ("author", image.author().clone()),
        ("created", image.created().clone()),
        ("stopSignal", config.and_then(|config| config.stop_signal().clone())),
        ("exposedPorts", ports),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_first_and_as_data() {
        let image: ImageConfiguration = serde_json::from_str(
            r#"{"architecture": "arm64", "variant": "v8", "os": "linux", "os.version": "", "os.features": ["a", "b"],
                "author": "A", "created": "2026-01-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": []},
                "config": {"StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Volumes": null,
                "Labels": {"org.opencontainers.image.author": "B", "a": "", "": "x", "bundle": "/", "bundles": "1",
                "org.systemd.property.ExecStart": "'x'", "run.oci.hooks.stdout": "/etc/passwd",
                "org.criu.config": "/x", "io.kubernetes.cri.container-type": "sandbox"}}}"#,
        )
        .expect("it parses");
        let (annotations, notes) = annotations(&image);
        let expected = [
            ("a", ""),
            ("bundles", "1"),
            ("org.opencontainers.image.architecture", "arm64"),
            ("org.opencontainers.image.author", "B"),
            ("org.opencontainers.image.created", "2026-01-01T00:00:00Z"),
            ("org.opencontainers.image.exposedPorts", "443/tcp,80/tcp"),
            ("org.opencontainers.image.os", "linux"),
            ("org.opencontainers.image.os.features", "a,b"),
            ("org.opencontainers.image.stopSignal", "SIGINT"),
            ("org.opencontainers.image.variant", "v8"),
        ];
        let annotations: Vec<_> =
            annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(annotations, expected);
        assert_eq!(notes.len(), 6, "{notes:?}");
        assert!(
            notes.iter().any(|note| note.starts_with("the image's label \"org.criu.config\" is left out"))
        );
    }
}
