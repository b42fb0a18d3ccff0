//! The keyless material of cosign's first layout, as a bundle: annotations of the signature's layer.
//!
//! | annotation | what |
//! |---|---|
//! | `dev.sigstore.cosign/certificate` | the signer's certificate, PEM |
//! | `dev.sigstore.cosign/chain` | its authorities, PEM, nearest first |
//! | `dev.sigstore.cosign/bundle` | the entry of the log: `{"SignedEntryTimestamp", "Payload": {body, integratedTime, logIndex, logID}}` |
//! | `dev.sigstore.cosign/rfc3161timestamp` | `{"SignedRFC3161Timestamp"}` |
//!
//! (cosign `specs/SIGNATURE_SPEC.md`.) Both forms say the same; what makes them hold is checked once, on the bundle.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_verify::types::Bundle;

use super::bundle::{MAX_BYTES, within_limits};
use crate::policy::trust::evidence::SimpleSigning;
use crate::policy::trust::pem;
use crate::policy::trust::verdict::{Cause, Reason};

const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LogEntry {
    signed_entry_timestamp: String,
    payload: LogPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
struct Timestamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

/// Kind and version of a log entry, which the annotation leaves to its body.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BodyKind {
    kind: String,
    api_version: String,
}

/// Whether the layer says that a certificate's holder signed it.
pub(super) fn is_keyless(layer: &SimpleSigning) -> bool {
    layer.annotation(CERTIFICATE).is_some()
}

/// The layer's signature as a bundle over its payload. `signature` is the decoded annotation.
pub(super) fn to_bundle(layer: &SimpleSigning, signature: &[u8]) -> Result<Bundle, Reason> {
    let length: usize = layer.annotations.iter().map(|(_, value)| value.len()).sum();
    if length > MAX_BYTES {
        let words = format!("its annotations have {length} bytes, more than {MAX_BYTES}");
        return Err(Cause::Malformed.because(words));
    }
    let entries: Vec<Value> = layer.annotation(LOG_ENTRY).map(log_entry).transpose()?.into_iter().collect();
    let timestamps: Vec<Value> =
        layer.annotation(TIMESTAMP).map(timestamp).transpose()?.into_iter().collect();
    // The first version is the one whose log entries need no inclusion proof beside the log's promise; the annotation
    // has no place for one.
    let version = if entries.is_empty() { "0.2" } else { "0.1" };
    let bundle = json!({
        "mediaType": format!("application/vnd.dev.sigstore.bundle+json;version={version}"),
        "verificationMaterial": with_signer(layer, entries, timestamps)?,
        "messageSignature": {"signature": STANDARD.encode(signature)},
    });
    let bundle: Bundle = serde_json::from_value(bundle)
        .map_err(|e| Cause::Malformed.because(format!("its annotations are not valid: {e}")))?;
    within_limits(&bundle).map_err(|why| Cause::Malformed.because(why))?;
    Ok(bundle)
}

fn with_signer(layer: &SimpleSigning, entries: Vec<Value>, timestamps: Vec<Value>) -> Result<Value, Reason> {
    let mut material = json!({
        "tlogEntries": entries, "timestampVerificationData": {"rfc3161Timestamps": timestamps},
    });
    let Some(certificate) = layer.annotation(CERTIFICATE) else {
        material["publicKey"] = json!({"hint": ""});
        return Ok(material);
    };
    let read = |name: &str, text: &str| {
        pem::certificates(text.as_bytes())
            .map_err(|why| Cause::Malformed.because(format!("annotation {name} {why}")))
    };
    let mut chain = read(CERTIFICATE, certificate)?;
    if chain.len() != 1 {
        let words = format!("annotation {CERTIFICATE} has {} certificates, not one", chain.len());
        return Err(Cause::Malformed.because(words));
    }
    if let Some(authorities) = layer.annotation(CHAIN) {
        chain.extend(read(CHAIN, authorities)?);
    }
    let chain: Vec<Value> = chain.iter().map(|der| json!({"rawBytes": STANDARD.encode(der)})).collect();
    material["x509CertificateChain"] = json!({"certificates": chain});
    Ok(material)
}

fn log_entry(text: &str) -> Result<Value, Reason> {
    let malformed =
        |why: String| Cause::Malformed.because(format!("annotation {LOG_ENTRY} is not valid: {why}"));
    let entry: LogEntry = serde_json::from_str(text).map_err(|e| malformed(e.to_string()))?;
    let body = STANDARD.decode(&entry.payload.body).map_err(|e| malformed(e.to_string()))?;
    let kind: BodyKind = serde_json::from_slice(&body).map_err(|e| malformed(e.to_string()))?;
    let log =
        hex_bytes(&entry.payload.log_id).ok_or_else(|| malformed("logID is not hexadecimal".to_owned()))?;
    Ok(json!({
        "logIndex": entry.payload.log_index.to_string(),
        "logId": {"keyId": STANDARD.encode(log)},
        "kindVersion": {"kind": kind.kind, "version": kind.api_version},
        "integratedTime": entry.payload.integrated_time.to_string(),
        "inclusionPromise": {"signedEntryTimestamp": entry.signed_entry_timestamp},
        "canonicalizedBody": entry.payload.body,
    }))
}

fn timestamp(text: &str) -> Result<Value, Reason> {
    let timestamp: Timestamp = serde_json::from_str(text)
        .map_err(|e| Cause::Malformed.because(format!("annotation {TIMESTAMP} is not valid: {e}")))?;
    Ok(json!({"signedTimestamp": timestamp.token}))
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
