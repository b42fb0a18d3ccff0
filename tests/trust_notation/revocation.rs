//! Revocation lists.

use addonfs::policy::trust::notation::{Check, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS};
use serde_json::json;
use time::macros::datetime;

use super::make::{Draft, at_level, chain, fixture, judge, media_type, refused, statement, trust_with, with};

#[test]
fn revocation_is_known_from_lists_or_not_known() {
    let outcome = |name: &str, lists: &[&str], level: &str| {
        let draft = Draft { chain: chain(name), ..Draft::good() };
        let trust = trust_with(&[at_level(level)], lists);
        let [jws, cose] = draft.both().map(|(media_type, envelope)| judge(&trust, media_type, &envelope));
        assert_eq!(jws, cose);
        jws
    };
    let good = |name: &str, lists: &[&str]| {
        let signer = outcome(name, lists, "strict").unwrap_or_else(|e| panic!("{name} {lists:?}: {e:?}"));
        assert_eq!(signer.until(), Some(datetime!(2120-01-01 0:00 UTC)));
    };
    for lists in [
        &["good.crl"][..],
        &["good.pem"],
        &["empty.crl"],
        &["users.crl"],
        &["here.crl"],
        &["has-changes.crl", "changes.crl"],
        // Taken off hold by the changes.
        &["held.crl", "changes-removed.crl"],
        // Somebody else's word counts neither way, nor does what is out of date beside what is not.
        &["good.crl", "impostor-revoked.crl"],
        &["good.crl", "expired.crl", "elsewhere.crl", "root-good.crl"],
    ] {
        good("crl", lists);
    }
    good("ocsp", &["good.crl"]);
    good("good", &[]);
    good("middle", &["root-good.crl"]);
    for (name, lists, words) in [
        ("crl", &[][..], "no revocation list of its issuer"),
        ("ocsp", &[], "no revocation list of its issuer"),
        ("middle", &["good.crl"], "no revocation list of its issuer"),
        ("crl", &["root-good.crl"], "no revocation list of its issuer"),
        ("crl", &["impostor.crl"], "its signature is wrong"),
        ("crl", &["revoked.crl"], "is revoked since 2021-01-01T00:00:00Z"),
        ("crl", &["revoked-no-reason.crl"], "is revoked since"),
        ("crl", &["good.crl", "revoked.crl"], "is revoked since"),
        ("crl", &["held.crl"], "is on hold since"),
        ("crl", &["expired.crl"], "out of date"),
        ("crl", &["expired-revoked.crl"], "is revoked since"),
        ("crl", &["not-yet.crl"], "not yet in force"),
        ("crl", &["invalid-before.crl"], "is revoked since"),
        ("crl", &["invalid-later.crl"], "is revoked since"),
        ("crl", &["critical.crl"], "critical extension"),
        ("crl", &["critical-entry.crl"], "critical extension"),
        ("crl", &["authorities.crl"], "does not cover"),
        ("crl", &["some-reasons.crl"], "for some reasons"),
        ("crl", &["indirect.crl"], "does not cover"),
        ("crl", &["elsewhere.crl"], "does not cover"),
        ("crl", &["has-changes.crl"], "they are not at hand"),
        ("crl", &["has-changes.crl", "changes-too-new.crl"], "they are not at hand"),
        ("crl", &["has-changes-later.crl", "changes.crl"], "they are not at hand"),
        ("crl", &["good.crl", "changes-revoked.crl"], "is revoked since"),
        ("crl", &["changes.crl"], "no revocation list of its issuer"),
    ] {
        refused(&format!("{name} {lists:?}"), outcome(name, lists, "strict"), Check::Revocation, words);
        let signer = outcome(name, lists, "permissive").unwrap();
        assert_eq!(signer.findings()[0].check, Check::Revocation);
        assert!(signer.is_trusted());
    }
    // What became invalid after a timestamp does not touch what was signed before; and nobody else's word proves that.
    for format in ["jws", "cose"] {
        let envelope = fixture(&format!("envelopes/revocable.{format}"));
        let stamped = with("trustStores", json!(["ca:acme", "tsa:acme-time"]));
        let at = |list: &str| {
            judge(&trust_with(std::slice::from_ref(&stamped), &[list]), media_type(format), &envelope)
        };
        at("invalid-later.crl").unwrap();
        refused("invalid before", at("invalid-before.crl"), Check::Revocation, "is revoked since");
        refused("revoked", at("revoked.crl"), Check::Revocation, "is revoked since");
        let unstamped =
            judge(&trust_with(&[statement()], &["invalid-later.crl"]), media_type(format), &envelope);
        refused("no timestamp looked at", unstamped, Check::Revocation, "is revoked since");
    }
    // The authority of the timestamp may be revoked, too.
    for (list, words) in [
        ("good.crl", Some("not known")),
        ("time-good.crl", None),
        ("time-revoked.crl", Some("is revoked since")),
    ] {
        let mut stamped = with("trustStores", json!(["ca:acme", "tsa:acme-time"]));
        let envelope = fixture("envelopes/revocable-time.jws");
        let outcome = judge(&trust_with(&[stamped.clone()], &[list]), MEDIA_TYPE_JWS, &envelope);
        match words {
            Some(words) => refused(list, outcome, Check::AuthenticTimestamp, words),
            None => drop(outcome.unwrap()),
        }
        stamped["signatureVerification"]["override"] = json!({"revocation": "skip"});
        judge(&trust_with(&[stamped], &[list]), MEDIA_TYPE_JWS, &envelope).unwrap();
    }
    let skips = with("signatureVerification", json!({"level": "strict", "override": {"revocation": "skip"}}));
    let draft = Draft { chain: chain("crl"), ..Draft::good() };
    let signer = judge(&trust_with(&[skips], &["revoked.crl"]), MEDIA_TYPE_COSE, &draft.both()[1].1).unwrap();
    assert_eq!(signer.skipped(), [Check::Revocation]);
}
