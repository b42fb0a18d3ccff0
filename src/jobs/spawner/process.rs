//! Which process is meant: a pid with its start time, because a pid alone may be reused.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process for all time of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub start_ticks: u64,
}

/// The identity of a process that exists now, zombie or not.
pub fn identity_of(pid: i32) -> io::Result<Identity> {
    let (_, start_ticks) = state_and_start(pid)?;
    Ok(Identity { pid, start_ticks })
}

/// Whether that very process still runs; a zombie does not.
pub fn is_alive(process: Identity) -> bool {
    state_and_start(process.pid)
        .is_ok_and(|(state, start)| start == process.start_ticks && !matches!(state, b'Z' | b'X'))
}

/// Comes back when the process of a pidfd has ended (it may be a zombie).
///
/// # Errors
/// No room in the runtime's reactor.
#[allow(unsafe_code)] // tokio's registration of a descriptor is unsafe: it must stay open while registered.
pub(in crate::jobs) async fn exited(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: the OwnedFd is moved into the AsyncFd, which deregisters it before it closes it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    pidfd.readable().await.map(drop)
}

/// The parent of a process.
pub(in crate::jobs) fn parent_of(pid: i32) -> io::Result<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    after_name(&stat)
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse().ok()) // field 4
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc stat line"))
}

fn state_and_start(pid: i32) -> io::Result<(u8, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc stat line"))
}

/// Field 3 and what follows. The name (field 2) stands in parentheses and may hold anything, so fields are counted from
/// the last `)`.
fn after_name(stat: &[u8]) -> Option<&str> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    std::str::from_utf8(stat.get(end + 1..)?).ok()
}

fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let mut fields = after_name(stat)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?; // field 3
    let start = fields.nth(18)?.parse().ok()?; // field 22
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_does_not_shift_fields() {
        let line = b"77 (a) b) 5 S) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 99";
        assert_eq!(parse_stat(line), Some((b'Z', 4242)));
        assert_eq!(parse_stat(b"77 (a"), None);
    }

    #[test]
    fn we_live_and_a_reused_pid_is_another() {
        let us = identity_of(std::process::id() as i32).unwrap();
        assert!(is_alive(us));
        assert_eq!(parent_of(us.pid).unwrap(), nix::unistd::getppid().as_raw());
        assert!(!is_alive(Identity { start_ticks: us.start_ticks + 1, ..us }));
    }
}
