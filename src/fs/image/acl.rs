//! POSIX access control lists as they lie in `system.posix_acl_*` attributes (`linux/posix_acl_xattr.h`): a version
//! word, then 8 bytes an entry: tag, permissions, id.
//!
//! The image connection has the kernel enforce them, and a list that the kernel cannot read would make its file an
//! error for everybody; so what `setfacl` could not have written is refused, by the kernel's own rules
//! (`posix_acl_valid`).

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
/// The kernel asks FUSE for one page of a list, on every architecture at least this.
const MAX_BYTES: usize = 4096;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a list says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing that the mode does not say: no file system keeps such a list.
    Mode,
    /// More than the mode.
    More,
}

/// Checks a list; `None` if no kernel would take it.
pub(super) fn check(value: &[u8]) -> Option<Says> {
    let (version, entries) = value.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION || value.len() > MAX_BYTES || entries.len() % ENTRY != 0 {
        return None;
    }
    let mut tags = Vec::with_capacity(entries.len() / ENTRY);
    for entry in entries.chunks_exact(ENTRY) {
        let [a, b, c, d, ..] = *entry else { return None };
        if u16::from_le_bytes([c, d]) > 0o7 {
            return None;
        }
        tags.push(u16::from_le_bytes([a, b]));
    }
    let count = |tag| tags.iter().filter(|known| **known == tag).count();
    let named = count(USER) + count(GROUP);
    let masks = count(MASK);
    let ordered = tags.is_sorted();
    let once = [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1);
    if !ordered || !once || masks > 1 || (named > 0 && masks == 0) || tags.len() != 3 + named + masks {
        return None;
    }
    Some(if tags.len() == 3 { Says::Mode } else { Says::More })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(version: u32, entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = version.to_le_bytes().to_vec();
        for (tag, permissions) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(1000_u32.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_the_kernel_takes_is_taken() {
        let plain = [(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)];
        let named = [(USER_OBJ, 7), (USER, 4), (GROUP_OBJ, 0), (GROUP, 5), (MASK, 5), (OTHER, 0)];
        assert_eq!(check(&list(2, &plain)), Some(Says::Mode));
        assert_eq!(check(&list(2, &named)), Some(Says::More));
        assert_eq!(check(&list(1, &plain)), None, "another version");
        assert_eq!(check(&list(2, &plain)[..20]), None, "cut short");
        assert_eq!(check(b"\x02\0\0"), None);
        let bad: &[&[(u16, u16)]] = &[
            &[],
            &[(USER_OBJ, 6), (GROUP_OBJ, 4)],
            &[(USER_OBJ, 6), (OTHER, 0), (GROUP_OBJ, 4)],
            &[(USER_OBJ, 8), (GROUP_OBJ, 4), (OTHER, 0)],
            &[(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 4), (OTHER, 0)],
            &[(USER_OBJ, 6), (USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)],
            &[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0), (0x40, 0)],
        ];
        for entries in bad {
            assert_eq!(check(&list(2, entries)), None, "{entries:?}");
        }
        let mut many = vec![(USER_OBJ, 6)];
        many.extend([(USER, 4); 600]);
        many.extend([(GROUP_OBJ, 0), (MASK, 4), (OTHER, 0)]);
        assert_eq!(check(&list(2, &many)), None, "more than the kernel asks for");
    }
}
