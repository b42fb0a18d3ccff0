//! The spawner: helpers with deadlines, detached processes that outlive everybody, its own end.

use std::path::Path;
use std::time::{Duration, Instant};

use addonfs::jobs::spawner::{Helper, Spawner};
use nix::sys::signal::Signal;

fn spawner() -> Spawner {
    Spawner::start_program(Path::new(env!("CARGO_BIN_EXE_addonfs"))).expect("spawner")
}

#[test]
fn helper_gets_stdin_and_environment_and_its_output_and_code_come_back() {
    let s = spawner();
    let mut helper = Helper::new("sh", ["-c", "cat; echo \"$WORD\" >&2; exit 7"]);
    helper.stdin = b"some input".to_vec();
    helper.env = vec![("WORD".into(), "hello".into())];
    let out = s.helper_blocking(&helper).expect("helper");
    assert_eq!((out.code, out.signal, out.timed_out), (Some(7), None, false));
    assert_eq!(out.stdout, b"some input");
    assert_eq!(out.stderr, b"hello\n");
}

#[test]
fn helper_is_killed_at_its_deadline_with_its_children() {
    let s = spawner();
    let mut helper = Helper::new("sh", ["-c", "sleep 54321 & echo $!; wait"]);
    helper.deadline = Duration::from_millis(200);
    let out = s.helper_blocking(&helper).expect("helper");
    assert!(out.timed_out);
    assert_eq!(out.signal, Some(9));
    let grandchild: i32 = String::from_utf8(out.stdout).expect("text").trim().parse().expect("pid");
    wait_for(|| !alive(grandchild), "the helper's child to be killed");
}

#[test]
fn missing_program_and_endless_output_are_told() {
    let s = spawner();
    let error = s.helper_blocking(&Helper::new("/no/such/program", ["x"; 0])).expect_err("missing");
    assert!(error.contains("/no/such/program"), "{error}");
    let out = s.helper_blocking(&Helper::new("yes", ["x"; 0])).expect("yes");
    assert_eq!(out.stdout.len(), 1 << 20);
    assert_eq!(out.signal, Some(13));
}

#[test]
fn helper_inherits_no_stray_descriptors() {
    let s = spawner();
    let out = s.helper_blocking(&Helper::new("sh", ["-c", "ls /proc/$$/fd"])).expect("ls");
    let listed = String::from_utf8(out.stdout).expect("text");
    let above: Vec<&str> =
        listed.split_whitespace().filter(|n| n.parse::<i32>().is_ok_and(|n| n > 2)).collect();
    assert!(above.is_empty() || above == ["10"], "descriptors beyond the three: {above:?}"); // dash keeps 10
}

#[test]
fn network_namespace_has_only_a_loopback_that_is_up() {
    let s = spawner();
    let ns = s.network_namespace_blocking().expect("namespace");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&ns);
    let path = format!("--net=/proc/{}/fd/{fd}", std::process::id());
    let out = s.helper_blocking(&Helper::new("nsenter", [&path, "cat", "/proc/net/dev"])).expect("nsenter");
    let text = String::from_utf8(out.stdout).expect("text");
    assert_eq!(text.lines().filter(|l| l.contains(':')).count(), 1, "{text}");
    let out = s.helper_blocking(&Helper::new("nsenter", [&path, "ip", "-o", "link"])).expect("nsenter");
    assert!(String::from_utf8_lossy(&out.stdout).contains("LOOPBACK,UP"), "{out:?}");
}

#[test]
fn requests_of_many_threads_do_not_wait_for_each_other() {
    let s = spawner();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let s = &s;
            scope.spawn(move || {
                let out = s
                    .helper_blocking(&Helper::new("sh", ["-c", &format!("sleep 0.5; exit {i}")]))
                    .expect("ok");
                assert_eq!(out.code, Some(i));
            });
        }
    });
    assert!(begin.elapsed() < Duration::from_secs(3), "ran one after the other");
}

/// As a service manager does it to a whole control group: the daemon, which stops by the same signal, unmounts
/// through its spawner. What is started must be terminable all the same.
#[test]
fn a_polite_signal_does_not_end_it_and_is_not_passed_on() {
    let s = spawner();
    // A helper's parent is a worker, and the worker's parent the spawner.
    let out = s.helper_blocking(&Helper::new("sh", ["-c", "ps -o ppid= -p $PPID"])).expect("ps");
    let spawner_pid: i32 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("pid");
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{spawner_pid}/comm")).expect("comm").trim(),
        "addonfs-spawner"
    );
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner_pid), number).expect("kill");
    }
    let ended =
        s.helper_blocking(&Helper::new("sh", ["-c", "kill -TERM $$; echo not"])).expect("still serving");
    assert_eq!((ended.signal, ended.stdout.as_slice()), (Some(15), b"".as_slice()));
}

#[test]
fn it_ends_with_its_last_handle() {
    let s = spawner();
    let out = s.helper_blocking(&Helper::new("sh", ["-c", "ps -o ppid= -p $PPID"])).expect("ps");
    let pid: i32 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("pid");
    assert!(alive(pid));
    drop(s);
    wait_for(|| !alive(pid), "the spawner to end");
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

fn wait_for(mut condition: impl FnMut() -> bool, what: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < until, "waited 5 s for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
