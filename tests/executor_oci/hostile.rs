//! Jobs that misbehave. Each must end, leave the host well, and leave nothing behind: `with_each_runtime` looks for
//! control groups, mounts, processes and pipes afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use addonfs::jobs::executor::{Cause, Stop};

use crate::ends::wait_for;
use crate::host::{running, with_each_runtime};

#[test]
fn children_that_nobody_reaps_go_with_process_one() {
    with_each_runtime(|host| {
        let script = "for i in 1 2 3 4 5 6 7 8; do sh -c 'true & exec sleep 61234' & done; echo ready; exec sleep 61235";
        let (dir, shim) = host.start(host.sh(script));
        wait_for(|| {
            running("sleep\x0061235") && fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s == "ready\n")
        });
        host.tokio
            .block_on(addonfs::jobs::executor::Executor::stop(&host.executor, &dir, &shim, Stop::Cancel))
            .expect("stop");
        let done = host.wait(&dir, &shim);
        assert_eq!(done.outcome.cause, Cause::Canceled);
        assert!(!running("sleep\x006123"), "a child outlived its container");
    });
}

#[test]
fn a_daemon_made_by_a_job_ends_with_the_job() {
    with_each_runtime(|host| {
        // Its own session, its parent gone, and the job's output still open in its hands.
        let done = host
            .run(host.sh("busybox setsid sh -c 'sleep 71234 & sleep 71234 &' & sleep 0.2; echo bye; exit 3"));
        assert_eq!(
            (done.outcome.cause, done.code(), done.stdout.as_str()),
            (Cause::Exited, Some(3), "bye\n")
        );
        assert!(!running("sleep\x0071234"), "it goes on");
    });
}

#[test]
fn a_fork_bomb_meets_its_limit_and_others_run_on() {
    with_each_runtime(|host| {
        let mut bomb = host.sh("bomb='sh -c \"$0\" \"$0\" & sh -c \"$0\" \"$0\" & wait'; sh -c \"$bomb\" \"$bomb\" & exec sleep 1000");
        bomb.pids = 40;
        bomb.timeout_ms = Some(1500);
        let (dir, shim) = host.start(bomb);
        wait_for(|| fs::read_to_string(dir.join("stderr")).is_ok_and(|s| s.contains("fork")));
        assert_eq!(host.run(host.spec(&["/bin/true"])).code(), Some(0), "the host is well meanwhile");
        let done = host.wait(&dir, &shim);
        assert_eq!(done.outcome.cause, Cause::Timeout, "{:?}", done.outcome);
    });
}

#[test]
fn a_full_writable_root_is_an_error_of_the_job() {
    with_each_runtime(|host| {
        let mut spec = host.sh("dd if=/dev/zero of=/fill bs=1M count=500; echo $?; i=0; while echo > /f$i; do i=$((i+1)); [ $i -lt 3 ] || break; done 2>/dev/null; echo alive");
        spec.read_only_root = false;
        spec.memory_bytes = Some(64 << 20);
        let done = host.run(spec);
        assert!(done.stderr.contains("No space left on device"), "{}\n{:?}", done.stderr, done.outcome);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(0), "1\nalive\n"), "{:?}", done.outcome);
        assert!(!done.outcome.oom_killed);
    });
}

#[test]
fn a_gigabyte_of_output_is_counted_and_not_kept() {
    const ALL: u64 = 1 << 30;
    with_each_runtime(|host| {
        let mut spec = host.sh("dd if=/dev/zero bs=1M count=1024 2>/dev/null; echo end >&2");
        spec.timeout_ms = Some(120_000);
        let done = host.run(spec);
        assert_eq!((done.code(), done.stderr.as_str()), (Some(0), "end\n"), "{:?}", done.outcome);
        // The file is as long as the output was; what was dropped takes no room.
        let kept = fs::metadata(done.dir.join("stdout")).expect("stdout");
        assert_eq!((kept.len(), done.outcome.log_dropped), (ALL, ALL - (1 << 20)));
        assert!(kept.blocks() * 512 <= 1 << 20, "{} blocks", kept.blocks());
    });
}

#[test]
fn memory_of_a_child_is_named_too() {
    with_each_runtime(|host| {
        let mut spec = host.sh("sh -c 'x=$(yes 0123456789abcdef | head -c 200000000)'; exit 9");
        spec.memory_bytes = Some(32 << 20);
        let done = host.run(spec);
        assert!(done.outcome.oom_killed && done.outcome.message.is_some(), "{:?}", done.outcome);
        let words = done.outcome.message.unwrap_or_default();
        assert!(words.contains("memory limit of 33554432 bytes"), "{words}");
    });
}

/// The program of an image may be what process 1 was before: it must not become the host's, to be written to.
#[test]
fn an_image_that_names_proc_self_exe_gets_no_program_of_the_host_to_write_to() {
    with_each_runtime(|host| {
        let before = fs::metadata(env!("CARGO_BIN_EXE_addonfs")).expect("program").len();
        let done = host.run(host.spec(&["/proc/self/exe", "__no_such_word"]));
        assert_ne!(done.code(), Some(0), "{:?} {}", done.outcome, done.stdout);
        assert_eq!(fs::metadata(env!("CARGO_BIN_EXE_addonfs")).expect("program").len(), before);
        assert_eq!(host.run(host.spec(&["/bin/true"])).code(), Some(0));
    });
}
