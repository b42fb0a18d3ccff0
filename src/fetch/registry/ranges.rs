//! `Range` and `Content-Range` (RFC 9110 section 14): one range a request, and the answer is believed only when
//! it says that it is that range.

use std::ops::Range;

/// `bytes=a-b` for a range that is not empty.
pub(super) fn header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
}

/// The part that a 206 carries: `bytes a-b/total` or `bytes a-b/*`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Range<u64>,
    total: Option<u64>,
}

fn parse(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = (digits(first)?, digits(last)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(digits(total)?),
    };
    let end = last.checked_add(1)?;
    (first < end && total.is_none_or(|total| end <= total))
        .then_some(ContentRange { range: first..end, total })
}

/// Digits only: `parse` would take a sign.
fn digits(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// How many bytes a 206 with this `Content-Range` carries for the wanted range of a blob of `size` bytes; `None`
/// if it is no answer to the question. A server may send less than was asked for.
pub(super) fn accepted(content_range: Option<&str>, wanted: &Range<u64>, size: u64) -> Option<u64> {
    let got = parse(content_range?)?;
    let fits = got.range.start == wanted.start
        && got.range.end <= wanted.end
        && got.total.is_none_or(|total| total == size);
    fits.then(|| got.range.end - got.range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_range_is_accepted() {
        // wanted: 10..20 of 100
        let table = [
            (Some("bytes 10-19/100"), Some(10)),
            (Some("bytes 10-19/*"), Some(10)),
            (Some("Bytes  10-19 / 100"), Some(10)),
            (Some("bytes 10-14/100"), Some(5)),
            (Some("bytes 10-20/100"), None),
            (Some("bytes 11-19/100"), None),
            (Some("bytes 0-19/100"), None),
            (Some("bytes 10-19/99"), None),
            (Some("bytes 10-9/100"), None),
            (Some("bytes 10-19"), None),
            (Some("bytes */100"), None),
            (Some("items 10-19/100"), None),
            (Some("bytes +10-19/100"), None),
            (Some("bytes 10-18446744073709551615/*"), None),
            (Some("bytes 10-99999999999999999999/*"), None),
            (Some(""), None),
            (None, None),
        ];
        for (value, expected) in table {
            assert_eq!(accepted(value, &(10..20), 100), expected, "{value:?}");
        }
        assert_eq!(header(&(10..20)), "bytes=10-19");
    }
}
