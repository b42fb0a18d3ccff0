//! Runs as the tree needs them: by number, by name, all of them; and the names that `rm -r` has taken away.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::lock;
use super::run_files::Slot;
use crate::jobs::{Job, Jobs, Run};

/// Runs remembered by number; on overflow all are forgotten, and found again.
const KNOWN: usize = 16_384;

/// The runs of the jobs room.
#[derive(Debug)]
pub(super) struct Runs {
    jobs: Jobs,
    /// Job and name of a run by its number: a cache, checked at every use.
    known: Mutex<HashMap<u64, (String, String)>>,
    /// Files of finished runs that were unlinked. They are only hidden, until `rmdir` takes the run or the daemon
    /// starts again: `rm -r` removes file by file, and a run is removed whole or not at all.
    hidden: Mutex<HashMap<u64, HashSet<Slot>>>,
}

impl Runs {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self { jobs, known: Mutex::default(), hidden: Mutex::default() }
    }

    pub(super) fn handle(&self) -> &Jobs {
        &self.jobs
    }

    pub(super) fn jobs(&self) -> Vec<Arc<Job>> {
        self.jobs.jobs()
    }

    /// The run with this number, whatever became of its job.
    pub(super) fn by_number(&self, number: u64) -> Option<Arc<Run>> {
        let known = lock(&self.known).get(&number).cloned();
        let same = |run: &Arc<Run>| run.number() == number;
        if let Some(run) = known.and_then(|(job, name)| self.jobs.run(&job, &name)).filter(same) {
            return Some(run);
        }
        let run = self.all().into_iter().find(same);
        let mut known = lock(&self.known);
        if known.len() >= KNOWN {
            known.clear();
        }
        match &run {
            Some(run) => known.insert(number, (run.job_id().to_owned(), run.name().to_owned())),
            None => known.remove(&number),
        };
        run
    }

    /// The run whose number fits the low bits in the number of something in `out/`.
    pub(super) fn by_low_bits(&self, fits: impl Fn(u64) -> bool) -> Option<Arc<Run>> {
        let known: Vec<u64> = lock(&self.known).keys().copied().filter(|number| fits(*number)).collect();
        let found = known.into_iter().find_map(|number| self.by_number(number));
        found.or_else(|| self.all().into_iter().find(|run| fits(run.number())))
    }

    pub(super) fn all(&self) -> Vec<Arc<Run>> {
        self.jobs.all_runs()
    }

    /// How many runs there are.
    pub(super) fn count(&self) -> usize {
        let counts = self.jobs.counts();
        counts.created + counts.queued + counts.running + counts.finished
    }

    pub(super) fn of_job(&self, job: &str) -> Vec<Arc<Run>> {
        self.jobs.runs_of(job)
    }

    pub(super) fn of_job_by_name(&self, job: &str, name: &str) -> Option<Arc<Run>> {
        self.jobs.run(job, name)
    }

    pub(super) fn hide(&self, run: &Run, slot: Slot) {
        lock(&self.hidden).entry(run.number()).or_default().insert(slot);
    }

    pub(super) fn is_hidden(&self, run: &Run, slot: Slot) -> bool {
        lock(&self.hidden).get(&run.number()).is_some_and(|slots| slots.contains(&slot))
    }

    /// A removed run leaves nothing here.
    pub(super) fn forget(&self, number: u64) {
        lock(&self.known).remove(&number);
        lock(&self.hidden).remove(&number);
    }
}
