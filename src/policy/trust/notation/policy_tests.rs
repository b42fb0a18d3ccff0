use serde_json::{Value, json};

use super::*;

fn statement(name: &str, scopes: &Value) -> Value {
    json!({
        "name": name, "registryScopes": scopes, "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:acme", "tsa:acme"], "trustedIdentities": ["*"],
    })
}

fn parse(statements: &Value) -> Result<TrustPolicy, String> {
    TrustPolicy::parse(json!({"version": "1.0", "trustPolicies": statements}).to_string().as_bytes())
}

fn at(text: &str) -> Location {
    text.parse::<crate::policy::reference::ImageRef>().unwrap().location
}

#[test]
fn the_statement_that_names_the_repository_comes_first() {
    let policy = parse(&json!([
        statement("all", &json!(["*"])),
        statement("one", &json!(["Registry.example.com:5000/a/b", "docker.io/library/alpine"])),
    ]))
    .unwrap();
    for (image, name) in [
        ("registry.example.com:5000/a/b:v1", "one"),
        ("alpine", "one"),
        ("registry.example.com:5000/a/b/c", "all"),
        ("registry.example.com/a/b", "all"),
        ("oci:/srv/layout", "all"),
    ] {
        assert_eq!(policy.statement(&at(image)).unwrap().name, name, "{image}");
    }
    let policy = parse(&json!([statement("one", &json!(["ghcr.io/a"]))])).unwrap();
    assert!(policy.statement(&at("ghcr.io/b")).unwrap_err().contains("\"ghcr.io/b\""));
    assert!(policy.statement(&at("oci:ghcr.io/a")).is_err());
    assert_eq!(policy.stores(), [(StoreKind::Ca, "acme"), (StoreKind::Tsa, "acme")]);
}

#[test]
fn levels_and_overrides() {
    use Action::{Enforce, Log, Skip};
    let table = [
        (json!({"level": "strict"}), [Enforce, Enforce, Enforce, Enforce]),
        (json!({"level": "permissive"}), [Enforce, Log, Log, Log]),
        (json!({"level": "audit"}), [Log, Log, Log, Log]),
        (
            json!({"level": "strict", "override": {"revocation": "skip", "expiry": "log"}}),
            [Enforce, Enforce, Log, Skip],
        ),
        (
            json!({"level": "audit", "override": {"authenticity": "enforce", "authenticTimestamp": "enforce"}}),
            [Enforce, Enforce, Log, Log],
        ),
    ];
    for (verification, expected) in table {
        let mut one = statement("x", &json!(["*"]));
        one["signatureVerification"] = verification;
        let level = parse(&json!([one])).unwrap().statements[0].level;
        let checks = [Check::Authenticity, Check::AuthenticTimestamp, Check::Expiry, Check::Revocation];
        assert_eq!(checks.map(|check| level.action(check)), expected, "{level:?}");
        assert_eq!(level.action(Check::Integrity), Enforce);
    }
    let skip = json!({"name": "s", "registryScopes": ["a.b/c"], "signatureVerification": {"level": "skip"}});
    assert!(parse(&json!([skip])).unwrap().statement(&at("a.b/c")).unwrap().level.skips());
}

/// Cases VF-15 and VF-16 among others.
#[test]
fn refuses_what_notation_refuses() {
    let refused = |bytes: &[u8], word: &str| {
        let reason = TrustPolicy::parse(bytes).unwrap_err();
        assert!(reason.contains(word), "{reason}");
    };
    refused(b"{}", "trust policy document has empty version");
    refused(b"", "error occurred while parsing trustpolicy.json: unexpected end of JSON input");
    refused(b"[1]", "error occurred while parsing trustpolicy.json");
    refused(br#"{"version":"2.0"}"#, "unsupported version");
    refused(br#"{"version":"1.0"}"#, "no statement");
    refused(br#"{"version":"1.0","version":"1.0"}"#, "duplicate");
    refused(&vec![b' '; MAX_POLICY + 1], "at most");
    refused("{\"x\":".repeat(100_000).as_bytes(), "unexpected end");
    let with = |key: &str, value: Value| {
        let mut one = statement("x", &json!(["*"]));
        one[key] = value;
        json!([one])
    };
    let verification = |value: Value| with("signatureVerification", value);
    for (statements, word) in [
        (with("name", json!("")), "has no name"),
        (json!([statement("x", &json!(["*"])), statement("x", &json!(["a.b/c"]))]), "two"),
        (json!([statement("x", &json!(["*"])), statement("y", &json!(["*"]))]), "more than one"),
        (
            json!([statement("x", &json!(["A.b/c"])), statement("y", &json!(["a.b/d", "a.B/c"]))]),
            "more than one",
        ),
        (with("registryScopes", json!([])), "no registryScopes"),
        (with("registryScopes", json!(["*", "a.b/c"])), "\"*\""),
        (with("registryScopes", json!(["a.b/*"])), "a.b/*"),
        (with("registryScopes", json!(["a.b"])), "in full"),
        (with("registryScopes", json!(["a.b/c:v1"])), "in full"),
        (with("registryScopes", json!(["https://a.b/c"])), "in full"),
        (with("trustStores", json!([])), "trustStores"),
        (with("trustedIdentities", json!([])), "trustedIdentities"),
        (with("trustStores", json!(["acme"])), "ca:NAME"),
        (with("trustStores", json!(["ca:.."])), "ca:NAME"),
        (with("trustStores", json!(["ca:a/b"])), "ca:NAME"),
        (with("trustStores", json!(["CA:a"])), "ca:NAME"),
        (with("trustedIdentities", json!(["*", "x509.subject: C=US,ST=WA,O=x"])), "beside"),
        (with("trustedIdentities", json!(["C=US"])), "x509.subject"),
        (with("trustedIdentities", json!(["x509.subject: C=US"])), "has no ST"),
        (
            with(
                "trustedIdentities",
                json!(["x509.subject: C=US,ST=WA,O=x", "x509.subject: C=US,ST=WA,O=x,CN=y"]),
            ),
            "overlap",
        ),
        (verification(json!({})), "signatureVerification.level"),
        (verification(json!({"level": "Strict"})), "signatureVerification.level"),
        (verification(json!({"level": "skip"})), "for all repositories"),
        (verification(json!({"level": "strict", "override": {"integrity": "log"}})), "integrity"),
        (verification(json!({"level": "strict", "override": {"expiry": "skip"}})), "only revocation"),
        (verification(json!({"level": "strict", "override": {"expiry": "warn"}})), "warn"),
        (verification(json!({"level": "strict", "verifyTimestamp": "never"})), "verifyTimestamp"),
    ] {
        let reason = parse(&statements).unwrap_err();
        assert!(reason.contains(word), "{statements}: {reason}");
    }
}
