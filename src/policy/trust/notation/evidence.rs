//! A Notation envelope as evidence: what the verdict on it means for an image.

use time::OffsetDateTime;

use super::{Check, Failure, Signer, Target, verify};
use crate::policy::trust::Trust;
use crate::policy::trust::evidence::{NotationEnvelope, Subject};
use crate::policy::trust::verdict::{Cause, Reason};

/// Who vouches for the subject by this envelope. A signature that policy lets pass though its signer is not trusted (level
/// `audit`) is nobody's word: what becomes of images without one is for others to say.
pub(in crate::policy::trust) fn check(
    trust: &Trust,
    subject: &Subject<'_>,
    envelope: &NotationEnvelope,
) -> Result<Signer, Reason> {
    let notation = trust.notation.as_deref().ok_or_else(|| {
        let words = "no Notary trust policy is set: name it in trust.notation.trust_policy to let such signatures count";
        Cause::NobodyTrusted.because(words)
    })?;
    let location = subject.location.ok_or_else(|| {
        Cause::Unsupported.because("Notary signatures count for images in a repository only")
    })?;
    let now = OffsetDateTime::from_unix_timestamp(subject.now)
        .map_err(|_| Cause::Unsupported.because("this machine's clock is not set"))?;
    let target = Target { location, digest: subject.digest };
    let signer =
        verify(notation, &target, &envelope.media_type, &envelope.bytes, now).map_err(|f| reason(&f))?;
    if !signer.is_trusted() {
        let mut reason = reason(signer.findings());
        reason.words.push_str(&format!(
            "; statement {:?} of the trust policy only logs that (level {}), so the signature is nobody's whom it trusts",
            signer.statement(),
            signer.level()
        ));
        return Err(reason);
    }
    Ok(signer)
}

/// The first decides what kind of reason it is; all are told.
fn reason(failures: &[Failure]) -> Reason {
    let cause = match failures.first().map(|failure| failure.check) {
        Some(Check::TrustPolicy) | None => Cause::NobodyTrusted,
        Some(Check::Integrity) => Cause::Integrity,
        Some(Check::Authenticity) => Cause::Authenticity,
        Some(Check::AuthenticTimestamp) => Cause::AuthenticTimestamp,
        Some(Check::Expiry) => Cause::Expiry,
        Some(Check::Revocation) => Cause::Revocation,
    };
    let words: Vec<String> = failures.iter().map(ToString::to_string).collect();
    cause.because(words.join("; "))
}
