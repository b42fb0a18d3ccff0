//! The daemon's end of a run's standard input: a FIFO in the run's folder, opened for reading and writing so that
//! opening never waits and a full pipe shows as "would block", not as a stuck thread.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, watch};

use super::error::JobError;
use super::executor::STDIN_FIFO;
use super::state::RunState;

/// The writing end, opened at the first write.
#[derive(Default)]
pub(super) struct Stdin(Mutex<End>);

#[derive(Default)]
enum End {
    #[default]
    Unopened,
    Open(pipe::Sender),
    Ended,
}

impl Stdin {
    /// Makes the FIFO.
    pub(super) fn make(run_dir: &Path) -> Result<(), JobError> {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        match nix::unistd::mkfifo(&run_dir.join(STDIN_FIFO), mode) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
            Err(e) => Err(JobError::Internal(format!("the stdin of the run cannot be made: {e}"))),
        }
    }

    /// Writes what fits until the deadline; at least one byte, or an error.
    pub(super) async fn write(
        &self,
        run_dir: &Path,
        data: &[u8],
        mut state: watch::Receiver<RunState>,
        deadline: Duration,
    ) -> Result<usize, JobError> {
        let trouble = |e| JobError::Internal(format!("the standard input of the run: {e}"));
        let mut end = self.0.lock().await;
        if matches!(*end, End::Unopened) {
            let mut options = pipe::OpenOptions::new();
            *end =
                End::Open(options.read_write(true).open_sender(run_dir.join(STDIN_FIFO)).map_err(trouble)?);
        }
        let End::Open(sender) = &mut *end else {
            return Err(JobError::Busy("the standard input of the run was ended".into()));
        };
        tokio::select! {
            biased;
            _ = state.wait_for(|s| s.is_final()) => {
                Err(JobError::Busy("the run has ended; nobody reads its standard input".into()))
            }
            written = sender.write(data) => written.map_err(trouble),
            () = tokio::time::sleep(deadline) => {
                Err(JobError::Again("the job does not read its standard input now".into()))
            }
        }
    }

    /// Closes the daemon's end for good. Waits for a write that is under way: what was accepted arrives first.
    pub(super) async fn end(&self) {
        *self.0.lock().await = End::Ended;
    }
}
