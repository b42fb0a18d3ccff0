//! Making, pushing and signing an add-on with the program's own commands, against a real registry; what comes out
//! is judged by skopeo and openssl.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use addonfs::policy::digest::Digest;
use common::registry::DockerRegistry;
use serde_json::Value;

const MANIFEST: &str =
    "name: backup-tools\nversion: 1.0.0\nentrypoints:\n  - id: backup\n    command: [/addon/backup.sh]\n";

/// Runs addonfs in `dir` with a password in the environment.
fn addonfs(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_addonfs"))
        .args(words)
        .current_dir(dir)
        .env("COSIGN_PASSWORD", "secret")
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim_end().to_owned()
}

fn refused(output: &Output, word: &str) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains(word), "{words}");
}

fn tool(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn sample(dir: &Path) {
    std::fs::create_dir(dir.join("sample")).unwrap();
    std::fs::write(dir.join("sample/manifest.yaml"), MANIFEST).unwrap();
    std::fs::write(dir.join("sample/backup.sh"), "#!/bin/sh\n").unwrap();
}

/// Whether `signature` (base64) over `payload` is by `key`, by another library's word.
fn openssl_agrees(dir: &Path, key: &str, payload: &[u8], signature: &str) -> bool {
    std::fs::write(dir.join("payload"), payload).unwrap();
    let mut decode = Command::new("base64")
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::fs::File::create(dir.join("signature")).unwrap())
        .spawn()
        .unwrap();
    decode.stdin.take().unwrap().write_all(signature.as_bytes()).unwrap();
    assert!(decode.wait().unwrap().success());
    Command::new("openssl")
        .args(["dgst", "-sha256", "-verify", key, "-signature", "signature", "payload"])
        .current_dir(dir)
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn from_a_folder_to_a_signed_image() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let registry = DockerRegistry::start();
    sample(dir);
    assert_eq!(out(&addonfs(dir, &["keygen", "--output", "cosign"])), "cosign.key\ncosign.pub");
    refused(&addonfs(dir, &["keygen", "--output", "cosign"]), "exists already");

    let built = out(&addonfs(dir, &["build", "./sample", "--tag", "v1.0.0", "--output", "oci:./sample.oci"]));
    let digest: Digest = built.parse().unwrap();
    let repository = format!("{}/org/backup-tools", registry.host());
    let tagged = format!("{repository}:v1.0.0");
    assert_eq!(out(&addonfs(dir, &["push", "oci:./sample.oci:v1.0.0", &tagged])), built);
    let again: Value = serde_json::from_str(&out(&addonfs(
        dir,
        &["push", "-o", "json", "oci:./sample.oci:v1.0.0", &tagged],
    )))
    .unwrap();
    assert_eq!((&again["blobs_copied"], &again["signatures"]), (&Value::from(0), &Value::from(false)));
    let pinned = format!("{tagged}@{digest}");
    assert_eq!(again["image"], pinned);
    let url = format!("docker://{tagged}");
    let seen = tool("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &url]);
    assert_eq!(seen.trim(), built);

    refused(&addonfs(dir, &["sign", "--key", "cosign.key", &tagged]), "has no digest");
    let absent = format!("{repository}@{}", Digest::of(b"absent"));
    refused(&addonfs(dir, &["sign", "--key", "cosign.key", &absent]), "nothing to sign");
    let signed = out(&addonfs(dir, &["sign", "--key", "cosign.key", &pinned]));
    let tag = format!("sha256-{}.sig", digest.hex());
    assert!(signed.starts_with(&format!("{repository}:{tag}@sha256:")), "{signed}");

    // A second signer adds to the first; the first, asked again, adds nothing.
    out(&addonfs(dir, &["keygen", "--output", "second"]));
    out(&addonfs(dir, &["sign", "--key", "second.key", &pinned]));
    assert_eq!(out(&addonfs(dir, &["sign", "--key", "cosign.key", &pinned])), "");
    let target = dir.join("copy");
    let url = format!("docker://{repository}:{tag}");
    tool("skopeo", &["copy", "-q", "--src-tls-verify=false", &url, &format!("dir:{}", target.display())]);
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(target.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for (layer, key, other) in
        [(&layers[0], "cosign.pub", "second.pub"), (&layers[1], "second.pub", "cosign.pub")]
    {
        assert_eq!(layer["mediaType"], "application/vnd.dev.cosign.simplesigning.v1+json");
        let blob = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let payload = std::fs::read(target.join(blob)).unwrap();
        let claim: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(claim["critical"]["image"]["docker-manifest-digest"], built);
        assert_eq!(claim["critical"]["identity"]["docker-reference"], repository);
        let signature = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().unwrap();
        assert!(openssl_agrees(dir, key, &payload, signature));
        assert!(!openssl_agrees(dir, other, &payload, signature));
    }
}

#[test]
fn a_layout_is_signed_in_place_and_pushed_with_its_signatures() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let registry = DockerRegistry::start();
    sample(dir);
    out(&addonfs(dir, &["keygen"]));
    let digest = out(&addonfs(dir, &["build", "sample", "--output", "oci:layout:v1"]));
    out(&addonfs(dir, &["sign", "--key", "cosign.key", &format!("oci:layout:v1@{digest}")]));
    let to = format!("{}/org/x", registry.host());
    let pushed: Value =
        serde_json::from_str(&out(&addonfs(dir, &["push", "-o", "json", "oci:layout:v1", &to]))).unwrap();
    assert_eq!(pushed["image"], format!("{to}:v1@{digest}"));
    assert_eq!(pushed["signatures"], true);
    let url = format!("docker://{to}:{}.sig", digest.replace(':', "-"));
    tool("skopeo", &["inspect", "--tls-verify=false", "--raw", &url]);
}

#[test]
fn mistakes_are_told_with_their_places() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    sample(dir);
    std::fs::write(dir.join("sample/manifest.yaml"), "name: x\nversion: latest\nentrypoints:\n  - id: A\n")
        .unwrap();
    let output = addonfs(dir, &["build", "sample", "--output", "oci:out"]);
    refused(&output, "sample/manifest.yaml: line 2, column 10");
    refused(&output, "line 4");
    assert!(!dir.join("out").exists());
    std::fs::write(dir.join("sample/manifest.yaml"), MANIFEST).unwrap();
    refused(&addonfs(dir, &["build", "sample", "--output", "ghcr.io/x/y"]), "oci:PATH");
    refused(&addonfs(dir, &["push", "oci:gone:v1", "127.0.0.1:1/x:v1"]), "gone");
    std::fs::write(dir.join("bad.key"), "x").unwrap();
    let image = format!("127.0.0.1:1/x@{}", Digest::of(b"x"));
    refused(&addonfs(dir, &["sign", "--key", "bad.key", &image]), "bad.key");
}
