//! Whether somebody whom policy trusts vouches for an image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::evidence::{Evidence, EvidenceName, MAX_EVIDENCE, SimpleSigning, Subject};
use super::notation;
use super::simple_signing::Payload;
use super::verdict::{Cause, Reason, Refusal, Verified, Voucher};
use super::{SIGNATURE_ANNOTATION, Trust, signature_tag};
use crate::policy::digest::Digest;

/// Looks for a signature over `subject` by somebody trusted; the first that holds suffices. Otherwise the reasons, one a
/// piece of evidence.
pub fn verify(trust: &Trust, subject: &Subject<'_>, evidence: &[Evidence]) -> Result<Verified, Vec<Refusal>> {
    all_in_vain(trust, subject.digest, evidence)
        .map_or(Ok(()), |reason| Err(vec![Refusal::of_all(reason)]))?;
    let mut refusals = Vec::new();
    for (at, piece) in evidence.iter().take(MAX_EVIDENCE).enumerate() {
        let name = EvidenceName::of(at, piece);
        let outcome = match piece {
            Evidence::SimpleSigning(layer) => simple_signing(trust, subject.digest, layer, &name),
            Evidence::Bundle(_) => Err(Cause::Unsupported.because("sigstore bundles are not read yet")),
            Evidence::Notation(envelope) => notation::evidence::check(trust, subject, envelope)
                .map(|signer| Verified::by_notation(signer, &name)),
        };
        match outcome {
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

/// Why no evidence could do, if that is known before looking at it.
fn all_in_vain(trust: &Trust, pinned: &Digest, evidence: &[Evidence]) -> Option<Reason> {
    if trust.require_log {
        return Some(Cause::Unsupported.because(
            "trust.require_log is set, but transparency logs are not read yet: remove it to rely on the key alone",
        ));
    }
    if trust.keys.is_empty() && trust.notation.is_none() {
        let words = "no key is trusted: put the signer's cosign.pub into trust.keys of the policy";
        return Some(Cause::NobodyTrusted.because(words));
    }
    evidence.is_empty().then(|| {
        Cause::NoSignature.because(format!(
            "it has no signature (no tag {} beside it): sign it with `addonfs sign --key cosign.key` or `cosign sign --key`",
            signature_tag(pinned)
        ))
    })
}

fn simple_signing(
    trust: &Trust,
    pinned: &Digest,
    layer: &SimpleSigning,
    name: &EvidenceName,
) -> Result<Verified, Reason> {
    let signature = layer.signature_b64().ok_or_else(|| {
        Cause::Malformed.because(format!("the layer has no annotation {SIGNATURE_ANNOTATION}"))
    })?;
    let signature = STANDARD
        .decode(signature.trim())
        .map_err(|e| Cause::Malformed.because(format!("it is not base64: {e}")))?;
    // Nothing of the payload is believed before the signature over it holds.
    let by = trust.keys.iter().find(|trusted| trusted.key.verifies(&layer.payload, &signature));
    let by = by.ok_or_else(|| {
        let names: Vec<&str> = trust.keys.iter().map(|k| k.name.as_str()).collect();
        let words = format!("it was not made by a trusted key ({})", names.join(", "));
        Cause::UntrustedKey.because(words)
    })?;
    let payload = Payload::parse(&layer.payload).map_err(|why| Cause::Malformed.because(why))?;
    if payload.digest != *pinned {
        let words = format!("it is by {} but over {}, not over {pinned}", by.name, payload.digest);
        return Err(Cause::OtherSubject.because(words));
    }
    Ok(Verified {
        by: Voucher::Key { name: by.name.clone(), fingerprint: by.key.fingerprint() },
        evidence: name.clone(),
        signed_reference: Some(payload.docker_reference),
        signed_at: None,
        valid_until: None,
    })
}

#[cfg(test)]
pub(in crate::policy) mod tests {
    use super::*;
    use crate::policy::trust::TrustedKey;
    use crate::policy::trust::keys::PrivateKey;
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
        refused(&Trust::default(), &image, alone, Cause::NobodyTrusted, "no key is trusted");
        refused(&trusting(&[("other.pub", &other)]), &image, alone, Cause::UntrustedKey, "other.pub");
        refused(&trust, &Digest::of(b"another"), alone, Cause::OtherSubject, "not over");
        refused(&require_log, &image, alone, Cause::Unsupported, "require_log");

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
