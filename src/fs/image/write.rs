//! Writing the tree file: numbering the merged tree's nodes and laying them out as [`super::file`] draws it.
//!
//! The sections go to the file as they grow, each at its place: the tree of a million entries has 100 MB, of which only
//! the names are held in memory, to keep each of them once.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::libc;
use sha2::{Digest as _, Sha256};

use super::TreeError;
use super::file::{ENTRY, HEADER, MADE_OF, MAGIC, NO_LAYER, NODE, VERSION};
use super::merge::{Body, Merge, Node};
use crate::fetch::index::INDEX_VERSION;

/// What is written or hashed at once.
const BUFFER: usize = 256 << 10;

/// Not a node of the tree.
const UNREACHED: u32 = u32::MAX;

/// Writes `merge`, which is `made_of` certain layer indexes, to `path`: a temporary file beside it, then renamed. Not synced: what a
/// power cut spoils does not match its digests, and is made anew.
pub(super) fn write(path: &Path, merge: &Merge<'_>, made_of: [u8; 32]) -> Result<(), TreeError> {
    let disk = |source| TreeError::Disk { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".tree-").tempfile_in(folder).map_err(disk)?;
    let layout = Layout::of(merge)?;
    layout.encode(merge, made_of, file.as_file()).map_err(|failure| match failure {
        Failure::Tree(error) => error,
        Failure::Disk(error) => disk(error),
    })?;
    file.persist(path).map_err(|error| disk(error.error))?;
    Ok(())
}

enum Failure {
    Tree(TreeError),
    Disk(io::Error),
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Which merged node gets which number, and what follows from it.
struct Layout {
    /// Merged nodes in the order of their numbers.
    order: Vec<u32>,
    /// The number of each merged node.
    numbers: Vec<u32>,
    nlink: Vec<u32>,
    parent: Vec<u32>,
    /// How many names all directories have.
    names: u64,
}

impl Layout {
    fn of(merge: &Merge<'_>) -> Result<Self, TreeError> {
        let mut numbers = vec![UNREACHED; merge.nodes.len()];
        numbers[0] = 0;
        let mut layout = Self { order: vec![0], numbers, nlink: vec![2], parent: vec![0], names: 0 };
        let mut next = 0;
        while let Some(&here) = layout.order.get(next) {
            if let Body::Dir(children) = &merge.nodes[here as usize].body {
                for edge in children.values() {
                    layout.name(merge, next, edge.node)?;
                }
            }
            next += 1;
        }
        Ok(layout)
    }

    /// Counts one more name of `node`, in directory number `dir`.
    fn name(&mut self, merge: &Merge<'_>, dir: usize, node: u32) -> Result<(), TreeError> {
        self.names += 1;
        let number = &mut self.numbers[node as usize];
        if *number != UNREACHED {
            self.nlink[*number as usize] += 1;
            return Ok(());
        }
        *number = u32::try_from(self.order.len()).map_err(|_| TreeError::TooMany("files"))?;
        self.order.push(node);
        self.parent.push(dir as u32);
        let is_dir = matches!(merge.nodes[node as usize].body, Body::Dir(_));
        self.nlink.push(if is_dir { 2 } else { 1 });
        if is_dir {
            self.nlink[dir] += 1;
        }
        Ok(())
    }

    fn encode(&self, merge: &Merge<'_>, made_of: [u8; 32], file: &File) -> Result<(), Failure> {
        let entries_at = (HEADER + self.order.len() * NODE) as u64;
        let names_at = entries_at + self.names * ENTRY as u64;
        let mut nodes = At::section(file, HEADER as u64);
        let mut entries = At::section(file, entries_at);
        let mut names = Strings::default();
        let mut xattrs = Strings::default();
        let mut first = 0_u64;
        let mut record = Vec::with_capacity(NODE);
        for (number, index) in self.order.iter().enumerate() {
            let node = &merge.nodes[*index as usize];
            let (length, place, layer) = match &node.body {
                Body::Dir(children) => {
                    for (name, edge) in children {
                        let child = self.numbers.get(edge.node as usize).copied().unwrap_or(0);
                        record.clear();
                        put32(&mut record, names.add(name)?);
                        put32(&mut record, name.len() as u32);
                        put32(&mut record, child);
                        entries.write_all(&record)?;
                    }
                    let count = children.len() as u64;
                    first += count;
                    (count, first - count, NO_LAYER)
                }
                Body::File { layer, file, size } => (*size, u64::from(*file), *layer),
                Body::Symlink(target) => (target.len() as u64, u64::from(names.add(target)?), NO_LAYER),
                Body::Char { major, minor } | Body::Block { major, minor } => {
                    (0, u64::from(pack_device(*major, *minor)), NO_LAYER)
                }
                Body::Fifo => (0, 0, NO_LAYER),
            };
            record.clear();
            put32(&mut record, mode(node));
            put32(&mut record, self.nlink[number]);
            put32(&mut record, node.attributes.uid);
            put32(&mut record, node.attributes.gid);
            record.extend(node.attributes.mtime_sec.to_le_bytes());
            put32(&mut record, node.attributes.mtime_nsec);
            put32(&mut record, layer);
            record.extend(length.to_le_bytes());
            record.extend(place.to_le_bytes());
            put32(&mut record, self.parent[number]);
            let set = merge.xattrs.get(node.attributes.xattrs);
            let offset = if set.is_empty() { 0 } else { xattrs.add(set)? };
            put32(&mut record, offset);
            put32(&mut record, set.len() as u32);
            record.extend([0; 4]);
            nodes.write_all(&record)?;
        }
        nodes.flush()?;
        entries.flush()?;
        let xattrs_at = names_at + names.bytes.len() as u64;
        file.write_all_at(&names.bytes, names_at)?;
        file.write_all_at(&xattrs.bytes, xattrs_at)?;
        let mut head = Vec::with_capacity(HEADER);
        head.extend(MAGIC);
        put32(&mut head, VERSION);
        put32(&mut head, HEADER as u32);
        put32(&mut head, self.order.len() as u32);
        put32(&mut head, u32::try_from(self.names).map_err(|_| TreeError::TooMany("names"))?);
        let (names_length, xattrs_length) = (names.bytes.len() as u64, xattrs.bytes.len() as u64);
        for number in [HEADER as u64, entries_at, names_at, names_length, xattrs_at, xattrs_length] {
            head.extend(number.to_le_bytes());
        }
        put32(&mut head, merge.layers);
        put32(&mut head, INDEX_VERSION);
        head.extend(merge.created.to_le_bytes());
        head.extend((xattrs_at + xattrs_length).to_le_bytes());
        head.resize(HEADER, 0);
        seal(&mut head, body_digest(file)?, made_of);
        file.write_all_at(&head, 0)?;
        Ok(())
    }
}

/// A part of the file that grows from its place on.
type Section<'f> = BufWriter<At<'f>>;

struct At<'f> {
    file: &'f File,
    offset: u64,
}

impl<'f> At<'f> {
    fn section(file: &'f File, offset: u64) -> Section<'f> {
        BufWriter::with_capacity(BUFFER, Self { file, offset })
    }
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A part of byte strings (names, sets of extended attributes); one that occurs again (`__init__.py`) is mostly kept once.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    /// By hash; of two names with one hash the later one is not found.
    known: HashMap<u64, (u32, u32)>,
    hasher: RandomState,
}

impl Strings {
    fn add(&mut self, name: &[u8]) -> Result<u32, TreeError> {
        let hash = self.hasher.hash_one(name);
        if let Some((offset, len)) = self.known.get(&hash)
            && self.bytes.get(*offset as usize..*offset as usize + *len as usize) == Some(name)
        {
            return Ok(*offset);
        }
        let offset = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooMany("bytes of names"))?;
        self.bytes.extend(name);
        self.known.entry(hash).or_insert((offset, name.len() as u32));
        Ok(offset)
    }
}

/// Digest of everything behind the header.
fn body_digest(file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let (mut buffer, mut at) = (vec![0; BUFFER], HEADER as u64);
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
    }
}

/// Puts into the header what it says of the rest and of itself.
fn seal(head: &mut [u8], body: [u8; 32], made_of: [u8; 32]) {
    head[96..128].copy_from_slice(&body);
    head[MADE_OF].copy_from_slice(&made_of);
    let own: [u8; 32] = Sha256::digest(&head[..HEADER - 8]).into();
    head[HEADER - 8..HEADER].copy_from_slice(&own[..8]);
}

fn put32(to: &mut Vec<u8>, number: u32) {
    to.extend(number.to_le_bytes());
}

fn mode(node: &Node<'_>) -> u32 {
    let kind = match node.body {
        Body::Dir(_) => libc::S_IFDIR,
        Body::File { .. } => libc::S_IFREG,
        // Linux shows every symlink so, whatever the archive says
        Body::Symlink(_) => return libc::S_IFLNK | 0o777,
        Body::Char { .. } => libc::S_IFCHR,
        Body::Block { .. } => libc::S_IFBLK,
        Body::Fifo => libc::S_IFIFO,
    };
    kind | node.attributes.mode
}

/// `new_encode_dev` of include/linux/kdev_t.h, the form of FUSE's rdev: 12 bits of major, 20 of minor.
pub(super) fn pack_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}
