//! A reload: the configuration is read again, and takes effect as a whole or not at all.
//!
//! Asked for by `reload` on the daemon's `ctl` and by SIGHUP; the answer stands in `status.json` (`configuration`), and a
//! refusal in `last_error` and as an event, too. Order: everything is read and judged while the old configuration holds
//! -> kept for a daemon that takes this one's place -> policy -> sources. What changed in sections that rooms are opened
//! with is warned of and waits for the next mount.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::acquire::Rooms;
use super::board::Lost;
use super::clock;
use super::facts::DaemonFacts;
use super::judge;
use super::kept::{self, KeptTree};
use super::wiring;
use crate::cli::config::{Config, Files};
use crate::fs::image::Images;
use crate::jobs::spawner::Spawner;
use crate::policy::digest::Digest;
use crate::policy::event::Event;

/// Between two looks whether runs of an image that is not trusted any more have ended.
const LOOK: Duration = Duration::from_millis(500);

/// Requests to reload, and what became of them.
#[derive(Debug)]
pub(crate) struct Reloads {
    asked: watch::Sender<u64>,
    told: Mutex<Told>,
}

#[derive(Debug, Clone)]
struct Told {
    /// Rises with every configuration that took effect.
    generation: u64,
    loaded_ms: u64,
    /// The number of the last request that was answered.
    answered: u64,
    /// Why the last one changed nothing.
    error: Option<String>,
    warnings: Vec<String>,
}

impl Reloads {
    /// The configuration that the mount was made with holds.
    pub(crate) fn new(warnings: Vec<String>) -> Self {
        let told = Told { generation: 1, loaded_ms: clock::now_ms(), answered: 0, error: None, warnings };
        Self { asked: watch::Sender::new(0), told: Mutex::new(told) }
    }

    /// Asks for one; the number under which it will be answered.
    pub(crate) fn ask(&self) -> u64 {
        self.asked.send_modify(|asked| *asked += 1);
        *self.asked.borrow()
    }

    /// `configuration` of `status.json`.
    pub(crate) fn to_json(&self) -> Value {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "generation": told.generation,
            "loaded": clock::text(told.loaded_ms),
            "asked": *self.asked.borrow(),
            "answered": told.answered,
            "error": told.error,
            "warnings": told.warnings,
        })
    }

    fn tell(&self, answered: u64, outcome: Result<Vec<String>, String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.answered = answered;
        match outcome {
            Ok(warnings) => {
                told.generation += 1;
                (told.loaded_ms, told.error, told.warnings) = (clock::now_ms(), None, warnings);
            }
            Err(error) => told.error = Some(error),
        }
    }
}

/// Carries reloads out, one after the other.
#[derive(Debug)]
pub(crate) struct Reloader {
    /// What is shown of the daemon, and its rooms.
    pub facts: Arc<DaemonFacts>,
    /// The image trees.
    pub images: Arc<Images>,
    /// Runs credential helpers.
    pub spawner: Spawner,
    /// Where the files of the configuration in force are kept for a successor.
    pub memory: OwnedFd,
    /// The configuration in force.
    pub config: Config,
    /// Trees that earlier reloads took out of sight.
    pub trees: Vec<KeptTree>,
}

impl Reloader {
    /// Starts the task. From here on SIGHUP does not end the process.
    pub(crate) fn start(self) -> anyhow::Result<()> {
        let distrusted = self.trees.iter().filter(|kept| kept.distrusted).map(|kept| kept.tree);
        let distrusted: Vec<Digest> = distrusted.collect();
        distrusted.into_iter().for_each(|tree| self.hide_tree(tree));
        let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
        tokio::spawn(self.attend(hangup));
        Ok(())
    }

    async fn attend(mut self, mut hangup: Signal) {
        let facts = Arc::clone(&self.facts);
        let mut asked = facts.reloads.asked.subscribe();
        loop {
            tokio::select! {
                changed = asked.changed() => if changed.is_err() { return },
                _ = hangup.recv() => { facts.reloads.ask(); }
            }
            let number = *asked.borrow_and_update();
            let outcome = self.reload().await.map_err(|error| format!("{error:#}"));
            match &outcome {
                Ok(warnings) => {
                    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    tracing::info!("the configuration was loaded again");
                }
                Err(error) => {
                    tracing::error!("the configuration stays as it is: {error}");
                    facts.fail(error);
                    facts.events.write(&of_daemon("configuration.refused").with("reason", error.as_str()));
                }
            }
            facts.reloads.tell(number, outcome);
            facts.board.touched();
        }
    }

    /// One reload; what is worth saying of it. An error has changed nothing.
    async fn reload(&mut self) -> anyhow::Result<Vec<String>> {
        let options = self.facts.options.clone();
        let loaded = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let files = Files::default();
            let mut config = Config::load(&options.config, &options.beside, &files)?;
            let warnings = options.beside.admit(&mut config.policy)?;
            Ok((config, warnings, files))
        });
        let (config, of_policy, files) = loaded.await??;
        let facts = Arc::clone(&self.facts);
        let rooms = facts.sources.rooms().context("the daemon is still starting")?;
        let rooms = Rooms {
            policy: config.policy.clone(),
            registry: wiring::registry_options(&config, &self.spawner),
            ..Rooms::clone(&rooms)
        };
        let verdicts = judge::all(&rooms, &config.sources, &facts.board.shown_images()).await;
        self.remember(facts.board.shown_trees());
        kept::write(&self.memory, &files, &self.trees)
            .context("cannot keep the configuration for a daemon that takes over")?;

        let before = wiring::jobs_policy(&self.config.policy);
        let jobs_policy = wiring::jobs_policy(&config.policy);
        let reinstall = before.ceilings != jobs_policy.ceilings;
        facts.jobs.set_policy(jobs_policy);
        facts.sources.refurnish(rooms);
        if let Err(error) = wiring::keep_pins(&facts.store, &config) {
            tracing::warn!("pins that the configuration no longer has stay: {error:#}");
        }
        let done = facts.board.rearrange(&config.sources, &verdicts, reinstall);
        facts.sources.end(&done.ended);
        facts.sources.drive(done.started);
        for lost in &done.lost {
            tracing::warn!(source = lost.source, "not shown any more: {}", lost.denied);
            facts.jobs.distrust(&lost.source, &lost.denied, config.policy.on_untrusted);
        }
        self.hide(&done.lost);
        if !done.lost.is_empty()
            && let Err(error) = kept::write(&self.memory, &files, &self.trees)
        {
            tracing::warn!(
                "what is not trusted any more is not kept for a daemon that takes over: {error:#}"
            );
        }
        facts.set_policy(wiring::policy_json(&facts.options, &config));
        let names = |lost: &[Lost]| lost.iter().map(|lost| lost.source.clone()).collect::<Vec<_>>();
        facts.events.write(
            &of_daemon("configuration.loaded")
                .with("added", done.added)
                .with("removed", done.removed)
                .with("changed", done.changed)
                .with("lost", names(&done.lost)),
        );
        let mut warnings = config.warnings.clone();
        warnings.extend(of_policy);
        let waiting = self.config.differs_beyond(&config);
        if !waiting.is_empty() {
            warnings.push(format!("{} take effect at the next mount only", waiting.join(", ")));
        }
        // What waits for the next mount goes on being compared with what holds.
        let (policy, sources) = (config.policy, config.sources);
        self.config = Config { policy, sources, ..std::mem::take(&mut self.config) };
        Ok(warnings)
    }

    /// Adds what is shown to what was. A tree that is shown again is as good as new.
    fn remember(&mut self, shown: Vec<KeptTree>) {
        self.trees.retain(|kept| shown.iter().all(|shown| shown.tree != kept.tree));
        self.trees.extend(shown);
    }

    /// Trees that are not trusted any more answer to no name, as soon as no run needs them: a name that is gone takes the
    /// mounts below it along, and runs have some there.
    fn hide(&mut self, lost: &[Lost]) {
        for kept in &mut self.trees {
            kept.distrusted |= lost.iter().any(|lost| lost.tree == kept.tree);
        }
        lost.iter().for_each(|lost| self.hide_tree(lost.tree));
    }

    fn hide_tree(&self, tree: Digest) {
        let (facts, images) = (Arc::clone(&self.facts), Arc::clone(&self.images));
        tokio::spawn(async move {
            while facts.jobs.uses(&tree) {
                tokio::time::sleep(LOOK).await;
            }
            if !facts.board.shows(&tree) {
                images.hide(&tree);
            }
        });
    }
}

fn of_daemon(kind: &'static str) -> Event {
    Event { kind, source: None, run: None, data: serde_json::Map::new() }
}
