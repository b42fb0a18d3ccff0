//! One request to a registry: authorization, one renewal of it, and redirects.
//!
//! In: method, path, what it is for. Out: an answer that is neither a redirect nor a refusal that a new grant
//! could have cured; any other status is for the caller to judge. Attempts are not repeated here.
//!
//! Redirects are followed here and not by the HTTP library, because credentials must not leave the registry's
//! origin (distribution-spec, "Redirects"), an https registry must not lead to plain http, and the target of a
//! blob is kept to save a round trip a range.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    LOCATION, WWW_AUTHENTICATE,
};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use time::OffsetDateTime;
use url::Url;

use super::RegistryOptions;
use super::auth::{Access, Auth, Grant, Renewal};
use super::body::peek;
use super::challenge;
use super::connections::{self, Connections};
use super::endpoint::{Endpoint, same_origin};
use super::expiry;
use super::retry::RetryPolicy;
use super::status;
use super::windows::Windows;
use crate::fetch::error::{Class, FetchError, Side};
use crate::policy::digest::Digest;

/// Registries need one redirect, some two; more is a loop.
const MAX_REDIRECTS: usize = 5;
/// A target is not used in its last seconds: the request takes some.
const LAST: Duration = Duration::from_secs(5);
/// Targets that are remembered: at least one a layer of any image.
const MAX_TARGETS: usize = 4096;

/// What is sent.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) to: Address<'a>,
    pub(super) access: Access,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Option<Content>,
    /// Names the request in messages.
    pub(super) what: &'a str,
}

/// Where a request goes.
pub(super) enum Address<'a> {
    /// Into the repository, for example `["blobs", digest]`.
    Path(&'a [&'a str]),
    /// To where a registry's answer said.
    Url(Url),
}

/// The body of a request.
pub(super) enum Content {
    /// Bytes, which can be sent again.
    Bytes(Bytes),
    /// A stream of so many bytes, which cannot.
    Stream(Body, u64),
}

/// An answer and the address that gave it.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) url: Url,
    /// Whether the registry itself answered, not the target of a redirect.
    pub(super) own: bool,
    /// Until when the address is good, where it was a redirect's and says so.
    pub(super) until: Option<Instant>,
}

/// Where a blob was found.
struct Target {
    url: Url,
    until: Option<Instant>,
}

/// The client for one repository.
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    pub(super) retry: RetryPolicy,
    pub(super) stall: Duration,
    pub(super) commit: Duration,
    pub(super) max_skip: u64,
    pub(super) windows: Windows,
    user_agent: String,
    connections: Connections,
    auth: Auth,
    targets: Mutex<HashMap<Digest, Target>>,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, options: &RegistryOptions) -> Self {
        let auth = Auth::new(options.credentials.clone(), options.connections.clone(), options.stall_timeout);
        Self {
            endpoint,
            retry: options.retry,
            stall: options.stall_timeout,
            commit: options.commit_timeout,
            max_skip: options.max_skip,
            windows: options.windows,
            user_agent: options.user_agent.clone(),
            connections: options.connections.clone(),
            auth,
            targets: Mutex::default(),
        }
    }

    /// The root of the registry, asked for.
    async fn base(&self) -> Result<Url, FetchError> {
        let base = self.endpoint.base(|url: Url| async move {
            let what = format!("registry {}", self.endpoint.name);
            let request = self.request(&Method::GET, &url)?;
            let response = connections::send(request, &what, self.stall).await?;
            // 400 is what TLS servers written in Go say to plain http; a registry does not answer a ping so
            Ok(response.status() != StatusCode::BAD_REQUEST)
        });
        base.await.cloned()
    }

    /// The root of the registry, and the answer to `request` if that was what found it: where http and https are
    /// possible the first request is sent to the likely one, without credentials, which nobody has asked for yet.
    /// Only if that does not tell, the registry is asked for its root first.
    async fn reach(&self, request: &mut Request<'_>) -> Result<(Url, Option<Response>), FetchError> {
        let likely = match self.endpoint.known()? {
            Ok(base) => return Ok((base, None)),
            Err(likely) => likely,
        };
        let path = match (&request.to, &request.body) {
            (Address::Path(path), None | Some(Content::Bytes(_))) => *path,
            _ => return Ok((self.base().await?, None)),
        };
        let began = Instant::now();
        let outcome = self.send_once(request, &self.endpoint.url(&likely, path), None).await;
        match outcome {
            Ok((response, _)) if response.status() != StatusCode::BAD_REQUEST => {
                self.endpoint.settle(&likely);
                return Ok((likely, Some(response)));
            }
            // it was waited long enough
            Err(error) if began.elapsed() >= self.stall => return Err(error),
            _ => {}
        }
        match (self.base().await, outcome) {
            (Ok(base), Ok((response, _))) if base == likely => Ok((base, Some(response))),
            (Ok(base), Err(error)) if base == likely => Err(error),
            (Ok(base), _) => Ok((base, None)),
            (Err(error), _) => Err(error),
        }
    }

    /// Sends a request with authorization, renewed once if refused, and follows redirects of reads.
    pub(super) async fn send(&self, mut request: Request<'_>) -> Result<Answer, FetchError> {
        let (base, mut first) = self.reach(&mut request).await?;
        let mut url = match &request.to {
            Address::Path(path) => self.endpoint.url(&base, path),
            Address::Url(url) => url.clone(),
        };
        let mut renewed = false;
        let mut redirects = 0;
        let mut until: Option<Instant> = None;
        loop {
            let own = same_origin(&url, &base);
            let (grant, (response, again)) = match first.take() {
                Some(response) => (None, (response, true)),
                None => {
                    let grant =
                        if own { self.auth.current(&self.endpoint, request.access).await? } else { None };
                    let sent = self.send_once(&mut request, &url, grant.as_ref()).await?;
                    (grant, sent)
                }
            };
            let status = response.status();
            if own && !renewed && may_be_expired(status, grant.as_ref()) {
                let challenges = challenges(&response);
                let access = request.access;
                let renewal =
                    self.auth.renew(&self.endpoint, &base, access, &challenges, grant.as_ref()).await?;
                renewed = true;
                if renewal == Renewal::Again {
                    if !again {
                        let message = format!("{}: authorization expired under way", request.what);
                        return Err(FetchError::new(Class::Unavailable, Side::Remote, message));
                    }
                    continue;
                }
            }
            let reads = request.method == Method::GET || request.method == Method::HEAD;
            if reads && status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                redirects += 1;
                let location = response.headers().get(LOCATION);
                url = redirected(&url, location, redirects).map_err(|why| {
                    let message = format!("{}: redirected {why}", request.what);
                    FetchError::new(Class::Protocol, Side::Remote, message)
                })?;
                let cached = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
                if let Some(left) = expiry::left(&url, cached, OffsetDateTime::now_utc()) {
                    let end = Instant::now().checked_add(left.saturating_sub(LAST));
                    until = until.into_iter().chain(end).min();
                }
                continue;
            }
            return Ok(Answer { response, url, own, until });
        }
    }

    /// Sends to an address without any authorization and without following.
    pub(super) async fn send_bare(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
        what: &str,
    ) -> Result<Response, FetchError> {
        let mut request = self.request(&Method::GET, url)?;
        for (name, value) in headers {
            request = request.header(name, value);
        }
        connections::send(request, what, self.stall).await
    }

    /// The answer, and whether the request can be sent again.
    async fn send_once(
        &self,
        request: &mut Request<'_>,
        url: &Url,
        grant: Option<&Grant>,
    ) -> Result<(Response, bool), FetchError> {
        let mut builder = self.request(&request.method, url)?;
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(grant) = grant {
            builder = builder.header(AUTHORIZATION, grant.header.clone());
        }
        let mut again = true;
        match request.body.take() {
            Some(Content::Bytes(bytes)) => {
                request.body = Some(Content::Bytes(bytes.clone()));
                builder = builder.body(bytes);
            }
            Some(Content::Stream(stream, length)) => {
                again = false;
                builder = builder.header(CONTENT_LENGTH, length).body(stream);
                // how long it takes is bounded by whoever feeds the stream (see `upload`)
                let response = builder.send().await.map_err(|e| connections::broken(request.what, e))?;
                return Ok((response, again));
            }
            None => {}
        }
        Ok((connections::send(builder, request.what, self.stall).await?, again))
    }

    fn request(&self, method: &Method, url: &Url) -> Result<RequestBuilder, FetchError> {
        let client = self.connections.client(url, self.endpoint.trust(url))?;
        Ok(client
            .request(method.clone(), url.clone())
            .header(
                reqwest::header::USER_AGENT,
                HeaderValue::from_str(&self.user_agent).unwrap_or(FALLBACK_AGENT),
            )
            .header(ACCEPT_ENCODING, "identity"))
    }

    /// The error of an answer without success; takes the registry's words from it.
    pub(super) async fn refusal(&self, what: &str, answer: Answer) -> FetchError {
        let (status, headers) = (answer.response.status(), answer.response.headers().clone());
        // what a redirect's target says may be anything and is not for our messages
        let own = answer.own;
        let body = if own { peek(answer.response, self.stall).await } else { Bytes::new() };
        let mut error = status::error(what, status, &headers, &body);
        if own && error.class == Class::Unauthorized {
            error.message.push_str(&format!(" (credentials were looked up in {})", self.auth.places()));
        }
        error
    }

    /// Where a blob was found last time, if that still holds.
    pub(super) fn target(&self, blob: &Digest) -> Option<(Url, Option<Instant>)> {
        let targets = self.targets();
        let target = targets.get(blob)?;
        let holds = target.until.is_none_or(|until| Instant::now() < until);
        holds.then(|| (target.url.clone(), target.until))
    }

    /// Keeps where a blob was found.
    pub(super) fn remember(&self, blob: Digest, url: Url, until: Option<Instant>) {
        let mut targets = self.targets();
        if targets.len() >= MAX_TARGETS {
            targets.clear();
        }
        targets.insert(blob, Target { url, until });
    }

    /// Drops what no longer works.
    pub(super) fn forget(&self, blob: &Digest) {
        self.targets().remove(blob);
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Target>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const FALLBACK_AGENT: HeaderValue = HeaderValue::from_static("addonfs");

/// Whether a new grant may help: 401 always; 403 (ECR) and 400 (ECR Public, aws/containers-roadmap#2835) are how
/// some registries say that a token has expired.
fn may_be_expired(status: StatusCode, grant: Option<&Grant>) -> bool {
    match status {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => grant.is_some(),
        _ => false,
    }
}

fn challenges(response: &Response) -> Vec<challenge::Challenge> {
    let values = response.headers().get_all(WWW_AUTHENTICATE);
    values.iter().filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// The `Content-Type` without parameters.
pub(super) fn content_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Where a redirect leads; the refusal in words that go on after "redirected".
fn redirected(from: &Url, location: Option<&HeaderValue>, redirects: usize) -> Result<Url, &'static str> {
    if redirects > MAX_REDIRECTS {
        return Err("too often: a loop");
    }
    let location = location.and_then(|value| value.to_str().ok()).ok_or("without an address")?;
    let target = from.join(location).map_err(|_| "to what is no address")?;
    match (from.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => Ok(target),
        ("https", "http") => Err("from https to plain http"),
        _ => Err("to what is neither http nor https"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_lead_to_less_protection() {
        let table = [
            ("https://r/v2/x", Some("https://cdn/y?sig=1"), 1, Some("https://cdn/y?sig=1")),
            ("https://r/v2/x", Some("/y"), 1, Some("https://r/y")),
            ("http://r/v2/x", Some("http://cdn/y"), 1, Some("http://cdn/y")),
            ("http://r/v2/x", Some("https://cdn/y"), 5, Some("https://cdn/y")),
            ("http://r/v2/x", Some("https://cdn/y"), 6, None),
            ("https://r/v2/x", Some("http://cdn/y"), 1, None),
            ("https://r/v2/x", Some("ftp://cdn/y"), 1, None),
            ("https://r/v2/x", Some("https://"), 1, None),
            ("https://r/v2/x", None, 1, None),
        ];
        for (from, location, redirects, expected) in table {
            let location = location.map(HeaderValue::from_static);
            let got = redirected(&Url::parse(from).unwrap(), location.as_ref(), redirects).ok();
            assert_eq!(got.as_ref().map(Url::as_str), expected, "{from} {location:?}");
        }
    }
}
