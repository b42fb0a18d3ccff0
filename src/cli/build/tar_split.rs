//! The tar-split of an archive: all of it but the content of its files, so that who has the files can make the
//! archive again, byte for byte (vbatts/tar-split, `tar/storage/entry.go`).
//!
//! containers/storage pulls a zstd:chunked layer in parts only where it has one, for it computes the layer's diff_id
//! by it (`pkg/chunked/storage_linux.go`, `makeZstdChunkedDiffer`). Its rules: one segment for each header with its
//! extensions, the padding of the file before at the segment's beginning (`tar/asm/iterate.go`).

use std::io::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc::{CRC_64_GO_ISO, Crc, Digest, Table};
use serde::Serialize;

use super::format::ZSTD_LEVEL;

/// Go's `crc64.ISO`; with sixteen tables it is no slower than what else is done with a file.
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// Writes JSON lines, compressed with zstd.
pub(super) struct TarSplit {
    out: zstd::stream::Encoder<'static, Vec<u8>>,
    /// Bytes before compression.
    size: u64,
    /// The number of the next line.
    position: u64,
    segment: Vec<u8>,
    crc: Digest<'static, u64, Table<16>>,
}

#[derive(Serialize)]
struct Line<'l> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<String>,
    position: u64,
}

impl TarSplit {
    pub(super) fn new() -> io::Result<Self> {
        let out = zstd::stream::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        Ok(Self { out, size: 0, position: 0, segment: Vec::new(), crc: CRC.digest() })
    }

    /// Headers and padding.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.segment.extend_from_slice(bytes);
    }

    /// Content of a file.
    pub(super) fn content(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    /// Ends an entry, with or without content, after its content and before its padding.
    pub(super) fn entry(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.end_segment()?;
        let sum = std::mem::replace(&mut self.crc, CRC.digest()).finalize();
        let payload = (size > 0).then(|| STANDARD.encode(sum.to_be_bytes()));
        let line = Line {
            kind: FILE,
            name: Some(name),
            size: (size > 0).then_some(size),
            payload,
            position: self.position,
        };
        self.write(&line)
    }

    fn end_segment(&mut self) -> io::Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let payload = Some(STANDARD.encode(&self.segment));
        self.segment.clear();
        self.write(&Line { kind: SEGMENT, name: None, size: None, payload, position: self.position })
    }

    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        self.size += json.len() as u64;
        self.position += 1;
        self.out.write_all(&json)
    }

    /// The compressed lines, and their size before compression.
    pub(super) fn finish(mut self) -> io::Result<(Vec<u8>, u64)> {
        self.end_segment()?;
        Ok((self.out.finish()?, self.size))
    }
}
