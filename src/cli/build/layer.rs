//! One layer: a folder as an archive, and the archive as a blob in a temporary file, with its digest and diff_id.
//!
//! Nothing of the folder is held in memory but names, and pieces of files on their way through the threads that
//! compress them.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context as _;
use tempfile::NamedTempFile;

use super::archive::{self, BLOCK, Head, padding};
use super::compress::Compress;
use super::first::Order;
use super::format::LayerFormat;
use super::hashing::Hashing;
use super::pieces::PieceNumber;
use super::tar_split::TarSplit;
use super::toc::{Chunk, Content, Dialect, Toc};
use super::tree::{Entry, Kind, Tree};
use super::{estargz, zstd_chunked};
use crate::fetch::layer::head::PREFETCH_END;
use crate::policy::digest::{Digest, Hasher};
use crate::policy::image::Descriptor;

/// The mode of the folder that files are put under: its own would be an accident of how it was made.
const PREFIX_MODE: u32 = 0o755;

/// The mode of files that the format adds.
const LANDMARK_MODE: u32 = 0o444;

/// How much of a file is read at once.
const READ: usize = 128 << 10;

/// A layer in a temporary file.
#[derive(Debug)]
pub(super) struct BuiltLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the archive before compression.
    pub diff_id: Digest,
    /// The bytes.
    pub file: NamedTempFile,
}

/// Packs a tree in the order given. What is added to it has the time `created`.
pub(super) fn pack(
    tree: &Tree,
    order: &Order,
    created: u64,
    format: LayerFormat,
) -> anyhow::Result<BuiltLayer> {
    let file = NamedTempFile::new().context("cannot make a temporary file for a layer")?;
    let mut layer = Writer::new(format, created, file.reopen()?)?;
    if !tree.prefix.as_os_str().is_empty() {
        let dir = Entry { path: tree.prefix.clone(), kind: Kind::Dir, mode: PREFIX_MODE, mtime: created };
        layer.add(Path::new(""), &dir, io::empty())?;
    }
    for (nth, entry) in order.entries(tree).enumerate() {
        if nth == order.first {
            layer.landmark(order.first > 0)?;
        }
        let path = tree.root.join(&entry.path);
        let added = match entry.kind {
            Kind::File { .. } => File::open(&path)
                .map_err(Into::into)
                .and_then(|content| layer.add(&tree.prefix, entry, content)),
            _ => layer.add(&tree.prefix, entry, io::empty()),
        };
        added.with_context(|| format!("cannot pack {}", path.display()))?;
    }
    if order.first == tree.entries.len() {
        layer.landmark(order.first > 0)?;
    }
    let (descriptor, diff_id) = layer.finish().context("cannot write a layer")?;
    Ok(BuiltLayer { descriptor, diff_id, file })
}

type Blob = Hashing<BufWriter<File>>;

/// A layer that grows.
struct Writer {
    format: LayerFormat,
    created: u64,
    archive: Hashing<Compress<Blob>>,
    index: Option<Index>,
    buffer: Vec<u8>,
}

/// What is noted of the archive for its table of contents.
struct Index {
    dialect: Dialect,
    /// Most bytes of a chunk.
    chunk: u64,
    toc: Toc,
    tar_split: Option<TarSplit>,
    /// The piece before which everything is that is to be fetched ahead.
    prefetch_end: Option<PieceNumber>,
}

impl Index {
    fn new(format: LayerFormat) -> io::Result<Option<Self>> {
        let (dialect, tar_split) = match format {
            LayerFormat::Estargz => (Dialect::Estargz, None),
            LayerFormat::ZstdChunked => (Dialect::ZstdChunked, Some(TarSplit::new()?)),
            LayerFormat::Gzip | LayerFormat::Zstd | LayerFormat::Tar => return Ok(None),
        };
        let chunk = format.pieces().map_or(u64::MAX, |(_, limit)| limit as u64);
        Ok(Some(Self { dialect, chunk, toc: Toc::default(), tar_split, prefetch_end: None }))
    }
}

impl Writer {
    fn new(format: LayerFormat, created: u64, file: File) -> io::Result<Self> {
        let blob = Hashing::new(BufWriter::new(file));
        let archive = Hashing::new(Compress::new(format, blob)?);
        Ok(Self { format, created, archive, index: Index::new(format)?, buffer: vec![0; READ] })
    }

    /// Adds an entry under `prefix`; `content` is that of a file. Gives the piece that its first chunk begins.
    fn add(
        &mut self,
        prefix: &Path,
        entry: &Entry,
        content: impl Read,
    ) -> anyhow::Result<Option<PieceNumber>> {
        let head = archive::head(prefix, entry)?;
        self.raw(&head.blocks)?;
        let size = if let Kind::File { size } = entry.kind { size } else { 0 };
        let noted = self.content(content, size)?;
        let begin = noted.as_ref().and_then(|content| content.chunks.first()).map(|chunk| chunk.piece);
        self.note(entry, &head, size, noted)?;
        self.raw(padding(size))?;
        Ok(begin)
    }

    /// Ends what is to be fetched ahead, if there was anything; a file tells it to readers of eStargz.
    fn landmark(&mut self, prefetch: bool) -> anyhow::Result<()> {
        let end = if self.format == LayerFormat::Estargz {
            let kind = Kind::File { size: estargz::LANDMARK.len() as u64 };
            let path = estargz::landmark(prefetch).into();
            let entry = Entry { path, kind, mode: LANDMARK_MODE, mtime: self.created };
            // To its readers a chunk ends where the next one begins.
            self.add(Path::new(""), &entry, estargz::LANDMARK)?
        } else {
            self.index.is_some().then(|| self.archive.inner().cut()).transpose()?
        };
        if let Some(index) = self.index.as_mut().filter(|_| prefetch) {
            index.prefetch_end = end;
        }
        Ok(())
    }

    /// Headers and padding.
    fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.archive.write_all(bytes)?;
        if let Some(tar_split) = self.index.as_mut().and_then(|index| index.tar_split.as_mut()) {
            tar_split.raw(bytes);
        }
        Ok(())
    }

    /// The `size` bytes of a file: in chunks where there is a table of contents. A file that grows is cut; one that
    /// shrinks would shift everything after it.
    fn content(&mut self, mut from: impl Read, size: u64) -> anyhow::Result<Option<Content>> {
        if size == 0 {
            return Ok(None);
        }
        let Some(most) = self.index.as_ref().map(|index| index.chunk) else {
            self.copy(&mut from, size, &mut [])?;
            return Ok(None);
        };
        let (mut whole, mut chunks, mut offset) = (Hasher::new(), Vec::new(), 0);
        while offset < size {
            let piece = self.archive.inner().cut()?;
            let (length, mut hasher) = (most.min(size - offset), Hasher::new());
            // Most files are one chunk, and hashed once.
            if size <= most {
                self.copy(&mut from, length, &mut [&mut hasher])?;
            } else {
                self.copy(&mut from, length, &mut [&mut hasher, &mut whole])?;
            }
            chunks.push(Chunk { piece, offset, size: length, digest: hasher.finish() });
            offset += length;
        }
        let digest = match chunks.as_slice() {
            [only] => only.digest,
            _ => whole.finish(),
        };
        // In zstd:chunked a chunk's frames hold nothing else; in eStargz the headers that follow go with it.
        let after = match self.format {
            LayerFormat::ZstdChunked => self.archive.inner().cut()?,
            _ => Default::default(),
        };
        Ok(Some(Content { digest, chunks, after }))
    }

    fn copy(&mut self, from: &mut impl Read, size: u64, hashers: &mut [&mut Hasher]) -> anyhow::Result<()> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = match from.read(self.buffer.get_mut(..most).unwrap_or_default()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            anyhow::ensure!(read > 0, "it shrank while it was read: build again");
            let bytes = self.buffer.get(..read).unwrap_or_default();
            self.archive.write_all(bytes)?;
            for hasher in hashers.iter_mut() {
                hasher.update(bytes);
            }
            if let Some(tar_split) = self.index.as_mut().and_then(|index| index.tar_split.as_mut()) {
                tar_split.content(bytes);
            }
            left -= read as u64;
        }
        Ok(())
    }

    fn note(
        &mut self,
        entry: &Entry,
        head: &Head,
        size: u64,
        content: Option<Content>,
    ) -> anyhow::Result<()> {
        let Some(index) = &mut self.index else { return Ok(()) };
        let name = index.toc.push(index.dialect, entry, head, content)?;
        if let Some(tar_split) = &mut index.tar_split {
            tar_split.entry(&name, size)?;
        }
        Ok(())
    }

    /// Ends the archive and the blob.
    fn finish(mut self) -> anyhow::Result<(Descriptor, Digest)> {
        if self.format != LayerFormat::Estargz {
            self.raw(&[0; 2 * BLOCK])?;
        }
        let (compress, archive) = self.archive.with(io::sink());
        let (mut blob, offsets) = compress.finish()?;
        let (mut archive, mut annotations) = (archive, Vec::new());
        let prefetch_end = self.index.as_ref().and_then(|index| index.prefetch_end);
        match self.index {
            None => {}
            Some(Index { toc, tar_split: Some(tar_split), .. }) => {
                annotations = zstd_chunked::finish(toc, tar_split, &offsets, &mut blob)?;
            }
            Some(Index { toc, tar_split: None, .. }) => {
                let digest = estargz::finish(toc, &offsets, &mut archive, &mut blob)?;
                annotations = estargz::annotations(&digest, offsets.end(), archive.size());
            }
        }
        if let Some(piece) = prefetch_end {
            annotations.push((PREFETCH_END.to_owned(), offsets.start(piece).to_string()));
            annotations.sort();
        }
        blob.flush()?;
        let (digest, size, _) = blob.finish();
        let media_type = self.format.media_type().to_owned();
        Ok((Descriptor { media_type, digest, size, annotations }, archive.finish().0))
    }
}
