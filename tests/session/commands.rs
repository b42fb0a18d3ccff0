//! The commands around jobs: thin over the files, with the same answers and exit codes.

use serde_json::Value;

use crate::common::session::{Session, eventually};

#[test]
fn run_plan_jobs_runs_logs_cancel() {
    let s = Session::new().with_tools();
    let run = |script: &str| s.addonfs(["run", "tools/sh", "--script", script]);
    let done = run("echo out; echo err >&2; exit 4");
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (4, "out\n", "err\n"));
    assert_eq!(s.addonfs(["run", "tools/brief"]).code, 124);
    assert_eq!(s.addonfs(["run", "tools/missing"]).code, 127);
    let refused = s.addonfs(["run", "tools/nothing"]);
    assert!(refused.code == 125 && refused.err.contains("tools/nothing"), "{refused:?}");
    assert_eq!(s.addonfs(["run", "tools/sh", "--number", "0"]).code, 125);
    assert_eq!(s.sh("echo piped | $ADDONFS run -i tools/sh --script cat").ok(), "piped\n");
    let plan: Value = serde_json::from_str(&s.addonfs(["plan", "tools/sh", "--script", "x"]).ok()).unwrap();
    assert_eq!(plan["args"]["number"], 7);

    let jobs: Value = serde_json::from_str(&s.addonfs(["jobs", "-o", "json"]).ok()).unwrap();
    assert_eq!(jobs.as_array().unwrap().len(), 4, "{jobs}");
    assert!(s.addonfs(["jobs"]).ok().contains("tools/brief"));

    s.sh("mkdir $M/tools/sh/runs/nightly && cd $_ && echo '{\"script\":\"echo one; echo two >&2; read x; echo three\"}' > args.json && echo start stdin > ctl").ok();
    eventually("it is up", || (s.cat("tools/sh/runs/nightly/stderr") == "two\n").then_some(()));
    let logs = s.addonfs(["logs", "nightly"]);
    assert_eq!((logs.out.as_str(), logs.err.as_str()), ("one\n", "two\n"));
    assert_eq!(s.addonfs(["logs", "--stderr", "tools/sh/nightly"]).ok(), "two\n");
    let following = s.start("$ADDONFS logs -f nightly");
    let runs: Value = serde_json::from_str(&s.addonfs(["runs", "tools/sh", "-o", "json"]).ok()).unwrap();
    let of = |name: &str| runs.as_array().unwrap().iter().find(|r| r["name"] == name).cloned().unwrap();
    assert_eq!(of("nightly")["state"], "running");
    assert!(s.addonfs(["runs"]).ok().lines().any(|l| l.contains("nightly") && l.contains("running")));
    s.sh("echo > $M/tools/sh/runs/nightly/stdin").ok();
    let following = following.finish();
    assert_eq!((following.out.as_str(), following.err.as_str()), ("one\nthree\n", "two\n"));

    s.sh("mkdir $M/tools/sh/runs/long && cd $_ && echo '{\"script\":\"exec sleep 600\"}' > args.json && echo start > ctl").ok();
    eventually("it runs", || (s.cat("tools/sh/runs/long/state") == "running\n").then_some(()));
    let waiting = s.start("$M/tools/sh/runs/long/wait; echo $?");
    s.addonfs(["cancel", "--kill", "long"]).ok();
    assert_eq!(waiting.finish().ok(), "137\n");
    assert_eq!(s.addonfs(["cancel", "long"]).ok(), "failed\n", "an ended run stays as it is");
    assert!(s.addonfs(["logs", "nowhere"]).refused().contains("nowhere"));
}
