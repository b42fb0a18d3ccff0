//! Jobs through files, from shells: arguments, secrets, exit codes, signals, standard input, records.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::fault_proxy::{ALWAYS, Fault};
use crate::common::session::{Session, TOOLS, eventually, files_below};

#[test]
fn from_bash_and_dash() {
    let s = Session::new().with_tools();
    for shell in ["bash", "dash"] {
        let sh = |script: &str| s.shell(shell, &format!("cd $M/tools/sh; {script}"));
        assert_eq!(sh("./run --script 'echo $ARG_NUMBER; echo e >&2'").says("e\n").ok(), "7\n");
        assert_eq!(sh("./run --script='echo $ARG_NUMBER' --number=12").ok(), "12\n");
        assert_eq!(
            sh("./run --args-json '{\"script\":\"echo $FLWD_ARGS_JSON\"}'").ok(),
            "{\"script\":\"echo $FLWD_ARGS_JSON\",\"number\":7}\n"
        );
        assert_eq!(sh("echo '{\"script\":\"echo piped\"}' | ./run --args-json -").ok(), "piped\n");
        assert_eq!(sh("printf 'a\\nb\\n' | ./run -i --script 'cat; echo end'").ok(), "a\nb\nend\n");
        assert_eq!(
            sh("echo unseen | ./run --script 'cat; echo end'").ok(),
            "end\n",
            "stdin is /dev/null without -i"
        );
        assert_eq!(sh("PATH=$PWD:$PATH run --script 'echo by path'").ok(), "by path\n");
        // a conversation on one descriptor
        assert!(sh("exec 3<>ctl; echo help >&3; cat <&3").ok().contains("--script"));
        let reply = sh("exec 3<>ctl; echo 'run {\"script\":\"exit 6\"}' >&3; cat <&3").ok();
        let run = sh(&format!("set -- {}; for w; do [ -d $w ] && $w/wait; done; echo $?", reply.trim()));
        assert!(run.out.ends_with("6\n"), "{reply}: {run:?}");
        let refused = sh("exec 3<>ctl; echo 'run {\"number\":0}' >&3; echo $?; cat <&3");
        assert!(
            refused.out.starts_with("1\n")
                && refused.out.contains("script")
                && refused.out.contains("number"),
            "{refused:?}"
        );
        let plan: Value = serde_json::from_str(&sh("./plan --script x").ok()).unwrap();
        assert_eq!(plan["args"]["number"], json!(7), "{plan}");
        assert!(sh("./run --help").ok().contains("--number"));
    }
    let runs = s.sh("ls $M/tools/sh/runs | wc -l").ok().trim().parse::<u32>().unwrap();
    s.sh("$M/tools/sh/plan --script x").ok();
    assert_eq!(
        s.sh("ls $M/tools/sh/runs | wc -l").ok().trim().parse::<u32>().unwrap(),
        runs,
        "plan runs nothing"
    );
}

#[test]
fn exit_codes() {
    let s = Session::new().with_tools();
    let run = |words: &str| s.sh(&format!("$M/tools/{words}"));
    assert_eq!(run("sh/run --script 'exit 0'").code, 0);
    assert_eq!(run("sh/run --script 'exit 3'").code, 3);
    assert_eq!(run("sh/run --script 'exit 255'").code, 255);
    s.sh("rm -rf $M/tools/sh/runs/*").ok();
    let killed = s.sh("(until echo kill KILL > $M/tools/sh/runs/*/ctl; do sleep 0.1; done) 2> /dev/null & \
         $M/tools/sh/run --script 'while :; do sleep 0.1; done'; echo code $?");
    assert_eq!(killed.ok(), "code 137\n");
    s.sh("rm -rf $M/tools/sh/runs/*").ok();
    let brief = run("brief/run");
    assert_eq!((brief.code, brief.out.as_str()), (124, "begun\n"), "{brief:?}");
    let refused = run("sh/run --number 3");
    assert_eq!(refused.code, 125);
    assert!(refused.err.contains("script"), "{refused:?}");
    let refused = run("sh/run --script x --nubmer 3");
    assert!(refused.code == 125 && refused.err.contains("nubmer"), "{refused:?}");
    let missing = run("missing/run");
    assert!(missing.code == 127 && missing.err.contains("/no/such/program"), "{missing:?}");
    let locked = run("locked/run");
    assert!(locked.code == 126 && locked.err.contains("/addon/data.txt"), "{locked:?}");
    let states = s.sh("cat $M/tools/*/runs/*/state | sort | uniq -c | tr -s ' '").ok();
    assert_eq!(states, " 2 failed\n 1 timeout\n", "refused ones leave no run");
}

/// A secret on the command line: warned of, gone from the process list, in no file that stays.
#[test]
fn secrets_are_seen_nowhere() {
    const SECRET: &str = "hunter2-but-longer";
    let s = Session::new().with_tools();
    let script = "cat /run/secrets/token; echo; env | grep -c h[u]nter; echo $FLWD_ARGS_JSON; grep -c h[u]nter /run/addonfs/args.json; wc -c < /run/secrets/token; read x; exit 2";
    let runs = s.start(&format!("(until [ -e go ]; do sleep 0.05; done; echo) | $M/tools/sh/run -i --token {SECRET} --script '{script}'"));
    let record = eventually("it runs", || {
        let name = s.sh("ls $M/tools/sh/runs").ok();
        let record = s.sh(&format!("cat $M/tools/sh/runs/{}/record.json", name.trim())).out;
        let record: Value = serde_json::from_str(&record).ok()?;
        (record["state"] == "running").then_some(record)
    });
    assert_eq!(record["args"]["token"], "[secret]");
    let name = record["name"].as_str().unwrap();
    // only the shell that was given the script may show it, not the program
    let shown = s.sh("for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" = \"$M/tools/sh/run\" ] && tr '\\0' ' ' < $p/cmdline; done; true").ok();
    assert!(
        shown.contains("--token ********") && shown.contains("--script") && !shown.contains(SECRET),
        "{shown}"
    );
    for file in ["args.json", "plan.json", "record.json", "ctl"] {
        assert!(
            !s.sh(&format!("timeout 5 cat $M/tools/sh/runs/{name}/{file}")).out.contains(SECRET),
            "{file}"
        );
    }
    assert_eq!(s.json(&format!("tools/sh/runs/{name}/args.json"))["token"], "[secret]");
    let leaks = |s: &Session| -> Vec<std::path::PathBuf> {
        let mut files = files_below(&s.path("state"));
        files.extend(files_below(&s.path("cache")));
        files.retain(|path| {
            std::fs::read(path).unwrap_or_default().windows(SECRET.len()).any(|w| w == SECRET.as_bytes())
        });
        files
    };
    assert_eq!(leaks(&s), Vec::<std::path::PathBuf>::new());
    s.write("go", "");
    let done = runs.finish();
    assert_eq!(done.code, 2, "{done:?}");
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[..2], ["[secret]", "0"], "hidden in the output too; in no variable");
    assert!(!lines[2].contains(SECRET), "{lines:?}");
    assert_eq!(lines[3..], ["0", &SECRET.len().to_string()], "a file for the job: {lines:?}");
    assert!(done.err.contains("warning") && done.err.contains("--args-json"), "{done:?}");
    assert_eq!(leaks(&s), Vec::<std::path::PathBuf>::new());
    // through files: no warning, and nothing shown either
    let args = json!({"script": "wc -c < /run/secrets/token", "token": SECRET});
    let files = s.start(&format!("mkdir $M/tools/sh/runs/f && cd $_ && echo '{args}' > args.json && cat args.json && echo start > ctl && ./wait; cat stdout stderr"));
    let done = files.finish();
    assert!(!done.out.contains(SECRET) && done.out.ends_with(&format!("{}\n", SECRET.len())), "{done:?}");
    assert!(!s.cat(".addonfs/events.jsonl").contains(SECRET) && !s.log().contains(SECRET));
    s.umount();
    assert_eq!(leaks(&s), Vec::<std::path::PathBuf>::new());
}

/// Ctrl-C reaches the whole group: the run is canceled, a second one kills it. `wait` only watches.
#[test]
fn signals_cancel() {
    let s = Session::new().with_tools();
    let polite = s.start("exec $M/tools/sh/run --script 'trap \"echo bye; exit 5\" TERM; echo up; while :; do sleep 0.05; done'");
    let state = |word: &str| {
        eventually(word, || s.sh("cat $M/tools/sh/runs/*/state").out.contains(word).then_some(()))
    };
    let up = || {
        eventually("it is up", || s.sh("cat $M/tools/sh/runs/*/stdout").out.contains("up\n").then_some(()))
    };
    up();
    polite.signal(Signal::SIGINT);
    let done = polite.finish();
    assert_eq!((done.code, done.out.as_str()), (130, "up\nbye\n"), "{done:?}");
    state("canceled");
    s.sh("rm -rf $M/tools/sh/runs/*").ok();

    let deaf = s.start(
        "exec $M/tools/sh/run --script 'trap \"echo deaf\" TERM INT; echo up; while :; do sleep 0.05; done'",
    );
    up();
    deaf.signal(Signal::SIGTERM);
    eventually("it was told", || s.sh("cat $M/tools/sh/runs/*/stdout").out.contains("deaf").then_some(()));
    deaf.signal(Signal::SIGTERM);
    let done = deaf.finish();
    // who asks twice wants the end, not the rest of the output
    assert!(done.code == 143 && done.out.starts_with("up\n"), "{done:?}");
    state("canceled");
    s.sh("rm -rf $M/tools/sh/runs/*").ok();

    s.sh("mkdir $M/tools/sh/runs/w && cd $_ && echo '{\"script\":\"echo up; read x; exit 8\"}' > args.json && echo start stdin > ctl").ok();
    up();
    let waiting = s.start("exec $M/tools/sh/runs/w/wait");
    let following = s.start("exec $M/tools/sh/runs/w/follow");
    let impatient = s.start("exec $M/tools/sh/runs/w/wait");
    // A shell that is told to exec forgets a signal that comes just before.
    let comm = format!("/proc/{}/comm", impatient.pid());
    eventually("the shell has become the program", || {
        std::fs::read_to_string(&comm).ok().filter(|name| name != "bash\n")
    });
    impatient.signal(Signal::SIGINT);
    assert_eq!(impatient.finish().code, 130);
    assert_eq!(s.cat("tools/sh/runs/w/state"), "running\n");
    assert!(s.sh("rmdir $M/tools/sh/runs/w").refused().contains("busy"));
    s.sh("echo > $M/tools/sh/runs/w/stdin").ok();
    assert_eq!(waiting.finish().code, 8);
    let following = following.finish();
    assert_eq!((following.code, following.out.as_str()), (0, "up\n"));
    assert!(s.sh("echo start > $M/tools/sh/runs/w/ctl").refused().contains("busy"));
    assert!(!s.cat("tools/sh/runs/w/last_error").is_empty());
    s.sh("rmdir $M/tools/sh/runs/w && test ! -e $M/tools/sh/runs/w").ok();
}

/// Twenty at once want one name: one has it. And a queue of one slot keeps its order and its limit.
#[test]
fn claims_and_the_queue() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    s.configure("jobs: {max_running: 1, max_queued: 2}", &[("tools", &image, "mountPath: tools")]);
    s.ready();
    let won = s.sh("cd $M/tools/sh/runs; for i in $(seq 20); do (mkdir one 2>/dev/null && echo won) & done; wait; mkdir -p one");
    assert_eq!(won.ok(), "won\n");
    s.write("args", json!({"script": "read x; echo $RUN_DIR"}).to_string());
    for name in ["a", "b", "c"] {
        s.sh(&format!("mkdir $M/tools/sh/runs/{name} && cat args > $_/args.json && echo start stdin > $M/tools/sh/runs/{name}/ctl")).ok();
        if name == "a" {
            eventually("it runs", || (s.cat("tools/sh/runs/a/state") == "running\n").then_some(()));
        }
    }
    let refused =
        s.sh("mkdir $M/tools/sh/runs/d && cat args > $_/args.json && echo start > $M/tools/sh/runs/d/ctl");
    assert!(refused.refused().contains("temporarily unavailable"), "EAGAIN");
    assert_eq!(
        s.sh("cd $M/tools/sh/runs; cat a/state b/state c/state d/state").ok(),
        "running\nqueued\nqueued\ncreated\n"
    );
    assert!(s.cat("tools/sh/runs/d/last_error").contains("waiting"));
    assert_eq!(s.status()["runs"], json!({"running": 1, "queued": 2}));
    s.sh("echo cancel > $M/tools/sh/runs/b/ctl").ok();
    assert_eq!(s.cat("tools/sh/runs/b/state"), "canceled\n");
    s.sh("cd $M/tools/sh/runs; echo > a/stdin; a/wait && echo > c/stdin; c/wait").ok();
    assert_eq!(s.sh("$M/tools/sh/runs/b/wait").code, 143);
}

/// `pull_policy: on-run`: the job folders are there without the layers below, and the first run fetches them.
#[test]
fn the_first_run_pulls() {
    let s = Session::proxied();
    let image = s.publish("tools", TOOLS);
    s.configure("", &[("tools", &image, "pull_policy: on-run")]);
    s.ready();
    assert_eq!(s.source("tools")["phase"], "waiting");
    s.sh("test ! -e $M/tools/rootfs && test -e $M/tools/sh/job.json && $M/tools/sh/plan --script x > /dev/null").ok();
    assert_eq!(s.source("tools")["phase"], "waiting", "a plan needs no layer");
    s.proxy().fail("GET", "/blobs/", ALWAYS, Fault::status(404));
    let refused = s.sh("$M/tools/sh/run --script 'echo x'");
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.err.contains("image"), "{refused:?}");
    s.proxy().heal();
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo pulled'").ok(), "pulled\n");
    assert_eq!(s.source("tools")["phase"], "ready");
    s.sh("cmp $M/tools/rootfs/etc/os-release /etc/os-release").ok();
}

/// The fields that scripts rely on.
#[test]
fn records_have_every_field() {
    let s = Session::new().with_tools();
    s.sh("mkdir $M/tools/sh/runs/r && cd $_ && echo '{\"script\":\"echo hi; echo x > $RUN_DIR/made\"}' > args.json && echo start id=t1 > ctl && ./wait && echo start id=t1 > ctl").ok();
    let record = s.json("tools/sh/runs/r/record.json");
    for field in [
        "id",
        "number",
        "name",
        "job",
        "state",
        "exit_code",
        "created_at",
        "queued_at",
        "started_at",
        "ended_at",
        "duration_ms",
        "args",
        "origin",
        "image",
        "who",
        "trust",
        "policy",
        "plan_digest",
        "limits",
        "resources",
    ] {
        assert!(!record[field].is_null(), "{field}: {record}");
    }
    for field in ["source_kind", "source_name", "addon_name", "addon_version", "addon_image_digest"] {
        assert!(record["origin"][field].is_string(), "{field}: {record}");
    }
    assert_eq!(record["job"], "tools/sh");
    assert_eq!(s.cat("tools/sh/runs/r/out/made"), "x\n");
    let id = record["id"].as_str().unwrap();
    assert_eq!(s.sh(&format!("readlink $M/.addonfs/runs/{id}")).ok(), "../../tools/sh/runs/r\n");
    let job = s.json("tools/sh/job.json");
    for field in ["id", "command", "argspec", "origin"] {
        assert!(!job[field].is_null(), "{field}: {job}");
    }
    let jobs = s.cat(".addonfs/jobs.jsonl");
    assert_eq!(jobs.lines().count(), 4, "{jobs}");
    let kinds: Vec<String> = s
        .cat(".addonfs/events.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string())
        .collect();
    for kind in ["run.start", "run.finish", "source.ready", "policy.decision"] {
        assert!(kinds.iter().any(|k| k.contains(kind)), "{kind}: {kinds:?}");
    }
    // a restart keeps it all, and the numbers go on
    s.umount();
    s.ready();
    assert_eq!(s.json("tools/sh/runs/r/record.json"), record);
    assert_eq!(s.cat("tools/sh/runs/r/out/made"), "x\n");
    s.sh("mkdir $M/tools/sh/runs/later").ok();
    let later = s.json("tools/sh/runs/later/record.json");
    assert!(later["number"].as_u64() > record["number"].as_u64());
    assert_eq!(s.sh("rm -rf $M/tools/sh/runs/r && ls $M/tools/sh/runs").ok(), "later\n");
}
