//! Secrets of a full run: planted where they belong, searched for everywhere else, with everything logged.

use std::path::Path;

use serde_json::json;

use crate::common::registry::{BASIC, DockerRegistry, Login};
use crate::common::session::{Session, TOOLS, eventually};

/// The secret argument of a job.
const TOKEN: &str = "planted-argument-5f2c";
/// The key's password, from the session's environment.
const PASSWORD: &str = "secret of the test";

/// Where the needles are planted.
const PLANTED: &[&str] = &["home/.docker/config.json", "wrong.json", "arguments.json"];

/// Files below the session's folder and the runtime directory that hold a needle and should not.
fn leaks(s: &Session, needles: &[String]) -> Vec<String> {
    s.write("needles", needles.join("\n"));
    let found =
        s.sh("grep -rlFf needles . /run/addonfs --exclude=needles --exclude-dir=rootfs 2>/dev/null").out;
    let planted = |file: &&str| PLANTED.iter().any(|planted| Path::new(file).ends_with(planted));
    found.lines().filter(|file| !planted(file)).map(str::to_owned).collect()
}

#[test]
fn a_full_run_leaves_no_secret_behind() {
    let mut s = Session::bare();
    s.registry = Some(DockerRegistry::start_with(&Login::Basic));
    let login = |password: &str| {
        let auth = s.sh(&format!("printf %s {}:{password} | base64 -w0", BASIC.0)).ok();
        (format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}", s.host()), auth)
    };
    let (config, auth) = login(BASIC.1);
    let (wrong, wrong_auth) = login("planted-guess-77aa");
    let needles: Vec<String> =
        [TOKEN, PASSWORD, BASIC.1, &auth, "planted-guess-77aa", &wrong_auth].map(str::to_owned).to_vec();
    s.write("home/.docker/config.json", config);
    s.write("wrong.json", wrong);
    s.addonfs(["keygen", "--output", "cosign"]).ok();
    let image = s.publish("tools", TOOLS);

    // Every word of every library goes to the log.
    let mount =
        "ADDONFS_LOG=trace $ADDONFS mount --config addonfs.yaml --state-dir state --cache-dir cache $M";
    s.configure("docker_config: wrong.json", &[("tools", &image, "mountPath: tools")]);
    s.sh(mount);
    assert_ne!(s.source("tools")["phase"], "ready");
    s.umount();
    s.configure("docker_config: home/.docker/config.json", &[("tools", &image, "mountPath: tools")]);
    s.sh(mount).ok();
    assert!(s.log().contains("TRACE"), "{}", s.log());

    let script = "wc -c < /run/secrets/token; cat /run/secrets/token >&2; exec sleep 600";
    s.write("arguments.json", json!({"script": script, "token": TOKEN}).to_string());
    let mut run = s.start("$M/tools/sh/run --args-json - < arguments.json");
    eventually("it runs", || s.sh("cat $M/tools/sh/runs/*/state").out.contains("running").then_some(()));
    // Neither words nor environment of anything that belongs to the run, but the container's own.
    for pid in s.processes() {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(TOKEN) && !text.contains(BASIC.1), "{file} of {pid}: {text}");
        }
    }
    assert_eq!(leaks(&s, &needles), Vec::<String>::new(), "while it runs");
    s.sh("for ctl in $M/tools/sh/runs/*/ctl; do echo cancel > $ctl; done").ok();
    eventually("it ends", || (!run.running()).then_some(()));

    // Refusals and errors name arguments, not their values.
    let refused = json!({"script": "true", "number": 0, "token": TOKEN}).to_string();
    let words = format!("printf '%s' '{refused}' | $M/tools/sh/run --args-json -");
    let done = s.sh(&words);
    assert!(done.code == 125 && !done.err.contains(TOKEN), "{done:?}");
    for command in [
        "status -o json",
        "runs",
        "jobs",
        "verify --config addonfs.yaml IMAGE",
        "policy explain --config addonfs.yaml IMAGE",
    ] {
        let done = s.sh(&format!("ADDONFS_LOG=trace $ADDONFS {}", command.replace("IMAGE", &image)));
        for needle in &needles {
            assert!(!done.out.contains(needle) && !done.err.contains(needle), "{command}: {done:?}");
        }
    }
    assert_eq!(leaks(&s, &needles), Vec::<String>::new(), "afterwards, still mounted");
    s.umount();
    assert_eq!(leaks(&s, &needles), Vec::<String>::new(), "in the end");
    // What is left is nobody else's to read either.
    assert_eq!(s.sh("find state cache -maxdepth 0 -perm /077").ok(), "");
}
