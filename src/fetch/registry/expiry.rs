//! How long an address that a registry redirected to is good for.
//!
//! In: the address, and what the redirect said of caching. Out: the time that is left; nothing where neither says.
//! Signatures in queries: AWS and Google V4 (`X-Amz-Date`, `X-Amz-Expires`), their older form and CloudFront
//! (`Expires`, Unix seconds), Azure (`se`, a date).

use std::time::Duration;

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use url::Url;

/// `20130524T000000Z`.
const AMZ_DATE: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// The time left, as far as anything says; zero is not to be kept. `cache_control` is the redirect's.
pub(super) fn left(address: &Url, cache_control: Option<&str>, now: OffsetDateTime) -> Option<Duration> {
    let signed = signed(address, now);
    let cached = cache_control.and_then(max_age);
    match (signed, cached) {
        (Some(signed), Some(cached)) => Some(signed.min(cached)),
        (signed, cached) => signed.or(cached),
    }
}

fn signed(address: &Url, now: OffsetDateTime) -> Option<Duration> {
    let value = |names: &[&str]| {
        let mut pairs = address.query_pairs();
        let found = pairs.find(|(key, _)| names.iter().any(|name| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.into_owned())
    };
    let until = |end: OffsetDateTime| Duration::try_from(end - now).unwrap_or_default();
    if let Some(life) = value(&["x-amz-expires", "x-goog-expires"]) {
        let life = Duration::from_secs(life.parse().ok()?);
        // what is older than its life came from a clock that is off: it was signed for us a moment ago
        let signed = value(&["x-amz-date", "x-goog-date"])?;
        let signed = PrimitiveDateTime::parse(&signed, AMZ_DATE).ok()?.assume_utc();
        let age = Duration::try_from(now - signed).ok().filter(|age| *age < life).unwrap_or_default();
        return Some(life - age);
    }
    if let Some(end) = value(&["expires"]) {
        return Some(until(OffsetDateTime::from_unix_timestamp(end.parse().ok()?).ok()?));
    }
    let end = value(&["se"])?;
    Some(until(OffsetDateTime::parse(&end, &Rfc3339).ok()?))
}

/// `max-age`, or nothing at all for what must not be kept (RFC 9111 section 5.2.2).
fn max_age(cache_control: &str) -> Option<Duration> {
    let mut directives = cache_control.split(',').map(str::trim);
    directives.find_map(|directive| {
        if directive.eq_ignore_ascii_case("no-store") {
            return Some(Duration::ZERO);
        }
        let (name, value) = directive.split_once('=')?;
        let seconds = name.trim().eq_ignore_ascii_case("max-age").then(|| value.trim().trim_matches('"'))?;
        seconds.parse().ok().map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_addresses_say() {
        let now = OffsetDateTime::parse("2024-01-01T00:01:40Z", &Rfc3339).unwrap();
        let table = [
            ("x-amz-date=20240101T000000Z&X-Amz-Expires=300", None, Some(200)),
            ("X-Goog-Date=20240101T000140Z&X-Goog-Expires=600&X-Goog-Signature=s", None, Some(600)),
            // clocks that are off
            ("X-Amz-Date=20230101T000000Z&X-Amz-Expires=300", None, Some(300)),
            ("X-Amz-Date=20250101T000000Z&X-Amz-Expires=300", None, Some(300)),
            ("X-Amz-Date=today&X-Amz-Expires=300", None, None),
            ("X-Amz-Expires=300", None, None),
            ("X-Amz-Date=20240101T000000Z&X-Amz-Expires=-1", None, None),
            ("Expires=1704067400&Signature=s&Key-Pair-Id=k", None, Some(100)),
            ("Expires=1704067200", None, Some(0)),
            ("Expires=99999999999999999999", None, None),
            ("se=2024-01-01T00%3A02%3A40Z&sig=s", None, Some(60)),
            ("se=soon", None, None),
            ("", Some("private, max-age=30"), Some(30)),
            ("", Some("no-store"), Some(0)),
            ("", Some("max-age=\"5\""), Some(5)),
            ("", Some("public"), None),
            ("Expires=1704067400", Some("max-age=30"), Some(30)),
            ("Expires=1704067400", Some("max-age=3000"), Some(100)),
            ("token=x", None, None),
        ];
        for (query, cache_control, expected) in table {
            let address = Url::parse(&format!("https://storage.example/blob?{query}")).unwrap();
            let got = left(&address, cache_control, now).map(|left| left.as_secs());
            assert_eq!(got, expected, "{query} {cache_control:?}");
        }
    }
}
