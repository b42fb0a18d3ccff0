//! What the builder of a layer wants to be here first: what lies before the landmark (stargz-snapshotter,
//! `docs/estargz.md`, "Prioritized Files and Landmark Files"), or as far as an annotation says (`head`).

use std::sync::PoisonError;

use super::Layer;
use super::head::prefetch_end;
use crate::fetch::error::FetchError;
use crate::fetch::index::{EntryKind, LayerIndex};

const LANDMARK: &[u8] = b".prefetch.landmark";
/// What is behind this is no start any more, whatever the builder says.
const MOST: u64 = 32 << 20;
/// Bytes of one request: whoever waits for the first file does not wait for the last.
const PIECE: usize = 2 << 20;
/// Requests at the same time, as many as hide a round trip.
const PARALLEL: usize = 3;

impl Layer {
    /// Fetches what lies before the landmark and is not here. Returns when all of it is.
    pub async fn fetch_to_landmark(&self) -> Result<(), FetchError> {
        let end = prefetch_end(&self.0.blob).or_else(|| landmark(&self.0.index)).unwrap_or(0).min(MOST);
        let pieces = (0..end).step_by(PIECE).map(|start| start..end.min(start + PIECE as u64));
        self.fetch_ranges(pieces, PARALLEL).await
    }

    /// Gives up the memory of what came before the table was read: whoever wanted it has it.
    pub fn drop_head(&self) {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Where in the blob the landmark is, if the layer has one.
fn landmark(index: &LayerIndex) -> Option<u64> {
    let mut entries = (0..index.len()).map_while(|at| index.entry(at));
    let EntryKind::File { file, .. } =
        entries.find(|entry| index.format().hides(entry.path) && entry.path == LANDMARK)?.kind
    else {
        return None;
    };
    let extent = index.extents(&index.file(file)?).next()?;
    let span = index.spans_covering(extent.offset, extent.len).next()?;
    Some(index.span(span)?.in_start)
}
