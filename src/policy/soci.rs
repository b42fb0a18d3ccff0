//! SOCI index manifests: which zTOC is of which layer, and of which image all of them are (soci-snapshotter
//! `soci/soci_index.go`).
//!
//! ```text
//! {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
//!  "config": {"mediaType": "application/vnd.amazon.soci.index.v1+json", …the digest of "{}"},
//!  "layers": [{"mediaType": "application/octet-stream", …, "annotations":
//!              {"com.amazon.soci.image-layer-digest": "sha256:…", …}}],
//!  "subject": {…the image's manifest}}
//! ```
//! Version 2 has no subject: the image's manifest names the index in an annotation, and so binds it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::digest::Digest;
use super::image::{Descriptor, ImageManifest, OCI_MANIFEST};

/// `config.mediaType` of an index that names its image as its subject; its artifact type for referrers.
pub const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// `config.mediaType` of an index that its image names.
pub const INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// The annotation of an image's manifest that names its index.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const LAYER_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const TOOL: &str = "com.amazon.soci.build-tool-identifier";
const ZTOC: &str = "application/octet-stream";
/// The config of every index.
pub const EMPTY_CONFIG: &[u8] = b"{}";

/// The zTOCs of an image's layers, by an index whose own origin somebody has checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SociIndex {
    /// Layer and zTOC.
    ztocs: Vec<(Digest, Descriptor)>,
}

/// How an index is bound to its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding<'a> {
    /// Version 2: the image's manifest names it.
    ByImage,
    /// Version 1: it names the manifest with this digest.
    ToImage(&'a Digest),
}

#[derive(Deserialize)]
struct Subject {
    subject: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    digest: Digest,
}

impl SociIndex {
    /// Parses an index manifest that must be bound so.
    pub fn parse(bytes: &[u8], binding: Binding<'_>) -> Result<Self, String> {
        let manifest = ImageManifest::parse(bytes).map_err(|denied| denied.message)?;
        let version = manifest.config.media_type.as_str();
        match binding {
            Binding::ByImage if version == INDEX_V2 => {}
            Binding::ToImage(image) if version == INDEX_V1 => {
                let named: Subject = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
                match named.subject {
                    Some(subject) if subject.digest == *image => {}
                    Some(subject) => return Err(format!("it is of another image, {}", subject.digest)),
                    None => return Err("it says of no image that it is its index".to_owned()),
                }
            }
            _ => return Err(format!("its config is of type {version:?}")),
        }
        let ztoc = |ztoc: Descriptor| {
            let layer = ztoc.annotation(LAYER_DIGEST).ok_or("a zTOC is of no layer")?;
            Ok((layer.parse().map_err(|error| format!("{layer:?}: {error}"))?, ztoc))
        };
        Ok(Self { ztocs: manifest.layers.into_iter().map(ztoc).collect::<Result<_, String>>()? })
    }

    /// The zTOC of a layer.
    pub fn ztoc(&self, layer: &Digest) -> Option<&Descriptor> {
        self.ztocs.iter().find(|(of, _)| of == layer).map(|(_, ztoc)| ztoc)
    }
}

/// The descriptor of a layer's zTOC, as an index lists it.
pub fn ztoc_descriptor(layer: &Descriptor, ztoc: &[u8], span_size: u64) -> Descriptor {
    let annotations = [
        (LAYER_DIGEST, layer.digest.to_string()),
        (LAYER_TYPE, layer.media_type.clone()),
        (SPAN_SIZE, span_size.to_string()),
    ];
    Descriptor {
        media_type: ZTOC.to_owned(),
        digest: Digest::of(ztoc),
        size: ztoc.len() as u64,
        annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// The config that indexes of version 1 name.
pub fn config_descriptor() -> Descriptor {
    Descriptor {
        media_type: INDEX_V1.to_owned(),
        digest: Digest::of(EMPTY_CONFIG),
        size: EMPTY_CONFIG.len() as u64,
        annotations: Vec::new(),
    }
}

/// An index manifest of version 1 for the image `subject`.
pub fn manifest(subject: &Descriptor, ztocs: &[Descriptor], tool: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config_descriptor(),
        "layers": ztocs,
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": {TOOL: tool},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(of: &str) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::of(of.as_bytes()),
            size: 7,
            annotations: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_for_its_image_only() {
        let (image, layer) = (descriptor("image"), descriptor("layer"));
        let ztoc = ztoc_descriptor(&layer, b"ztoc", 4 << 20);
        let written = manifest(&image, std::slice::from_ref(&ztoc), "test");
        let bytes = written.to_string().into_bytes();
        let index = SociIndex::parse(&bytes, Binding::ToImage(&image.digest)).unwrap();
        assert_eq!(index.ztoc(&layer.digest), Some(&ztoc));
        assert_eq!(index.ztoc(&image.digest), None);
        let refused = |value: &Value, binding, word: &str| {
            let error = SociIndex::parse(value.to_string().as_bytes(), binding).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        let this = Binding::ToImage(&image.digest);
        refused(&written, Binding::ToImage(&layer.digest), "another image");
        refused(&written, Binding::ByImage, "index.v1");
        let mut changed = written.clone();
        changed.as_object_mut().unwrap().remove("subject");
        refused(&changed, this, "no image");
        changed["config"]["mediaType"] = json!(INDEX_V2);
        refused(&changed, this, "index.v2");
        assert!(SociIndex::parse(changed.to_string().as_bytes(), Binding::ByImage).is_ok());
        changed["layers"][0]["annotations"] = json!({});
        refused(&changed, Binding::ByImage, "no layer");
    }
}
