//! eStargz: where the table of contents lies, and taking it out.
//!
//! ```text
//! gzip members of the tar ... | member: tar header, stargz.index.json, end of the tar | footer, an empty member
//! ```
//! The footer's gzip header carries the table's place in its extra field (stargz-snapshotter `docs/estargz.md`,
//! `estargz/gzip.go`; legacy stargz: `estargz/legacygzip`, table elsewhere: `estargz/externaltoc`).

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::GzDecoder;

use super::tar::{Decoded, MemberKind, Walker};
use crate::fetch::error::{FetchError, Side};

/// Where a footer says that the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toc {
    /// In the blob, from this byte up to the footer, which has `footer` bytes.
    At { offset: u64, footer: u64 },
    /// In an image of its own.
    Elsewhere { footer: u64 },
}

/// Bytes of the longest footer.
pub(crate) const FOOTER: usize = 51;

/// RFC 1952: magic, deflate, FEXTRA; then mtime (4), flags and system, which writers set as they like.
const HEAD: [u8; 4] = [0x1f, 0x8b, 8, 4];
const HEAD_LEN: usize = 10;
/// An empty last stored block, and CRC32 and ISIZE of nothing.
const TAIL: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
const MAGIC: &[u8] = b"STARGZ";
const EXTERNAL: &[u8] = b"STARGZEXTERNALTOC";

/// Name of the table in the tar.
const NAME: &[u8] = b"stargz.index.json";

/// What the end of a blob says, if it is an eStargz footer.
pub(crate) fn footer(end: &[u8]) -> Option<Toc> {
    [51, 47, 46].into_iter().find_map(|len| {
        let footer = end.get(end.len().checked_sub(len)?..)?;
        let extra = footer.strip_suffix(&TAIL)?;
        let (head, extra) = extra.split_at_checked(HEAD_LEN)?;
        let (xlen, extra) = extra.split_first_chunk::<2>()?;
        if !head.starts_with(&HEAD) || usize::from(u16::from_le_bytes(*xlen)) != extra.len() {
            return None;
        }
        let footer = len as u64;
        match (len, subfield(extra)) {
            (51, Some(payload)) => Some(Toc::At { offset: place(payload)?, footer }),
            // Before there were subfields.
            (47, None) => Some(Toc::At { offset: place(extra)?, footer }),
            (46, Some(EXTERNAL)) => Some(Toc::Elsewhere { footer }),
            _ => None,
        }
    })
}

/// The payload of the one subfield `SG`.
fn subfield(extra: &[u8]) -> Option<&[u8]> {
    let (len, payload) = extra.strip_prefix(b"SG")?.split_first_chunk::<2>()?;
    (usize::from(u16::from_le_bytes(*len)) == payload.len()).then_some(payload)
}

/// 16 hexadecimal digits and the magic.
fn place(payload: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(payload.strip_suffix(MAGIC)?).ok()?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Copies the table's JSON out of `archive`, a tar.gz that holds it, to `out`: at most `limit` bytes.
pub(crate) fn extract(archive: &[u8], limit: u64, out: &mut impl Write) -> Result<(), FetchError> {
    let unsound = |what: &str| FetchError::corrupt(Side::Remote, format!("table of contents: {what}"));
    let mut walker = Walker::new(Inflated(BufReader::with_capacity(64 << 10, GzDecoder::new(archive))));
    while let Some(member) = walker.next()? {
        let MemberKind::File { size, .. } = member.kind else { continue };
        if member.path != NAME {
            continue;
        }
        if size > limit {
            return Err(unsound(&format!("it has {size} bytes, and at most {limit} are read")));
        }
        return walker.data(|_, bytes| {
            out.write_all(bytes)
                .map_err(|error| FetchError::storage("cannot keep a table of contents", &error))
        });
    }
    Err(unsound("it is not where the footer says"))
}

struct Inflated<R>(BufReader<R>);

impl<R: Read> Decoded for Inflated<R> {
    fn fill(&mut self) -> Result<&[u8], FetchError> {
        let broken = |error: io::Error| {
            FetchError::corrupt(Side::Remote, format!("table of contents: not sound gzip data: {error}"))
        };
        self.0.fill_buf().map_err(broken)
    }

    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(extra: &[u8]) -> Vec<u8> {
        let xlen = u16::try_from(extra.len()).unwrap().to_le_bytes();
        [&HEAD, &[0, 0, 0, 0, 0, 255][..], &xlen, extra, &TAIL].concat()
    }

    #[test]
    fn three_footers_and_nothing_else() {
        let current = made(b"SG\x16\x0000000000000001f0STARGZ");
        let legacy = made(b"00000000000001f0STARGZ");
        let external = made(b"SG\x11\x00STARGZEXTERNALTOC");
        assert_eq!((current.len(), legacy.len(), external.len()), (51, 47, 46));
        let before = [&b"anything"[..], &current].concat();
        assert_eq!(footer(&before), Some(Toc::At { offset: 0x1f0, footer: 51 }));
        assert_eq!(footer(&legacy), Some(Toc::At { offset: 0x1f0, footer: 47 }));
        assert_eq!(footer(&external), Some(Toc::Elsewhere { footer: 46 }));
        for at in 0..current.len() {
            let mut bad = current.clone();
            bad[at] ^= 0x81;
            // The time and the system are the writer's.
            assert!(footer(&bad).is_none() || (4..10).contains(&at), "byte {at}");
        }
        for bad in [&b""[..], &current[1..], &current[..50], b"\x1f\x8b"] {
            assert_eq!(footer(bad), None);
        }
    }
}
