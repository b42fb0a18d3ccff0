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

/// Files for `/` with a shell.
fn rootfs(dir: &Path) {
    std::fs::create_dir_all(dir.join("rootfs/bin")).unwrap();
    std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
    for applet in ["sh", "echo", "env"] {
        std::os::unix::fs::symlink("busybox", dir.join("rootfs/bin").join(applet)).unwrap();
    }
}

fn json(output: &Output) -> Value {
    let words = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}: {words}"))
}

#[test]
fn what_init_writes_is_valid_builds_and_runs() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    rootfs(dir);
    assert_eq!(out(&addonfs(dir, &["init", "0123"])), "0123");
    refused(&addonfs(dir, &["init", "0123"]), "exists already");
    refused(&addonfs(dir, &["init", "../evil"]), "a-z");
    out(&addonfs(dir, &["init", "hello", "there/hello"]));
    out(&addonfs(dir, &["validate", "--strict", "0123", "there/hello/manifest.yaml"]));
    out(&addonfs(dir, &["build", "there/hello", "--rootfs", "rootfs", "--output", "oci:hello.oci:v1"]));
    let tested = addonfs(dir, &["test", "-o", "json", "--run", "oci:hello.oci:v1"]);
    let report = json(&tested);
    assert!(tested.status.success(), "{report:#}");
    assert_eq!(
        (&report["jobs"][0]["exit_code"], &report["jobs"][0]["args"]["who"]),
        (&0.into(), &"x".into())
    );
    assert!(String::from_utf8_lossy(&tested.stderr).contains("Hello, x"));
    // The image as a folder, unpacked.
    std::fs::create_dir_all(dir.join("rootfs/addon/bin")).unwrap();
    for name in ["manifest.yaml", "bin/hello.sh"] {
        std::fs::copy(dir.join("there/hello").join(name), dir.join("rootfs/addon").join(name)).unwrap();
    }
    let words = out(&addonfs(dir, &["test", "rootfs", "--args", "hello={\"who\":\"me\",\"times\":2}"]));
    assert!(words.starts_with("ok    hello: /addon/bin/hello.sh; planned with {\"who\":\"me\""), "{words}");
}

/// Each entrypoint is wrong in its own way.
#[test]
fn test_says_what_would_not_start() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    rootfs(dir);
    let programs = [
        ("plain.txt", "echo hi\n", 0o644),
        ("nothing.sh", "echo hi\n", 0o755),
        ("lost.sh", "#!/bin/bash\n", 0o755),
        ("dos.sh", "#!/bin/sh\r\n", 0o755),
        ("env.sh", "#!/bin/env python3\n", 0o755),
        ("secret.sh", "#!/bin/sh\n", 0o700),
        ("fails.sh", "#!/bin/sh\nexit 7\n", 0o755),
        ("fine.sh", "#!/bin/sh\n", 0o755),
    ];
    std::fs::create_dir_all(dir.join("x")).unwrap();
    let mut manifest = "name: x\nversion: 1.0.0\nentrypoints:\n".to_owned();
    for (name, content, mode) in programs {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join("x").join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        manifest += &format!("  - {{id: {name}, command: [/addon/{name}]}}\n");
    }
    manifest += "  - {id: gone, command: [/addon/gone.sh]}\n  - {id: path, command: [nothere]}\n";
    manifest += "  - {id: pattern, command: [echo], argspec: {type: object, required: [a], properties: {a: {type: string, pattern: '^[0-9]{3}$'}}}}\n";
    std::fs::write(dir.join("x/manifest.yaml"), manifest).unwrap();
    let words =
        ["test", "-o", "json", "--run", "--user", "1000", "--workdir", "/gone", "--rootfs", "rootfs", "x"];
    let output = addonfs(dir, &words);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    assert!(report["problems"][0].as_str().unwrap().contains("WORKDIR /gone"), "{report:#}");
    let output = addonfs(dir, &["test", "-o", "json", "--run", "--user", "1000", "--rootfs", "rootfs", "x"]);
    let report = json(&output);
    assert_eq!(report["problems"], serde_json::json!([]));
    let expected = [
        ("plain.txt", "not executable for USER 1000 (mode 0644)"),
        ("nothing.sh", "neither a program nor a script"),
        ("lost.sh", "/bin/bash is not in the image"),
        ("dos.sh", "\\r\\n"),
        ("env.sh", "python3 is in no folder of PATH"),
        ("secret.sh", "not executable for USER 1000"),
        ("fails.sh", "its run ended with 7"),
        ("gone", "/addon/gone.sh is not in the image"),
        ("path", "nothere is in no folder of PATH"),
        ("pattern", "--args 'pattern="),
    ];
    for job in report["jobs"].as_array().unwrap() {
        let id = job["id"].as_str().unwrap();
        let problems = job["problems"].as_array().unwrap();
        match expected.iter().find(|(known, _)| *known == id) {
            Some((_, words)) => assert!(problems[0].as_str().unwrap().contains(words), "{id}: {job:#}"),
            None => assert!(id == "fine.sh" && problems.is_empty() && job["exit_code"] == 0, "{job:#}"),
        }
    }
    assert_eq!(report["jobs"].as_array().unwrap().len(), expected.len() + 1);
    let image = ["test", "--user", "1", "oci:gone"];
    assert_eq!(addonfs(dir, &image).status.code(), Some(2));
}

/// A v1 manifest starts the image's ENTRYPOINT with the job's id.
#[test]
fn jobs_of_a_v1_manifest_start_the_entrypoint() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    rootfs(dir);
    std::fs::create_dir(dir.join("x")).unwrap();
    let manifest = "apiVersion: flwd.addon/v1\nkind: AddOn\nmetadata: {name: Example, id: example.addon, version: 1.2.3}\nrequires: {}\njobs:\n  - {id: example.job, name: J, summary: s, argspec: {args: [{name: mode, type: string, required: true, enum: [quick]}]}}\n";
    std::fs::write(dir.join("x/manifest.yaml"), manifest).unwrap();
    refused(&addonfs(dir, &["build", "x", "--output", "oci:x.oci"]), "ENTRYPOINT");
    let script = "[ \"$1 $ARG_MODE\" = 'example.job quick' ]";
    let entrypoint =
        ["--entrypoint", "/bin/sh", "--entrypoint", "-c", "--entrypoint", script, "--entrypoint", "sh"];
    let words = [&["test", "-o", "json", "--run", "--rootfs", "rootfs"][..], &entrypoint, &["x"]].concat();
    let output = addonfs(dir, &words);
    let report = json(&output);
    assert!(output.status.success(), "{report:#}");
    let command = serde_json::json!(["/bin/sh", "-c", script, "sh", "example.job"]);
    assert_eq!(report["jobs"][0]["command"], command);
}

#[test]
fn validate_answers_scripts() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    sample(dir);
    std::fs::write(dir.join("bad.yaml"), "name: x\nversion: v1.0.0\nentrypoints: [{id: a, comand: [/x]}]\n")
        .unwrap();
    std::fs::write(dir.join("odd.yaml"), format!("colour: blue\n{MANIFEST}")).unwrap();
    let code = |words: &[&str]| addonfs(dir, words).status.code().unwrap();
    for (words, expected) in [
        (&["validate", "sample"][..], 0),
        (&["validate", "odd.yaml"], 0),
        (&["validate", "--strict", "odd.yaml"], 1),
        (&["validate", "sample", "bad.yaml"], 1),
        (&["validate", "bad.yaml", "gone.yaml"], 2),
        (&["validate"], 2),
    ] {
        assert_eq!(code(words), expected, "{words:?}");
    }
    let output = addonfs(dir, &["validate", "bad.yaml"]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("bad.yaml:2:10: error: /version: "), "{words}");
    assert!(words.contains("did you mean command?"), "{words}");
    let found = json(&addonfs(dir, &["validate", "-o", "json", "bad.yaml", "odd.yaml"]));
    let pointers: Vec<&Value> =
        found[0]["problems"].as_array().unwrap().iter().map(|problem| &problem["pointer"]).collect();
    assert_eq!(pointers, ["/version", "/entrypoints/0/command", "/entrypoints/0/comand"]);
    assert_eq!((&found[0]["valid"], &found[1]["valid"]), (&false.into(), &true.into()));
    assert_eq!(found[1]["warnings"][0]["line"], 1);
    let schema = json(&addonfs(dir, &["schema"]));
    assert_eq!(schema["title"], "addonfs add-on manifest");
}

/// The shells' functions and the manual are what is installed.
#[test]
fn shells_complete_and_man_shows() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let job = dir.join("M/t/job");
    std::fs::create_dir_all(&job).unwrap();
    std::fs::create_dir_all(dir.join("M/.addonfs")).unwrap();
    std::fs::write(dir.join("M/.addonfs/jobs.json"), "[{\"id\": \"t/job\", \"name\": \"J\"}]").unwrap();
    std::fs::write(job.join("job.json"), "{}").unwrap();
    let argspec =
        r#"{"type": "object", "properties": {"mode": {"type": "string", "enum": ["quick", "full"]}}}"#;
    std::fs::write(job.join("argspec.json"), argspec).unwrap();
    let script = r#"
        source <(addonfs completion bash)
        complete -p addonfs > /dev/null || exit 9
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9; COMPREPLY=();
                _clap_complete_addonfs addonfs "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"; }
        ask addonfs valid
        ask addonfs run t
        ask addonfs run t/job --mo
        ask addonfs run t/job --mode ''
    "#;
    let program = Path::new(env!("CARGO_BIN_EXE_addonfs")).parent().unwrap().display().to_string();
    let path = format!("{program}:{}", std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["60", "bash", "-c", script])
        .env("PATH", path)
        .env("ADDONFS_MOUNT", dir.join("M"))
        .output()
        .unwrap();
    assert_eq!(out(&output), "validate\nt/job\n--mode\nquick full");
    for (shell, words) in [("zsh", "#compdef addonfs"), ("fish", "complete --keep-order")] {
        assert!(out(&addonfs(dir, &["completion", shell])).contains(words), "{shell}");
    }
    out(&addonfs(dir, &["man", "man1"]));
    let page = std::fs::read_to_string(dir.join("man1/addonfs-validate.1")).unwrap();
    assert!(page.contains("Exit codes") && page.contains("strict"), "{page}");
    let help = out(&addonfs(dir, &["--help"]));
    let commands = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  "));
    let names: Vec<&str> = names.filter_map(|line| line.split_once(' ').map(|(name, _)| name)).collect();
    assert!(names.contains(&"validate") && names.len() > 20, "{names:?}");
    for name in names.into_iter().filter(|name| !["", "help"].contains(name)) {
        assert!(dir.join(format!("man1/addonfs-{name}.1")).exists(), "{name} has no page");
    }
}
