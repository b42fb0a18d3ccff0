//! Where items come to lie, and how they go.

use std::fs;
use std::path::Path;

use super::item::Stamp;
use super::{Kind, Store};
use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

impl Store {
    /// Removes an item.
    pub(crate) fn discard(&self, kind: Kind, digest: &Digest) {
        if self.is_a_look() {
            return;
        }
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
