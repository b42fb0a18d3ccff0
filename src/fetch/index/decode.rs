//! From a blob's bytes to the decoded tar and back to any part of it.
//!
//! [`Scanner`] is fed the whole blob once, in pieces, and emits decoded bytes with a [`Checkpoint`] wherever a new
//! span begins. [`decode_span`] decodes one span alone. What a blob is follows from its first bytes, not from
//! its media type, which registries and builders get wrong.

use super::file::{Format, SpanKind};
pub(crate) use super::gzip::Cut;
use super::gzip::GzipScanner;
use super::zstd::ZstdScanner;
use crate::fetch::error::{FetchError, Side};

/// Spans of gzip layers end at the first block boundary after this many decoded bytes. Smaller spans fetch less
/// for a small file but cost a window each: 10 to 20 KiB compressed, so 0.5 to 1 % of the decoded size here.
pub(super) const GZIP_SPAN: u64 = 2 << 20;

/// Spans of plain layers: nothing is decoded and no window kept, so only the digest (32 bytes) limits them.
const TAR_SPAN: u64 = 1 << 20;

/// Larger spans are not decoded in memory; their layer is fetched whole again. They come from encoders that write
/// one endless deflate block (zlib-ng at level 1).
pub(crate) const MAX_SPAN: u64 = 64 << 20;

/// Decoded bytes travel in pieces of this size.
pub(super) const PIECE: usize = 256 << 10;

/// Where a span begins.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub kind: SpanKind,
    /// First byte of the blob that the span needs.
    pub in_start: u64,
    /// Where the span before ends in the blob; one more than `in_start` if both share a byte.
    pub in_end_before: u64,
    /// Zstd-compressed window, empty if none is needed.
    pub window: Vec<u8>,
}

/// What comes out of a [`Scanner`], in order. The first event is a checkpoint.
#[derive(Debug)]
pub(crate) enum Event {
    Checkpoint(Checkpoint),
    Data(Vec<u8>),
}

/// Where events go; an error ends the scan.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Event) -> Result<(), FetchError>;

/// Decodes a blob while it arrives.
#[derive(Debug)]
pub(crate) enum Scanner {
    /// Not enough bytes yet to tell.
    Unknown(Vec<u8>, Cut),
    Tar {
        at: u64,
    },
    Gzip(Box<GzipScanner>),
    Zstd(Box<ZstdScanner>),
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self::cutting(Cut::Own)
    }

    /// One that cuts gzip layers so.
    pub(crate) fn cutting(cut: Cut) -> Self {
        Self::Unknown(Vec::new(), cut)
    }

    /// Takes the next bytes of the blob.
    pub(crate) fn push(&mut self, input: &[u8], sink: Sink<'_>) -> Result<(), FetchError> {
        match self {
            Self::Unknown(head, _) => {
                head.extend(input);
                if head.len() >= 4 { self.decide(sink) } else { Ok(()) }
            }
            Self::Tar { at } => push_tar(at, input, sink),
            Self::Gzip(gzip) => gzip.push(input, sink),
            Self::Zstd(zstd) => zstd.push(input, sink),
        }
    }

    /// Hands on what is decoded, however little: more may be long in coming.
    pub(crate) fn flush(&mut self, sink: Sink<'_>) -> Result<(), FetchError> {
        match self {
            Self::Unknown(..) | Self::Tar { .. } => Ok(()),
            Self::Gzip(gzip) => gzip.flush(sink),
            Self::Zstd(zstd) => zstd.flush(sink),
        }
    }

    /// The blob is complete: its format, and where its last span ends in it.
    pub(crate) fn finish(mut self, sink: Sink<'_>) -> Result<(Format, u64), FetchError> {
        if matches!(self, Self::Unknown(..)) {
            self.decide(sink)?;
        }
        match self {
            Self::Unknown(..) => Ok((Format::Tar, 0)),
            Self::Tar { at } => Ok((Format::Tar, at)),
            Self::Gzip(gzip) => gzip.finish(sink).map(|end| (Format::TarGzip, end)),
            Self::Zstd(zstd) => zstd.finish(sink).map(|end| (Format::TarZstd, end)),
        }
    }

    fn decide(&mut self, sink: Sink<'_>) -> Result<(), FetchError> {
        let Self::Unknown(head, cut) = self else { return Ok(()) };
        let (head, cut) = (std::mem::take(head), *cut);
        *self = match head.get(..4) {
            Some([0x1f, 0x8b, ..]) => Self::Gzip(Box::new(GzipScanner::new(cut, sink)?)),
            Some([0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]) => {
                Self::Zstd(Box::new(ZstdScanner::new()?))
            }
            _ => Self::Tar { at: 0 },
        };
        self.push(&head, sink)
    }
}

/// Plain tar: cut at fixed places.
fn push_tar(at: &mut u64, mut input: &[u8], sink: Sink<'_>) -> Result<(), FetchError> {
    while !input.is_empty() {
        let into = *at % TAR_SPAN;
        if into == 0 {
            let start = *at;
            let (kind, window) = (SpanKind::Stored, Vec::new());
            sink(Event::Checkpoint(Checkpoint { kind, in_start: start, in_end_before: start, window }))?;
        }
        let room = usize::try_from(TAR_SPAN - into).unwrap_or(usize::MAX);
        let (piece, rest) = input.split_at(room.min(input.len()));
        *at += piece.len() as u64;
        sink(Event::Data(piece.to_vec()))?;
        input = rest;
    }
    Ok(())
}

/// Decodes one span from exactly its bytes of the blob. `window` is the compressed one of the index. What follows the
/// `out_len` bytes in `input` is decoded, too, as far as it goes and up to `more` bytes.
pub(crate) fn decode_span(
    kind: SpanKind,
    input: &[u8],
    window: &[u8],
    out_len: usize,
    more: usize,
) -> Result<Vec<u8>, FetchError> {
    match kind {
        SpanKind::Stored if input.len() == out_len => Ok(input.to_vec()),
        SpanKind::Stored => Err(FetchError::corrupt(Side::Remote, "span has the wrong length")),
        SpanKind::GzipMember => super::gzip::decode(None, input, out_len, more),
        SpanKind::Deflate { bits } => super::gzip::decode(Some((bits, window)), input, out_len, more),
        SpanKind::ZstdFrames => super::zstd::decode(input, out_len, more),
    }
}
