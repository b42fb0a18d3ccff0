//! The statement that cosign signs for an image in the bundle layout: in-toto, within DSSE.
//!
//! ```text
//! {"_type":"https://in-toto.io/Statement/v1",
//!  "subject":[{"digest":{"sha256":"…"}}],
//!  "predicateType":"https://sigstore.dev/cosign/sign/v1", "predicate":{}}
//! ```
//! Statements with another predicate are attestations: they say something of an image, not that it is good.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::policy::digest::Digest;
use crate::policy::trust::verdict::{Cause, Reason};

/// The DSSE payload type of statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// The predicate type of a signature (cosign `pkg/types/predicate.go`).
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const STATEMENT_V01: &str = "https://in-toto.io/Statement/v0.1";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    #[serde(rename = "predicate")]
    _predicate: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digests,
}

/// Other algorithms are left to others; a key twice is refused.
#[derive(Deserialize)]
struct Digests {
    sha256: Option<String>,
}

/// Whether the payload of an envelope says that `image` is signed; the signature over it was checked before.
pub(super) fn check(payload_type: &str, payload: &[u8], image: &Digest) -> Result<(), Reason> {
    if payload_type != PAYLOAD_TYPE {
        return Err(
            Cause::NotASignature.because(format!("what is signed is a {payload_type:?}, no statement"))
        );
    }
    let statement: Statement = serde_json::from_slice(payload)
        .map_err(|e| Cause::Malformed.because(format!("the statement is not valid: {e}")))?;
    if ![STATEMENT, STATEMENT_V01].contains(&statement.kind.as_str()) {
        return Err(
            Cause::NotASignature.because(format!("what is signed is a {:?}, no statement", statement.kind))
        );
    }
    if statement.predicate_type != SIGN_PREDICATE {
        let words = format!(
            "it is an attestation ({}), and attestations are no signatures",
            statement.predicate_type
        );
        return Err(Cause::NotASignature.because(words));
    }
    let digests = statement.subject.iter().filter_map(|subject| subject.digest.sha256.as_deref());
    let digests: Vec<&str> = digests.collect();
    if !digests.contains(&image.hex().as_str()) {
        let named = digests.first().map_or_else(|| "nothing".to_owned(), |hex| format!("sha256:{hex}"));
        return Err(Cause::OtherSubject.because(format!("it is over {named:.80}, not over {image}")));
    }
    Ok(())
}

/// The statement that `image` is signed, as cosign writes it.
pub fn signing(image: &Digest) -> Vec<u8> {
    json!({
        "_type": STATEMENT,
        "subject": [{"digest": {"sha256": image.hex()}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    })
    .to_string()
    .into_bytes()
}
