//! Signals become commands: the first INT, TERM or HUP cancels the run, the second kills it, the third leaves.
//!
//! They are blocked and read from a descriptor, so nothing is interrupted and no handler races; PIPE is only blocked
//! and shows as EPIPE at the write. A signal that the caller ignores (nohup, `&` of a shell) never arrives.

use crate::control;
use crate::sys::{self, Errno};

const SIGHUP: u64 = 1;
const SIGINT: u64 = 2;
const SIGPIPE: u64 = 13;
const SIGTERM: u64 = 15;

/// `struct signalfd_siginfo`; its first four bytes are the number of the signal.
const SIGINFO: usize = 128;

/// The signals of a run.
pub(crate) struct Signals {
    fd: i32,
    ctl: i32,
    stops: u32,
    last: i32,
}

impl Signals {
    /// Takes the signals; they become commands on `ctl`.
    pub(crate) fn take(ctl: i32) -> Result<Self, Errno> {
        let bit = |signal: u64| 1 << (signal - 1);
        // PIPE belongs to no descriptor: reading it would say nothing that EPIPE does not.
        sys::take_signals(bit(SIGPIPE))?;
        let fd = sys::take_signals(bit(SIGHUP) | bit(SIGINT) | bit(SIGTERM))?;
        Ok(Self { fd, ctl, stops: 0, last: 0 })
    }

    /// The descriptor to poll.
    pub(crate) fn fd(&self) -> i32 {
        self.fd
    }

    /// Obeys what has arrived.
    pub(crate) fn obey(&mut self) {
        let mut info = [0u8; SIGINFO];
        while let Ok(SIGINFO) = sys::read(self.fd, &mut info) {
            self.stop(i32::from(info[0]));
        }
    }

    /// The reader of our output is gone.
    pub(crate) fn pipe_closed(&mut self) {
        if self.stops == 0 {
            self.stop(SIGPIPE as i32);
        }
    }

    fn stop(&mut self, signal: i32) {
        self.stops += 1;
        self.last = signal;
        // A refusal means that the run has ended meanwhile: its state tells.
        let _ = match self.stops {
            1 => control::say(self.ctl, b"cancel\n"),
            2 => control::say(self.ctl, b"kill\n"),
            _ => sys::exit(128 + signal),
        };
    }

    /// Whether output may be dropped: a second signal wants the end, not the rest.
    pub(crate) fn impatient(&self) -> bool {
        self.stops > 1
    }

    /// Exit code of a run that was stopped by one of these.
    pub(crate) fn code(&self) -> Option<i32> {
        (self.stops > 0).then_some(128 + self.last)
    }
}
