//! Runs for interfaces that do not speak the grammar of a `ctl`: the same acts, with their parts as values.

use std::sync::Arc;

use super::control::Asked;
use super::error::JobError;
use super::handle::Jobs;
use super::options::Caller;
use super::record::Via;
use super::run::Run;

/// A run that is asked for.
#[derive(Debug)]
pub struct Order<'a> {
    /// The job's id.
    pub job: &'a str,
    /// Its arguments, and what is asked for beside them.
    pub asked: Asked,
    /// Who asks.
    pub caller: Caller,
    /// Through what, and as whom.
    pub via: Via,
    /// By which the same request is known when it comes again.
    pub token: Option<&'a str>,
}

impl Jobs {
    /// Makes a run, named by its own id, and starts it: queued when this returns. A refusal leaves nothing behind.
    pub fn run_ordered(&self, order: Order<'_>) -> Result<Arc<Run>, JobError> {
        let decision = self.0.decide_start(order.job, order.asked)?;
        let mut places = self.0.places(1)?;
        self.0.run_now(decision, &order.caller, Some(order.via), order.token, &mut places)
    }
}

impl Run {
    /// The token of its start.
    pub fn token(&self) -> Option<String> {
        self.lock().record.token.clone()
    }
}
