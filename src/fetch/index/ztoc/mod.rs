//! SOCI's zTOCs: an index made without the layer's bytes, of a layer that is an ordinary tar.gz or tar.
//!
//! A zTOC (soci-snapshotter `docs/glossary.md`, `ztoc/ztoc.go`, version 0.9) lists the tar's entries with the place of
//! their content in the decoded tar, and the places where decoding may begin. Spans are proven by the digest of their
//! encoded bytes, so the zTOC must be one that is trusted: its windows decide what the bytes decode to.
//!
//! | file | what |
//! |---|---|
//! | this | from a zTOC to an index |
//! | `schema` | the FlatBuffers tables, verified |
//! | `zinfo` | the checkpoints |
//! | `write` | making a zTOC |
//!
//! What cannot be served as it says is refused whole, and the layer fetched like any other: sparse files, whose content
//! a zTOC does not place (`archive/tar` hides the holes), and spans larger than what is decoded in memory.

mod schema;
mod write;
mod zinfo;

pub use write::Unfit;
pub(crate) use write::make;

use std::path::Path;

use flatbuffers::Vector;

use self::schema::{CompressionInfo, FileMetadata, TarZinfo, Ztoc};
use super::build::{IndexBuilder, NewSpan, SpanBuilder, Summary};
use super::decode::MAX_SPAN;
use super::file::{Format, LayerIndex, Proof, SpanKind};
use super::gzip;
use super::path;
use super::pax;
use super::sparse::Extent;
use super::tar::{MAX_ENTRIES, Member, MemberKind, symlink_target};
use super::toc::{Contents, mtime};
use crate::fetch::error::{FetchError, Side};
use crate::fetch::store::LARGE_FILE;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// The only version there is, also in SOCI's "v2", which is another kind of manifest around it.
const VERSION: &[u8] = b"0.9";
/// `CompressionAlgorithm` in the schema.
const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;
/// Largest zTOC, which is held in memory: a million entries make about 200 MiB, the checkpoints of a layer of 10 GiB 80.
pub(crate) const MAX_BYTES: u64 = 256 << 20;
/// Tar blocks (POSIX.1-2017, `pax`).
const BLOCK: u64 = 512;
/// Most tables of a zTOC: every entry, and some PAX records of each.
const MAX_TABLES: usize = 4 * MAX_ENTRIES as usize;
/// Encoded bytes that a span may have beside those that it decodes to: deflate adds five bytes to 64 KiB at most, but a
/// gzip member costs twenty whatever is in it, and anything may follow the last.
const SPAN_SLACK: u64 = 16 << 20;

fn unsound(what: &str) -> FetchError {
    FetchError::corrupt(Side::Remote, format!("zTOC: {what}"))
}

/// Reads the zTOC of `blob`. All files together may have at most `max_content` bytes. Spools lie in `directory`.
pub(crate) fn read(
    bytes: &[u8],
    blob: &Descriptor,
    max_content: u64,
    directory: &Path,
) -> Result<Contents, FetchError> {
    let ztoc = schema::root::<Ztoc<'_>>(bytes, MAX_TABLES).map_err(|error| unsound(&error.to_string()))?;
    if ztoc.version().map(text) != Some(VERSION) {
        return Err(unsound("it is of an unknown version"));
    }
    if unsigned(ztoc.compressed_archive_size())? != blob.size {
        return Err(unsound("it is of a layer of another size"));
    }
    let decoded = unsigned(ztoc.uncompressed_archive_size())?;
    let info = ztoc.compression_info().ok_or_else(|| unsound("it has no checkpoints"))?;
    let mut spans = SpanBuilder::new(directory);
    let (mut format, decoded) = match info.compression_algorithm().unwrap_or(GZIP) {
        GZIP => (Format::TarGzip, gzip_spans(&info, blob, decoded, &mut spans)?),
        UNCOMPRESSED => (Format::Tar, tar_spans(&info, blob, &mut spans)?),
        _ => return Err(unsound("the layer is compressed in an unknown way")),
    };
    let mut entries =
        Entries { builder: IndexBuilder::new(directory), decoded, max_content, next: 0, pack: 0 };
    for record in ztoc.toc().and_then(|toc| toc.metadata()).into_iter().flatten() {
        let path = entries.add(&record)?;
        if Format::EStargz.hides(&path) {
            format = Format::EStargz;
        }
    }
    let summary = Summary {
        layer: blob.digest,
        blob_size: blob.size,
        decoded_size: decoded,
        pack_size: entries.pack,
        format,
    };
    Ok(Contents { entries: entries.builder, spans, summary })
}

/// The index that a zTOC makes of `blob`, in memory: for tools and tests.
pub fn index_ztoc(bytes: &[u8], blob: &Descriptor) -> Result<LayerIndex, FetchError> {
    let contents = read(bytes, blob, u64::MAX, &std::env::temp_dir())?;
    let mut index = Vec::new();
    contents.entries.finish(contents.spans, &contents.summary, &mut index)?;
    LayerIndex::from_bytes(index)
}

fn text<'a>(text: Vector<'a, u8>) -> &'a [u8] {
    text.bytes()
}

fn unsigned(number: Option<i64>) -> Result<u64, FetchError> {
    u64::try_from(number.unwrap_or(0)).map_err(|_| unsound("a number is negative"))
}

/// The digests of all spans, of which there must be `count`.
fn digests(info: &CompressionInfo<'_>, count: usize) -> Result<Vec<Digest>, FetchError> {
    let texts = info.span_digests().into_iter().flatten();
    let parse = |digest: Vector<'_, u8>| std::str::from_utf8(digest.bytes()).ok()?.parse().ok();
    let digests: Option<Vec<Digest>> = texts.map(parse).collect();
    let digests = digests.ok_or_else(|| unsound("the digest of a span is none of sha256"))?;
    let last = usize::try_from(info.max_span_id().unwrap_or(0)).ok();
    if digests.len() != count || last.and_then(|last| last.checked_add(1)) != Some(count) {
        return Err(unsound("it does not have a digest for each span"));
    }
    Ok(digests)
}

fn checked(span: NewSpan, blob: &Descriptor) -> Result<NewSpan, FetchError> {
    let encoded = span.in_end.checked_sub(span.in_start).filter(|_| span.in_end <= blob.size);
    let encoded = encoded.ok_or_else(|| unsound("a span lies outside the layer"))?;
    if span.out_len > MAX_SPAN || encoded > span.out_len + SPAN_SLACK {
        return Err(unsound("a span is too large to be decoded alone"));
    }
    Ok(span)
}

/// Adds the spans of a gzip layer; returns the size of its tar. What follows the end of the archive, the `decoded` bytes
/// that the maker read, is left out.
fn gzip_spans(
    info: &CompressionInfo<'_>,
    blob: &Descriptor,
    decoded: u64,
    spans: &mut SpanBuilder,
) -> Result<u64, FetchError> {
    let checkpoints = zinfo::parse(info.checkpoints().map(text).unwrap_or_default()).map_err(unsound)?;
    let digests = digests(info, checkpoints.len())?;
    for (at, (checkpoint, digest)) in checkpoints.iter().zip(digests).enumerate() {
        let next = checkpoints.get(at + 1);
        let out_end = next.map_or(decoded, |next| next.output.min(decoded));
        let Some(out_len) = out_end.checked_sub(checkpoint.output).filter(|len| *len > 0) else { break };
        let span = NewSpan {
            kind: SpanKind::Deflate { bits: checkpoint.bits },
            in_start: checkpoint.first_byte(),
            in_end: next.map_or(blob.size, |next| next.input),
            out_start: checkpoint.output,
            out_len,
            proof: Proof::Encoded(digest),
            window: gzip::pack_window(checkpoint.window)?,
            skip: 0,
            entry: None,
        };
        spans.span(&checked(span, blob)?)?;
    }
    Ok(decoded)
}

/// Adds the spans of a plain layer; returns its size.
fn tar_spans(
    info: &CompressionInfo<'_>,
    blob: &Descriptor,
    spans: &mut SpanBuilder,
) -> Result<u64, FetchError> {
    let zinfo = info.checkpoints().map(text).unwrap_or_default();
    let zinfo = schema::root::<TarZinfo<'_>>(zinfo, 1).map_err(|error| unsound(&error.to_string()))?;
    let step = unsigned(zinfo.span_size())?;
    if unsigned(zinfo.size())? != blob.size || step == 0 {
        return Err(unsound("its spans do not cover the layer"));
    }
    let count = usize::try_from(blob.size.div_ceil(step)).map_err(|_| unsound("it has too many spans"))?;
    for (start, digest) in (0..blob.size).step_by(step as usize).zip(digests(info, count)?) {
        let end = (start + step).min(blob.size);
        let span = NewSpan {
            kind: SpanKind::Stored,
            in_start: start,
            in_end: end,
            out_start: start,
            out_len: end - start,
            proof: Proof::Decoded(digest),
            window: Vec::new(),
            skip: 0,
            entry: None,
        };
        spans.span(&checked(span, blob)?)?;
    }
    Ok(blob.size)
}

struct Entries {
    builder: IndexBuilder,
    decoded: u64,
    /// Bytes that the files still to come may have.
    max_content: u64,
    /// Where the next header can begin at the earliest.
    next: u64,
    pack: u64,
}

impl Entries {
    /// Adds an entry; returns its path.
    fn add(&mut self, record: &FileMetadata<'_>) -> Result<Vec<u8>, FetchError> {
        let name = record.name().map(text).unwrap_or_default();
        let refuse = |what: &str| unsound(&format!("{:?}: {what}", String::from_utf8_lossy(name)));
        let (member, size) = member(name, record).map_err(|what| refuse(&what))?;
        let offset = unsigned(record.uncompressed_offset())?;
        let header = offset.checked_sub(BLOCK).filter(|header| *header >= self.next);
        let end = header.and_then(|_| offset.checked_add(size)).filter(|end| *end <= self.decoded);
        let end = end.ok_or_else(|| refuse("its content does not lie behind that of the entry before"))?;
        self.next = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        self.max_content = self
            .max_content
            .checked_sub(size)
            .ok_or_else(|| refuse("the layer's files are larger than cache.max_decoded allows"))?;
        let mut number = 0;
        if let MemberKind::File { .. } = member.kind {
            let extent = (size > 0).then_some(Extent { file_offset: 0, offset, len: size });
            let digest = (size == 0).then(|| Digest::of(&[]));
            let pack_offset = (size < LARGE_FILE).then_some(self.pack);
            self.pack += pack_offset.map_or(0, |_| size);
            number = self.builder.file(digest.as_ref(), size, pack_offset, extent.as_slice())?;
        }
        self.builder.entry(&member, number)?;
        Ok(member.path)
    }
}

/// The entry, and the bytes of content that it has in the tar.
fn member(name: &[u8], record: &FileMetadata<'_>) -> Result<(Member, u64), String> {
    let number = |value: Option<i64>| {
        u32::try_from(value.unwrap_or(0)).map_err(|_| "a device number is out of range".to_owned())
    };
    let link = || record.linkname().map(text).unwrap_or_default();
    let mut size = 0;
    let kind = match record.kind().map(text).unwrap_or_default() {
        b"dir" => MemberKind::Dir,
        b"reg" => {
            size =
                u64::try_from(record.uncompressed_size().unwrap_or(0)).map_err(|_| "its size is negative")?;
            MemberKind::File { size, extents: Vec::new() }
        }
        b"symlink" => MemberKind::Symlink(symlink_target(link().to_vec())?),
        b"hardlink" => MemberKind::Hardlink(path::clean(link())?),
        b"char" => MemberKind::Char(number(record.devmajor())?, number(record.devminor())?),
        b"block" => MemberKind::Block(number(record.devmajor())?, number(record.devminor())?),
        b"fifo" => MemberKind::Fifo,
        _ => return Err("an entry of unknown type".to_owned()),
    };
    let path = path::clean(name)?;
    if path.is_empty() && kind != MemberKind::Dir {
        return Err("an entry would replace the root directory".to_owned());
    }
    let records = record.xattrs().into_iter().flatten();
    let records = records.map(|xattr| {
        (xattr.key().map(text).unwrap_or_default(), xattr.value().map(text).unwrap_or_default())
    });
    let xattrs = pax::xattrs(records)?;
    // Go writes nothing for a year that RFC 3339 cannot say.
    let time = record.mod_time().map(text).filter(|time| !time.is_empty()).ok_or("it has no time")?;
    let (mtime_sec, mtime_nsec) = mtime(&String::from_utf8_lossy(time))?;
    let member = Member {
        path,
        kind,
        mode: (record.mode().unwrap_or(0) & 0o7777) as u16,
        uid: record.uid().unwrap_or(0),
        gid: record.gid().unwrap_or(0),
        mtime_sec,
        mtime_nsec,
        xattrs,
    };
    Ok((member, size))
}
