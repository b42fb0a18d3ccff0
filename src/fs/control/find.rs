//! From an inode number to the node. Needs no earlier lookup: what the kernel learnt from a daemon that died resolves
//! as well.

use std::path::PathBuf;
use std::sync::Arc;

use super::inode::{self, Number};
use super::out::OutFolder;
use super::run_files::Slot;
use super::tree::{Node, StaticTree};
use super::{ControlTree, gone};
use crate::fs::error::FsError;
use crate::jobs::Run;

/// A node.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// A node of the snapshot; [`Found::node`] has it.
    Static(Arc<StaticTree>, u64),
    /// A run's directory, a file of it, or its symlink.
    Run(Arc<Run>, Slot),
    /// Something below `out/`, by its path there.
    Out(Arc<Run>, PathBuf),
}

impl Found {
    /// The node of the snapshot, if it is one.
    pub(super) fn node(&self) -> Option<&Node> {
        match self {
            Self::Static(tree, ino) => tree.node(*ino),
            Self::Run(..) | Self::Out(..) => None,
        }
    }
}

impl ControlTree {
    /// The node with this number.
    pub(super) fn find(&self, ino: u64) -> Result<Found, FsError> {
        match inode::decode(ino) {
            Number::Static => {
                let tree = self.tree();
                if tree.node(ino).is_none() {
                    return gone();
                }
                Ok(Found::Static(tree, ino))
            }
            Number::Run { run, slot } => {
                let (Some(run), Some(slot)) = (self.runs.by_number(run), Slot::of_number(slot)) else {
                    return gone();
                };
                Ok(if slot == Slot::Out { Found::Out(run, PathBuf::new()) } else { Found::Run(run, slot) })
            }
            Number::Out { run, real } => {
                let run = self.runs.by_low_bits(|number| inode::out_belongs_to(run, number));
                let run = run.ok_or(FsError::Gone)?;
                let folder = OutFolder::open(run.dir()).or_else(|_| gone())?;
                let path = self.out_paths.find(ino, real, &folder).ok_or(FsError::Gone)?;
                Ok(Found::Out(run, path))
            }
        }
    }
}
