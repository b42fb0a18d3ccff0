//! One daemon a state directory.
//!
//! The lock is a `flock` on `<state>/lock`; the holder takes it and every daemon inherits the open file, so it is
//! free exactly when all of them are gone. The file names who holds it, for the message to whoever comes second.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

/// The lock of a state directory, held while it lives.
#[derive(Debug)]
pub(crate) struct StateLock(File);

impl StateLock {
    /// Takes the lock, making the directory if need be.
    pub(crate) fn take(state: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .with_context(|| format!("cannot make the state directory {}", state.display()))?;
        let path = state.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            let (state, holder) = (state.display(), holder.trim().to_owned());
            anyhow::bail!(
                "the state directory {state} is in use by another addonfs ({holder}): unmount that one first, \
                 or give this one its own with --state-dir and --cache-dir"
            );
        }
        file.set_len(0)?;
        write!(file, "pid {}", std::process::id())?;
        Ok(Self(file))
    }

    /// Hands the open file on; the lock lives as long as any copy of the descriptor.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_whom_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let refused = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        let copy = first.into_fd().try_clone().unwrap();
        assert!(StateLock::take(dir.path()).is_err(), "a copy of the descriptor still holds it");
        drop(copy);
        StateLock::take(dir.path()).unwrap();
    }
}
