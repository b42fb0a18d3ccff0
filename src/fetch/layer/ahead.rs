//! Reading ahead: what lies beside a chunk that was asked for comes with it.
//!
//! In a layer that is read by its table of contents each small file is a chunk of its own. A job that starts reads dozens
//! of them, one after the other, most from a few directories, whose files lie side by side in the blob. On a line of
//! 100 Mbit/s a round trip of 20 ms is worth 250 KB, so a request brings about as much of the neighbourhood, and more
//! where somebody walks through.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Inner;
use super::flight::Trip;
use crate::fetch::index::file::Span;
use crate::fetch::store::Kind;

/// Bytes of the blob that a request brings at least, if the neighbourhood has them.
const LEAST: u64 = 160 << 10;
/// … and at most, when readers go through the layer in order.
const MOST: u64 = 4 << 20;
/// Of a request's window, the part that may lie before what was asked for: directories are read in any order.
const BEHIND: u64 = 4;
/// Spans that a walker may leave out (what it has already, what it does not read) and still be a walker.
const STRIDE: usize = 16;

/// What of a layer is here, as far as known, and how it is read.
#[derive(Debug)]
pub(super) struct Ahead {
    /// A bit a span that was seen in the store. What was evicted since is fetched when it is asked for.
    here: Vec<AtomicU64>,
    walk: Mutex<Walk>,
}

#[derive(Debug)]
struct Walk {
    /// Where the last request ended.
    end: usize,
    window: u64,
}

impl Ahead {
    pub(super) fn new(spans: usize) -> Self {
        let here = (0..spans.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { here, walk: Mutex::new(Walk { end: usize::MAX, window: LEAST }) }
    }

    pub(super) fn mark(&self, span: usize) {
        if let Some(word) = self.here.get(span / 64) {
            word.fetch_or(1 << (span % 64), Ordering::Relaxed);
        }
    }

    fn marked(&self, span: usize) -> bool {
        self.here.get(span / 64).is_none_or(|word| word.load(Ordering::Relaxed) >> (span % 64) & 1 == 1)
    }

    /// Whether spans that begin at `start` go on where the last request ended, and how much to bring with them.
    fn window(&self, start: usize) -> (bool, u64) {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        let on = start.checked_sub(walk.end).is_some_and(|gap| gap <= STRIDE);
        walk.window = if on { (walk.window * 2).min(MOST) } else { LEAST };
        (on, walk.window)
    }

    fn ended(&self, end: usize) {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner).end = end;
    }
}

impl Inner {
    /// A group of spans that somebody needs, and the neighbours that should come along.
    pub(super) fn trip(&self, needed: Range<usize>) -> Trip {
        let mut wide = needed.clone();
        let is_chunk = |number: usize| self.index.span(number).is_some_and(|span| span.entry.is_some());
        if !is_chunk(needed.start) {
            return Trip { needed, wide };
        }
        let (on, window) = self.ahead.window(needed.start);
        let wanted = |number: usize| is_chunk(number) && !self.is_here(number);
        while self.range(wide.start..wide.end + 1).1 <= window && wanted(wide.end) {
            wide.end += 1;
        }
        let behind = if on { 0 } else { self.range(needed.clone()).1 + window / BEHIND };
        while let Some(before) = wide.start.checked_sub(1) {
            let (with_it, alone) = (self.range(before..wide.end).1, self.range(before..needed.end).1);
            if with_it > window || alone > behind || !wanted(before) {
                break;
            }
            wide.start = before;
        }
        self.ahead.ended(wide.end);
        Trip { needed, wide }
    }

    /// Whether a span's content is in the store, in whatever form. May read and hash a small file.
    pub(super) fn is_here(&self, number: usize) -> bool {
        if self.ahead.marked(number) {
            return true;
        }
        let here = self.index.span(number).is_none_or(|span| self.in_store(number, &span));
        if here {
            self.ahead.mark(number);
        }
        here
    }

    fn in_store(&self, number: usize, span: &Span) -> bool {
        if self.has_span(number, span) {
            return true;
        }
        let Some(file) = self.file_of(span) else { return false };
        match (file.digest, file.pack_offset) {
            (None, _) => false,
            (Some(digest), Some(offset)) => {
                self.store.packed(&self.blob.digest, offset, file.size, &digest).is_some()
            }
            (Some(digest), None) => self.store.has(Kind::File, &digest),
        }
    }
}
