//! Referrers as the registry lists them (distribution-spec `spec.md`, "Listing Referrers").
//!
//! Registries that do not know the address say so in many ways: 404 by the specification, others with 400, 405 or 501, or
//! they lead to a page for people (GCP, Quay; soci-snapshotter `docs/registry.md`).

use reqwest::header::{ACCEPT, LINK};
use reqwest::{Method, StatusCode};
use url::Url;

use super::auth::Access;
use super::body::read_limited;
use super::client::{Address, Client, Request};
use super::status;
use crate::fetch::document;
use crate::fetch::error::FetchError;
use crate::fetch::referrers::{MAX_REFERRERS, of_types};
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, OCI_INDEX};

/// Most pages of one list that are read.
const MAX_PAGES: usize = 8;

/// The referrers of `subject` of one of `types`; `None` where the registry keeps no list. One attempt.
pub(super) async fn get(
    client: &Client,
    subject: &Digest,
    types: &[&str],
) -> Result<Option<Vec<Descriptor>>, FetchError> {
    let what = format!("referrers of {subject} in {}", client.endpoint.display());
    // Filtering by the registry is optional, so it is done here.
    let subject = subject.to_string();
    let first = ["referrers", subject.as_str()];
    let (mut page, mut found) = (Address::Path(&first), Vec::new());
    for _ in 0..MAX_PAGES {
        let request = Request {
            method: Method::GET,
            to: page,
            access: Access::Pull,
            headers: vec![(ACCEPT, OCI_INDEX.to_owned())],
            body: None,
            what: &what,
        };
        let answer = client.send(request).await?;
        match answer.response.status() {
            StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => return Ok(None),
            status if !status.is_success() => return Err(client.refusal(&what, answer).await),
            _ if !answer.own || status::is_html(answer.response.headers()) => return Ok(None),
            _ => {}
        }
        let next =
            answer.response.headers().get(LINK).and_then(|link| next(link.to_str().ok()?, &answer.url));
        let list = read_limited(answer.response, document::MAX_DOCUMENT, &what, client.stall).await?;
        found.extend(of_types(&list, types).map_err(|error| error.context(&what))?);
        match next {
            Some(next) if found.len() < MAX_REFERRERS => page = Address::Url(next),
            _ => break,
        }
    }
    found.truncate(MAX_REFERRERS);
    Ok(Some(found))
}

/// The address of the next page, on the same host (RFC 8288).
fn next(link: &str, here: &Url) -> Option<Url> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let rel = parameters.split(';').any(|parameter| {
        parameter.trim().strip_prefix("rel=").is_some_and(|rel| rel.trim_matches('"') == "next")
    });
    here.join(target).ok().filter(|next| rel && next.origin() == here.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_pages() {
        let here: Url = "https://r.example/v2/a/referrers/sha256:00?artifactType=x".parse().unwrap();
        let at = |link| next(link, &here).map(|url| url.to_string());
        assert_eq!(
            at("</v2/a/referrers/sha256:00?n=2>; rel=\"next\"").as_deref(),
            Some("https://r.example/v2/a/referrers/sha256:00?n=2")
        );
        assert_eq!(at("</v2/x>; rel=next").as_deref(), Some("https://r.example/v2/x"));
        for bad in ["</v2/x>; rel=prev", "https://r.example/x", "<https://other.example/v2/x>; rel=next", "<"]
        {
            assert_eq!(at(bad), None, "{bad}");
        }
    }
}
