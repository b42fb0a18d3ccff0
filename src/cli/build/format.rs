//! What layers are written as. Levels and sizes below are part of what makes a digest: changing one changes every
//! digest.

use super::pieces::Codec;
use crate::policy::image::{OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};

/// eStargz's own default for chunks (stargz-snapshotter, `estargz/estargz.go`).
const ESTARGZ_CHUNK: usize = 4 << 20;

/// Archive bytes of a zstd frame. Readers can begin at any frame; smaller ones compress worse.
const ZSTD_FRAME: usize = 1 << 20;

/// gzip's own default.
pub(super) const GZIP_LEVEL: u32 = 6;

/// Slower than zstd's default of 3, and smaller: an image is built once and fetched often.
pub(super) const ZSTD_LEVEL: i32 = 9;

/// What layers are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LayerFormat {
    /// tar+gzip with a table of contents, files of it read on demand; every tool reads it as tar+gzip
    Estargz,
    /// tar+zstd with a table of contents, which podman pulls in parts; containerd, podman and skopeo read it
    ZstdChunked,
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
            Self::Estargz | Self::Gzip => OCI_LAYER_GZIP,
            Self::ZstdChunked | Self::Zstd => OCI_LAYER_ZSTD,
            Self::Tar => OCI_LAYER,
        }
    }

    /// How the pieces are compressed that an archive is cut into, and most bytes of one; none where the archive is
    /// one stream. With a table of contents, this is also the size of a chunk.
    pub(super) fn pieces(self) -> Option<(Codec, usize)> {
        match self {
            Self::Estargz => Some((Codec::GzipMember, ESTARGZ_CHUNK)),
            Self::ZstdChunked | Self::Zstd => Some((Codec::ZstdFrame, ZSTD_FRAME)),
            Self::Gzip | Self::Tar => None,
        }
    }
}
