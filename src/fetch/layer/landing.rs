//! A range that arrived: decoded, proven span by span, and kept where it will be looked for.
//!
//! What is a whole file goes to where whole files are (a small one into the layer's pack), everything else into
//! chunks. In a layer read by its table of contents the headers of the tar come along between the chunks; they are
//! compared with the table, and where the two disagree nothing of the layer is read any more.

use std::ops::Range;

use bytes::Bytes;

use super::Inner;
use super::flight::Spans;
use super::headers;
use crate::fetch::error::{FetchError, Side};
use crate::fetch::index::decode::decode_span;
use crate::fetch::index::file::{FileRecord, Proof, Span};
use crate::fetch::index::{EntryKind, LayerIndex};
use crate::fetch::verified::VerifiedBytes;
use crate::policy::digest::Digest;

/// Decoded bytes behind a file that are looked at: the headers of a few dozen directories or links.
const BEHIND: usize = 32 << 10;

impl Inner {
    /// Decodes a group from its bytes of the blob, which begin at `start`, and keeps it. What is wrong beside the spans
    /// that are `needed` is left out: its own reader will see it.
    pub(super) fn land(
        &self,
        group: Range<usize>,
        needed: &Range<usize>,
        start: u64,
        blob: &Bytes,
    ) -> Result<Spans, FetchError> {
        let mut spans = Spans::new();
        let mut numbers = group.filter_map(|number| Some((number, self.index.span(number)?))).peekable();
        while let Some(first) = numbers.next() {
            // Those of one member or frame are decoded together.
            let mut together = vec![first];
            while let Some(next) =
                numbers.next_if(|(_, span)| span.skip > 0 && span.in_start == first.1.in_start)
            {
                together.push(next);
            }
            if let Err(error) = self.land_member(&together, start, blob, &mut spans) {
                let error = error.context(format!("layer {}, span {}", self.blob.digest, first.0));
                if together.iter().any(|(number, _)| needed.contains(number)) {
                    return Err(error);
                }
                tracing::warn!(%error, "read ahead and left out");
            }
        }
        Ok(spans)
    }

    /// Spans that lie one after the other in what one decoding gives.
    fn land_member(
        &self,
        together: &[(usize, Span)],
        start: u64,
        blob: &Bytes,
        spans: &mut Spans,
    ) -> Result<(), FetchError> {
        let (Some((_, first)), Some((last_number, last))) = (together.first(), together.last()) else {
            return Ok(());
        };
        let (from, to) =
            (first.in_start.wrapping_sub(start) as usize, last.in_end.wrapping_sub(start) as usize);
        let input = blob.get(from..to).unwrap_or_default();
        if let Proof::Encoded(digest) = first.proof
            && !digest.matches(input)
        {
            let what = format!("its bytes in the blob do not have the digest {digest}");
            return Err(FetchError::corrupt(Side::Remote, what));
        }
        let len = usize::try_from(u64::from(last.skip) + last.out_len).unwrap_or(usize::MAX);
        let behind = if self.ends_its_file(*last_number, last) { BEHIND } else { 0 };
        let decoded = Bytes::from(decode_span(first.kind, input, self.index.window(first), len, behind)?);
        for (number, span) in together {
            let (from, len) = (span.skip as usize, span.out_len as usize);
            // A copy where it is a part: a slice would keep all of the member in memory.
            let bytes = match decoded.get(from..from + len) {
                Some(part) if part.len() < decoded.len() => Bytes::copy_from_slice(part),
                Some(_) => decoded.clone(),
                None => Bytes::new(),
            };
            let (bytes, digest) = match span.proof {
                Proof::Decoded(digest) => (VerifiedBytes::check(bytes, &digest)?, digest),
                Proof::Encoded(_) => (VerifiedBytes::proven(bytes.clone()), Digest::of(&bytes)),
            };
            if let Some(learned) = &self.learned {
                self.look_into(span, bytes.as_bytes(), learned)?;
                learned.learn_span(*number, &digest);
            }
            self.keep(span, &digest, bytes.as_bytes());
            self.ahead.mark(*number);
            spans.insert(*number, bytes.as_bytes().clone());
        }
        if let (Some(entry), Some(rest)) = (last.entry.filter(|_| behind > 0), decoded.get(len..)) {
            self.compare_headers(|index| headers::compare(index, entry as usize, rest))?;
        }
        Ok(())
    }

    /// Whether a chunk is its file's last and has the headers of the entries that follow behind it.
    fn ends_its_file(&self, number: usize, span: &Span) -> bool {
        let next = self.index.span(number + 1).and_then(|next| next.entry);
        let Some(file) = self.file_of(span).filter(|_| next != span.entry) else { return false };
        // Zeros at the end of a file are compressed with what follows, and belong to no chunk.
        self.index.extents(&file).last().is_some_and(|extent| extent.file_offset + extent.len == file.size)
    }

    /// The file that a span is a chunk of.
    pub(super) fn file_of(&self, span: &Span) -> Option<FileRecord> {
        match self.index.entry(span.entry? as usize)?.kind {
            EntryKind::File { file, .. } => self.file(file),
            _ => None,
        }
    }

    /// Keeps a proven span. A cache that cannot be written does not keep anybody from reading.
    fn keep(&self, span: &Span, digest: &Digest, bytes: &Bytes) {
        let is_whole = |file: &FileRecord| file.digest == Some(*digest) && file.size == span.out_len;
        let whole = self.file_of(span).filter(is_whole);
        let kept = match whole {
            Some(FileRecord { pack_offset: Some(offset), .. }) => {
                self.store.put_packed(&self.blob.digest, self.index.pack_size(), offset, bytes)
            }
            Some(_) => self.store.put_file(digest, bytes),
            None => self.store.put_chunk(digest, bytes),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "fetched content is not kept");
        }
    }

    /// Compares headers of the tar with the index. If the two disagree, nothing of the layer is read any more.
    pub(super) fn compare_headers(
        &self,
        compare: impl FnOnce(&LayerIndex) -> Result<(), String>,
    ) -> Result<(), FetchError> {
        compare(&self.index).map_err(|what| {
            let reason = format!("the table of contents and the tar disagree: {what}");
            tracing::error!(layer = %self.blob.digest, "{reason}: nothing of the layer is read any more");
            // The first reason is as good as any.
            let reason = self.refused.get_or_init(|| reason);
            FetchError::corrupt(Side::Remote, reason.clone())
        })
    }
}
