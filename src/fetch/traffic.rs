//! Foreground first: what somebody waits for goes before what nobody asked for yet.
//!
//! A reader's fetch holds a [`Foreground`] for as long as it takes. Background work asks [`Traffic::background`] before each
//! request: it waits until no reader has been waiting for a moment, and until the bandwidth that it may have allows for
//! more. It asks for as little at once as comes in [`SLICE`], so a reader that comes meanwhile is held up by no more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a background request should take: a round trip's worth, which a reader does not notice.
const SLICE: Duration = Duration::from_millis(40);
/// Bounds of what one background request brings.
const REQUEST: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 20;
/// Readers come in bursts, each read after the one before: between two of a burst background work does not begin.
const QUIET: Duration = Duration::from_millis(500);

/// What is on the wire, for whom.
#[derive(Debug)]
pub(crate) struct Traffic {
    readers: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the last reader was served.
    served: Option<Instant>,
    /// Bytes a second that background requests got, smoothed.
    speed: u64,
    /// When the next background request may begin, as the bandwidth allows.
    next: Option<Instant>,
}

impl Default for Traffic {
    fn default() -> Self {
        // The slowest line that the first request should suit: 10 Mbit/s.
        let state = State { served: None, speed: 10_000_000 / 8, next: None };
        Self { readers: AtomicU64::new(0), state: Mutex::new(state) }
    }
}

/// Somebody waits. Dropped when served.
#[derive(Debug)]
pub(crate) struct Foreground<'a>(&'a Traffic);

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        self.0.state().served = Some(Instant::now());
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Traffic {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while somebody waits.
    pub(crate) fn foreground(&self) -> Foreground<'_> {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Foreground(self)
    }

    /// Waits for the turn of a background request, with at most `bandwidth` bytes a second for all of them; returns how
    /// many bytes it should be of.
    pub(crate) async fn background(&self, bandwidth: Option<u64>) -> u64 {
        loop {
            let now = Instant::now();
            let (served, next) = {
                let state = self.state();
                (state.served, state.next)
            };
            let quiet = served.map_or(now, |served| served + QUIET);
            let begin = next.unwrap_or(now).max(quiet);
            if self.readers.load(Ordering::Acquire) == 0 && begin <= now {
                break;
            }
            tokio::time::sleep_until(begin.max(now + QUIET / 10)).await;
        }
        let speed = self.state().speed;
        let speed = bandwidth.map_or(speed, |limit| speed.min(limit));
        let slice = u64::try_from(SLICE.as_millis()).unwrap_or(u64::MAX);
        (speed.saturating_mul(slice) / 1000).clamp(*REQUEST.start(), *REQUEST.end())
    }

    /// A background request brought `bytes` in `took`.
    pub(crate) fn brought(&self, bytes: u64, took: Duration, bandwidth: Option<u64>) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let measured = bytes.saturating_mul(1_000_000) / micros;
        let mut state = self.state();
        state.speed = (state.speed * 3 + measured) / 4;
        if let Some(limit) = bandwidth {
            let due = Duration::from_micros(bytes.saturating_mul(1_000_000) / limit.max(1));
            state.next = Some(Instant::now() + due.saturating_sub(took));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn background_waits_for_readers() {
        let traffic = Traffic::default();
        assert_eq!(traffic.background(None).await, *REQUEST.start());
        let reader = traffic.foreground();
        let waiting = tokio::time::timeout(Duration::from_secs(60), traffic.background(None));
        assert!(waiting.await.is_err(), "a reader waits");
        drop(reader);
        let served = Instant::now();
        traffic.background(None).await;
        assert!(served.elapsed() >= QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_grow_with_the_line_and_keep_to_the_bandwidth() {
        let traffic = Traffic::default();
        for _ in 0..50 {
            traffic.brought(1 << 20, Duration::from_millis(10), None);
        }
        assert!(traffic.background(None).await > 3 << 20);
        let limit = Some(1 << 20);
        let began = Instant::now();
        for _ in 0..20 {
            let bytes = traffic.background(limit).await;
            assert_eq!(bytes, *REQUEST.start());
            traffic.brought(bytes, Duration::from_millis(1), limit);
        }
        traffic.background(limit).await;
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1200), "20 times 64 KiB at 1 MiB a second: {took:?}");
    }
}
