//! The drivers: one task a source, from its spec to `ready`, again after a failure, at once when somebody asks.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::acquire::{Acquisition, Rooms, Trouble};
use super::board::Board;
use super::clock;
use super::starts::Starts;
use crate::fetch::error::Class;
use crate::fetch::layer::Layer;
use crate::fetch::store::{By, Pin};
use crate::jobs::{EnsureImage, ImageWanted, Progress};
use crate::policy::source::spec::SourceSpec;
use crate::policy::source::status::{Phase, Transition};

/// The first seconds of an image belong to those who asked for it.
const FILL_AFTER: Duration = Duration::from_secs(10);
/// Between two tries of filling.
const FILL_AGAIN: Duration = Duration::from_secs(60);

/// The drivers of all sources.
#[derive(Debug)]
pub(crate) struct Sources {
    board: Arc<Board>,
    demand: Vec<watch::Sender<u64>>,
    /// Set once, when the image trees are there.
    starts: OnceLock<Arc<Starts>>,
}

impl Sources {
    /// Drivers for `count` sources, none of them started.
    pub(crate) fn new(board: Arc<Board>, count: usize) -> Arc<Self> {
        let demand = (0..count).map(|_| watch::Sender::new(0)).collect();
        Arc::new(Self { board, demand, starts: OnceLock::new() })
    }

    /// Starts a driver for each source, in the order of the board.
    pub(crate) fn start(&self, rooms: &Arc<Rooms>, specs: Vec<SourceSpec>) {
        for (at, (spec, demand)) in specs.into_iter().zip(&self.demand).enumerate() {
            tokio::spawn(drive(Arc::clone(rooms), Arc::clone(&self.board), at, spec, demand.subscribe()));
        }
        tokio::spawn(tick(Arc::clone(&self.board)));
    }

    /// Tells `starts` of every run from now on.
    pub(crate) fn tell(&self, starts: Arc<Starts>) {
        // A second call would come from nowhere; the first one holds.
        let _ = self.starts.set(starts);
    }

    /// Somebody wants the image of this source now: layers that wait are fetched, a failure is tried again at once.
    pub(crate) fn want(&self, at: usize) {
        if let Some(demand) = self.demand.get(at) {
            demand.send_modify(|count| *count += 1);
        }
    }

    /// The hook of the jobs room: waits until the image of a source is in the tree.
    pub(crate) fn ensure_image(self: &Arc<Self>) -> EnsureImage {
        let sources = Arc::clone(self);
        Arc::new(move |wanted: ImageWanted| -> BoxFuture<'static, Result<(), String>> {
            let sources = Arc::clone(&sources);
            Box::pin(async move {
                let at = sources.ensure(&wanted.source, &wanted.progress).await?;
                if let (Some(starts), Some(image)) = (sources.starts.get(), sources.board.rootfs(at)) {
                    starts.begins(image, wanted);
                }
                Ok(())
            })
        })
    }

    /// Waits for the image of the source `name`; returns which one that is.
    async fn ensure(&self, name: &str, progress: &Progress) -> Result<usize, String> {
        let at = self.board.find(name).ok_or_else(|| format!("there is no source {name:?}"))?;
        let mut changes = self.board.watch();
        if self.board.phase(at) != Phase::Ready {
            self.want(at);
        }
        let mut tried = false;
        loop {
            changes.mark_unchanged();
            match self.board.phase(at) {
                Phase::Ready => return Ok(at),
                Phase::Refused(denied) if tried => return Err(denied.to_string()),
                Phase::Failed { message, .. } if tried => return Err(message),
                Phase::Fetching { done, total } => {
                    tried = true;
                    progress(format!("fetching the image: {done} of {total} bytes"));
                }
                Phase::Resolving | Phase::Verifying | Phase::Indexing => tried = true,
                _ => {}
            }
            // What was refused or failed before gets its one new try; a driver takes it up within a moment.
            if tokio::time::timeout(Duration::from_secs(1), changes.changed()).await.is_err() {
                tried = true;
            }
        }
    }
}

async fn drive(
    rooms: Arc<Rooms>,
    board: Arc<Board>,
    at: usize,
    spec: SourceSpec,
    mut demand: watch::Receiver<u64>,
) {
    let mut fills = JoinSet::new();
    loop {
        fills.abort_all();
        demand.mark_unchanged();
        let acquisition =
            Acquisition { rooms: &rooms, board: &board, at, spec: &spec, demand: demand.clone() };
        let retry = match acquisition.run().await {
            Ok(layers) => {
                pin_if_said(&rooms, &spec, &layers);
                fills.spawn(keep_filled(Arc::clone(&rooms), layers, spec.name.clone()));
                None
            }
            Err(Trouble::Refused(denied)) => {
                board.withdraw(at);
                board.apply(at, Transition::Refuse(denied));
                None
            }
            Err(Trouble::Failed(error)) => {
                let asked = error.retry_after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                let wait = board.backoff_ms(at, asked);
                let retry_at_ms = clock::now_ms().saturating_add(wait);
                board.apply(at, Transition::Fail { message: error.to_string(), retry_at_ms });
                Some(Duration::from_millis(wait))
            }
        };
        board.local_done(at);
        let asked = async {
            loop {
                if demand.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if board.phase(at) != Phase::Ready {
                    return;
                }
            }
        };
        match retry {
            Some(wait) => {
                let _ = tokio::time::timeout(wait, asked).await;
            }
            None => asked.await,
        }
    }
}

/// Pins the layers of a source that is to be pinned.
fn pin_if_said(rooms: &Rooms, spec: &SourceSpec, layers: &[Layer]) {
    if !spec.pin {
        return;
    }
    let layers = layers.iter().map(|layer| layer.descriptor().digest).collect();
    if let Err(error) = rooms.store.pin(Pin { image: spec.image.digest, by: By::Configuration, layers }) {
        tracing::warn!(source = spec.name, %error, "the image is not pinned");
    }
    if let Some(trouble) = rooms.store.pin_trouble() {
        tracing::warn!(source = spec.name, "{trouble}");
    }
}

/// Fills an image's layers, again when a pin has changed.
async fn keep_filled(rooms: Arc<Rooms>, layers: Vec<Layer>, source: String) {
    let mut pins = rooms.store.pin_changes();
    tokio::time::sleep(FILL_AFTER).await;
    loop {
        pins.mark_unchanged();
        tokio::select! {
            () = fill(&rooms, &layers, &source) => if pins.changed().await.is_err() {
                return;
            },
            changed = pins.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Fills an image's layers, from the top, where its own files are. What goes wrong is tried again later: nobody waits.
async fn fill(rooms: &Rooms, layers: &[Layer], source: &str) {
    let mut all = true;
    for layer in layers.iter().rev() {
        let pinned = rooms.store.is_pinned(&layer.descriptor().digest);
        let filling = if pinned { Some(rooms.pinned_filling) } else { rooms.filling };
        let Some(filling) = filling else {
            all = false;
            continue;
        };
        loop {
            match layer.fill(filling).await {
                Ok(true) => break,
                Ok(false) if pinned => {
                    tracing::warn!(source, "the cache is full: the pinned image stays partly there");
                    return;
                }
                Ok(false) => {
                    tracing::info!(source, "the cache is nearly full: the image stays partly there");
                    return;
                }
                Err(error) if error.class == Class::Corrupt => {
                    tracing::warn!(source, %error, "an image cannot be filled");
                    return;
                }
                Err(error) => {
                    tracing::info!(source, %error, "filling an image is tried again later");
                    tokio::time::sleep(FILL_AGAIN).await;
                }
            }
        }
    }
    if all {
        tracing::info!(source, "all of its image is here");
    }
}

/// While bytes arrive, what shows them is rendered anew a few times a second.
async fn tick(board: Arc<Board>) {
    let mut changes = board.watch();
    loop {
        while !board.any_fetching() {
            if changes.changed().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        board.bytes_arrived();
    }
}
