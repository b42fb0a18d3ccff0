//! JWS envelopes: RFC 7515 in flattened JSON (section 7.2.2), as Notary's `signature-envelope-jws.md` narrows it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

use super::MAX_CHAIN;
use super::algorithm::Algorithm;
use super::envelope::{
    AUTHENTIC_SIGNING_TIME, Claims, EXPIRY, Parts, SIGNING_SCHEME, SIGNING_TIME, TIMESTAMP_SIGNATURE,
};
use super::json::Object;

/// The only members that an envelope may have.
const MEMBERS: [&str; 4] = ["payload", "protected", "header", "signature"];

/// Reads an envelope, checking nothing but its form.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, String> {
    let envelope: Object =
        serde_json::from_slice(bytes).map_err(|error| format!("the envelope is not a JWS: {error}"))?;
    if let Some((unknown, _)) = envelope.0.iter().find(|(name, _)| !MEMBERS.contains(&name.as_str())) {
        return Err(format!("the envelope has a member {unknown:?}, which a flattened JWS has not"));
    }
    let (protected, payload) = (envelope.text("protected")?, envelope.text("payload")?);
    let header = Object::from_slice(&url_safe(protected, "protected")?, "the protected header")?;
    let unprotected: Object = envelope
        .get("header")
        .ok_or("member \"header\" is missing")
        .and_then(|value| Object::deserialize(value).map_err(|_| "member \"header\" is no object"))?;
    if let Some((name, _)) = unprotected.0.iter().find(|(name, _)| header.get(name).is_some()) {
        return Err(format!("{name:?} stands in both headers"));
    }
    if let Some(name) = ["alg", "cty", "crit"].iter().find(|name| unprotected.get(name).is_some()) {
        return Err(format!("{name:?} stands in the header that is not signed"));
    }
    let algorithm = header.text("alg")?;
    let algorithm = Algorithm::from_jws(algorithm)
        .ok_or_else(|| format!("algorithm {algorithm:?} is not one that envelopes may have"))?;
    let timestamp = unprotected.get(TIMESTAMP_SIGNATURE).map(|_| unprotected.text(TIMESTAMP_SIGNATURE));
    let known = ["alg", "cty", "crit", SIGNING_SCHEME, SIGNING_TIME, AUTHENTIC_SIGNING_TIME, EXPIRY];
    Ok(Parts {
        algorithm,
        content_type: header.text("cty")?.to_owned(),
        claims: Claims {
            scheme: header
                .get(SIGNING_SCHEME)
                .map(|_| header.text(SIGNING_SCHEME))
                .transpose()?
                .map(str::to_owned),
            signing_time: header.time(SIGNING_TIME)?,
            authentic_signing_time: header.time(AUTHENTIC_SIGNING_TIME)?,
            expiry: header.time(EXPIRY)?,
        },
        critical: critical(&header)?,
        others: header
            .0
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !known.contains(&name.as_str()))
            .cloned()
            .collect(),
        chain: chain(&unprotected)?,
        timestamp: timestamp.transpose()?.map(|text| standard(text, TIMESTAMP_SIGNATURE)).transpose()?,
        payload: url_safe(payload, "payload")?,
        to_be_signed: format!("{protected}.{payload}").into_bytes(),
        signature: url_safe(envelope.text("signature")?, "signature")?,
    })
}

fn critical(header: &Object) -> Result<Vec<String>, String> {
    let list = header.get("crit").and_then(Value::as_array).ok_or("header \"crit\" is missing or no list")?;
    let names = list.iter().map(|name| name.as_str().map(str::to_owned));
    names
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| "header \"crit\" lists something that is no name".to_owned())
}

fn chain(unprotected: &Object) -> Result<Vec<Vec<u8>>, String> {
    let list =
        unprotected.get("x5c").and_then(Value::as_array).ok_or("the certificate chain (x5c) is missing")?;
    // One more than allowed is enough to be refused.
    let decode = |value: &Value| standard(value.as_str().unwrap_or("."), "x5c");
    list.iter().take(MAX_CHAIN + 1).map(decode).collect()
}

fn url_safe(text: &str, what: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("{what:?} is not base64url: {error}"))
}

fn standard(text: &str, what: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| format!("{what:?} is not base64: {error}"))
}
