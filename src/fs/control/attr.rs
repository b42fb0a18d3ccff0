//! What `stat` tells of a node, and how long the kernel may believe it.

use std::time::{Duration, SystemTime};

/// How long the kernel may keep names and attributes of static directories and symlinks. Years, but far from
/// `u64::MAX`: the kernel turns seconds into a signed time.
pub const TTL_STATIC: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Everything that changes by itself is asked for each time.
pub const TTL_NONE: Duration = Duration::ZERO;

/// Type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// Attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
    /// Permission bits, 0o7777.
    pub perm: u16,
    /// Exact size in bytes.
    pub size: u64,
    /// Names of this inode. Directories say 1, which tells `find` not to guess the number of subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: SystemTime,
    /// How long attributes and the name that led here hold.
    pub ttl: Duration,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: std::ffi::OsString,
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
}
