//! Taking a mount down while it is in use, and mounting where somebody is already.

use crate::common::fault_proxy::{ALWAYS, Fault};
use crate::common::image::noise;
use crate::common::session::{Session, TOOLS, eventually};

fn start(s: &Session, name: &str, script: &str) {
    s.write("args", serde_json::json!({ "script": script }).to_string());
    s.sh(&format!("mkdir $M/tools/sh/runs/{name} && cat args > $_/args.json && echo start stdin > $M/tools/sh/runs/{name}/ctl"))
        .ok();
    eventually("it runs", || (s.cat(&format!("tools/sh/runs/{name}/state")) == "running\n").then_some(()));
}

#[test]
fn live_runs_are_named_waited_for_or_canceled() {
    let s = Session::new().with_tools();
    start(&s, "one", "read x; echo waited; exit 4");
    start(&s, "two", "read x; exit 0");
    let refused = s.addonfs(["umount"]).refused();
    for part in ["tools/sh/runs/one", "tools/sh/runs/two", "--wait", "--cancel"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(s.cat("tools/sh/runs/one/state"), "running\n", "nothing happened");

    let waiting = s.start("$ADDONFS umount --wait");
    s.sh("echo > $M/tools/sh/runs/two/stdin").ok();
    eventually("the first has ended", || (s.cat("tools/sh/runs/two/state") == "succeeded\n").then_some(()));
    assert_eq!(s.mounts().len(), 3, "one still runs");
    s.sh("echo > $M/tools/sh/runs/one/stdin").ok();
    assert_eq!(waiting.finish().code, 0);
    assert!(s.mounts().is_empty() && s.processes().is_empty());

    s.ready();
    assert_eq!(s.cat("tools/sh/runs/one/stdout"), "waited\n");
    assert_eq!(s.cat("tools/sh/runs/one/exit_code"), "4\n");
    start(&s, "three", "trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.1; done");
    eventually("it is up", || (s.cat("tools/sh/runs/three/stdout") == "up\n").then_some(()));
    s.addonfs(["umount", "--cancel"]).ok();
    assert!(s.mounts().is_empty() && s.processes().is_empty());
    s.ready();
    assert_eq!(s.cat("tools/sh/runs/three/state"), "canceled\n");
    assert_eq!(s.cat("tools/sh/runs/three/stdout"), "up\ntold\n");
    assert_eq!(s.cat("tools/sh/runs/three/exit_code"), "9\n");
}

/// One reader waits for the network, one has everything: both end, and so does the unmount.
#[test]
fn readers_do_not_hang() {
    let s = Session::proxied();
    s.write("tools/large.bin", noise(5, 2 << 20));
    s.write("tools/other.bin", noise(6, 2 << 20));
    let image = s.publish("tools", TOOLS);
    s.configure("read: {deadline: 100s, stall_timeout: 100s}", &[("tools", &image, "")]);
    s.ready();
    s.umount();
    s.sh("rm -rf cache/store/files/* cache/store/packs/* cache/store/chunks/*").ok();
    s.ready();
    s.sh("cmp $M/tools/addon/other.bin tools/other.bin").ok();
    s.proxy().take_seen("");
    s.proxy().fail("GET", "/blobs/", ALWAYS, Fault::Stall(Some(100)));
    let stalled = s.start("cat $M/tools/addon/large.bin > got.large");
    let slow = s.start("exec 3< $M/tools/addon/other.bin; touch opened; until [ -e unmounted ]; do sleep 0.05; done; cat <&3 > got.other");
    eventually("both read", || {
        let waits = !s.proxy().take_seen("/blobs/").is_empty() || s.path("waits").exists();
        if waits {
            s.write("waits", "");
        }
        (waits && s.path("opened").exists()).then_some(())
    });
    s.umount();
    s.write("unmounted", "");
    assert_ne!(stalled.finish().code, 0, "it cannot have got what never came");
    let slow = slow.finish();
    let got = std::fs::read(s.path("got.other")).unwrap();
    assert!(noise(6, 2 << 20).starts_with(&got), "the rest or an error, never other bytes");
    assert!(slow.code == 0 && got.len() == 2 << 20 || slow.err.contains("cat:"), "{slow:?}");
    eventually("all are gone", || (s.processes().is_empty() && s.mounts().is_empty()).then_some(()));
}

#[test]
fn a_second_daemon_is_refused() {
    let s = Session::new().with_tools();
    let twice = s.mount().refused();
    assert!(twice.contains("is mounted already") && twice.contains("addonfs status"), "{twice}");
    let (state, cache) = (s.path("state"), s.path("cache2"));
    let elsewhere = s.addonfs([
        "mount",
        "--config",
        "addonfs.yaml",
        "--state-dir",
        state.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "N",
    ]);
    let elsewhere = elsewhere.refused();
    assert!(
        elsewhere.contains("in use by another addonfs") && elsewhere.contains("--state-dir"),
        "{elsewhere}"
    );
    let (state, cache) = (s.path("state2"), s.path("cache"));
    let words = [
        "mount",
        "--config",
        "addonfs.yaml",
        "--state-dir",
        state.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "N",
    ];
    let same_cache = s.addonfs(words).refused();
    assert!(same_cache.contains("cache"), "two daemons in one cache: {same_cache}");
    assert_eq!(s.mounts().len(), 3);
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo untouched'").ok(), "untouched\n");
    assert!(s.addonfs(["umount", "N"]).refused().contains("not an addonfs mount"));
    // two at once, each with its own
    let (state, cache) = (s.path("state3"), s.path("cache3"));
    let words = [
        "mount",
        "--strict",
        "--config",
        "addonfs.yaml",
        "--state-dir",
        state.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "N",
    ];
    s.addonfs(words).ok();
    s.sh("cmp N/tools/rootfs/etc/os-release $M/tools/rootfs/etc/os-release && N/tools/sh/run --script true")
        .ok();
    s.addonfs(["umount", "N"]).ok();
    assert_eq!(s.mounts().len(), 3);
}
