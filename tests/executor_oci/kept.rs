//! What is kept of a run: its output up to the limit, what it wrote to RUN_DIR; and what it is fed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use addonfs::jobs::executor::{Executor, Stop};
use nix::libc::O_NONBLOCK;

use crate::ends::wait_for;
use crate::host::with_each_runtime;

#[test]
fn run_dir_is_copied_out_without_links_and_special_files() {
    with_each_runtime(|host| {
        let script = "cd $RUN_DIR && mkdir -p a/b && echo result > a/b/file && busybox chmod 4755 a/b/file && \
            ln -s /etc/passwd link && mkfifo pipe && echo done";
        let mut spec = host.sh(script);
        spec.user = "worker".to_owned();
        let done = host.run(spec);
        assert_eq!(done.stdout, "done\n", "{}", done.stderr);
        let file = done.dir.join("out/a/b/file");
        assert_eq!(fs::read_to_string(&file).expect("file"), "result\n");
        assert_eq!(fs::metadata(&file).expect("stat").permissions().mode() & 0o7777, 0o755);
        assert!(!done.dir.join("out/pipe").exists());
        assert!(
            fs::symlink_metadata(done.dir.join("out/link")).is_err(),
            "a link of the job's is never kept"
        );
        assert!(fs::read_to_string(done.dir.join("shim.log")).expect("log").contains("2 entries"));
    });
}

#[test]
fn run_dir_is_limited_and_kept_after_a_failure() {
    with_each_runtime(|host| {
        let mut spec =
            host.sh("echo small > $RUN_DIR/small; dd if=/dev/zero of=$RUN_DIR/big bs=64k count=100; exit 9");
        spec.out_bytes = 256 << 10;
        let done = host.run(spec);
        assert_eq!(done.code(), Some(9));
        assert!(fs::metadata(done.dir.join("out/big")).expect("big").len() <= 256 << 10);
        assert_eq!(fs::read_to_string(done.dir.join("out/small")).expect("small"), "small\n");
    });
}

#[test]
fn of_logs_the_newest_part_is_kept_and_the_rest_is_counted() {
    with_each_runtime(|host| {
        let mut spec = host.sh("yes 0123456789 | head -c 1000000; echo err >&2");
        spec.log_bytes = 64 << 10;
        let done = host.run(spec);
        assert_eq!((done.code(), done.stdout.len(), done.stderr.as_str()), (Some(0), 1_000_000, "err\n"));
        // Above the limit the oldest quarters go: they are a hole, and take no room.
        let first = (1_000_000_u64 - (64 << 10)).div_ceil(16 << 10) * (16 << 10);
        assert_eq!(done.outcome.log_dropped, first);
        let (hole, kept) = done.stdout.as_bytes().split_at(usize::try_from(first).unwrap());
        assert!(hole.iter().all(|byte| *byte == 0) && !kept.contains(&0));
        let blocks = fs::metadata(done.dir.join("stdout")).expect("stdout").blocks();
        assert!(blocks * 512 <= 80 << 10, "{blocks} blocks");
    });
}

#[test]
fn output_is_there_while_the_job_runs() {
    with_each_runtime(|host| {
        let mut spec = host.sh("echo first; cat; echo last");
        spec.stdin = true;
        let (dir, shim) = host.start(spec);
        // Writers come and go, at once and without waiting for a reader; only `eof` ends the job's input.
        let write = |word: &str| {
            let mut options = fs::OpenOptions::new();
            let mut pipe =
                options.write(true).custom_flags(O_NONBLOCK).open(dir.join("stdin")).expect("stdin");
            pipe.write_all(word.as_bytes()).expect("write");
        };
        write("one\n");
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.starts_with("first\n")));
        write("two\n");
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.ends_with("two\n")));
        host.tokio.block_on(host.executor.stop(&dir, &shim, Stop::Eof)).expect("eof");
        let done = host.wait(&dir, &shim);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(0), "first\none\ntwo\nlast\n"));
    });
}

#[test]
fn stdin_is_empty_unless_asked_for() {
    with_each_runtime(|host| {
        let done = host.run(host.sh("wc -c"));
        assert_eq!(done.stdout.trim(), "0");
    });
}
