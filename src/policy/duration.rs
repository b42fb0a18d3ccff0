//! Durations as Go writes them (`1h30m`, `1.5h`, `300ms`): the `timeout` of a manifest, intervals of sources.
//!
//! Grammar of Go's `time.ParseDuration`: a sequence of decimal numbers, each with a unit of `ns`, `us` (`µs`),
//! `ms`, `s`, `m`, `h`, or the single word `0`. A sign is understood and a negative duration refused, because
//! nothing here can take a negative time.

use std::time::Duration;

/// Go holds a duration in an i64 of nanoseconds; whatever is longer does not parse there and not here.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Digits of one number that are looked at; more could not change a value below [`MAX_NANOS`] by a nanosecond.
const MAX_DIGITS: usize = 30;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not the grammar.
    #[error("{0:?} is not a duration: write numbers with units, for example 90s, 5m, 1h30m")]
    Malformed(String),
    /// A unit is missing (Go refuses a bare number other than 0).
    #[error("{0:?} has no unit: write for example {0}s")]
    NoUnit(String),
    /// Below zero.
    #[error("{0:?} is negative: a duration here is zero or more")]
    Negative(String),
    /// Longer than about 292 years.
    #[error("{0:?} is too long: the longest duration is about 292 years")]
    TooLong(String),
}

/// Parses a Go duration of zero or more.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(malformed());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" if number.parse::<f64>().is_ok() => return Err(DurationError::NoUnit(text.to_owned())),
            _ => return Err(malformed()),
        };
        let part = scaled(number, scale).ok_or_else(malformed)?;
        nanos = nanos.saturating_add(part);
        if nanos > MAX_NANOS {
            return Err(DurationError::TooLong(text.to_owned()));
        }
        rest = tail;
    }
    if negative && nanos > 0 {
        return Err(DurationError::Negative(text.to_owned()));
    }
    let nanos = u64::try_from(nanos).map_err(|_| DurationError::TooLong(text.to_owned()))?;
    Ok(Duration::from_nanos(nanos))
}

/// `number * scale`, rounded down; `None` if `number` is not digits with at most one point.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > MAX_DIGITS {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Eighteen digits: finer than a nanosecond of an hour, and no product below can overflow.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let unit = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(scale)?.checked_add(fraction.checked_mul(scale)? / unit)
}

/// Writes a duration as Go's `Duration.String` does: `1m30s`, `5m0s`, `1.5s`, `300ms`, `0s`.
pub fn render(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let seconds = duration.as_secs();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let second = decimal(nanos % 60_000_000_000, 1_000_000_000);
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{second}s"),
                (0, minutes) => format!("{minutes}m{second}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{second}s"),
            }
        }
    }
}

fn decimal(value: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    match fraction.trim_end_matches('0') {
        "" => (value / unit).to_string(),
        digits => format!("{}.{digits}", value / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_go_parses() {
        let ms = Duration::from_millis;
        let cases = [
            ("5m0s", ms(300_000)),
            ("5m", ms(300_000)),
            ("1m30s", ms(90_000)),
            ("1h", ms(3_600_000)),
            ("1.5h", ms(5_400_000)),
            ("300ms", ms(300)),
            ("0s", ms(0)),
            ("0", ms(0)),
            ("2m1h", ms(3_720_000)),
            ("100h", ms(360_000_000)),
            (".5s", ms(500)),
            ("1.s", ms(1_000)),
            ("+1s", ms(1_000)),
            ("1µs", Duration::from_micros(1)),
            ("1μs", Duration::from_micros(1)),
            ("7ns", Duration::from_nanos(7)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_in_words() {
        for bad in ["", "-", "s", ".s", "1.2.3s", "1d", "1 s", "5m ", "1h-1m", "é", "1mm", "--1s"] {
            assert!(matches!(parse(bad), Err(DurationError::Malformed(_))), "{bad:?}: {:?}", parse(bad));
        }
        assert_eq!(parse("60"), Err(DurationError::NoUnit("60".into())));
        assert_eq!(parse("-5s"), Err(DurationError::Negative("-5s".into())));
        assert_eq!(parse("9999999h"), Err(DurationError::TooLong("9999999h".into())));
        assert_eq!(parse(&"9".repeat(400)), Err(DurationError::NoUnit("9".repeat(400))));
        assert!(parse(&format!("{}s", "9".repeat(400))).is_err());
    }

    #[test]
    fn renders_as_go_does() {
        for (text, expected) in [
            ("90s", "1m30s"),
            ("5m", "5m0s"),
            ("1.5h", "1h30m0s"),
            ("2m1h", "1h2m0s"),
            ("1500ms", "1.5s"),
            ("300ms", "300ms"),
            ("1500us", "1.5ms"),
            ("0", "0s"),
            ("61.25s", "1m1.25s"),
        ] {
            assert_eq!(render(parse(text).unwrap()), expected, "{text}");
        }
    }
}
