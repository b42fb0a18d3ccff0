//! That a certificate's holder signed, when, and that the log has this very signature: the checks of sigstore-verify, and
//! those that it leaves out.
//!
//! | check | by |
//! |---|---|
//! | signature over the manifest's digest, or over the envelope | sigstore-verify |
//! | certificate: chain to an authority of the root, for code signing, valid at every proven time | sigstore-verify |
//! | certificate: in a certificate transparency log of the root | sigstore-verify |
//! | log entry: promise (SET), inclusion proof and checkpoint, by a log of the root | sigstore-verify |
//! | log entry: hash, signature and certificate or key in it are those of this signature | sigstore-verify |
//! | timestamp (RFC 3161) over this signature, by an authority of the root while that was valid | sigstore-verify |
//! | log entry: the log was valid at every proven time, and its checkpoint names that log | here |
//! | issuer and subject are wanted | [`super::identity`] |
//! | what is signed is a signature of this digest, no attestation | [`super::statement`] |

use sigstore_verify::bundle::Error as Unfit;
use sigstore_verify::types::bundle::TransparencyLogEntry;
use sigstore_verify::types::{Artifact, Bundle, DerPublicKey};
use sigstore_verify::{
    CertificateError, Error, PublicKeyVerificationPolicy, TimestampError, TransparencyLogError,
    VerificationPolicy, VerificationResult,
};

use super::root::{Ready, TrustedRoot};
use crate::policy::trust::keys::PublicKey;
use crate::policy::trust::verdict::{Cause, Check, LogEntry, Reason};

/// What a proof proves.
#[derive(Debug)]
pub(super) struct Proof {
    /// Who the certificate says signed: issuer and subject.
    pub(super) identity: Option<(String, String)>,
    /// The first proven time, seconds since 1970.
    pub(super) signed_at: Option<i64>,
    /// Where the log has it.
    pub(super) log_entry: Option<LogEntry>,
    /// The checks that were made.
    pub(super) checked: Vec<Check>,
}

/// Proves that the holder of the bundle's certificate signed `artifact`. Who that is, is for the caller to judge.
pub(super) fn by_certificate(
    root: &TrustedRoot,
    require_log: bool,
    bundle: &Bundle,
    artifact: Artifact<'_>,
) -> Result<Proof, Reason> {
    let root = root.ready().map_err(|why| Cause::Unsupported.because(why))?;
    let needs_log = root.needs_log || require_log;
    let mut policy = VerificationPolicy::any_identity();
    if !needs_log {
        policy = policy.skip_tlog_unsafe();
    }
    if !root.needs_sct {
        policy = policy.skip_sct();
    }
    let result = root.verifier.verify(artifact, bundle, &policy).map_err(|error| reason(&error))?;
    // What was asked for was done, or the library does something else than it says.
    let complete = result.certificate_verified()
        && (result.sct_verified() || !root.needs_sct)
        && (result.tlog_verified() || !needs_log)
        && !result.verified_timestamps().is_empty();
    if !complete {
        return Err(Cause::Unsupported.because("a check was left out"));
    }
    logs_were_valid(root, bundle, &result)?;
    let (issuer, subject) = (result.issuer(), result.identity());
    let identity = issuer.zip(subject).map(|(i, s)| (i.to_owned(), s.as_str().to_owned()));
    if identity.is_none() {
        return Err(
            Cause::Certificate.because("its certificate names no issuer, or no e-mail address and no URI")
        );
    }
    let mut checked = vec![Check::Signature, Check::Certificate];
    checked.extend(root.needs_sct.then_some(Check::CertificateLog));
    checked.extend(needs_log.then_some(Check::LogEntry));
    Ok(proof(identity, bundle, &result, checked))
}

/// Proves that the log has the signature of `key` over `artifact`.
pub(super) fn by_key_in_log(
    root: &TrustedRoot,
    key: &PublicKey,
    bundle: &Bundle,
    artifact: Artifact<'_>,
) -> Result<Proof, Reason> {
    let root = root.ready().map_err(|why| Cause::Unsupported.because(why))?;
    let policy = PublicKeyVerificationPolicy::new(DerPublicKey::new(key.to_der().to_vec()));
    let result = root.verifier.verify(artifact, bundle, &policy).map_err(|error| reason(&error))?;
    if !result.tlog_verified() {
        return Err(Cause::Unsupported.because("a check was left out"));
    }
    logs_were_valid(root, bundle, &result)?;
    Ok(proof(None, bundle, &result, vec![Check::Signature, Check::LogEntry]))
}

fn proof(
    identity: Option<(String, String)>,
    bundle: &Bundle,
    result: &VerificationResult,
    mut checked: Vec<Check>,
) -> Proof {
    let material = &bundle.verification_material;
    let timestamped = !material.timestamp_verification_data.rfc3161_timestamps.is_empty();
    checked.extend(timestamped.then_some(Check::Timestamp));
    let log_entry = material.tlog_entries.first().filter(|_| checked.contains(&Check::LogEntry));
    Proof {
        identity,
        signed_at: result.verified_timestamps().iter().map(|time| time.as_second()).min(),
        log_entry: log_entry
            .map(|entry| LogEntry { log: entry.log_id.key_id.to_string(), index: entry.log_index.get() }),
        checked,
    }
}

/// The library holds a log's key to its time where the log itself says when, by its promise. Where only a timestamp does,
/// as with Rekor v2, a key that was retired long before would do: each entry must be of a log of the root that was valid
/// at every proven time, and the checkpoint be signed by that log.
fn logs_were_valid(root: &Ready, bundle: &Bundle, result: &VerificationResult) -> Result<(), Reason> {
    for entry in &bundle.verification_material.tlog_entries {
        let log = root.material.tlogs.iter().find(|log| log.log_id == entry.log_id);
        let log = log.ok_or_else(|| {
            Cause::LogUnknown
                .because(format!("its log entry is of log {}, which is not trusted", entry.log_id.key_id))
        })?;
        let window = log.public_key.valid_for;
        let outside = |time| window.is_some_and(|window| !window.contains(time));
        if result.verified_timestamps().iter().any(|time| outside(*time)) {
            let words =
                format!("its log entry is of log {}, which was not in use when it was signed", log.base_url);
            return Err(Cause::LogUnknown.because(words));
        }
        if !checkpoint_names(entry) {
            return Err(Cause::LogProof.because("the checkpoint of its log entry is of another log"));
        }
    }
    Ok(())
}

/// Whether the entry's checkpoint, if it has one, carries a signature under the entry's log id.
fn checkpoint_names(entry: &TransparencyLogEntry) -> bool {
    let checkpoint = entry.inclusion_proof.as_ref().and_then(|proof| proof.checkpoint.checkpoint());
    checkpoint.is_none_or(|checkpoint| {
        let id = entry.log_id.key_id.as_bytes();
        checkpoint.signatures().iter().any(|signature| id.starts_with(signature.key_id.as_bytes()))
    })
}

/// The library's reasons by ours.
fn reason(error: &Error) -> Reason {
    let cause = match error {
        Error::SignatureInvalid(_) => Cause::Signature,
        // The subject was compared before: it is the hash in the log entry that differs.
        Error::ArtifactMismatch(_) => Cause::LogOther,
        Error::Certificate(CertificateError::Expired { .. } | CertificateError::NotYetValid { .. }) => {
            Cause::CertificateTime
        }
        Error::Certificate(CertificateError::Malformed(_)) => Cause::Malformed,
        Error::Certificate(CertificateError::Sct(_)) => Cause::CertificateLog,
        // The library tells these two apart by their words only.
        Error::Certificate(CertificateError::ChainInvalid(why))
            if why.contains("CertExpired") || why.contains("CertNotValidYet") =>
        {
            Cause::CertificateTime
        }
        Error::Certificate(_) => Cause::Certificate,
        Error::TransparencyLog(TransparencyLogError::UnknownLog { .. }) => Cause::LogUnknown,
        Error::TransparencyLog(TransparencyLogError::EntryMismatch(_)) => Cause::LogOther,
        Error::TransparencyLog(TransparencyLogError::MalformedEntry(_)) => Cause::Malformed,
        Error::TransparencyLog(_) => Cause::LogProof,
        Error::Timestamp(TimestampError::NoVerifiedTimestamp(_)) => Cause::TimeUnknown,
        Error::Timestamp(_) => Cause::Timestamp,
        Error::Bundle(
            Unfit::MissingInclusionPromise(_)
            | Unfit::MissingInclusionProof(_)
            | Unfit::MissingSigningTimeEvidence,
        ) => Cause::LogMissing,
        Error::Bundle(
            Unfit::MissingCheckpoint | Unfit::LogIndexOutOfRange { .. } | Unfit::CheckpointRootMismatch,
        ) => Cause::LogProof,
        Error::UnsupportedArtifact(_) | Error::UnsupportedBundle(_) | Error::Crypto(_) => Cause::Unsupported,
        _ => Cause::Malformed,
    };
    match cause {
        Cause::LogMissing => {
            cause.because("an entry of a transparency log is demanded, and it has none that proves anything")
        }
        Cause::TimeUnknown => cause.because("nothing trusted says when it was signed"),
        cause => cause.because(error.to_string()),
    }
}
