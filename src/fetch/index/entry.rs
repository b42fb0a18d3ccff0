//! What an index says about one entry of its layer.

use super::file::LayerIndex;

/// One entry of a layer, in tar order. Whiteouts are entries like any other; merging gives them their meaning.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Components joined by `/`, no leading slash, `.`, `..` and empty ones resolved; empty for the root.
    /// Not necessarily UTF-8. At most 4096 bytes, components at most 255.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: whole seconds since 1970, rounded down.
    pub mtime_sec: i64,
    /// Modification time: nanoseconds, 0 to 999,999,999.
    pub mtime_nsec: u32,
    /// Extended attributes.
    pub xattrs: Xattrs<'a>,
}

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A directory.
    Dir,
    /// A regular file; `file` is its number for [`Layer::read`](crate::fetch::layer::Layer::read), `size` its
    /// length in bytes, holes included.
    File {
        /// Number of the file in its layer.
        file: u32,
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link; the target as written, 1 to 4095 bytes.
    Symlink {
        /// The target as written.
        target: &'a [u8],
    },
    /// A hard link to the entry at `target`, a path cleaned like [`Entry::path`].
    Hardlink {
        /// The path of the entry linked to.
        target: &'a [u8],
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// The extended attributes of an entry: names with their name space (`user.x`), and values.
#[derive(Clone, Copy)]
pub struct Xattrs<'a> {
    pub(super) index: &'a LayerIndex,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl<'a> Xattrs<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Name and value of each, in the order of the archive.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let index = self.index;
        (self.first..self.first.saturating_add(self.count)).map_while(move |at| index.xattr(at))
    }
}

impl std::fmt::Debug for Xattrs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}
