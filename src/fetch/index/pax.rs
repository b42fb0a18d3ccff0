//! PAX extended headers (POSIX.1-2001 `pax`): `LENGTH KEY=VALUE\n` records that override one member's header.
//!
//! Read as Go's `archive/tar` reads them: an empty value keeps what the header says; a later record of a key
//! wins; two extended headers before one member do not add up, the last one counts. Extended attributes are
//! `SCHILY.xattr.*`; GNU's sparse maps are handed to `sparse`.

use super::header::Header;

/// The prefix under which GNU tar, star and Go keep extended attributes.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Most extended attributes of one entry. The kernel lists at most 64 KiB of names; real entries have under ten.
const MAX_XATTRS: usize = 256;

/// Kernel limits of a name and of a value (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;

/// What one extended header says.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<i64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// The `GNU.sparse.*` records, as written.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub major: Vec<u8>,
    pub minor: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub size: Option<i64>,
    pub real_size: Option<i64>,
    pub blocks: Option<i64>,
    /// `GNU.sparse.map` of 0.1, or the `offset`/`numbytes` pairs of 0.0, alternating.
    pub map: Option<Vec<i64>>,
}

/// Names with their name space, and values.
pub(super) type XattrList = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes among PAX records that somebody else has parsed. Records of a sparse file are refused.
pub(super) fn xattrs<'r>(
    records: impl Iterator<Item = (&'r [u8], &'r [u8])>,
) -> Result<XattrList, &'static str> {
    let mut pax = Pax::default();
    for (key, value) in records {
        if key.starts_with(b"GNU.sparse.") {
            return Err("it is a sparse file");
        }
        if let Some(name) = key.strip_prefix(XATTR) {
            pax.xattr(name, value)?;
        }
    }
    Ok(pax.xattrs)
}

impl Pax {
    /// Parses the data of an `x` member.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        let mut pairs = Vec::new();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or("extended header is not a list of PAX records")?;
            data = rest;
            match key {
                b"GNU.sparse.offset" if pairs.len() % 2 == 0 => pairs.push(decimal(value)?),
                b"GNU.sparse.numbytes" if pairs.len() % 2 == 1 => pairs.push(decimal(value)?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => return Err("sparse records out of order"),
                _ => pax.take(key, value)?,
            }
        }
        if !pairs.is_empty() {
            pax.sparse.map = Some(pairs);
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let text = |value: &[u8]| match value {
            b"" => Ok(None),
            _ if value.contains(&0) => Err("PAX value contains a NUL byte"),
            _ => Ok(Some(value.to_vec())),
        };
        let number = |value: &[u8]| if value.is_empty() { Ok(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or("mtime is not a number of seconds")?),
            b"GNU.sparse.major" => self.sparse.major = value.to_vec(),
            b"GNU.sparse.minor" => self.sparse.minor = value.to_vec(),
            b"GNU.sparse.name" => self.sparse.name = text(value)?,
            b"GNU.sparse.size" => self.sparse.size = number(value)?,
            b"GNU.sparse.realsize" => self.sparse.real_size = number(value)?,
            b"GNU.sparse.numblocks" => self.sparse.blocks = number(value)?,
            b"GNU.sparse.map" if value.is_empty() => self.sparse.map = None,
            b"GNU.sparse.map" => {
                self.sparse.map = Some(value.split(|&b| b == b',').map(decimal).collect::<Result<_, _>>()?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME || value.len() > MAX_XATTR_VALUE {
            return Err("extended attribute is over the kernel's limits");
        }
        self.xattrs.retain(|(known, _)| known != name);
        if value.is_empty() {
            return Ok(());
        }
        if self.xattrs.len() >= MAX_XATTRS {
            return Err("more than 256 extended attributes");
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Overrides the fields of `header`.
    pub(super) fn apply(&mut self, header: &mut Header) {
        if let Some(path) = self.path.take() {
            header.name = path;
        }
        if let Some(link) = self.link.take() {
            header.link = link;
        }
        header.size = self.size.unwrap_or(header.size);
        header.uid = self.uid.unwrap_or(header.uid);
        header.gid = self.gid.unwrap_or(header.gid);
    }
}

/// Splits the first record off: key, value, rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(data.get(..space)?).ok()?.parse().ok()?;
    let (whole, rest) = data.split_at_checked(length)?;
    let body = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
    if key.is_empty() || key.contains(&0) { None } else { Some((key, value, rest)) }
}

/// A decimal number with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Result<i64, &'static str> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or("PAX value is not a number")
}

/// Seconds with an optional fraction; digits beyond nanoseconds are cut. The fraction of the result is never
/// negative: -1.5 is two seconds before the epoch plus half a second.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let dot = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let seconds = decimal(text.get(..dot)?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9)
        .fold(0_u32, |nanos, at| nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    if text.starts_with(b"-") && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_records() {
        let pax = Pax::parse(b"11 path=a\n\n20 mtime=1.25 trail\n");
        assert!(pax.is_err(), "mtime with rubbish behind it");
        let pax = Pax::parse(b"15 path=a/\xff\xfe\n\n16 mtime=-1.5xx").unwrap_err();
        assert!(pax.contains("PAX records"));
        let pax = Pax::parse(b"11 path=ab\n13 mtime=1.5\n26 SCHILY.xattr.user.a=xy\n10 uid=70\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"ab"[..]));
        assert_eq!(pax.mtime, Some((1, 500_000_000)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"xy".to_vec())]);
        assert_eq!(pax.uid, Some(70));
    }

    #[test]
    fn times() {
        for (text, value) in [
            ("0", Some((0, 0))),
            ("1.000000001", Some((1, 1))),
            ("1.0000000019", Some((1, 1))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("1.", Some((1, 0))),
            (".5", None),
            ("1.x", None),
        ] {
            assert_eq!(time(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn refuses_broken_records() {
        for bad in [
            &b"99 path=a\n"[..],
            b"5 a=b\n",
            b"6 a=bX",
            b"path=a\n",
            b"7 path\n",
            b"0 a=b\n",
            b"18446744073709551616 a=b\n",
            b"13 size=12x4\n",
            b"11 path=a\0\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{bad:?}");
        }
    }
}
