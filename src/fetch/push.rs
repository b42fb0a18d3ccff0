//! Copying an image from a source to a sink: index or manifest, config, layers, bottom up, so that a manifest is
//! never there before what it names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::document;
use super::error::{Class, FetchError, Side};
use super::sink::{BlobContent, BlobSink};
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// Blobs that are copied at the same time: enough to hide a round trip, few enough for a small registry.
const PARALLEL: usize = 4;
/// An index may hold indexes; three levels are more than anybody builds.
const MAX_DEPTH: u32 = 3;

/// How far a copy is, for whoever watches.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Bytes of blobs that were found to be needed so far.
    pub total: AtomicU64,
    /// Bytes of them that are there: copied, or there before.
    pub done: Arc<AtomicU64>,
    /// Blobs that were there before.
    pub present: AtomicU64,
    /// Blobs that were copied.
    pub copied: AtomicU64,
}

/// Copies the image or artifact `digest` with everything it names; the outermost manifest gets `tag`.
pub async fn push_image(
    from: &Arc<dyn BlobSource>,
    digest: &Digest,
    to: &dyn BlobSink,
    tag: Option<&str>,
    progress: &CopyProgress,
) -> Result<Digest, FetchError> {
    copy(from, digest, to, tag, progress, 0).await
}

/// The digest that a tag names, or an error that says that it names none.
pub async fn resolve_tag(from: &dyn BlobSource, tag: &str) -> Result<Digest, FetchError> {
    let found = from.resolve(tag).await?;
    found
        .ok_or_else(|| FetchError::new(Class::NotFound, Side::Remote, format!("{from:?} has no tag {tag:?}")))
}

async fn copy(
    from: &Arc<dyn BlobSource>,
    digest: &Digest,
    to: &dyn BlobSink,
    tag: Option<&str>,
    progress: &CopyProgress,
    depth: u32,
) -> Result<Digest, FetchError> {
    if depth > MAX_DEPTH {
        let message = format!("{digest}: indexes within indexes, more than {MAX_DEPTH} deep");
        return Err(FetchError::new(Class::Protocol, Side::Remote, message));
    }
    let (media_type, content) = from.manifest(digest).await?;
    let children = document::children(&content).map_err(|error| error.context(digest))?;
    for child in &children.manifests {
        Box::pin(copy(from, &child.digest, to, None, progress, depth + 1)).await?;
    }
    stream::iter(unique(&children.blobs))
        .map(Ok)
        .try_for_each_concurrent(PARALLEL, async |blob| copy_blob(from, blob, to, progress).await)
        .await?;
    to.put_manifest(&media_type, content.as_bytes().clone(), tag).await
}

async fn copy_blob(
    from: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    to: &dyn BlobSink,
    progress: &CopyProgress,
) -> Result<(), FetchError> {
    progress.total.fetch_add(blob.size, Ordering::Relaxed);
    if to.has_blob(blob).await? {
        progress.done.fetch_add(blob.size, Ordering::Relaxed);
        progress.present.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let content = BlobContent::source(Arc::clone(from)).counted(Arc::clone(&progress.done));
    to.put_blob(blob, content).await?;
    progress.copied.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// One of each digest: a layer may occur twice in a manifest.
fn unique(blobs: &[Descriptor]) -> Vec<&Descriptor> {
    let mut seen = std::collections::HashSet::new();
    blobs.iter().filter(|blob| seen.insert(blob.digest)).collect()
}
