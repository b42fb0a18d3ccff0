//! Merging layers, as the OCI image specification says (image-spec `layer.md`, "Applying Changesets").
//!
//! Where the specification is silent this does what `umoci unpack` does, since people compare with it:
//! * entries are applied in tar order, a later one of the same name wins;
//! * symlinks in the path to an entry are followed inside the root (`..` stops at the root), the last component never;
//! * a directory over a directory replaces its attributes and keeps its children; anything else removes, then creates;
//! * a whiteout hides what lower layers brought, and never what its own layer brought, whatever their order. So every
//!   name remembers the last layer that brought it or something below it (`Edge::touched`);
//! * a hard link shares the identity and attributes of its target, also of one from a lower layer;
//! * extended attributes are attributes like the others: whoever replaces those replaces these.
//!
//! An entry that no extractor could create (below a file, a hard link to nothing) refuses the image: a tree that
//! differs from everybody else's is a wrong byte.

use std::collections::BTreeMap;

use super::TreeError;
use super::resolve::{Step, resolve};
use super::xattr::{self, XattrSets};
use crate::fetch::index::{Entry, EntryKind};

pub(super) const WHITEOUT: &[u8] = b".wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files (`.wh..wh.plnk`, `.wh..wh.aufs`); never shown.
const AUFS: &[u8] = b".wh..wh.";
/// Linux's NAME_MAX: no other file system could hold a longer one.
pub(super) const NAME_MAX: usize = 255;
/// Linux's PATH_MAX, and so more directories than any path can name.
pub(super) const PATH_MAX: usize = 4096;
/// Bounds memory while merging (about 130 bytes each); the largest images known have about a million.
const MAX_NODES: usize = 16 << 20;

/// Attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_sec: i64,
    pub(super) mtime_nsec: u32,
    /// Which of the tree's sets of extended attributes.
    pub(super) xattrs: u32,
}

#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) attributes: Attributes,
    pub(super) body: Body<'a>,
}

#[derive(Debug)]
pub(super) enum Body<'a> {
    Dir(BTreeMap<&'a [u8], Edge>),
    File { layer: u32, file: u32, size: u64 },
    Symlink(&'a [u8]),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub(super) node: u32,
    /// The last layer (from 1) that brought this name or something below it.
    touched: u32,
}

/// Layers applied so far. Node 0 is the root. Names are the layers' own: nothing is copied of their indexes.
#[derive(Debug)]
pub struct Merge<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) created: i64,
    pub(super) layers: u32,
    pub(super) xattrs: XattrSets,
    /// The directory of the last entry of this layer, by the path that led there: most entries come after one of the same
    /// directory. Forgotten when anything is replaced or removed, which may lie on that path.
    last: Option<(&'a [u8], u32)>,
}

type Reason = &'static str;

impl<'a> Merge<'a> {
    /// No layer yet. `created` is the image config's time in seconds: the mtime of directories that no layer names.
    pub fn new(created: i64) -> Self {
        let mut merge = Self { nodes: Vec::new(), created, layers: 0, xattrs: XattrSets::new(), last: None };
        merge.nodes.push(merge.implied_dir());
        merge
    }

    /// Applies the next layer's entries, in tar order.
    pub fn apply(&mut self, entries: impl Iterator<Item = Entry<'a>>) -> Result<(), TreeError> {
        self.layers += 1;
        self.last = None;
        let layer = self.layers;
        for entry in entries {
            self.entry(&entry).map_err(|reason| TreeError::Entry {
                layer,
                path: String::from_utf8_lossy(entry.path).into_owned(),
                reason,
            })?;
        }
        Ok(())
    }

    fn implied_dir(&self) -> Node<'a> {
        let attributes = Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_sec: self.created,
            mtime_nsec: 0,
            xattrs: xattr::NONE,
        };
        Node { attributes, body: Body::Dir(BTreeMap::new()) }
    }

    fn entry(&mut self, entry: &Entry<'a>) -> Result<(), Reason> {
        if entry.path.len() > PATH_MAX {
            return Err("the path is longer than 4096 bytes");
        }
        let (parent, name) = split(entry.path);
        if name.is_empty() {
            return self.root(entry);
        }
        if is_aufs(parent, name) {
            return Ok(());
        }
        if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err("a directory's name begins with .wh., which is kept for whiteouts");
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(parent, name);
        }
        if name.len() > NAME_MAX {
            return Err("a name is longer than 255 bytes");
        }
        let dir = match self.last {
            Some((path, dir)) if path == parent => dir,
            _ => self.directory(parent)?,
        };
        let node = self.place(dir, name, entry)?;
        self.link(dir, name, node);
        Ok(())
    }

    /// The directory that `path` leads to, made where it is missing, and marked as brought by this layer.
    fn directory(&mut self, path: &'a [u8]) -> Result<u32, Reason> {
        let steps = self.resolve(path)?;
        let dir = self.make_dirs(&steps)?;
        self.touch(&steps);
        self.last = Some((path, dir));
        Ok(dir)
    }

    fn root(&mut self, entry: &Entry<'_>) -> Result<(), Reason> {
        if entry.kind != EntryKind::Dir {
            return Err("the root must be a directory");
        }
        self.nodes[0].attributes = self.attributes(entry)?;
        Ok(())
    }

    fn resolve(&self, path: &'a [u8]) -> Result<Vec<Step<'a, u32>>, Reason> {
        resolve(path, 0, |dir, name| {
            let node = self.child(dir, name)?.node;
            match self.nodes[node as usize].body {
                Body::Symlink(target) => Some((node, Some(target))),
                _ => Some((node, None)),
            }
        })
    }

    fn child(&self, dir: u32, name: &[u8]) -> Option<Edge> {
        match &self.nodes[dir as usize].body {
            Body::Dir(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// The node of a resolved directory; its missing parts are made, as implied directories.
    fn make_dirs(&mut self, steps: &[Step<'a, u32>]) -> Result<u32, Reason> {
        let mut dir = 0;
        for step in steps {
            dir = match step.node {
                Some(node) => node,
                None => {
                    let node = self.add(self.implied_dir())?;
                    self.link(dir, step.name, node);
                    node
                }
            };
            if !self.is_dir(dir) {
                return Err("something that is no directory lies on the way to it");
            }
        }
        Ok(dir)
    }

    fn is_dir(&self, node: u32) -> bool {
        matches!(self.nodes[node as usize].body, Body::Dir(_))
    }

    fn add(&mut self, node: Node<'a>) -> Result<u32, Reason> {
        if self.nodes.len() >= MAX_NODES {
            return Err("the image has more than 16 million entries");
        }
        self.nodes.push(node);
        // no overflow: their number is bounded
        Ok((self.nodes.len() - 1) as u32)
    }

    /// Gives `name` to `node`, in place of whatever had it.
    fn link(&mut self, dir: u32, name: &'a [u8], node: u32) {
        let edge = Edge { node, touched: self.layers };
        if let Body::Dir(children) = &mut self.nodes[dir as usize].body {
            children.insert(name, edge);
        }
    }

    fn unlink(&mut self, dir: u32, name: &[u8]) {
        if let Body::Dir(children) = &mut self.nodes[dir as usize].body
            && children.remove(name).is_some()
        {
            self.last = None;
        }
    }

    /// Marks a path as brought by this layer.
    fn touch(&mut self, steps: &[Step<'a, u32>]) {
        let layer = self.layers;
        let mut dir = 0;
        for step in steps {
            let Body::Dir(children) = &mut self.nodes[dir].body else { return };
            let Some(edge) = children.get_mut(step.name) else { return };
            edge.touched = layer;
            dir = edge.node as usize;
        }
    }

    /// The node that `dir/name` is to be: the old directory with new attributes, a hard link's target, or a new one.
    fn place(&mut self, dir: u32, name: &[u8], entry: &Entry<'a>) -> Result<u32, Reason> {
        let old = self.child(dir, name).map(|edge| edge.node);
        if let (Some(old), EntryKind::Dir) = (old, entry.kind)
            && self.is_dir(old)
        {
            self.nodes[old as usize].attributes = self.attributes(entry)?;
            return Ok(old);
        }
        self.unlink(dir, name);
        if let EntryKind::Hardlink { target } = entry.kind {
            return self.hardlink_target(target);
        }
        let body = body(entry, self.layers - 1);
        let attributes = self.attributes(entry)?;
        self.add(Node { attributes, body })
    }

    fn attributes(&mut self, entry: &Entry<'_>) -> Result<Attributes, Reason> {
        Ok(Attributes {
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime_sec: entry.mtime_sec,
            mtime_nsec: entry.mtime_nsec.min(999_999_999),
            xattrs: self.xattrs.add(entry)?,
        })
    }

    fn hardlink_target(&self, target: &'a [u8]) -> Result<u32, Reason> {
        const MISSING: Reason = "a hard link to something that does not exist";
        let (parent, name) = split(target);
        let steps = self.resolve(parent)?;
        let dir = steps.last().map_or(Some(0), |step| step.node).ok_or(MISSING)?;
        let node = self.child(dir, name).ok_or(MISSING)?.node;
        if self.is_dir(node) { Err("a hard link to a directory") } else { Ok(node) }
    }

    fn whiteout(&mut self, parent: &'a [u8], name: &[u8]) -> Result<(), Reason> {
        let steps = self.resolve(parent)?;
        let dir = steps.last().map_or(Some(0), |step| step.node);
        let hidden = &name[WHITEOUT.len()..];
        if name != OPAQUE && matches!(hidden, b"" | b"." | b"..") {
            return Err("a whiteout that names nothing");
        }
        // lower layers have no such directory: nothing to hide
        let Some(dir) = dir else { return Ok(()) };
        if name == OPAQUE {
            self.hide_lower(dir);
            return Ok(());
        }
        match self.child(dir, hidden) {
            Some(edge) if edge.touched == self.layers => self.hide_lower(edge.node),
            Some(_) => self.unlink(dir, hidden),
            None => {}
        }
        Ok(())
    }

    /// Removes everything below `dir` that this layer did not bring.
    fn hide_lower(&mut self, dir: u32) {
        let layer = self.layers;
        self.last = None;
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            if let Body::Dir(children) = &mut self.nodes[dir as usize].body {
                children.retain(|_, edge| edge.touched == layer);
                todo.extend(children.values().map(|edge| edge.node));
            }
        }
    }
}

pub(super) fn is_aufs(parent: &[u8], name: &[u8]) -> bool {
    let above = parent.split(|byte| *byte == b'/').any(|part| part.starts_with(AUFS));
    above || (name.starts_with(AUFS) && name != OPAQUE)
}

/// Directory part and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn body<'a>(entry: &Entry<'a>, layer: u32) -> Body<'a> {
    match entry.kind {
        // a hard link never gets here: it has its target's node
        EntryKind::Dir | EntryKind::Hardlink { .. } => Body::Dir(BTreeMap::new()),
        EntryKind::File { file, size } => Body::File { layer, file, size },
        EntryKind::Symlink { target } => Body::Symlink(target),
        EntryKind::Char { major, minor } => Body::Char { major, minor },
        EntryKind::Block { major, minor } => Body::Block { major, minor },
        EntryKind::Fifo => Body::Fifo,
    }
}
