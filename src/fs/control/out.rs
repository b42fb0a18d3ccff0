//! `out/`: the real folder that a job filled, shown read-only.
//!
//! The job wrote it, so nothing in it is trusted: every path is opened beneath the folder without following a
//! symlink, devices, sockets and FIFOs are not shown, and modes say what the mount allows (owner reads and removes,
//! group reads), not what the job chose.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::attr::Kind;
use super::{inode, lock};
use crate::fs::error::FsError;

/// Entries visited when the number of a file must be found again after a takeover. A search beyond it answers
/// ESTALE, and the next lookup by name helps.
const SEARCH_LIMIT: usize = 100_000;

/// Paths remembered by number; on overflow all are forgotten, and found again by name or by search.
const REMEMBERED: usize = 200_000;

/// Attributes of something in `out/`.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutStat {
    pub(super) real: u64,
    pub(super) kind: Kind,
    pub(super) perm: u16,
    pub(super) size: u64,
    pub(super) nlink: u32,
    pub(super) mtime: SystemTime,
}

/// The folder of one run.
#[derive(Debug)]
pub(super) struct OutFolder {
    base: OwnedFd,
}

impl OutFolder {
    /// Opens `out/` of a run's folder; not there before the job is started.
    pub(super) fn open(run_dir: &Path) -> Result<Self, FsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let base = rustix::fs::open(run_dir.join("out"), flags, Mode::empty()).map_err(refusal)?;
        Ok(Self { base })
    }

    /// Attributes of a path below; the empty path is the folder itself.
    pub(super) fn stat(&self, path: &Path) -> Result<OutStat, FsError> {
        let found = self.at(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        describe(&rustix::fs::fstat(found).map_err(refusal)?)
    }

    /// Opens a regular file for reading.
    pub(super) fn file(&self, path: &Path) -> Result<File, FsError> {
        // NONBLOCK: were it a FIFO by now, open must not wait for a writer
        let found = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        match describe(&rustix::fs::fstat(&found).map_err(refusal)?)?.kind {
            Kind::File => Ok(File::from(found)),
            Kind::Dir => Err(FsError::IsDirectory),
            Kind::Symlink => Err(FsError::NotFound),
        }
    }

    /// The target of a symlink, as the job wrote it.
    pub(super) fn target(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        let link = self.at(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::readlinkat(&link, "", Vec::new()).map_err(refusal)?.into_bytes())
    }

    /// Names of a directory with what they are, sorted.
    pub(super) fn list(&self, path: &Path) -> Result<Vec<(OsString, OutStat)>, FsError> {
        let dir = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(refusal)? {
            let entry = entry.map_err(refusal)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue; // removed in between
            };
            if let Ok(stat) = describe(&stat) {
                names.push((name.to_owned(), stat));
            }
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }

    /// Removes a file or symlink, or with `dir` an empty directory.
    pub(super) fn remove(&self, dir: &Path, name: &OsStr, as_dir: bool) -> Result<(), FsError> {
        let parent = self.at(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        let flags = if as_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(parent, single(name)?, flags).map_err(refusal)
    }

    /// The path of the entry with this st_ino, by walking the folder.
    fn search(&self, real: u64) -> Option<PathBuf> {
        let mut left = SEARCH_LIMIT;
        let mut open = vec![PathBuf::new()];
        while let Some(at) = open.pop() {
            for (name, stat) in self.list(&at).ok()? {
                left = left.checked_sub(1)?;
                if inode::is_real(real, stat.real) {
                    return Some(at.join(name));
                }
                if stat.kind == Kind::Dir {
                    open.push(at.join(name));
                }
            }
        }
        None
    }

    fn at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, FsError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.base, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(refusal)
    }
}

/// Paths by inode number: a cache, except that it saves the search.
#[derive(Debug, Default)]
pub(super) struct OutPaths(Mutex<HashMap<u64, PathBuf>>);

impl OutPaths {
    pub(super) fn remember(&self, ino: u64, path: PathBuf) {
        let mut paths = lock(&self.0);
        if paths.len() >= REMEMBERED {
            paths.clear();
        }
        paths.insert(ino, path);
    }

    /// The path of a number inside `folder`, as long as it still is the same file.
    pub(super) fn find(&self, ino: u64, real: u64, folder: &OutFolder) -> Option<PathBuf> {
        let known = lock(&self.0).get(&ino).cloned();
        let same = |path: &PathBuf| folder.stat(path).is_ok_and(|stat| inode::is_real(real, stat.real));
        if let Some(path) = known.filter(same) {
            return Some(path);
        }
        let path = folder.search(real)?;
        self.remember(ino, path.clone());
        Some(path)
    }
}

/// One path component, and nothing that leads elsewhere.
pub(super) fn single(name: &OsStr) -> Result<&OsStr, FsError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(FsError::NotFound);
    }
    Ok(name)
}

fn describe(stat: &Stat) -> Result<OutStat, FsError> {
    let (kind, perm) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => (Kind::File, 0o440 | if stat.st_mode & 0o111 != 0 { 0o110 } else { 0 }),
        FileType::Directory => (Kind::Dir, 0o750),
        FileType::Symlink => (Kind::Symlink, 0o777),
        _ => return Err(FsError::NotFound),
    };
    let seconds = u64::try_from(stat.st_mtime).unwrap_or_default();
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Ok(OutStat {
        real: stat.st_ino,
        kind,
        perm,
        size: if kind == Kind::Dir { 0 } else { u64::try_from(stat.st_size).unwrap_or_default() },
        nlink: if kind == Kind::Dir { 1 } else { u32::try_from(stat.st_nlink).unwrap_or(u32::MAX) },
        mtime: SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds.min(999_999_999)),
    })
}

fn refusal(error: Errno) -> FsError {
    match error {
        // LOOP and XDEV: a path that would have led through a symlink or out of the folder
        Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO => FsError::NotFound,
        Errno::NOTDIR => FsError::NotDirectory,
        Errno::ISDIR => FsError::IsDirectory,
        Errno::NOTEMPTY | Errno::EXIST => FsError::NotEmpty,
        Errno::NAMETOOLONG => FsError::NameTooLong,
        other => FsError::Internal(format!("out/ cannot be read: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn run_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("out/sub")).unwrap();
        std::fs::write(dir.path().join("out/sub/report"), b"done\n").unwrap();
        std::fs::write(dir.path().join("secret"), b"no").unwrap();
        dir
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let dir = run_dir();
        symlink("/etc", dir.path().join("out/etc")).unwrap();
        symlink("../secret", dir.path().join("out/up")).unwrap();
        let out = OutFolder::open(dir.path()).unwrap();
        for path in ["../secret", "etc/passwd", "up", "sub/../../secret", "/etc/passwd"] {
            assert!(out.file(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(out.target(Path::new("up")).unwrap(), b"../secret");
        assert_eq!(out.stat(Path::new("etc")).unwrap().kind, Kind::Symlink);
        assert!(out.list(Path::new("etc")).is_err());
    }

    #[test]
    fn an_out_that_is_a_symlink_is_none() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("out")).unwrap();
        assert!(OutFolder::open(dir.path()).is_err());
    }

    #[test]
    fn only_files_directories_and_symlinks_are_shown() {
        let dir = run_dir();
        let fifo = dir.path().join("out/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        let out = OutFolder::open(dir.path()).unwrap();
        let names: Vec<_> = out.list(Path::new("")).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["sub"]);
        assert!(matches!(out.file(Path::new("fifo")), Err(FsError::NotFound)));
    }

    #[test]
    fn a_number_is_found_again_without_memory() {
        let dir = run_dir();
        let out = OutFolder::open(dir.path()).unwrap();
        let real = std::fs::metadata(dir.path().join("out/sub/report")).unwrap().ino();
        let paths = OutPaths::default();
        let ino = inode::of_out(3, real);
        assert_eq!(paths.find(ino, real, &out), Some("sub/report".into()));
        std::fs::rename(dir.path().join("out/sub/report"), dir.path().join("out/moved")).unwrap();
        assert_eq!(paths.find(ino, real, &out), Some("moved".into()));
        std::fs::remove_file(dir.path().join("out/moved")).unwrap();
        assert_eq!(paths.find(ino, real, &out), None);
    }
}
