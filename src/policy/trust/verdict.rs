//! What became of the evidence: who vouches for an image, or every reason why nobody does.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use super::evidence::EvidenceName;
use super::notation::Signer;
use crate::policy::digest::Digest;

/// Proof that somebody trusted vouches for the pinned digest. Only this room makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub(super) by: Voucher,
    pub(super) evidence: EvidenceName,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) checked: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed_reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) valid_until: Option<i64>,
}

/// Who vouches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Voucher {
    /// A key of the configuration.
    Key {
        /// The file's name, as configured.
        name: String,
        /// SHA-256 of the SubjectPublicKeyInfo.
        fingerprint: Digest,
    },
    /// The holder of a certificate that an authority of the trusted root issued.
    Identity {
        /// Who says who he is: an OpenID Connect issuer's address.
        issuer: String,
        /// Who he is: an e-mail address, or the URI of a workflow.
        subject: String,
        /// Where the transparency log has the signature.
        #[serde(skip_serializing_if = "Option::is_none")]
        log_entry: Option<LogEntry>,
    },
    /// The holder of a certificate that the Notary trust policy trusts.
    Notation(Box<Signer>),
}

/// A place in a transparency log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// The log's id, base64.
    pub log: String,
    /// The entry's number.
    pub index: u64,
}

/// What was checked of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The signature over the image's digest.
    Signature,
    /// The certificate's chain, purpose and validity when it was signed.
    Certificate,
    /// That a certificate transparency log has the certificate.
    CertificateLog,
    /// That a transparency log has this very signature.
    LogEntry,
    /// A timestamp over the signature.
    Timestamp,
}

impl Verified {
    /// A Notation envelope's signer.
    pub(super) fn by_notation(signer: Signer, evidence: &EvidenceName) -> Self {
        Self {
            evidence: evidence.clone(),
            checked: Vec::new(),
            signed_reference: None,
            signed_at: signer.proven().map(OffsetDateTime::unix_timestamp),
            valid_until: signer.until().map(OffsetDateTime::unix_timestamp),
            by: Voucher::Notation(Box::new(signer)),
        }
    }

    /// Whether the manifest is what was signed, where a signature says more of it than its digest.
    pub fn check_manifest(&self, media_type: &str, size: u64) -> Result<(), String> {
        match &self.by {
            Voucher::Notation(signer) => signer.manifest().check(media_type, size),
            Voucher::Key { .. } | Voucher::Identity { .. } => Ok(()),
        }
    }

    /// Who vouches.
    pub fn by(&self) -> &Voucher {
        &self.by
    }

    /// The piece of evidence that holds.
    pub fn evidence(&self) -> &EvidenceName {
        &self.evidence
    }

    /// What was checked; of a Notary signature its trust policy says that.
    pub fn checked(&self) -> &[Check] {
        &self.checked
    }

    /// The repository that the signer named, where the layout has one. Not compared: images are copied.
    pub fn signed_reference(&self) -> Option<&str> {
        self.signed_reference.as_deref()
    }

    /// When it was signed, seconds since 1970, where somebody trusted says so.
    pub fn signed_at(&self) -> Option<i64> {
        self.signed_at
    }

    /// When it ceases to hold, seconds since 1970, if ever.
    pub fn valid_until(&self) -> Option<i64> {
        self.valid_until
    }
}

impl fmt::Display for Voucher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { name, .. } => f.write_str(name),
            Self::Notation(signer) => write!(f, "\"{}\"", signer.subject()),
            Self::Identity { issuer, subject, .. } => write!(f, "{subject} ({issuer})"),
        }
    }
}

/// Why a piece of evidence, or all that was found, does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which piece; `None` if it is about all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceName>,
    /// Why, in words that tell what to do.
    #[serde(flatten)]
    pub reason: Reason,
}

/// A reason: what programs compare, and words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The kind of reason.
    pub code: Cause,
    /// What it is about and what to do, in words.
    #[serde(rename = "reason")]
    pub words: String,
}

/// The kinds of reasons. Their names stand in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Policy names nobody who could vouch.
    NobodyTrusted,
    /// There is nothing beside the image.
    NoSignature,
    /// There is more than is looked at.
    TooMany,
    /// Policy asks for what is not supported.
    Unsupported,
    /// The envelope, or something in it, cannot be read.
    Malformed,
    /// It was not made by a trusted key.
    UntrustedKey,
    /// It vouches for something else than the pinned digest.
    OtherSubject,
    /// A Notary signature is not whole, not well made, or not over this manifest.
    Integrity,
    /// A Notary signature is by nobody whom the trust policy trusts.
    Authenticity,
    /// The certificates of a Notary signature were not valid when it was made, or nothing proves that they were.
    AuthenticTimestamp,
    /// A Notary signature has expired.
    Expiry,
    /// A certificate of a Notary signature is revoked, or may be.
    Revocation,
    /// It says something of the image, but not that it is signed.
    NotASignature,
    /// The signature does not fit what it is over.
    Signature,
    /// The certificate is of nobody whom policy names.
    Identity,
    /// The certificate does not come from a trusted authority, or is for something else.
    Certificate,
    /// The certificate was not valid when it was signed.
    CertificateTime,
    /// No trusted certificate transparency log has the certificate.
    CertificateLog,
    /// It has no log entry, or none that proves anything.
    LogMissing,
    /// Its log entry is of a log that is not trusted, or was not then.
    LogUnknown,
    /// Its log entry is of another signature.
    LogOther,
    /// The proof of its log entry does not hold.
    LogProof,
    /// A timestamp does not hold.
    Timestamp,
    /// Nothing proves when it was signed.
    TimeUnknown,
}

impl Cause {
    /// The reason of this kind with these words.
    pub(super) fn because(self, words: impl Into<String>) -> Reason {
        Reason { code: self, words: words.into() }
    }
}

impl Refusal {
    /// A refusal of everything that was found.
    pub(super) fn of_all(reason: Reason) -> Self {
        Self { evidence: None, reason }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.evidence {
            Some(evidence) => write!(f, "{evidence}: {}", self.reason.words),
            None => f.write_str(&self.reason.words),
        }
    }
}

/// All refusals in one line.
pub fn in_words(refusals: &[Refusal]) -> String {
    let each: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
    each.join("; ")
}
