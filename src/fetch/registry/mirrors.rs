//! One repository in several places: mirrors in the operator's order, then the registry itself.
//!
//! In: the hosts of a registry. Out: the same as one registry gives. What one place cannot give, or gives wrongly, is
//! asked of the next; nothing is believed of a mirror that its digest does not prove, and of tags only what the
//! operator lets it say. Ranges and streams are proven by whoever reads them: [`BlobSource::distrust`] takes a blob
//! away from the mirrors that it came from.
//!
//! A mirror gets one attempt and little time, for there is another place. One that fails is left alone for a while
//! (`rest`); the last place, and only it, is asked with all patience.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::hosts::RegistryHosts;
use super::rest::Rest;
use super::{Parts, Registry, RegistryOptions, streamed};
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::source::{BlobSource, Tagged};
use crate::fetch::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// How long a mirror may be silent: a tenth of what a reader waits for would be too little for one that fetches the
/// blob itself first, a third would leave the registry no time.
const PATIENCE: Duration = Duration::from_secs(5);
/// A blob that a mirror does not have is asked of it again after this time: it may have it by then.
const ABSENT: Duration = Duration::from_secs(60);
/// A blob that a mirror has wrongly.
const WRONG: Duration = Duration::from_secs(600);
/// Blobs of which something is remembered: the layers of many images.
const MAX_NOTES: usize = 4096;

/// A repository and its mirrors.
pub(super) struct Mirrored(Arc<Places>);

struct Places {
    name: String,
    places: Vec<Place>,
    /// By blob and place.
    notes: Mutex<HashMap<(Digest, usize), Note>>,
}

struct Place {
    registry: Arc<Registry>,
    /// Whether it may say what a tag names.
    resolve: bool,
    /// A mirror's; the registry itself is never left alone.
    rest: Option<Arc<Rest>>,
}

/// What is known of one blob at one mirror.
#[derive(Debug, Clone, Copy)]
enum Note {
    /// Bytes of it came from there.
    Served,
    /// It is not asked for there until then.
    Unfit(Instant),
}

impl fmt::Debug for Mirrored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.places.iter().map(|place| &place.registry)).finish()
    }
}

impl Mirrored {
    pub(super) fn new(
        name: &str,
        repository: &str,
        hosts: &RegistryHosts,
        options: &RegistryOptions,
    ) -> Self {
        let mut hasty = RegistryOptions { credentials: options.credentials.of_others(), ..options.clone() };
        let patient = hasty.clone();
        hasty.stall_timeout = hasty.stall_timeout.min(PATIENCE);
        hasty.retry.attempts = 1;
        let last = hosts.mirrors.len() - 1;
        let mirrors = hosts.mirrors.iter().enumerate().map(|(at, mirror)| {
            let options = if hosts.mirrors_only && at == last { &patient } else { &hasty };
            Place {
                registry: Arc::new(Registry::mirror(mirror, name, repository, options)),
                resolve: mirror.resolve,
                rest: Some(Arc::clone(&mirror.rest)),
            }
        });
        let own = || Place {
            registry: Arc::new(Registry::at(name, repository, options)),
            resolve: true,
            rest: None,
        };
        let own = (!hosts.mirrors_only).then(own);
        let name = format!("{name}/{repository}");
        Self(Arc::new(Places { name, places: mirrors.chain(own).collect(), notes: Mutex::default() }))
    }
}

/// The places on the way, in order: those that are left alone only when nothing else is left.
struct Walk {
    ahead: VecDeque<usize>,
    resting: VecDeque<usize>,
}

impl Walk {
    fn next(&mut self, places: &Places) -> Option<usize> {
        while let Some(at) = self.ahead.pop_front() {
            if places.places[at].rest.as_ref().is_none_or(|rest| rest.may_ask(PATIENCE)) {
                return Some(at);
            }
            self.resting.push_back(at);
        }
        self.resting.pop_front()
    }
}

impl Places {
    /// The way to a blob or manifest: past the mirrors that do not have it, or have it wrongly, if any are left then.
    fn way_to(&self, blob: &Digest) -> Walk {
        let now = Instant::now();
        let notes = self.notes();
        let unfit = |at: &usize| matches!(notes.get(&(*blob, *at)), Some(Note::Unfit(until)) if now < *until);
        let all = 0..self.places.len();
        let fit: VecDeque<usize> = all.clone().filter(|at| !unfit(at)).collect();
        let ahead = if fit.is_empty() { all.collect() } else { fit };
        Walk { ahead, resting: VecDeque::new() }
    }

    /// Takes note of how a place did.
    fn judge<T>(&self, at: usize, blob: Option<&Digest>, outcome: &Result<T, FetchError>) {
        let place = &self.places[at];
        let Some(rest) = &place.rest else { return };
        let mirror = place.registry.client.endpoint.display();
        match outcome {
            Ok(_) => {
                rest.worked();
                if let Some(blob) = blob {
                    self.note(*blob, at, Note::Served);
                }
            }
            Err(error) if error.class == Class::NotFound => {
                rest.worked();
                if let Some(blob) = blob {
                    self.note(*blob, at, Note::Unfit(Instant::now() + ABSENT));
                }
            }
            Err(error) if error.class == Class::Corrupt => {
                tracing::warn!(mirror, %error, "the mirror has wrong bytes: the next place is asked");
                if let Some(blob) = blob {
                    self.note(*blob, at, Note::Unfit(Instant::now() + WRONG));
                }
            }
            Err(error) => match rest.failed() {
                Some(pause) => tracing::warn!(mirror, %error, ?pause, "the mirror fails and is left alone"),
                None => tracing::debug!(mirror, %error, "the mirror fails still"),
            },
        }
    }

    /// Asks one place after the other.
    async fn first<T, F, A>(&self, blob: &Digest, ask: F) -> Result<T, FetchError>
    where
        F: Fn(Arc<Registry>) -> A,
        A: Future<Output = Result<T, FetchError>>,
    {
        let (mut failures, mut way) = (Failures::default(), self.way_to(blob));
        while let Some(at) = way.next(self) {
            let outcome = ask(Arc::clone(&self.places[at].registry)).await;
            self.judge(at, Some(blob), &outcome);
            match outcome {
                Err(error) if !is_ours(&error) => failures.add(error, self.places[at].rest.is_none()),
                outcome => return outcome,
            }
        }
        Err(failures.told(&self.name))
    }

    /// Asks those that may say what a tag names. That there is none is believed only when all of them say so.
    async fn tag<T, F, A>(&self, ask: F) -> Result<Option<T>, FetchError>
    where
        F: Fn(Arc<Registry>) -> A,
        A: Future<Output = Result<Option<T>, FetchError>>,
    {
        let ahead = (0..self.places.len()).filter(|at| self.places[*at].resolve).collect();
        let (mut failures, mut absent) = (Failures::default(), false);
        let mut way = Walk { ahead, resting: VecDeque::new() };
        while let Some(at) = way.next(self) {
            let outcome = ask(Arc::clone(&self.places[at].registry)).await;
            self.judge(at, None, &outcome);
            match outcome {
                Ok(None) => absent = true,
                Err(error) if !is_ours(&error) => failures.add(error, self.places[at].rest.is_none()),
                outcome => return outcome,
            }
        }
        if absent && failures.0.is_none() {
            return Ok(None);
        }
        if !self.places.iter().any(|place| place.resolve) {
            let message = format!(
                "{}: no mirror of it may say what a tag names (signatures are found by tags, too), and the registry \
                 is not asked: say `resolve: true` of a mirror, or `fallback: true`",
                self.name
            );
            return Err(FetchError::new(Class::Protocol, Side::Local, message));
        }
        Err(failures.told(&self.name))
    }

    fn note(&self, blob: Digest, at: usize, note: Note) {
        let mut notes = self.notes();
        if notes.len() >= MAX_NOTES {
            notes.clear();
        }
        notes.insert((blob, at), note);
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<(Digest, usize), Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was asked for cannot be had anywhere: it is not a range of the blob, not a tag.
fn is_ours(error: &FetchError) -> bool {
    error.side == Side::Local && matches!(error.class, Class::Protocol | Class::NotFound)
}

/// Why no place had it: the registry's own word if it was asked, else what is worst, for absence is told only when
/// nothing else is wrong.
#[derive(Default)]
struct Failures(Option<FetchError>);

impl Failures {
    fn add(&mut self, error: FetchError, own: bool) {
        let worse = |kept: &FetchError| own || kept.class == Class::NotFound;
        if self.0.as_ref().is_none_or(worse) {
            self.0 = Some(error);
        }
    }

    fn told(self, name: &str) -> FetchError {
        self.0.unwrap_or_else(|| {
            let message = format!("{name}: there is no place to ask");
            FetchError::new(Class::Unavailable, Side::Remote, message)
        })
    }
}

/// A stream that goes on at another place when one breaks.
struct Relay {
    places: Arc<Places>,
    way: Walk,
    blob: Descriptor,
    at: u64,
    /// Whether as fast as can be.
    whole: bool,
    current: Option<(usize, BoxStream<'static, Result<Bytes, FetchError>>)>,
    failures: Failures,
}

impl Parts for Relay {
    fn part(&mut self) -> impl Future<Output = Result<Option<Bytes>, FetchError>> + Send {
        self.next()
    }
}

impl Relay {
    fn new(places: &Arc<Places>, blob: &Descriptor, from: u64, whole: bool) -> Self {
        Self {
            places: Arc::clone(places),
            way: places.way_to(&blob.digest),
            blob: blob.clone(),
            at: from,
            whole,
            current: None,
            failures: Failures::default(),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let place = match &mut self.current {
                Some((place, parts)) => match parts.next().await {
                    None => return Ok(None),
                    Some(Ok(part)) => {
                        self.at += part.len() as u64;
                        return Ok(Some(part));
                    }
                    Some(Err(error)) => {
                        let place = *place;
                        self.current = None;
                        self.fail(place, error)?;
                        continue;
                    }
                },
                None => self.way.next(&self.places),
            };
            let Some(place) = place else {
                return Err(std::mem::take(&mut self.failures).told(&self.places.name));
            };
            let registry = &self.places.places[place].registry;
            let opened = match self.at {
                0 if self.whole => registry.whole(&self.blob).await,
                at => registry.stream(&self.blob, at).await,
            };
            match opened {
                Ok(parts) => {
                    self.places.note(self.blob.digest, place, Note::Served);
                    self.current = Some((place, parts));
                }
                Err(error) => self.fail(place, error)?,
            }
        }
    }

    fn fail(&mut self, place: usize, error: FetchError) -> Result<(), FetchError> {
        if is_ours(&error) {
            return Err(error);
        }
        let own = self.places.places[place].rest.is_none();
        self.places.judge::<()>(place, Some(&self.blob.digest), &Err(error.clone()));
        self.failures.add(error, own);
        Ok(())
    }
}

#[async_trait]
impl BlobSource for Mirrored {
    async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        self.0.first(digest, |place| async move { place.manifest(digest).await }).await
    }

    async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
        self.0.tag(|place| async move { place.resolve(tag).await }).await
    }

    async fn tagged(&self, tag: &str) -> Result<Option<Tagged>, FetchError> {
        self.0.tag(|place| async move { place.tagged(tag).await }).await
    }

    async fn referrers(&self, subject: &Digest, types: &[&str]) -> Result<Vec<Descriptor>, FetchError> {
        // As with tags: a mirror's list may be older than the registry's.
        let listed = |place: Arc<Registry>| async move {
            let found = place.referrers(subject, types).await?;
            Ok((!found.is_empty()).then_some(found))
        };
        Ok(self.0.tag(listed).await?.unwrap_or_default())
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
        self.0.first(&blob.digest, |place| async move { place.blob(blob, limit).await }).await
    }

    async fn stream(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        Ok(streamed(Relay::new(&self.0, blob, from, false)))
    }

    async fn whole(
        &self,
        blob: &Descriptor,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        Ok(streamed(Relay::new(&self.0, blob, 0, true)))
    }

    async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        let range = &range;
        self.0.first(&blob.digest, |place| async move { place.range(blob, range.clone()).await }).await
    }

    fn distrust(&self, blob: &Digest) -> bool {
        let mut moved = false;
        let until = Instant::now() + WRONG;
        let mut notes = self.0.notes();
        for (at, place) in self.0.places.iter().enumerate() {
            place.registry.distrust(blob);
            let served = matches!(notes.get(&(*blob, at)), Some(Note::Served));
            if served && place.rest.is_some() {
                let mirror = place.registry.client.endpoint.display();
                tracing::warn!(mirror, %blob, "the mirror has wrong bytes: they are asked for elsewhere");
                notes.insert((*blob, at), Note::Unfit(until));
                moved = true;
            }
        }
        moved
    }
}
