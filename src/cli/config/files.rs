//! The files that a configuration is made of: itself, its policy file, keys, certificates.
//!
//! Whoever reads them from the disk remembers what was in them, so that a daemon that takes another's place can go on
//! with exactly the same, whatever became of the files meanwhile.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Largest listing of a folder: some ten thousand names.
const MAX_LISTING: usize = 1 << 20;

/// Largest file that is read. A bundle of certificates is some hundred KiB; a configuration of all allowed sources,
/// too.
const MAX_FILE: u64 = 4 << 20;

/// Reads files and remembers them, or gives what was remembered.
#[derive(Debug, Default)]
pub(crate) struct Files {
    kept: Option<BTreeMap<PathBuf, Vec<u8>>>,
    read: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
}

impl Files {
    /// The content of a file, or the listing of a folder as `policy` wants it: one entry a line, folders with `/` behind,
    /// symbolic links with `@`.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if let Some(kept) = &self.kept {
            let found = kept.get(path).cloned();
            return found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it was not there before"));
        }
        let content = if path.is_dir() { list(path) } else { read_bounded(path) }?;
        self.read.borrow_mut().insert(path.to_owned(), content.clone());
        Ok(content)
    }

    /// The content of a file that only its owner, who is root or this user, can read or write.
    pub(crate) fn read_private(&self, path: &Path) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::MetadataExt as _;
        if self.kept.is_none() {
            let metadata = std::fs::metadata(path)?;
            let refuse = |words: String| io::Error::new(io::ErrorKind::PermissionDenied, words);
            if metadata.mode() & 0o077 != 0 {
                let words =
                    format!("its mode is {:04o}: chmod 0600 {}", metadata.mode() & 0o7777, path.display());
                return Err(refuse(words));
            }
            if ![0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid()) {
                return Err(refuse(format!("it belongs to user {}", metadata.uid())));
            }
        }
        self.read(path)
    }

    /// All that was read, in a form that [`Files::from_text`] understands.
    pub(crate) fn to_text(&self) -> String {
        let read = self.kept.clone().unwrap_or_else(|| self.read.borrow().clone());
        let line = |(path, content): (PathBuf, Vec<u8>)| {
            use std::os::unix::ffi::OsStrExt as _;
            (STANDARD.encode(path.as_os_str().as_bytes()), STANDARD.encode(content))
        };
        // A list of pairs of strings always serializes.
        serde_json::to_string(&read.into_iter().map(line).collect::<Vec<_>>()).unwrap_or_default()
    }

    /// What an earlier [`Files::to_text`] holds; `None` if it is not whole.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        use std::os::unix::ffi::OsStringExt as _;
        let lines: Vec<(String, String)> = serde_json::from_str(text).ok()?;
        let pair = |(path, content): (String, String)| {
            let path = std::ffi::OsString::from_vec(STANDARD.decode(path).ok()?);
            Some((PathBuf::from(path), STANDARD.decode(content).ok()?))
        };
        let kept = lines.into_iter().map(pair).collect::<Option<_>>()?;
        Some(Self { kept: Some(kept), read: RefCell::default() })
    }
}

fn list(folder: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let mark = if kind.is_dir() {
            "/"
        } else if kind.is_symlink() {
            "@"
        } else {
            ""
        };
        let name = entry.file_name();
        // Such a name could pass for two.
        if !name.as_bytes().contains(&b'\n') {
            lines.push([name.as_bytes(), mark.as_bytes(), b"\n"].concat());
        }
    }
    lines.sort();
    let listing = lines.concat();
    if listing.len() > MAX_LISTING {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a folder of too many files"));
    }
    Ok(listing)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_FILE} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_given_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), b"\xff\0content").unwrap();
        std::fs::write(path("large"), vec![0; MAX_FILE as usize + 1]).unwrap();
        let files = Files::default();
        assert_eq!(files.read(&path("a")).unwrap(), b"\xff\0content");
        assert!(files.read(&path("none")).is_err() && files.read(&path("large")).is_err());
        std::fs::create_dir(path("folder")).unwrap();
        std::fs::create_dir(path("folder/b")).unwrap();
        std::fs::write(path("folder/c"), "").unwrap();
        std::os::unix::fs::symlink("c", path("folder/a")).unwrap();
        assert_eq!(files.read(&path("folder")).unwrap(), b"a@\nb/\nc\n");
        let bytes = files.to_text();
        std::fs::remove_file(path("folder/c")).unwrap();
        std::fs::write(path("a"), "changed").unwrap();
        std::fs::write(path("none"), "there now").unwrap();
        let kept = Files::from_text(&bytes).unwrap();
        assert_eq!(kept.read(&path("a")).unwrap(), b"\xff\0content");
        assert_eq!(kept.read(&path("folder")).unwrap(), b"a@\nb/\nc\n");
        assert!(kept.read(&path("none")).is_err());
        assert_eq!(kept.to_text(), bytes);
        assert!(Files::from_text(&bytes[..bytes.len() - 1]).is_none() && Files::from_text("").is_none());
    }
}
