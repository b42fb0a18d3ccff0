//! Making an index: records appended to one spool a section, then all written as one file.
//!
//! Spools keep the first megabyte in memory and the rest in unlinked temporary files, so that a layer with
//! millions of entries costs disk, not memory.

use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use super::file::{
    DIGEST_UNKNOWN, Format, HEADER, LayerIndex, MAGIC, NOT_PACKED, Proof, SECTIONS, Section, SpanKind,
    VERSION,
};
use super::sparse::Extent;
use super::tar::{Member, MemberKind, Walker};
use crate::fetch::error::{FetchError, Side};
use crate::policy::digest::{Digest, Hasher};

/// What a section may hold in memory before it goes to disk.
const SPOOL: usize = 1 << 20;

/// What the index says about the layer as a whole.
#[derive(Debug)]
pub(crate) struct Summary {
    pub layer: Digest,
    pub blob_size: u64,
    pub decoded_size: u64,
    pub pack_size: u64,
    pub format: Format,
}

/// A span and its compressed window, before it has a place in the file.
#[derive(Debug)]
pub(crate) struct NewSpan {
    pub kind: SpanKind,
    pub in_start: u64,
    pub in_end: u64,
    pub out_start: u64,
    pub out_len: u64,
    pub proof: Proof,
    pub window: Vec<u8>,
    pub skip: u32,
    pub entry: Option<u32>,
}

/// The entries and files of an index being made.
#[derive(Debug)]
pub(crate) struct IndexBuilder {
    /// In the order of the sections; those of spans stay empty.
    spools: [Spool; SECTIONS],
}

/// The spans of an index being made: apart from the entries, because whoever decodes adds them.
#[derive(Debug)]
pub(crate) struct SpanBuilder {
    spans: Spool,
    windows: Spool,
}

#[derive(Debug)]
struct Spool {
    data: BufWriter<SpooledTempFile>,
    len: u64,
}

impl IndexBuilder {
    /// An empty index whose spools, when they grow, lie in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let spool =
            || Spool { data: BufWriter::new(tempfile::spooled_tempfile_in(SPOOL, directory)), len: 0 };
        Self { spools: std::array::from_fn(|_| spool()) }
    }

    /// Adds a regular file's content and returns its number. Its entry must be the next that is added.
    pub(crate) fn file(
        &mut self,
        digest: Option<&Digest>,
        size: u64,
        pack_offset: Option<u64>,
        extents: &[Extent],
    ) -> Result<u32, FetchError> {
        let first = self.next(Section::Extents)?;
        for extent in extents {
            let record = [extent.file_offset, extent.offset, extent.len].map(u64::to_le_bytes).concat();
            self.append(Section::Extents, &record)?;
        }
        let number = self.next(Section::Files)?;
        let count = u32::try_from(extents.len()).map_err(|_| too_large())?;
        let mut record = Vec::with_capacity(Section::Files.record());
        record.extend(digest.map_or([0; 32], |digest| *digest.as_bytes()));
        record.extend(size.to_le_bytes());
        record.extend(pack_offset.unwrap_or(NOT_PACKED).to_le_bytes());
        let flags = if digest.is_none() { DIGEST_UNKNOWN } else { 0 };
        record.extend([first, count, self.next(Section::Entries)?, flags].map(u32::to_le_bytes).concat());
        self.append(Section::Files, &record)?;
        Ok(number)
    }

    /// Adds an entry; `file` is the number of its content if it is a regular file.
    pub(crate) fn entry(&mut self, member: &Member, file: u32) -> Result<(), FetchError> {
        let (kind, a, b) = match &member.kind {
            MemberKind::Dir => (0, 0, 0),
            MemberKind::File { .. } => (1, file, 0),
            MemberKind::Symlink(target) => self.string(target).map(|(at, len)| (2, at, len))?,
            MemberKind::Hardlink(target) => self.string(target).map(|(at, len)| (3, at, len))?,
            MemberKind::Char(major, minor) => (4, *major, *minor),
            MemberKind::Block(major, minor) => (5, *major, *minor),
            MemberKind::Fifo => (6, 0, 0),
        };
        let (path, path_len) = self.string(&member.path)?;
        let xattr_first = self.next(Section::Xattrs)?;
        for (name, value) in &member.xattrs {
            let ((name, name_len), (value, value_len)) = (self.string(name)?, self.string(value)?);
            let record = [name, name_len, value, value_len].map(u32::to_le_bytes).concat();
            self.append(Section::Xattrs, &record)?;
        }
        let mut record = Vec::with_capacity(Section::Entries.record());
        record.extend([path, path_len, kind | u32::from(member.mode) << 16].map(u32::to_le_bytes).concat());
        record.extend([member.uid, member.gid, member.mtime_nsec].map(u32::to_le_bytes).concat());
        record.extend(member.mtime_sec.to_le_bytes());
        let xattrs = u32::try_from(member.xattrs.len()).map_err(|_| too_large())?;
        record.extend([a, b, xattr_first, xattrs].map(u32::to_le_bytes).concat());
        self.append(Section::Entries, &record)
    }

    /// Writes the whole index to `out`.
    pub(crate) fn finish(
        mut self,
        spans: SpanBuilder,
        summary: &Summary,
        out: &mut impl Write,
    ) -> Result<(), FetchError> {
        self.spools[Section::Spans as usize] = spans.spans;
        self.spools[Section::Windows as usize] = spans.windows;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend(summary.format.code().to_le_bytes());
        header.extend(summary.layer.as_bytes());
        let sizes = [summary.blob_size, summary.decoded_size, summary.pack_size];
        header.extend(sizes.map(u64::to_le_bytes).concat());
        let mut at = HEADER as u64;
        for spool in &self.spools {
            header.extend([at, spool.len].map(u64::to_le_bytes).concat());
            at += spool.len;
        }
        let mut hasher = Hasher::new();
        let mut write = |bytes: &[u8]| {
            hasher.update(bytes);
            out.write_all(bytes)
        };
        write(&header)
            .and_then(|()| self.spools.iter_mut().try_for_each(|spool| spool.copy(&mut write)))
            .map_err(stored)?;
        out.write_all(hasher.finish().as_bytes()).map_err(stored)
    }

    fn string(&mut self, text: &[u8]) -> Result<(u32, u32), FetchError> {
        let at = self.next(Section::Strings)?;
        self.append(Section::Strings, text)?;
        Ok((at, u32::try_from(text.len()).map_err(|_| too_large())?))
    }

    /// The number that the next record of `section` gets.
    fn next(&self, section: Section) -> Result<u32, FetchError> {
        let records = self.spools[section as usize].len / section.record() as u64;
        u32::try_from(records).map_err(|_| too_large())
    }

    fn append(&mut self, section: Section, record: &[u8]) -> Result<(), FetchError> {
        self.spools[section as usize].append(record)
    }
}

impl SpanBuilder {
    /// No spans; spools as in [`IndexBuilder::new`].
    pub(crate) fn new(directory: &Path) -> Self {
        Self { spans: Spool::new(directory), windows: Spool::new(directory) }
    }

    /// Adds the next span.
    pub(crate) fn span(&mut self, span: &NewSpan) -> Result<(), FetchError> {
        let window_offset = self.windows.len;
        let window_len = u32::try_from(span.window.len()).map_err(|_| too_large())?;
        self.windows.append(&span.window)?;
        let (kind, bits) = match span.kind {
            SpanKind::Stored => (0, 0),
            SpanKind::GzipMember => (1, 0),
            SpanKind::Deflate { bits } => (2, bits),
            SpanKind::ZstdFrames => (3, 0),
        };
        let numbers = [span.in_start, span.in_end, span.out_start, span.out_len, window_offset];
        let mut record = numbers.map(u64::to_le_bytes).concat();
        record.extend(window_len.to_le_bytes());
        let (proof, digest) = match &span.proof {
            Proof::Decoded(digest) => (0, digest),
            Proof::Encoded(digest) => (1, digest),
        };
        record.extend([kind, bits, proof, 0]);
        record.extend(digest.as_bytes());
        let entry = span.entry.map_or(Some(0), |entry| entry.checked_add(1)).ok_or_else(too_large)?;
        record.extend([span.skip, entry].map(u32::to_le_bytes).concat());
        self.spans.append(&record)
    }
}

impl Spool {
    fn new(directory: &Path) -> Self {
        Self { data: BufWriter::new(tempfile::spooled_tempfile_in(SPOOL, directory)), len: 0 }
    }

    fn append(&mut self, record: &[u8]) -> Result<(), FetchError> {
        self.data.write_all(record).map_err(stored)?;
        self.len += record.len() as u64;
        Ok(())
    }

    fn copy(&mut self, write: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.data.flush()?;
        let data = self.data.get_mut();
        data.rewind()?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match data.read(&mut buffer)? {
                0 => return Ok(()),
                n => write(buffer.get(..n).unwrap_or_default())?,
            }
        }
    }
}

fn stored(error: io::Error) -> FetchError {
    FetchError::storage("cannot write the layer index", &error)
}

fn too_large() -> FetchError {
    FetchError::corrupt(
        Side::Remote,
        "layer has more names or content than an index can hold (4 GiB of names)",
    )
}

/// The index of a plain tar archive in memory, as one span: for tools and tests that need entries, not content.
pub fn index_tar(tar: &[u8]) -> Result<LayerIndex, FetchError> {
    let directory = std::env::temp_dir();
    let (mut builder, mut spans) = (IndexBuilder::new(&directory), SpanBuilder::new(&directory));
    let mut walker = Walker::new(tar);
    while let Some(member) = walker.next()? {
        let mut number = 0;
        if let MemberKind::File { size, extents } = &member.kind {
            let mut content = ContentHasher::new(*size);
            walker.data(|offset, bytes| {
                content.add(offset, bytes);
                Ok(())
            })?;
            number = builder.file(Some(&content.finish()), *size, None, extents)?;
        }
        builder.entry(&member, number)?;
    }
    let (layer, size) = (Digest::of(tar), tar.len() as u64);
    if size > 0 {
        spans.span(&NewSpan {
            kind: SpanKind::Stored,
            in_start: 0,
            in_end: size,
            out_start: 0,
            out_len: size,
            proof: Proof::Decoded(layer),
            window: Vec::new(),
            skip: 0,
            entry: None,
        })?;
    }
    let summary = Summary { layer, blob_size: size, decoded_size: size, pack_size: 0, format: Format::Tar };
    let mut bytes = Vec::new();
    builder.finish(spans, &summary, &mut bytes)?;
    LayerIndex::from_bytes(bytes)
}

/// Hashes a file's content from its stored parts, the zeros between them included.
#[derive(Debug)]
pub(crate) struct ContentHasher {
    hasher: Hasher,
    at: u64,
    size: u64,
}

impl ContentHasher {
    /// For a file of `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { hasher: Hasher::new(), at: 0, size }
    }

    /// Adds `bytes` at `offset`; parts come in order.
    pub(crate) fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.zeros_up_to(offset);
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
    }

    /// The digest of the whole content.
    pub(crate) fn finish(mut self) -> Digest {
        self.zeros_up_to(self.size);
        self.hasher.finish()
    }

    fn zeros_up_to(&mut self, offset: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while self.at < offset {
            let n = usize::try_from(offset - self.at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.hasher.update(&ZEROS[..n]);
            self.at += n as u64;
        }
    }
}
