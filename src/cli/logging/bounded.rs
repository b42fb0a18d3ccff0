//! Standard error that does not fill the disk when it is a file: at [`MAX_FILE`] it is moved to the one before it.
//!
//! Holder, daemon and its successors share one open file, so its name stays and its content moves: copied to
//! `addonfs.log.1`, then truncated. They all append, so who writes next writes at the new start. What another process
//! writes between the copy and the truncation is lost; these write a line in their lives.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Most bytes of the file; the one before it has as many. A daemon at rest takes years for it.
const MAX_FILE: u64 = 16 << 20;

/// One writer at a time: nothing of ours is written while the content moves.
static TURN: Mutex<()> = Mutex::new(());

/// Standard error.
#[derive(Debug, Default)]
pub(super) struct BoundedStderr;

impl Write for BoundedStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        io::stderr().write_all(bytes)?;
        let _ = bound(Path::new("/proc/self/fd/2"), MAX_FILE);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves the content of the file that `link` leads to when it has more than `most` bytes. Anything but a regular file is
/// left alone.
fn bound(link: &Path, most: u64) -> io::Result<()> {
    let found = std::fs::metadata(link)?;
    if !found.is_file() || found.len() <= most {
        return Ok(());
    }
    let path = std::fs::read_link(link)?;
    let mut before = PathBuf::from(&path).into_os_string();
    before.push(".1");
    let file = File::options().read(true).write(true).open(&path)?;
    io::copy(&mut &file, &mut File::create(before)?)?;
    file.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stays_and_the_content_moves() {
        let dir = tempfile::tempdir().unwrap();
        let (log, link) = (dir.path().join("addonfs.log"), dir.path().join("2"));
        std::os::unix::fs::symlink(&log, &link).unwrap();
        let mut shared = File::options().create(true).append(true).open(&log).unwrap();
        shared.write_all(b"first\n").unwrap();
        bound(&link, 6).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"first\n", "it may have so many");
        shared.write_all(b"second\n").unwrap();
        bound(&link, 6).unwrap();
        shared.write_all(b"third\n").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"third\n");
        assert_eq!(std::fs::read(dir.path().join("addonfs.log.1")).unwrap(), b"first\nsecond\n");
    }
}
