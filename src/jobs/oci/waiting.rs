//! Waiting for a process that is not our child.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::sweep::alive;
use crate::jobs::executor::ShimId;
use crate::jobs::spawner::exited;

/// The shim's process, if it is that one and lives.
fn pidfd(shim: &ShimId) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(shim.pid)?, PidfdFlags::NONBLOCK).ok()?;
    // Checked after opening: from here on the number cannot become somebody else's.
    alive(shim).then_some(fd)
}

/// Returns when the shim is gone.
pub(super) async fn wait_gone(shim: &ShimId) {
    let Some(fd) = pidfd(shim) else { return };
    if exited(fd).await.is_err() {
        // No room in the reactor: look from time to time.
        while alive(shim) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The same for a thread that may block, for at most `limit`.
pub(super) fn wait_blocking(shim: &ShimId, limit: Duration) -> Result<(), String> {
    let Some(fd) = pidfd(shim) else { return Ok(()) };
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now()).try_into().ok();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err(format!("no end after {} s", limit.as_secs())),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}
