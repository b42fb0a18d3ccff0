//! The log of all runs: what survives a crash of the daemon and of the machine.
//!
//! # Why a log and not a database
//! A warm `run` pays for what is durable before its job starts. One line and one fdatasync is the least there is;
//! redb commits several copied pages and the same fsync, and its file says nothing to a person with `less`. The
//! state is small (retention bounds the runs), so replaying it whole at open costs milliseconds.
//!
//! # Format (version 2)
//! ```text
//! <sha256 of the JSON, first 16 hex> SP <JSON> LF
//! ```
//! The first line is `{"header":{"version":2,"mark":"3f9a2c41"}}`: the mark makes run ids of two state directories
//! differ. Then, in any number: `{"reserved":128}` (numbers up to 128 may be in use: never hand out one below),
//! `{"run":{…}}` (the whole record; the last one of a run counts), `{"gone":17}` (run 17 was removed).
//!
//! # What is promised
//! An entry that [`Journal::append`] took survives the death of the daemon; one whose [`Journal::synced`] returned
//! survives the death of the machine. A torn last line is cut off when opened, nothing before it is lost; a damaged
//! line in the middle costs that line only, is told, and the old file is kept as `jobs.damaged`. At open, and when
//! it has grown, the log is rewritten from what counts: new file, sync, rename, sync of the folder.
//!
//! Numbers are reserved in blocks, so that a number is not used again even when the machine died before the first
//! line of its run was on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::policy::digest::Digest;

/// Version of the format.
const VERSION: u32 = 2;
/// Hex digits of the checksum: 64 bits are plenty against torn and rotten lines, which is all it is for.
const CHECK_DIGITS: usize = 16;
/// Numbers reserved at a time: one line in so many runs.
const BLOCK: u64 = 256;
/// The log is rewritten when it holds more than this and more than [`GROWTH`] times what counted last time.
const MIN_REWRITE: u64 = 4 << 20;
/// See [`MIN_REWRITE`].
const GROWTH: u64 = 4;
/// How often a rewrite tries to catch up with what is appended meanwhile.
const COMPACT_TRIES: u32 = 20;

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
    pub(super) runs: BTreeMap<u64, Record>,
    /// Lines that were damaged and are gone (a torn last line is not counted).
    pub(super) damaged: usize,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
        if read.damaged > 0 {
            if read.mark.is_none() && read.runs.is_empty() {
                return Err(io::Error::other(format!("{} is not a journal; move it away", path.display())));
            }
            std::fs::write(path.with_extension("damaged"), &content)?;
        }
        let mark = read.mark.unwrap_or_else(|| format!("{:08x}", rand::random::<u32>()));
        let used = read.runs.keys().next_back().copied().unwrap_or(0).max(read.reserved);
        let reserved = used + BLOCK;
        let (file, length) = rewrite(path, &mark, reserved, read.runs.values())?;
        let log = Log { file: Arc::new(file), epoch: 1, length, base: length, next: used + 1, reserved };
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
        let renamed = (durable.epoch < reached.epoch).then(|| self.path.clone());
        tokio::task::spawn_blocking(move || {
            file.sync_data()?;
            // The first sync after a rewrite must make its rename durable too.
            renamed.map_or(Ok(()), |path| sync_folder(&path))
        })
        .await
        .map_err(io::Error::other)??;
        *durable = reached;
        Ok(())
    }

    /// Whether a [`Journal::compact`] is worth while.
    pub(super) fn has_grown(&self) -> bool {
        let log = self.lock();
        log.length > MIN_REWRITE && log.length > log.base * GROWTH
    }

    /// Rewrites the log. Slow (reads and syncs): not for a thread that serves anybody. Lines may be appended
    /// meanwhile: what came late is copied and synced in turn, and the rename waits for a moment in which nothing is
    /// missing, so that the log's lock is never held across a sync.
    pub(super) fn compact(&self) -> io::Result<()> {
        let (mut copied, reserved) = {
            let log = self.lock();
            (log.length, log.reserved)
        };
        let temporary = self.path.with_extension("new");
        let mut source = File::open(&self.path)?;
        let mut content = vec![0; usize::try_from(copied).map_err(io::Error::other)?];
        source.read_exact(&mut content)?;
        let (mut file, mut length) =
            write_all(&temporary, &self.mark, reserved, read(&content)?.runs.values())?;
        for _ in 0..COMPACT_TRIES {
            file.sync_data()?;
            let mut log = self.lock();
            if log.length == copied {
                std::fs::rename(&temporary, &self.path)?;
                log.epoch += 1;
                (log.file, log.length, log.base) = (Arc::new(file), length, length);
                return Ok(());
            }
            let late = log.length - copied;
            drop(log);
            length += io::copy(&mut (&mut source).take(late), &mut file)?;
            copied += late;
        }
        Err(io::Error::other("the journal is written to all the time; it is rewritten later"))
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
            Some(Line::Header { version, mark }) if version == VERSION => read.mark = Some(mark),
            Some(Line::Header { version, .. }) => {
                return Err(io::Error::other(format!(
                    "the journal has version {version} and this program knows {VERSION}; use the program that wrote it, or another state directory"
                )));
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
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Append mode: after a failed write is cut off the next one lands at the new end.
    let mut file = std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&bytes)?;
    Ok((file, bytes.len() as u64))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::record::samples;
    use crate::jobs::state::RunState;

    fn log_with(path: &Path, count: u64) -> Vec<u64> {
        let (journal, _) = Journal::open(path).unwrap();
        (0..count)
            .map(|_| {
                let number = journal.next_number().unwrap();
                journal.append(&samples::numbered(number)).unwrap();
                number
            })
            .collect()
    }

    /// Complete lines of runs in what is left of a log.
    fn complete_runs(kept: &[u8]) -> usize {
        let complete = kept.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
        complete.filter(|l| l.windows(8).any(|w| w == b"{\"run\":{")).count()
    }

    #[test]
    fn truncated_at_every_byte_loses_nothing_before_the_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        log_with(&path, 3);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            let replayed = read(&whole[..cut]).unwrap();
            let expected = complete_runs(&whole[..cut]);
            // A line that lacks nothing but its newline is whole: its checksum says so.
            assert!([expected, expected + 1].contains(&replayed.runs.len()), "cut {cut}");
            assert_eq!(replayed.damaged, 0, "cut {cut}");
        }
    }

    #[test]
    fn a_log_goes_on_after_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        log_with(&path, 3);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(151) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (journal, replayed) = Journal::open(&path).unwrap();
            assert_eq!(replayed.runs.len(), complete_runs(&whole[..cut]), "cut {cut}");
            let number = journal.next_number().unwrap();
            journal.append(&samples::numbered(number)).unwrap();
            drop(journal);
            let (_, again) = Journal::open(&path).unwrap();
            assert_eq!(again.runs.len(), replayed.runs.len() + 1, "cut {cut}");
            assert!(again.runs.contains_key(&number), "cut {cut}");
        }
    }

    #[test]
    fn a_rotten_line_costs_itself_only_and_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        let numbers = log_with(&path, 3);
        let mut content = std::fs::read(&path).unwrap();
        let text = String::from_utf8(content.clone()).unwrap();
        let second = text.find(&format!("\"number\":{}", numbers[1])).unwrap();
        content[second] ^= 1;
        std::fs::write(&path, &content).unwrap();
        let (_, replayed) = Journal::open(&path).unwrap();
        assert_eq!(replayed.damaged, 1);
        assert_eq!(replayed.runs.keys().copied().collect::<Vec<_>>(), [numbers[0], numbers[2]]);
        assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), content);
    }

    #[test]
    fn numbers_are_never_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        let mut highest = 0;
        for _ in 0..3 {
            let (journal, _) = Journal::open(&path).unwrap();
            for _ in 0..BLOCK + 3 {
                let number = journal.next_number().unwrap();
                assert!(number > highest);
                highest = number;
            }
        }
        let (journal, _) = Journal::open(&path).unwrap();
        journal.gone(highest + 1000).unwrap();
        drop(journal);
        assert!(Journal::open(&path).unwrap().0.next_number().unwrap() > highest + 1000);
    }

    #[test]
    fn the_last_entry_counts_and_the_mark_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        let (journal, _) = Journal::open(&path).unwrap();
        let mark = journal.mark().to_owned();
        let mut record = samples::numbered(1);
        record.state = RunState::Queued;
        journal.append(&record).unwrap();
        record.state = RunState::Lost;
        journal.append(&record).unwrap();
        journal.append(&samples::numbered(2)).unwrap();
        journal.gone(2).unwrap();
        journal.compact().unwrap();
        journal.append(&samples::numbered(3)).unwrap();
        drop(journal);
        let (journal, replayed) = Journal::open(&path).unwrap();
        assert_eq!(journal.mark(), mark);
        assert_eq!(replayed.runs.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(replayed.runs[&1].state, RunState::Lost);
    }

    #[test]
    fn a_rewrite_catches_up_with_what_is_appended_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        let (journal, _) = Journal::open(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=500 {
                    journal.append(&samples::numbered(number)).unwrap();
                }
            });
            for _ in 0..10 {
                // It may give up under this load; it must not lose a line.
                let _ = journal.compact();
            }
        });
        drop(journal);
        let (_, replayed) = Journal::open(&path).unwrap();
        assert_eq!((replayed.runs.len(), replayed.damaged), (500, 0));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.journal");
        let newer = encode(&Line::Header { version: 3, mark: "x".into() }).unwrap();
        std::fs::write(&path, newer).unwrap();
        assert!(Journal::open(&path).unwrap_err().to_string().contains("version 3"));
        std::fs::write(&path, "my notes\nmore notes\n").unwrap();
        assert!(Journal::open(&path).unwrap_err().to_string().contains("not a journal"));
        assert_eq!(std::fs::read(&path).unwrap(), b"my notes\nmore notes\n");
    }

    #[tokio::test]
    async fn many_wait_for_one_sync() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&dir.path().join("jobs.journal")).unwrap();
        let last = (1..=50).map(|n| journal.append(&samples::numbered(n)).unwrap()).last().unwrap();
        journal.synced(last).await.unwrap();
        assert_eq!(*journal.durable.lock().await, last);
        journal.compact().unwrap();
        let after = journal.append(&samples::numbered(51)).unwrap();
        assert!(after > last);
        journal.synced(last).await.unwrap();
        journal.synced(after).await.unwrap();
        assert_eq!(*journal.durable.lock().await, after);
    }
}
