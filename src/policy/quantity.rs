//! Amounts of processor and memory as manifests and ceilings write them.
//!
//! cpu: decimal cores (`"0.5"`, `"2"`) or thousandths (`500m`). memory: a number with one of `k ki kib m mi mib g
//! gi gib` in any case, all of them binary (`2G` is 2 GiB), or a bare number of bytes. `MB` and `GB` are refused,
//! because half of the world reads them as decimal.

/// More cores than any host has; keeps every later product far from overflow.
const MAX_CPU_MILLIS: u64 = 1_000_000_000;

/// One exbibyte, for the same reason.
const MAX_MEMORY: u128 = 1 << 60;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not an amount of processor.
    #[error("{0:?} is not an amount of cpu: write cores as in 0.5 or 2, or thousandths as in 500m")]
    Cpu(String),
    /// Finer than a thousandth of a core.
    #[error(
        "{0:?} is finer than a thousandth of a core: use at most three decimals, or whole thousandths (500m)"
    )]
    CpuTooFine(String),
    /// Not an amount of memory.
    #[error("{0:?} is not an amount of memory: write bytes, or a number with Ki, Mi or Gi, as in 512Mi")]
    Memory(String),
    /// Not a part of a disk.
    #[error("{0:?} is not a part of a disk: write whole percents from 0% to 100%")]
    Share(String),
    /// `KB`, `MB`, `GB`: decimal or binary, nobody knows.
    #[error("{0:?} is ambiguous: units here are binary, write {1}")]
    MemoryUnit(String, String),
    /// Below zero.
    #[error("{0:?} is negative")]
    Negative(String),
    /// Zero, where a limit of zero means nothing.
    #[error("{0:?} is zero: leave it out for no limit")]
    Zero(String),
    /// Too large to be meant.
    #[error("{0:?} is more than any machine has")]
    TooLarge(String),
}

/// A part of a disk: so many bytes, or so many hundredths of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Bytes.
    Bytes(u64),
    /// Hundredths, 0 to 100.
    Percent(u8),
}

impl Share {
    /// How many bytes of a whole of `total` bytes that is.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                total / 100 * u64::from(percent) + total % 100 * u64::from(percent) / 100
            }
        }
    }
}

/// A part of a disk: `20%`, or bytes as in [`parse_memory`]. Zero is one, too.
pub fn parse_share(text: &str) -> Result<Share, QuantityError> {
    let text = text.trim();
    if text == "0" {
        return Ok(Share::Bytes(0));
    }
    let Some(number) = text.strip_suffix('%') else { return parse_memory(text).map(Share::Bytes) };
    let percent = number.trim_end().parse().ok().filter(|percent| *percent <= 100);
    percent.map(Share::Percent).ok_or_else(|| QuantityError::Share(text.to_owned()))
}

/// Thousandths of a core.
pub fn parse_cpu(text: &str) -> Result<u64, QuantityError> {
    let text = text.trim();
    let bad = || QuantityError::Cpu(text.to_owned());
    reject_negative(text)?;
    let millis = match text.strip_suffix(['m', 'M']) {
        Some(millis) => {
            let (whole, fraction) = digits(millis).ok_or_else(bad)?;
            if fraction.bytes().any(|digit| digit != b'0') {
                return Err(QuantityError::CpuTooFine(text.to_owned()));
            }
            whole.parse().map_err(|_| QuantityError::TooLarge(text.to_owned()))?
        }
        None => {
            let (whole, fraction) = digits(text).ok_or_else(bad)?;
            let fraction = fraction.trim_end_matches('0');
            if fraction.len() > 3 {
                return Err(QuantityError::CpuTooFine(text.to_owned()));
            }
            let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
            let whole: u64 = whole.parse().map_err(|_| QuantityError::TooLarge(text.to_owned()))?;
            whole.saturating_mul(1000).saturating_add(thousandths)
        }
    };
    match millis {
        0 => Err(QuantityError::Zero(text.to_owned())),
        1..=MAX_CPU_MILLIS => Ok(millis),
        _ => Err(QuantityError::TooLarge(text.to_owned())),
    }
}

/// Bytes. A fraction of a byte is dropped.
pub fn parse_memory(text: &str) -> Result<u64, QuantityError> {
    let text = text.trim();
    let bad = || QuantityError::Memory(text.to_owned());
    reject_negative(text)?;
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = digits(number).ok_or_else(bad)?;
    let scale: u128 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" if fraction.is_empty() => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "kb" => return Err(QuantityError::MemoryUnit(text.to_owned(), format!("{number}Ki"))),
        "mb" => return Err(QuantityError::MemoryUnit(text.to_owned(), format!("{number}Mi"))),
        "gb" => return Err(QuantityError::MemoryUnit(text.to_owned(), format!("{number}Gi"))),
        _ => return Err(bad()),
    };
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    // Twelve decimals are finer than a byte of a GiB; the product stays below 2^70.
    let fraction = fraction.get(..12).unwrap_or(fraction);
    let unit = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
    let bytes = whole.checked_mul(scale).ok_or_else(too_large)?.saturating_add(fraction * scale / unit);
    match bytes {
        0 => Err(QuantityError::Zero(text.to_owned())),
        1..=MAX_MEMORY => u64::try_from(bytes).map_err(|_| too_large()),
        _ => Err(too_large()),
    }
}

/// `500m`: the form in which messages and descriptors show processor.
pub fn render_cpu(millis: u64) -> String {
    format!("{millis}m")
}

/// `512Mi`, `64Ki` or plain bytes: the largest of these units in which the amount is whole.
pub fn render_memory(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}Mi", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}Ki", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn reject_negative(text: &str) -> Result<(), QuantityError> {
    if text.starts_with('-') { Err(QuantityError::Negative(text.to_owned())) } else { Ok(()) }
}

/// Splits `12.5` into its digits before and after the point; the whole part is never empty.
fn digits(number: &str) -> Option<(&str, &str)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let only_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = if whole.is_empty() && !fraction.is_empty() { "0" } else { whole };
    (!whole.is_empty() && only_digits(whole) && only_digits(fraction)).then_some((whole, fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case RP-01.
    #[test]
    fn cpu() {
        for (text, millis) in [
            ("1.0", 1000),
            ("2.0", 2000),
            ("250m", 250),
            ("0.5", 500),
            ("2", 2000),
            (".25", 250),
            ("0.125", 125),
            ("0.1000", 100),
            ("1500M", 1500),
            ("3.0m", 3),
        ] {
            assert_eq!(parse_cpu(text), Ok(millis), "{text}");
        }
        for bad in ["", ".", "m", "1e3", "two", "1.5.0", "1,5", "0x2", "+1", "1 m", "½"] {
            assert!(matches!(parse_cpu(bad), Err(QuantityError::Cpu(_))), "{bad:?}: {:?}", parse_cpu(bad));
        }
        assert!(matches!(parse_cpu("-1"), Err(QuantityError::Negative(_))));
        assert!(matches!(parse_cpu("0.0005"), Err(QuantityError::CpuTooFine(_))));
        assert!(matches!(parse_cpu("1.5m"), Err(QuantityError::CpuTooFine(_))));
        assert!(matches!(parse_cpu("0"), Err(QuantityError::Zero(_))));
        assert!(matches!(parse_cpu(&"9".repeat(100)), Err(QuantityError::TooLarge(_))));
    }

    /// Case RP-02.
    #[test]
    fn memory() {
        for (text, bytes) in [
            ("2GiB", 2_147_483_648),
            ("512Mi", 536_870_912),
            ("1g", 1_073_741_824),
            ("64k", 65_536),
            ("1024", 1024),
            ("1.5Gi", 1_610_612_736),
            ("2G", 2_147_483_648),
            ("0.1k", 102),
            ("1 MiB", 1_048_576),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for bad in ["", "Gi", "1.5", "1e3", "1Ti", "1B", "lots", "1..5Gi", "1GiBs"] {
            assert!(matches!(parse_memory(bad), Err(QuantityError::Memory(_))), "{bad:?}");
        }
        for bad in ["1MB", "2gb", "1kB"] {
            assert!(matches!(parse_memory(bad), Err(QuantityError::MemoryUnit(..))), "{bad:?}");
        }
        assert!(matches!(parse_memory("-1Gi"), Err(QuantityError::Negative(_))));
        assert!(matches!(parse_memory("0"), Err(QuantityError::Zero(_))));
        assert!(matches!(parse_memory(&format!("{}Gi", "9".repeat(37))), Err(QuantityError::TooLarge(_))));
    }

    #[test]
    fn shares() {
        for (text, bytes) in
            [("20%", 200), ("100 %", 1000), ("0%", 0), ("0", 0), ("3", 3), ("1Ki", 1024), ("1%", 10)]
        {
            assert_eq!(parse_share(text).unwrap().of(1000), bytes, "{text}");
        }
        assert_eq!(Share::Percent(100).of(u64::MAX), u64::MAX);
        for bad in ["101%", "2.5%", "%", "-1%", "20 percent", "1MB"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn renders_whole_units() {
        assert_eq!(render_cpu(2000), "2000m");
        assert_eq!(render_memory(1 << 30), "1024Mi");
        assert_eq!(render_memory(3 << 10), "3Ki");
        assert_eq!(render_memory(1023), "1023");
    }
}
