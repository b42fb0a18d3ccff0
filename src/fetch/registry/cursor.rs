//! The bytes of a blob from one place to another, whatever the registry does under way.
//!
//! One path serves ranges, streams and whole blobs: a cursor knows how far it is; when a body breaks, stalls or
//! ends early, the next request asks for the rest. Progress starts the count of attempts anew.
//!
//! A registry need not serve ranges (distribution-spec: SHOULD). A 200 with the whole blob is read up to the
//! wanted part; after a 206 that is not the wanted range, or 400, 416, 501, the blob is asked for whole.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::auth::Access;
use super::body::Body;
use super::client::{Address, Answer, Client, Request};
use super::{ranges, retry, status};
use crate::fetch::error::{Class, FetchError, Side};
use crate::policy::image::Descriptor;

/// So many bytes since the last trouble make it a new trouble. Less could be a server that lets us ask for ever.
const PROGRESS: u64 = 64 * 1024;

/// A place in a blob, and the body that stands there.
pub(super) struct Cursor {
    client: Arc<Client>,
    blob: Descriptor,
    what: String,
    at: u64,
    end: u64,
    /// The longest way that may be skipped when there are no ranges.
    max_skip: u64,
    /// Whether the registry has shown that it does not serve the range.
    whole: bool,
    /// Whether everything is taken if everything comes.
    greedy: bool,
    /// Whether the registry has said that it is asked too much.
    limited: bool,
    failed: u32,
    since_failure: u64,
    body: Option<Body>,
}

impl Cursor {
    /// From `range.start` to `range.end`, which must lie within the blob.
    pub(super) fn new(
        client: Arc<Client>,
        blob: &Descriptor,
        range: Range<u64>,
        max_skip: u64,
    ) -> Result<Self, FetchError> {
        let what = format!("blob {} of {}", blob.digest, client.endpoint.display());
        if range.start > range.end || range.end > blob.size {
            let message = format!("{what}: {range:?} is not within its {} bytes", blob.size);
            return Err(FetchError::new(Class::Protocol, Side::Local, message));
        }
        Ok(Self {
            client,
            blob: blob.clone(),
            what,
            at: range.start,
            end: range.end,
            max_skip,
            whole: false,
            greedy: false,
            limited: false,
            failed: 0,
            since_failure: 0,
            body: None,
        })
    }

    /// The first `length` bytes of a blob, or all of it from a registry that sends that instead: see [`Self::end`].
    pub(super) fn opening(client: Arc<Client>, blob: &Descriptor, length: u64) -> Result<Self, FetchError> {
        let cursor = Self::new(client, blob, 0..length, u64::MAX)?;
        Ok(Self { greedy: true, ..cursor })
    }

    /// Where it ends, once the first bytes are there.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Whether the registry has said that it is asked too much (429).
    pub(super) fn limited(&self) -> bool {
        self.limited
    }

    /// The next bytes, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.at < self.end {
            match self.attempt().await {
                Ok(Some(part)) => {
                    self.at += part.len() as u64;
                    self.since_failure += part.len() as u64;
                    return Ok(Some(part));
                }
                // a shorter range than asked for, or the end of one body: the next request asks for the rest
                Ok(None) => {
                    self.body = None;
                    let message = format!("{}: the range ends {} bytes early", self.what, self.end - self.at);
                    self.trouble(FetchError::new(Class::Unavailable, Side::Remote, message)).await?;
                }
                Err(error) => {
                    self.body = None;
                    self.client.forget(&self.blob.digest);
                    self.trouble(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// Everything that is left.
    pub(super) async fn collect(&mut self) -> Result<Bytes, FetchError> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if self.at == self.end {
            return Ok(first);
        }
        // grows with what arrives: a size that a manifest claims allocates nothing
        let mut content = bytes::BytesMut::from(first);
        while let Some(part) = self.next().await? {
            content.extend_from_slice(&part);
        }
        Ok(content.freeze())
    }

    async fn trouble(&mut self, error: FetchError) -> Result<(), FetchError> {
        if self.since_failure >= PROGRESS {
            self.failed = 0;
        }
        self.since_failure = 0;
        self.failed += 1;
        retry::pause(&self.client.retry, error, self.failed).await
    }

    async fn attempt(&mut self) -> Result<Option<Bytes>, FetchError> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open().await?,
        };
        let part = body.next(&self.what, self.client.stall).await?;
        self.body = Some(body);
        Ok(part)
    }

    /// A body that stands at `self.at`.
    async fn open(&mut self) -> Result<Body, FetchError> {
        if let Some((target, until)) = self.client.target(&self.blob.digest) {
            let range = self.range();
            let response = self.client.send_bare(&target, &headers(range.as_ref()), &self.what).await?;
            if response.status().is_success() {
                return self.judge(Answer { response, url: target, own: false, until }, range).await;
            }
            // expired (401, 403, S3's 400 ExpiredToken) or gone: only the registry knows where the blob is now
            self.client.forget(&self.blob.digest);
        }
        let range = self.range();
        let answer = self.ask(range.as_ref()).await?;
        match answer.response.status() {
            StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_IMPLEMENTED
                if range.is_some() =>
            {
                self.open_whole().await
            }
            _ => self.judge(answer, range).await,
        }
    }

    async fn open_whole(&mut self) -> Result<Body, FetchError> {
        self.whole = true;
        self.client.forget(&self.blob.digest);
        let answer = self.ask(None).await?;
        Box::pin(self.judge(answer, None)).await
    }

    async fn ask(&self, range: Option<&Range<u64>>) -> Result<Answer, FetchError> {
        let request = Request {
            method: Method::GET,
            to: Address::Path(&["blobs", &self.blob.digest.to_string()]),
            access: Access::Pull,
            headers: headers(range),
            body: None,
            what: &self.what,
        };
        self.client.send(request).await
    }

    /// The range to ask for; none for the whole blob.
    fn range(&self) -> Option<Range<u64>> {
        let everything = self.at == 0 && self.end == self.blob.size;
        (!self.whole && !everything).then_some(self.at..self.end)
    }

    /// The body of an answer, if it is the blob or the wanted part of it.
    async fn judge(&mut self, answer: Answer, range: Option<Range<u64>>) -> Result<Body, FetchError> {
        let (own, url, until) = (answer.own, answer.url.clone(), answer.until);
        let body = match (answer.response.status(), range) {
            (StatusCode::OK, _) => self.whole_body(answer.response)?,
            (StatusCode::PARTIAL_CONTENT, Some(range)) => match self.part_body(answer.response, &range) {
                Some(body) => body,
                None => return self.open_whole().await,
            },
            (StatusCode::PARTIAL_CONTENT, None) => {
                return Err(self.doubtful("a part came where the whole was asked for"));
            }
            (status, _) => {
                self.limited |= status == StatusCode::TOO_MANY_REQUESTS;
                let mut error = self.client.refusal(&self.what, answer).await;
                // a redirect's target that refuses at once: its address may have been made wrong or too late
                error.retryable |= !own && matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410);
                return Err(error);
            }
        };
        if !own {
            self.client.remember(self.blob.digest, url, until);
        }
        Ok(body)
    }

    /// A 206 must say that it is the wanted range, and its length must agree.
    fn part_body(&self, response: Response, wanted: &Range<u64>) -> Option<Body> {
        let value = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let length = ranges::accepted(value, wanted, self.blob.size)?;
        if response.content_length().is_some_and(|announced| announced != length) {
            return None;
        }
        Some(Body::new(response, 0, length, true))
    }

    /// A 200 is the whole blob: it is read from its start.
    fn whole_body(&mut self, response: Response) -> Result<Body, FetchError> {
        let length = response.content_length();
        if status::is_html(response.headers()) && length != Some(self.blob.size) {
            return Err(status::html_page(&self.what));
        }
        if let Some(length) = length.filter(|length| *length != self.blob.size) {
            return Err(self.doubtful(&format!("{length} bytes, and the manifest says {}", self.blob.size)));
        }
        if self.at > self.max_skip {
            let message = format!(
                "{}: the registry does not serve ranges, and the wanted part is {} bytes away: fetch it whole",
                self.what, self.at
            );
            return Err(FetchError::new(Class::Protocol, Side::Remote, message));
        }
        if self.greedy {
            self.end = self.blob.size;
        }
        Ok(Body::new(response, self.at, self.end - self.at, self.end == self.blob.size))
    }

    /// A wrong answer that may be a passing one.
    fn doubtful(&self, why: &str) -> FetchError {
        let mut error = FetchError::new(Class::Protocol, Side::Remote, format!("{}: {why}", self.what));
        error.retryable = true;
        error
    }
}

fn headers(range: Option<&Range<u64>>) -> Vec<(reqwest::header::HeaderName, String)> {
    range.map(|range| (RANGE, ranges::header(range))).into_iter().collect()
}
