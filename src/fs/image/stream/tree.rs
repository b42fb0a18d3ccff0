//! What a streaming tree shows: nodes numbered by arrival, names in the order in which they came.
//!
//! Invariants: a number never means anything else; but for directories nothing of a node changes. A name has a
//! [`Slot`] of the layer that decides it, and layers come from the top: a lower one fills only what is free.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;

use super::super::write::pack_device;
use crate::fetch::index::{Entry, EntryKind};
use crate::fetch::layer::arriving::ArrivedEntry;

/// Number of the root directory.
pub(super) const ROOT: u32 = 0;
/// Bounds memory: nodes, some 300 bytes each, and bytes of names and of symlinks' targets. The rest of a larger image is
/// seen when it is complete.
pub(super) const MAX_NODES: usize = 1 << 20;
const MAX_TEXT: usize = 128 << 20;

pub(super) type Reason = &'static str;

/// An entry of a layer, of either kind.
pub(super) struct Item<'a> {
    pub(super) path: &'a [u8],
    pub(super) kind: EntryKind<'a>,
    pub(super) attributes: Attributes,
    /// It has an access control list, which this tree's connection cannot enforce: its mode alone would let in whom the
    /// list keeps out.
    pub(super) guarded: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_sec: i64,
    mtime_nsec: u32,
}

const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

impl<'a> From<&'a ArrivedEntry> for Item<'a> {
    fn from(entry: &'a ArrivedEntry) -> Self {
        let ArrivedEntry { path, mode, uid, gid, mtime_sec, mtime_nsec, .. } = entry;
        Self {
            path,
            kind: entry.kind(),
            attributes: Attributes::new(*mode, *uid, *gid, *mtime_sec, *mtime_nsec),
            guarded: entry.xattrs.iter().any(|name| name == ACCESS_LIST),
        }
    }
}

impl<'a> From<&Entry<'a>> for Item<'a> {
    fn from(entry: &Entry<'a>) -> Self {
        let Entry { path, kind, mode, uid, gid, mtime_sec, mtime_nsec, xattrs } = *entry;
        Self {
            path,
            kind,
            attributes: Attributes::new(mode, uid, gid, mtime_sec, mtime_nsec),
            guarded: xattrs.iter().any(|(name, _)| name == ACCESS_LIST),
        }
    }
}

impl Attributes {
    fn new(mode: u32, uid: u32, gid: u32, mtime_sec: i64, mtime_nsec: u32) -> Self {
        Self { mode: mode & 0o7777, uid, gid, mtime_sec, mtime_nsec: mtime_nsec.min(999_999_999) }
    }

    /// Those of a directory that no entry names.
    pub(super) fn implied(created: i64) -> Self {
        Self::new(0o755, 0, 0, created, 0)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    /// `st_mode`.
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of a directory: when its last name came, so that the kernel knows a listing that it keeps to be old.
    pub(super) mtime_sec: i64,
    pub(super) mtime_nsec: u32,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Dir(Dir),
    File { layer: u32, file: u32, size: u64 },
    Symlink(Box<[u8]>),
    Device { rdev: u32 },
    Fifo,
}

#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) parent: u32,
    /// Where in `slots`.
    names: BTreeMap<Arc<[u8]>, usize>,
    /// Never shorter, so that a place in a listing stays one.
    slots: Vec<Slot>,
    /// The layer whose directory it is; the root is nobody's until it is named.
    by: Option<u32>,
    /// Nothing of layers below this one is shown in it, nor below it.
    closed: Option<u32>,
}

/// A name and what a layer says of it.
#[derive(Debug)]
struct Slot {
    name: Arc<[u8]>,
    /// `None`: the name is not shown, and lower layers cannot show it either.
    node: Option<u32>,
    by: u32,
}

impl Dir {
    pub(super) fn child(&self, name: &[u8]) -> Option<u32> {
        self.slot(name)?.node
    }

    /// The name at a place of the listing, unless it is not shown; the outer `None` is the end.
    pub(super) fn at(&self, place: usize) -> Option<Option<(&[u8], u32)>> {
        let slot = self.slots.get(place)?;
        Some(slot.node.map(|node| (&*slot.name, node)))
    }

    fn slot(&self, name: &[u8]) -> Option<&Slot> {
        self.slots.get(*self.names.get(name)?)
    }
}

/// The tree so far.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    created: i64,
    text: usize,
}

impl Tree {
    /// An empty root.
    pub(super) fn new(created: i64) -> Self {
        let mut tree = Self { nodes: Vec::new(), created, text: 0 };
        let root = tree.node_of(Attributes::implied(created), libc::S_IFDIR, Body::Dir(Dir::default()));
        tree.nodes.push(Node { nlink: 2, ..root });
        tree
    }

    pub(super) fn created(&self) -> i64 {
        self.created
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)
    }

    /// Everything is gone.
    pub(super) fn clear(&mut self) {
        self.nodes = Vec::new();
    }

    pub(super) fn dir(&self, number: u32) -> Option<&Dir> {
        match &self.node(number)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, number: u32) -> Option<&mut Dir> {
        match &mut self.nodes.get_mut(number as usize)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn node_of(&self, attributes: Attributes, kind: u32, body: Body) -> Node {
        let Attributes { mode, uid, gid, mtime_sec, mtime_nsec } = attributes;
        Node { mode: kind | mode, nlink: 0, uid, gid, mtime_sec, mtime_nsec, body }
    }

    fn push(&mut self, node: Node) -> Result<u32, Reason> {
        if self.nodes.len() >= MAX_NODES || self.text > MAX_TEXT {
            return Err("the image has more than a million entries, or 128 MiB of names");
        }
        if let Body::Symlink(target) = &node.body {
            self.text += target.len();
        }
        self.nodes.push(node);
        // MAX_NODES fits
        Ok((self.nodes.len() - 1) as u32)
    }

    /// A node without a name, of anything but a directory or a hard link.
    pub(super) fn add(&mut self, item: &Item<'_>, layer: u32) -> Result<u32, Reason> {
        let (kind, body) = match item.kind {
            EntryKind::File { file, size } => (libc::S_IFREG, Body::File { layer, file, size }),
            EntryKind::Symlink { target } => (libc::S_IFLNK, Body::Symlink(target.into())),
            EntryKind::Char { major, minor } => {
                (libc::S_IFCHR, Body::Device { rdev: pack_device(major, minor) })
            }
            EntryKind::Block { major, minor } => {
                (libc::S_IFBLK, Body::Device { rdev: pack_device(major, minor) })
            }
            EntryKind::Fifo => (libc::S_IFIFO, Body::Fifo),
            EntryKind::Dir | EntryKind::Hardlink { .. } => return Err("no node of its own"),
        };
        let node = self.node_of(item.attributes, kind, body);
        self.push(node)
    }

    /// Gives `name` in `dir` to `node`, or to nothing, unless a layer above has decided the name.
    pub(super) fn show(&mut self, dir: u32, name: &[u8], layer: u32, node: Option<u32>) {
        let Some(slot) = self.dir(dir).map(|dir| dir.slot(name)) else { return };
        let before = match slot {
            Some(slot) if slot.by > layer => {
                // below an upper directory it hides what lower layers hold in theirs
                if let Some(above) = slot.node {
                    self.close(above, layer);
                }
                return;
            }
            Some(slot) => slot.node,
            None => None,
        };
        let had_dir = before.is_some_and(|node| self.dir(node).is_some());
        let gets_dir = node.is_some_and(|node| self.dir(node).is_some());
        if let Some(before) = before.and_then(|node| self.nodes.get_mut(node as usize)) {
            before.nlink = before.nlink.saturating_sub(1);
        }
        if let Some(node) = node.and_then(|node| self.nodes.get_mut(node as usize)) {
            node.nlink += 1;
        }
        self.text += name.len();
        if let Some(dir) = self.dir_mut(dir) {
            match dir.names.get(name).and_then(|at| dir.slots.get_mut(*at)) {
                Some(slot) => slot.node = node,
                None => {
                    let name: Arc<[u8]> = name.into();
                    dir.names.insert(Arc::clone(&name), dir.slots.len());
                    dir.slots.push(Slot { name, node, by: layer });
                }
            }
        }
        if let Some(dir) = self.nodes.get_mut(dir as usize) {
            dir.nlink = (dir.nlink + u32::from(gets_dir)).saturating_sub(u32::from(had_dir));
            dir.touch();
        }
    }

    /// The directory that the layer's directory `name` in `dir` is shown as: its own, or one of a layer above that lets
    /// lower ones in; `None` if it is not shown. The layer must not have shown it as a directory already.
    pub(super) fn show_dir(
        &mut self,
        dir: u32,
        name: &[u8],
        layer: u32,
        attributes: Attributes,
    ) -> Result<Option<u32>, Reason> {
        let Some(slot) = self.dir(dir).map(|dir| dir.slot(name)) else { return Ok(None) };
        // what the layer itself had there, be it a whiteout, has hidden what lower layers hold in it
        let closed = match slot {
            Some(Slot { by, node, .. }) if *by > layer => {
                let node = *node;
                let lets_in = |node: &u32| {
                    self.dir(*node).is_some_and(|dir| dir.closed.is_none_or(|closed| closed <= layer))
                };
                return Ok(node.filter(lets_in));
            }
            Some(_) => Some(layer),
            None => None,
        };
        let body = Body::Dir(Dir { parent: dir, by: Some(layer), closed, ..Dir::default() });
        let node = Node { nlink: 1, ..self.node_of(attributes, libc::S_IFDIR, body) };
        let node = self.push(node)?;
        self.show(dir, name, layer, Some(node));
        Ok(Some(node))
    }

    /// The layer's entry of a directory that is shown: its attributes count if the directory is the layer's own.
    pub(super) fn describe(&mut self, number: u32, layer: u32, attributes: Attributes) {
        let Some(node) = self.nodes.get_mut(number as usize) else { return };
        let Body::Dir(dir) = &mut node.body else { return };
        if *dir.by.get_or_insert(layer) == layer {
            node.mode = node.mode & libc::S_IFMT | attributes.mode;
            (node.uid, node.gid) = (attributes.uid, attributes.gid);
        }
    }

    /// Nothing of layers below `layer` is shown in `number` from now on.
    pub(super) fn close(&mut self, number: u32, layer: u32) {
        if let Some(dir) = self.dir_mut(number) {
            dir.closed.get_or_insert(layer);
        }
    }

    /// Takes back a name that the layer has shown; the name is free again.
    pub(super) fn take_back(&mut self, dir: u32, name: &[u8], layer: u32) {
        if self.dir(dir).and_then(|dir| dir.slot(name)).is_none_or(|slot| slot.by != layer) {
            return;
        }
        self.show(dir, name, layer, None);
        if let Some(dir) = self.dir_mut(dir) {
            dir.names.remove(name);
        }
    }
}

impl Node {
    /// A name of it has changed.
    fn touch(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = (self.mtime_sec, self.mtime_nsec);
        (self.mtime_sec, self.mtime_nsec) = (now.as_secs().cast_signed(), now.subsec_nanos());
        if before == (self.mtime_sec, self.mtime_nsec) {
            // a clock that stands still must not hide a change
            self.mtime_nsec = (self.mtime_nsec + 1) % 1_000_000_000;
        }
    }
}
