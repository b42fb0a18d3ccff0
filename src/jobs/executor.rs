//! Who carries out a finished plan.
//!
//! An executor takes a [`Launch`], which holds everything: it decides nothing and looks nothing up. The real one is
//! an OCI runtime driven by a shim process that is no child of the daemon; tests script another.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::policy::addon::Network;

/// Where a container finds its `RUN_DIR`: what it writes there becomes `runs/<name>/out/`.
pub const RUN_DIR_INSIDE: &str = "/run/addonfs/out";
/// Where a container finds its `DATA_DIR`, if it has one.
pub const DATA_DIR_INSIDE: &str = "/run/addonfs/data";
/// Where a container finds its arguments as JSON, without secrets.
pub const ARGS_JSON_INSIDE: &str = "/run/addonfs/args.json";
/// The folder of the secrets inside the container; one 0600 file each.
pub const SECRETS_INSIDE: &str = "/run/secrets";
/// File of the run's folder whose JSON object has the fields of [`ShimId`], among others. The shim writes it (temporary name, then rename)
/// before the job's process starts, so that a daemon that died during [`Executor::start`] can be followed.
pub const SHIM_FILE: &str = "shim.json";
/// File of the run's folder that holds the [`Outcome`] as JSON; the shim's last act (temporary name, then rename).
pub const EXIT_FILE: &str = "exit.json";
/// File of the run's folder that holds the [`LaunchSpec`] as JSON, from the moment in which a shim has made the launch
/// its own; before, it is there under the name that [`offered_name`] gives it.
pub const LAUNCH_FILE: &str = "launch.json";
/// How the name of an offered launch begins.
const OFFERED: &str = "launch-";
/// The FIFO of the run's folder that feeds the job's standard input; made before [`Executor::start`] when
/// [`LaunchSpec::stdin`] is set, because it may be written while the run is queued. The shim holds a writing end, so
/// that the daemon's death is no end of file, until it is told [`Stop::Eof`].
pub const STDIN_FIFO: &str = "stdin";

/// The name under which an executor writes a launch before it asks for a shim. It is new every time, so a shim that
/// comes late can take nothing but its own launch.
pub fn offered_name() -> String {
    format!("{OFFERED}{:016x}.json", rand::random::<u64>())
}

/// A shim makes an offered launch its own: the first thing it does. `false` when it was revoked, and then the shim does
/// nothing at all.
pub fn take_offer(offer: &Path) -> io::Result<bool> {
    match std::fs::rename(offer, offer.with_file_name(LAUNCH_FILE)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Revokes whatever was offered in a run's folder. `true`: no shim ever took it, and none can any more, so the run may be
/// launched (again). `false`: a shim has it. One rename(2) and one unlink(2) of the same name decide between the two.
pub fn revoke_offers(run_dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(run_dir)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(OFFERED) {
            continue;
        }
        match std::fs::remove_file(entry.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(!run_dir.join(LAUNCH_FILE).try_exists()?)
}

/// Everything a run needs, except its secrets. Written to `launch.json` in the run's folder for the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Run id: unique for ever, `[a-z0-9-]+`; names the container and the cgroup.
    pub run_id: String,
    /// The merged image as seen on the mount (`M/.addonfs/images/sha256-….job/rootfs`): lower directory of the overlay.
    pub rootfs: PathBuf,
    /// Command and arguments, exec form.
    pub argv: Vec<String>,
    /// The complete environment, without secrets.
    pub env: Vec<(String, String)>,
    /// Working directory inside the container.
    pub cwd: String,
    /// `USER` of the image as written (`""`, `1000`, `1000:1000`, `postgres`, `postgres:postgres`).
    pub user: String,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// Network of the container.
    pub network: NetworkSpec,
    /// Limits; `None` is unlimited.
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Wall-clock limit in milliseconds.
    pub timeout_ms: Option<u64>,
    /// From TERM to KILL at cancel and timeout, in milliseconds.
    pub grace_ms: u64,
    /// Size limit of `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// Size limit of `RUN_DIR`, bytes.
    pub out_bytes: u64,
    /// Most bytes kept of stdout and of stderr each.
    pub log_bytes: u64,
    /// A host folder bound as `DATA_DIR`, where policy grants it.
    pub data_dir: Option<PathBuf>,
    /// Content of `/run/addonfs/args.json`.
    pub args_json: String,
    /// Whether stdin is the run's `stdin` pipe (else /dev/null).
    pub stdin: bool,
    /// Names of the secrets, so that masking and files can be checked. Values travel apart.
    pub secret_names: Vec<String>,
}

/// Network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkSpec {
    /// A new, empty network namespace.
    None,
    /// An own namespace with outgoing network through pasta or slirp4netns.
    User,
    /// The host's network (granted by `overrides.network: [host]`).
    Host,
}

/// A launch: the spec, the secrets, and the run's folder.
pub struct Launch {
    /// The spec.
    pub spec: LaunchSpec,
    /// Secret values by name; memory only.
    pub secrets: Vec<(String, Zeroizing<String>)>,
    /// The run's folder on disk (drawn in `jobs::layout`); exists, holds `stdin` when the spec wants it. The executor
    /// makes `launch.json`, `stdout`, `stderr`, `out/`, `shim.json`, `exit.json` and files of its own in it.
    pub run_dir: PathBuf,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("spec", &self.spec).field("run_dir", &self.run_dir).finish()
    }
}

/// Identifies a shim across daemon restarts: a pid alone may be reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimId {
    /// Process id.
    pub pid: i32,
    /// Start time of the process in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// How a run ended; `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub cause: Cause,
    /// Exit code of the job (128+n for signal n); `None` if it never ran.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Words, when the executor could not run it or killed it.
    pub message: Option<String>,
    /// Milliseconds since 1970 at which the job's process started and ended.
    pub started_ms: Option<u64>,
    /// See `started_ms`.
    pub ended_ms: u64,
    /// CPU time used, microseconds, where the cgroup tells.
    pub cpu_usec: Option<u64>,
    /// Peak memory, bytes, where the cgroup tells.
    pub memory_peak: Option<u64>,
    /// Killed by the kernel for lack of memory.
    pub oom_killed: bool,
    /// Bytes of stdout and stderr dropped above `log_bytes`.
    pub log_dropped: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The job's process exited or died by itself.
    Exited,
    /// Canceled by request.
    Canceled,
    /// Killed at its timeout.
    Timeout,
    /// The runtime could not start it.
    Refused,
    /// The shim is gone and left no outcome.
    Lost,
}

/// What to tell a live run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// TERM, grace, KILL, cleanup; the outcome is `Canceled`.
    Cancel,
    /// Send this signal to the job's process. KILL also ends everything of the container.
    Signal(i32),
    /// End the job's stdin: the shim closes its own writing end of the run's `stdin` pipe, which it held open so
    /// that writers may come and go. The job reads end of file when no other writer is left.
    Eof,
}

/// Which runtime an executor uses.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimeInfo {
    /// `runc`, `crun`, `youki`; empty when there is none.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Its version, first line of `--version`.
    pub version: String,
}

/// Carries out launches.
#[async_trait]
pub trait Executor: Send + Sync + fmt::Debug {
    /// The runtime in use, or the reason why there is none (words for `container.runtime.unavailable`). Answers at
    /// once: file system requests ask it.
    fn runtime(&self) -> Result<RuntimeInfo, String>;

    /// Whether the network of this plan can be given on this host; the reason and remedy if not.
    fn can_network(&self, network: Network) -> Result<NetworkSpec, String>;

    /// Starts a shim for the launch. When this returns the shim is a process of its own and survives the daemon.
    async fn start(&self, launch: Launch) -> Result<ShimId, String>;

    /// Waits until the shim is gone; reads `exit.json`. Works for shims of an earlier daemon too.
    async fn wait(&self, run_dir: &Path, shim: &ShimId) -> Outcome;

    /// Tells a live shim to stop its job.
    async fn stop(&self, run_dir: &Path, shim: &ShimId, stop: Stop) -> Result<(), String>;

    /// The limits of a [`LaunchSpec`] that this host cannot keep, in words (for `limits_unavailable` of plans and
    /// records): a host without the pids controller, for example, cannot bound processes.
    fn limits_unavailable(&self) -> Vec<String> {
        Vec::new()
    }

    /// How long a caller should expect a start to take at most.
    fn start_deadline(&self) -> Duration {
        Duration::from_secs(30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_taken_or_revoked_and_never_both() {
        let dir = tempfile::tempdir().unwrap();
        assert!(revoke_offers(dir.path()).unwrap(), "nothing was offered");
        let offer = || {
            let path = dir.path().join(offered_name());
            std::fs::write(&path, "{}").unwrap();
            path
        };
        let (late, again) = (offer(), offer());
        assert!(revoke_offers(dir.path()).unwrap());
        assert!(!take_offer(&late).unwrap(), "it was revoked");
        assert!(!take_offer(&again).unwrap());
        let taken = offer();
        assert!(take_offer(&taken).unwrap());
        assert!(!revoke_offers(dir.path()).unwrap(), "a shim has it");
        assert!(!take_offer(&taken).unwrap(), "once");
    }

    #[test]
    fn of_a_shim_and_a_daemon_one_wins() {
        for _ in 0..200 {
            let dir = tempfile::tempdir().unwrap();
            let offer = dir.path().join(offered_name());
            std::fs::write(&offer, "{}").unwrap();
            let (taken, revoked) = std::thread::scope(|scope| {
                let shim = scope.spawn(|| take_offer(&offer).unwrap());
                let revoked = revoke_offers(dir.path()).unwrap();
                (shim.join().unwrap(), revoked)
            });
            assert_ne!(taken, revoked);
        }
    }
}
