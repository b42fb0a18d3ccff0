//! Names of entries made safe.
//!
//! As umoci does (`CleanPath`): absolute names are taken below the root, `.` and empty components vanish, `..`
//! climbs lexically and never above the root. Symlinks on the way are the merge's affair.

/// Longest path of an entry: PATH_MAX, since no caller could name a longer one.
pub(super) const MAX_PATH: usize = 4096;

/// Longest component: NAME_MAX of every Linux file system.
const MAX_NAME: usize = 255;

/// The components of `name` joined by `/`, without a leading one; empty for the root itself.
pub(super) fn clean(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.contains(&0) {
        return Err("name contains a NUL byte");
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ if part.len() > MAX_NAME => return Err("name has a component of more than 255 bytes"),
            _ => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    if path.len() > MAX_PATH { Err("name is longer than 4096 bytes") } else { Ok(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_umoci_does() {
        for (name, path) in [
            ("a/b", "a/b"),
            ("/a//b/./c/", "a/b/c"),
            ("./", ""),
            ("", ""),
            ("/", ""),
            ("../../etc/passwd", "etc/passwd"),
            ("/../x", "x"),
            ("a/../../b", "b"),
            ("a/b/..", "a"),
            ("...", "..."),
        ] {
            assert_eq!(clean(name.as_bytes()).unwrap(), path.as_bytes(), "{name}");
        }
        assert!(clean(b"a\0b").is_err());
        assert!(clean(&[b'x'; 256]).is_err());
        assert!(clean(&b"abc/".repeat(1100)).is_err());
        assert!(clean(&[&[b'x'; 255][..], b"/\xff\xfe"].concat()).is_ok());
    }
}
