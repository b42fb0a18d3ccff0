//! Looking at an item again: is it still what its name says?

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use super::files::hash;
use super::{Kind, Store};
use crate::fetch::index::LayerIndex;
use crate::policy::digest::Digest;

/// What an item turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Soundness {
    /// What its digest says; of a pack everything that was fetched yet.
    Sound,
    /// Something else.
    Damaged,
    /// Not there any more.
    Gone,
}

/// An item as the catalog has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub digest: Digest,
    /// Bytes on disk.
    pub size: u64,
    /// When it was last used, microseconds since 1970.
    pub used: u64,
}

impl Store {
    /// Everything that is here, in no order.
    pub(crate) fn listing(&self) -> Vec<Listed> {
        let catalog = self.catalog();
        let listed = |(&(kind, digest), item): (&(Kind, Digest), &super::item::Item)| Listed {
            kind,
            digest,
            size: item.size,
            used: item.used,
        };
        catalog.iter().map(listed).collect()
    }

    /// Hashes an item, whatever is known of it. About 0.6 s a GiB.
    pub(crate) fn check(&self, kind: Kind, digest: &Digest) -> Soundness {
        let path = self.path(kind, digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Soundness::Gone,
            Err(_) => return Soundness::Damaged,
        };
        let sound = match kind {
            Kind::Index => LayerIndex::open(&path).is_ok_and(|index| index.layer() == digest),
            Kind::Pack => self.check_pack(digest, &file),
            Kind::File | Kind::Chunk => hash(&file).is_some_and(|found| found == *digest),
        };
        match sound {
            true => Soundness::Sound,
            // Evicted while it was read.
            false if fs::symlink_metadata(&path).is_err() => Soundness::Gone,
            false => Soundness::Damaged,
        }
    }

    /// Every file that is in the pack. Holes are files that were not fetched yet. Without its layer's index a pack is of
    /// no use, and not wrong either.
    fn check_pack(&self, layer: &Digest, pack: &File) -> bool {
        let Ok(index) = LayerIndex::open(&self.index_path(layer)) else { return true };
        let mut bytes = Vec::new();
        (0..index.file_count()).filter_map(|number| index.file(number)).all(|file| {
            let (Some(offset), Some(digest)) = (file.pack_offset, file.digest) else { return true };
            bytes.resize(usize::try_from(file.size).unwrap_or(0), 0);
            pack.read_exact_at(&mut bytes, offset).is_ok()
                && (digest.matches(&bytes) || bytes.iter().all(|byte| *byte == 0))
        })
    }
}
