//! One thing is wrong with each of these signatures, and each is refused with its own reason.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;

const ENTRY: &str = "/verificationMaterial/tlogEntries/0";
const STAMPS: &str = "/verificationMaterial/timestampVerificationData/rfc3161Timestamps";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const STAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

fn raw(name: &str) -> Value {
    json(&format!("{name}.{}.json", if name.starts_with("cosign2") { "layer" } else { "bundle" }))
}

/// A bundle with a change.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Evidence {
    let mut bundle = raw(name);
    change(&mut bundle);
    bundle_of(&bundle)
}

/// A bundle with another value at a place.
fn set(name: &str, at: &str, value: Value) -> Evidence {
    changed(name, |bundle| *bundle.pointer_mut(at).unwrap() = value)
}

/// A bundle with what another one has at that place.
fn swapped(name: &str, at: &str, with: &str) -> Evidence {
    set(name, at, raw(with).pointer(at).unwrap().clone())
}

/// A bundle without what is at a place.
fn without(name: &str, parent: &str, key: &str) -> Evidence {
    changed(name, |bundle| drop(bundle.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key)))
}

/// A bundle with a bit turned in the middle of some base64.
fn flipped(name: &str, at: &str) -> Evidence {
    changed(name, |bundle| {
        let place = bundle.pointer_mut(at).unwrap();
        *place = json!(flip(place.as_str().unwrap()));
    })
}

fn flip(text: &str) -> String {
    let mut bytes = STANDARD.decode(text).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    STANDARD.encode(bytes)
}

/// A layer with another value of an annotation.
fn annotated(name: &str, key: &str, value: impl FnOnce(&str) -> String) -> Evidence {
    let mut layer = raw(name);
    let annotation = &mut layer["annotations"][key];
    *annotation = json!(value(annotation.as_str().unwrap_or_default()));
    layer_of(&layer)
}

/// A layer with what another one has in an annotation.
fn annotated_as(name: &str, key: &str, with: &str) -> Evidence {
    annotated(name, key, |_| raw(with)["annotations"][key].as_str().unwrap().to_owned())
}

/// A layer with a change in the log entry of its annotation.
fn entry_changed(name: &str, change: impl FnOnce(&mut Value)) -> Evidence {
    annotated(name, LOG_ENTRY, |text| {
        let mut entry: Value = serde_json::from_str(text).unwrap();
        change(&mut entry);
        entry.to_string()
    })
}

fn bytes(bytes: Vec<u8>) -> Evidence {
    Evidence::Bundle(Bundle { manifest: Digest::of(b"referrer"), bytes })
}

/// A bundle as version 0.1 wrote it, with a chain.
fn version_01(name: &str, chain: usize) -> Evidence {
    changed(name, |bundle| {
        bundle["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.1");
        let material = bundle["verificationMaterial"].as_object_mut().unwrap();
        let certificate = material.remove("certificate").unwrap();
        material.insert("x509CertificateChain".into(), json!({"certificates": vec![certificate; chain]}));
    })
}

/// A root whose things of this kind ceased to be valid long ago.
fn ended(trust: Trust, list: &str) -> Trust {
    let root = root_with(|root| {
        let window = json!({"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"});
        for item in root[list].as_array_mut().unwrap() {
            let holder = if item["publicKey"].is_object() { &mut item["publicKey"] } else { item };
            holder["validFor"] = window.clone();
        }
    });
    Trust { root, ..trust }
}

/// A bundle with another payload, which claims the same.
fn repacked(name: &str) -> Evidence {
    changed(name, |bundle| {
        let payload = &mut bundle["dsseEnvelope"]["payload"];
        let mut bytes = STANDARD.decode(payload.as_str().unwrap()).unwrap();
        bytes.push(b' ');
        *payload = json!(STANDARD.encode(bytes));
    })
}

type Row = (&'static str, Trust, Evidence, Cause);

fn refused(rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (what, trust, evidence, cause) in rows {
        match verdict(&trust, &image(), evidence) {
            Ok(verified) => wrong.push(format!("{what}: it is believed: {verified:?}")),
            Err((got, why)) if got != cause => wrong.push(format!("{what}: {got:?}, not {cause:?}: {why}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bundles_by_a_key() {
    let key = || by_key("p256.pub");
    let both = |bundle: &mut Value| bundle["messageSignature"] = json!({"signature": "c2ln"});
    let deep = format!("{{\"mediaType\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let long =
        format!("{}{}", String::from_utf8(read("cosign3-key.bundle.json")).unwrap(), " ".repeat(128 << 10));
    refused(vec![
        ("payload", key(), repacked("cosign3-key"), Cause::UntrustedKey),
        (
            "payload type",
            key(),
            set("cosign3-key", "/dsseEnvelope/payloadType", json!("text/plain")),
            Cause::NotASignature,
        ),
        ("signature", key(), flipped("cosign3-key", "/dsseEnvelope/signatures/0/sig"), Cause::UntrustedKey),
        (
            "another image's signature",
            key(),
            swapped("cosign3-key", "/dsseEnvelope/signatures", "cosign3-key-other-image"),
            Cause::UntrustedKey,
        ),
        ("another image's bundle", key(), evidence("cosign3-key-other-image"), Cause::OtherSubject),
        (
            "the bundle of an index with this manifest in it",
            key(),
            evidence("cosign3-key-index"),
            Cause::OtherSubject,
        ),
        ("an attestation", key(), evidence("cosign3-attestation-key"), Cause::NotASignature),
        (
            "two signatures",
            key(),
            changed("cosign3-key", |bundle| {
                let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
                signatures.push(signatures[0].clone());
            }),
            Cause::Malformed,
        ),
        ("no signature", key(), set("cosign3-key", "/dsseEnvelope/signatures", json!([])), Cause::Malformed),
        ("two kinds of content", key(), changed("cosign3-key", both), Cause::Malformed),
        ("no content", key(), without("cosign3-key", "", "dsseEnvelope"), Cause::Malformed),
        (
            "two kinds of signer",
            key(),
            changed("cosign3-keyless-log1", |bundle| {
                bundle["verificationMaterial"]["publicKey"] = json!({"hint": "x"});
            }),
            Cause::Malformed,
        ),
        (
            "an unknown version",
            key(),
            set("cosign3-key", "/mediaType", json!("application/vnd.dev.sigstore.bundle.v0.4+json")),
            Cause::Malformed,
        ),
        ("cut off", key(), bytes(read("cosign3-key.bundle.json")[..300].to_vec()), Cause::Malformed),
        ("not text", key(), bytes(vec![0xff; 20]), Cause::Malformed),
        ("deep", key(), bytes(deep.into_bytes()), Cause::Malformed),
        ("long", key(), bytes(long.into_bytes()), Cause::Malformed),
        (
            "a message's signature",
            key(),
            flipped("cosign3-message-key", "/messageSignature/signature"),
            Cause::UntrustedKey,
        ),
        ("a key of another kind", by_key("p521.pub"), evidence("cosign3-key"), Cause::UntrustedKey),
        ("a key of another kind", by_key("rsa.pub"), evidence("cosign3-key-p384"), Cause::UntrustedKey),
    ]);
    // The child's signature is none of the index, and a message is the manifest and nothing else.
    let silent = without("cosign3-message-key", "/messageSignature", "messageDigest");
    for (what, evidence, cause) in [
        ("statement", evidence("cosign3-key"), Cause::OtherSubject),
        ("message", evidence("cosign3-message-key"), Cause::OtherSubject),
        ("message of an unsaid digest", silent.clone(), Cause::UntrustedKey),
    ] {
        assert_eq!(verdict(&key(), &digest("index.json"), evidence).unwrap_err().0, cause, "{what}");
    }
    verdict(&key(), &image(), silent).unwrap();
}

#[test]
fn log_entries_of_keys() {
    let key = || logged(by_key("p256.pub"));
    let at = |place: &str| format!("{ENTRY}{place}");
    let (one, two) = ("cosign3-key-log1", "cosign3-key-log2");
    let checkpoint = at("/inclusionProof/checkpoint/envelope");
    let first_log = raw(one).pointer(&at("/logId")).unwrap().clone();
    refused(vec![
        ("no log entry", key(), evidence("cosign3-key"), Cause::LogMissing),
        ("no log entry, by the tag", key(), evidence("cosign2-key"), Cause::LogMissing),
        (
            "an empty list of entries",
            key(),
            set(one, "/verificationMaterial/tlogEntries", json!([])),
            Cause::LogMissing,
        ),
        ("no inclusion proof", key(), without(one, ENTRY, "inclusionProof"), Cause::LogMissing),
        ("another signature's entry", key(), swapped(one, ENTRY, "cosign3-key-other-image"), Cause::LogOther),
        (
            "another signature's entry, version 2",
            key(),
            swapped(two, ENTRY, "cosign3-keyless-log2-other-image"),
            Cause::LogOther,
        ),
        (
            "an entry of another kind",
            key(),
            swapped(one, ENTRY, "cosign3-message-key-log1"),
            Cause::Unsupported,
        ),
        ("body", key(), flipped(one, &at("/canonicalizedBody")), Cause::LogProof),
        ("promise", key(), flipped(one, &at("/inclusionPromise/signedEntryTimestamp")), Cause::LogProof),
        ("time", key(), set(one, &at("/integratedTime"), json!("1700000000")), Cause::LogProof),
        ("number in the log", key(), set(one, &at("/logIndex"), json!("7")), Cause::LogProof),
        ("root hash", key(), flipped(one, &at("/inclusionProof/rootHash")), Cause::LogProof),
        ("size of the tree", key(), set(one, &at("/inclusionProof/treeSize"), json!("4")), Cause::LogProof),
        (
            "path in the tree",
            key(),
            changed(one, |bundle| {
                let hashes =
                    bundle.pointer_mut(&at("/inclusionProof/hashes")).unwrap().as_array_mut().unwrap();
                hashes[0] = json!(flip(hashes[0].as_str().unwrap()));
            }),
            Cause::LogProof,
        ),
        (
            "longer path",
            key(),
            set(one, &at("/inclusionProof/hashes"), json!(vec![STANDARD.encode([0; 32]); 64])),
            Cause::Malformed,
        ),
        (
            "checkpoint",
            key(),
            changed(one, |bundle| {
                let place = bundle.pointer_mut(&checkpoint).unwrap();
                *place = json!(place.as_str().unwrap().replacen("fixture", "Fixture", 1));
            }),
            Cause::LogProof,
        ),
        ("another log's checkpoint", key(), swapped(one, &checkpoint, two), Cause::LogProof),
        ("no checkpoint", key(), set(one, &checkpoint, json!("")), Cause::LogProof),
        ("half a checkpoint", key(), set(one, &checkpoint, json!("x\n1\n")), Cause::Malformed),
        (
            "a log that is not in the root",
            key(),
            set(one, &at("/logId/keyId"), json!(STANDARD.encode([7; 32]))),
            Cause::LogProof,
        ),
        (
            "version 2: a log that is not in the root",
            key(),
            set(two, &at("/logId/keyId"), json!(STANDARD.encode([7; 32]))),
            Cause::LogUnknown,
        ),
        ("version 2: another log's name", key(), set(two, &at("/logId"), first_log), Cause::LogProof),
        (
            "version 2: number in the log",
            key(),
            changed(two, |bundle| {
                bundle.pointer_mut(ENTRY).unwrap()["logIndex"] = json!("9");
            }),
            Cause::LogProof,
        ),
        ("version 2: body", key(), flipped(two, &at("/canonicalizedBody")), Cause::LogProof),
        (
            "version 2 said to be 1",
            key(),
            set(two, &at("/kindVersion/version"), json!("0.0.1")),
            Cause::Unsupported,
        ),
        (
            "a kind that nobody knows",
            key(),
            set(two, &at("/kindVersion/kind"), json!("rekord")),
            Cause::Malformed,
        ),
        ("a log that had ended", ended(key(), "tlogs"), evidence(one), Cause::LogProof),
        ("version 2: a log that had ended", ended(key(), "tlogs"), evidence(two), Cause::LogUnknown),
        ("timestamp", key(), flipped(one, &format!("{STAMPS}/0/signedTimestamp")), Cause::Timestamp),
        ("another signature's timestamp", key(), swapped(two, STAMPS, one), Cause::Timestamp),
        ("a clock that had ended", ended(key(), "timestampAuthorities"), evidence(two), Cause::Timestamp),
        (
            "five entries",
            key(),
            changed(one, |bundle| {
                let entries = &mut bundle["verificationMaterial"]["tlogEntries"];
                *entries = json!(vec![entries[0].clone(); 5]);
            }),
            Cause::Malformed,
        ),
        (
            "by the tag: another signature's entry",
            key(),
            annotated_as("cosign2-key-logged", LOG_ENTRY, "cosign2-keyless"),
            Cause::LogOther,
        ),
        (
            "by the tag: promise",
            key(),
            entry_changed("cosign2-key-logged", |entry| {
                entry["SignedEntryTimestamp"] = json!(flip(entry["SignedEntryTimestamp"].as_str().unwrap()));
            }),
            Cause::LogProof,
        ),
    ]);
}

#[test]
fn bundles_by_an_identity() {
    let (one, two) = ("cosign3-keyless-log1", "cosign3-keyless-log2");
    let who = by_identity;
    let certificate = "/verificationMaterial/certificate";
    refused(vec![
        ("payload", who(), repacked(one), Cause::Signature),
        (
            "payload that is no statement",
            who(),
            set(one, "/dsseEnvelope/payload", json!("e30=")),
            Cause::Malformed,
        ),
        (
            "payload type",
            who(),
            set(one, "/dsseEnvelope/payloadType", json!("text/plain")),
            Cause::NotASignature,
        ),
        ("signature", who(), flipped(one, "/dsseEnvelope/signatures/0/sig"), Cause::Timestamp),
        ("another image", who(), evidence("cosign3-keyless-other-image"), Cause::OtherSubject),
        ("another image, log 2", who(), evidence("cosign3-keyless-log2-other-image"), Cause::OtherSubject),
        ("an attestation", who(), evidence("cosign3-attestation-keyless"), Cause::NotASignature),
        ("somebody else", who(), evidence("cosign3-keyless-stranger"), Cause::Identity),
        (
            "somebody's other certificate",
            who(),
            swapped(two, certificate, "cosign3-keyless-stranger"),
            Cause::Signature,
        ),
        (
            "a certificate that is none",
            who(),
            set(one, "/verificationMaterial/certificate/rawBytes", json!("AAAA")),
            Cause::Malformed,
        ),
        (
            "a changed certificate",
            who(),
            flipped(one, "/verificationMaterial/certificate/rawBytes"),
            Cause::Certificate,
        ),
        (
            "another signature's entry",
            who(),
            swapped(one, ENTRY, "cosign3-keyless-other-image"),
            Cause::LogOther,
        ),
        (
            "another signature's entry, log 2",
            who(),
            swapped(two, ENTRY, "cosign3-keyless-log2-other-image"),
            Cause::LogOther,
        ),
        ("no entry", who(), set(two, "/verificationMaterial/tlogEntries", json!([])), Cause::LogMissing),
        ("no timestamp, and a log that says no time", who(), set(two, STAMPS, json!([])), Cause::TimeUnknown),
        ("another signature's timestamp", who(), swapped(two, STAMPS, one), Cause::Timestamp),
        (
            "a chain in version 0.3",
            who(),
            changed(one, |bundle| {
                let material = bundle["verificationMaterial"].as_object_mut().unwrap();
                let certificate = material.remove("certificate").unwrap();
                material.insert("x509CertificateChain".into(), json!({"certificates": [certificate]}));
            }),
            Cause::Malformed,
        ),
        ("no chain", who(), version_01(one, 0), Cause::Malformed),
        ("a chain of 100", who(), version_01(one, 100), Cause::Malformed),
        (
            "a message's other digest",
            who(),
            set(
                "cosign3-message-keyless",
                "/messageSignature/messageDigest/digest",
                json!(STANDARD.encode([7; 32])),
            ),
            Cause::OtherSubject,
        ),
        (
            "a message's signature",
            who(),
            flipped("cosign3-message-keyless", "/messageSignature/signature"),
            Cause::Timestamp,
        ),
        (
            "an authority that had ended",
            ended(who(), "certificateAuthorities"),
            evidence(one),
            Cause::Certificate,
        ),
        (
            "a log of certificates that had ended",
            ended(who(), "ctlogs"),
            evidence(one),
            Cause::CertificateLog,
        ),
        ("a clock that had ended", ended(who(), "timestampAuthorities"), evidence(one), Cause::Timestamp),
        ("a log that had ended", ended(who(), "tlogs"), evidence(two), Cause::LogUnknown),
        ("expired", who(), evidence("crafted-expired"), Cause::CertificateTime),
        ("not yet valid", who(), evidence("crafted-not-yet-valid"), Cause::CertificateTime),
        ("logged when it had expired", who(), evidence("crafted-late-in-log"), Cause::CertificateTime),
        ("stamped when it had expired", who(), evidence("crafted-late-timestamp"), Cause::CertificateTime),
        ("a server's certificate", who(), evidence("crafted-server-purpose"), Cause::Certificate),
        ("in no log of certificates", who(), evidence("crafted-no-sct"), Cause::CertificateLog),
        ("in another log of certificates", who(), evidence("crafted-other-ct-log"), Cause::CertificateLog),
        ("without an issuer", who(), evidence("crafted-no-issuer"), Cause::Certificate),
        ("of another authority", who(), evidence("crafted-other-authority"), Cause::Certificate),
        ("in another log", who(), evidence("crafted-other-log"), Cause::LogProof),
        ("by another clock", who(), evidence("crafted-other-clock"), Cause::Timestamp),
    ]);
    // As versions 0.1 and 0.2 wrote it, it holds.
    verdict(&who(), &image(), version_01(one, 1)).unwrap();
}

#[test]
fn layers_of_the_tag() {
    let (plain, keyless, stamped) = ("cosign2-key", "cosign2-keyless", "cosign2-keyless-stamped");
    let (key, who) = (|| by_key("p256.pub"), by_identity);
    let payload = |name: &str, with: &str| {
        let mut layer = raw(name);
        layer["payload"] = raw(with)["payload"].clone();
        layer_of(&layer)
    };
    let no = |name: &str, annotation: &str| {
        let mut layer = raw(name);
        layer["annotations"].as_object_mut().unwrap().remove(annotation);
        layer_of(&layer)
    };
    let certificate = raw(keyless)["annotations"][CERTIFICATE].as_str().unwrap().to_owned();
    refused(vec![
        ("payload", key(), payload(plain, "cosign2-key-other-image"), Cause::UntrustedKey),
        ("another image", key(), evidence("cosign2-key-other-image"), Cause::OtherSubject),
        ("signature", key(), annotated(plain, SIGNATURE, flip), Cause::UntrustedKey),
        ("no signature", key(), no(plain, SIGNATURE), Cause::Malformed),
        (
            "signature that is no base64",
            key(),
            annotated(plain, SIGNATURE, |_| "%".to_owned()),
            Cause::Malformed,
        ),
        ("payload", who(), payload(keyless, stamped), Cause::Signature),
        ("another image", who(), evidence("cosign2-keyless-other-image"), Cause::OtherSubject),
        ("signature", who(), annotated(keyless, SIGNATURE, flip), Cause::Signature),
        (
            "another certificate of the same",
            who(),
            annotated_as(keyless, CERTIFICATE, stamped),
            Cause::Signature,
        ),
        ("two certificates", who(), annotated(keyless, CERTIFICATE, |pem| pem.repeat(2)), Cause::Malformed),
        (
            "half a certificate",
            who(),
            annotated(keyless, CERTIFICATE, |pem| pem[..100].to_owned()),
            Cause::Malformed,
        ),
        ("no log entry", who(), no(keyless, LOG_ENTRY), Cause::LogMissing),
        ("no log entry, stamped", who(), no(stamped, LOG_ENTRY), Cause::LogMissing),
        ("another signature's entry", who(), annotated_as(keyless, LOG_ENTRY, stamped), Cause::LogOther),
        (
            "an entry that is none",
            who(),
            annotated(keyless, LOG_ENTRY, |_| "{}".to_owned()),
            Cause::Malformed,
        ),
        (
            "promise",
            who(),
            entry_changed(keyless, |entry| {
                entry["SignedEntryTimestamp"] = json!(flip(entry["SignedEntryTimestamp"].as_str().unwrap()));
            }),
            Cause::LogProof,
        ),
        (
            "time",
            who(),
            entry_changed(keyless, |entry| entry["Payload"]["integratedTime"] = json!(1_700_000_000)),
            Cause::LogProof,
        ),
        (
            "number in the log",
            who(),
            entry_changed(keyless, |entry| entry["Payload"]["logIndex"] = json!(-1)),
            Cause::Malformed,
        ),
        (
            "another log",
            who(),
            entry_changed(keyless, |entry| entry["Payload"]["logID"] = json!("07".repeat(32))),
            Cause::LogProof,
        ),
        (
            "a log that is no log",
            who(),
            entry_changed(keyless, |entry| entry["Payload"]["logID"] = json!("é")),
            Cause::Malformed,
        ),
        ("another signature's timestamp", who(), annotated_as(keyless, STAMP, stamped), Cause::Timestamp),
        ("a timestamp that is none", who(), annotated(stamped, STAMP, |_| "[]".to_owned()), Cause::Malformed),
        ("a chain of 100", who(), annotated(keyless, CHAIN, |_| certificate.repeat(100)), Cause::Malformed),
        (
            "a chain that leads nowhere",
            Trust { root: TrustedRoot::default(), ..who() },
            evidence(keyless),
            Cause::LogProof,
        ),
        ("keyless, and only keys are trusted", key(), evidence(keyless), Cause::Identity),
    ]);
}
