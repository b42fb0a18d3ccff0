//! Where blobs come from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::error::FetchError;
use super::layout::Layout;
use super::referrers;
use super::registry::{self, RegistryOptions};
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::reference::Location;

/// The source at `location`: a layout is looked at, a registry is not asked yet.
pub fn open(location: &Location, options: &RegistryOptions) -> Result<Arc<dyn BlobSource>, FetchError> {
    Ok(match location {
        Location::Registry { host, repository } => registry::source(host, repository, options),
        Location::Layout { path } => Layout::open(path)?,
    })
}

/// The manifest or index that a tag names.
#[derive(Debug, Clone)]
pub struct Tagged {
    /// The digest of the content.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// At most 4 MiB.
    pub content: VerifiedBytes,
}

/// One repository of a registry, or one image layout on disk.
///
/// Recoverable trouble (token expiry, redirects, 429, 5xx, resets, truncated bodies) is retried inside; a caller
/// sets its deadline around the call by dropping the future. Ranges and streams are raw: who uses them proves
/// them, and says [`BlobSource::distrust`] of what is wrong.
#[async_trait]
pub trait BlobSource: Send + Sync + fmt::Debug {
    /// The manifest or index with this digest and its media type. At most 4 MiB, checked.
    async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError>;

    /// The digest that a tag names now; `None` if there is no such tag.
    async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError>;

    /// What a tag names now, `None` if there is no such tag: in one question where that is possible.
    async fn tagged(&self, tag: &str) -> Result<Option<Tagged>, FetchError> {
        let Some(digest) = self.resolve(tag).await? else { return Ok(None) };
        let (media_type, content) = self.manifest(&digest).await?;
        Ok(Some(Tagged { digest, media_type, content }))
    }

    /// Manifests of one of these artifact types (`""` is none said) that are listed as naming `subject`, at most 256.
    /// Not checked: anybody may list any.
    async fn referrers(&self, subject: &Digest, types: &[&str]) -> Result<Vec<Descriptor>, FetchError> {
        referrers::by_tag(self, subject, types).await
    }

    /// A whole blob of at most `limit` bytes, checked.
    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError>;

    /// The blob's raw bytes from `from` to its end, in order, resumed inside after a reset. Not checked.
    async fn stream(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError>;

    /// All of the blob's raw bytes in order, as fast as they can be had. Not checked.
    async fn whole(
        &self,
        blob: &Descriptor,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        self.stream(blob, 0).await
    }

    /// Exactly the raw bytes of `range`. Not checked.
    async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError>;

    /// What came of this blob does not match its digest. Returns whether it will come from elsewhere from now on.
    fn distrust(&self, _blob: &Digest) -> bool {
        false
    }
}
