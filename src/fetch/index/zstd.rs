//! Zstandard layers (RFC 8878): one pass that notes where frames begin, and decoding from a frame's start.
//!
//! A frame is the only place where decoding may start: zstd has no checkpoint inside one. A layer of many frames
//! (zstd:chunked, seekable, pzstd) is therefore read at random, small frames gathered into spans; a layer that is one
//! frame is one span, which is fetched once, decoded and kept. Skippable frames hold no content: those between frames
//! belong to the span around them, those behind the last frame (tables of contents, seek tables) to none.
//! What follows the last frame and is no frame is an error, as zstd(1) has it.

use std::io;

use ::zstd::stream::raw::{Decoder, Operation, Status};

use super::decode::{Checkpoint, Event, PIECE, Sink};
use super::file::SpanKind;
use crate::fetch::error::{FetchError, Side};

/// Spans end at the first frame boundary after this many decoded bytes. Half of gzip's: there is no window to keep,
/// and less is fetched for a small file.
const ZSTD_SPAN: u64 = 1 << 20;

/// First byte of a frame's magic number, which is little-endian (RFC 8878, 3.1.1). The decoder checks the rest.
const FRAME: u8 = 0x28;
/// First bytes of a skippable frame's (RFC 8878, 3.1.2).
const SKIPPABLE: std::ops::RangeInclusive<u8> = 0x50..=0x5f;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a frame.
    Between,
    Content,
    Skipping,
}

/// Decodes a zstd blob while it arrives. Memory is the largest window that zstd's own decoder accepts by default:
/// 128 MiB, 8 MiB for all levels below `--ultra`.
pub(crate) struct ZstdScanner {
    decoder: Decoder<'static>,
    state: State,
    /// Positions in the blob and in the decoded tar.
    in_at: u64,
    out_at: u64,
    /// Where the last frame with content ended.
    content_end: u64,
    /// Where the span began in the decoded tar; `None` before the first frame.
    span_start: Option<u64>,
    piece: Vec<u8>,
    filled: usize,
}

impl std::fmt::Debug for ZstdScanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdScanner")
            .field("in_at", &self.in_at)
            .field("out_at", &self.out_at)
            .finish_non_exhaustive()
    }
}

fn broken(what: &str) -> FetchError {
    FetchError::corrupt(Side::Remote, format!("not sound zstd data: {what}"))
}

/// One step of decoding.
fn step(decoder: &mut Decoder<'_>, input: &[u8], out: &mut [u8]) -> Result<Status, FetchError> {
    decoder.run_on_buffers(input, out).map_err(|error: io::Error| broken(&error.to_string()))
}

impl ZstdScanner {
    pub(super) fn new() -> Result<Self, FetchError> {
        Ok(Self {
            decoder: decoder()?,
            state: State::Between,
            in_at: 0,
            out_at: 0,
            content_end: 0,
            span_start: None,
            piece: vec![0; PIECE],
            filled: 0,
        })
    }

    pub(super) fn push(&mut self, mut input: &[u8], sink: Sink<'_>) -> Result<(), FetchError> {
        while let Some(&first) = input.first() {
            if self.state == State::Between {
                self.begin_frame(first, sink)?;
            }
            let used = self.decode(input, sink)?;
            input = input.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Returns where the last frame with content ended.
    pub(super) fn finish(mut self, sink: Sink<'_>) -> Result<u64, FetchError> {
        // What the decoder still holds back comes out without more input.
        while self.state == State::Content {
            let before = self.out_at;
            self.decode(&[], sink)?;
            if self.state == State::Content && self.out_at == before {
                break;
            }
        }
        if self.state != State::Between {
            return Err(broken("it is cut off"));
        }
        self.flush(sink)?;
        Ok(self.content_end)
    }

    /// A frame begins whose first byte is `first`; begins a span with it if the last one is long.
    fn begin_frame(&mut self, first: u8, sink: Sink<'_>) -> Result<(), FetchError> {
        if SKIPPABLE.contains(&first) {
            self.state = State::Skipping;
            return Ok(());
        }
        if first != FRAME {
            return Err(broken("something else follows its last frame"));
        }
        self.state = State::Content;
        if self.span_start.is_none_or(|start| self.out_at - start >= ZSTD_SPAN) {
            self.flush(sink)?;
            self.span_start = Some(self.out_at);
            let (in_start, in_end_before) = (self.in_at, self.content_end);
            let (kind, window) = (SpanKind::ZstdFrames, Vec::new());
            sink(Event::Checkpoint(Checkpoint { kind, in_start, in_end_before, window }))?;
        }
        Ok(())
    }

    /// One step of decoding; returns how much input it used.
    fn decode(&mut self, input: &[u8], sink: Sink<'_>) -> Result<usize, FetchError> {
        if self.filled == self.piece.len() {
            self.flush(sink)?;
        }
        let room = self.piece.get_mut(self.filled..).unwrap_or_default();
        let done = step(&mut self.decoder, input, room)?;
        self.in_at += done.bytes_read as u64;
        self.out_at += done.bytes_written as u64;
        self.filled += done.bytes_written;
        if done.remaining == 0 {
            if self.state == State::Content {
                self.content_end = self.in_at;
            }
            self.state = State::Between;
        } else if !input.is_empty() && done.bytes_read == 0 && done.bytes_written == 0 {
            return Err(broken("it does not go on"));
        }
        Ok(done.bytes_read)
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

fn decoder() -> Result<Decoder<'static>, FetchError> {
    Decoder::new().map_err(|error| FetchError::storage("cannot make a zstd decoder", &error))
}

/// Decodes `out_len` bytes from the start of a frame, over as many frames as it takes; and up to `more` bytes of what
/// follows, as far as `input` goes.
pub(super) fn decode(mut input: &[u8], out_len: usize, more: usize) -> Result<Vec<u8>, FetchError> {
    let mut decoder = decoder()?;
    let (mut out, mut filled) = (vec![0; out_len + more], 0);
    while filled < out.len() {
        let done = match step(&mut decoder, input, out.get_mut(filled..).unwrap_or_default()) {
            Ok(done) => done,
            Err(_) if filled >= out_len => break,
            Err(error) => return Err(error),
        };
        input = input.get(done.bytes_read..).unwrap_or_default();
        filled += done.bytes_written;
        if done.bytes_read == 0 && done.bytes_written == 0 {
            break;
        }
    }
    if filled < out_len {
        return Err(broken("a span is shorter than it should be"));
    }
    out.truncate(filled);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Scanner, decode_span};
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        let mut state = 7_u32;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at / 3000 % 2 == 0 { (state >> 24) as u8 } else { (at % 61) as u8 }
            })
            .collect()
    }

    fn frame(content: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(content, 3).unwrap()
    }

    fn skippable(number: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&[0x50 + number, 0x2a, 0x4d, 0x18], &len[..], payload].concat()
    }

    /// Scans in pieces of `step`, then decodes every span alone and compares. Returns spans and where the last ends.
    fn check(blob: &[u8], content: &[u8], step: usize) -> (usize, usize) {
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
        (starts.len(), usize::try_from(end).unwrap())
    }

    #[test]
    fn one_frame_is_one_span() {
        let content = content(5 << 20);
        for step in [1 << 20, 70_001] {
            assert_eq!(check(&frame(&content), &content, step).0, 1);
        }
        check(&frame(&content[..100]), &content[..100], 1);
        check(&frame(&[]), &[], 1);
        let streamed = zstd::stream::encode_all(&content[..], 1).unwrap(); // no content size in its header
        assert_eq!(check(&streamed, &content, 4096).0, 1);
    }

    #[test]
    fn frames_are_gathered_and_cut() {
        let content = content(6 << 20);
        for (size, least, most) in [(10_000, 4, 6), (3 << 20, 2, 2), ((1 << 20) + 1, 5, 6)] {
            let blob: Vec<u8> = content.chunks(size).flat_map(frame).collect();
            let (spans, end) = check(&blob, &content, 65_537);
            assert!((least..=most).contains(&spans), "{size}: {spans}");
            assert_eq!(end, blob.len());
        }
    }

    #[test]
    fn skippable_frames_hold_no_content() {
        let content = content(3 << 20);
        let mut blob = skippable(0, b"before");
        for (at, part) in content.chunks(400_000).enumerate() {
            blob.extend(frame(part));
            blob.extend(skippable(at as u8, &vec![0x28; at * 10]));
        }
        let all: Vec<u8> = content.chunks(400_000).flat_map(frame).collect();
        let last = [&all[..], &skippable(14, &[1; 5000]), &skippable(14, &[])].concat();
        for step in [1, 3, 100_000] {
            check(&blob, &content, step);
            assert_eq!(check(&last, &content, step).1, all.len(), "what is behind belongs to no span");
        }
    }

    #[test]
    fn broken_zstd_is_refused() {
        let content = content(300_000);
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        io::Write::write_all(&mut encoder, &content).unwrap();
        let blob = encoder.finish().unwrap();
        let flip = |at: usize| {
            let mut flipped = blob.clone();
            flipped[at] ^= 0x10;
            flipped
        };
        for (what, bad) in [
            ("flipped bit", flip(blob.len() / 2)),
            ("wrong checksum", flip(blob.len() - 1)),
            ("cut", blob[..blob.len() - 1].to_vec()),
            ("cut in the header", blob[..5].to_vec()),
            ("rubbish behind", [&blob[..], b"rubbish"].concat()),
            ("zeros behind", [&blob[..], &[0; 20]].concat()),
            ("second frame cut", [&blob[..], &blob[..9]].concat()),
            ("skippable frame cut", [&blob[..], &skippable(1, b"12345")[..10]].concat()),
        ] {
            let mut scanner = Scanner::new();
            let sink: Sink<'_> = &mut |_| Ok(());
            let pushed = scanner.push(&bad, sink);
            assert!(pushed.and_then(|()| scanner.finish(sink)).is_err(), "{what}");
        }
        assert!(decode(&[], 1, 0).is_err());
        assert!(decode(&blob[..1000], 300_000, 0).is_err());
        assert!(decode(&blob, 300_001, 0).is_err());
    }
}
