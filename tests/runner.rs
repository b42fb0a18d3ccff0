//! The program behind `run`, `plan`, `wait` and `follow`, against a scripted job folder: a tiny file system whose
//! `ctl` files tell the test what was said and answer what the test wants.

#![allow(clippy::unwrap_used)]

mod scripted;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scripted::{Answer, JobFolder};

const ARGSPEC: &str = r#"{"type":"object","properties":{"database":{"type":"string"},"api_token":{"type":"string","format":"secret"}}}"#;

/// A refusal of a `ctl`.
const EINVAL: i32 = 22;

fn run_of(folder: &JobFolder) -> String {
    wait_for("a run", || folder.runs().first().cloned())
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A child that is killed when the test ends early.
struct Guarded(Child);

impl Guarded {
    fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    fn output(mut self) -> Output {
        drop(self.0.stdin.take());
        let mut output = Output { status: Default::default(), stdout: Vec::new(), stderr: Vec::new() };
        self.0.stdout.take().unwrap().read_to_end(&mut output.stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut output.stderr).unwrap();
        output.status = self.0.wait().unwrap();
        output
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the run that was made, with this state and exit code.
fn end(folder: &JobFolder, run: &str, state: &str, code: &str) {
    folder.set(&format!("runs/{run}/exit_code"), code);
    folder.set(&format!("runs/{run}/state"), state);
}

#[test]
fn streams_the_output_and_ends_with_the_code_of_the_job() {
    let folder = JobFolder::mount(ARGSPEC);
    let child =
        Guarded::spawn(folder.command("run").args(["--database", "a \"quoted\"\n\\ name\u{1}é", "x=1"]));
    let run = run_of(&folder);
    assert!(
        run.starts_with("r-")
            && run.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    );
    wait_for("start", || folder.said().contains(&format!("runs/{run}/ctl start")).then_some(()));
    let args: Vec<String> = serde_json::from_str(&folder.get(&format!("runs/{run}/args.json"))).unwrap();
    assert_eq!(args, ["--database", "a \"quoted\"\n\\ name\u{1}é", "x=1"]);
    folder.set(&format!("runs/{run}/state"), "running\n");
    let big = "0123456789abcdef".repeat(40_000);
    folder.append(&format!("runs/{run}/stdout"), "one\n");
    folder.append(&format!("runs/{run}/stderr"), "oops\n");
    folder.append(&format!("runs/{run}/stdout"), &big);
    end(&folder, &run, "failed\n", "7\n");
    let output = child.output();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stderr), "oops\n");
    assert!(text(&output.stdout) == format!("one\n{big}"), "{} bytes", output.stdout.len());
}

#[test]
fn every_end_has_its_exit_code() {
    for (state, code, expected, words) in [
        ("succeeded\n", "0\n", 0, ""),
        ("failed\n", "1\n", 1, ""),
        ("failed\n", "127\n", 127, "it did not start"),
        ("failed\n", "137\n", 137, ""),
        ("failed\n", "", 125, "it did not start"),
        ("timeout\n", "137\n", 124, "it did not start"),
        ("lost\n", "", 125, "it did not start"),
        ("canceled\n", "143\n", 143, ""),
        ("canceled\n", "0\n", 143, ""),
    ] {
        let folder = JobFolder::mount(ARGSPEC);
        let child = Guarded::spawn(&mut folder.command("run"));
        let run = run_of(&folder);
        wait_for("start", || (!folder.said().is_empty()).then_some(()));
        folder.set(&format!("runs/{run}/last_error"), "it did not start\n");
        end(&folder, &run, state, code);
        let waited = folder.command(&format!("runs/{run}/wait")).output().unwrap();
        let output = child.output();
        assert_eq!(output.status.code(), Some(expected), "{state}");
        assert_eq!(waited.status.code(), Some(expected), "{state}");
        assert_eq!(text(&output.stderr).contains("it did not start"), !words.is_empty(), "{state}");
    }
}

#[test]
fn a_refusal_is_printed_and_the_run_removed() {
    let folder = JobFolder::mount(ARGSPEC);
    folder.answer("runs/*/ctl", Answer::refusal(EINVAL, "arguments.invalid: database: is required\n"));
    let output = folder.command("run").arg("--nope").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output.stderr), "arguments.invalid: database: is required\n");
    assert!(output.stdout.is_empty());
    assert_eq!(folder.runs(), Vec::<String>::new());
}

#[test]
fn signals_cancel_then_kill() {
    let folder = JobFolder::mount(ARGSPEC);
    let child = Guarded::spawn(&mut folder.command("run"));
    let run = run_of(&folder);
    let said = |line: &str| folder.said().contains(&format!("runs/{run}/ctl {line}")).then_some(());
    wait_for("start", || said("start"));
    folder.set(&format!("runs/{run}/state"), "running\n");
    std::thread::sleep(Duration::from_millis(50));
    child.signal(Signal::SIGINT);
    wait_for("cancel", || said("cancel"));
    assert!(said("kill").is_none());
    child.signal(Signal::SIGTERM);
    wait_for("kill", || said("kill"));
    end(&folder, &run, "canceled\n", "137\n");
    assert_eq!(child.output().status.code(), Some(128 + 15));
}

#[test]
fn a_closed_stdout_cancels() {
    let folder = JobFolder::mount(ARGSPEC);
    let mut child = Guarded::spawn(&mut folder.command("run"));
    drop(child.0.stdout.take());
    child.0.stdout = None;
    let run = run_of(&folder);
    wait_for("start", || (!folder.said().is_empty()).then_some(()));
    folder.append(&format!("runs/{run}/stdout"), "nobody reads this\n");
    wait_for("cancel", || folder.said().contains(&format!("runs/{run}/ctl cancel")).then_some(()));
    end(&folder, &run, "canceled\n", "143\n");
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + 13));
}

#[test]
fn a_reader_that_stalls_does_not_stall_the_cancel() {
    let folder = JobFolder::mount(ARGSPEC);
    let mut child = Guarded::spawn(&mut folder.command("run"));
    let run = run_of(&folder);
    wait_for("start", || (!folder.said().is_empty()).then_some(()));
    // More than the pipe holds, and nobody reads.
    folder.append(&format!("runs/{run}/stdout"), &"x".repeat(1 << 20));
    std::thread::sleep(Duration::from_millis(100));
    child.signal(Signal::SIGINT);
    wait_for("cancel", || folder.said().contains(&format!("runs/{run}/ctl cancel")).then_some(()));
    child.signal(Signal::SIGINT);
    end(&folder, &run, "canceled\n", "137\n");
    assert_eq!(child.0.wait().unwrap().code(), Some(130));
}

#[test]
fn stdin_is_passed_on_only_when_asked() {
    let folder = JobFolder::mount(ARGSPEC);
    let mut child = Guarded::spawn(folder.command("run").args(["-i", "--database", "app"]));
    let run = run_of(&folder);
    wait_for("start", || folder.said().contains(&format!("runs/{run}/ctl start stdin")).then_some(()));
    // The fake takes stdin only once the run is running: EAGAIN before.
    let sent = "line of input\n".repeat(30_000);
    let mut stdin = child.0.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(sent.as_bytes()).unwrap()
    });
    std::thread::sleep(Duration::from_millis(50));
    folder.set(&format!("runs/{run}/state"), "running\n");
    wait_for("eof", || folder.said().contains(&format!("runs/{run}/ctl eof")).then_some(()));
    writer.join().unwrap();
    assert!(folder.get(&format!("runs/{run}/stdin")) == sent);
    end(&folder, &run, "succeeded\n", "0\n");
    assert_eq!(child.output().status.code(), Some(0));

    let folder = JobFolder::mount(ARGSPEC);
    let child = Guarded::spawn(&mut folder.command("run"));
    let run = run_of(&folder);
    wait_for("start", || folder.said().contains(&format!("runs/{run}/ctl start")).then_some(()));
    end(&folder, &run, "succeeded\n", "0\n");
    assert_eq!(child.output().status.code(), Some(0));
    assert!(!folder.said().iter().any(|line| line.ends_with("eof")));
}

#[test]
fn arguments_as_json() {
    let json = r#"{"database": "app"}"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), json).unwrap();
    let at_file = format!("@{}", file.path().display());
    for (words, stdin) in [
        (vec!["--args-json", json], ""),
        (vec!["--args-json=-"], json),
        (vec!["--args-json", at_file.as_str()], ""),
    ] {
        let folder = JobFolder::mount(ARGSPEC);
        let mut child = Guarded::spawn(folder.command("run").args(&words));
        child.0.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let run = run_of(&folder);
        wait_for("start", || (!folder.said().is_empty()).then_some(()));
        assert_eq!(folder.get(&format!("runs/{run}/args.json")), json);
        end(&folder, &run, "succeeded\n", "0\n");
        assert_eq!(child.output().status.code(), Some(0), "{words:?}");
    }
    let folder = JobFolder::mount(ARGSPEC);
    for words in [&["--args-json", json, "x=1"][..], &["--args-json"], &["-i", "--args-json", "-"]] {
        let output = folder.command("run").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(text(&output.stderr).starts_with("addonfs: "), "{words:?}");
    }
    assert!(folder.runs().is_empty() && folder.said().is_empty());
}

#[test]
fn secrets_leave_the_process_list() {
    let folder = JobFolder::mount(ARGSPEC);
    // `lost` may be a piece of a value that was not quoted.
    let words = ["x=1", "--api-token", "hunter2", "lost", "--database", "app", "--api_token=hunter3"];
    let child = Guarded::spawn(folder.command("run").args(words));
    let run = run_of(&folder);
    wait_for("start", || (!folder.said().is_empty()).then_some(()));
    let shown = fs::read(format!("/proc/{}/cmdline", child.0.id())).unwrap();
    let shown = text(&shown).replace('\0', " ");
    assert!(!shown.contains("hunter") && !shown.contains("lost"), "{shown}");
    assert!(
        shown.contains(" x=1 --api-token *") && shown.contains(" --database app --api_token=*"),
        "{shown}"
    );
    assert!(folder.get(&format!("runs/{run}/args.json")).contains("hunter2"));
    end(&folder, &run, "succeeded\n", "0\n");
    let output = child.output();
    assert!(text(&output.stderr).contains("--args-json"), "no warning");
    assert!(!text(&output.stderr).contains("hunter"));
}

/// The arguments that a `run` with these words, and this on its stdin, would start with; or its refusal.
fn arguments(folder: &JobFolder, words: &[&str], stdin: &str) -> Result<serde_json::Value, String> {
    folder.answer("ctl", Answer::reply("{}\n"));
    let before = folder.said().len();
    let mut child = Guarded::spawn(folder.command("plan").args(words));
    child.0.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.output();
    match folder.said().get(before) {
        Some(line) => Ok(serde_json::from_str(line.strip_prefix("ctl plan ").unwrap()).unwrap()),
        None => Err(text(&output.stderr)),
    }
}

#[test]
fn files_are_put_in_the_place_of_their_names() {
    use serde_json::json;
    let folder = JobFolder::mount(ARGSPEC);
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    fs::write(path("token"), "hun\"ter\\2\n").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("binary"), b"\xff").unwrap();
    fs::write(path("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
    fs::write(path("od d"), "odd").unwrap();
    let (token, empty) = (format!("api_token={}", path("token")), format!("x={}", path("empty")));
    let joined = format!("--arg-file={token}");
    let secret = "hun\"ter\\2\n";
    let word = format!("--api_token={secret}");
    let reference =
        |name: &str| json!({"api_token": {"$file": path(name)}, "n": [1, {"$file": "x"}]}).to_string();
    let escaped = reference("od d").replace('/', "\\/").replace("od d", "od\\u0020d");
    let cases: [(&[&str], &str, serde_json::Value); 10] = [
        (&["--arg-file", &token, "a=b"], "", json!([word, "a=b"])),
        (&["a=b", &joined, "--arg-file", &empty], "", json!(["a=b", word, "--x="])),
        (&["--", "--arg-file", "x"], "", json!(["--", "--arg-file", "x"])),
        (&["-p", "secure", "--arg-file", &token], "", json!([word])),
        (&["--args-json", "{ }", "--arg-file", &token], "", json!({"api_token": secret})),
        (&["--arg-file", &token, "--args-json", "-"], "{\"a\": 1}", json!({"a": 1, "api_token": secret})),
        (&["--args-json", &reference("token")], "", json!({"api_token": secret, "n": [1, {"$file": "x"}]})),
        (&["--args-json", &escaped], "", json!({"api_token": "odd", "n": [1, {"$file": "x"}]})),
        (&["--args-json", "-"], &reference("empty"), json!({"api_token": "", "n": [1, {"$file": "x"}]})),
        // Not a reference: for the daemon to refuse.
        (&["--args-json", r#"{"a":{"$file":1}}"#], "", json!({"a": {"$file": 1}})),
    ];
    for (words, stdin, expected) in cases {
        let found = match words.contains(&"-p") {
            // The profile stands between verb and arguments.
            true => {
                let output = folder.command("plan").args(words).output().unwrap();
                assert!(output.status.success(), "{}", text(&output.stderr));
                let line = folder.said().last().unwrap().clone();
                serde_json::from_str(line.strip_prefix("ctl plan -p secure ").unwrap()).unwrap()
            }
            false => arguments(&folder, words, stdin).unwrap(),
        };
        assert_eq!(found, expected, "{words:?}");
    }
    let refused: [(&[&str], &str); 8] = [
        (&["--arg-file"], "NAME=PATH"),
        (&["--arg-file", "token"], "NAME=PATH"),
        (&["--arg-file", "x=/no/such"], "cannot open /no/such: no such file"),
        (&["--arg-file", &format!("x={}", path("binary"))], "is not UTF-8"),
        (&["--arg-file", &format!("x={}", path("large"))], "larger than 1 MiB"),
        (&["--arg-file", "x=/"], "cannot read /: is a directory"),
        (&["--args-json", "[]", "--arg-file", &token], "wants an object"),
        (&["--args-json", r#"{"api_token":"x"}"#, "--arg-file", &token], "given twice"),
    ];
    for (words, reason) in refused {
        let words_of_it = arguments(&folder, words, "").unwrap_err();
        assert!(words_of_it.contains(reason), "{words:?}: {words_of_it}");
        let output = folder.command("run").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(folder.runs().is_empty(), "a run was made for {words:?}");
    }
    // Nothing of it is a secret on the command line, so nobody is warned.
    let output = folder.command("plan").args(["--arg-file", &token]).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    let output = folder.command("plan").args(["--args-json", &reference("token")]).output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn plan_asks_and_runs_nothing() {
    let folder = JobFolder::mount(ARGSPEC);
    folder.answer("ctl", Answer::reply("{\"command\": []}\n"));
    let output = folder.command("plan").args(["--database", "app"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "{\"command\": []}\n"));
    let output = folder.command("plan").args(["--args-json", "{\"database\":\n\"app\"}"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = folder.command("run").arg("--help").output().unwrap();
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(0), false));
    assert_eq!(
        folder.said(),
        ["ctl plan [\"--database\",\"app\"]", "ctl plan {\"database\": \"app\"}", "ctl help"]
    );
    folder.answer("ctl", Answer::refusal(EINVAL, "arguments.invalid: nope\n"));
    let output = folder.command("plan").output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(125), "arguments.invalid: nope\n")
    );
    let output = folder.command("plan").arg("x".repeat(4096)).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(folder.runs().is_empty());
}

#[test]
fn follow_prints_until_the_end() {
    let folder = JobFolder::mount(ARGSPEC);
    fs::create_dir(folder.path().join("runs/nightly")).unwrap();
    folder.set("runs/nightly/state", "running\n");
    folder.append("runs/nightly/stdout", "one\n");
    let child = Guarded::spawn(&mut folder.command("runs/nightly/follow"));
    std::thread::sleep(Duration::from_millis(30));
    folder.append("runs/nightly/stdout", "two\n");
    folder.append("runs/nightly/stderr", "three\n");
    end(&folder, "nightly", "failed\n", "3\n");
    let output = child.output();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("one\ntwo\n", "three\n"));
}

#[test]
fn is_found_through_links_and_from_elsewhere() {
    let folder = JobFolder::mount(ARGSPEC);
    folder.answer("ctl", Answer::reply("planned\n"));
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("backup");
    std::os::unix::fs::symlink(folder.path().join("plan"), &link).unwrap();
    let through_link = Command::new(&link).output().unwrap();
    assert_eq!(text(&through_link.stdout), "planned\n", "{}", text(&through_link.stderr));
    let by_path =
        Command::new("sh").args(["-c", "PATH=$1 plan"]).arg("sh").arg(folder.path()).output().unwrap();
    assert_eq!(text(&by_path.stdout), "planned\n", "{}", text(&by_path.stderr));
    let relative =
        Command::new("sh").args(["-c", "cd \"$1\" && ./plan"]).arg("sh").arg(folder.path()).output().unwrap();
    assert_eq!(text(&relative.stdout), "planned\n", "{}", text(&relative.stderr));
    // A copy knows no job.
    let copy = elsewhere.path().join("other");
    fs::copy(folder.path().join("plan"), &copy).unwrap();
    let output = Command::new(&copy).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("mount"));
}

#[test]
fn works_without_proc() {
    let folder = JobFolder::mount(ARGSPEC);
    folder.answer("ctl", Answer::reply("planned\n"));
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("plan"), &link).unwrap();
    for program in [folder.path().join("plan"), link] {
        // In a mount namespace of its own, so that /proc of the others stays.
        let script = "mount -t tmpfs none /proc && exec \"$1\"";
        let output =
            Command::new("unshare").args(["-m", "sh", "-c", script, "sh"]).arg(&program).output().unwrap();
        assert_eq!(text(&output.stdout), "planned\n", "{}", text(&output.stderr));
    }
}

#[test]
fn is_small() {
    assert!(addonfs::jobs::runner::RUNNER.len() <= 64 << 10);
}
