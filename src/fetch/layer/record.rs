//! What is read of a layer, in the order of need: recorded while somebody wants to know, and fetched ahead from such a
//! record.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, stream};

use super::{Inner, Layer, Wanted};
use crate::fetch::error::FetchError;
use crate::fetch::profile::{LayerRanges, coalesce};

/// The spans that readers wanted.
#[derive(Debug)]
pub(super) struct Recorder {
    seen: Vec<AtomicU64>,
    order: Mutex<Vec<usize>>,
}

/// A recording that goes on until it is dropped.
#[derive(Debug)]
pub struct Recording {
    layer: Layer,
    recorder: Arc<Recorder>,
}

impl Recorder {
    fn add(&self, span: usize) {
        let bit = 1 << (span % 64);
        let Some(word) = self.seen.get(span / 64) else { return };
        if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.order.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        }
    }
}

impl Recording {
    /// How much was wanted so far, in spans.
    pub fn len(&self) -> usize {
        self.recorder.order.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was wanted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was wanted so far.
    pub fn ranges(&self) -> LayerRanges {
        let index = &self.layer.0.index;
        let order = self.recorder.order.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let spans = order.into_iter().filter_map(|number| index.span(number));
        let needed: Vec<Range<u64>> = spans.map(|span| span.in_start..span.in_end).collect();
        LayerRanges { layer: self.layer.0.blob.digest, ranges: coalesce(&needed) }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut current = self.layer.0.recorder.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &self.recorder)) {
            *current = None;
        }
    }
}

impl Layer {
    /// Records what is read from now on; `None` if somebody records already.
    pub fn record(&self) -> Option<Recording> {
        let mut current = self.0.recorder.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_some() {
            return None;
        }
        let seen = (0..self.0.index.span_count().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let recorder = Arc::new(Recorder { seen, order: Mutex::default() });
        *current = Some(Arc::clone(&recorder));
        Some(Recording { layer: self.clone(), recorder })
    }

    /// Fetches the spans that lie in `ranges` of the blob and are not here, up to `parallel` requests at a time. A layer that
    /// was fetched whole has nothing to be fetched ahead: all of it was here.
    pub(in crate::fetch) async fn fetch_ranges(
        &self,
        ranges: impl Iterator<Item = Range<u64>>,
        parallel: usize,
    ) -> Result<(), FetchError> {
        if !self.0.is_read_by_ranges() {
            return Ok(());
        }
        let _foreground = self.0.store.traffic.foreground();
        let groups: Vec<Range<usize>> = ranges.flat_map(|range| self.0.missing_in(&range)).collect();
        let mut arriving =
            stream::iter(groups).map(|group| self.0.bring_group(group)).buffer_unordered(parallel);
        while let Some(arrived) = arriving.next().await {
            arrived?;
        }
        Ok(())
    }
}

impl Inner {
    /// Notes that somebody reads `wanted`.
    pub(super) fn note(&self, wanted: &Wanted) {
        let recorder = self.recorder.read().unwrap_or_else(PoisonError::into_inner);
        let Some(recorder) = &*recorder else { return };
        let end = wanted.offset + wanted.len;
        for extent in self.index.extents(&wanted.file) {
            let first = extent.file_offset.max(wanted.offset);
            let last = (extent.file_offset + extent.len).min(end);
            if first < last {
                let offset = extent.offset + (first - extent.file_offset);
                self.index.spans_covering(offset, last - first).for_each(|span| recorder.add(span));
            }
        }
    }

    /// The spans that begin in a range of the blob and are not here.
    fn missing_in(&self, range: &Range<u64>) -> Vec<Range<usize>> {
        let spans = self.index.spans_of_blob(range);
        self.groups(&spans.filter(|number| !self.is_here(*number)).collect::<Vec<_>>())
    }
}
