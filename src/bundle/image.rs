//! From an image's name to its layers and configuration: index, manifest, configuration, each one
//! verified before it is read (image-spec image-index.md, manifest.md, config.md).

use crate::digest::Digest;
use crate::error::{Context, Error, Result, escape};
use crate::limits::{Limits, check};
use crate::source::docker::DockerArchive;
use crate::source::{Blob, Source, Wanted};
use crate::unpack::stream::Compression;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// As deep as indexes may be within indexes.
const NESTED: usize = 4;

/// An image that a name has led to.
#[derive(Debug)]
pub struct Image {
    /// What identifies it: its manifest's digest, or its configuration's where there is no manifest.
    pub digest: Digest,
    pub config: ImageConfiguration,
    pub config_digest: Digest,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// What its user should know.
    pub warnings: Vec<String>,
}

/// A layer that isn't fetched yet.
#[derive(Debug, Clone)]
pub struct Layer {
    /// From 1.
    pub number: usize,
    pub wanted: Wanted,
    /// The blob's; None in an archive by `docker save`.
    pub digest: Option<Digest>,
    pub diff_id: Digest,
    pub compression: Compression,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.as_ref().unwrap_or(&self.diff_id);
        write!(f, "layer {} ({})", self.number, digest.short())
    }
}

impl Image {
    /// The chain ids: what the layers up to each one make (config.md, "Layer ChainID").
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::new();
        for layer in &self.layers {
            chain.push(match chain.last() {
                None => layer.diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {}", layer.diff_id).as_bytes()),
            });
        }
        chain
    }
}

/// Which of several images for different machines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// That of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Parses `os/arch/variant`, or `arch` alone.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err("not of the form os/architecture/variant".into()),
        };
        if os.is_empty() || architecture.is_empty() || variant.as_deref() == Some("") {
            return Err("not of the form os/architecture/variant".into());
        }
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        Ok(Platform { os: os.into(), architecture: architecture.into(), variant })
    }

    /// Whether an image for `other` is one for this: arm64 is v8, and arm without a variant v7.
    fn takes(&self, other: &Platform) -> bool {
        let variant = |platform: &Platform| match (&*platform.architecture, platform.variant.as_deref()) {
            ("arm64", None) => "v8".to_owned(),
            ("arm", None) => "v7".to_owned(),
            ("amd64", None) => "v1".to_owned(),
            (_, variant) => variant.unwrap_or_default().to_owned(),
        };
        self.os == other.os && self.architecture == other.architecture && variant(self) == variant(other)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// An index or a manifest: which of them, is decided with care (CVE-2021-41190).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u64,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    layers: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

enum Kind {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

/// Finds out what a document is, and that it can't be taken for anything else.
fn kind(bytes: &[u8], said: Option<&str>) -> Result<Kind> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| Error::new(format!("it can't be read: {error}")))?;
    if document.schema_version != 2 {
        return Err(Error::new(format!(
            "a manifest of version {}, only 2 is known",
            document.schema_version
        )));
    }
    let own = document.media_type.as_deref().filter(|media_type| !media_type.is_empty());
    if let (Some(own), Some(said)) = (own, said)
        && own != said
    {
        return Err(Error::new(format!(
            "it says that it is {:?}, but {:?} was announced",
            escape(own),
            escape(said)
        )));
    }
    let is_index = match own.or(said) {
        Some("application/vnd.oci.image.index.v1+json")
        | Some("application/vnd.docker.distribution.manifest.list.v2+json") => Some(true),
        Some("application/vnd.oci.image.manifest.v1+json")
        | Some("application/vnd.docker.distribution.manifest.v2+json") => Some(false),
        // Some registries announce this for everything.
        Some("application/json") | None => None,
        Some(other) => return Err(Error::new(format!("media type {:?} is no image's", escape(other)))),
    };
    match (is_index, document.manifests, document.config, document.layers) {
        (Some(true) | None, Some(manifests), None, None) => Ok(Kind::Index(manifests)),
        (Some(false) | None, None, Some(config), Some(layers)) => Ok(Kind::Manifest { config, layers }),
        (_, Some(_), _, _) => {
            Err(Error::new("it is an index and a manifest at the same time, or not what its media type says"))
        }
        _ => Err(Error::new("it is neither an index nor a manifest of an image")),
    }
}

/// Follows a source's root to an image for `platform`: that which was asked for, or this machine's.
pub fn resolve(source: &dyn Source, platform: Option<&Platform>, limits: &Limits) -> Result<Image> {
    let root = source.root(limits.manifest)?;
    let digest = Digest::of(&root.bytes);
    if let Some(expected) = source.digest()? {
        expected.verify(&root.bytes).doing(|| "manifest".into())?;
    }
    let mut found = kind(&root.bytes, root.media_type.as_deref()).doing(|| "manifest or index".into())?;
    let mut identity = digest;
    for depth in 0.. {
        let manifests = match found {
            Kind::Manifest { config, layers } => {
                return image(source, identity, &config, &layers, platform, limits);
            }
            Kind::Index(manifests) => manifests,
        };
        if depth == NESTED {
            break;
        }
        let named = if depth == 0 { tagged(manifests, source.tag())? } else { manifests };
        let chosen = choose(&named, platform)?;
        let what = || format!("manifest {}", escape(&chosen.digest));
        let bytes = fetch(source, &chosen, limits.manifest, "--max-manifest").doing(what)?;
        identity = Digest::parse(&chosen.digest)?;
        let said = Some(chosen.media_type.as_str()).filter(|said| !said.is_empty());
        found = kind(&bytes, said).doing(what)?;
    }
    Err(Error::new(format!("indexes more than {NESTED} deep")))
}

/// Those of an index of images that have the tag (annotations.md, `org.opencontainers.image.ref.name`).
fn tagged(manifests: Vec<Descriptor>, tag: Option<&str>) -> Result<Vec<Descriptor>> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let has = |tag: &str| {
        let matches = |one: &&Descriptor| {
            one.annotation(NAME) == Some(tag) || one.annotation("io.containerd.image.name") == Some(tag)
        };
        manifests.iter().filter(matches).cloned().collect::<Vec<_>>()
    };
    let mut names: Vec<String> =
        manifests.iter().filter_map(|one| one.annotation(NAME)).map(escape).collect();
    names.sort();
    names.dedup();
    match tag {
        Some(tag) => match has(tag) {
            found if found.is_empty() => Err(Error::new(format!(
                "there is no image {:?} here; there are: {}",
                escape(tag),
                names.join(", ")
            ))),
            found => Ok(found),
        },
        None if names.len() < 2 => Ok(manifests),
        None => match has("latest") {
            found if found.is_empty() => {
                Err(Error::new(format!("there are several images here: {}", names.join(", ")))
                    .hint("name one: oci:DIR:TAG"))
            }
            found => Ok(found),
        },
    }
}

/// The manifest for a platform.
fn choose(manifests: &[Descriptor], platform: Option<&Platform>) -> Result<Descriptor> {
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    let matches = |one: &&Descriptor| one.platform.as_ref().is_some_and(|other| wanted.takes(other));
    if let Some(found) = manifests.iter().find(matches) {
        return Ok(found.clone());
    }
    // Without a platform it is for any, as far as the index knows: an index within, or a lone image.
    let unknown: Vec<_> = manifests.iter().filter(|one| one.platform.is_none()).collect();
    if let [only] = unknown[..] {
        return Ok(only.clone());
    }
    let there: Vec<String> = manifests
        .iter()
        .filter_map(|one| one.platform.as_ref())
        .map(|one| escape(&one.to_string()))
        .collect();
    match (there.is_empty(), manifests.is_empty()) {
        (_, true) => Err(Error::new("the index is empty")),
        (true, false) => Err(Error::new("the index has several images, and says nothing of their platforms")),
        (false, false) => {
            Err(Error::new(format!("there is no image for {wanted}; there are: {}", there.join(", ")))
                .hint("--platform chooses one"))
        }
    }
}

/// A blob that is short, verified.
fn fetch(source: &dyn Source, descriptor: &Descriptor, most: u64, option: &str) -> Result<Vec<u8>> {
    let digest = Digest::parse(&descriptor.digest)?;
    check("bytes", descriptor.size, most, option)?;
    let is_manifest = option == "--max-manifest";
    let wanted = Wanted { digest: descriptor.digest.clone(), size: descriptor.size, is_manifest };
    let mut bytes = Vec::new();
    match source.blob(&wanted)? {
        Blob::File(file) => file.take(descriptor.size).read_to_end(&mut bytes)?,
        Blob::Stream(stream) => stream.take(descriptor.size + 1).read_to_end(&mut bytes)?,
    };
    if bytes.len() as u64 != descriptor.size {
        return Err(Error::new(format!("it has {} bytes, but its size is {}", bytes.len(), descriptor.size)));
    }
    digest.verify(&bytes)?;
    Ok(bytes)
}

fn image(
    source: &dyn Source,
    digest: Digest,
    config: &Descriptor,
    layers: &[Descriptor],
    platform: Option<&Platform>,
    limits: &Limits,
) -> Result<Image> {
    match &*config.media_type {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
        other => {
            let other = escape(other);
            return Err(Error::new(format!("this is no container image: its configuration is {other:?}")));
        }
    }
    let bytes = fetch(source, config, limits.config, "--max-config").doing(|| "configuration".into())?;
    let parsed = configuration(&bytes)?;
    let diff_ids = diff_ids(&parsed, layers.len(), limits)?;
    let layers = layers.iter().zip(diff_ids).enumerate().map(|(index, (layer, diff_id))| {
        let number = index + 1;
        let compression =
            compression(&layer.media_type).map_err(|error| error.prefix(format!("layer {number}")))?;
        let digest = Digest::parse(&layer.digest).doing(|| format!("layer {number}"))?;
        let wanted = Wanted { digest: layer.digest.clone(), size: layer.size, is_manifest: false };
        Ok(Layer { number, wanted, digest: Some(digest), diff_id, compression })
    });
    let layers = layers.collect::<Result<_>>()?;
    let warnings = platform_warnings(&parsed, platform)?;
    let config_digest = Digest::parse(&config.digest)?;
    Ok(Image { digest, config: parsed, config_digest, layers, warnings })
}

/// An image of an archive by `docker save`.
pub fn saved(archive: &DockerArchive, platform: Option<&Platform>, limits: &Limits) -> Result<Image> {
    let saved = archive.saved(limits.manifest)?;
    let (bytes, digest) = archive.config(&saved, limits.config)?;
    let config = configuration(&bytes)?;
    let diff_ids = diff_ids(&config, saved.layers.len(), limits)?;
    let layers = saved.layers.iter().zip(diff_ids).enumerate().map(|(index, (name, diff_id))| {
        let wanted = Wanted { digest: name.clone(), size: archive.size(name)?, is_manifest: false };
        Ok(Layer { number: index + 1, wanted, digest: None, diff_id, compression: Compression::Any })
    });
    let layers = layers.collect::<Result<_>>()?;
    let warnings = platform_warnings(&config, platform)?;
    Ok(Image { digest: digest.clone(), config, config_digest: digest, layers, warnings })
}

fn configuration(bytes: &[u8]) -> Result<ImageConfiguration> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(format!("configuration: it can't be read: {error}")))
}

fn diff_ids(config: &ImageConfiguration, layers: usize, limits: &Limits) -> Result<Vec<Digest>> {
    check("layers", layers as u64, limits.layers as u64, "--max-layers")?;
    let root = config.rootfs();
    if root.typ() != "layers" {
        return Err(Error::new(format!(
            "configuration: a root file system of type {:?}",
            escape(root.typ())
        )));
    }
    if root.diff_ids().len() != layers {
        let ids = root.diff_ids().len();
        return Err(Error::new(format!("configuration: it has {ids} diffIDs for {layers} layers")));
    }
    root.diff_ids().iter().map(|id| Digest::parse(id).doing(|| "configuration: diffID".into())).collect()
}

fn platform_warnings(config: &ImageConfiguration, platform: Option<&Platform>) -> Result<Vec<String>> {
    let own = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone(),
    };
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    if own.os == wanted.os && own.architecture == wanted.architecture {
        return Ok(Vec::new());
    }
    let text = format!("the image is for {}", escape(&own.to_string()));
    match platform {
        Some(asked) => Err(Error::new(format!("{text}, not for {asked}"))),
        None => Ok(vec![format!("{text}, and this machine is {wanted}")]),
    }
}

/// How a layer is compressed, by its media type; those that can't be unpacked are refused by name.
fn compression(media_type: &str) -> Result<Compression> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        foreign if foreign.contains("nondistributable") || foreign.contains("foreign") => {
            Err(Error::new(format!("{:?} is kept elsewhere, and isn't fetched from there", escape(foreign))))
        }
        encrypted if encrypted.ends_with("+encrypted") => {
            Err(Error::new(format!("{:?} is encrypted", escape(encrypted))))
        }
        other => Err(Error::new(format!("media type {:?} can't be unpacked", escape(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn document(fields: &str) -> std::result::Result<&'static str, String> {
        let text = format!(r#"{{"schemaVersion":2,{fields}}}"#);
        match kind(text.as_bytes(), None) {
            Ok(Kind::Index(_)) => Ok("index"),
            Ok(Kind::Manifest { .. }) => Ok("manifest"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_document_is_one_thing() {
        let blob = format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":0}}"#);
        let (config, layers, manifests) =
            (format!(r#""config":{blob}"#), r#""layers":[]"#, r#""manifests":[]"#);
        assert_eq!(document(manifests), Ok("index"));
        assert_eq!(document(&format!("{config},{layers}")), Ok("manifest"));
        let index = r#""mediaType":"application/vnd.oci.image.index.v1+json""#;
        for bad in [
            format!("{config},{layers},{manifests}"),
            format!("{index},{config},{layers}"),
            format!(r#""mediaType":"application/vnd.oci.image.manifest.v1+json",{manifests}"#),
            format!(r#""mediaType":"x",{manifests}"#),
            layers.to_owned(),
        ] {
            assert!(document(&bad).is_err(), "{bad}");
        }
        assert!(kind(br#"{"schemaVersion":1,"manifests":[]}"#, None).is_err());
        let announced = format!(r#"{{"schemaVersion":2,{index},"manifests":[]}}"#);
        assert!(kind(announced.as_bytes(), Some("application/vnd.oci.image.manifest.v1+json")).is_err());
    }

    #[test]
    fn platforms_with_their_variants() {
        let parse = |text| Platform::parse(text).expect(text);
        assert!(parse("linux/arm64").takes(&parse("linux/arm64/v8")));
        assert!(parse("linux/arm64/v8").takes(&parse("arm64")));
        assert!(!parse("linux/arm/v6").takes(&parse("linux/arm/v7")));
        assert!(!parse("linux/amd64").takes(&parse("windows/amd64")));
        assert!(!parse("amd64").takes(&parse("linux/amd64/v3")), "which not every machine can run");
        for bad in ["", "a/b/c/d", "linux/", "/x"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cant_be_unpacked_is_refused_by_name() {
        for bad in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.empty.v1+json",
        ] {
            let error = compression(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
