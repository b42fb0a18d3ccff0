//! The board: how far every source is and what the tree shows of it. Drivers write, the control tree reads.
//!
//! Invariant: `shown` holds no two sources whose mount paths collide; whoever comes later in the configuration and
//! collides is refused, also when the earlier one's jobs become known only afterwards. Jobs are installed exactly
//! for the sources that are shown.
//!
//! A reload gives a source that has to be acquired anew another [`Seat`]: words of the driver that had the old one are
//! heard no more. What it showed stays (`outdated`) until its successor is complete (`next`), and gives way to
//! everybody else who wants its place.

mod rearrange;
mod show;
mod telling;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use self::telling::Telling;
use super::candidate::{Candidate, json_file, spec_yaml};
use super::clock;
pub(crate) use rearrange::{Lost, Rearranged, Verdict};

use crate::fetch::layer::Progress;
use crate::fs::facts::{Rootfs, ShownSource, SourceFiles};
use crate::jobs::Jobs;
use crate::policy::digest::Digest;
use crate::policy::event::{Event, EventSink};
use crate::policy::source::spec::SourceSpec;
use crate::policy::source::status::{Phase, SourceStatus, Transition};

/// A source's place on the board, for one driver. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seat(u64);

struct Entry {
    seat: Seat,
    spec: SourceSpec,
    status: SourceStatus,
    /// What is shown.
    candidate: Option<Candidate>,
    /// What is shown before there is a candidate, where that is in nobody's way.
    forerunner: Option<Arc<ShownSource>>,
    leads: bool,
    /// The candidate is of an earlier seat.
    outdated: bool,
    /// What takes the candidate's place when its tree is there, and how the status tells of it.
    next: Option<(Candidate, Transition)>,
    /// Jobs of the candidate are installed.
    visible: bool,
    /// They are to be installed again.
    changed: bool,
    /// The fetch under way.
    fetching: Option<Arc<Progress>>,
    last_error: Arc<[u8]>,
    /// What is known without the network has been done.
    local_done: bool,
}

/// The board of all sources, in the order of the configuration.
pub(crate) struct Board {
    entries: Mutex<Vec<Entry>>,
    /// Held while jobs are installed and removed: two drivers that settle at once must do it in the order in which
    /// they decided, or a source that lost would have jobs. Taken before `entries`.
    settling: Mutex<()>,
    generation: watch::Sender<u64>,
    /// Bytes that arrived raise the generation too: `status.json` shows them.
    arrived: AtomicU64,
    events: EventSink,
    jobs: OnceLock<Jobs>,
    telling: Telling,
    seats: AtomicU64,
    /// Sources that were added at run time and are not on the board, a line each.
    left_out: Mutex<Vec<String>>,
}

/// A source as the HTTP interface shows it.
#[derive(Debug)]
pub(crate) struct Detail {
    /// What is asked for.
    pub spec: SourceSpec,
    /// `status.json`.
    pub status: Value,
    /// What is shown of it: `addon.json`.
    pub addon: Option<Value>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

impl Board {
    /// A board on which nothing has happened yet.
    pub(crate) fn new(specs: &[SourceSpec], events: EventSink) -> Self {
        let seats = AtomicU64::new(0);
        let entries = specs.iter().map(|spec| Entry::new(spec, new_seat(&seats))).collect();
        Self {
            entries: Mutex::new(entries),
            seats,
            settling: Mutex::default(),
            generation: watch::Sender::new(1),
            arrived: AtomicU64::new(0),
            events,
            jobs: OnceLock::new(),
            telling: Telling::default(),
            left_out: Mutex::default(),
        }
    }

    /// Sources that were added at run time and cannot be on the board, a line each.
    pub(crate) fn leave_out(&self, lines: Vec<String>) {
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner) = lines;
        self.changed();
    }

    /// Every source, or the one of this name.
    pub(crate) fn details(&self, name: Option<&str>) -> Vec<Detail> {
        let mut entries = self.lock();
        let wanted = entries.iter_mut().filter(|entry| name.is_none_or(|name| entry.spec.name == name));
        wanted
            .map(|entry| {
                entry.count_bytes();
                let shown = entry.candidate.as_ref().map(|candidate| &candidate.shown.addon_json);
                Detail {
                    spec: entry.spec.clone(),
                    status: entry.status.to_json(),
                    addon: shown.and_then(|bytes| serde_json::from_slice(bytes).ok()),
                }
            })
            .collect()
    }

    /// A read of the image `tree` was refused: the words behind the errno go where the readers of its sources look.
    /// The event of a trouble that stays the same is told once a minute, whatever the number of readers.
    pub(crate) fn read_refused(&self, tree: &Digest, words: &str) {
        let now = clock::now_ms();
        let mut told = Vec::new();
        for entry in self.lock().iter_mut() {
            if entry.tree() != Some(*tree) {
                continue;
            }
            if entry.status.read_refused(words, now) {
                told.push(Event::of_source("read.refused", &entry.spec.name).with("message", words));
            }
            entry.last_error = format!("{words}\n").into_bytes().into();
        }
        told.into_iter().for_each(|event| self.events.tell(event));
        self.changed();
    }

    /// Gives the board the jobs room and whom to call after each change of what is shown.
    pub(crate) fn connect(&self, jobs: Jobs, on_change: impl Fn() + Send + Sync + 'static) {
        let _ = self.jobs.set(jobs);
        self.telling.connect(on_change);
    }

    /// Rises with every change.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow() + self.arrived.load(Ordering::Relaxed)
    }

    /// Wakes at every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is shown of the daemon changed.
    pub(crate) fn touched(&self) {
        self.changed();
    }

    fn changed(&self) {
        self.generation.send_modify(|g| *g += 1);
    }

    /// The sources and their seats, in the order of the configuration.
    pub(crate) fn seats(&self) -> Vec<(Seat, SourceSpec)> {
        self.lock().iter().map(|entry| (entry.seat, entry.spec.clone())).collect()
    }

    /// Writes down what happened to the source at `seat`.
    pub(crate) fn apply(&self, seat: Seat, transition: Transition) {
        let event = {
            let mut entries = self.lock();
            let Some(entry) = at(&mut entries, seat) else { return };
            if !entry.status.apply(transition, clock::now_ms()) {
                return;
            }
            if let Some(message) = entry.status.message() {
                let code = entry.status.code().unwrap_or_default();
                entry.last_error = format!("{code}: {message}\n").into_bytes().into();
            }
            if !matches!(entry.status.phase(), Phase::Fetching { .. }) {
                entry.fetching = None;
            }
            event_of(entry)
        };
        if let Some(event) = event {
            match event.kind {
                "source.refused" | "source.failed" => {
                    tracing::warn!(?event.source, data = ?event.data, "{}", event.kind)
                }
                _ => tracing::info!(?event.source, "{}", event.kind),
            }
            self.events.tell(event);
        }
        self.changed();
    }

    /// The time of the next try after a failure, from the source's history.
    pub(crate) fn backoff_ms(&self, seat: Seat, retry_after_ms: Option<u64>) -> u64 {
        let jitter = rand::random::<f64>();
        at(&mut self.lock(), seat).map_or(0, |entry| entry.status.backoff_ms(jitter, retry_after_ms))
    }

    /// A fetch of layers starts: `status.json` shows its progress.
    pub(crate) fn fetching(&self, seat: Seat, progress: &Arc<Progress>) {
        let total = progress.total.load(Ordering::Relaxed);
        if let Some(entry) = at(&mut self.lock(), seat) {
            entry.fetching = Some(Arc::clone(progress));
        }
        self.apply(seat, Transition::Fetch { done: 0, total });
    }

    /// Tells of a decision of policy.
    pub(crate) fn decided(&self, event: Event) {
        self.events.tell(event);
    }

    /// Whether any source fetches.
    pub(crate) fn any_fetching(&self) -> bool {
        self.lock().iter().any(|entry| matches!(entry.status.phase(), Phase::Fetching { .. }))
    }

    /// Bytes arrived somewhere: what shows them is to be rendered anew.
    pub(crate) fn bytes_arrived(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// What is known of the source without the network is done (see `serve`).
    pub(crate) fn local_done(&self, seat: Seat) {
        if let Some(entry) = at(&mut self.lock(), seat) {
            entry.local_done = true;
        }
        self.changed();
    }

    /// Whether [`Board::local_done`] was said of every source.
    pub(crate) fn all_local_done(&self) -> bool {
        self.lock().iter().all(|entry| entry.local_done)
    }

    fn tell_tree(&self) {
        self.telling.tell();
    }

    /// How far the source at `seat` is.
    pub(crate) fn phase(&self, seat: Seat) -> Phase {
        at(&mut self.lock(), seat).map_or(Phase::Pending, |entry| entry.status.phase().clone())
    }

    /// Somebody asks for a source that was refused or failed: it counts as pending until its driver took it up.
    pub(crate) fn ask_again(&self, seat: Seat) {
        if matches!(self.phase(seat), Phase::Refused(_) | Phase::Failed { .. }) {
            self.apply(seat, Transition::Resolve);
        }
    }

    /// The seat of a source by name.
    pub(crate) fn find(&self, name: &str) -> Option<Seat> {
        self.lock().iter().find(|entry| entry.spec.name == name).map(|entry| entry.seat)
    }

    /// Sources shown in the tree.
    pub(crate) fn shown(&self) -> Vec<Arc<ShownSource>> {
        let entries = self.lock();
        let shown = |entry: &Entry| match &entry.candidate {
            Some(candidate) => Some(Arc::clone(&candidate.shown)),
            None => entry.forerunner.clone().filter(|_| entry.leads),
        };
        entries.iter().filter_map(shown).collect()
    }

    /// The files of every source.
    pub(crate) fn files(&self) -> Vec<Arc<SourceFiles>> {
        let mut entries = self.lock();
        entries
            .iter_mut()
            .map(|entry| {
                entry.count_bytes();
                Arc::new(SourceFiles {
                    name: entry.spec.name.clone(),
                    spec_yaml: spec_yaml(&entry.spec).into_bytes().into(),
                    status_json: json_file(&entry.status.to_json()),
                    conditions: entry.status.conditions_text().into_bytes().into(),
                    last_error: Arc::clone(&entry.last_error),
                })
            })
            .collect()
    }

    /// Every source's status, and whether all are settled.
    pub(crate) fn statuses(&self) -> (Vec<Value>, bool) {
        let mut entries = self.lock();
        let settled = entries.iter().all(|entry| entry.status.settled());
        let list = entries
            .iter_mut()
            .map(|entry| {
                entry.count_bytes();
                entry.status.to_json()
            })
            .collect();
        (list, settled)
    }

    /// `discovery-errors`: one line for each source that is not shown, or not whole.
    pub(crate) fn discovery_errors(&self) -> String {
        let left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let entries = self.lock();
        let refused = entries.iter().filter_map(|entry| {
            let (code, message) = (entry.status.code()?, entry.status.message()?);
            Some(format!("{}: {code}: {}\n", entry.spec.name, message.replace('\n', "; ")))
        });
        refused.chain(left_out.into_iter().map(|line| format!("{}\n", line.replace('\n', "; ")))).collect()
    }
}

fn new_seat(seats: &AtomicU64) -> Seat {
    Seat(seats.fetch_add(1, Ordering::Relaxed))
}

/// The entry at a seat; `None` once the seat is given up.
fn at(entries: &mut [Entry], seat: Seat) -> Option<&mut Entry> {
    entries.iter_mut().find(|entry| entry.seat == seat)
}

impl Entry {
    /// The image that is shown of it.
    fn tree(&self) -> Option<Digest> {
        match (&self.candidate, self.forerunner.as_ref().and_then(|forerunner| forerunner.rootfs)) {
            (Some(candidate), _) => Some(candidate.jobs.tree),
            (None, Some(Rootfs::Complete(tree) | Rootfs::Streaming(tree))) => Some(tree),
            (None, None) => None,
        }
    }

    fn new(spec: &SourceSpec, seat: Seat) -> Self {
        Self {
            seat,
            spec: spec.clone(),
            status: SourceStatus::new(spec, 1, clock::now_ms()),
            candidate: None,
            forerunner: None,
            leads: false,
            outdated: false,
            next: None,
            visible: false,
            changed: false,
            fetching: None,
            last_error: Arc::from([]),
            local_done: false,
        }
    }

    /// What it wants to show, by its present seat.
    fn wanted(&self) -> Option<&Candidate> {
        let next = self.next.as_ref().map(|(next, _)| next);
        next.or(self.candidate.as_ref().filter(|_| !self.outdated))
    }

    /// What arrived is shown no more.
    fn end_stream(&mut self) {
        self.forerunner = None;
        if let Some(candidate) = &mut self.candidate
            && let Some(Rootfs::Streaming(_)) = candidate.shown.rootfs
        {
            candidate.set_rootfs(None);
        }
    }

    fn show(&mut self, candidate: Candidate) {
        (self.candidate, self.outdated, self.changed) = (Some(candidate), false, true);
    }

    fn hide(&mut self) {
        (self.candidate, self.next, self.outdated) = (None, None, false);
    }

    fn count_bytes(&mut self) {
        if let Some(progress) = &self.fetching {
            let done = progress.done.load(Ordering::Relaxed);
            let total = progress.total.load(Ordering::Relaxed);
            self.status.apply(Transition::Fetch { done, total }, clock::now_ms());
        }
    }
}

/// The event that a phase is worth, if any.
fn event_of(entry: &Entry) -> Option<Event> {
    let name = &entry.spec.name;
    let kind = match entry.status.phase() {
        Phase::Ready => "source.ready",
        Phase::Waiting => "source.waiting",
        Phase::Fetching { done: 0, .. } => "source.fetching",
        Phase::Refused(_) => "source.refused",
        Phase::Failed { .. } => "source.failed",
        _ => return None,
    };
    let event = Event::of_source(kind, name).with("digest", entry.spec.image.digest.to_string());
    Some(match (entry.status.code(), entry.status.message()) {
        (Some(code), Some(message)) => event.with("code", code).with("message", message),
        _ => event,
    })
}
