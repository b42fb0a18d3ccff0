//! What really lies on disk.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::item::Kind;
use crate::policy::digest::Digest;

/// Every item that lies on disk, with its size. Reads the whole directory: never while holding the catalog.
pub(super) fn scan_all(root: &Path) -> HashMap<(Kind, Digest), u64> {
    let of_kind = |kind| scan(root, kind).into_iter().map(move |(digest, size)| ((kind, digest), size));
    Kind::ALL.into_iter().flat_map(of_kind).collect()
}

/// Every item of a kind that lies on disk, with its size.
fn scan(root: &Path, kind: Kind) -> Vec<(Digest, u64)> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let paths: Vec<PathBuf> = match kind {
        Kind::Index => list(&root.join("layers")).collect(),
        Kind::Pack => list(&root.join("packs")).collect(),
        Kind::File => list(&root.join("files")).flat_map(|fan| list(&fan).collect::<Vec<_>>()).collect(),
        Kind::Chunk => list(&root.join("chunks")).flat_map(|fan| list(&fan).collect::<Vec<_>>()).collect(),
    };
    let item = |path: PathBuf| {
        let digest = Digest::from_hex(path.file_name()?.to_str()?)?;
        let metadata = fs::symlink_metadata(root.join(kind.relative(&digest))).ok()?;
        // A pack can be sparse (a block of stat(2) has 512 bytes).
        let size = if kind == Kind::Pack { metadata.blocks() * 512 } else { metadata.len() };
        Some((digest, size.min(metadata.len())))
    };
    paths.into_iter().filter_map(item).collect()
}
