//! Tables of contents: eStargz's and zstd:chunked's JSON into an index, without the layer's bytes.
//!
//! Both formats write the same fields (stargz-snapshotter `estargz/types.go` `TOCEntry`; container-libs
//! `storage/pkg/chunked/internal/minimal/compression.go` `FileMetadata`), zstd:chunked a few more. Each chunk of a file
//! becomes a span: a range of the blob that is decoded alone and proven by the chunk's digest.
//!
//! In: the JSON, already proven against the digest in the manifest. What it says is decisive, but it must hold
//! together: chunks in the order of the blob, without gaps, each with a digest. A table that does not (stargz's first
//! version has no digests) is refused whole; the layer is then fetched whole like any other.
//!
//! Names that are not UTF-8 do not survive JSON: Go writes U+FFFD in their place. Such a table is refused, too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::build::{IndexBuilder, NewSpan, SpanBuilder, Summary};
use super::decode::MAX_SPAN;
use super::file::{Format, LayerIndex, Proof, SpanKind};
use super::path;
use super::sparse::Extent;
use super::tar::{MAX_ENTRIES, Member, MemberKind, symlink_target};
use crate::fetch::error::{FetchError, Side};
use crate::fetch::store::LARGE_FILE;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// Most chunks that share one gzip member or zstd frame (`innerOffset`), and most chunks of one file: 4 TiB in chunks of
/// the usual 4 MiB. Both are held in memory until they are complete.
const MAX_CHUNKS: usize = 1 << 20;

/// What a table's entries are judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Where the content ends in the blob: the table itself follows.
    pub payload_end: u64,
    /// Most bytes that all files may have.
    pub max_content: u64,
}

/// The layer as its table tells it.
#[derive(Debug)]
pub(crate) struct Contents {
    pub entries: IndexBuilder,
    pub spans: SpanBuilder,
    pub summary: Summary,
}

/// Reads the table of `blob`, which is of `format`. Spools lie in `directory`.
pub(crate) fn read(
    json: &[u8],
    blob: &Descriptor,
    format: Format,
    limits: Limits,
    directory: &Path,
) -> Result<Contents, FetchError> {
    let mut reader = Reader {
        entries: IndexBuilder::new(directory),
        spans: SpanBuilder::new(directory),
        kind: if format == Format::EStargz { SpanKind::GzipMember } else { SpanKind::ZstdFrames },
        limits,
        count: 0,
        content: 0,
        decoded: 0,
        pack: 0,
        file: None,
        member: Vec::new(),
        failure: None,
    };
    let mut input = serde_json::Deserializer::from_slice(json);
    let parsed = Table(&mut reader).deserialize(&mut input).and_then(|()| input.end());
    if let Some(failure) = reader.failure.take() {
        return Err(failure);
    }
    parsed.map_err(|error| unsound(&error.to_string()))?;
    reader.end_file()?;
    reader.end_member(limits.payload_end)?;
    let summary = Summary {
        layer: blob.digest,
        blob_size: blob.size,
        decoded_size: reader.decoded,
        pack_size: reader.pack,
        format,
    };
    Ok(Contents { entries: reader.entries, spans: reader.spans, summary })
}

/// The index that a table makes of `blob`, in memory: for tools and tests.
pub fn index_table(json: &[u8], blob: &Descriptor, format: Format) -> Result<LayerIndex, FetchError> {
    let limits = Limits { payload_end: blob.size, max_content: u64::MAX };
    let contents = read(json, blob, format, limits, &std::env::temp_dir())?;
    let mut bytes = Vec::new();
    contents.entries.finish(contents.spans, &contents.summary, &mut bytes)?;
    LayerIndex::from_bytes(bytes)
}

fn unsound(what: &str) -> FetchError {
    FetchError::corrupt(Side::Remote, format!("table of contents: {what}"))
}

/// One entry as it is written. Unknown fields are for others.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    size: i64,
    #[serde(borrow, default, rename = "modtime")]
    mtime: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    link_name: Cow<'a, str>,
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    uid: i64,
    #[serde(default)]
    gid: i64,
    #[serde(default)]
    dev_major: i64,
    #[serde(default)]
    dev_minor: i64,
    #[serde(borrow, default)]
    xattrs: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    #[serde(default)]
    offset: i64,
    #[serde(default)]
    inner_offset: i64,
    #[serde(default)]
    end_offset: i64,
    #[serde(default)]
    chunk_offset: i64,
    #[serde(default)]
    chunk_size: i64,
    #[serde(borrow, default)]
    chunk_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    chunk_type: Cow<'a, str>,
}

/// A chunk of the file that is being read.
#[derive(Debug)]
struct Chunk {
    /// In the file; a length of 0 reaches to its end.
    offset: u64,
    len: u64,
    digest: Option<Digest>,
    /// Zeros are not stored.
    stored: bool,
    place: Place,
}

/// Where in the blob a chunk begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    skip: u32,
}

/// A regular file whose chunks are still coming.
#[derive(Debug)]
struct OpenFile {
    member: Member,
    size: u64,
    digest: Option<Digest>,
    chunks: Vec<Chunk>,
    /// Where its last chunk ends in the blob, 0 if only the next one tells: what c/storage writes into the first entry.
    end: u64,
}

struct Reader {
    entries: IndexBuilder,
    spans: SpanBuilder,
    kind: SpanKind,
    limits: Limits,
    /// Entries so far.
    count: u32,
    /// Bytes of all files, of all chunks, and of all small files.
    content: u64,
    decoded: u64,
    pack: u64,
    file: Option<OpenFile>,
    /// Spans of one member or frame whose end is not known yet.
    member: Vec<NewSpan>,
    /// The error behind a failure of serde's, which carries only words.
    failure: Option<FetchError>,
}

impl Reader {
    fn record(&mut self, record: &Record<'_>) -> Result<(), FetchError> {
        if record.kind == "chunk" {
            let file = self.file.as_mut().ok_or_else(|| unsound("a chunk before any file"))?;
            if path::clean(record.name.as_bytes()).map_err(unsound)? != file.member.path {
                return Err(unsound(&format!("a chunk of {:?} stands among another file's", record.name)));
            }
            if file.chunks.len() >= MAX_CHUNKS {
                return Err(unsound("a file has more than a million chunks"));
            }
            file.chunks.push(chunk(record)?);
            return Ok(());
        }
        self.end_file()?;
        if u64::from(self.count) >= MAX_ENTRIES {
            return Err(unsound("more than 10 million entries"));
        }
        let member = member(record).map_err(|what| unsound(&format!("{:?}: {what}", record.name)))?;
        if let MemberKind::File { size, .. } = member.kind {
            let chunks = if size > 0 { vec![chunk(record)?] } else { Vec::new() };
            let end = unsigned(record.end_offset)?;
            self.file = Some(OpenFile { member, size, digest: digest(&record.digest)?, chunks, end });
            return Ok(());
        }
        self.entries.entry(&member, 0)?;
        self.count += 1;
        Ok(())
    }

    /// All chunks of a file are known: adds it.
    fn end_file(&mut self) -> Result<(), FetchError> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let name = String::from_utf8_lossy(&file.member.path).into_owned();
        let refuse = |what: &str| unsound(&format!("{name:?}: {what}"));
        self.content = self.content.saturating_add(file.size);
        if self.content > self.limits.max_content {
            return Err(refuse("the layer's files are larger than cache.max_decoded allows"));
        }
        if let [only] = &mut file.chunks[..] {
            // The fields of a chunk count only where there are several (c/storage).
            (only.offset, only.len) = (0, file.size);
            only.digest = only.digest.or(file.digest);
            if file.digest.is_some() && only.digest != file.digest {
                return Err(refuse("its digest is not its only chunk's"));
            }
            file.digest = only.digest;
        }
        if file.size == 0 {
            file.digest = Some(Digest::of(&[]));
        }
        let digest = file.digest.ok_or_else(|| refuse("it has no digest"))?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = 0;
        for (number, chunk) in file.chunks.iter().enumerate() {
            let len = if chunk.len == 0 { file.size.saturating_sub(chunk.offset) } else { chunk.len };
            if chunk.offset != at || len == 0 || len > file.size - at {
                return Err(refuse("its chunks do not follow each other"));
            }
            if chunk.stored {
                let proof = chunk.digest.ok_or_else(|| refuse("a chunk has no digest"))?;
                let next = file.chunks.get(number + 1).map_or(file.end, |next| next.place.start);
                // Chunks of one member end where it ends.
                let end = if next > chunk.place.start { next } else { 0 };
                let span = self.add_span(chunk.place, end, len, proof);
                let offset = span.map_err(|error| error.context(&name))?;
                match extents.last_mut() {
                    Some(last) if last.file_offset + last.len == at => last.len += len,
                    _ => extents.push(Extent { file_offset: at, offset, len }),
                }
            }
            at += len;
        }
        if at != file.size {
            return Err(refuse("its chunks do not make up its size"));
        }
        let pack_offset = (file.size < LARGE_FILE).then_some(self.pack);
        self.pack += pack_offset.map_or(0, |_| file.size);
        let number = self.entries.file(Some(&digest), file.size, pack_offset, &extents)?;
        self.entries.entry(&file.member, number)?;
        self.count += 1;
        Ok(())
    }

    /// Adds a chunk of `len` bytes that ends in the blob at `end` (0: where the next one begins); returns where it lies
    /// among all chunks.
    fn add_span(&mut self, place: Place, end: u64, len: u64, digest: Digest) -> Result<u64, FetchError> {
        let before = self.member.last();
        match before.map(|span| span.in_start) {
            Some(start) if place.start < start => return Err(unsound("its chunks go back in the blob")),
            Some(start) if place.start > start => self.end_member(place.start)?,
            Some(_)
                if before.is_some_and(|span| u64::from(span.skip) + span.out_len > u64::from(place.skip)) =>
            {
                return Err(unsound("two chunks lie at one place"));
            }
            _ => {}
        }
        if place.start.max(end) > self.limits.payload_end {
            return Err(unsound("a chunk lies outside the layer's content"));
        }
        if len > MAX_SPAN - u64::from(place.skip).min(MAX_SPAN) {
            return Err(unsound("a chunk is larger than 64 MiB"));
        }
        if self.member.len() >= MAX_CHUNKS {
            return Err(unsound("more than a million chunks share a member"));
        }
        let offset = self.decoded;
        self.decoded += len;
        self.member.push(NewSpan {
            kind: self.kind,
            in_start: place.start,
            in_end: end,
            out_start: offset,
            out_len: len,
            proof: Proof::Decoded(digest),
            window: Vec::new(),
            skip: place.skip,
            entry: Some(self.count),
        });
        Ok(offset)
    }

    /// The member or frame of the last chunks ends before `next` at the latest.
    fn end_member(&mut self, next: u64) -> Result<(), FetchError> {
        for mut span in std::mem::take(&mut self.member) {
            if span.in_end == 0 {
                span.in_end = next;
            }
            if span.in_end > next {
                return Err(unsound("two chunks overlap in the blob"));
            }
            self.spans.span(&span)?;
        }
        Ok(())
    }
}

fn unsigned(number: i64) -> Result<u64, FetchError> {
    u64::try_from(number).map_err(|_| unsound("a number is negative"))
}

/// A digest that may be missing.
fn digest(text: &str) -> Result<Option<Digest>, FetchError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| unsound(&format!("{text:?}: {error}")))
}

fn chunk(record: &Record<'_>) -> Result<Chunk, FetchError> {
    let stored = match &*record.chunk_type {
        "" => true,
        "zeros" => false,
        other => return Err(unsound(&format!("chunks of an unknown type, {other:?}"))),
    };
    let skip = u32::try_from(record.inner_offset).map_err(|_| unsound("an innerOffset is out of range"))?;
    Ok(Chunk {
        offset: unsigned(record.chunk_offset)?,
        len: unsigned(record.chunk_size)?,
        digest: digest(&record.chunk_digest)?,
        stored,
        place: Place { start: unsigned(record.offset)?, skip },
    })
}

fn member(record: &Record<'_>) -> Result<Member, String> {
    let lossless = |text: &str| match text.contains(char::REPLACEMENT_CHARACTER) {
        true => Err("a name was not UTF-8 and is lost".to_owned()),
        false => Ok(()),
    };
    lossless(&record.name)?;
    lossless(&record.link_name)?;
    let number = |value: i64| u32::try_from(value).map_err(|_| "a device number is out of range".to_owned());
    let kind = match &*record.kind {
        "dir" => MemberKind::Dir,
        "reg" => {
            let size = u64::try_from(record.size).map_err(|_| "its size is negative".to_owned())?;
            MemberKind::File { size, extents: Vec::new() }
        }
        "symlink" => MemberKind::Symlink(symlink_target(record.link_name.as_bytes().to_vec())?),
        "hardlink" => MemberKind::Hardlink(path::clean(record.link_name.as_bytes())?),
        "char" => MemberKind::Char(number(record.dev_major)?, number(record.dev_minor)?),
        "block" => MemberKind::Block(number(record.dev_major)?, number(record.dev_minor)?),
        "fifo" => MemberKind::Fifo,
        other => return Err(format!("an entry of unknown type {other:?}")),
    };
    let path = path::clean(record.name.as_bytes())?;
    if path.is_empty() && kind != MemberKind::Dir {
        return Err("an entry would replace the root directory".to_owned());
    }
    let (mtime_sec, mtime_nsec) = mtime(record.mtime.as_deref().unwrap_or_default())?;
    let xattrs = record.xattrs.iter().flatten();
    let xattrs = xattrs.map(|(name, value)| {
        let value = STANDARD.decode(&**value).map_err(|error| format!("an xattr is not base64: {error}"))?;
        Ok((name.as_bytes().to_vec(), value))
    });
    Ok(Member {
        path,
        kind,
        mode: (record.mode & 0o7777) as u16,
        // Truncated as the tar walker does.
        uid: record.uid as u32,
        gid: record.gid as u32,
        mtime_sec,
        mtime_nsec,
        xattrs: xattrs.collect::<Result<_, String>>()?,
    })
}

/// Both writers leave the epoch out.
pub(super) fn mtime(text: &str) -> Result<(i64, u32), String> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| format!("modtime {text:?}: {error}"))?;
    Ok((time.unix_timestamp(), time.nanosecond()))
}

/// The table as a whole: only its entries matter.
struct Table<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != "entries" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if std::mem::replace(&mut seen, true) {
                return Err(A::Error::duplicate_field("entries"));
            }
            map.next_value_seed(Entries(self.0))?;
        }
        if seen { Ok(()) } else { Err(A::Error::missing_field("entries")) }
    }
}

/// The entries, one at a time: there may be millions.
struct Entries<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(record) = seq.next_element::<Record<'de>>()? {
            if let Err(error) = self.0.record(&record) {
                let words = error.to_string();
                self.0.failure = Some(error);
                return Err(A::Error::custom(words));
            }
        }
        Ok(())
    }
}
