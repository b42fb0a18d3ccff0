//! One revocation list (RFC 5280, section 5), read and judged by itself.

use der::Decode as _;
use time::OffsetDateTime;
use x509_cert::ext::pkix::crl::dp::IssuingDistributionPoint;

use super::algorithm;
use super::asn1::{Element, walk};
use super::certificate::{Certificate, point_urls, shown};

const CRL_NUMBER: &str = "2.5.29.20";
const DELTA_CRL_INDICATOR: &str = "2.5.29.27";
const ISSUING_DISTRIBUTION_POINT: &str = "2.5.29.28";
const FRESHEST_CRL: &str = "2.5.29.46";
const REASON_CODE: &str = "2.5.29.21";
const INVALIDITY_DATE: &str = "2.5.29.24";

/// Reason codes that are not for good (RFC 5280, section 5.3.1).
const CERTIFICATE_HOLD: u8 = 6;
const REMOVE_FROM_CRL: u8 = 8;

/// A revocation list (RFC 5280, section 5.1). Its entries stay as they are written: there may be very many.
#[derive(Clone)]
pub(super) struct List<'a> {
    tbs: &'a [u8],
    algorithm: Element<'a>,
    signature: &'a [u8],
    pub(super) issuer: &'a [u8],
    this_update: OffsetDateTime,
    pub(super) next_update: Option<OffsetDateTime>,
    entries: &'a [u8],
    /// The number of the list, big-endian as it is written, without leading zeros.
    pub(super) number: Number<'a>,
    /// The number of the list whose changes it holds, if it is a list of changes.
    pub(super) base: Option<Number<'a>>,
    /// Whether lists of its changes are published.
    pub(super) has_changes: bool,
    scope: Option<IssuingDistributionPoint>,
    /// Whether it covers some reasons of revocation only.
    pub(super) partial: bool,
    unknown_critical: bool,
}

/// A number of any length: compared by length, then by digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Number<'a>(usize, &'a [u8]);

impl<'a> Number<'a> {
    fn of(value: &Element<'a>) -> Result<Self, String> {
        match (value.tag(), value.content()) {
            (der::Tag::Integer, [0, rest @ ..]) => Ok(Self(rest.len(), rest)),
            (der::Tag::Integer, digits @ [first, ..]) if first & 0x80 == 0 => Ok(Self(digits.len(), digits)),
            _ => Err("a number of a revocation list is no natural number".to_owned()),
        }
    }
}

/// What a list says of a certificate.
pub(super) enum Entry {
    Revoked { since: OffsetDateTime },
    Held { since: OffsetDateTime },
    Removed,
}

impl<'a> List<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, String> {
        let outer = Element::only(der)?.sequence()?;
        let [tbs, algorithm, signature] = outer.as_slice() else {
            return Err("it is no revocation list".to_owned());
        };
        let parts = tbs.sequence()?;
        let version = usize::from(parts.first().is_some_and(|part| part.tag() == der::Tag::Integer));
        let Some([inner_algorithm, issuer, this_update, rest @ ..]) = parts.get(version..) else {
            return Err("it is no revocation list".to_owned());
        };
        if inner_algorithm.bytes != algorithm.bytes {
            return Err("it names two signature algorithms".to_owned());
        }
        let is_time =
            |part: &Element<'_>| matches!(part.tag(), der::Tag::UtcTime | der::Tag::GeneralizedTime);
        let (next_update, rest) = match rest {
            [next, rest @ ..] if is_time(next) => (Some(next.time()?), rest),
            rest => (None, rest),
        };
        let (entries, rest) = match rest {
            [entries, rest @ ..] if entries.tag() == der::Tag::Sequence => (entries.content(), rest),
            rest => (&[][..], rest),
        };
        let mut list = Self {
            tbs: tbs.bytes,
            algorithm: *algorithm,
            signature: signature.bits()?,
            issuer: issuer.bytes,
            this_update: this_update.time()?,
            next_update,
            entries,
            number: Number::default(),
            base: None,
            has_changes: false,
            scope: None,
            partial: false,
            unknown_critical: false,
        };
        match rest {
            [] => {}
            [extensions] if extensions.is_context(0) => list.read_extensions(extensions)?,
            _ => return Err("it is no revocation list".to_owned()),
        }
        Ok(list)
    }

    fn read_extensions(&mut self, wrapped: &Element<'a>) -> Result<(), String> {
        for extension in Element::only(wrapped.content())?.sequence()? {
            let extension = Extension::of(&extension)?;
            match extension.oid.as_str() {
                CRL_NUMBER => self.number = Number::of(&Element::only(extension.value)?)?,
                DELTA_CRL_INDICATOR => self.base = Some(Number::of(&Element::only(extension.value)?)?),
                FRESHEST_CRL => self.has_changes = true,
                ISSUING_DISTRIBUTION_POINT => {
                    let scope = IssuingDistributionPoint::from_der(extension.value);
                    let scope = scope.map_err(|error| format!("its scope is malformed: {error}"))?;
                    self.partial = scope.only_some_reasons.is_some();
                    self.scope = Some(scope);
                }
                _ => self.unknown_critical |= extension.critical,
            }
        }
        Ok(())
    }

    /// Whether it is the issuer's, and covers this certificate.
    pub(super) fn check_usable(&self, certificate: &Certificate, issuer: &Certificate) -> Result<(), String> {
        if issuer.key_usage.as_ref().is_some_and(|usage| !usage.value.crl_sign()) {
            return Err(format!("{issuer} must not sign revocation lists by its key usage"));
        }
        algorithm::check(&self.algorithm, None, &issuer.spki, self.tbs, self.signature)
            .map_err(|reason| format!("it is not by {issuer}: {reason}"))?;
        if self.unknown_critical {
            return Err("it has a critical extension that is not understood".to_owned());
        }
        let Some(scope) = &self.scope else { return Ok(()) };
        let wrong_kind =
            if certificate.is_ca() { scope.only_contains_user_certs } else { scope.only_contains_ca_certs };
        let elsewhere = scope
            .distribution_point
            .as_ref()
            .is_some_and(|point| !point_urls(point).iter().any(|url| certificate.crl_urls.contains(url)));
        if scope.indirect_crl || scope.only_contains_attribute_certs || wrong_kind || elsewhere {
            return Err(format!("it does not cover {certificate}"));
        }
        Ok(())
    }

    pub(super) fn check_in_force(&self, now: OffsetDateTime) -> Result<(), String> {
        let Some(next) = self.next_update else { return Err("does not say until when it holds".to_owned()) };
        if self.this_update > now {
            return Err(format!("is not yet in force: it is from {}", shown(self.this_update)));
        }
        if next < now {
            return Err(format!("is out of date: it held until {}", shown(next)));
        }
        Ok(())
    }

    /// Whether it holds changes to `full` (RFC 5280, section 5.2.4).
    pub(super) fn changes(&self, full: &Self) -> bool {
        self.base.is_some_and(|base| base <= full.number) && self.number > full.number
    }

    /// What it says of the certificate with that serial number.
    pub(super) fn entry(
        &self,
        serial: &[u8],
        signed: Option<OffsetDateTime>,
    ) -> Result<Option<Entry>, String> {
        let mut found = None;
        walk(self.entries, |entry| {
            // Most entries are somebody else's: only those of this certificate are read.
            let named = der::SliceReader::new(entry.content())
                .and_then(|mut reader| der::Reader::tlv_bytes(&mut reader))
                .map_err(|error| error.to_string())?;
            if Element::only(named)?.content() == serial {
                found = read_entry(&entry, signed)?;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn read_entry(entry: &Element<'_>, signed: Option<OffsetDateTime>) -> Result<Option<Entry>, String> {
    let parts = entry.sequence()?;
    let [_serial, since, rest @ ..] = parts.as_slice() else {
        return Err("an entry of a revocation list has not all its parts".to_owned());
    };
    let (since, mut reason) = (since.time()?, None);
    for extension in rest.first().map(Element::sequence).transpose()?.unwrap_or_default() {
        let extension = Extension::of(&extension)?;
        match extension.oid.as_str() {
            REASON_CODE => reason = Element::only(extension.value)?.content().first().copied(),
            INVALIDITY_DATE => {
                let invalid = Element::only(extension.value)?.time()?;
                if signed.is_some_and(|signed| signed < invalid) {
                    return Ok(None);
                }
            }
            _ if extension.critical => {
                return Err("an entry of a revocation list has a critical extension that is not understood"
                    .to_owned());
            }
            _ => {}
        }
    }
    Ok(Some(match reason {
        Some(CERTIFICATE_HOLD) => Entry::Held { since },
        Some(REMOVE_FROM_CRL) => Entry::Removed,
        _ => Entry::Revoked { since },
    }))
}

/// Extension ::= SEQUENCE { extnID, critical BOOLEAN DEFAULT FALSE, extnValue OCTET STRING }
struct Extension<'a> {
    oid: String,
    critical: bool,
    value: &'a [u8],
}

impl<'a> Extension<'a> {
    fn of(element: &Element<'a>) -> Result<Self, String> {
        let parts = element.sequence()?;
        let (oid, critical, value) = match parts.as_slice() {
            [oid, value] => (oid, false, value),
            [oid, critical, value] if critical.tag() == der::Tag::Boolean => {
                (oid, critical.content() != [0], value)
            }
            _ => return Err("an extension has not all its parts".to_owned()),
        };
        Ok(Self { oid: oid.oid()?.to_string(), critical, value: value.octets()? })
    }
}
