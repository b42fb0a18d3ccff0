//! `addonfs cache` with a daemon and without one, and pins.

use serde_json::Value;

use crate::common::session::{Done, Session, TOOLS, eventually};
use crate::network::large;

/// A command on the cache directory, whoever uses it.
fn cache(s: &Session, words: &[&str]) -> Done {
    let fixed = ["cache", "--config", "addonfs.yaml", "--cache-dir", "cache"];
    s.addonfs(fixed.into_iter().chain(words.iter().copied()))
}

#[track_caller]
fn list(s: &Session) -> Value {
    serde_json::from_str(&cache(s, &["ls", "-o", "json"]).ok()).unwrap()
}

/// The image of a source in a list.
fn image(list: &Value, source: &str) -> Value {
    let of = |image: &&Value| image["sources"].as_array().unwrap().iter().any(|name| name == source);
    list["images"].as_array().unwrap().iter().find(of).cloned().unwrap_or_default()
}

/// Changes a bit in the middle of the first file below a folder of the store.
#[track_caller]
fn flip(s: &Session, part: &str) {
    let found =
        s.sh(&format!("find cache/store/{part} -type f -size +0 ! -name learned | sort | head -n1")).ok();
    let path = s.path(found.trim_end());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn the_cache_is_looked_at_checked_pruned_and_pinned() {
    let s = Session::new();
    let tools = large(&s, 3);
    let other = s.publish("other", TOOLS);
    s.configure(
        "prefetch: {fill: false, profiles: false}",
        &[("tools", &tools, ""), ("other", &other, "mountPath: other")],
    );
    s.ready();

    let before = list(&s);
    let (of_tools, of_other) = (image(&before, "tools"), image(&before, "other"));
    assert_eq!(of_tools["presence"], "partial", "{before}");
    assert_eq!(of_tools["pinned"], false);
    let total = before["bytes"].as_u64().unwrap();
    assert_eq!(total, s.status()["store"]["bytes"].as_u64().unwrap());
    let both = of_tools["bytes"].as_u64().unwrap() + of_other["bytes"].as_u64().unwrap();
    assert_eq!(of_tools["shared_bytes"], of_other["shared_bytes"]);
    assert_eq!(both - of_tools["shared_bytes"].as_u64().unwrap(), total, "shared bytes count once: {before}");
    assert!(of_tools["last_use_ms"].as_u64().unwrap() > 1_700_000_000_000);
    let table = s.addonfs(["cache", "ls"]).ok();
    assert!(table.contains("tools") && table.contains("partial"), "{table}");

    assert!(cache(&s, &["unpin", "tools"]).refused().contains("not pinned"));
    assert!(cache(&s, &["pin", "nothing"]).refused().contains("neither a source nor a digest"));
    assert_eq!(cache(&s, &["pin", "tools"]).ok(), "pinned\n");
    eventually("a pin fills", || (image(&list(&s), "tools")["presence"] == "complete").then_some(()));
    assert!(s.status()["store"]["pinned_bytes"].as_u64().unwrap() > 3 << 20);

    // Damage is found and removed while a daemon uses the cache, and content comes again.
    cache(&s, &["verify"]).ok();
    flip(&s, "files");
    let damaged = cache(&s, &["verify"]);
    assert!(damaged.code == 1 && damaged.out.contains("damaged: file sha256:"), "{damaged:?}");
    cache(&s, &["verify"]).ok();
    let compare = "for n in 0 1 2; do cmp $M/tools/addon/large-$n.bin tools/large-$n.bin || exit 1; done";
    s.sh(compare).ok();
    s.umount();

    for part in ["files", "packs", "layers"] {
        flip(&s, part);
        assert_eq!(cache(&s, &["verify"]).code, 1, "{part}");
        cache(&s, &["verify"]).ok();
    }
    s.ready();
    s.sh(compare).ok();
    eventually("it is filled again", || (image(&list(&s), "tools")["presence"] == "complete").then_some(()));

    // What no source uses goes; what is pinned stays whatever is said.
    s.umount();
    s.configure("prefetch: {fill: false, profiles: false}", &[("tools", &tools, "")]);
    cache(&s, &["prune"]).ok();
    let pruned = list(&s);
    assert_eq!(pruned["images"].as_array().unwrap().len(), 1, "{pruned}");
    assert_eq!(pruned["other_bytes"], 0);
    cache(&s, &["prune", "--all"]).ok();
    let kept = image(&list(&s), "tools");
    assert_eq!((kept["presence"].as_str(), kept["pinned"].as_bool()), (Some("complete"), Some(true)));
    s.ready();
    assert_eq!(cache(&s, &["unpin", "tools"]).ok(), "unpinned\n");
    cache(&s, &["prune", "--to", "1"]).ok();
    assert!(s.status()["store"]["bytes"].as_u64().unwrap() < 1 << 20, "indexes stay");
    s.sh(compare).ok();
}

/// Pins of the configuration hold under a quota that everything else has to share.
#[test]
fn a_pinned_source_stays_under_a_small_quota() {
    let s = Session::new();
    let tools = large(&s, 4);
    s.addon("other", TOOLS);
    for number in 0..8 {
        s.write(&format!("other/big-{number}.bin"), crate::common::image::noise(100 + 2 * number, 1 << 20));
    }
    let other = s.publish("other", TOOLS);
    s.configure(
        "cache: {quota: 12Mi, keep_free: 0}\nprefetch: {fill: false, bandwidth: 64Mi}",
        &[("tools", &tools, "pin: true"), ("other", &other, "mountPath: other")],
    );
    s.ready();
    eventually("a pin fills", || (image(&list(&s), "tools")["presence"] == "complete").then_some(()));
    for _ in 0..2 {
        s.sh("for n in 0 1 2 3 4 5 6 7; do cmp $M/other/addon/big-$n.bin other/big-$n.bin || exit 1; done")
            .ok();
    }
    let (status, listed) = (s.status(), list(&s));
    assert!(status["store"]["evicted_items"].as_u64().unwrap() > 0, "{status}");
    assert!(status["store"]["bytes"].as_u64().unwrap() <= 12 << 20, "{status}");
    assert_eq!(status["store"]["warning"], Value::Null);
    assert_eq!(image(&listed, "tools")["presence"], "complete", "{listed}");
    assert!(s.cat(".addonfs/metrics").contains("addonfs_store_evictions_total"), "counted");
    assert!(cache(&s, &["unpin", "tools"]).refused().contains("pin: true"));

    s.umount();
    s.configure("cache: {quota: 3Mi, keep_free: 0}", &[("tools", &tools, "pin: true")]);
    s.ready();
    let warning =
        eventually("it does not fit", || s.status()["store"]["warning"].as_str().map(str::to_owned));
    assert!(warning.contains("cache.quota is 3Mi"), "{warning}");
    assert!(s.addonfs(["status"]).ok().contains("warning   pinned images need"));
}
