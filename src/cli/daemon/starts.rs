//! Starts of jobs: what one reads of its image is recorded the first time, and fetched ahead the next time. The first
//! time its program and the libraries of that are.
//!
//! ```text
//! <state>/profiles/<manifest hex>.json   what the starts of an image's jobs read (fetch::profile)
//! ```
//! Profiles outlive the cache: a cold start is when they are wanted. One that is damaged is as good as none.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use tokio::sync::watch;

use crate::cli::profile;
use crate::fetch::layer::{Layer, Recording};
use crate::fetch::profile::{MAX_PROFILE, Profile};
use crate::fetch::source::BlobSource;
use crate::fs::image::{Images, program};
use crate::jobs::ImageWanted;
use crate::policy::digest::Digest;

/// A start is over when nothing new was read for so long …
const SETTLED: Duration = Duration::from_secs(3);
/// … and at the latest after this: what a job reads later is its work.
const LONGEST: Duration = Duration::from_secs(60);

/// The profiles of all images, and the starts being recorded.
#[derive(Debug)]
pub(crate) struct Starts {
    state: PathBuf,
    images: Arc<Images>,
    /// Held while a profile is written, because jobs of one image may start together.
    writing: Mutex<()>,
    /// Images that are new here, and whose published profile is being looked for.
    asked: Mutex<HashMap<Digest, watch::Receiver<bool>>>,
}

impl Starts {
    /// Profiles are kept below `state`.
    pub(crate) fn open(state: &std::path::Path, images: Arc<Images>) -> anyhow::Result<Arc<Self>> {
        let dir = state.join("profiles");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let state = state.to_owned();
        Ok(Arc::new(Self { state, images, writing: Mutex::default(), asked: Mutex::default() }))
    }

    /// Looks for the profile that was published beside `image`, once, unless one is known.
    pub(crate) fn look(self: &Arc<Self>, image: Digest, source: &Arc<dyn BlobSource>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.contains_key(&image) {
            return;
        }
        let (done, waiting) = watch::channel(false);
        asked.insert(image, waiting);
        if self.path(&image).exists() {
            done.send_replace(true);
            return;
        }
        let (starts, source) = (Arc::clone(self), Arc::clone(source));
        tokio::spawn(async move {
            match Profile::published(source.as_ref(), &image).await {
                Ok(Some(profile)) => {
                    let _writing = starts.writing.lock().unwrap_or_else(PoisonError::into_inner);
                    match starts.keep(&profile) {
                        Ok(()) => tracing::info!(%image, "what its starts read is known from its registry"),
                        Err(error) => tracing::warn!(%image, %error, "a published profile is not kept"),
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::info!(%image, %error, "no published profile could be had"),
            }
            done.send_replace(true);
        });
    }

    /// Waits until the published profile is here, or known not to be.
    async fn looked(&self, image: &Digest) {
        let waiting = self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(image).cloned();
        if let Some(mut waiting) = waiting {
            // Whoever looks is gone if this fails, and nothing will come.
            let _ = waiting.wait_for(|done| *done).await;
        }
    }

    /// An image is in the tree: if it is new here, what all its starts read is fetched, or if none is known what its
    /// builder put first.
    pub(crate) fn shown(self: &Arc<Self>, image: Digest, layers: Vec<Layer>) {
        if !self.asked.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&image) {
            return;
        }
        let starts = Arc::clone(self);
        tokio::spawn(async move {
            starts.looked(&image).await;
            let fetched = match starts.profile(&image) {
                Some(profile) => profile.replay_common(&layers).await,
                None => try_join_all(layers.iter().map(Layer::fetch_to_landmark)).await.map(drop),
            };
            layers.iter().for_each(Layer::drop_head);
            if let Err(error) = fetched {
                tracing::info!(%image, %error, "what a start reads first could not be fetched ahead");
            }
        });
    }

    /// A run is about to start on `image`, which is in the tree.
    pub(crate) fn begins(self: &Arc<Self>, image: Digest, run: ImageWanted) {
        let Some(shown) = self.images.get(&image) else { return };
        let (starts, job) = (Arc::clone(self), run.entrypoint);
        let layers = shown.layers.clone();
        // From now on, not from when the task comes to it: the run does not wait.
        let known = self.profile(&image).is_some_and(|profile| profile.jobs.contains_key(&job));
        let recordings = if known { Vec::new() } else { layers.iter().filter_map(Layer::record).collect() };
        if !known {
            tokio::spawn(async move { program::read_ahead(&shown, &run.argv, &run.path).await });
        }
        tokio::spawn(async move {
            starts.looked(&image).await;
            match starts.profile(&image).filter(|profile| profile.jobs.contains_key(&job)) {
                Some(profile) => {
                    drop(recordings);
                    if let Err(error) = profile.replay(&job, &layers).await {
                        tracing::info!(%image, job, %error, "what the job will read could not be fetched ahead");
                    }
                }
                None => starts.record(image, job, recordings).await,
            }
        });
    }

    async fn record(&self, image: Digest, job: String, recordings: Vec<Recording>) {
        let read = || recordings.iter().map(Recording::len).sum::<usize>();
        let began = tokio::time::Instant::now();
        let mut before = 0;
        while began.elapsed() < LONGEST {
            tokio::time::sleep(SETTLED).await;
            let now = read();
            if now == before {
                break;
            }
            before = now;
        }
        let ranges: Vec<_> = recordings.iter().filter(|r| !r.is_empty()).map(Recording::ranges).collect();
        drop(recordings);
        if ranges.is_empty() {
            return;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut profile = self.profile(&image).unwrap_or_else(|| Profile::new(image));
        profile.jobs.insert(job.clone(), ranges);
        match self.keep(&profile) {
            Ok(()) => tracing::info!(%image, job, "what its start reads is known now"),
            Err(error) => tracing::warn!(%image, job, %error, "what its start reads is not kept"),
        }
    }

    /// The profile of `image`, if one is known.
    fn profile(&self, image: &Digest) -> Option<Profile> {
        let path = self.path(image);
        let size = std::fs::metadata(&path).ok()?.len();
        if size > MAX_PROFILE as u64 {
            return None;
        }
        let parsed = Profile::parse(&std::fs::read(&path).ok()?, image);
        parsed.inspect_err(|error| tracing::warn!(%error, "a profile on disk is of no use")).ok()
    }

    fn keep(&self, profile: &Profile) -> anyhow::Result<()> {
        use std::io::Write as _;
        let json = profile.to_json();
        anyhow::ensure!(json.len() <= MAX_PROFILE, "it would be larger than {MAX_PROFILE} bytes");
        let mut file = tempfile::NamedTempFile::new_in(self.state.join("profiles"))?;
        file.write_all(&json)?;
        file.persist(self.path(&profile.image))?;
        Ok(())
    }

    fn path(&self, image: &Digest) -> PathBuf {
        profile::path(&self.state, image)
    }
}
