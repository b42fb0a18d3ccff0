//! What is refused does not appear, everything else does, and the reason stands wherever a user looks.

use std::fs;

use serde_json::Value;

use crate::common::session::{Session, TOOLS};

const NOBODY: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

const WRONG: &str = "name: wrong\nversion: 1.0.0\nentrypoints:\n  - id: a/b\n    comand: [x]\n  - id: twice\n    \
                     command: [x]\n  - id: twice\n    command: [x]\n";

/// Every way to be refused beside one that is fine, in one mount.
#[test]
fn each_refusal_is_told_everywhere() {
    let s = Session::new();
    let good = s.publish("good", TOOLS);
    let named = |name: &str| TOOLS.replace("test-tools", name);
    s.build("unsigned", &named("unsigned"));
    let unsigned = s.reference("unsigned", &s.push("unsigned"));
    s.build("stranger", &named("stranger"));
    let stranger = s.push("stranger");
    s.addonfs(["keygen", "--output", "other"]).ok();
    s.addonfs(["sign", "--key", "other.key", &format!("{}/org/stranger@{stranger}", s.host())]).ok();
    let wrong = by_umoci(&s, "wrong", Some(WRONG));
    let empty = by_umoci(&s, "empty", None);
    let sources = [
        ("good", good.as_str(), "mountPath: good"),
        ("elsewhere", &format!("registry.example.com/org/x:v1@{NOBODY}"), "mountPath: elsewhere"),
        ("unsigned", &unsigned, "mountPath: unsigned"),
        ("stranger", &s.reference("stranger", &stranger), "mountPath: stranger"),
        ("distrusted", &good, "mountPath: distrusted\ntrusted: false"),
        ("wrong", &wrong, "mountPath: wrong"),
        ("empty", &empty, "mountPath: empty"),
        ("gone", &s.reference("good", NOBODY), "mountPath: gone"),
        ("rival", &good, "mountPath: good/sh/below"),
    ];
    s.configure("", &sources);
    let expected: [(&str, &str, &[&str]); 8] = [
        ("elsewhere", "image.registry.not.allowed", &["registry.example.com", "allowed_registries"]),
        ("unsigned", "image.signature.required", &["addonfs sign"]),
        ("stranger", "image.signature.required", &["key"]),
        ("distrusted", "source.trust.required", &["trusted: true"]),
        (
            "wrong",
            "E_ADDON_MANIFEST",
            &["line 4, column 9", "line 5, column 5", "did you mean command?", "line 8, column 9"],
        ),
        ("empty", "E_ADDON_MANIFEST", &["/addon/manifest.yaml"]),
        ("gone", "image.signature.required", &[]),
        ("rival", "source.mountpath.conflict", &["good", "rival"]),
    ];

    let mounted = s.mount();
    assert_eq!(mounted.code, 0, "a warning for each, and the others appear: {mounted:?}");
    let discovery = s.cat(".addonfs/discovery-errors");
    let table = s.addonfs(["status"]).ok();
    let events = s.cat(".addonfs/events.jsonl");
    for (name, code, words) in expected {
        let status = s.source(name);
        assert_eq!(status["code"], code, "{status}");
        assert_eq!(status["ready"], false);
        let message = status["message"].as_str().unwrap().to_owned();
        for word in words {
            assert!(message.contains(word), "{name}: {word:?} is not in {message}");
        }
        let first = message.lines().next().unwrap();
        for (place, text) in [("mount", &mounted.err), ("discovery-errors", &discovery), ("status", &table)] {
            assert!(
                text.lines().any(|l| l.contains(name) && l.contains(code) && l.contains(first)),
                "{name} in {place}: {text}"
            );
        }
        assert!(s.cat(&format!(".addonfs/sources/{name}/last_error")).contains(code));
        assert!(
            events.lines().any(|l| l.contains("source.refused")
                && l.contains(&format!("\"{name}\""))
                && l.contains(code)),
            "{events}"
        );
        s.sh(&format!("test ! -e $M/{name}")).ok();
    }
    assert_eq!(discovery.lines().count(), expected.len(), "{discovery}");
    assert_eq!(s.source("good")["ready"], true);
    assert_eq!(s.sh("$M/good/sh/run --script 'echo fine'").ok(), "fine\n");
    assert_eq!(s.sh("cd $M && ls").ok(), "good\n");

    s.umount();
    let strict = s.mount_with(&["--strict", "-o", "json"]);
    assert_eq!(strict.code, 1);
    let status: Value = serde_json::from_str(&strict.out).unwrap();
    assert_eq!(status["sources"].as_array().unwrap().len(), sources.len());
    // what is signed now comes when asked for
    s.sign("unsigned", unsigned.rsplit('@').next().unwrap());
    s.addonfs(["pull", "unsigned"]).ok();
    assert_eq!(s.source("unsigned")["ready"], true);
    assert_eq!(s.sh("$M/unsigned/sh/run --script 'echo late'").ok(), "late\n");
    let refused = s.addonfs(["pull", "stranger"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("image.signature.required"), "{refused:?}");
    assert!(s.addonfs(["pull", "nobody"]).refused().contains("addonfs status"));
}

/// An image that our own `build` would not make; signed. With this manifest, or without any.
fn by_umoci(s: &Session, name: &str, manifest: Option<&str>) -> String {
    s.write(&format!("{name}/other.txt"), "something\n");
    if let Some(manifest) = manifest {
        s.write(&format!("{name}/manifest.yaml"), manifest);
        let output = format!("oci:{name}-unbuilt.oci");
        let refused = s.addonfs(["build", name, "--output", &output]).refused();
        assert!(refused.contains("line 5, column 5") && refused.contains("E_ADDON_MANIFEST"), "{refused}");
    }
    let to = if manifest.is_some() { "/addon" } else { "/other" };
    s.sh(&format!(
        "umoci init --layout {name}.oci && umoci new --image {name}.oci:v1 && \
         umoci insert --image {name}.oci:v1 {name} {to} 2>&1"
    ))
    .ok();
    let digest = s.push(name);
    s.sign(name, &digest);
    s.reference(name, &digest)
}

#[test]
fn a_wrong_configuration_mounts_nothing() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    let untied = image.split('@').next().unwrap();
    s.configure("cach: {}", &[("tools", untied, "mountPath: tools\nmontPath: x")]);
    let refused = s.mount();
    assert_eq!(refused.code, 1);
    for part in [
        "E_CONFIG",
        "addonfs.yaml",
        "/cach: unknown key",
        "did you mean cache?",
        "no digest",
        "did you mean mountPath?",
    ] {
        assert!(refused.err.contains(part), "{part}: {refused:?}");
    }
    assert!(s.mounts().is_empty() && s.processes().is_empty());
    assert!(s.addonfs(["mount", "--config", "nowhere.yaml", "M"]).refused().contains("nowhere.yaml"));
    s.configure("", &[("tools", &image, "")]);
    fs::remove_file(s.path("cosign.pub")).unwrap();
    assert!(s.mount().refused().contains("cosign.pub"));

    // the same keys in a file that belongs to flowd too are only warned of
    s.write("cosign.pub", s.sh("cp cosign.key k.key; true").out);
    s.addonfs(["keygen", "--output", "new"]).ok();
    s.addonfs(["sign", "--key", "new.key", &image.replace(":v1@", "@")]).ok();
    s.write(
        "flwd.yaml",
        format!(
            "version: 1\nserver: {{listen: ':8080'}}\npolicy:\n  profile: secure\n  allowed_registries: ['*']\n  \
             trust: {{keys: [new.pub]}}\nsources:\n  - {{name: here, type: local, path: ./jobs}}\n  \
             - {{name: tools, type: oci, ref: 'oci://{image}', mountPath: tools, color: red}}\n"
        ),
    );
    let at = s.mount_point();
    let (state, cache) = (s.path("state"), s.path("cache"));
    let words = ["mount", "--strict", "--config", "flwd.yaml", "--state-dir", state.to_str().unwrap()];
    let mounted =
        s.addonfs(words.into_iter().chain(["--cache-dir", cache.to_str().unwrap(), at.to_str().unwrap()]));
    assert_eq!(mounted.code, 0, "{mounted:?}");
    for key in ["version", "server", "local", "color", "oci://"] {
        assert!(mounted.err.lines().any(|l| l.contains("warning") && l.contains(key)), "{key}: {mounted:?}");
    }
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo flowd'").ok(), "flowd\n");
}
