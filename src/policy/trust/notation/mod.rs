//! Notary Project signatures, as notation makes them: whether one vouches for a manifest, offline.
//!
//! In: a trust policy document with its stores and revocation lists, and envelopes that somebody fetched. Out: a [`Signer`],
//! or every reason why not. The specifications are Notary's `signature-specification.md`, `signature-envelope-jws.md`,
//! `signature-envelope-cose.md`, `trust-store-trust-policy.md` and `signing-scheme.md`; where notation is stricter, this is.
//!
//! | step | where |
//! |---|---|
//! | which statement holds for the repository | [`policy`] |
//! | integrity: the envelope, its attributes, its chain, its payload | `envelope`, `jws`, `cose`, `chain` |
//! | authenticity: a certificate of the chain is in a trust store, the subject is a trusted identity | `store`, `identity` |
//! | authentic timestamp: the chain was valid when it signed | `timestamp` |
//! | expiry | here |
//! | revocation, by lists on disk | `revocation` |
//!
//! Verification plugins are not run: an envelope that asks for one is refused.

mod algorithm;
mod asn1;
mod ber;
mod certificate;
mod chain;
mod cose;
mod envelope;
pub(super) mod evidence;
mod identity;
mod json;
mod jws;
pub mod load;
pub mod policy;
mod revocation;
mod store;
mod timestamp;

use std::fmt;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use crate::policy::digest::Digest;
use crate::policy::reference::Location;
use certificate::{Certificate, shown};
use envelope::Envelope;
use load::NotationPaths;
use policy::{Action, Identities, Statement, TrustPolicy, VerifyTimestamp};
use revocation::RevocationLists;
use store::TrustStore;

pub use revocation::CrlFile;
pub use store::{StoreFile, StoreKind};

/// `artifactType`, or the media type of the config, of manifests that hold a signature.
pub const ARTIFACT_TYPE: &str = "application/vnd.cncf.notary.signature";
/// Media type of a JWS envelope.
pub const MEDIA_TYPE_JWS: &str = "application/jose+json";
/// Media type of a COSE envelope.
pub const MEDIA_TYPE_COSE: &str = "application/cose";

/// Largest envelope in bytes: ten certificates and a timestamp fit, in base64, too.
pub const MAX_ENVELOPE: usize = 128 << 10;
/// Longest chain of certificates. Public authorities have three or four.
pub const MAX_CHAIN: usize = 10;
/// Largest timestamp in bytes; real ones have some 6 KiB.
pub const MAX_TIMESTAMP: usize = 64 << 10;
/// Largest trust policy document in bytes.
pub const MAX_POLICY: usize = 1 << 20;
/// Largest file of a trust store in bytes.
pub const MAX_STORE_FILE: usize = 4 << 20;
/// Largest revocation list in bytes: some 100,000 entries.
pub const MAX_CRL: usize = 4 << 20;

/// Whom the trust policy trusts. Making one is cheap: certificates and revocation lists are parsed when a signature is judged.
#[derive(Debug)]
pub struct NotationTrust {
    policy: TrustPolicy,
    store: TrustStore,
    lists: RevocationLists,
    paths: Option<NotationPaths>,
}

/// The manifest that a signature must be over.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Where it is: decides which statement of the policy holds.
    pub location: &'a Location,
    /// Its digest.
    pub digest: &'a Digest,
}

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

/// Who vouches for a manifest. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signer {
    statement: String,
    level: &'static str,
    subject: String,
    thumbprint: Digest,
    scheme: Scheme,
    manifest: SignedManifest,
    #[serde(serialize_with = "moment")]
    signed: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "moment_if")]
    proven: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "moment_if")]
    until: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Failure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<Check>,
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

impl NotationTrust {
    /// Trust by a policy, with the files of the stores that it names and all revocation lists.
    pub fn new(policy: TrustPolicy, store: Vec<StoreFile>, lists: Vec<CrlFile>) -> Self {
        Self { policy, store: TrustStore::new(store), lists: RevocationLists::new(lists), paths: None }
    }

    /// The files that it was read from.
    pub fn paths(&self) -> Option<&NotationPaths> {
        self.paths.as_ref()
    }

    /// The statement for a repository. Where its level skips, no signature need be fetched, and none can vouch.
    pub fn statement(&self, location: &Location) -> Result<&Statement, Failure> {
        self.policy.statement(location).map_err(|reason| Failure { check: Check::TrustPolicy, reason })
    }
}

/// Judges one envelope. The signer, with what the policy's level only tells of; or all failures that count.
pub fn verify(
    trust: &NotationTrust,
    target: &Target<'_>,
    media_type: &str,
    envelope: &[u8],
    now: OffsetDateTime,
) -> Result<Signer, Vec<Failure>> {
    let statement = trust.statement(target.location).map_err(|failure| vec![failure])?;
    if statement.level.skips() {
        let reason = format!("statement {:?} skips verification, so no signature counts", statement.name);
        return Err(vec![Failure { check: Check::TrustPolicy, reason }]);
    }
    let opened = Envelope::open(media_type, envelope)
        .and_then(|envelope| envelope.signed_manifest(target.digest).map(|manifest| (envelope, manifest)));
    let (envelope, manifest) = opened.map_err(|reason| vec![Failure { check: Check::Integrity, reason }])?;
    Judgement {
        trust,
        statement,
        envelope: &envelope,
        manifest,
        now,
        failures: Vec::new(),
        findings: Vec::new(),
        until: None,
    }
    .make()
}

/// A judgement in the making: all checks are made, so that all reasons are told.
struct Judgement<'a> {
    trust: &'a NotationTrust,
    statement: &'a Statement,
    envelope: &'a Envelope,
    manifest: SignedManifest,
    now: OffsetDateTime,
    failures: Vec<Failure>,
    findings: Vec<Failure>,
    until: Option<OffsetDateTime>,
}

impl Judgement<'_> {
    fn make(mut self) -> Result<Signer, Vec<Failure>> {
        let envelope = self.envelope;
        let skips_revocation = self.statement.level.action(Check::Revocation) == Action::Skip;
        let authentic = self.authenticity();
        self.note(Check::Authenticity, authentic);
        let expiry = self.expiry();
        self.note(Check::Expiry, expiry);
        let stamped = match self.authentic_timestamp(skips_revocation) {
            Ok(stamped) => stamped,
            Err(reason) => {
                self.note(Check::AuthenticTimestamp, Err(reason));
                None
            }
        };
        if !skips_revocation {
            let status = self.trust.lists.check(&envelope.chain, stamped, self.now);
            let status = status.map(|until| self.ends(Check::Revocation, until));
            self.note(Check::Revocation, status);
        }
        if !self.failures.is_empty() {
            // What is only told stands behind what counts.
            self.failures.append(&mut self.findings);
            return Err(self.failures);
        }
        let leaf = envelope.chain.first().map(|leaf| (leaf.name.to_string(), leaf.thumbprint()));
        let (subject, thumbprint) = leaf.ok_or_else(Vec::new)?;
        Ok(Signer {
            statement: self.statement.name.clone(),
            level: self.statement.level.name(),
            subject,
            thumbprint,
            scheme: envelope.scheme,
            manifest: self.manifest,
            signed: envelope.signing_time,
            proven: match envelope.scheme {
                Scheme::X509 => stamped,
                Scheme::SigningAuthority => Some(envelope.signing_time),
            },
            until: self.until,
            findings: self.findings,
            skipped: if skips_revocation { vec![Check::Revocation] } else { Vec::new() },
        })
    }

    fn note(&mut self, check: Check, outcome: Result<(), String>) {
        let Err(reason) = outcome else { return };
        let failure = Failure { check, reason };
        match self.statement.level.action(check) {
            Action::Enforce => self.failures.push(failure),
            Action::Log | Action::Skip => self.findings.push(failure),
        }
    }

    /// The judgement holds no longer than this, if the check counts.
    fn ends(&mut self, check: Check, at: Option<OffsetDateTime>) {
        if self.statement.level.action(check) == Action::Enforce {
            self.until = self.until.into_iter().chain(at).min();
        }
    }

    fn authenticity(&self) -> Result<(), String> {
        let (chain, statement) = (&self.envelope.chain, self.statement);
        let kind = match self.envelope.scheme {
            Scheme::X509 => StoreKind::Ca,
            Scheme::SigningAuthority => StoreKind::SigningAuthority,
        };
        let trusted = self.trust.store.certificates(&statement.stores, kind)?;
        let known = |certificate: &Certificate| trusted.iter().any(|known| known.der() == certificate.der());
        let Some(leaf) = chain.first() else { return Err("the certificate chain is empty".to_owned()) };
        if !chain.iter().any(known) {
            return Err(format!(
                "no certificate of the chain of {leaf} is in the {} trust stores of statement {:?}",
                kind.name(),
                statement.name
            ));
        }
        match &statement.identities {
            Identities::Any => Ok(()),
            Identities::Of(identities) if identities.iter().any(|identity| identity.matches(&leaf.name)) => {
                Ok(())
            }
            Identities::Of(identities) => {
                let identities: Vec<String> = identities.iter().map(ToString::to_string).collect();
                Err(format!(
                    "the signing {leaf} does not match the X.509 trusted identities {} of statement {:?}",
                    identities.join(", "),
                    statement.name
                ))
            }
        }
    }

    fn expiry(&mut self) -> Result<(), String> {
        let Some(expiry) = self.envelope.expiry else { return Ok(()) };
        if self.now >= expiry {
            return Err(format!("the signature expired at {}", shown(expiry)));
        }
        self.ends(Check::Expiry, Some(expiry));
        Ok(())
    }

    /// That the chain was valid when it signed: now, if nobody else says when that was. Returns what a timestamp proves.
    fn authentic_timestamp(&mut self, skips_revocation: bool) -> Result<Option<OffsetDateTime>, String> {
        let (envelope, statement, now) = (self.envelope, self.statement, self.now);
        if envelope.scheme == Scheme::SigningAuthority {
            let time = envelope.signing_time;
            for certificate in &envelope.chain {
                certificate.check_valid(time, time, "when the signing authority signed")?;
            }
            // What the authority says of the time is signed with the key whose revocation may be in question.
            return Ok(None);
        }
        let expired = envelope.chain.iter().any(|certificate| now > certificate.not_after);
        let has_authority = statement.stores.iter().any(|(kind, _)| *kind == StoreKind::Tsa);
        let asks = match statement.timestamp {
            VerifyTimestamp::Always => has_authority,
            VerifyTimestamp::AfterCertExpiry => has_authority && expired,
        };
        if !asks {
            for certificate in &envelope.chain {
                certificate.check_valid(now, now, "now, and no timestamp is looked at")?;
            }
            if !has_authority {
                self.ends(Check::AuthenticTimestamp, envelope.chain.iter().map(|c| c.not_after).min());
            }
            return Ok(None);
        }
        let token = envelope.timestamp.as_deref().ok_or("the envelope has no timestamp")?;
        let roots = self.trust.store.certificates(&statement.stores, StoreKind::Tsa)?;
        let stamp = timestamp::verify(token, &envelope.signature, &roots)?;
        for certificate in &envelope.chain {
            certificate.check_valid(stamp.from, stamp.to, "at the time of the timestamp")?;
        }
        if !skips_revocation {
            let until = self.trust.lists.check(&stamp.chain, None, now)?;
            self.ends(Check::AuthenticTimestamp, until);
        }
        Ok(Some(stamp.to))
    }
}
