//! A control tree with scripted facts, and jobs whose executor runs their commands as plain processes.
//! Not every test uses every helper.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub, missing_debug_implementations)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use addonfs::fs::control::{ControlOptions, ControlTree};
use addonfs::fs::error::FsError;
use addonfs::fs::facts::{CtlTarget, Facts, Rootfs, ShownSource, SourceFiles};
use addonfs::jobs::executor::{Cause, Executor, Launch, NetworkSpec, Outcome, RuntimeInfo, ShimId, Stop};
use addonfs::jobs::{AddonJobs, Jobs, JobsOptions};
use addonfs::policy::addon::{AddonManifest, Network, Origin};
use addonfs::policy::digest::Digest;
use addonfs::policy::event::{Event, EventSink};
use addonfs::policy::image_config::ImageConfig;
use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const MANIFEST: &str = r#"name: postgres-tools
version: 1.0.0
entrypoints:
  - id: backup
    command: [sh, -c, "echo out; echo err >&2; exit 3"]
    argspec:
      type: object
      properties:
        database: {type: string, default: app}
        token: {type: string, format: secret}
  - id: nap
    command: [sleep, "30"]
  - id: echo
    command: [cat]
  - id: files
    command: [sh, -c, 'mkdir -p "$1/sub"; echo data > "$1/sub/file"; ln -s /etc/passwd "$1/link"', sh]
"#;

/// The program behind `run`, `plan`, `wait`, `follow`: a script here.
pub const PROGRAM: &[u8] = b"#!/bin/sh\necho \"$0 $*\"\n";

/// Facts that a test changes.
#[derive(Debug)]
pub struct Script {
    pub generation: AtomicU64,
    pub state: Mutex<State>,
    pub asked: Mutex<Vec<(CtlTarget, String, u32)>>,
    dir: PathBuf,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    pub shown: Vec<Arc<ShownSource>>,
    pub sources: Vec<Arc<SourceFiles>>,
    pub status: String,
}

impl Script {
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

fn bytes(text: &str) -> Arc<[u8]> {
    text.as_bytes().into()
}

impl Facts for Script {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
    fn shown(&self) -> Vec<Arc<ShownSource>> {
        self.state.lock().unwrap().shown.clone()
    }
    fn sources(&self) -> Vec<Arc<SourceFiles>> {
        self.state.lock().unwrap().sources.clone()
    }
    fn status_json(&self) -> Arc<[u8]> {
        bytes(&self.state.lock().unwrap().status)
    }
    fn discovery_errors(&self) -> Arc<[u8]> {
        bytes("")
    }
    fn last_error(&self) -> Arc<[u8]> {
        bytes("")
    }
    fn metrics(&self) -> Arc<[u8]> {
        bytes("# EOF\n")
    }
    fn events_file(&self) -> PathBuf {
        self.dir.join("events.jsonl")
    }
    fn source_events_file(&self, source: &str) -> Option<PathBuf> {
        Some(self.dir.join(format!("{source}.events.jsonl")))
    }
    fn control(&self, target: &CtlTarget, line: &str, uid: u32) -> Result<String, FsError> {
        self.asked.lock().unwrap().push((target.clone(), line.to_owned(), uid));
        match line {
            "ping" => Ok("pong\n".to_owned()),
            other => Err(FsError::Invalid(format!("there is no command `{other}`"))),
        }
    }
    fn tell(&self, _: Event) {}
}

/// A source as the daemon shows it.
pub fn shown(name: &str, mount_path: &str, rootfs: Option<Digest>) -> Arc<ShownSource> {
    Arc::new(ShownSource {
        name: name.to_owned(),
        mount_path: mount_path.to_owned(),
        manifest: bytes(MANIFEST),
        addon_json: bytes("{}\n"),
        rootfs: rootfs.map(Rootfs::Complete),
        addon_dir: "addon",
    })
}

/// Its files below `.addonfs/sources`.
pub fn source_files(name: &str) -> Arc<SourceFiles> {
    Arc::new(SourceFiles {
        name: name.to_owned(),
        spec_yaml: bytes("name: x\n"),
        status_json: bytes("{\"phase\":\"ready\"}\n"),
        conditions: bytes("Ready True\n"),
        last_error: bytes(""),
    })
}

/// The jobs of [`MANIFEST`].
pub fn addon_jobs(source: &str, mount_path: &str) -> AddonJobs {
    let digest = Digest::of(source.as_bytes());
    AddonJobs {
        source: source.to_owned(),
        mount_path: mount_path.to_owned(),
        origin: Origin {
            source_kind: "oci".to_owned(),
            source_name: source.to_owned(),
            addon_name: "postgres-tools".to_owned(),
            addon_version: "1.0.0".to_owned(),
            addon_image_digest: digest,
            origin_revision: None,
            origin_source: None,
        },
        manifest: Arc::new(AddonManifest::parse(MANIFEST.as_bytes()).expect("the manifest is valid")),
        image_config: Arc::new(ImageConfig { working_dir: "/".to_owned(), ..ImageConfig::default() }),
        tree: digest,
        image: "localhost:5000/postgres-tools:v1".to_owned(),
        trust: serde_json::Value::Null,
        refused_under: Vec::new(),
    }
}

/// Runs the command of a launch as a plain process, without any container.
#[derive(Debug, Default)]
pub struct PlainProcesses(Mutex<HashMap<PathBuf, Live>>);

#[derive(Debug)]
struct Live {
    child: Option<tokio::process::Child>,
    pid: i32,
    canceled: bool,
    /// Keeps the job's standard input open until `eof`.
    stdin: Option<File>,
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[async_trait]
impl Executor for PlainProcesses {
    fn runtime(&self) -> Result<RuntimeInfo, String> {
        Ok(RuntimeInfo { name: "plain".to_owned(), path: "/bin/sh".into(), version: "1".to_owned() })
    }

    fn can_network(&self, _: Network) -> Result<NetworkSpec, String> {
        Ok(NetworkSpec::None)
    }

    async fn start(&self, launch: Launch) -> Result<ShimId, String> {
        let dir = launch.run_dir;
        let out = dir.join("out");
        std::fs::create_dir_all(&out).map_err(|e| e.to_string())?;
        let log = |name: &str| File::create(dir.join(name)).map(OwnedFd::from).map_err(|e| e.to_string());
        let (stdin, keep) = if launch.spec.stdin {
            let pipe = dir.join("stdin");
            // the writing end first: opening for reading waits for one
            let keep = File::options().read(true).write(true).open(&pipe).map_err(|e| e.to_string())?;
            (Stdio::from(File::open(&pipe).map_err(|e| e.to_string())?), Some(keep))
        } else {
            (Stdio::null(), None)
        };
        let mut command = tokio::process::Command::new(&launch.spec.argv[0]);
        command.args(&launch.spec.argv[1..]).stdin(stdin);
        if launch.spec.argv[0] == "sh" {
            command.arg(&out); // its $1, in the place of $RUN_DIR
        }
        command.stdout(Stdio::from(log("stdout")?)).stderr(Stdio::from(log("stderr")?));
        let child = command.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
        let pid = i32::try_from(child.id().unwrap_or_default()).unwrap_or_default();
        let live = Live { child: Some(child), pid, canceled: false, stdin: keep };
        self.0.lock().unwrap().insert(dir, live);
        Ok(ShimId { pid, start_ticks: 1 })
    }

    async fn wait(&self, run_dir: &Path, _: &ShimId) -> Outcome {
        let child = self.0.lock().unwrap().get_mut(run_dir).and_then(|live| live.child.take());
        let started_ms = Some(now_ms());
        let status = match child {
            Some(mut child) => child.wait().await.ok(),
            None => None,
        };
        let live = self.0.lock().unwrap().remove(run_dir);
        let canceled = live.is_some_and(|live| live.canceled);
        let exit_code = status.and_then(|status| status.code());
        Outcome {
            cause: if canceled { Cause::Canceled } else { Cause::Exited },
            exit_code: exit_code.or(Some(143)),
            signal: None,
            message: None,
            started_ms,
            ended_ms: now_ms(),
            cpu_usec: None,
            memory_peak: None,
            oom_killed: false,
            log_dropped: 0,
        }
    }

    async fn stop(&self, run_dir: &Path, _: &ShimId, stop: Stop) -> Result<(), String> {
        let mut live = self.0.lock().unwrap();
        let Some(live) = live.get_mut(run_dir) else { return Err("it has ended".to_owned()) };
        let signal = match stop {
            Stop::Cancel => {
                live.canceled = true;
                Signal::SIGTERM
            }
            Stop::Eof => {
                live.stdin = None;
                return Ok(());
            }
            Stop::Signal(number) => Signal::try_from(number).map_err(|e| e.to_string())?,
        };
        kill(Pid::from_raw(live.pid), signal).map_err(|e| e.to_string())
    }
}

/// A tree over scripted facts, with everything it needs, gone when dropped.
pub struct Stage {
    pub tree: Arc<ControlTree>,
    pub script: Arc<Script>,
    pub jobs: Jobs,
    program: &'static [u8],
    pub dir: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
}

/// The group of runs on a [`Stage`].
pub const GROUP: u32 = 4242;

impl Stage {
    /// One source `pg` at `tools/postgres`, with its four jobs.
    pub fn new() -> Self {
        Self::with_program(PROGRAM)
    }

    /// The same with another program behind `run`, `plan`, `wait`, `follow`.
    pub fn with_program(program: &'static [u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State {
            shown: vec![shown("pg", "tools/postgres", Some(Digest::of(b"image")))],
            sources: vec![source_files("pg")],
            status: "{\"sources\":1}\n".to_owned(),
        };
        let script = Arc::new(Script {
            generation: AtomicU64::new(1),
            state: Mutex::new(state),
            asked: Mutex::default(),
            dir: dir.path().to_owned(),
        });
        std::fs::write(dir.path().join("events.jsonl"), "{\"seq\":1}\n").unwrap();
        let jobs = open_jobs(dir.path(), &runtime);
        jobs.install(addon_jobs("pg", "tools/postgres"));
        let tree = Self::tree(&script, &jobs, &runtime, program);
        Self { tree, script, jobs, program, dir, runtime }
    }

    /// Another tree over the same facts and jobs: what a daemon that took over has.
    pub fn successor(&self) -> Arc<ControlTree> {
        Self::tree(&self.script, &self.jobs, &self.runtime, self.program)
    }

    fn tree(
        script: &Arc<Script>,
        jobs: &Jobs,
        runtime: &tokio::runtime::Runtime,
        program: &'static [u8],
    ) -> Arc<ControlTree> {
        let options = ControlOptions {
            mount_point: "/mnt/addons".into(),
            uid: 0,
            gid: 0,
            group: Some(GROUP),
            images_dir: None,
            runner: program,
            runtime: runtime.handle().clone(),
        };
        Arc::new(ControlTree::new(Arc::clone(script) as Arc<dyn Facts>, jobs.clone(), options))
    }
}

fn open_jobs(state_dir: &Path, runtime: &tokio::runtime::Runtime) -> Jobs {
    let options =
        JobsOptions { group: Some(GROUP), ..JobsOptions::new(state_dir.join("state"), "/mnt/addons".into()) };
    let executor = Arc::new(PlainProcesses::default());
    Jobs::open(options, executor, EventSink::none(), runtime.handle().clone()).unwrap()
}
