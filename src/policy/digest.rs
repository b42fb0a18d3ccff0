//! Content digests (OCI image-spec `descriptor.md`, section "Digests").
//!
//! A digest is a type, never a string: what was parsed compares by bytes, and the only comparison of content
//! with a digest in the crate is [`Digest::matches`] or [`Hasher::finish`] followed by `==`.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A SHA-256 content digest. Other algorithms of the specification are refused when parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that addonfs accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` prefix.
    #[error("{0:?} is not a digest: expected sha256:<64 hexadecimal digits>")]
    Malformed(String),
    /// An algorithm other than sha256.
    #[error("digest algorithm {0:?} is not supported: use sha256")]
    Algorithm(String),
}

impl Digest {
    /// A digest from its 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(sha2::Sha256::digest(content).into())
    }

    /// Whether `content` hashes to this digest.
    pub fn matches(&self, content: &[u8]) -> bool {
        Self::of(content) == *self
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// `sha256-<hex>`: the form used in file names and in cosign's signature tags.
    pub fn dashed(&self) -> String {
        format!("sha256-{}", self.hex())
    }

    /// Parses the form that [`Digest::dashed`] writes.
    pub fn from_dashed(text: &str) -> Option<Self> {
        text.strip_prefix("sha256-").and_then(Self::from_hex)
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let (mut bytes, mut all) = ([0; 32], 0);
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
            *byte = high << 4 | low & 0xf;
            all |= high | low;
        }
        (all & NO_NIBBLE == 0).then_some(Self(bytes))
    }
}

/// The value of each digit. The specification requires lower-case ones, so that one digest has one spelling. A table
/// without branches, because an image's table of contents has two digests a file.
static NIBBLES: [u8; 256] = {
    let (mut table, mut digit) = ([NO_NIBBLE; 256], 0);
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};
const NO_NIBBLE: u8 = 0x80;

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.split_once(':') {
            Some(("sha256", hex)) => {
                Self::from_hex(hex).ok_or_else(|| DigestError::Malformed(text.to_owned()))
            }
            Some((algorithm, _)) => Err(DigestError::Algorithm(algorithm.to_owned())),
            None => Err(DigestError::Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental SHA-256.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// An empty hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds content.
    pub fn update(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_the_canonical_spelling() {
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!(digest, Digest::of(b"hello"));
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        assert_eq!(Digest::from_dashed(&digest.dashed()), Some(digest));
        for bad in ["", "sha256:", "sha512:00", hex, "sha256:2CF2", &format!("sha256:{}", hex.to_uppercase())]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hashes_in_pieces() {
        let mut hasher = Hasher::new();
        hasher.update(b"hel");
        hasher.update(b"lo");
        assert_eq!(hasher.finish(), Digest::of(b"hello"));
    }
}
