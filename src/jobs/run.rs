//! One run, alive in memory: its record, its arguments before start, and who waits for its state.
//!
//! The lock of a run is held for memory work and for writes of small files to the page cache only, never across
//! an await or an fsync: threads that serve the mount take it.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use zeroize::Zeroizing;

use super::args::ArgsText;
use super::error::JobError;
use super::executor::LaunchSpec;
use super::layout::{ARGS_RAW, PLAN};
use super::log::{Log, first_kept};
use super::options::Caller;
use super::record::{ArgsAt, Record, pretty};
use super::state::{Answer, RunState, Verb};
use super::stdin::Stdin;
use super::usage::disk_usage;

/// What a run says whose arguments were lost with a daemon.
pub(super) const WRITE_AGAIN: &str = "the arguments of this run were held in memory only, because the job takes secrets, and the daemon was started again: write args.json again";

/// A run. Its identity never changes; everything else is behind its lock.
pub struct Run {
    number: u64,
    id: String,
    name: String,
    job_id: String,
    source: String,
    owner: (u32, u32),
    dir: PathBuf,
    generation: AtomicU64,
    state: watch::Sender<RunState>,
    inner: Mutex<Inner>,
    /// What the folder of the finished run takes.
    on_disk: OnceLock<u64>,
    pub(super) stdin: Stdin,
}

/// What changes.
pub(super) struct Inner {
    pub(super) record: Record,
    /// Text of `args.json` before start.
    pub(super) text: ArgsText,
    /// What an accepted start waits with.
    pub(super) pending: Option<Pending>,
    /// Words of the last refused command; without one the record's error or progress is shown.
    pub(super) refusal: Option<String>,
    /// `plan.json`, while the run is live.
    pub(super) plan: Option<Arc<[u8]>>,
    /// The text was in memory only and the daemon that had it is gone.
    pub(super) text_lost: bool,
    /// Removed: no command is obeyed any more.
    pub(super) removed: bool,
}

/// A judged start.
pub(super) struct Pending {
    pub(super) spec: LaunchSpec,
    pub(super) secrets: Vec<(String, Zeroizing<String>)>,
}

impl Run {
    pub(super) fn new(record: Record, dir: PathBuf, text: ArgsText) -> Self {
        Self {
            number: record.number,
            id: record.id.clone(),
            name: record.name.clone(),
            job_id: record.job.clone(),
            source: record.source.clone(),
            owner: (record.who.uid, record.group),
            dir,
            generation: AtomicU64::new(1),
            state: watch::Sender::new(record.state),
            inner: Mutex::new(Inner {
                record,
                text,
                pending: None,
                refusal: None,
                plan: None,
                text_lost: false,
                removed: false,
            }),
            on_disk: OnceLock::new(),
            stdin: Stdin::default(),
        }
    }

    /// Bytes on disk of a finished run's folder, which changes no more. Slow the first time.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        *self.on_disk.get_or_init(|| disk_usage(&self.dir))
    }

    /// The run id: unique for ever.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run's number: unique and never used again in this state directory, restarts included.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name of its folder below `runs/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The job it is a run of.
    pub fn job_id(&self) -> &str {
        &self.job_id
    }

    /// The source of its job.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// User and group of its files: the caller's uid, the configured group.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Its folder on disk; `stdout`, `stderr` and `out/` in it may be missing as long as nothing was written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state.
    pub fn state(&self) -> RunState {
        *self.state.borrow()
    }

    /// Rises with every change of anything that its files show, logs and `out/` excepted.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Follows the state.
    pub fn subscribe(&self) -> watch::Receiver<RunState> {
        self.state.subscribe()
    }

    /// Milliseconds since 1970 at which it was made: the time of its folder.
    pub fn created_ms(&self) -> u64 {
        self.lock().record.created_ms
    }

    /// Milliseconds since 1970 of its last change of state: the time of its files.
    pub fn changed_ms(&self) -> u64 {
        let inner = self.lock();
        let record = &inner.record;
        record.ended_ms.or(record.started_ms).or(record.queued_ms).unwrap_or(record.created_ms)
    }

    /// Content of `record.json`.
    pub fn record_json(&self) -> Vec<u8> {
        self.lock().record.render()
    }

    /// Content of `args.json`: as written before start (secrets replaced), normalised from start on.
    pub fn args_json(&self) -> Vec<u8> {
        let inner = self.lock();
        match &inner.record.args {
            Some(args) => pretty(&serde_json::Value::Object(args.clone())),
            None => inner.text.shown(&inner.record.secret_names),
        }
    }

    /// Content of `plan.json`; empty before start.
    pub fn plan_json(&self) -> Arc<[u8]> {
        let inner = self.lock();
        if let Some(plan) = &inner.plan {
            return Arc::clone(plan);
        }
        if inner.record.plan_digest.is_none() {
            return Arc::from([]);
        }
        drop(inner);
        std::fs::read(self.dir.join(PLAN)).unwrap_or_default().into()
    }

    /// One of its logs (`stdout`, `stderr`), for one reader; `None` as long as nothing was written.
    pub fn open_log(&self, name: &str) -> Option<Log> {
        Log::open(std::fs::File::open(self.dir.join(name)).ok()?, self.log_limit()).ok()
    }

    /// How many bytes at the front of a log are given up, for who reads its file by offset: what lies before is a hole.
    pub fn log_begins(&self, name: &str) -> u64 {
        let length = std::fs::metadata(self.dir.join(name)).map_or(0, |found| found.len());
        first_kept(length, self.log_limit())
    }

    /// Bytes that a reader of the log would find now, and when it was last written.
    pub fn stat_log(&self, name: &str) -> Option<(u64, std::time::SystemTime)> {
        let found = std::fs::metadata(self.dir.join(name)).ok()?;
        let kept = found.len() - first_kept(found.len(), self.log_limit());
        Some((kept, found.modified().ok()?))
    }

    /// The most bytes of one log, as they were fixed at start.
    fn log_limit(&self) -> u64 {
        self.lock().record.limits["log_bytes"].as_u64().unwrap_or(u64::MAX)
    }

    /// Content of `exit_code`: a number and a newline, empty until it is known.
    pub fn exit_code_text(&self) -> String {
        self.exit_code().map(|code| format!("{code}\n")).unwrap_or_default()
    }

    /// The exit code that `wait` exits with, once the run is final.
    pub fn exit_code(&self) -> Option<i32> {
        self.lock().record.exit_code
    }

    /// Content of `last_error`: the last refused command, else why the run did not succeed, else what it waits for.
    pub fn last_error(&self) -> String {
        let inner = self.lock();
        let record = &inner.record;
        let words = inner.refusal.as_deref().or(record.error.as_deref()).or(record.progress.as_deref());
        let words = words.or(inner.text_lost.then_some(WRITE_AGAIN));
        words.map(|w| format!("{w}\n")).unwrap_or_default()
    }

    /// Whether it was started with standard input.
    pub fn wants_stdin(&self) -> bool {
        self.lock().record.stdin
    }

    /// Made, and nothing was done with it since.
    pub(super) fn is_untouched(&self) -> bool {
        let inner = self.lock();
        inner.record.state == RunState::Created && inner.record.args_at == ArgsAt::Unwritten && !inner.removed
    }

    /// The caller who made it.
    pub fn creator(&self) -> Caller {
        let who = self.lock().record.who;
        Caller { uid: who.uid, gid: who.gid, pid: who.pid }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change visible: the generation rises before a waiter wakes, so that it renders anew.
    pub(super) fn publish(&self, inner: &Inner) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.state
            .send_if_modified(|state| std::mem::replace(state, inner.record.state) != inner.record.state);
    }

    /// Remembers why a command was refused.
    pub(super) fn refused(&self, error: &JobError) {
        let mut inner = self.lock();
        inner.refusal = Some(error.to_string());
        self.publish(&inner);
    }

    /// Whether a command is to be carried out (`true`), was done before (`false`), or is refused.
    pub(super) fn judge(
        &self,
        inner: &Inner,
        state: RunState,
        verb: Verb,
        same: bool,
    ) -> Result<bool, JobError> {
        if inner.removed {
            return Err(JobError::NotFound(format!("run {}", self.name)));
        }
        match state.answer(verb, same) {
            Answer::Do => Ok(true),
            Answer::Already => Ok(false),
            Answer::Refuse(why) => {
                let verb = verb.as_str();
                Err(JobError::Busy(format!("{verb} refused: run {} is {state}: {why}", self.name)))
            }
        }
    }

    /// Puts the text of `args.json` where it may lie; what stands before `from` has not changed. Returns whether the
    /// journal must learn of it.
    pub(super) fn keep_text(&self, inner: &mut Inner, from: u64) -> Result<bool, JobError> {
        let at = if inner.record.secret_names.is_empty() {
            // A text that was kept in memory until now is not there at all.
            let from = if inner.record.args_at == ArgsAt::Disk { from } else { 0 };
            write_tail(&self.dir.join(ARGS_RAW), inner.text.bytes(), from)
                .map_err(|e| JobError::Internal(format!("args.json of run {}: {e}", self.name)))?;
            ArgsAt::Disk
        } else {
            if inner.record.args_at == ArgsAt::Disk {
                // Written when the job took no secrets yet: what was no secret then may be one now.
                let _ = std::fs::remove_file(self.dir.join("args.json"));
            }
            ArgsAt::Memory
        };
        let changed = inner.record.args_at != at;
        inner.record.args_at = at;
        inner.text_lost = false;
        inner.refusal = None;
        Ok(changed)
    }
}

/// Makes the file hold `text`, of which only what comes from `from` on may differ.
fn write_tail(path: &Path, text: &[u8], from: u64) -> io::Result<()> {
    let from = from.min(text.len() as u64);
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() > text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    file.write_all_at(text.get(from as usize..).unwrap_or_default(), from)
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("id", &self.id)
            .field("job", &self.job_id)
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
