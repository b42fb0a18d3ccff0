//! Timestamps: an RFC 3161 token over a signature, proven by a timestamping authority of the trust stores
//! ("Validate Trusted Timestamp" in Notary's `trust-store-trust-policy.md`; RFC 5652, section 5, for the envelope around it).
//!
//! Tokens must name their signer by `signingCertificateV2` (RFC 5816), as notation demands, too.

use std::borrow::Cow;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::algorithm::{self, Hash};
use super::asn1::{Element, elements};
use super::certificate::Certificate;
use super::chain::{self, Purpose};
use super::{MAX_CHAIN, MAX_TIMESTAMP, ber};

const SIGNED_DATA: &str = "1.2.840.113549.1.7.2";
const TST_INFO: &str = "1.2.840.113549.1.9.16.1.4";
const CONTENT_TYPE: &str = "1.2.840.113549.1.9.3";
const MESSAGE_DIGEST: &str = "1.2.840.113549.1.9.4";
const SIGNING_CERTIFICATE_V2: &str = "1.2.840.113549.1.9.16.2.47";
/// The baseline policy, whose accuracy is a second where none is said (RFC 3628, section 5.2).
const BASELINE_POLICY: &str = "0.4.0.2023.1.1";

/// Most certificates in a token.
const MAX_CERTIFICATES: usize = 20;
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

/// A token's CMS SignedData.
struct Token<'a> {
    /// The TSTInfo.
    content: &'a [u8],
    certificates: Vec<Certificate>,
    /// Issuer and serial number of the signer's certificate.
    issuer: &'a [u8],
    serial: &'a [u8],
    hash: Hash,
    attributes: Element<'a>,
    algorithm: Element<'a>,
    signature: &'a [u8],
}

impl<'a> Token<'a> {
    fn parse(token: &'a [u8]) -> Result<Self, String> {
        let outer = Element::only(token)?.sequence()?;
        let [kind, content] = outer.as_slice() else { return Err("it is no ContentInfo".to_owned()) };
        expect(kind, SIGNED_DATA)?;
        let parts = explicit(content, 0)?.sequence()?;
        let [version, _digests, encapsulated, rest @ ..] = parts.as_slice() else {
            return Err("it is no SignedData".to_owned());
        };
        // What version says in CMS follows from what is in it (RFC 5652, sections 5.1 and 5.3).
        if version.content() != [3] {
            return Err("its SignedData is not of version 3".to_owned());
        }
        let (certificates, rest) = match rest {
            [certificates, rest @ ..] if certificates.is_context(0) => {
                (elements(certificates.content())?, rest)
            }
            _ => (Vec::new(), rest),
        };
        let signers = rest.last().ok_or("it has no signer")?.set()?;
        let [signer] = signers.as_slice() else {
            return Err(format!("it has {} signers, of which there must be one", signers.len()));
        };
        if certificates.len() > MAX_CERTIFICATES {
            return Err(format!("it holds more than {MAX_CERTIFICATES} certificates"));
        }
        let encapsulated = encapsulated.sequence()?;
        let [kind, content] = encapsulated.as_slice() else { return Err("it has no content".to_owned()) };
        expect(kind, TST_INFO)?;
        let fields = signer.sequence()?;
        let [version, identifier, hash, attributes, algorithm, signature, ..] = fields.as_slice() else {
            return Err("its signer has not all its parts".to_owned());
        };
        if version.content() != [1] {
            return Err("its signer is not of version 1".to_owned());
        }
        if !attributes.is_context(0) {
            return Err("it has no signed attributes".to_owned());
        }
        let identifier =
            identifier.sequence().map_err(|_| "its signer is not named by issuer and serial number")?;
        let [issuer, serial] = identifier.as_slice() else {
            return Err("its signer is not named".to_owned());
        };
        Ok(Self {
            content: explicit(content, 0)?.octets()?,
            certificates: certificates
                .iter()
                .map(|certificate| Certificate::from_der(certificate.bytes))
                .collect::<Result<_, _>>()?,
            issuer: issuer.bytes,
            serial: serial.content(),
            hash: Hash::from_identifier(hash)?,
            attributes: *attributes,
            algorithm: *algorithm,
            signature: signature.octets()?,
        })
    }

    /// The certificate of the signer, which the token must hold.
    fn signer(&self) -> Result<&Certificate, String> {
        let named = |certificate: &&Certificate| {
            certificate.issuer == self.issuer && certificate.serial == self.serial
        };
        self.certificates
            .iter()
            .find(named)
            .ok_or_else(|| "the timestamp does not hold its signer's certificate".to_owned())
    }

    /// The signature, and that it is over this content and names this signer.
    fn check_signature(&self, signer: &Certificate) -> Result<(), String> {
        // What is signed is the attributes as a SET, not as the [0] they are written as (RFC 5652, section 5.4).
        let mut signed = self.attributes.bytes.to_vec();
        if let Some(tag) = signed.first_mut() {
            *tag = 0x31;
        }
        algorithm::check(&self.algorithm, Some(self.hash), &signer.spki, &signed, self.signature)
            .map_err(|reason| format!("the timestamp is not by its signer: {reason}"))?;
        let broken = |reason: String| format!("the timestamp is malformed: {reason}");
        expect(&self.attribute(CONTENT_TYPE).map_err(broken)?, TST_INFO).map_err(broken)?;
        if self.attribute(MESSAGE_DIGEST).and_then(|digest| digest.octets()).map_err(broken)?
            != self.hash.of(self.content)
        {
            return Err("the signature of the timestamp is over other content".to_owned());
        }
        let named = self
            .attribute(SIGNING_CERTIFICATE_V2)
            .and_then(|named| certificate_hash(&named))
            .map_err(broken)?;
        if named.0.of(signer.der()) != named.1 {
            return Err("the timestamp names another certificate than its signer's".to_owned());
        }
        Ok(())
    }

    /// The only value of the only attribute of that type.
    fn attribute(&self, oid: &str) -> Result<Element<'a>, String> {
        let mut found = Vec::new();
        for attribute in elements(self.attributes.content())? {
            let parts = attribute.sequence()?;
            let [kind, values] = parts.as_slice() else {
                return Err("an attribute without value".to_owned());
            };
            if kind.oid()?.to_string() == oid {
                found.extend(values.set()?);
            }
        }
        match found.as_slice() {
            [only] => Ok(*only),
            _ => Err(format!("it has {} values of attribute {oid}, of which there must be one", found.len())),
        }
    }
}

/// The first of `signingCertificateV2` (RFC 5035, section 3): a hash, SHA-256 by default, of the signer's certificate.
fn certificate_hash<'a>(value: &Element<'a>) -> Result<(Hash, &'a [u8]), String> {
    let lists = value.sequence()?;
    let certificates = lists.first().ok_or("signingCertificateV2 is empty")?.sequence()?;
    let parts = certificates.first().ok_or("signingCertificateV2 names no certificate")?.sequence()?;
    let (hash, parts) = match parts.as_slice() {
        [hash, rest @ ..] if hash.tag() == der::Tag::Sequence => (Hash::from_identifier(hash)?, rest),
        rest => (Hash::Sha256, rest),
    };
    Ok((hash, parts.first().ok_or("signingCertificateV2 has no hash")?.octets()?))
}

/// TSTInfo (RFC 3161, section 2.4.2).
struct Info<'a> {
    imprint: Hash,
    message: &'a [u8],
    time: OffsetDateTime,
    accuracy: Duration,
}

impl<'a> Info<'a> {
    fn parse(content: &'a [u8]) -> Result<Self, String> {
        let parts = Element::only(content)?.sequence()?;
        let [version, policy, imprint, _serial, time, rest @ ..] = parts.as_slice() else {
            return Err("its TSTInfo has not all its parts".to_owned());
        };
        if version.content() != [1] {
            return Err("its TSTInfo is not of version 1".to_owned());
        }
        let imprint = imprint.sequence()?;
        let [hash, message] = imprint.as_slice() else { return Err("it has no imprint".to_owned()) };
        let accuracy = rest.iter().find(|part| part.tag() == der::Tag::Sequence).map(accuracy).transpose()?;
        let implied =
            if policy.oid()?.to_string() == BASELINE_POLICY { Duration::SECOND } else { Duration::ZERO };
        if let Some(extensions) = rest.iter().find(|part| part.is_context(1)) {
            refuse_critical(extensions)?;
        }
        Ok(Self {
            imprint: Hash::from_identifier(hash)?,
            message: message.octets()?,
            time: generalized_time(time)?,
            accuracy: accuracy.filter(|accuracy| !accuracy.is_zero()).unwrap_or(implied),
        })
    }
}

/// None of them is understood.
fn refuse_critical(extensions: &Element<'_>) -> Result<(), String> {
    for extension in elements(extensions.content())? {
        if extension.sequence()?.iter().any(|part| part.tag() == der::Tag::Boolean && part.content() != [0]) {
            return Err("it has a critical extension, and none is understood".to_owned());
        }
    }
    Ok(())
}

/// Accuracy ::= SEQUENCE { seconds INTEGER OPTIONAL, millis [0] INTEGER OPTIONAL, micros [1] INTEGER OPTIONAL }
fn accuracy(value: &Element<'_>) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    for part in value.sequence()? {
        let number = match part.content() {
            [] => return Err("its accuracy is no number".to_owned()),
            [first, ..] if first & 0x80 != 0 => return Err("its accuracy is negative".to_owned()),
            // A timestamp that is a year off is none.
            digits if digits.len() > 4 => return Err("its accuracy is too coarse".to_owned()),
            digits => digits.iter().fold(0_i64, |number, digit| number << 8 | i64::from(*digit)),
        };
        total += match part.tag() {
            der::Tag::Integer => Duration::seconds(number),
            _ if part.is_primitive_context(0) => Duration::milliseconds(number),
            _ if part.is_primitive_context(1) => Duration::microseconds(number),
            _ => return Err("its accuracy is no number".to_owned()),
        };
    }
    Ok(total)
}

const SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day][hour][minute][second]Z");
const FRACTIONS: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day][hour][minute][second].[subsecond]Z");

/// GeneralizedTime in UTC, with fractions of seconds or without.
fn generalized_time(value: &Element<'_>) -> Result<OffsetDateTime, String> {
    let wrong = || "its time is no GeneralizedTime in UTC".to_owned();
    if value.tag() != der::Tag::GeneralizedTime {
        return Err(wrong());
    }
    let text = std::str::from_utf8(value.content()).map_err(|_| wrong())?;
    let format = if text.contains('.') { FRACTIONS } else { SECONDS };
    PrimitiveDateTime::parse(text, format).map(PrimitiveDateTime::assume_utc).map_err(|_| wrong())
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

fn expect(element: &Element<'_>, oid: &str) -> Result<(), String> {
    match element.oid()?.to_string() {
        found if found == oid => Ok(()),
        found => Err(format!("it holds {found} where {oid} is expected")),
    }
}

/// What `[number]` is wrapped around.
fn explicit<'a>(element: &Element<'a>, number: u8) -> Result<Element<'a>, String> {
    if !element.is_context(number) {
        return Err(format!("[{number}] is missing"));
    }
    Element::only(element.content())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use time::macros::datetime;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

    use super::*;
    use crate::policy::digest::Digest;
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

    #[test]
    fn times_have_fractions_or_none() {
        let read = |text: &str| {
            let der = [&[0x18, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
            generalized_time(&Element::only(&der).unwrap())
        };
        assert_eq!(read("20261121100000Z").unwrap(), datetime!(2026-11-21 10:00 UTC));
        assert_eq!(read("20261121100000.25Z").unwrap(), datetime!(2026-11-21 10:00:00.25 UTC));
        for wrong in [
            "",
            "20261121100000",
            "20261121100000+0100",
            "20261321100000Z",
            "202611211000Z",
            "20261121100000.Z",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
