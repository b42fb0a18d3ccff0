//! Who runs next: the order of started runs, and the limits on how many run at once. Pure bookkeeping.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::run::Run;

/// Limits of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) running: usize,
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
    running: HashMap<String, usize>,
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
            running: HashMap::new(),
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

    /// How many runs may run, all jobs together and of one job, if this run waits for a slot.
    pub(super) fn waits(&self, number: u64) -> Option<(usize, usize)> {
        let waits = self.waiting.values().any(|w| w.ready && w.run.number() == number);
        waits.then_some((self.limits.running, self.limits.per_job))
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
        let room = |job: &str| self.running.get(job).copied().unwrap_or(0) < self.limits.per_job;
        let next = self.waiting.iter().find(|(_, w)| w.ready && room(w.run.job_id())).map(|(seq, _)| *seq)?;
        let run = self.waiting.remove(&next)?.run;
        self.occupy(run.job_id());
        Some(run)
    }

    /// Counts a run that runs already (adopted after a restart), above the limits if need be.
    pub(super) fn occupy(&mut self, job_id: &str) {
        *self.running.entry(job_id.to_owned()).or_default() += 1;
        self.total += 1;
    }

    /// A run has ended.
    pub(super) fn release(&mut self, job_id: &str) {
        if let Some(count) = self.running.get_mut(job_id) {
            *count -= 1;
            self.total -= 1;
            if *count == 0 {
                self.running.remove(job_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::ArgsText;
    use super::super::record::samples;
    use super::*;

    fn run(number: u64, job: &str) -> Arc<Run> {
        let record = super::super::record::Record { job: job.into(), ..samples::numbered(number) };
        Arc::new(Run::new(record, "/nonexistent".into(), ArgsText::default()))
    }

    fn picked(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pick()).map(|run| run.number()).collect()
    }

    #[test]
    fn keeps_order_and_limits() {
        let mut queue = Queue::new(QueueLimits { running: 3, per_job: 2, waiting: 6 });
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
        queue.release("b");
        assert_eq!(picked(&mut queue), [5]);
        queue.remove(6);
        queue.release("a");
        assert_eq!(picked(&mut queue), [3]);
        queue.release("a");
        assert_eq!(picked(&mut queue), [] as [u64; 0]);
    }

    #[test]
    fn a_run_whose_image_is_there_overtakes_one_that_waits_for_its_own() {
        let mut queue = Queue::new(QueueLimits { running: 9, per_job: 9, waiting: 9 });
        queue.push(run(1, "a"));
        queue.push(run(2, "b"));
        queue.ready(2);
        assert_eq!(picked(&mut queue), [2]);
        queue.ready(1);
        assert_eq!(picked(&mut queue), [1]);
    }
}
