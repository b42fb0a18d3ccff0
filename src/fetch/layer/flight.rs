//! Fetching spans: each once, adjacent ones together, going on without those who asked.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::{Inner, Wanted};
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::index::decode::MAX_SPAN;
use crate::fetch::index::file::FileRecord;
use crate::fetch::meter::{self, Meter};
use crate::fetch::store::LARGE_FILE;
use crate::fetch::verified::VerifiedBytes;
use crate::policy::digest::Digest;

/// Most bytes of the blob in one request: enough to make the round trip cheap, little enough to decode at once.
const MAX_RANGE: u64 = 8 << 20;

/// Requests of one layer at a time. Each holds a connection, its range and what is decoded of it, so that a thousand
/// cold reads (the kernel sends as many) would use up memory and descriptors; more only queue at the registry.
pub(super) const REQUESTS: usize = 16;

/// The longest that one range may take. Retries end long before it; it is for bytes that drip just fast enough not
/// to be called a stall, because everybody who wants the span waits for this one flight. 8 MiB need 14 KiB/s.
const MAX_FLIGHT: Duration = Duration::from_secs(600);

/// Proven spans by number.
pub(super) type Spans = HashMap<usize, Bytes>;

pub(super) type Flight = Shared<BoxFuture<'static, Result<Arc<Spans>, FetchError>>>;

/// What is to be fetched: spans that somebody needs, and in one request with them those around.
#[derive(Debug, Clone)]
pub(super) struct Trip {
    pub needed: Range<usize>,
    pub wide: Range<usize>,
}

/// The spans that are being fetched now, by layer and number.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<(Digest, usize), Flight>>);

impl Inner {
    /// Whether one of the spans is too large to be decoded alone.
    pub(super) fn too_large(&self, spans: &[usize]) -> bool {
        spans.iter().any(|&number| self.index.span(number).is_some_and(|span| span.out_len > MAX_SPAN))
    }

    /// The spans `missing`, proven. Those that nobody fetches yet are fetched by tasks of their own, with their
    /// neighbours, and `file` is made whole if it can be then.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        missing: Vec<usize>,
        file: &FileRecord,
    ) -> Result<Spans, FetchError> {
        let _foreground = self.store.traffic.foreground();
        let trips: Vec<Trip> = self.groups(&missing).into_iter().map(|group| self.trip(group)).collect();
        let mut spans = Spans::new();
        for flight in self.board(&trips, Some(*file)) {
            let landed = flight.await?;
            for number in &missing {
                if let Some(bytes) = landed.get(number) {
                    spans.insert(*number, bytes.clone());
                }
            }
        }
        Ok(spans)
    }

    /// The flights that bring what `trips` need: those under way, and new ones for the rest. When one has landed `file` is
    /// made whole if it can be.
    pub(super) fn board(self: &Arc<Self>, trips: &[Trip], file: Option<FileRecord>) -> Vec<Flight> {
        let mut known = self.store.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flights: Vec<Flight> = Vec::new();
        for trip in trips {
            let mut free: Vec<usize> = Vec::new();
            for number in trip.needed.clone() {
                match known.get(&(self.blob.digest, number)) {
                    Some(flight) => flights.push(flight.clone()),
                    None => free.push(number),
                }
            }
            for needed in self.groups(&free) {
                let is_free = |number: &usize| !known.contains_key(&(self.blob.digest, *number));
                let before = (trip.wide.start..needed.start).rev().take_while(is_free).count();
                let after = (needed.end..trip.wide.end).take_while(is_free).count();
                let group = needed.start - before..needed.end + after;
                let (landing, landed) = tokio::sync::oneshot::channel();
                let flight: Flight =
                    landed.map(|result| result.unwrap_or_else(|_| Err(interrupted()))).boxed().shared();
                for number in group.clone() {
                    known.insert((self.blob.digest, number), flight.clone());
                }
                flights.push(flight);
                tokio::spawn(Arc::clone(self).fly(group, needed, file, landing, meter::current()));
            }
        }
        flights
    }

    async fn fly(
        self: Arc<Self>,
        group: Range<usize>,
        needed: Range<usize>,
        file: Option<FileRecord>,
        landing: tokio::sync::oneshot::Sender<Result<Arc<Spans>, FetchError>>,
        meter: Option<Meter>,
    ) {
        let landing_strip = Landing { inner: Arc::clone(&self), group: group.clone() };
        tracing::debug!(layer = %self.blob.digest, path = self.name(needed.start), ?needed, ?group, "fetching");
        let (_, bytes) = self.range(group.clone());
        let result = self.bring(group, needed).await.map(Arc::new);
        if let (Ok(_), Some(meter)) = (&result, meter) {
            meter(bytes);
        }
        drop(landing_strip);
        // Nobody may be waiting any more.
        drop(landing.send(result));
        if let Some(file) = file {
            self.assemble(file).await;
        }
    }

    /// The name of the file that a span is a chunk of, for the log.
    fn name(&self, number: usize) -> String {
        let entry = self.index.span(number).and_then(|span| self.index.entry(span.entry? as usize));
        entry.map(|entry| String::from_utf8_lossy(entry.path).into_owned()).unwrap_or_default()
    }

    /// Runs of neighbouring spans whose bytes fit into one request.
    pub(super) fn groups(&self, spans: &[usize]) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for &number in spans {
            match groups.last_mut() {
                Some(group) if group.end == number && self.range(group.start..number + 1).1 <= MAX_RANGE => {
                    group.end = number + 1;
                }
                Some(group) if group.contains(&number) => {}
                _ => groups.push(number..number + 1),
            }
        }
        groups
    }

    /// The bytes of the blob that neighbouring spans need: start and length.
    pub(super) fn range(&self, spans: Range<usize>) -> (u64, u64) {
        let start = self.index.span(spans.start).map_or(0, |span| span.in_start);
        let end = self.index.span(spans.end.saturating_sub(1)).map_or(start, |span| span.in_end);
        (start, end.saturating_sub(start))
    }

    /// Fetches, decodes, proves and keeps a group. Wrong bytes among those that are `needed` are asked for once more: a
    /// proxy or a disk on the way may have had a bad moment.
    async fn bring(self: &Arc<Self>, group: Range<usize>, needed: Range<usize>) -> Result<Spans, FetchError> {
        let _turn = self.requests.acquire().await;
        let (start, len) = self.range(group.clone());
        let mut last = interrupted();
        for first in [true, false] {
            let range = self.raw(start..start + len, first);
            let blob = tokio::time::timeout(MAX_FLIGHT, range).await.map_err(|_| self.dripping())??;
            if blob.len() as u64 != len {
                let what = format!("layer {}: a range came with the wrong length", self.blob.digest);
                return Err(FetchError::new(Class::Protocol, Side::Remote, what));
            }
            let (inner, group, needed) = (Arc::clone(self), group.clone(), needed.clone());
            let decoding = tokio::task::spawn_blocking(move || inner.land(group, &needed, start, &blob));
            match decoding.await.unwrap_or_else(|_| Err(interrupted())) {
                Err(error) if error.class == Class::Corrupt => {
                    tracing::warn!(layer = %self.blob.digest, %error, "wrong bytes from the registry");
                    self.source.distrust(&self.blob.digest);
                    last = error;
                }
                result => return result,
            }
        }
        Err(last)
    }

    /// Bytes of the blob as the registry gives them, or, at `first`, as it gave them ahead.
    async fn raw(&self, range: Range<u64>, first: bool) -> Result<Bytes, FetchError> {
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(head) = head.filter(|_| first)
            && let Some(bytes) = head.range(range.clone()).await
        {
            return Ok(bytes);
        }
        self.source.range(&self.blob, range).await
    }

    fn dripping(&self) -> FetchError {
        let what = format!("layer {}: a range took longer than {MAX_FLIGHT:?}", self.blob.digest);
        FetchError::new(Class::Unavailable, Side::Remote, what)
    }

    /// Fetches the whole layer again, because it cannot be read in parts, and answers from the store.
    pub(super) async fn restore(self: &Arc<Self>, wanted: &Wanted) -> Result<VerifiedBytes, FetchError> {
        let (inner, wanted, meter) = (Arc::clone(self), *wanted, meter::current());
        // A task of its own: it goes on when the caller goes away, and others find its result.
        let task = tokio::spawn(async move {
            let turn = inner.store.ingest_turn(&inner.blob.digest);
            let _turn = turn.lock().await;
            if let Some(bytes) = inner.local(&wanted) {
                return Ok(bytes);
            }
            crate::fetch::ingest::ingest(&inner.store, &inner.source, &inner.blob, None, None).await?;
            if let Some(meter) = meter {
                meter(inner.blob.size);
            }
            inner.local(&wanted).ok_or_else(|| {
                let what = format!(
                    "layer {} can only be kept whole and the cache quota is too small for it: raise cache.quota",
                    inner.blob.digest
                );
                FetchError::new(Class::Storage, Side::Local, what)
            })
        });
        task.await.unwrap_or_else(|_| Err(interrupted()))
    }

    /// Makes the file plain again if all of it is here by now.
    pub(super) async fn assemble(self: Arc<Self>, file: FileRecord) {
        // Its digest may have been learned since.
        let Some(file) = self.file(file.number) else { return };
        if file.size < LARGE_FILE || !self.can_assemble(&file) {
            return;
        }
        let work = tokio::task::spawn_blocking(move || self.assemble_now(&file));
        if let Ok(Err(error)) = work.await {
            tracing::warn!(%error, "a file could not be made whole");
        }
    }
}

/// Takes a group off the board when its flight is over, however that came about.
struct Landing {
    inner: Arc<Inner>,
    group: Range<usize>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut known = self.inner.store.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        for number in self.group.clone() {
            known.remove(&(self.inner.blob.digest, number));
        }
    }
}

fn interrupted() -> FetchError {
    FetchError::new(Class::Unavailable, Side::Local, "a fetch was interrupted")
}
