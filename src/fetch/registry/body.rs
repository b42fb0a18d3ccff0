//! Reading the body of an answer: never more than was expected, never longer than a stall, never at a drip.
//!
//! In: an answer whose head was judged. Out: exactly the wanted bytes, in order; what is short, long or stuck is
//! an error that says so.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::Response;

use super::connections::{broken, dripping, stalled};
use crate::fetch::error::{Class, FetchError, Side};

/// What has to come in the time of a stall for a body to be under way: 550 bytes a second with the usual 30 s, a tenth of
/// the slowest modem. Without it a byte now and then would keep a transfer, and whoever waits for it, for ever.
const LEAST: u64 = 16 * 1024;

/// How fast a body comes. Only the time in which it is waited for counts: a slow reader is not the registry's fault.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

/// The whole body, at most `limit` bytes of it.
pub(super) async fn read_limited(
    mut response: Response,
    limit: u64,
    what: &str,
    stall: Duration,
) -> Result<Bytes, FetchError> {
    let expected = response.content_length();
    let too_large = || {
        FetchError::new(
            Class::Protocol,
            Side::Remote,
            format!("{what}: larger than the limit of {limit} bytes"),
        )
    };
    if expected.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut content = BytesMut::new();
    let mut pace = Pace::default();
    while let Some(chunk) = pace.chunk(&mut response, what, stall).await? {
        if (content.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content.freeze())
}

/// The first bytes of an error's body; a body that breaks is as good as none.
pub(super) async fn peek(mut response: Response, within: Duration) -> Bytes {
    /// Enough for a registry's error JSON.
    const ENOUGH: usize = 4096;
    let mut content = BytesMut::new();
    let reading = async {
        while content.len() < ENOUGH
            && let Ok(Some(chunk)) = response.chunk().await
        {
            content.extend_from_slice(chunk.get(..ENOUGH).unwrap_or(&chunk));
        }
    };
    // what came until then is all the words there are
    let _ = tokio::time::timeout(within, reading).await;
    content.freeze()
}

impl Pace {
    /// The next bytes, as long as at least [`LEAST`] come in every `stall`.
    async fn chunk(
        &mut self,
        response: &mut Response,
        what: &str,
        stall: Duration,
    ) -> Result<Option<Bytes>, FetchError> {
        let asked = Instant::now();
        match tokio::time::timeout(stall.saturating_sub(self.waited), response.chunk()).await {
            Ok(Ok(chunk)) => {
                self.waited += asked.elapsed();
                self.came += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                if self.came >= LEAST {
                    *self = Self::default();
                }
                Ok(chunk)
            }
            Ok(Err(error)) => Err(broken(what, error)),
            Err(_) if self.came == 0 => Err(stalled(what, stall)),
            Err(_) => Err(dripping(what, self.came, stall)),
        }
    }
}

/// A part of a blob as it arrives.
pub(super) struct Body {
    response: Response,
    /// Bytes before the wanted ones, where the whole blob is sent instead of a range.
    skip: u64,
    /// Wanted bytes that are still to come.
    left: u64,
    /// Whether the body must end with the last wanted byte.
    exact: bool,
    pace: Pace,
}

impl Body {
    pub(super) fn new(response: Response, skip: u64, left: u64, exact: bool) -> Self {
        Self { response, skip, left, exact, pace: Pace::default() }
    }

    /// The next wanted bytes, `None` after the last one.
    pub(super) async fn next(&mut self, what: &str, stall: Duration) -> Result<Option<Bytes>, FetchError> {
        while self.left > 0 {
            let Some(mut part) = self.pace.chunk(&mut self.response, what, stall).await? else {
                let message = format!("{what}: the body ends {} bytes early", self.skip + self.left);
                return Err(FetchError::new(Class::Unavailable, Side::Remote, message));
            };
            let skipped = self.skip.min(part.len() as u64);
            self.skip -= skipped;
            // at most part.len(), so it fits
            let mut part = part.split_off(skipped as usize);
            if part.is_empty() {
                continue;
            }
            if part.len() as u64 > self.left {
                if self.exact {
                    return Err(over_long(what));
                }
                part.truncate(self.left as usize);
            }
            self.left -= part.len() as u64;
            if self.left == 0 && self.exact && self.response.content_length().is_none() {
                // nothing announced the length: see that nothing follows before the last bytes are given out
                while let Some(more) = self.pace.chunk(&mut self.response, what, stall).await? {
                    if !more.is_empty() {
                        return Err(over_long(what));
                    }
                }
            }
            return Ok(Some(part));
        }
        Ok(None)
    }
}

fn over_long(what: &str) -> FetchError {
    let mut error =
        FetchError::new(Class::Protocol, Side::Remote, format!("{what}: the body is longer than announced"));
    error.retryable = true;
    error
}
