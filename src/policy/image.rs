//! OCI image indexes, manifests and configs, parsed strictly from bytes whose digest was checked
//! (image-spec `manifest.md`, `image-index.md`, `config.md`; Docker's schema 2 names for the same things).
//!
//! A document is either a manifest or an index, never both, and what it calls itself must agree with what it was
//! fetched as: two readers that disagree about one digest are a hole (the matter of CVE-2021-41190).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::code::{Code, Denied};
use super::digest::Digest;
pub use super::platform::Platform;

/// Largest manifest or index in bytes (distribution-spec: registries should take at least this much).
pub const MAX_MANIFEST: usize = 4 << 20;
/// Largest image config in bytes. Real ones are some KiB; long histories reach a few hundred.
pub const MAX_CONFIG: usize = 8 << 20;
/// Most layers of one image. Docker stops at 127; tools that write one layer a package reach a few hundred.
pub const MAX_LAYERS: usize = 4096;

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzip-compressed OCI layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of an OCI layer that is a plain tar archive.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of an OCI layer that is a zstd-compressed tar archive.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Media type of Docker's schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of Docker's manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's schema 1, which is refused: its layers have no digests of their own in what is signed.
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What a manifest says about a blob (image-spec `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// The media type as written.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// Annotations, in their written order.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    pub annotations: Vec<(String, String)>,
}

/// What a layer's media type says of its bytes. The first bytes of the blob decide in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A plain tar archive.
    Tar,
    /// A gzip-compressed tar archive.
    TarGzip,
    /// A tar archive compressed with Zstandard.
    TarZstd,
    /// Something else: another compression, or no archive.
    Other,
}

/// A parsed image manifest.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// The media type of the manifest.
    pub media_type: String,
    /// `artifactType`, for artifacts.
    pub artifact_type: Option<String>,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest's own annotations (`org.opencontainers.image.revision` and the like).
    pub annotations: Vec<(String, String)>,
}

/// A parsed image index.
#[derive(Debug, Clone)]
pub struct ImageIndex {
    /// The media type of the index.
    pub media_type: String,
    /// The manifests with their platforms, in their written order.
    pub manifests: Vec<(Descriptor, Option<Platform>)>,
    /// The index's own annotations.
    pub annotations: Vec<(String, String)>,
}

/// What a digest can name.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Manifest(ImageManifest),
    /// A choice of images by platform.
    Index(ImageIndex),
}

impl Descriptor {
    /// What the media type says of a layer's bytes; OCI's and Docker's names, the non-distributable ones too.
    pub fn layer_kind(&self) -> LayerKind {
        let name = self.media_type.split(';').next().unwrap_or_default().trim();
        match name {
            OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => LayerKind::Tar,
            OCI_LAYER_GZIP
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => LayerKind::TarGzip,
            OCI_LAYER_ZSTD
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => LayerKind::TarZstd,
            _ => LayerKind::Other,
        }
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl ImageManifest {
    /// Parses a manifest. An index is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, Denied> {
        match parse_document("", bytes)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => Err(bad("the document is an image index where a manifest was expected")),
        }
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl ImageIndex {
    /// The manifest for `platform`: the same variant if there is one, else an entry that runs there too (arm64
    /// without a variant is v8). An index of one manifest that names no platform answers for every platform.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor, Denied> {
        if let [(only, None)] = self.manifests.as_slice() {
            return Ok(only);
        }
        let best = self
            .manifests
            .iter()
            .filter_map(|(d, p)| Some((platform.suits(p.as_ref()?)?, d)))
            .reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
            let known: Vec<String> =
                self.manifests.iter().filter_map(|(_, p)| p.as_ref().map(Platform::to_string)).collect();
            bad(format!(
                "the image index has nothing for {platform}; it has {}",
                if known.is_empty() { "no platforms at all".to_owned() } else { known.join(", ") }
            ))
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Value,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    annotations: Option<Map<String, Value>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    annotations: Option<Map<String, Value>>,
    platform: Option<Platform>,
}

/// Parses a manifest or an index. `media_type` is what it was fetched as (`Content-Type`, or the descriptor that
/// named it); `""` and types that say nothing, such as `application/json`, leave it to the document.
pub fn parse_document(media_type: &str, bytes: &[u8]) -> Result<Document, Denied> {
    if bytes.len() > MAX_MANIFEST {
        return Err(bad(format!("the manifest has {} bytes, more than {MAX_MANIFEST}", bytes.len())));
    }
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("the manifest is not valid: {e}")))?;
    let fetched_as = media_type.split(';').next().unwrap_or_default().trim();
    if raw.fs_layers.is_some() || fetched_as.starts_with(DOCKER_SCHEMA1) || raw.schema_version == 1 {
        return Err(bad(
            "Docker schema 1 manifests are not supported: push the image again with a current tool",
        ));
    }
    if raw.schema_version != 2 {
        return Err(bad(format!("schemaVersion is {}, expected 2", raw.schema_version)));
    }
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(bad("the document claims to be a manifest and an index at once"));
    }
    let is_index = raw.manifests.is_some();
    check_names(fetched_as, raw.media_type.as_deref(), is_index)?;
    let named = raw.media_type.unwrap_or_else(|| {
        let known = if is_index { [OCI_INDEX, DOCKER_INDEX] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
        if known.contains(&fetched_as) { fetched_as.to_owned() } else { known[0].to_owned() }
    });
    let annotations = annotations(raw.annotations)?;
    if let Some(manifests) = raw.manifests {
        let manifests = manifests.into_iter().map(with_platform).collect::<Result<_, _>>()?;
        return Ok(Document::Index(ImageIndex { media_type: named, manifests, annotations }));
    }
    let config = raw.config.ok_or_else(|| bad("the manifest has no config"))?;
    let layers = raw.layers.ok_or_else(|| bad("the manifest has no layers"))?;
    if layers.len() > MAX_LAYERS {
        return Err(bad(format!("the manifest has {} layers, more than {MAX_LAYERS}", layers.len())));
    }
    Ok(Document::Manifest(ImageManifest {
        media_type: named,
        artifact_type: raw.artifact_type,
        config: with_platform(config)?.0,
        layers: layers.into_iter().map(|l| with_platform(l).map(|l| l.0)).collect::<Result<_, _>>()?,
        annotations,
    }))
}

/// What it was fetched as, what it calls itself and what it holds must be one thing.
fn check_names(fetched_as: &str, own: Option<&str>, is_index: bool) -> Result<(), Denied> {
    let holds = if is_index { "an index" } else { "a manifest" };
    let agrees = |name: &str| match name {
        OCI_INDEX | DOCKER_INDEX => Some(is_index),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(!is_index),
        _ => None,
    };
    if agrees(fetched_as) == Some(false) {
        return Err(bad(format!("the document was fetched as {fetched_as} and holds {holds}")));
    }
    match own {
        Some(own) if agrees(own) != Some(true) => {
            Err(bad(format!("the document calls itself {own:?} and holds {holds}")))
        }
        Some(own) if agrees(fetched_as).is_some() && own != fetched_as => {
            Err(bad(format!("the document was fetched as {fetched_as} and calls itself {own}")))
        }
        _ => Ok(()),
    }
}

fn with_platform(raw: RawDescriptor) -> Result<(Descriptor, Option<Platform>), Denied> {
    // RFC 6838 allows 127 + 1 + 127 bytes.
    if raw.media_type.is_empty() || raw.media_type.len() > 255 {
        return Err(bad(format!("the descriptor of {} has no usable mediaType", raw.digest)));
    }
    if i64::try_from(raw.size).is_err() {
        return Err(bad(format!("the descriptor of {} says {} bytes", raw.digest, raw.size)));
    }
    let annotations = annotations(raw.annotations)?;
    let descriptor =
        Descriptor { media_type: raw.media_type, digest: raw.digest, size: raw.size, annotations };
    Ok((descriptor, raw.platform))
}

fn annotations(raw: Option<Map<String, Value>>) -> Result<Vec<(String, String)>, Denied> {
    raw.unwrap_or_default()
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(value) => Ok((key, value)),
            _ => Err(bad(format!("annotation {key:?} is not a string"))),
        })
        .collect()
}

fn as_map<S: serde::Serializer>(pairs: &[(String, String)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(pairs.iter().map(|(k, v)| (k, v)))
}

fn bad(message: impl Into<String>) -> Denied {
    Denied::new(Code::Oci, message)
}

pub use super::image_config::ImageConfig;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG),
            "layers": [descriptor(OCI_LAYER_GZIP), descriptor("application/vnd.oci.image.layer.v1.tar+zstd")],
            "annotations": {"z": "1", "a": "2"},
        })
    }

    fn entry(platform: Option<&str>, content: &[u8]) -> Value {
        let mut entry = descriptor(OCI_MANIFEST);
        entry["digest"] = json!(Digest::of(content).to_string());
        if let Some(text) = platform {
            let mut words = text.split('/');
            entry["platform"] = json!({"os": words.next(), "architecture": words.next()});
            if let Some(variant) = words.next() {
                entry["platform"]["variant"] = json!(variant);
            }
        }
        entry
    }

    #[test]
    fn reads_a_manifest() {
        let m = ImageManifest::parse(manifest().to_string().as_bytes()).unwrap();
        assert_eq!(m.layers.len(), 2);
        assert_eq!(m.layers[0].layer_kind(), LayerKind::TarGzip);
        assert_eq!(m.layers[1].layer_kind(), LayerKind::TarZstd);
        assert_eq!(m.annotations, [("z".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn refuses_documents_that_are_two_things() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        let mut lies = manifest();
        lies["mediaType"] = json!(OCI_INDEX);
        let mut schema1 = manifest();
        schema1["schemaVersion"] = json!(1);
        let mut no_layers = manifest();
        no_layers.as_object_mut().unwrap().remove("layers");
        let mut negative = manifest();
        negative["layers"][0]["size"] = json!(-1);
        let mut sha512 = manifest();
        sha512["layers"][0]["digest"] = json!("sha512:00");
        let mut many = manifest();
        many["layers"] = json!(vec![descriptor(OCI_LAYER_GZIP); MAX_LAYERS + 1]);
        let mut number = manifest();
        number["annotations"] = json!({"a": 1});
        for bad in [both, lies, schema1, no_layers, negative, sha512, many, number, json!([]), json!({})] {
            let text = bad.to_string();
            assert_eq!(ImageManifest::parse(text.as_bytes()).unwrap_err().code, Code::Oci, "{text:.200}");
        }
        let good = manifest().to_string();
        assert!(parse_document("application/json; charset=utf-8", good.as_bytes()).is_ok());
        assert!(parse_document(OCI_INDEX, good.as_bytes()).is_err());
        assert!(parse_document(DOCKER_MANIFEST, good.as_bytes()).is_err());
        let padded = good.replace('{', &format!("{{{}", " ".repeat(MAX_MANIFEST)));
        assert!(ImageManifest::parse(padded.as_bytes()).is_err());
        assert!(ImageManifest::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn an_index_gives_the_platform() {
        let index = json!({"schemaVersion": 2, "manifests": [
            entry(Some("unknown/unknown"), b"attestation"),
            entry(Some("linux/arm/v6"), b"armv6"),
            entry(Some("linux/arm/v7"), b"armv7"),
            entry(Some("linux/arm64/v8"), b"arm64"),
            entry(Some("linux/amd64"), b"amd64"),
            entry(Some("linux/amd64/v3"), b"amd64v3"),
        ]});
        let Document::Index(index) = parse_document(OCI_INDEX, index.to_string().as_bytes()).unwrap() else {
            panic!("not an index");
        };
        for (platform, content) in [
            ("linux/amd64", &b"amd64"[..]),
            ("linux/amd64/v3", b"amd64v3"),
            ("linux/arm64", b"arm64"),
            ("linux/arm/v7", b"armv7"),
            ("linux/arm/v6", b"armv6"),
        ] {
            let found = index.select(&platform.parse().unwrap()).unwrap();
            assert_eq!(found.digest, Digest::of(content), "{platform}");
        }
        let refused = index.select(&"linux/s390x".parse().unwrap()).unwrap_err();
        assert!(refused.message.contains("linux/arm64/v8"), "{refused}");
        assert!(index.select(&"linux/arm/v5".parse().unwrap()).is_err());
        let one = json!({"schemaVersion": 2, "manifests": [entry(None, b"only")]}).to_string();
        let Document::Index(one) = parse_document("", one.as_bytes()).unwrap() else { panic!() };
        assert!(one.select(&Platform::host()).is_ok());
    }
}
