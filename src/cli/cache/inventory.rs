//! Which image the items of a store belong to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use super::place::Place;
use crate::fetch::documents::Documents;
use crate::fetch::image;
use crate::fetch::layer::{Contents, Layer};
use crate::fetch::nowhere::Nowhere;
use crate::fetch::store::{Items, Kind, Listed, Store};
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, ImageManifest};
use crate::policy::platform::Platform;

/// How much of an image is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Presence {
    /// All of it.
    Complete,
    /// Some of it.
    Partial,
    /// Nothing.
    Absent,
}

/// An image that is in the cache, or that a source names.
#[derive(Debug, Serialize)]
pub(super) struct CachedImage {
    /// The names of the configured sources that name it; empty: nobody uses it.
    pub sources: Vec<String>,
    /// The digest that the configuration has, or that of the manifest.
    pub image: Digest,
    pub layers: usize,
    /// On disk, with what it shares with others.
    pub bytes: u64,
    /// Of these, used by other images, too.
    pub shared_bytes: u64,
    pub presence: Presence,
    /// Milliseconds since 1970.
    pub last_use_ms: Option<u64>,
    pub pinned: bool,
    #[serde(skip)]
    pub items: Items,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Those of sources first.
    pub images: Vec<CachedImage>,
    /// Everything on disk.
    pub listing: Vec<Listed>,
    /// Bytes on disk, each once.
    pub total: u64,
    /// Bytes that no known image consists of.
    pub others: u64,
}

impl Inventory {
    /// Looks at everything. The listing comes first: what enters later belongs to nothing that could be removed.
    pub(super) fn take(place: &Place) -> anyhow::Result<Self> {
        let store = place.look()?;
        let documents = place.documents()?;
        let listing = store.listing();
        let here: HashMap<(Kind, Digest), Listed> =
            listing.iter().map(|listed| ((listed.kind, listed.digest), *listed)).collect();
        let mut images: Vec<CachedImage> = known_images(place, &documents)
            .into_iter()
            .map(|(image, manifest, sources)| describe(&store, &here, image, manifest.as_ref(), sources))
            .filter(|image| !image.sources.is_empty() || image.presence != Presence::Absent)
            .collect();
        count_shared(&mut images, &here);
        let claimed: HashSet<_> = images.iter().flat_map(|image| &image.items).collect();
        let others = listing.iter().filter(|listed| !claimed.contains(&(listed.kind, listed.digest)));
        let others = others.map(|listed| listed.size).sum();
        let total = listing.iter().map(|listed| listed.size).sum();
        Ok(Self { images, listing, total, others })
    }
}

type Known = (Digest, Option<ImageManifest>, Vec<String>);

/// The images of the sources, in their order, then the others whose manifests are here.
fn known_images(place: &Place, documents: &Documents) -> Vec<Known> {
    let platform = Platform::host();
    let mut images: Vec<Known> = Vec::new();
    let mut seen = BTreeSet::new();
    for source in &place.sources {
        if let Some((_, _, sources)) = images.iter_mut().find(|(image, ..)| *image == source.image) {
            sources.push(source.name.clone());
            continue;
        }
        let known = image::known(documents, &source.image, &platform);
        seen.extend(known.as_ref().map(|(manifest, _)| *manifest));
        images.push((source.image, known.map(|(_, manifest)| manifest), vec![source.name.clone()]));
    }
    for digest in documents.digests() {
        match image::known(documents, &digest, &platform) {
            // Indexes lead to manifests that are listed themselves.
            Some((manifest, document)) if manifest == digest && seen.insert(digest) => {
                images.push((digest, Some(document), Vec::new()));
            }
            _ => {}
        }
    }
    images
}

fn describe(
    store: &Arc<Store>,
    here: &HashMap<(Kind, Digest), Listed>,
    image: Digest,
    manifest: Option<&ImageManifest>,
    sources: Vec<String>,
) -> CachedImage {
    let layers = manifest.map(|manifest| manifest.layers.as_slice()).unwrap_or_default();
    let contents = layers.iter().filter_map(|layer| Contents::of(store, &layer.digest));
    let items: Items =
        contents.flat_map(|contents| contents.items).filter(|item| here.contains_key(item)).collect();
    let complete = !layers.is_empty() && layers.iter().all(|layer| is_complete(store, layer));
    let presence = match (complete, items.is_empty()) {
        (true, _) => Presence::Complete,
        (false, false) => Presence::Partial,
        (false, true) => Presence::Absent,
    };
    let used = items.iter().filter_map(|item| here.get(item)).map(|listed| listed.used / 1000).max();
    let bytes = items.iter().filter_map(|item| here.get(item)).map(|listed| listed.size).sum();
    let all_pinned = || !layers.is_empty() && layers.iter().all(|layer| store.is_pinned(&layer.digest));
    let pinned = store.is_pinned(&image) || all_pinned();
    CachedImage {
        sources,
        image,
        layers: layers.len(),
        bytes,
        shared_bytes: 0,
        presence,
        last_use_ms: used,
        pinned,
        items,
    }
}

fn is_complete(store: &Arc<Store>, layer: &Descriptor) -> bool {
    matches!(Layer::known(store, Arc::new(Nowhere), layer), Ok(Some(layer)) if layer.is_complete())
}

fn count_shared(images: &mut [CachedImage], here: &HashMap<(Kind, Digest), Listed>) {
    let mut users: HashMap<(Kind, Digest), u32> = HashMap::new();
    for item in images.iter().flat_map(|image| &image.items) {
        *users.entry(*item).or_default() += 1;
    }
    for image in images {
        let shared = image.items.iter().filter(|item| users.get(item).is_some_and(|count| *count > 1));
        image.shared_bytes = shared.filter_map(|item| here.get(item)).map(|listed| listed.size).sum();
    }
}
