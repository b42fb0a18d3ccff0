//! Which runs go by themselves, see [`super::Retention`]: finished ones that are too old or too many, and made ones
//! that nobody started. Live runs never.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::descriptor::millis;
use super::handle::Shared;
use super::record::now_ms;
use super::run::Run;
use super::state::RunState;

/// How often is looked. Nobody waits for it.
const INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the state directory tidy for as long as the handle lives.
pub(super) fn keep_tidy(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.runtime.spawn(async move {
        while let Some(done) = tidy(&weak) {
            if done.await.is_err() {
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    });
}

/// One round, away from the threads that serve anybody.
fn tidy(weak: &Weak<Shared>) -> Option<tokio::task::JoinHandle<()>> {
    let shared = weak.upgrade()?;
    let runtime = shared.runtime.clone();
    Some(runtime.spawn_blocking(move || {
        collect(&shared, now_ms());
        shared.sweep();
        if shared.journal.has_grown()
            && let Err(e) = shared.journal.compact()
        {
            tracing::warn!(error = %e, "the journal was not rewritten");
        }
    }))
}

/// Removes what is due at `now_ms`.
fn collect(shared: &Shared, now_ms: u64) {
    let keep = shared.options.retention;
    let all: Vec<Arc<Run>> = shared.runs().all().cloned().collect();
    let mut finished: Vec<(u64, &Arc<Run>)> = Vec::new();
    let mut due: Vec<&Arc<Run>> = Vec::new();
    for run in &all {
        match run.state() {
            RunState::Created if now_ms.saturating_sub(run.created_ms()) > millis(keep.unstarted) => {
                due.push(run)
            }
            state if state.is_final() => finished.push((run.changed_ms(), run)),
            _ => {}
        }
    }
    // Newest first: each is kept as long as it and those after it are neither too many nor too large.
    finished.sort_by_key(|(ended, run)| std::cmp::Reverse((*ended, run.number())));
    let mut bytes = 0_u64;
    for (kept, (ended, run)) in finished.into_iter().enumerate() {
        bytes = bytes.saturating_add(run.bytes_on_disk());
        let too_old = now_ms.saturating_sub(ended) > millis(keep.max_age);
        if too_old || kept >= keep.max_finished || bytes > keep.max_bytes {
            due.push(run);
        }
    }
    for run in due {
        if let Err(e) = shared.remove(run) {
            tracing::warn!(run = run.id(), error = %e, "a run that is due stays");
        }
    }
}
