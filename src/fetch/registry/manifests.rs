//! Manifests and indexes by digest, tags to digests (distribution-spec `spec.md`, "Pulling manifests").
//!
//! In: a digest or a tag. Out: content whose digest was checked and its media type, which is the one that the
//! content itself states where it does: the header is not covered by the digest (CVE-2021-41190).

use bytes::Bytes;
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};

use super::auth::Access;
use super::body::read_limited;
use super::client::{Address, Answer, Client, Request, content_type};
use super::status;
use crate::fetch::document;
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::source::Tagged;
use crate::fetch::verified::VerifiedBytes;
use crate::policy::digest::Digest;

/// The content of the manifest `digest`: one attempt.
pub(super) async fn get(client: &Client, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
    let what = format!("manifest {digest} of {}", client.endpoint.display());
    let answer = ask(client, Method::GET, &digest.to_string(), &what).await?;
    if !answer.response.status().is_success() {
        return Err(client.refusal(&what, answer).await);
    }
    let header = content_type(&answer.response);
    let content = body(client, answer, &what).await?;
    let content = VerifiedBytes::check(content, digest).map_err(|mut error| {
        error.retryable = true;
        error.context(&what)
    })?;
    let media_type = document::media_type(&content, &header).map_err(|error| error.context(&what))?;
    Ok((media_type, content))
}

/// The digest that `tag` names now: one attempt. HEAD costs no pull where pulls are counted (Docker Hub).
pub(super) async fn resolve(client: &Client, tag: &str) -> Result<Option<Digest>, FetchError> {
    let what = format!("tag {:?} of {}", tag, client.endpoint.display());
    if !document::is_tag(tag) {
        return Err(FetchError::new(Class::NotFound, Side::Local, format!("{what}: not a tag")));
    }
    let head = ask(client, Method::HEAD, tag, &what).await?;
    match head.response.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        status if status.is_success() => {
            let named = head.response.headers().get("docker-content-digest");
            if let Some(digest) = named.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()) {
                return Ok(Some(digest));
            }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            return Err(client.refusal(&what, head).await);
        }
        _ => {}
    }
    // a registry that does not answer HEAD, or not with a digest
    Ok(tagged(client, tag).await?.map(|tagged| tagged.digest))
}

/// What `tag` names now: one attempt, one request. The digest is that of the bytes, whatever the headers say.
pub(super) async fn tagged(client: &Client, tag: &str) -> Result<Option<Tagged>, FetchError> {
    let what = format!("tag {:?} of {}", tag, client.endpoint.display());
    if !document::is_tag(tag) {
        return Err(FetchError::new(Class::NotFound, Side::Local, format!("{what}: not a tag")));
    }
    let answer = ask(client, Method::GET, tag, &what).await?;
    match answer.response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => {
            let header = content_type(&answer.response);
            let content = body(client, answer, &what).await?;
            let media_type = document::media_type(&content, &header).map_err(|error| error.context(&what))?;
            let digest = Digest::of(&content);
            let content = VerifiedBytes::check(content, &digest)?;
            Ok(Some(Tagged { digest, media_type, content }))
        }
        _ => Err(client.refusal(&what, answer).await),
    }
}

async fn ask(client: &Client, method: Method, reference: &str, what: &str) -> Result<Answer, FetchError> {
    let request = Request {
        method,
        to: Address::Path(&["manifests", reference]),
        access: Access::Pull,
        headers: vec![(ACCEPT, document::MEDIA_TYPES.join(", "))],
        body: None,
        what,
    };
    client.send(request).await
}

async fn body(client: &Client, answer: Answer, what: &str) -> Result<Bytes, FetchError> {
    if status::is_html(answer.response.headers()) {
        return Err(status::html_page(what));
    }
    read_limited(answer.response, document::MAX_DOCUMENT, what, client.stall).await
}
