//! Signatures that cosign 2 and 3 made, and what becomes of them when something in them is changed
//! (tests/fixtures/sigstore).
#![allow(clippy::unwrap_used)]

mod tampered;

use addonfs::policy::digest::Digest;
use addonfs::policy::trust::evidence::{Bundle, Evidence, SimpleSigning, Subject};
use addonfs::policy::trust::keys::PublicKey;
use addonfs::policy::trust::signature::verify;
use addonfs::policy::trust::sigstore::identity::Identity;
use addonfs::policy::trust::sigstore::root::TrustedRoot;
use addonfs::policy::trust::verdict::{Cause, Check, Verified, Voucher, in_words};
use addonfs::policy::trust::{Trust, TrustedKey};
use serde_json::Value;

const SUBJECT: &str = "https://github.com/org/tools/.github/workflows/release.yml@refs/tags/v1.0.0";
const ISSUER: &str = "https://token.fixture.test";

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/sigstore/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

/// The digest of a manifest among the fixtures.
fn digest(manifest: &str) -> Digest {
    Digest::of(&read(manifest))
}

fn image() -> Digest {
    digest("manifest.json")
}

/// Evidence of either layout, by the name of its file.
fn evidence(name: &str) -> Evidence {
    if name.starts_with("cosign2") {
        layer_of(&json(&format!("{name}.layer.json")))
    } else {
        bundle_of(&json(&format!("{name}.bundle.json")))
    }
}

fn bundle_of(bundle: &Value) -> Evidence {
    Evidence::Bundle(Bundle { manifest: Digest::of(b"referrer"), bytes: bundle.to_string().into_bytes() })
}

fn layer_of(layer: &Value) -> Evidence {
    let annotations = layer["annotations"].as_object().unwrap();
    let annotations = annotations.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()));
    let payload = layer["payload"].as_str().unwrap().as_bytes().to_vec();
    SimpleSigning { payload, annotations: annotations.collect() }.into()
}

fn key(name: &str) -> TrustedKey {
    TrustedKey { name: name.to_owned(), key: PublicKey::from_pem(&read(name)).unwrap() }
}

fn root() -> TrustedRoot {
    TrustedRoot::from_json(&read("trusted_root.json")).unwrap()
}

/// The fixtures' root, changed.
fn root_with(change: impl Fn(&mut Value)) -> TrustedRoot {
    let mut root = json("trusted_root.json");
    change(&mut root);
    TrustedRoot::from_json(root.to_string().as_bytes()).unwrap()
}

/// Trust in one key and nobody else.
fn by_key(name: &str) -> Trust {
    Trust { keys: vec![key(name)], root: root(), ..Trust::default() }
}

fn logged(trust: Trust) -> Trust {
    Trust { require_log: true, ..trust }
}

/// Trust in who made the fixtures without a key.
fn by_identity() -> Trust {
    let identity =
        Identity::new(r"^https://token\.fixture\.test$", r"^https://github\.com/org/tools/.*$").unwrap();
    Trust { identities: vec![identity], root: root(), ..Trust::default() }
}

fn verdict(trust: &Trust, image: &Digest, evidence: Evidence) -> Result<Verified, (Cause, String)> {
    let subject = Subject { digest: image, location: None, now: 0 };
    verify(trust, &subject, &[evidence]).map_err(|refusals| (refusals[0].reason.code, in_words(&refusals)))
}

#[test]
fn what_cosign_signs_with_a_key_holds() {
    let without = [Check::Signature];
    let with_log = [Check::Signature, Check::LogEntry];
    let stamped = [Check::Signature, Check::LogEntry, Check::Timestamp];
    for (name, public, require_log, checked) in [
        ("cosign2-key", "p256.pub", false, &without[..]),
        ("cosign2-key-annotated", "p256.pub", false, &without),
        ("cosign2-key-logged", "p256.pub", false, &without),
        ("cosign2-key-logged", "p256.pub", true, &with_log),
        ("cosign3-key", "p256.pub", false, &without),
        ("cosign3-key-p384", "p384.pub", false, &without),
        ("cosign3-key-p521", "p521.pub", false, &without),
        ("cosign2-key-ed25519", "ed25519.pub", false, &without),
        ("cosign3-key-rsa", "rsa.pub", false, &without),
        ("cosign3-key-log1", "p256.pub", false, &without),
        ("cosign3-key-log1", "p256.pub", true, &stamped),
        ("cosign3-key-log2", "p256.pub", true, &stamped),
        ("cosign3-key-rsa-log1", "rsa.pub", true, &stamped),
        ("cosign3-message-key", "p256.pub", false, &without),
        ("cosign3-message-key-log1", "p256.pub", true, &stamped),
    ] {
        let trust = Trust { require_log, ..by_key(public) };
        let verified =
            verdict(&trust, &image(), evidence(name)).unwrap_or_else(|why| panic!("{name}: {why:?}"));
        let fingerprint = key(public).key.fingerprint();
        assert_eq!(*verified.by(), Voucher::Key { name: public.to_owned(), fingerprint }, "{name}");
        assert_eq!(verified.checked(), checked, "{name}");
        assert_eq!(verified.signed_at().is_some(), require_log, "{name}");
        // Another key never does, and whoever may sign without one neither.
        let other = if public == "p384.pub" { "p256.pub" } else { "p384.pub" };
        for trust in [by_key(other), by_identity()] {
            assert_eq!(
                verdict(&trust, &image(), evidence(name)).unwrap_err().0,
                Cause::UntrustedKey,
                "{name}"
            );
        }
    }
    // An index is signed by its own digest.
    assert!(verdict(&by_key("p256.pub"), &digest("index.json"), evidence("cosign3-key-index")).is_ok());
}

#[test]
fn what_cosign_signs_without_a_key_holds() {
    let all = [Check::Signature, Check::Certificate, Check::CertificateLog, Check::LogEntry];
    for (name, stamped) in [
        ("cosign2-keyless", false),
        ("cosign2-keyless-stamped", true),
        ("cosign3-keyless-log1", true),
        ("cosign3-keyless-log2", true),
        ("cosign3-message-keyless", true),
        ("crafted-good", true),
    ] {
        let verified = verdict(&by_identity(), &image(), evidence(name));
        let verified = verified.unwrap_or_else(|why| panic!("{name}: {why:?}"));
        let Voucher::Identity { issuer, subject, log_entry } = verified.by() else { panic!("{verified:?}") };
        assert_eq!((issuer.as_str(), subject.as_str()), (ISSUER, SUBJECT), "{name}");
        assert!(log_entry.is_some(), "{name}");
        let mut checked = all.to_vec();
        checked.extend(stamped.then_some(Check::Timestamp));
        assert_eq!(verified.checked(), checked, "{name}");
        assert!(verified.signed_at().is_some_and(|at| at > 1_700_000_000), "{name}");
        // Nobody who is not named, and nobody at all where no one is: not even with a key beside.
        for trust in [by_key("p256.pub"), Trust { identities: Vec::new(), ..by_identity() }] {
            let (cause, why) = verdict(&trust, &image(), evidence(name)).unwrap_err();
            assert!(matches!(cause, Cause::Identity | Cause::NobodyTrusted), "{name}: {cause:?} {why}");
        }
        // The public instance did not make it.
        let public = Trust { root: TrustedRoot::default(), ..by_identity() };
        let (cause, why) = verdict(&public, &image(), evidence(name)).unwrap_err();
        assert!(
            matches!(cause, Cause::LogUnknown | Cause::LogProof | Cause::Timestamp),
            "{name}: {cause:?} {why}"
        );
    }
}

/// Either of several identities suffices, and both of its expressions must match.
#[test]
fn identities_are_alternatives() {
    let trusting = |pairs: &[(&str, &str)]| Trust {
        identities: pairs.iter().map(|(issuer, subject)| Identity::new(issuer, subject).unwrap()).collect(),
        ..by_identity()
    };
    for (pairs, holds) in [
        (&[("nobody", "nobody"), ("token", "org/tools")][..], true),
        (&[("token", "nobody"), ("nobody", "org/tools")], false),
        (&[("^token", "org/tools")], false),
        (&[(ISSUER, SUBJECT)], true),
    ] {
        let outcome = verdict(&trusting(pairs), &image(), evidence("cosign3-keyless-log2"));
        assert_eq!(outcome.is_ok(), holds, "{pairs:?}");
    }
    let stranger = evidence("cosign3-keyless-stranger");
    let (cause, why) = verdict(&by_identity(), &image(), stranger.clone()).unwrap_err();
    assert_eq!(cause, Cause::Identity);
    assert!(why.contains("somebody@else.test") && why.contains(ISSUER), "{why}");
    assert!(verdict(&trusting(&[("token", "^somebody@else[.]test$")]), &image(), stranger).is_ok());
}

/// A root of one's own says what can be demanded.
#[test]
fn what_a_root_has_is_what_is_demanded() {
    let without = |key: &str| root_with(|root| root[key] = serde_json::json!([]));
    let no_sct = Trust { root: without("ctlogs"), ..by_identity() };
    let verified = verdict(&no_sct, &image(), evidence("crafted-no-sct")).unwrap();
    assert!(!verified.checked().contains(&Check::CertificateLog));
    for lists in [r#"{"certificateAuthorities": []}"#, r#"{"tlogs": [], "timestampAuthorities": []}"#] {
        let lists: Value = serde_json::from_str(lists).unwrap();
        let mut root = json("trusted_root.json");
        for (key, value) in lists.as_object().unwrap() {
            root[key] = value.clone();
        }
        assert!(TrustedRoot::from_json(root.to_string().as_bytes()).is_err(), "{lists}");
    }
}
