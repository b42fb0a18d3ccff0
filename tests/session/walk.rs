//! The session of the README line by line; and who walks the whole mount starts nothing.

use serde_json::json;

use crate::common::session::{Session, TOOLS};

#[test]
fn the_session_line_by_line() {
    let s = Session::new();
    let host = s.host();
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sample"), s.path("sample"))
        .unwrap();
    assert_eq!(
        s.sh("stat -c %a cosign.key cosign.pub; head -1 cosign.key; head -1 cosign.pub").ok(),
        "600\n644\n-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n-----BEGIN PUBLIC KEY-----\n"
    );
    let build = "build ./sample --rootfs rootfs --tag v1.0.0 --output oci:./sample.oci -o json";
    let built = s.addonfs(build.split(' ')).ok();
    let again = s.addonfs(build.replace("sample.oci", "again.oci").split(' ')).ok();
    let digest = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["digest"].clone();
    assert_eq!(digest(&built), digest(&again), "same input, same digest");

    let image = format!("{host}/org/backup-tools");
    let pushed = s.addonfs(["push", "oci:./sample.oci:v1.0.0", &format!("{image}:v1.0.0")]).ok();
    assert_eq!(json!(pushed.trim()), digest(&built));
    let pinned = format!("{image}@{}", pushed.trim());
    s.addonfs(["sign", "--key", "cosign.key", &pinned]).ok();
    s.configure("", &[("backup", &format!("{image}:v1.0.0@{}", pushed.trim()), "mountPath: tools/backup")]);

    let mounted = s.mount_with(&["--strict"]);
    assert_eq!((mounted.code, mounted.out.as_str(), mounted.err.as_str()), (0, "", ""));
    let listing = s.sh("ls -l $M/tools/backup").ok();
    for part in
        ["-r--r--r--", "manifest.yaml", "rootfs -> ../../.addonfs/images/sha256-", "addon -> rootfs/addon"]
    {
        assert!(listing.contains(part), "{part}: {listing}");
    }
    s.sh("cmp $M/tools/backup/manifest.yaml sample/manifest.yaml").ok();
    s.sh("cmp $M/tools/backup/rootfs/etc/os-release /etc/os-release").ok();
    assert!(!s.sh("ls $M/.addonfs").ok().contains("images"), "answers to its name, is not listed");
    assert_eq!(
        s.sh("jq -r .argspec.properties.compression.default $M/tools/backup/backup/job.json").ok(),
        "zstd\n"
    );
    let run = s.sh("$M/tools/backup/backup/run --database app --s3-bucket b; echo $?");
    assert_eq!(run.out, "backing up app to s3://b with zstd\ndone\n0\n");
    assert_eq!(run.err, "no token given\n");

    let nightly = "mkdir $M/tools/backup/backup/runs/nightly && cd $_ && \
        echo '{\"database\":\"app\",\"s3_bucket\":\"b\"}' > args.json && echo start > ctl && ./wait; echo $?; cat state; \
        jq -c . out/report.json";
    assert_eq!(s.sh(nightly).ok(), "0\nsucceeded\n{\"database\":\"app\",\"rows\":42}\n");
    let record = s.json("tools/backup/backup/runs/nightly/record.json");
    assert_eq!(record["exit_code"], 0);
    assert_eq!(record["origin"]["addon_image_digest"], json!(pushed.trim()));
    assert_eq!(record["origin"]["source_name"], "backup");
    assert_eq!(record["args"], json!({"database": "app", "s3_bucket": "b", "compression": "zstd"}));
    assert_eq!(record["trust"]["state"], "verified");

    let status = s.addonfs(["status"]).ok();
    assert!(status.contains("backup") && status.contains("ready"), "{status}");
    let status: serde_json::Value = serde_json::from_str(&s.addonfs(["status", "-o", "json"]).ok()).unwrap();
    assert_eq!(status["settled"], true);
    s.umount();
    assert_eq!(s.mounts(), Vec::<std::path::PathBuf>::new());
    assert_eq!(s.processes(), Vec::<i32>::new(), "nobody stays behind");
}

/// `find`, `grep -r`, `rsync -a`, `tar c`: they end, and neither a layer is fetched nor a job started.
#[test]
fn walking_the_mount_starts_nothing() {
    let s = Session::proxied();
    let image = s.publish("tools", TOOLS);
    let lazy = s.publish("lazy", &TOOLS.replace("test-tools", "lazy-tools"));
    s.configure(
        "",
        &[
            ("tools", &image, "mountPath: tools"),
            ("lazy", &lazy, "mountPath: deep/below/lazy\npull_policy: on-run"),
        ],
    );
    assert_eq!(s.mount().code, 0);
    s.proxy().take_seen("");
    let events = s.cat(".addonfs/events.jsonl");
    let jobs = s.cat(".addonfs/jobs.json");
    let phase = s.source("lazy")["phase"].clone();

    let found = s.sh("find $M").ok();
    assert!(found.lines().count() > 60 && !found.contains("os-release"), "{found}");
    let grep = s.sh("grep -r test-tools $M");
    assert!(grep.out.contains("tools/manifest.yaml:name: test-tools"), "{grep:?}");
    let copied = s.sh("mkdir d && rsync -a $M/ d/ && cmp d/tools/manifest.yaml tools/manifest.yaml && cat d/tools/sh/argspec.json");
    assert_eq!(copied.err, "");
    assert_eq!(copied.ok(), s.cat("tools/sh/argspec.json"), "exact sizes: nothing was cut off");
    assert!(s.sh("tar c -C $M . | tar t | wc -l").ok().trim().parse::<u32>().unwrap() > 60);
    s.sh("ls -lR $M > /dev/null; du -s $M; stat -f $M").ok();

    assert_eq!(s.proxy().take_seen("").len(), 0, "the registry was asked");
    assert_eq!(s.cat(".addonfs/events.jsonl"), events);
    assert_eq!(s.cat(".addonfs/jobs.json"), jobs);
    assert_eq!(s.source("lazy")["phase"], phase);
    assert_eq!(s.sh("ls $M/tools/sh/runs $M/deep/below/lazy/sh/runs | grep -v runs").out.trim(), "");

    // who says that he wants to walk an image does
    let walked = s.sh("find $M/tools/rootfs/ -type f; grep -R --include=passwd -h root $M/tools").ok();
    assert!(walked.contains("etc/os-release") && walked.contains("root:x:0:0"), "{walked}");
}
