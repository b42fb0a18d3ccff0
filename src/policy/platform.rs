//! Platforms of images (image-spec `image-index.md`, "platform"): the host's own, and which images run on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system and architecture, in Go's words (`linux`, `amd64`, `arm64`, variant `v8`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `os`.
    pub os: String,
    /// `architecture`.
    pub architecture: String,
    /// `variant`, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let little = cfg!(target_endian = "little");
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => (if little { "ppc64le" } else { "ppc64" }, None),
            "mips64" => (if little { "mips64le" } else { "mips64" }, None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `other` suits this platform: higher is better, `None` does not run here.
    pub(super) fn suits(&self, other: &Self) -> Option<u8> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let (own, its) = (self.level(), other.level());
        match (own, its) {
            (Some(own), Some(its)) if its <= own => Some(its),
            (Some(_), Some(_)) => None,
            _ if self.variant == other.variant => Some(u8::MAX),
            // An unknown variant promises nothing.
            _ => None,
        }
    }

    /// The variant as a number; the one that is meant where none is written (Go's defaults: `GOARM=7`, arm64 v8,
    /// `GOAMD64=v1`).
    fn level(&self) -> Option<u8> {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (None | Some(""), "arm") => Some(7),
            (None | Some(""), "arm64") => Some(8),
            (None | Some(""), _) => Some(1),
            (Some(variant), _) => variant.strip_prefix('v').and_then(|n| n.parse().ok()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split('/').collect();
        let good = |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric());
        match words.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && words.iter().all(good) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: rest.first().map(|v| (*v).to_owned()),
            }),
            _ => {
                Err(format!("{text:?} is not a platform: expected os/architecture[/variant], as linux/arm64"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!(Platform::host().suits(&Platform::host()), Some(Platform::host().level().unwrap()));
    }
}
