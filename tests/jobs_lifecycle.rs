//! Runs from mkdir to record, over restarts of the daemon, with an executor that plays by script.
#![allow(clippy::unwrap_used)] // the helpers of a test are tests too

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use addonfs::jobs::executor::{Cause, NetworkSpec, Stop, take_offer};
use addonfs::jobs::{
    AddonJobs, Answer, Asked, Caller, Command, Counts, JobError, Jobs, JobsOptions, Retention, Run, RunState,
    Verb,
};
use addonfs::policy::addon::{AddonManifest, Origin, Resources};
use addonfs::policy::arguments::Given;
use addonfs::policy::digest::Digest;
use addonfs::policy::event::{Event, EventSink};
use addonfs::policy::image::ImageConfig;
use common::scripted_executor::{ScriptedExecutor, World, outcome};
use serde_json::Value;

const MANIFEST: &str = r#"
name: backup-tools
version: 1.0.0
entrypoints:
  - id: backup
    command: [/addon/backup.sh]
    argspec:
      type: object
      properties:
        then: {type: string}
        database: {type: string, default: app}
    resources: {cpu: "2", memory: 1Gi, timeout: 90s}
  - id: login
    command: [/addon/login.sh]
    argspec:
      type: object
      required: [token]
      properties:
        then: {type: string}
        token: {type: string, format: secret}
  - id: fetch
    command: [/addon/fetch.sh]
    network: all
"#;

const BACKUP: &str = "tools/backup/backup";
const LOGIN: &str = "tools/backup/login";
const FETCH: &str = "tools/backup/fetch";
const ME: Caller = Caller { uid: 1000, gid: 100, pid: 42 };
/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn addon(tree: &str) -> AddonJobs {
    let digest = Digest::of(tree.as_bytes());
    AddonJobs {
        source: "backup".into(),
        mount_path: "tools/backup".into(),
        origin: Origin {
            source_kind: "oci".into(),
            source_name: "backup".into(),
            addon_name: "backup-tools".into(),
            addon_version: "1.0.0".into(),
            addon_image_digest: digest,
            origin_revision: None,
            origin_source: None,
        },
        manifest: Arc::new(AddonManifest::parse(MANIFEST.as_bytes()).unwrap()),
        image_config: Arc::new(ImageConfig { env: vec!["PATH=/bin".into()], ..ImageConfig::default() }),
        tree: digest,
        image: "localhost:5000/org/backup-tools".into(),
        trust: serde_json::json!({"verified": true}),
        refused_under: Vec::new(),
    }
}

/// One life of a daemon. Dropping it is a `kill -9`: its tasks are gone, its shims are not.
struct Daemon {
    jobs: Jobs,
    runtime: Option<tokio::runtime::Runtime>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Daemon {
    fn boot(state: &Path, world: &Arc<World>) -> Self {
        Self::boot_with(state, world, |_| {})
    }

    fn boot_with(state: &Path, world: &Arc<World>, change: impl FnOnce(&mut JobsOptions)) -> Self {
        let daemon = Self::boot_bare(state, world, change);
        daemon.jobs.install(addon("v1"));
        daemon
    }

    fn boot_bare(state: &Path, world: &Arc<World>, change: impl FnOnce(&mut JobsOptions)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut options = JobsOptions::new(state.to_owned(), PathBuf::from("/mnt/addons"));
        change(&mut options);
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let sink = EventSink::new(move |event| heard.lock().unwrap().push(event));
        let executor = Arc::new(ScriptedExecutor(Arc::clone(world)));
        let jobs = Jobs::open(options, executor, sink, runtime.handle().clone()).unwrap();
        Self { jobs, runtime: Some(runtime), events }
    }

    fn run(&self, job: &str, name: &str) -> Arc<Run> {
        self.jobs.run(job, name).unwrap_or_else(|| panic!("no run {name}"))
    }

    fn create(&self, job: &str, name: &str, args: &str) -> Arc<Run> {
        let run = self.jobs.create_run(job, name, &ME).unwrap();
        if !args.is_empty() {
            self.jobs.write_args(&run, 0, args.as_bytes()).unwrap();
        }
        run
    }

    fn tell(&self, run: &Arc<Run>, line: &str) -> Result<String, JobError> {
        self.jobs.run_write(run, line.as_bytes(), &ME)
    }

    /// Makes a run and waits until it is in the state that its script leads to.
    fn started(&self, job: &str, name: &str, args: &str, state: RunState) -> Arc<Run> {
        let run = self.create(job, name, args);
        assert_eq!(self.tell(&run, "start\n").unwrap(), "queued\n");
        self.wait(&run, state);
        run
    }

    fn wait(&self, run: &Run, state: RunState) {
        let mut states = run.subscribe();
        let waited = self.runtime.as_ref().unwrap().block_on(async {
            tokio::time::timeout(PATIENCE, states.wait_for(|s| *s == state)).await.is_ok_and(|s| s.is_ok())
        });
        assert!(waited, "{} is {} and not {state}: {}", run.name(), run.state(), run.last_error());
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.events.lock().unwrap().iter().map(|event| event.kind).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn json(bytes: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(bytes.as_ref()).unwrap()
}

fn state_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn from_mkdir_to_record() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot_with(dir.path(), &world, |options| {
        options.group = Some(7);
        options.policy.ceilings = Resources { cpu_millis: Some(1000), ..Resources::default() };
    });
    let run = daemon.create(BACKUP, "nightly", "{\"then\":\"hang\"}");
    assert_eq!((run.state(), run.owner(), run.exit_code_text().as_str()), (RunState::Created, (1000, 7), ""));
    assert_eq!((run.args_json(), &*run.plan_json()), (b"{\"then\":\"hang\"}".to_vec(), &[] as &[u8]));
    let before = run.generation();
    assert_eq!(daemon.tell(&run, "start\n").unwrap(), "queued\n");
    daemon.wait(&run, RunState::Running);
    assert!(run.generation() > before);
    assert_eq!(json(run.args_json()), serde_json::json!({"then": "hang", "database": "app"}));
    let plan = json(run.plan_json());
    assert_eq!(plan["executor_preview"]["resources"]["cpu_millis"], 1000);
    assert_eq!(plan["policy_findings"][0]["code"], "resources.clamped");
    let spec = world.launched.lock().unwrap()[0].clone();
    assert_eq!((spec.run_id.as_str(), spec.timeout_ms, spec.read_only_root), (run.id(), Some(90_000), true));
    assert!(spec.rootfs.ends_with(format!("{}.job/rootfs", Digest::of(b"v1").dashed())));
    world.finish(run.dir(), outcome(Cause::Exited, Some(3)));
    daemon.wait(&run, RunState::Failed);
    assert_eq!((run.exit_code_text().as_str(), run.last_error().as_str()), ("3\n", "exited with 3\n"));
    let record = json(run.record_json());
    assert_eq!(record["state"], "failed");
    assert_eq!(record["origin"]["addon_image_digest"], Digest::of(b"v1").to_string());
    assert_eq!(record["plan_digest"], Digest::of(&run.plan_json()).to_string());
    assert_eq!(record["resources"]["cpu_usec"], 5);
    assert_eq!(daemon.jobs.counts(), Counts { finished: 1, ..Counts::default() });
    until("all is told", || daemon.kinds() == ["run.created", "policy.decision", "run.start", "run.finish"]);
    daemon.jobs.remove_run(BACKUP, "nightly", &ME).unwrap();
    assert!(daemon.jobs.run(BACKUP, "nightly").is_none() && daemon.jobs.run_by_id(run.id()).is_none());
    until("the folder is gone", || std::fs::read_dir(dir.path().join("runs")).unwrap().next().is_none());
    assert!(matches!(daemon.tell(&run, "cancel"), Err(JobError::NotFound(_))));
}

#[test]
fn endings() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let cases = [
        ("{\"then\":\"exit 0\"}", RunState::Succeeded, "0\n"),
        ("{\"then\":\"exit 9\"}", RunState::Failed, "9\n"),
        ("{\"then\":\"refuse\"}", RunState::Failed, "125\n"),
        ("[\"--then\", \"exit 4\"]", RunState::Failed, "4\n"),
    ];
    for (i, (args, state, code)) in cases.into_iter().enumerate() {
        let run = daemon.started(BACKUP, &format!("r{i}"), args, state);
        assert_eq!(run.exit_code_text(), code, "{args}");
    }
    assert_eq!(daemon.run(BACKUP, "r2").last_error(), "the runtime said no\n");
    let late = daemon.started(BACKUP, "late", "", RunState::Running);
    world.finish(late.dir(), outcome(Cause::Timeout, Some(137)));
    daemon.wait(&late, RunState::Timeout);
    let gone = daemon.started(BACKUP, "gone", "", RunState::Running);
    world.vanish(gone.dir());
    daemon.wait(&gone, RunState::Lost);
    assert_eq!((late.exit_code(), gone.exit_code()), (Some(124), Some(125)));
}

/// A run in each state, by its script.
fn in_state(daemon: &Daemon, world: &World, state: RunState, name: &str) -> Arc<Run> {
    let ended = |cause, code| {
        let run = daemon.started(BACKUP, name, "", RunState::Running);
        world.finish(run.dir(), outcome(cause, code));
        daemon.wait(&run, state);
        run
    };
    match state {
        RunState::Created => daemon.create(BACKUP, name, ""),
        // Another image than the one in the tree: the hook of this test never brings it.
        RunState::Queued => {
            let run = daemon.create(LOGIN, name, "{\"token\":\"x\"}");
            daemon.tell(&run, "start stdin").unwrap();
            run
        }
        RunState::Running => {
            let run = daemon.create(BACKUP, name, "");
            daemon.tell(&run, "start stdin").unwrap();
            daemon.wait(&run, state);
            run
        }
        RunState::Succeeded => ended(Cause::Exited, Some(0)),
        RunState::Failed => ended(Cause::Exited, Some(1)),
        RunState::Canceled => ended(Cause::Canceled, None),
        RunState::Timeout => ended(Cause::Timeout, None),
        RunState::Lost => ended(Cause::Lost, None),
    }
}

#[test]
fn every_state_and_command() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot_with(dir.path(), &world, |options| {
        options.max_running_per_job = 1000;
        options.max_running = 1000;
        let hook: addonfs::jobs::EnsureImage = Arc::new(|_| Box::pin(async { Ok(()) }));
        options.ensure_image = hook;
    });
    // The login job is kept out by its start, which never returns.
    let blocked = Daemon::boot_with(&dir.path().join("blocked"), &world, |options| {
        options.ensure_image = Arc::new(|_| Box::pin(std::future::pending()));
    });
    let verbs = [Verb::Start, Verb::Cancel, Verb::Kill, Verb::Eof, Verb::WriteArgs, Verb::Remove];
    for state in RunState::ALL {
        for verb in verbs {
            let name = format!("{state}-{}", verb.as_str().split(' ').next().unwrap());
            let home = if state == RunState::Queued { &blocked } else { &daemon };
            let run = in_state(home, &world, state, &name);
            assert_eq!(run.state(), state);
            let result = match verb {
                Verb::Start => home.tell(&run, "start"),
                Verb::Cancel => home.tell(&run, "cancel"),
                Verb::Kill => home.tell(&run, "kill TERM"),
                Verb::Eof => home.tell(&run, "eof"),
                Verb::WriteArgs => home.jobs.write_args(&run, 0, b"{}").map(|()| String::new()),
                Verb::Remove => home.jobs.remove_run(run.job_id(), run.name(), &ME).map(|()| String::new()),
            };
            match state.answer(verb, false) {
                Answer::Do | Answer::Already => assert!(result.is_ok(), "{verb:?} in {state}: {result:?}"),
                Answer::Refuse(why) => match result {
                    Err(JobError::Busy(words)) => assert!(words.contains(why), "{words}"),
                    other => panic!("{verb:?} in {state}: {other:?}"),
                },
            }
            let expected = match (verb, state) {
                (Verb::Start, RunState::Created) => RunState::Running,
                (Verb::Cancel, RunState::Created | RunState::Queued | RunState::Running) => {
                    RunState::Canceled
                }
                (Verb::Kill, RunState::Running) => RunState::Failed,
                _ => state,
            };
            home.wait(&run, expected);
        }
    }
}

#[test]
fn a_start_may_arrive_twice() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(BACKUP, "n", "");
    daemon.tell(&run, "start id=one").unwrap();
    daemon.wait(&run, RunState::Running);
    assert_eq!(daemon.tell(&run, "start id=one").unwrap(), "running\n");
    assert!(matches!(daemon.tell(&run, "start id=two"), Err(JobError::Busy(_))));
    assert!(matches!(daemon.tell(&run, "start"), Err(JobError::Busy(_))));
    assert!(run.last_error().contains("started already"));
    drop(daemon);
    let daemon = Daemon::boot(dir.path(), &world);
    assert_eq!(daemon.tell(&daemon.run(BACKUP, "n"), "start id=one").unwrap(), "running\n");
    assert_eq!(world.launches(), 1);
}

#[test]
fn a_resent_mkdir_finds_its_own_run_and_no_other() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let number = daemon.create(BACKUP, "n", "").number();
    drop(daemon);
    let daemon = Daemon::boot(dir.path(), &world);
    assert!(matches!(daemon.jobs.create_run(BACKUP, "n", &ME), Err(JobError::Exists(_))));
    assert_eq!(daemon.jobs.create_run_resent(BACKUP, "n", &ME).unwrap().number(), number);
    let other = Caller { pid: 43, ..ME };
    assert!(matches!(daemon.jobs.create_run_resent(BACKUP, "n", &other), Err(JobError::Exists(_))));
    daemon.jobs.write_args(&daemon.run(BACKUP, "n"), 0, b"{}").unwrap();
    assert!(matches!(daemon.jobs.create_run_resent(BACKUP, "n", &ME), Err(JobError::Exists(_))));
}

#[test]
fn of_twenty_threads_one_makes_the_run() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    for round in 0..10 {
        let name = format!("n{round}");
        let barrier = std::sync::Barrier::new(20);
        let winners: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        match daemon.jobs.create_run(BACKUP, &name, &ME) {
                            Ok(_) => 1,
                            Err(JobError::Exists(_)) => 0,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("runs")).unwrap().count(), 10, "losers leave nothing");
}

#[test]
fn secrets_are_never_on_disk() {
    const SECRET: &str = "hunter2-9c1d";
    let (dir, world) = (state_dir(), World::new());
    let args = format!("{{\"token\":\"{SECRET}\"}}");
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(LOGIN, "n", &args);
    assert_eq!(json(run.args_json())["token"], "[secret]");
    let forgotten = daemon.create(LOGIN, "forgotten", &args);
    assert!(forgotten.last_error().is_empty());
    daemon.tell(&run, "start").unwrap();
    daemon.wait(&run, RunState::Running);
    assert_eq!(world.secrets.lock().unwrap()[0], [("token".to_owned(), SECRET.to_owned())]);
    let mut seen = [run.args_json(), run.plan_json().to_vec(), run.record_json()].concat();
    drop(daemon);

    let daemon = Daemon::boot(dir.path(), &world);
    let forgotten = daemon.run(LOGIN, "forgotten");
    assert!(forgotten.last_error().contains("write args.json again"), "{}", forgotten.last_error());
    assert!(matches!(daemon.tell(&forgotten, "start"), Err(JobError::Invalid(_))));
    daemon.jobs.truncate_args(&forgotten, 0).unwrap();
    daemon.jobs.write_args(&forgotten, 0, args.as_bytes()).unwrap();
    daemon.tell(&forgotten, "start").unwrap();
    daemon.wait(&forgotten, RunState::Running);
    let said = daemon.jobs.job_write(LOGIN, format!("run {args}").as_bytes(), &ME).unwrap();
    let mask = daemon.jobs.job_write(LOGIN, b"run {\"token\":\"[secret]\"}", &ME);
    assert!(matches!(mask, Err(JobError::Arguments(_))), "what args.json shows is no value");
    let bad = daemon.jobs.job_write(LOGIN, format!("run {{\"token\":\"{SECRET}\",\"x\":1}}").as_bytes(), &ME);
    seen.extend(said.into_bytes());
    seen.extend(bad.unwrap_err().to_string().into_bytes());
    seen.extend(format!("{:?}", daemon.events.lock().unwrap()).into_bytes());
    drop(daemon);
    files_below(dir.path(), &mut seen);
    assert!(!String::from_utf8_lossy(&seen).contains(SECRET));
    assert!(String::from_utf8_lossy(&seen).contains("[secret]"), "the search has looked at something");
}

fn files_below(dir: &Path, all: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, all);
        } else if path.is_file() {
            all.extend(std::fs::read(path).unwrap());
        }
    }
}

#[test]
fn the_next_daemon_follows_what_runs() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let names = ["lives", "ended", "vanished", "canceled"];
    let dirs: Vec<PathBuf> =
        names.iter().map(|n| daemon.started(BACKUP, n, "", RunState::Running).dir().to_owned()).collect();
    let made = daemon.create(BACKUP, "made", "{\"database\":\"x\"}");
    let numbers: Vec<u64> = daemon.jobs.all_runs().iter().map(|run| run.number()).collect();
    let made_id = made.id().to_owned();
    drop(daemon);
    world.finish(&dirs[1], outcome(Cause::Exited, Some(0)));
    world.vanish(&dirs[2]);
    let daemon = Daemon::boot(dir.path(), &world);
    assert_eq!(daemon.jobs.all_runs().iter().map(|run| run.number()).collect::<Vec<_>>(), numbers);
    daemon.wait(&daemon.run(BACKUP, "ended"), RunState::Succeeded);
    daemon.wait(&daemon.run(BACKUP, "vanished"), RunState::Lost);
    let made = daemon.run(BACKUP, "made");
    assert_eq!((made.id(), made.args_json()), (made_id.as_str(), b"{\"database\":\"x\"}".to_vec()));
    let lives = daemon.run(BACKUP, "lives");
    assert_eq!(lives.state(), RunState::Running);
    assert!(!lives.plan_json().is_empty());
    daemon.tell(&daemon.run(BACKUP, "canceled"), "cancel").unwrap();
    daemon.wait(&daemon.run(BACKUP, "canceled"), RunState::Canceled);
    drop(daemon);
    let daemon = Daemon::boot(dir.path(), &world);
    world.finish(&dirs[0], outcome(Cause::Exited, Some(5)));
    daemon.wait(&daemon.run(BACKUP, "lives"), RunState::Failed);
    let fresh = daemon.create(BACKUP, "fresh", "");
    assert!(numbers.iter().all(|n| *n < fresh.number()));
    assert_eq!(world.launches(), 4, "nothing ran twice");
}

#[test]
fn a_daemon_that_dies_while_it_starts_a_run() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    for name in ["came-up", "never-came"] {
        let run = daemon.create(BACKUP, name, "{\"then\":\"slow\"}");
        daemon.tell(&run, "start").unwrap();
    }
    until("both are being started", || world.launches() == 2);
    let came_up = daemon.run(BACKUP, "came-up").dir().to_owned();
    drop(daemon);
    // A shim that was on its way comes up after the daemon is gone.
    let shim = serde_json::json!({"pid": 4711, "start_ticks": 1});
    std::fs::write(came_up.join("shim.json"), shim.to_string()).unwrap();
    std::fs::write(came_up.join("exit.json"), serde_json::to_vec(&outcome(Cause::Exited, Some(0))).unwrap())
        .unwrap();
    let daemon = Daemon::boot(dir.path(), &world);
    daemon.wait(&daemon.run(BACKUP, "came-up"), RunState::Succeeded);
    let never = daemon.run(BACKUP, "never-came");
    daemon.wait(&never, RunState::Lost);
    assert_eq!((never.exit_code(), world.launches()), (Some(125), 2));
    assert!(never.last_error().contains("not known"));
}

#[test]
fn a_launch_that_no_shim_took_is_launched_by_the_next_daemon() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    for (job, name, args) in [
        (BACKUP, "again", "{\"then\":\"unclaimed\"}"),
        (BACKUP, "canceled", "{\"then\":\"unclaimed\"}"),
        (LOGIN, "secret", "{\"then\":\"unclaimed\",\"token\":\"x\"}"),
    ] {
        daemon.tell(&daemon.create(job, name, args), "start").unwrap();
    }
    until("all are offered", || world.launches() == 3);
    assert_eq!(daemon.tell(&daemon.run(BACKUP, "canceled"), "cancel").unwrap(), "canceling\n");
    let late = std::fs::read_dir(daemon.run(BACKUP, "again").dir()).unwrap();
    let late = late.map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("/launch-")).unwrap();
    drop(daemon);
    let daemon = Daemon::boot(dir.path(), &world);
    assert!(!take_offer(&late).unwrap(), "a shim that comes now finds nothing to do");
    until("it is launched again", || world.launches() == 4);
    assert_eq!(daemon.run(BACKUP, "again").state(), RunState::Queued);
    assert_eq!(daemon.run(BACKUP, "canceled").state(), RunState::Canceled);
    let secret = daemon.run(LOGIN, "secret");
    assert_eq!((secret.state(), secret.exit_code()), (RunState::Failed, Some(125)));
    assert!(secret.last_error().contains("secrets"), "{}", secret.last_error());
}

#[test]
fn who_waits_for_a_source_that_is_gone_waits_no_longer() {
    let (dir, world) = (state_dir(), World::new());
    let stuck = |options: &mut JobsOptions| {
        options.ensure_image = Arc::new(|_| Box::pin(std::future::pending()));
    };
    let daemon = Daemon::boot_with(dir.path(), &world, stuck);
    daemon.tell(&daemon.create(BACKUP, "a", ""), "start").unwrap();
    daemon.tell(&daemon.create(FETCH, "b", ""), "start").unwrap_err();
    drop(daemon);
    let daemon = Daemon::boot_bare(dir.path(), &world, |_| {});
    let a = daemon.run(BACKUP, "a");
    daemon.jobs.keep_sources(&["backup", "other"]);
    assert_eq!(a.state(), RunState::Queued, "its source is only not there yet");
    daemon.jobs.keep_sources(&["other"]);
    assert_eq!((a.state(), a.exit_code()), (RunState::Failed, Some(125)));
    assert!(a.last_error().contains("source backup is not in the configuration"), "{}", a.last_error());
    drop(daemon);

    let daemon = Daemon::boot_with(dir.path(), &world, stuck);
    daemon.tell(&daemon.create(BACKUP, "c", ""), "start").unwrap();
    drop(daemon);
    let daemon = Daemon::boot_bare(dir.path(), &world, |_| {});
    let mut without = addon("v1");
    let manifest = Arc::make_mut(&mut without.manifest);
    manifest.entrypoints.retain(|entry| entry.id != "backup");
    daemon.jobs.install(without);
    let c = daemon.run(BACKUP, "c");
    assert_eq!(c.state(), RunState::Failed);
    assert!(c.last_error().contains("no job tools/backup/backup any more"), "{}", c.last_error());
}

/// Daemons die at any moment, again and again, while runs are made, started and canceled. In the end every run has ended,
/// no shim came up twice for one run, and those that did have their outcome.
#[test]
fn an_exact_account_over_many_deaths() {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    const RUNS: usize = 60;
    for seed in 0..4_u64 {
        let mut dice = StdRng::seed_from_u64(seed);
        let (dir, world) = (state_dir(), World::new());
        world.let_start();
        let (mut made, mut started, mut ids) = (0, Vec::new(), Vec::new());
        while made < RUNS {
            let daemon = Daemon::boot_with(dir.path(), &world, |options| options.max_running = 5);
            for _ in 0..dice.random_range(0..12) {
                let name = format!("n{made}");
                made += 1;
                let then = ["exit 0", "exit 3", "slow", "hang"][dice.random_range(0..4)];
                let run = daemon.create(BACKUP, &name, &format!("{{\"then\":\"{then}\"}}"));
                ids.push(run.id().to_owned());
                if daemon.tell(&run, &format!("start id={name}")).is_ok() {
                    started.push(name);
                }
                if dice.random_range(0..5) == 0 {
                    let at = dice.random_range(0..made);
                    let _ = daemon.tell(&daemon.run(BACKUP, &format!("n{at}")), "cancel");
                }
            }
            std::thread::sleep(Duration::from_micros(dice.random_range(0..3000)));
        }
        let daemon = Daemon::boot_with(dir.path(), &world, |options| options.max_running = 5);
        let all = daemon.jobs.all_runs();
        assert_eq!(all.iter().map(|run| run.id().to_owned()).collect::<Vec<_>>(), ids, "seed {seed}");
        until("every run that hangs is ended", || {
            let live = daemon.jobs.live_runs();
            for run in &live {
                let _ = daemon.tell(run, "cancel");
            }
            live.is_empty()
        });
        let mut came_up = world.came_up.lock().unwrap().clone();
        came_up.sort();
        let times = came_up.len();
        came_up.dedup();
        assert_eq!(came_up.len(), times, "a run ran twice (seed {seed})");
        for name in &started {
            let run = daemon.run(BACKUP, name);
            let ended = [RunState::Succeeded, RunState::Failed, RunState::Canceled];
            assert!(ended.contains(&run.state()), "{name} is {}: {}", run.state(), run.last_error());
        }
    }
}

#[test]
fn queued_runs_wait_for_their_job_to_come_back() {
    let (dir, world) = (state_dir(), World::new());
    let stuck = |options: &mut JobsOptions| {
        options.ensure_image = Arc::new(|_| Box::pin(std::future::pending()));
    };
    let daemon = Daemon::boot_with(dir.path(), &world, stuck);
    for (job, name, args) in
        [(BACKUP, "a", "{\"then\":\"exit 0\"}"), (BACKUP, "gone", ""), (LOGIN, "b", "{\"token\":\"x\"}")]
    {
        let run = daemon.create(job, name, args);
        daemon.tell(&run, "start").unwrap();
    }
    drop(daemon);
    let daemon = Daemon::boot_bare(dir.path(), &world, |_| {});
    let (a, b) = (daemon.run(BACKUP, "a"), daemon.run(LOGIN, "b"));
    assert_eq!((a.state(), b.state(), b.exit_code()), (RunState::Queued, RunState::Failed, Some(125)));
    assert!(a.last_error().contains("waiting for job") && b.last_error().contains("secrets"));
    daemon.tell(&daemon.run(BACKUP, "gone"), "cancel").unwrap();
    daemon.jobs.install(addon("v1"));
    daemon.wait(&a, RunState::Succeeded);
    assert_eq!((daemon.run(BACKUP, "gone").state(), world.launches()), (RunState::Canceled, 1));
    drop(daemon);

    let daemon = Daemon::boot_with(dir.path(), &world, stuck);
    daemon.tell(&daemon.create(BACKUP, "c", ""), "start").unwrap();
    drop(daemon);
    let daemon = Daemon::boot_bare(dir.path(), &world, |_| {});
    daemon.jobs.install(addon("v2"));
    let c = daemon.run(BACKUP, "c");
    assert_eq!(c.state(), RunState::Failed);
    assert!(c.last_error().contains("updated"), "{}", c.last_error());
}

#[test]
fn slots_order_and_a_full_queue() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot_with(dir.path(), &world, |options| {
        options.max_running = 1;
        options.max_queued = 2;
    });
    let first = daemon.started(BACKUP, "first", "", RunState::Running);
    let second = daemon.create(BACKUP, "second", "");
    let third = daemon.create(BACKUP, "third", "");
    let fourth = daemon.create(BACKUP, "fourth", "");
    daemon.tell(&second, "start").unwrap();
    daemon.tell(&third, "start").unwrap();
    assert!(matches!(daemon.tell(&fourth, "start"), Err(JobError::Again(_))));
    assert_eq!(fourth.state(), RunState::Created);
    assert!(matches!(daemon.jobs.job_write(BACKUP, b"run", &ME), Err(JobError::Again(_))));
    assert_eq!(daemon.jobs.all_runs().len(), 4, "a refused run leaves no folder");
    until("it says why it waits", || second.last_error().contains("waiting for a slot"));
    world.finish(first.dir(), outcome(Cause::Exited, Some(0)));
    daemon.wait(&second, RunState::Running);
    assert_eq!(second.last_error(), "");
    assert_eq!(third.state(), RunState::Queued);
    daemon.tell(&fourth, "start").unwrap();
    assert_eq!(daemon.tell(&third, "cancel").unwrap(), "canceled\n");
    daemon.tell(&second, "cancel").unwrap();
    daemon.wait(&fourth, RunState::Running);
    assert_eq!(world.launches(), 3);
}

#[test]
fn a_run_waits_for_its_image_and_says_so() {
    let (dir, world) = (state_dir(), World::new());
    let (answer, wanted) = tokio::sync::watch::channel(None::<Result<(), String>>);
    let daemon = Daemon::boot_with(dir.path(), &world, |options| {
        options.ensure_image = Arc::new(move |image| {
            let mut wanted = wanted.clone();
            Box::pin(async move {
                (image.progress)(format!("fetching {} for {}: 3 of 9 MiB", image.source, image.entrypoint));
                wanted.wait_for(Option::is_some).await.unwrap().clone().unwrap()
            })
        });
    });
    let run = daemon.create(BACKUP, "n", "");
    daemon.tell(&run, "start").unwrap();
    until("progress is shown", || run.last_error().contains("3 of 9 MiB"));
    assert_eq!(
        (run.state(), &json(run.record_json())["progress"]),
        (RunState::Queued, &Value::from("fetching backup for backup: 3 of 9 MiB"))
    );
    answer.send_replace(Some(Ok(())));
    daemon.wait(&run, RunState::Running);
    assert_eq!(run.last_error(), "");
    answer.send_replace(Some(Err("the registry is down".into())));
    let run = daemon.started(BACKUP, "m", "", RunState::Failed);
    assert!(run.last_error().contains("the registry is down"));
    assert_eq!(run.exit_code(), Some(125));
}

#[test]
fn a_cancel_during_the_start_reaches_the_shim() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(BACKUP, "n", "{\"then\":\"slow\"}");
    daemon.tell(&run, "start").unwrap();
    until("it is being started", || world.launches() == 1);
    assert_eq!(daemon.tell(&run, "cancel").unwrap(), "canceling\n");
    world.let_start();
    daemon.wait(&run, RunState::Canceled);
    assert_eq!(*world.stops.lock().unwrap(), [Stop::Cancel]);
    until("it is told", || daemon.kinds().ends_with(&["run.canceled", "run.finish"]));
}

#[test]
fn an_executor_that_hangs_costs_a_deadline_and_leaves_no_job_behind() {
    let (dir, world) = (state_dir(), World::new());
    *world.start_deadline.lock().unwrap() = Duration::from_millis(100);
    let daemon = Daemon::boot_with(dir.path(), &world, |options| options.max_running = 1);
    let run = daemon.started(BACKUP, "n", "{\"then\":\"slow\"}", RunState::Lost);
    assert!(run.last_error().contains("not known"), "{}", run.last_error());
    let never = daemon.started(BACKUP, "never", "{\"then\":\"unclaimed\"}", RunState::Failed);
    assert!(never.last_error().contains("did not start it within"), "{}", never.last_error());
    world.let_start();
    until("the late shim is told to stop", || *world.stops.lock().unwrap() == [Stop::Cancel]);
    daemon.started(BACKUP, "next", "{\"then\":\"exit 0\"}", RunState::Succeeded);
}

#[test]
fn several_commands_are_done_or_none() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(BACKUP, "n", "");
    assert!(daemon.tell(&run, "cancel\nstart\n").is_err());
    assert!(daemon.tell(&run, "start\nfoo\n").is_err());
    assert_eq!(run.state(), RunState::Created);
    assert!(run.last_error().contains("no command `foo`"));
    assert!(daemon.tell(&run, "start\neof\n").is_err(), "it would have no standard input to end");
    assert_eq!(run.state(), RunState::Created, "all or none");
    assert_eq!(daemon.tell(&run, "start stdin id=a\neof\n").unwrap(), "queued\nok\n");
    daemon.wait(&run, RunState::Running);

    let both = b"run {\"database\":\"a\"}\nrun {\"nonsense\":1}\n";
    assert!(matches!(daemon.jobs.job_write(BACKUP, both, &ME), Err(JobError::Arguments(_))));
    assert_eq!(daemon.jobs.all_runs().len(), 1);
    let reply = daemon.jobs.job_write(BACKUP, b"run --database a\nrun database=b\nhelp\n", &ME).unwrap();
    let lines: Vec<&str> = reply.lines().collect();
    assert!(reply.ends_with('\n') && lines[2].starts_with("usage:"), "{reply}");
    let (state, path) = lines[0].split_once(' ').unwrap();
    let run = daemon.run(BACKUP, path.strip_prefix("runs/").unwrap());
    assert_eq!((state, run.name()), ("queued", run.id()));
    assert_eq!(json(run.args_json())["database"], "a");
    let plan = daemon.jobs.job_write(BACKUP, b"plan", &ME).unwrap();
    assert_eq!(
        json(&plan),
        json(daemon.jobs.plan(BACKUP, Asked::plainly(Given::Words(vec![])), &ME).unwrap().to_json())
    );
}

#[test]
fn who_stops_the_daemon_does_not_race_with_who_starts_a_run() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let live = daemon.started(BACKUP, "live", "", RunState::Running);
    daemon.jobs.close();
    let late = daemon.create(BACKUP, "late", "");
    let refused = daemon.tell(&late, "start").unwrap_err();
    assert!(matches!(&refused, JobError::Busy(words) if words.contains("being stopped")), "{refused}");
    assert!(matches!(daemon.jobs.job_write(BACKUP, b"run", &ME), Err(JobError::Busy(_))));
    assert!(daemon.jobs.job_write(BACKUP, b"plan", &ME).is_ok(), "a plan starts nothing");
    assert!(!daemon.jobs.is_idle(), "what runs goes on");
    daemon.tell(&live, "cancel").unwrap();
    daemon.wait(&live, RunState::Canceled);
    assert!(daemon.jobs.is_idle());
    daemon.jobs.reopen();
    assert_eq!(daemon.tell(&late, "start").unwrap(), "queued\n");
}

#[test]
fn arguments_are_judged_at_start_and_may_be_mended() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(LOGIN, "n", "{\"nonsense\":1}");
    let error = daemon.tell(&run, "start").unwrap_err();
    match &error {
        JobError::Arguments(problems) => assert_eq!(problems.len(), 2, "{problems:?}"),
        other => panic!("{other}"),
    }
    assert_eq!((run.state(), run.last_error()), (RunState::Created, format!("{error}\n")));
    daemon.jobs.truncate_args(&run, 0).unwrap();
    daemon.jobs.write_args(&run, 10, b"\"x\"}").unwrap();
    daemon.jobs.write_args(&run, 0, b"{\"token\": ").unwrap();
    assert_eq!(run.last_error(), "");
    daemon.tell(&run, "start").unwrap();
    daemon.wait(&run, RunState::Running);
    assert!(matches!(daemon.jobs.create_run(BACKUP, "../x", &ME), Err(JobError::Invalid(_))));
    assert!(matches!(daemon.jobs.create_run("no/such", "x", &ME), Err(JobError::NotFound(_))));
}

#[test]
fn pieces_of_arguments_are_kept_as_written() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(BACKUP, "n", "{\"database\":\"long enough to be cut\"}");
    let edits: [(Option<u64>, u64, &str); 5] =
        [(None, 14, "X"), (Some(3), 3, "abc"), (Some(0), 5, "\"}"), (None, 0, "{\"a\""), (Some(9), 12, "z")];
    for (cut, offset, piece) in edits {
        if let Some(len) = cut {
            daemon.jobs.truncate_args(&run, len).unwrap();
        }
        daemon.jobs.write_args(&run, offset, piece.as_bytes()).unwrap();
        let kept = std::fs::read(run.dir().join("args.raw")).unwrap();
        assert_eq!(String::from_utf8(kept), String::from_utf8(run.args_json()), "after {piece}");
    }
    assert_eq!(run.args_json(), b"{\"a\" \"}     z");
}

#[test]
fn policy_and_runtime_refuse_with_words() {
    let (dir, world) = (state_dir(), World::new());
    *world.network.lock().unwrap() = Err("there is no user-mode network: install the package passt".into());
    let daemon = Daemon::boot(dir.path(), &world);
    let run = daemon.create(FETCH, "n", "");
    match daemon.tell(&run, "start") {
        Err(JobError::Denied(denied)) => {
            assert_eq!(denied.code.as_str(), "policy.denied");
            assert!(denied.message.contains("passt") && denied.message.contains("[host]"), "{denied}");
        }
        other => panic!("{other:?}"),
    }
    let decision =
        daemon.events.lock().unwrap().iter().find(|e| e.kind == "policy.decision").cloned().unwrap();
    assert_eq!((&decision.data["decision"], &decision.data["subject"]), (&"denied".into(), &FETCH.into()));
    *world.network.lock().unwrap() = Ok(NetworkSpec::User);
    *world.runtime.lock().unwrap() = Err("no runc".into());
    match daemon.tell(&run, "start") {
        Err(JobError::Denied(denied)) => assert_eq!(denied.code.as_str(), "container.runtime.unavailable"),
        other => panic!("{other:?}"),
    }
    let plan = json(daemon.jobs.plan(FETCH, Asked::plainly(Given::Words(vec![])), &ME).unwrap().to_json());
    assert_eq!(plan["executor_preview"]["runtime"], Value::Null);
    assert_eq!(plan["executor_preview"]["network"], "user");
    assert_eq!(world.launches(), 0);
}

#[test]
fn one_daemon_a_state_directory() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let options = JobsOptions::new(dir.path().to_owned(), "/mnt".into());
    let executor = Arc::new(ScriptedExecutor(Arc::clone(&world)));
    let handle = daemon.runtime.as_ref().unwrap().handle().clone();
    let error = Jobs::open(options, executor, EventSink::none(), handle).unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
}

#[test]
fn old_and_surplus_runs_go_and_live_ones_stay() {
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    for name in ["a", "b", "c"] {
        daemon.started(BACKUP, name, "{\"then\":\"exit 0\"}", RunState::Succeeded);
    }
    daemon.started(BACKUP, "lives", "", RunState::Running);
    daemon.create(BACKUP, "made", "");
    drop(daemon);
    let keep = Retention { max_finished: 1, unstarted: Duration::ZERO, ..Retention::default() };
    let daemon = Daemon::boot_with(dir.path(), &world, |options| options.retention = keep);
    until("two runs are left", || daemon.jobs.all_runs().len() == 2);
    let names: Vec<String> = daemon.jobs.all_runs().iter().map(|run| run.name().to_owned()).collect();
    assert_eq!(names, ["c", "lives"]);
    until("their folders are gone", || std::fs::read_dir(dir.path().join("runs")).unwrap().count() == 2);
}

#[test]
fn standard_input_reaches_the_pipe_and_ends() {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let (dir, world) = (state_dir(), World::new());
    let daemon = Daemon::boot(dir.path(), &world);
    let block_on = |data: &[u8], run: &Arc<Run>| {
        let write = daemon.jobs.write_stdin(run, data.to_vec(), Duration::from_millis(50));
        daemon.runtime.as_ref().unwrap().block_on(write)
    };
    let without = daemon.started(BACKUP, "without", "", RunState::Running);
    assert!(matches!(block_on(b"x", &without), Err(JobError::Busy(_))));
    let run = daemon.create(BACKUP, "n", "");
    daemon.tell(&run, "start stdin").unwrap();
    daemon.wait(&run, RunState::Running);
    assert!(world.launched.lock().unwrap().iter().any(|spec| spec.stdin));
    // The shim's way: for reading and writing, so that no writer is no end.
    let mut options = std::fs::OpenOptions::new();
    let mut pipe = options
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(run.dir().join("stdin"))
        .unwrap();
    assert_eq!(block_on(b"hello", &run).unwrap(), 5);
    let mut read = [0; 5];
    pipe.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    let mut written = 0;
    let full = loop {
        match block_on(&[0; 65536], &run) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, JobError::Again(_)) && written >= 65536, "{full} after {written}");
    daemon.tell(&run, "eof").unwrap();
    until("the shim is told", || *world.stops.lock().unwrap() == [Stop::Eof]);
    assert!(matches!(block_on(b"x", &run), Err(JobError::Busy(_))));
    assert!(matches!(daemon.jobs.run_command(&run, Command::Kill(15), &ME).as_deref(), Ok("ok\n")));
    daemon.wait(&run, RunState::Failed);
    assert_eq!(json(run.record_json())["signal"], 15);
}
