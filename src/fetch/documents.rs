//! Small documents on disk: manifests, indexes, configs, the add-on's manifest and signatures of images that were seen.
//!
//! ```text
//! <cache>/documents/<hex>        media type, newline, the document whose sha256 is <hex>
//! <cache>/documents/<hex>.sig    {"version", "evidence"}: signatures of the manifest <hex>; hints, proven again at each use
//! ```
//! In: documents that were verified when they came. Out: the same, hashed again on reading; a file that no longer
//! matches its name counts as absent. With them a known image needs no network.

use std::borrow::Cow;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::FetchError;
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::trust::evidence::{EVIDENCE_VERSION, Evidence};

/// Largest file read back: a config of the largest size with room for the media type.
const MAX_FILE: u64 = 9 << 20;

/// A file of signatures.
#[derive(Serialize, Deserialize)]
struct KeptEvidence<'a> {
    version: u32,
    evidence: Cow<'a, [Evidence]>,
}

/// The folder of documents.
#[derive(Debug, Clone)]
pub struct Documents {
    dir: PathBuf,
}

impl Documents {
    /// Opens the folder, making it if need be.
    pub fn open(cache: &Path) -> Result<Self, FetchError> {
        let dir = cache.join("documents");
        std::fs::create_dir_all(&dir)
            .map_err(|e| FetchError::storage("cannot make the documents folder", &e))?;
        Ok(Self { dir })
    }

    /// The document with this digest and its media type, if it is here and unharmed.
    pub fn get(&self, digest: &Digest) -> Option<(String, VerifiedBytes)> {
        let bytes = read_bounded(&self.dir.join(digest.hex()))?;
        let newline = bytes.iter().position(|b| *b == b'\n')?;
        let media_type = String::from_utf8(bytes.get(..newline)?.to_vec()).ok()?;
        let content = Bytes::from(bytes).slice(newline + 1..);
        Some((media_type, VerifiedBytes::check(content, digest).ok()?))
    }

    /// Keeps a document.
    pub fn put(&self, digest: &Digest, media_type: &str, content: &VerifiedBytes) -> Result<(), FetchError> {
        let mut file = Vec::with_capacity(media_type.len() + 1 + content.len());
        file.extend_from_slice(media_type.replace('\n', " ").as_bytes());
        file.push(b'\n');
        file.extend_from_slice(content);
        self.write(&digest.hex(), &file)
    }

    /// The signatures last seen for a manifest. They prove nothing by themselves.
    pub fn signatures(&self, manifest: &Digest) -> Option<Vec<Evidence>> {
        let bytes = read_bounded(&self.dir.join(format!("{}.sig", manifest.hex())))?;
        let kept: KeptEvidence<'_> = serde_json::from_slice(&bytes).ok()?;
        (kept.version == EVIDENCE_VERSION).then(|| kept.evidence.into_owned())
    }

    /// Keeps signatures.
    pub fn put_signatures(&self, manifest: &Digest, evidence: &[Evidence]) -> Result<(), FetchError> {
        let kept = KeptEvidence { version: EVIDENCE_VERSION, evidence: evidence.into() };
        let json = serde_json::to_vec(&kept)
            .map_err(|e| FetchError::storage("cannot encode signatures", &std::io::Error::other(e)))?;
        self.write(&format!("{}.sig", manifest.hex()), &json)
    }

    /// The digests of all documents that have a place here, unharmed or not.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Digest::from_hex(entry.file_name().to_str()?)).collect()
    }

    /// Removes a document and the signatures of it.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), FetchError> {
        for name in [digest.hex(), format!("{}.sig", digest.hex())] {
            match std::fs::remove_file(self.dir.join(&name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FetchError::storage(&format!("cannot remove document {name}"), &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), FetchError> {
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(content)?;
            // Not synced: what a power cut spoils no longer matches its name, and is fetched again.
            file.persist(self.dir.join(name))?;
            Ok(())
        };
        write().map_err(|e| FetchError::storage(&format!("cannot keep document {name}"), &e))
    }
}

fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > MAX_FILE { None } else { std::fs::read(path).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::trust::evidence::{Bundle, NotationEnvelope, SimpleSigning};

    #[test]
    fn a_changed_document_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::open(dir.path()).unwrap();
        let digest = Digest::of(b"{}");
        let content = VerifiedBytes::check(Bytes::from_static(b"{}"), &digest).unwrap();
        documents.put(&digest, "application/json", &content).unwrap();
        assert_eq!(documents.get(&digest).unwrap().0, "application/json");
        std::fs::write(dir.path().join("documents").join(digest.hex()), b"application/json\n[]").unwrap();
        assert!(documents.get(&digest).is_none());
    }

    #[test]
    fn signatures_of_another_version_are_absent() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::open(dir.path()).unwrap();
        let digest = Digest::of(b"{}");
        let annotations = vec![("k".to_owned(), "v".to_owned())];
        let manifest = Digest::of(b"manifest");
        let kept = [
            SimpleSigning { payload: b"\xff{}".to_vec(), annotations }.into(),
            Evidence::Bundle(Bundle { manifest, bytes: b"{}".to_vec() }),
            Evidence::Notation(NotationEnvelope {
                manifest,
                media_type: "a/b".to_owned(),
                bytes: vec![0xd2],
            }),
        ];
        assert_eq!(documents.signatures(&digest), None);
        documents.put_signatures(&digest, &kept).unwrap();
        assert_eq!(documents.signatures(&digest).unwrap(), kept);
        let path = dir.path().join("documents").join(format!("{}.sig", digest.hex()));
        let newer = std::fs::read_to_string(&path).unwrap().replace("\"version\":2", "\"version\":3");
        std::fs::write(&path, newer).unwrap();
        assert_eq!(documents.signatures(&digest), None);
        std::fs::write(&path, "[]").unwrap();
        assert_eq!(documents.signatures(&digest), None);
    }
}
