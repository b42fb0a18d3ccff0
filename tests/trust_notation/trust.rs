//! Whose signatures count: stores, identities, statements, levels.

use addonfs::policy::trust::notation::policy::TrustPolicy;
use addonfs::policy::trust::notation::{Check, Failure, MEDIA_TYPE_JWS, NotationTrust, StoreFile, StoreKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::make::{
    AUTHENTIC, Draft, EXPIRY, SCHEME, SIGNED, at_level, chain, fixture, judge, location, refused, statement,
    trust, trust_with, with,
};

#[test]
fn who_signs_must_be_trusted() {
    let judge_chain = |trust: &NotationTrust, name: &str| {
        let draft = Draft { chain: chain(name), ..Draft::good() };
        let [jws, cose] = draft.both().map(|(media_type, envelope)| judge(trust, media_type, &envelope));
        assert_eq!(jws, cose);
        jws
    };
    let authenticity = |what: &str, trust: &NotationTrust, chain: &str, words: &str| {
        refused(what, judge_chain(trust, chain), Check::Authenticity, words);
    };
    let strict = trust(statement());
    authenticity("another root", &strict, "foreign", "no certificate of the chain");
    authenticity("another country", &strict, "other country", "does not match the X.509 trusted identities");
    let identities = |list: Value| trust(with("trustedIdentities", list));
    judge_chain(&identities(json!(["*"])), "other country").unwrap();
    judge_chain(&identities(json!(["x509.subject: CN=acme builder,O=acme,ST=WA,C=US"])), "good").unwrap();
    judge_chain(
        &identities(json!(["x509.subject: C=US,ST=WA,O=other", "x509.subject: C=US,ST=WA,O=acme"])),
        "good",
    )
    .unwrap();
    let words = "does not match the X.509 trusted identities";
    authenticity("name", &identities(json!(["x509.subject: C=US,ST=WA,O=acme,CN=x"])), "good", words);
    authenticity("case", &identities(json!(["x509.subject: C=US,ST=WA,O=Acme"])), "good", words);
    authenticity("kind", &identities(json!(["plugin: x"])), "good", words);
    authenticity("two values", &strict, "two organizations", words);
    let stores = |list: Value| trust(with("trustStores", list));
    // Any certificate of the chain may be the one that is trusted, the root or not.
    judge_chain(&stores(json!(["ca:middle"])), "good").unwrap();
    judge_chain(&stores(json!(["ca:other", "ca:acme"])), "good").unwrap();
    judge_chain(&stores(json!(["ca:sha1"])), "pss").unwrap();
    authenticity("store", &stores(json!(["ca:other"])), "good", "no certificate of the chain");
    authenticity("absent store", &stores(json!(["ca:gone"])), "good", "ca:gone holds no certificate");
    authenticity("store of time", &stores(json!(["tsa:acme-time"])), "good", "no trust store of kind ca");
    authenticity(
        "store of services",
        &stores(json!(["signingAuthority:acme-authority"])),
        "good",
        "of kind ca",
    );

    // A service is trusted as such, and nobody else becomes one by saying so.
    let envelope = fixture("envelopes/authority.jws");
    let as_ca = trust_with(&[with("trustStores", json!(["ca:acme"]))], &[]);
    refused(
        "an authority",
        judge(&as_ca, MEDIA_TYPE_JWS, &envelope),
        Check::Authenticity,
        "of kind signingAuthority",
    );
    let mut posing = Draft::good();
    posing.set(SCHEME, "notary.x509.signingAuthority");
    posing.drop(SIGNED);
    posing.set(AUTHENTIC, "2026-11-21T10:00:00Z");
    posing.critical(&[SCHEME, AUTHENTIC]);
    let both = trust(with("trustStores", json!(["ca:acme", "signingAuthority:acme-authority"])));
    for (media_type, envelope) in posing.both() {
        refused(
            "a signer as authority",
            judge(&both, media_type, &envelope),
            Check::Authenticity,
            "signingAuthority",
        );
    }
}

#[test]
fn stores_hold_what_can_be_trusted() {
    let document =
        json!({"version": "1.0", "trustPolicies": [with("trustStores", json!(["ca:x"]))]}).to_string();
    let with_file = |file: &str, bytes: Vec<u8>| {
        let file = StoreFile { kind: StoreKind::Ca, store: "x".into(), file: file.into(), bytes };
        let trust =
            NotationTrust::new(TrustPolicy::parse(document.as_bytes()).unwrap(), vec![file], Vec::new());
        judge(&trust, MEDIA_TYPE_JWS, Draft::good().jws().to_string().as_bytes())
    };
    let root = chain("good").pop().unwrap();
    let pem = |der: &[u8]| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    with_file("root.der", root.clone()).unwrap();
    with_file("two.pem", format!("text\n{}{}", pem(&chain("foreign")[1]), pem(&root)).into_bytes()).unwrap();
    for (bytes, words) in [
        (Vec::new(), "no certificate"),
        (b"text".to_vec(), "no certificate"),
        (vec![0xff; 10], "neither PEM nor DER"),
        (root[..100].to_vec(), "malformed"),
        (pem(&root).into_bytes()[..100].to_vec(), "no end"),
        (pem(&chain("good")[0]).into_bytes(), "neither an authority's nor self-signed"),
        (fixture("leaf.key"), "PRIVATE KEY"),
        (vec![b'x'; 5 << 20], "at most"),
    ] {
        let outcome = with_file("file.pem", bytes);
        refused("a file", outcome, Check::Authenticity, words);
    }
    assert!(StoreFile::is_certificate("a.PEM") && StoreFile::is_certificate("a.cer"));
    assert!(!StoreFile::is_certificate("README") && !StoreFile::is_certificate("a.pem.bak"));
}

#[test]
fn the_repository_decides_which_statement_holds() {
    let mut strict = with("registryScopes", json!(["registry.example.com/acme/tools"]));
    strict["name"] = "tools".into();
    let mut skip =
        json!({"name": "skip", "registryScopes": ["a.b/c"], "signatureVerification": {"level": "skip"}});
    let (_, envelope) = Draft::good().both()[0].clone();
    let both = trust_with(
        &[strict.clone(), with("trustedIdentities", json!(["x509.subject: C=DE,ST=BE,O=x"]))],
        &[],
    );
    assert_eq!(judge(&both, MEDIA_TYPE_JWS, &envelope).unwrap().statement(), "tools");
    let elsewhere =
        trust_with(&[with("registryScopes", json!(["registry.example.com/acme"])), skip.clone()], &[]);
    refused("elsewhere", judge(&elsewhere, MEDIA_TYPE_JWS, &envelope), Check::TrustPolicy, "registryScopes");
    assert!(elsewhere.statement(&location()).is_err());
    skip["registryScopes"] = strict["registryScopes"].clone();
    let skipped = trust_with(&[skip, statement()], &[]);
    assert!(skipped.statement(&location()).unwrap().level.skips());
    refused("skipped", judge(&skipped, MEDIA_TYPE_JWS, &envelope), Check::TrustPolicy, "skips verification");
    refused("type", judge(&both, "application/json", &envelope), Check::Integrity, "not supported");
}

/// Levels decide what a failure means, and nothing that failed is lost.
#[test]
fn levels_decide_what_counts() {
    let mut expired = Draft { chain: chain("other country"), ..Draft::good() };
    expired.set(EXPIRY, "2027-01-01T00:00:00Z");
    expired.critical(&[SCHEME, EXPIRY]);
    let brief = fixture("envelopes/brief.jws");
    let checks = |failures: &[Failure]| failures.iter().map(|failure| failure.check).collect::<Vec<_>>();
    for (media_type, envelope) in expired.both() {
        let outcome = judge(&trust(statement()), media_type, &envelope).unwrap_err();
        assert_eq!(checks(&outcome), [Check::Authenticity, Check::Expiry]);
        let outcome = judge(&trust(at_level("permissive")), media_type, &envelope).unwrap_err();
        assert_eq!(checks(&outcome), [Check::Authenticity, Check::Expiry]);
        let signer = judge(&trust(at_level("audit")), media_type, &envelope).unwrap();
        assert_eq!(checks(signer.findings()), [Check::Authenticity, Check::Expiry]);
        assert!(!signer.is_trusted(), "nobody who is trusted vouches");
    }
    refused(
        "brief",
        judge(&trust(statement()), MEDIA_TYPE_JWS, &brief),
        Check::AuthenticTimestamp,
        "was expired now",
    );
    let signer = judge(&trust(at_level("permissive")), MEDIA_TYPE_JWS, &brief).unwrap();
    assert_eq!(checks(signer.findings()), [Check::AuthenticTimestamp]);
    assert!(signer.is_trusted());
    let logged = json!({"level": "permissive", "override": {"authenticTimestamp": "enforce"}});
    let outcome = judge(&trust(with("signatureVerification", logged)), MEDIA_TYPE_JWS, &brief);
    refused("brief", outcome, Check::AuthenticTimestamp, "was expired now");
}
