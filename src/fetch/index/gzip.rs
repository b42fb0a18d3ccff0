//! Gzip layers: one pass with checkpoints, and decoding from a checkpoint.
//!
//! A checkpoint is either the start of a gzip member, which needs nothing, or a deflate block's boundary, which
//! needs the unused bits of the byte before and the last 32 KiB of output. Members are followed across a span in
//! both directions, so a layer of many small members (eStargz, bgzip) gets spans as large as any other. What
//! follows the last member is ignored unless it begins like a member, as gzip(1) does.

use super::decode::{Checkpoint, Event, GZIP_SPAN, PIECE, Sink};
use super::file::SpanKind;
use super::inflate::{Broken, Inflate, WINDOW, Wrap};
use crate::fetch::error::{FetchError, Side};

/// RFC 1952: CRC32 and ISIZE.
const TRAILER: usize = 8;
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Windows of programs and texts compress to about half; level 3 gained two percent of that.
const WINDOW_LEVEL: i32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a member, after so many bytes of its magic number.
    Between(usize),
    Inside,
    /// Behind the last member.
    Rest,
}

/// Where spans begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// At members and between blocks, after [`GZIP_SPAN`] decoded bytes; the first at the blob's beginning.
    Own,
    /// Between blocks only, after more than so many decoded bytes; the first behind the first header. As SOCI does
    /// (soci-snapshotter `ztoc/compression/gzip_zinfo.c`).
    Blocks(u64),
}

/// Decodes a gzip blob while it arrives.
#[derive(Debug)]
pub(crate) struct GzipScanner {
    inflate: Inflate,
    state: State,
    /// Positions in the blob and in the decoded tar.
    in_at: u64,
    out_at: u64,
    /// Where the last member ended.
    member_end: u64,
    span_start: u64,
    cut: Cut,
    /// Whether there was a checkpoint.
    begun: bool,
    piece: Vec<u8>,
    filled: usize,
}

fn broken(_: Broken) -> FetchError {
    FetchError::corrupt(Side::Remote, "not sound gzip data")
}

impl GzipScanner {
    pub(super) fn new(cut: Cut, sink: Sink<'_>) -> Result<Self, FetchError> {
        let begun = cut == Cut::Own;
        if begun {
            let (kind, window) = (SpanKind::GzipMember, Vec::new());
            sink(Event::Checkpoint(Checkpoint { kind, in_start: 0, in_end_before: 0, window }))?;
        }
        Ok(Self {
            inflate: Inflate::new(Wrap::Gzip).map_err(broken)?,
            state: State::Between(0),
            in_at: 0,
            out_at: 0,
            member_end: 0,
            span_start: 0,
            cut,
            begun,
            piece: vec![0; PIECE],
            filled: 0,
        })
    }

    pub(super) fn push(&mut self, mut input: &[u8], sink: Sink<'_>) -> Result<(), FetchError> {
        while let Some((&first, rest)) = input.split_first() {
            match self.state {
                State::Rest => return Ok(()),
                State::Between(seen) => {
                    self.state = match (seen, MAGIC.get(seen) == Some(&first)) {
                        (0, true) => State::Between(1),
                        (_, true) => State::Inside,
                        (_, false) => State::Rest,
                    };
                    self.in_at += 1;
                    input = rest;
                    if self.state == State::Inside {
                        self.begin_member(sink)?;
                    }
                }
                State::Inside => {
                    let used = self.inflate(input, sink)?;
                    input = input.get(used..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, sink: Sink<'_>) -> Result<u64, FetchError> {
        if self.state == State::Inside || self.member_end == 0 {
            return Err(FetchError::corrupt(Side::Remote, "gzip data is cut off"));
        }
        self.flush(sink)?;
        Ok(self.member_end)
    }

    /// The magic number was read; gives it to the inflater, and begins a span here if the last one is long.
    fn begin_member(&mut self, sink: Sink<'_>) -> Result<(), FetchError> {
        let start = self.in_at - MAGIC.len() as u64;
        if start > 0 {
            self.inflate.reset(Wrap::Gzip).map_err(broken)?;
            if self.cut == Cut::Own && self.is_long() {
                self.checkpoint(SpanKind::GzipMember, start, start, Vec::new(), sink)?;
            }
        }
        self.inflate.step(&MAGIC, &mut [], false).map_err(broken).map(drop)
    }

    /// One step of inflating; returns how much input it used.
    fn inflate(&mut self, input: &[u8], sink: Sink<'_>) -> Result<usize, FetchError> {
        if self.filled == self.piece.len() {
            self.flush(sink)?;
        }
        let long_enough = self.is_long();
        let room = self.piece.get_mut(self.filled..).unwrap_or_default();
        let step = self.inflate.step(input, room, long_enough).map_err(broken)?;
        self.in_at += step.consumed as u64;
        self.out_at += step.produced as u64;
        self.filled += step.produced;
        if step.end {
            self.state = State::Between(0);
            self.member_end = self.in_at;
        } else if let (true, Some(bits)) = (long_enough, step.boundary) {
            let window = self.inflate.window().map_err(broken)?;
            let window = pack_window(&window)?;
            let start = self.in_at - u64::from(bits > 0);
            self.checkpoint(SpanKind::Deflate { bits }, start, self.in_at, window, sink)?;
        } else if step.consumed == 0 && step.produced == 0 && !long_enough {
            return Err(broken(Broken));
        }
        Ok(step.consumed)
    }

    /// Whether the next place that offers itself begins a span.
    fn is_long(&self) -> bool {
        let len = self.out_at - self.span_start;
        match self.cut {
            Cut::Own => len >= GZIP_SPAN,
            Cut::Blocks(most) => len > most || !self.begun,
        }
    }

    fn checkpoint(
        &mut self,
        kind: SpanKind,
        in_start: u64,
        in_end_before: u64,
        window: Vec<u8>,
        sink: Sink<'_>,
    ) -> Result<(), FetchError> {
        self.flush(sink)?;
        (self.span_start, self.begun) = (self.out_at, true);
        sink(Event::Checkpoint(Checkpoint { kind, in_start, in_end_before, window }))
    }

    pub(super) fn flush(&mut self, sink: Sink<'_>) -> Result<(), FetchError> {
        if self.filled == 0 {
            return Ok(());
        }
        let mut piece = std::mem::replace(&mut self.piece, vec![0; PIECE]);
        piece.truncate(std::mem::take(&mut self.filled));
        sink(Event::Data(piece))
    }
}

/// A window as the index keeps it.
pub(super) fn pack_window(window: &[u8]) -> Result<Vec<u8>, FetchError> {
    ::zstd::bulk::compress(window, WINDOW_LEVEL)
        .map_err(|error| FetchError::storage("cannot compress a window", &error))
}

/// The window that [`pack_window`] was given.
pub(super) fn unpack_window(packed: &[u8]) -> Result<Vec<u8>, FetchError> {
    ::zstd::bulk::decompress(packed, WINDOW).map_err(|_| broken(Broken))
}

/// Decodes `out_len` bytes from a member's start, or from a block with its bits and compressed window; and up to `more`
/// bytes of what follows, as far as `input` goes.
pub(super) fn decode(
    block: Option<(u8, &[u8])>,
    mut input: &[u8],
    out_len: usize,
    more: usize,
) -> Result<Vec<u8>, FetchError> {
    let mut wrap = if block.is_some() { Wrap::Raw } else { Wrap::Gzip };
    let mut inflate = Inflate::new(wrap).map_err(broken)?;
    if let Some((bits, window)) = block {
        let window = unpack_window(window)?;
        let mut value = 0;
        if bits > 0 {
            let (&first, rest) = input.split_first().ok_or_else(|| broken(Broken))?;
            (value, input) = (u32::from(first) >> (8 - u32::from(bits.min(7))), rest);
        }
        inflate.resume(bits, value as u8, &window).map_err(broken)?;
    }
    let (mut out, mut filled) = (vec![0; out_len + more], 0);
    while filled < out.len() {
        let room = out.get_mut(filled..).unwrap_or_default();
        let step = match inflate.step(input, room, false) {
            Ok(step) => step,
            Err(_) if filled >= out_len => break,
            Err(error) => return Err(broken(error)),
        };
        input = input.get(step.consumed..).unwrap_or_default();
        filled += step.produced;
        if step.end {
            // A raw stream leaves the trailer of its member unread. The span's own digest makes up for its CRC.
            let trailer = if wrap == Wrap::Raw { TRAILER } else { 0 };
            input = input.get(trailer..).unwrap_or_default();
            wrap = Wrap::Gzip;
            inflate.reset(wrap).map_err(broken)?;
        }
        let stands = step.consumed == 0 && step.produced == 0 && !step.end;
        if stands || step.end && input.is_empty() {
            break;
        }
    }
    if filled < out_len {
        return Err(broken(Broken));
    }
    out.truncate(filled);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::decode::{Scanner, decode_span};
    use super::*;

    fn gzip(content: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Content with repetitions near and far, and parts that do not compress.
    fn content(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at / 5000 % 3 == 0 {
                    (state >> 24) as u8
                } else {
                    (at / 7 % 50) as u8 + (state >> 31) as u8
                }
            })
            .collect()
    }

    /// Scans in pieces of `step`, then decodes every span alone and compares.
    fn check(blob: &[u8], content: &[u8], step: usize) -> usize {
        let (mut scanner, mut out, mut starts) = (Scanner::new(), Vec::new(), Vec::new());
        let mut sink = |event| {
            match event {
                Event::Data(data) => out.extend(data),
                Event::Checkpoint(checkpoint) => starts.push((checkpoint, out.len())),
            }
            Ok(())
        };
        for piece in blob.chunks(step) {
            scanner.push(piece, &mut sink).unwrap();
        }
        let (_, end) = scanner.finish(&mut sink).unwrap();
        assert!(out == content, "scanned bytes differ");
        for (at, (start, out_start)) in starts.iter().enumerate() {
            let next = starts.get(at + 1);
            let in_end = next.map_or(end, |(next, _)| next.in_end_before);
            let out_end = next.map_or(content.len(), |(_, out_start)| *out_start);
            let input = &blob[usize::try_from(start.in_start).unwrap()..usize::try_from(in_end).unwrap()];
            let span = decode_span(start.kind, input, &start.window, out_end - out_start, 0).unwrap();
            assert!(span == content[*out_start..out_end], "span {at} differs");
        }
        starts.len()
    }

    #[test]
    fn spans_decode_alone() {
        let content = content(9 << 20);
        // Level 1 makes few, very long blocks; the others end one at least every 64 Ki symbols.
        for (level, least) in [(1, 1), (6, 4), (9, 4)] {
            assert!(check(&gzip(&content, level), &content, 70_001) >= least, "level {level}");
        }
        check(&gzip(&content[..10], 6), &content[..10], 1);
        check(&gzip(&[], 6), &[], 3);
        check(&content[..3 << 20], &content[..3 << 20], 99_999);
    }

    #[test]
    fn stored_blocks_decode_alone() {
        let content = content(5 << 20);
        check(&gzip(&content, 0), &content, 100_000);
    }

    #[test]
    fn members_are_followed() {
        let content = content(7 << 20);
        for size in [100_000, 3 << 20, 1 << 20] {
            let blob: Vec<u8> = content.chunks(size).flat_map(|part| gzip(part, 6)).collect();
            for rest in [&b""[..], &[0; 700], b"\x1frubbish", b"rubbish"] {
                check(&[&blob[..], rest].concat(), &content, 65_537);
            }
        }
    }

    #[test]
    fn broken_gzip_is_refused() {
        let content = content(300_000);
        let blob = gzip(&content, 6);
        let mut flipped = blob.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let mut wrong_crc = blob.clone();
        let trailer = wrong_crc.len() - 8;
        wrong_crc[trailer] ^= 1;
        let half_member = [&blob[..], &[0x1f, 0x8b, 8]].concat();
        for (what, bad) in [
            ("flipped bit", &flipped[..]),
            ("wrong crc", &wrong_crc),
            ("cut", &blob[..blob.len() - 1]),
            ("cut in the header", &blob[..5]),
            ("second member cut", &half_member),
        ] {
            let mut scanner = Scanner::new();
            let sink: Sink<'_> = &mut |_| Ok(());
            let pushed = scanner.push(bad, sink);
            assert!(pushed.and_then(|()| scanner.finish(sink)).is_err(), "{what}");
        }
    }

    #[test]
    fn a_span_from_wrong_bytes_fails_or_differs_but_never_panics() {
        let content = content(4 << 20);
        let blob = gzip(&content, 6);
        for (bits, window) in [(0, &b""[..]), (7, b"not zstd"), (9, b"")] {
            assert!(decode(Some((bits, window)), &blob[..1000], 5000, 0).is_err());
        }
        assert!(decode(None, &[], 1, 0).is_err());
        assert!(decode(None, &blob[..1000], 3 << 20, 0).is_err());
    }
}
