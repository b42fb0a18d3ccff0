//! Integrity: what notation signs, and everything that can be wrong in an envelope.

use addonfs::policy::digest::Digest;
use addonfs::policy::trust::notation::{Check, MAX_ENVELOPE, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS, Scheme};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coset::cbor::value::Value as Cbor;
use serde_json::{Value, json};

use super::make::{
    AUTHENTIC, Draft, EXPIRY, SCHEME, SIGNED, Sign1, TIMESTAMP, at_level, bytes_of, chain, fixture, judge,
    manifest, media_type, refused, sign, statement, target, trust, trust_with, with,
};

#[test]
fn what_notation_signs_is_accepted() {
    let strict = trust_with(
        &[with("trustStores", json!(["ca:acme", "ca:alone", "signingAuthority:acme-authority"]))],
        &[],
    );
    let stamped = trust_with(&[with("trustStores", json!(["ca:acme", "tsa:acme-time"]))], &[]);
    let names = [
        "p256",
        "p384",
        "p521",
        "rsa2048",
        "rsa3072",
        "rsa4096",
        "full",
        "self-signed",
        "attribute",
        "authority",
    ];
    for name in names {
        for format in ["jws", "cose"] {
            let file = format!("envelopes/{name}.{format}");
            let signer = judge(&strict, media_type(format), &fixture(&file))
                .unwrap_or_else(|e| panic!("{file}: {e:?}"));
            assert!(signer.is_trusted() && signer.findings().is_empty() && signer.skipped().is_empty());
            assert!(signer.subject().contains("O=acme"), "{}", signer.subject());
            let scheme = if name == "authority" { Scheme::SigningAuthority } else { Scheme::X509 };
            assert_eq!((signer.scheme(), signer.statement(), signer.level()), (scheme, "all", "strict"));
            let manifest = manifest();
            let size = manifest.len() as u64;
            signer.manifest().check("application/vnd.oci.image.manifest.v1+json", size).unwrap();
            assert!(signer.manifest().check("application/vnd.oci.image.index.v1+json", size).is_err());
            assert!(signer.manifest().check("application/vnd.oci.image.manifest.v1+json", size + 1).is_err());
        }
    }
    for name in ["full", "brief"] {
        for format in ["jws", "cose"] {
            let envelope = fixture(&format!("envelopes/{name}.{format}"));
            judge(&stamped, media_type(format), &envelope)
                .unwrap_or_else(|e| panic!("{name}.{format}: {e:?}"));
        }
    }
    for (media_type, envelope) in Draft::good().both() {
        judge(&strict, media_type, &envelope).unwrap_or_else(|e| panic!("{media_type}: {e:?}"));
    }
}

/// What is signed by a trusted signer and must be refused all the same, in both formats.
#[test]
fn what_is_wrong_in_a_signed_envelope_is_refused() {
    type Row = (&'static str, fn(&mut Draft), &'static str);
    let rows: [Row; 46] = [
        ("digest", |d| d.target("digest", json!(Digest::of(b"other"))), "not over sha256"),
        ("digest of another kind", |d| d.target("digest", json!("sha512:00")), "no usable digest"),
        ("digest missing", |d| d.target("digest", Value::Null), "not the descriptor"),
        ("size negative", |d| d.target("size", json!(-1)), "not the descriptor"),
        ("size missing", |d| d.target("size", Value::Null), "not the descriptor"),
        ("size as text", |d| d.target("size", json!("1")), "not the descriptor"),
        ("media type of no image", |d| d.target("mediaType", json!("sbom/example")), "no image"),
        ("media type missing", |d| d.target("mediaType", Value::Null), "not the descriptor"),
        ("payload without target", |d| d.payload = b"{}".to_vec(), "not the descriptor"),
        (
            "payload of two targets",
            |d| {
                let one = target();
                d.payload = format!("{{\"targetArtifact\":{one},\"targetArtifact\":{one}}}").into_bytes();
            },
            "duplicate",
        ),
        (
            "payload as lists",
            |d| {
                let (target, digest) = (target(), Digest::of(&manifest()));
                d.payload = json!([[target["mediaType"], digest, target["size"]]]).to_string().into_bytes();
            },
            "not the descriptor",
        ),
        (
            "target as a list",
            |d| {
                let target = target();
                let list = json!([target["mediaType"], target["digest"], target["size"]]);
                d.payload = json!({"targetArtifact": list}).to_string().into_bytes();
            },
            "not the descriptor",
        ),
        ("payload no JSON", |d| d.payload = b"x".to_vec(), "not the descriptor"),
        ("payload deep", |d| d.payload = "[".repeat(10_000).into_bytes(), "not the descriptor"),
        ("alg of another hash", |d| d.set("alg", "ES384"), "implies ES256"),
        ("alg of another kind", |d| d.set("alg", "PS256"), "implies ES256"),
        ("alg none", |d| d.set("alg", "none"), "not one that envelopes may have"),
        ("alg symmetric", |d| d.set("alg", "HS256"), "not one that envelopes may have"),
        ("alg missing", |d| d.drop("alg"), "\"alg\" is missing"),
        ("content type", |d| d.set("cty", "application/json"), "content type"),
        ("content type missing", |d| d.drop("cty"), "missing"),
        ("crit missing", |d| d.drop("crit"), "crit"),
        ("crit empty", |d| d.critical(&[]), ""),
        ("crit without scheme", |d| d.critical(&[SIGNED]), "signingScheme is not marked critical"),
        ("crit of something absent", |d| d.critical(&[SCHEME, "com.example"]), "not there"),
        ("crit of an absent expiry", |d| d.critical(&[SCHEME, EXPIRY]), "not there"),
        ("crit twice", |d| d.critical(&[SCHEME, SCHEME]), "twice"),
        ("crit of registered names", |d| d.critical(&[SCHEME, "alg"]), "not there"),
        (
            "crit not understood",
            |d| {
                d.set("com.example", "x");
                d.critical(&[SCHEME, "com.example"]);
            },
            "critical attribute \"com.example\" is not understood",
        ),
        ("scheme missing", |d| d.drop(SCHEME), "signingScheme is missing"),
        ("scheme unknown", |d| d.set(SCHEME, "notary.x509.tuf"), "signing scheme \"notary.x509.tuf\""),
        ("scheme no text", |d| d.set(SCHEME, 1), "no text"),
        ("signing time missing", |d| d.drop(SIGNED), "signingTime is missing"),
        ("signing time malformed", |d| d.set(SIGNED, "yesterday"), "no time"),
        ("signing time a number", |d| d.set(SIGNED, 5), "no t"),
        ("both signing times", |d| d.set(AUTHENTIC, "2026-11-21T10:00:00Z"), "two signing times"),
        (
            "authority without its time",
            |d| {
                d.set(SCHEME, "notary.x509.signingAuthority");
                d.drop(SIGNED);
            },
            "authenticSigningTime is missing",
        ),
        (
            "authority's time not critical",
            |d| {
                d.set(SCHEME, "notary.x509.signingAuthority");
                d.drop(SIGNED);
                d.set(AUTHENTIC, "2026-11-21T10:00:00Z");
            },
            "authenticSigningTime is not marked critical",
        ),
        (
            "authority with a signing time",
            |d| {
                d.set(SCHEME, "notary.x509.signingAuthority");
                d.set(AUTHENTIC, "2026-11-21T10:00:00Z");
            },
            "two signing times",
        ),
        ("expiry not critical", |d| d.set(EXPIRY, "2100-01-01T00:00:00Z"), "expiry is not marked critical"),
        ("expiry malformed", |d| d.set(EXPIRY, "soon"), "no time"),
        (
            "expiry before the signature",
            |d| {
                d.set(EXPIRY, "2026-11-21T10:00:00Z");
                d.critical(&[SCHEME, EXPIRY]);
            },
            "expires before it was made",
        ),
        (
            "plugin",
            |d| {
                d.set("io.cncf.notary.verificationPlugin", "com.example");
                d.critical(&[SCHEME, "io.cncf.notary.verificationPlugin"]);
            },
            "asks for a verification plugin",
        ),
        (
            "plugin not critical",
            |d| d.set("io.cncf.notary.verificationPlugin", "x"),
            "asks for a verification plugin",
        ),
        ("plugin version", |d| d.set("io.cncf.notary.verificationPluginMinVersion", "1.0.0"), "plugin"),
        ("no chain", |d| d.chain.clear(), "chain is missing"),
    ];
    // Integrity is enforced at every level.
    for level in ["strict", "audit"] {
        let trust = trust(at_level(level));
        for (what, change, words) in rows {
            let mut draft = Draft::good();
            change(&mut draft);
            for (media_type, envelope) in draft.both() {
                let what = format!("{what}, {media_type}");
                refused(&what, judge(&trust, media_type, &envelope), Check::Integrity, words);
            }
        }
    }
    let trust = trust(statement());
    for (name, words) in [("plugin", "verificationPlugin"), ("critical", "com.example.attribute")] {
        for format in ["jws", "cose"] {
            let envelope = fixture(&format!("envelopes/{name}.{format}"));
            refused(name, judge(&trust, media_type(format), &envelope), Check::Integrity, words);
        }
    }
}

/// What anybody can do to a sound envelope without a key.
#[test]
fn a_jws_that_was_tampered_with_is_refused() {
    type Row = (&'static str, fn(&mut Value), &'static str);
    let rows: [Row; 17] = [
        ("payload", |e| e["payload"] = URL_SAFE_NO_PAD.encode("{}").into(), "not by the signing certificate"),
        (
            "protected",
            |e| {
                let mut header = Draft::good();
                header.set(SIGNED, "2026-11-22T10:00:00Z");
                e["protected"] = header.jws()["protected"].clone();
            },
            "not by the signing certificate",
        ),
        (
            "signature of other content",
            |e| {
                e["signature"] = URL_SAFE_NO_PAD.encode(sign(b"x")).into();
            },
            "not by the signing certificate",
        ),
        ("signature empty", |e| e["signature"] = "".into(), "not by the signing certificate"),
        ("signature no text", |e| e["signature"] = 1.into(), "\"signature\" is missing"),
        (
            "signature with padding",
            |e| {
                e["signature"] = format!("{}==", e["signature"].as_str().unwrap()).into();
            },
            "not base64url",
        ),
        ("payload missing", |e| drop(e.as_object_mut().unwrap().remove("payload")), "\"payload\" is missing"),
        ("header missing", |e| drop(e.as_object_mut().unwrap().remove("header")), "\"header\" is missing"),
        ("one member more", |e| e["signatures"] = json!([]), "member \"signatures\""),
        (
            "chain missing",
            |e| drop(e["header"].as_object_mut().unwrap().remove("x5c")),
            "chain (x5c) is missing",
        ),
        ("chain no base64", |e| e["header"]["x5c"] = json!(["?"]), "not base64"),
        (
            "chain of another signer",
            |e| {
                e["header"]["x5c"][0] = STANDARD.encode(&chain("other key")[0]).into();
            },
            "not by the signing certificate",
        ),
        ("alg beside", |e| e["header"]["alg"] = "ES256".into(), "both headers"),
        ("crit beside", |e| e["header"]["crit"] = json!([]), "both headers"),
        ("scheme beside", |e| e["header"][SCHEME] = "notary.x509".into(), "both headers"),
        ("timestamp no base64", |e| e["header"][TIMESTAMP] = "?".into(), "not base64"),
        ("protected no object", |e| e["protected"] = URL_SAFE_NO_PAD.encode("[]").into(), "no JSON object"),
    ];
    let trust = trust(statement());
    let check = |what: &str, envelope: &[u8], words: &str| {
        refused(what, judge(&trust, MEDIA_TYPE_JWS, envelope), Check::Integrity, words);
    };
    for (what, change, words) in rows {
        let mut envelope = Draft::good().jws();
        change(&mut envelope);
        check(what, envelope.to_string().as_bytes(), words);
    }
    let good = Draft::good().jws().to_string();
    check("a member twice", good.replacen('{', "{\"payload\":\"x\",", 1).as_bytes(), "stands twice");
    check("truncated", &good.as_bytes()[..good.len() - 1], "not a JWS");
    check("trailing", format!("{good}x").as_bytes(), "not a JWS");
    check("compact", b"a.b.c", "not a JWS");
    check("deep", "{\"a\":".repeat(10_000).as_bytes(), "not a JWS");
    check("as the other format", &Draft::good().cose().tagged(18), "not a JWS");
    check("large", &vec![b' '; MAX_ENVELOPE + 1], "at most");
    // What is not signed and not read may say anything.
    let mut envelope = Draft::good().jws();
    envelope["header"]["io.cncf.notary.signingAgent"] = "other/1".into();
    envelope["header"]["x"] = json!({"y": [1]});
    judge(&trust, MEDIA_TYPE_JWS, envelope.to_string().as_bytes()).unwrap();
}

#[test]
fn a_cose_that_was_tampered_with_is_refused() {
    let trust = trust(statement());
    let check = |what: &str, envelope: &[u8], words: &str| {
        refused(what, judge(&trust, MEDIA_TYPE_COSE, envelope), Check::Integrity, words);
    };
    let part = |at: usize, value: Cbor| {
        let Cbor::Array(mut parts) = Draft::good().cose().signed() else { panic!() };
        parts[at] = value;
        bytes_of(&Cbor::Tag(18, Box::new(Cbor::Array(parts))))
    };
    let mut later = Draft::good();
    later.set(SIGNED, "2026-11-22T10:00:00Z");
    let Cbor::Array(parts) = later.cose().signed() else { panic!() };
    check("protected", &part(0, parts[0].clone()), "not by the signing certificate");
    check("payload", &part(2, Cbor::Bytes(b"{}".to_vec())), "not by the signing certificate");
    check("payload elsewhere", &part(2, Cbor::Null), "payload is not in the envelope");
    check("signature", &part(3, Cbor::Bytes(sign(b"x"))), "not by the signing certificate");
    check("signature empty", &part(3, Cbor::Bytes(Vec::new())), "not by the signing certificate");
    check("not tagged", &bytes_of(&Draft::good().cose().signed()), "not a COSE_Sign1_Tagged");
    check("another tag", &Draft::good().cose().tagged(98), "not a COSE_Sign1_Tagged");
    check("trailing", &[Draft::good().cose().tagged(18), vec![0]].concat(), "not a COSE_Sign1_Tagged");
    check("as the other format", Draft::good().jws().to_string().as_bytes(), "not a COSE_Sign1_Tagged");
    check("deep", &[vec![0xd2], vec![0x81; 10_000]].concat(), "not a COSE_Sign1_Tagged");
    check(
        "a length of lies",
        &[0xd2, 0x84, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        "not a COSE",
    );

    type Row = (&'static str, fn(&mut Sign1), &'static str);
    let text = |name: &str| Cbor::Text(name.to_owned());
    let rows: [Row; 15] = [
        ("alg beside", |e| e.unprotected.push((1.into(), (-7).into())), "the header that is not signed"),
        (
            "crit beside",
            |e| e.unprotected.push((2.into(), Cbor::Array(vec![4.into()]))),
            "the header that is not signed",
        ),
        (
            "content type beside",
            |e| e.unprotected.push((3.into(), Cbor::Text("a/b".into()))),
            "the header that is not signed",
        ),
        (
            "scheme beside",
            |e| e.unprotected.push((Cbor::Text(SCHEME.into()), Cbor::Text("x".into()))),
            "both headers",
        ),
        ("chain in both", |e| e.protected.push(e.unprotected[0].clone()), "both headers"),
        ("chain missing", |e| e.unprotected.clear(), "chain (x5chain) is missing"),
        ("chain no list", |e| e.unprotected[0].1 = Cbor::Bytes(vec![1]), "no list of byte strings"),
        (
            "chain of texts",
            |e| e.unprotected[0].1 = Cbor::Array(vec![Cbor::Text("x".into())]),
            "no list of byte strings",
        ),
        (
            "timestamp a text",
            |e| e.unprotected.push((Cbor::Text(TIMESTAMP.into()), Cbor::Text("x".into()))),
            "no byte string",
        ),
        ("a label twice", |e| e.protected.push(e.protected[0].clone()), "not a COSE"),
        ("time without tag", |e| set(e, SIGNED, 5.into()), "no time with tag 1"),
        (
            "time as text",
            |e| set(e, SIGNED, Cbor::Tag(0, Box::new(Cbor::Text("2026-11-21T10:00:00Z".into())))),
            "no time with tag 1",
        ),
        (
            "time that is no number",
            |e| set(e, SIGNED, Cbor::Tag(1, Box::new(Cbor::Float(f64::NAN)))),
            "no time with tag 1",
        ),
        (
            "time beyond all",
            |e| set(e, SIGNED, Cbor::Tag(1, Box::new(u64::MAX.into()))),
            "no time with tag 1",
        ),
        ("alg a text", |e| e.protected[0].1 = Cbor::Text("ES256".into()), "algorithm"),
    ];
    for (what, change, words) in rows {
        let mut envelope = Draft::good().cose();
        change(&mut envelope);
        check(what, &envelope.tagged(18), words);
    }
    // A chain that is signed, too, and fractions of seconds.
    let mut envelope = Draft::good().cose();
    let chain = envelope.unprotected.remove(0);
    envelope.protected.push(chain);
    set(&mut envelope, SIGNED, Cbor::Tag(1, Box::new(Cbor::Float(1_763_719_200.5))));
    envelope.unprotected.push((text("io.cncf.notary.signingAgent"), text("other/1")));
    judge(&trust, MEDIA_TYPE_COSE, &envelope.tagged(18)).unwrap();
    // Critical labels that are numbers.
    let mut envelope = Draft::good().cose();
    envelope.protected.push((1000.into(), 1.into()));
    set_label(&mut envelope, &2.into(), Cbor::Array(vec![text(SCHEME), 1000.into()]));
    check("crit of a number", &envelope.tagged(18), "");
}

fn set(envelope: &mut Sign1, name: &str, value: Cbor) {
    set_label(envelope, &Cbor::Text(name.to_owned()), value);
}

fn set_label(envelope: &mut Sign1, label: &Cbor, value: Cbor) {
    envelope.protected.iter_mut().find(|(known, _)| known == label).unwrap().1 = value;
}
