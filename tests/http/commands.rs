//! `addonfs sources`, over the socket and over TCP.

use serde_json::Value;

use crate::common::session::{Session, TOOLS};

#[test]
fn a_source_from_the_command_line() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    let tag = image.split_once('@').unwrap().0;
    let hash = addonfs::policy::digest::Digest::of(b"a long secret").hex();
    let path =
        s.write("tokens.yaml", format!("tokens: [{{name: ci, sha256: {hash}, scopes: ['sources:read']}}]\n"));
    s.sh("chmod 600 tokens.yaml").ok();
    s.configure("http: {listen: '127.0.0.1:0', tokens: tokens.yaml}", &[]);
    s.ready();
    let refused = s.addonfs(["sources", "add", tag]);
    assert!(refused.code == 1 && refused.err.contains("source.trust.required"), "{refused:?}");
    let added =
        s.addonfs(["sources", "add", tag, "--trusted", "--mount-path", "a/b", "--key", "cosign.pub"]).ok();
    assert!(added.starts_with("added tools: ") && added.contains("@sha256:"), "{added}");
    assert_eq!(s.sh("$M/a/b/sh/run --script 'echo hello'").ok(), "hello\n");
    let again = s.addonfs(["sources", "add", tag, "--trusted", "--mount-path", "a/b", "-o", "json"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["mountPath"], "a/b");
    assert!(s.addonfs(["sources", "list"]).ok().contains("a/b"));
    assert!(s.addonfs(["sources", "reload", "tools"]).ok().starts_with("reloaded tools: "));
    let one: Value = serde_json::from_str(&s.addonfs(["sources", "get", "tools"]).ok()).unwrap();
    assert_eq!((&one["origin"], &one["trusted"]), (&"api".into(), &true.into()));
    // from elsewhere, as flowd's variables say
    let listen = s.status()["http"]["listen"].as_str().unwrap().to_owned();
    let remote = |token: &str, words: &str| {
        s.sh(&format!(
            "env -u ADDONFS_MOUNT FLWD_API=http://{listen} FLWD_TOKEN='{token}' $ADDONFS sources {words}"
        ))
    };
    assert!(remote("a long secret", "list").ok().contains("a/b"));
    assert!(remote("a long secret", "remove tools").refused().contains("sources:write"));
    assert!(remote("wrong", "list").refused().contains("unauthorized"));
    assert_eq!(s.addonfs(["sources", "remove", "tools"]).ok(), "removed tools\n");
    s.sh("test ! -e $M/a").ok();
    // A token is taken back by a reload.
    std::fs::write(&path, "tokens: []\n").unwrap();
    let refused = s.addonfs(["reload"]);
    assert!(refused.err.contains("lets nobody in"), "{refused:?}");
    let other = addonfs::policy::digest::Digest::of(b"another").hex();
    std::fs::write(&path, format!("tokens: [{{name: x, sha256: {other}, scopes: ['jobs:read']}}]\n"))
        .unwrap();
    s.addonfs(["reload"]).ok();
    assert!(remote("a long secret", "list").refused().contains("unauthorized"));
    s.sh("chmod 644 tokens.yaml").ok();
    assert!(s.addonfs(["reload"]).refused().contains("chmod 0600"));
}
