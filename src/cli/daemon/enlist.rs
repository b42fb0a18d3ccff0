//! Adding and removing sources while the daemon runs.
//!
//! Order of what is checked (clients see the first that fails): the request by itself -> profile -> registry ->
//! what the tag names -> signature -> add-on manifest -> place in the tree -> stored. Nothing is kept of a source
//! that is refused on the way but what the cache has of its image.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::acquire::{Acquisition, Rooms, Trouble};
use super::added::Added;
use super::board::Board;
use super::candidate::Candidate;
use super::clock;
use super::facts::DaemonFacts;
use super::reload::Change;
use crate::cli::registry_access;
use crate::policy::code::{Code, Denied};
use crate::policy::digest::Digest;
use crate::policy::event::EventSink;
use crate::policy::source::request::{Refusal, SourceRequest, Wanted};
use crate::policy::source::spec::{PullPolicy, SourceSpec};

/// Why a source was not added, or not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnlistError {
    /// The request makes no sense by itself.
    #[error("{}: {}", .0.title, .0.detail)]
    Request(Refusal),
    /// Policy or the image forbids it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The configuration has a source of this name.
    #[error("{0}")]
    Configured(String),
    /// There is no such source.
    #[error("there is no source {0:?}")]
    NotFound(String),
    /// It cannot be kept.
    #[error("{0}")]
    Disk(String),
    /// The daemon is starting or stopping.
    #[error("the daemon is starting or stopping: try again")]
    NotNow,
}

/// A source that was added.
#[derive(Debug)]
pub(crate) struct Enlisted {
    /// Its name.
    pub name: String,
    /// There was none of this name before.
    pub created: bool,
}

impl DaemonFacts {
    /// Adds a source, or puts it in the place of the one that was added under its name.
    pub(crate) async fn enlist(&self, request: SourceRequest) -> Result<Enlisted, EnlistError> {
        let wanted = request.check().map_err(EnlistError::Request)?;
        let rooms = self.sources.rooms().ok_or(EnlistError::NotNow)?;
        let digest = pin(&rooms, &wanted).await?;
        let spec = wanted.spec(digest, &rooms.policy)?;
        if spec.pull_policy == PullPolicy::Never && rooms.documents.get(&digest).is_none() {
            let words = format!("{} is not here, and pull_policy is never", spec.image);
            return Err(Denied::new(Code::Oci, words).into());
        }
        let candidate = self.examined(&rooms, &spec).await?;
        if let Some(denied) = self.board.refuses(&candidate) {
            return Err(denied.into());
        }
        let (name, now) = (wanted.name, clock::now_ms());
        let added = Added { request, name: name.clone(), digest, created: now, updated: now };
        let (reply, answer) = oneshot::channel();
        self.reloads.change(Change::Put(Box::new(added), reply));
        let created = answer.await.map_err(|_| EnlistError::NotNow)??;
        Ok(Enlisted { name, created })
    }

    /// Asks again what the source's tag names, and adds it anew.
    pub(crate) async fn enlist_again(&self, name: &str) -> Result<Enlisted, EnlistError> {
        let request = self.added().get(name).map(|added| added.request.clone());
        match (request, self.board.find(name)) {
            (Some(request), _) => self.enlist(request).await,
            (None, Some(seat)) => {
                self.board.ask_again(seat);
                self.sources.want(seat);
                Ok(Enlisted { name: name.to_owned(), created: false })
            }
            (None, None) => Err(EnlistError::NotFound(name.to_owned())),
        }
    }

    /// Removes a source that was added.
    pub(crate) async fn strike(&self, name: &str) -> Result<(), EnlistError> {
        let (reply, answer) = oneshot::channel();
        self.reloads.change(Change::Remove(name.to_owned(), reply));
        answer.await.map_err(|_| EnlistError::NotNow)?
    }

    /// Whether it could be shown at all: everything up to its manifest, on a board of its own.
    async fn examined(&self, rooms: &Rooms, spec: &SourceSpec) -> Result<Candidate, EnlistError> {
        let events = Arc::clone(&self.events);
        // Of a source that may never be there only what policy decided is worth telling.
        let decisions = EventSink::new(move |event| {
            if event.kind == "policy.decision" {
                events.write(&event);
            }
        });
        let board = Board::new(std::slice::from_ref(spec), decisions);
        let Some((seat, _)) = board.seats().pop() else { return Err(EnlistError::NotNow) };
        let (_demand, demand) = watch::channel(0);
        let acquisition = Acquisition { rooms, board: &board, seat, spec, demand };
        acquisition.examine().await.map_err(|trouble| match trouble {
            Trouble::Refused(denied) => denied,
            Trouble::Failed(error) => Denied::new(Code::Oci, format!("{}: {error}", spec.image)),
        })?;
        board.proposed(seat).ok_or(EnlistError::NotNow)
    }
}

/// What the reference names now, once policy lets its registry be asked.
async fn pin(rooms: &Rooms, wanted: &Wanted) -> Result<Digest, EnlistError> {
    wanted.policy(&rooms.policy)?.check_registry(&wanted.image.location)?;
    let oci = |words: String| Denied::new(Code::Oci, words);
    match wanted.image.digest {
        Some(digest) => Ok(digest),
        None if wanted.pull_policy == PullPolicy::Never => Err(oci(format!(
            "{}: what a tag names is known to its registry only, and pull_policy is never: write @sha256:…",
            wanted.asked
        ))
        .into()),
        None => {
            let opened = registry_access::open_image(&wanted.image, &rooms.registry).await;
            let (_, digest) = opened.map_err(|error| oci(format!("{}: {error:#}", wanted.asked)))?;
            Ok(digest)
        }
    }
}

/// `pull_policy: on-startup`: what their tags name now is asked at every start.
pub(crate) fn at_startup(facts: Arc<DaemonFacts>) {
    tokio::spawn(async move {
        for name in facts.added().to_be_asked_at_startup() {
            if let Err(error) = facts.enlist_again(&name).await {
                tracing::warn!(source = name, "it stays as it was before this start: {error}");
            }
        }
    });
}
