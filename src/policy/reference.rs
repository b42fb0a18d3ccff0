//! Image references: what a user writes to name an image, and the pinned form that later rooms accept.
//!
//! Two places hold images: a registry (`host[:port]/repository[:tag][@digest]`) and an OCI image layout on disk
//! (`oci:PATH[:tag][@digest]`). Short names resolve as Docker resolves them: the first element is a host only if
//! there is a `/` and it contains `.` or `:` or is `localhost`; otherwise the host is `docker.io`, and a
//! single-element repository there gets `library/` before it. The grammar of repositories and tags is that of
//! distribution-spec ("Pulling manifests"). What [`fmt::Display`] writes parses to the same value again.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::code::{Code, Denied};
use super::digest::Digest;

/// The host name by which policy knows image layouts on disk.
pub const LAYOUT_REGISTRY: &str = "oci-layout";

/// Docker Hub, under which short names live.
pub const DOCKER_HUB: &str = "docker.io";

/// Longest reference that is looked at: a path of `PATH_MAX` bytes, a tag and a digest fit.
const MAX_LENGTH: usize = 4400;

/// Longest repository name with its host (distribution-spec, "Pulling manifests").
const MAX_NAME: usize = 255;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// `repository` on the registry `host` (lower case, with its port if one was written).
    Registry {
        /// `docker.io` for short names; `index.docker.io` is read as `docker.io`.
        host: String,
        /// The repository, without host, tag or digest.
        repository: String,
    },
    /// An OCI image layout in the folder `path`.
    Layout {
        /// The folder that holds `oci-layout` and `index.json`.
        path: PathBuf,
    },
}

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Where the image is.
    pub location: Location,
    /// The tag, a label only when a digest is present too.
    pub tag: Option<String>,
    /// The digest; it wins over the tag.
    pub digest: Option<Digest>,
}

/// A reference that names one manifest for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PinnedRef {
    /// Where the image is.
    pub location: Location,
    /// The tag it was written with: a label.
    pub tag: Option<String>,
    /// The digest of the manifest or image index.
    pub digest: Digest,
}

impl Location {
    /// The name by which policy knows the registry: host with port, or [`LAYOUT_REGISTRY`].
    pub fn registry_name(&self) -> &str {
        match self {
            Self::Registry { host, .. } => host,
            Self::Layout { .. } => LAYOUT_REGISTRY,
        }
    }

    /// The last path element, from which a source without a name takes one.
    pub fn last_element(&self) -> &str {
        match self {
            Self::Registry { repository, .. } => repository.rsplit('/').next().unwrap_or(repository),
            Self::Layout { path } => path.file_name().and_then(|n| n.to_str()).unwrap_or(LAYOUT_REGISTRY),
        }
    }
}

impl ImageRef {
    /// The reference with its digest, which configuration demands.
    pub fn pinned(&self) -> Result<PinnedRef, Denied> {
        let Some(digest) = self.digest else {
            return Err(Denied::new(
                Code::Config,
                format!(
                    "image {self} has no digest: write it as {self}@sha256:…, the digest that `addonfs push` \
                     prints, so that what runs cannot change behind the name"
                ),
            ));
        };
        Ok(PinnedRef { location: self.location.clone(), tag: self.tag.clone(), digest })
    }
}

impl From<PinnedRef> for ImageRef {
    fn from(pinned: PinnedRef) -> Self {
        Self { location: pinned.location, tag: pinned.tag, digest: Some(pinned.digest) }
    }
}

/// Takes an `oci://` from the front of a reference, as Flux writes registry references; the caller tells the user.
/// (`oci:PATH`, one colon and no slashes, is another thing: a layout.)
pub fn strip_scheme(text: &str) -> (&str, bool) {
    match text.strip_prefix("oci://") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

impl FromStr for ImageRef {
    type Err = Denied;

    fn from_str(text: &str) -> Result<Self, Denied> {
        parse(text).map_err(|reason| {
            let shown: String = text.chars().take(200).collect();
            Denied::new(Code::Config, format!("image reference {shown:?}: {reason}"))
        })
    }
}

fn parse(text: &str) -> Result<ImageRef, String> {
    if text.is_empty() {
        return Err("it is empty: expected host/repository:tag@sha256:… or oci:PATH:tag@sha256:…".to_owned());
    }
    if text.len() > MAX_LENGTH {
        return Err(format!("it is longer than {MAX_LENGTH} bytes"));
    }
    if text.contains("://") {
        return Err("it must not have a scheme: write host/repository, without https:// or oci://".to_owned());
    }
    let (rest, digest) = split_digest(text)?;
    let (location, tag) = match rest.strip_prefix("oci:") {
        Some(layout) => parse_layout(layout)?,
        None => parse_registry(rest)?,
    };
    Ok(ImageRef { location, tag, digest })
}

/// Everything behind the last `@` is a digest if it has a `:`; an `@` may otherwise stand in a folder's name.
fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.rsplit_once('@') {
        Some((rest, digest)) if digest.contains(':') || !text.starts_with("oci:") => {
            Ok((rest, Some(digest.parse().map_err(|e| format!("{e}"))?)))
        }
        _ => Ok((text, None)),
    }
}

fn parse_layout(text: &str) -> Result<(Location, Option<String>), String> {
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) => (path, Some(checked_tag(tag)?)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("the path of the image layout is missing after oci:".to_owned());
    }
    // One more colon could not be told from a tag when the reference is read again.
    if path.contains([':', '\0']) {
        return Err("the path of an image layout must not contain ':'".to_owned());
    }
    Ok((Location::Layout { path: PathBuf::from(path) }, tag))
}

fn parse_registry(text: &str) -> Result<(Location, Option<String>), String> {
    let (name, tag) = match text.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(checked_tag(tag)?)),
        _ => (text, None),
    };
    if name.len() > MAX_NAME {
        return Err(format!("host and repository are longer than {MAX_NAME} bytes"));
    }
    let (host, repository) = split_host(name);
    check_host(&host)?;
    let repository = if host == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    Ok((Location::Registry { host, repository }, tag))
}

/// Splits `name` by Docker's rule and normalises the host.
pub(super) fn split_host(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost") => {
            (normal_host(first), rest)
        }
        _ => (DOCKER_HUB.to_owned(), name),
    }
}

/// The name of a registry as [`Location`] has it.
pub fn registry_host(text: &str) -> Result<String, String> {
    let host = normal_host(text);
    check_host(&host)?;
    Ok(host)
}

/// Lower case, and one name for Docker Hub.
pub(super) fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host == "index.docker.io" { DOCKER_HUB.to_owned() } else { host }
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, with a port or without.
pub(super) fn check_host(host: &str) -> Result<(), String> {
    let bad = || format!("{host:?} is not a registry host");
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        match after {
            "" => return Ok(()),
            after => ("v6", Some(after.strip_prefix(':').ok_or_else(bad)?)),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    if let Some(port) = port
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0))
    {
        return Err(bad());
    }
    let label_is_good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if name.split('.').all(label_is_good) { Ok(()) } else { Err(bad()) }
}

/// Path elements are `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
pub(super) fn check_repository(repository: &str) -> Result<(), String> {
    for element in repository.split('/') {
        if !element_is_good(element.as_bytes()) {
            return Err(format!(
                "{repository:?} is not a repository name: its elements are lower-case letters and digits, joined \
                 by '.', '_', '__' or '-'"
            ));
        }
    }
    Ok(())
}

fn element_is_good(element: &[u8]) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good_edge = element.first().is_some_and(is_word) && element.last().is_some_and(is_word);
    good_edge
        && element
            .split(is_word)
            .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|&b| b == b'-'))
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
fn checked_tag(tag: &str) -> Result<String, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    let good = bytes.first().is_some_and(|&b| word(b))
        && bytes.len() <= 128
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
    if good {
        Ok(tag.to_owned())
    } else {
        Err(format!(
            "{tag:?} is not a tag: letters, digits, '_', '.' and '-', at most 128, not '.' or '-' first"
        ))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, repository } => write!(f, "{host}/{repository}"),
            Self::Layout { path } => write!(f, "oci:{}", path.display()),
        }
    }
}

fn write_reference(
    f: &mut fmt::Formatter<'_>,
    location: &Location,
    tag: Option<&str>,
    digest: Option<&Digest>,
) -> fmt::Result {
    write!(f, "{location}")?;
    if let Some(tag) = tag {
        write!(f, ":{tag}")?;
    }
    if let Some(digest) = digest {
        write!(f, "@{digest}")?;
    }
    Ok(())
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_reference(f, &self.location, self.tag.as_deref(), self.digest.as_ref())
    }
}

impl fmt::Display for PinnedRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_reference(f, &self.location, self.tag.as_deref(), Some(&self.digest))
    }
}

impl serde::Serialize for PinnedRef {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn short_names_resolve_as_docker_resolves_them() {
        for (text, shown) in [
            ("alpine", "docker.io/library/alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("org/tool:v1", "docker.io/org/tool:v1"),
            ("index.docker.io/org/tool", "docker.io/org/tool"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("LOCALHOST/x", "localhost/x"),
            ("localhost:5000/org/backup-tools:v1.0.0", "localhost:5000/org/backup-tools:v1.0.0"),
            ("GHCR.io/a/b__c.d---e", "ghcr.io/a/b__c.d---e"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("oci:./sample.oci:v1.0.0", "oci:./sample.oci:v1.0.0"),
            ("oci:/srv/a@b/layout", "oci:/srv/a@b/layout"),
        ] {
            for suffix in [String::new(), format!("@{D}")] {
                let parsed: ImageRef = format!("{text}{suffix}").parse().unwrap();
                assert_eq!(parsed.to_string(), format!("{shown}{suffix}"));
                assert_eq!(parsed.to_string().parse::<ImageRef>().unwrap(), parsed, "prints what it parses");
            }
        }
    }

    #[test]
    fn refuses_what_is_no_reference() {
        for bad in [
            "",
            "oci:",
            "oci::tag",
            "oci:a:b:c",
            "oci://ghcr.io/a",
            "https://ghcr.io/a",
            "ghcr.io/",
            "ghcr.io//a",
            "ghcr.io/A",
            "ghcr.io/a:",
            "ghcr.io/a:-x",
            "ghcr.io/a@",
            "ghcr.io/a@sha512:00",
            "ghcr.io/a@sha256:00",
            "ghcr.io/a___b",
            "ghcr.io/-a",
            "ghcr.io/../a",
            "-x.io/a",
            "x.io:0/a",
            "x.io:99999/a",
            "x.io:+1/a",
            "a b/c",
            "[::1/x",
        ] {
            let denied = bad.parse::<ImageRef>().unwrap_err();
            assert_eq!(denied.code, Code::Config, "{bad}");
        }
        assert!("x".repeat(10_000).parse::<ImageRef>().is_err());
    }

    /// Case RP-08, with its decision: who takes `oci://` strips it first.
    #[test]
    fn scheme_is_stripped_only_by_request() {
        let refused = "oci://ghcr.io/a".parse::<ImageRef>().unwrap_err();
        assert!(refused.message.contains("must not have a scheme"), "{refused}");
        assert_eq!(strip_scheme("oci://ghcr.io/a"), ("ghcr.io/a", true));
        assert_eq!(strip_scheme("oci:./a"), ("oci:./a", false));
    }

    /// Case MA-11: a configured image without a digest is refused.
    #[test]
    fn pinning_needs_a_digest() {
        let loose: ImageRef = "ghcr.io/org/x:v1".parse().unwrap();
        assert_eq!(loose.pinned().unwrap_err().code, Code::Config);
        let pinned = format!("ghcr.io/org/x:v1@{D}").parse::<ImageRef>().unwrap().pinned().unwrap();
        assert_eq!(pinned.to_string(), format!("ghcr.io/org/x:v1@{D}"));
        assert_eq!(pinned.location.registry_name(), "ghcr.io");
        let layout: ImageRef = "oci:a/sample.oci".parse().unwrap();
        assert_eq!(layout.location.registry_name(), "oci-layout");
        assert_eq!(layout.location.last_element(), "sample.oci");
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_prints_the_same(text in "(oci:)?[a-zA-Z0-9./:@_\\[\\]-]{0,40}(@sha256:[0-9a-f]{63,65})?") {
            if let Ok(parsed) = text.parse::<ImageRef>() {
                proptest::prop_assert_eq!(parsed.to_string().parse::<ImageRef>().unwrap(), parsed);
            }
        }

        #[test]
        fn no_text_is_too_much(text in ".{0,200}") {
            let _ = text.parse::<ImageRef>();
        }
    }
}
