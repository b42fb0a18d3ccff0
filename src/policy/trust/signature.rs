//! Whether one of the trusted keys vouches for an image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::simple_signing::Payload;
use super::{SIGNATURE_ANNOTATION, Trust, signature_tag};
use crate::policy::digest::Digest;

/// Most signatures of one image that are looked at: each costs a verification a key.
pub const MAX_SIGNATURES: usize = 64;

/// One signature as it was found: a layer of the signature manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureMaterial {
    /// The layer's bytes: what is signed.
    pub payload: Vec<u8>,
    /// The annotation [`SIGNATURE_ANNOTATION`] of the layer; empty when there is none.
    pub signature_b64: String,
    /// All annotations of the layer (certificates and log entries, for later).
    pub annotations: Vec<(String, String)>,
}

impl SignatureMaterial {
    /// The material of a layer with these annotations.
    pub fn new(payload: Vec<u8>, annotations: Vec<(String, String)>) -> Self {
        let found = annotations.iter().find(|(key, _)| key == SIGNATURE_ANNOTATION);
        let signature_b64 = found.map(|(_, value)| value.clone()).unwrap_or_default();
        Self { payload, signature_b64, annotations }
    }
}

/// Proof that a trusted key signed the pinned digest. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    key_name: String,
    key_fingerprint: Digest,
    docker_reference: String,
}

impl Verified {
    /// The file name of the key, as configured.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub fn key_fingerprint(&self) -> &Digest {
        &self.key_fingerprint
    }

    /// The repository that the signer named.
    pub fn docker_reference(&self) -> &str {
        &self.docker_reference
    }
}

/// Looks for a signature over `pinned` by one of the trusted keys; the first that holds suffices. Otherwise the
/// reasons, one a signature, in words that tell what to do.
pub fn verify(
    trust: &Trust,
    pinned: &Digest,
    materials: &[SignatureMaterial],
) -> Result<Verified, Vec<String>> {
    if trust.require_log {
        return Err(vec![
            "trust.require_log is set, but transparency logs are not read yet: remove it to rely on the key alone"
                .to_owned(),
        ]);
    }
    if trust.keys.is_empty() {
        return Err(vec![
            "no key is trusted: put the signer's cosign.pub into trust.keys of the policy".to_owned(),
        ]);
    }
    if materials.is_empty() {
        return Err(vec![format!(
            "it has no signature (no tag {} beside it): sign it with `addonfs sign --key cosign.key` or `cosign sign --key`",
            signature_tag(pinned)
        )]);
    }
    let mut reasons = Vec::new();
    for (at, material) in materials.iter().take(MAX_SIGNATURES).enumerate() {
        match verify_one(trust, pinned, material) {
            Ok(verified) => return Ok(verified),
            Err(reason) => reasons.push(format!("signature {}: {reason}", at + 1)),
        }
    }
    if materials.len() > MAX_SIGNATURES {
        reasons.push(format!("{} more signatures were not looked at", materials.len() - MAX_SIGNATURES));
    }
    Err(reasons)
}

fn verify_one(trust: &Trust, pinned: &Digest, material: &SignatureMaterial) -> Result<Verified, String> {
    if material.signature_b64.is_empty() {
        return Err(format!("the layer has no annotation {SIGNATURE_ANNOTATION}"));
    }
    let signature =
        STANDARD.decode(material.signature_b64.trim()).map_err(|e| format!("it is not base64: {e}"))?;
    // Nothing of the payload is believed before the signature over it holds.
    let by = trust.keys.iter().find(|trusted| trusted.key.verifies(&material.payload, &signature));
    let Some(by) = by else {
        let names: Vec<&str> = trust.keys.iter().map(|k| k.name.as_str()).collect();
        return Err(format!("it was not made by a trusted key ({})", names.join(", ")));
    };
    let payload = Payload::parse(&material.payload)?;
    if payload.digest != *pinned {
        return Err(format!("it is by {} but over {}, not over {pinned}", by.name, payload.digest));
    }
    Ok(Verified {
        key_name: by.name.clone(),
        key_fingerprint: by.key.fingerprint(),
        docker_reference: payload.docker_reference,
    })
}

#[cfg(test)]
pub(in crate::policy) mod tests {
    use super::*;
    use crate::policy::trust::TrustedKey;
    use crate::policy::trust::keys::PrivateKey;

    /// A signature by `key` over the image `digest`.
    pub(in crate::policy) fn material(key: &PrivateKey, digest: &Digest) -> SignatureMaterial {
        let payload = Payload {
            docker_reference: "localhost:5000/org/x".to_owned(),
            digest: *digest,
            optional: serde_json::Map::new(),
        };
        let payload = payload.to_bytes();
        let signature = STANDARD.encode(key.sign(&payload).unwrap());
        SignatureMaterial::new(payload, vec![(SIGNATURE_ANNOTATION.to_owned(), signature)])
    }

    pub(in crate::policy) fn trusting(keys: &[(&str, &PrivateKey)]) -> Trust {
        let keys = keys
            .iter()
            .map(|(name, key)| TrustedKey { name: (*name).to_owned(), key: key.public().unwrap() });
        Trust { keys: keys.collect(), ..Trust::default() }
    }

    /// Cases VF-01, VF-02, VF-07 (every key is tried, the first that verifies suffices), VF-23 and RP-13.
    #[test]
    fn a_trusted_key_over_this_digest_and_nothing_else() {
        let (good, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let image = Digest::of(b"image");
        let trust = trusting(&[("other.pub", &other), ("right.pub", &good)]);
        let signed = material(&good, &image);

        let verified = verify(&trust, &image, std::slice::from_ref(&signed)).unwrap();
        assert_eq!(verified.key_name(), "right.pub");
        assert_eq!(*verified.key_fingerprint(), good.public().unwrap().fingerprint());
        assert_eq!(verified.docker_reference(), "localhost:5000/org/x");

        let refused = |trust: &Trust, image: &Digest, materials: &[SignatureMaterial], word: &str| {
            let reasons = verify(trust, image, materials).unwrap_err().join("; ");
            assert!(reasons.contains(word), "{reasons}");
        };
        let alone = std::slice::from_ref(&signed);
        refused(&trust, &image, &[], "no signature");
        refused(&Trust::default(), &image, alone, "no key is trusted");
        refused(&trusting(&[("other.pub", &other)]), &image, alone, "other.pub");
        refused(&trust, &Digest::of(b"another"), alone, "not over");
        refused(&Trust { require_log: true, ..trust.clone() }, &image, alone, "require_log");

        let mut changed = signed.clone();
        changed.payload.push(b' ');
        refused(&trust, &image, &[changed], "trusted key");
        let mut garbage = signed.clone();
        garbage.signature_b64 = "%".to_owned();
        refused(&trust, &image, &[garbage.clone()], "base64");
        refused(&trust, &image, &[SignatureMaterial::new(signed.payload.clone(), Vec::new())], "annotation");
        // One bad signature beside a good one does no harm.
        assert!(verify(&trust, &image, &[garbage, signed]).is_ok());
    }
}
