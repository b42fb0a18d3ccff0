//! Why an image has no tree.

use std::path::PathBuf;

/// A tree that could not be built or opened.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An entry of a layer that the specification forbids, or that no extractor could create.
    #[error("layer {layer}: {path:?}: {reason}")]
    Entry {
        /// Counted from 1, the lowest.
        layer: u32,
        /// The entry's path, invalid UTF-8 replaced.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than the tree file can hold.
    #[error("the image has too many {0} for a tree file")]
    TooMany(&'static str),
    /// The tree file's disk.
    #[error("{path}: {source}", path = .path.display())]
    Disk {
        /// The tree file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The tree file is of another version, cut short or damaged: build it anew.
    #[error("{path}: not a tree file that can be used: {reason}", path = .path.display())]
    Format {
        /// The tree file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
}
