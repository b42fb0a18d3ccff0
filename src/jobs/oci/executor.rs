//! The daemon's side of a run: hand a launch to a shim, wait for it, tell it to stop.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::cgroup;
use super::launch::{self, EMBEDDED, ShimLaunch};
use super::netns::Pool;
use super::network::{self, Tool};
use super::probe::{self, Probe};
use super::waiting::{wait_blocking, wait_gone};
use super::{control, shim, sweep};
use crate::jobs::executor::{
    Cause, Executor, Launch, NetworkSpec, Outcome, RuntimeInfo, ShimId, Stop, offered_name,
};
use crate::jobs::spawner::{Helper, Spawner, memory_file};
use crate::policy::addon::Network;

/// How many network namespaces are kept ready: a small burst. Each costs the kernel some 60 KiB.
const POOL_SIZE: usize = 4;
/// The pool is filled again when the job that took from it has started: making a namespace would slow that down.
const REFILL_DELAY: Duration = Duration::from_millis(50);
/// How long the self-test of one runtime may take.
const SELFTEST_LIMIT: Duration = Duration::from_secs(20);

/// What the executor is told by the configuration.
#[derive(Debug, Clone)]
pub struct OciOptions {
    /// The runtime to use (`crun`, `/opt/bin/runc`, `embedded`); else crun, runc, youki and the embedded one are tried.
    pub runtime: Option<PathBuf>,
    /// A folder of the daemon for the self-test's files, removed again.
    pub scratch_dir: PathBuf,
    /// How many network namespaces to keep ready; 0 for none.
    pub ready_networks: usize,
}

impl OciOptions {
    /// The defaults, with a scratch folder.
    pub fn new(scratch_dir: impl Into<PathBuf>) -> Self {
        Self { runtime: None, scratch_dir: scratch_dir.into(), ready_networks: POOL_SIZE }
    }
}

/// Runs launches in containers of an OCI runtime. Clones share everything.
#[derive(Debug, Clone)]
pub struct OciExecutor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spawner: Spawner,
    options: OciOptions,
    probe: Probe,
    proving: AtomicBool,
    pool: Pool,
    is_root: bool,
    /// With a runtime of the host, and with the embedded one.
    limits_unavailable: [Vec<String>; 2],
}

impl OciExecutor {
    /// An executor. It proves a runtime and makes network namespaces in the background at once; a launch that comes
    /// earlier waits for that, a question about the runtime does not.
    pub fn new(spawner: Spawner, options: OciOptions) -> Self {
        let configured = options.runtime.clone().map(|named| match named.components().count() {
            1 if named == Path::new(EMBEDDED) => named,
            1 => named.to_str().and_then(network::find_program).unwrap_or(named),
            _ => named,
        });
        // Somebody else's namespaces belong to a user namespace of the run; its shim makes them.
        let is_root = nix::unistd::geteuid().is_root();
        let inner = Arc::new(Inner {
            probe: Probe::new(configured),
            proving: AtomicBool::new(false),
            pool: Pool::new(spawner.clone(), if is_root { options.ready_networks } else { 0 }),
            is_root,
            limits_unavailable: [false, true].map(|embedded| cgroup::for_runtime(embedded).unavailable()),
            spawner,
            options,
        });
        inner.prove_in_background();
        Self { inner }
    }

    /// The runtime, proven: waits for the proof. Not for a thread that must answer at once.
    pub fn proven(&self) -> Result<RuntimeInfo, String> {
        self.inner.runtime()
    }
}

impl Inner {
    /// Proves a runtime on a thread of its own, unless one does already.
    fn prove_in_background(self: &Arc<Self>) {
        if self.proving.swap(true, Ordering::AcqRel) {
            return;
        }
        let background = Arc::downgrade(self);
        let started = std::thread::Builder::new().name("oci-probe".to_owned()).spawn(move || {
            if let Some(inner) = background.upgrade() {
                let _ = inner.runtime();
                inner.proving.store(false, Ordering::Release);
                inner.pool.fill();
            }
        });
        if started.is_err() {
            self.proving.store(false, Ordering::Release);
        }
    }

    fn runtime(&self) -> Result<RuntimeInfo, String> {
        self.probe.runtime(|path| {
            let version = if path == Path::new(EMBEDDED) {
                format!("addonfs {}", env!("CARGO_PKG_VERSION")).into_bytes()
            } else {
                let asked = Helper::new(path, ["--version"]);
                self.spawner.helper_blocking(&asked).map(|o| o.stdout).unwrap_or_default()
            };
            let runtime = probe::describe(path, &String::from_utf8_lossy(&version));
            self.selftest(&runtime).map(|()| runtime)
        })
    }

    fn selftest(&self, runtime: &RuntimeInfo) -> Result<(), String> {
        // Its control group has this name too, and other daemons of this host test their runtimes at any time.
        let run_id = format!("selftest-{:016x}", rand::random::<u64>());
        let run_dir = self.options.scratch_dir.join(&run_id);
        let result = self.selftest_in(runtime, run_id, &run_dir);
        let _ = sweep::run(&run_dir);
        let _ = fs::remove_dir_all(&run_dir);
        result
    }

    fn selftest_in(&self, runtime: &RuntimeInfo, run_id: String, run_dir: &Path) -> Result<(), String> {
        make_folder(run_dir)?;
        let spec = probe::launch_spec(run_id, run_dir)?;
        let launch = Launch { spec, secrets: Vec::new(), run_dir: run_dir.to_owned() };
        let shim = self.start_with(runtime, None, launch)?;
        if let Err(stuck) = wait_blocking(&shim, SELFTEST_LIMIT) {
            sweep::kill(&shim);
            let _ = wait_blocking(&shim, SELFTEST_LIMIT);
            return Err(stuck);
        }
        let outcome: Outcome = launch::read_json(&run_dir.join(launch::EXIT))
            .map_err(|e| format!("its shim ended without an outcome: {e}{}", shim_log(run_dir)))?;
        probe::judge(&outcome)
    }

    fn start(&self, launch: Launch) -> Result<ShimId, String> {
        let runtime = self.runtime()?;
        let tool = match launch.spec.network {
            NetworkSpec::User => Some(network::find()?),
            NetworkSpec::None | NetworkSpec::Host => None,
        };
        self.start_with(&runtime, tool, launch)
    }

    fn start_with(
        &self,
        runtime: &RuntimeInfo,
        tool: Option<Tool>,
        launch: Launch,
    ) -> Result<ShimId, String> {
        let Launch { spec, secrets, run_dir } = launch;
        let words = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", run_dir.display());
        let namespace = match spec.network {
            NetworkSpec::None => self.pool.take(),
            NetworkSpec::User => self.is_root.then(|| self.pool.take_or_make()).transpose()?,
            NetworkSpec::Host => None,
        };
        let wants_stdin = spec.stdin;
        for stale in [launch::EXIT, launch::SHIM] {
            let _ = fs::remove_file(run_dir.join(stale));
        }
        let file = ShimLaunch::new(spec, runtime.path.clone(), tool);
        let offer = run_dir.join(offered_name());
        launch::write_json(&offer, &file).map_err(|e| words(launch::LAUNCH, &e))?;
        // Opened here and passed on: what is written as soon as we return has a reader already.
        let both_ways = |name: &str| {
            let path = run_dir.join(name);
            control::make_pipe(&path)
                .and_then(|()| fs::OpenOptions::new().read(true).write(true).open(&path))
                .map_err(|e| words(name, &e))
        };
        let control = both_ways(launch::CONTROL)?;
        let stdin = wants_stdin.then(|| both_ways(launch::STDIN)).transpose()?;
        let secrets = secret_file(&secrets).map_err(|e| words("secrets", &e))?;
        let mut fds: Vec<(&str, BorrowedFd<'_>)> = vec![("control", control.as_fd())];
        fds.extend(stdin.as_ref().map(|file| ("stdin", file.as_fd())));
        fds.extend(secrets.as_ref().map(|file| ("secrets", file.as_fd())));
        fds.extend(namespace.as_ref().map(|fd| ("network", fd.as_fd())));
        let args = vec![shim::ENTRY.into(), offer.into()];
        let log = run_dir.join(launch::LOG);
        let who = self.spawner.start_detached_blocking(args, Some(&log), &fds)?;
        Ok(ShimId { pid: who.pid, start_ticks: who.start_ticks })
    }
}

/// Secrets travel in a file in memory, never on disk.
fn secret_file(secrets: &[(String, zeroize::Zeroizing<String>)]) -> io::Result<Option<fs::File>> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let pairs: Vec<(&str, &str)> =
        secrets.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let text = zeroize::Zeroizing::new(serde_json::to_vec(&pairs)?);
    memory_file(&text).map(Some)
}

#[async_trait]
impl Executor for OciExecutor {
    fn runtime(&self) -> Result<RuntimeInfo, String> {
        let (answer, due) = self.inner.probe.at_hand();
        if due {
            self.inner.prove_in_background();
        }
        answer
    }

    fn can_network(&self, network: Network) -> Result<NetworkSpec, String> {
        match network {
            Network::None => Ok(NetworkSpec::None),
            Network::All => network::find().map(|_| NetworkSpec::User),
        }
    }

    async fn start(&self, launch: Launch) -> Result<ShimId, String> {
        let inner = self.inner.clone();
        let started = tokio::task::spawn_blocking(move || inner.start(launch)).await;
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REFILL_DELAY).await;
            let _ = tokio::task::spawn_blocking(move || inner.pool.fill()).await;
        });
        started.unwrap_or_else(|e| Err(format!("start of a shim: {e}")))
    }

    async fn wait(&self, run_dir: &Path, shim: &ShimId) -> Outcome {
        wait_gone(shim).await;
        let run_dir = run_dir.to_owned();
        let ended = tokio::task::spawn_blocking(move || outcome_of(&run_dir)).await;
        ended.unwrap_or_else(|e| lost(format!("the end of the run could not be read: {e}")))
    }

    async fn stop(&self, run_dir: &Path, shim: &ShimId, stop: Stop) -> Result<(), String> {
        if !sweep::alive(shim) {
            return Err("the run has ended".to_owned());
        }
        let run_dir = run_dir.to_owned();
        let sent = tokio::task::spawn_blocking(move || control::send(&run_dir, stop)).await;
        sent.unwrap_or_else(|e| Err(e.to_string()))
    }

    fn limits_unavailable(&self) -> Vec<String> {
        let (runtime, _) = self.inner.probe.at_hand();
        let [with_host, with_embedded] = &self.inner.limits_unavailable;
        if runtime.is_ok_and(|r| r.path == Path::new(EMBEDDED)) {
            with_embedded.clone()
        } else {
            with_host.clone()
        }
    }
}

/// The outcome a dead shim left, or what can be said without one.
fn outcome_of(run_dir: &Path) -> Outcome {
    match launch::read_json(&run_dir.join(launch::EXIT)) {
        Ok(outcome) => outcome,
        Err(_) => {
            let swept = sweep::run(run_dir).err().map(|e| format!("; its remains could not be removed: {e}"));
            lost(format!(
                "the shim ended without an outcome{}{}",
                swept.unwrap_or_default(),
                shim_log(run_dir)
            ))
        }
    }
}

fn lost(words: String) -> Outcome {
    Outcome {
        cause: Cause::Lost,
        exit_code: None,
        signal: None,
        message: Some(words),
        started_ms: None,
        ended_ms: shim::now_ms(),
        cpu_usec: None,
        memory_peak: None,
        oom_killed: false,
        log_dropped: 0,
    }
}

/// The end of the shim's complaints, as an appendix.
fn shim_log(run_dir: &Path) -> String {
    let text = fs::read_to_string(run_dir.join(launch::LOG)).unwrap_or_default();
    text.lines().last().map(|line| format!(" ({line})")).unwrap_or_default()
}

fn make_folder(path: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| format!("cannot make {}: {e}", path.display()))
}
