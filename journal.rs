//! The log of all runs: what survives a crash of the daemon and of the machine.
//!
//! # Why a log and not a database
//! A warm `run` pays for what is durable before its job starts. One line and one fdatasync is the least there is;
//! redb commits several copied pages and the same fsync, and its file says nothing to a person with `less`. The
//! state is small (retention bounds the runs), so replaying it whole at open costs milliseconds.
//!
//! # Format (version 1)
//! ```text
//! <sha256 of the JSON, first 16 hex> SP <JSON> LF
//! ```
//! The first line is `{"header":{"version":1,"mark":"3f9a2c41"}}`: the mark makes run ids of two state directories
//! differ. Then, in any number: `{"reserved":128}` (numbers up to 128 may be in use: never hand out one below),
//! `{"run":{…}}` (the whole record; the last one of a run counts), `{"gone":17}` (run 17 was removed).
//!
//! # What is promised
//! An entry that [`Journal::append`] took survives the death of the daemon; one whose [`Journal::synced`] returned
//! survives the death of the machine. A torn last line is cut off when opened, nothing before it is lost; a damaged
//! line in the middle costs that line only and is told. At open, and when it has grown, the log is rewritten from what
//! counts: new file, sync, rename, sync of the folder.
//!
//! Numbers are reserved in blocks so that a number that was shown once is not used again even when the machine died
//! before the run's first line was on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::policy::digest::Digest;

/// Version of the format.
const VERSION: u32 = 1;
/// Hex digits of the checksum: 64 bits are plenty against torn and rotten lines, which is all it is for.
const CHECK_DIGITS: usize = 16;
/// Numbers reserved at a time: one sync in so many runs.
const BLOCK: u64 = 256;
/// The log is rewritten when it holds more than this and more than [`GROWTH`] times what counted last time.
const MIN_REWRITE: u64 = 4 << 20;
/// See [`MIN_REWRITE`].
const GROWTH: u64 = 4;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Header { version: u32, mark: String },
    Reserved(u64),
    Run(Box<Record>),
    Gone(u64),
}

/// What a log held.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The runs by number.
    pub runs: BTreeMap<u64, Record>,
    /// Lines that were damaged and are gone (a torn last line is not counted).
    pub damaged: usize,
}

/// The open log.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    mark: String,
    /// The writing side. Held for one `write(2)` to the page cache.
    log: Mutex<Log>,
    /// Position up to which the log is on disk. Held across the sync, by those who wait for one.
    durable: tokio::sync::Mutex<Position>,
}

#[derive(Debug)]
struct Log {
    file: Arc<File>,
    /// Rises with every rewrite; a rewritten log is durable from its start.
    epoch: u64,
    length: u64,
    /// Length after the last rewrite.
    base: u64,
    next: u64,
    reserved: u64,
}

/// How far the log was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Position {
    epoch: u64,
    length: u64,
}

impl Journal {
    /// Opens or makes the log, repairs a torn tail, and rewrites it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Replayed)> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let read = read(&content)?;
        let mark = read.mark.unwrap_or_else(|| format!("{:08x}", rand::random::<u32>()));
        let highest = read.runs.keys().next_back().copied().unwrap_or(0);
        let next = read.reserved.max(highest) + 1;
        let (file, length) = rewrite(path, &mark, next - 1 + BLOCK, read.runs.values())?;
        let log = Log { file: Arc::new(file), epoch: 1, length, base: length, next, reserved: next - 1 + BLOCK };
        let durable = tokio::sync::Mutex::new(Position { epoch: 1, length });
        let journal = Self { path: path.to_owned(), mark, log: Mutex::new(log), durable };
        Ok((journal, Replayed { runs: read.runs, damaged: read.damaged }))
    }

    /// The mark of this state directory.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// A number that no run of this state directory ever had.
    pub(super) fn next_number(&self) -> io::Result<u64> {
        let mut log = self.lock();
        if log.next > log.reserved {
            let reserved = log.reserved + BLOCK;
            log.write(&Line::Reserved(reserved))?;
            log.reserved = reserved;
        }
        log.next += 1;
        Ok(log.next - 1)
    }

    /// Writes down a run. Survives the daemon when this returns.
    pub(super) fn append(&self, record: &Record) -> io::Result<Position> {
        self.lock().write(&Line::Run(Box::new(record.clone())))
    }

    /// Writes down that a run is removed.
    pub(super) fn gone(&self, number: u64) -> io::Result<Position> {
        self.lock().write(&Line::Gone(number))
    }

    /// Returns when everything up to the position is on disk. Those who wait together share one sync.
    pub(super) async fn synced(&self, position: Position) -> io::Result<()> {
        let mut durable = self.durable.lock().await;
        if *durable >= position {
            return Ok(());
        }
        let (file, reached) = {
            let log = self.lock();
            (Arc::clone(&log.file), Position { epoch: log.epoch, length: log.length })
        };
        tokio::task::spawn_blocking(move || file.sync_data()).await.map_err(io::Error::other)??;
        *durable = reached;
        Ok(())
    }

    /// Whether a [`Journal::compact`] is worth while.
    pub(super) fn has_grown(&self) -> bool {
        let log = self.lock();
        log.length > MIN_REWRITE && log.length > log.base * GROWTH
    }

    /// Rewrites the log from the records that count. The caller hands in every run that there is; lines appended
    /// between taking them and this call must not exist, so `records` is asked for under the log's lock. The lock is
    /// held for the writing of the new file but not for its sync: until the rename the old log stays the log.
    pub(super) fn compact(&self, records: impl FnOnce() -> Vec<Record>) -> io::Result<()> {
        let mut log = self.lock();
        let kept = records();
        let temporary = self.path.with_extension("new");
        let (file, length) = write_all(&temporary, &self.mark, log.reserved, kept.iter())?;
        // The sync must come before the rename; it is done with the lock held because a line that went to the old
        // file in between would be lost. It happens once in megabytes of log and costs one sync of a small file.
        file.sync_data()?;
        std::fs::rename(&temporary, &self.path)?;
        sync_folder(&self.path)?;
        *log = Log {
            file: Arc::new(file),
            epoch: log.epoch + 1,
            length,
            base: length,
            next: log.next,
            reserved: log.reserved,
        };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Appends one line with one `write(2)`. A line that was written in part is cut off again, so that the next
    /// one does not stick to it.
    fn write(&mut self, line: &Line) -> io::Result<Position> {
        let bytes = encode(line)?;
        if let Err(e) = (&*self.file).write_all(&bytes) {
            // What cannot be cut off now is a damaged line for the next reader, no more.
            let _ = self.file.set_len(self.length);
            return Err(e);
        }
        self.length += bytes.len() as u64;
        Ok(Position { epoch: self.epoch, length: self.length })
    }
}

/// What reading a log gives.
#[derive(Default)]
struct Read {
    mark: Option<String>,
    reserved: u64,
    runs: BTreeMap<u64, Record>,
    damaged: usize,
}

fn read(content: &[u8]) -> io::Result<Read> {
    let mut read = Read::default();
    let mut lines = content.split(|b| *b == b'\n').peekable();
    while let Some(line) = lines.next() {
        let last = lines.peek().is_none();
        match decode(line) {
            Some(Line::Header { version, mark }) => {
                if version != VERSION {
                    return Err(io::Error::other(format!(
                        "the journal has version {version}, this program knows {VERSION}; use the program that wrote it, or another state directory"
                    )));
                }
                read.mark = Some(mark);
            }
            Some(Line::Reserved(to)) => read.reserved = read.reserved.max(to),
            Some(Line::Run(record)) => {
                read.runs.insert(record.number, *record);
            }
            Some(Line::Gone(number)) => {
                read.reserved = read.reserved.max(number);
                read.runs.remove(&number);
            }
            // After the last newline comes nothing, or the torn tail.
            None if last => {}
            None => read.damaged += 1,
        }
    }
    if read.mark.is_none() && !content.is_empty() && !read.runs.is_empty() {
        read.damaged += 1;
    }
    Ok(read)
}

fn decode(line: &[u8]) -> Option<Line> {
    let (check, rest) = line.split_at_checked(CHECK_DIGITS)?;
    let json = rest.strip_prefix(b" ")?;
    (check == checksum(json).as_bytes()).then(|| serde_json::from_slice(json).ok())?
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(line)?;
    let mut bytes = checksum(&json).into_bytes();
    bytes.push(b' ');
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    Ok(bytes)
}

fn checksum(json: &[u8]) -> String {
    let mut hex = Digest::of(json).hex();
    hex.truncate(CHECK_DIGITS);
    hex
}

/// Writes a whole log beside the old one and takes its place.
fn rewrite<'a>(
    path: &Path,
    mark: &str,
    reserved: u64,
    records: impl Iterator<Item = &'a Record>,
) -> io::Result<(File, u64)> {
    let temporary = path.with_extension("new");
    let written = write_all(&temporary, mark, reserved, records)?;
    written.0.sync_data()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)?;
    Ok(written)
}

fn write_all<'a>(
    path: &Path,
    mark: &str,
    reserved: u64,
    records: impl Iterator<Item = &'a Record>,
) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = encode(&Line::Header { version: VERSION, mark: mark.to_owned() })?;
    bytes.extend(encode(&Line::Reserved(reserved))?);
    for record in records {
        bytes.extend(encode(&Line::Run(Box::new(record.clone())))?);
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&bytes)?;
    Ok((file, bytes.len() as u64))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
