//! The daemon's REST interface: the same acts as the files of the mount, for programs that speak HTTP.
//!
//! In: requests on a unix socket (peer credentials) and, where configured, TCP (bearer tokens). Out: JSON, streams of
//! events, `application/problem+json`. What is asked for is done by the rooms behind [`DaemonFacts`]; nothing is
//! decided here but who may ask. Every path is there twice: as it is, and below `/api/v1`.
//!
//! ```text
//! listen -> one task a connection -> routes (who may, how long) -> sources | jobs | runs | events | health
//! ```
//! The document that tells of all this is `openapi.json` beside this file, served as `/openapi.json`.

mod access;
mod body;
mod events;
mod feed;
mod health;
mod jobs;
mod listen;
mod problem;
mod routes;
mod runs;
mod sources;
pub(crate) mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::config::{Http, Socket};
use super::daemon::facts::DaemonFacts;
use feed::Feeds;
use tokens::Tokens;

/// What is changed while the interface works, and what `status.json` shows of it.
#[derive(Debug)]
pub(crate) struct HttpState {
    tokens: RwLock<Arc<Tokens>>,
    told: RwLock<Value>,
    /// `/runs/{id}/events.ndjson` is offered.
    export: bool,
}

impl HttpState {
    /// Before it listens.
    pub(crate) fn new(config: &Http) -> Self {
        Self {
            tokens: RwLock::new(Arc::clone(&config.tokens)),
            told: RwLock::new(json!({"socket": null, "listen": null, "error": null})),
            export: config.export,
        }
    }

    /// Others count from now on, also for connections that are open.
    pub(crate) fn set_tokens(&self, tokens: Arc<Tokens>) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// `http` of `status.json`.
    pub(crate) fn to_json(&self) -> Value {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, socket: Option<&Path>, listen: Option<String>, errors: &[String]) {
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        let told = json!({"socket": socket, "listen": listen, "error": error});
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

/// What every handler has.
#[derive(Debug, Clone)]
struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    facts: Arc<DaemonFacts>,
    feeds: Feeds,
    /// Held from the look for an earlier run of an idempotency key until there is one.
    ordering: Mutex<()>,
}

impl std::ops::Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Listens where the configuration says. What cannot be listened on is logged and shown in `status.json`: the mount
/// does not depend on it.
pub(crate) async fn start(facts: Arc<DaemonFacts>, config: &Http, group: Option<u32>) {
    let socket = match &config.socket {
        Socket::Usual => Some(usual_socket(&facts.options.dirs.state)),
        Socket::At(path) => Some(path.clone()),
        Socket::Off => None,
    };
    let api = Api(Arc::new(Inner {
        facts: Arc::clone(&facts),
        feeds: Feeds::default(),
        ordering: Mutex::default(),
    }));
    let router = routes::router(&api);
    let mut errors = Vec::new();
    let mut bound_socket = None;
    if let Some(path) = &socket {
        match listen::unix(path, group, router.clone()) {
            Ok(()) => bound_socket = Some(path.as_path()),
            Err(error) => errors.push(format!("cannot listen on {}: {error}", path.display())),
        }
    }
    let mut bound = None;
    if let Some(address) = config.listen {
        match listen::tcp(address, router).await {
            Ok(address) => bound = Some(address.to_string()),
            Err(error) => errors.push(format!("cannot listen on {address}: {error}")),
        }
    }
    errors.iter().for_each(|error| tracing::error!("http: {error}"));
    facts.http.tell(bound_socket, bound, &errors);
    facts.board.touched();
}

/// Takes the socket away: nobody listens there any more.
pub(crate) fn stop(facts: &DaemonFacts) {
    if let Some(socket) = facts.http.to_json()["socket"].as_str() {
        // A next daemon takes a stale one away, too.
        let _ = std::fs::remove_file(socket);
    }
}

/// One daemon a state directory, and nobody but its user and root can reach into that.
fn usual_socket(state: &Path) -> PathBuf {
    state.join("http.sock")
}
