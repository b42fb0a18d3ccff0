//! Where images are written to: a repository of a registry, or a layout on disk.
//!
//! In: blobs with their descriptors and manifests. Out: nothing but success; a sink checks what it is given
//! against the digest, or its registry does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio_util::io::ReaderStream;

use super::error::FetchError;
use super::layout::Layout;
use super::registry::{Registry, RegistryOptions};
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::reference::Location;

/// The sink at `location`: a layout is made if there is none, a registry is not asked yet.
pub fn open(location: &Location, options: &RegistryOptions) -> Result<Arc<dyn BlobSink>, FetchError> {
    Ok(match location {
        Location::Registry { .. } => Registry::open(location, options)?,
        Location::Layout { path } => Layout::create(path)?,
    })
}

/// Takes blobs and manifests. Writing what is there already is success.
#[async_trait]
pub trait BlobSink: Send + Sync + fmt::Debug {
    /// Whether the blob is there.
    async fn has_blob(&self, blob: &Descriptor) -> Result<bool, FetchError>;

    /// Writes a blob. `content` must be `blob.size` bytes with its digest; it may be read more than once.
    async fn put_blob(&self, blob: &Descriptor, content: BlobContent) -> Result<(), FetchError>;

    /// Writes a manifest or index whose blobs are there, under its digest and, if given, under `tag`.
    /// Without a tag a layout keeps it as a blob that its `index.json` does not name.
    async fn put_manifest(
        &self,
        media_type: &str,
        content: Bytes,
        tag: Option<&str>,
    ) -> Result<Digest, FetchError>;
}

/// The bytes of a blob, from wherever they can be had again when an upload must start anew.
#[derive(Debug, Clone)]
pub struct BlobContent {
    origin: Origin,
    sent: Option<Arc<AtomicU64>>,
}

#[derive(Debug, Clone)]
enum Origin {
    Bytes(Bytes),
    File(PathBuf),
    Source(Arc<dyn BlobSource>),
}

impl BlobContent {
    /// Bytes in memory.
    pub fn bytes(content: impl Into<Bytes>) -> Self {
        Self { origin: Origin::Bytes(content.into()), sent: None }
    }

    /// A file on disk, which must not change meanwhile.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { origin: Origin::File(path.into()), sent: None }
    }

    /// The same blob in another place.
    pub fn source(source: Arc<dyn BlobSource>) -> Self {
        Self { origin: Origin::Source(source), sent: None }
    }

    /// Counts the bytes that are handed out; those of an attempt that failed are taken back.
    #[must_use]
    pub fn counted(mut self, sent: Arc<AtomicU64>) -> Self {
        self.sent = Some(sent);
        self
    }

    /// The content from its start. `attempt` counts what this opening handed out.
    pub(super) async fn open(
        &self,
        blob: &Descriptor,
    ) -> Result<(BoxStream<'static, Result<Bytes, FetchError>>, Sent), FetchError> {
        let parts = match &self.origin {
            Origin::Bytes(bytes) => stream::iter([Ok(bytes.clone())]).boxed(),
            Origin::File(path) => {
                let file = tokio::fs::File::open(path).await;
                let file = file.map_err(|e| FetchError::storage(&path.display().to_string(), &e))?;
                let name = path.display().to_string();
                ReaderStream::with_capacity(file, READ_SIZE)
                    .map_err(move |e| FetchError::storage(&name, &e))
                    .boxed()
            }
            Origin::Source(source) => source.stream(blob, 0).await?,
        };
        let sent = Sent { total: self.sent.clone(), here: Arc::default() };
        let counter = sent.clone();
        Ok((parts.inspect_ok(move |part| counter.add(part.len() as u64)).boxed(), sent))
    }
}

/// The piece in which files are read: large enough that the work of a read is not in the system call.
pub(super) const READ_SIZE: usize = 256 * 1024;

/// What one opening of a content has handed out.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    total: Option<Arc<AtomicU64>>,
    here: Arc<AtomicU64>,
}

impl Sent {
    fn add(&self, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
        if let Some(total) = &self.total {
            total.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes handed out so far.
    pub(super) fn bytes(&self) -> u64 {
        self.here.load(Ordering::Relaxed)
    }

    /// Takes back what a failed attempt counted.
    pub(super) fn undo(&self) {
        let here = self.here.swap(0, Ordering::Relaxed);
        if let Some(total) = &self.total {
            total.fetch_sub(here, Ordering::Relaxed);
        }
    }
}
