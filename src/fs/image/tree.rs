//! One image's tree: made of layers once, opened in milliseconds ever after.

use std::path::Path;

use super::TreeError;
use super::entry::Entry;
use super::file::{self, Node, NodeBody, TreeFile};
use super::merge::Merge;

/// Number of the root directory.
pub const ROOT: u32 = 0;

/// An open tree.
#[derive(Debug)]
pub struct ImageTree(TreeFile);

impl ImageTree {
    /// Merges layers, lowest first, and writes the tree file at `path` in one step. `created` is the image config's
    /// time in seconds since the epoch.
    pub fn build_from<'a, L, E>(path: &Path, layers: L, created: i64) -> Result<(), TreeError>
    where
        L: IntoIterator<Item = E>,
        E: IntoIterator<Item = Entry<'a>>,
    {
        let mut merge = Merge::new(created);
        for entries in layers {
            merge.apply(entries.into_iter())?;
        }
        file::write(path, &merge)
    }

    /// Opens the tree file at `path`. On [`TreeError::Format`] remove it and build it anew.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        TreeFile::open(path).map(Self)
    }

    /// How many nodes; their numbers are below it.
    pub fn nodes(&self) -> u32 {
        self.0.nodes()
    }

    /// How many layers its contents refer to.
    pub fn layers(&self) -> u32 {
        self.0.layers()
    }

    /// The image config's time, seconds since the epoch.
    pub fn created(&self) -> i64 {
        self.0.created()
    }

    /// Node `number`, or `None` if there is none.
    pub fn node(&self, number: u32) -> Option<Node> {
        self.0.node(number)
    }

    /// The node called `name` in the directory `dir`.
    pub fn child(&self, dir: &Node, name: &[u8]) -> Option<u32> {
        let NodeBody::Dir { first, count, .. } = dir.body else { return None };
        let (mut low, mut high) = (first, first.checked_add(count)?);
        while low < high {
            let middle = low + (high - low) / 2;
            let (candidate, node) = self.0.entry(middle)?;
            match candidate.cmp(name) {
                std::cmp::Ordering::Equal => return Some(node),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The `index`-th name of the directory `dir`, in the order of name bytes, and its node.
    pub fn entry(&self, dir: &Node, index: u64) -> Option<(&[u8], u32)> {
        let NodeBody::Dir { first, count, .. } = dir.body else { return None };
        let index = u32::try_from(index).ok().filter(|index| *index < count)?;
        self.0.entry(first.checked_add(index)?)
    }

    /// Where a symlink points.
    pub fn target(&self, link: &Node) -> Option<&[u8]> {
        match link.body {
            NodeBody::Symlink { offset, length } => self.0.bytes(offset, length),
            _ => None,
        }
    }

    /// The node at `path` below the root, symlinks not followed.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut number = ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            number = self.child(&self.node(number)?, name)?;
        }
        Some(number)
    }
}
