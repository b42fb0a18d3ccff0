//! A path of the image as a descriptor: links lead nowhere but inside, what is missing is made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat};
use rustix::io::{Errno, Result};

/// As many as the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// What is made at the end of a path that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

enum Step {
    Root,
    Up,
    Into(OsString),
}

/// Opens `path` below `root` (O_PATH), making what is missing with mode 0755 or 0644. Nobody else works in this tree
/// yet, so what was looked up stays true.
pub(super) fn place(root: &OwnedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut to_go: VecDeque<Step> = steps(path).collect();
    let mut links = 0;
    while let Some(step) = to_go.pop_front() {
        let name = match step {
            Step::Root => {
                above.clear();
                continue;
            }
            Step::Up => {
                above.pop();
                continue;
            }
            Step::Into(name) => name,
        };
        let here = above.last().unwrap_or(root);
        let last = to_go.is_empty();
        let next = match openat(here, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                if last && kind == Kind::File {
                    let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    openat(here, &name, make, Mode::from_bits_truncate(0o644))?;
                } else {
                    mkdirat(here, &name, Mode::from_bits_truncate(0o755))?;
                }
                openat(here, &name, flags, Mode::empty())?
            }
            other => other?,
        };
        match FileType::from_raw_mode(fstat(&next)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = OsString::from_vec(readlinkat(&next, "", Vec::new())?.into_bytes());
                for step in steps(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
                    to_go.push_front(step);
                }
            }
            FileType::Directory => above.push(next),
            _ if last && kind == Kind::File => return Ok(next),
            _ => return Err(Errno::NOTDIR),
        }
    }
    if kind == Kind::File {
        return Err(Errno::ISDIR);
    }
    match above.pop() {
        Some(found) => Ok(found),
        None => Ok(root.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?),
    }
}

fn steps(path: &Path) -> impl Iterator<Item = Step> {
    path.components().filter_map(|component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Into(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_and_what_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("root");
        std::fs::create_dir_all(at.join("etc")).unwrap();
        symlink("../../../run/resolve/stub", at.join("etc/resolv.conf")).unwrap();
        symlink("/out", at.join("tmp")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(&at).unwrap());
        let found = |path: &str, kind| place(&root, Path::new(path), kind);
        found("/etc/resolv.conf", Kind::File).unwrap();
        assert!(at.join("run/resolve/stub").is_file() && !dir.path().join("run").exists());
        found("/tmp", Kind::Directory).unwrap();
        found("tmp/../tmp/deep/er", Kind::Directory).unwrap();
        assert!(at.join("out/deep/er").is_dir());
        found("/../../up", Kind::Directory).unwrap();
        assert!(at.join("up").is_dir() && !dir.path().join("up").exists());
        assert_eq!(found("/loop", Kind::File).unwrap_err(), Errno::LOOP);
        assert_eq!(found("/etc", Kind::File).unwrap_err(), Errno::ISDIR);
        assert_eq!(found("/run/resolve/stub/x", Kind::File).unwrap_err(), Errno::NOTDIR);
        assert!(found("/", Kind::Directory).is_ok());
    }
}
