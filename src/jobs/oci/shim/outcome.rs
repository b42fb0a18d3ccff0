//! How a run ended, from what the supervisor saw, the counters and the runtime's log.

use std::fs;
use std::path::Path;

use nix::libc;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::room::Room;
use super::supervise::{Ended, now_ms};
use crate::jobs::executor::{Cause, LaunchSpec, Outcome};
use crate::jobs::oci::cgroup::Usage;

/// The outcome of a job that never ran.
pub(super) fn refused(words: String) -> Outcome {
    Outcome {
        cause: Cause::Refused,
        exit_code: None,
        signal: None,
        message: Some(words),
        started_ms: None,
        ended_ms: now_ms(),
        cpu_usec: None,
        memory_peak: None,
        oom_killed: false,
        log_dropped: 0,
    }
}

/// The exit code a shell would give and words, for a container that did not start.
pub(super) type Why = (Option<i32>, Option<String>);

/// Why the runtime started no container.
pub(super) fn why_refused(spec: &LaunchSpec, room: &Room, log: &Path) -> Why {
    let (words, is_ours) = runtime_words(log);
    if is_ours {
        return (None, Some(words));
    }
    let program = spec.argv.first().map(String::as_str).unwrap_or_default();
    let lower = words.to_lowercase();
    if lower.contains("not found") || lower.contains("no such file") {
        if !program.starts_with('/') || !is_in(&room.path("rootfs"), program) {
            return (Some(127), Some(format!("{program}: not found in the image")));
        }
        return (
            Some(127),
            Some(format!("{program}: cannot be executed, its interpreter is missing in the image ({words})")),
        );
    }
    if lower.contains("permission denied") || lower.contains("exec format error") {
        return (Some(126), Some(format!("{program}: cannot be executed: {words}")));
    }
    (None, Some(words))
}

/// Whether the image has this path. Its links lead nowhere else: what the host has is no news for a job's owner.
fn is_in(rootfs: &Path, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    open(rootfs, flags | OFlags::DIRECTORY, Mode::empty())
        .and_then(|root| openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT))
        .is_ok()
}

/// The last error in the runtime's log, and whether it is one of its own making, not of the job's program.
fn runtime_words(log: &Path) -> (String, bool) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let message = lines
        .filter_map(|v| {
            Some((v.get("msg")?.as_str()?.to_owned(), v.get("stage").is_some_and(|s| s == "setup")))
        })
        .next();
    message.unwrap_or_else(|| ("the runtime ended without a word".to_owned(), false))
}

/// Everything put together.
pub(super) fn outcome(
    spec: &LaunchSpec,
    ended: Ended,
    usage: Usage,
    why: Option<Why>,
    log_dropped: u64,
) -> Outcome {
    let (mut exit_code, signal) = ended.status.unwrap_or_default();
    let (mut cause, mut message) = (ended.cause, ended.message);
    if let Some((code, words)) = why {
        message = message.or(words);
        if cause == Cause::Refused && code.is_some() {
            // As in a shell: a program that cannot be executed is an exit code, not a failure of the executor.
            (cause, exit_code) = (Cause::Exited, code);
        }
    }
    if usage.oom_killed && cause == Cause::Exited && exit_code != Some(0) {
        let limit = spec.memory_bytes.map(|b| format!(" of {b} bytes")).unwrap_or_default();
        let whom = if signal == Some(libc::SIGKILL) { "killed" } else { "a process of it was killed" };
        message =
            message.or_else(|| Some(format!("{whom} by the kernel: the memory limit{limit} was reached")));
    }
    Outcome {
        cause,
        exit_code,
        signal,
        message,
        started_ms: ended.started_ms,
        ended_ms: ended.ended_ms,
        cpu_usec: usage.cpu_usec,
        memory_peak: usage.memory_peak,
        oom_killed: usage.oom_killed,
        log_dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_the_image_does_not_lead_to_the_host() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program"), "").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert!(is_in(dir.path(), "/program") && is_in(dir.path(), "/../program"));
        assert!(fs::metadata(dir.path().join("out/passwd")).is_ok(), "the host has it");
        assert!(!is_in(dir.path(), "/out/passwd"));
    }
}
