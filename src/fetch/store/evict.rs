//! Making room: what was used least recently goes first.

use std::fs;
use std::path::Path;

use super::catalog::{Stamp, scan_all};
use super::{Kind, Store};
use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

impl Store {
    /// Evicts until `incoming` more bytes fit into the quota, and a tenth of it more, so that not every chunk
    /// evicts another one. Layer indexes stay: they are a percent of the content, and without one its layer
    /// would have to be fetched whole. Readers that have an evicted file open keep it.
    pub(crate) fn make_room(&self, incoming: u64) {
        let quota = self.options.quota_bytes;
        let mut catalog = self.catalog();
        if catalog.total().saturating_add(incoming) <= quota {
            return;
        }
        let sweep = catalog.begin_sweep();
        drop(catalog);
        if let Some(since) = sweep {
            // Seconds for a large cache on a slow disk, so not with the catalog in hand.
            let found = scan_all(&self.root);
            self.catalog().reconcile(found, since);
        }
        let goal = (quota - quota / 10).saturating_sub(incoming);
        let candidates = self.catalog().by_use();
        for (kind, digest, _) in candidates {
            if self.used_bytes() <= goal {
                break;
            }
            if kind != Kind::Index {
                self.discard(kind, &digest);
            }
        }
    }

    /// Removes an item.
    pub(crate) fn discard(&self, kind: Kind, digest: &Digest) {
        let path = self.path(kind, digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove from the cache");
            }
            _ => self.catalog().remove(kind, digest),
        }
        // After the name: who opens it in between would keep the disk space of a file that nobody finds any more.
        match kind {
            Kind::File => drop(self.whole.remove(digest)),
            Kind::Pack => drop(self.packs.remove(digest)),
            // Of no use to the next index; nobody may miss it.
            Kind::Index => drop(fs::remove_file(self.learned_path(digest))),
            Kind::Chunk => {}
        }
    }

    /// A new file under `tmp/`, removed unless it is adopted.
    pub(super) fn temporary(&self) -> Result<tempfile::NamedTempFile, FetchError> {
        tempfile::NamedTempFile::new_in(self.tmp())
            .map_err(|error| FetchError::storage("cannot create a file in the cache", &error))
    }

    /// Moves a written file to its place and records it. The caller has checked or computed its digest.
    pub(super) fn adopt(&self, kind: Kind, digest: &Digest, from: &Path) -> Result<(), FetchError> {
        let to = self.path(kind, digest);
        let fail =
            |error: std::io::Error| FetchError::storage(&format!("cannot write {}", to.display()), &error);
        if let Err(error) = fs::rename(from, &to) {
            let Some(parent) = to.parent().filter(|_| error.kind() == std::io::ErrorKind::NotFound) else {
                return Err(fail(error));
            };
            fs::create_dir_all(parent).and_then(|()| fs::rename(from, &to)).map_err(fail)?;
        }
        // After the rename, because that sets ctime.
        let metadata = fs::symlink_metadata(&to).map_err(fail)?;
        let stamp = (kind == Kind::File).then(|| Stamp::of(&metadata));
        self.catalog().put(kind, digest, metadata.len(), stamp);
        Ok(())
    }
}
