//! After a restart: what becomes of the runs that the journal knows.
//!
//! | the journal says | then |
//! |---|---|
//! | final | it is shown |
//! | created | it is shown; arguments that were in memory only must be written again |
//! | queued | it waits for its job to be installed again with the same image, and is queued anew in its old order; with secrets, which died with the daemon, it has failed |
//! | queued, shim being started | the launch is revoked. If no shim had taken it, the run is as good as queued. Else its shim is looked for a while and followed; if it left no trace, or the machine has died since, the run is lost, for nobody knows whether it ran, and a job must not run twice |
//! | running | its shim is followed: one that is gone has left `exit.json`, or the run is lost |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::args::{ArgsText, MAX_ARGS_BYTES};
use super::control::Asked;
use super::error::JobError;
use super::executor::{EXIT_FILE, Outcome, SHIM_FILE, ShimId, Stop, revoke_offers};
use super::handle::Shared;
use super::layout::ARGS_RAW;
use super::plan::Wishes;
use super::record::{ArgsAt, EXIT_REFUSED, Record};
use super::run::Run;
use super::state::RunState;
use super::supervisor::{boot_id, lost, read_left};
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
        (RunState::Running, None) => search(shared, run),
        (RunState::Queued, _) if launching && !withdraw(shared, run) => search(shared, run),
        (RunState::Queued, _) if run.state().is_final() => {}
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

/// Takes back a launch that no shim has taken: then the run is only queued. `false` when a shim may have it.
fn withdraw(shared: &Arc<Shared>, run: &Arc<Run>) -> bool {
    let boot = run.lock().record.boot.clone();
    // What a run's folder held when the machine died is not on disk.
    if boot.is_none() || boot != boot_id() || !revoke_offers(run.dir()).unwrap_or(false) {
        return false;
    }
    let canceled = {
        let mut inner = run.lock();
        inner.record.launching = false;
        shared.write_down(&inner.record);
        inner.record.cancel_asked
    };
    if canceled {
        shared.end_canceled(run);
    }
    true
}

/// Follows a shim of an earlier daemon.
fn adopt(shared: &Arc<Shared>, run: &Arc<Run>, shim: ShimId) {
    shared.queue().occupy(run);
    let (owner, run) = (Arc::clone(shared), Arc::clone(run));
    shared.runtime.spawn(async move {
        if run.lock().record.cancel_asked {
            // The request may have died with the daemon; a shim that is canceling already ignores a second one.
            owner.tell_shim(&run, shim.clone(), Stop::Cancel);
        }
        owner.follow(&run, shim).await;
        owner.queue().release(&run);
        owner.pump();
    });
}

/// Finds and follows the shim of a launch that an earlier daemon began.
fn search(shared: &Arc<Shared>, run: &Arc<Run>) {
    shared.queue().occupy(run);
    let (owner, run) = (Arc::clone(shared), Arc::clone(run));
    shared.runtime.spawn(async move {
        find(&owner, &run).await;
        owner.queue().release(&run);
        owner.pump();
    });
}

/// Looks for the traces of a shim that was being started, and follows it to its end.
pub(super) async fn find(owner: &Arc<Shared>, run: &Arc<Run>) {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(shim) = read_left::<ShimId>(run.dir(), SHIM_FILE) {
            let shim = owner.is_running(run, shim);
            return owner.follow(run, shim).await;
        }
        if let Some(outcome) = read_left::<Outcome>(run.dir(), EXIT_FILE) {
            return owner.finish(run, &outcome).await;
        }
        if begun.elapsed() > TRACE_DEADLINE {
            let why = "its start was interrupted; whether it ran is not known";
            return owner.finish(run, &lost(why)).await;
        }
        tokio::time::sleep(TRACE_INTERVAL).await;
    }
}

/// Ends the runs that wait for their job and need not wait any longer, each with the reason that `why` gives.
pub(super) fn give_up(shared: &Shared, why: impl Fn(&Record) -> Option<String>) {
    let mut over = Vec::new();
    shared.parked().retain(|run| match why(&run.lock().record) {
        Some(why) => {
            over.push((Arc::clone(run), why));
            false
        }
        None => true,
    });
    for (run, why) in over {
        shared.end_unstarted(&run, EXIT_REFUSED, format!("it was queued when the daemon ended, and {why}"));
    }
}

/// Queues the runs whose job is there again. With another image than the plan was made for a run fails: what was
/// promised in `plan.json` can no longer be kept. So does one whose job the `source` has no more.
pub(super) fn unpark(shared: &Arc<Shared>, source: &str) {
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
    give_up(shared, |record| {
        (record.source == source).then(|| format!("its source has no job {} any more", record.job))
    });
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
