//! What becomes of runs when policy stops trusting their image.

use std::sync::Arc;

use super::handle::{Jobs, Shared};
use super::record::EXIT_CANCELED;
use super::run::Run;
use super::state::RunState;
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::event::Event;
use crate::policy::rules::OnUntrusted;

impl Jobs {
    /// Nothing of this source is trusted any more: runs that have not begun are canceled, those under way go on or are
    /// canceled (TERM, grace, KILL). Its jobs must have been uninstalled before.
    pub fn distrust(&self, source: &str, denied: &Denied, running: OnUntrusted) {
        for run in self.live_runs() {
            let (is_its, begun) = {
                let inner = run.lock();
                (
                    inner.record.source == source,
                    inner.record.state == RunState::Running || inner.record.launching,
                )
            };
            if !is_its {
                continue;
            }
            let ends = match (begun, running) {
                (false, _) => self.0.end_queued(&run, denied),
                (true, OnUntrusted::Kill) => self.0.cancel(&run).is_ok(),
                (true, OnUntrusted::Finish) => false,
            };
            self.0.events.tell(decision(&run, denied, ends));
        }
    }

    /// Whether a run of this tree is queued or running.
    pub fn uses(&self, tree: &Digest) -> bool {
        self.live_runs().iter().any(|run| run.lock().record.tree == *tree)
    }
}

impl Shared {
    fn end_queued(self: &Arc<Self>, run: &Arc<Run>, denied: &Denied) -> bool {
        self.queue().remove(run.number());
        let why = format!("canceled before it ran: policy no longer lets its image run: {denied}");
        self.end_without_shim(run, RunState::Canceled, EXIT_CANCELED, why);
        true
    }
}

fn decision(run: &Run, denied: &Denied, ends: bool) -> Event {
    let consequence = if ends { "the run is canceled" } else { "the run goes on to its end" };
    let mut event = Event::of_run("policy.decision", run.id())
        .with("subject", run.job_id())
        .with("decision", "denied")
        .with("code", denied.code.as_str())
        .with("reason", format!("{consequence}: {}", denied.message));
    event.source = Some(run.lock().record.source.clone());
    event
}
