//! What an HTTP status means for us (distribution-spec `spec.md`, "Error codes"; RFC 9110 section 15).
//!
//! In: status, headers and the first bytes of an answer that is no success. Out: the error, its class and whether
//! trying again can help.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::fetch::error::{Class, FetchError, Side};

/// The error for an answer without success. `body` may be cut; it is used only for a registry's own words.
pub(super) fn error(what: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> FetchError {
    let (class, retryable) = class_of(status);
    let words = match words_of(body) {
        Some(words) => format!("{what}: {status}: {words}"),
        None => format!("{what}: {status}"),
    };
    let mut error = FetchError::new(class, Side::Remote, words);
    error.retryable = retryable;
    error.retry_after = if retryable { retry_after(headers, OffsetDateTime::now_utc()) } else { None };
    error
}

fn class_of(status: StatusCode) -> (Class, bool) {
    match status.as_u16() {
        401 | 403 => (Class::Unauthorized, false),
        404 | 410 => (Class::NotFound, false),
        408 | 425 | 429 => (Class::Unavailable, true),
        501 | 505 => (Class::Protocol, false),
        500..=599 => (Class::Unavailable, true),
        _ => (Class::Protocol, false),
    }
}

/// `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let until = OffsetDateTime::parse(value, &Rfc2822).ok()? - now;
    Some(until.try_into().unwrap_or(Duration::ZERO))
}

/// The first error of a registry's JSON (`{"errors":[{"code","message"}]}`), safe to print.
fn words_of(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = json.get("errors")?.get(0)?;
    let text = |key: &str| first.get(key).and_then(|v| v.as_str()).unwrap_or("").to_owned();
    let words = format!("{} {}", text("code"), text("message"));
    let clean: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// Whether the answer is a page for people: a login form where a registry should be.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.trim_start().get(..9).is_some_and(|start| start.eq_ignore_ascii_case("text/html"))
}

/// The error for such a page.
pub(super) fn html_page(what: &str) -> FetchError {
    let message = format!(
        "{what}: the answer is an HTML page: the host is no registry, or something before it wants a login"
    );
    let mut error = FetchError::new(Class::Protocol, Side::Remote, message);
    error.retryable = true;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_by_class() {
        let table = [
            (400, Class::Protocol, false),
            (401, Class::Unauthorized, false),
            (403, Class::Unauthorized, false),
            (404, Class::NotFound, false),
            (410, Class::NotFound, false),
            (408, Class::Unavailable, true),
            (416, Class::Protocol, false),
            (429, Class::Unavailable, true),
            (500, Class::Unavailable, true),
            (501, Class::Protocol, false),
            (502, Class::Unavailable, true),
            (503, Class::Unavailable, true),
            (504, Class::Unavailable, true),
            (304, Class::Protocol, false),
        ];
        for (code, class, retryable) in table {
            let status = StatusCode::from_u16(code).unwrap();
            let error = error("x", status, &HeaderMap::new(), b"");
            assert_eq!((error.class, error.retryable), (class, retryable), "{code}");
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = OffsetDateTime::parse("Wed, 21 Oct 2015 07:28:00 GMT", &Rfc2822).unwrap();
        let table = [
            ("7", Some(7)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ];
        for (value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn a_registrys_words_are_cleaned() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way\n"}]}"#;
        let error = error("x", StatusCode::FORBIDDEN, &HeaderMap::new(), body);
        assert_eq!(error.message, "x: 403 Forbidden: DENIED no[31m way");
        assert_eq!(words_of(b"<html>"), None);
        assert_eq!(words_of(br#"{"errors":[]}"#), None);
    }
}
