//! Writing the tree file: numbering the merged tree's nodes and laying them out as [`super::file`] draws it.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::Path;

use nix::libc;
use sha2::{Digest as _, Sha256};

use super::TreeError;
use super::file::{ENTRY, HEADER, MADE_OF, MAGIC, NO_LAYER, NODE, VERSION};
use super::merge::{Body, Merge, Node};
use crate::fetch::index::INDEX_VERSION;

/// Writes `merge`, which is `made_of` certain layer indexes, to `path`: a temporary file beside it, then renamed. Not synced: what a
/// power cut spoils does not match its digests, and is made anew.
pub(super) fn write(path: &Path, merge: &Merge, made_of: [u8; 32]) -> Result<(), TreeError> {
    let content = Layout::of(merge)?.encode(merge, made_of)?;
    let disk = |source| TreeError::Disk { path: path.to_owned(), source };
    replace(path, &content).map_err(disk)
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".tree-").tempfile_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// Which merged node gets which number, and what follows from it.
struct Layout {
    /// Node nodes in the order of their numbers.
    order: Vec<usize>,
    numbers: HashMap<usize, u32>,
    nlink: Vec<u32>,
    parent: Vec<u32>,
}

impl Layout {
    fn of(merge: &Merge) -> Result<Self, TreeError> {
        let mut layout =
            Self { order: vec![0], numbers: HashMap::from([(0, 0)]), nlink: vec![2], parent: vec![0] };
        let mut next = 0;
        while let Some(&here) = layout.order.get(next) {
            if let Body::Dir(children) = &merge.nodes[here].body {
                for edge in children.values() {
                    layout.name(merge, next, edge.node)?;
                }
            }
            next += 1;
        }
        Ok(layout)
    }

    /// Counts one more name of `node`, in directory number `dir`.
    fn name(&mut self, merge: &Merge, dir: usize, node: usize) -> Result<(), TreeError> {
        if let Some(number) = self.numbers.get(&node) {
            self.nlink[*number as usize] += 1;
            return Ok(());
        }
        let number = u32::try_from(self.order.len()).map_err(|_| TreeError::TooMany("files"))?;
        self.numbers.insert(node, number);
        self.order.push(node);
        self.parent.push(dir as u32);
        let is_dir = matches!(merge.nodes[node].body, Body::Dir(_));
        self.nlink.push(if is_dir { 2 } else { 1 });
        if is_dir {
            self.nlink[dir] += 1;
        }
        Ok(())
    }

    fn encode(&self, merge: &Merge, made_of: [u8; 32]) -> Result<Vec<u8>, TreeError> {
        let mut nodes = Vec::with_capacity(self.order.len() * NODE);
        let mut entries = Vec::with_capacity(self.order.len() * ENTRY);
        let mut names = Strings::default();
        let mut xattrs = Strings::default();
        for (number, index) in self.order.iter().enumerate() {
            let node = &merge.nodes[*index];
            let (length, place, layer) = match &node.body {
                Body::Dir(children) => {
                    let first = (entries.len() / ENTRY) as u64;
                    for (name, edge) in children {
                        let child = self.numbers.get(&edge.node).copied().unwrap_or(0);
                        put32(&mut entries, names.add(name)?);
                        put32(&mut entries, name.len() as u32);
                        put32(&mut entries, child);
                    }
                    (children.len() as u64, first, NO_LAYER)
                }
                Body::File { layer, file, size } => (*size, u64::from(*file), *layer),
                Body::Symlink(target) => (target.len() as u64, u64::from(names.add(target)?), NO_LAYER),
                Body::Char { major, minor } | Body::Block { major, minor } => {
                    (0, u64::from(pack_device(*major, *minor)), NO_LAYER)
                }
                Body::Fifo => (0, 0, NO_LAYER),
            };
            put32(&mut nodes, mode(node));
            put32(&mut nodes, self.nlink[number]);
            put32(&mut nodes, node.attributes.uid);
            put32(&mut nodes, node.attributes.gid);
            nodes.extend(node.attributes.mtime_sec.to_le_bytes());
            put32(&mut nodes, node.attributes.mtime_nsec);
            put32(&mut nodes, layer);
            nodes.extend(length.to_le_bytes());
            nodes.extend(place.to_le_bytes());
            put32(&mut nodes, self.parent[number]);
            let set = merge.xattrs.get(node.attributes.xattrs);
            let offset = if set.is_empty() { 0 } else { xattrs.add(set)? };
            put32(&mut nodes, offset);
            put32(&mut nodes, set.len() as u32);
            nodes.extend([0; 4]);
        }
        let mut content = assemble(&nodes, &entries, &names.bytes, &xattrs.bytes, merge);
        seal(&mut content, made_of);
        Ok(content)
    }
}

/// A part of byte strings (names, sets of extended attributes); one that occurs again (`__init__.py`) is kept once.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    known: HashMap<Box<[u8]>, u32>,
}

impl Strings {
    fn add(&mut self, name: &[u8]) -> Result<u32, TreeError> {
        if let Some(offset) = self.known.get(name) {
            return Ok(*offset);
        }
        let offset = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooMany("bytes of names"))?;
        self.bytes.extend(name);
        self.known.insert(name.into(), offset);
        Ok(offset)
    }
}

fn assemble(nodes: &[u8], entries: &[u8], names: &[u8], xattrs: &[u8], merge: &Merge) -> Vec<u8> {
    let length = HEADER + nodes.len() + entries.len() + names.len() + xattrs.len();
    let mut content = Vec::with_capacity(length);
    let entries_at = (HEADER + nodes.len()) as u64;
    let names_at = entries_at + entries.len() as u64;
    content.extend(MAGIC);
    put32(&mut content, VERSION);
    put32(&mut content, HEADER as u32);
    put32(&mut content, (nodes.len() / NODE) as u32);
    put32(&mut content, (entries.len() / ENTRY) as u32);
    let xattrs_at = names_at + names.len() as u64;
    let (names_length, xattrs_length) = (names.len() as u64, xattrs.len() as u64);
    for number in [HEADER as u64, entries_at, names_at, names_length, xattrs_at, xattrs_length] {
        content.extend(number.to_le_bytes());
    }
    put32(&mut content, merge.layers);
    put32(&mut content, INDEX_VERSION);
    content.extend(merge.created.to_le_bytes());
    content.extend((length as u64).to_le_bytes());
    content.resize(HEADER, 0);
    for part in [nodes, entries, names, xattrs] {
        content.extend(part);
    }
    content
}

/// Puts into the header what it says of the rest and of itself.
fn seal(content: &mut [u8], made_of: [u8; 32]) {
    let body: [u8; 32] = Sha256::digest(&content[HEADER..]).into();
    content[96..128].copy_from_slice(&body);
    content[MADE_OF].copy_from_slice(&made_of);
    let head: [u8; 32] = Sha256::digest(&content[..HEADER - 8]).into();
    content[HEADER - 8..HEADER].copy_from_slice(&head[..8]);
}

fn put32(to: &mut Vec<u8>, number: u32) {
    to.extend(number.to_le_bytes());
}

fn mode(node: &Node) -> u32 {
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
