//! The index on disk: one flat little-endian file, memory-mapped.
//!
//! ```text
//! 0    "addnfsLI"                     magic
//! 8    u32 version, u32 format        format: 0 tar, 1 tar+gzip, 2 tar+zstd, 3 eStargz, 4 zstd:chunked
//! 16   [32] digest of the blob        48 u64 its size    56 u64 decoded size    64 u64 size of the pack
//! 72   7 x (u64 offset, u64 length)   the sections below, each a table of fixed records unless said otherwise
//! 184  entries (48)  strings (bytes)  xattrs (16)  files (64)  extents (24)  spans (88)  windows (bytes)
//! end  [32] sha256 of everything before
//! ```
//! Opening proves the digest and checks every record once (about 3 ms for 30,000 entries), so that damage on disk is an error at
//! open, and everything later is plain lookups that stay inside the mapping whatever they find. The design
//! asked for an opening in constant time; a checksum per section would defer the same work to the first `ls`.
//! An unknown version is refused: the layer is then indexed again.
//!
//! An index that was made from a table of contents (`toc`) has one span a chunk. Its *decoded tar* is then only the
//! chunks, one after the other: the headers between them are nobody's content.
//!
//! An index that was made from a SOCI zTOC (`ztoc`) knows spans by the digest of their *encoded* bytes, and no digests of
//! files. What the decoded bytes are is learned when they are decoded, and kept beside the index
//! (`../layer/learned.rs`).

use std::fs::File;
use std::path::Path;

use super::entry::{Entry, EntryKind, Xattrs};
use super::sparse::Extent;
use crate::fetch::error::{FetchError, Side};
use crate::policy::digest::Digest;

pub(super) const MAGIC: &[u8; 8] = b"addnfsLI";
/// The version of layer indexes. Raise it with every change of the layout, and of which files a layer has: merged trees
/// name files by their number in the index.
pub const VERSION: u32 = 3;
pub(super) const HEADER: usize = 184;
const SECTIONS_AT: usize = 72;
const DIGEST: usize = 32;
/// [`FileRecord::pack_offset`] of a file that is not in the pack.
pub(super) const NOT_PACKED: u64 = u64::MAX;
/// Flag of a file whose digest is not known.
pub(super) const DIGEST_UNKNOWN: u32 = 1;

/// The sections, in their order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Section {
    Entries,
    Strings,
    Xattrs,
    Files,
    Extents,
    Spans,
    Windows,
}

/// How many sections there are.
pub(super) const SECTIONS: usize = 7;

impl Section {
    /// Size of one record.
    pub(super) const fn record(self) -> usize {
        match self {
            Self::Entries => 48,
            Self::Strings | Self::Windows => 1,
            Self::Xattrs => 16,
            Self::Files => 64,
            Self::Extents => 24,
            Self::Spans => 88,
        }
    }

    const ALL: [Self; SECTIONS] =
        [Self::Entries, Self::Strings, Self::Xattrs, Self::Files, Self::Extents, Self::Spans, Self::Windows];
}

/// How the blob is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Plain tar.
    Tar,
    /// Tar in one or more gzip members.
    TarGzip,
    /// Tar in one or more zstd frames.
    TarZstd,
    /// Tar+gzip with a table of contents, in a member for each chunk (stargz-snapshotter `docs/estargz.md`).
    EStargz,
    /// Tar+zstd with a table of contents, in a frame for each chunk, of either dialect.
    ZstdChunked,
}

impl Format {
    const ALL: [Self; 5] = [Self::Tar, Self::TarGzip, Self::TarZstd, Self::EStargz, Self::ZstdChunked];

    pub(super) const fn code(self) -> u32 {
        self as u32
    }

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Whether an entry belongs to the format and not to the layer: eStargz's table of contents and its marks of
    /// what to fetch ahead, which stargz's zstd:chunked has, too.
    pub(crate) fn hides(self, path: &[u8]) -> bool {
        matches!(self, Self::EStargz | Self::ZstdChunked)
            && matches!(path, b"stargz.index.json" | b".prefetch.landmark" | b".no.prefetch.landmark")
    }
}

/// What the index says about a regular file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// Its number.
    pub number: u32,
    /// The number of its entry.
    pub entry: u32,
    /// Of the content, holes included; `None` until it is learned.
    pub digest: Option<Digest>,
    pub size: u64,
    /// Where the content lies in the layer's pack; `None` for files kept on their own.
    pub pack_offset: Option<u64>,
    pub(super) extent_first: u32,
    pub(super) extent_count: u32,
}

/// How a span is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// The blob's bytes are the decoded bytes.
    Stored,
    /// Starts at the header of a gzip member.
    GzipMember,
    /// Starts at a deflate block: `bits` of the first byte belong to it, and the window is needed.
    Deflate { bits: u8 },
    /// Starts at the header of a zstd frame.
    ZstdFrames,
}

/// What proves a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The digest of the decoded bytes.
    Decoded(Digest),
    /// The digest of the blob's bytes from `in_start` up to `in_end`, which together with the window decide what they
    /// decode to.
    Encoded(Digest),
}

/// A part of the decoded tar that can be decoded alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub kind: SpanKind,
    /// Bytes of the blob that are needed: from `in_start` up to `in_end`.
    pub in_start: u64,
    pub in_end: u64,
    /// Bytes of the decoded tar that come out.
    pub out_start: u64,
    pub out_len: u64,
    pub proof: Proof,
    /// Decoded bytes before it in the same member or frame, which belong to other spans.
    pub skip: u32,
    /// Of a span that is a chunk of a file: the number of that file's entry.
    pub entry: Option<u32>,
    pub(super) window_offset: u64,
    pub(super) window_len: u32,
}

/// Where the bytes are: a mapping, or memory for indexes that were never on disk.
enum Backing {
    Map(memmap2::Mmap),
    Memory(Vec<u8>),
}

/// The index of one layer. Cheap to open, shared by reference.
pub struct LayerIndex {
    bytes: Backing,
    sections: [(usize, usize); SECTIONS],
    layer: Digest,
    blob_size: u64,
    decoded_size: u64,
    pack_size: u64,
    format: Format,
}

impl LayerIndex {
    /// Maps and checks the index at `path`.
    #[allow(unsafe_code, reason = "memmap2 cannot know that nobody changes the file")]
    pub fn open(path: &Path) -> Result<Self, FetchError> {
        let what = || format!("layer index {}", path.display());
        let file = File::open(path).map_err(|error| FetchError::storage(&what(), &error))?;
        // SAFETY: index files are written under another name and renamed; nobody writes to one afterwards, and
        // the store's lock keeps other daemons out. Truncation by a third party would end this process with
        // SIGBUS; it needs the rights of the daemon's own user.
        let map =
            unsafe { memmap2::Mmap::map(&file) }.map_err(|error| FetchError::storage(&what(), &error))?;
        Self::check(Backing::Map(map)).map_err(|error| error.context(what()))
    }

    /// An index from its bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FetchError> {
        Self::check(Backing::Memory(bytes))
    }

    /// The digest of the layer's blob.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// The size of the layer's blob.
    pub fn blob_size(&self) -> u64 {
        self.blob_size
    }

    /// The size of the decoded tar.
    pub fn decoded_size(&self) -> u64 {
        self.decoded_size
    }

    /// The size of the layer's pack, in which its small files lie one after the other.
    pub(crate) fn pack_size(&self) -> u64 {
        self.pack_size
    }

    /// How the blob is encoded.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The checksum of the whole index: two indexes with the same one number their files alike.
    pub fn checksum(&self) -> Digest {
        let bytes = self.as_bytes();
        digest_at(bytes, bytes.len().saturating_sub(DIGEST))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.count(Section::Entries)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries, in tar order, without those that are only of the format (eStargz's table of contents).
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let all = (0..self.len()).map_while(|at| self.entry(at));
        all.filter(|entry| !self.format.hides(entry.path))
    }

    /// The entry number `at`, in tar order.
    pub fn entry(&self, at: usize) -> Option<Entry<'_>> {
        let record = self.record(Section::Entries, at)?;
        let (a, b) = (u32_at(record, 32), u32_at(record, 36));
        let kind = match record.get(8)? {
            0 => EntryKind::Dir,
            1 => EntryKind::File { file: a, size: self.file(a)?.size },
            2 => EntryKind::Symlink { target: self.string(a, b)? },
            3 => EntryKind::Hardlink { target: self.string(a, b)? },
            4 => EntryKind::Char { major: a, minor: b },
            5 => EntryKind::Block { major: a, minor: b },
            6 => EntryKind::Fifo,
            _ => return None,
        };
        Some(Entry {
            path: self.string(u32_at(record, 0), u32_at(record, 4))?,
            kind,
            mode: u32_at(record, 8) >> 16 & 0o7777,
            uid: u32_at(record, 12),
            gid: u32_at(record, 16),
            mtime_nsec: u32_at(record, 20),
            mtime_sec: u64_at(record, 24).cast_signed(),
            xattrs: Xattrs { index: self, first: u32_at(record, 40), count: u32_at(record, 44) },
        })
    }

    /// How many regular files there are; files are numbered from 0.
    pub fn file_count(&self) -> u32 {
        u32::try_from(self.count(Section::Files)).unwrap_or(u32::MAX)
    }

    /// The digest of the content of file number `file` (holes included), and its size. `None`, too, where only reading
    /// the file would tell the digest.
    pub fn file_content(&self, file: u32) -> Option<(Digest, u64)> {
        self.file(file).and_then(|record| Some((record.digest?, record.size)))
    }

    pub(crate) fn file(&self, file: u32) -> Option<FileRecord> {
        let record = self.record(Section::Files, file as usize)?;
        let pack_offset = u64_at(record, 40);
        Some(FileRecord {
            number: file,
            entry: u32_at(record, 56),
            digest: (u32_at(record, 60) & DIGEST_UNKNOWN == 0).then(|| digest_at(record, 0)),
            size: u64_at(record, 32),
            pack_offset: (pack_offset != NOT_PACKED).then_some(pack_offset),
            extent_first: u32_at(record, 48),
            extent_count: u32_at(record, 52),
        })
    }

    /// The stored parts of a file, in order.
    pub(crate) fn extents(&self, file: &FileRecord) -> impl Iterator<Item = Extent> + use<'_> {
        let first = file.extent_first as usize;
        (first..first.saturating_add(file.extent_count as usize)).map_while(|at| {
            let record = self.record(Section::Extents, at)?;
            Some(Extent {
                file_offset: u64_at(record, 0),
                offset: u64_at(record, 8),
                len: u64_at(record, 16),
            })
        })
    }

    /// Whether the spans are chunks of files, from a table of contents, and not pieces of the tar.
    pub(crate) fn is_of_chunks(&self) -> bool {
        self.span(0).is_some_and(|span| span.entry.is_some())
    }

    /// Whether spans are proven by their encoded bytes, and what they decode to is learned: an index from a zTOC.
    pub(crate) fn has_to_learn(&self) -> bool {
        let mut files = (0..self.file_count()).filter_map(|at| self.file(at));
        self.span(0).is_some_and(|span| matches!(span.proof, Proof::Encoded(_)))
            || files.find(|file| file.size > 0).is_some_and(|file| file.digest.is_none())
    }

    pub(crate) fn span_count(&self) -> usize {
        self.count(Section::Spans)
    }

    pub(crate) fn span(&self, at: usize) -> Option<Span> {
        let record = self.record(Section::Spans, at)?;
        Some(Span {
            kind: match record.get(44)? {
                0 => SpanKind::Stored,
                1 => SpanKind::GzipMember,
                2 => SpanKind::Deflate { bits: *record.get(45)? },
                3 => SpanKind::ZstdFrames,
                _ => return None,
            },
            in_start: u64_at(record, 0),
            in_end: u64_at(record, 8),
            out_start: u64_at(record, 16),
            out_len: u64_at(record, 24),
            window_offset: u64_at(record, 32),
            window_len: u32_at(record, 40),
            proof: match record.get(46)? {
                0 => Proof::Decoded(digest_at(record, 48)),
                1 => Proof::Encoded(digest_at(record, 48)),
                _ => return None,
            },
            skip: u32_at(record, 80),
            entry: u32_at(record, 84).checked_sub(1),
        })
    }

    /// The compressed window of a span, empty if it needs none.
    pub(crate) fn window(&self, span: &Span) -> &[u8] {
        let start = usize::try_from(span.window_offset).unwrap_or(usize::MAX);
        self.section(Section::Windows)
            .get(start..)
            .and_then(|rest| rest.get(..span.window_len as usize))
            .unwrap_or_default()
    }

    /// The numbers of the spans that cover `len` bytes of the decoded tar from `offset`.
    pub(crate) fn spans_covering(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let end = offset.saturating_add(len);
        let ends_before = |span: &Span| span.out_start + span.out_len <= offset;
        let first = self.partition(ends_before);
        let last = self.partition(|span| span.out_start < end);
        first..last.max(first)
    }

    /// The numbers of the spans whose bytes begin in `range` of the blob.
    pub(crate) fn spans_of_blob(&self, range: &std::ops::Range<u64>) -> std::ops::Range<usize> {
        let first = self.partition(|span| span.in_start < range.start);
        let last = self.partition(|span| span.in_start < range.end);
        first..last.max(first)
    }

    /// The first span that `before` does not hold for.
    fn partition(&self, before: impl Fn(&Span) -> bool) -> usize {
        let (mut low, mut high) = (0, self.span_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.span(middle).is_some_and(|span| before(&span)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub(super) fn xattr(&self, at: u32) -> Option<(&[u8], &[u8])> {
        let record = self.record(Section::Xattrs, at as usize)?;
        let name = self.string(u32_at(record, 0), u32_at(record, 4))?;
        Some((name, self.string(u32_at(record, 8), u32_at(record, 12))?))
    }

    fn string(&self, offset: u32, len: u32) -> Option<&[u8]> {
        self.section(Section::Strings).get(offset as usize..)?.get(..len as usize)
    }

    /// The first file whose content ends at `offset` of the decoded tar or behind it, of files that lie in order.
    pub(crate) fn first_file_ending_from(&self, offset: u64) -> u32 {
        let (mut low, mut high) = (0, self.file_count());
        while low < high {
            let middle = low + (high - low) / 2;
            // A file without content is passed over with the one before it.
            let with_content = (low..=middle).rev().filter_map(|at| self.file(at)).find(|file| file.size > 0);
            let end = with_content.and_then(|file| self.extents(&file).last());
            if end.is_none_or(|extent| extent.offset + extent.len < offset) {
                low = middle + 1
            } else {
                high = middle
            }
        }
        low
    }

    /// What tells this index from any other.
    pub(crate) fn fingerprint(&self) -> Digest {
        let bytes = self.as_bytes();
        digest_at(bytes, bytes.len().saturating_sub(DIGEST))
    }

    /// The index as it stands on disk.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.bytes {
            Backing::Map(map) => map,
            Backing::Memory(bytes) => bytes,
        }
    }

    fn section(&self, section: Section) -> &[u8] {
        let (start, len) = self.sections[section as usize];
        self.as_bytes().get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    fn count(&self, section: Section) -> usize {
        self.sections[section as usize].1 / section.record()
    }

    fn record(&self, section: Section, at: usize) -> Option<&[u8]> {
        let size = section.record();
        self.section(section).get(at.checked_mul(size)?..)?.get(..size)
    }

    fn check(bytes: Backing) -> Result<Self, FetchError> {
        let damaged = |what: &str| FetchError::corrupt(Side::Local, format!("damaged layer index: {what}"));
        let all = match &bytes {
            Backing::Map(map) => &map[..],
            Backing::Memory(bytes) => bytes,
        };
        let Some((body, digest)) = all.split_last_chunk::<DIGEST>() else {
            return Err(damaged("too short"));
        };
        if body.len() < HEADER || !body.starts_with(MAGIC) {
            return Err(damaged("not a layer index"));
        }
        if u32_at(body, 8) != VERSION {
            return Err(damaged("unknown version"));
        }
        if !Digest::from_bytes(*digest).matches(body) {
            return Err(damaged("checksum does not match"));
        }
        let format = Format::from_code(u32_at(body, 12)).ok_or_else(|| damaged("unknown format"))?;
        let mut sections = [(0, 0); SECTIONS];
        for (section, slot) in Section::ALL.into_iter().zip(&mut sections) {
            let at = SECTIONS_AT + 16 * section as usize;
            let start = usize::try_from(u64_at(body, at)).unwrap_or(usize::MAX);
            let len = usize::try_from(u64_at(body, at + 8)).unwrap_or(usize::MAX);
            if start.checked_add(len).is_none_or(|end| end > body.len()) || len % section.record() != 0 {
                return Err(damaged("a section lies outside"));
            }
            *slot = (start, len);
        }
        let (layer, blob_size) = (digest_at(body, 16), u64_at(body, 48));
        let (decoded_size, pack_size) = (u64_at(body, 56), u64_at(body, 64));
        let index = Self { bytes, sections, layer, blob_size, decoded_size, pack_size, format };
        if index.records_are_sound() { Ok(index) } else { Err(damaged("a record points outside")) }
    }

    /// Whether every record can be followed: what the digest proves unchanged, this proves well made.
    fn records_are_sound(&self) -> bool {
        let entries = (0..self.len()).all(|at| {
            self.entry(at).is_some_and(|entry| {
                entry.mtime_nsec < 1_000_000_000 && entry.xattrs.iter().count() == entry.xattrs.len()
            })
        });
        let files = (0..self.file_count()).all(|at| {
            self.file(at).is_some_and(|file| {
                let extents = self.extents(&file).collect::<Vec<_>>();
                let packed = file.pack_offset.is_none_or(|offset| {
                    offset.checked_add(file.size).is_some_and(|end| end <= self.pack_size)
                });
                let entry = (file.entry as usize) < self.len();
                packed
                    && entry
                    && extents.len() == file.extent_count as usize
                    && self.extents_fit(&extents, file.size)
            })
        });
        entries && files && self.spans_are_sound()
    }

    fn extents_fit(&self, extents: &[Extent], size: u64) -> bool {
        let mut end = 0;
        extents.iter().all(|extent| {
            let ordered = extent.file_offset >= end;
            end = extent.file_offset.saturating_add(extent.len);
            let inside = extent.offset.checked_add(extent.len).is_some_and(|end| end <= self.decoded_size);
            ordered && inside && end <= size
        })
    }

    /// Spans follow each other without a gap and cover the decoded tar.
    fn spans_are_sound(&self) -> bool {
        let mut end = 0_u64;
        (0..self.span_count()).all(|at| {
            self.span(at).is_some_and(|span| {
                let follows = span.out_start == end && span.out_len > 0;
                end = end.saturating_add(span.out_len);
                let window = self.window(&span).len() == span.window_len as usize;
                let bits = !matches!(span.kind, SpanKind::Deflate { bits } if bits > 7);
                let inside = span.in_start <= span.in_end && span.in_end <= self.blob_size;
                let entry = span.entry.is_none_or(|entry| (entry as usize) < self.len());
                follows && window && bits && inside && entry
            })
        }) && end == self.decoded_size
    }
}

impl std::fmt::Debug for LayerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LayerIndex({}, {} entries, {} spans)", self.layer, self.len(), self.span_count())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default())
}
