//! Runs through the kernel: claimed by mkdir, driven by ctl, watched by poll, removed by rm.
#![allow(clippy::unwrap_used)]

#[path = "common/control.rs"]
mod control;
#[path = "common/mounted.rs"]
mod mounted;

use std::sync::Barrier;

use mounted::{Mount, text};

/// Waits in the shell for a state; scripts have 20 seconds.
const AWAIT: &str = r#"await() { until [ "$(cat $1/state)" = "$2" ]; do sleep 0.02; done; }
"#;

fn run(mount: &Mount, script: &str) -> String {
    mount.sh(&format!("{AWAIT}{script}"))
}

#[test]
fn a_run_from_mkdir_to_rmdir() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/backup
        mkdir runs/nightly && cd runs/nightly
        cat state; wc -c < exit_code
        echo '{"database":"app2"}' > args.json && jq -c . args.json
        echo start > ctl; await . failed
        cat exit_code stdout stderr; jq -r .state record.json; jq -r .args.database args.json record.json
        readlink $M/.addonfs/runs/*; cat $M/.addonfs/runs/*/state"#,
    );
    assert_eq!(
        said,
        "created\n0\n{\"database\":\"app2\"}\n3\nout\nerr\nfailed\nnull\napp2\n../../tools/postgres/backup/runs/nightly\nfailed\n"
    );
    assert!(mount.refused("echo start > tools/postgres/backup/runs/nightly/ctl").contains("busy"));
    assert!(mount.sh("cat tools/postgres/backup/runs/nightly/last_error").contains("start refused"));
    mount.sh("rmdir tools/postgres/backup/runs/nightly");
    assert_eq!(mount.sh("ls tools/postgres/backup/runs .addonfs/runs | wc -l"), "3\n");
    mount.sh("mkdir tools/postgres/backup/runs/nightly");
}

#[test]
fn twenty_callers_of_one_name_have_one_winner() {
    let mount = Mount::new();
    let name = mount.job("backup").join("runs/same");
    let start = Barrier::new(20);
    let won = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    std::fs::create_dir(&name).map_err(|error| error.raw_os_error())
                })
            })
            .collect();
        let results: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        assert!(
            results.iter().all(|result| matches!(result, Ok(()) | Err(Some(nix::libc::EEXIST)))),
            "{results:?}"
        );
        results.iter().filter(|result| result.is_ok()).count()
    });
    assert_eq!(won, 1);
    mount.sh("mkdir -p tools/postgres/backup/runs/same");
}

#[test]
fn args_json_takes_any_way_of_writing() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/backup; mkdir runs/r; cd runs/r
        printf '{"data' > args.json; printf 'base":' >> args.json; printf '"x"}' >> args.json; jq -r .database args.json
        echo '{"database":"long enough to be cut"}' > args.json; echo '{"database":"y"}' > args.json; jq -r .database args.json
        echo '{"database":"z"}' > /tmp/args.$$; cp --preserve=mode,timestamps /tmp/args.$$ args.json; rm /tmp/args.$$; jq -r .database args.json
        echo '{"database":"t"}' | tee args.json > /dev/null; chmod 600 args.json; touch args.json; jq -r .database args.json
        truncate -s 0 args.json; stat -c %s args.json
        echo '{"database":1}' > args.json; echo start > ctl 2> /dev/null || cat last_error"#,
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..5], ["x", "y", "z", "t", "0"]);
    assert!(lines[5].contains("database"), "{said}");
}

#[test]
fn secrets_never_read_back() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/backup; mkdir runs/r; cd runs/r
        echo '{"database":"d","token":"hunter2"}' > args.json; cat args.json; echo start > ctl; await . failed
        grep -r hunter2 . ; jq -r .token args.json"#,
    );
    assert!(!said.contains("hunter2") && said.ends_with("[secret]\n"), "{said}");
}

#[test]
fn poll_wakes_when_the_state_moves() {
    let mount = Mount::new();
    let said = mount.sh(r#"cd tools/postgres/nap; mkdir runs/p; cd runs/p; python3 -c '
import os, select, threading, time
fd = os.open("state", os.O_RDONLY)
poll = select.poll(); poll.register(fd, select.POLLIN)
print(bool(poll.poll(0)), os.pread(fd, 99, 0))
print(bool(poll.poll(0)))
def say(word):
    def later():
        time.sleep(0.2)
        with open("ctl", "w") as ctl: ctl.write(word)
    threading.Thread(target=later).start()
say("start")
while True:
    assert poll.poll(15000), "no wake"
    state = os.pread(fd, 99, 0)
    if state == b"running\n": break
print(state); say("cancel")
while True:
    assert poll.poll(15000), "no wake"
    state = os.pread(fd, 99, 0)
    if state == b"canceled\n": break
print(state, bool(poll.poll(0)))
'"#);
    assert_eq!(said, "True b'created\\n'\nFalse\nb'running\\n'\nb'canceled\\n' True\n");
}

#[test]
fn standard_input_reaches_the_job_and_eof_ends_it() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/echo; mkdir runs/r; cd runs/r
        (echo early > stdin) 2>&1 | grep -c busy
        echo 'start stdin' > ctl; await . running
        echo hello > stdin; head -c 200000 /dev/zero > stdin; echo eof > ctl; await . succeeded
        wc -c < stdout; head -1 stdout"#,
    );
    assert_eq!(said, "1\n200006\nhello\n");
}

#[test]
fn growing_logs_are_followed_by_tail() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/echo; mkdir runs/r; cd runs/r; echo 'start stdin' > ctl; await . running
        timeout 3 tail -f -s 0.1 stdout > /tmp/tail.$$ & sleep 0.5; echo one > stdin; sleep 0.5; echo two > stdin; wait
        cat /tmp/tail.$$; rm /tmp/tail.$$; stat -c %s stdout; echo cancel > ctl; await . canceled"#,
    );
    assert_eq!(said, "one\ntwo\n8\n");
    mount.sh("printf '{\"seq\":2}\\n' >> $0/events.jsonl"
        .replace("$0", &mount.stage.dir.path().display().to_string())
        .as_str());
    assert_eq!(mount.sh("wc -l < .addonfs/events.jsonl; stat -c %s .addonfs/events.jsonl"), "2\n20\n");
}

#[test]
fn out_shows_what_the_job_left_and_nothing_behind_it() {
    let mount = Mount::new();
    let said = run(
        &mount,
        r#"cd tools/postgres/files; mkdir runs/r; cd runs/r; ls out; echo start > ctl; await . succeeded
        cat out/sub/file; readlink out/link; stat -c '%a %u' out out/sub out/sub/file; find out | sort"#,
    );
    assert_eq!(said, "data\n/etc/passwd\n750 0\n750 0\n440 0\nout\nout/link\nout/sub\nout/sub/file\n");
    assert!(mount.refused("echo x > tools/postgres/files/runs/r/out/sub/file").contains("denied"));
    assert!(mount.refused("touch tools/postgres/files/runs/r/out/new").contains("not permitted"));
}

#[test]
fn rm_rf_removes_a_finished_run_and_spares_a_live_one() {
    let mount = Mount::new();
    run(
        &mount,
        r#"cd tools/postgres; mkdir files/runs/r nap/runs/live; echo start > files/runs/r/ctl; await files/runs/r succeeded
        echo start > nap/runs/live/ctl; await nap/runs/live running; rm -rf files/runs/r; test ! -e files/runs/r"#,
    );
    assert!(mount.refused("rm -rf tools/postgres/nap/runs/live").contains("busy"));
    assert_eq!(mount.sh("cat tools/postgres/nap/runs/live/state"), "running\n");
    assert!(mount.refused("rmdir tools/postgres/nap/runs/live").contains("busy"));
    run(
        &mount,
        "cd tools/postgres/nap/runs; echo kill > live/ctl; await live failed; rm -r live; ls | wc -l",
    );
}

#[test]
fn a_job_ctl_runs_and_plans() {
    let mount = Mount::new();
    for shell in ["bash", "dash"] {
        let script = format!(
            r#"{AWAIT}cd tools/postgres/backup; exec 3<> ctl
            echo 'run {{"database":"x"}}' >&3; read -r state where <&3; echo $state; await $where failed; cat $where/stdout
            echo 'plan --database y' >&3; jq -r .schema <&3
            echo 'run {{"nonsense":1}}' >&3 2> /dev/null || head -1 <&3 | grep -c nonsense"#
        );
        let output = mount.shell(shell, &script);
        let said = text(&output.stdout);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            (lines[0], lines[1], lines[3]),
            ("queued", "out", "1"),
            "{shell}: {said}{}",
            text(&output.stderr)
        );
    }
}
