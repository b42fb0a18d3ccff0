//! Packs: the small files of a layer, one after the other, in tar order.
//!
//! Where a file lies in its layer's pack is in the layer index. A pack carries nothing of its own, so the whole of
//! a file is read and proven by its digest at every read: at most 64 KiB, about 40 us. The pack of a layer that is read
//! by ranges is sparse, with holes where files are that nobody asked for yet.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Kind, LARGE_FILE, Store};
use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

impl Store {
    /// A small file of `layer` whole, proven, if the pack is here and sound at that place.
    pub(crate) fn packed(&self, layer: &Digest, offset: u64, size: u64, content: &Digest) -> Option<Bytes> {
        if size >= LARGE_FILE {
            return None;
        }
        let pack = self.pack(layer)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        if let Err(error) = pack.read_exact_at(&mut bytes, offset) {
            tracing::warn!(%layer, %error, "cannot read a pack");
            return None;
        }
        if !content.matches(&bytes) {
            if bytes.iter().all(|byte| *byte == 0) {
                return None;
            }
            tracing::warn!(%layer, %content, "a file in a pack on disk is damaged and will be fetched again");
            return None;
        }
        Some(Bytes::from(bytes))
    }

    /// Keeps a small file that was checked, at its place in the pack of `pack_size` bytes.
    pub(crate) fn put_packed(
        &self,
        layer: &Digest,
        pack_size: u64,
        offset: u64,
        bytes: &Bytes,
    ) -> Result<(), FetchError> {
        let fail = |error: std::io::Error| FetchError::storage("cannot write to a pack", &error);
        if !self.make_room(bytes.len() as u64, 0) {
            return Ok(());
        }
        let pack = match self.pack(layer) {
            Some(pack) => pack,
            None => self.begin_pack(layer, pack_size).map_err(fail)?,
        };
        pack.write_all_at(bytes, offset).map_err(fail)?;
        self.catalog().grow(Kind::Pack, layer, bytes.len() as u64);
        Ok(())
    }

    /// A pack that is all hole.
    fn begin_pack(&self, layer: &Digest, size: u64) -> std::io::Result<Arc<File>> {
        let path = self.path(Kind::Pack, layer);
        // Not truncated: somebody else may have begun it just now.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size)?;
        let pack = Arc::new(file);
        self.packs.insert(*layer, Arc::clone(&pack));
        Ok(pack)
    }

    fn pack(&self, layer: &Digest) -> Option<Arc<File>> {
        self.touch(Kind::Pack, layer);
        if let Some(pack) = self.packs.get(layer) {
            return Some(pack);
        }
        let pack = match OpenOptions::new().read(true).write(true).open(self.path(Kind::Pack, layer)) {
            Ok(pack) => Arc::new(pack),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.catalog().remove(Kind::Pack, layer);
                return None;
            }
            Err(error) => {
                tracing::warn!(%layer, %error, "cannot open a pack");
                return None;
            }
        };
        self.packs.insert(*layer, Arc::clone(&pack));
        Some(pack)
    }
}
