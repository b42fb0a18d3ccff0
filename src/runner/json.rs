//! As much of JSON as is needed: strings written, and one schema searched for its secrets.

/// Deepest nesting that is looked into; the schema was checked by the daemon, which allows 48.
const MAX_DEPTH: usize = 128;

/// Appends `text` as the inside of a JSON string; the new length. `None` if it does not fit.
pub(crate) fn push_escaped(text: &str, into: &mut [u8], mut at: usize) -> Option<usize> {
    for byte in text.bytes() {
        at = match byte {
            b'"' => push(b"\\\"", into, at)?,
            b'\\' => push(b"\\\\", into, at)?,
            0..0x20 => {
                let hex = b"0123456789abcdef";
                let digit = |nibble: u8| hex.get(usize::from(nibble)).copied().unwrap_or(b'0');
                push(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)], into, at)?
            }
            _ => push(&[byte], into, at)?,
        };
    }
    Some(at)
}

/// Appends bytes; the new length. `None` if they do not fit.
pub(crate) fn push(bytes: &[u8], into: &mut [u8], at: usize) -> Option<usize> {
    into.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
    Some(at + bytes.len())
}

/// Calls `see` with the name of each property of a schema that says `"format": "secret"`. `None` if the text is
/// not JSON as far as it was read.
pub(crate) fn secrets<'j>(schema: &'j [u8], mut see: impl FnMut(&'j [u8])) -> Option<()> {
    let mut scan = Scan { text: schema, at: 0 };
    scan.object(|scan, key| {
        if key != b"properties" {
            return scan.skip(MAX_DEPTH);
        }
        scan.object(|scan, name| {
            if scan.peek()? != b'{' {
                return scan.skip(MAX_DEPTH);
            }
            scan.object(|scan, keyword| {
                if keyword == b"format" && scan.peek()? == b'"' {
                    if scan.string()? == b"secret" {
                        see(name);
                    }
                    Some(())
                } else {
                    scan.skip(MAX_DEPTH)
                }
            })
        })
    })
}

/// Calls `see` with key and value of each member of an object, as they are written; its first error ends that. `None`
/// if the text is not one object.
pub(crate) fn members<'j>(
    object: &'j [u8],
    mut see: impl FnMut(&'j [u8], &'j [u8]) -> Result<(), i32>,
) -> Option<Result<(), i32>> {
    let mut scan = Scan { text: object, at: 0 };
    let mut result = Ok(());
    scan.object(|scan, key| {
        scan.peek()?;
        let start = scan.at;
        scan.skip(MAX_DEPTH)?;
        let value = scan.text.get(start..scan.at)?;
        if result.is_ok() {
            result = see(key, value);
        }
        Some(())
    })?;
    scan.peek().is_none().then_some(result)
}

/// The path of `{"$file": "PATH"}`, unescaped into `path`.
pub(crate) fn file_reference<'p>(value: &[u8], path: &'p mut [u8]) -> Option<&'p [u8]> {
    let mut scan = Scan { text: value, at: 0 };
    let (mut found, mut count) = (None, 0);
    scan.object(|scan, key| {
        count += 1;
        if key == b"$file" && scan.peek()? == b'"' {
            found = Some(scan.string()?);
            return Some(());
        }
        scan.skip(MAX_DEPTH)
    })?;
    let len = unescape(found.filter(|_| count == 1)?, path)?;
    path.get(..len)
}

/// The inside of a JSON string as its bytes; their number. `None` for what no path needs: surrogates.
fn unescape(text: &[u8], into: &mut [u8]) -> Option<usize> {
    let (mut from, mut at) = (0, 0);
    while let Some(byte) = text.get(from).copied() {
        from += 1;
        if byte != b'\\' {
            at = push(&[byte], into, at)?;
            continue;
        }
        let escaped = text.get(from).copied()?;
        from += 1;
        at = match escaped {
            b'"' | b'\\' | b'/' => push(&[escaped], into, at)?,
            b'n' => push(b"\n", into, at)?,
            b't' => push(b"\t", into, at)?,
            b'u' => {
                let digits = core::str::from_utf8(text.get(from..from + 4)?).ok()?;
                from += 4;
                let letter = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                push(letter.encode_utf8(&mut [0; 4]).as_bytes(), into, at)?
            }
            _ => return None,
        };
    }
    Some(at)
}

struct Scan<'j> {
    text: &'j [u8],
    at: usize,
}

impl<'j> Scan<'j> {
    /// The next byte that is not white space, left where it is.
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    /// The inside of a string, escapes left as they are: names of arguments need none.
    fn string(&mut self) -> Option<&'j [u8]> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at - 1)
    }

    /// Calls `value` with each key, the scan standing before its value, which it must consume.
    fn object(&mut self, mut value: impl FnMut(&mut Self, &'j [u8]) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.peek()? == b'}' {
            return self.take(b'}');
        }
        loop {
            let key = self.string()?;
            self.take(b':')?;
            value(self, key)?;
            match self.peek()? {
                b',' => self.at += 1,
                _ => return self.take(b'}'),
            }
        }
    }

    /// Consumes one value of any type.
    fn skip(&mut self, depth: usize) -> Option<()> {
        let below = depth.checked_sub(1)?;
        match self.peek()? {
            b'{' => self.object(|scan, _| scan.skip(below)),
            b'[' => {
                self.at += 1;
                if self.peek()? == b']' {
                    return self.take(b']');
                }
                loop {
                    self.skip(below)?;
                    match self.peek()? {
                        b',' => self.at += 1,
                        _ => return self.take(b']'),
                    }
                }
            }
            b'"' => self.string().map(drop),
            _ => {
                let start = self.at;
                while self
                    .text
                    .get(self.at)
                    .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
                {
                    self.at += 1;
                }
                (self.at > start).then_some(())
            }
        }
    }
}
