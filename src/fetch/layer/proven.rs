//! Digests of decoded content: from the index where it knows them, else as they were learned.

use bytes::Bytes;

use super::Inner;
use super::headers;
use super::learned::Learned;
use crate::fetch::error::FetchError;
use crate::fetch::index::file::{FileRecord, Proof, Span};
use crate::policy::digest::Digest;

impl Inner {
    /// A file with what is known of it now.
    pub(super) fn file(&self, number: u32) -> Option<FileRecord> {
        let mut file = self.index.file(number)?;
        file.digest = file.digest.or_else(|| self.learned.as_ref()?.file(number));
        Some(file)
    }

    /// The digest of a span's decoded bytes, if it is known.
    pub(super) fn decoded_digest(&self, number: usize, span: &Span) -> Option<Digest> {
        match span.proof {
            Proof::Decoded(digest) => Some(digest),
            Proof::Encoded(_) => self.learned.as_ref()?.span(number),
        }
    }

    /// A span from disk or memory, proven.
    pub(super) fn span_here(&self, number: usize, span: &Span) -> Option<Bytes> {
        self.store.chunk(&self.decoded_digest(number, span)?, span.out_len)
    }

    /// Whether a span is on disk as a chunk.
    pub(super) fn has_span(&self, number: usize, span: &Span) -> bool {
        self.decoded_digest(number, span).is_some_and(|digest| self.store.has_chunk(&digest))
    }

    /// The files whose content ends in a span of the tar, or goes on behind it, in order.
    pub(super) fn files_from(&self, span: &Span) -> impl Iterator<Item = FileRecord> {
        let first = self.index.first_file_ending_from(span.out_start);
        let end = span.out_start + span.out_len;
        let files = (first..self.index.file_count()).map_while(|number| self.file(number));
        files.take_while(move |file| self.index.extents(file).next().is_none_or(|extent| extent.offset < end))
    }

    /// Looks into a proven span of the tar: compares the headers in it with the index, and keeps the small files in it
    /// where small files are.
    pub(super) fn look_into(&self, span: &Span, bytes: &Bytes, learned: &Learned) -> Result<(), FetchError> {
        let part = |offset: u64, len: u64| {
            let start = usize::try_from(offset.checked_sub(span.out_start)?).ok()?;
            bytes.get(start..)?.get(..usize::try_from(len).ok()?)
        };
        if span.out_start == 0 {
            self.compare_headers(|index| headers::compare_from(index, 0, bytes))?;
        }
        for file in self.files_from(span) {
            let Some(extent) = self.index.extents(&file).next() else { continue };
            let end = extent.offset + extent.len;
            if let Some(behind) = part(end, (span.out_start + span.out_len).saturating_sub(end)) {
                self.compare_headers(|index| headers::compare(index, file.entry as usize, behind))?;
            }
            if let (Some(content), Some(offset)) = (part(extent.offset, extent.len), file.pack_offset) {
                self.keep_small(&file, offset, content, learned);
            }
        }
        Ok(())
    }

    /// Keeps a small file that lies in a proven span.
    fn keep_small(&self, file: &FileRecord, offset: u64, content: &[u8], learned: &Learned) {
        let (digest, layer) = (Digest::of(content), &self.blob.digest);
        let known = file.digest == Some(digest);
        if known && self.store.packed(layer, offset, file.size, &digest).is_some() {
            return;
        }
        let bytes = Bytes::copy_from_slice(content);
        match self.store.put_packed(layer, self.index.pack_size(), offset, &bytes) {
            Ok(()) => learned.learn_file(file.number, &digest),
            Err(error) => tracing::warn!(%error, "fetched content is not kept"),
        }
    }
}
