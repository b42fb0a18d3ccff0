//! The table of contents (TOC) of a layer: what eStargz and zstd:chunked have in common (stargz-snapshotter,
//! `docs/estargz.md`; containers/storage, `pkg/chunked/internal/minimal/compression.go`).
//!
//! Fields that are zero are left out, as are times of 0, which both formats take for "unknown". All owners are root.

use anyhow::Context as _;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::archive::Head;
use super::pieces::{Offsets, PieceNumber};
use super::tree::{Entry, Kind};
use crate::policy::digest::Digest;

/// Largest TOC in bytes of JSON: containers/storage reads no larger one (`maxTocSize`). Some 600,000 files.
const MAX_TOC: usize = 150 << 20;

/// The entries of an archive, in its order.
#[derive(Debug, Default)]
pub(super) struct Toc {
    entries: Vec<TocEntry>,
}

/// A part of a file's content that is compressed for itself.
#[derive(Debug)]
pub(super) struct Chunk {
    /// What it was compressed as.
    pub piece: PieceNumber,
    /// Bytes before it in the file.
    pub offset: u64,
    /// Bytes of it.
    pub size: u64,
    /// Of its bytes.
    pub digest: Digest,
}

/// The content of a file that is not empty.
#[derive(Debug)]
pub(super) struct Content {
    /// Of the whole.
    pub digest: Digest,
    /// The chunks, of which there is at least one.
    pub chunks: Vec<Chunk>,
    /// The piece after the last chunk.
    pub after: PieceNumber,
}

/// How the TOCs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Every chunk has a digest; it ends where the next one begins.
    Estargz,
    /// A file says where it ends; chunks are told of where there are several.
    ZstdChunked,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "Option::is_none")]
    mtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_name: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
    #[serde(skip)]
    begins: Option<PieceNumber>,
    #[serde(skip)]
    ends: Option<PieceNumber>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'t> {
    version: u32,
    entries: &'t [TocEntry],
    #[serde(skip_serializing_if = "Option::is_none")]
    tar_split_digest: Option<Digest>,
}

impl Toc {
    /// Adds an entry, and gives its name; `content` of a file that is not empty.
    pub(super) fn push(
        &mut self,
        dialect: Dialect,
        entry: &Entry,
        head: &Head,
        content: Option<Content>,
    ) -> anyhow::Result<String> {
        let name = text(&head.name)?;
        let mut listed = TocEntry {
            name: name.clone(),
            kind: type_name(&entry.kind),
            mtime: modification_time(entry.mtime)?,
            link_name: head.link.as_deref().map(text).transpose()?,
            mode: u64::from(entry.mode),
            ..TocEntry::default()
        };
        match &entry.kind {
            Kind::File { size } => listed.size = *size,
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                (listed.dev_major, listed.dev_minor) = (u64::from(*major), u64::from(*minor));
            }
            Kind::Dir | Kind::Hardlink(_) | Kind::Symlink(_) | Kind::Fifo => {}
        }
        let Some(content) = content else {
            self.entries.push(listed);
            return Ok(name);
        };
        listed.digest = Some(content.digest);
        if dialect == Dialect::ZstdChunked {
            listed.ends = Some(content.after);
        }
        let several = content.chunks.len() > 1;
        let mut next = Some(listed);
        for chunk in &content.chunks {
            let mut listed = next.take().unwrap_or_else(|| TocEntry {
                name: name.clone(),
                kind: "chunk",
                chunk_offset: chunk.offset,
                ..TocEntry::default()
            });
            listed.begins = Some(chunk.piece);
            if several {
                listed.chunk_size = chunk.size;
            }
            if several || dialect == Dialect::Estargz {
                listed.chunk_digest = Some(chunk.digest);
            }
            self.entries.push(listed);
        }
        Ok(name)
    }

    /// The JSON, when it is known where the pieces lie.
    pub(super) fn json(
        mut self,
        offsets: &Offsets,
        tar_split_digest: Option<Digest>,
    ) -> anyhow::Result<Vec<u8>> {
        for entry in &mut self.entries {
            entry.offset = entry.begins.map_or(0, |piece| offsets.start(piece));
            entry.end_offset = entry.ends.map_or(0, |piece| offsets.start(piece));
        }
        let json = serde_json::to_vec(&Document { version: 1, entries: &self.entries, tar_split_digest })?;
        anyhow::ensure!(
            json.len() <= MAX_TOC,
            "the table of contents has {} bytes, and readers stop at {MAX_TOC}: build with --format zstd, or have fewer files",
            json.len()
        );
        Ok(json)
    }
}

fn type_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Dir => "dir",
        Kind::File { .. } => "reg",
        Kind::Hardlink(_) => "hardlink",
        Kind::Symlink(_) => "symlink",
        Kind::Char { .. } => "char",
        Kind::Block { .. } => "block",
        Kind::Fifo => "fifo",
    }
}

/// JSON has no other names, and a reader that has the TOC looks at no header.
fn text(bytes: &[u8]) -> anyhow::Result<String> {
    let text = std::str::from_utf8(bytes).ok().map(str::to_owned);
    text.with_context(|| {
        format!(
            "the name or link {:?} is not UTF-8, which a table of contents cannot hold: build with --format zstd or gzip",
            String::from_utf8_lossy(bytes)
        )
    })
}

fn modification_time(seconds: u64) -> anyhow::Result<Option<String>> {
    if seconds == 0 {
        return Ok(None);
    }
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?;
    Ok(Some(time.format(&Rfc3339)?))
}
