//! One stream of the job into one bounded log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::jobs::log::LogWriter;
use crate::jobs::oci::mask::Masker;

/// How much is read at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// A stream on its way to disk.
#[derive(Debug)]
pub(super) struct Output {
    /// `None` at the end of the stream.
    pipe: Option<File>,
    log: LogWriter,
    masker: Masker,
    buffer: Vec<u8>,
}

impl Output {
    /// Makes the pipe and the file; the second value is the job's end of the pipe.
    pub(super) fn new(path: &Path, limit: u64, masker: Masker) -> io::Result<(Self, OwnedFd)> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let (ours, theirs) = io::pipe()?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let pipe = Some(File::from(OwnedFd::from(ours)));
        let log = LogWriter::new(file, limit);
        Ok((Self { pipe, log, masker, buffer: Vec::new() }, theirs.into()))
    }

    /// What to poll; `None` at the end of the stream.
    pub(super) fn source(&self) -> Option<&File> {
        self.pipe.as_ref()
    }

    /// Waits until there is something to take; false at the end of the stream and at the deadline.
    pub(super) fn wait(&self, until: Instant) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let left = until.saturating_duration_since(Instant::now()).try_into().ok();
        !matches!(poll(&mut [PollFd::new(pipe, PollFlags::IN)], left.as_ref()), Ok(0) | Err(_))
    }

    /// Takes what is there, at most one pipe full.
    pub(super) fn take_some(&mut self) {
        let Some(pipe) = self.pipe.as_mut() else { return };
        let mut piece = vec![0; PIECE];
        match pipe.read(&mut piece) {
            Ok(0) => self.end(),
            Ok(n) => {
                self.buffer.clear();
                self.masker.push(piece.get(..n).unwrap_or_default(), &mut self.buffer);
                self.flush();
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.end(),
        }
    }

    /// Ends the stream: what the masker held back is written.
    pub(super) fn end(&mut self) {
        if self.pipe.take().is_some() {
            self.buffer.clear();
            self.masker.finish(&mut self.buffer);
            self.flush();
        }
    }

    /// Words of our own, through the same limit and masker, after the end of the stream.
    pub(super) fn say(&mut self, words: &str) {
        self.buffer.clear();
        self.masker.push(words.as_bytes(), &mut self.buffer);
        self.masker.finish(&mut self.buffer);
        self.flush();
    }

    /// Forgets what is in the pipe: not the job's words.
    pub(super) fn discard(&mut self) {
        self.pipe = None;
    }

    /// Bytes that did not fit the limit or the disk.
    pub(super) fn dropped(&self) -> u64 {
        self.log.dropped()
    }

    fn flush(&mut self) {
        self.log.append(&self.buffer);
    }
}
