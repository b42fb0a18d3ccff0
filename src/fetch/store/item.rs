//! What the store holds: items of four kinds, by digest.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::policy::digest::Digest;

/// The kinds of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A layer index, by digest of the blob.
    Index,
    /// A large file, by digest of its content.
    File,
    /// A layer's small files, by digest of the blob.
    Pack,
    /// A decoded span, by digest of its content.
    Chunk,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Index, Self::File, Self::Pack, Self::Chunk];

    /// Its name in commands.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::File => "file",
            Self::Pack => "pack",
            Self::Chunk => "chunk",
        }
    }

    /// The kind of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The item's path below the store's directory.
    pub(super) fn relative(self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let fan = hex.get(..2).unwrap_or_default();
        match self {
            Self::Index => Path::new("layers").join(&hex).join("index"),
            Self::File => Path::new("files").join(fan).join(&hex),
            Self::Pack => Path::new("packs").join(&hex),
            Self::Chunk => Path::new("chunks").join(fan).join(&hex),
        }
    }

    pub(super) const fn code(self) -> u8 {
        self as u8
    }
}

/// What a file looked like when its content was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
    pub inode: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        Self {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// An item of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub size: u64,
    /// Microseconds since 1970.
    pub used: u64,
    /// Of large files only.
    pub stamp: Option<Stamp>,
    /// Whether the content reached the disk before a `synced` mark.
    pub durable: bool,
    /// Where in the log it was put, to know whether a mark covers it.
    pub position: u64,
}
