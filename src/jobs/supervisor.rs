//! Carries out queued runs: image, slot, durable record, shim, outcome. Everything here runs in tasks of the runtime.

use std::path::Path;
use std::sync::Arc;

use super::adopt;
use super::executor::{Cause, Launch, Outcome, ShimId, Stop, revoke_offers};
use super::handle::Shared;
use super::layout;
use super::options::ImageWanted;
use super::record::{EXIT_CANCELED, EXIT_REFUSED, now_ms};
use super::run::{Pending, Run};
use super::state::RunState;

/// What became of a launch.
enum Launched {
    /// A shim is up.
    Shim(ShimId),
    /// A shim has taken it and nobody knows how far it is.
    Unknown,
    /// No shim: the run is final.
    Nothing,
}

/// The boot of this machine.
pub(super) fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Command and arguments of a run, and its `PATH`; empty for one whose plan is gone.
fn command(run: &Run) -> (Vec<String>, String) {
    let inner = run.lock();
    let Some(Pending { spec, .. }) = &inner.pending else { return (Vec::new(), String::new()) };
    let path = spec.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    (spec.argv.clone(), path.unwrap_or_default())
}

impl Shared {
    /// Asks for the run's image, then lets the run be picked. A run that was canceled meanwhile is no longer in the
    /// queue, and nothing happens to it.
    pub(super) fn ensure_image(self: &Arc<Self>, run: &Arc<Run>) {
        let (shared, run) = (Arc::clone(self), Arc::clone(run));
        self.runtime.spawn(async move {
            let source = run.lock().record.source.clone();
            // A job's id is its path below the mount, and the entrypoint's id the last part of it.
            let entrypoint = run.job_id().rsplit('/').next().unwrap_or_default().to_owned();
            let told = Arc::downgrade(&run);
            let progress = Arc::new(move |words: String| {
                if let Some(run) = told.upgrade() {
                    show_progress(&run, words);
                }
            });
            let (argv, path) = command(&run);
            let wanted = ImageWanted { source, entrypoint, argv, path, progress };
            match (shared.options.ensure_image)(wanted).await {
                Ok(()) => {
                    shared.queue().ready(run.number());
                    shared.pump();
                    shared.say_why_it_waits(&run);
                }
                Err(why) => {
                    shared.queue().remove(run.number());
                    shared.end_unstarted(&run, EXIT_REFUSED, format!("its image is not there: {why}"));
                }
            }
        });
    }

    fn say_why_it_waits(&self, run: &Run) {
        let waits = self.queue().waits(run.number());
        if let Some(limits) = waits {
            let words = format!(
                "waiting for a slot: at most {} runs at a time, {} of one source, {} of one job",
                limits.running, limits.per_source, limits.per_job
            );
            show_progress(run, words);
        }
    }

    /// Starts what may start.
    pub(super) fn pump(self: &Arc<Self>) {
        loop {
            // The lock must be gone before a task is spawned: a task may end at once and pump.
            let Some(run) = self.queue().pick() else { return };
            let shared = Arc::clone(self);
            self.runtime.spawn(async move {
                match shared.launch(&run).await {
                    Launched::Shim(shim) => shared.follow(&run, shim).await,
                    Launched::Unknown => adopt::find(&shared, &run).await,
                    Launched::Nothing => {}
                }
                shared.queue().release(&run);
                shared.pump();
            });
        }
    }

    /// From queued to running.
    async fn launch(self: &Arc<Self>, run: &Arc<Run>) -> Launched {
        let (pending, written) = {
            let mut inner = run.lock();
            if inner.record.state != RunState::Queued {
                return Launched::Nothing;
            }
            inner.record.launching = true;
            inner.record.boot = boot_id();
            inner.record.progress = None;
            let written = self.write_down(&inner.record);
            (inner.pending.take(), written)
        };
        // Durable before it has any effect: after a crash of the machine nobody starts it a second time.
        let durable = match written {
            Some(position) => self.journal.synced(position).await.map_err(|e| e.to_string()),
            None => Err("the journal cannot be written".to_owned()),
        };
        if let Err(why) = durable {
            self.end_unstarted(run, EXIT_REFUSED, format!("it was not started: {why}"));
            return Launched::Nothing;
        }
        if run.lock().record.cancel_asked {
            self.end_canceled(run);
            return Launched::Nothing;
        }
        let Some(pending) = pending else {
            self.end_unstarted(run, EXIT_REFUSED, "it was not started: its plan is gone".into());
            return Launched::Nothing;
        };
        match self.ask_executor(run, pending).await {
            Ok(shim) => Launched::Shim(self.is_running(run, shim)),
            // The one who was asked may have failed after the shim had begun.
            Err(_) if revoke_offers(run.dir()).is_ok_and(|revoked| !revoked) => Launched::Unknown,
            Err(why) => {
                self.end_unstarted(run, EXIT_REFUSED, why);
                Launched::Nothing
            }
        }
    }

    /// Waits for the executor at most its own deadline. A shim that comes later is told to stop.
    async fn ask_executor(self: &Arc<Self>, run: &Arc<Run>, pending: Pending) -> Result<ShimId, String> {
        if let Some(dir) = &pending.spec.data_dir {
            layout::make_data_dir(dir).map_err(|e| format!("its data folder cannot be made: {e}"))?;
        }
        let launch = Launch { spec: pending.spec, secrets: pending.secrets, run_dir: run.dir().to_owned() };
        let executor = Arc::clone(&self.executor);
        let deadline = executor.start_deadline();
        let mut starting = self.runtime.spawn(async move { executor.start(launch).await });
        match tokio::time::timeout(deadline, &mut starting).await {
            Ok(Ok(started)) => started,
            Ok(Err(e)) => Err(format!("the executor failed: {e}")),
            Err(_) => {
                let (executor, run) = (Arc::clone(&self.executor), Arc::clone(run));
                self.runtime.spawn(async move {
                    if let Ok(Ok(shim)) = starting.await {
                        let _ = executor.stop(run.dir(), &shim, Stop::Cancel).await;
                    }
                });
                Err(format!("the executor did not start it within {} s", deadline.as_secs()))
            }
        }
    }

    /// The shim is up.
    pub(super) fn is_running(self: &Arc<Self>, run: &Arc<Run>, shim: ShimId) -> ShimId {
        let (cancel, eof) = {
            let mut inner = run.lock();
            inner.record.state = RunState::Running;
            inner.record.started_ms = Some(now_ms());
            inner.record.launching = false;
            inner.record.progress = None;
            inner.record.shim = Some(shim.clone());
            self.write_down(&inner.record);
            run.publish(&inner);
            (inner.record.cancel_asked, inner.record.eof_asked)
        };
        self.tell(run, "run.start", |event| event.with("pid", shim.pid));
        if eof {
            self.end_stdin(run, shim.clone());
        }
        if cancel {
            self.tell_shim(run, shim.clone(), Stop::Cancel);
        }
        shim
    }

    /// Waits for the shim's end; works for shims of an earlier daemon too.
    pub(super) async fn follow(self: &Arc<Self>, run: &Arc<Run>, shim: ShimId) {
        let outcome = self.executor.wait(run.dir(), &shim).await;
        self.finish(run, &outcome).await;
    }

    /// Publishes an outcome at once and makes it durable right after.
    pub(super) async fn finish(self: &Arc<Self>, run: &Arc<Run>, outcome: &Outcome) {
        let written = {
            let mut inner = run.lock();
            if inner.record.state.is_final() {
                return;
            }
            inner.record.end_with(outcome);
            inner.pending = None;
            inner.plan = None;
            let written = self.write_down(&inner.record);
            run.publish(&inner);
            written
        };
        self.tell_end(run);
        run.stdin.end().await;
        if let Some(position) = written
            && let Err(e) = self.journal.synced(position).await
        {
            tracing::error!(run = run.id(), error = %e, "the end of a run is not durable");
        }
    }

    /// Ends a run that has no shim.
    pub(super) fn end_unstarted(&self, run: &Arc<Run>, exit_code: i32, why: String) {
        self.end_without_shim(run, RunState::Failed, exit_code, why);
    }

    pub(super) fn end_canceled(&self, run: &Arc<Run>) {
        self.end_without_shim(run, RunState::Canceled, EXIT_CANCELED, "canceled before it ran".into());
    }

    pub(super) fn end_without_shim(&self, run: &Arc<Run>, state: RunState, exit_code: i32, why: String) {
        {
            let mut inner = run.lock();
            if inner.record.state.is_final() {
                return;
            }
            inner.pending = None;
            inner.plan = None;
            inner.record.end(state, exit_code, Some(why), now_ms());
            self.write_down(&inner.record);
            run.publish(&inner);
        }
        self.tell_end(run);
    }

    /// Tells of the end of a run: `run.finish` always, `run.canceled` before it when it was canceled.
    pub(super) fn tell_end(&self, run: &Run) {
        let record = run.lock().record.clone();
        if record.state == RunState::Canceled {
            self.tell(run, "run.canceled", |event| event);
        }
        self.tell(run, "run.finish", |event| {
            event
                .with("state", record.state.as_str())
                .with("exit_code", record.exit_code)
                .with("signal", record.signal)
                .with("error", record.error)
        });
    }

    /// Hands a stop to the shim in a task; a shim that is gone needs none.
    pub(super) fn tell_shim(self: &Arc<Self>, run: &Arc<Run>, shim: ShimId, stop: Stop) {
        let (executor, run) = (Arc::clone(&self.executor), Arc::clone(run));
        self.runtime.spawn(async move {
            if let Err(why) = executor.stop(run.dir(), &shim, stop).await {
                say_undelivered(&run, &format!("{stop:?}"), &why);
            }
        });
    }

    /// Ends the standard input: what was accepted first, then the end.
    pub(super) fn end_stdin(self: &Arc<Self>, run: &Arc<Run>, shim: ShimId) {
        let (executor, run) = (Arc::clone(&self.executor), Arc::clone(run));
        self.runtime.spawn(async move {
            run.stdin.end().await;
            if let Err(why) = executor.stop(run.dir(), &shim, Stop::Eof).await {
                say_undelivered(&run, "eof", &why);
            }
        });
    }
}

fn show_progress(run: &Run, words: String) {
    let mut inner = run.lock();
    if inner.record.state == RunState::Queued && !inner.record.launching {
        inner.record.progress = Some(words);
        run.publish(&inner);
    }
}

fn say_undelivered(run: &Run, what: &str, why: &str) {
    let mut inner = run.lock();
    if !inner.record.state.is_final() {
        inner.refusal = Some(format!("{what} could not be delivered: {why}"));
        run.publish(&inner);
    }
}

/// The outcome of a shim that is gone without a trace.
pub(super) fn lost(why: &str) -> Outcome {
    Outcome {
        cause: Cause::Lost,
        exit_code: None,
        signal: None,
        message: Some(why.to_owned()),
        started_ms: None,
        ended_ms: now_ms(),
        cpu_usec: None,
        memory_peak: None,
        oom_killed: false,
        log_dropped: 0,
    }
}

/// Reads one of the small JSON files that a shim leaves; `None` when it is not there or not whole.
pub(super) fn read_left<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&std::fs::read(dir.join(name)).ok()?).ok()
}
