//! What decoding has taught: digests of spans and files that the index does not know.
//!
//! A SOCI zTOC proves a span by the digest of its encoded bytes. Its decoded bytes are hashed when they come out of such
//! a span for the first time, and the digest is kept here, so that what lies in the cache is proven like everything else.
//!
//! ```text
//! <dir>/layers/<hex>/learned   slots of 48 bytes: one for each span, then one for each file
//! slot   [32] digest of the decoded bytes  [16] head of sha256(fingerprint of the index, u64 slot, digest)
//! ```
//! A slot that was never written, is torn, or belongs to another index of the layer is not known: its content is then
//! fetched again. So nothing is synced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::fetch::index::LayerIndex;
use crate::policy::digest::{Digest, Hasher};

const SLOT: usize = 48;
const DIGEST: usize = 32;

/// The digests learned of one layer.
#[derive(Debug)]
pub(super) struct Learned {
    /// `None`: it cannot be used, and nothing is ever known.
    file: Option<File>,
    index: Digest,
    /// Files come behind the spans.
    spans: u64,
}

impl Learned {
    /// What is known beside `index`, if that leaves something to learn. `path` is made if it is not there.
    pub(super) fn of(index: &LayerIndex, path: &Path) -> Option<Self> {
        if !index.has_to_learn() {
            return None;
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "what is decoded cannot be kept");
        });
        Some(Self { file: file.ok(), index: index.fingerprint(), spans: index.span_count() as u64 })
    }

    pub(super) fn span(&self, number: usize) -> Option<Digest> {
        self.get(number as u64)
    }

    pub(super) fn file(&self, number: u32) -> Option<Digest> {
        self.get(self.spans + u64::from(number))
    }

    pub(super) fn learn_span(&self, number: usize, digest: &Digest) {
        self.put(number as u64, digest);
    }

    pub(super) fn learn_file(&self, number: u32, digest: &Digest) {
        self.put(self.spans + u64::from(number), digest);
    }

    fn get(&self, slot: u64) -> Option<Digest> {
        let mut bytes = [0; SLOT];
        self.file.as_ref()?.read_exact_at(&mut bytes, slot * SLOT as u64).ok()?;
        let (digest, check) = bytes.split_first_chunk::<DIGEST>()?;
        let digest = Digest::from_bytes(*digest);
        (*check == self.check(slot, &digest)).then_some(digest)
    }

    fn put(&self, slot: u64, digest: &Digest) {
        let Some(file) = &self.file else { return };
        let bytes = [&digest.as_bytes()[..], &self.check(slot, digest)].concat();
        if let Err(error) = file.write_all_at(&bytes, slot * SLOT as u64) {
            tracing::warn!(%error, "a digest is not kept");
        }
    }

    fn check(&self, slot: u64, digest: &Digest) -> [u8; SLOT - DIGEST] {
        let mut hasher = Hasher::new();
        hasher.update(self.index.as_bytes());
        hasher.update(&slot.to_le_bytes());
        hasher.update(digest.as_bytes());
        hasher.finish().as_bytes().first_chunk().copied().unwrap_or_default()
    }
}
