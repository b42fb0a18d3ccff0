//! A bounded journal of numbered JSON lines: an appended file, and the older lines beside it.
//!
//! ```text
//! NAME.jsonl        the newest lines, at most half of the limit (a longer line by itself)
//! NAME.1.jsonl      those before them; gone when the limit demands it
//! ```
//! Each line is a JSON object whose member `key` (`seq`, `sequence`) rises from line to line. Lines are
//! appended with one write each. When the first file is full it is copied and cut in place, so that whoever follows
//! it (`tail -f`) sees a file that was truncated, not one that never grows again. At opening a last line that a
//! crash tore is dropped, and so is a copy whose original was not cut any more.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Longest line that is looked for when a place is searched; longer ones cannot be appended.
const MAX_LINE: u64 = 1 << 20;

/// Bytes of one answer of [`Journal::after`]: memory of one reader.
const PIECE: usize = 256 << 10;

/// Why a line was not appended, or lines were not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The line alone is larger than the journal may be.
    #[error("an entry of {0} bytes is larger than the journal may be")]
    Quota(u64),
    /// The line after the cursor was evicted, or the cursor is of another journal.
    #[error("the journal holds {first} to {last}, and nothing after {cursor}")]
    Expired {
        /// What was asked for.
        cursor: u64,
        /// Number of the oldest line kept; one more than `last` if there is none.
        first: u64,
        /// Number of the newest line.
        last: u64,
    },
    /// The disk.
    #[error("{0}")]
    Disk(#[from] io::Error),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Journal {
    key: &'static str,
    limit: u64,
    newer: Segment,
    older: Option<Segment>,
    older_path: PathBuf,
    /// Number of the newest line; 0 before the first.
    last: u64,
}

/// One file of lines.
#[derive(Debug)]
struct Segment {
    file: File,
    size: u64,
    /// Number of its first line, if it has any.
    first: Option<u64>,
}

impl Journal {
    /// Opens the journal whose newest lines are in `path`, and repairs its end.
    pub(crate) fn open(path: &Path, key: &'static str, limit: u64) -> io::Result<Self> {
        let older_path = path.with_extension("1.jsonl");
        let mut newer = Segment::open(path, key)?;
        let older = match older_path.try_exists()? {
            true => Some(Segment::open(&older_path, key)?),
            false => None,
        };
        let last_older = older.as_ref().map(|older| older.last(key)).transpose()?.flatten();
        if last_older.is_some() && last_older == newer.last(key)? {
            newer.cut()?;
        }
        let last = newer.last(key)?.or(last_older).unwrap_or(0);
        Ok(Self { key, limit, newer, older, older_path, last })
    }

    /// Number of the newest line; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.newer.size + self.older.as_ref().map_or(0, |older| older.size)
    }

    /// Most bytes on disk.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The newest line.
    pub(crate) fn newest(&self) -> io::Result<Option<Value>> {
        let start = self.newer.start_of_last()?;
        self.newer.line_at(start, self.newer.size)
    }

    /// Appends what `line` renders under the next number.
    pub(crate) fn append(&mut self, line: impl FnOnce(u64) -> Vec<u8>) -> Result<u64, JournalError> {
        let number = self.last + 1;
        self.append_numbered(number, &line(number))?;
        Ok(number)
    }

    /// Appends a line that has its number already, which is larger than those before it.
    pub(crate) fn append_numbered(&mut self, number: u64, line: &[u8]) -> Result<(), JournalError> {
        let size = line.len() as u64;
        if size > self.limit || size > MAX_LINE {
            return Err(JournalError::Quota(size));
        }
        if self.newer.size > 0 && self.newer.size + size > self.limit / 2 {
            self.rotate()?;
        }
        if self.bytes() + size > self.limit {
            self.older = None;
            std::fs::remove_file(&self.older_path)?;
        }
        self.newer.file.write_all(line)?;
        self.newer.size += size;
        self.newer.first.get_or_insert(number);
        self.last = number;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let temporary = self.older_path.with_extension("new");
        let mut copy = File::create(&temporary)?;
        let mut from =
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.newer.file)))?;
        io::copy(&mut from, &mut copy)?;
        std::fs::rename(&temporary, &self.older_path)?;
        self.older = Some(Segment::open(&self.older_path, self.key)?);
        self.newer.cut()
    }

    /// Whole lines after the one numbered `cursor`, as many as fit into one piece; empty when there are none yet.
    pub(crate) fn after(&self, cursor: u64) -> Result<Vec<u8>, JournalError> {
        let first = self.older.as_ref().and_then(|older| older.first).or(self.newer.first);
        let first = first.unwrap_or(self.last + 1);
        if cursor + 1 < first || cursor > self.last {
            return Err(JournalError::Expired { cursor, first, last: self.last });
        }
        if cursor == self.last {
            return Ok(Vec::new());
        }
        let wanted = cursor + 1;
        let segment = match &self.older {
            Some(older) if self.newer.first.is_none_or(|first| wanted < first) => older,
            _ => &self.newer,
        };
        let start = segment.find(self.key, wanted)?;
        Ok(segment.lines_from(start)?)
    }
}

impl Segment {
    fn open(path: &Path, key: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut segment = Self { size: file.metadata()?.len(), file, first: None };
        let whole = segment.end_of_last_line()?;
        if whole < segment.size {
            segment.file.set_len(whole)?;
            segment.size = whole;
        }
        segment.first = number(segment.line_at(0, segment.size)?.as_ref(), key);
        Ok(segment)
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.size, self.first) = (0, None);
        Ok(())
    }

    fn last(&self, key: &str) -> io::Result<Option<u64>> {
        let start = self.start_of_last()?;
        Ok(number(self.line_at(start, self.size)?.as_ref(), key))
    }

    /// The bytes of a range.
    fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    fn end_of_last_line(&self) -> io::Result<u64> {
        let from = self.size.saturating_sub(MAX_LINE);
        let tail = self.read(from, self.size)?;
        Ok(tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| from + at as u64 + 1))
    }

    fn start_of_last(&self) -> io::Result<u64> {
        let end = self.size.saturating_sub(1);
        let from = end.saturating_sub(MAX_LINE);
        let tail = self.read(from, end)?;
        Ok(tail.iter().rposition(|b| *b == b'\n').map_or(from, |at| from + at as u64 + 1))
    }

    /// The line that starts at `from`; nothing at the end.
    fn line_at(&self, from: u64, size: u64) -> io::Result<Option<Value>> {
        let mut line = Vec::new();
        let mut from = from;
        while from < size {
            let piece = self.read(from, size.min(from + 4096))?;
            from += piece.len() as u64;
            match piece.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    line.extend_from_slice(piece.get(..end).unwrap_or_default());
                    break;
                }
                None => line.extend_from_slice(&piece),
            }
        }
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(io::Error::from)
    }

    /// Where the line numbered `wanted` or a later one starts.
    fn find(&self, key: &str, wanted: u64) -> io::Result<u64> {
        // Invariant: a line starts at `low`, and the wanted one at or after it; at or before `high`, likewise.
        let (mut low, mut high) = (0, self.size);
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(start) = self.next_start(middle, high)? else {
                return self.scan(key, wanted, low, high);
            };
            match number(self.line_at(start, self.size)?.as_ref(), key) {
                Some(found) if found <= wanted => low = start,
                _ => high = middle,
            }
        }
        self.scan(key, wanted, low, self.size)
    }

    /// The first start of a line after `from` and before `to`.
    fn next_start(&self, from: u64, to: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < to {
            let piece = self.read(at, to.min(at + 4096))?;
            if let Some(end) = piece.iter().position(|b| *b == b'\n') {
                let start = at + end as u64 + 1;
                return Ok((start < to).then_some(start));
            }
            at += piece.len() as u64;
        }
        Ok(None)
    }

    /// Goes line by line.
    fn scan(&self, key: &str, wanted: u64, from: u64, to: u64) -> io::Result<u64> {
        let mut at = from;
        while at < to {
            if number(self.line_at(at, self.size)?.as_ref(), key).is_some_and(|found| found >= wanted) {
                break;
            }
            match self.next_start(at, self.size)? {
                Some(next) => at = next,
                None => return Ok(self.size),
            }
        }
        Ok(at)
    }

    fn lines_from(&self, start: u64) -> io::Result<Vec<u8>> {
        let mut bytes = self.read(start, self.size.min(start + PIECE as u64))?;
        match bytes.iter().rposition(|b| *b == b'\n') {
            Some(end) => bytes.truncate(end + 1),
            // One line longer than a piece.
            None => {
                let mut file = &self.file;
                io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
                let mut line = Vec::new();
                file.take(MAX_LINE).read_to_end(&mut line)?;
                line.truncate(line.iter().position(|b| *b == b'\n').map_or(0, |end| end + 1));
                bytes = line;
            }
        }
        Ok(bytes)
    }
}

fn number(line: Option<&Value>, key: &str) -> Option<u64> {
    line?.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(dir: &Path, limit: u64) -> Journal {
        Journal::open(&dir.join("events.jsonl"), "seq", limit).unwrap()
    }

    /// A line of so many bytes, the newline not counted.
    fn line(number: u64, length: usize) -> Vec<u8> {
        let mut line = format!("{{\"seq\":{number}");
        line.push_str(&" ".repeat(length - line.len() - 1));
        line.push_str("}\n");
        line.into_bytes()
    }

    fn numbers(bytes: &[u8]) -> Vec<u64> {
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
    }

    /// Cases HA-44 and HA-45.
    #[test]
    fn the_oldest_goes_first_and_what_is_larger_than_all_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut ha_44 = journal(dir.path(), 30);
        ha_44.append(|n| line(n, 18)).unwrap();
        ha_44.append(|n| line(n, 18)).unwrap();
        assert_eq!(numbers(&ha_44.after(1).unwrap()), [2]);
        assert!(matches!(ha_44.after(0), Err(JournalError::Expired { first: 2, last: 2, .. })));
        assert_eq!(ha_44.bytes(), 19);

        let dir = tempfile::tempdir().unwrap();
        let mut ha_45 = journal(dir.path(), 8);
        assert!(matches!(ha_45.append(|n| line(n, 18)), Err(JournalError::Quota(19))));
        assert_eq!((ha_45.last(), ha_45.bytes()), (0, 0));
    }

    #[test]
    fn every_cursor_finds_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path(), 100_000);
        for n in 0..3000_u64 {
            journal.append(|number| line(number, 12 + usize::try_from(n * 7 % 60).unwrap())).unwrap();
        }
        let held = 3000 - numbers(&std::fs::read(dir.path().join("events.1.jsonl")).unwrap())[0];
        assert!(journal.bytes() <= 100_000 && held > 1000, "{held}");
        for cursor in (3000 - held)..3000 {
            assert_eq!(numbers(&journal.after(cursor).unwrap())[0], cursor + 1);
        }
        assert!(journal.after(3000).unwrap().is_empty());
        for cursor in [0, 3000 - held - 2, 3001] {
            assert!(matches!(journal.after(cursor), Err(JournalError::Expired { .. })), "{cursor}");
        }
        // read to the end, piece by piece, across both files
        let (mut cursor, mut seen) = (3000 - held, Vec::new());
        while let Some(last) = numbers(&journal.after(cursor).unwrap()).last().copied() {
            seen.extend(numbers(&journal.after(cursor).unwrap()));
            cursor = last;
        }
        assert_eq!(seen, ((3000 - held + 1)..=3000).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_go_on_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        for n in 1..=3 {
            assert_eq!(journal(dir.path(), 1000).append(|n| line(n, 20)).unwrap(), n);
        }
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"seq\":4,\"ti").unwrap();
        assert_eq!(numbers(&journal(dir.path(), 1000).after(0).unwrap()), [1, 2, 3]);
        // copied, and not cut any more
        std::fs::copy(&path, dir.path().join("events.1.jsonl")).unwrap();
        let mut journal = journal(dir.path(), 1000);
        journal.append(|n| line(n, 20)).unwrap();
        assert_eq!(numbers(&std::fs::read(&path).unwrap()), [4]);
        assert_eq!(numbers(&journal.after(0).unwrap()), [1, 2, 3]);
        assert_eq!(numbers(&journal.after(3).unwrap()), [4]);
    }
}
