//! Filling a layer in the background: what nobody asked for yet, while nobody waits for anything.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::flight::Trip;
use super::{Inner, Layer, Progress};
use crate::fetch::error::{FetchError, Side};
use crate::fetch::index::EntryKind;
use crate::fetch::index::file::{FileRecord, Span};
use crate::fetch::store::Kind;

/// How a layer is filled.
#[derive(Debug, Clone, Copy)]
pub struct Filling {
    /// Most bytes of the blob a second; `None` for as fast as it goes.
    pub bandwidth: Option<u64>,
    /// Bytes of content in the whole store from which on nothing more is fetched: what readers use is not to be evicted
    /// for what nobody asked for.
    pub room: u64,
}

impl Layer {
    /// Fetches what of the layer is not in the store, behind every reader. Says whether all of it is here in the end.
    /// Dropping the future ends it after the request under way.
    pub async fn fill(&self, filling: Filling) -> Result<bool, FetchError> {
        let (inner, store) = (&self.0, &self.0.store);
        if !inner.is_read_by_ranges() {
            return inner.fill_whole(filling).await;
        }
        // What was seen here may have been evicted since.
        inner.ahead.forget();
        let mut at = 0;
        while at < inner.index.span_count() {
            if inner.is_here(at) {
                at += 1;
                continue;
            }
            if let Some(reason) = inner.refused.get() {
                return Err(FetchError::corrupt(
                    Side::Remote,
                    format!("layer {}: {reason}", inner.blob.digest),
                ));
            }
            let most = store.traffic.background(filling.bandwidth).await;
            let group = inner.missing_from(at, most);
            let needs: u64 =
                group.clone().filter_map(|at| inner.index.span(at)).map(|span| span.out_len).sum();
            if store.used_bytes().saturating_add(needs) > filling.room {
                return Ok(false);
            }
            let (began, bytes) = (Instant::now(), inner.range(group.clone()).1);
            inner.bring_group(group.clone()).await?;
            store.traffic.brought(bytes, began.elapsed(), filling.bandwidth);
            if !inner.is_kept(group.start) {
                return Ok(false);
            }
            at = group.end;
        }
        Ok(true)
    }

    /// Whether all of the layer's content is in the store. Looks at every file.
    pub fn is_complete(&self) -> bool {
        let inner = &self.0;
        if inner.is_read_by_ranges() {
            inner.ahead.forget();
            (0..inner.index.span_count()).all(|span| inner.is_here(span))
        } else {
            inner.is_whole()
        }
    }
}

impl Inner {
    /// Neighbouring spans from `start` that are missing, as many as `most` bytes of the blob hold, at least one.
    fn missing_from(&self, start: usize, most: u64) -> Range<usize> {
        let mut group = start..start + 1;
        while group.end < self.index.span_count()
            && !self.is_here(group.end)
            && self.range(group.start..group.end + 1).1 <= most
        {
            group.end += 1;
        }
        group
    }

    /// Fetches a group as it is, and makes the files whole that end in it.
    pub(super) async fn bring_group(self: &Arc<Self>, group: Range<usize>) -> Result<(), FetchError> {
        let trip = Trip { needed: group.clone(), wide: group.clone() };
        for flight in self.board(&[trip], None) {
            flight.await?;
        }
        for file in self.large_files_of(group) {
            Arc::clone(self).assemble(file).await;
        }
        Ok(())
    }

    /// Whether the layer was never here whole: its index came without its content.
    pub(super) fn is_read_by_ranges(&self) -> bool {
        self.index.is_of_chunks() || self.learned.is_some()
    }

    /// The files that spans are parts of and that are kept on their own.
    fn large_files_of(&self, spans: Range<usize>) -> Vec<FileRecord> {
        let of_span = |span: Span| -> Vec<FileRecord> {
            let of_tar = self.learned.is_some().then(|| self.files_from(&span)).into_iter().flatten();
            of_tar.chain(self.file_of(&span)).filter(|file| file.pack_offset.is_none()).collect()
        };
        let mut files: Vec<_> =
            spans.filter_map(|number| self.index.span(number)).flat_map(of_span).collect();
        files.dedup();
        files
    }

    /// A layer that was fetched whole and lost content since: it is fetched whole again.
    async fn fill_whole(self: &Arc<Self>, filling: Filling) -> Result<bool, FetchError> {
        if self.is_whole() {
            return Ok(true);
        }
        self.store.traffic.background(filling.bandwidth).await;
        let turn = self.store.ingest_turn(&self.blob.digest);
        let _turn = turn.lock().await;
        if !self.is_whole()
            && self.store.used_bytes().saturating_add(self.index.decoded_size()) <= filling.room
        {
            let progress = Progress::default();
            crate::fetch::ingest::ingest(&self.store, &self.source, &self.blob, Some(&progress), None)
                .await?;
        }
        Ok(self.is_whole())
    }

    /// Whether the pack and every large file are there.
    fn is_whole(&self) -> bool {
        let pack = self.index.pack_size() == 0 || self.store.has(Kind::Pack, &self.blob.digest);
        pack && self.index.entries().all(|entry| match entry.kind {
            EntryKind::File { file, .. } => self.index.file(file).is_some_and(|file| {
                file.pack_offset.is_some()
                    || file.digest.is_some_and(|digest| self.store.has(Kind::File, &digest))
            }),
            _ => true,
        })
    }
}
