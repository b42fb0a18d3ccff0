//! From a pinned digest to the platform's manifest and config.
//!
//! Every document is taken from [`Documents`] when it is there and from the source otherwise, and is proven by its
//! digest each time: the pinned one, then the one that names the next.

use super::documents::Documents;
use super::error::{Class, FetchError, Side};
use super::source::BlobSource;
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::{Document, ImageConfig, ImageManifest, MAX_CONFIG, Platform, parse_document};

/// Deepest chain of indexes that is followed: the specification allows nesting, nobody nests deeper than once.
const MAX_INDEX_DEPTH: usize = 3;

/// An image's documents for one platform.
#[derive(Debug, Clone)]
pub struct ImageDocuments {
    /// Media type of what the pinned digest names.
    pub pinned_media_type: String,
    /// Size of that in bytes.
    pub pinned_size: u64,
    /// Digest of the platform's manifest: the pinned digest, or what the pinned index names.
    pub digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// Its bytes.
    pub manifest_json: VerifiedBytes,
    /// The config.
    pub config: ImageConfig,
    /// Its bytes.
    pub config_json: VerifiedBytes,
}

/// Reads the documents of the image `pinned` for `platform`.
pub async fn documents(
    store: &Documents,
    source: &dyn BlobSource,
    pinned: &Digest,
    platform: &Platform,
) -> Result<ImageDocuments, FetchError> {
    let (mut digest, mut first) = (*pinned, None);
    for _ in 0..MAX_INDEX_DEPTH {
        let (media_type, bytes) = manifest(store, source, &digest).await?;
        let (pinned_media_type, pinned_size) =
            first.get_or_insert_with(|| (media_type.clone(), bytes.len() as u64)).clone();
        match parse_document(&media_type, &bytes).map_err(|denied| bad(&denied.message))? {
            Document::Index(index) => {
                digest = index.select(platform).map_err(|denied| bad(&denied.message))?.digest;
            }
            Document::Manifest(manifest) => {
                let config_json = config(store, source, &manifest).await?;
                let config = ImageConfig::parse(&config_json).map_err(|denied| bad(&denied.message))?;
                config.check_layers(&manifest).map_err(|denied| bad(&denied.message))?;
                return Ok(ImageDocuments {
                    pinned_media_type,
                    pinned_size,
                    digest,
                    manifest,
                    manifest_json: bytes,
                    config,
                    config_json,
                });
            }
        }
    }
    Err(bad(&format!("{pinned} is an index of indexes more than {MAX_INDEX_DEPTH} deep")))
}

/// The platform's manifest of the image `pinned` and its digest, if that is here.
pub(crate) fn known(
    store: &Documents,
    pinned: &Digest,
    platform: &Platform,
) -> Option<(Digest, ImageManifest)> {
    let mut digest = *pinned;
    for _ in 0..MAX_INDEX_DEPTH {
        let (media_type, bytes) = store.get(&digest)?;
        match parse_document(&media_type, &bytes).ok()? {
            Document::Index(index) => digest = index.select(platform).ok()?.digest,
            Document::Manifest(manifest) => return Some((digest, manifest)),
        }
    }
    None
}

/// The digests of all documents that lead from `pinned` to its platform's manifest and config, as far as they are here.
pub(crate) fn chain(store: &Documents, pinned: &Digest, platform: &Platform) -> Vec<Digest> {
    let mut chain = vec![*pinned];
    while let Some((media_type, bytes)) =
        chain.last().filter(|_| chain.len() <= MAX_INDEX_DEPTH).and_then(|digest| store.get(digest))
    {
        match parse_document(&media_type, &bytes) {
            Ok(Document::Index(index)) => match index.select(platform) {
                Ok(selected) => chain.push(selected.digest),
                Err(_) => break,
            },
            Ok(Document::Manifest(manifest)) => {
                chain.push(manifest.config.digest);
                break;
            }
            Err(_) => break,
        }
    }
    chain
}

async fn manifest(
    store: &Documents,
    source: &dyn BlobSource,
    digest: &Digest,
) -> Result<(String, VerifiedBytes), FetchError> {
    if let Some(known) = store.get(digest) {
        return Ok(known);
    }
    let (media_type, bytes) = source.manifest(digest).await?;
    store.put(digest, &media_type, &bytes)?;
    Ok((media_type, bytes))
}

async fn config(
    store: &Documents,
    source: &dyn BlobSource,
    manifest: &ImageManifest,
) -> Result<VerifiedBytes, FetchError> {
    if let Some((_, known)) = store.get(&manifest.config.digest) {
        return Ok(known);
    }
    let bytes = source.blob(&manifest.config, MAX_CONFIG as u64).await?;
    store.put(&manifest.config.digest, &manifest.config.media_type, &bytes)?;
    Ok(bytes)
}

/// A document that is what its digest says and still not what the specification demands: asking again cannot help.
fn bad(message: &str) -> FetchError {
    FetchError::new(Class::Protocol, Side::Remote, message)
}
