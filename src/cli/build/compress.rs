//! How a layer's archive becomes a blob: as it is, as one gzip stream, or in pieces.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::format::{GZIP_LEVEL, LayerFormat};
use super::pieces::{Offsets, PieceNumber, Pieces};

/// Takes an archive, gives the blob to `W`.
pub(super) enum Compress<W: Write> {
    Tar(W),
    Gzip(Box<GzEncoder<W>>),
    Pieces(Box<Pieces<W>>),
}

impl<W: Write> Compress<W> {
    pub(super) fn new(format: LayerFormat, out: W) -> io::Result<Self> {
        Ok(match (format.pieces(), format) {
            (Some((codec, limit)), _) => Self::Pieces(Box::new(Pieces::new(codec, limit, out)?)),
            (None, LayerFormat::Tar) => Self::Tar(out),
            // Neither a name, a time nor the system goes into the gzip header.
            (None, _) => Self::Gzip(Box::new(
                GzBuilder::new().operating_system(255).write(out, Compression::new(GZIP_LEVEL)),
            )),
        })
    }

    /// Has the next byte begin a piece, and tells which; of no meaning where there are no pieces.
    pub(super) fn cut(&mut self) -> io::Result<PieceNumber> {
        match self {
            Self::Pieces(pieces) => pieces.cut(),
            Self::Tar(_) | Self::Gzip(_) => Ok(PieceNumber::default()),
        }
    }

    /// Writes what is held back.
    pub(super) fn finish(self) -> io::Result<(W, Offsets)> {
        match self {
            Self::Tar(out) => Ok((out, Offsets::default())),
            Self::Gzip(gzip) => Ok((gzip.finish()?, Offsets::default())),
            Self::Pieces(pieces) => pieces.finish(),
        }
    }
}

impl<W: Write> Write for Compress<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tar(out) => out.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Pieces(pieces) => pieces.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tar(out) => out.flush(),
            Self::Gzip(gzip) => gzip.flush(),
            Self::Pieces(pieces) => pieces.flush(),
        }
    }
}
