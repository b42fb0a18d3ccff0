//! A layer fetched once: network, decoder and writer at work at the same time.
//!
//! ```text
//! BlobSource::whole --(bounded)--> decode: hash the blob, inflate, checkpoints --(bounded)--> walk: spans'
//! digests, tar headers, files' digests, content into the stage; index --> published if the blob's digest held
//! ```
//! Memory is what the two channels and the spools hold, whatever the layer. Nothing of the layer can be seen
//! before its digest was checked (but by who asked for exactly that: `layer::arriving`), and nothing stays if it did
//! not match.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use futures_util::StreamExt;

use super::error::{Class, FetchError, Side};
use super::index::build::{IndexBuilder, NewSpan, SpanBuilder, Summary};
use super::index::decode::{Checkpoint, Event, Scanner};
use super::index::file::{Format, Proof};
use super::index::tar::{Decoded, MemberKind, Walker};
use super::index::{estargz, zstd_chunked};
use super::layer::arriving::{Arriving, Passing};
use super::source::BlobSource;
use super::store::{Stage, Store};
use crate::policy::digest::{Digest, Hasher};
use crate::policy::image::Descriptor;

/// Pieces of the blob on their way to the decoder. Sources send up to 256 KiB each.
const BLOB_PIECES: usize = 16;

/// Decoded pieces (256 KiB) on their way to the writer: enough to outlast one slow file creation.
const DECODED_PIECES: usize = 16;

/// Defaults of `max_decoded`, see [`StoreOptions`](super::store::StoreOptions).
const DECODED_RATIO: u64 = 128;
const DECODED_LEAST: u64 = 4 << 30;
const DECODED_MOST: u64 = 1 << 40;

/// How far fetching has come, in bytes of blobs. Shared by all layers of a source.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes received.
    pub done: AtomicU64,
    /// Bytes there are in all, as far as known. Set by who knows all layers.
    pub total: AtomicU64,
}

impl Progress {
    /// Nothing done of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { done: AtomicU64::new(0), total: AtomicU64::new(total) }
    }
}

/// Fetches `blob` and publishes its index and content in the store. Wrong bytes are fetched again as long as there is
/// another place for them. `arriving` is told what passes, the first time.
pub(super) async fn ingest(
    store: &Arc<Store>,
    source: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    progress: Option<&Progress>,
    arriving: Option<&Arriving>,
) -> Result<(), FetchError> {
    loop {
        match ingest_once(store, source, blob, progress, arriving).await {
            Err(error) if error.class == Class::Corrupt && source.distrust(&blob.digest) => {
                tracing::warn!(layer = %blob.digest, %error, "it is fetched from elsewhere");
                if let Some(arriving) = arriving {
                    arriving.fail(error);
                }
            }
            result => return result,
        }
    }
}

async fn ingest_once(
    store: &Arc<Store>,
    source: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    progress: Option<&Progress>,
    arriving: Option<&Arriving>,
) -> Result<(), FetchError> {
    let stage = Stage::new(store)?;
    let passing = arriving.map_or_else(|| Ok(Passing::unwatched()), |arriving| arriving.begin(&stage))?;
    let (limit, watched) = (decoded_limit(store, blob), passing.is_watched());
    let (to_decoder, from_network) = tokio::sync::mpsc::channel(BLOB_PIECES);
    let (to_writer, from_decoder) = sync_channel(DECODED_PIECES);
    let decoding = {
        let blob = blob.clone();
        tokio::task::spawn_blocking(move || decode(&blob, limit, watched, from_network, &to_writer))
    };
    let writing = tokio::task::spawn_blocking(move || write(stage, limit, from_decoder, &passing));
    let counted = Counted { progress, bytes: AtomicU64::new(0) };
    let received = receive(source, blob, &counted, to_decoder).await;
    let (decoded, written) = (join(decoding.await), join(writing.await));
    // In this order: a broken network explains a short blob, a wrong digest explains broken content, and what
    // cannot be decoded cannot be walked.
    received?;
    let named = |error: FetchError| error.context(format!("layer {}", blob.digest));
    let format = decoded?.content.map_err(named)?;
    let written = written.map_err(named)?;
    let format = format.ok_or_else(stopped)?;
    let blob = blob.clone();
    join(tokio::task::spawn_blocking(move || written.publish(&blob, format)).await)?;
    counted.keep();
    // Not waited for: until it is done the catalog says so, and content is proven again after a power cut.
    let store = Arc::downgrade(store);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = Store::sync(&store) {
            tracing::warn!(%error, "cached content is not durable yet");
        }
    });
    Ok(())
}

/// Most bytes that `blob` may decode to.
pub(super) fn decoded_limit(store: &Store, blob: &Descriptor) -> u64 {
    let usual = || blob.size.saturating_mul(DECODED_RATIO).clamp(DECODED_LEAST, DECODED_MOST);
    store.options().max_decoded.unwrap_or_else(usual)
}

/// A panic of a stage is an error of ours, not an end of the daemon.
fn join<T>(result: Result<Result<T, FetchError>, tokio::task::JoinError>) -> Result<T, FetchError> {
    result.unwrap_or_else(|error| {
        Err(FetchError::new(Class::Storage, Side::Local, format!("indexing a layer failed: {error}")))
    })
}

/// What one layer added to the progress; taken back if the layer comes to nothing.
struct Counted<'a> {
    progress: Option<&'a Progress>,
    bytes: AtomicU64,
}

impl Counted<'_> {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = self.progress {
            progress.done.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn keep(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(progress) = self.progress {
            progress.done.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

async fn receive(
    source: &Arc<dyn BlobSource>,
    blob: &Descriptor,
    counted: &Counted<'_>,
    to_decoder: tokio::sync::mpsc::Sender<Bytes>,
) -> Result<(), FetchError> {
    let mut stream = source.whole(blob).await?;
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        counted.add(piece.len() as u64);
        if to_decoder.send(piece).await.is_err() {
            // The decoder has given up; its own error says why.
            break;
        }
    }
    Ok(())
}

/// What the decoder knows at the end: the blob was what its digest says, and whether it could be decoded.
struct DecodedBlob {
    /// No format: the writer stopped taking, and its own error says why.
    content: Result<Option<Format>, FetchError>,
}

/// Hashes and decodes the blob. Goes on hashing when decoding fails, because a wrong digest is the better reason. With
/// `watched` nothing that is decoded waits for more.
fn decode(
    blob: &Descriptor,
    limit: u64,
    watched: bool,
    mut input: tokio::sync::mpsc::Receiver<Bytes>,
    output: &SyncSender<Step>,
) -> Result<DecodedBlob, FetchError> {
    let (mut hasher, mut size, mut scanner) = (Hasher::new(), 0, Some(Scanner::new()));
    let mut ending = Ending::default();
    let mut failure = stopped();
    let writer_gone = Cell::new(false);
    let send = |step| {
        output.send(step).map_err(|_| {
            writer_gone.set(true);
            stopped()
        })
    };
    let mut decoded = 0;
    // Counted here and not after each piece of the blob: 256 KiB of zstd can stand for gigabytes.
    let sink = &mut |event| {
        if let Event::Data(data) = &event {
            decoded += data.len() as u64;
            if decoded > limit {
                return Err(too_large(limit));
            }
        }
        send(Step::Event(event))
    };
    while let Some(piece) = input.blocking_recv() {
        hasher.update(&piece);
        ending.add(&piece);
        size += piece.len() as u64;
        if size > blob.size {
            return Err(wrong_size(blob, "more"));
        }
        let Some(decoding) = &mut scanner else { continue };
        let mut pushed = decoding.push(&piece, sink);
        if watched && input.is_empty() {
            pushed = pushed.and_then(|()| decoding.flush(sink));
        }
        if let Err(error) = pushed {
            (failure, scanner) = (error, None);
        }
    }
    if size < blob.size {
        return Err(wrong_size(blob, "less"));
    }
    let digest = hasher.finish();
    if digest != blob.digest {
        let what = format!("layer {}: the registry sent something else ({digest})", blob.digest);
        return Err(FetchError::corrupt(Side::Remote, what));
    }
    let content = match scanner {
        Some(scanner) => {
            let finished = scanner.finish(sink);
            finished.and_then(|(format, in_end)| send(Step::End { in_end }).map(|()| ending.format(format)))
        }
        None => Err(failure),
    };
    let content = if writer_gone.get() { Ok(None) } else { content.map(Some) };
    Ok(DecodedBlob { content })
}

/// The last bytes of a blob, which say whether it is more than a tar in gzip or zstd.
#[derive(Default)]
struct Ending(Vec<u8>);

impl Ending {
    const LEN: usize =
        if estargz::FOOTER > zstd_chunked::FOOTER { estargz::FOOTER } else { zstd_chunked::FOOTER };

    fn add(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece.get(piece.len().saturating_sub(Self::LEN)..).unwrap_or_default());
        self.0.drain(..self.0.len().saturating_sub(Self::LEN));
    }

    fn format(&self, decoded: Format) -> Format {
        match decoded {
            Format::TarGzip if estargz::footer(&self.0).is_some() => Format::EStargz,
            Format::TarZstd if zstd_chunked::is_footer(&self.0) => Format::ZstdChunked,
            other => other,
        }
    }
}

fn wrong_size(blob: &Descriptor, how: &str) -> FetchError {
    let what = format!("layer {}: the registry sent {how} than {} bytes", blob.digest, blob.size);
    FetchError::corrupt(Side::Remote, what)
}

fn too_large(limit: u64) -> FetchError {
    let what =
        format!("layer decodes to more than {limit} bytes: raise cache.max_decoded if it is to be used");
    FetchError::new(Class::Protocol, Side::Remote, what)
}

/// The other stage has ended; its own error says why.
fn stopped() -> FetchError {
    FetchError::corrupt(Side::Remote, "content could not be indexed")
}

/// What the decoder tells the writer.
enum Step {
    Event(Event),
    /// The blob was decoded to its end, and its last span ends there.
    End {
        in_end: u64,
    },
}

/// The decoded tar as it arrives; digests and records the spans on the way.
struct Incoming {
    input: Receiver<Step>,
    piece: Vec<u8>,
    read: usize,
    /// Position in the decoded tar, of what arrived.
    at: u64,
    /// The span that is arriving.
    open: Option<(Checkpoint, u64)>,
    hasher: Hasher,
    spans: SpanBuilder,
    ended: bool,
}

impl Decoded for Incoming {
    fn fill(&mut self) -> Result<&[u8], FetchError> {
        while self.read == self.piece.len() && !self.ended {
            match self.input.recv().map_err(|_| stopped())? {
                Step::Event(Event::Data(piece)) => {
                    self.hasher.update(&piece);
                    self.at += piece.len() as u64;
                    (self.piece, self.read) = (piece, 0);
                }
                Step::Event(Event::Checkpoint(checkpoint)) => {
                    self.close(checkpoint.in_end_before)?;
                    self.open = Some((checkpoint, self.at));
                }
                Step::End { in_end } => {
                    self.close(in_end)?;
                    self.ended = true;
                }
            }
        }
        Ok(self.piece.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.read = (self.read + n).min(self.piece.len());
    }
}

impl Incoming {
    /// Records the span that ends here, unless nothing came out of it.
    fn close(&mut self, in_end: u64) -> Result<(), FetchError> {
        let Some((checkpoint, out_start)) = self.open.take() else { return Ok(()) };
        let digest = std::mem::take(&mut self.hasher).finish();
        if self.at == out_start {
            return Ok(());
        }
        self.spans.span(&NewSpan {
            kind: checkpoint.kind,
            in_start: checkpoint.in_start,
            in_end,
            out_start,
            out_len: self.at - out_start,
            proof: Proof::Decoded(digest),
            window: checkpoint.window,
            skip: 0,
            entry: None,
        })
    }
}

/// Everything of a layer, staged.
struct Written {
    stage: Stage,
    entries: IndexBuilder,
    spans: SpanBuilder,
    decoded_size: u64,
}

/// Walks the tar and stages what is in it.
fn write(
    mut stage: Stage,
    limit: u64,
    input: Receiver<Step>,
    passing: &Passing,
) -> Result<Written, FetchError> {
    let spans = SpanBuilder::new(stage.directory());
    let mut entries = IndexBuilder::new(stage.directory());
    let incoming = Incoming {
        input,
        piece: Vec::new(),
        read: 0,
        at: 0,
        open: None,
        hasher: Hasher::new(),
        spans,
        ended: false,
    };
    let (mut walker, mut logical) = (Walker::new(incoming), 0_u64);
    while let Some(member) = walker.next()? {
        let mut number = 0;
        if let MemberKind::File { size, extents } = &member.kind {
            // Holes cost nothing to send but have to be hashed and written.
            logical = logical.saturating_add(*size);
            if logical > limit {
                return Err(too_large(limit));
            }
            let mut content = stage.begin(*size)?;
            passing.member(&member, &stage)?;
            walker.data(|offset, bytes| {
                stage.write(&mut content, offset, bytes)?;
                passing.wrote(offset + bytes.len() as u64, &stage);
                Ok(())
            })?;
            let staged = stage.end(content)?;
            passing.staged(*size, &staged, &mut stage)?;
            number = entries.file(Some(&staged.digest), *size, staged.pack_offset, extents)?;
        } else {
            passing.member(&member, &stage)?;
        }
        entries.entry(&member, number)?;
    }
    walker.drain()?;
    let incoming = walker.into_input();
    Ok(Written { stage, entries, spans: incoming.spans, decoded_size: incoming.at })
}

impl Written {
    /// Writes the index and moves all into place. The blob's digest was checked.
    fn publish(self, blob: &Descriptor, format: Format) -> Result<(), FetchError> {
        let path: PathBuf = self.stage.directory().join("index");
        let fail = |error: std::io::Error| FetchError::storage("cannot write the layer index", &error);
        let mut out = BufWriter::new(File::create(&path).map_err(fail)?);
        let summary = Summary {
            layer: blob.digest,
            blob_size: blob.size,
            decoded_size: self.decoded_size,
            pack_size: self.stage.pack_size(),
            format,
        };
        self.entries.finish(self.spans, &summary, &mut out)?;
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(fail)?;
        let layer: Digest = blob.digest;
        self.stage.publish_durably(&layer, &path)
    }
}
