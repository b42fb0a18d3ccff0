//! Filling a layer in the background: what nobody asked for yet, while nobody waits for anything.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::flight::Trip;
use super::{Inner, Layer, Progress};
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::index::EntryKind;
use crate::fetch::index::file::FileRecord;
use crate::fetch::store::Kind;

impl Layer {
    /// Fetches everything of the layer that is not in the store, behind every reader and with at most `bandwidth` bytes a
    /// second, of the blob. Returns when all of it is here. Dropping the future ends it after the request under way.
    ///
    /// A layer larger than half of the quota is left as it is: filling it would only evict what others read.
    pub async fn fill(&self, bandwidth: Option<u64>) -> Result<(), FetchError> {
        let inner = &self.0;
        if inner.index.decoded_size() > inner.store.options().quota_bytes / 2 {
            return Ok(());
        }
        if !inner.index.is_of_chunks() {
            return inner.fill_whole(bandwidth).await;
        }
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
            let most = inner.store.traffic.background(bandwidth).await;
            let group = inner.missing_from(at, most);
            let began = Instant::now();
            let bytes = inner.range(group.clone()).1;
            inner.bring_group(group.clone()).await?;
            inner.store.traffic.brought(bytes, began.elapsed(), bandwidth);
            at = group.end;
        }
        Ok(())
    }

    /// Whether all of the layer's content is in the store. Looks at every file.
    pub fn is_complete(&self) -> bool {
        let inner = &self.0;
        if inner.index.is_of_chunks() {
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
    async fn bring_group(self: &Arc<Self>, group: Range<usize>) -> Result<(), FetchError> {
        let trip = Trip { needed: group.clone(), wide: group.clone() };
        for flight in self.board(&[trip], None) {
            flight.await?;
        }
        let files: Vec<FileRecord> = group
            .filter_map(|number| self.index.span(number))
            .filter_map(|span| self.file_of(&span).filter(|file| file.digest != span.digest))
            .collect();
        for file in files {
            Arc::clone(self).assemble(file).await;
        }
        Ok(())
    }

    /// A layer that was fetched whole and lost content since: it is fetched whole again.
    async fn fill_whole(self: &Arc<Self>, bandwidth: Option<u64>) -> Result<(), FetchError> {
        if self.is_whole() {
            return Ok(());
        }
        self.store.traffic.background(bandwidth).await;
        let turn = self.store.ingest_turn(&self.blob.digest);
        let _turn = turn.lock().await;
        if self.is_whole() {
            return Ok(());
        }
        crate::fetch::ingest::ingest(&self.store, &self.source, &self.blob, Some(&Progress::default()))
            .await?;
        if self.is_whole() {
            return Ok(());
        }
        let what = format!("layer {} does not fit into the cache: raise cache.quota", self.blob.digest);
        Err(FetchError::new(Class::Storage, Side::Local, what))
    }

    /// Whether the pack and every large file are there.
    fn is_whole(&self) -> bool {
        let pack = self.index.pack_size() == 0 || self.store.has(Kind::Pack, &self.blob.digest);
        pack && self.index.entries().all(|entry| match entry.kind {
            EntryKind::File { file, .. } => self
                .index
                .file(file)
                .is_some_and(|file| file.pack_offset.is_some() || self.store.has(Kind::File, &file.digest)),
            _ => true,
        })
    }
}
