//! Whether somebody whom policy trusts vouches for an image.

use super::evidence::{Evidence, EvidenceName, MAX_EVIDENCE, Subject};
use super::notation;
use super::sigstore;
use super::verdict::{Cause, Reason, Refusal, Verified};
use super::{Trust, signature_tag};
use crate::policy::digest::Digest;

/// Looks for a signature over `subject` by somebody trusted; the first that holds suffices. Otherwise the reasons, one a
/// piece of evidence.
pub fn verify(trust: &Trust, subject: &Subject<'_>, evidence: &[Evidence]) -> Result<Verified, Vec<Refusal>> {
    all_in_vain(trust, subject.digest, evidence)
        .map_or(Ok(()), |reason| Err(vec![Refusal::of_all(reason)]))?;
    let mut refusals = Vec::new();
    for (at, piece) in evidence.iter().take(MAX_EVIDENCE).enumerate() {
        let name = EvidenceName::of(at, piece);
        match check(trust, subject, piece, &name) {
            Ok(verified) => return Ok(verified),
            Err(reason) => refusals.push(Refusal { evidence: Some(name), reason }),
        }
    }
    if evidence.len() > MAX_EVIDENCE {
        let words = format!("{} more signatures were not looked at", evidence.len() - MAX_EVIDENCE);
        refusals.push(Refusal::of_all(Cause::TooMany.because(words)));
    }
    Err(refusals)
}

fn check(
    trust: &Trust,
    subject: &Subject<'_>,
    piece: &Evidence,
    name: &EvidenceName,
) -> Result<Verified, Reason> {
    let finding = match piece {
        Evidence::SimpleSigning(layer) => sigstore::check_layer(trust, subject.digest, layer)?,
        Evidence::Bundle(bundle) => sigstore::check_bundle(trust, subject.digest, bundle)?,
        Evidence::Notation(envelope) => {
            let signer = notation::evidence::check(trust, subject, envelope)?;
            return Ok(Verified::by_notation(signer, name));
        }
    };
    Ok(Verified {
        by: finding.by,
        evidence: name.clone(),
        checked: finding.checked,
        signed_reference: finding.signed_reference,
        signed_at: finding.signed_at,
        valid_until: None,
    })
}

/// Why no evidence could do, if that is known before looking at it.
fn all_in_vain(trust: &Trust, pinned: &Digest, evidence: &[Evidence]) -> Option<Reason> {
    if trust.keys.is_empty() && trust.identities.is_empty() && trust.notation.is_none() {
        let words = "no key and no identity is trusted: put the signer's cosign.pub into trust.keys of the policy, \
                     issuer and subject of his certificates into trust.identities, or notation's trust policy into \
                     trust.notation";
        return Some(Cause::NobodyTrusted.because(words));
    }
    evidence.is_empty().then(|| {
        Cause::NoSignature.because(format!(
            "it has no signature (no tag {} beside it, and no bundle refers to it): sign it with `addonfs sign --key \
             cosign.key`, `cosign sign` or `notation sign`",
            signature_tag(pinned)
        ))
    })
}

#[cfg(test)]
pub(in crate::policy) mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::policy::trust::SIGNATURE_ANNOTATION;
    use crate::policy::trust::TrustedKey;
    use crate::policy::trust::evidence::SimpleSigning;
    use crate::policy::trust::keys::PrivateKey;
    use crate::policy::trust::simple_signing::Payload;
    use crate::policy::trust::verdict::Voucher;
    use crate::policy::trust::verdict::in_words;

    /// A signature by `key` over the image `digest`.
    pub(in crate::policy) fn material(key: &PrivateKey, digest: &Digest) -> Evidence {
        let payload = Payload {
            docker_reference: "localhost:5000/org/x".to_owned(),
            digest: *digest,
            optional: serde_json::Map::new(),
        };
        let payload = payload.to_bytes();
        let signature = STANDARD.encode(key.sign(&payload).unwrap());
        SimpleSigning { payload, annotations: vec![(SIGNATURE_ANNOTATION.to_owned(), signature)] }.into()
    }

    /// The digest alone.
    pub(in crate::policy) fn subject(digest: &Digest) -> Subject<'_> {
        Subject { digest, location: None, now: 0 }
    }

    pub(in crate::policy) fn trusting(keys: &[(&str, &PrivateKey)]) -> Trust {
        let keys = keys
            .iter()
            .map(|(name, key)| TrustedKey { name: (*name).to_owned(), key: key.public().unwrap() });
        Trust { keys: keys.collect(), ..Trust::default() }
    }

    /// Cases VF-01, VF-02, VF-07 (every key is tried, the first that verifies suffices), VF-23 and RP-13.
    #[test]
    fn a_trusted_key_over_this_digest_and_nothing_else() {
        let (good, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let image = Digest::of(b"image");
        let trust = trusting(&[("other.pub", &other), ("right.pub", &good)]);
        let signed = material(&good, &image);

        let verified = verify(&trust, &subject(&image), std::slice::from_ref(&signed)).unwrap();
        let fingerprint = good.public().unwrap().fingerprint();
        assert_eq!(*verified.by(), Voucher::Key { name: "right.pub".to_owned(), fingerprint });
        assert_eq!(verified.signed_reference(), Some("localhost:5000/org/x"));

        let refused = |trust: &Trust, image: &Digest, evidence: &[Evidence], cause: Cause, word: &str| {
            let refusals = verify(trust, &subject(image), evidence).unwrap_err();
            assert_eq!(refusals[0].reason.code, cause, "{refusals:?}");
            assert!(in_words(&refusals).contains(word), "{refusals:?}");
        };
        let alone = std::slice::from_ref(&signed);
        let require_log = Trust { require_log: true, ..trust.clone() };
        refused(&trust, &image, &[], Cause::NoSignature, "no signature");
        refused(&Trust::default(), &image, alone, Cause::NobodyTrusted, "no key and no identity");
        refused(&trusting(&[("other.pub", &other)]), &image, alone, Cause::UntrustedKey, "other.pub");
        refused(&trust, &Digest::of(b"another"), alone, Cause::OtherSubject, "not over");
        refused(&require_log, &image, alone, Cause::LogMissing, "log");

        let Evidence::SimpleSigning(layer) = &signed else { panic!("{signed:?}") };
        let with = |change: &dyn Fn(&mut SimpleSigning)| {
            let mut layer = layer.clone();
            change(&mut layer);
            Evidence::from(layer)
        };
        refused(&trust, &image, &[with(&|l| l.payload.push(b' '))], Cause::UntrustedKey, "trusted key");
        let garbage = with(&|l| l.annotations[0].1 = "%".to_owned());
        refused(&trust, &image, std::slice::from_ref(&garbage), Cause::Malformed, "base64");
        refused(&trust, &image, &[with(&|l| l.annotations.clear())], Cause::Malformed, "annotation");
        // One bad signature beside a good one does no harm.
        assert_eq!(verify(&trust, &subject(&image), &[garbage, signed]).unwrap().evidence().number, 2);
    }
}
