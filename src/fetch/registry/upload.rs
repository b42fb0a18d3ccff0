//! Writing to a registry: POST for an upload session, one PUT with the whole blob (distribution-spec `spec.md`,
//! "Pushing blobs": POST then PUT), manifests by PUT.
//!
//! A broken upload starts anew with a new session. Chunked uploads are not used: their resumption is specified
//! loosely and differs between registries, and one PUT is what all of them accept.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Method, StatusCode};
use url::Url;

use super::auth::Access;
use super::client::{Address, Answer, Client, Content, Request};
use super::{Registry, connections, retry};
use crate::fetch::document;
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::sink::{BlobContent, BlobSink, Sent};
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

#[async_trait]
impl BlobSink for Registry {
    async fn has_blob(&self, blob: &Descriptor) -> Result<bool, FetchError> {
        retry::retried(&self.client.retry, || has_blob(&self.client, blob)).await
    }

    async fn put_blob(&self, blob: &Descriptor, content: BlobContent) -> Result<(), FetchError> {
        retry::retried(&self.client.retry, || put_blob(&self.client, blob, &content)).await
    }

    async fn put_manifest(
        &self,
        media_type: &str,
        content: Bytes,
        tag: Option<&str>,
    ) -> Result<Digest, FetchError> {
        retry::retried(&self.client.retry, || put_manifest(&self.client, media_type, &content, tag)).await
    }
}

async fn has_blob(client: &Client, blob: &Descriptor) -> Result<bool, FetchError> {
    let what = format!("blob {} of {}", blob.digest, client.endpoint.display());
    let digest = blob.digest.to_string();
    let to = Address::Path(&["blobs", &digest]);
    let request =
        Request { method: Method::HEAD, to, access: Access::Push, headers: vec![], body: None, what: &what };
    let answer = client.send(request).await?;
    match (answer.response.status(), answer.own) {
        (StatusCode::NOT_FOUND, _) => Ok(false),
        (status, _) if status.is_success() => Ok(true),
        // a presigned address is signed for GET only; that there is one says enough
        (_, false) => Ok(true),
        _ => Err(client.refusal(&what, answer).await),
    }
}

async fn put_blob(client: &Client, blob: &Descriptor, content: &BlobContent) -> Result<(), FetchError> {
    let what = format!("upload of {} to {}", blob.digest, client.endpoint.display());
    let request = Request {
        method: Method::POST,
        to: Address::Path(&["blobs", "uploads", ""]),
        access: Access::Push,
        headers: vec![(CONTENT_LENGTH, "0".to_owned())],
        body: None,
        what: &what,
    };
    let session = client.send(request).await?;
    if session.response.status() != StatusCode::ACCEPTED {
        return Err(client.refusal(&what, session).await);
    }
    let mut url = session_url(&session, &what)?;
    url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());

    let (parts, sent) = content.open(blob).await?;
    // an error of the content would reach us as a broken connection only: it is kept aside
    let failed = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&failed);
    let parts = parts.map_err(move |error: FetchError| {
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        std::io::Error::other("the content could not be read")
    });
    let body = Content::Stream(reqwest::Body::wrap_stream(parts.boxed()), blob.size);
    let request = Request {
        method: Method::PUT,
        to: Address::Url(url),
        access: Access::Push,
        headers: vec![(CONTENT_TYPE, "application/octet-stream".to_owned())],
        body: Some(body),
        what: &what,
    };
    let outcome = watched(client, request, &sent, blob.size).await;
    let outcome = match failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error.context(&what)),
        None => outcome,
    };
    let done = match outcome {
        Ok(answer) if answer.response.status() == StatusCode::CREATED => Ok(()),
        Ok(answer) => Err(client.refusal(&what, answer).await),
        Err(error) => Err(error),
    };
    done.inspect_err(|_| sent.undo())
}

/// Sends an upload; it fails when no byte was taken for a stall, or the registry is silent too long at the end.
async fn watched(
    client: &Client,
    request: Request<'_>,
    sent: &Sent,
    size: u64,
) -> Result<Answer, FetchError> {
    let what = request.what.to_owned();
    let sending = client.send(request);
    tokio::pin!(sending);
    let mut before = None;
    loop {
        let now = sent.bytes();
        let patience = if now >= size { client.commit.max(client.stall) } else { client.stall };
        if before == Some(now) {
            return Err(connections::stalled(&what, patience));
        }
        before = Some(now);
        if let Ok(outcome) = tokio::time::timeout(patience, &mut sending).await {
            return outcome;
        }
    }
}

/// The address of the upload session: relative or absolute, perhaps on another host (then without our grant).
fn session_url(answer: &Answer, what: &str) -> Result<Url, FetchError> {
    let refuse = |why: &str| {
        FetchError::new(Class::Protocol, Side::Remote, format!("{what}: the upload session's address {why}"))
    };
    let location = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let url = answer.url.join(location.ok_or_else(|| refuse("is missing"))?);
    let url = url.map_err(|_| refuse("is no address"))?;
    match (answer.url.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => Ok(url),
        _ => Err(refuse("is less protected than the registry")),
    }
}

async fn put_manifest(
    client: &Client,
    media_type: &str,
    content: &Bytes,
    tag: Option<&str>,
) -> Result<Digest, FetchError> {
    let digest = Digest::of(content);
    let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
    let what = format!("upload of manifest {reference} to {}", client.endpoint.display());
    if tag.is_some_and(|tag| !document::is_tag(tag)) {
        return Err(FetchError::new(Class::Protocol, Side::Local, format!("{what}: not a tag")));
    }
    let request = Request {
        method: Method::PUT,
        to: Address::Path(&["manifests", &reference]),
        access: Access::Push,
        headers: vec![(CONTENT_TYPE, media_type.to_owned())],
        body: Some(Content::Bytes(content.clone())),
        what: &what,
    };
    let answer = client.send(request).await?;
    if answer.response.status() != StatusCode::CREATED {
        return Err(client.refusal(&what, answer).await);
    }
    let stored = answer.response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
    match stored.map(str::parse::<Digest>) {
        Some(Ok(stored)) if stored != digest => {
            let message = format!("{what}: the registry stored {stored} instead of {digest}");
            Err(FetchError::new(Class::Protocol, Side::Remote, message))
        }
        _ => Ok(digest),
    }
}
