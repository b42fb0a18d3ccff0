//! Bytes that were proven, by type.

use bytes::Bytes;

use super::error::{FetchError, Side};
use crate::policy::digest::Digest;

/// Bytes whose digest was checked. Only this room can make one.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedBytes(Bytes);

impl VerifiedBytes {
    /// Checks `content` against `digest`.
    pub(in crate::fetch) fn check(content: Bytes, digest: &Digest) -> Result<Self, FetchError> {
        if digest.matches(&content) {
            Ok(Self(content))
        } else {
            Err(FetchError::corrupt(Side::Remote, format!("content does not match {digest}")))
        }
    }

    /// Bytes put together from parts that were proven one by one: file content cut from spans and packed files
    /// that matched their digests, or read from a file that did.
    pub(in crate::fetch) fn proven(content: Bytes) -> Self {
        Self(content)
    }

    /// A part of proven bytes is proven.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self(self.0.slice(range))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl std::ops::Deref for VerifiedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for VerifiedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifiedBytes({} B)", self.0.len())
    }
}
