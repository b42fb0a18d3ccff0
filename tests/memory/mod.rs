//! A blob in memory, with the faults of a bad day.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use addonfs::fetch::error::{Class, FetchError, Side};
use addonfs::fetch::source::BlobSource;
use addonfs::fetch::verified::VerifiedBytes;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

/// What goes wrong.
#[allow(dead_code, reason = "not every test that uses this file has every bad day")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nothing answers.
    Down,
    /// Ranges take 100 ms.
    Slow,
    /// One bit of the stream is wrong, at this byte.
    FlipStream(usize),
    /// This process is killed before this byte of the stream.
    Kill(usize),
    /// The stream ends early without an error.
    CutStream,
    /// The stream goes on behind its end.
    LongStream,
    /// Every range has a wrong bit.
    FlipRanges,
    /// The next range has a wrong bit.
    FlipOnce,
    /// Ranges are a byte short.
    ShortRanges,
}

/// One blob.
#[derive(Debug)]
pub(crate) struct MemorySource {
    blob: Bytes,
    fault: Mutex<Fault>,
    ranges: AtomicUsize,
    streams: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

impl MemorySource {
    pub(crate) fn new(blob: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            blob: blob.into(),
            fault: Mutex::new(Fault::None),
            ranges: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            // Deliberately wrong half of the time: magic bytes decide.
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::of(&self.blob),
            size: self.blob.len() as u64,
            annotations: Vec::new(),
        }
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().expect("no panic while held") = fault;
    }

    /// How many ranges were asked for.
    pub(crate) fn ranges(&self) -> usize {
        self.ranges.load(Ordering::Relaxed)
    }

    /// How many times the whole was asked for.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// How many ranges were asked for at the same time at most.
    #[allow(dead_code, reason = "not every test that uses this file asks")]
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().expect("no panic while held")
    }
}

fn down() -> FetchError {
    FetchError::new(Class::Unavailable, Side::Remote, "nobody answers")
}

#[async_trait]
impl BlobSource for MemorySource {
    async fn manifest(&self, _: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        Err(down())
    }

    async fn resolve(&self, _: &str) -> Result<Option<Digest>, FetchError> {
        Err(down())
    }

    async fn blob(&self, _: &Descriptor, _: u64) -> Result<VerifiedBytes, FetchError> {
        Err(down())
    }

    async fn stream(
        &self,
        _: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let mut blob = self.blob.to_vec();
        match self.fault() {
            Fault::Down => return Err(down()),
            Fault::FlipStream(at) => blob[at] ^= 1,
            Fault::CutStream => blob.truncate(blob.len() - 1),
            Fault::LongStream => blob.push(0),
            _ => {}
        }
        let blob = Bytes::from(blob).slice(usize::try_from(from).expect("in memory")..);
        let kill = match self.fault() {
            Fault::Kill(at) => at,
            _ => usize::MAX,
        };
        let end = blob.len();
        // Uneven pieces, as a network delivers them.
        let pieces = stream::unfold((blob, 1_usize), move |(mut rest, n)| async move {
            if end - rest.len() >= kill {
                let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
            }
            let piece = rest.split_to(n.min(rest.len()));
            (!piece.is_empty()).then(|| (Ok(piece), (rest, n * 7 % 300_007 + 1)))
        });
        Ok(pieces.boxed())
    }

    async fn range(&self, _: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        if self.fault() == Fault::Down {
            return Err(down());
        }
        self.ranges.fetch_add(1, Ordering::Relaxed);
        let (start, end) =
            (usize::try_from(range.start).expect("fits"), usize::try_from(range.end).expect("fits"));
        let mut bytes = self.blob[start..end].to_vec();
        let middle = bytes.len() / 2;
        let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        if self.fault() == Fault::Slow {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        match self.fault() {
            Fault::FlipRanges => bytes[middle] ^= 1,
            Fault::FlipOnce => {
                bytes[middle] ^= 1;
                self.set(Fault::None);
            }
            Fault::ShortRanges => drop(bytes.pop()),
            _ => {}
        }
        Ok(bytes.into())
    }
}
