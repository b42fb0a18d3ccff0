//! How a layer's archive is compressed. The same archive gives the same bytes; levels and frame sizes below are part of
//! what makes a digest: changing one changes every digest.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use zstd::bulk::Compressor;

use crate::policy::image::{OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};

/// gzip's own default.
const GZIP_LEVEL: u32 = 6;

/// Slower than zstd's default of 3, and smaller: an image is built once and fetched often.
const ZSTD_LEVEL: i32 = 9;

/// Archive bytes in a zstd frame. Readers can begin at any frame; smaller ones compress worse.
const FRAME: usize = 1 << 20;

/// What layers are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LayerFormat {
    /// tar+gzip, which every tool reads
    Gzip,
    /// tar+zstd in frames of 1 MiB, smaller and faster to decode; containerd, podman and skopeo read it
    Zstd,
    /// tar without compression
    Tar,
}

impl LayerFormat {
    /// The media type of a layer (image-spec, `media-types.md`).
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => OCI_LAYER_GZIP,
            Self::Zstd => OCI_LAYER_ZSTD,
            Self::Tar => OCI_LAYER,
        }
    }
}

/// Takes an archive, gives the blob to `W`.
pub(super) enum Compress<W: Write> {
    Gzip(Box<GzEncoder<W>>),
    Zstd(Box<Frames<W>>),
    Tar(W),
}

impl<W: Write> Compress<W> {
    pub(super) fn new(format: LayerFormat, out: W) -> io::Result<Self> {
        Ok(match format {
            // Neither a name, a time nor the system goes into the gzip header.
            LayerFormat::Gzip => Self::Gzip(Box::new(
                GzBuilder::new().operating_system(255).write(out, Compression::new(GZIP_LEVEL)),
            )),
            LayerFormat::Zstd => Self::Zstd(Box::new(Frames::new(out)?)),
            LayerFormat::Tar => Self::Tar(out),
        })
    }

    /// Writes what is held back.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(frames) => frames.finish(),
            Self::Tar(out) => Ok(out),
        }
    }
}

impl<W: Write> Write for Compress<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(frames) => frames.write(bytes),
            Self::Tar(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.flush(),
            // A frame ends where it is full, not where somebody flushes: the digest would depend on it.
            Self::Zstd(frames) => frames.out.flush(),
            Self::Tar(out) => out.flush(),
        }
    }
}

/// Zstd frames of [`FRAME`] bytes each, with checksums.
pub(super) struct Frames<W> {
    out: W,
    compressor: Compressor<'static>,
    frame: Vec<u8>,
}

impl<W: Write> Frames<W> {
    fn new(out: W) -> io::Result<Self> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        compressor.include_checksum(true)?;
        Ok(Self { out, compressor, frame: Vec::with_capacity(FRAME) })
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let frame = self.compressor.compress(&self.frame)?;
        self.frame.clear();
        self.out.write_all(&frame)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.len() == FRAME {
            self.end_frame()?;
        }
        let taken = bytes.len().min(FRAME - self.frame.len());
        self.frame.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn finish(mut self) -> io::Result<W> {
        self.end_frame()?;
        Ok(self.out)
    }
}
