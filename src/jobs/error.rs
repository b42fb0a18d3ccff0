//! Why a job, plan, run or command was refused.

use crate::policy::arguments::ArgumentProblem;
use crate::policy::code::Denied;

/// The error of this room; `fs` turns each into an errno, the words go to `last_error` and to the reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JobError {
    /// No such job or run.
    #[error("no such {0}")]
    NotFound(String),
    /// The run's name is taken.
    #[error("run {0} exists already")]
    Exists(String),
    /// A malformed command or name.
    #[error("{0}")]
    Invalid(String),
    /// Arguments that do not fit the argspec, every problem listed.
    #[error("arguments.invalid: {}", list(.0))]
    Arguments(Vec<ArgumentProblem>),
    /// The run is in a state in which the command has no meaning.
    #[error("{0}")]
    Busy(String),
    /// Refused by policy.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The queue is full.
    #[error("{0}")]
    Again(String),
    /// Trouble with the daemon's own files or with the runtime.
    #[error("{0}")]
    Internal(String),
}

fn list(problems: &[ArgumentProblem]) -> String {
    let words: Vec<String> = problems
        .iter()
        .map(|p| if p.arg.is_empty() { p.message.clone() } else { format!("{}: {}", p.arg, p.message) })
        .collect();
    words.join("; ")
}
