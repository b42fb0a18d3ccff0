//! The token service of a registry (distribution `docs/content/spec/auth/token.md`, `oauth.md`).
//!
//! In: the realm of a challenge, a scope, a credential. Out: a token and its life. One question, no retry: the
//! request that needs the token is retried as a whole.

use std::time::{Duration, Instant};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;
use url::form_urlencoded::Serializer;

use super::body::read_limited;
use super::connections::{Connections, Trust, send};
use super::status;
use crate::fetch::credentials::{Credential, Secret};
use crate::fetch::error::{Class, FetchError, Side};

/// The life of a token whose answer names none (`token.md`, field `expires_in`).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// No token is kept longer, whatever the answer says.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Answers are a few KiB; tokens of large organisations reach some tens.
const MAX_ANSWER: u64 = 256 * 1024;
/// The client's name at the service; it need not be registered.
const CLIENT_ID: &str = "addonfs";

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    pub(super) scope: String,
    pub(super) credential: &'a Credential,
}

/// A token that was issued.
pub(super) struct Issued {
    pub(super) token: Secret,
    pub(super) life: Duration,
    pub(super) received: Instant,
}

/// Asks the service.
pub(super) async fn fetch(
    connections: &Connections,
    trust: Trust,
    stall: Duration,
    question: &Question<'_>,
) -> Result<Issued, FetchError> {
    let client = connections.client(question.realm, trust)?;
    let what = format!("token service {}", question.realm.host_str().unwrap_or("?"));
    let request = match question.credential {
        Credential::Identity(refresh) => client
            .post(question.realm.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(oauth_form(question, refresh)),
        Credential::Basic { username, password } => {
            client.get(address(question)).basic_auth(username, Some(password.expose()))
        }
        Credential::Anonymous | Credential::Bearer(_) => client.get(address(question)),
    };
    let response = send(request.header(reqwest::header::ACCEPT, "application/json"), &what, stall).await?;
    let received = Instant::now();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = read_limited(response, MAX_ANSWER, &what, stall).await?;
    if !status.is_success() {
        let mut error = status::error(&what, status, &headers, &body);
        if error.class == Class::Unauthorized && *question.credential != Credential::Anonymous {
            error.message.push_str(" (the credentials are refused: log in again)");
        }
        return Err(error);
    }
    parse(&body, received, OffsetDateTime::now_utc()).ok_or_else(|| {
        FetchError::new(Class::Protocol, Side::Remote, format!("{what}: no token in its answer"))
    })
}

/// The realm with the question added; what the realm's own query says is kept.
fn address(question: &Question<'_>) -> Url {
    let mut url = question.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = question.service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &question.scope);
    }
    url
}

fn oauth_form(question: &Question<'_>, refresh: &Secret) -> String {
    Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", question.service.unwrap_or(""))
        .append_pair("client_id", CLIENT_ID)
        .append_pair("scope", &question.scope)
        .append_pair("refresh_token", refresh.expose())
        .finish()
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
    #[serde(default)]
    issued_at: Option<String>,
}

/// `now` is the wall clock, against which `issued_at` is held.
fn parse(body: &[u8], received: Instant, now: OffsetDateTime) -> Option<Issued> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty())?;
    let life = answer.expires_in.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT_LIFE);
    // a service may hand out a token that it issued earlier; a clock that is wrong by more than the token's life
    // is not believed
    let age = answer
        .issued_at
        .and_then(|at| OffsetDateTime::parse(&at, &Rfc3339).ok())
        .and_then(|at| Duration::try_from(now - at).ok())
        .filter(|age| *age < life)
        .unwrap_or_default();
    Some(Issued { token: Secret::new(token), life: (life - age).min(MAX_LIFE), received })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_lives() {
        let now = OffsetDateTime::parse("2024-01-01T00:01:40Z", &Rfc3339).unwrap();
        let table = [
            (r#"{"token":"t"}"#, Some(("t", 60))),
            (r#"{"access_token":"a","expires_in":300}"#, Some(("a", 300))),
            (r#"{"token":"","access_token":"a"}"#, Some(("a", 60))),
            (r#"{"token":"t","access_token":"a"}"#, Some(("t", 60))),
            (r#"{"token":"t","expires_in":300,"issued_at":"2024-01-01T00:00:00Z"}"#, Some(("t", 200))),
            // clocks that are off, in both directions
            (r#"{"token":"t","expires_in":300,"issued_at":"2023-01-01T00:00:00Z"}"#, Some(("t", 300))),
            (r#"{"token":"t","expires_in":300,"issued_at":"2025-01-01T00:00:00Z"}"#, Some(("t", 300))),
            (r#"{"token":"t","expires_in":-5}"#, Some(("t", 60))),
            (r#"{"token":"t","expires_in":1e300}"#, Some(("t", 60))),
            (r#"{"token":"t","expires_in":1e9}"#, Some(("t", 86400))),
            (r#"{"token":"t","expires_in":0}"#, Some(("t", 0))),
            (r#"{"token":7}"#, None),
            ("{}", None),
            ("<html>", None),
        ];
        for (body, expected) in table {
            let got = parse(body.as_bytes(), Instant::now(), now);
            let got = got.as_ref().map(|i| (i.token.expose(), i.life.as_secs()));
            assert_eq!(got, expected, "{body}");
        }
    }

    #[test]
    fn the_question_is_encoded() {
        let realm = Url::parse("https://a/t?x=1").unwrap();
        let credential = Credential::Anonymous;
        let question = Question {
            realm: &realm,
            service: Some("a b"),
            scope: "repository:a/b:pull".into(),
            credential: &credential,
        };
        let url = address(&question);
        assert_eq!(url.as_str(), "https://a/t?x=1&service=a+b&scope=repository%3Aa%2Fb%3Apull");
        let form = oauth_form(&question, &Secret::new("r&x"));
        assert!(form.ends_with("scope=repository%3Aa%2Fb%3Apull&refresh_token=r%26x"), "{form}");
    }
}
