//! The drivers: one task a source, from its spec to `ready`, again after a failure, at once when somebody asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::acquire::{Acquisition, Rooms, Trouble};
use super::board::{Board, Seat};
use super::clock;
use super::starts::Starts;
use crate::fetch::error::Class;
use crate::fetch::layer::Layer;
use crate::fetch::store::{By, Pin};
use crate::jobs::{EnsureImage, ImageWanted, Progress};
use crate::policy::digest::Digest;
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
    /// Set once, when there are image trees; another one after each reload.
    rooms: RwLock<Option<Arc<Rooms>>>,
    drivers: Mutex<HashMap<Seat, Driver>>,
    /// Set once, when the image trees are there.
    starts: OnceLock<Arc<Starts>>,
}

/// A source's driver.
#[derive(Debug)]
struct Driver {
    /// Rises when somebody wants the image.
    demand: watch::Sender<u64>,
    task: AbortHandle,
}

impl Sources {
    /// No driver yet.
    pub(crate) fn new(board: Arc<Board>) -> Arc<Self> {
        let (rooms, drivers) = (RwLock::default(), Mutex::default());
        Arc::new(Self { board, rooms, drivers, starts: OnceLock::new() })
    }

    /// Starts a driver for each source of the board.
    pub(crate) fn start(self: &Arc<Self>, rooms: Rooms) {
        self.refurnish(rooms);
        self.drive(self.board.seats());
        tokio::spawn(tick(Arc::clone(&self.board)));
    }

    /// What every try uses from now on.
    pub(crate) fn refurnish(&self, rooms: Rooms) {
        *self.rooms.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(rooms));
    }

    /// What a try uses now; nothing before the start.
    pub(crate) fn rooms(&self) -> Option<Arc<Rooms>> {
        self.rooms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts drivers.
    pub(crate) fn drive(self: &Arc<Self>, seats: Vec<(Seat, SourceSpec)>) {
        for (seat, spec) in seats {
            let demand = watch::Sender::new(0);
            let task = tokio::spawn(drive(Arc::clone(self), seat, spec, demand.subscribe()));
            self.drivers().insert(seat, Driver { demand, task: task.abort_handle() });
        }
    }

    /// Ends drivers whose seats were given up. What they are doing ends at its next pause, and nobody hears of it.
    pub(crate) fn end(&self, seats: &[Seat]) {
        let ended = |seat| self.drivers().remove(seat);
        seats.iter().filter_map(ended).for_each(|driver| driver.task.abort());
    }

    fn drivers(&self) -> MutexGuard<'_, HashMap<Seat, Driver>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `starts` of every run from now on.
    pub(crate) fn tell(&self, starts: Arc<Starts>) {
        // A second call would come from nowhere; the first one holds.
        let _ = self.starts.set(starts);
    }

    /// Somebody wants the image of this source now: layers that wait are fetched, a failure is tried again at once.
    pub(crate) fn want(&self, seat: Seat) {
        if let Some(driver) = self.drivers().get(&seat) {
            driver.demand.send_modify(|count| *count += 1);
        }
    }

    /// The hook of the jobs room: waits until the image of a source is in the tree.
    pub(crate) fn ensure_image(self: &Arc<Self>) -> EnsureImage {
        let sources = Arc::clone(self);
        Arc::new(move |wanted: ImageWanted| -> BoxFuture<'static, Result<(), String>> {
            let sources = Arc::clone(&sources);
            Box::pin(async move {
                let image = sources.ensure(&wanted.source, &wanted.progress).await?;
                if let Some(starts) = sources.starts.get() {
                    starts.begins(image, wanted);
                }
                Ok(())
            })
        })
    }

    /// Waits until a tree of the source `name` is shown, whatever comes after it; returns which one that is.
    async fn ensure(&self, name: &str, progress: &Progress) -> Result<Digest, String> {
        let mut changes = self.board.watch();
        let mut wanted = None;
        let mut tried = false;
        loop {
            changes.mark_unchanged();
            if let Some(image) = self.board.rootfs(name) {
                return Ok(image);
            }
            // A reload gives it another seat.
            let seat = self.board.find(name).ok_or_else(|| format!("there is no source {name:?}"))?;
            if wanted.replace(seat) != Some(seat) {
                self.want(seat);
                tried = false;
            }
            match self.board.phase(seat) {
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

async fn drive(sources: Arc<Sources>, seat: Seat, spec: SourceSpec, mut demand: watch::Receiver<u64>) {
    let board = &sources.board;
    let mut fills = JoinSet::new();
    // Before the start there are no seats to drive.
    while let Some(rooms) = sources.rooms() {
        fills.abort_all();
        demand.mark_unchanged();
        let acquisition = Acquisition { rooms: &rooms, board, seat, spec: &spec, demand: demand.clone() };
        let retry = match acquisition.run().await {
            Ok(layers) => {
                pin_if_said(&rooms, &spec, &layers);
                fills.spawn(keep_filled(Arc::clone(&rooms), layers, spec.name.clone()));
                None
            }
            Err(Trouble::Refused(denied)) => {
                board.withdraw(seat);
                board.apply(seat, Transition::Refuse(denied));
                None
            }
            Err(Trouble::Failed(error)) => {
                let asked = error.retry_after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                let wait = board.backoff_ms(seat, asked);
                let retry_at_ms = clock::now_ms().saturating_add(wait);
                board.apply(seat, Transition::Fail { message: error.to_string(), retry_at_ms });
                Some(Duration::from_millis(wait))
            }
        };
        board.local_done(seat);
        let asked = async {
            loop {
                if demand.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if board.phase(seat) != Phase::Ready {
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
