//! DER, one level at a time: the elements of a constructed value with the bytes that they are written as.
//!
//! Signatures are over bytes as they came, and names and serial numbers are compared as they came, so nothing is
//! decoded and encoded again. (RustCrypto's `cms` does, and sorts sets in quadratic time when they come out of order.)

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode as _, Reader as _, SliceReader, Tag, TagNumber};
use time::OffsetDateTime;
use x509_cert::time::Time;

/// Most elements of one level that are looked at; lists that may be longer are read with [`walk`].
const MAX_ELEMENTS: usize = 256;

/// One element.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    /// Tag and content.
    pub(super) any: AnyRef<'a>,
    /// Tag, length and content.
    pub(super) bytes: &'a [u8],
}

impl<'a> Element<'a> {
    /// The only element of `bytes`.
    pub(super) fn only(bytes: &'a [u8]) -> Result<Self, String> {
        let mut found = elements(bytes)?.into_iter();
        match (found.next(), found.next()) {
            (Some(element), None) => Ok(element),
            _ => Err("it is not one DER value".to_owned()),
        }
    }

    pub(super) fn tag(&self) -> Tag {
        der::Tagged::tag(&self.any)
    }

    pub(super) fn content(&self) -> &'a [u8] {
        self.any.value()
    }

    /// The elements of a SEQUENCE.
    pub(super) fn sequence(&self) -> Result<Vec<Self>, String> {
        self.constructed(Tag::Sequence)
    }

    /// The elements of a SET.
    pub(super) fn set(&self) -> Result<Vec<Self>, String> {
        self.constructed(Tag::Set)
    }

    fn constructed(&self, tag: Tag) -> Result<Vec<Self>, String> {
        if self.tag() != tag {
            return Err(format!("found {} where {tag} is expected", self.tag()));
        }
        elements(self.content())
    }

    /// Whether it is tagged `[number]`, constructed.
    pub(super) fn is_context(&self, number: u8) -> bool {
        self.tag() == Tag::ContextSpecific { constructed: true, number: TagNumber::new(number) }
    }

    /// Whether it is tagged `[number]`, primitive.
    pub(super) fn is_primitive_context(&self, number: u8) -> bool {
        self.tag() == Tag::ContextSpecific { constructed: false, number: TagNumber::new(number) }
    }

    pub(super) fn oid(&self) -> Result<ObjectIdentifier, String> {
        ObjectIdentifier::from_der(self.bytes).map_err(words)
    }

    /// The content of an OCTET STRING.
    pub(super) fn octets(&self) -> Result<&'a [u8], String> {
        der::asn1::OctetStringRef::from_der(self.bytes).map(|octets| octets.as_bytes()).map_err(words)
    }

    /// The content of a BIT STRING of whole bytes.
    pub(super) fn bits(&self) -> Result<&'a [u8], String> {
        let bits = der::asn1::BitStringRef::from_der(self.bytes).map_err(words)?;
        bits.as_bytes().ok_or_else(|| "a BIT STRING that is not of whole bytes".to_owned())
    }

    /// UTCTime or GeneralizedTime without fractions (RFC 5280, section 4.1.2.5).
    pub(super) fn time(&self) -> Result<OffsetDateTime, String> {
        Time::from_der(self.bytes).map_err(words).and_then(moment)
    }
}

/// The same moment in this crate's terms.
pub(super) fn moment(time: Time) -> Result<OffsetDateTime, String> {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).map_err(words)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(words)
}

/// The elements that `bytes` are made of.
pub(super) fn elements(bytes: &[u8]) -> Result<Vec<Element<'_>>, String> {
    let mut found = Vec::new();
    walk(bytes, |element| {
        found.push(element);
        if found.len() > MAX_ELEMENTS { Err(format!("more than {MAX_ELEMENTS} elements")) } else { Ok(()) }
    })?;
    Ok(found)
}

/// Shows the elements that `bytes` are made of, one after the other.
pub(super) fn walk<'a>(
    bytes: &'a [u8],
    mut visit: impl FnMut(Element<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader = SliceReader::new(bytes).map_err(words)?;
    while !reader.is_finished() {
        let bytes = reader.tlv_bytes().map_err(words)?;
        visit(Element { any: AnyRef::from_der(bytes).map_err(words)?, bytes })?;
    }
    Ok(())
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
