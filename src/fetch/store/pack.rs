//! Packs: the small files of a layer, one after the other, in tar order.
//!
//! Where a file lies in its layer's pack is in the layer index. A pack carries nothing of its own, so the whole of
//! a file is read and proven by its digest at every read: at most 64 KiB, about 40 us.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Kind, LARGE_FILE, Store};
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
            tracing::warn!(%layer, %content, "a file in a pack on disk is damaged and will be fetched again");
            return None;
        }
        Some(Bytes::from(bytes))
    }

    fn pack(&self, layer: &Digest) -> Option<Arc<File>> {
        self.touch(Kind::Pack, layer);
        if let Some(pack) = self.packs.get(layer) {
            return Some(pack);
        }
        let pack = match File::open(self.path(Kind::Pack, layer)) {
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
