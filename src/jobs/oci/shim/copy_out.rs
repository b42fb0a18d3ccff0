//! What a job left in `RUN_DIR`, brought from the container's memory to the disk.
//!
//! The tree is foreign: nothing in it is followed. Regular files and directories are copied; symlinks, devices, pipes
//! and sockets are left behind and counted, because whoever reads `out/` later must not be led elsewhere by it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, futimens, mkdirat, open, openat, statat,
};

/// Deepest directory that is copied; deeper ones are counted as skipped.
const DEPTH_MAX: u32 = 64;
/// Most entries that are copied: the size limit alone does not bound empty files.
const ENTRIES_MAX: u64 = 100_000;

/// What became of a tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Symlinks, special files, too deep, too many, or beyond the size limit.
    pub(super) skipped: u64,
}

/// Copies the content of `from` into `to` (which exists), at most `limit` bytes.
pub(super) fn copy(from: &Path, to: &Path, limit: u64) -> io::Result<Copied> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (from, to) = (open(from, flags, Mode::empty())?, open(to, flags, Mode::empty())?);
    let mut copied = Copied::default();
    directory(&from, &to, limit, 0, &mut copied)?;
    Ok(copied)
}

fn directory(from: &OwnedFd, to: &OwnedFd, limit: u64, depth: u32, copied: &mut Copied) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let fits = copied.entries < ENTRIES_MAX;
        match kind {
            FileType::Directory if fits && depth < DEPTH_MAX => {
                copied.entries += 1;
                mkdirat(to, name, Mode::from_bits_truncate(stat.st_mode & 0o777 | 0o700))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(from, name, flags, Mode::empty())?;
                let inner_to = openat(to, name, flags, Mode::empty())?;
                directory(&inner, &inner_to, limit, depth + 1, copied)?;
                keep_time(inner_to.as_fd(), &stat);
            }
            FileType::RegularFile if fits => {
                copied.entries += 1;
                file(from, to, name, &stat, limit, copied)?;
            }
            _ => copied.skipped += 1,
        }
    }
    Ok(())
}

fn file(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &std::ffi::CStr,
    stat: &Stat,
    limit: u64,
    copied: &mut Copied,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = File::from(openat(from, name, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // No setuid bit leaves the container, and the owner is us: modes only say executable or not.
    let mut target =
        File::from(openat(to, name, flags, Mode::from_bits_truncate(stat.st_mode & 0o777 | 0o600))?);
    let room = limit.saturating_sub(copied.bytes);
    let n = io::copy(&mut (&source).take(room), &mut target)?;
    copied.bytes += n;
    // A hard link counts each time here and once in the container, so the limit may be met; say so.
    if (&source).read(&mut [0])? > 0 {
        copied.skipped += 1;
    }
    keep_time(target.as_fd(), stat);
    Ok(())
}

fn keep_time(target: BorrowedFd<'_>, stat: &Stat) {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0) };
    let _ = futimens(target, &Timestamps { last_access: time, last_modification: time });
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_are_copied_links_and_pipes_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/deep/file"), "content").unwrap();
        fs::set_permissions(from.join("sub/deep/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("/etc/passwd", from.join("passwd")).unwrap();
        symlink("/etc", from.join("sub/etc")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let copied = copy(&from, &to, 1000).unwrap();
        assert_eq!(copied, Copied { bytes: 7, entries: 3, skipped: 3 });
        let meta = fs::metadata(to.join("sub/deep/file")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o755);
        assert!(!to.join("passwd").exists() && !to.join("pipe").exists());
    }

    #[test]
    fn hard_links_do_not_beat_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a"), [7; 600]).unwrap();
        fs::hard_link(from.join("a"), from.join("b")).unwrap();
        let copied = copy(&from, &to, 1000).unwrap();
        assert_eq!((copied.bytes, copied.skipped), (1000, 1));
    }
}
