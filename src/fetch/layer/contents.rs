//! What a layer's content consists of in the store, as its index tells.

use super::learned::Learned;
use crate::fetch::index::LayerIndex;
use crate::fetch::index::file::Proof;
use crate::fetch::store::{Kind, Store};
use crate::policy::digest::Digest;

/// The items of one layer, here or not.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Bytes of the decoded tar.
    pub decoded: u64,
    /// Its index, its pack, its large files and its spans; one that several of its files share is named by each.
    pub items: Vec<(Kind, Digest)>,
}

impl Contents {
    /// Those of `layer`, if it was ever indexed.
    pub(crate) fn of(store: &Store, layer: &Digest) -> Option<Self> {
        let index = LayerIndex::open(&store.index_path(layer)).ok()?;
        let learned_path = store.learned_path(layer);
        let learned = if learned_path.exists() { Learned::of(&index, &learned_path) } else { None };
        let mut items = vec![(Kind::Index, *layer), (Kind::Pack, *layer)];
        let large = (0..index.file_count()).filter_map(|at| index.file(at));
        let large = large.filter(|file| file.pack_offset.is_none());
        let digests = large.filter_map(|file| file.digest.or_else(|| learned.as_ref()?.file(file.number)));
        items.extend(digests.map(|digest| (Kind::File, digest)));
        let spans = (0..index.span_count()).filter_map(|at| match index.span(at)?.proof {
            Proof::Decoded(digest) => Some(digest),
            Proof::Encoded(_) => learned.as_ref()?.span(at),
        });
        items.extend(spans.map(|digest| (Kind::Chunk, digest)));
        Some(Self { decoded: index.decoded_size(), items })
    }
}
