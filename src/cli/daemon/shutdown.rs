//! Stopping: who may ask for it, and what has to end before the mount goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
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
pub(crate) struct Stops {
    sender: mpsc::UnboundedSender<Stop>,
    asked: Arc<AtomicBool>,
}

/// Where they are waited for.
#[derive(Debug)]
pub(crate) struct StopRequests {
    receiver: mpsc::UnboundedReceiver<Stop>,
    term: Signal,
    int: Signal,
}

/// A pair of the two. From here on signals are kept until somebody waits for them.
pub(crate) fn channel() -> std::io::Result<(Stops, StopRequests)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let requests = StopRequests {
        receiver,
        term: signal(SignalKind::terminate())?,
        int: signal(SignalKind::interrupt())?,
    };
    Ok((Stops { sender, asked: Arc::default() }, requests))
}

impl Stops {
    /// Asks for it. Returns at once.
    pub(crate) fn ask(&self, stop: Stop) {
        self.asked.store(true, Ordering::Release);
        let _ = self.sender.send(stop);
    }

    /// Whether anybody asked.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// Canceled runs get TERM and their grace, then KILL; what lives longer is not waited for.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the live runs.
const LOOK: Duration = Duration::from_millis(50);

impl StopRequests {
    /// Waits until somebody asks, by `ctl` or by SIGTERM or SIGINT (which cancel), and live runs have ended. No run
    /// is started from then on.
    pub(crate) async fn wait(&mut self, jobs: &Jobs) {
        let mut stop = self.next().await;
        tracing::info!(?stop, "stopping");
        jobs.close();
        let mut give_up = None;
        while !jobs.is_idle() {
            let live = jobs.live_runs();
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
                return;
            }
            if let Ok(next) = tokio::time::timeout(LOOK, self.next()).await {
                stop = next;
            }
        }
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            asked = self.receiver.recv() => asked.unwrap_or(Stop::Cancel),
            _ = self.term.recv() => Stop::Cancel,
            _ = self.int.recv() => Stop::Cancel,
        }
    }
}
