//! A layer as its readers see it: an index, and proven bytes of any file in it.
//!
//! In: a descriptor and where the blob is. Out: the [`LayerIndex`], [`VerifiedBytes`] of files, and open files for
//! passthrough. A read is answered from the store where possible, at once and on the caller's thread; otherwise
//! the spans that are missing are fetched, each only once however many wait for it, in as few HTTP ranges as
//! adjacency allows, and the fetch goes on if nobody waits any more.
//!
//! | file | what |
//! |---|---|
//! | this | known, ingested, read, backing |
//! | `local` | what the store can answer |
//! | `flight` | fetching spans, once each |
//! | `ahead`, `fill` | fetching what nobody asked for: neighbours, everything |
//! | `record`, `landmark`, `head` | … what an earlier start read, what the builder says that one reads |
//! | `arriving` | a layer before it is proven, for streaming trees only |
//! | `landing`, `headers` | what was fetched: decoded, proven, kept, compared with the table of contents |
//! | `contents` | what of the store is one layer's |
//! | `proven`, `learned` | digests of decoded content that the index does not know |
//! | `assemble` | making a large file whole again |
//!
//! Must not know of FUSE nor of how layers are merged.

mod ahead;
pub(crate) mod arriving;
mod assemble;
mod contents;
mod fill;
mod flight;
pub(crate) mod head;
mod headers;
mod landing;
mod landmark;
mod learned;
mod local;
mod proven;
mod record;

pub use arriving::Arriving;
pub(crate) use contents::Contents;
pub use fill::Filling;
pub(in crate::fetch) use flight::Flights;
pub use record::Recording;

use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use self::ahead::Ahead;
use self::head::Head;
use self::learned::Learned;
use super::bound_toc::{self, BoundToc};
use super::error::{Class, FetchError, Side};
use super::index::LayerIndex;
use super::index::file::FileRecord;
pub use super::ingest::Progress;
use super::soci;
use super::source::BlobSource;
use super::store::{Found, Kind, LARGE_FILE, Store};
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// How a layer that was not indexed before is to be had.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The image's tag, if it has one: a table of contents may be in an image named after it.
    pub tag: Option<&'a str>,
    /// The layer's zTOC, if there is one that is trusted.
    pub ztoc: Option<&'a Descriptor>,
    /// Blobs up to so many bytes are fetched whole even if they could be read by ranges.
    pub whole_up_to: u64,
    /// Who wants to see it while it arrives.
    pub arriving: Option<&'a Arriving>,
    /// Whether [`Layer::fetch_to_landmark`] or a profile's replay will follow: then what it brings may be fetched ahead.
    pub head: bool,
}

impl Default for Opening<'_> {
    /// No tag, no zTOC, 1280 KiB, no head.
    fn default() -> Self {
        Self { tag: None, ztoc: None, whole_up_to: SMALL_BLOB, arriving: None, head: false }
    }
}

/// A table of contents and a first chunk are three round trips to a registry that takes 10 ms of its own, 100 ms on a
/// fair line, in which 100 Mbit/s bring this much.
const SMALL_BLOB: u64 = 1280 << 10;

/// Most bytes one [`Layer::read`] returns; the kernel asks for 1 MiB at most.
const MAX_READ: u64 = 16 << 20;

/// The answer to a read.
pub enum Read {
    /// The bytes were there.
    Ready(VerifiedBytes),
    /// They have to be fetched or hashed first. To be awaited inside a tokio runtime; dropping it gives up the
    /// answer, not the fetch.
    Pending(BoxFuture<'static, Result<VerifiedBytes, FetchError>>),
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(bytes) => write!(f, "Ready({bytes:?})"),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

/// Whether there is an index now; one that cannot be made from a table of contents leaves the next way.
fn usable(blob: &Descriptor, made: Result<(), FetchError>) -> Result<bool, FetchError> {
    match made {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.class, Class::Corrupt | Class::Protocol | Class::NotFound) => {
            tracing::warn!(layer = %blob.digest, %error, "its table of contents is not used");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// One layer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Layer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    source: Arc<dyn BlobSource>,
    blob: Descriptor,
    index: LayerIndex,
    /// Where the index leaves something to learn.
    learned: Option<Learned>,
    /// Requests under way.
    requests: Semaphore,
    ahead: Ahead,
    /// Who wants to know what is read.
    recorder: RwLock<Option<Arc<record::Recorder>>>,
    /// The start of the blob, until what is wanted of it was taken.
    head: Mutex<Option<Arc<Head>>>,
    /// Why nothing of the layer is read any more: its table of contents and its tar disagree.
    refused: OnceLock<String>,
}

/// A part of a file that was asked for, clamped to what there is.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    file: FileRecord,
    offset: u64,
    len: u64,
}

impl Layer {
    /// The layer, if it was indexed before: no network, a few milliseconds. A damaged index is removed, and the
    /// layer is then not known. A descriptor with another size than the blob of its digest has is refused, and
    /// does no harm to other images with that layer.
    pub fn known(
        store: &Arc<Store>,
        source: Arc<dyn BlobSource>,
        blob: &Descriptor,
    ) -> Result<Option<Self>, FetchError> {
        let path = store.index_path(&blob.digest);
        if !path.exists() {
            return Ok(None);
        }
        let index = match LayerIndex::open(&path) {
            Ok(index) if *index.layer() == blob.digest && index.blob_size() == blob.size => index,
            Ok(index) if *index.layer() == blob.digest => {
                let what = format!(
                    "layer {}: the manifest says {} bytes, and the blob of this digest has {}",
                    blob.digest,
                    blob.size,
                    index.blob_size()
                );
                return Err(FetchError::corrupt(Side::Remote, what));
            }
            Err(error) if error.class == Class::Storage => return Err(error),
            other => {
                let reason =
                    other.map_or_else(|error| error.message, |_| "it is of another layer".to_owned());
                tracing::warn!(layer = %blob.digest, reason, "a layer index is unusable and will be made again");
                store.discard_index(&blob.digest);
                return Ok(None);
            }
        };
        store.touch_layer(&blob.digest);
        let (requests, ahead) = (Semaphore::new(flight::REQUESTS), Ahead::new(index.span_count()));
        let learned = Learned::of(&index, &store.learned_path(&blob.digest));
        let inner = Inner {
            store: Arc::clone(store),
            source,
            blob: blob.clone(),
            index,
            learned,
            requests,
            ahead,
            recorder: RwLock::default(),
            head: Mutex::default(),
            refused: OnceLock::new(),
        };
        Ok(Some(Self(Arc::new(inner))))
    }

    /// The layer, indexed unless it was before: from the table of contents that its descriptor binds, from its zTOC, or
    /// from the whole blob, fetched. Of several callers one fetches, the others wait. Dropping the future ends the fetch and leaves
    /// nothing behind.
    pub async fn open(
        store: &Arc<Store>,
        source: Arc<dyn BlobSource>,
        blob: &Descriptor,
        opening: Opening<'_>,
        progress: &Progress,
    ) -> Result<Self, FetchError> {
        let opened = Self::open_unwatched(store, source, blob, opening, progress).await;
        match (opening.arriving, &opened) {
            (Some(arriving), Ok(layer)) => arriving.proven(layer),
            (Some(arriving), Err(error)) => arriving.fail(error.clone()),
            (None, _) => {}
        }
        opened
    }

    async fn open_unwatched(
        store: &Arc<Store>,
        source: Arc<dyn BlobSource>,
        blob: &Descriptor,
        opening: Opening<'_>,
        progress: &Progress,
    ) -> Result<Self, FetchError> {
        let turn = store.ingest_turn(&blob.digest);
        let _turn = turn.lock().await;
        let count = || progress.done.fetch_add(blob.size, std::sync::atomic::Ordering::Relaxed);
        if let Some(layer) = Self::known(store, Arc::clone(&source), blob)? {
            count();
            return Ok(layer);
        }
        let head = OnceLock::new();
        if Self::index_by_table(store, &source, blob, opening, &head).await? {
            count();
        } else {
            super::ingest::ingest(store, &source, blob, Some(progress), opening.arriving).await?;
        }
        let layer = Self::known(store, source, blob)?.ok_or_else(|| {
            FetchError::new(Class::Storage, Side::Local, format!("the index of {} is gone", blob.digest))
        })?;
        if let Some(head) = head.into_inner().flatten() {
            *layer.0.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(head));
        }
        Ok(layer)
    }

    /// Indexes the layer by its table of contents, if it has one that does.
    async fn index_by_table(
        store: &Arc<Store>,
        source: &Arc<dyn BlobSource>,
        blob: &Descriptor,
        opening: Opening<'_>,
        head: &OnceLock<Option<Head>>,
    ) -> Result<bool, FetchError> {
        if blob.size <= opening.whole_up_to {
            return Ok(false);
        }
        let fetched = || {
            head.get_or_init(|| opening.head.then(|| Head::fetch(source, blob)).flatten());
        };
        if let Some(bound) = BoundToc::of(blob)
            && usable(blob, bound_toc::index(store, source, blob, &bound, opening.tag, &fetched).await)?
        {
            return Ok(true);
        }
        match opening.ztoc {
            Some(ztoc) => usable(blob, soci::index(store, source, blob, ztoc).await),
            None => Ok(false),
        }
    }

    /// Whether somebody who opens the layer should look for its zTOC first: it is not known, too large to be fetched whole
    /// at once, and its descriptor binds no table of contents.
    pub fn wants_ztoc(store: &Store, blob: &Descriptor, opening: Opening<'_>) -> bool {
        blob.size > opening.whole_up_to
            && BoundToc::of(blob).is_none()
            && !store.index_path(&blob.digest).exists()
    }

    /// What is in the layer.
    pub fn index(&self) -> &LayerIndex {
        &self.0.index
    }

    /// The descriptor of the blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.0.blob
    }

    /// Up to `len` bytes of file number `file` from `offset`: fewer at the end of the file, none behind it, and
    /// never more than 16 MiB.
    pub fn read(&self, file: u32, offset: u64, len: u32) -> Read {
        let Some(record) = self.0.file(file) else {
            let what = format!("layer {} has no file number {file}", self.0.blob.digest);
            let error = FetchError::new(Class::NotFound, Side::Local, what);
            return Read::Pending(std::future::ready(Err(error)).boxed());
        };
        if let Some(reason) = self.0.refused.get() {
            let error = FetchError::corrupt(Side::Remote, format!("layer {}: {reason}", self.0.blob.digest));
            return Read::Pending(std::future::ready(Err(error)).boxed());
        }
        let len = u64::from(len).min(record.size.saturating_sub(offset)).min(MAX_READ);
        let wanted = Wanted { file: record, offset, len };
        self.0.note(&wanted);
        match self.0.local(&wanted) {
            Some(bytes) => Read::Ready(bytes),
            None => Read::Pending(Arc::clone(&self.0).answer(wanted).boxed()),
        }
    }

    /// Whether the content of file number `file` is in the store.
    pub fn has_file(&self, file: u32) -> bool {
        self.0.file(file).is_some_and(|record| self.0.file_is_here(&record))
    }

    /// What the store keeps file number `file` in, once all of it is here.
    pub(crate) fn item(&self, file: u32) -> Option<(Kind, Digest)> {
        let record = self.0.file(file)?;
        match record.pack_offset {
            Some(_) => Some((Kind::Pack, self.0.blob.digest)),
            None => Some((Kind::File, record.digest?)),
        }
    }

    /// The plain file with the content of file number `file`, for the kernel to read itself, if the file is large
    /// enough for that and all of it is here and proven. `None` can become `Some` later.
    pub fn backing(&self, file: u32) -> Option<Arc<File>> {
        let sound = self.0.refused.get().is_none();
        let record = self.0.file(file).filter(|record| sound && record.size >= LARGE_FILE)?;
        let digest = record.digest?;
        match self.0.store.find(&digest, record.size, true) {
            Found::Proven(whole) => {
                // The kernel reads by itself from now on, and tells nobody what.
                self.0.note(&Wanted { file: record, offset: 0, len: record.size });
                Some(Arc::clone(whole.file()))
            }
            Found::Unproven => {
                self.0.prove_in_background(digest);
                None
            }
            Found::Missing => None,
        }
    }
}
