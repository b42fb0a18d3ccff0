//! After a restart: what becomes of the runs that the journal knows.
//!
//! | the journal says | then |
//! |---|---|
//! | final | it is shown |
//! | created | it is shown; arguments that were in memory only must be written again |
//! | queued | it waits for its job to be installed again with the same image, and is queued anew in its old order; with secrets, which died with the daemon, it has failed |
//! | queued, shim being started | its shim is looked for a while; found, it is followed; else it is lost, for nobody knows whether it ran, and a job must not run twice |
//! | running | its shim is followed: one that is gone has left `exit.json`, or the run is lost |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::args::{ArgsText, MAX_ARGS_BYTES};
use super::control::Asked;
use super::error::JobError;
use super::executor::{EXIT_FILE, Outcome, SHIM_FILE, ShimId, Stop};
use super::handle::Shared;
use super::layout::ARGS_RAW;
use super::plan::Wishes;
use super::record::{ArgsAt, EXIT_REFUSED, Record};
use super::run::Run;
use super::state::RunState;
use super::supervisor::{lost, read_left};
use crate::policy::arguments::Given;

/// How long a shim that was being started may take to leave a trace: the spawner may still be at it.
const TRACE_DEADLINE: Duration = Duration::from_secs(5);
/// How often is looked.
const TRACE_INTERVAL: Duration = Duration::from_millis(50);

/// Takes up every run of the journal.
pub(super) fn all(shared: &Arc<Shared>, records: BTreeMap<u64, Record>) {
    for record in records.into_values() {
        let run = Arc::new(take_up(shared, record));
        shared.runs_mut().enter(&run);
        go_on(shared, &run);
    }
}

fn take_up(shared: &Shared, record: Record) -> Run {
    let dir = shared.layout.run_dir(&record.id);
    let unstarted = record.state == RunState::Created;
    let text =
        if unstarted && record.args_at == ArgsAt::Disk { read_text(&dir) } else { ArgsText::default() };
    let text_lost = unstarted && record.args_at == ArgsAt::Memory;
    let run = Run::new(record, dir, text);
    run.lock().text_lost = text_lost;
    run
}

fn read_text(dir: &std::path::Path) -> ArgsText {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(dir.join(ARGS_RAW)) {
        // A text that cannot be read is an empty one, and start says what is missing.
        let _ = file.take(MAX_ARGS_BYTES).read_to_end(&mut text);
    }
    ArgsText::new(text)
}

fn go_on(shared: &Arc<Shared>, run: &Arc<Run>) {
    let (state, launching, held_secrets, shim) = {
        let inner = run.lock();
        let record = &inner.record;
        (record.state, record.launching, record.held_secrets, record.shim.clone())
    };
    match (state, shim) {
        (RunState::Running, Some(shim)) => adopt(shared, run, shim),
        (RunState::Running, None) => find(shared, run),
        (RunState::Queued, _) if launching => find(shared, run),
        (RunState::Queued, _) if held_secrets => shared.end_unstarted(
            run,
            EXIT_REFUSED,
            "the daemon was started again while the run was queued, and its secrets were in memory only; start a new run".into(),
        ),
        (RunState::Queued, _) => {
            run.lock().record.progress = Some(format!("waiting for job {} to be there again", run.job_id()));
            shared.parked().push(Arc::clone(run));
        }
        _ => {}
    }
}

/// Follows a shim of an earlier daemon.
fn adopt(shared: &Arc<Shared>, run: &Arc<Run>, shim: ShimId) {
    shared.queue().occupy(run.job_id());
    let (owner, run) = (Arc::clone(shared), Arc::clone(run));
    shared.runtime.spawn(async move {
        if run.lock().record.cancel_asked {
            // The request may have died with the daemon; a shim that is canceling already ignores a second one.
            owner.tell_shim(&run, shim.clone(), Stop::Cancel);
        }
        owner.follow(&run, shim).await;
        owner.queue().release(run.job_id());
        owner.pump();
    });
}

/// Looks for the traces of a shim that was being started.
fn find(shared: &Arc<Shared>, run: &Arc<Run>) {
    shared.queue().occupy(run.job_id());
    let (owner, run) = (Arc::clone(shared), Arc::clone(run));
    shared.runtime.spawn(async move {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(shim) = read_left::<ShimId>(run.dir(), SHIM_FILE) {
                let shim = owner.is_running(&run, shim);
                owner.follow(&run, shim).await;
                break;
            }
            if let Some(outcome) = read_left::<Outcome>(run.dir(), EXIT_FILE) {
                owner.finish(&run, &outcome).await;
                break;
            }
            if begun.elapsed() > TRACE_DEADLINE {
                let why = "the daemon ended while the run was being started; whether it ran is not known";
                owner.finish(&run, &lost(why)).await;
                break;
            }
            tokio::time::sleep(TRACE_INTERVAL).await;
        }
        owner.queue().release(run.job_id());
        owner.pump();
    });
}

/// Queues the runs whose job is there again. With another image than the plan was made for a run fails: what was
/// promised in `plan.json` can no longer be kept.
pub(super) fn unpark(shared: &Arc<Shared>) {
    let mut back = Vec::new();
    {
        let jobs = shared.jobs();
        let mut parked = shared.parked();
        // A run that was canceled meanwhile needs nothing more.
        parked.retain(|run| run.state() == RunState::Queued);
        parked.retain(|run| {
            let installed = jobs.contains_key(run.job_id());
            if installed {
                back.push(Arc::clone(run));
            }
            !installed
        });
    }
    for run in back {
        match requeue(shared, &run) {
            Ok(()) => shared.ensure_image(&run),
            Err(error) => shared.end_unstarted(&run, EXIT_REFUSED, error.to_string()),
        }
    }
}

fn requeue(shared: &Arc<Shared>, run: &Arc<Run>) -> Result<(), JobError> {
    let mut inner = run.lock();
    if inner.record.state != RunState::Queued {
        return Ok(());
    }
    let args = inner.record.args.clone().unwrap_or_default();
    // What was asked for is asked again: policy may have changed.
    let wishes = Wishes::of_record(&inner.record.policy)?;
    let decision = shared.decide_start(run.job_id(), Asked { given: Given::Json(args), wishes })?;
    if decision.job.addon.tree != inner.record.tree {
        return Err(JobError::Busy(
            "the add-on was updated while the run was queued; start a new run".into(),
        ));
    }
    let (token, stdin) = (inner.record.token.clone(), inner.record.stdin);
    // It had its place before the restart.
    let mut places = shared.places_at_any_rate(1);
    shared.commit_start(run, &mut inner, decision, token.as_deref(), stdin, &mut places)
}
