//! A layer's index from a table of contents that its manifest binds: by ranges, from the very first byte.
//!
//! In: a layer's descriptor, whose annotations are as trustworthy as the manifest they stand in. Out: the layer's index
//! in the store, without content. The table is proven by the digest in the annotation:
//!
//! | annotation | digest of |
//! |---|---|
//! | `containerd.io/snapshot/stargz/toc.digest` | the JSON (eStargz; stargz-snapshotter `docs/estargz.md`) |
//! | `io.github.containers.zstd-chunked.manifest-checksum` and `…-position` | the compressed JSON (c/storage) |
//! | `io.containers.zstd-chunked.manifest-checksum` and `…-position` | the compressed JSON (stargz's dialect, and c/storage's before 2022) |
//!
//! stargz writes the first beside the last: then both must hold. Of a compressed table that no annotation proves the JSON
//! is read while it is hashed, and what was made of it is thrown away unless the digest is the one in the annotation.
//!
//! A table that is wrong or cannot be used leaves nothing; the layer can still be fetched whole, which proves it by its
//! own digest.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::error::{Class, FetchError, Side};
use super::index::estargz::{self, Toc};
use super::index::file::Format;
use super::index::toc::{self, Contents, Limits};
use super::index::zstd_chunked::{self, Position};
use super::ingest::decoded_limit;
use super::source::BlobSource;
use super::store::{Stage, Store};
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, Document, parse_document};

const ESTARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";
const CHUNKED: &str = "io.github.containers.zstd-chunked.";
const CHUNKED_STARGZ: &str = "io.containers.zstd-chunked.";
/// Where in an eStargz layer the table begins. The footer, at the layer's end, says so, too, but a round trip later. Our
/// own, and only a hint.
pub const ESTARGZ_TOC_OFFSET: &str = "dev.addonfs.estargz.toc-offset";
/// On a layer of an image that holds tables of eStargz layers: whose table it is.
const TABLE_OF: &str = "containerd.io/snapshot/stargz/layer.digest";
/// What an image's tag has more when it holds the tables.
const TABLES_SUFFIX: &str = "-esgztoc";

/// Largest table: compressed, as it is fetched and held in memory, and its JSON, which is spooled to disk. A million
/// entries make about 45 MiB and 350 MiB.
const MAX_COMPRESSED: u64 = 128 << 20;
const MAX_JSON: u64 = 1 << 30;

/// Tables up to so many bytes share the line with what is fetched ahead: it would be idle for a round trip otherwise, which
/// at 100 Mbit/s and 20 ms is a third of it.
const SMALL_TABLE: u64 = 1 << 20;

/// What is fetched of the end of an eStargz layer, hoping that the table begins in it: a share of the blob (tables of
/// images of Debian packages take 0.4 to 0.7 %), of a large one at most what two round trips of 30 ms cost at 100 Mbit/s.
const END_SHARE: u64 = 140;
const END: std::ops::RangeInclusive<u64> = 32 << 10..=768 << 10;

/// The table that a descriptor binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BoundToc {
    EStargz { json: Digest },
    Chunked { compressed: Digest, json: Option<Digest>, position: Position },
}

impl BoundToc {
    /// What the annotations of `blob` bind, if it is anything that can be used: an image that says two things of a layer
    /// (an error to c/storage), or something malformed, is fetched whole.
    pub(super) fn of(blob: &Descriptor) -> Option<Self> {
        let value = |name: &str| {
            let found = blob.annotations.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.as_str())
        };
        let chunked = |prefix: &str, json| {
            let compressed = value(&format!("{prefix}manifest-checksum"))?;
            let position = value(&format!("{prefix}manifest-position")).and_then(Position::parse);
            Some(compressed.parse().ok().zip(position).map(|(compressed, position)| Self::Chunked {
                compressed,
                json,
                position,
            }))
        };
        let json = value(ESTARGZ).map(str::parse::<Digest>);
        let found = match (json, chunked(CHUNKED, None), chunked(CHUNKED_STARGZ, None)) {
            (None, None, None) => return None,
            (Some(Ok(json)), None, None) => Some(Self::EStargz { json }),
            (None, Some(toc), None) | (None, None, Some(toc)) => toc,
            (Some(Ok(json)), None, Some(_)) => chunked(CHUNKED_STARGZ, Some(json)).flatten(),
            _ => None,
        };
        if found.is_none() {
            tracing::warn!(layer = %blob.digest, "its annotations bind no table of contents that can be used");
        }
        found
    }
}

/// A table's bytes as they came, and how to get the JSON out of them.
struct Fetched {
    bytes: Bytes,
    packing: Packing,
    /// Where the layer's content ends.
    payload_end: u64,
}

enum Packing {
    /// A tar.gz with the JSON in it.
    TarGzip,
    /// A zstd frame of so many decoded bytes.
    Zstd(u64),
}

/// Makes the index of `blob` from the table `bound`. `tag` is the image's, under which tables that are images of their
/// own are found. Wrong bytes are asked for once more: a proxy on the way may have had a bad moment. `fetched` is called
/// when the line is free for more: the table is here, or is so small that it will be at once.
pub(super) async fn index(
    store: &Arc<Store>,
    source: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    bound: &BoundToc,
    tag: Option<&str>,
    fetched: &(impl Fn() + Sync),
) -> Result<(), FetchError> {
    let mut again = true;
    loop {
        let result = index_once(store, source.as_ref(), blob, bound, tag, fetched).await;
        let Err(error) = &result else { return result };
        // Bytes that make no sense may be a mirror's; where there is none they are the blob's own.
        let doubtful = match error.class {
            Class::Corrupt => {
                source.distrust(&blob.digest);
                true
            }
            Class::Protocol => source.distrust(&blob.digest),
            _ => false,
        };
        if !(doubtful && again) {
            return result;
        }
        tracing::warn!(layer = %blob.digest, %error, "its table of contents is asked for again");
        again = false;
    }
}

async fn index_once(
    store: &Arc<Store>,
    source: &dyn BlobSource,
    blob: &Descriptor,
    bound: &BoundToc,
    tag: Option<&str>,
    fetched: &(impl Fn() + Sync),
) -> Result<(), FetchError> {
    let said = match bound {
        BoundToc::EStargz { .. } => toc_offset(blob).map(|offset| blob.size - offset),
        BoundToc::Chunked { position, .. } => Some(position.len),
    };
    if said.is_some_and(|len| len <= SMALL_TABLE) {
        fetched();
    }
    let table = match bound {
        BoundToc::EStargz { .. } => estargz_table(source, blob, tag).await?,
        BoundToc::Chunked { position, .. } => chunked_table(source, blob, *position).await?,
    };
    fetched();
    let limits = Limits { payload_end: table.payload_end, max_content: decoded_limit(store, blob) };
    let (stage, blob, bound) = (Stage::new(store)?, blob.clone(), bound.clone());
    let work = tokio::task::spawn_blocking(move || make(stage, &blob, &bound, &table, limits));
    work.await
        .unwrap_or_else(|_| Err(FetchError::new(Class::Unavailable, Side::Local, "indexing was interrupted")))
}

/// Where in an eStargz layer the table begins, as its descriptor says.
fn toc_offset(blob: &Descriptor) -> Option<u64> {
    let said = blob.annotations.iter().find(|(name, _)| name == ESTARGZ_TOC_OFFSET);
    let offset = said.and_then(|(_, offset)| offset.parse().ok())?;
    blob.size.checked_sub(offset).filter(|len| (1..=MAX_COMPRESSED).contains(len)).map(|_| offset)
}

/// The end of the blob, and more of it if the table begins before that.
async fn estargz_table(
    source: &dyn BlobSource,
    blob: &Descriptor,
    tag: Option<&str>,
) -> Result<Fetched, FetchError> {
    let guess = (blob.size / END_SHARE).clamp(*END.start(), *END.end());
    let end_start = toc_offset(blob).unwrap_or(blob.size.saturating_sub(guess));
    let end = source.range(blob, end_start..blob.size).await?;
    let toc =
        estargz::footer(&end).ok_or_else(|| unusable(blob, "it does not end with an eStargz footer"))?;
    let (offset, footer) = match toc {
        Toc::At { offset, footer } => (offset, footer),
        Toc::Elsewhere { footer } => {
            let bytes = table_image(source, blob, tag).await?;
            return Ok(Fetched {
                bytes,
                packing: Packing::TarGzip,
                payload_end: blob.size.saturating_sub(footer),
            });
        }
    };
    let toc_end = blob.size.saturating_sub(footer);
    let len = toc_end.checked_sub(offset).filter(|len| (1..=MAX_COMPRESSED).contains(len));
    len.ok_or_else(|| unusable(blob, "its footer points nowhere"))?;
    let here = end.len() - usize::try_from(footer).unwrap_or(0);
    let bytes = match offset.checked_sub(end_start) {
        Some(at) => end.slice(usize::try_from(at).unwrap_or(0).min(here)..here),
        None => {
            let before = source.range(blob, offset..end_start).await?;
            let mut all = BytesMut::from(&before[..]);
            all.extend_from_slice(end.get(..here).unwrap_or_default());
            all.freeze()
        }
    };
    Ok(Fetched { bytes, packing: Packing::TarGzip, payload_end: offset })
}

/// The table of `blob` from the image that holds the tables of this one.
async fn table_image(
    source: &dyn BlobSource,
    blob: &Descriptor,
    tag: Option<&str>,
) -> Result<Bytes, FetchError> {
    let missing = |what: &str| unusable(blob, &format!("its table is in another image, and {what}"));
    let tag = tag.ok_or_else(|| missing("without this image's tag that has no name"))?;
    let tag = format!("{tag}{TABLES_SUFFIX}");
    let found = source.tagged(&tag).await?.ok_or_else(|| missing(&format!("there is no tag {tag}")))?;
    let manifest = match parse_document(&found.media_type, &found.content) {
        Ok(Document::Manifest(manifest)) => manifest,
        _ => return Err(missing(&format!("{tag} is no image"))),
    };
    let of_this = |layer: &&Descriptor| {
        layer.annotations.iter().any(|(name, value)| name == TABLE_OF && *value == blob.digest.to_string())
    };
    let layer =
        manifest.layers.iter().find(of_this).ok_or_else(|| missing(&format!("{tag} does not hold it")))?;
    // Proven by its own digest here, and by the one that counts when it is unpacked.
    source.blob(layer, MAX_COMPRESSED).await.map(|bytes| bytes.as_bytes().clone())
}

async fn chunked_table(
    source: &dyn BlobSource,
    blob: &Descriptor,
    position: Position,
) -> Result<Fetched, FetchError> {
    let Position { offset, len, decoded } = position;
    let end = offset
        .checked_add(len)
        .filter(|end| *end <= blob.size && len <= MAX_COMPRESSED && decoded <= MAX_JSON);
    let end = end.ok_or_else(|| unusable(blob, "the place of its table is out of range"))?;
    let bytes = source.range(blob, offset..end).await?;
    Ok(Fetched { bytes, packing: Packing::Zstd(decoded), payload_end: offset })
}

fn unusable(blob: &Descriptor, what: &str) -> FetchError {
    FetchError::new(Class::Protocol, Side::Remote, format!("layer {}: {what}", blob.digest))
}

/// Proves the table, reads it, and publishes the index.
fn make(
    stage: Stage,
    blob: &Descriptor,
    bound: &BoundToc,
    fetched: &Fetched,
    limits: Limits,
) -> Result<(), FetchError> {
    let named = |error: FetchError| error.context(format!("layer {}", blob.digest));
    let table = match bound {
        BoundToc::Chunked { compressed, .. } => {
            VerifiedBytes::check(fetched.bytes.clone(), compressed).map_err(named)?
        }
        BoundToc::EStargz { .. } => VerifiedBytes::proven(fetched.bytes.clone()),
    };
    let mut json = Spool::new(&stage)?;
    match fetched.packing {
        Packing::TarGzip => estargz::extract(&table, MAX_JSON, &mut json),
        Packing::Zstd(decoded) => zstd_chunked::extract(&table, decoded, &mut json),
    }
    .map_err(named)?;
    let map = json.finish()?;
    let format = match bound {
        BoundToc::EStargz { .. } => Format::EStargz,
        BoundToc::Chunked { .. } => Format::ZstdChunked,
    };
    // It is read while it is hashed; what was made of it is published only if the digest holds.
    let (digest, contents) = std::thread::scope(|scope| {
        let digest = scope.spawn(|| Digest::of(&map));
        let contents = toc::read(&map, blob, format, limits, stage.directory());
        (digest.join(), contents)
    });
    let digest = digest.map_err(|_| {
        FetchError::new(Class::Unavailable, Side::Local, "hashing a table of contents was interrupted")
    })?;
    if let BoundToc::EStargz { json } | BoundToc::Chunked { json: Some(json), .. } = bound
        && *json != digest
    {
        let what =
            format!("layer {}: its table of contents is {digest}, and the manifest says {json}", blob.digest);
        return Err(FetchError::corrupt(Side::Remote, what));
    }
    // A table that was proven and cannot be used will not get better: not Corrupt, which is asked for again.
    let contents = contents.map_err(|error| {
        if error.class == Class::Corrupt { unusable(blob, &error.message) } else { error }
    })?;
    drop(map);
    publish(stage, blob, contents)
}

pub(super) fn publish(stage: Stage, blob: &Descriptor, contents: Contents) -> Result<(), FetchError> {
    let path = stage.directory().join("index");
    let fail = |error: std::io::Error| FetchError::storage("cannot write the layer index", &error);
    let mut out = BufWriter::new(File::create(&path).map_err(fail)?);
    contents.entries.finish(contents.spans, &contents.summary, &mut out)?;
    // Not synced: it has a checksum, and the table can be had again by ranges.
    out.flush().map_err(fail)?;
    stage.publish(&blob.digest, &path)
}

/// The JSON on its way to the disk.
struct Spool {
    file: BufWriter<File>,
    len: u64,
}

impl Spool {
    fn new(stage: &Stage) -> Result<Self, FetchError> {
        let file = tempfile::tempfile_in(stage.directory()).map_err(|error| spool_failed(&error))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), len: 0 })
    }

    /// The JSON in memory that the kernel can take back.
    #[allow(unsafe_code, reason = "memmap2 cannot know that nobody changes the file")]
    fn finish(self) -> Result<memmap2::Mmap, FetchError> {
        let file = self.file.into_inner().map_err(|error| spool_failed(error.error()))?;
        // SAFETY: the file has no name, and this is its only descriptor.
        unsafe { memmap2::Mmap::map(&file) }.map_err(|error| spool_failed(&error))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.len += bytes.len() as u64;
        if self.len > MAX_JSON {
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "over 1 GiB of JSON"));
        }
        self.file.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn spool_failed(error: &std::io::Error) -> FetchError {
    FetchError::storage("cannot keep a table of contents", error)
}
