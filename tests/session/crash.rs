//! `kill -9` of the daemon: whoever reads, waits or runs goes on. Of holder and daemon: a clean end, and a new start.

use std::fs;

use serde_json::json;

use crate::common::fault_proxy::{ALWAYS, Fault};
use crate::common::image::noise;
use crate::common::session::{Session, Started, TOOLS, eventually, kill9, parent};

/// Holds files open (large: read by the kernel itself where that works; mapped; small: read by the daemon) and reads
/// them and new ones again and again, comparing; prints a line a round; ends when `stop` exists.
const READER: &str = r#"
import mmap, os, sys
m, there = os.environ["M"] + "/tools/", os.getcwd() + "/"
pairs = [(open(m + a, "rb", 0), open(there + b, "rb").read()) for a, b in
    [("addon/large.bin", "tools/large.bin"), ("addon/data.txt", "tools/data.txt"), ("manifest.yaml", "tools/manifest.yaml")]]
mapped = mmap.mmap(pairs[0][0].fileno(), 0, prot=mmap.PROT_READ)
rounds = 0
while not os.path.exists("stop"):
    for file, content in pairs:
        file.seek(0)
        read = b""
        while piece := file.read(1 << 16): read += piece
        assert read == content, (file.name, len(read))
    assert mapped[:] == pairs[0][1]
    for a, b in [("rootfs/etc/os-release", "rootfs/etc/os-release"), ("addon/job.sh", "tools/job.sh")]:
        assert open(m + a, "rb").read() == open(b, "rb").read(), a
    assert os.stat(m + "rootfs/bin/busybox").st_size == os.stat("rootfs/bin/busybox").st_size
    assert "tools" in os.listdir(os.environ["M"])
    rounds += 1
    open("rounds", "w").write(str(rounds))
"#;

fn rounds(s: &Session) -> u64 {
    fs::read_to_string(s.path("rounds")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Kills the daemon and waits for the next one.
pub(crate) fn next_daemon(s: &Session) {
    let killed = s.daemon();
    let holder = parent(killed).unwrap();
    kill9(killed);
    let next = eventually("the next daemon", || Some(s.daemon()).filter(|pid| *pid != killed));
    assert_eq!(parent(next), Some(holder), "the holder starts it");
}

fn read_with(s: &Session) -> Started {
    s.write("reader.py", READER);
    let mut reader = s.start("python3 reader.py");
    eventually("the reader's first round", || {
        assert!(reader.running(), "the reader ended");
        (rounds(s) > 0).then_some(())
    });
    reader
}

#[test]
fn open_files_outlive_several_daemons() {
    let s = Session::new();
    s.write("tools/large.bin", noise(3, 3 << 20));
    let s = s.with_tools();
    s.sh("cmp $M/tools/addon/large.bin tools/large.bin").ok();
    let mut reader = read_with(&s);
    let numbers = s.sh("find $M/tools/ $M/tools/rootfs/ -printf '%i %P\\n'").ok();
    for _ in 0..4 {
        next_daemon(&s);
        let so_far = rounds(&s);
        eventually("two more rounds", || {
            assert!(reader.running(), "the reader ended: {}", s.log());
            (rounds(&s) > so_far + 1).then_some(())
        });
    }
    s.write("stop", "");
    let done = reader.finish();
    assert_eq!((done.code, done.err.as_str()), (0, ""), "no error, no wrong byte");
    assert_eq!(
        s.sh("find $M/tools/ $M/tools/rootfs/ -printf '%i %P\\n'").ok(),
        numbers,
        "the same inode numbers"
    );
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo on'").ok(), "on\n");
    s.umount();
    assert!(s.processes().is_empty() && s.mounts().is_empty());
}

/// Reads wait for the network when the daemon dies: the next one answers them. Who waits can be killed.
#[test]
fn a_read_that_waits_is_answered_by_the_next_daemon() {
    let s = Session::proxied();
    s.write("tools/large.bin", noise(4, 2 << 20));
    s.write("tools/other.bin", noise(5, 2 << 20));
    let image = s.publish("tools", TOOLS);
    s.configure("read: {deadline: 100s, stall_timeout: 100s}", &[("tools", &image, "")]);
    s.ready();
    s.umount();
    s.sh("rm -rf cache/store/files/* cache/store/packs/* cache/store/chunks/*").ok();
    s.ready();
    s.proxy().take_seen("");
    s.proxy().fail("GET", "/blobs/", ALWAYS, Fault::Stall(Some(100)));
    let reader = s.start("cmp $M/tools/addon/large.bin tools/large.bin");
    eventually("the read waits", || (!s.proxy().take_seen("/blobs/").is_empty()).then_some(()));
    let killed = s.start("cat $M/tools/addon/other.bin");
    eventually("another waits", || (!s.proxy().take_seen("/blobs/").is_empty()).then_some(()));
    killed.kill();
    let late = s.start("cmp $M/tools/addon/other.bin tools/other.bin");
    s.proxy().heal();
    next_daemon(&s);
    assert_eq!(late.finish().code, 0);
    let done = reader.finish();
    assert_eq!((done.code, done.err.as_str()), (0, ""));
}

/// A run, the `run` program that shows it, and a `wait` go on; nothing of the output is lost or doubled.
#[test]
fn a_running_job_is_adopted() {
    let s = Session::new().with_tools();
    let lines = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    // it goes on only when told, so that the kills certainly fall into its middle
    let script = "seq 1 500; until grep -q go $RUN_DIR/../go 2>/dev/null || read -t 1 x; do sleep 0.1; done; seq 501 1000; exit 5";
    let quoted = json!({ "script": script }).to_string();
    s.write("args.json", &quoted);
    let shown = s.start("(sleep 4; echo x) | $M/tools/sh/run -i --args-json @args.json");
    s.sh("mkdir $M/tools/sh/runs/files && cd $M/tools/sh/runs/files && cat $OLDPWD/args.json > args.json && echo 'start stdin' > ctl").ok();
    let waiting = s.start("$M/tools/sh/runs/files/wait");
    eventually("both run", || {
        let running = s.sh("cat $M/tools/sh/runs/*/state").out;
        (running == "running\nrunning\n").then_some(())
    });
    eventually("the first half", || (s.cat("tools/sh/runs/files/stdout") == lines(500)).then_some(()));
    let before = s.json("tools/sh/runs/files/record.json");
    for _ in 0..2 {
        next_daemon(&s);
    }
    let after = s.json("tools/sh/runs/files/record.json");
    assert_eq!(after["state"], "running", "{after}");
    assert_eq!((&after["id"], &after["started_ms"]), (&before["id"], &before["started_ms"]));
    s.sh("echo x > $M/tools/sh/runs/files/stdin").ok();
    let shown = shown.finish();
    assert_eq!((shown.code, shown.out.as_str(), shown.err.as_str()), (5, lines(1000).as_str(), ""));
    assert_eq!(waiting.finish().code, 5);
    assert_eq!(s.cat("tools/sh/runs/files/stdout"), lines(1000));
    let record = s.json("tools/sh/runs/files/record.json");
    assert_eq!((&record["state"], &record["exit_code"]), (&json!("failed"), &json!(5)));
    // the journal knows it after a proper restart too
    s.umount();
    s.ready();
    assert_eq!(s.json("tools/sh/runs/files/record.json"), record);
    assert_eq!(s.cat("tools/sh/runs/files/stdout"), lines(1000));
    assert_eq!(s.sh("$M/tools/sh/runs/files/wait").code, 5);
}

/// Only a new daemon can have a new spawner: the old one makes room, and what was asked meanwhile is done.
#[test]
fn spawner_killed() {
    let s = Session::new().with_tools();
    let daemon = s.daemon();
    let spawner = s.processes().into_iter().filter(|pid| parent(*pid) == Some(daemon)).find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|arg| arg == b"__spawner"))
    });
    kill9(spawner.expect("the daemon has a spawner"));
    eventually("the next daemon", || (s.daemon() != daemon).then_some(()));
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo on'").ok(), "on\n");
    assert!(s.log().contains("the spawner process ended"), "{}", s.log());
}

/// Nobody is left who could answer: readers get ENOTCONN and not a hang, and `mount` repairs it by itself. A run goes
/// on meanwhile.
#[test]
fn holder_and_daemon_killed_together() {
    let s = Session::new().with_tools();
    s.sh("cd $M/tools/sh/runs && mkdir long && echo '{\"script\":\"echo before; read x; echo after; exit 3\"}' > long/args.json && echo start stdin > long/ctl").ok();
    eventually("it runs", || (s.cat("tools/sh/runs/long/stdout") == "before\n").then_some(()));
    let daemon = s.daemon();
    let holder = parent(daemon).unwrap();
    kill9(holder);
    kill9(daemon);
    eventually("both are gone", || (!alive(holder) && !alive(daemon)).then_some(()));
    for script in ["ls $M", "cat $M/tools/rootfs/etc/os-release", "cat $M/.addonfs/status.json"] {
        let refused = s.sh(script).refused();
        assert!(refused.contains("Transport endpoint is not connected"), "{script}: {refused}");
    }
    let status = s.addonfs(["status"]).refused();
    assert!(status.contains("addonfs mount") && status.contains("addonfs umount"), "{status}");
    s.ready();
    s.sh("cmp $M/tools/rootfs/etc/os-release /etc/os-release").ok();
    assert_eq!(s.cat("tools/sh/runs/long/state"), "running\n");
    s.sh("echo x > $M/tools/sh/runs/long/stdin").ok();
    assert_eq!(s.sh("$M/tools/sh/runs/long/wait").code, 3);
    assert_eq!(s.cat("tools/sh/runs/long/stdout"), "before\nafter\n");
    assert_eq!(s.mounts().len(), 3, "no dead mount is left below: {:?}", s.mounts());

    // and `umount` clears a dead one
    let daemon = s.daemon();
    let holder = parent(daemon).unwrap();
    kill9(holder);
    kill9(daemon);
    eventually("both are gone", || (!alive(holder) && !alive(daemon)).then_some(()));
    s.umount();
    assert!(s.mounts().is_empty());
}

fn alive(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok()
}
