//! The rules of certificate chains: order, issuance, and what leaves and authorities must and must not say
//! ("Certificate Requirements" in Notary's `signature-specification.md`; RFC 3161, section 2.3, for timestamps).
//!
//! The only difference between the two purposes is in the leaf. Extensions beside basic constraints and key usages are not
//! evaluated, as the specification demands; validity in time is judged by those who know the time.

use der::asn1::ObjectIdentifier;

use super::certificate::Certificate;

/// What a chain's leaf signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    CodeSigning,
    Timestamping,
}

const fn key_purpose(last: &'static str, oid: &str) -> (ObjectIdentifier, &'static str) {
    (ObjectIdentifier::new_unwrap(oid), last)
}

const TIME_STAMPING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// What the leaf of a code signing chain must not be for.
static FORBIDDEN: [(ObjectIdentifier, &str); 6] = [
    key_purpose("anyExtendedKeyUsage", "2.5.29.37.0"),
    key_purpose("serverAuth", "1.3.6.1.5.5.7.3.1"),
    key_purpose("clientAuth", "1.3.6.1.5.5.7.3.2"),
    key_purpose("emailProtection", "1.3.6.1.5.5.7.3.4"),
    key_purpose("timeStamping", "1.3.6.1.5.5.7.3.8"),
    key_purpose("OCSPSigning", "1.3.6.1.5.5.7.3.9"),
];

/// Checks a whole chain, leaf first: each issued by the next, the last by itself.
pub(super) fn check(chain: &[Certificate], purpose: Purpose) -> Result<(), String> {
    let (Some(leaf), Some(root)) = (chain.first(), chain.last()) else {
        return Err("the certificate chain is empty".to_owned());
    };
    for (at, pair) in chain.windows(2).enumerate() {
        let [certificate, issuer] = pair else { continue };
        if certificate.is_self_signed() {
            return Err(format!("{certificate} is self-signed and not the last of its chain"));
        }
        certificate.check_issued_by(issuer)?;
        check_authority(issuer, at, purpose)?;
    }
    root.check_issued_by(root)
        .map_err(|why| format!("the chain does not end in a self-signed root: {why}"))?;
    check_leaf(leaf, purpose)
}

/// An authority with `below` others between it and the leaf.
fn check_authority(authority: &Certificate, below: usize, purpose: Purpose) -> Result<(), String> {
    let constraints = authority.basic_constraints.as_ref();
    let constraints = constraints.ok_or_else(|| format!("{authority} has no basic constraints"))?;
    if !constraints.critical || !constraints.value.ca {
        return Err(format!("{authority} is not marked (critical) as a certificate authority's"));
    }
    if constraints.value.path_len_constraint.is_some_and(|most| usize::from(most) < below) {
        return Err(format!(
            "{authority} stands {below} authorities above the signer, more than its path length"
        ));
    }
    let usage = authority.key_usage.as_ref().ok_or_else(|| format!("{authority} has no key usage"))?;
    if !usage.value.key_cert_sign() {
        return Err(format!("{authority} must not sign certificates by its key usage"));
    }
    if purpose == Purpose::CodeSigning && !usage.critical {
        return Err(format!("the key usage of {authority} is not critical"));
    }
    // An authority that is limited to other purposes cannot give this one away.
    let limits = authority.extended_key_usage.as_ref().map(|limits| &limits.value);
    if purpose == Purpose::Timestamping
        && limits.is_some_and(|limits| !limits.contains(&TIME_STAMPING) && !limits.contains(&ANY_PURPOSE))
    {
        return Err(format!("{authority} is limited to other purposes than timeStamping"));
    }
    Ok(())
}

fn check_leaf(leaf: &Certificate, purpose: Purpose) -> Result<(), String> {
    if leaf.is_ca() {
        return Err(format!("the signing {leaf} is a certificate authority's"));
    }
    let usage = leaf.key_usage.as_ref().ok_or_else(|| format!("the signing {leaf} has no key usage"))?;
    if purpose == Purpose::CodeSigning && !usage.critical {
        return Err(format!("the key usage of the signing {leaf} is not critical"));
    }
    let bits = &usage.value;
    if !bits.digital_signature() {
        return Err(format!("the signing {leaf} must not sign by its key usage"));
    }
    let others = [
        (bits.key_encipherment(), "keyEncipherment"),
        (bits.data_encipherment(), "dataEncipherment"),
        (bits.key_agreement(), "keyAgreement"),
        (bits.key_cert_sign(), "keyCertSign"),
        (bits.crl_sign(), "cRLSign"),
        (bits.encipher_only(), "encipherOnly"),
        (bits.decipher_only(), "decipherOnly"),
    ];
    if let Some((_, other)) = others.iter().find(|(set, _)| *set) {
        return Err(format!(
            "the signing {leaf} has key usage {other}, which a signing certificate must not have"
        ));
    }
    match purpose {
        Purpose::CodeSigning => check_code_signing(leaf)?,
        Purpose::Timestamping => check_timestamping(leaf)?,
    }
    if leaf.key.algorithm().is_none() {
        return Err(format!("the key of the signing {leaf} is {}, which is not supported", leaf.key));
    }
    Ok(())
}

fn check_code_signing(leaf: &Certificate) -> Result<(), String> {
    let purposes = leaf.extended_key_usage.as_ref().map(|purposes| purposes.value.as_slice());
    let purposes = purposes.unwrap_or_default();
    match FORBIDDEN.iter().find(|(forbidden, _)| purposes.contains(forbidden)) {
        Some((_, name)) => Err(format!(
            "the signing {leaf} has extended key usage {name}, which a signing certificate must not have"
        )),
        None => Ok(()),
    }
}

/// RFC 3161, section 2.3: this purpose alone, and critical.
fn check_timestamping(leaf: &Certificate) -> Result<(), String> {
    match &leaf.extended_key_usage {
        Some(purposes) if purposes.critical && purposes.value == [TIME_STAMPING] => Ok(()),
        _ => Err(format!("the {leaf} of the timestamp is not (critical) for timeStamping alone")),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::*;

    fn chain(name: &str) -> Vec<Certificate> {
        let path = format!("{}/tests/fixtures/notation/chains.json", env!("CARGO_MANIFEST_DIR"));
        let read: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let der = |at: &Value| {
            let text = &read["certificates"][usize::try_from(at.as_u64().unwrap()).unwrap()];
            Certificate::from_der(&STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap()
        };
        read["chains"][name].as_array().unwrap().iter().map(der).collect()
    }

    /// The rest of the rules has its rows in `tests/trust_notation`.
    #[test]
    fn the_leaf_is_for_one_purpose() {
        assert!(check(&chain("good"), Purpose::CodeSigning).is_ok());
        for name in ["good", "for nothing said", "for anything"] {
            let reason = check(&chain(name), Purpose::Timestamping).unwrap_err();
            assert!(reason.contains("for timeStamping alone"), "{name}: {reason}");
        }
        assert!(check(&[], Purpose::CodeSigning).is_err());
    }
}
