//! The board: how far every source is and what the tree shows of it. Drivers write, the control tree reads.
//!
//! Invariant: `shown` holds no two sources whose mount paths collide; whoever comes later in the configuration and
//! collides is refused, also when the earlier one's jobs become known only afterwards. Jobs are installed exactly
//! for the sources that are shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::candidate::{Candidate, forerunner, json_file, spec_yaml};
use super::clock;
use crate::fetch::layer::Progress;
use crate::fs::facts::{Rootfs, ShownSource, SourceFiles};
use crate::jobs::Jobs;
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::event::{Event, EventSink};
use crate::policy::mount_path::{self, Claim, Holds};
use crate::policy::source::spec::SourceSpec;
use crate::policy::source::status::{Phase, SourceStatus, Transition};

struct Entry {
    spec: SourceSpec,
    status: SourceStatus,
    candidate: Option<Candidate>,
    /// What is shown before there is a candidate, where that is in nobody's way.
    forerunner: Option<Arc<ShownSource>>,
    leads: bool,
    visible: bool,
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
    on_change: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

impl Board {
    /// A board on which nothing has happened yet.
    pub(crate) fn new(specs: &[SourceSpec], events: EventSink) -> Self {
        let now = clock::now_ms();
        let entry = |spec: &SourceSpec| Entry {
            spec: spec.clone(),
            status: SourceStatus::new(spec, 1, now),
            candidate: None,
            forerunner: None,
            leads: false,
            visible: false,
            fetching: None,
            last_error: Arc::from([]),
            local_done: false,
        };
        Self {
            entries: Mutex::new(specs.iter().map(entry).collect()),
            settling: Mutex::default(),
            generation: watch::Sender::new(1),
            arrived: AtomicU64::new(0),
            events,
            jobs: OnceLock::new(),
            on_change: OnceLock::new(),
        }
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
        let _ = self.on_change.set(Box::new(on_change));
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

    fn changed(&self) {
        self.generation.send_modify(|g| *g += 1);
    }

    /// Writes down what happened to the source `at`.
    pub(crate) fn apply(&self, at: usize, transition: Transition) {
        let event = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(at) else { return };
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
    pub(crate) fn backoff_ms(&self, at: usize, retry_after_ms: Option<u64>) -> u64 {
        let jitter = rand::random::<f64>();
        self.lock().get(at).map_or(0, |entry| entry.status.backoff_ms(jitter, retry_after_ms))
    }

    /// A fetch of layers starts: `status.json` shows its progress.
    pub(crate) fn fetching(&self, at: usize, progress: &Arc<Progress>) {
        let total = progress.total.load(Ordering::Relaxed);
        if let Some(entry) = self.lock().get_mut(at) {
            entry.fetching = Some(Arc::clone(progress));
        }
        self.apply(at, Transition::Fetch { done: 0, total });
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
    pub(crate) fn local_done(&self, at: usize) {
        if let Some(entry) = self.lock().get_mut(at) {
            entry.local_done = true;
        }
        self.changed();
    }

    /// Whether [`Board::local_done`] was said of every source.
    pub(crate) fn all_local_done(&self) -> bool {
        self.lock().iter().all(|entry| entry.local_done)
    }

    /// An add-on wants to be shown. The answer is why it must not.
    pub(crate) fn propose(&self, at: usize, mut candidate: Candidate) -> Result<(), Denied> {
        let (addon, version) = (&candidate.jobs.manifest.name, &candidate.jobs.manifest.version);
        let prefix = match candidate.shown.mount_path.as_str() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let transition = Transition::Shown {
            addon: addon.clone(),
            version: version.clone(),
            jobs: candidate.job_names.iter().map(|name| format!("{prefix}{name}")).collect(),
        };
        if let Some(entry) = self.lock().get_mut(at) {
            let before = entry.candidate.as_ref().map(|candidate| &candidate.shown);
            let streaming = before.or(entry.forerunner.as_ref()).and_then(|shown| shown.rootfs);
            if let Some(Rootfs::Streaming(_)) = streaming {
                candidate.set_rootfs(streaming);
            }
            entry.forerunner = None;
            entry.candidate = Some(candidate);
        }
        let refused = self.settle();
        if let Some((_, denied)) = refused.into_iter().find(|(index, _)| *index == at) {
            return Err(denied);
        }
        self.apply(at, transition);
        Ok(())
    }

    /// The image tree of the source is there: `rootfs` appears, or leads there from now on.
    pub(crate) fn set_rootfs(&self, at: usize, tree: Digest) {
        if let Some(entry) = self.lock().get_mut(at)
            && let Some(candidate) = &mut entry.candidate
        {
            candidate.set_rootfs(Some(Rootfs::Complete(tree)));
        }
        self.changed();
        self.tell_tree();
    }

    /// The image tree of the source, once it is there.
    pub(crate) fn rootfs(&self, at: usize) -> Option<Digest> {
        match self.lock().get(at)?.candidate.as_ref()?.shown.rootfs {
            Some(Rootfs::Complete(tree)) => Some(tree),
            _ => None,
        }
    }

    /// Something of the source's image arrives: `rootfs` leads to what has, unless all of it is there.
    pub(crate) fn stream(&self, at: usize, tree: Digest) {
        if let Some(entry) = self.lock().get_mut(at) {
            match &mut entry.candidate {
                Some(candidate) if candidate.shown.rootfs.is_none() => {
                    candidate.set_rootfs(Some(Rootfs::Streaming(tree)));
                }
                Some(_) => {}
                None => entry.forerunner = Some(Arc::new(forerunner(&entry.spec, tree))),
            }
        }
        self.settle();
    }

    /// What has arrived counts for nothing.
    pub(crate) fn revoke_stream(&self, at: usize, reason: &str) {
        let event = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(at) else { return };
            entry.forerunner = None;
            if let Some(candidate) = &mut entry.candidate
                && let Some(Rootfs::Streaming(_)) = candidate.shown.rootfs
            {
                candidate.set_rootfs(None);
            }
            let event = Event::of_source("stream.revoked", &entry.spec.name);
            event.with("digest", entry.spec.image.digest.to_string()).with("message", reason)
        };
        tracing::warn!(
            source = event.source,
            reason,
            "what was shown of an image while it arrived is taken back"
        );
        self.events.tell(event);
        self.settle();
    }

    /// Takes the source out of the tree.
    pub(crate) fn withdraw(&self, at: usize) {
        if let Some(entry) = self.lock().get_mut(at) {
            entry.candidate = None;
        }
        self.settle();
        self.apply(at, Transition::Hidden);
    }

    /// Decides anew who is shown; installs and removes jobs accordingly. Returns who lost and why.
    fn settle(&self) -> Vec<(usize, Denied)> {
        let settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut install = Vec::new();
        let mut uninstall = Vec::new();
        let mut lost = Vec::new();
        {
            let mut entries = self.lock();
            let wanting: Vec<usize> =
                (0..entries.len()).filter(|i| entries[*i].candidate.is_some()).collect();
            let verdicts = {
                let claims: Vec<Claim<'_>> = wanting
                    .iter()
                    .filter_map(|i| {
                        let candidate = entries[*i].candidate.as_ref()?;
                        Some(claim(&candidate.shown, &candidate.job_names))
                    })
                    .collect();
                mount_path::settle(&claims)
            };
            for (index, verdict) in wanting.iter().zip(verdicts) {
                if let Some(denied) = verdict {
                    entries[*index].candidate = None;
                    lost.push((*index, denied));
                }
            }
            let leading = leading(&entries);
            for (index, entry) in entries.iter_mut().enumerate() {
                entry.leads = leading.contains(&index);
                match (&entry.candidate, entry.visible) {
                    (Some(candidate), false) => install.push(candidate.jobs.clone()),
                    (None, true) => uninstall.push(entry.spec.name.clone()),
                    _ => {}
                }
                entry.visible = entry.candidate.is_some();
            }
        }
        if let Some(jobs) = self.jobs.get() {
            uninstall.iter().for_each(|source| jobs.uninstall(source));
            install.into_iter().for_each(|addon| jobs.install(addon));
        }
        drop(settling);
        for (index, denied) in &lost {
            self.apply(*index, Transition::Refuse(denied.clone()));
        }
        self.changed();
        self.tell_tree();
        lost
    }

    fn tell_tree(&self) {
        if let Some(on_change) = self.on_change.get() {
            on_change();
        }
    }

    /// Where the source `at` is.
    pub(crate) fn phase(&self, at: usize) -> Phase {
        self.lock().get(at).map_or(Phase::Pending, |entry| entry.status.phase().clone())
    }

    /// Somebody asks for a source that was refused or failed: it counts as pending until its driver took it up.
    pub(crate) fn ask_again(&self, at: usize) {
        if matches!(self.phase(at), Phase::Refused(_) | Phase::Failed { .. }) {
            self.apply(at, Transition::Resolve);
        }
    }

    /// The index of a source by name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.lock().iter().position(|entry| entry.spec.name == name)
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
        let entries = self.lock();
        entries
            .iter()
            .filter_map(|entry| {
                let (code, message) = (entry.status.code()?, entry.status.message()?);
                Some(format!("{}: {code}: {}\n", entry.spec.name, message.replace('\n', "; ")))
            })
            .collect()
    }
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

    fn count_bytes(&mut self) {
        if let Some(progress) = &self.fetching {
            let done = progress.done.load(Ordering::Relaxed);
            let total = progress.total.load(Ordering::Relaxed);
            self.status.apply(Transition::Fetch { done, total }, clock::now_ms());
        }
    }
}

fn claim<'a>(shown: &'a ShownSource, jobs: &'a [String]) -> Claim<'a> {
    Claim { source: &shown.name, mount_path: &shown.mount_path, holds: Holds::Jobs(jobs) }
}

/// The forerunners that are shown: they give way to whatever is an add-on already.
fn leading(entries: &[Entry]) -> Vec<usize> {
    let add_ons = entries.iter().filter_map(|entry| entry.candidate.as_ref());
    let mut claims: Vec<Claim<'_>> = add_ons.map(|it| claim(&it.shown, &it.job_names)).collect();
    let first = claims.len();
    let mut leading = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if let (Some(forerunner), None) = (&entry.forerunner, &entry.candidate) {
            claims.push(claim(forerunner, &[]));
            leading.push(index);
        }
    }
    let verdicts = mount_path::settle(&claims);
    let shown = leading.into_iter().zip(verdicts.into_iter().skip(first));
    shown.filter(|(_, verdict)| verdict.is_none()).map(|(index, _)| index).collect()
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
