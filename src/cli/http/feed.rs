//! A run's own events, its output among them, numbered from 1: what `/runs/{id}/events` streams.
//!
//! ```text
//! <run's folder>/events.jsonl    {"sequence":N,"timestamp":"…","event":"step.log","data":{…},"at":[stdout,stderr,stage]}
//! ```
//! Written when somebody asks, from the run's record and its logs: in which order lines of stdout and stderr came is
//! known only to who looks while they come, and what was once said under a number stays so, over restarts, too. `at`
//! is how much of the two logs the line and those before it cover, and which of [`Stage`] were told; it is not shown.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::{Value, json};

use crate::cli::daemon::clock;
use crate::cli::daemon::events::KEEP;
use crate::cli::daemon::journal::{Journal, JournalError};
use crate::jobs::{Run, RunState};

/// Longest piece of output in one event; a longer line comes in several.
const MAX_MESSAGE: usize = 16 << 10;
/// Output that is taken over in one go.
const PIECE: usize = 256 << 10;

/// The feeds that somebody follows.
#[derive(Debug, Default)]
pub(super) struct Feeds(Mutex<HashMap<u64, Weak<Feed>>>);

/// One run's events.
#[derive(Debug)]
pub(super) struct Feed {
    run: Arc<Run>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    /// Bytes of stdout and of stderr that were taken over.
    logs: [u64; 2],
    /// How many of [`Stage`] were told.
    stage: usize,
}

/// What happens to every run, in this order; what does not apply is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Policy,
    RunStart,
    StepStart,
    Output,
    StepFinish,
    Canceled,
    RunFinish,
}

const STAGES: [Stage; 7] = [
    Stage::Policy,
    Stage::RunStart,
    Stage::StepStart,
    Stage::Output,
    Stage::StepFinish,
    Stage::Canceled,
    Stage::RunFinish,
];

/// Lines of a feed.
#[derive(Debug)]
pub(super) struct Lines {
    /// Each with its number.
    pub lines: Vec<(u64, Value)>,
    /// Nothing more will come.
    pub over: bool,
}

impl Feeds {
    /// The feed of a run.
    pub(super) fn of(&self, run: &Arc<Run>) -> io::Result<Arc<Feed>> {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|_, feed| feed.strong_count() > 0);
        if let Some(feed) = feeds.get(&run.number()).and_then(Weak::upgrade) {
            return Ok(feed);
        }
        let feed = Arc::new(Feed::open(run)?);
        feeds.insert(run.number(), Arc::downgrade(&feed));
        Ok(feed)
    }
}

impl Feed {
    fn open(run: &Arc<Run>) -> io::Result<Self> {
        let journal = Journal::open(&run.dir().join("events.jsonl"), "sequence", KEEP)?;
        let newest = journal.newest()?;
        let at = |index: usize| newest.as_ref().and_then(|line| line["at"][index].as_u64()).unwrap_or(0);
        let stage = usize::try_from(at(2)).unwrap_or(0);
        let inner = Inner { logs: [at(0), at(1)], stage, journal };
        Ok(Self { run: Arc::clone(run), inner: Mutex::new(inner) })
    }

    /// Takes over what is new, and gives what comes after `cursor`.
    pub(super) fn after(&self, cursor: u64) -> Result<Lines, JournalError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let over = inner.advance(&self.run)?;
        let mut lines = Vec::new();
        for line in inner.journal.after(cursor)?.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let mut line: Value = serde_json::from_slice(line).map_err(io::Error::from)?;
            if let Some(object) = line.as_object_mut() {
                object.shift_remove("at");
            }
            lines.push((line["sequence"].as_u64().unwrap_or(0), line));
        }
        let last = lines.last().map_or(cursor, |(number, _)| *number);
        Ok(Lines { over: over && last == inner.journal.last(), lines })
    }
}

impl Inner {
    /// Tells what has happened since. `true` once all is told that ever will be.
    fn advance(&mut self, run: &Run) -> Result<bool, JournalError> {
        // The state first: what is in the logs after a run ended is all of them.
        let state = run.state();
        while let Some(stage) = STAGES.get(self.stage).copied() {
            let record: Value = serde_json::from_slice(&run.record_json()).map_err(io::Error::from)?;
            let started = !record["started_at"].is_null();
            let Some(told) = tell(stage, &record, state, started) else {
                // A stage that has not come yet, or that this run never reaches.
                if !state.is_final() {
                    return Ok(false);
                }
                self.stage += 1;
                continue;
            };
            match told {
                Told::Event(event, time, data) => {
                    self.stage += 1;
                    self.append(event, &time, &data)?;
                }
                Told::Output => {
                    let more = self.take_logs(run, state.is_final())?;
                    if !state.is_final() {
                        return Ok(false);
                    }
                    if !more {
                        self.stage += 1;
                    }
                }
            }
        }
        Ok(true)
    }

    fn append(&mut self, event: &str, time: &str, data: &Value) -> Result<(), JournalError> {
        let at = json!([self.logs[0], self.logs[1], self.stage]);
        self.journal.append(|sequence| {
            let line = json!({
                "sequence": sequence, "timestamp": time, "event": event, "data": data, "at": at,
            });
            format!("{line}\n").into_bytes()
        })?;
        Ok(())
    }

    /// Takes over whole lines of both logs, at the end the last one, too. Whether there may be more.
    fn take_logs(&mut self, run: &Run, ended: bool) -> Result<bool, JournalError> {
        let mut more = false;
        for (index, channel) in ["stdout", "stderr"].into_iter().enumerate() {
            let Ok(file) = File::open(run.dir().join(channel)) else { continue };
            let size = file.metadata()?.len();
            let from = &mut self.logs[index];
            // What a log has given up is a hole in its file.
            *from = run.log_begins(channel).clamp(*from, size.max(*from));
            let mut bytes = vec![0; PIECE.min(usize::try_from(size - *from).unwrap_or(PIECE))];
            file.read_exact_at(&mut bytes, *from)?;
            if run.log_begins(channel) > *from {
                // The hole came while it was read.
                more = true;
                continue;
            }
            let end = *from + bytes.len() as u64;
            more |= end < size;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let line = rest.iter().position(|b| *b == b'\n');
                let (length, text) = match line {
                    Some(at) if at < MAX_MESSAGE => (at + 1, rest.get(..at)),
                    None if rest.len() < MAX_MESSAGE && !(ended && end == size) => break,
                    _ => (rest.len().min(MAX_MESSAGE), rest.get(..rest.len().min(MAX_MESSAGE))),
                };
                let message = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
                rest = rest.get(length..).unwrap_or_default();
                self.logs[index] += length as u64;
                let data = json!({"channel": channel, "message": message});
                self.append("step.log", &clock::now_text(), &data)?;
            }
        }
        Ok(more)
    }
}

enum Told {
    Event(&'static str, String, Value),
    Output,
}

/// A stage, once it has come.
fn tell(stage: Stage, record: &Value, state: RunState, started: bool) -> Option<Told> {
    let ended = state.is_final();
    let time = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let job = &record["job"];
    match stage {
        Stage::Policy if !record["policy"].is_null() => {
            let data = json!({"subject": job, "decision": "allowed", "code": null, "reason": null});
            Some(Told::Event("policy.decision", time("queued_at"), data))
        }
        Stage::RunStart if started => {
            Some(Told::Event("run.start", time("started_at"), json!({"job_id": job, "run_id": record["id"]})))
        }
        Stage::StepStart if started => Some(Told::Event(
            "step.start",
            time("started_at"),
            json!({"step": "main", "executor": "container"}),
        )),
        Stage::Output if started => Some(Told::Output),
        Stage::StepFinish if started && ended => {
            let data = json!({"step": "main", "exit_code": record["exit_code"]});
            Some(Told::Event("step.finish", time("ended_at"), data))
        }
        Stage::Canceled if state == RunState::Canceled => {
            Some(Told::Event("run.canceled", time("ended_at"), json!({"reason": record["error"]})))
        }
        Stage::RunFinish if ended => {
            let data = json!({
                "status": super::runs::status(state), "state": record["state"],
                "exit_code": record["exit_code"], "error": record["error"],
            });
            Some(Told::Event("run.finish", time("ended_at"), data))
        }
        _ => None,
    }
}
