//! COSE envelopes: COSE_Sign1_Tagged (RFC 9052, section 4.2), as Notary's `signature-envelope-cose.md` narrows it. Its "COSE
//! Hash Envelope" is not read: what is signed there is no descriptor.

use coset::cbor::value::Value;
use coset::iana::{self, EnumI64 as _};
use coset::{
    CoseSign1, Header, Label, RegisteredLabel, RegisteredLabelWithPrivate, TaggedCborSerializable as _,
};
use time::OffsetDateTime;

use super::MAX_CHAIN;
use super::algorithm::Algorithm;
use super::envelope::{
    AUTHENTIC_SIGNING_TIME, Claims, EXPIRY, Parts, SIGNING_SCHEME, SIGNING_TIME, TIMESTAMP_SIGNATURE,
};

/// Label of the certificate chain (RFC 9360, section 2).
const X5CHAIN: i64 = 33;

/// The tag of an epoch-based time (RFC 8949, section 3.4.2).
const EPOCH_TIME: u64 = 1;

/// Reads an envelope, checking nothing but its form.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, String> {
    let envelope = CoseSign1::from_tagged_slice(bytes)
        .map_err(|error| format!("the envelope is not a COSE_Sign1_Tagged: {error}"))?;
    let (header, unprotected) = (&envelope.protected.header, &envelope.unprotected);
    check_unsigned(header, unprotected)?;
    let payload = envelope.payload.clone().ok_or("the payload is not in the envelope")?;
    let mut claims = Claims::default();
    let mut others = Vec::new();
    let mut chain = None;
    for (label, value) in &header.rest {
        match label {
            Label::Text(name) => match name.as_str() {
                SIGNING_SCHEME => claims.scheme = Some(text(value, name)?),
                SIGNING_TIME => claims.signing_time = Some(time(value, name)?),
                AUTHENTIC_SIGNING_TIME => claims.authentic_signing_time = Some(time(value, name)?),
                EXPIRY => claims.expiry = Some(time(value, name)?),
                _ => others.push(name.clone()),
            },
            Label::Int(X5CHAIN) => chain = Some(certificates(value)?),
            Label::Int(number) => others.push(number.to_string()),
        }
    }
    let mut timestamp = None;
    for (label, value) in &unprotected.rest {
        match label {
            Label::Text(name) if name == TIMESTAMP_SIGNATURE => {
                let token = value.as_bytes().ok_or_else(|| format!("{name:?} is no byte string"))?;
                timestamp = Some(token.clone());
            }
            Label::Int(X5CHAIN) => chain = Some(certificates(value)?),
            _ => {}
        }
    }
    Ok(Parts {
        algorithm: algorithm(header)?,
        content_type: content_type(header)?,
        claims,
        critical: critical(header)?,
        others,
        chain: chain.ok_or("the certificate chain (x5chain) is missing")?,
        timestamp,
        payload,
        to_be_signed: envelope.tbs_data(&[]),
        signature: envelope.signature,
    })
}

/// What decides must be signed, and stand once.
fn check_unsigned(header: &Header, unprotected: &Header) -> Result<(), String> {
    if unprotected.alg.is_some() || unprotected.content_type.is_some() || !unprotected.crit.is_empty() {
        return Err("the header that is not signed has alg, crit or content type".to_owned());
    }
    match unprotected.rest.iter().find(|(label, _)| header.rest.iter().any(|(signed, _)| signed == label)) {
        Some((label, _)) => Err(format!("{label:?} stands in both headers")),
        None => Ok(()),
    }
}

fn algorithm(header: &Header) -> Result<Algorithm, String> {
    let number = match &header.alg {
        Some(RegisteredLabelWithPrivate::Assigned(algorithm)) => algorithm.to_i64(),
        Some(other) => return Err(format!("algorithm {other:?} is not one that envelopes may have")),
        None => return Err("parameter \"alg\" is missing".to_owned()),
    };
    Algorithm::from_cose(number)
        .ok_or_else(|| format!("algorithm {number} is not one that envelopes may have"))
}

fn content_type(header: &Header) -> Result<String, String> {
    match &header.content_type {
        Some(RegisteredLabel::Text(text)) => Ok(text.clone()),
        Some(RegisteredLabel::Assigned(number)) => Ok(number.to_i64().to_string()),
        None => Err("parameter \"content type\" is missing".to_owned()),
    }
}

fn critical(header: &Header) -> Result<Vec<String>, String> {
    if header.crit.is_empty() {
        return Err("parameter \"crit\" is missing".to_owned());
    }
    let name = |label: &RegisteredLabelWithPrivate<iana::HeaderParameter>| match label {
        RegisteredLabelWithPrivate::Text(name) => name.clone(),
        RegisteredLabelWithPrivate::Assigned(label) => label.to_i64().to_string(),
        RegisteredLabelWithPrivate::PrivateUse(label) => label.to_string(),
    };
    Ok(header.crit.iter().map(name).collect())
}

fn certificates(value: &Value) -> Result<Vec<Vec<u8>>, String> {
    let wrong = "the certificate chain (x5chain) is no list of byte strings";
    let list = value.as_array().ok_or(wrong)?;
    // One more than allowed is enough to be refused.
    let bytes = list.iter().take(MAX_CHAIN + 1).map(|value| value.as_bytes().cloned());
    bytes.collect::<Option<_>>().ok_or_else(|| wrong.to_owned())
}

fn text(value: &Value, name: &str) -> Result<String, String> {
    value.as_text().map(str::to_owned).ok_or_else(|| format!("{name:?} is no text"))
}

/// An epoch-based time, of whole seconds or of fractions.
fn time(value: &Value, name: &str) -> Result<OffsetDateTime, String> {
    let wrong = || format!("{name:?} is no time with tag {EPOCH_TIME}");
    let Value::Tag(EPOCH_TIME, seconds) = value else { return Err(wrong()) };
    match seconds.as_ref() {
        Value::Integer(seconds) => i64::try_from(*seconds)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(wrong),
        Value::Float(seconds) if seconds.is_finite() => {
            #[allow(clippy::cast_possible_truncation)] // saturates, and what is out of range is refused
            OffsetDateTime::from_unix_timestamp_nanos((seconds * 1e9) as i128).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}
