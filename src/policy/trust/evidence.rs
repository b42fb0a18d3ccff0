//! What may vouch for an image: signatures as they were found beside it, of every layout, with nothing yet believed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SIGNATURE_ANNOTATION;
use crate::policy::digest::Digest;
use crate::policy::reference::Location;

/// Most pieces of evidence of one image that are looked at: each costs some verifications.
pub const MAX_EVIDENCE: usize = 64;

/// What evidence is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The pinned digest.
    pub digest: &'a Digest,
    /// Where it is, if policy may say something about that.
    pub location: Option<&'a Location>,
    /// Now, seconds since 1970.
    pub now: i64,
}

/// One signature as it was found. Kept on disk as it stands here: a change of its form needs another
/// [`EVIDENCE_VERSION`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Evidence {
    /// A layer of cosign's signature manifest, tag `sha256-<hex>.sig`.
    SimpleSigning(SimpleSigning),
    /// A sigstore bundle, the layer of a manifest that refers to the image.
    Bundle(Bundle),
    /// A Notation envelope, the layer of a manifest that refers to the image.
    Notation(NotationEnvelope),
}

/// The version of [`Evidence`] on disk.
pub const EVIDENCE_VERSION: u32 = 2;

/// cosign's first layout: a payload, with everything else in annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimpleSigning {
    /// The layer's bytes: what is signed.
    #[serde(with = "base64_bytes")]
    pub payload: Vec<u8>,
    /// All annotations of the layer: the signature, and a keyless one's certificates and log entry.
    pub annotations: Vec<(String, String)>,
}

/// A sigstore bundle, unread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The referring manifest.
    pub manifest: Digest,
    /// The bundle's JSON.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

/// A Notation signature envelope, unread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotationEnvelope {
    /// The referring manifest.
    pub manifest: Digest,
    /// The layer's media type, which says how the envelope is written.
    pub media_type: String,
    /// The layer's bytes.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

impl SimpleSigning {
    /// The value of an annotation; `None` if it is absent or empty.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let found = self.annotations.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The base64 signature.
    pub fn signature_b64(&self) -> Option<&str> {
        self.annotation(SIGNATURE_ANNOTATION)
    }
}

impl From<SimpleSigning> for Evidence {
    fn from(layer: SimpleSigning) -> Self {
        Self::SimpleSigning(layer)
    }
}

/// Which piece of evidence is spoken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvidenceName {
    /// Its layout, as in [`Evidence`].
    pub kind: &'static str,
    /// Its place among all that was found, from 1.
    pub number: usize,
    /// The manifest that holds it, where each has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
}

impl EvidenceName {
    /// The name of the piece at `at`, from 0.
    pub fn of(at: usize, evidence: &Evidence) -> Self {
        let (kind, manifest) = match evidence {
            Evidence::SimpleSigning(_) => ("simple_signing", None),
            Evidence::Bundle(bundle) => ("bundle", Some(bundle.manifest)),
            Evidence::Notation(envelope) => ("notation", Some(envelope.manifest)),
        };
        Self { kind, number: at + 1, manifest }
    }
}

impl fmt::Display for EvidenceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = match self.kind {
            "bundle" => " (sigstore bundle ",
            "notation" => " (notation ",
            _ => " (.sig tag",
        };
        write!(f, "signature {}{layout}", self.number)?;
        match &self.manifest {
            Some(manifest) => write!(f, "{manifest})"),
            None => f.write_str(")"),
        }
    }
}

/// Bytes as base64 in JSON: an array of numbers would be four times as long.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}
