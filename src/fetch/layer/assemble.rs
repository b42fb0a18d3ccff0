//! A large file made plain again from its spans, so that the kernel can read it itself.

use super::Inner;
use crate::fetch::error::{FetchError, Side};
use crate::fetch::index::file::FileRecord;
use crate::fetch::store::{Kind, Stage};

impl Inner {
    /// Whether all spans of the file are on disk, and it would be worth it.
    pub(super) fn can_assemble(&self, file: &FileRecord) -> bool {
        // Half the quota: the chunks it is made from take as much again until they are evicted.
        file.size < self.store.options().quota_bytes / 2
            && file.digest.is_none_or(|digest| !self.store.has(Kind::File, &digest))
            && self.index.extents(file).all(|extent| {
                let mut spans = self.index.spans_covering(extent.offset, extent.len);
                spans.all(|at| self.index.span(at).is_some_and(|span| self.has_span(at, &span)))
            })
    }

    /// Writes the file. Every span is proven when it is read, and the whole again by the file's digest where it is known.
    pub(super) fn assemble_now(&self, file: &FileRecord) -> Result<(), FetchError> {
        let mut stage = Stage::new(&self.store)?;
        let mut content = stage.begin(file.size)?;
        for extent in self.index.extents(file) {
            let end = extent.offset + extent.len;
            for number in self.index.spans_covering(extent.offset, extent.len) {
                let Some(span) = self.index.span(number) else { continue };
                let Some(bytes) = self.span_here(number, &span) else { return Ok(()) };
                let from = extent.offset.max(span.out_start);
                let to = end.min(span.out_start + span.out_len);
                let part = bytes.get((from - span.out_start) as usize..(to - span.out_start) as usize);
                let offset = extent.file_offset + (from - extent.offset);
                stage.write(&mut content, offset, part.unwrap_or_default())?;
            }
        }
        let digest = stage.end(content)?.digest;
        if file.digest.is_none_or(|known| known == digest) {
            stage.publish_files()?;
            if let Some(learned) = self.learned.as_ref().filter(|_| file.digest.is_none()) {
                learned.learn_file(file.number, &digest);
            }
            if self.index.is_of_chunks() {
                self.forget_chunks(file);
            }
            Ok(())
        } else {
            let what = format!("layer {}: a file does not match its digest", self.blob.digest);
            Err(FetchError::corrupt(Side::Local, what))
        }
    }

    /// The chunks of a file that is whole now are of no more use, unless another file has one of them, too.
    fn forget_chunks(&self, file: &FileRecord) {
        for extent in self.index.extents(file) {
            for number in self.index.spans_covering(extent.offset, extent.len) {
                let digest = self.index.span(number).and_then(|span| self.decoded_digest(number, &span));
                if let Some(digest) = digest {
                    self.store.discard(Kind::Chunk, &digest);
                }
            }
        }
    }
}
