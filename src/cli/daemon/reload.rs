//! A reload: the configuration is read again, and takes effect as a whole or not at all.
//!
//! Asked for by `reload` on the daemon's `ctl` and by SIGHUP; the answer stands in `status.json` (`configuration`), and a
//! refusal in `last_error` and as an event, too. Order: everything is read and judged while the old configuration holds
//! -> kept for a daemon that takes this one's place -> policy -> sources. What changed in sections that rooms are opened
//! with is warned of and waits for the next mount.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::acquire::Rooms;
use super::added::{Added, AddedSources, Together};
use super::board::{Lost, Rearranged, Verdict};
use super::clock;
use super::enlist::EnlistError;
use super::facts::DaemonFacts;
use super::judge;
use super::kept::{self, KeptTree};
use super::wiring;
use crate::cli::config::{Config, Files};
use crate::fs::image::Images;
use crate::jobs::spawner::Spawner;
use crate::policy::digest::Digest;
use crate::policy::event::Event;
use crate::policy::rules::OnUntrusted;

/// Longest wait until the clock is looked at again: it may be set.
const CLOCK: Duration = Duration::from_secs(30);

/// Between two looks whether runs of an image that is not trusted any more have ended.
const LOOK: Duration = Duration::from_millis(500);

/// Requests to reload, and what became of them; and changes of the sources that were added at run time, which take
/// turns with them.
#[derive(Debug)]
pub(crate) struct Reloads {
    asked: watch::Sender<u64>,
    told: Mutex<Told>,
    changes: mpsc::UnboundedSender<Change>,
}

/// A change of the sources that were added at run time. The answer comes when it holds.
#[derive(Debug)]
pub(crate) enum Change {
    /// This one is there from now on. Answers whether there was none of its name.
    Put(Box<Added>, oneshot::Sender<Result<bool, EnlistError>>),
    /// The one of this name is gone.
    Remove(String, oneshot::Sender<Result<(), EnlistError>>),
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
    pub(crate) fn new(warnings: Vec<String>) -> (Self, mpsc::UnboundedReceiver<Change>) {
        let told = Told { generation: 1, loaded_ms: clock::now_ms(), answered: 0, error: None, warnings };
        let (changes, wanted) = mpsc::unbounded_channel();
        (Self { asked: watch::Sender::new(0), told: Mutex::new(told), changes }, wanted)
    }

    /// Asks for a change of what was added at run time.
    pub(crate) fn change(&self, change: Change) {
        // Without a receiver the daemon ends; whoever waits for the answer learns of that.
        let _ = self.changes.send(change);
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
    /// Changes that are asked for.
    pub changes: mpsc::UnboundedReceiver<Change>,
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
        let mut judged_s = clock::now_s();
        loop {
            tokio::select! {
                changed = asked.changed() => if changed.is_err() { return },
                _ = hangup.recv() => { facts.reloads.ask(); }
                () = someones_word_ended(&facts, judged_s) => {
                    judged_s = clock::now_s();
                    self.judge_again().await;
                    continue;
                }
                Some(change) = self.changes.recv() => {
                    self.change(change).await;
                    continue;
                }
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
        let together = facts.added().together(&config);
        let verdicts = judge::all(&rooms, &together.specs, &facts.board.shown_images()).await;
        self.remember(facts.board.shown_trees());
        kept::write(&self.memory, &files, &self.trees)
            .context("cannot keep the configuration for a daemon that takes over")?;

        let before = wiring::jobs_policy(&self.config.policy);
        let jobs_policy = wiring::jobs_policy(&config.policy);
        let reinstall = before.ceilings != jobs_policy.ceilings;
        facts.jobs.set_policy(jobs_policy);
        facts.sources.refurnish(rooms);
        let on_untrusted = config.policy.on_untrusted;
        let done = self.rearrange(&together, &verdicts, (reinstall, None), on_untrusted);
        self.keep_lost(&done.lost, &files);
        facts.http.set_tokens(Arc::clone(&config.http.tokens));
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
        warnings.extend(together.left_out);
        let waiting = self.config.differs_beyond(&config);
        if !waiting.is_empty() {
            warnings.push(format!("{} take effect at the next mount only", waiting.join(", ")));
        }
        // What waits for the next mount goes on being compared with what holds.
        let (policy, sources) = (config.policy, config.sources);
        self.config = Config { policy, sources, ..std::mem::take(&mut self.config) };
        Ok(warnings)
    }

    /// What is shown is judged again by the configuration that holds: a signature ceased to.
    async fn judge_again(&mut self) {
        let facts = Arc::clone(&self.facts);
        let Some(rooms) = facts.sources.rooms() else { return };
        let together = facts.added().together(&self.config);
        let verdicts = judge::all(&rooms, &together.specs, &facts.board.shown_images()).await;
        self.remember(facts.board.shown_trees());
        let on_untrusted = self.config.policy.on_untrusted;
        let done = self.rearrange(&together, &verdicts, (false, None), on_untrusted);
        match kept::read(&self.memory) {
            Ok(Some((files, _))) => self.keep_lost(&done.lost, &files),
            Ok(None) => {}
            Err(error) => tracing::warn!("what is not trusted any more is not kept: {error:#}"),
        }
        facts.board.touched();
    }

    /// The board takes over these sources, all or only one, and drivers and runs follow.
    fn rearrange(
        &mut self,
        together: &Together,
        verdicts: &HashMap<String, Verdict>,
        (reinstall, only): (bool, Option<&str>),
        on_untrusted: OnUntrusted,
    ) -> Rearranged {
        let facts = Arc::clone(&self.facts);
        if let Err(error) = wiring::keep_pins(&facts.store, &together.specs) {
            tracing::warn!("pins that the configuration no longer has stay: {error:#}");
        }
        facts.board.leave_out(together.left_out.clone());
        let mut done = facts.board.rearrange(&together.specs, verdicts, reinstall, only);
        facts.sources.end(&done.ended);
        facts.sources.drive(std::mem::take(&mut done.started));
        for lost in &done.lost {
            tracing::warn!(source = lost.source, "not shown any more: {}", lost.denied);
            facts.jobs.distrust(&lost.source, &lost.denied, on_untrusted);
        }
        self.hide(&done.lost);
        done
    }

    fn keep_lost(&self, lost: &[Lost], files: &Files) {
        if !lost.is_empty()
            && let Err(error) = kept::write(&self.memory, files, &self.trees)
        {
            tracing::warn!(
                "what is not trusted any more is not kept for a daemon that takes over: {error:#}"
            );
        }
    }

    async fn change(&mut self, change: Change) {
        // Whoever asked may have gone; the change holds all the same.
        match change {
            Change::Put(added, reply) => {
                let _ = reply.send(self.put(*added).await);
            }
            Change::Remove(name, reply) => {
                let _ = reply.send(self.remove(&name).await);
            }
        }
    }

    async fn put(&mut self, added: Added) -> Result<bool, EnlistError> {
        let name = added.name.clone();
        self.must_be_ours(&name)?;
        let before = self.facts.added();
        let known = before.get(&name).map(|known| known.created);
        let added = Added { created: known.unwrap_or(added.created), ..added };
        let after = before.with(added).map_err(|error| EnlistError::Disk(format!("{error:#}")))?;
        let kind = if known.is_some() { "source.replaced" } else { "source.added" };
        self.take_over(after, &name, kind).await?;
        Ok(known.is_none())
    }

    async fn remove(&mut self, name: &str) -> Result<(), EnlistError> {
        let before = self.facts.added();
        if before.get(name).is_none() {
            self.must_be_ours(name)?;
            return Err(EnlistError::NotFound(name.to_owned()));
        }
        self.take_over(before.without(name), name, "source.removed").await
    }

    fn must_be_ours(&self, name: &str) -> Result<(), EnlistError> {
        match self.config.sources.iter().find(|spec| spec.name == name) {
            None => Ok(()),
            Some(spec) => Err(EnlistError::Configured(format!(
                "source {name} ({}) stands in {}: change it there, and run addonfs reload; or choose another name",
                spec.image,
                self.facts.options.config.display()
            ))),
        }
    }

    /// On disk first; what nobody could find again after a crash is not shown.
    async fn take_over(
        &mut self,
        after: AddedSources,
        name: &str,
        kind: &'static str,
    ) -> Result<(), EnlistError> {
        let facts = Arc::clone(&self.facts);
        let disk =
            |error: anyhow::Error| EnlistError::Disk(format!("source {name} cannot be kept: {error:#}"));
        let rooms = facts.sources.rooms().ok_or(EnlistError::NotNow)?;
        let together = after.together(&self.config);
        let mut shown = facts.board.shown_images();
        shown.retain(|(source, _)| source == name);
        let verdicts = judge::all(&rooms, &together.specs, &shown).await;
        self.remember(facts.board.shown_trees());
        let files = kept::read(&self.memory).map_err(disk)?.map(|(files, _)| files);
        if let Some(files) = &files {
            kept::write(&self.memory, files, &self.trees).map_err(disk)?;
        }
        let saved = tokio::task::spawn_blocking(move || after.save().map(|()| after)).await;
        let after = saved.map_err(|error| disk(error.into()))?.map_err(disk)?;
        facts.set_added(after);
        let on_untrusted = self.config.policy.on_untrusted;
        let done = self.rearrange(&together, &verdicts, (false, Some(name)), on_untrusted);
        if let Some(files) = &files {
            self.keep_lost(&done.lost, files);
        }
        facts.events.write(&Event::of_source(kind, name));
        Ok(())
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

/// Returns when a signature by which something is shown ceases to hold, of those that held at `judged_s`.
async fn someones_word_ended(facts: &DaemonFacts, judged_s: i64) {
    loop {
        let now = clock::now_s();
        let left = match facts.board.next_expiry(judged_s) {
            Some(until) if until <= now => return,
            Some(until) => u64::try_from(until - now).unwrap_or(0),
            None => u64::MAX,
        };
        tokio::time::sleep(CLOCK.min(Duration::from_secs(left))).await;
    }
}

fn of_daemon(kind: &'static str) -> Event {
    Event { kind, source: None, run: None, data: serde_json::Map::new() }
}
