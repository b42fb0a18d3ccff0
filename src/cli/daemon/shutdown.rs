//! Stopping: who may ask for it, and what has to end before the mount goes.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::jobs::{Caller, Command, Jobs};

/// How a daemon is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No run was live when it was asked.
    IfIdle,
    /// Live runs are canceled.
    Cancel,
    /// Live runs are waited for.
    Wait,
}

/// Where requests to stop go.
#[derive(Debug, Clone)]
pub(crate) struct Stops(mpsc::UnboundedSender<Stop>);

/// Where they are waited for.
#[derive(Debug)]
pub(crate) struct StopRequests(mpsc::UnboundedReceiver<Stop>);

/// A pair of the two.
pub(crate) fn channel() -> (Stops, StopRequests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Stops(sender), StopRequests(receiver))
}

impl Stops {
    /// Asks for it. Returns at once.
    pub(crate) fn ask(&self, stop: Stop) {
        let _ = self.0.send(stop);
    }
}

/// Canceled runs get TERM and their grace, then KILL; what lives longer is not waited for.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the live runs.
const LOOK: Duration = Duration::from_millis(50);

impl StopRequests {
    /// Waits until somebody asks, by `ctl` or by SIGTERM or SIGINT (which cancel), and live runs have ended. A
    /// terminal that goes away asks too, where there is one (`foreground`).
    pub(crate) async fn wait(&mut self, jobs: &Jobs, foreground: bool) -> anyhow::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut stop = tokio::select! {
            asked = self.0.recv() => asked.unwrap_or(Stop::Cancel),
            _ = term.recv() => Stop::Cancel,
            _ = int.recv() => Stop::Cancel,
            _ = hangup.recv(), if foreground => Stop::Cancel,
        };
        tracing::info!(?stop, "stopping");
        let mut give_up = None;
        loop {
            let live = jobs.live_runs();
            if live.is_empty() {
                return Ok(());
            }
            if stop == Stop::Cancel && give_up.is_none() {
                give_up = Some(Instant::now() + CANCEL_LIMIT);
                let daemon = Caller { uid: nix::unistd::geteuid().as_raw(), gid: 0, pid: std::process::id() };
                for run in &live {
                    if let Err(error) = jobs.run_command(run, Command::Cancel, &daemon) {
                        tracing::warn!(run = run.id(), %error, "cannot cancel");
                    }
                }
            }
            if give_up.is_some_and(|at| Instant::now() > at) {
                tracing::warn!("{} runs did not end after they were canceled", live.len());
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                asked = self.0.recv() => stop = asked.unwrap_or(Stop::Cancel),
                _ = term.recv() => stop = Stop::Cancel,
                _ = int.recv() => stop = Stop::Cancel,
            }
        }
    }
}
