//! The tree file: one image's merged tree, flat, memory-mapped, immutable.
//!
//! ```text
//! header   192 B  magic "addontre", version, counts, offsets, layers, version of the layer indexes whose file
//!                 numbers it names, created, length, sha256 of the rest, sha256 of those indexes' checksums, and
//!                 8 bytes of the header's own sha256
//! nodes     64 B each, in breadth-first order of names: node 0 is the root, a directory's children lie together
//! entries   12 B each: where its name lies, its node; a directory's entries are one range, sorted by name bytes
//! names     bytes of names and of symlinks' targets
//! xattrs    bytes of sets of extended attributes, see `xattr`
//! ```
//!
//! All numbers are little-endian. The order, and so every node's number, depends on nothing but the merged tree.
//!
//! Opening checks the digest of the whole file: 30,000 files are 3 MB, two milliseconds; a bit that flipped on the
//! disk is then a tree built anew instead of a wrong name. After that reading still trusts no offset.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use nix::libc;
use sha2::{Digest as _, Sha256};

use super::{TreeError, xattr};
use crate::fetch::index::{INDEX_VERSION, LayerIndex};

pub(super) const MAGIC: &[u8; 8] = b"addontre";
/// Raise it when a reader of this version would misread the file: trees are then built anew.
pub(super) const VERSION: u32 = 3;
pub(super) const HEADER: usize = 192;
/// Where the header says of which layer indexes it is.
pub(super) const MADE_OF: std::ops::Range<usize> = 128..160;
pub(super) const NODE: usize = 64;
pub(super) const ENTRY: usize = 12;
/// No layer: the node has no content.
pub(super) const NO_LAYER: u32 = u32::MAX;

/// A node as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Names that lead here; for a directory as on disk file systems: 2 and one for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime_sec: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Where its extended attributes lie, see [`TreeFile::xattrs`].
    pub xattrs: XattrSet,
    /// What it holds.
    pub body: NodeBody,
}

/// A range of the xattrs' part; empty for most nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrSet {
    offset: u32,
    length: u32,
}

/// What a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeBody {
    /// A directory: its range of entries, and its parent's node.
    Dir {
        /// Index of its first entry.
        first: u32,
        /// How many.
        count: u32,
        /// The directory that holds it; the root's is the root.
        parent: u32,
    },
    /// A regular file: content is file number `file` of layer `layer` (from 0, the lowest).
    File {
        /// The layer.
        layer: u32,
        /// The file in the layer.
        file: u32,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link; its target by [`TreeFile::bytes`].
    Symlink {
        /// Where the target lies.
        offset: u32,
        /// Its length.
        length: u32,
    },
    /// A device: major and minor are in `rdev` as the kernel's `new_encode_dev` packs them.
    Device {
        /// The packed number.
        rdev: u32,
    },
    /// A named pipe, or a type that a later version knows.
    Other,
}

/// The numbers of the header.
#[derive(Debug, Clone, Copy)]
struct Header {
    nodes: u32,
    entries: u32,
    nodes_at: u64,
    entries_at: u64,
    names_at: u64,
    names: u64,
    xattrs_at: u64,
    xattrs: u64,
    layers: u32,
    created: i64,
}

/// An open tree file.
#[derive(Debug)]
pub struct TreeFile {
    map: Mmap,
    header: Header,
}

impl TreeFile {
    /// Maps and checks the file at `path`, which must have been made of `layers`: its numbers could name other files of
    /// others, and that would be wrong bytes of the right image.
    pub fn open(path: &Path, layers: &[&LayerIndex]) -> Result<Self, TreeError> {
        let disk = |source| TreeError::Disk { path: path.to_owned(), source };
        let format = |reason| TreeError::Format { path: path.to_owned(), reason };
        let file = File::open(path).map_err(disk)?;
        // SAFETY: tree files lie in the daemon's own directory, are put there whole by rename and never changed in
        // place or cut; nobody else is to write there (docs: the state directory is 0700).
        let map = unsafe { Mmap::map(&file) }.map_err(disk)?;
        let header = check(&map).map_err(format)?;
        if map.get(MADE_OF) != Some(&made_of(layers)[..]) {
            return Err(format("made of other layer indexes"));
        }
        Ok(Self { map, header })
    }

    /// How many nodes; their numbers are below it.
    pub fn nodes(&self) -> u32 {
        self.header.nodes
    }

    /// How many layers its contents refer to.
    pub fn layers(&self) -> u32 {
        self.header.layers
    }

    /// The image config's time, seconds since the epoch.
    pub fn created(&self) -> i64 {
        self.header.created
    }

    /// Node `number`.
    pub fn node(&self, number: u32) -> Option<Node> {
        let record = self.record(self.header.nodes_at, self.header.nodes, number, NODE)?;
        decode(record)
    }

    /// Entry `index` of the whole table: its name and its node.
    pub fn entry(&self, index: u32) -> Option<(&[u8], u32)> {
        let record = self.record(self.header.entries_at, self.header.entries, index, ENTRY)?;
        let name = self.bytes(get32(record, 0)?, get32(record, 4)?)?;
        Some((name, get32(record, 8)?))
    }

    /// Bytes of the names' part.
    pub fn bytes(&self, offset: u32, length: u32) -> Option<&[u8]> {
        self.range(self.header.names_at, self.header.names, offset, length)
    }

    /// Whether any node has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.header.xattrs > 0
    }

    /// Name and value of each attribute of a set, sorted by name.
    pub fn xattrs(&self, set: XattrSet) -> impl Iterator<Item = (&[u8], &[u8])> {
        let set = self.range(self.header.xattrs_at, self.header.xattrs, set.offset, set.length);
        xattr::decode(set.unwrap_or_default())
    }

    fn range(&self, part: u64, part_length: u64, offset: u32, length: u32) -> Option<&[u8]> {
        if u64::from(offset) + u64::from(length) > part_length {
            return None;
        }
        let start = usize::try_from(part.checked_add(u64::from(offset))?).ok()?;
        self.map.get(start..start.checked_add(length as usize)?)
    }

    fn record(&self, table: u64, count: u32, index: u32, size: usize) -> Option<&[u8]> {
        if index >= count {
            return None;
        }
        let start = usize::try_from(table).ok()?.checked_add(index as usize * size)?;
        self.map.get(start..start.checked_add(size)?)
    }
}

/// What a header says of the layer indexes that its tree was made of.
pub(super) fn made_of(layers: &[&LayerIndex]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    layers.iter().for_each(|layer| hasher.update(layer.checksum().as_bytes()));
    hasher.finalize().into()
}

/// Reads the header and checks both digests.
fn check(map: &[u8]) -> Result<Header, &'static str> {
    const SHORT: &str = "cut short";
    let head = map.get(..HEADER).ok_or(SHORT)?;
    if head.get(..8) != Some(MAGIC) {
        return Err("no tree file");
    }
    if get32(head, 8) != Some(VERSION) {
        return Err("another version");
    }
    if Sha256::digest(&head[..HEADER - 8])[..8] != head[HEADER - 8..] {
        return Err("damaged header");
    }
    if get32(head, 76) != Some(INDEX_VERSION) {
        return Err("made of layer indexes of another version");
    }
    let long = |at| get64(head, at).ok_or(SHORT);
    let word = |at| get32(head, at).ok_or(SHORT);
    let header = Header {
        nodes: word(16)?,
        entries: word(20)?,
        nodes_at: long(24)?,
        entries_at: long(32)?,
        names_at: long(40)?,
        names: long(48)?,
        xattrs_at: long(56)?,
        xattrs: long(64)?,
        layers: word(72)?,
        created: long(80)?.cast_signed(),
    };
    if long(88)? != map.len() as u64 {
        return Err(SHORT);
    }
    if Sha256::digest(&map[HEADER..])[..] != head[96..128] {
        return Err("its content does not match its digest");
    }
    Ok(header)
}

fn get32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn get64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

fn decode(record: &[u8]) -> Option<Node> {
    let word = |at| get32(record, at);
    let mode = word(0)?;
    let length = get64(record, 32)?;
    let place = get64(record, 40)?;
    let small = |value: u64| u32::try_from(value).ok();
    let body = match mode & libc::S_IFMT {
        libc::S_IFDIR => NodeBody::Dir { first: small(place)?, count: small(length)?, parent: word(48)? },
        libc::S_IFREG => NodeBody::File { layer: word(28)?, file: small(place)?, size: length },
        libc::S_IFLNK => NodeBody::Symlink { offset: small(place)?, length: small(length)? },
        libc::S_IFCHR | libc::S_IFBLK => NodeBody::Device { rdev: small(place)? },
        _ => NodeBody::Other,
    };
    Some(Node {
        mode,
        nlink: word(4)?,
        uid: word(8)?,
        gid: word(12)?,
        mtime_sec: get64(record, 16)?.cast_signed(),
        mtime_nsec: word(24)?,
        xattrs: XattrSet { offset: word(52)?, length: word(56)? },
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::super::merge::Merge;
    use super::super::write::write;
    use super::*;
    use crate::fetch::index::build::index_tar;

    #[test]
    fn a_tree_of_other_layer_indexes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        write(&path, &Merge::new(0), [0; 32]).unwrap();
        let mut tree = std::fs::read(&path).unwrap();
        tree[76..80].copy_from_slice(&(INDEX_VERSION + 1).to_le_bytes());
        let head: [u8; 32] = Sha256::digest(&tree[..HEADER - 8]).into();
        tree[HEADER - 8..HEADER].copy_from_slice(&head[..8]);
        std::fs::write(&path, &tree).unwrap();
        let refused = TreeFile::open(&path, &[]).unwrap_err().to_string();
        assert!(refused.contains("another version"), "{refused}");

        let index = |names: &[&str]| {
            let mut tar = tar::Builder::new(Vec::new());
            for name in names {
                tar.append_data(&mut tar::Header::new_gnu(), name, &[][..]).unwrap();
            }
            index_tar(&tar.into_inner().unwrap()).unwrap()
        };
        let (one, other) = (index(&["a"]), index(&["a", "b"]));
        write(&path, &Merge::new(0), made_of(&[&one, &other])).unwrap();
        assert!(TreeFile::open(&path, &[&one, &other]).is_ok());
        for others in [&[&other, &one][..], &[&one], &[]] {
            let refused = TreeFile::open(&path, others).unwrap_err().to_string();
            assert!(refused.contains("other layer indexes"), "{refused}");
        }
    }
}
