//! The registry goes away, lies, breaks off, wants a login: reads are right or refused, and the reason is a file.

use crate::common::fault_proxy::{ALWAYS, Fault};
use crate::common::image::noise;
use crate::common::registry::{BASIC, DockerRegistry, Login};
use crate::common::session::{Session, TOOLS, eventually};

/// Bytes of each large file of [`large`].
const SIZE: usize = 1 << 20;

/// So many files further, nothing was fetched along with another: spans of a gzip layer decode to about 2 MiB.
const APART: u64 = 4;

/// An add-on whose layer has large files that do not compress.
pub(crate) fn large(s: &Session, files: u64) -> String {
    for number in 0..files {
        s.write(&format!("tools/large-{number}.bin"), noise(number + 1, SIZE));
    }
    s.write("tools/small.txt", "a small file\n");
    s.publish("tools", TOOLS)
}

/// Everything but the indexes is gone from the store.
fn lose_content(s: &Session) {
    s.sh("test -d cache/store/files && rm -rf cache/store/files/* cache/store/packs/* cache/store/chunks/*")
        .ok();
}

#[test]
fn what_was_read_once_needs_no_registry() {
    let mut s = Session::proxied();
    let image = large(&s, 2);
    s.configure("", &[("tools", &image, "")]);
    s.ready();
    let all = "cmp $M/tools/addon/large-0.bin tools/large-0.bin && cmp $M/tools/addon/large-1.bin tools/large-1.bin && \
               cmp $M/tools/rootfs/bin/busybox rootfs/bin/busybox && $M/tools/sh/run --script 'echo job'";
    assert_eq!(s.sh(all).ok(), "job\n");
    s.registry.as_mut().unwrap().stop();
    assert_eq!(s.sh(all).ok(), "job\n");
    s.umount();
    s.proxy().take_seen("");
    s.ready();
    assert_eq!(s.sh(all).ok(), "job\n");
    assert_eq!(s.sh("find $M/tools/rootfs/ | wc -l; addonfs=1").code, 0);
    assert_eq!(s.proxy().take_seen("").len(), 0, "a known image asks nobody");
}

/// Content that is gone from the store comes again by single ranges, and only what is read.
#[test]
fn lost_content_comes_again_by_ranges() {
    let s = Session::proxied();
    let image = large(&s, 8);
    s.configure("", &[("tools", &image, "")]);
    s.ready();
    s.umount();
    lose_content(&s);
    s.ready();
    s.proxy().take_seen("");
    s.sh("cmp <(tail -c 5000 $M/tools/addon/large-5.bin) <(tail -c 5000 tools/large-5.bin)").ok();
    let seen = s.proxy().take_seen("/blobs/");
    assert!(!seen.is_empty() && seen.iter().all(|request| request.range.is_some()), "{seen:?}");
    let bytes: u64 = seen.iter().map(|r| length(r.range.as_deref().unwrap())).sum();
    assert!(bytes < 5 * SIZE as u64, "a part of 8 MiB: {seen:?}");
    s.sh("for n in 0 1 2 3 4 5 6 7; do cmp $M/tools/addon/large-$n.bin tools/large-$n.bin || exit 1; done")
        .ok();
    s.sh("cat $M/tools/addon/small.txt | grep -x 'a small file' && cmp $M/tools/rootfs/bin/busybox rootfs/bin/busybox").ok();
    s.proxy().take_seen("");
    s.sh("cat $M/tools/addon/*.bin > /dev/null").ok();
    assert_eq!(s.proxy().take_seen("").len(), 0, "what came is kept");
}

fn length(range: &str) -> u64 {
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    to.parse::<u64>().unwrap() - from.parse::<u64>().unwrap() + 1
}

/// A small quota: content is evicted while mounted, and comes again.
#[test]
fn a_small_quota_is_kept() {
    let s = Session::proxied();
    let image = large(&s, 8);
    s.configure("cache: {quota: 4Mi, keep_free: 0}", &[("tools", &image, "")]);
    s.ready();
    for _ in 0..2 {
        s.sh(
            "for n in 0 1 2 3 4 5 6 7; do cmp $M/tools/addon/large-$n.bin tools/large-$n.bin || exit 1; done",
        )
        .ok();
    }
    let used = eventually("the store is within its quota", || {
        let status = s.status();
        let used = status["store"]["bytes"].as_u64().unwrap();
        (used <= 4 << 20).then_some(used)
    });
    assert!(used > 0);
    assert_eq!(s.sh("$M/tools/sh/run --script 'wc -c < /addon/large-3.bin'").ok(), format!("{SIZE}\n"));
}

/// One large file for each kind of trouble, read while it lasts and again when it is over.
#[test]
fn trouble_while_reading() {
    let s = Session::proxied();
    let image = large(&s, 8 * APART);
    s.configure("read: {deadline: 3s, stall_timeout: 2s}", &[("tools", &image, "")]);
    s.ready();
    s.umount();
    lose_content(&s);
    s.ready();
    let token = || vec![("WWW-Authenticate", "Basic realm=\"x\"".to_owned())];
    let answer = |status| Fault::Answer { status, headers: token(), body: String::new() };
    let later =
        Fault::Answer { status: 429, headers: vec![("Retry-After", "1".to_owned())], body: String::new() };
    // what must come out: the right bytes, or one of these words of strerror
    let cases: [(&str, usize, Fault, &[&str]); 8] = [
        ("Range is ignored", ALWAYS, Fault::IgnoreRange, &["", "Input/output error"]),
        ("cut off, always later", ALWAYS, Fault::Truncate(100_000), &[""]),
        ("cut off always", ALWAYS, Fault::Truncate(0), &["Connection timed out"]),
        ("wrong bytes", ALWAYS, Fault::Flip(100), &["Input/output error"]),
        ("401 once", 1, Fault::status(401), &["", "Permission denied"]),
        ("401 always", ALWAYS, answer(401), &["Permission denied"]),
        ("429 once", 1, later, &[""]),
        ("stall", ALWAYS, Fault::Stall(Some(500)), &["Connection timed out"]),
    ];
    for (at, (what, times, fault, outcomes)) in cases.into_iter().enumerate() {
        let number = at as u64 * APART;
        s.proxy().fail("GET", "/blobs/", times, fault);
        let read = s.sh(&format!("cat $M/tools/addon/large-{number}.bin | cmp - tools/large-{number}.bin"));
        let error =
            read.err.lines().find_map(|line| line.split("large-").nth(1)?.split(": ").nth(1)).unwrap_or("");
        assert!(outcomes.contains(&error), "{what}: {read:?}");
        assert_eq!(error.is_empty(), read.code == 0, "{what}: {read:?}");
        if !error.is_empty() {
            let why = s.cat(".addonfs/sources/tools/last_error");
            let status = s.source("tools");
            assert!(!why.is_empty(), "{what}: no words behind {error}: {status}");
            assert!(status["read_error"].is_object(), "{what}: {status}");
            assert!(s.cat(".addonfs/events.jsonl").contains("read.refused"), "{what}");
        }
        s.proxy().heal();
        s.sh(&format!("cmp $M/tools/addon/large-{number}.bin tools/large-{number}.bin")).ok();
    }
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo still'").ok(), "still\n");
}

/// The first fetch of an image meets trouble: it comes through what passes, and says what does not.
#[test]
fn trouble_while_mounting() {
    let s = Session::proxied();
    let image = large(&s, 3);
    s.configure("read: {stall_timeout: 1s}", &[("tools", &image, "")]);
    s.proxy().fail("GET", "/blobs/", 2, Fault::Truncate(70_000));
    s.proxy().fail("GET", "/manifests/", 1, Fault::status(503));
    s.ready();
    s.sh("cmp $M/tools/addon/large-2.bin tools/large-2.bin").ok();
    s.umount();
    s.sh("rm -rf cache").ok();

    // a byte of every blob is another one, always
    s.proxy().fail("GET", "/blobs/", ALWAYS, Fault::Flip(50));
    let mounted = s.mount_with(&["--strict"]);
    assert_eq!(mounted.code, 1);
    assert!(mounted.err.contains("tools") && mounted.err.contains("does not match sha256:"), "{mounted:?}");
    s.sh("test ! -e $M/tools/rootfs").ok();
    assert!(s.cat(".addonfs/discovery-errors").contains("does not match"));
    s.proxy().heal();
    s.addonfs(["pull", "tools"]).ok();
    s.sh("cmp $M/tools/addon/large-2.bin tools/large-2.bin").ok();
    assert_eq!(s.cat(".addonfs/discovery-errors"), "");
}

/// A registry with a login: the docker config file's is used, a wrong one is refused with words.
#[test]
fn a_registry_with_a_login() {
    let mut s = Session::bare();
    s.registry = Some(DockerRegistry::start_with(&Login::Basic));
    s.addonfs(["keygen", "--output", "cosign"]).ok();
    let login = |password: &str| {
        let auth = s.sh(&format!("printf %s {}:{password} | base64 -w0", BASIC.0)).ok();
        format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}", s.host())
    };
    s.write("home/.docker/config.json", login(BASIC.1));
    let image = s.publish("tools", TOOLS);
    s.write("wrong.json", login("guess"));
    s.configure("docker_config: wrong.json", &[("tools", &image, "")]);
    let mounted = s.mount();
    assert!(mounted.err.contains("tools") && mounted.err.contains("401"), "{mounted:?}");
    s.umount();
    s.configure("docker_config: home/.docker/config.json", &[("tools", &image, "")]);
    s.ready();
    s.umount();
    let left = s.sh("grep -rlF -e s3cret -e \"$(printf %s robot:s3cret | base64 -w0)\" state cache").out;
    assert_eq!(left, "", "credentials are written nowhere");
}
