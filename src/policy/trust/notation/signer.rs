//! What becomes of a judgement: a [`Signer`] or [`Failure`]s.

use std::fmt;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::certificate::shown;
use crate::policy::digest::Digest;

/// What a signature says of the manifest beside its digest. Only who has the manifest can compare it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedManifest {
    pub(super) media_type: String,
    pub(super) size: u64,
}

impl SignedManifest {
    /// Whether the manifest is what was signed: bytes that were signed as one thing must not be read as another.
    pub fn check(&self, media_type: &str, size: u64) -> Result<(), String> {
        if self.size != size {
            return Err(format!(
                "its signature is over a manifest of {} bytes, this one has {size}",
                self.size
            ));
        }
        if self.media_type != media_type {
            return Err(format!("its signature is over a {:?}, this is a {media_type:?}", self.media_type));
        }
        Ok(())
    }
}

/// How the signature came to be ("Signing Scheme").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Scheme {
    /// `notary.x509`: somebody signed with his own certificate.
    #[serde(rename = "notary.x509")]
    X509,
    /// `notary.x509.signingAuthority`: a service signed for somebody, and says when.
    #[serde(rename = "notary.x509.signingAuthority")]
    SigningAuthority,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// That the policy has a statement for the repository.
    TrustPolicy,
    /// That the envelope is whole and well made, and over this manifest.
    Integrity,
    /// That the signer is trusted.
    Authenticity,
    /// That its certificates were valid when it signed.
    AuthenticTimestamp,
    /// That the signature has not expired.
    Expiry,
    /// That its certificates are not revoked.
    Revocation,
}

/// A check that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What was checked.
    pub check: Check,
    /// Why it failed.
    pub reason: String,
}

/// Who vouches for a manifest. Only [`super::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signer {
    pub(super) statement: String,
    pub(super) level: &'static str,
    pub(super) subject: String,
    pub(super) thumbprint: Digest,
    pub(super) scheme: Scheme,
    pub(super) manifest: SignedManifest,
    #[serde(serialize_with = "moment")]
    pub(super) signed: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "moment_if")]
    pub(super) proven: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "moment_if")]
    pub(super) until: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) findings: Vec<Failure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) skipped: Vec<Check>,
}

impl Signer {
    /// The statement of the trust policy by which the signature was judged.
    pub fn statement(&self) -> &str {
        &self.statement
    }

    /// The level of that statement.
    pub fn level(&self) -> &str {
        self.level
    }

    /// The subject of the signing certificate.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// SHA-256 of the signing certificate.
    pub fn thumbprint(&self) -> &Digest {
        &self.thumbprint
    }

    /// How the signature came to be.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What the signature says of the manifest: to be compared with it before anything else is done.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// When it was made, by the signer's own clock.
    pub fn signed(&self) -> OffsetDateTime {
        self.signed
    }

    /// When somebody trusted says that it was there at the latest: a timestamping or a signing authority.
    pub fn proven(&self) -> Option<OffsetDateTime> {
        self.proven
    }

    /// Until when all this holds, if nothing changes: the first of the enforced ends.
    pub fn until(&self) -> Option<OffsetDateTime> {
        self.until
    }

    /// Checks that failed where the policy says that this is only told.
    pub fn findings(&self) -> &[Failure] {
        &self.findings
    }

    /// Checks that were not made because the policy says so.
    pub fn skipped(&self) -> &[Check] {
        &self.skipped
    }

    /// Whether the signer is trusted. At level `audit` the signature may be anybody's: then it vouches for nothing.
    pub fn is_trusted(&self) -> bool {
        !self.findings.iter().any(|finding| finding.check == Check::Authenticity)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TrustPolicy => "trust policy",
            Self::Integrity => "integrity",
            Self::Authenticity => "authenticity",
            Self::AuthenticTimestamp => "authentic timestamp",
            Self::Expiry => "expiry",
            Self::Revocation => "revocation",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.reason)
    }
}

fn moment<S: Serializer>(moment: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(*moment))
}

fn moment_if<S: Serializer>(moment: &Option<OffsetDateTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.serialize_str(&shown(*moment)),
        None => serializer.serialize_none(),
    }
}
