//! Pieces of an archive that are compressed each for itself, by several threads, and written in their order: members
//! of a gzip file (RFC 1952, section 2.2), frames of a zstd one (RFC 8878, section 3).
//!
//! A piece's bytes depend on nothing but the piece, so that a blob does not tell how many threads made it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::format::{GZIP_LEVEL, ZSTD_LEVEL};

/// Beyond this the thread that reads and hashes is the slower one.
const MAX_THREADS: usize = 8;

/// Pieces that wait for a thread or for their turn to be written, for each thread: with [`ESTIMATE`] this bounds the
/// memory of a build.
const WAITING: usize = 4;

/// Small pieces count as this many bytes, for what they cost besides their bytes.
const ESTIMATE: usize = 64 << 10;

/// Deflate, no flags, no time, no extra flags, unknown system: nothing of the host.
const MEMBER_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// What a piece becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// A gzip member.
    GzipMember,
    /// A zstd frame with its size and a checksum.
    ZstdFrame,
}

/// A thread's state.
enum Worker {
    Gzip(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Worker {
    fn new(codec: Codec) -> io::Result<Self> {
        Ok(match codec {
            Codec::GzipMember => Self::Gzip(Compress::new(Compression::new(GZIP_LEVEL), false)),
            Codec::ZstdFrame => {
                let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                compressor.include_checksum(true)?;
                Self::Zstd(compressor)
            }
        })
    }

    fn compress(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(deflate) => gzip_member(deflate, piece),
            Self::Zstd(compressor) => compressor.compress(piece),
        }
    }
}

/// A gzip member of `bytes`.
pub(super) fn gzip_member(deflate: &mut Compress, bytes: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    let mut member = Vec::with_capacity(bytes.len() / 2 + ESTIMATE);
    member.extend_from_slice(&MEMBER_HEADER);
    let mut rest = bytes;
    loop {
        let before = deflate.total_in();
        let status = deflate.compress_vec(rest, &mut member, FlushCompress::Finish)?;
        let taken = usize::try_from(deflate.total_in() - before).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        if status == Status::StreamEnd {
            break;
        }
        member.reserve(rest.len() / 2 + ESTIMATE);
    }
    let mut crc = Crc::new();
    crc.update(bytes);
    member.extend_from_slice(&crc.sum().to_le_bytes());
    member.extend_from_slice(&crc.amount().to_le_bytes());
    Ok(member)
}

struct Job {
    piece: Vec<u8>,
    done: SyncSender<io::Result<Vec<u8>>>,
}

struct Pending {
    weight: usize,
    compressed: Receiver<io::Result<Vec<u8>>>,
}

/// The number of a piece in its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PieceNumber(usize);

/// Where the pieces of a blob begin.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    starts: Vec<u64>,
    end: u64,
}

impl Offsets {
    /// Where a piece begins in the blob. A piece that was never written begins where the last one ends.
    pub(super) fn start(&self, piece: PieceNumber) -> u64 {
        self.starts.get(piece.0).copied().unwrap_or(self.end)
    }

    /// Where the last piece ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }
}

/// Takes an archive, writes its pieces to `W`.
pub(super) struct Pieces<W> {
    out: W,
    /// What is gathered of the next piece.
    piece: Vec<u8>,
    /// Most bytes of a piece.
    limit: usize,
    /// How many pieces were handed to the threads.
    cut: usize,
    jobs: Sender<Job>,
    pending: VecDeque<Pending>,
    weight: usize,
    max_weight: usize,
    offsets: Offsets,
}

impl<W: Write> Pieces<W> {
    /// Pieces of at most `limit` bytes. The threads end when the value is dropped.
    pub(super) fn new(codec: Codec, limit: usize, out: W) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (mut worker, queue) = (Worker::new(codec)?, Arc::clone(&queue));
            thread::Builder::new().name("compress".to_owned()).spawn(move || {
                while let Some(job) = next(&queue) {
                    // The other end is gone only where the build was given up.
                    let _ = job.done.send(worker.compress(&job.piece));
                }
            })?;
        }
        Ok(Self {
            out,
            piece: Vec::new(),
            limit,
            cut: 0,
            jobs,
            pending: VecDeque::new(),
            weight: 0,
            max_weight: threads * WAITING * limit.max(ESTIMATE),
            offsets: Offsets::default(),
        })
    }

    /// Ends the piece, if it has begun. The next byte is the first of the piece that is returned.
    pub(super) fn cut(&mut self) -> io::Result<PieceNumber> {
        if !self.piece.is_empty() {
            let piece = std::mem::take(&mut self.piece);
            let (done, compressed) = mpsc::sync_channel(1);
            let weight = piece.len().max(ESTIMATE);
            self.jobs.send(Job { piece, done }).map_err(|_| stopped())?;
            self.pending.push_back(Pending { weight, compressed });
            self.weight += weight;
            self.cut += 1;
            while self.weight > self.max_weight {
                self.write_first()?;
            }
        }
        Ok(PieceNumber(self.cut))
    }

    /// Writes the first of the pieces that wait.
    fn write_first(&mut self) -> io::Result<bool> {
        let Some(first) = self.pending.pop_front() else { return Ok(false) };
        self.weight -= first.weight;
        let compressed = first.compressed.recv().map_err(|_| stopped())??;
        self.offsets.starts.push(self.offsets.end);
        self.offsets.end += compressed.len() as u64;
        self.out.write_all(&compressed)?;
        Ok(true)
    }

    /// Writes all that waits.
    pub(super) fn finish(mut self) -> io::Result<(W, Offsets)> {
        self.cut()?;
        while self.write_first()? {}
        Ok((self.out, self.offsets))
    }
}

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == self.limit {
            self.cut()?;
        }
        let taken = bytes.len().min(self.limit - self.piece.len());
        self.piece.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    /// Does nothing: a piece ends where it is full or cut, not where somebody flushes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn next(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn stopped() -> io::Error {
    io::Error::other("a thread that compresses stopped")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pieces(codec: Codec, parts: &[&[u8]], limit: usize) -> (Vec<u8>, Vec<u64>) {
        let mut pieces = Pieces::new(codec, limit, Vec::new()).unwrap();
        let mut numbers = Vec::new();
        for part in parts {
            numbers.push(pieces.cut().unwrap());
            pieces.write_all(part).unwrap();
        }
        let (blob, offsets) = pieces.finish().unwrap();
        assert_eq!(offsets.end(), blob.len() as u64);
        let starts = numbers.into_iter().map(|number| offsets.start(number)).collect();
        (blob, starts)
    }

    #[test]
    fn each_piece_stands_for_itself_and_all_are_one_stream() {
        // more than may wait at once, of very different sizes
        let texts: Vec<Vec<u8>> =
            (0..3000_usize).map(|n| format!("{n} ").repeat(n % 7 * (n % 13) * 40 + 1).into_bytes()).collect();
        let parts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        for codec in [Codec::GzipMember, Codec::ZstdFrame] {
            let (blob, starts) = pieces(codec, &parts, 1 << 20);
            for (part, start) in parts.iter().zip(&starts) {
                let mut content = vec![0; part.len()];
                let piece = &blob[*start as usize..];
                match codec {
                    Codec::GzipMember => flate2::read::GzDecoder::new(piece).read_exact(&mut content),
                    Codec::ZstdFrame => zstd::stream::Decoder::new(piece).unwrap().read_exact(&mut content),
                }
                .unwrap();
                assert!(content == *part);
            }
            let mut whole = Vec::new();
            match codec {
                Codec::GzipMember => {
                    flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut whole)
                }
                Codec::ZstdFrame => {
                    zstd::stream::Decoder::new(blob.as_slice()).unwrap().read_to_end(&mut whole)
                }
            }
            .unwrap();
            assert!(whole == texts.concat());
            assert!(pieces(codec, &parts, 1 << 20).0 == blob);
        }
    }

    #[test]
    fn a_piece_ends_where_it_is_full_or_cut_and_only_there() {
        let (blob, starts) = pieces(Codec::GzipMember, &[b"", b"0123456789", b"", b"ab"], 4);
        // 0123 4567 89 ab: what is empty is the piece after it
        assert_eq!(starts[0], starts[1]);
        assert_eq!(starts[2], starts[3]);
        let mut members = 0;
        let mut rest = blob.as_slice();
        while !rest.is_empty() {
            let mut member = flate2::bufread::GzDecoder::new(rest);
            member.read_to_end(&mut Vec::new()).unwrap();
            rest = member.into_inner();
            members += 1;
        }
        assert_eq!(members, 4);
    }

    #[test]
    fn what_does_not_compress_fits_too() {
        let noise: Vec<u8> = (0..2_000_000_u32)
            .map(|n| (n.wrapping_mul(n | 1).wrapping_mul(0x9e37_79b9) >> 24) as u8)
            .collect();
        let (blob, _) = pieces(Codec::GzipMember, &[&noise], 4 << 20);
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(blob.as_slice()).read_to_end(&mut content).unwrap();
        assert!(content == noise);
    }
}
