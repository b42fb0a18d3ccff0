//! How runs end: by themselves, by signal, by timeout, by cancel, by lack of memory, with their shim killed.

use std::fs;
use std::time::{Duration, Instant};

use addonfs::jobs::executor::{Cause, Executor, ShimId, Stop};
use addonfs::jobs::oci::{OciExecutor, OciOptions, sweep};

use crate::host::{Host, control_groups, spawner, with_each_runtime};

#[test]
fn exit_codes_and_both_streams() {
    with_each_runtime(|host| {
        let done = host.run(host.sh("echo to out; echo to err >&2; exit 7"));
        assert_eq!((done.outcome.cause, done.code(), done.outcome.signal), (Cause::Exited, Some(7), None));
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("to out\n", "to err\n"));
        assert!(done.outcome.started_ms.is_some_and(|s| s <= done.outcome.ended_ms));
        assert!(done.outcome.cpu_usec.is_some_and(|c| c > 0), "{:?}", done.outcome);
        assert!(done.outcome.memory_peak.is_some_and(|m| m > 0), "{:?}", done.outcome);
        assert_eq!(host.run(host.spec(&["true"])).code(), Some(0), "found in PATH");
    });
}

#[test]
fn what_cannot_be_executed_is_126_or_127_as_in_a_shell() {
    with_each_runtime(|host| {
        let missing = host.run(host.spec(&["/bin/nosuch"]));
        assert_eq!(
            (missing.outcome.cause, missing.code()),
            (Cause::Exited, Some(127)),
            "{:?}",
            missing.outcome
        );
        assert_eq!(missing.stderr, "addonfs: /bin/nosuch: not found in the image\n");
        assert_eq!(host.run(host.spec(&["nosuch"])).code(), Some(127));
        let text = host.run(host.spec(&["/not-executable"]));
        assert_eq!(text.code(), Some(126), "{:?}", text.outcome);
    });
}

#[test]
fn a_missing_user_or_image_is_refused_with_words() {
    with_each_runtime(|host| {
        let mut spec = host.sh("true");
        spec.user = "nobody-there".to_owned();
        let done = host.run(spec);
        assert_eq!(done.outcome.cause, Cause::Refused);
        assert!(
            done.outcome.message.as_deref().is_some_and(|m| m.contains("nobody-there")),
            "{:?}",
            done.outcome
        );
        let mut spec = host.sh("true");
        spec.rootfs = "/no/such/image".into();
        let done = host.run(spec);
        assert_eq!(done.outcome.cause, Cause::Refused);
        assert!(
            done.outcome.message.as_deref().is_some_and(|m| m.contains("/no/such/image")),
            "{:?}",
            done.outcome
        );
    });
}

#[test]
fn a_signal_it_gives_itself_and_one_from_outside() {
    with_each_runtime(|host| {
        // A subshell is no process 1, so the signal has its ordinary effect on it.
        let done = host.run(host.sh("sh -c 'kill -SEGV $$'; exit $?"));
        assert_eq!(done.code(), Some(139));

        let (dir, shim) =
            host.start(host.sh("trap 'echo got usr1' USR1; echo ready; while :; do sleep 0.05; done"));
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        stop(host, &dir, &shim, Stop::Signal(10));
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("got usr1")));
        // HUP is not caught: a process 1 would ignore it, everybody else would die of it.
        stop(host, &dir, &shim, Stop::Signal(1));
        let done = host.wait(&dir, &shim);
        assert_eq!(
            (done.outcome.cause, done.code(), done.outcome.signal),
            (Cause::Exited, Some(129), Some(1))
        );
    });
}

#[test]
fn timeout_and_cancel_take_what_ignores_them_too() {
    with_each_runtime(|host| {
        let mut spec = host.sh("trap '' TERM; sleep 1000 & echo ready; wait; sleep 1000");
        spec.timeout_ms = Some(400);
        spec.grace_ms = 200;
        let done = host.run(spec);
        assert_eq!((done.outcome.cause, done.code()), (Cause::Timeout, Some(137)), "{:?}", done.outcome);

        let (dir, shim) = host.start(host.sh("trap '' TERM; echo ready; sleep 1000"));
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        stop(host, &dir, &shim, Stop::Cancel);
        let done = host.wait(&dir, &shim);
        assert_eq!((done.outcome.cause, done.outcome.signal), (Cause::Canceled, Some(9)));
        assert_eq!(done.stdout, "ready\n");
    });
}

#[test]
fn cancel_lets_a_handler_finish_and_ends_plain_processes_at_once() {
    with_each_runtime(|host| {
        let mut spec = host.sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
        spec.grace_ms = 20_000;
        let (dir, shim) = host.start(spec);
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        stop(host, &dir, &shim, Stop::Cancel);
        let done = host.wait(&dir, &shim);
        assert_eq!(
            (done.outcome.cause, done.code(), done.stdout.as_str()),
            (Cause::Canceled, Some(3), "ready\nbye\n")
        );

        let mut spec = host.spec(&["/bin/sleep", "1000"]);
        spec.grace_ms = 60_000;
        let (dir, shim) = host.start(spec);
        stop(host, &dir, &shim, Stop::Cancel); // at once: before the container is up
        let begin = Instant::now();
        let done = host.wait(&dir, &shim);
        assert_eq!(done.outcome.cause, Cause::Canceled);
        assert!(begin.elapsed() < Duration::from_secs(30), "waited for the grace period of a plain process");
    });
}

#[test]
fn memory_limit_is_kept_and_named() {
    with_each_runtime(|host| {
        let mut spec = host.sh("x=$(yes 0123456789abcdef | head -c 200000000); echo survived");
        spec.memory_bytes = Some(32 << 20);
        let done = host.run(spec);
        assert!(done.outcome.oom_killed, "{:?}", done.outcome);
        assert!(!done.stdout.contains("survived"));
        assert!(done.outcome.memory_peak.is_some_and(|peak| peak <= 33 << 20), "{:?}", done.outcome);
    });
}

#[test]
fn processes_are_limited() {
    with_each_runtime(|host| {
        let mut spec = host.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all");
        spec.pids = 8;
        let done = host.run(spec);
        assert!(!done.stdout.contains("all"), "{}", done.stdout);
        assert!(done.stderr.contains("fork"), "{}", done.stderr);
    });
}

#[test]
fn a_shim_outlives_the_daemon_and_the_next_one_reads_its_end() {
    with_each_runtime(|host| {
        let first = OciExecutor::new(spawner(), options(host, "first"));
        let launch = host.launch(host.sh("echo begun; sleep 1; echo done; exit 5"), &[]);
        let dir = launch.run_dir.clone();
        let shim = host.tokio.block_on(first.start(launch)).expect("start");
        assert_ne!(parent_of(shim.pid), std::process::id().cast_signed(), "the shim is our child");
        drop(first); // its spawner ends with it
        let done = host.wait(&dir, &shim);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(5), "begun\ndone\n"));
    });
}

#[test]
fn a_killed_shim_is_lost_and_swept() {
    with_each_runtime(|host| {
        let (dir, shim) = host.start(host.sh("echo ready; sleep 98765"));
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        let group = format!("addonfs-{}", dir.file_name().expect("name").to_string_lossy());
        kill(shim.pid);
        assert!(!control_groups(&group).is_empty(), "the container should still be there");
        sweep::run(&dir).expect("swept by a later daemon, without an executor");
        assert!(control_groups(&group).is_empty());
        let done = host.wait(&dir, &shim);
        assert_eq!(done.outcome.cause, Cause::Lost);

        let (dir, shim) = host.start(host.sh("echo ready; sleep 98765"));
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        kill(shim.pid);
        assert_eq!(host.wait(&dir, &shim).outcome.cause, Cause::Lost, "and by wait itself");
        let answer = host.tokio.block_on(host.executor.stop(&dir, &shim, Stop::Cancel));
        assert!(answer.is_err_and(|e| e.contains("has ended")));
    });
}

#[test]
fn without_a_runtime_there_are_words() {
    let host = Host::new("crun");
    let mut wrong = options(&host, "wrong");
    wrong.runtime = Some("/bin/true".into());
    let executor = OciExecutor::new(spawner(), wrong);
    let words = executor.proven().expect_err("true is no runtime");
    assert!(words.contains("/bin/true failed its self-test"), "{words}");
    let launch = host.launch(host.sh("true"), &[]);
    assert!(host.tokio.block_on(executor.start(launch)).is_err());
    let found = host.executor.proven().expect("crun");
    assert_eq!(found.name, "crun");
    assert!(found.version.contains("crun"), "{found:?}");
    host.assert_clean();
}

fn options(host: &Host, scratch: &str) -> OciOptions {
    let mut options = OciOptions::new(host.dir.path().join(scratch));
    options.runtime = Some(host.runtime.into());
    options
}

fn stop(host: &Host, dir: &std::path::Path, shim: &ShimId, stop: Stop) {
    host.tokio.block_on(host.executor.stop(dir, shim, stop)).expect("stop");
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
    wait_for(|| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z ")));
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let after = stat.rsplit(')').next().expect("fields");
    after.split_whitespace().nth(1).expect("ppid").parse().expect("number")
}

pub(crate) fn wait_for(mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "waited for 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
