//! zstd:chunked as containers/storage has it: a tar.zst after whose archive come a table of contents, a tar-split and
//! a footer in frames that decoders skip (`pkg/chunked/internal/minimal/compression.go`).

use std::io::{self, Write};

use anyhow::Context as _;

use super::format::ZSTD_LEVEL;
use super::pieces::Offsets;
use super::tar_split::TarSplit;
use super::toc::Toc;
use crate::policy::digest::Digest;

/// The first of the magic numbers of skippable frames (RFC 8878, section 3.1.2).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// A skippable frame's magic number and its length.
const FRAME_HEADER: u64 = 8;

/// The kind of TOC, of which there is one.
const MANIFEST_TYPE: u64 = 1;

/// The footer's last bytes.
const MAGIC: &[u8; 8] = b"GNUlInUx";

/// Annotations of the layer's descriptor: digest of the TOC's compressed bytes, where it lies, where the tar-split
/// lies.
const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const TAR_SPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Where something lies in the blob, and its size before compression.
struct Place {
    offset: u64,
    size: u64,
    raw_size: u64,
}

/// Writes what follows the archive; gives the annotations of the layer's descriptor, sorted.
pub(super) fn finish(
    toc: Toc,
    tar_split: TarSplit,
    offsets: &Offsets,
    blob: &mut impl Write,
) -> anyhow::Result<Vec<(String, String)>> {
    let (tar_split, tar_split_raw) = tar_split.finish()?;
    let json = toc.json(offsets, Some(Digest::of(&tar_split)))?;
    let compressed = zstd::bulk::compress(&json, ZSTD_LEVEL)?;
    let toc = Place {
        offset: offsets.end() + FRAME_HEADER,
        size: compressed.len() as u64,
        raw_size: json.len() as u64,
    };
    let split = Place {
        offset: toc.offset + toc.size + FRAME_HEADER,
        size: tar_split.len() as u64,
        raw_size: tar_split_raw,
    };
    write_skippable(blob, &compressed)?;
    write_skippable(blob, &tar_split)?;
    let numbers =
        [toc.offset, toc.size, toc.raw_size, MANIFEST_TYPE, split.offset, split.size, split.raw_size];
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    footer.extend_from_slice(MAGIC);
    write_skippable(blob, &footer)?;
    Ok(vec![
        (CHECKSUM.to_owned(), Digest::of(&compressed).to_string()),
        (POSITION.to_owned(), format!("{}:{}:{}:{MANIFEST_TYPE}", toc.offset, toc.size, toc.raw_size)),
        (TAR_SPLIT_POSITION.to_owned(), format!("{}:{}:{}", split.offset, split.size, split.raw_size)),
    ])
}

fn write_skippable(blob: &mut impl Write, content: &[u8]) -> anyhow::Result<()> {
    let length = u32::try_from(content.len())
        .ok()
        .context("a table of contents of 4 GiB: build with --format zstd, or have fewer files")?;
    let mut write = |bytes: &[u8]| -> io::Result<()> { blob.write_all(bytes) };
    write(&SKIPPABLE)?;
    write(&length.to_le_bytes())?;
    write(content)?;
    Ok(())
}
