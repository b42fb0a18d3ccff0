//! As much of JSON as is needed: strings written, and one schema searched for its secrets.

/// Deepest nesting that is looked into; the schema was checked by the daemon, which allows 48.
const MAX_DEPTH: usize = 128;

/// Most bytes that one byte of a string becomes (`\u0001`).
pub(crate) const MAX_ESCAPED: usize = 6;

/// Appends `text` as a JSON string; the new length. `None` if it does not fit.
pub(crate) fn push_string(text: &str, into: &mut [u8], mut at: usize) -> Option<usize> {
    at = push(b"\"", into, at)?;
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
    push(b"\"", into, at)
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

/// Calls `see` with each key of an object.
pub(crate) fn keys<'j>(object: &'j [u8], mut see: impl FnMut(&'j [u8])) -> Option<()> {
    let mut scan = Scan { text: object, at: 0 };
    scan.object(|scan, key| {
        see(key);
        scan.skip(MAX_DEPTH)
    })
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
