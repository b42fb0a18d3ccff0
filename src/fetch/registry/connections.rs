//! The HTTP clients: connection pools, TLS, proxies, time limits of connecting.
//!
//! Out: one answer to one request, redirects never followed (see [`super::client`]) and bodies never decoded.
//! Errors name no address, because addresses may carry credentials (presigned queries).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};
use url::Url;

use super::endpoint::is_loopback;
use super::hosts::Authority;
use crate::fetch::error::{Class, FetchError, Side};

/// Whose certificates are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Trust {
    /// Those that the system's roots prove.
    Verified,
    /// Those that the system's roots prove, or this authority.
    Also(Authority),
    /// Any: the user said `insecure` of this registry.
    Anyone,
}

/// HTTP/2: bytes that may be under way of one answer. The protocol's 64 KiB would hold a line of 20 ms to 3 MB/s; this
/// fills one of 1 Gbit/s and 30 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same of one connection, which all answers of a registry share.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The pools of open connections. A clone shares them: options that are cloned for many repositories of one
/// registry use one pool.
#[derive(Clone)]
pub struct Connections {
    connect_timeout: Duration,
    pools: Arc<Mutex<HashMap<Kind, Client>>>,
}

/// What clients differ in.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    /// Past any proxy.
    direct: bool,
    /// Whose certificates are accepted; nobody's by a client for plain http, because reading the system's roots takes
    /// longer than everything else of a first request to this host.
    trust: Option<Trust>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("connect_timeout", &self.connect_timeout).finish_non_exhaustive()
    }
}

impl Default for Connections {
    /// Connecting may take 10 s: a lost first packet is sent again after 1, 3 and 7 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl Connections {
    /// Pools whose connections must stand within `connect_timeout`.
    pub fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, pools: Arc::default() }
    }

    /// The client for `url`: hosts of the loopback interface are reached past any proxy.
    pub(super) fn client(&self, url: &Url, trust: Trust) -> Result<Client, FetchError> {
        let kind = Kind { direct: is_loopback(url), trust: Some(trust).filter(|_| url.scheme() != "http") };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = pools.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(&kind).map_err(|error| {
            let message = format!("cannot set up TLS: {}; are CA certificates installed?", chain(&error));
            FetchError::new(Class::Protocol, Side::Local, message)
        })?;
        pools.insert(kind, client.clone());
        Ok(client)
    }

    fn build(&self, kind: &Kind) -> reqwest::Result<Client> {
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .pool_idle_timeout(Duration::from_secs(60));
        if kind.direct {
            builder = builder.no_proxy();
        }
        match &kind.trust {
            None => builder = builder.tls_certs_only([]),
            Some(Trust::Verified) => {}
            Some(Trust::Also(authority)) => builder = builder.tls_certs_merge(authority.certificates()?),
            Some(Trust::Anyone) => builder = builder.tls_danger_accept_invalid_certs(true),
        }
        builder.build()
    }
}

/// Sends and waits for the head of the answer; `stall` bounds the time in which nothing comes.
pub(super) async fn send(
    request: RequestBuilder,
    what: &str,
    stall: Duration,
) -> Result<Response, FetchError> {
    match tokio::time::timeout(stall, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(broken(what, error)),
        Err(_) => Err(stalled(what, stall)),
    }
}

/// A connection that could not be made or broke.
pub(super) fn broken(what: &str, error: reqwest::Error) -> FetchError {
    let words = chain(&error.without_url());
    // rustls' words for a certificate that proves nothing; its type is not in our hands
    if words.contains("invalid peer certificate") {
        let message = format!(
            "{what}: {words}: name its CA in `registries.<name>.ca`, or say `insecure: true` of the registry"
        );
        return FetchError::new(Class::Protocol, Side::Remote, message);
    }
    FetchError::new(Class::Unavailable, Side::Remote, format!("{what}: {words}"))
}

/// Nothing came for `stall`.
pub(super) fn stalled(what: &str, stall: Duration) -> FetchError {
    let message = format!("{what}: no byte from the registry for {stall:?}");
    FetchError::new(Class::Unavailable, Side::Remote, message)
}

/// Something came in the time of a stall, and too little to go on.
pub(super) fn dripping(what: &str, came: u64, stall: Duration) -> FetchError {
    let message = format!("{what}: only {came} bytes from the registry in {stall:?}");
    FetchError::new(Class::Unavailable, Side::Remote, message)
}

/// An error with its causes: reqwest's own words leave out the reason.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !words.ends_with(&text) {
            words = format!("{words}: {text}");
        }
        source = cause.source();
    }
    words
}
