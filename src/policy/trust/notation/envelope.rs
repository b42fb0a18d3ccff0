//! A signature envelope, whatever its format: opened, its signature proven by its own certificate, its attributes and its
//! chain judged. That is what Notary calls integrity; nothing here says whether the signer is trusted.
//!
//! Source: "Signature Envelope" and "Certificate Requirements" in Notary's `signature-specification.md`.

use serde::Deserialize;
use time::OffsetDateTime;

use super::algorithm::Algorithm;
use super::certificate::{Certificate, shown};
use super::chain::{self, Purpose};
use super::json::Structure;
use super::{MAX_CHAIN, MAX_ENVELOPE, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS, Scheme, SignedManifest, cose, jws};
use crate::policy::digest::Digest;
use crate::policy::image::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// Media type of the payload.
const PAYLOAD: &str = "application/vnd.cncf.notary.payload.v1+json";

/// Names of signed attributes, the same in both formats.
pub(super) const SIGNING_SCHEME: &str = "io.cncf.notary.signingScheme";
pub(super) const SIGNING_TIME: &str = "io.cncf.notary.signingTime";
pub(super) const AUTHENTIC_SIGNING_TIME: &str = "io.cncf.notary.authenticSigningTime";
pub(super) const EXPIRY: &str = "io.cncf.notary.expiry";
/// Name of the unsigned attribute that holds the timestamp.
pub(super) const TIMESTAMP_SIGNATURE: &str = "io.cncf.notary.timestampSignature";
const PLUGINS: [&str; 2] =
    ["io.cncf.notary.verificationPlugin", "io.cncf.notary.verificationPluginMinVersion"];

/// What a format has read.
pub(super) struct Parts {
    pub(super) algorithm: Algorithm,
    pub(super) content_type: String,
    pub(super) claims: Claims,
    /// The attributes that must be understood.
    pub(super) critical: Vec<String>,
    /// Signed attributes beside the known ones.
    pub(super) others: Vec<String>,
    /// The signing certificate first.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) timestamp: Option<Vec<u8>>,
    pub(super) payload: Vec<u8>,
    pub(super) to_be_signed: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// The signed attributes that are understood.
#[derive(Default)]
pub(super) struct Claims {
    pub(super) scheme: Option<String>,
    pub(super) signing_time: Option<OffsetDateTime>,
    pub(super) authentic_signing_time: Option<OffsetDateTime>,
    pub(super) expiry: Option<OffsetDateTime>,
}

/// An envelope whose integrity was proven.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) scheme: Scheme,
    /// By the signer's clock; under [`Scheme::SigningAuthority`] that is to be believed.
    pub(super) signing_time: OffsetDateTime,
    pub(super) expiry: Option<OffsetDateTime>,
    /// The signing certificate first, the root last.
    pub(super) chain: Vec<Certificate>,
    pub(super) timestamp: Option<Vec<u8>>,
    pub(super) signature: Vec<u8>,
    payload: Vec<u8>,
}

impl Envelope {
    /// Opens an envelope and proves its integrity.
    pub(super) fn open(media_type: &str, bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(format!("the envelope has {} bytes: at most {MAX_ENVELOPE} are read", bytes.len()));
        }
        let parts = match media_type {
            MEDIA_TYPE_JWS => jws::read(bytes)?,
            MEDIA_TYPE_COSE => cose::read(bytes)?,
            other => {
                return Err(format!(
                    "envelopes of type {other:?} are not supported: expected {MEDIA_TYPE_JWS} or {MEDIA_TYPE_COSE}"
                ));
            }
        };
        if parts.chain.is_empty() {
            return Err("the certificate chain is missing".to_owned());
        }
        if parts.chain.len() > MAX_CHAIN {
            return Err(format!(
                "a chain of {} certificates: at most {MAX_CHAIN} are read",
                parts.chain.len()
            ));
        }
        let certificates = parts.chain.iter().map(|der| Certificate::from_der(der));
        let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
        let leaf = certificates.first().ok_or("the certificate chain is missing")?;
        let implied = leaf.key.algorithm().ok_or_else(|| {
            format!("the signing key is {}: only RSA of 2048, 3072 or 4096 bits and ECDSA on P-256, P-384 or P-521 sign", leaf.key)
        })?;
        if implied != parts.algorithm {
            return Err(format!(
                "it names algorithm {} where the signing key ({}) implies {}",
                parts.algorithm.name(),
                leaf.key,
                implied.name()
            ));
        }
        // Nothing signed is judged before the signature over it holds.
        if !implied.verifies(&leaf.spki, &parts.to_be_signed, &parts.signature) {
            return Err("the signature is not by the signing certificate over this content".to_owned());
        }
        if parts.content_type != PAYLOAD {
            return Err(format!(
                "content type {:?} is not supported: expected {PAYLOAD}",
                parts.content_type
            ));
        }
        let (scheme, signing_time) = judge(&parts)?;
        chain::check(&certificates, Purpose::CodeSigning)?;
        Ok(Self {
            scheme,
            signing_time,
            expiry: parts.claims.expiry,
            chain: certificates,
            timestamp: parts.timestamp,
            signature: parts.signature,
            payload: parts.payload,
        })
    }

    /// What it is over, if that is the manifest with this digest.
    pub(super) fn signed_manifest(&self, digest: &Digest) -> Result<SignedManifest, String> {
        let Structure(payload): Structure<Payload> = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("its payload is not the descriptor of an artifact: {error}"))?;
        let Structure(signed) = payload.target_artifact;
        let over: Digest =
            signed.digest.parse().map_err(|error| format!("its payload names no usable digest: {error}"))?;
        if over != *digest {
            return Err(format!("it is over {over}, not over {digest}"));
        }
        if ![OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].contains(&signed.media_type.as_str()) {
            return Err(format!("it is over a {:?}, which is no image", signed.media_type));
        }
        Ok(SignedManifest { media_type: signed.media_type, size: signed.size })
    }
}

/// "Payload": other members are the signer's own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    target_artifact: Structure<TargetArtifact>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetArtifact {
    media_type: String,
    digest: String,
    size: u64,
}

/// "Signed Attributes": what must be there, what must not, and what must be marked critical.
fn judge(parts: &Parts) -> Result<(Scheme, OffsetDateTime), String> {
    let claims = &parts.claims;
    let scheme = match claims.scheme.as_deref() {
        Some("notary.x509") => Scheme::X509,
        Some("notary.x509.signingAuthority") => Scheme::SigningAuthority,
        Some(other) => return Err(format!("signing scheme {other:?} is not supported")),
        None => return Err(format!("attribute {SIGNING_SCHEME} is missing")),
    };
    if let Some(plugin) = PLUGINS.iter().find(|name| parts.others.iter().any(|other| other == *name)) {
        return Err(format!("attribute {plugin} asks for a verification plugin, and those are not run"));
    }
    let (name, time, other) = match scheme {
        Scheme::X509 => (SIGNING_TIME, claims.signing_time, claims.authentic_signing_time),
        Scheme::SigningAuthority => {
            (AUTHENTIC_SIGNING_TIME, claims.authentic_signing_time, claims.signing_time)
        }
    };
    if other.is_some() {
        return Err(format!("it has two signing times, of which {name} alone belongs to its signing scheme"));
    }
    let time = time.ok_or_else(|| format!("attribute {name} is missing"))?;
    if claims.expiry.is_some_and(|expiry| expiry <= time) {
        return Err(format!("it expires before it was made, at {}", shown(time)));
    }
    check_critical(parts, scheme)?;
    Ok((scheme, time))
}

fn check_critical(parts: &Parts, scheme: Scheme) -> Result<(), String> {
    let must = [
        (SIGNING_SCHEME, true),
        (AUTHENTIC_SIGNING_TIME, scheme == Scheme::SigningAuthority),
        (EXPIRY, parts.claims.expiry.is_some()),
    ];
    for (name, _) in must.iter().filter(|(_, must)| *must) {
        if !parts.critical.iter().any(|critical| critical == name) {
            return Err(format!("attribute {name} is not marked critical"));
        }
    }
    for (at, name) in parts.critical.iter().enumerate() {
        if parts.critical.iter().take(at).any(|before| before == name) {
            return Err(format!("{name:?} is marked critical twice"));
        }
        let present = match name.as_str() {
            SIGNING_SCHEME => true,
            SIGNING_TIME => parts.claims.signing_time.is_some(),
            AUTHENTIC_SIGNING_TIME => parts.claims.authentic_signing_time.is_some(),
            EXPIRY => parts.claims.expiry.is_some(),
            other if parts.others.iter().any(|name| name == other) => {
                return Err(format!("critical attribute {other:?} is not understood"));
            }
            _ => false,
        };
        if !present {
            return Err(format!("{name:?} is marked critical and not there"));
        }
    }
    Ok(())
}
