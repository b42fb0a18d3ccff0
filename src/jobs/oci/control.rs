//! Commands for a live shim: lines in a named pipe of the run's folder, so that any later daemon can write them.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode as FileMode;
use nix::unistd::mkfifo;
use rustix::fs::{Mode, OFlags, open};

use super::launch::CONTROL;
use crate::jobs::executor::Stop;

/// How long a full pipe is retried: 64 KiB of unread commands mean a shim that is stopped or stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The line of a command.
fn line(stop: Stop) -> String {
    match stop {
        Stop::Cancel => "cancel\n".to_owned(),
        Stop::Signal(number) => format!("signal {number}\n"),
        Stop::Eof => "eof\n".to_owned(),
    }
}

/// The command of a line (without its end).
pub(super) fn parse(line: &str) -> Option<Stop> {
    match line.split_once(' ') {
        Some(("signal", number)) => number.parse().ok().filter(|n| (1..=64).contains(n)).map(Stop::Signal),
        None if line == "cancel" => Some(Stop::Cancel),
        None if line == "eof" => Some(Stop::Eof),
        _ => None,
    }
}

/// Makes a named pipe in the run's folder, or takes one that is there.
pub(super) fn make_pipe(path: &Path) -> std::io::Result<()> {
    match mkfifo(path, FileMode::from_bits_truncate(0o600)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Writes a command to the shim of this run. Commands are shorter than PIPE_BUF, so lines of two writers never mix.
pub(super) fn send(run_dir: &Path, stop: Stop) -> Result<(), String> {
    let path = run_dir.join(CONTROL);
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = match open(&path, flags, Mode::empty()) {
        Ok(pipe) => pipe,
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NOENT) => return Err("the run has ended".to_owned()),
        Err(e) => return Err(format!("cannot open {}: {e}", path.display())),
    };
    let until = Instant::now() + WRITE_TIMEOUT;
    loop {
        match rustix::io::write(&pipe, line(stop).as_bytes()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(e) => return Err(format!("cannot write to {}: {e}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_commands_and_nonsense_does_not() {
        for stop in [Stop::Cancel, Stop::Eof, Stop::Signal(15)] {
            assert_eq!(parse(line(stop).trim_end()), Some(stop));
        }
        for nonsense in ["", "cancel now", "signal", "signal 0", "signal 65", "signal x", "signal -9", "kill"]
        {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }
}
