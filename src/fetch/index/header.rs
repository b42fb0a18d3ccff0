//! One 512-byte tar header block: formats, numbers, strings.
//!
//! Layouts: POSIX.1-1988 (ustar), GNU tar manual "Basic Tar Format", star. Where they are silent this reads as
//! Go's `archive/tar` does, because every container tool unpacks with it and an image must look the same here.

/// Size of a header, and the unit to which data is padded.
pub(super) const BLOCK: usize = 512;

/// A header block as it stands in the archive.
pub(super) type Block = [u8; BLOCK];

/// Which of the families of tar a header belongs to; decides what lies behind byte 257.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header that matter here, decoded but not yet overridden by extensions.
#[derive(Debug)]
pub(super) struct Header {
    pub family: Family,
    pub typeflag: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub size: i64,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    pub major: i64,
    pub minor: i64,
}

impl Header {
    /// Decodes `block`. The reason is in words for the message of an error.
    pub(super) fn parse(block: &Block) -> Result<Self, &'static str> {
        if !checksum_holds(block) {
            return Err("header checksum does not match");
        }
        let family = family(block);
        let mut header = Self {
            family,
            typeflag: block[156],
            name: string(&block[0..100]).to_vec(),
            link: string(&block[157..257]).to_vec(),
            mode: number(&block[100..108]).ok_or("mode is not a number")?,
            uid: number(&block[108..116]).ok_or("uid is not a number")?,
            gid: number(&block[116..124]).ok_or("gid is not a number")?,
            size: number(&block[124..136]).ok_or("size is not a number")?,
            mtime: number(&block[136..148]).ok_or("mtime is not a number")?,
            major: 0,
            minor: 0,
        };
        if family == Family::V7 {
            return Ok(header);
        }
        header.major = number(&block[329..337]).ok_or("device major is not a number")?;
        header.minor = number(&block[337..345]).ok_or("device minor is not a number")?;
        let prefix = match family {
            Family::Ustar => string(&block[345..500]),
            Family::Star => string(&block[345..476]),
            Family::Gnu => gnu_prefix(block),
            Family::V7 => &[],
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }
}

/// GNU headers have no prefix, but those that Go wrote before 1.8 may: then atime and ctime, which lie at the
/// same place, are not numbers.
fn gnu_prefix(block: &Block) -> &[u8] {
    let times = [&block[345..357], &block[357..369]];
    let sound = times.iter().all(|time| time[0] == 0 || number(time).is_some());
    let prefix = string(&block[345..500]);
    if sound || !prefix.is_ascii() { &[] } else { prefix }
}

fn family(block: &Block) -> Family {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..512] == b"tar\0" => Family::Star,
        (b"ustar\0", _) => Family::Ustar,
        (b"ustar ", b" \0") => Family::Gnu,
        _ => Family::V7,
    }
}

/// The sum of all bytes with the checksum field read as spaces; old tars summed signed bytes.
fn checksum_holds(block: &Block) -> bool {
    let Some(written) = octal(&block[148..156]) else { return false };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    written == unsigned || written == signed
}

/// The bytes before the first NUL.
pub(super) fn string(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A numeric field: base-256 two's complement when its first bit is set, else octal digits.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = u64::from((first ^ invert) & 0x7f);
    for &byte in rest {
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte ^ invert);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

/// Octal digits between optional spaces and NULs; an empty field is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = string(field.get(start..end)?);
    digits.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_spellings() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"0000008\0", None),
            (b"12 34\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn a_changed_byte_breaks_the_checksum() {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert_eq!(Header::parse(&block).unwrap().name, b"a");
        block[0] = b'b';
        assert!(Header::parse(&block).is_err());
    }
}
