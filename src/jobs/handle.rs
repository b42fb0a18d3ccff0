//! The handle by which everybody else uses this room: jobs installed, runs made, listed and removed.
//!
//! Locks, in the order in which they may be taken: the table of runs or one run, then the queue or the journal's
//! log; never two runs, never a table while holding a run. None is held across an await or an fsync.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use super::args::ArgsText;
use super::descriptor::{self, Job};
use super::error::JobError;
use super::executor::{Executor, RuntimeInfo};
use super::journal::Journal;
use super::layout::{self, Layout};
use super::options::{Caller, JobsOptions, JobsPolicy};
use super::queue::{Queue, QueueLimits};
use super::record::{ArgsAt, Record, Who, now_ms};
use super::run::Run;
use super::state::{RunState, Verb};
use super::{AddonJobs, adopt, retention};
use crate::policy::event::{Event, EventSink};

/// Longest name of a run.
const MAX_RUN_NAME: usize = 63;

/// All jobs and runs of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs(pub(super) Arc<Shared>);

/// What the clones share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: JobsOptions,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) events: EventSink,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) journal: Journal,
    pub(super) layout: Layout,
    jobs: RwLock<BTreeMap<String, Arc<Job>>>,
    runs: RwLock<Runs>,
    queue: Mutex<Queue>,
    rules: RwLock<Arc<Rules>>,
    /// Runs that were queued when the daemon ended, until their job is installed again.
    parked: Mutex<Vec<Arc<Run>>>,
    generation: AtomicU64,
    /// Held for as long as the directory is in use.
    _lock: File,
}

/// What policy says to jobs now.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) policy: JobsPolicy,
    /// The daemon's environment, where `overrides.env_inheritance` gives it to jobs; else empty.
    pub(super) inherited: Vec<(String, String)>,
}

impl Rules {
    fn new(policy: JobsPolicy) -> Arc<Self> {
        let inherited = if policy.overrides.env_inheritance { readable_environment() } else { Vec::new() };
        Arc::new(Self { policy, inherited })
    }
}

/// The table of runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    by_number: BTreeMap<u64, Arc<Run>>,
    by_id: HashMap<String, Arc<Run>>,
    by_job: HashMap<String, BTreeMap<String, Arc<Run>>>,
}

/// How many runs are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Made and not started.
    pub created: usize,
    /// Waiting.
    pub queued: usize,
    /// Running.
    pub running: usize,
    /// Ended, in whatever way.
    pub finished: usize,
}

impl Jobs {
    /// Opens the state directory, replays the journal and adopts the runs of an earlier daemon. Refused when another
    /// daemon has the directory open. Tasks are started on `runtime`, which must outlive the handle's use.
    pub fn open(
        options: JobsOptions,
        executor: Arc<dyn Executor>,
        events: EventSink,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, JobError> {
        let place = options.state_dir.display().to_string();
        let trouble = |e: std::io::Error| JobError::Internal(format!("jobs of {place}: {e}"));
        let layout = Layout::open(&options.state_dir).map_err(trouble)?;
        let lock = File::create(layout.lock()).map_err(trouble)?;
        lock.try_lock().map_err(|_| {
            JobError::Busy(format!("another daemon uses the state directory {place}; give this one its own"))
        })?;
        let (journal, replayed) = Journal::open(&layout.journal()).map_err(trouble)?;
        if replayed.damaged > 0 {
            tracing::warn!(lines = replayed.damaged, "damaged lines of the journal were left out");
        }
        let limits = QueueLimits {
            running: options.max_running.max(1),
            per_source: options.max_running_per_source.max(1),
            per_job: options.max_running_per_job.max(1),
            waiting: options.max_queued.max(1),
        };
        let rules = RwLock::new(Rules::new(options.policy.clone()));
        let jobs = Self(Arc::new(Shared {
            options,
            rules,
            executor,
            events,
            runtime,
            journal,
            layout,
            jobs: RwLock::default(),
            runs: RwLock::default(),
            queue: Mutex::new(Queue::new(limits)),
            parked: Mutex::default(),
            generation: AtomicU64::new(1),
            _lock: lock,
        }));
        adopt::all(&jobs.0, replayed.runs);
        retention::keep_tidy(&jobs.0);
        Ok(jobs)
    }

    /// Shows the jobs of an add-on, in place of those that its source had before. Runs go on as they were started.
    pub fn install(&self, addon: AddonJobs) {
        let shared = &self.0;
        let addon = Arc::new(addon);
        let ceilings = shared.rules().policy.ceilings;
        {
            let mut jobs = shared.jobs_mut();
            jobs.retain(|_, job| job.source() != addon.source);
            for entry in &addon.manifest.entrypoints {
                let job = Job::new(&addon, entry, ceilings, shared.options.limits);
                jobs.insert(job.id().to_owned(), Arc::new(job));
            }
        }
        shared.changed();
        adopt::unpark(shared, &addon.source);
    }

    /// The names of all sources that there are. What is queued since an earlier daemon and waits for another one's job
    /// waits in vain, and ends.
    pub fn keep_sources(&self, names: &[&str]) {
        adopt::give_up(&self.0, |record| {
            (!names.contains(&record.source.as_str()))
                .then(|| format!("its source {} is not in the configuration any more", record.source))
        });
    }

    /// A read of the run has brought so many bytes from a registry.
    pub fn count_fetched(&self, run: &Run, bytes: u64) {
        let mut inner = run.lock();
        inner.record.bytes_fetched = inner.record.bytes_fetched.saturating_add(bytes);
        run.publish(&inner);
    }

    /// Policy says something else from now on: to plans, to starts, and to jobs that are installed after this.
    pub fn set_policy(&self, policy: JobsPolicy) {
        *self.0.rules.write().unwrap_or_else(PoisonError::into_inner) = Rules::new(policy);
        self.0.changed();
    }

    /// Takes the jobs of a source away. Their runs stay, live ones go on.
    pub fn uninstall(&self, source: &str) {
        self.0.jobs_mut().retain(|_, job| job.source() != source);
        self.0.changed();
    }

    /// The jobs, in the order of their ids.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.0.jobs().values().cloned().collect()
    }

    /// One job.
    pub fn job(&self, id: &str) -> Option<Arc<Job>> {
        self.0.jobs().get(id).cloned()
    }

    /// Content of `jobs.json`.
    pub fn list_json(&self) -> Vec<u8> {
        descriptor::list_json(self.0.jobs().values())
    }

    /// Content of `jobs.jsonl`.
    pub fn list_jsonl(&self) -> Vec<u8> {
        descriptor::list_jsonl(self.0.jobs().values())
    }

    /// Rises when a job or run appears or disappears.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The runtime in use, or why there is none.
    pub fn runtime(&self) -> Result<RuntimeInfo, String> {
        self.0.executor.runtime()
    }

    /// Makes a run (`mkdir`). Its name must be new: of many callers with one name exactly one succeeds.
    pub fn create_run(&self, job_id: &str, name: &str, caller: &Caller) -> Result<Arc<Run>, JobError> {
        let job = self.job(job_id).ok_or_else(|| JobError::NotFound(format!("job {job_id}")))?;
        self.0.create(&job, name, caller)
    }

    /// The same for a request that the kernel has marked as resent, because an earlier daemon may have carried it out
    /// already: finds the caller's own run as long as nothing was done with it.
    pub fn create_run_resent(&self, job_id: &str, name: &str, caller: &Caller) -> Result<Arc<Run>, JobError> {
        match self.create_run(job_id, name, caller) {
            Err(JobError::Exists(taken)) => self
                .run(job_id, name)
                .filter(|run| run.creator() == *caller && run.is_untouched())
                .ok_or(JobError::Exists(taken)),
            other => other,
        }
    }

    /// The runs of a job, in the order of their numbers.
    pub fn runs_of(&self, job_id: &str) -> Vec<Arc<Run>> {
        let runs = self.0.runs();
        let mut found: Vec<_> =
            runs.by_job.get(job_id).into_iter().flat_map(|m| m.values().cloned()).collect();
        found.sort_by_key(|run| run.number());
        found
    }

    /// A run by its job and name.
    pub fn run(&self, job_id: &str, name: &str) -> Option<Arc<Run>> {
        self.0.runs().by_job.get(job_id)?.get(name).cloned()
    }

    /// A run by its id.
    pub fn run_by_id(&self, id: &str) -> Option<Arc<Run>> {
        self.0.runs().by_id.get(id).cloned()
    }

    /// All runs, in the order of their numbers.
    pub fn all_runs(&self) -> Vec<Arc<Run>> {
        self.0.runs().by_number.values().cloned().collect()
    }

    /// The runs that are queued or running: what an unmount must wait for.
    pub fn live_runs(&self) -> Vec<Arc<Run>> {
        self.0.runs().by_number.values().filter(|run| run.state().is_live()).cloned().collect()
    }

    /// Refuses every start from now on: who stops the daemon must not race with who starts a run. What is queued or
    /// running goes on.
    pub fn close(&self) {
        self.0.queue().close(true);
    }

    /// Takes [`Jobs::close`] back.
    pub fn reopen(&self) {
        self.0.queue().close(false);
    }

    /// Whether no run is queued or running and no start is under way. Final once the handle is closed.
    pub fn is_idle(&self) -> bool {
        // In this order: a start that is no promise any more is a live run.
        !self.0.queue().has_promised() && self.live_runs().is_empty()
    }

    /// How many runs are in which state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for run in self.0.runs().by_number.values() {
            match run.state() {
                RunState::Created => counts.created += 1,
                RunState::Queued => counts.queued += 1,
                RunState::Running => counts.running += 1,
                _ => counts.finished += 1,
            }
        }
        counts
    }

    /// Removes a run with all its files (`rmdir`). Refused while it lives.
    pub fn remove_run(&self, job_id: &str, name: &str, _caller: &Caller) -> Result<(), JobError> {
        let run = self.run(job_id, name).ok_or_else(|| JobError::NotFound(format!("run {name}")))?;
        self.0.remove(&run)?;
        self.0.sweep_later();
        Ok(())
    }
}

impl Shared {
    /// Makes a run of a job.
    fn create(&self, job: &Job, name: &str, caller: &Caller) -> Result<Arc<Run>, JobError> {
        check_name(name)?;
        self.must_be_free(&self.runs(), job, name)?;
        let (number, id) = self.new_id()?;
        self.create_as(job, number, id, name, caller)
    }

    /// Makes a run that is named by its own id.
    pub(super) fn create_unnamed(&self, job: &Job, caller: &Caller) -> Result<Arc<Run>, JobError> {
        let (number, id) = self.new_id()?;
        let name = id.clone();
        self.create_as(job, number, id, &name, caller)
    }

    fn new_id(&self) -> Result<(u64, String), JobError> {
        let number = self.journal.next_number();
        let number = number.map_err(|e| JobError::Internal(format!("no run can be made: {e}")))?;
        Ok((number, layout::run_id(number, self.journal.mark())))
    }

    fn create_as(
        &self,
        job: &Job,
        number: u64,
        id: String,
        name: &str,
        caller: &Caller,
    ) -> Result<Arc<Run>, JobError> {
        let trouble = |e: std::io::Error| JobError::Internal(format!("run {name} cannot be made: {e}"));
        // The folder comes first: whoever finds the run in the table finds its folder too.
        let dir = self.layout.make_run_dir(&id).map_err(trouble)?;
        let group = self.options.group.unwrap_or(caller.gid);
        let run =
            Arc::new(Run::new(new_record(job, number, id, name, caller, group), dir, ArgsText::default()));
        let entered = self.enter_new(&run, job, name);
        if let Err(error) = entered {
            let _ = std::fs::remove_dir(run.dir());
            return Err(error);
        }
        self.changed();
        self.tell(&run, "run.created", |event| event.with("uid", caller.uid));
        Ok(run)
    }

    /// Decides who of several wins the name, and writes the winner down.
    fn enter_new(&self, run: &Arc<Run>, job: &Job, name: &str) -> Result<(), JobError> {
        let mut runs = self.runs_mut();
        self.must_be_free(&runs, job, name)?;
        let written = self.journal.append(&run.lock().record);
        written.map_err(|e| JobError::Internal(format!("run {name} cannot be written down: {e}")))?;
        runs.enter(run);
        Ok(())
    }

    fn must_be_free(&self, runs: &Runs, job: &Job, name: &str) -> Result<(), JobError> {
        let taken = runs.by_job.get(job.id()).is_some_and(|named| named.contains_key(name));
        if taken { Err(JobError::Exists(name.to_owned())) } else { Ok(()) }
    }

    /// Removes a run that is not live; its folder is only taken out of sight.
    pub(super) fn remove(&self, run: &Run) -> Result<(), JobError> {
        {
            let mut inner = run.lock();
            run.judge(&inner, inner.record.state, Verb::Remove, false)?;
            inner.removed = true;
            inner.text = ArgsText::default();
        }
        self.runs_mut().leave(run);
        self.changed();
        let trouble =
            |e: std::io::Error| JobError::Internal(format!("run {} is half removed: {e}", run.name()));
        self.journal.gone(run.number()).map_err(trouble)?;
        self.layout.retire(run.id()).map_err(trouble)
    }

    /// Deletes retired folders in the background.
    pub(super) fn sweep_later(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        self.runtime.spawn_blocking(move || shared.sweep());
    }

    /// Deletes retired folders and strays. Slow.
    pub(super) fn sweep(&self) {
        self.layout.sweep(|id| self.runs().by_id.contains_key(id) || self.is_young(id));
    }

    /// A folder of a run that is being made right now: not in the table yet, and no stray of a crash.
    fn is_young(&self, id: &str) -> bool {
        let modified = std::fs::metadata(self.layout.run_dir(id)).and_then(|m| m.modified());
        let age = modified.ok().and_then(|at| at.elapsed().ok());
        // Making a run takes microseconds; an hour forgives a clock that jumps.
        age.is_none_or(|age| age.as_secs() < 3600)
    }

    /// Tells of something that happened to a run.
    pub(super) fn tell(&self, run: &Run, kind: &'static str, fields: impl FnOnce(Event) -> Event) {
        let mut event = Event::of_run(kind, run.id()).with("job", run.job_id()).with("name", run.name());
        event.source = Some(run.lock().record.source.clone());
        self.events.tell(fields(event));
    }

    /// Writes a run's record down; a failure is told and does not stop the run.
    pub(super) fn write_down(&self, record: &Record) -> Option<super::journal::Position> {
        self.journal
            .append(record)
            .inspect_err(|e| tracing::error!(run = %record.id, error = %e, "the journal cannot be written"))
            .ok()
    }

    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn jobs(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Job>>> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Job>>> {
        self.jobs.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn runs(&self) -> RwLockReadGuard<'_, Runs> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn runs_mut(&self) -> RwLockWriteGuard<'_, Runs> {
        self.runs.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn parked(&self) -> MutexGuard<'_, Vec<Arc<Run>>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runs {
    pub(super) fn enter(&mut self, run: &Arc<Run>) {
        self.by_number.insert(run.number(), Arc::clone(run));
        self.by_id.insert(run.id().to_owned(), Arc::clone(run));
        self.by_job
            .entry(run.job_id().to_owned())
            .or_default()
            .insert(run.name().to_owned(), Arc::clone(run));
    }

    fn leave(&mut self, run: &Run) {
        self.by_number.remove(&run.number());
        self.by_id.remove(run.id());
        if let Some(named) = self.by_job.get_mut(run.job_id()) {
            named.remove(run.name());
            if named.is_empty() {
                self.by_job.remove(run.job_id());
            }
        }
    }

    /// All of them, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.by_number.values()
    }
}

/// The variables that are text.
fn readable_environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// A name that is one plain word in a shell, in a URL and in a log.
fn check_name(name: &str) -> Result<(), JobError> {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let starts = name.bytes().next().is_some_and(alphanumeric);
    if starts && name.len() <= MAX_RUN_NAME && name.bytes().all(|b| alphanumeric(b) || b"._-".contains(&b)) {
        Ok(())
    } else {
        Err(JobError::Invalid(format!(
            "a run's name is 1 to {MAX_RUN_NAME} of the characters a-z 0-9 . _ - and begins with a letter or digit"
        )))
    }
}

fn new_record(job: &Job, number: u64, id: String, name: &str, caller: &Caller, group: u32) -> Record {
    let addon = &job.addon;
    Record {
        number,
        id,
        name: name.to_owned(),
        job: job.id().to_owned(),
        source: addon.source.clone(),
        state: RunState::Created,
        who: Who { uid: caller.uid, gid: caller.gid, pid: caller.pid },
        via: None,
        group,
        origin: addon.origin.clone(),
        image: addon.image.clone(),
        tree: addon.tree,
        trust: addon.trust.clone(),
        created_ms: now_ms(),
        queued_ms: None,
        started_ms: None,
        ended_ms: None,
        args_at: ArgsAt::Unwritten,
        args: None,
        secret_names: job.entry.argspec.secrets.clone(),
        held_secrets: false,
        token: None,
        stdin: false,
        eof_asked: false,
        launching: false,
        boot: None,
        cancel_asked: false,
        shim: None,
        policy: Value::Null,
        limits: Value::Null,
        plan_digest: None,
        exit_code: None,
        signal: None,
        error: None,
        progress: None,
        cpu_usec: None,
        memory_peak: None,
        oom_killed: None,
        log_dropped: None,
        bytes_fetched: 0,
    }
}
