//! How much of the disk a folder takes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Unit of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

/// Bytes on disk below a folder, its own included, without following links. What cannot be looked at counts nothing. An
/// inode of several names is counted as often: that errs on the side of removing too early by what a job linked.
pub(super) fn disk_usage(folder: &Path) -> u64 {
    let mut total = 0_u64;
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            total = total.saturating_add(found.blocks().saturating_mul(BLOCK));
            if found.is_dir() {
                open.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blocks_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let before = disk_usage(dir.path());
        std::fs::create_dir(dir.path().join("out")).unwrap();
        std::fs::write(dir.path().join("out/large"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("away")).unwrap();
        std::fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let grown = disk_usage(dir.path()) - before;
        assert!((300_000..400_000).contains(&grown), "{grown}");
    }
}
