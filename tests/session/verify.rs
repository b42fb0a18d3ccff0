//! `verify` and `policy explain`: the daemon's decision, told by somebody who asks no daemon.

use serde_json::Value;

use crate::common::session::{Done, Session, TOOLS};

fn json(done: &Done) -> Value {
    serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// Each image by name, digest and tag; the exit code is the answer, and the words say why.
#[test]
fn verify_says_by_whom_or_every_reason_why_not() {
    let s = Session::new();
    let good = s.publish("good", TOOLS);
    s.build("unsigned", &TOOLS.replace("test-tools", "unsigned"));
    let unsigned = s.reference("unsigned", &s.push("unsigned"));
    s.build("stranger", &TOOLS.replace("test-tools", "stranger"));
    let stranger = s.push("stranger");
    s.addonfs(["keygen", "--output", "other"]).ok();
    let host = s.host();
    s.addonfs(["sign", "--key", "other.key", &format!("{host}/org/stranger@{stranger}")]).ok();
    s.configure("", &[("good", &good, ""), ("unsigned", &unsigned, "")]);
    let verify = |reference: &str| s.addonfs(["verify", "--config", "addonfs.yaml", reference]);
    let as_json =
        |reference: &str| s.addonfs(["verify", "--config", "addonfs.yaml", "-o", "json", reference]);

    for reference in ["good", &good, &format!("{host}/org/good:v1"), &format!("oci://{host}/org/good:v1")] {
        let done = verify(reference);
        assert_eq!(done.code, 0, "{done:?}");
        for words in [
            "yes, by the key cosign.pub (sha256:",
            "signature 1 (.sig tag)",
            "without end",
            "source     good",
        ] {
            assert!(done.out.contains(words), "{words}: {done:?}");
        }
    }
    let found = json(&as_json("good"));
    assert_eq!((&found["verified"], &found["source"]), (&true.into(), &"good".into()));
    assert_eq!((&found["by"]["kind"], &found["by"]["name"]), (&"key".into(), &"cosign.pub".into()));
    assert_eq!((&found["signatures_found"], &found["refusals"]), (&1.into(), &Value::Array(vec![])));

    let refused = verify("unsigned");
    assert_eq!(refused.code, 1);
    assert!(
        refused.out.contains("no: 0 signatures were found") && refused.out.contains("addonfs sign"),
        "{refused:?}"
    );
    let tag = format!("{host}/org/stranger:v1");
    let refused = as_json(&tag);
    assert_eq!(refused.code, 1);
    let found = json(&refused);
    assert_eq!((&found["verified"], &found["source"]), (&false.into(), &Value::Null));
    assert_eq!(found["refusals"][0]["code"], "untrusted-key");
    assert_eq!(found["verify_signatures"], "required");

    // what could not be found out is no answer
    for reference in ["nobody", &format!("{host}/org/none:v1"), "localhost:1/x:v1"] {
        let unknown = verify(reference);
        assert_eq!((unknown.code, unknown.out.as_str()), (2, ""), "{unknown:?}");
    }
    assert_eq!(s.addonfs(["verify", "--config", "gone.yaml", "good"]).code, 2);
}

/// Step by step, with the codes that the daemon gives.
#[test]
fn explain_walks_the_decision() {
    let s = Session::proxied();
    let good = s.publish("good", TOOLS);
    s.build("unsigned", &TOOLS.replace("test-tools", "unsigned"));
    let unsigned = s.reference("unsigned", &s.push("unsigned"));
    let sources = [
        ("good", good.as_str(), "mountPath: good"),
        ("unsigned", &unsigned, "mountPath: unsigned"),
        ("own", &unsigned, "mountPath: own\nverify_signatures: true"),
        ("distrusted", &good, "mountPath: distrusted\ntrusted: false"),
    ];
    s.configure("", &sources);
    let explain = |more: &str, reference: &str| {
        s.sh(&format!("{more} $ADDONFS policy explain --config addonfs.yaml -o json {reference}"))
    };
    let done = s.addonfs(["policy", "explain", "--config", "addonfs.yaml", "good"]);
    assert_eq!(done.code, 0, "{done:?}");
    for line in [
        "profile     secure (by policy.profile)",
        "signatures  required (by the profile)",
        "trusted     ok: ",
        "registry    ok: ",
        "trust       any of key cosign.pub (by policy.trust)",
        "signature   ok: signature 1 (.sig tag): by cosign.pub",
        "running     secure: jobs run",
        "decision    let in",
    ] {
        assert!(done.out.contains(line), "{line}: {done:?}");
    }
    s.mount();
    for name in ["unsigned", "own", "distrusted"] {
        let done = explain("", name);
        assert_eq!(done.code, 1, "{done:?}");
        let found = json(&done);
        assert_eq!(found["decision"], "denied");
        assert_eq!(found["code"], s.source(name)["code"], "the daemon says the same: {found}");
    }
    s.umount();
    assert_eq!(json(&explain("", "own"))["code"], "source-signature-invalid");

    // a registry that is not allowed is not asked, not even what a tag names
    let policy =
        |text: &str| s.write("addonfs.yaml", format!("policy: {{{text}, trust: {{keys: [cosign.pub]}}}}\n"));
    policy("allowed_registries: [ghcr.io/acme/*]");
    s.proxy().take_seen("");
    let by_digest = explain("", &good);
    assert_eq!((by_digest.code, &json(&by_digest)["code"]), (1, &"image.registry.not.allowed".into()));
    let by_tag = explain("", &format!("{}/org/good:v1", s.host()));
    assert!(by_tag.code == 1 && by_tag.err.contains("image.registry.not.allowed"), "{by_tag:?}");
    assert!(s.proxy().take_seen("").is_empty(), "nobody was asked");

    policy("profile: permissive, overrides: {profile: [disabled]}");
    let found = json(&explain("", &unsigned));
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(found["decision"], "allowed");
    assert!(
        steps
            .iter()
            .any(|step| step["outcome"] == "let-pass" && step["code"] == "image.signature.permissive")
    );
    let running = steps.last().unwrap()["words"].as_str().unwrap();
    assert!(running.contains("secure: nothing of it runs (image.registry.not.allowed)"), "{running}");
    // the environment tightens, as it does for the daemon
    let found = explain("FLWD_PROFILE=secure", &unsigned);
    assert_eq!((found.code, &json(&found)["code"]), (1, &"image.registry.not.allowed".into()));
    assert_eq!(explain("FLWD_PROFILE=disabled", "localhost:1/x:v1").code, 2);
}
