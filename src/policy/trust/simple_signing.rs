//! The payload that cosign signs for an image: containers/image's "simple signing" JSON.
//!
//! ```text
//! {"critical":{"identity":{"docker-reference":"ghcr.io/org/x"},
//!              "image":{"docker-manifest-digest":"sha256:…"},
//!              "type":"cosign container image signature"},
//!  "optional":null}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::policy::digest::Digest;

/// Largest payload in bytes. Cosign's own has about 250; `optional` may hold a few annotations.
pub const MAX_BYTES: usize = 128 << 10;

const TYPE: &str = "cosign container image signature";

/// A payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The repository the signer named; says where it was signed, and is not compared: images are copied.
    pub docker_reference: String,
    /// The digest that is vouched for.
    pub digest: Digest,
    /// The signer's annotations.
    pub optional: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    critical: Critical,
    optional: Option<Map<String, Value>>,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: Digest,
}

impl Payload {
    /// Parses a payload; unknown keys are left to newer signers, a key twice is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("the signed payload has {} bytes, more than {MAX_BYTES}", bytes.len()));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|e| format!("the signed payload is not valid: {e}"))?;
        if raw.critical.r#type != TYPE {
            return Err(format!("the signed payload is a {:?}, expected {TYPE:?}", raw.critical.r#type));
        }
        Ok(Self {
            docker_reference: raw.critical.identity.docker_reference,
            digest: raw.critical.image.docker_manifest_digest,
            optional: raw.optional.unwrap_or_default(),
        })
    }

    /// The bytes to sign, spelled as cosign spells them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let raw = Raw {
            critical: Critical {
                identity: Identity { docker_reference: self.docker_reference.clone() },
                image: Image { docker_manifest_digest: self.digest },
                r#type: TYPE.to_owned(),
            },
            optional: (!self.optional.is_empty()).then(|| self.optional.clone()),
        };
        // Strings and maps with string keys always serialize.
        serde_json::to_vec(&raw).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_as_cosign_does() {
        let digest = Digest::of(b"x");
        let payload =
            Payload { docker_reference: "localhost:5000/a".to_owned(), digest, optional: Map::new() };
        let text = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"localhost:5000/a"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        assert_eq!(String::from_utf8(payload.to_bytes()).unwrap(), text);
        assert_eq!(Payload::parse(text.as_bytes()).unwrap(), payload);
        let other = text.replace("cosign container", "atomic container");
        assert!(Payload::parse(other.as_bytes()).is_err());
        let twice = text
            .replace(r#""image":"#, &format!(r#""image":{{"docker-manifest-digest":"{digest}"}},"image":"#));
        assert!(Payload::parse(twice.as_bytes()).is_err());
        assert!(Payload::parse(b"{}").is_err());
    }
}
