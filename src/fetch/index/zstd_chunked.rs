//! zstd:chunked: where the table of contents lies, and taking it out.
//!
//! ```text
//! frames of the tar ... | skippable: table | skippable: tar-split, in one dialect | skippable: footer
//! ```
//! The place is taken from the descriptor's annotations, as c/storage does; the footer, which nothing binds, only tells
//! what a blob is. The table's digest is of its compressed bytes in both dialects (container-libs
//! `storage/pkg/chunked/internal/minimal/compression.go`; stargz-snapshotter `estargz/zstdchunked/zstdchunked.go`).

use std::io::{Read as _, Write};

use crate::fetch::error::{FetchError, Side};

/// Payload lengths and magic numbers of the two dialects' footers: containers, stargz.
const FOOTERS: [(usize, &[u8; 8]); 2] = [(64, b"GNUlInUx"), (40, b"GnUlInUx")];
/// Header of a skippable frame: magic (RFC 8878, 3.1.2) and length.
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Bytes of the longest footer, with the header of its frame.
pub(crate) const FOOTER: usize = 8 + 64;

/// Where an annotation says that the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// First byte in the blob, behind the header of the frame.
    pub offset: u64,
    /// Bytes there.
    pub len: u64,
    /// Bytes of the JSON.
    pub decoded: u64,
}

impl Position {
    /// `offset:length:decoded length:type`; the only type is 1.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').map(|part| part.parse().ok());
        let mut next = || parts.next().flatten();
        let (position, kind) = (Self { offset: next()?, len: next()?, decoded: next()? }, next()?);
        (kind == 1 && parts.next().is_none()).then_some(position)
    }
}

/// Whether a blob that ends so is zstd:chunked.
pub(crate) fn is_footer(end: &[u8]) -> bool {
    FOOTERS.iter().any(|(len, magic)| {
        let frame = end.len().checked_sub(len + 8).and_then(|start| end.get(start..));
        frame.is_some_and(|frame| {
            let header = [&SKIPPABLE[..], &u32::try_from(*len).unwrap_or(0).to_le_bytes()].concat();
            frame.starts_with(&header) && frame.ends_with(*magic)
        })
    })
}

/// Copies the table's JSON out of its frame to `out`: exactly as many bytes as the annotation says.
pub(crate) fn extract(frame: &[u8], decoded: u64, out: &mut impl Write) -> Result<(), FetchError> {
    let broken = |what: &str| FetchError::corrupt(Side::Remote, format!("table of contents: {what}"));
    let decoder = zstd::stream::read::Decoder::with_buffer(frame)
        .map_err(|error| FetchError::storage("cannot make a zstd decoder", &error))?;
    let mut limited = decoder.take(decoded.saturating_add(1));
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let n =
            limited.read(&mut buffer).map_err(|error| broken(&format!("not sound zstd data: {error}")))?;
        if n == 0 {
            break;
        }
        total += n as u64;
        out.write_all(buffer.get(..n).unwrap_or_default())
            .map_err(|error| FetchError::storage("cannot keep a table of contents", &error))?;
    }
    if total == decoded { Ok(()) } else { Err(broken("it has not the length that the manifest says")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let good = Position { offset: 100, len: 20, decoded: 300 };
        assert_eq!(Position::parse("100:20:300:1"), Some(good));
        for bad in ["", "1:2:3", "1:2:3:2", "1:2:3:1:4", "a:2:3:1", "-1:2:3:1", "99999999999999999999:1:1:1"]
        {
            assert_eq!(Position::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn footers_of_both_dialects() {
        for (len, magic) in FOOTERS {
            let mut footer = [&SKIPPABLE[..], &u32::try_from(len).unwrap().to_le_bytes()].concat();
            footer.extend(vec![7; len - 8]);
            footer.extend(magic);
            assert!(is_footer(&[&b"before"[..], &footer].concat()));
            for at in (0..8).chain(len..len + 8) {
                let mut bad = footer.clone();
                bad[at] ^= 0x40;
                assert!(!is_footer(&bad), "{len}, byte {at}");
            }
        }
        assert!(!is_footer(b"GNUlInUx"));
    }
}
