//! `run`: makes a run, starts it, streams its output, ends with its exit code.

use crate::REFUSED;
use crate::control;
use crate::given::Given;
use crate::memory::Buffer;
use crate::place::Place;
use crate::plan::help;
use crate::pump::{CHUNK, Pump};
use crate::signals::Signals;
use crate::sys::{
    self, Errno, O_DIRECTORY, O_NONBLOCK, O_PATH, O_RDWR, O_TRUNC, O_WRONLY, POLLIN, PollFd,
};
use crate::text::{Line, complain};
use crate::watch::{OUTPUT_PACE, Pace, Run, State};
use crate::words::{Options, Words};

/// Names that are tried: two containers may have the same pid in the same second, a hundred may not.
const MAX_NAMES: u64 = 100;

/// Pause before stdin that the job did not take yet is offered again.
const STDIN_PAUSE: u32 = 2;

pub(crate) fn run(place: &Place, words: Words<'_>) -> i32 {
    let options = match words.options() {
        Ok(options) => options,
        Err(reason) => return complain(&[reason.as_bytes()]),
    };
    words.reveal(place, &options);
    if options.help {
        return help(place);
    }
    // Before there is a run: a file that cannot be read leaves no trace.
    let given = match Given::take(&words, &options) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let (folder, name) = match create(place) {
        Ok(created) => created,
        Err(Errno::EACCES) => return complain(&[b"you may not run this job: its runs/ belongs to a group"]),
        Err(errno) => return complain(&[b"cannot create a run: ", errno.words()]),
    };
    let started = write_arguments(folder, &given).and_then(|()| start(folder, &options));
    let stdin = options.stdin;
    // Our copies of the arguments are not needed any more.
    drop(given);
    drop(words);
    match started {
        Ok(ctl) => attend(folder, ctl, stdin),
        Err(code) => {
            // It never ran and its reason was printed: nobody wants it in the list.
            let _ = sys::remove_dir(place.folder(), name.bytes());
            code
        }
    }
}

/// `runs/r-<seconds>-<pid>[-n]`: unique enough, sorted by time, and mkdir decides.
fn create(place: &Place) -> Result<(i32, Line), Errno> {
    let (now, pid) = (sys::now(), sys::pid());
    let mut result = Err(Errno::EEXIST);
    for attempt in 0..MAX_NAMES {
        let mut name = Line::new();
        name.push(b"runs/r-");
        name.push_number(now);
        name.push(b"-");
        name.push_number(pid);
        if attempt > 0 {
            name.push(b"-");
            name.push_number(attempt);
        }
        result = sys::make_dir(place.folder(), name.bytes())
            .and_then(|()| place.open(name.bytes(), O_PATH | O_DIRECTORY))
            .map(|folder| (folder, name));
        if !matches!(result, Err(Errno::EEXIST)) {
            break;
        }
    }
    result
}

/// Writes args.json; on failure the reason is printed and the exit code returned.
fn write_arguments(folder: i32, given: &Given) -> Result<(), i32> {
    let cannot = |errno: Errno| complain(&[b"cannot write args.json: ", errno.words()]);
    let file = sys::open(folder, b"args.json", O_WRONLY | O_TRUNC).map_err(cannot)?;
    let written = write_whole(file, given.bytes()).map_err(cannot);
    sys::close(file);
    written
}

fn write_whole(to: i32, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = sys::write(to, bytes)?;
        bytes = bytes.get(written..).filter(|_| written > 0).ok_or(Errno::EINVAL)?;
    }
    Ok(())
}

/// Opens the run's ctl and starts it; on refusal the reply is printed and the exit code returned.
fn start(folder: i32, options: &Options<'_>) -> Result<i32, i32> {
    let ctl = sys::open(folder, b"ctl", O_RDWR)
        .map_err(|errno| complain(&[b"cannot open the ctl of the run: ", errno.words()]))?;
    let mut line = Line::new();
    line.push(b"start");
    if let Some(profile) = options.profile {
        line.push(b" profile=");
        line.push(profile);
    }
    if let Some(limits) = options.limits {
        line.push(b" limits=");
        line.push(limits);
    }
    line.push(if options.stdin { b" stdin\n" } else { b"\n" });
    match control::say(ctl, line.bytes()) {
        Ok(()) => Ok(ctl),
        Err(errno) if control::reply(ctl, 2) == 0 => Err(match Run::open(folder) {
            Ok(run) => run.explain(errno.words()),
            Err(_) => complain(&[b"refused: ", errno.words()]),
        }),
        Err(_) => Err(REFUSED),
    }
}

/// From the start to the end: output, stdin, signals.
fn attend(folder: i32, ctl: i32, stdin: bool) -> i32 {
    match stream(folder, ctl, stdin) {
        Ok(code) => code,
        Err(errno) => complain(&[b"lost sight of the run, which may go on: ", errno.words()]),
    }
}

fn stream(folder: i32, ctl: i32, stdin: bool) -> Result<i32, Errno> {
    let mut signals = Signals::take(ctl)?;
    let run = Run::open(folder)?;
    let mut streams = [Pump::open(folder, b"stdout", 1)?, Pump::open(folder, b"stderr", 2)?];
    let mut input = if stdin { Some(Input::open(folder, ctl)?) } else { None };
    let mut buffer = Buffer::new(CHUNK)?;
    let mut pace = Pace::new(&run, OUTPUT_PACE);
    loop {
        // Before the output: what is there when the state says "ended" is all there will be.
        let state = run.state()?;
        let mut moved = false;
        for stream in &mut streams {
            moved |= stream.step(&mut buffer, Some(&mut signals))?;
        }
        if state != State::Live && (!moved || signals.impatient()) {
            let stopped = signals.code().filter(|_| state == State::Canceled);
            return Ok(stopped.unwrap_or_else(|| run.code(state)));
        }
        let mut others = [PollFd::new(signals.fd(), POLLIN), PollFd::new(-1, 0)];
        let mut waiting = false;
        if let Some(input) = &mut input {
            moved |= input.offer();
            others[1] = PollFd::new(input.wanted(), POLLIN);
            waiting = input.is_pending();
        }
        pace.note(moved);
        match (moved, waiting) {
            // The job did not take what we hold: neither its state nor our stdin tells when it will.
            (false, true) => pace.wait_at_most(STDIN_PAUSE, &mut others),
            (true, _) => pace.wait_at_most(0, &mut others),
            (false, false) => pace.wait(&mut others),
        }
        if others[0].revents != 0 {
            signals.obey();
        }
        if let Some(input) = input.as_mut().filter(|_| others[1].revents != 0) {
            input.fetch();
            pace.note(true);
        }
    }
}

/// Our stdin to the run's `stdin` file.
struct Input {
    to: i32,
    ctl: i32,
    buffer: Buffer,
    start: usize,
    end: usize,
    done: bool,
}

impl Input {
    fn open(folder: i32, ctl: i32) -> Result<Self, Errno> {
        let to = sys::open(folder, b"stdin", O_WRONLY | O_NONBLOCK)?;
        Ok(Self { to, ctl, buffer: Buffer::new(CHUNK)?, start: 0, end: 0, done: false })
    }

    fn is_pending(&self) -> bool {
        !self.done && self.start < self.end
    }

    /// The descriptor whose data we could take now, or -1.
    fn wanted(&self) -> i32 {
        if self.done || self.is_pending() { -1 } else { 0 }
    }

    /// Takes from our stdin, which polled ready; its end is told to the run.
    fn fetch(&mut self) {
        match sys::read(0, &mut self.buffer) {
            Ok(0) => self.finish(),
            Ok(len) => (self.start, self.end) = (0, len),
            Err(Errno::EAGAIN) => {}
            Err(_) => self.finish(),
        }
    }

    fn finish(&mut self) {
        self.done = true;
        let _ = control::say(self.ctl, b"eof\n");
    }

    /// Offers what is held; whether any of it was taken. EAGAIN is "not now", any other error "never again": the
    /// job has closed its stdin or ended.
    fn offer(&mut self) -> bool {
        if !self.is_pending() {
            return false;
        }
        match sys::write(self.to, self.buffer.get(self.start..self.end).unwrap_or_default()) {
            Ok(0) | Err(Errno::EAGAIN | Errno::ETIMEDOUT) => false,
            Ok(written) => {
                self.start += written;
                true
            }
            Err(_) => {
                self.done = true;
                true
            }
        }
    }
}
