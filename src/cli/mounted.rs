//! Finding mounted addonfs trees, as any other program would: in `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The file system type both connections are mounted with.
const TYPE: &str = "fuse.addonfs";

/// All mount points of addonfs in this mount namespace, without the nested image connections.
pub(crate) fn all() -> anyhow::Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = mount_points(&text);
    found.sort();
    found.dedup();
    let nested: Vec<PathBuf> = found.iter().map(|m| m.join(".addonfs/images")).collect();
    found.retain(|m| !nested.contains(m));
    Ok(found)
}

fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let dash = fields.iter().position(|f| *f == b"-")?;
            (fields.get(dash + 1)? == &TYPE.as_bytes()).then(|| unescape(fields.get(4)?)).flatten()
        })
        .collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Option<PathBuf> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| tail.get(..3)).flatten();
        match octal.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..)?;
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(out)))
}

/// Whether `path` is a mount point of addonfs, alive or dead.
pub(crate) fn is_mounted(path: &Path) -> anyhow::Result<bool> {
    Ok(all()?.iter().any(|m| m.as_os_str().as_bytes() == path.as_os_str().as_bytes()))
}

/// The mount a command means: the one named, else `ADDONFS_MOUNT`, else the only one there is.
pub(crate) fn chosen(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("ADDONFS_MOUNT") {
        return Ok(path.into());
    }
    match all()?.as_slice() {
        [only] => Ok(only.clone()),
        [] => anyhow::bail!("no addonfs is mounted: start one with `addonfs mount --config FILE DIR`"),
        several => {
            let list: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            anyhow::bail!("several are mounted ({}): name one with --mount DIR", list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_our_type_and_undoes_the_kernels_escapes() {
        let text = b"36 35 98:0 / /mnt/a\\040b rw - fuse.addonfs addonfs rw\n\
                     37 35 98:0 / /mnt/c rw shared:1 - ext4 /dev/x rw\n";
        assert_eq!(mount_points(text), vec![PathBuf::from("/mnt/a b")]);
    }
}
