//! The job's process, and what a signal means to it.
//!
//! It is process 1 of its pid namespace, and the kernel drops signals that process 1 has not asked for, so a plain
//! `sleep` could not be terminated. We give a signal the meaning it has for every other process: what would end it
//! by default, and is neither caught nor ignored, ends it (by KILL, which takes the whole container along), and the
//! outcome names the signal that was meant.

use std::fs;
use std::os::fd::OwnedFd;

use nix::libc;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process we are the reaper of.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pid: i32,
    /// `None` when it had ended, and was reaped, before we learned its number.
    pidfd: Option<OwnedFd>,
    /// The signal in whose name it was killed.
    pub(super) meant: Option<i32>,
}

impl Job {
    /// Takes hold of a process that is not reaped yet; `None` if there is none.
    pub(super) fn hold(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd: Some(pidfd), meant: None })
    }

    /// A process that was reaped already.
    pub(super) fn ended(pid: i32) -> Self {
        Self { pid, pidfd: None, meant: None }
    }

    /// Delivers a signal with its ordinary meaning.
    pub(super) fn signal(&mut self, number: i32) {
        if ends_by_default(number) && !self.handles(number) {
            self.meant = self.meant.or(Some(number));
            self.send(libc::SIGKILL);
        } else {
            self.send(number);
        }
    }

    /// Ends it and everything of its container.
    pub(super) fn kill(&mut self) {
        self.send(libc::SIGKILL);
    }

    fn send(&self, number: i32) {
        // A pidfd: the process may have ended, its number may be somebody else's.
        if let (Some(signal), Some(pidfd)) = (Signal::from_named_raw(number), &self.pidfd) {
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }

    /// Whether it catches or ignores the signal (proc_pid_status(5): bit n-1 of SigCgt, SigIgn).
    pub(super) fn handles(&self, number: i32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        handles_in(&status, number)
    }
}

fn handles_in(status: &str, number: i32) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    let bit = u32::try_from(number - 1).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0);
    (mask("SigCgt") | mask("SigIgn")) & bit != 0
}

/// signal(7): all but these terminate by default.
fn ends_by_default(number: i32) -> bool {
    !matches!(
        number,
        libc::SIGCHLD
            | libc::SIGCONT
            | libc::SIGURG
            | libc::SIGWINCH
            | libc::SIGSTOP
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGKILL
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_by_bit() {
        let status =
            "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert!(handles_in(status, libc::SIGTERM), "caught");
        assert!(handles_in(status, libc::SIGHUP), "ignored");
        assert!(!handles_in(status, libc::SIGINT));
        assert!(!handles_in("", libc::SIGTERM));
    }

    #[test]
    fn only_terminating_signals_become_kills() {
        assert!(ends_by_default(libc::SIGTERM) && ends_by_default(libc::SIGUSR1));
        assert!(!ends_by_default(libc::SIGCONT) && !ends_by_default(libc::SIGWINCH));
    }
}
