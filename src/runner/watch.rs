//! A run's `state`: waiting for its end, and the exit code that follows from it. The verbs `wait` and `follow`.

use crate::REFUSED;
use crate::memory::Buffer;
use crate::place::Place;
use crate::pump::{CHUNK, Pump};
use crate::sys::{self, Errno, O_RDONLY, POLLIN, POLLPRI, PollFd};
use crate::text::{complain, exit_code, trimmed};

/// As `timeout(1)`.
const TIMED_OUT: i32 = 124;

/// A canceled job that left no code of its own ended as if by TERM.
const CANCELED: i32 = 128 + 15;

/// The mount shows a file unchanged while somebody reads it, for two seconds at most; a little more than that.
const STILL_TRIES: u32 = 50;
const STILL_PAUSE: u32 = 50;

/// The folder of a run.
pub(crate) struct Run {
    folder: i32,
    state: i32,
}

/// What `state` says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// created, queued, running.
    Live,
    Succeeded,
    Failed,
    Canceled,
    Timeout,
    Lost,
}

impl Run {
    pub(crate) fn open(folder: i32) -> Result<Self, Errno> {
        Ok(Self { folder, state: sys::open(folder, b"state", O_RDONLY)? })
    }

    /// Reads the state. A deadline of the daemon is no state: it is asked again.
    pub(crate) fn state(&self) -> Result<State, Errno> {
        let mut word = [0u8; 32];
        let len = match sys::read_at(self.state, &mut word, 0) {
            Err(Errno::ETIMEDOUT | Errno::EAGAIN) => return Ok(State::Live),
            result => result?,
        };
        Ok(match trimmed(word.get(..len).unwrap_or_default()) {
            b"succeeded" => State::Succeeded,
            b"failed" => State::Failed,
            b"canceled" => State::Canceled,
            b"timeout" => State::Timeout,
            b"lost" => State::Lost,
            _ => State::Live,
        })
    }

    /// The exit code of an ended run, by its state and its `exit_code`; prints why where no code tells it.
    pub(crate) fn code(&self, state: State) -> i32 {
        let own = self.own_code();
        match state {
            State::Live | State::Succeeded => own.unwrap_or(0),
            State::Canceled => own.filter(|code| *code != 0).unwrap_or(CANCELED),
            State::Failed => {
                let code = own.filter(|code| *code != 0).unwrap_or(REFUSED);
                // 125 to 127 may be addonfs or the runtime speaking, and not the job: then there are words.
                if (REFUSED..=127).contains(&code) {
                    self.explain(b"the run failed");
                }
                code
            }
            State::Timeout => {
                self.explain(b"the run was stopped at its timeout");
                TIMED_OUT
            }
            State::Lost => self.explain(b"the run was lost: what became of the job is not known"),
        }
    }

    /// An ended run has an exit code; a file that shows none yet is held still by another reader, for a moment.
    fn own_code(&self) -> Option<i32> {
        for _ in 0..STILL_TRIES {
            let mut text = [0u8; 16];
            let file = sys::open(self.folder, b"exit_code", O_RDONLY).ok()?;
            let len = sys::read_at(file, &mut text, 0);
            sys::close(file);
            let text = text.get(..len.ok()?)?;
            if !trimmed(text).is_empty() {
                return exit_code(text);
            }
            sys::poll(&mut [], Some(STILL_PAUSE));
        }
        None
    }

    /// Prints `last_error`, or these words if it is empty.
    pub(crate) fn explain(&self, otherwise: &[u8]) -> i32 {
        let mut words = [0u8; 4096];
        let len = sys::open(self.folder, b"last_error", O_RDONLY)
            .and_then(|file| sys::read_at(file, &mut words, 0))
            .unwrap_or(0);
        match trimmed(words.get(..len).unwrap_or_default()) {
            b"" => complain(&[otherwise]),
            words => {
                sys::write_all(2, b"addonfs: ");
                sys::write_all(2, words);
                sys::write_all(2, b"\n");
                REFUSED
            }
        }
    }
}

/// How long to wait before looking again: short while things happen, longer when not.
pub(crate) struct Pace {
    state: i32,
    millis: u32,
    most: u32,
    /// The last wait ended by the state's descriptor and nothing had changed: a file system without poll answers
    /// "ready" at once and always. The next wait then goes by the clock alone.
    idle_wake: bool,
    woken: bool,
}

impl Pace {
    pub(crate) fn new(run: &Run, most: u32) -> Self {
        Self { state: run.state, millis: 1, most, idle_wake: false, woken: false }
    }

    /// Tells whether anything happened since the last wait.
    pub(crate) fn note(&mut self, happened: bool) {
        self.idle_wake = self.woken && !happened;
        self.millis = if happened { 1 } else { (self.millis * 2).min(self.most) };
    }

    /// Waits for a change of state, for one of `others`, or for the time to pass.
    pub(crate) fn wait(&mut self, others: &mut [PollFd; 2]) {
        self.wait_at_most(self.millis, others);
    }

    /// The same, with an upper limit of its own.
    pub(crate) fn wait_at_most(&mut self, millis: u32, others: &mut [PollFd; 2]) {
        let state = if self.idle_wake { -1 } else { self.state };
        let mut fds = [PollFd::new(state, POLLIN | POLLPRI), others[0], others[1]];
        self.woken = sys::poll(&mut fds, Some(millis.min(self.millis))) && fds[0].revents != 0;
        *others = [fds[1], fds[2]];
    }
}

/// Nothing to poll beside the state.
const NO_OTHERS: [PollFd; 2] = [PollFd { fd: -1, events: 0, revents: 0 }; 2];

/// Longest pause between two looks of `wait`, for file systems that do not wake it: nobody sees 50 ms here.
const WAIT_PACE: u32 = 50;

/// Longest pause of `run` and `follow` between two looks at the output.
pub(crate) const OUTPUT_PACE: u32 = 20;

/// `wait`: returns when the run ends, with its exit code.
pub(crate) fn wait(place: &Place) -> i32 {
    let run = match Run::open(place.folder()) {
        Ok(run) => run,
        Err(errno) => return complain(&[b"cannot open the state of the run: ", errno.words()]),
    };
    let mut pace = Pace::new(&run, WAIT_PACE);
    loop {
        match run.state() {
            Ok(State::Live) => {}
            Ok(state) => return run.code(state),
            Err(errno) => return complain(&[b"lost sight of the run: ", errno.words()]),
        }
        pace.note(false);
        pace.wait(&mut NO_OTHERS.clone());
    }
}

/// `follow`: prints the log as it grows, until the run ends.
pub(crate) fn follow(place: &Place) -> i32 {
    match follow_run(place) {
        Ok(()) => 0,
        Err(errno) => complain(&[b"lost sight of the run: ", errno.words()]),
    }
}

fn follow_run(place: &Place) -> Result<(), Errno> {
    let run = Run::open(place.folder())?;
    let mut streams = [Pump::open(run.folder, b"stdout", 1)?, Pump::open(run.folder, b"stderr", 2)?];
    let mut buffer = Buffer::new(CHUNK)?;
    let mut pace = Pace::new(&run, OUTPUT_PACE);
    loop {
        // Before the output: what is there when the state says "ended" is all there will be.
        let ended = run.state()? != State::Live;
        let mut moved = false;
        for stream in &mut streams {
            moved |= stream.step(&mut buffer, None)?;
        }
        if moved {
            pace.note(true);
            continue;
        }
        if ended {
            return Ok(());
        }
        pace.note(false);
        pace.wait(&mut NO_OTHERS.clone());
    }
}
