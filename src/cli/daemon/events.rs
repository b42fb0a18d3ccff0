//! The event files: `events.jsonl` of the daemon and one of each source.
//!
//! ```text
//! <state>/events.jsonl                    every event, one JSON object a line
//! <state>/sources/<name>/events.jsonl     the same lines, of one source
//! ```
//! A line is `{"seq":N,"time":"…Z","event":kind,"source"?,"run"?,…data}`; `seq` rises by one for ever. Lines are
//! appended with one write each. At start a file over [`KEEP`] is cut to its newer half at a line's end, and a last
//! line that a crash tore is dropped; while the daemon runs a file only grows, so that `tail -f` works.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::policy::event::Event;

/// A few weeks of a busy daemon, and still quick to read whole.
const KEEP: u64 = 16 << 20;

/// The writer of all event files.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    all: File,
    next: u64,
    by_source: HashMap<String, File>,
}

impl EventLog {
    /// Opens the files below the state directory, and repairs their ends.
    pub(crate) fn open(state: &Path) -> anyhow::Result<Self> {
        let path = state.join("events.jsonl");
        let next = repair(&path).with_context(|| format!("cannot repair {}", path.display()))? + 1;
        let open = Open { all: append(&path)?, next, by_source: HashMap::new() };
        Ok(Self { state: state.to_owned(), open: Mutex::new(open) })
    }

    /// The file of all events.
    pub(crate) fn path(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }

    /// The file of one source's events.
    pub(crate) fn source_path(&self, source: &str) -> PathBuf {
        self.state.join("sources").join(source).join("events.jsonl")
    }

    /// Numbers and writes an event. A disk that refuses is logged once a line, and nothing else stops.
    pub(crate) fn write(&self, event: &Event) {
        let Ok(mut open) = self.open.lock() else { return };
        let line = line(open.next, event);
        open.next += 1;
        if let Err(error) = open.all.write_all(&line) {
            tracing::warn!("cannot write {}: {error}", self.path().display());
        }
        let Some(source) = &event.source else { return };
        if let Err(error) = self.write_of_source(&mut open, source, &line) {
            tracing::warn!("cannot write the events of source {source}: {error:#}");
        }
    }

    fn write_of_source(&self, open: &mut Open, source: &str, line: &[u8]) -> anyhow::Result<()> {
        let file = match open.by_source.entry(source.to_owned()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = self.source_path(source);
                std::fs::create_dir_all(path.parent().unwrap_or(&self.state))?;
                repair(&path)?;
                entry.insert(append(&path)?)
            }
        };
        Ok(file.write_all(line)?)
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

fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Drops a torn last line and, of a file over [`KEEP`], the older half. Returns the last line's number, 0 for none.
fn repair(path: &Path) -> std::io::Result<u64> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let from = if size > KEEP { size - KEEP / 2 } else { 0 };
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let start =
        if from == 0 { 0 } else { text.iter().position(|b| *b == b'\n').map_or(text.len(), |i| i + 1) };
    let end = text.iter().rposition(|b| *b == b'\n').map_or(start, |i| i + 1).max(start);
    let kept = text.get(start..end).unwrap_or_default();
    if kept.len() as u64 != size {
        let temporary = path.with_extension("jsonl.new");
        std::fs::write(&temporary, kept)?;
        std::fs::rename(&temporary, path)?;
    }
    let last = kept.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    let parsed: Option<Value> = serde_json::from_slice(last).ok();
    Ok(parsed.and_then(|v| v["seq"].as_u64()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path()).unwrap();
        log.write(&Event::of_source("source.ready", "a"));
        log.write(&Event::of_run("run.start", "r1").with("job", "a/b"));
        drop(log);
        let mut file = append(&dir.path().join("events.jsonl")).unwrap();
        file.write_all(b"{\"seq\":3,\"ti").unwrap();
        let log = EventLog::open(dir.path()).unwrap();
        log.write(&Event::of_source("source.refused", "a"));
        let text = std::fs::read_to_string(log.path()).unwrap();
        let seqs: Vec<u64> = text
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].as_u64().unwrap())
            .collect();
        assert_eq!(seqs, [1, 2, 3]);
        assert_eq!(std::fs::read_to_string(log.source_path("a")).unwrap().lines().count(), 2);
    }
}
