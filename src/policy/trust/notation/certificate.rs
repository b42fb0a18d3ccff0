//! One X.509 certificate, with what Notary looks at ("Certificate Requirements" in `signature-specification.md`): names,
//! validity, key, basic constraints, key usages, and where its revocation is published. Other extensions are not judged.

use std::fmt;

use der::Decode as _;
use der::asn1::ObjectIdentifier;
use time::OffsetDateTime;
use x509_cert::Certificate as Parsed;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AuthorityInfoAccessSyntax, BasicConstraints, CrlDistributionPoints, ExtendedKeyUsage, KeyUsage,
};
use x509_cert::name::Name;

use super::algorithm::{self, KeySpec};
use super::asn1::{Element, moment};
use crate::policy::digest::Digest;

/// Largest certificate in bytes; real ones have some 2 KiB.
pub(super) const MAX_CERTIFICATE: usize = 8 << 10;

const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
const CRL_DISTRIBUTION_POINTS: &str = "2.5.29.31";
const FRESHEST_CRL: &str = "2.5.29.46";
const AUTHORITY_INFO_ACCESS: &str = "1.3.6.1.5.5.7.1.1";
const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");

/// A certificate.
#[derive(Clone)]
pub(super) struct Certificate {
    der: Vec<u8>,
    /// As they are written, DER.
    pub(super) issuer: Vec<u8>,
    pub(super) subject: Vec<u8>,
    /// The content of the INTEGER.
    pub(super) serial: Vec<u8>,
    pub(super) name: Name,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    pub(super) spki: Vec<u8>,
    pub(super) key: KeySpec,
    pub(super) basic_constraints: Option<Marked<BasicConstraints>>,
    pub(super) key_usage: Option<Marked<KeyUsage>>,
    pub(super) extended_key_usage: Option<Marked<Vec<ObjectIdentifier>>>,
    /// The addresses of its revocation lists.
    pub(super) crl_urls: Vec<String>,
    /// Whether it says where revocation lists are, addresses or not.
    pub(super) has_crl: bool,
    /// Whether it says where the changes to them are.
    pub(super) has_delta_crl: bool,
    /// Whether it says who answers about its revocation.
    pub(super) has_ocsp: bool,
}

/// The value of an extension, and whether it is marked critical.
#[derive(Debug, Clone)]
pub(super) struct Marked<T> {
    pub(super) critical: bool,
    pub(super) value: T,
}

impl Certificate {
    /// Reads one certificate.
    pub(super) fn from_der(der: &[u8]) -> Result<Self, String> {
        if der.len() > MAX_CERTIFICATE {
            return Err(format!("a certificate of {} bytes: at most {MAX_CERTIFICATE} are read", der.len()));
        }
        let parsed = Parsed::from_der(der).map_err(|error| format!("a certificate is malformed: {error}"))?;
        let tbs = &parsed.tbs_certificate;
        let raw = Raw::of(der)?;
        let extensions = tbs.extensions.as_deref().unwrap_or_default();
        let points = extension::<CrlDistributionPoints>(extensions, CRL_DISTRIBUTION_POINTS)?;
        let access = extension::<AuthorityInfoAccessSyntax>(extensions, AUTHORITY_INFO_ACCESS)?;
        let extended = extension::<ExtendedKeyUsage>(extensions, EXTENDED_KEY_USAGE)?;
        Ok(Self {
            issuer: raw.issuer.to_vec(),
            subject: raw.subject.to_vec(),
            serial: raw.serial.to_vec(),
            name: tbs.subject.clone(),
            not_before: moment(tbs.validity.not_before)?,
            not_after: moment(tbs.validity.not_after)?,
            spki: raw.spki.to_vec(),
            key: KeySpec::of(raw.spki)?,
            basic_constraints: extension(extensions, BASIC_CONSTRAINTS)?,
            key_usage: extension(extensions, KEY_USAGE)?,
            extended_key_usage: extended.map(|e| Marked { critical: e.critical, value: e.value.0 }),
            crl_urls: points.iter().flat_map(|points| &points.value.0).flat_map(urls).collect(),
            has_crl: points.is_some(),
            has_delta_crl: extensions.iter().any(|e| e.extn_id.to_string() == FRESHEST_CRL),
            has_ocsp: access.is_some_and(|access| access.value.0.iter().any(|a| a.access_method == OCSP)),
            der: der.to_vec(),
        })
    }

    /// The certificate as it came.
    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the certificate.
    pub(super) fn thumbprint(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// Whether it is a certificate authority's.
    pub(super) fn is_ca(&self) -> bool {
        self.basic_constraints.as_ref().is_some_and(|constraints| constraints.value.ca)
    }

    /// Whether `issuer` issued it: by name and by signature.
    pub(super) fn check_issued_by(&self, issuer: &Self) -> Result<(), String> {
        if self.issuer != issuer.subject {
            return Err(format!("{self} names another issuer than {issuer}"));
        }
        let raw = Raw::of(&self.der)?;
        if raw.algorithm.bytes != raw.inner_algorithm.bytes {
            return Err(format!("{self} names two signature algorithms"));
        }
        algorithm::check(&raw.algorithm, None, &issuer.spki, raw.tbs, raw.signature)
            .map_err(|why| format!("{self} is not issued by {issuer}: {why}"))
    }

    /// Whether it vouches for itself.
    pub(super) fn is_self_signed(&self) -> bool {
        self.check_issued_by(self).is_ok()
    }

    /// Whether it is valid at that moment; both ends belong to it (RFC 5280, section 4.1.2.5).
    pub(super) fn check_valid(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
        when: &str,
    ) -> Result<(), String> {
        if from < self.not_before {
            return Err(format!("{self} was not yet valid {when}: it is from {}", shown(self.not_before)));
        }
        if to > self.not_after {
            return Err(format!("{self} was expired {when}: it was valid to {}", shown(self.not_after)));
        }
        Ok(())
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate \"{}\"", self.name)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({}, {})", self.name, self.thumbprint())
    }
}

/// A moment in words.
pub(super) fn shown(moment: OffsetDateTime) -> String {
    moment.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| moment.to_string())
}

/// The parts of a certificate as they are written (RFC 5280, section 4.1).
struct Raw<'a> {
    tbs: &'a [u8],
    algorithm: Element<'a>,
    inner_algorithm: Element<'a>,
    signature: &'a [u8],
    serial: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    spki: &'a [u8],
}

impl<'a> Raw<'a> {
    fn of(der: &'a [u8]) -> Result<Self, String> {
        let outer = Element::only(der)?.sequence()?;
        let [tbs, algorithm, signature] = outer.as_slice() else {
            return Err("a certificate without its parts".to_owned());
        };
        let inner = tbs.sequence()?;
        let version = usize::from(inner.first().is_some_and(|part| part.is_context(0)));
        let Some([serial, inner_algorithm, issuer, _validity, subject, spki, ..]) = inner.get(version..)
        else {
            return Err("a certificate without its parts".to_owned());
        };
        Ok(Self {
            tbs: tbs.bytes,
            algorithm: *algorithm,
            inner_algorithm: *inner_algorithm,
            signature: signature.bits()?,
            serial: serial.content(),
            issuer: issuer.bytes,
            subject: subject.bytes,
            spki: spki.bytes,
        })
    }
}

/// The extension of that identifier; twice is malformed (RFC 5280, section 4.2).
fn extension<'a, T: der::Decode<'a>>(
    extensions: &'a [Extension],
    oid: &str,
) -> Result<Option<Marked<T>>, String> {
    let mut found = extensions.iter().filter(|extension| extension.extn_id.to_string() == oid);
    let Some(first) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(format!("a certificate has extension {oid} twice"));
    }
    let value = T::from_der(first.extn_value.as_bytes())
        .map_err(|error| format!("extension {oid} of a certificate is malformed: {error}"))?;
    Ok(Some(Marked { critical: first.critical, value }))
}

/// The addresses of a distribution point.
fn urls(point: &DistributionPoint) -> Vec<String> {
    point.distribution_point.as_ref().map(point_urls).unwrap_or_default()
}

/// The addresses in the name of a distribution point.
pub(super) fn point_urls(name: &DistributionPointName) -> Vec<String> {
    let DistributionPointName::FullName(names) = name else { return Vec::new() };
    let url = |name: &GeneralName| match name {
        GeneralName::UniformResourceIdentifier(url) => Some(url.to_string()),
        _ => None,
    };
    names.iter().filter_map(url).collect()
}
