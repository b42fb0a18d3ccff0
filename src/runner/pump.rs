//! A growing file of a run to a descriptor of ours.

use crate::memory::Buffer;
use crate::signals::Signals;
use crate::sys::{self, Errno, O_RDONLY, POLLIN, POLLOUT, PollFd};

/// Bytes of one read: what the kernel asks FUSE for at once.
pub(crate) const CHUNK: usize = 128 << 10;

/// A pipe that polls writable takes this much without blocking (PIPE_BUF).
const PIECE: usize = 4096;

/// One stream.
pub(crate) struct Pump {
    from: i32,
    offset: u64,
    to: i32,
    open: bool,
}

impl Pump {
    /// Opens `name` in the run's folder.
    pub(crate) fn open(folder: i32, name: &[u8], to: i32) -> Result<Self, Errno> {
        Ok(Self { from: sys::open(folder, name, O_RDONLY)?, offset: 0, to, open: true })
    }

    /// Copies what is there, at most one chunk; whether there was anything. Never waits for the file, and for the
    /// descriptor only while no signal asks for more haste.
    pub(crate) fn step(&mut self, buffer: &mut Buffer, signals: Option<&mut Signals>) -> Result<bool, Errno> {
        let len = sys::read_at(self.from, buffer, self.offset)?;
        self.offset += len as u64;
        if self.open {
            self.open = pass(self.to, buffer.get(..len).unwrap_or_default(), signals);
        }
        Ok(len > 0)
    }
}

/// Writes everything; false if nobody reads any more.
fn pass(to: i32, mut bytes: &[u8], signals: Option<&mut Signals>) -> bool {
    let Some(signals) = signals else { return sys::write_all(to, bytes) };
    while !bytes.is_empty() && !signals.impatient() {
        let mut fds = [PollFd::new(to, POLLOUT), PollFd::new(signals.fd(), POLLIN)];
        sys::poll(&mut fds, None);
        if fds[1].revents != 0 {
            signals.obey();
        }
        if fds[0].revents == 0 || signals.impatient() {
            continue;
        }
        match sys::write(to, bytes.get(..PIECE.min(bytes.len())).unwrap_or_default()) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EAGAIN) => {}
            Err(_) => {
                signals.pipe_closed();
                return false;
            }
        }
    }
    true
}
