//! From the start of the runtime to the end of the job: one loop, one thread, no waiting without a deadline.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use super::job::Job;
use super::output::Output;
use crate::jobs::executor::{Cause, LaunchSpec, Stop};
use crate::jobs::oci::cgroup::Cgroups;
use crate::jobs::oci::control;

/// How long a runtime may take to start a container. The job's program is read through the mount meanwhile, each
/// read of which has a deadline of its own.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long the runtime may go on starting a job that is to be stopped already.
const STOPPED_START_LIMIT: Duration = Duration::from_secs(5);
/// How often a stopping job is looked at again: a handler that was there may be gone (the runtime's own, before it
/// became the job).
const STOPPING_TICK: Duration = Duration::from_millis(50);
/// How long a killed container may take to disappear before we give up on it (a process stuck in the kernel).
const KILLED_LIMIT: Duration = Duration::from_secs(30);
/// How long the pipes may stay open after the job's end; nothing of the container is left by then.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Most signals kept for a job that is not there yet.
const EARLY_MAX: usize = 64;
/// Longest command line.
const LINE_MAX: usize = 4096;

/// What the loop watches and drives.
pub(super) struct Supervisor<'a> {
    pub(super) spec: &'a LaunchSpec,
    pub(super) cgroups: &'a Cgroups,
    pub(super) group: Option<&'a str>,
    pub(super) signals: SignalFd,
    pub(super) control: File,
    /// Our writing end of the job's stdin, until `eof`.
    pub(super) stdin: Option<File>,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    /// The runtime's process and the file it writes the job's pid to.
    pub(super) runtime: i32,
    pub(super) pid_file: PathBuf,
    /// Told the job's process as soon as it is known.
    pub(super) on_start: &'a mut dyn FnMut(i32),
}

/// How it went.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) cause: Cause,
    /// (exit code, signal) of the job, if it ran.
    pub(super) status: Option<(Option<i32>, Option<i32>)>,
    pub(super) started_ms: Option<u64>,
    pub(super) ended_ms: u64,
    /// The runtime ended without a job.
    pub(super) refused: bool,
    /// Words, if something is to be said.
    pub(super) message: Option<String>,
}

#[derive(Debug)]
struct Progress {
    begun: Instant,
    job: Option<Job>,
    started_ms: Option<u64>,
    started: Option<Instant>,
    /// Statuses of reaped processes: the job may end before we know its number.
    reaped: HashMap<i32, WaitStatus>,
    runtime_ended: bool,
    refused: bool,
    stop: Option<(Cause, Instant)>,
    killed: Option<Instant>,
    /// Signals for a job that is not there yet: it may have spoken already when the runtime is still ending.
    early: Vec<i32>,
    line: Vec<u8>,
}

impl Supervisor<'_> {
    /// Runs until the job has ended or was never started.
    pub(super) fn run(&mut self) -> Ended {
        let mut p = Progress {
            begun: Instant::now(),
            job: None,
            started_ms: None,
            started: None,
            reaped: HashMap::new(),
            runtime_ended: false,
            refused: false,
            stop: None,
            killed: None,
            early: Vec::new(),
            line: Vec::new(),
        };
        let (status, gave_up) = loop {
            self.watch(&mut p);
            if let Some(status) = p.job.as_ref().and_then(|job| p.reaped.get(&job.pid).copied()) {
                break (Some(status), false);
            }
            if p.refused {
                break (None, false);
            }
            if p.killed.is_some_and(|at| at.elapsed() > KILLED_LIMIT) {
                break (None, true);
            }
            self.look_at_clock(&mut p);
        };
        let ended_ms = now_ms();
        self.drain(p.refused);
        self.ended(p, status, gave_up, ended_ms)
    }

    fn ended(&self, p: Progress, status: Option<WaitStatus>, gave_up: bool, ended_ms: u64) -> Ended {
        let meant = p.job.as_ref().and_then(|job| job.meant);
        let status = match status {
            Some(WaitStatus::Exited(_, code)) => Some((Some(code), None)),
            Some(WaitStatus::Signaled(_, signal, _)) => {
                let signal = meant.unwrap_or(signal as i32);
                Some((Some(128 + signal), Some(signal)))
            }
            _ => None,
        };
        let cause = match (&p.stop, p.refused) {
            (Some((cause, _)), _) => *cause,
            (None, true) => Cause::Refused,
            (None, false) => Cause::Exited,
        };
        let message = gave_up.then(|| {
            let seconds = KILLED_LIMIT.as_secs();
            format!("killed, but still there after {seconds} s: a process of it is stuck in the kernel")
        });
        Ended { cause, status, started_ms: p.started_ms, ended_ms, refused: p.refused, message }
    }

    /// Waits for the next thing to happen and takes it in.
    fn watch(&mut self, p: &mut Progress) {
        let timeout = self.next_look(p).saturating_duration_since(Instant::now());
        let timeout = timeout.try_into().ok();
        let [signals, control, stdout, stderr] = {
            let (stdout, stderr) = (self.stdout.source(), self.stderr.source());
            let mut fds =
                vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.control, PollFlags::IN)];
            let mut place = |source: Option<_>| {
                fds.push(PollFd::new(source?, PollFlags::IN));
                Some(fds.len() - 1)
            };
            let stdout = place(stdout);
            // Until the runtime has ended, standard error is its own too: what it says there is not the job's.
            let stderr = place(stderr.filter(|_| p.runtime_ended));
            if poll(&mut fds, timeout.as_ref()).is_err() {
                return;
            }
            let ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
            [ready(0), ready(1), stdout.is_some_and(ready), stderr.is_some_and(ready)]
        };
        if stdout {
            self.stdout.take_some();
        }
        if stderr {
            self.stderr.take_some();
        }
        if signals {
            self.take_signals(p);
        }
        if control {
            self.take_commands(p);
        }
    }

    fn next_look(&self, p: &Progress) -> Instant {
        let far = p.begun + Duration::from_secs(3600 * 24 * 365);
        let limit = match p.started {
            Some(started) => self.timeout().map(|t| started + t),
            None => Some(p.begun + START_LIMIT),
        };
        let tick = (p.stop.is_some() || p.killed.is_some()).then(|| Instant::now() + STOPPING_TICK);
        [limit.filter(|_| p.stop.is_none()), tick].into_iter().flatten().min().unwrap_or(far)
    }

    fn timeout(&self) -> Option<Duration> {
        self.spec.timeout_ms.map(Duration::from_millis)
    }

    fn look_at_clock(&mut self, p: &mut Progress) {
        let now = Instant::now();
        if p.stop.is_none() {
            let over = |since: Option<Instant>, limit: Option<Duration>| {
                since.zip(limit).is_some_and(|(since, limit)| now >= since + limit)
            };
            if over(p.started, self.timeout()) || (p.started.is_none() && now >= p.begun + START_LIMIT) {
                self.stop(p, Cause::Timeout);
            }
        }
        let Some((_, kill_at)) = p.stop else { return };
        match p.job.as_mut() {
            // The container is not up: the runtime is let finish, for a while, and then the job is told.
            None if now >= kill_at || now >= p.begun + STOPPED_START_LIMIT => self.kill(p),
            None => {}
            Some(job) if p.killed.is_none() && !job.handles(libc::SIGTERM) => {
                job.signal(libc::SIGTERM);
                p.killed = Some(now);
            }
            Some(_) if now >= kill_at => self.kill(p),
            Some(_) => {}
        }
    }

    /// TERM now, KILL after the grace period.
    fn stop(&mut self, p: &mut Progress, cause: Cause) {
        if p.stop.is_some() {
            return;
        }
        p.stop = Some((cause, Instant::now() + Duration::from_millis(self.spec.grace_ms)));
        if let Some(job) = p.job.as_mut() {
            job.signal(libc::SIGTERM);
        }
    }

    fn kill(&mut self, p: &mut Progress) {
        p.killed = p.killed.or_else(|| Some(Instant::now()));
        if let Some(job) = p.job.as_mut() {
            job.kill();
        }
        if !p.runtime_ended {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.runtime), Signal::SIGKILL);
        }
        if let Some(group) = self.group {
            self.cgroups.kill(group);
        }
    }

    fn take_signals(&mut self, p: &mut Progress) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo) {
                Ok(libc::SIGCHLD) => {}
                // The machine goes down, or somebody means us: the job is stopped properly.
                _ => self.stop(p, Cause::Canceled),
            }
        }
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            if pid.as_raw() == self.runtime {
                self.runtime_ended(p, status);
            } else {
                p.reaped.insert(pid.as_raw(), status);
            }
        }
    }

    fn runtime_ended(&mut self, p: &mut Progress, status: WaitStatus) {
        p.runtime_ended = true;
        let pid = fs::read_to_string(&self.pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let started = matches!(status, WaitStatus::Exited(_, 0));
        // A job of a millisecond may be reaped by now: its status is known, its number is nobody's.
        let take = |pid| if p.reaped.contains_key(&pid) { Some(Job::ended(pid)) } else { Job::hold(pid) };
        match pid.filter(|_| started).and_then(take) {
            Some(job) => {
                (self.on_start)(job.pid);
                p.job = Some(job);
                p.started = Some(Instant::now());
                p.started_ms = Some(now_ms());
                let term = p.stop.is_some().then_some(libc::SIGTERM);
                for number in p.early.drain(..).chain(term) {
                    if let Some(job) = p.job.as_mut() {
                        job.signal(number);
                    }
                }
            }
            None => {
                // A runtime that was killed in the middle leaves what it forked to us, and no number of it.
                kill_children();
                p.refused = true;
            }
        }
    }

    fn take_commands(&mut self, p: &mut Progress) {
        let mut piece = [0; 512];
        while let Ok(n) = self.control.read(&mut piece) {
            if n == 0 {
                break;
            }
            p.line.extend_from_slice(piece.get(..n).unwrap_or_default());
        }
        while let Some(end) = p.line.iter().position(|&b| b == b'\n') {
            let rest = p.line.split_off(end + 1);
            let line = std::mem::replace(&mut p.line, rest);
            let line = String::from_utf8_lossy(&line);
            match control::parse(line.trim_end()) {
                Some(Stop::Cancel) => self.stop(p, Cause::Canceled),
                Some(Stop::Signal(number)) if p.job.is_none() => {
                    p.early.push(number);
                    p.early.truncate(EARLY_MAX);
                }
                Some(Stop::Signal(libc::SIGKILL)) => self.kill(p),
                Some(Stop::Signal(number)) => {
                    if let Some(job) = p.job.as_mut() {
                        job.signal(number);
                    }
                }
                Some(Stop::Eof) => self.stdin = None,
                None => {}
            }
        }
        p.line.truncate(LINE_MAX);
    }

    /// Reads what is left in the pipes. All of the container is dead, so their ends come at once.
    fn drain(&mut self, refused: bool) {
        if refused {
            self.stderr.discard();
        }
        let until = Instant::now() + DRAIN_LIMIT;
        for output in [&mut self.stdout, &mut self.stderr] {
            while output.wait(until) {
                output.take_some();
            }
            output.end();
        }
    }
}

/// Kills every child of this process: here that is what is left of a container, and the network tool, which the end
/// of the run ends anyway.
fn kill_children() {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Milliseconds since 1970.
pub(in crate::jobs::oci) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
