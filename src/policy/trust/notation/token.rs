//! The token of a timestamp, read: CMS SignedData (RFC 5652, section 5) around a TSTInfo (RFC 3161, section 2.4.2).

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::algorithm::{self, Hash};
use super::asn1::{Element, elements};
use super::certificate::Certificate;

const SIGNED_DATA: &str = "1.2.840.113549.1.7.2";
const TST_INFO: &str = "1.2.840.113549.1.9.16.1.4";
const CONTENT_TYPE: &str = "1.2.840.113549.1.9.3";
pub(super) const MESSAGE_DIGEST: &str = "1.2.840.113549.1.9.4";
const SIGNING_CERTIFICATE_V2: &str = "1.2.840.113549.1.9.16.2.47";
/// The baseline policy, whose accuracy is a second where none is said (RFC 3628, section 5.2).
const BASELINE_POLICY: &str = "0.4.0.2023.1.1";

/// Most certificates in a token.
const MAX_CERTIFICATES: usize = 20;
/// A token's CMS SignedData.
pub(super) struct Token<'a> {
    /// The TSTInfo.
    pub(super) content: &'a [u8],
    pub(super) certificates: Vec<Certificate>,
    /// Issuer and serial number of the signer's certificate.
    issuer: &'a [u8],
    serial: &'a [u8],
    pub(super) hash: Hash,
    pub(super) attributes: Element<'a>,
    algorithm: Element<'a>,
    pub(super) signature: &'a [u8],
}

impl<'a> Token<'a> {
    pub(super) fn parse(token: &'a [u8]) -> Result<Self, String> {
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
    pub(super) fn signer(&self) -> Result<&Certificate, String> {
        let named = |certificate: &&Certificate| {
            certificate.issuer == self.issuer && certificate.serial == self.serial
        };
        self.certificates
            .iter()
            .find(named)
            .ok_or_else(|| "the timestamp does not hold its signer's certificate".to_owned())
    }

    /// The signature, and that it is over this content and names this signer.
    pub(super) fn check_signature(&self, signer: &Certificate) -> Result<(), String> {
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
    pub(super) fn attribute(&self, oid: &str) -> Result<Element<'a>, String> {
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
pub(super) struct Info<'a> {
    pub(super) imprint: Hash,
    pub(super) message: &'a [u8],
    pub(super) time: OffsetDateTime,
    pub(super) accuracy: Duration,
}

impl<'a> Info<'a> {
    pub(super) fn parse(content: &'a [u8]) -> Result<Self, String> {
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
    use time::macros::datetime;

    use super::*;

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
