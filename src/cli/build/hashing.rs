//! Digest and size of what is written.

use std::io::{self, Write};

use crate::policy::digest::{Digest, Hasher};

/// Counts and hashes what passes.
pub(super) struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(), size: 0 }
    }

    /// Goes on with another writer.
    pub(super) fn with<V>(self, inner: V) -> (W, Hashing<V>) {
        (self.inner, Hashing { inner, hasher: self.hasher, size: self.size })
    }

    pub(super) fn inner(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
