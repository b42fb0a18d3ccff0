//! Finding mounted addonfs trees, as any other program would: in `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};

use crate::fs::kernel::mount;

/// All mount points of addonfs in this mount namespace, without the nested image connections.
pub(crate) fn all() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mount::ours().into_iter().map(|(_, path)| path).collect();
    found.sort();
    found.dedup();
    let nested = [".addonfs/images", ".addonfs/xattr-images"];
    found.retain(|path| !nested.iter().any(|end| path.ends_with(end)) && !is_own_images(path));
    found
}

/// An ordinary user's image connections lie in the runtime directory.
fn is_own_images(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    (name.starts_with(b"images-") || name.starts_with(b"xattr-images-"))
        && path.parent().is_some_and(|dir| dir.ends_with("addonfs"))
}

/// Whether `path` is a mount point of addonfs, alive or dead.
pub(crate) fn is_mounted(path: &Path) -> bool {
    mount::connection_of(path).is_some()
}

/// The mount a command means: the one named, else `ADDONFS_MOUNT`, else the only one there is.
pub(crate) fn chosen(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("ADDONFS_MOUNT") {
        return Ok(path.into());
    }
    match all().as_slice() {
        [only] => Ok(only.clone()),
        [] => anyhow::bail!("no addonfs is mounted: start one with `addonfs mount --config FILE DIR`"),
        several => {
            let list: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            anyhow::bail!("several are mounted ({}): name one with --mount DIR", list.join(", "))
        }
    }
}
