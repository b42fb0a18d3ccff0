//! One layer as its entries come, and what of it the streaming tree shows.
//!
//! The rules are those of `merge`, asked in another order: there a layer finds what lower ones brought, here it finds
//! what upper ones leave to it. So that nothing is shown that a layer still to come would change:
//!
//! * layers come from the top, and a lower one shows nothing before all above it are proven;
//! * in a path a symbolic link of a lower layer would be followed. So an entry is shown only where every directory on its
//!   way is an entry of its own layer that came before it (as in the layers of all usual builders); of the lowest layer
//!   everything is. An entry that is not ("loose") is not shown, and nothing of lower layers is, either: it could lie
//!   anywhere among them;
//! * a hard link to something of a lower layer is not shown, and hides the name.
//!
//! Within a layer a later entry of a path takes the place of an earlier one, as everywhere; image-spec (layer.md) has
//! unique entries, so that only a layer that breaks it changes under its readers.

use std::collections::BTreeMap;

use super::super::merge::{NAME_MAX, OPAQUE, PATH_MAX, WHITEOUT, is_aufs, split};
use super::super::resolve;
use super::tree::{self, Attributes, Item, Reason, Tree};
use crate::fetch::index::EntryKind;

/// A layer's own entries so far.
#[derive(Debug)]
pub(super) struct Own {
    layer: u32,
    nodes: Vec<Mine>,
    loose: bool,
}

#[derive(Debug)]
enum Mine {
    Dir {
        names: BTreeMap<Box<[u8]>, usize>,
        /// An entry names it, not only paths that lead through it.
        named: bool,
        /// The directory that it is shown as.
        shown: Option<u32>,
    },
    Symlink {
        target: Box<[u8]>,
        node: Option<u32>,
    },
    /// Anything else; `None` if it cannot be shown.
    Leaf(Option<u32>),
}

/// A component of a resolved path, and its node if the layer has it; kept while nodes are added.
struct Step {
    name: Box<[u8]>,
    mine: Option<usize>,
}

const ROOT: usize = 0;

impl Own {
    /// Nothing of `layer` (from 0, the lowest) yet.
    pub(super) fn new(layer: u32) -> Self {
        let root = Mine::Dir { names: BTreeMap::new(), named: true, shown: Some(tree::ROOT) };
        Self { layer, nodes: vec![root], loose: false }
    }

    /// Whether lower layers may be shown now that this one is complete.
    pub(super) fn lets_lower_in(&self) -> bool {
        !self.loose
    }

    /// Adds the layer's next entry. After an error nothing more can be said of the layer.
    pub(super) fn add(&mut self, tree: &mut Tree, item: &Item<'_>) -> Result<(), Reason> {
        if item.path.len() > PATH_MAX {
            return Err("the path is longer than 4096 bytes");
        }
        if self.nodes.len() >= tree::MAX_NODES {
            return Err("the layer has more than a million entries");
        }
        let (parent, name) = split(item.path);
        if name.is_empty() {
            tree.describe(tree::ROOT, self.layer, item.attributes);
            return Ok(());
        }
        if is_aufs(parent, name) {
            return Ok(());
        }
        if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err("a directory's name begins with .wh.");
        }
        let steps = self.resolve(parent)?;
        if name.starts_with(WHITEOUT) {
            return self.whiteout(tree, &steps, name);
        }
        if name.len() > NAME_MAX {
            return Err("a name is longer than 255 bytes");
        }
        match self.directory(tree, &steps)? {
            Some(dir) => self.place(tree, dir, name, item),
            None => {
                self.loose = true;
                Ok(())
            }
        }
    }

    fn lowest(&self) -> bool {
        self.layer == 0
    }

    fn child(&self, dir: usize, name: &[u8]) -> Option<usize> {
        match self.nodes.get(dir)? {
            Mine::Dir { names, .. } => names.get(name).copied(),
            _ => None,
        }
    }

    fn shown(&self, dir: usize) -> Option<u32> {
        match self.nodes.get(dir)? {
            Mine::Dir { shown, .. } => *shown,
            _ => None,
        }
    }

    /// Follows `path` as far as the layer has it.
    fn resolve(&self, path: &[u8]) -> Result<Vec<Step>, Reason> {
        let steps = resolve::resolve(path, ROOT, |dir, name| {
            let mine = self.child(dir, name)?;
            match self.nodes.get(mine)? {
                Mine::Symlink { target, .. } => Some((mine, Some(&**target))),
                _ => Some((mine, None)),
            }
        })?;
        Ok(steps.into_iter().map(|step| Step { name: step.name.into(), mine: step.node }).collect())
    }

    /// The resolved directory, if nothing of a lower layer can lead elsewhere; in the lowest layer what is missing of it
    /// is made.
    fn directory(&mut self, tree: &mut Tree, steps: &[Step]) -> Result<Option<usize>, Reason> {
        let mut at = ROOT;
        for step in steps {
            at = match step.mine {
                Some(mine) => mine,
                None if self.lowest() => {
                    let implied = Attributes::implied(tree.created());
                    self.make_dir(tree, at, &step.name, implied, false)?
                }
                None => return Ok(None),
            };
            match self.nodes.get(at) {
                Some(Mine::Dir { named, .. }) if *named || self.lowest() => {}
                Some(Mine::Dir { .. }) => return Ok(None),
                _ => return Err("something that is no directory lies on the way to it"),
            }
        }
        Ok(Some(at))
    }

    fn place(&mut self, tree: &mut Tree, dir: usize, name: &[u8], item: &Item<'_>) -> Result<(), Reason> {
        let known = self.child(dir, name);
        if item.kind == EntryKind::Dir {
            if item.guarded {
                // what is below it stays hidden with it
                self.supersede(tree, known);
                self.show(tree, dir, name, None);
                self.put(dir, name, Mine::Dir { names: BTreeMap::new(), named: true, shown: None });
                return Ok(());
            }
            match known.and_then(|known| self.nodes.get_mut(known)) {
                Some(Mine::Dir { named, shown, .. }) => {
                    *named = true;
                    if let Some(shown) = *shown {
                        tree.describe(shown, self.layer, item.attributes);
                    }
                }
                _ => {
                    self.make_dir(tree, dir, name, item.attributes, true)?;
                }
            }
            return Ok(());
        }
        let mine = match item.kind {
            EntryKind::Hardlink { target } => return self.hard_link(tree, dir, name, target),
            _ if item.guarded => Mine::Leaf(None),
            EntryKind::Symlink { target } => {
                Mine::Symlink { target: target.into(), node: Some(tree.add(item, self.layer)?) }
            }
            _ => Mine::Leaf(Some(tree.add(item, self.layer)?)),
        };
        self.supersede(tree, known);
        self.show(tree, dir, name, mine.node());
        self.put(dir, name, mine);
        Ok(())
    }

    fn hard_link(&mut self, tree: &mut Tree, dir: usize, name: &[u8], target: &[u8]) -> Result<(), Reason> {
        let (parent, last) = split(target);
        let steps = self.resolve(parent)?;
        let found = steps.last().map_or(Some(ROOT), |step| step.mine).and_then(|at| self.child(at, last));
        let known = self.child(dir, name);
        let (node, mine) = match found {
            Some(found) if matches!(self.nodes.get(found), Some(Mine::Dir { .. })) => {
                return Err("a hard link to a directory");
            }
            Some(found) => (self.nodes.get(found).and_then(Mine::node), Some(found)),
            None if self.lowest() => return Err("a hard link to something that does not exist"),
            None => (None, None),
        };
        if mine.is_some() && mine == known {
            return Ok(());
        }
        self.supersede(tree, known);
        self.show(tree, dir, name, node);
        if let Some(mine) = mine {
            self.name(dir, name, mine);
        } else {
            self.put(dir, name, Mine::Leaf(None));
        }
        Ok(())
    }

    /// A whiteout hides what lower layers hold, never what its own layer brings.
    fn whiteout(&mut self, tree: &mut Tree, steps: &[Step], name: &[u8]) -> Result<(), Reason> {
        let hidden = name.get(WHITEOUT.len()..).unwrap_or_default();
        if name != OPAQUE && matches!(hidden, b"" | b"." | b"..") {
            return Err("a whiteout that names nothing");
        }
        if self.lowest() {
            return Ok(());
        }
        let Some(dir) = self.directory(tree, steps)? else {
            self.loose = true;
            return Ok(());
        };
        let close = if name == OPAQUE { Some(dir) } else { self.child(dir, hidden) };
        match close {
            Some(mine) => {
                if let Some(shown) = self.shown(mine) {
                    tree.close(shown, self.layer);
                }
            }
            None => self.show(tree, dir, hidden, None),
        }
        Ok(())
    }

    fn make_dir(
        &mut self,
        tree: &mut Tree,
        dir: usize,
        name: &[u8],
        attributes: Attributes,
        named: bool,
    ) -> Result<usize, Reason> {
        let shown = match self.shown(dir) {
            Some(dir) => tree.show_dir(dir, name, self.layer, attributes)?,
            None => None,
        };
        Ok(self.put(dir, name, Mine::Dir { names: BTreeMap::new(), named, shown }))
    }

    fn show(&self, tree: &mut Tree, dir: usize, name: &[u8], node: Option<u32>) {
        if let Some(dir) = self.shown(dir) {
            tree.show(dir, name, self.layer, node);
        }
    }

    /// Something else takes the place of `mine`. A directory's names that are shown in one of an upper layer go with it.
    fn supersede(&self, tree: &mut Tree, mine: Option<usize>) {
        let mut todo: Vec<usize> = mine.into_iter().collect();
        while let Some(mine) = todo.pop() {
            let Some(Mine::Dir { names, shown: Some(shown), .. }) = self.nodes.get(mine) else { continue };
            for (name, child) in names {
                tree.take_back(*shown, name, self.layer);
                todo.push(*child);
            }
        }
    }

    fn put(&mut self, dir: usize, name: &[u8], mine: Mine) -> usize {
        self.nodes.push(mine);
        let number = self.nodes.len() - 1;
        self.name(dir, name, number);
        number
    }

    fn name(&mut self, dir: usize, name: &[u8], mine: usize) {
        if let Some(Mine::Dir { names, .. }) = self.nodes.get_mut(dir) {
            names.insert(name.into(), mine);
        }
    }
}

impl Mine {
    fn node(&self) -> Option<u32> {
        match self {
            Self::Dir { .. } => None,
            Self::Symlink { node, .. } => *node,
            Self::Leaf(node) => *node,
        }
    }
}
