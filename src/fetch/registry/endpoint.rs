//! Where a repository is on the network: host mapping, scheme, paths.
//!
//! In: a registry's name as references write it. Out: addresses. `https` everywhere; plain `http` only for hosts
//! of the loopback interface and where the user said `insecure`, tried out without credentials.

use tokio::sync::OnceCell;
use url::{Host, Url};

use super::connections::Trust;
use super::hosts::{Authority, Mirror};
use crate::fetch::error::{Class, FetchError, Side};

/// One repository of one registry, or of a mirror of it.
pub(super) struct Endpoint {
    /// The host's name: the registry's as in references (`docker.io`), or a mirror's own. Credentials are its.
    pub(super) name: String,
    /// The repository's name there.
    pub(super) repository: String,
    /// Whether plain http and unverified TLS are allowed.
    insecure: bool,
    authority: Option<Authority>,
    /// The segments of the path before the repository.
    api: Vec<String>,
    /// Which registry a mirror stands for, told to it in every request as containerd does (`ns`): one mirror may
    /// stand for many.
    namespace: Option<String>,
    base: OnceCell<Url>,
}

impl Endpoint {
    pub(super) fn new(name: &str, repository: &str, insecure: bool, authority: Option<Authority>) -> Self {
        Self {
            name: name.to_owned(),
            repository: repository.to_owned(),
            insecure,
            authority,
            api: vec!["v2".to_owned()],
            namespace: None,
            base: OnceCell::new(),
        }
    }

    /// `mirror` in the place of the registry `name`. What its path has behind `v2` belongs to the repository's name,
    /// which is what its token service knows.
    pub(super) fn mirror(mirror: &Mirror, name: &str, repository: &str) -> Self {
        let segments = mirror.root.path_segments().into_iter().flatten();
        let mut api: Vec<String> = segments.filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let mut repository = repository.to_owned();
        if api.is_empty() {
            api.push("v2".to_owned());
        } else if let Some(at) = api.iter().position(|segment| segment == "v2") {
            let prefix = api.split_off(at + 1);
            if !prefix.is_empty() {
                repository = format!("{}/{repository}", prefix.join("/"));
            }
        }
        let mut base = mirror.root.clone();
        base.set_path("/");
        Self {
            name: mirror.host(),
            repository,
            insecure: mirror.insecure,
            authority: mirror.authority.clone(),
            api,
            namespace: Some(name.to_owned()),
            base: OnceCell::new_with(Some(base)),
        }
    }

    /// `registry/repository`, for messages.
    pub(super) fn display(&self) -> String {
        format!("{}/{}", self.name, self.repository)
    }

    /// The network host of the registry: Docker Hub's registry does not live under its name.
    fn host(&self) -> &str {
        match self.name.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            name => name,
        }
    }

    /// `scheme://host/`: found out before, or the only possible one. Else the error case has the likely one.
    pub(super) fn known(&self) -> Result<Result<Url, Url>, FetchError> {
        if let Some(base) = self.base.get() {
            return Ok(Ok(base.clone()));
        }
        let [likely, other] = self.candidates()?;
        Ok(if likely == other { Ok(likely) } else { Err(likely) })
    }

    /// A registry answered at `base`.
    pub(super) fn settle(&self, base: &Url) {
        // Who came first was answered, too.
        let _ = self.base.set(base.clone());
    }

    /// `scheme://host/`, found out once. `answers` asks an address without credentials whether a registry speaks
    /// this scheme there; it is used only where two schemes are possible.
    pub(super) async fn base<F, A>(&self, answers: F) -> Result<&Url, FetchError>
    where
        F: Fn(Url) -> A,
        A: Future<Output = Result<bool, FetchError>>,
    {
        self.base
            .get_or_try_init(async || {
                let candidates = self.candidates()?;
                if candidates[0] == candidates[1] {
                    let [only, _] = candidates;
                    return Ok(only);
                }
                let mut last = None;
                for candidate in candidates {
                    match answers(ping(&candidate)).await {
                        Ok(true) => return Ok(candidate),
                        Ok(false) => {}
                        Err(error) => last = last.or(Some(error)),
                    }
                }
                Err(last
                    .unwrap_or_else(|| protocol(&format!("{}: neither http nor https answers", self.name))))
            })
            .await
    }

    /// The likely root and the other possible one: the same where there is only one.
    fn candidates(&self) -> Result<[Url; 2], FetchError> {
        let (http, https) = (self.root("http")?, self.root("https")?);
        Ok(match (is_loopback(&https), self.insecure) {
            (false, false) => [https.clone(), https],
            (true, _) => [http, https],
            (false, true) => [https, http],
        })
    }

    fn root(&self, scheme: &str) -> Result<Url, FetchError> {
        let host = self.host();
        let url = Url::parse(&format!("{scheme}://{host}/"))
            .ok()
            .filter(|url| url.path() == "/" && url.username().is_empty() && url.query().is_none());
        url.ok_or_else(|| protocol(&format!("{host:?} is not a registry host: expected host[:port]")))
    }

    /// The address of `kind/reference` in this repository.
    pub(super) fn url(&self, base: &Url, kind: &[&str]) -> Url {
        let mut url = base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(&self.api).extend(self.repository.split('/')).extend(kind);
        }
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// How far the certificate of `url` must be proven: `insecure` reaches only the registry itself, its authority
    /// also the token service and the storage that it leads to.
    pub(super) fn trust(&self, url: &Url) -> Trust {
        let own = self.root(url.scheme()).is_ok_and(|root| same_origin(&root, url));
        match &self.authority {
            _ if self.insecure && own => Trust::Anyone,
            Some(authority) => Trust::Also(authority.clone()),
            None => Trust::Verified,
        }
    }
}

fn ping(base: &Url) -> Url {
    let mut url = base.clone();
    url.set_path("/v2/");
    url
}

fn protocol(message: &str) -> FetchError {
    FetchError::new(Class::Protocol, Side::Local, message)
}

/// Whether two addresses belong to one scheme, host and port: the border that credentials never cross.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether the host is this machine itself.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn base_of(name: &str, insecure: bool, speaks: &str) -> Option<String> {
        let endpoint = Endpoint::new(name, "a/b", insecure, None);
        let found = endpoint
            .base(async |url: Url| if url.scheme() == speaks { Ok(true) } else { Err(protocol("no answer")) })
            .await;
        found.ok().map(|base| endpoint.url(base, &["blobs", "sha256:00"]).to_string())
    }

    #[tokio::test]
    async fn http_only_for_loopback_or_on_request() {
        let table = [
            ("docker.io", false, "http", Some("https://registry-1.docker.io/v2/a/b/blobs/sha256:00")),
            ("ghcr.io", false, "http", Some("https://ghcr.io/v2/a/b/blobs/sha256:00")),
            ("ghcr.io:8443", false, "https", Some("https://ghcr.io:8443/v2/a/b/blobs/sha256:00")),
            ("registry.lan:5000", true, "http", Some("http://registry.lan:5000/v2/a/b/blobs/sha256:00")),
            ("registry.lan:5000", true, "https", Some("https://registry.lan:5000/v2/a/b/blobs/sha256:00")),
            ("localhost:5000", false, "http", Some("http://localhost:5000/v2/a/b/blobs/sha256:00")),
            ("127.0.0.2:5000", false, "http", Some("http://127.0.0.2:5000/v2/a/b/blobs/sha256:00")),
            ("[::1]:5000", false, "https", Some("https://[::1]:5000/v2/a/b/blobs/sha256:00")),
            ("localhost:5000", false, "gopher", None),
            ("localhost.evil.org", false, "http", Some("https://localhost.evil.org/v2/a/b/blobs/sha256:00")),
            ("user@ghcr.io", false, "https", None),
            ("ghcr.io/x?y", false, "https", None),
        ];
        for (name, insecure, speaks, expected) in table {
            assert_eq!(
                base_of(name, insecure, speaks).await.as_deref(),
                expected,
                "{name} {insecure} {speaks}"
            );
        }
    }

    #[test]
    fn insecure_reaches_only_the_registry() {
        let endpoint = Endpoint::new("registry.lan:5000", "a/b", true, None);
        let trust = |url: &str| endpoint.trust(&Url::parse(url).unwrap());
        assert_eq!(trust("https://registry.lan:5000/v2/"), Trust::Anyone);
        assert_eq!(trust("https://registry.lan/v2/"), Trust::Verified);
        assert_eq!(trust("https://cdn.example/x"), Trust::Verified);
    }

    #[test]
    fn names_cannot_leave_the_repository() {
        let endpoint = Endpoint::new("h", "../..//a?b#c", false, None);
        let url = endpoint.url(&Url::parse("https://h/").unwrap(), &["tags", "list"]);
        assert_eq!(url.as_str(), "https://h/v2//a%3Fb%23c/tags/list");
    }

    #[test]
    fn where_mirrors_have_a_repository() {
        let table = [
            ("https://m", "https://m/v2/a/b/tags/list?ns=docker.io", "a/b"),
            ("https://m/", "https://m/v2/a/b/tags/list?ns=docker.io", "a/b"),
            ("https://m:1/v2/hub", "https://m:1/v2/hub/a/b/tags/list?ns=docker.io", "hub/a/b"),
            ("https://m/api/docker/hub/v2/", "https://m/api/docker/hub/v2/a/b/tags/list?ns=docker.io", "a/b"),
            ("https://m/v2-prefix", "https://m/v2-prefix/a/b/tags/list?ns=docker.io", "a/b"),
        ];
        for (root, expected, repository) in table {
            let endpoint = Endpoint::mirror(&Mirror::new(root, false).unwrap(), "docker.io", "a/b");
            let base = endpoint.base.get().unwrap();
            assert_eq!(endpoint.url(base, &["tags", "list"]).as_str(), expected);
            assert_eq!(endpoint.repository, repository);
        }
    }
}
