//! What the operator says of registries: mirrors in their order, whose certificates count.
//!
//! In: the section `registries` of the configuration, checked. Out: for a registry's name, the hosts that are asked
//! in its place. A mirror is the operator's choice: policy judges the name that the reference has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use url::Url;

use super::endpoint::is_loopback;
use super::rest::Rest;
use crate::policy::digest::Digest;

/// The registries that something is said of, by the name that references have. Clones share what was learned of
/// mirrors that do not answer.
#[derive(Debug, Clone, Default)]
pub struct Registries(Arc<BTreeMap<String, RegistryHosts>>);

impl Registries {
    /// From names to what is said of them.
    pub fn new(named: BTreeMap<String, RegistryHosts>) -> Self {
        Self(Arc::new(named))
    }

    pub(super) fn without_mirrors(&self) -> Self {
        let own = |hosts: &RegistryHosts| RegistryHosts {
            authority: hosts.authority.clone(),
            ..Default::default()
        };
        Self::new(self.0.iter().map(|(name, hosts)| (name.clone(), own(hosts))).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&RegistryHosts> {
        self.0.get(name)
    }
}

/// One registry.
#[derive(Debug, Clone, Default)]
pub struct RegistryHosts {
    /// Asked in this order, before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// Whether the registry itself is asked at all where there are mirrors.
    pub mirrors_only: bool,
    /// Proves the registry's certificate, beside the system's roots.
    pub authority: Option<Authority>,
}

/// A host that has what a registry has.
#[derive(Debug, Clone)]
pub struct Mirror {
    pub(super) root: Url,
    /// Its certificate is not proven.
    pub insecure: bool,
    /// Proves its certificate, beside the system's roots.
    pub authority: Option<Authority>,
    /// Whether it may say what a tag names. Digests need no such trust.
    pub resolve: bool,
    pub(super) rest: Arc<Rest>,
}

impl Mirror {
    /// The mirror at `url`. A path says where its API is (`/v2` without one): `https://mirror.lan/v2/hub` has the
    /// image `library/alpine` as its `hub/library/alpine`. Plain http is for loopback, or by `insecure`.
    pub fn new(url: &str, insecure: bool) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|error| format!("{url:?} is no address: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(format!("{url:?} is no address of a mirror: expected https://HOST[:PORT][/PATH]"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err("an address with a name or password in it: put them into docker_config".to_owned());
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(format!("{url:?} has a query or a fragment"));
        }
        if parsed.scheme() == "http" && !insecure && !is_loopback(&parsed) {
            return Err(format!("{url:?} is plain http: say insecure: true if that is meant"));
        }
        Ok(Self { root: parsed, insecure, authority: None, resolve: false, rest: Arc::default() })
    }

    /// `host[:port]`, under which its credentials are looked up.
    pub(super) fn host(&self) -> String {
        let host = self.root.host_str().unwrap_or_default();
        self.root.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// Certificates that prove those of a host, beside the system's.
#[derive(Clone)]
pub struct Authority {
    pem: Arc<[u8]>,
    id: Digest,
}

impl Authority {
    /// One certificate or more, PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        match reqwest::Certificate::from_pem_bundle(pem) {
            Ok(found) if !found.is_empty() => Ok(Self { pem: pem.into(), id: Digest::of(pem) }),
            _ => Err("holds no certificate in PEM".to_owned()),
        }
    }

    pub(super) fn certificates(&self) -> reqwest::Result<Vec<reqwest::Certificate>> {
        reqwest::Certificate::from_pem_bundle(&self.pem)
    }
}

impl PartialEq for Authority {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Authority {}

impl std::hash::Hash for Authority {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_mirrors() {
        let table = [
            ("https://mirror.lan", false, Some("mirror.lan")),
            ("https://mirror.lan:8443/v2/hub/", false, Some("mirror.lan:8443")),
            ("https://[::1]:5000", false, Some("[::1]:5000")),
            ("http://127.0.0.1:5000", false, Some("127.0.0.1:5000")),
            ("http://mirror.lan", false, None),
            ("http://mirror.lan", true, Some("mirror.lan")),
            ("https://robot:secret@mirror.lan", false, None),
            ("https://mirror.lan?x=1", false, None),
            ("mirror.lan", false, None),
            ("ftp://mirror.lan", false, None),
            ("file:///srv", false, None),
        ];
        for (url, insecure, expected) in table {
            let got = Mirror::new(url, insecure);
            assert_eq!(got.as_ref().ok().map(Mirror::host).as_deref(), expected, "{url}");
            assert!(!got.err().unwrap_or_default().contains("secret"), "{url}");
        }
    }

    #[test]
    fn what_is_no_certificate() {
        assert!(Authority::from_pem(b"").is_err());
        assert!(
            Authority::from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err()
        );
    }
}
