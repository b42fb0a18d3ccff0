//! The daemon's REST interface from the other side: what commands say to it that cannot be said with files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use super::{daemon_status, mounted};

/// For the first answer of anything but an image's bytes; adding a source takes as long as its registry.
const CONNECT: Duration = Duration::from_secs(10);

/// Which daemon is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// The mount point whose daemon is meant [default: $ADDONFS_MOUNT, else the only one there is]
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    mount: Option<PathBuf>,
    /// Its REST interface, http://HOST:PORT or unix:///PATH, instead of a mount of this host
    #[arg(long, value_name = "URL", env = "FLWD_API")]
    server: Option<String>,
    /// The bearer token for it; in the variable, other users do not see it
    #[arg(long, value_name = "TOKEN", env = "FLWD_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// A connection to it.
#[derive(Debug)]
pub(crate) struct ApiClient {
    client: Client,
    base: String,
    token: Option<String>,
}

impl ServerArgs {
    /// Connects when something is asked.
    pub(crate) fn client(&self) -> anyhow::Result<ApiClient> {
        let builder = Client::builder().connect_timeout(CONNECT).no_proxy();
        let (builder, base) = match (self.server.as_deref().filter(|server| !server.is_empty()), &self.mount)
        {
            (Some(server), None) => match server.strip_prefix("unix://") {
                Some(path) => (builder.unix_socket(Path::new(path)), "http://addonfs".to_owned()),
                None => (builder, server.trim_end_matches('/').to_owned()),
            },
            (_, mount) => (builder.unix_socket(socket(mount.as_deref())?), "http://addonfs".to_owned()),
        };
        Ok(ApiClient {
            client: builder.build()?,
            base,
            token: self.token.clone().filter(|token| !token.is_empty()),
        })
    }
}

/// The socket of a mount's daemon, from its status.
fn socket(mount: Option<&Path>) -> anyhow::Result<PathBuf> {
    let mount = mounted::chosen(mount)?;
    let (_, status) = daemon_status::read(&mount)?;
    match (status["http"]["socket"].as_str(), status["http"]["error"].as_str()) {
        (Some(socket), _) => Ok(PathBuf::from(socket)),
        (None, Some(error)) => bail!("the daemon of {} has no socket: {error}", mount.display()),
        (None, None) => {
            bail!("the daemon of {} has no socket: its configuration says http.socket: none", mount.display())
        }
    }
}

impl ApiClient {
    /// Asks. A refusal is an error with the problem's words; an answer without content is null.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.client.request(method, format!("{}/api/v1{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response =
            request.send().await.with_context(|| format!("cannot reach the daemon at {}", self.base))?;
        let status = response.status();
        let bytes = response.bytes().await.context("the daemon's answer broke off")?;
        let answer: Value = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes).context("the daemon's answer is not JSON")?,
        };
        if status.is_success() {
            return Ok((status, answer));
        }
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let (code, title, detail) = (text("code"), text("title"), text("detail"));
        bail!("{}: {detail}", if code.is_empty() { title } else { code })
    }
}
