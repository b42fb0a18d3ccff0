//! eStargz: a tar.gz whose last entry is a table of contents (stargz-snapshotter, `docs/estargz.md`,
//! `estargz/gzip.go`).

use std::io::{self, Write};

use flate2::{Compress, Compression};
use tar::{EntryType, Header};

use super::archive::{BLOCK, padding};
use super::pieces::{Offsets, gzip_member};
use super::toc::Toc;
use crate::fetch::bound_toc::ESTARGZ_TOC_OFFSET;
use crate::policy::digest::Digest;

/// The TOC's name in the archive.
const TOC_NAME: &str = "stargz.index.json";

/// Ends what is to be fetched ahead; a layer without such files says so with the other one.
const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// What a landmark holds.
pub(super) const LANDMARK: &[u8] = &[0x0f];

/// Names at the archive's root that are the format's own.
pub(super) const OWN_NAMES: [&str; 3] = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];

/// Annotations of the layer's descriptor: the TOC's digest before compression, the archive's size.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// The TOC is fetched at every first mount, and made once.
const TOC_LEVEL: u32 = 9;

/// The name of the landmark.
pub(super) fn landmark(prefetch: bool) -> &'static str {
    if prefetch { PREFETCH_LANDMARK } else { NO_PREFETCH_LANDMARK }
}

/// Writes the TOC and the end of the archive to `archive`, compressed to `blob`, and the footer; gives the TOC's
/// digest.
pub(super) fn finish(
    toc: Toc,
    offsets: &Offsets,
    archive: &mut impl Write,
    blob: &mut impl Write,
) -> anyhow::Result<Digest> {
    let json = toc.json(offsets, None)?;
    let digest = Digest::of(&json);
    let mut header = Header::new_ustar();
    header.set_path(TOC_NAME)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o444);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(json.len() as u64);
    header.set_cksum();
    let tail = [header.as_bytes().as_slice(), &json, padding(json.len() as u64), &[0; 2 * BLOCK]].concat();
    drop(json);
    archive.write_all(&tail)?;
    let mut deflate = Compress::new(Compression::new(TOC_LEVEL), false);
    // One member, however large: readers of the TOC read one.
    blob.write_all(&gzip_member(&mut deflate, &tail)?)?;
    write_footer(blob, offsets.end())?;
    Ok(digest)
}

/// An empty gzip member of 51 bytes, whose extra field (RFC 1952, section 2.3.1.1) tells where the TOC's begins.
fn write_footer(blob: &mut impl Write, toc: u64) -> io::Result<()> {
    blob.write_all(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0])?;
    write!(blob, "{toc:016x}STARGZ")?;
    // A last block that is stored and empty, a checksum of nothing, a length of nothing.
    blob.write_all(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The annotations of the layer's descriptor, sorted. `toc_offset` is where in the blob the TOC begins.
pub(super) fn annotations(toc: &Digest, toc_offset: u64, archive_size: u64) -> Vec<(String, String)> {
    vec![
        (TOC_DIGEST.to_owned(), toc.to_string()),
        (ESTARGZ_TOC_OFFSET.to_owned(), toc_offset.to_string()),
        (UNCOMPRESSED_SIZE.to_owned(), archive_size.to_string()),
    ]
}
