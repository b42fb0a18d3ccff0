//! Sigstore bundles: reading one within limits, and telling what kind it is (sigstore `protobuf-specs`,
//! `sigstore_bundle.proto`; cosign `specs/BUNDLE_SPEC.md`).

use serde::Deserialize;
use serde::de::IgnoredAny;
use sigstore_verify::types::bundle::VerificationMaterialContent;
use sigstore_verify::types::{Bundle, SignatureContent};

use super::root::MAX_CHAIN;
use crate::policy::trust::verdict::{Cause, Reason};

/// Largest bundle in bytes: certificate, log entry and timestamp together have 5 to 12 KiB.
pub(super) const MAX_BYTES: usize = 128 << 10;
/// Most log entries, and most timestamps, of one bundle; signers leave one of each. All of them must hold.
const MAX_PROOFS: usize = 4;
/// Most hashes of one inclusion proof: a tree of 2^63 leaves has no more.
const MAX_HASHES: usize = 63;

/// What must be there once, and is read as something else by a reader that takes the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    message_signature: Option<IgnoredAny>,
    dsse_envelope: Option<IgnoredAny>,
    verification_material: Material,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<IgnoredAny>,
    certificate: Option<IgnoredAny>,
    #[serde(rename = "x509CertificateChain")]
    chain: Option<IgnoredAny>,
}

/// Reads a bundle.
pub(super) fn parse(bytes: &[u8]) -> Result<Bundle, Reason> {
    let malformed = |why: String| Cause::Malformed.because(format!("the bundle is not valid: {why}"));
    if bytes.len() > MAX_BYTES {
        return Err(malformed(format!("{} bytes, more than {MAX_BYTES}", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| malformed(e.to_string()))?;
    let shape: Shape = serde_json::from_str(text).map_err(|e| malformed(e.to_string()))?;
    if shape.message_signature.is_some() == shape.dsse_envelope.is_some() {
        return Err(malformed("it has not exactly one of messageSignature and dsseEnvelope".to_owned()));
    }
    let material = &shape.verification_material;
    let kinds = [&material.public_key, &material.certificate, &material.chain];
    if kinds.into_iter().flatten().count() != 1 {
        return Err(malformed(
            "it has not exactly one of publicKey, certificate and x509CertificateChain".to_owned(),
        ));
    }
    let bundle = Bundle::from_json(text).map_err(|e| malformed(e.to_string()))?;
    within_limits(&bundle).map_err(malformed)?;
    Ok(bundle)
}

/// Limits of what costs signature checks.
pub(super) fn within_limits(bundle: &Bundle) -> Result<(), String> {
    let material = &bundle.verification_material;
    if let VerificationMaterialContent::X509CertificateChain { certificates } = &material.content
        && certificates.len() > MAX_CHAIN
    {
        return Err(format!("{} certificates, and at most {MAX_CHAIN} are read", certificates.len()));
    }
    let timestamps = material.timestamp_verification_data.rfc3161_timestamps.len();
    if material.tlog_entries.len().max(timestamps) > MAX_PROOFS {
        return Err(format!("more than {MAX_PROOFS} log entries or timestamps"));
    }
    let proofs = material.tlog_entries.iter().filter_map(|entry| entry.inclusion_proof.as_ref());
    if proofs.into_iter().any(|proof| proof.hashes.len() > MAX_HASHES) {
        return Err(format!("an inclusion proof of more than {MAX_HASHES} hashes"));
    }
    Ok(())
}

/// What a bundle says signed it: a certificate, or a key that somebody must know.
pub(super) fn is_keyless(bundle: &Bundle) -> bool {
    !matches!(bundle.verification_material.content, VerificationMaterialContent::PublicKey(_))
}

/// The message that is signed and the signature over it; `None` for a message that is the image's manifest itself.
pub(super) fn signed(bundle: &Bundle) -> Result<(Option<Vec<u8>>, &[u8]), Reason> {
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => {
            Ok((Some(envelope.pae()), envelope.signature.sig.as_bytes()))
        }
        SignatureContent::MessageSignature(message) => Ok((None, message.signature.as_bytes())),
        _ => Err(Cause::Unsupported.because("the bundle holds a kind of signature that is not known")),
    }
}
