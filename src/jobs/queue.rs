//! Who runs next: the order of started runs, and the limits on how many run at once. Pure bookkeeping.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::run::Run;

/// Limits of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) running: usize,
    pub(super) per_source: usize,
    pub(super) per_job: usize,
    pub(super) waiting: usize,
}

/// Runs that wait, in the order of their start, and how many run.
#[derive(Debug)]
pub(super) struct Queue {
    limits: QueueLimits,
    waiting: BTreeMap<u64, Waiting>,
    /// Places promised to runs that are on their way into the queue.
    promised: usize,
    next: u64,
    /// How many run, of each job and of each source.
    of_job: HashMap<String, usize>,
    of_source: HashMap<String, usize>,
    total: usize,
    /// No new places: the daemon stops.
    closed: bool,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// So many wait already.
    Full(usize),
    /// See [`Queue::close`].
    Closed,
}

#[derive(Debug)]
struct Waiting {
    run: Arc<Run>,
    /// Its image is there.
    ready: bool,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            waiting: BTreeMap::new(),
            promised: 0,
            next: 0,
            of_job: HashMap::new(),
            of_source: HashMap::new(),
            total: 0,
            closed: false,
        }
    }

    /// Promises places to so many runs, or says why not. A run that can run at once needs one too, for a moment.
    pub(super) fn promise(&mut self, count: usize) -> Result<(), NoPlace> {
        if self.closed && count > 0 {
            return Err(NoPlace::Closed);
        }
        if self.waiting.len().saturating_add(self.promised).saturating_add(count) > self.limits.waiting {
            return Err(NoPlace::Full(self.limits.waiting));
        }
        self.promised += count;
        Ok(())
    }

    /// Promises no more places, or does so again. What has its place keeps it.
    pub(super) fn close(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Whether a start is under way that no run's state shows yet.
    pub(super) fn has_promised(&self) -> bool {
        self.promised > 0
    }

    /// Promises places above the limit.
    pub(super) fn promise_at_any_rate(&mut self, count: usize) {
        self.promised += count;
    }

    /// Takes promises back.
    pub(super) fn forgo(&mut self, count: usize) {
        self.promised = self.promised.saturating_sub(count);
    }

    /// Puts a run at the end, in a promised place.
    pub(super) fn push(&mut self, run: Arc<Run>) {
        self.forgo(1);
        self.waiting.insert(self.next, Waiting { run, ready: false });
        self.next += 1;
    }

    /// Its image is there: it may be picked.
    pub(super) fn ready(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.values_mut().find(|w| w.run.number() == number) {
            waiting.ready = true;
        }
    }

    /// The limits, if this run waits for a slot.
    pub(super) fn waits(&self, number: u64) -> Option<QueueLimits> {
        let waits = self.waiting.values().any(|w| w.ready && w.run.number() == number);
        waits.then_some(self.limits)
    }

    /// Takes a run out that will not run.
    pub(super) fn remove(&mut self, number: u64) {
        self.waiting.retain(|_, w| w.run.number() != number);
    }

    /// The first run that may run now; it counts as running until [`Queue::release`].
    pub(super) fn pick(&mut self) -> Option<Arc<Run>> {
        if self.total >= self.limits.running {
            return None;
        }
        let below =
            |counts: &HashMap<String, usize>, key: &str, most| counts.get(key).copied().unwrap_or(0) < most;
        let room = |run: &Run| {
            below(&self.of_job, run.job_id(), self.limits.per_job)
                && below(&self.of_source, run.source(), self.limits.per_source)
        };
        let next = self.waiting.iter().find(|(_, w)| w.ready && room(&w.run)).map(|(seq, _)| *seq)?;
        let run = self.waiting.remove(&next)?.run;
        self.occupy(&run);
        Some(run)
    }

    /// Counts a run that runs already (adopted after a restart), above the limits if need be.
    pub(super) fn occupy(&mut self, run: &Run) {
        *self.of_job.entry(run.job_id().to_owned()).or_default() += 1;
        *self.of_source.entry(run.source().to_owned()).or_default() += 1;
        self.total += 1;
    }

    /// A run that was picked or counted has ended.
    pub(super) fn release(&mut self, run: &Run) {
        one_less(&mut self.of_job, run.job_id());
        one_less(&mut self.of_source, run.source());
        self.total = self.total.saturating_sub(1);
    }
}

fn one_less(counts: &mut HashMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::ArgsText;
    use super::super::record::samples;
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { running: 3, per_source: 9, per_job: 2, waiting: 6 };
    const LIMITS_OF_NONE: QueueLimits = QueueLimits { running: 9, per_source: 9, per_job: 9, waiting: 9 };

    fn run(number: u64, job: &str) -> Arc<Run> {
        run_of(number, "s", job)
    }

    fn run_of(number: u64, source: &str, job: &str) -> Arc<Run> {
        let (source, job) = (source.to_owned(), job.to_owned());
        let record = super::super::record::Record { source, job, ..samples::numbered(number) };
        Arc::new(Run::new(record, "/nonexistent".into(), ArgsText::default()))
    }

    fn picked(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pick()).map(|run| run.number()).collect()
    }

    #[test]
    fn keeps_order_and_limits() {
        let mut queue = Queue::new(LIMITS);
        for (number, job) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "b")] {
            queue.promise(1).unwrap();
            queue.push(run(number, job));
        }
        assert_eq!(queue.promise(1), Err(NoPlace::Full(6)));
        assert_eq!(picked(&mut queue), [] as [u64; 0], "no image is there yet");
        for number in [6, 5, 4, 3, 2, 1] {
            queue.ready(number);
        }
        assert_eq!(picked(&mut queue), [1, 2, 4]);
        queue.release(&run(4, "b"));
        assert_eq!(picked(&mut queue), [5]);
        queue.remove(6);
        queue.release(&run(1, "a"));
        assert_eq!(picked(&mut queue), [3]);
        queue.release(&run(2, "a"));
        assert_eq!(picked(&mut queue), [] as [u64; 0]);
    }

    #[test]
    fn a_run_whose_image_is_there_overtakes_one_that_waits_for_its_own() {
        let mut queue = Queue::new(LIMITS_OF_NONE);
        queue.push(run(1, "a"));
        queue.push(run(2, "b"));
        queue.ready(2);
        assert_eq!(picked(&mut queue), [2]);
        queue.ready(1);
        assert_eq!(picked(&mut queue), [1]);
    }

    #[test]
    fn a_source_has_a_limit_over_all_its_jobs() {
        let mut queue = Queue::new(QueueLimits { per_source: 2, ..LIMITS_OF_NONE });
        for (number, source, job) in [(1, "x", "a"), (2, "x", "b"), (3, "x", "c"), (4, "y", "d")] {
            queue.push(run_of(number, source, job));
            queue.ready(number);
        }
        assert_eq!(picked(&mut queue), [1, 2, 4]);
        queue.release(&run_of(2, "x", "b"));
        assert_eq!(picked(&mut queue), [3]);
    }
}
