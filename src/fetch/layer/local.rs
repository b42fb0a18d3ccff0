//! What the store can answer without asking anybody: whole files, packed files, spans in memory and on disk.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::flight::Spans;
use super::{Inner, Wanted};
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::index::file::FileRecord;
use crate::fetch::store::{Found, LARGE_FILE};
use crate::fetch::verified::VerifiedBytes;
use crate::policy::digest::Digest;

/// Spans up to this size are read from disk and proven on the thread that asks (5 ms), larger ones where waiting does
/// not stop others. Usual ones are 2 MiB, those of SOCI a little over 4; encoders that write long blocks make larger ones.
const SPAN_AT_ONCE: u64 = 5 << 20;

/// Fetched spans can be evicted before they are cut when the quota is tiny; then they are fetched again.
const ATTEMPTS: usize = 3;

impl Inner {
    /// The bytes, if they are here and need no long hashing.
    pub(super) fn local(&self, wanted: &Wanted) -> Option<VerifiedBytes> {
        self.here(wanted, SPAN_AT_ONCE)
    }

    /// The bytes, if they are here in whole files or in spans of at most `span` bytes.
    fn here(&self, wanted: &Wanted, span: u64) -> Option<VerifiedBytes> {
        if wanted.len == 0 {
            return Some(VerifiedBytes::proven(Bytes::new()));
        }
        let cut = || {
            if self.needs_larger(wanted, span) { None } else { self.cut(wanted, &Spans::new()).ok() }
        };
        if wanted.file.size >= LARGE_FILE {
            return match self.find(&wanted.file) {
                Found::Proven(whole) => {
                    let bytes = whole.read(wanted.offset, usize::try_from(wanted.len).ok()?);
                    bytes.map(VerifiedBytes::proven).or_else(cut)
                }
                Found::Missing => cut(),
                Found::Unproven => None,
            };
        }
        let FileRecord { digest, size, pack_offset, .. } = wanted.file;
        let packed = pack_offset
            .zip(digest)
            .and_then(|(offset, digest)| self.store.packed(&self.blob.digest, offset, size, &digest));
        match packed {
            Some(whole) => {
                let start = usize::try_from(wanted.offset).ok()?;
                let end = start + usize::try_from(wanted.len).ok()?;
                Some(VerifiedBytes::proven(whole).slice(start..end))
            }
            None => cut(),
        }
    }

    /// Whether a span larger than `limit` is needed.
    fn needs_larger(&self, wanted: &Wanted, limit: u64) -> bool {
        let end = wanted.offset + wanted.len;
        self.index.extents(&wanted.file).any(|extent| {
            let first = extent.file_offset.max(wanted.offset);
            let last = (extent.file_offset + extent.len).min(end);
            let offset = extent.offset + first.saturating_sub(extent.file_offset);
            first < last
                && (self.index.spans_covering(offset, last - first))
                    .any(|number| self.index.span(number).is_some_and(|span| span.out_len > limit))
        })
    }

    /// The bytes, fetched or hashed first as needed.
    pub(super) async fn answer(self: Arc<Self>, wanted: Wanted) -> Result<VerifiedBytes, FetchError> {
        if wanted.file.size < LARGE_FILE && self.needs_larger(&wanted, SPAN_AT_ONCE) {
            let inner = Arc::clone(&self);
            if let Ok(Some(bytes)) = tokio::task::spawn_blocking(move || inner.here(&wanted, u64::MAX)).await
            {
                return Ok(bytes);
            }
        }
        if let Some(digest) = wanted.file.digest.filter(|_| wanted.file.size >= LARGE_FILE) {
            let inner = Arc::clone(&self);
            let turn = self.store.proof_turn(&digest).lock_owned().await;
            let proven = tokio::task::spawn_blocking(move || {
                let whole = match inner.store.find(&digest, wanted.file.size, false) {
                    Found::Proven(whole) => Some(whole),
                    Found::Unproven => inner.store.prove(&digest),
                    Found::Missing => None,
                };
                // Kept in here, because hashing goes on when nobody waits for it any more.
                drop(turn);
                let len = usize::try_from(wanted.len).ok()?;
                let read = whole.and_then(|whole| whole.read(wanted.offset, len));
                read.map(VerifiedBytes::proven).or_else(|| inner.here(&wanted, u64::MAX))
            });
            if let Ok(Some(bytes)) = proven.await {
                return Ok(bytes);
            }
        }
        let mut held = Spans::new();
        for _ in 0..ATTEMPTS {
            match self.cut(&wanted, &held) {
                Ok(bytes) => return Ok(bytes),
                Err(missing) if self.too_large(&missing) => return self.restore(&wanted).await,
                Err(missing) => held.extend(self.fetch(missing, &wanted.file).await?),
            }
        }
        self.cut(&wanted, &held).map_err(|_| {
            let what = format!("layer {}: content is evicted faster than it is read", self.blob.digest);
            FetchError::new(Class::Storage, Side::Local, what)
        })
    }

    /// Cuts the bytes out of spans held, in memory or on disk; or says which spans are missing.
    fn cut(&self, wanted: &Wanted, held: &Spans) -> Result<VerifiedBytes, Vec<usize>> {
        let end = wanted.offset + wanted.len;
        let (mut out, mut missing) = (BytesMut::new(), Vec::new());
        let mut at = wanted.offset;
        for extent in self.index.extents(&wanted.file) {
            let (first, last) = (extent.file_offset.max(at), (extent.file_offset + extent.len).min(end));
            if first >= last {
                continue;
            }
            zeros(&mut out, first - at);
            let offset = extent.offset + (first - extent.file_offset);
            self.cut_tar(offset, last - first, held, &mut out, &mut missing);
            at = last;
        }
        zeros(&mut out, end - at);
        if missing.is_empty() && out.len() as u64 == wanted.len {
            Ok(VerifiedBytes::proven(out.freeze()))
        } else {
            Err(missing)
        }
    }

    /// Appends `len` bytes of the decoded tar from `offset`; or the numbers of the spans that are missing.
    fn cut_tar(&self, offset: u64, len: u64, held: &Spans, out: &mut BytesMut, missing: &mut Vec<usize>) {
        let end = offset + len;
        for number in self.index.spans_covering(offset, len) {
            let Some(span) = self.index.span(number) else { continue };
            let content = held.get(&number).cloned();
            let Some(content) = content.or_else(|| self.span_here(number, &span)) else {
                missing.push(number);
                continue;
            };
            let from = offset.max(span.out_start) - span.out_start;
            let to = end.min(span.out_start + span.out_len) - span.out_start;
            let part = content.get(from as usize..to as usize);
            out.extend_from_slice(part.unwrap_or_default());
        }
    }

    /// Looks for a large file in the store.
    fn find(&self, file: &FileRecord) -> Found {
        file.digest.map_or(Found::Missing, |digest| self.store.find(&digest, file.size, false))
    }

    /// Proves a large file where it keeps nobody waiting.
    pub(super) fn prove_in_background(self: &Arc<Self>, digest: Digest) {
        let Ok(turn) = self.store.proof_turn(&digest).try_lock_owned() else { return };
        let inner = Arc::clone(self);
        let thread = std::thread::Builder::new().name("prove".to_owned()).spawn(move || {
            inner.store.prove(&digest);
            drop(turn);
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to hash a file: it is read without passthrough");
        }
    }
}

fn zeros(out: &mut BytesMut, len: u64) {
    out.resize(out.len() + usize::try_from(len).unwrap_or(0), 0);
}
