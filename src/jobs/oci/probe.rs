//! Which runtime: the configured one and no other (whoever names a program does not want another one in its place
//! unnoticed), else crun, runc, youki, the embedded one, the first that proves itself with a container. For an ordinary
//! user the embedded one comes first: it alone uses the control groups that the host delegates.
//!
//! A `--version` that works proves nothing (crun refuses hybrid hosts, runc a missing privilege), so each candidate
//! runs one tiny container the very way jobs run, through a shim. The answer is kept until a candidate's program
//! changes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::launch::EMBEDDED;
use super::network::find_program;
use super::selftest;
use crate::jobs::executor::{Cause, LaunchSpec, NetworkSpec, Outcome, RuntimeInfo};

/// In this order: the fastest first.
const CANDIDATES: [&str; 3] = ["crun", "runc", "youki"];
/// How long a failed search is believed before the next one, so that a broken host is not probed for every question.
const RETRY: Duration = Duration::from_secs(10);

/// What identifies a program file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Device, inode, size, mtime and its nanoseconds.
    file: (u64, u64, u64, i64, i64),
}

#[derive(Debug)]
struct Proven {
    candidates: Vec<Stamp>,
    at: Instant,
    answer: Result<RuntimeInfo, String>,
}

/// The search and its last answer.
#[derive(Debug)]
pub(super) struct Probe {
    configured: Option<PathBuf>,
    proven: Mutex<Option<Proven>>,
}

impl Probe {
    pub(super) fn new(configured: Option<PathBuf>) -> Self {
        Self { configured, proven: Mutex::new(None) }
    }

    /// The runtime, from memory if nothing changed; `prove` runs a container with a program and says what it is, or
    /// what went wrong.
    /// Whoever asks while another one is proving waits for that answer.
    pub(super) fn runtime(
        &self,
        prove: impl Fn(&Path) -> Result<RuntimeInfo, String>,
    ) -> Result<RuntimeInfo, String> {
        let candidates = self.candidates();
        let mut proven = self.proven.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = proven.as_ref().filter(|known| self.holds(known, &candidates)) {
            return known.answer.clone();
        }
        let answer = self.search(&candidates, prove);
        *proven = Some(Proven { candidates, at: Instant::now(), answer: answer.clone() });
        answer
    }

    /// The answer as far as it is known, at once: the last one, or, while the first proof is under way, the
    /// candidate that is tried first. The second value says that a proof is due.
    pub(super) fn at_hand(&self) -> (Result<RuntimeInfo, String>, bool) {
        let candidates = self.candidates();
        match self.proven.try_lock() {
            Ok(proven) => match proven.as_ref() {
                Some(known) => (known.answer.clone(), !self.holds(known, &candidates)),
                None => (self.supposed(&candidates), true),
            },
            Err(_) => (self.supposed(&candidates), false),
        }
    }

    /// Whether an answer still counts.
    fn holds(&self, known: &Proven, candidates: &[Stamp]) -> bool {
        known.candidates == candidates && (known.answer.is_ok() || known.at.elapsed() < RETRY)
    }

    fn supposed(&self, candidates: &[Stamp]) -> Result<RuntimeInfo, String> {
        let first = candidates.first().ok_or_else(|| self.no_candidate())?;
        let name = first.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(RuntimeInfo { name, path: first.path.clone(), version: "(being tested)".to_owned() })
    }

    fn no_candidate(&self) -> String {
        match &self.configured {
            Some(path) => format!("the configured runtime {} does not exist", path.display()),
            None => format!("none of {} is installed: install one of them", CANDIDATES.join(", ")),
        }
    }

    fn candidates(&self) -> Vec<Stamp> {
        let embedded = cfg!(feature = "embedded-runtime").then(|| PathBuf::from(EMBEDDED));
        let paths: Vec<PathBuf> = match &self.configured {
            Some(path) => vec![path.clone()],
            None => {
                let mut all: Vec<PathBuf> = CANDIDATES.into_iter().filter_map(find_program).collect();
                let first = if nix::unistd::geteuid().is_root() { all.len() } else { 0 };
                all.splice(first..first, embedded.clone());
                all
            }
        };
        let stamp = |path: PathBuf| {
            let program = if Some(&path) == embedded.as_ref() { Path::new("/proc/self/exe") } else { &path };
            let m = fs::metadata(program).ok()?;
            Some(Stamp { path, file: (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()) })
        };
        paths.into_iter().filter_map(stamp).collect()
    }

    fn search(
        &self,
        candidates: &[Stamp],
        prove: impl Fn(&Path) -> Result<RuntimeInfo, String>,
    ) -> Result<RuntimeInfo, String> {
        let mut reasons = Vec::new();
        for candidate in candidates {
            match prove(&candidate.path) {
                Ok(info) => return Ok(info),
                Err(why) => reasons.push(format!("{} failed its self-test: {why}", candidate.path.display())),
            }
        }
        if reasons.is_empty() {
            reasons.push(self.no_candidate());
        }
        Err(format!("no OCI runtime: {}", reasons.join("; ")))
    }
}

/// What a runtime is, from what it printed for `--version`.
pub(super) fn describe(path: &Path, version: &str) -> RuntimeInfo {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = version.lines().next().unwrap_or_default().trim().to_owned();
    RuntimeInfo { name, path: path.to_owned(), version }
}

/// The launch of the self-test: `dir` gets the root file system.
pub(super) fn launch_spec(run_id: String, dir: &Path) -> Result<LaunchSpec, String> {
    let program = selftest::program().ok_or("no self-test program for this architecture")?;
    let rootfs = dir.join("rootfs");
    let path = rootfs.join("probe");
    fs::create_dir_all(&rootfs)
        .and_then(|()| fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::write(&path, program))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| format!("cannot write the self-test to {}: {e}", dir.display()))?;
    Ok(LaunchSpec {
        run_id,
        rootfs,
        argv: vec!["/probe".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: "0:0".to_owned(),
        read_only_root: true,
        network: NetworkSpec::None,
        cpu_millis: Some(1000),
        memory_bytes: Some(64 << 20),
        pids: 32,
        timeout_ms: Some(10_000),
        grace_ms: 0,
        tmp_bytes: 1 << 20,
        out_bytes: 1 << 20,
        log_bytes: 1 << 16,
        data_dir: None,
        args_json: "{}".to_owned(),
        stdin: false,
        secret_names: Vec::new(),
    })
}

/// Whether the self-test's outcome proves the runtime.
pub(super) fn judge(outcome: &Outcome) -> Result<(), String> {
    match (outcome.cause, outcome.exit_code) {
        (Cause::Exited, Some(selftest::CODE)) => Ok(()),
        (cause, code) => {
            Err(outcome.message.clone().unwrap_or_else(|| format!("ended {cause:?} with {code:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_answer_is_kept_until_the_program_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime");
        let asked = Cell::new(0);
        let probe = Probe::new(Some(path.clone()));
        let ask = |result: Result<(), String>| {
            probe.runtime(|path| {
                asked.set(asked.get() + 1);
                result.clone().map(|()| describe(path, "runtime version 2.0\nmore\n"))
            })
        };
        assert!(ask(Ok(())).unwrap_err().contains("does not exist"));
        assert_eq!(asked.get(), 0);
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(ask(Err("broken".into())).unwrap_err().contains("broken"));
        assert!(ask(Ok(())).is_err(), "a failure is believed for a while");
        fs::write(&path, "another").unwrap();
        assert_eq!(ask(Ok(())).unwrap().version, "runtime version 2.0");
        assert_eq!(ask(Err("not asked".into())).unwrap().name, "runtime");
        assert_eq!(asked.get(), 2);
    }
}
