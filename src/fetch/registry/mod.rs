//! A repository of a registry as a source and a sink of blobs (distribution-spec `spec.md`).
//!
//! In: a registry's name, a repository, credentials. Out: manifests and whole blobs checked against their digest;
//! ranges and streams raw, exactly as long as asked for. Trouble that may pass is retried inside, each attempt
//! under its own time limits. It must not know what the bytes mean, nor keep them.
//!
//! The client is our own on reqwest, for reading and for writing. DESIGN names oci-client 0.18 for push and
//! manifests, but that client never retries, never renews a refused token, swallows token errors into anonymous
//! access, and keeps an own token cache beside this one; with the parts below at hand an upload is two requests.
//!
//! - `endpoint`: addresses; `expiry`: how long those of redirects hold; `connections`: pools and TLS; `client`: one request with authorization and redirects
//! - `auth`, `challenge`, `token`: grants; `retry`, `status`: what an error means
//! - `cursor`, `body`, `ranges`: blobs; `windows`: whole blobs over several connections; `manifests`; `upload`: writing
//! - `hosts`: what the operator says; `mirrors`: several hosts as one source; `rest`: mirrors that failed

mod auth;
mod body;
mod challenge;
mod client;
mod connections;
mod cursor;
mod endpoint;
mod expiry;
mod hosts;
mod manifests;
mod mirrors;
mod ranges;
mod referrers;
mod rest;
mod retry;
mod status;
mod token;
mod upload;
mod windows;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

pub use connections::Connections;
pub use hosts::{Authority, Mirror, Registries, RegistryHosts};
pub use retry::RetryPolicy;
pub use windows::Windows;

use self::client::Client;
use self::cursor::Cursor;
use self::endpoint::Endpoint;
use self::mirrors::Mirrored;
use self::windows::Whole;
use super::credentials::Credentials;
use super::error::{Class, FetchError, Side};
use super::source::{BlobSource, Tagged};
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::reference::Location;

/// How to talk to a registry. Clones share their open connections.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Plain http and unverified certificates are accepted from this registry.
    pub insecure: bool,
    /// Mirrors and certificate authorities.
    pub registries: Registries,
    /// Who we are.
    pub credentials: Credentials,
    /// The `User-Agent`.
    pub user_agent: String,
    /// The pools of connections, with the time that connecting may take.
    pub connections: Connections,
    /// How long an answer, or the next 16 KiB of a body, may take: 30 s by default.
    pub stall_timeout: Duration,
    /// How long a registry may be silent after the last byte of an upload, while it hashes and moves the blob:
    /// 10 minutes by default, for many gigabytes on slow storage.
    pub commit_timeout: Duration,
    /// How patient attempts are.
    pub retry: RetryPolicy,
    /// How far into a blob a range may lie when the registry sends only whole blobs: what lies before it is
    /// fetched and thrown away. 64 MiB by default.
    pub max_skip: u64,
    /// How whole blobs are fetched.
    pub windows: Windows,
}

impl RegistryOptions {
    /// The same past all mirrors, for what must be up to date.
    #[must_use]
    pub fn without_mirrors(mut self) -> Self {
        self.registries = self.registries.without_mirrors();
        self
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure: false,
            registries: Registries::default(),
            credentials: Credentials::anonymous(),
            user_agent: concat!("addonfs/", env!("CARGO_PKG_VERSION")).to_owned(),
            connections: Connections::default(),
            stall_timeout: Duration::from_secs(30),
            commit_timeout: Duration::from_secs(600),
            retry: RetryPolicy::default(),
            max_skip: 64 << 20,
            windows: Windows::default(),
        }
    }
}

/// `repository` on the registry `name`, from its mirrors first if it has some. Nothing is sent yet.
pub fn source(name: &str, repository: &str, options: &RegistryOptions) -> Arc<dyn BlobSource> {
    match options.registries.get(name) {
        Some(hosts) if !hosts.mirrors.is_empty() => Arc::new(Mirrored::new(name, repository, hosts, options)),
        _ => Arc::new(Registry::at(name, repository, options)),
    }
}

/// What gives bytes in order until it ends or fails.
trait Parts: Send + 'static {
    fn part(&mut self) -> impl Future<Output = Result<Option<Bytes>, FetchError>> + Send;
}

impl Parts for Cursor {
    fn part(&mut self) -> impl Future<Output = Result<Option<Bytes>, FetchError>> + Send {
        self.next()
    }
}

impl Parts for Whole {
    fn part(&mut self) -> impl Future<Output = Result<Option<Bytes>, FetchError>> + Send {
        self.next()
    }
}

/// The same as a stream, which ends after an error.
fn streamed(parts: impl Parts) -> BoxStream<'static, Result<Bytes, FetchError>> {
    let parts = stream::unfold(Some(parts), async |parts| {
        let mut parts = parts?;
        match parts.part().await.transpose()? {
            Ok(part) => Some((Ok(part), Some(parts))),
            Err(error) => Some((Err(error), None)),
        }
    });
    parts.boxed()
}

/// One repository of one registry.
pub struct Registry {
    client: Arc<Client>,
}

impl fmt::Debug for Registry {
    /// Names the repository and nothing else: grants and presigned addresses are inside.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.client.endpoint.display())
    }
}

impl Registry {
    /// The repository at `location`, without its mirrors: to write to. Nothing is sent yet.
    pub fn open(location: &Location, options: &RegistryOptions) -> Result<Arc<Self>, FetchError> {
        let Location::Registry { host, repository } = location else {
            let message = "an image layout on disk is not a registry";
            return Err(FetchError::new(Class::Protocol, Side::Local, message));
        };
        Ok(Arc::new(Self::at(host, repository, options)))
    }

    /// The registry itself, whatever mirrors it has.
    fn at(name: &str, repository: &str, options: &RegistryOptions) -> Self {
        let authority = options.registries.get(name).and_then(|hosts| hosts.authority.clone());
        let endpoint = Endpoint::new(name, repository, options.insecure, authority);
        Self { client: Arc::new(Client::new(endpoint, options)) }
    }

    fn mirror(mirror: &Mirror, name: &str, repository: &str, options: &RegistryOptions) -> Self {
        let endpoint = Endpoint::mirror(mirror, name, repository);
        Self { client: Arc::new(Client::new(endpoint, options)) }
    }

    fn cursor(&self, blob: &Descriptor, range: Range<u64>, max_skip: u64) -> Result<Cursor, FetchError> {
        Cursor::new(Arc::clone(&self.client), blob, range, max_skip)
    }
}

#[async_trait]
impl BlobSource for Registry {
    async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        retry::retried(&self.client.retry, || manifests::get(&self.client, digest)).await
    }

    async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
        retry::retried(&self.client.retry, || manifests::resolve(&self.client, tag)).await
    }

    async fn tagged(&self, tag: &str) -> Result<Option<Tagged>, FetchError> {
        retry::retried(&self.client.retry, || manifests::tagged(&self.client, tag)).await
    }

    async fn referrers(&self, subject: &Digest, types: &[&str]) -> Result<Vec<Descriptor>, FetchError> {
        let listed =
            retry::retried(&self.client.retry, || referrers::get(&self.client, subject, types)).await?;
        match listed {
            Some(listed) => Ok(listed),
            None => super::referrers::by_tag(self, subject, types).await,
        }
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
        if blob.size > limit {
            let message = format!("blob {}: {} bytes, over the limit of {limit}", blob.digest, blob.size);
            return Err(FetchError::new(Class::Protocol, Side::Remote, message));
        }
        let mut failed = 0;
        loop {
            let content = self.cursor(blob, 0..blob.size, blob.size)?.collect().await?;
            match VerifiedBytes::check(content, &blob.digest) {
                Ok(content) => return Ok(content),
                // wrong bytes may come from a cache on the way: one more attempt, at a newly resolved address
                Err(mut error) => {
                    self.client.forget(&blob.digest);
                    error.retryable = true;
                    failed += 1;
                    let error = error.context(self.client.endpoint.display());
                    retry::pause(&self.client.retry, error, failed).await?;
                }
            }
        }
    }

    async fn stream(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        // a stream is somebody's one pass over the blob: without ranges, going back to its start is the only way
        let cursor = self.cursor(blob, from..blob.size, u64::MAX)?;
        Ok(streamed(cursor))
    }

    async fn whole(
        &self,
        blob: &Descriptor,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        Ok(streamed(Whole::new(Arc::clone(&self.client), blob)?))
    }

    async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        self.cursor(blob, range, self.client.max_skip)?.collect().await
    }

    fn distrust(&self, blob: &Digest) -> bool {
        self.client.forget(blob);
        false
    }
}
