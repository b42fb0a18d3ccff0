//! Decoded spans that were fetched again after their content had been evicted.

use std::fs;
use std::io::{ErrorKind, Write};

use bytes::Bytes;

use super::{Kind, Store};
use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

impl Store {
    /// A decoded span of `len` bytes, proven, if it is here. A chunk that turns out to be damaged is removed.
    pub(crate) fn chunk(&self, digest: &Digest, len: u64) -> Option<Bytes> {
        if let Some(bytes) = self.recent().get(digest) {
            return Some(bytes);
        }
        self.catalog().get(Kind::Chunk, digest)?;
        let bytes = match fs::read(self.path(Kind::Chunk, digest)) {
            Ok(bytes) if bytes.len() as u64 == len && digest.matches(&bytes) => Bytes::from(bytes),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%digest, %error, "cannot read a chunk");
                return None;
            }
            _ => {
                tracing::warn!(%digest, "a chunk on disk was damaged or missing and will be fetched again");
                self.discard(Kind::Chunk, digest);
                return None;
            }
        };
        self.touch(Kind::Chunk, digest);
        self.recent().put(digest, &bytes);
        Some(bytes)
    }

    /// Whether a chunk is on disk; says nothing about its content.
    pub(crate) fn has_chunk(&self, digest: &Digest) -> bool {
        self.has(Kind::Chunk, digest)
    }

    /// Keeps a span that was checked against `digest`.
    pub(crate) fn put_chunk(&self, digest: &Digest, bytes: &Bytes) -> Result<(), FetchError> {
        self.recent().put(digest, bytes);
        if self.has_chunk(digest) || !self.make_room(bytes.len() as u64, 0) {
            return Ok(());
        }
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|error| FetchError::storage("cannot write a chunk", &error))?;
        self.adopt(Kind::Chunk, digest, file.path())?;
        Ok(())
    }
}
