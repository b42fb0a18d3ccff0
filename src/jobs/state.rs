//! The states of a run, and what each command means in each of them. Pure.
//!
//! ```text
//! created --start--> queued --slot--> running --exit 0--> succeeded
//!    |                 |                 |------exit n--> failed      (also: the runtime refused)
//!    |                 |                 |------cancel--> canceled
//!    |                 |                 |------limit---> timeout
//!    |                 |                 `------?-------> lost        (the shim left no outcome)
//!    `----cancel-------`------------------------------->  canceled
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a run; its spelling is API (`state`, `record.json`, events).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Made, its arguments may be written.
    Created,
    /// Started, waiting for its image or for a slot.
    Queued,
    /// Its shim is up.
    Running,
    /// Ended with exit code 0.
    Succeeded,
    /// Ended with another exit code, or could not be started.
    Failed,
    /// Ended because somebody asked.
    Canceled,
    /// Killed at its time limit.
    Timeout,
    /// Nobody knows how it ended.
    Lost,
}

/// What is asked of a run, without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `start`.
    Start,
    /// `cancel`.
    Cancel,
    /// `kill`.
    Kill,
    /// `eof`.
    Eof,
    /// A write to `args.json`.
    WriteArgs,
    /// `rmdir`.
    Remove,
}

/// What a command comes to in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is carried out.
    Do,
    /// It was done before: the answer is ok and nothing changes.
    Already,
    /// It has no meaning in this state; the words say why.
    Refuse(&'static str),
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Timeout,
        Self::Lost,
    ];

    /// The published word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
        }
    }

    /// Nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Timeout | Self::Lost)
    }

    /// It occupies the queue or the host.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }

    /// `start` begins it.
    pub const fn can_start(self) -> bool {
        matches!(self, Self::Created)
    }

    /// `cancel` ends it.
    pub const fn can_cancel(self) -> bool {
        matches!(self, Self::Created | Self::Queued | Self::Running)
    }

    /// A signal can reach it.
    pub const fn can_kill(self) -> bool {
        matches!(self, Self::Running)
    }

    /// `args.json` may be written.
    pub const fn can_write_args(self) -> bool {
        matches!(self, Self::Created)
    }

    /// It may be removed.
    pub const fn can_remove(self) -> bool {
        !self.is_live()
    }

    /// The whole table. `same_token` says whether a `start` carries the token of the start that was accepted.
    pub const fn answer(self, verb: Verb, same_token: bool) -> Answer {
        match (verb, self) {
            (Verb::Start, _) if self.can_start() => Answer::Do,
            (Verb::Start, _) if same_token => Answer::Already,
            (Verb::Start, _) => Answer::Refuse("it was started already; make a new run"),
            (Verb::Cancel, _) if self.can_cancel() => Answer::Do,
            (Verb::Cancel, _) => Answer::Already,
            (Verb::Kill, _) if self.can_kill() => Answer::Do,
            (Verb::Kill, Self::Created | Self::Queued) => Answer::Refuse("it does not run yet; use cancel"),
            (Verb::Kill, _) => Answer::Refuse("it has ended"),
            (Verb::Eof, Self::Queued | Self::Running) => Answer::Do,
            (Verb::Eof, Self::Created) => Answer::Refuse("it is not started"),
            // The job may end before it has read all of its input: the writer did nothing wrong.
            (Verb::Eof, _) => Answer::Already,
            (Verb::WriteArgs, _) if self.can_write_args() => Answer::Do,
            (Verb::WriteArgs, _) => Answer::Refuse("it was started already; its arguments are fixed"),
            (Verb::Remove, _) if self.can_remove() => Answer::Do,
            (Verb::Remove, _) => Answer::Refuse("it is live; cancel it first"),
        }
    }

    /// The state after a command that [`RunState::answer`] answers with [`Answer::Do`], as far as it changes at
    /// once: used to judge several commands of one write before any is carried out.
    pub const fn after(self, verb: Verb) -> Self {
        match (verb, self) {
            (Verb::Start, _) => Self::Queued,
            (Verb::Cancel, Self::Created | Self::Queued) => Self::Canceled,
            _ => self,
        }
    }
}

impl Verb {
    /// The word of the command.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Cancel => "cancel",
            Self::Kill => "kill",
            Self::Eof => "eof",
            Self::WriteArgs => "write of args.json",
            Self::Remove => "rmdir",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunState::*;

    /// d = done, a = already, r = refused; columns are created queued running and the five final states.
    #[test]
    fn every_state_and_command() {
        let table = [
            (Verb::Start, false, "drr rrrrr"),
            (Verb::Start, true, "daa aaaaa"),
            (Verb::Cancel, false, "ddd aaaaa"),
            (Verb::Kill, false, "rrd rrrrr"),
            (Verb::Eof, false, "rdd aaaaa"),
            (Verb::WriteArgs, false, "drr rrrrr"),
            (Verb::Remove, false, "drr ddddd"),
        ];
        for (verb, same_token, row) in table {
            for (state, expected) in RunState::ALL.iter().zip(row.chars().filter(|c| *c != ' ')) {
                let got = match state.answer(verb, same_token) {
                    Answer::Do => 'd',
                    Answer::Already => 'a',
                    Answer::Refuse(_) => 'r',
                };
                assert_eq!(got, expected, "{} in {state} (same token: {same_token})", verb.as_str());
            }
        }
    }

    #[test]
    fn spelling_survives_json() {
        for state in RunState::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
            assert_eq!(serde_json::from_str::<RunState>(&json).unwrap(), state);
        }
    }

    #[test]
    fn a_batch_sees_the_state_its_commands_leave() {
        assert_eq!(Created.after(Verb::Start), Queued);
        assert_eq!(Queued.after(Verb::Cancel), Canceled);
        assert_eq!(Running.after(Verb::Cancel), Running);
    }
}
