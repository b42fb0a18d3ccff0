//! cosign's signatures in both layouts, by keys and by certificates: offline, from what was fetched and a trusted root.
//!
//! In: one piece of evidence. Out: who vouches by it, or the reason why nobody does. By a key, the signature is checked
//! and the log is not looked at unless `require_log`; by a certificate, everything in [`proof`] is.

mod bundle;
pub mod identity;
mod layer;
mod proof;
pub mod root;
pub mod statement;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sigstore_verify::types::{Artifact, Bundle, HashAlgorithm, Sha256Hash, SignatureContent};

use super::evidence::{self, SimpleSigning};
use super::simple_signing::Payload;
use super::verdict::{Cause, Check, Reason, Voucher};
use super::{SIGNATURE_ANNOTATION, Trust, TrustedKey};
use crate::policy::digest::Digest;
use proof::Proof;

/// The largest bundle that is read, in bytes.
pub const MAX_BUNDLE: usize = bundle::MAX_BYTES;

/// Media type of a bundle, as they are made today.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// What is signed of an envelope's payload (DSSE `protocol.md`, "Pre-Authentication Encoding").
pub fn dsse_pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    sigstore_verify::types::pae(payload_type, payload)
}

/// What one piece of evidence establishes.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) by: Voucher,
    pub(super) signed_reference: Option<String>,
    pub(super) signed_at: Option<i64>,
    pub(super) checked: Vec<Check>,
}

/// Checks a layer of the `.sig` tag.
pub(super) fn check_layer(trust: &Trust, image: &Digest, layer: &SimpleSigning) -> Result<Finding, Reason> {
    let signature = layer.signature_b64().ok_or_else(|| {
        Cause::Malformed.because(format!("the layer has no annotation {SIGNATURE_ANNOTATION}"))
    })?;
    let signature = STANDARD
        .decode(signature.trim())
        .map_err(|e| Cause::Malformed.because(format!("it is not base64: {e}")))?;
    // Nothing of the payload is believed before the signature over it holds.
    let by = trust.keys.iter().find(|trusted| trusted.key.verifies(&layer.payload, &signature));
    let artifact = || Artifact::from(layer.payload.as_slice());
    let mut finding = match by {
        Some(key) if trust.require_log => {
            let bundle = layer::to_bundle(layer, &signature)?;
            of_key(key, Some(proof::by_key_in_log(&trust.root, &key.key, &bundle, artifact())?))
        }
        Some(key) => of_key(key, None),
        None if layer::is_keyless(layer) && !trust.identities.is_empty() => {
            let bundle = layer::to_bundle(layer, &signature)?;
            of_identity(trust, proof::by_certificate(&trust.root, trust.require_log, &bundle, artifact())?)?
        }
        None => return Err(nobody(trust, layer::is_keyless(layer))),
    };
    let payload = Payload::parse(&layer.payload).map_err(|why| Cause::Malformed.because(why))?;
    if payload.digest != *image {
        let words = format!("it is by {} but over {}, not over {image}", finding.by, payload.digest);
        return Err(Cause::OtherSubject.because(words));
    }
    finding.signed_reference = Some(payload.docker_reference);
    Ok(finding)
}

/// Checks a bundle.
pub(super) fn check_bundle(
    trust: &Trust,
    image: &Digest,
    found: &evidence::Bundle,
) -> Result<Finding, Reason> {
    let bundle = bundle::parse(&found.bytes)?;
    // Not believed yet: what does not even claim to be a signature of this image needs no further look.
    claims(&bundle, image)?;
    let (message, signature) = bundle::signed(&bundle)?;
    let verifies = |trusted: &&TrustedKey| match &message {
        Some(message) => trusted.key.verifies(message, signature),
        None => trusted.key.verifies_sha256(image.as_bytes(), signature),
    };
    let by = trust.keys.iter().find(verifies);
    let artifact = || Artifact::from(Sha256Hash::new(*image.as_bytes()));
    match by {
        Some(key) if trust.require_log => {
            let proof = proof::by_key_in_log(&trust.root, &key.key, &bundle, artifact())?;
            Ok(of_key(key, Some(proof)))
        }
        Some(key) => Ok(of_key(key, None)),
        None if bundle::is_keyless(&bundle) && !trust.identities.is_empty() => {
            let proof = proof::by_certificate(&trust.root, trust.require_log, &bundle, artifact())?;
            of_identity(trust, proof)
        }
        None => Err(nobody(trust, bundle::is_keyless(&bundle))),
    }
}

/// Whether what is signed, if it is, says that `image` is signed.
fn claims(bundle: &Bundle, image: &Digest) -> Result<(), Reason> {
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => {
            statement::check(&envelope.payload_type, envelope.payload.as_bytes(), image)
        }
        // The manifest itself is signed; its digest is checked with the signature, whatever stands here.
        SignatureContent::MessageSignature(message) => match &message.message_digest {
            Some(stated) if stated.algorithm != HashAlgorithm::Sha2256 => {
                Err(Cause::Unsupported.because("it is over another digest of the manifest than SHA-256"))
            }
            Some(stated) if stated.digest.as_bytes() != image.as_bytes() => {
                let words = format!("it is over sha256:{}, not over {image}", stated.digest.to_hex());
                Err(Cause::OtherSubject.because(words))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn of_key(key: &TrustedKey, proof: Option<Proof>) -> Finding {
    let by = Voucher::Key { name: key.name.clone(), fingerprint: key.key.fingerprint() };
    let (signed_at, checked) =
        proof.map_or_else(|| (None, vec![Check::Signature]), |proof| (proof.signed_at, proof.checked));
    Finding { by, signed_reference: None, signed_at, checked }
}

fn of_identity(trust: &Trust, proof: Proof) -> Result<Finding, Reason> {
    let (issuer, subject) = proof.identity.unwrap_or_default();
    if !trust.identities.iter().any(|identity| identity.matches(&issuer, &subject)) {
        let words = format!(
            "it is by {subject:.200?} of issuer {issuer:.200?}, and no entry of trust.identities matches both"
        );
        return Err(Cause::Identity.because(words));
    }
    let by = Voucher::Identity { issuer, subject, log_entry: proof.log_entry };
    Ok(Finding { by, signed_reference: None, signed_at: proof.signed_at, checked: proof.checked })
}

/// The reason where no trusted key made it and no identity could be asked for.
fn nobody(trust: &Trust, keyless: bool) -> Reason {
    if keyless {
        let words = "it is keyless: trust.identities must name the issuer and the subject that count";
        return Cause::Identity.because(words);
    }
    let names: Vec<&str> = trust.keys.iter().map(|k| k.name.as_str()).collect();
    let words = match names.as_slice() {
        [] => "it was made by a key, and policy trusts no key".to_owned(),
        names => format!("it was not made by a trusted key ({})", names.join(", ")),
    };
    Cause::UntrustedKey.because(words)
}
