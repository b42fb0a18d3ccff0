//! The start of a blob, on its way while the layer's table of contents is still read.
//!
//! A layer that was built for it says in an annotation how far what every start reads goes ([`PREFETCH_END`]). Between the
//! last byte of a table and the first read of a file the line would be idle: parsing and merging a large table takes as long
//! as the table took to come. The bytes are as raw as a registry's answer: they are decoded and proven like one, and where
//! they are wrong or missing the registry is asked.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};

use crate::fetch::error::FetchError;
use crate::fetch::source::BlobSource;
use crate::policy::image::Descriptor;

/// On a layer: bytes of the blob, from its start, that hold what jobs read at every start. Our own, and only a hint.
pub(crate) const PREFETCH_END: &str = "dev.addonfs.prefetch-end";

/// Held in memory until the image is shown, so no more than a language's interpreter takes.
const MOST: u64 = 8 << 20;
/// Bytes of one request, as of what lies before a landmark.
const PIECE: usize = 2 << 20;

type Piece = Shared<BoxFuture<'static, Option<Bytes>>>;

/// The pieces, in order; all but the last are of [`PIECE`] bytes.
pub(super) struct Head {
    pieces: Vec<Piece>,
    end: u64,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head").field("end", &self.end).finish_non_exhaustive()
    }
}

/// What a descriptor says of the part that is worth fetching ahead.
pub(super) fn prefetch_end(blob: &Descriptor) -> Option<u64> {
    let said = blob.annotations.iter().find(|(name, _)| name == PREFETCH_END)?;
    said.1.parse().ok().filter(|end| (1..=blob.size).contains(end))
}

impl Head {
    /// Begins to fetch the start of `blob`, if it says how far that goes. Dropping all of it gives up what is under way.
    pub(super) fn fetch(source: &Arc<dyn BlobSource>, blob: &Descriptor) -> Option<Self> {
        let end = prefetch_end(blob)?.min(MOST);
        let piece = |start: u64| {
            let (source, blob) = (Arc::clone(source), blob.clone());
            let range = start..end.min(start + PIECE as u64);
            let task = tokio::spawn(async move { whole(source.range(&blob, range.clone()).await, &range) });
            let task = tokio_util::task::AbortOnDropHandle::new(task);
            async move { task.await.ok().flatten() }.boxed().shared()
        };
        Some(Self { pieces: (0..end).step_by(PIECE).map(piece).collect(), end })
    }

    /// Bytes of the blob, if all of them are in here and could be had.
    pub(super) async fn range(&self, range: Range<u64>) -> Option<Bytes> {
        if range.end > self.end || range.is_empty() {
            return None;
        }
        let first = usize::try_from(range.start).ok()? / PIECE;
        let last = usize::try_from(range.end - 1).ok()? / PIECE;
        let pieces = join_all(self.pieces.get(first..=last)?.iter().cloned()).await;
        let start = usize::try_from(range.start).ok()? - first * PIECE;
        let len = usize::try_from(range.end - range.start).ok()?;
        if let [piece] = pieces.as_slice() {
            return Some(piece.as_ref()?.slice(start..start + len));
        }
        let mut all = BytesMut::with_capacity((last + 1 - first) * PIECE);
        for piece in pieces {
            all.extend_from_slice(&piece?);
        }
        Some(all.freeze().slice(start..start + len))
    }
}

/// An answer that is as long as was asked for.
fn whole(answer: Result<Bytes, FetchError>, range: &Range<u64>) -> Option<Bytes> {
    match answer {
        Ok(bytes) if bytes.len() as u64 == range.end - range.start => Some(bytes),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "the start of a layer does not come ahead");
            None
        }
    }
}
