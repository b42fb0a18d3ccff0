//! A whole blob over several connections: windows of it are fetched at the same time and handed on in their order.
//!
//! Lines and servers that limit each connection are filled that way. The first window shows whether the registry
//! serves ranges: one that answers with everything is read as one stream, and so is the rest of a blob once a
//! registry has said that we ask too much (429) or no longer serves ranges. A window is as long as comes in about
//! half a second, so that the one at the head, which is waited for, never comes at a fraction of the line for long.
//!
//! Memory is bounded by the windows: those at work and the one that is read, whatever the reader's speed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use super::client::Client;
use super::cursor::Cursor;
use crate::fetch::error::{Class, FetchError};
use crate::policy::image::Descriptor;

/// How whole blobs are fetched over several connections.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Connections for one blob: browsers open six to a host.
    pub connections: usize,
    /// The shortest window, bytes.
    pub least: u64,
    /// The longest window, bytes. With the usual 4 connections that makes 16 MiB a blob.
    pub most: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self { connections: 4, least: 1 << 20, most: 4 << 20 }
    }
}

/// How long one window should take on its connection: long beside a round trip, short for who waits.
const TIME: Duration = Duration::from_millis(500);

/// What the windows of one blob tell each other.
#[derive(Debug, Default)]
struct Line {
    /// The registry wants less of us.
    narrow: AtomicBool,
    /// Bytes that came in [`TIME`] over one connection, last.
    pace: AtomicU64,
}

/// A blob from its start to its end.
pub(super) struct Whole {
    client: Arc<Client>,
    blob: Descriptor,
    windows: Windows,
    line: Arc<Line>,
    /// Bytes that were handed on.
    at: u64,
    /// Where the next window begins.
    next: u64,
    /// The windows that are under way, in order, with the end of each.
    ahead: VecDeque<(u64, UnboundedReceiver<Result<Bytes, FetchError>>)>,
    tasks: JoinSet<()>,
    /// What is read by one request: the first window, and the rest of a blob without windows.
    one: Option<Cursor>,
}

impl Whole {
    pub(super) fn new(client: Arc<Client>, blob: &Descriptor) -> Result<Self, FetchError> {
        let windows = client.windows;
        let worth_it = windows.connections > 1 && blob.size > 4 * windows.least;
        let one = if worth_it {
            Cursor::opening(Arc::clone(&client), blob, windows.least)?
        } else {
            Cursor::new(Arc::clone(&client), blob, 0..blob.size, u64::MAX)?
        };
        Ok(Self {
            client,
            windows,
            line: Arc::default(),
            at: 0,
            next: one.end(),
            blob: blob.clone(),
            ahead: VecDeque::new(),
            tasks: JoinSet::new(),
            one: Some(one),
        })
    }

    /// The next bytes, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.at < self.blob.size {
            if let Some(cursor) = &mut self.one {
                let part = cursor.next().await?;
                self.next = self.next.max(cursor.end());
                if cursor.limited() {
                    self.line.narrow.store(true, Ordering::Relaxed);
                }
                if let Some(part) = part {
                    self.open_windows()?;
                    return Ok(Some(self.passed(part)));
                }
                self.one = None;
            }
            self.open_windows()?;
            let Some((end, window)) = self.ahead.front_mut() else {
                // no windows any more: the rest is one stream
                self.one = Some(self.rest()?);
                continue;
            };
            match window.recv().await {
                Some(Ok(part)) => return Ok(Some(self.passed(part))),
                // ranges that are no longer served: where we stand, the whole blob is still to be had
                Some(Err(error)) if error.class == Class::Protocol => {
                    tracing::debug!(%error, "the rest is fetched as one stream");
                    self.line.narrow.store(true, Ordering::Relaxed);
                    self.tasks.abort_all();
                    self.ahead.clear();
                    self.one = Some(self.rest()?);
                }
                Some(Err(error)) => return Err(error),
                None if self.at == *end => drop(self.ahead.pop_front()),
                None => {
                    let what = format!("blob {}: a window of it was interrupted", self.blob.digest);
                    return Err(FetchError::new(Class::Unavailable, crate::fetch::error::Side::Local, what));
                }
            }
        }
        Ok(None)
    }

    fn passed(&mut self, part: Bytes) -> Bytes {
        self.at += part.len() as u64;
        part
    }

    /// Everything from here on.
    fn rest(&mut self) -> Result<Cursor, FetchError> {
        self.next = self.blob.size;
        Cursor::new(Arc::clone(&self.client), &self.blob, self.at..self.blob.size, u64::MAX)
    }

    fn open_windows(&mut self) -> Result<(), FetchError> {
        while self.tasks.try_join_next().is_some() {}
        while self.next < self.blob.size
            && !self.line.narrow.load(Ordering::Relaxed)
            && self.ahead.len() + usize::from(self.one.is_some()) < self.windows.connections
        {
            let pace = self.line.pace.load(Ordering::Relaxed);
            let length = pace.clamp(self.windows.least, self.windows.most);
            let end = self.next.saturating_add(length).min(self.blob.size);
            let range = self.next..end;
            // A registry that sends everything here has changed its mind: see `Class::Protocol` above.
            let cursor = Cursor::new(Arc::clone(&self.client), &self.blob, range.clone(), 0)?;
            let (parts, window) = unbounded_channel();
            self.tasks.spawn(fetch(cursor, end - self.next, Arc::clone(&self.line), parts));
            self.ahead.push_back((end, window));
            self.next = end;
        }
        Ok(())
    }
}

/// Fetches one window. The channel holds no more than the window.
async fn fetch(
    mut cursor: Cursor,
    length: u64,
    line: Arc<Line>,
    parts: tokio::sync::mpsc::UnboundedSender<Result<Bytes, FetchError>>,
) {
    let began = Instant::now();
    while let Some(part) = cursor.next().await.transpose() {
        if cursor.limited() {
            line.narrow.store(true, Ordering::Relaxed);
        }
        let failed = part.is_err();
        if parts.send(part).is_err() || failed {
            return;
        }
    }
    let took = began.elapsed().as_micros().max(1);
    let pace = u128::from(length) * TIME.as_micros() / took;
    line.pace.store(u64::try_from(pace).unwrap_or(u64::MAX), Ordering::Relaxed);
}
