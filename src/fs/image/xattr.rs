//! Which extended attributes of a layer a tree shows, and the form in which a tree keeps them.
//!
//! | attribute | |
//! |---|---|
//! | `security.capability` | shown. `nosuid` keeps it without effect on the mount; `getcap`, `cp -a` and copies see it |
//! | `user.*` | shown on files and directories; Linux lets nothing else have them |
//! | `system.posix_acl_access`, `system.posix_acl_default` | shown, and the kernel enforces them (see `acl`); the second on directories only |
//! | `user.overlay.*`, `user.fuseoverlayfs.*` | never: to an overlay whose lower directory is the tree they mean "opaque", "redirected", "content elsewhere": an image could show its container files that no layer holds |
//! | `trusted.*` | never, as containerd does: `trusted.overlay.*` for the same reason, and all are notes of some host's root to itself |
//! | `security.*` otherwise | never: labels of a host's own security modules (SELinux, Smack, IMA), which no image may set |
//! | all else | never: of other systems or file systems; no Linux file system would take them |
//!
//! A set lies in the tree file as one attribute after the other, sorted by name: length of its name and of its value
//! (32 bits each, little-endian), name, value.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::acl;
use crate::fetch::index::{Entry, EntryKind};

/// `XATTR_NAME_MAX`, `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of include/uapi/linux/limits.h.
const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 64 << 10;
const MAX_LIST: usize = 64 << 10;
/// Bounds memory while merging. Equal sets are kept once, and an image's usual few capabilities are 50 bytes.
const MAX_BYTES: usize = 64 << 20;

/// What overlays take for their own.
const OVERLAYS: [&[u8]; 2] = [b"user.overlay.", b"user.fuseoverlayfs."];

/// Number of the set without attributes.
pub(super) const NONE: u32 = 0;

type Reason = &'static str;

/// The different sets of a tree, encoded.
#[derive(Debug)]
pub(super) struct XattrSets {
    sets: Vec<Arc<[u8]>>,
    known: HashMap<Arc<[u8]>, u32>,
    bytes: usize,
}

impl XattrSets {
    pub(super) fn new() -> Self {
        let none: Arc<[u8]> = Arc::from([]);
        Self { sets: vec![Arc::clone(&none)], known: HashMap::from([(none, NONE)]), bytes: 0 }
    }

    /// The number of the set that `entry` shows.
    pub(super) fn add(&mut self, entry: &Entry<'_>) -> Result<u32, Reason> {
        if entry.xattrs.is_empty() {
            return Ok(NONE);
        }
        let set: Arc<[u8]> = encode(&shown(entry)?).into();
        if let Some(number) = self.known.get(&set) {
            return Ok(*number);
        }
        self.bytes += set.len();
        if self.bytes > MAX_BYTES {
            return Err("the image has more than 64 MiB of extended attributes");
        }
        // no overflow: each set but the first has bytes, and their sum is bounded
        let number = self.sets.len() as u32;
        self.sets.push(Arc::clone(&set));
        self.known.insert(set, number);
        Ok(number)
    }

    /// A set's encoded form.
    pub(super) fn get(&self, number: u32) -> &[u8] {
        self.sets.get(number as usize).map_or(&[], |set| set)
    }
}

fn shown<'a>(entry: &Entry<'a>) -> Result<BTreeMap<&'a [u8], &'a [u8]>, Reason> {
    let mut shown = BTreeMap::new();
    for (name, value) in entry.xattrs.iter() {
        if is_shown(name, value, &entry.kind)? {
            shown.insert(name, value);
        }
    }
    if shown.keys().map(|name| name.len() + 1).sum::<usize>() > MAX_LIST {
        return Err("the names of its extended attributes are more than Linux lists (64 KiB)");
    }
    Ok(shown)
}

fn is_shown(name: &[u8], value: &[u8], kind: &EntryKind<'_>) -> Result<bool, Reason> {
    let dir = matches!(kind, EntryKind::Dir);
    let shown = match name {
        b"security.capability" => {
            if !is_capability(value) {
                return Err("its file capabilities (security.capability) are of no form that Linux knows");
            }
            true
        }
        b"system.posix_acl_access" | b"system.posix_acl_default" => {
            let default = name.ends_with(b"_default");
            if matches!(kind, EntryKind::Symlink { .. }) || (default && !dir) {
                return Ok(false);
            }
            let says = acl::check(value).ok_or("its access control list is one that Linux refuses")?;
            default || says == acl::Says::More
        }
        _ => {
            let user = name.starts_with(b"user.") && (dir || matches!(kind, EntryKind::File { .. }));
            user && !OVERLAYS.iter().any(|prefix| name.starts_with(prefix))
        }
    };
    if shown && (name.len() > MAX_NAME || name == b"user." || name.contains(&0)) {
        return Err("the name of an extended attribute is empty, holds a NUL or is longer than 255 bytes");
    }
    if shown && value.len() > MAX_VALUE {
        return Err("an extended attribute is longer than 64 KiB");
    }
    Ok(shown)
}

/// `struct vfs_cap_data` of revision 2, or of 3, which adds the namespace's root (include/uapi/linux/capability.h).
/// The kernel answers EINVAL for anything else, to whoever asks.
fn is_capability(value: &[u8]) -> bool {
    // the revision is the uppermost byte of the first word; the lowest bit of that word is "effective"
    matches!((value.len(), value), (20, [0 | 1, 0, 0, 2, ..]) | (24, [0 | 1, 0, 0, 3, ..]))
}

fn encode(set: &BTreeMap<&[u8], &[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in set {
        for length in [name.len(), value.len()] {
            // both are within their limits
            bytes.extend((length as u32).to_le_bytes());
        }
        bytes.extend(*name);
        bytes.extend(*value);
    }
    bytes
}

/// Names and values of an encoded set; ends where it is no set.
pub(super) fn decode(mut set: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (name_length, rest) = set.split_first_chunk()?;
        let (value_length, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_length) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_length) as usize)?;
        set = rest;
        Some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    #[test]
    fn what_is_shown_where() {
        let (file, dir) = (EntryKind::File { file: 0, size: 0 }, EntryKind::Dir);
        let (link, fifo) = (EntryKind::Symlink { target: b"x" }, EntryKind::Fifo);
        let cases: &[(&[u8], &[u8], EntryKind<'_>, bool)] = &[
            (b"user.a", b"", file, true),
            (b"user.a", b"", dir, true),
            (b"user.a", b"", link, false),
            (b"user.a", b"", fifo, false),
            (b"user.overlay.opaque", b"y", dir, false),
            (b"user.overlays", b"y", dir, true),
            (b"user.fuseoverlayfs.opaque", b"y", dir, false),
            (b"trusted.overlay.opaque", b"y", dir, false),
            (b"trusted.x", b"y", file, false),
            (b"security.capability", CAPABILITY, file, true),
            (b"security.selinux", b"y", file, false),
            (b"security.ima", b"y", file, false),
            (b"com.apple.provenance", b"y", file, false),
            (b"system.nfs4_acl", b"y", file, false),
            (b"system.posix_acl_default", b"", file, false),
            (b"system.posix_acl_access", b"", link, false),
        ];
        for (name, value, kind, expected) in cases {
            assert_eq!(is_shown(name, value, kind), Ok(*expected), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn what_linux_would_not_take_is_refused() {
        let file = EntryKind::File { file: 0, size: 0 };
        let long = [b"user.", &[b'x'; 251][..]].concat();
        let large = vec![0; MAX_VALUE + 1];
        let cases: &[(&[u8], &[u8])] = &[
            (b"user.", b""),
            (b"user.a\0b", b""),
            (&long, b""),
            (b"user.a", &large),
            (b"security.capability", b"\x01"),
            (b"security.capability", &CAPABILITY[..19]),
            (b"system.posix_acl_access", b"\x02\0\0\0"),
        ];
        for (name, value) in cases {
            assert!(is_shown(name, value, &file).is_err(), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn sets_read_back_and_damaged_ones_end() {
        let set = BTreeMap::from([(&b"user.a"[..], &b"1"[..]), (b"user.b", b"")]);
        let bytes = encode(&set);
        assert_eq!(decode(&bytes).collect::<BTreeMap<_, _>>(), set);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).count() < 2);
        }
        assert_eq!(decode(&[0xff; 16]).count(), 0);
    }
}
