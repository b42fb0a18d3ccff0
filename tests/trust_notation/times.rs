//! Validity, expiry and timestamps.

use addonfs::policy::trust::notation::{Check, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::macros::datetime;

use super::make::{
    Draft, EXPIRY, SCHEME, TIMESTAMP, chain, fixture, judge, judge_at, media_type, refused, statement, trust,
    with,
};

#[test]
fn times_are_kept() {
    let strict = trust(statement());
    for (name, words) in
        [("expired", "was expired now"), ("not yet valid", "not yet valid now"), ("CA expired", "false")]
    {
        let draft = Draft { chain: chain(name), ..Draft::good() };
        let words = words.replace("false", "CN=expired");
        for (media_type, envelope) in draft.both() {
            refused(name, judge(&strict, media_type, &envelope), Check::AuthenticTimestamp, &words);
        }
    }
    let mut draft = Draft::good();
    draft.set(EXPIRY, "2029-12-31T23:59:59Z");
    draft.critical(&[SCHEME, EXPIRY]);
    for (media_type, envelope) in draft.both() {
        let at = |now| judge_at(&strict, media_type, &envelope, now);
        let end = datetime!(2029-12-31 23:59:59 UTC);
        assert_eq!(at(end - time::Duration::SECOND).unwrap().until(), Some(end));
        refused("expired", at(end), Check::Expiry, "expired at 2029-12-31T23:59:59Z");
        refused("before all", at(datetime!(2019-12-31 0:00 UTC)), Check::AuthenticTimestamp, "not yet valid");
    }
    // Without a timestamp a signature lives as long as the certificates.
    let (media_type, envelope) = Draft::good().both()[0].clone();
    assert_eq!(judge(&strict, media_type, &envelope).unwrap().until(), Some(datetime!(2120-01-01 0:00 UTC)));
    // What a service says of the time is believed, and must be a time at which it could sign.
    let services = trust(with("trustStores", json!(["signingAuthority:acme-authority"])));
    let envelope = fixture("envelopes/authority.cose");
    let late = datetime!(2115-01-01 0:00 UTC);
    judge_at(&services, MEDIA_TYPE_COSE, &envelope, late).unwrap();
}

#[test]
fn timestamps_must_be_of_this_signature_by_a_trusted_authority() {
    let stores = json!(["ca:acme", "tsa:acme-time"]);
    let stamped = trust(with("trustStores", stores.clone()));
    let mut later = with("trustStores", stores);
    later["signatureVerification"]["verifyTimestamp"] = "afterCertExpiry".into();
    let later = trust(later);
    let none = Draft::good().both();
    let check = |what: &str, outcome, words: &str| refused(what, outcome, Check::AuthenticTimestamp, words);
    for (media_type, envelope) in &none {
        check("no timestamp", judge(&stamped, media_type, envelope), "has no timestamp");
        judge(&later, media_type, envelope).unwrap();
        check(
            "late",
            judge_at(&later, media_type, envelope, datetime!(2121-01-01 0:00 UTC)),
            "has no timestamp",
        );
    }
    for format in ["jws", "cose"] {
        let late = fixture(&format!("envelopes/late.{format}"));
        check(
            "stamped too late",
            judge(&stamped, media_type(format), &late),
            "was expired at the time of the timestamp",
        );
    }
    let other = trust(with("trustStores", json!(["ca:acme", "tsa:gone"])));
    for format in ["jws", "cose"] {
        let (full, brief) =
            (fixture(&format!("envelopes/full.{format}")), fixture(&format!("envelopes/brief.{format}")));
        check("no store", judge(&other, media_type(format), &full), "tsa:gone holds no certificate");
        judge(&later, media_type(format), &brief).unwrap();
        let signer = judge_at(&stamped, media_type(format), &brief, datetime!(2150-01-01 0:00 UTC)).unwrap();
        assert_eq!(signer.until(), None, "it was made in time");
    }
    let full: Value = serde_json::from_slice(&fixture("envelopes/full.jws")).unwrap();
    let brief: Value = serde_json::from_slice(&fixture("envelopes/brief.jws")).unwrap();
    let swapped = |token: Value| {
        let mut envelope = full.clone();
        envelope["header"][TIMESTAMP] = token;
        judge(&stamped, MEDIA_TYPE_JWS, envelope.to_string().as_bytes())
    };
    let token = |bytes: &[u8]| STANDARD.encode(bytes).into();
    check("another signature's", swapped(brief["header"][TIMESTAMP].clone()), "over another signature");
    let own = STANDARD.decode(full["header"][TIMESTAMP].as_str().unwrap()).unwrap();
    swapped(token(&own)).unwrap();
    check("empty", swapped(token(b"")), "malformed");
    check("a certificate", swapped(token(&chain("good")[0])), "malformed");
    check("trailing", swapped(token(&[own.clone(), vec![5, 0]].concat())), "malformed");
    check("large", swapped(token(&vec![0; 70_000])), "at most 65536");
    check("large sets", swapped(token(&many_attributes())), "more than 256 elements");
    // Whatever byte of it is changed: refused, but for what nothing looks at (version, hash list, names beside).
    let root = fixture("trust-store/x509/tsa/acme-time/root.pem");
    let root: String =
        String::from_utf8(root).unwrap().lines().filter(|line| !line.starts_with('-')).collect();
    let root = STANDARD.decode(root).unwrap();
    let copy = own.windows(root.len()).position(|window| window == root).unwrap();
    let mut passed = 0;
    for at in (0..own.len()).filter(|at| !(copy..copy + root.len()).contains(at)) {
        let mut changed = own.clone();
        changed[at] ^= 1;
        passed += usize::from(swapped(token(&changed)).is_ok());
    }
    assert!(passed < 40, "{passed} of {} changes pass", own.len());
}

/// A SignedData whose first set has 300 elements.
fn many_attributes() -> Vec<u8> {
    let wrap = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, content].concat()
    };
    let signers = wrap(0x31, &[5, 0].repeat(300));
    let kind = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 7, 2];
    let data = wrap(0x30, &[&[2, 1, 3, 0x31, 0, 0x30, 0][..], &signers].concat());
    wrap(0x30, &[&kind[..], &wrap(0xa0, &data)].concat())
}
