//! An executor that plays what its job's argument `then` says, and a world that outlives the daemons of a test.
//!
//! | `then` | what happens |
//! |---|---|
//! | (none), `hang` | it runs until [`World::finish`], a cancel or a signal |
//! | `exit N` | it ends at once with N |
//! | `refuse` | the runtime cannot start it |
//! | `unclaimed` | it is offered, and no shim ever comes |
//! | `slow` | a shim takes the launch and then nothing happens until [`World::let_start`]; it comes up then, for whoever is alive |
#![allow(clippy::unwrap_used)] // the helpers of a test are tests too

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use addonfs::jobs::executor::{
    Cause, EXIT_FILE, Executor, Launch, LaunchSpec, NetworkSpec, Outcome, RuntimeInfo, SHIM_FILE, ShimId,
    Stop, offered_name, take_offer,
};
use addonfs::policy::addon::Network;
use async_trait::async_trait;
use tokio::sync::watch;

/// What a shim leaves when it has ended; `None` while it lives.
type End = watch::Sender<Option<Outcome>>;

/// The host: shims live here, whatever becomes of daemons.
#[derive(Debug)]
pub struct World {
    shims: Mutex<HashMap<PathBuf, Arc<End>>>,
    /// Everything that was launched, in order.
    pub launched: Mutex<Vec<LaunchSpec>>,
    /// The folders of the runs whose shim came up, in order.
    pub came_up: Mutex<Vec<PathBuf>>,
    /// The secrets of each launch.
    pub secrets: Mutex<Vec<Vec<(String, String)>>>,
    /// What shims were told.
    pub stops: Mutex<Vec<Stop>>,
    pub runtime: Mutex<Result<RuntimeInfo, String>>,
    pub network: Mutex<Result<NetworkSpec, String>>,
    pub start_deadline: Mutex<Duration>,
    gate: watch::Sender<bool>,
    pids: AtomicI32,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shims: Mutex::default(),
            launched: Mutex::default(),
            came_up: Mutex::default(),
            secrets: Mutex::default(),
            stops: Mutex::default(),
            runtime: Mutex::new(Ok(RuntimeInfo {
                name: "scripted".into(),
                path: "/bin/true".into(),
                version: "1".into(),
            })),
            network: Mutex::new(Ok(NetworkSpec::None)),
            start_deadline: Mutex::new(Duration::from_secs(30)),
            gate: watch::Sender::new(false),
            pids: AtomicI32::new(1000),
        })
    }

    /// A shim ends.
    pub fn finish(&self, run_dir: &Path, outcome: Outcome) {
        let text = serde_json::to_vec(&outcome).unwrap();
        std::fs::write(run_dir.join(EXIT_FILE), text).unwrap();
        self.shims.lock().unwrap()[run_dir].send_replace(Some(outcome));
    }

    /// A shim dies without a word.
    pub fn vanish(&self, run_dir: &Path) {
        let shim = self.shims.lock().unwrap().remove(run_dir).unwrap();
        let mut lost = outcome(Cause::Lost, None);
        lost.message = Some("its shim is gone".into());
        shim.send_replace(Some(lost));
    }

    /// Starts that hang go on.
    pub fn let_start(&self) {
        self.gate.send_replace(true);
    }

    pub fn launches(&self) -> usize {
        self.launched.lock().unwrap().len()
    }

    fn come_up(&self, launch: &Launch) -> ShimId {
        self.came_up.lock().unwrap().push(launch.run_dir.clone());
        let shim = ShimId { pid: self.pids.fetch_add(1, Ordering::Relaxed), start_ticks: 7 };
        std::fs::write(launch.run_dir.join(SHIM_FILE), serde_json::to_vec(&shim).unwrap()).unwrap();
        self.shims.lock().unwrap().insert(launch.run_dir.clone(), Arc::new(watch::Sender::new(None)));
        shim
    }
}

/// An outcome without further news.
pub fn outcome(cause: Cause, exit_code: Option<i32>) -> Outcome {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = u64::try_from(since.as_millis()).unwrap();
    Outcome {
        cause,
        exit_code,
        signal: None,
        message: None,
        started_ms: Some(now),
        ended_ms: now,
        cpu_usec: Some(5),
        memory_peak: Some(6),
        oom_killed: false,
        log_dropped: 0,
    }
}

/// One daemon's executor in that world.
#[derive(Debug)]
pub struct ScriptedExecutor(pub Arc<World>);

#[async_trait]
impl Executor for ScriptedExecutor {
    fn runtime(&self) -> Result<RuntimeInfo, String> {
        self.0.runtime.lock().unwrap().clone()
    }

    fn can_network(&self, network: Network) -> Result<NetworkSpec, String> {
        match network {
            Network::None => Ok(NetworkSpec::None),
            Network::All => self.0.network.lock().unwrap().clone(),
        }
    }

    async fn start(&self, launch: Launch) -> Result<ShimId, String> {
        let world = &self.0;
        let offer = launch.run_dir.join(offered_name());
        std::fs::write(&offer, serde_json::to_vec(&launch.spec).unwrap()).unwrap();
        world.launched.lock().unwrap().push(launch.spec.clone());
        let secrets = launch.secrets.iter().map(|(name, value)| (name.clone(), value.to_string()));
        world.secrets.lock().unwrap().push(secrets.collect());
        let then =
            launch.spec.env.iter().find(|(name, _)| name == "ARG_THEN").map(|(_, value)| value.as_str());
        match then.unwrap_or("hang") {
            "refuse" => return Err("the runtime said no".into()),
            "unclaimed" => std::future::pending().await,
            _ if !take_offer(&offer).unwrap() => return Err("the launch was revoked".into()),
            "slow" => {
                world.gate.subscribe().wait_for(|open| *open).await.map_err(|e| e.to_string())?;
            }
            _ => {}
        }
        let shim = world.come_up(&launch);
        if let Some(code) = then.and_then(|t| t.strip_prefix("exit ")) {
            world.finish(&launch.run_dir, outcome(Cause::Exited, code.parse().ok()));
        }
        Ok(shim)
    }

    async fn wait(&self, run_dir: &Path, _shim: &ShimId) -> Outcome {
        let shim = self.0.shims.lock().unwrap().get(run_dir).cloned();
        let Some(shim) = shim else {
            let left = std::fs::read(run_dir.join(EXIT_FILE)).ok();
            return left
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_else(|| outcome(Cause::Lost, None));
        };
        let mut end = shim.subscribe();
        let ended = end.wait_for(Option::is_some).await.unwrap();
        ended.clone().unwrap()
    }

    async fn stop(&self, run_dir: &Path, _shim: &ShimId, stop: Stop) -> Result<(), String> {
        self.0.stops.lock().unwrap().push(stop);
        if !self.0.shims.lock().unwrap().contains_key(run_dir) {
            return Err("the shim is gone".into());
        }
        let end = match stop {
            Stop::Cancel => outcome(Cause::Canceled, Some(143)),
            Stop::Signal(n) => Outcome { signal: Some(n), ..outcome(Cause::Exited, Some(128 + n)) },
            Stop::Eof => return Ok(()),
        };
        self.0.finish(run_dir, end);
        Ok(())
    }

    fn start_deadline(&self) -> Duration {
        *self.0.start_deadline.lock().unwrap()
    }
}
