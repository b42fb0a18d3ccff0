//! SOCI: finding the zTOCs of an image's layers that may be trusted, and indexing a layer by its own.
//!
//! | where an index is found | why it may be trusted |
//! |---|---|
//! | the image manifest's annotation (version 2) | the manifest was checked against the pinned digest, and names it by digest |
//! | referrers of the image's manifest (version 1) | it is signed by a key that policy trusts for indexes, and names this manifest |
//!
//! A version 1 index without such a signature is nobody's word: a wrong window decodes to wrong bytes of the right
//! length, and no digest in it would show that. It is not used.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;

use super::bound_toc::{BoundToc, publish};
use super::error::{Class, FetchError, Side};
use super::index::ztoc;
use super::ingest::decoded_limit;
use super::signatures;
use super::source::BlobSource;
use super::store::{Stage, Store};
use crate::policy::digest::{Digest, Hasher};
use crate::policy::image::{Descriptor, ImageManifest};
use crate::policy::soci::{Binding, INDEX_DIGEST, INDEX_V1, SociIndex};
use crate::policy::trust::evidence::{Evidence, Subject};
use crate::policy::trust::verdict::in_words;
use crate::policy::trust::{Trust, signature};

pub use super::index::ztoc::Unfit;

/// Most indexes of one image whose signatures are looked at.
const MAX_CANDIDATES: usize = 8;

/// The zTOCs of the image `manifest`, whose digest is `digest`. `trust` says whose signatures on indexes count. An index
/// that cannot be had or used is none.
pub async fn find(
    source: &dyn BlobSource,
    digest: &Digest,
    manifest: &ImageManifest,
    trust: &Trust,
) -> Option<SociIndex> {
    if let Some(named) = manifest.annotation(INDEX_DIGEST) {
        match bound(source, named).await {
            Ok(index) => return Some(index),
            Err(error) => tracing::warn!(image = %digest, %error, "the image's SOCI index is not used"),
        }
    }
    if trust.keys.is_empty() {
        return None;
    }
    signed(source, digest, trust).await.unwrap_or_else(|error| {
        tracing::warn!(image = %digest, %error, "no SOCI index is looked for");
        None
    })
}

fn unusable(index: &Digest, why: &str) -> FetchError {
    FetchError::new(Class::Protocol, Side::Remote, format!("SOCI index {index}: {why}"))
}

async fn bound(source: &dyn BlobSource, named: &str) -> Result<SociIndex, FetchError> {
    let digest: Digest = named.parse().map_err(|error| {
        FetchError::new(Class::Protocol, Side::Remote, format!("annotation {INDEX_DIGEST}: {error}"))
    })?;
    let (_, bytes) = source.manifest(&digest).await?;
    SociIndex::parse(&bytes, Binding::ByImage).map_err(|why| unusable(&digest, &why))
}

/// The first index of `image` among its referrers that a trusted key has signed.
async fn signed(
    source: &dyn BlobSource,
    image: &Digest,
    trust: &Trust,
) -> Result<Option<SociIndex>, FetchError> {
    for candidate in source.referrers(image, &[INDEX_V1]).await?.into_iter().take(MAX_CANDIDATES) {
        match signed_one(source, image, &candidate.digest, trust).await {
            Ok(index) => return Ok(Some(index)),
            Err(error) => tracing::warn!(%image, %error, "not used"),
        }
    }
    Ok(None)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn signed_one(
    source: &dyn BlobSource,
    image: &Digest,
    index: &Digest,
    trust: &Trust,
) -> Result<SociIndex, FetchError> {
    let subject = Subject { digest: index, location: None, now: now() };
    let holds = |found: &[Evidence]| signature::verify(trust, &subject, found).is_ok();
    let signatures = signatures::find(source, index, &holds).await?;
    signature::verify(trust, &subject, &signatures).map_err(|refusals| {
        unusable(index, &format!("no key of trust.index_keys vouches for it: {}", in_words(&refusals)))
    })?;
    let (_, bytes) = source.manifest(index).await?;
    SociIndex::parse(&bytes, Binding::ToImage(image)).map_err(|why| unusable(index, &why))
}

/// Makes the index of `blob` from its `ztoc`, which is trusted.
pub(super) async fn index(
    store: &Arc<Store>,
    source: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    ztoc: &Descriptor,
) -> Result<(), FetchError> {
    let bytes = source.blob(ztoc, ztoc::MAX_BYTES).await.map_err(|error| error.context("zTOC"))?;
    let (stage, blob, limit) = (Stage::new(store)?, blob.clone(), decoded_limit(store, blob));
    let work = tokio::task::spawn_blocking(move || {
        let contents = ztoc::read(&bytes, &blob, limit, stage.directory())
            .map_err(|error| error.context(format!("layer {}", blob.digest)))?;
        publish(stage, &blob, contents)
    });
    work.await
        .unwrap_or_else(|_| Err(FetchError::new(Class::Unavailable, Side::Local, "indexing was interrupted")))
}

/// Whether the descriptor of `blob` binds a table of contents, so that it needs no zTOC.
pub fn is_bound(blob: &Descriptor) -> bool {
    BoundToc::of(blob).is_some()
}

/// Fetches `blob` and makes its zTOC, or says why it can have none. Disk for the whole blob is needed meanwhile.
pub async fn make(
    source: &dyn BlobSource,
    blob: &Descriptor,
    span_size: u64,
) -> Result<Result<Vec<u8>, Unfit>, FetchError> {
    let failed = |error: std::io::Error| FetchError::storage("cannot keep the layer on disk", &error);
    let mut file = tempfile::tempfile().map_err(failed)?;
    let mut stream = source.stream(blob, 0).await?;
    let (mut hasher, mut size) = (Hasher::new(), 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        size += piece.len() as u64;
        hasher.update(&piece);
        file.write_all(&piece).map_err(failed)?;
    }
    if hasher.finish() != blob.digest || size != blob.size {
        let what = format!("layer {}: the registry sent something else", blob.digest);
        return Err(FetchError::corrupt(Side::Remote, what));
    }
    let named = format!("layer {}", blob.digest);
    let work = tokio::task::spawn_blocking(move || ztoc::make(&file, size, span_size));
    let made = work.await.unwrap_or_else(|_| {
        Err(FetchError::new(Class::Unavailable, Side::Local, "indexing was interrupted"))
    });
    made.map_err(|error| error.context(named))
}

#[cfg(test)]
#[path = "soci_tests.rs"]
mod tests;
