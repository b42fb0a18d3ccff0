//! One job found, planned, run, watched and audited with the programs that people have: Python, jq, rsync, tail, and
//! files of their own as arguments.

use crate::common::session::Session;

/// Finds a job by what it is, makes a run of a name, waits without a program of ours, reads the record.
const PYTHON: &str = r#"
import json, os, pathlib, time
mount = pathlib.Path(os.environ["M"])
jobs = json.loads((mount / ".addonfs/jobs.json").read_text())
job = next(j for j in jobs if "script" in j["argspec"].get("properties", {}))
folder = mount / job["id"]
fd = os.open(folder / "ctl", os.O_RDWR)
os.write(fd, b'plan ' + json.dumps({"script": "x"}).encode() + b'\n')
plan = json.loads(os.read(fd, 1 << 20))
os.close(fd)
assert plan["args"] == {"script": "x", "number": 7}, plan
run = folder / "runs" / "python"
os.mkdir(run)
(run / "args.json").write_text(json.dumps({"script": "echo from python; exit 3", "number": 2}))
(run / "ctl").write_text("start\n")
while (state := (run / "state").read_text().strip()) in ("created", "queued", "running"):
    time.sleep(0.01)
record = json.loads((run / "record.json").read_text())
print(state, (run / "exit_code").read_text().strip(), (run / "stdout").read_text().strip(), record["args"]["number"])
try:
    (run / "ctl").write_text("start\n")
except OSError as error:
    print(error.errno, (run / "last_error").read_text().count("\n") > 0)
"#;

#[test]
fn programs_that_people_have() {
    let s = Session::new().with_tools();
    s.write("client.py", PYTHON);
    let python = s.sh("python3 client.py").ok();
    let lines: Vec<&str> = python.lines().collect();
    assert_eq!(lines[0], "failed 3 from python 2");
    assert!(lines[1].ends_with(" True"), "{python}");

    let ids = s.sh("jq -r '.[] | select(.secrets | index(\"token\")) | .id' $M/.addonfs/jobs.json").ok();
    assert_eq!(ids, "tools/sh\n");
    let states = s.sh("jq -r .state $M/tools/sh/runs/*/record.json | sort | uniq -c").ok();
    assert_eq!(states.trim(), "1 failed");
    s.sh("rsync -a $M/tools/sh/runs/python copy && cmp copy/python/stdout $M/tools/sh/runs/python/stdout")
        .ok();

    // tail follows a log that grows and ends with its reader's patience, not with the file.
    let script = "cd $M/tools/sh/runs && mkdir slow && cd slow
        echo '{\"script\":\"for i in 1 2 3; do echo line $i; sleep 0.3; done\"}' > args.json
        echo start > ctl
        until [ -e stdout ]; do sleep 0.01; done
        timeout 60 tail -n +1 -f stdout | { read a; read b; read c; echo \"$a, $b, $c\"; kill $(pgrep -P $$ timeout); }
        ./wait";
    assert_eq!(s.sh(script).ok(), "line 1, line 2, line 3\n");
}

/// The caller's files, with his rights: the daemon, which is root, reads nothing for him.
#[test]
fn files_of_the_caller_as_arguments() {
    let s = Session::new().with_tools();
    s.write("token", "two\nlines");
    s.write("script", "cat /run/secrets/token; echo; echo $ARG_NUMBER");
    let words = "--arg-file script=script --arg-file token=token number=4";
    let done = s.sh(&format!("$M/tools/sh/run {words}"));
    assert_eq!(done.err, "");
    // In the output a secret is masked, each line of it that is long enough.
    assert!(done.ok().ends_with("4\n"));
    assert_eq!(s.sh(&format!("$ADDONFS run tools/sh {words} | tail -n 1")).ok(), "4\n");
    let json = "'{\"script\": {\"$file\": \"script\"}, \"number\": 5}'";
    let plan = s.sh(&format!("$ADDONFS plan tools/sh --args-json {json} --arg-file token=<(cat token)")).ok();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!((&plan["args"]["number"], &plan["args"]["token"]), (&5.into(), &"[secret]".into()));
    // By the other ways in nobody opens a file.
    let refused = s
        .sh("exec 3<>$M/tools/sh/ctl; echo 'plan {\"script\":{\"$file\":\"/etc/shadow\"}}' >&3; cat <&3")
        .ok();
    assert!(refused.contains("$file stands for"), "{refused}");
    let help = s.sh("$ADDONFS run tools/sh --help").ok();
    for words in ["--script VALUE", "required", "default 7", "--arg-file NAME=PATH"] {
        assert!(help.contains(words), "{words}: {help}");
    }
}
