//! Timestamps: an RFC 3161 token over a signature, proven by a timestamping authority of the trust stores
//! ("Validate Trusted Timestamp" in Notary's `trust-store-trust-policy.md`; RFC 5652, section 5, for the envelope around it).
//!
//! Tokens must name their signer by `signingCertificateV2` (RFC 5816), as notation demands, too.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::certificate::Certificate;
use super::chain::{self, Purpose};
use super::token::{Info, Token};
use super::{MAX_CHAIN, MAX_TIMESTAMP, ber};

/// Most signatures that are checked to find the way from the signer to a root.
const MAX_STEPS: usize = 64;

/// What a token proves.
#[derive(Debug)]
pub(super) struct Stamp {
    /// The signature was there between these two.
    pub(super) from: OffsetDateTime,
    pub(super) to: OffsetDateTime,
    /// The authority's certificate first, the trusted root last.
    pub(super) chain: Vec<Certificate>,
}

/// Verifies `token` over `signature`.
pub(super) fn verify(token: &[u8], signature: &[u8], roots: &[&Certificate]) -> Result<Stamp, String> {
    if token.len() > MAX_TIMESTAMP {
        return Err(format!("the timestamp has {} bytes: at most {MAX_TIMESTAMP} are read", token.len()));
    }
    let malformed = |reason: String| format!("the timestamp is malformed: {reason}");
    let der: Cow<'_, [u8]> =
        if ber::is_indefinite(token) { ber::to_der(token).map_err(malformed)?.into() } else { token.into() };
    let token = Token::parse(&der).map_err(malformed)?;
    let signer = token.signer()?;
    token.check_signature(signer)?;
    let info = Info::parse(token.content).map_err(malformed)?;
    if info.imprint.of(signature) != info.message {
        return Err("the timestamp is over another signature".to_owned());
    }
    let chain = Way { certificates: &token.certificates, roots, steps: MAX_STEPS }.from(signer)?;
    chain::check(&chain, Purpose::Timestamping)?;
    for certificate in &chain {
        certificate.check_valid(info.time, info.time, "when it made the timestamp")?;
    }
    Ok(Stamp { from: info.time - info.accuracy, to: info.time + info.accuracy, chain })
}

/// The search for a chain.
struct Way<'a> {
    certificates: &'a [Certificate],
    roots: &'a [&'a Certificate],
    steps: usize,
}

impl Way<'_> {
    fn from(mut self, signer: &Certificate) -> Result<Vec<Certificate>, String> {
        let mut chain = vec![signer.clone()];
        if self.extend(&mut chain)? {
            return Ok(chain);
        }
        Err(format!("the {signer} of the timestamp leads to no root of the tsa trust stores"))
    }

    /// Goes on from the last of `chain`, roots first.
    fn extend(&mut self, chain: &mut Vec<Certificate>) -> Result<bool, String> {
        let Some(last) = chain.last().cloned() else { return Ok(false) };
        if self.roots.iter().any(|root| root.der() == last.der()) {
            return Ok(true);
        }
        if chain.len() == MAX_CHAIN {
            return Ok(false);
        }
        let (roots, certificates) = (self.roots, self.certificates);
        for candidate in roots.iter().copied().chain(certificates) {
            let known = chain.iter().any(|certificate| certificate.der() == candidate.der());
            if known || candidate.subject != last.issuer {
                continue;
            }
            self.steps =
                self.steps.checked_sub(1).ok_or("the timestamp holds too many certificates of one name")?;
            if last.check_issued_by(candidate).is_err() {
                continue;
            }
            chain.push(candidate.clone());
            if self.extend(chain)? {
                return Ok(true);
            }
            chain.pop();
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use time::Duration;

    use super::*;
    use crate::policy::digest::Digest;
    use crate::policy::trust::notation::token::MESSAGE_DIGEST;
    use crate::policy::trust::pem;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/notation/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    /// Made by openssl.
    #[test]
    fn tokens_by_authorities_that_lead_to_a_root() {
        let tokens: BTreeMap<String, String> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
        let (_, root) = pem::decode(&fixture("trust-store/x509/tsa/acme-time/root.pem")).unwrap();
        let root = Certificate::from_der(&root).unwrap();
        let table = [
            ("good", ""),
            ("below", ""),
            ("another message", "over another signature"),
            ("foreign authority", "leads to no root"),
            ("middle is missing", "leads to no root"),
            ("limited authority", "limited to other purposes"),
            ("expired authority", "was expired when it made the timestamp"),
            ("key RSA 2560", "RSA of 2560 bits"),
        ];
        assert_eq!(tokens.len(), table.len());
        for (name, words) in table {
            let token = STANDARD.decode(&tokens[name]).unwrap();
            match verify(&token, b"message", &[&root]) {
                Ok(stamp) => {
                    assert_eq!((words, stamp.to - stamp.from), ("", Duration::seconds(3)), "{name}");
                    assert_eq!(stamp.chain.len(), if name == "below" { 3 } else { 2 });
                }
                Err(reason) => assert!(!words.is_empty() && reason.contains(words), "{name}: {reason}"),
            }
            assert!(verify(&token, b"message", &[]).is_err());
        }
    }

    #[test]
    fn a_token_in_ber_says_the_same() {
        let tokens: BTreeMap<String, String> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
        let (_, root) = pem::decode(&fixture("trust-store/x509/tsa/acme-time/root.pem")).unwrap();
        let root = Certificate::from_der(&root).unwrap();
        let token = ber::tests::to_ber(&STANDARD.decode(&tokens["below"]).unwrap());
        assert_eq!(verify(&token, b"message", &[&root]).unwrap().chain.len(), 3);
        assert!(verify(&token, b"massage", &[&root]).is_err());
        assert!(verify(token.get(..token.len() - 2).unwrap(), b"message", &[&root]).is_err());
    }

    /// `token` with `old` replaced by `new`, of the same length, where it first stands in the signed attributes or, if
    /// it does not, in the content; signed again by the authority, the way openssl does.
    fn resigned(token: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
        let (_, key) = pem::decode(&fixture("time.key")).unwrap();
        let key = RsaKeyPair::from_pkcs8(&key).unwrap();
        let parsed = Token::parse(token).unwrap();
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - token.as_ptr() as usize;
            start..start + part.len()
        };
        let (content, attributes) = (place(parsed.content), place(parsed.attributes.bytes));
        let digest = place(parsed.attribute(MESSAGE_DIGEST).unwrap().octets().unwrap());
        let signature = place(parsed.signature);
        let mut changed = token.to_vec();
        let replace = |bytes: &mut [u8]| {
            let at = bytes.windows(old.len()).position(|window| window == old)?;
            bytes[at..at + old.len()].copy_from_slice(new);
            Some(())
        };
        if replace(&mut changed[attributes.clone()]).is_none() {
            replace(&mut changed[content.clone()]).unwrap();
            let hash = parsed.hash.of(&changed[content]);
            changed[digest].copy_from_slice(&hash);
        }
        let mut signed = changed[attributes].to_vec();
        signed[0] = 0x31;
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &signed, &mut changed[signature]).unwrap();
        changed
    }

    /// What an authority would have to sign itself.
    #[test]
    fn what_an_authority_signs_must_fit_together() {
        let tokens: BTreeMap<String, String> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
        let (_, root) = pem::decode(&fixture("trust-store/x509/tsa/acme-time/root.pem")).unwrap();
        let root = Certificate::from_der(&root).unwrap();
        let token = STANDARD.decode(&tokens["good"]).unwrap();
        let hash = Digest::of(Token::parse(&token).unwrap().signer().unwrap().der());
        let imprint = Digest::of(b"message");
        let accuracy = [0x30, 7, 2, 1, 1, 0x80, 2, 1, 0xf4];
        assert!(verify(&resigned(&token, &accuracy, &accuracy), b"message", &[&root]).is_ok());
        for (old, new, words) in [
            (&hash.as_bytes()[..], &[7; 32][..], "names another certificate"),
            (&imprint.as_bytes()[..], &[7; 32], "over another signature"),
            (&[2, 1, 1, 6, 3], &[2, 1, 2, 6, 3], "not of version 1"),
            (&[0x30, 7, 2, 1, 1, 0x80], &[0x30, 7, 2, 1, 0xff, 0x80], "accuracy is negative"),
            (&[0x30, 7, 2, 1, 1, 0x80], &[0x30, 7, 4, 1, 1, 0x80], "accuracy is no number"),
            // the TSTInfo calls itself data
            (&[0x10, 1, 4], &[0x10, 1, 5], "is expected"),
            (&[0x18, 15, b'2'], &[0x18, 15, b'Y'], "no GeneralizedTime"),
        ] {
            let reason = verify(&resigned(&token, old, new), b"message", &[&root]).unwrap_err();
            assert!(reason.contains(words), "{words:?}: {reason}");
        }
    }
}
