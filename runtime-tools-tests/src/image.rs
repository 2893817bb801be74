//! Images for tests of `bundle`: right ones, and such as nobody would make who means well.

pub mod tar;

use crate::harness::Verdict;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use tar::Entry;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// `sha256:` and the digest of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", hex.concat())
}

/// What a manifest or an index says of a blob.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// How a layer's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// One layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub media_type: String,
    /// The digest of what is in the blob.
    pub diff_id: String,
}

impl Layer {
    /// The archive, packed.
    pub fn new(tar: &[u8], packing: Packing) -> Self {
        let (blob, suffix) = match packing {
            Packing::Plain => (tar.to_vec(), ""),
            Packing::Gzip => (gzip(tar), "+gzip"),
            Packing::Zstd => (zstd::encode_all(tar, 1).expect("memory doesn't fail"), "+zstd"),
        };
        Layer { blob, media_type: format!("{LAYER}{suffix}"), diff_id: digest(tar) }
    }

    /// These entries in a complete archive.
    pub fn of(entries: &[Entry]) -> Self {
        Layer::new(&tar::archive(entries), Packing::Plain)
    }

    pub fn descriptor(&self) -> Value {
        descriptor(&self.media_type, &self.blob)
    }
}

/// One gzip member.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(bytes, 1)
}

/// One gzip member, of a level from 0 to 9.
pub fn gzip_at(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory doesn't fail")
}

/// A zstd frame by hand: blocks of the same byte 128 KiB long, or shorter, in a window of
/// 2^`window_log` bytes. Four bytes make 128 KiB.
pub fn zstd_frame(byte: u8, mut length: usize, window_log: u8) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    loop {
        let size = length.min(BLOCK);
        length -= size;
        // Last_Block, Block_Type 1 (RLE), Block_Size: RFC 8878, 3.1.1.2.
        let header = u32::from(length == 0) | 1 << 1 | (size as u32) << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(byte);
        if length == 0 {
            return frame;
        }
    }
}

type Change = Box<dyn Fn(&mut Value)>;

/// An image of some layers; what is said about them can be changed before the digests are made.
#[derive(Default)]
pub struct Image {
    pub layers: Vec<Layer>,
    config: Vec<Change>,
    manifest: Vec<Change>,
}

impl Image {
    pub fn new(layers: &[Layer]) -> Self {
        Image { layers: layers.to_vec(), ..Image::default() }
    }

    pub fn change_config(mut self, change: impl Fn(&mut Value) + 'static) -> Self {
        self.config.push(Box::new(change));
        self
    }

    pub fn change_manifest(mut self, change: impl Fn(&mut Value) + 'static) -> Self {
        self.manifest.push(Box::new(change));
        self
    }

    /// The configuration's bytes.
    pub fn config(&self) -> Vec<u8> {
        let mut config = json!({
            "created": "2020-01-01T00:00:00Z",
            "architecture": architecture(),
            "os": "linux",
            "config": { "Cmd": ["/probe", "report"], "Env": ["FROM=image"] },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
        });
        self.config.iter().for_each(|change| change(&mut config));
        config.to_string().into_bytes()
    }

    /// The manifest's bytes, for a configuration of these.
    pub fn manifest(&self, config: &[u8]) -> Vec<u8> {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": self.layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        self.manifest.iter().for_each(|change| change(&mut manifest));
        manifest.to_string().into_bytes()
    }

    /// As a directory of the image layout, with the tag `latest`.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        let manifest = layout.add(self);
        layout.top(&[tagged(manifest, "latest")]);
        layout
    }

    /// What `docker save` wrote up to version 24: a directory for each layer, without compression.
    pub fn docker_save(&self, name: &str) -> Files {
        let mut files = Files::new();
        let config = self.config();
        let config_name = format!("{}.json", &digest(&config)["sha256:".len()..]);
        let mut names = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            // An image's parents differ though their layers be the same.
            let id = digest(format!("{index} {}", layer.diff_id).as_bytes())["sha256:".len()..].to_owned();
            let path = format!("{id}/layer.tar");
            files.insert(format!("{id}/VERSION"), Node::File(b"1.0".to_vec()));
            files.insert(format!("{id}/json"), Node::File(json!({ "id": id }).to_string().into_bytes()));
            // The same content a second time is a link to the first.
            let first = self.layers.iter().position(|other| other.blob == layer.blob).unwrap_or(index);
            let node = match names.get(first) {
                Some(path) => Node::Symlink(format!("../{path}")),
                None => Node::File(layer.blob.clone()),
            };
            files.insert(path.clone(), node);
            names.push(path);
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": names }]);
        files.insert(config_name, Node::File(config));
        files.insert("manifest.json".into(), Node::File(manifest.to_string().into_bytes()));
        files
    }

    /// What `docker save` writes from version 25: an image layout that has the old manifest.json too.
    pub fn docker_save_with_blobs(&self, name: &str) -> Files {
        let mut files = self.layout().files;
        let blob = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let layers: Vec<String> = self.layers.iter().map(|layer| blob(&digest(&layer.blob))).collect();
        let config = blob(&digest(&self.config()));
        let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": layers }]);
        files.insert("manifest.json".into(), Node::File(manifest.to_string().into_bytes()));
        files
    }
}

/// A descriptor with a name for people.
pub fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    descriptor
}

/// This machine's, as Go calls it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What is at a path of an image.
#[derive(Debug, Clone)]
pub enum Node {
    File(Vec<u8>),
    Symlink(String),
    Fifo,
}

/// An image as files, by their paths.
pub type Files = BTreeMap<String, Node>;

/// An image layout.
#[derive(Debug, Clone)]
pub struct Layout {
    pub files: Files,
}

impl Default for Layout {
    fn default() -> Self {
        let mut layout = Layout { files: Files::new() };
        layout.put("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        layout.top(&[]);
        layout
    }
}

impl Layout {
    pub fn put(&mut self, path: &str, bytes: impl AsRef<[u8]>) {
        self.files.insert(path.into(), Node::File(bytes.as_ref().to_vec()));
    }

    /// Adds a blob, and returns its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: impl AsRef<[u8]>) -> Value {
        let descriptor = descriptor(media_type, bytes.as_ref());
        self.put(&blob_path(&descriptor), bytes);
        descriptor
    }

    /// Adds an image, and returns its manifest's descriptor.
    pub fn add(&mut self, image: &Image) -> Value {
        for layer in &image.layers {
            self.blob(&layer.media_type, &layer.blob);
        }
        let config = image.config();
        self.blob(CONFIG, &config);
        self.blob(MANIFEST, image.manifest(&config))
    }

    /// Adds an index as a blob.
    pub fn index(&mut self, manifests: &[Value]) -> Value {
        self.blob(INDEX, index(manifests).to_string())
    }

    /// Makes index.json one of these.
    pub fn top(&mut self, manifests: &[Value]) {
        self.put("index.json", index(manifests).to_string());
    }
}

/// An index of these.
pub fn index(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// Where a layout has the blob.
pub fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

/// Writes them into a new directory.
pub fn write_directory(files: &Files, directory: &Path) -> Verdict {
    fs::create_dir_all(directory)?;
    for (name, node) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        match node {
            Node::File(bytes) => fs::write(&path, bytes)?,
            Node::Symlink(target) => std::os::unix::fs::symlink(target, &path)?,
            Node::Fifo => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644))?,
        }
    }
    Ok(())
}

/// The entries of an archive of them, in the order of their names.
pub fn entries(files: &Files) -> Vec<Entry> {
    let entry = |(name, node): (&String, &Node)| match node {
        Node::File(bytes) => Entry::file(name, bytes),
        Node::Symlink(target) => Entry::symlink(name, target),
        Node::Fifo => Entry::new(b'6', name),
    };
    files.iter().map(entry).collect()
}
