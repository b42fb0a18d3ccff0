//! The log of one stream of a run: a file in which every byte keeps its place, and of which the oldest part is given up
//! when it grows above its limit.
//!
//! What has been given up is a hole in the file (fallocate(2), FALLOC_FL_PUNCH_HOLE), so nothing is copied and no
//! offset moves. Where the log begins follows from its length alone, see [`first_kept`]: the shim, which writes, and
//! everybody who reads agree about it without a word. Where the file system has no holes the log is cut off at its
//! limit instead, and so never longer than that.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

/// What goes at a time: this part of the limit. Between three quarters of the limit and all of it are kept.
const PARTS: u64 = 4;
/// Holes are made of whole blocks of the file system; 4 KiB on all that are used for this, and a multiple elsewhere
/// leaves some NULs at the front at worst.
const BLOCK: u64 = 4096;

/// The offset of the first byte that is kept of a log of `length` bytes: 0 up to the limit. A limit is 16 KiB at least.
pub(super) fn first_kept(length: u64, limit: u64) -> u64 {
    let limit = limit.max(PARTS * BLOCK);
    let part = limit / PARTS / BLOCK * BLOCK;
    length.saturating_sub(limit).div_ceil(part) * part
}

/// The writing end.
#[derive(Debug)]
pub(super) struct LogWriter {
    file: File,
    limit: u64,
    length: u64,
    first: u64,
    /// Whether the file system makes holes; asked when the first one is due.
    holes: Option<bool>,
    dropped: u64,
}

impl LogWriter {
    /// Writes to an empty file.
    pub(super) fn new(file: File, limit: u64) -> Self {
        Self { file, limit: limit.max(PARTS * BLOCK), length: 0, first: 0, holes: None, dropped: 0 }
    }

    /// Appends. A full disk, or a limit without holes, costs what does not fit; the job is not to end for it.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let length = self.length.saturating_add(bytes.len() as u64);
        if length > self.limit && !self.has_holes() {
            let fits = usize::try_from(self.limit - self.length).unwrap_or(usize::MAX).min(bytes.len());
            self.write(bytes.get(..fits).unwrap_or_default());
            self.dropped += (bytes.len() - fits) as u64;
            return;
        }
        self.write(bytes);
        // After the write: who finds NULs in a hole finds the length that tells of it.
        let first = first_kept(self.length, self.limit);
        if first > self.first && self.punch(self.first, first - self.first).is_ok() {
            self.first = first;
        }
    }

    /// Bytes that are not in the log (any more).
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + first_kept(self.length, self.limit)
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
        } else {
            // Some of it may have been written: the file says how much.
            let length = self.file.metadata().map_or(self.length, |found| found.len());
            self.dropped += (bytes.len() as u64).saturating_sub(length.saturating_sub(self.length));
            self.length = length;
        }
    }

    /// Tried behind the end, where there is nothing to lose.
    fn has_holes(&mut self) -> bool {
        let behind = self.length.next_multiple_of(BLOCK);
        *self.holes.get_or_insert_with(|| punch(&self.file, behind, BLOCK).is_ok())
    }

    fn punch(&self, from: u64, length: u64) -> io::Result<()> {
        punch(&self.file, from, length)
    }
}

fn punch(file: &File, from: u64, length: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, length)?)
}

/// A log as a reader sees it: a file that begins with what was the first kept byte when it was opened. Who falls behind
/// by more than the limit goes on at what is there.
#[derive(Debug)]
pub struct Log {
    file: File,
    limit: u64,
    /// Where in the file this reader's offset 0 is.
    base: AtomicU64,
}

impl Log {
    /// Opens the log for one reader.
    pub(super) fn open(file: File, limit: u64) -> io::Result<Self> {
        let base = AtomicU64::new(first_kept(file.metadata()?.len(), limit));
        Ok(Self { file, limit, base })
    }

    /// Fills the buffer from `offset` as far as the log goes now; 0 at its end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            let mut at = self.base.load(Ordering::Acquire).saturating_add(offset);
            let first = self.first()?;
            if at < first {
                self.base.fetch_add(first - at, Ordering::AcqRel);
                at = first;
            }
            let read = self.fill(buffer, at)?;
            // The hole may have come while it was read.
            if read == 0 || self.first()? <= at {
                return Ok(read);
            }
        }
    }

    fn first(&self) -> io::Result<u64> {
        Ok(first_kept(self.file.metadata()?.len(), self.limit))
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    const LIMIT: u64 = 64 << 10;

    fn writer(path: &Path) -> LogWriter {
        LogWriter::new(File::create(path).unwrap(), LIMIT)
    }

    /// Bytes that tell where they stand.
    fn text(from: u64, to: u64) -> Vec<u8> {
        (from..to).map(|at| (at % 251) as u8).collect()
    }

    fn all(log: &Log) -> Vec<u8> {
        let (mut got, mut piece) = (Vec::new(), [0; 5000]);
        loop {
            match log.read_at(&mut piece, got.len() as u64).unwrap() {
                0 => return got,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
    }

    #[test]
    fn nothing_is_lost_up_to_the_limit_and_little_above_it() {
        assert_eq!(first_kept(LIMIT, LIMIT), 0);
        for length in [LIMIT + 1, 2 * LIMIT, 10 * LIMIT + 12345] {
            let kept = length - first_kept(length, LIMIT);
            assert!((LIMIT * 3 / 4..=LIMIT).contains(&kept), "{length}: {kept}");
        }
        assert_eq!(first_kept(16 << 10, 1), 0, "a limit is 16 KiB at least");
    }

    #[test]
    fn readers_see_the_newest_part_and_the_disk_holds_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let mut writer = writer(&path);
        for start in (0..LIMIT).step_by(4000) {
            writer.append(&text(start, (start + 4000).min(LIMIT)));
        }
        let log = |limit| Log::open(File::open(&path).unwrap(), limit).unwrap();
        let early = log(LIMIT);
        assert_eq!((all(&early), writer.dropped()), (text(0, LIMIT), 0));
        let end = 20 * LIMIT + 777;
        for start in (LIMIT..end).step_by(5000) {
            writer.append(&text(start, (start + 5000).min(end)));
        }
        let first = first_kept(end, LIMIT);
        assert_eq!((all(&log(LIMIT)), writer.dropped()), (text(first, end), first));
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), end);
        assert!(found.blocks() * 512 <= LIMIT + 16 * BLOCK, "{} blocks", found.blocks());
        // A reader that has read to the old end goes on with what is there now, each byte once.
        let mut piece = vec![0; 2 * LIMIT as usize];
        let n = early.read_at(&mut piece, LIMIT).unwrap();
        assert_eq!(piece[..n], text(first, end));
        assert_eq!(early.read_at(&mut piece, LIMIT + n as u64).unwrap(), 0);
    }

    #[test]
    fn without_holes_the_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let mut writer = writer(&path);
        writer.holes = Some(false);
        for start in (0..3 * LIMIT).step_by(5000) {
            writer.append(&text(start, (start + 5000).min(3 * LIMIT)));
        }
        assert_eq!(std::fs::read(&path).unwrap(), text(0, LIMIT));
        assert_eq!(writer.dropped(), 2 * LIMIT);
        assert_eq!(all(&Log::open(File::open(&path).unwrap(), LIMIT).unwrap()), text(0, LIMIT));
    }

    #[test]
    fn many_readers_never_see_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let mut writer = writer(&path);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let log = Log::open(File::open(&path).unwrap(), LIMIT).unwrap();
                let done = &done;
                scope.spawn(move || {
                    let (mut at, mut piece) = (0_u64, [0; 3000]);
                    loop {
                        let over = done.load(Ordering::Acquire);
                        let n = log.read_at(&mut piece, at).unwrap();
                        assert!(!piece[..n].contains(&0), "NULs of a hole at {at}");
                        at += n as u64;
                        if over && n == 0 {
                            return;
                        }
                    }
                });
            }
            for _ in 0..400 {
                writer.append(&[7; 4999]);
            }
            done.store(true, Ordering::Release);
        });
    }
}
