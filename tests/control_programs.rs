//! The real program under its four names, served from the control tree, with jobs as plain processes.
#![allow(clippy::unwrap_used)]

#[path = "common/control.rs"]
mod control;
#[path = "common/mounted.rs"]
mod mounted;

use addonfs::jobs::runner::RUNNER;
use control::Stage;
use mounted::Mount;

fn mount() -> Mount {
    Mount::of(Stage::with_program(RUNNER))
}

#[test]
fn run_streams_the_output_and_exits_with_the_code_of_the_job() {
    let mount = mount();
    let said = mount.sh("tools/postgres/backup/run --database x 2>&1; echo code $?");
    assert!(said.contains("out\n") && said.contains("err\n") && said.ends_with("code 3\n"), "{said}");
    assert_eq!(mount.sh("tools/postgres/backup/run 2> /dev/null | head -1"), "out\n");
    assert_eq!(mount.sh("ls tools/postgres/backup/runs | wc -l"), "2\n");
    mount.sh("cd tools/postgres/backup; for r in runs/*; do test $(cat $r/state) = failed && rm -r $r; done");
}

#[test]
fn plan_runs_nothing() {
    let mount = mount();
    mount.sh("cd tools/postgres/backup; ./plan --database x | jq -e . > /dev/null; test -z \"$(ls runs)\"");
}

#[test]
fn a_refused_argument_is_125_with_its_reason() {
    let mount = mount();
    let said = mount.sh("tools/postgres/backup/run --nonsense 1 2>&1; echo code $?");
    assert!(said.contains("nonsense") && said.ends_with("code 125\n"), "{said}");
}

#[test]
fn wait_and_follow_end_with_the_run() {
    let mount = mount();
    let said = mount.sh(r#"cd tools/postgres/echo; mkdir runs/r; cd runs/r; echo 'start stdin' > ctl
        ./follow > /tmp/follow.$$ & (sleep 0.3; echo one > stdin; echo eof > ctl) &
        ./wait; echo code $?; wait; cat /tmp/follow.$$; rm /tmp/follow.$$"#);
    assert_eq!(said, "code 0\none\n");
}

#[test]
fn standard_input_is_passed_on() {
    let mount = mount();
    assert_eq!(mount.sh("head -c 300000 /dev/zero | tools/postgres/echo/run -i | wc -c"), "300000\n");
}

#[test]
fn an_interrupt_cancels_the_run() {
    let mount = mount();
    let said = mount.sh(r#"cd tools/postgres/nap; python3 -c '
import os, signal, subprocess, time
run = subprocess.Popen(["./run"], stderr=subprocess.DEVNULL)
def state():
    names = os.listdir("runs")
    return open("runs/%s/state" % names[0]).read() if names else ""
while state() != "running\n": time.sleep(0.02)
run.send_signal(signal.SIGINT)
print(run.wait(), state().strip())
'"#);
    assert_eq!(said, "130 canceled\n");
}
