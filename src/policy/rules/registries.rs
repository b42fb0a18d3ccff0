//! Which registries may be used: the list `allowed_registries`.
//!
//! | entry | covers |
//! |---|---|
//! | `*` | everything, image layouts on disk too |
//! | `oci-layout` | image layouts on disk |
//! | `HOST[:PORT]` | all of that registry; the port counts, and no port is another registry than `:443` |
//! | `HOST[:PORT]/NAMESPACE` | the repository NAMESPACE and what is below it, by whole elements |
//! | `NAMESPACE/…` | the same on Docker Hub, as Docker reads short names (`library/alpine`) |
//!
//! `*` stands for exactly one whole element, never for a part of one: as the first label of a host (`*.example.com`
//! covers `a.example.com`, neither `example.com` nor `a.b.example.com`) and as an element of the namespace
//! (`ghcr.io/acme/*` covers what is below `acme` and not a repository `acme`). Hosts are compared in lower case,
//! repositories as they are; `index.docker.io` is `docker.io`.

use std::fmt;

use crate::policy::code::{Code, Denied};
use crate::policy::reference::{self, Location};

/// Which registries may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedRegistries(Option<Vec<Allowed>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    /// `*`.
    All,
    /// A host, and the elements with which its repositories begin.
    Host { host: String, namespace: Vec<String> },
}

/// What the list says of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// This entry covers it.
    Entry(String),
    /// There is a list, and no entry covers it.
    NoEntry,
    /// The list is empty.
    Empty,
    /// Nobody said which registries are allowed.
    Unsaid,
}

impl AllowedRegistries {
    /// The list as configured; `None` is "not said".
    pub fn parse(entries: Option<&[String]>) -> Result<Self, Denied> {
        let parsed =
            entries.map(|list| list.iter().map(|entry| Allowed::parse(entry)).collect::<Result<_, _>>());
        Ok(Self(parsed.transpose()?))
    }

    /// Whether anything was said.
    pub fn is_said(&self) -> bool {
        self.0.is_some()
    }

    /// What it says of `location`.
    pub fn look(&self, location: &Location) -> Match {
        match &self.0 {
            None => Match::Unsaid,
            Some(list) if list.is_empty() => Match::Empty,
            Some(list) => match list.iter().find(|entry| entry.covers(location)) {
                Some(entry) => Match::Entry(entry.to_string()),
                None => Match::NoEntry,
            },
        }
    }

    /// The entries, as they are understood.
    pub fn entries(&self) -> Option<Vec<String>> {
        Some(self.0.as_ref()?.iter().map(ToString::to_string).collect())
    }
}

impl Allowed {
    fn parse(entry: &str) -> Result<Self, Denied> {
        let bad = |reason: &str| {
            let words = format!(
                "allowed registry {entry:?}: {reason}; expected a host, host/namespace, *.domain, host/namespace/*, \
                 oci-layout or '*'"
            );
            Denied::new(Code::Config, words)
        };
        if entry == "*" {
            return Ok(Self::All);
        }
        if entry.contains("://") {
            return Err(bad("it must not have a scheme"));
        }
        let entry = entry.trim_end_matches('/');
        if entry.starts_with("*/") {
            return Err(bad("'*' is no host: name it, or write docker.io/*/…"));
        }
        let (host, namespace) = match entry.split_once('/') {
            // `org/team` is a namespace of Docker Hub, as it is in a reference.
            Some(_) => {
                let (host, namespace) = reference::split_host(entry);
                (host, namespace.split('/').map(str::to_owned).collect())
            }
            None => (reference::normal_host(entry), Vec::new()),
        };
        check_host(&host).map_err(|reason| bad(&reason))?;
        // `*` is no element of a repository: any that is one stands for it while the others are checked.
        let plain: Vec<&str> = namespace.iter().map(|e| if e == ANY { "x" } else { e.as_str() }).collect();
        if plain.iter().any(|element| element.contains('*')) {
            return Err(bad("'*' stands for one whole element, not for a part of one"));
        }
        if !plain.is_empty() {
            reference::check_repository(&plain.join("/")).map_err(|reason| bad(&reason))?;
        }
        Ok(Self::Host { host, namespace })
    }

    fn covers(&self, location: &Location) -> bool {
        match (self, location) {
            (Self::All, _) => true,
            (Self::Host { host, namespace }, Location::Registry { host: its, repository }) => {
                let mut elements = repository.split('/');
                is_host(host, its)
                    && namespace
                        .iter()
                        .all(|wanted| elements.next().is_some_and(|e| wanted == ANY || wanted == e))
            }
            (Self::Host { host, namespace }, Location::Layout { .. }) => {
                namespace.is_empty() && host == location.registry_name()
            }
        }
    }
}

/// One whole element, whichever.
const ANY: &str = "*";
/// A host with any first label.
const ANY_LABEL: &str = "*.";

fn check_host(host: &str) -> Result<(), String> {
    match host.strip_prefix(ANY_LABEL) {
        // `*.1.2.3` would be a range of addresses to some and a name to others.
        Some(domain) if domain.starts_with(|c: char| c.is_ascii_digit()) && is_address_like(domain) => {
            Err("'*' stands for a label of a name, not for a part of an address".to_owned())
        }
        Some(domain) => reference::check_host(domain),
        None if host.contains('*') => {
            Err("'*' in a host is its whole first label only, as in *.example.com".to_owned())
        }
        None => reference::check_host(host),
    }
}

fn is_address_like(domain: &str) -> bool {
    let name = domain.split_once(':').map_or(domain, |(name, _)| name);
    name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn is_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix(ANY_LABEL) {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => pattern == host,
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str(ANY),
            Self::Host { host, namespace } => {
                f.write_str(host)?;
                namespace.iter().try_for_each(|element| write!(f, "/{element}"))
            }
        }
    }
}

impl fmt::Display for AllowedRegistries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entries() {
            None => f.write_str("(not said)"),
            Some(entries) => f.write_str(&entries.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::ImageRef;

    fn look(entry: &str, image: &str) -> Match {
        let list = AllowedRegistries::parse(Some(&[entry.to_owned()])).unwrap();
        list.look(&image.parse::<ImageRef>().unwrap().location)
    }

    /// Case RP-07 (the registry of a short name), hosts, namespaces and patterns.
    #[test]
    fn entries_and_what_they_cover() {
        for (entry, image, expected) in [
            ("*", "ghcr.io/a", true),
            ("*", "oci:a", true),
            ("GHCR.io", "ghcr.io/a", true),
            ("ghcr.io", "ghcr.io.evil.com/a", false),
            ("localhost", "localhost:5000/a", false),
            ("localhost:5000", "localhost:5000/a", true),
            ("docker.io", "alpine:3.20", true),
            ("index.docker.io", "docker.io/library/alpine", true),
            ("library/alpine", "alpine:3.20", true),
            ("library/alpine", "debian", false),
            ("docker.io/library/*", "alpine", true),
            ("ghcr.io/org", "ghcr.io/org/a/b", true),
            ("ghcr.io/org/", "ghcr.io/org", true),
            ("ghcr.io/org", "ghcr.io/organ/a", false),
            ("ghcr.io/org", "ghcr.io/o", false),
            ("oci-layout", "oci:/srv/x:v1", true),
            ("ghcr.io", "oci:/srv/x:v1", false),
            ("ghcr.io/acme/*", "ghcr.io/acme", false),
            ("ghcr.io/acme/*", "ghcr.io/acme/x", true),
            ("ghcr.io/acme/*", "ghcr.io/acme/x/y", true),
            ("ghcr.io/acme/*", "ghcr.io/acmes/x", false),
            ("ghcr.io/*/tools", "ghcr.io/any/tools/x", true),
            ("ghcr.io/*/tools", "ghcr.io/any/more/tools", false),
            ("*.example.com", "a.example.com/x", true),
            ("*.Example.com", "A.example.COM/x", true),
            ("*.example.com", "example.com/x", false),
            ("*.example.com", "a.b.example.com/x", false),
            ("*.example.com", "a.example.com.evil.net/x", false),
            ("*.example.com", "a.example.com:5000/x", false),
            ("*.example.com:5000", "a.example.com:5000/x", true),
            ("*.example.com/acme", "a.example.com/acme/x", true),
            ("*.example.com/acme", "a.example.com/other/x", false),
        ] {
            let found = look(entry, image);
            assert_eq!(matches!(found, Match::Entry(_)), expected, "{entry} {image}: {found:?}");
        }
    }

    #[test]
    fn what_is_no_entry() {
        for (bad, word) in [
            ("https://ghcr.io", "scheme"),
            ("", "expected"),
            ("a b", "expected"),
            ("ghcr.io/Org", "expected"),
            ("ghcr.io/../x", "expected"),
            ("ghcr.io/a*", "one whole element"),
            ("ghcr.io/**", "one whole element"),
            ("*/tools", "is no host"),
            ("a.*.com", "first label"),
            ("**.example.com", "first label"),
            ("x*.example.com", "first label"),
            ("*.", "expected"),
            ("*.0.0.1", "address"),
            ("*:5000", "first label"),
        ] {
            let denied = AllowedRegistries::parse(Some(&[bad.to_owned()])).unwrap_err();
            assert_eq!(denied.code, Code::Config);
            assert!(denied.message.contains(word), "{bad}: {denied}");
        }
    }

    #[test]
    fn an_entry_is_shown_as_it_is_understood() {
        let written = ["library/alpine".to_owned(), "GHCR.IO/acme/*".to_owned()];
        let list = AllowedRegistries::parse(Some(&written)).unwrap();
        assert_eq!(list.to_string(), "docker.io/library/alpine, ghcr.io/acme/*");
        assert_eq!(AllowedRegistries::parse(None).unwrap().to_string(), "(not said)");
    }
}
