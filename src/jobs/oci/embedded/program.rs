//! Our own program, executed where a job cannot write to it.
//!
//! Process 1 runs our program until it executes the job's, and an image may name `/proc/self/exe` as the program, or as
//! an interpreter: it would then hold the host's file, and root without capabilities owns that file still. A read-only
//! mount of the shim's namespace is what it would hold instead, and no job can change a mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{mount_bind, mount_remount};

use super::mounts::{kept_flags, read_only};

const OURSELVES: &str = "/proc/self/exe";

/// Binds this program to `at` (an empty file), read-only, and says what to execute. Where it has been replaced since we
/// were started there is no name to bind by and none by which its file would ever be executed again: it is safe as it is.
pub(in crate::jobs::oci) fn hold(at: &Path) -> Result<PathBuf, String> {
    let fails = |e: &dyn std::fmt::Display| format!("cannot hold our own program: {e}");
    let ours = fs::metadata(OURSELVES).map_err(|e| fails(&e))?;
    let named = fs::read_link(OURSELVES).ok().filter(|path| same(path, &ours));
    match named {
        Some(path) => bind(&path, at).map(|()| at.to_owned()).map_err(|e| fails(&e)),
        None => Ok(PathBuf::from(OURSELVES)),
    }
}

fn same(path: &PathBuf, ours: &fs::Metadata) -> bool {
    fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino()))
}

fn bind(path: &Path, at: &Path) -> rustix::io::Result<()> {
    mount_bind(path, at)?;
    mount_remount(at, read_only() | kept_flags(at)?, "")
}
