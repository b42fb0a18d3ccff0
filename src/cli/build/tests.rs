//! Built images as other tools see them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::policy::digest::Digest;

const MANIFEST: &str =
    "name: sample\nversion: 1.0.0\nentrypoints:\n  - id: backup\n    command: [/addon/backup.sh]\n";

fn sample(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub/empty")).unwrap();
    std::fs::write(dir.join("manifest.yaml"), MANIFEST).unwrap();
    std::fs::write(dir.join("backup.sh"), "#!/bin/sh\necho hi\n").unwrap();
    std::fs::set_permissions(dir.join("backup.sh"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::write(dir.join("sub").join("n".repeat(150)), "long").unwrap();
    std::fs::hard_link(dir.join("backup.sh"), dir.join("sub/same.sh")).unwrap();
    symlink(format!("../{}", "t".repeat(120)), dir.join("sub/link")).unwrap();
    std::fs::set_permissions(dir.join("sub/empty"), PermissionsExt::from_mode(0o1777)).unwrap();
}

#[derive(clap::Parser)]
struct Words {
    #[command(flatten)]
    args: BuildArgs,
}

fn args(words: &[&str]) -> BuildArgs {
    use clap::Parser as _;
    Words::parse_from([&["build"], words].concat()).args
}

async fn built(words: &[&str]) -> ExitCode {
    run(args(words)).await.unwrap()
}

fn tool(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn unpack(layout: &str, to: &Path) {
    tool("umoci", &["unpack", "--image", layout, &to.display().to_string()]);
}

/// What lies in a folder: name, mode, size, links, content.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else if metadata.is_dir() {
                folders.push(path.clone());
                String::new()
            } else {
                Digest::of(&std::fs::read(&path).unwrap()).to_string()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
            lines.push(format!("{name} {:o} {links} {} {content}", metadata.mode(), metadata.mtime()));
        }
    }
    lines.sort();
    lines
}

/// In every format the same input gives the same digest, and other tools unpack the same tree.
#[tokio::test]
async fn every_format_is_the_same_tree_to_other_tools() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, layouts) = (temp.path().join("sample"), temp.path().join("layouts"));
    sample(&dir);
    let noise: Vec<u8> = (0..1_300_000_u32).flat_map(|n| n.wrapping_mul(n ^ 0x9e37).to_le_bytes()).collect();
    std::fs::write(dir.join("noise"), noise).unwrap(); // several chunks, several frames
    std::fs::write(dir.join("none"), "").unwrap();
    let (mut diff_ids, mut trees) = (Vec::new(), Vec::new());
    for (format, suffix) in
        [("estargz", "+gzip"), ("zstd-chunked", "+zstd"), ("gzip", "+gzip"), ("zstd", "+zstd"), ("tar", "")]
    {
        let mut digests = Vec::new();
        for round in ["1", "2"] {
            let layout = layouts.join(format!("{format}{round}")).display().to_string();
            let words = [dir.to_str().unwrap(), "--output", &format!("oci:{layout}:v1"), "--format", format];
            assert_eq!(built(&words).await, ExitCode::SUCCESS);
            digests
                .push(tool("skopeo", &["inspect", "--format", "{{.Digest}}", &format!("oci:{layout}:v1")]));
        }
        assert_eq!(digests[0], digests[1], "the same input, the same digest");
        let image = format!("oci:{}:v1", layouts.join(format!("{format}1")).display());
        let manifest: serde_json::Value =
            serde_json::from_str(&tool("skopeo", &["inspect", "--raw", &image])).unwrap();
        let media_type = manifest["layers"][0]["mediaType"].as_str().unwrap();
        assert_eq!(media_type, format!("application/vnd.oci.image.layer.v1.tar{suffix}"));
        // skopeo checks the diff_id of what it decompresses
        let plain = format!("dir:{}", layouts.join(format!("{format}-plain")).display());
        tool("skopeo", &["copy", "-q", "--dest-decompress", &image, &plain]);
        let config: serde_json::Value =
            serde_json::from_str(&tool("skopeo", &["inspect", "--config", "--raw", &image])).unwrap();
        let diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned();
        let layer = layouts.join(format!("{format}-plain")).join(diff_id.trim_start_matches("sha256:"));
        assert!(layer.exists(), "{format}: {}", layer.display());
        diff_ids.push(diff_id);

        // umoci reads no zstd
        let unpacked = if suffix == "+zstd" {
            let gzip = layouts.join(format!("{format}-gzip")).display().to_string();
            let words = ["copy", "-q", "--dest-compress-format", "gzip", &plain, &format!("oci:{gzip}:v1")];
            tool("skopeo", &words);
            format!("{gzip}:v1")
        } else {
            image.trim_start_matches("oci:").to_owned()
        };
        let bundle = layouts.join(format!("{format}-bundle"));
        unpack(&unpacked, &bundle);
        let mut tree = listing(&bundle.join("rootfs"));
        if format == "estargz" {
            let before = tree.len();
            tree.retain(|line| !estargz::OWN_NAMES.iter().any(|name| line.starts_with(&format!("{name} "))));
            assert_eq!(before - tree.len(), 2, "the table of contents and a landmark");
        }
        trees.push(tree);
    }
    assert!(trees[0].len() >= 10, "{trees:?}");
    assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:#?}");
    assert!(diff_ids[1..].iter().all(|id| *id == diff_ids[1]), "{diff_ids:?}");
}

#[tokio::test]
async fn other_tools_read_what_is_built() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, out) = (temp.path().join("sample"), temp.path().join("out"));
    sample(&dir);
    let output = format!("oci:{}", out.display());
    let words = [
        dir.to_str().unwrap(),
        "--tag",
        "v1.0.0",
        "--output",
        &output,
        "--user",
        "1000:1000",
        "--workdir",
        "/work",
        "--env",
        "A=b",
        "--annotation",
        "org.opencontainers.image.revision=abc",
    ];
    assert_eq!(built(&words).await, ExitCode::SUCCESS);

    let bundle = temp.path().join("bundle");
    unpack(&format!("{}:v1.0.0", out.display()), &bundle);
    let addon = bundle.join("rootfs/addon");
    assert_eq!(std::fs::read_to_string(addon.join("manifest.yaml")).unwrap(), MANIFEST);
    let script = std::fs::metadata(addon.join("backup.sh")).unwrap();
    assert_eq!((script.mode() & 0o7777, script.mtime(), script.uid(), script.nlink()), (0o4755, 0, 0, 2));
    assert_eq!(std::fs::read_link(addon.join("sub/link")).unwrap().as_os_str().len(), 123);
    assert_eq!(std::fs::read_to_string(addon.join("sub").join("n".repeat(150))).unwrap(), "long");
    assert_eq!(std::fs::metadata(addon.join("sub/empty")).unwrap().mode() & 0o7777, 0o1777);

    let inspected = tool("skopeo", &["inspect", "--config", &format!("{output}:v1.0.0")]);
    let config: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(config["config"]["User"], "1000:1000");
    assert_eq!(config["config"]["WorkingDir"], "/work");
    assert_eq!(config["config"]["Env"], json!(["A=b"]));
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    let raw = tool("skopeo", &["inspect", "--raw", &format!("{output}:v1.0.0")]);
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(manifest["annotations"]["org.opencontainers.image.revision"], "abc");
    assert_eq!(manifest["annotations"]["org.opencontainers.image.version"], "1.0.0");
}

#[tokio::test]
async fn the_same_input_gives_the_same_digest() {
    let temp = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for name in ["a", "b"] {
        let dir = temp.path().join(name);
        sample(&dir);
        let out = temp.path().join(format!("{name}.oci"));
        let output = format!("oci:{}:v1", out.display());
        built(&[dir.to_str().unwrap(), "--output", &output]).await;
        digests.push(tool("skopeo", &["inspect", "--format", "{{.Digest}}", &output]));
    }
    assert_eq!(digests[0], digests[1]);
    let dir = temp.path().join("b");
    std::fs::set_permissions(dir.join("manifest.yaml"), PermissionsExt::from_mode(0o600)).unwrap();
    let output = format!("oci:{}:v1", temp.path().join("b.oci").display());
    built(&[dir.to_str().unwrap(), "--output", &output]).await;
    let changed = tool("skopeo", &["inspect", "--format", "{{.Digest}}", &output]);
    assert_ne!(digests[0], changed);
    // The tag moved: it does not name two images.
    assert_eq!(tool("umoci", &["ls", "--layout", temp.path().join("b.oci").to_str().unwrap()]), "v1\n");
}

#[tokio::test]
async fn a_list_of_what_is_read_first_is_part_of_the_digest() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, list) = (temp.path().join("sample"), temp.path().join("list"));
    sample(&dir);
    std::fs::write(&list, "/addon/sub/same.sh\n/bin/of-the-base\n").unwrap();
    let mut digests = Vec::new();
    for (nth, more) in [vec!["--first", list.to_str().unwrap()], vec![]].into_iter().enumerate() {
        let output = format!("oci:{}:v1", temp.path().join(nth.to_string()).display());
        let words = [&[dir.to_str().unwrap(), "--output", &output], more.as_slice()].concat();
        assert_eq!(built(&words).await, ExitCode::SUCCESS);
        digests.push(tool("skopeo", &["inspect", "--format", "{{.Digest}}", &output]));
        let bundle = temp.path().join(format!("bundle{nth}"));
        unpack(output.trim_start_matches("oci:"), &bundle);
        // Without a list there is the job's program to fetch ahead.
        assert!(bundle.join("rootfs/.prefetch.landmark").exists());
        let script = std::fs::metadata(bundle.join("rootfs/addon/backup.sh")).unwrap();
        assert_eq!((script.mode() & 0o7777, script.nlink()), (0o4755, 2));
    }
    assert_ne!(digests[0], digests[1]);
    let gone = temp.path().join("gone").display().to_string();
    let output = format!("oci:{}", temp.path().join("out").display());
    let refused =
        run(args(&[dir.to_str().unwrap(), "--output", &output, "--first", &gone])).await.unwrap_err();
    assert!(format!("{refused:#}").contains(&gone), "{refused:#}");
}

fn touch(file: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    std::fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
}

/// Installed software keeps its times, up to the one that a reproducible build names.
#[test]
fn times_are_kept_or_the_same() {
    let temp = tempfile::tempdir().unwrap();
    for (name, seconds) in [("old", 1_000), ("new", 3_000)] {
        std::fs::write(temp.path().join(name), name).unwrap();
        touch(&temp.path().join(name), seconds);
    }
    let own = |latest| Times::Own { latest };
    for (times, expected) in
        [(own(None), [3_000, 1_000]), (own(Some(2_000)), [2_000, 1_000]), (Times::All(7), [7, 7])]
    {
        let tree = Tree::walk(temp.path(), "", &[], times).unwrap();
        assert_eq!(tree.entries.iter().map(|entry| entry.mtime).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn a_base_and_a_rootfs_lie_below() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, rootfs) = (temp.path().join("sample"), temp.path().join("rootfs"));
    sample(&dir);
    std::fs::create_dir_all(rootfs.join("etc")).unwrap();
    std::fs::create_dir_all(rootfs.join("addon")).unwrap();
    std::fs::write(rootfs.join("etc/os-release"), "NAME=x\n").unwrap();
    touch(&rootfs.join("etc/os-release"), 1_700_000_000);
    std::fs::write(rootfs.join("addon/manifest.yaml"), "below\n").unwrap();
    let base = format!("oci:{}:base", temp.path().join("base").display());
    let words = [
        dir.to_str().unwrap(),
        "--output",
        &base,
        "--rootfs",
        rootfs.to_str().unwrap(),
        "--env",
        "A=1",
        "--env",
        "B=2",
    ];
    built(&words).await;
    // A base with Docker's media types, in a layout of Docker's making.
    let docker = temp.path().join("docker");
    tool("skopeo", &["copy", "-q", "--format", "v2s2", &base, &format!("dir:{}", docker.display())]);
    let again = format!("oci:{}:again", temp.path().join("again").display());
    tool("skopeo", &["copy", "-q", &format!("dir:{}", docker.display()), &again]);

    let output = format!("oci:{}:v2", temp.path().join("out").display());
    built(&[dir.to_str().unwrap(), "--output", &output, "--base", &again, "--env", "A=3"]).await;
    let bundle = temp.path().join("bundle");
    unpack(output.strip_prefix("oci:").unwrap(), &bundle);
    assert_eq!(std::fs::read_to_string(bundle.join("rootfs/etc/os-release")).unwrap(), "NAME=x\n");
    assert_eq!(std::fs::metadata(bundle.join("rootfs/etc/os-release")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(std::fs::read_to_string(bundle.join("rootfs/addon/manifest.yaml")).unwrap(), MANIFEST);
    let config: serde_json::Value =
        serde_json::from_str(&tool("skopeo", &["inspect", "--config", &output])).unwrap();
    assert_eq!(config["config"]["Env"], json!(["A=3", "B=2"]));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    assert_eq!(config["history"].as_array().unwrap().len(), 3);
    let raw: serde_json::Value =
        serde_json::from_str(&tool("skopeo", &["inspect", "--raw", &output])).unwrap();
    let below = tool("skopeo", &["inspect", "--format", "{{.Digest}}", &again]);
    assert_eq!(raw["annotations"]["org.opencontainers.image.base.digest"], below.trim());
    let wrong = [dir.to_str().unwrap(), "--output", &output, "--base", &again, "--platform", "linux/s390x"];
    assert!(format!("{:#}", run(args(&wrong)).await.unwrap_err()).contains("s390x"));
}

#[tokio::test]
async fn refuses_before_it_writes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("sample");
    sample(&dir);
    std::fs::write(dir.join("manifest.yaml"), "name: x\nversion: 1\nentrypoints: []\n").unwrap();
    let out = temp.path().join("out");
    let output = format!("oci:{}", out.display());
    assert_eq!(built(&[dir.to_str().unwrap(), "--output", &output]).await, ExitCode::FAILURE);
    assert!(!out.exists());
    std::fs::write(dir.join("manifest.yaml"), MANIFEST).unwrap();
    let inside = format!("oci:{}", dir.join("new/out").display());
    for words in [
        vec!["--output", &inside],
        vec!["--output", "ghcr.io/a/b"],
        vec!["--output", "oci:x:a", "--tag", "b"],
        vec!["--output", &output, "--env", "A"],
        vec!["--output", &output, "--workdir", "rel"],
    ] {
        assert!(
            run(args(&[&[dir.to_str().unwrap()], words.as_slice()].concat())).await.is_err(),
            "{words:?}"
        );
    }
    std::fs::write(dir.join(".wh.x"), "").unwrap();
    assert!(run(args(&[dir.to_str().unwrap(), "--output", &output])).await.is_err());
}
