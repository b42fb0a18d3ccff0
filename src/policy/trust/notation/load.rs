//! The files of a trust policy, in notation's folders. Only stores that the policy names are read.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::policy::TrustPolicy;
use super::{CrlFile, NotationTrust, StoreFile, StoreKind};
use crate::policy::source::parse::ReadFile;

/// Most files of one folder that are read.
const MAX_FILES: usize = 1000;

/// Where the files are.
#[derive(Debug, Clone, Serialize)]
pub struct NotationPaths {
    /// The trust policy document.
    pub trust_policy: PathBuf,
    /// The folder that holds `x509/{ca,signingAuthority,tsa}/NAME/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_store: Option<PathBuf>,
    /// The folder with revocation lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crls: Option<PathBuf>,
}

/// Reads the files. The reason names the file.
pub fn load(paths: &NotationPaths, read: ReadFile<'_>) -> Result<NotationTrust, String> {
    let named = |path: &Path, reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let content =
        |path: &Path| read(path).map_err(|error| named(path, &format_args!("cannot be read: {error}")));
    let policy = TrustPolicy::parse(&content(&paths.trust_policy)?)
        .map_err(|reason| named(&paths.trust_policy, &reason))?;
    let mut files = Vec::new();
    for (kind, store) in policy.stores() {
        let folder = paths.trust_store.as_ref().ok_or_else(|| {
            let words = format!(
                "names trust store {}:{store}, and trust.notation.trust_store is not said",
                kind.name()
            );
            named(&paths.trust_policy, &words)
        })?;
        files.extend(store_files(&folder.join("x509").join(kind.name()), kind, store, read)?);
    }
    let mut lists = Vec::new();
    if let Some(folder) = &paths.crls {
        for entry in entries(folder, read)? {
            let (Entry::File(name) | Entry::Link(name)) = &entry else { continue };
            if is_list(name) {
                lists.push(CrlFile { name: name.clone(), bytes: content(&folder.join(name))? });
            }
        }
    }
    Ok(NotationTrust { paths: Some(paths.clone()), ..NotationTrust::new(policy, files, lists) })
}

/// The certificates of one store. Symbolic links are refused ("Trust Store" in `trust-store-trust-policy.md`).
fn store_files(
    of_kind: &Path,
    kind: StoreKind,
    store: &str,
    read: ReadFile<'_>,
) -> Result<Vec<StoreFile>, String> {
    let folder = of_kind.join(store);
    let is_link =
        |path: &Path| format!("{}: is a symbolic link, which trust stores must not have", path.display());
    let stores = entries(of_kind, read)?;
    if stores.iter().any(|entry| matches!(entry, Entry::Link(name) if name == store)) {
        return Err(is_link(&folder));
    }
    let mut files = Vec::new();
    for entry in entries(&folder, read)? {
        match entry {
            Entry::Link(name) if StoreFile::is_certificate(&name) => return Err(is_link(&folder.join(name))),
            Entry::File(name) if StoreFile::is_certificate(&name) => {
                let path = folder.join(&name);
                let bytes =
                    read(&path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
                files.push(StoreFile { kind, store: store.to_owned(), file: name, bytes });
            }
            _ => {}
        }
    }
    Ok(files)
}

fn is_list(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| ["crl", "pem", "der"].contains(&extension.as_str()))
}

/// An entry of a folder, as [`ReadFile`] lists it.
enum Entry {
    File(String),
    Folder,
    Link(String),
}

fn entries(folder: &Path, read: ReadFile<'_>) -> Result<Vec<Entry>, String> {
    let refuse = |reason: String| format!("{}: {reason}", folder.display());
    let listing = read(folder).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let listing =
        String::from_utf8(listing).map_err(|_| refuse("holds names that are not UTF-8".to_owned()))?;
    let entry = |line: &str| match (line.strip_suffix('/'), line.strip_suffix('@')) {
        (Some(_), _) => Entry::Folder,
        (None, Some(link)) => Entry::Link(link.to_owned()),
        (None, None) => Entry::File(line.to_owned()),
    };
    let entries: Vec<Entry> = listing.lines().map(entry).collect();
    if entries.len() > MAX_FILES {
        return Err(refuse(format!("holds more than {MAX_FILES} files")));
    }
    Ok(entries)
}
