//! The event files: `events.jsonl` of the daemon and one of each source.
//!
//! ```text
//! <state>/events.jsonl                    every event, one JSON object a line
//! <state>/sources/<name>/events.jsonl     the same lines, of one source
//! ```
//! A line is `{"seq":N,"time":"…Z","event":kind,"source"?,"run"?,…data}`; `seq` rises by one for ever. Of each the
//! newest are kept, as many as its limit lets (see `journal`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::journal::{Journal, JournalError};
use crate::policy::event::Event;

/// Some months of a busy daemon, and what flowd keeps, too.
pub(crate) const KEEP: u64 = 64 << 20;
/// A source has a few events an hour at worst.
const KEEP_OF_SOURCE: u64 = 4 << 20;

/// The writer of all event files.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: PathBuf,
    open: Mutex<Open>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Open {
    all: Journal,
    by_source: HashMap<String, Journal>,
}

impl EventLog {
    /// Opens the files below the state directory, and repairs their ends.
    pub(crate) fn open(state: &Path) -> anyhow::Result<Self> {
        let path = state.join("events.jsonl");
        let all =
            Journal::open(&path, "seq", KEEP).with_context(|| format!("cannot open {}", path.display()))?;
        let newest = watch::Sender::new(all.last());
        Ok(Self {
            state: state.to_owned(),
            open: Mutex::new(Open { all, by_source: HashMap::new() }),
            newest,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of all events.
    pub(crate) fn path(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }

    /// The file of one source's events.
    pub(crate) fn source_path(&self, source: &str) -> PathBuf {
        self.state.join("sources").join(source).join("events.jsonl")
    }

    /// Bytes kept of all events, and the most that may be.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let open = self.lock();
        (open.all.bytes(), open.all.limit())
    }

    /// Follows the number of the newest event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Lines after the one numbered `cursor`, as many as fit into one piece.
    pub(crate) fn after(&self, cursor: u64) -> Result<Vec<u8>, JournalError> {
        self.lock().all.after(cursor)
    }

    /// Numbers and writes an event. A disk that refuses is logged once a line, and nothing else stops.
    pub(crate) fn write(&self, event: &Event) {
        let mut open = self.lock();
        let mut written = Vec::new();
        let number = open.all.append(|seq| {
            written = line(seq, event);
            written.clone()
        });
        let number = match number {
            Ok(number) => number,
            Err(error) => {
                tracing::warn!("cannot write {}: {error}", self.path().display());
                return;
            }
        };
        if let Some(source) = &event.source
            && let Err(error) = self.write_of_source(&mut open, source, number, &written)
        {
            tracing::warn!("cannot write the events of source {source}: {error:#}");
        }
        drop(open);
        self.newest.send_replace(number);
    }

    fn write_of_source(&self, open: &mut Open, source: &str, number: u64, line: &[u8]) -> anyhow::Result<()> {
        let journal = match open.by_source.entry(source.to_owned()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = self.source_path(source);
                std::fs::create_dir_all(path.parent().unwrap_or(&self.state))?;
                entry.insert(Journal::open(&path, "seq", KEEP_OF_SOURCE)?)
            }
        };
        Ok(journal.append_numbered(number, line)?)
    }
}

fn line(seq: u64, event: &Event) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("seq".into(), seq.into());
    object.insert("time".into(), super::clock::now_text().into());
    object.insert("event".into(), event.kind.into());
    if let Some(source) = &event.source {
        object.insert("source".into(), source.as_str().into());
    }
    if let Some(run) = &event.run {
        object.insert("run".into(), run.as_str().into());
    }
    for (key, value) in &event.data {
        object.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_in_the_file_of_all_and_in_that_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path()).unwrap();
        log.write(&Event::of_source("source.ready", "a"));
        log.write(&Event::of_run("run.start", "r1").with("job", "a/b"));
        drop(log);
        let log = EventLog::open(dir.path()).unwrap();
        log.write(&Event::of_source("source.refused", "a"));
        assert_eq!(*log.subscribe().borrow(), 3);
        let kinds = |bytes: &[u8]| -> Vec<String> {
            let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            lines
                .map(|line| {
                    serde_json::from_slice::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned()
                })
                .collect()
        };
        assert_eq!(kinds(&log.after(0).unwrap()), ["source.ready", "run.start", "source.refused"]);
        assert_eq!(kinds(&log.after(2).unwrap()), ["source.refused"]);
        let of_source = std::fs::read(log.source_path("a")).unwrap();
        assert_eq!(kinds(&of_source), ["source.ready", "source.refused"]);
    }
}
