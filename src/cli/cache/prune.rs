//! `addonfs cache prune`.

use std::process::ExitCode;

use super::human;
use super::inventory::{CachedImage, Inventory};
use super::place::Place;
use crate::fetch::image;
use crate::fetch::layer::Contents;
use crate::fetch::store::{Items, Kind, Listed};
use crate::policy::digest::Digest;
use crate::policy::platform::Platform;

/// Removes what nobody uses, and content down to `to` bytes.
pub(super) fn run(place: &Place, to: Option<u64>) -> anyhow::Result<ExitCode> {
    let inventory = Inventory::take(place)?;
    let store = place.look()?;
    let layers = store.pins().into_iter().flat_map(|pin| pin.layers);
    let pinned: Items =
        layers.filter_map(|layer| Contents::of(&store, &layer)).flat_map(|contents| contents.items).collect();
    let configured = inventory.images.iter().filter(|image| !image.sources.is_empty());
    let used: Items = configured.flat_map(|image| image.items.iter().copied()).collect();
    let goes = chosen(&inventory.listing, &used, &pinned, to);
    let bytes: u64 = goes.iter().map(|listed| listed.size).sum();
    let names: Vec<(Kind, Digest)> = goes.iter().map(|listed| (listed.kind, listed.digest)).collect();
    place.hands()?.drop_items(&names)?;
    let others = drop_documents(place, &inventory)?;
    println!("removed {} items, {}", names.len() + others, human(bytes));
    Ok(ExitCode::SUCCESS)
}

/// What goes: all that is neither used nor pinned, then content, least recently used first, until at most `to` bytes
/// stay. Indexes of what is used are no content: without one its layer would have to be fetched whole.
fn chosen(listing: &[Listed], used: &Items, pinned: &Items, to: Option<u64>) -> Vec<Listed> {
    let name = |listed: &Listed| (listed.kind, listed.digest);
    let free = listing.iter().filter(|listed| !pinned.contains(&name(listed)));
    let (mut content, mut goes): (Vec<Listed>, Vec<Listed>) =
        free.copied().partition(|listed| used.contains(&name(listed)));
    let Some(to) = to else { return goes };
    content.retain(|listed| listed.kind != Kind::Index);
    content.sort_by_key(|listed| listed.used);
    let sum = |listed: &[Listed]| listed.iter().map(|listed| listed.size).sum::<u64>();
    let mut left = sum(listing).saturating_sub(sum(&goes));
    for listed in content {
        if left <= to {
            break;
        }
        left = left.saturating_sub(listed.size);
        goes.push(listed);
    }
    goes
}

/// Manifests, configs and trees of images that no source names and nobody pinned. Returns how many.
fn drop_documents(place: &Place, inventory: &Inventory) -> anyhow::Result<usize> {
    let documents = place.documents()?;
    let (platform, mut kept) = (Platform::host(), std::collections::HashSet::new());
    let stays = |image: &&CachedImage| !image.sources.is_empty() || image.pinned;
    for image in inventory.images.iter().filter(stays) {
        kept.extend(image::chain(&documents, &image.image, &platform));
    }
    let mut count = 0;
    for digest in documents.digests().into_iter().filter(|digest| !kept.contains(digest)) {
        documents.remove(&digest)?;
        count += 1;
    }
    for (digest, path) in place.trees() {
        if !kept.contains(&digest) {
            std::fs::remove_file(path)?;
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_what_nobody_uses_then_the_oldest() {
        let item = |name: &[u8], kind, used| Listed { kind, digest: Digest::of(name), size: 10, used };
        let (unused, old) = (item(b"unused", Kind::Index, 9), item(b"old", Kind::File, 1));
        let (new, index) = (item(b"new", Kind::File, 2), item(b"index", Kind::Index, 0));
        let pin = item(b"pin", Kind::Chunk, 0);
        let all = [unused, old, new, index, pin];
        let items = |of: &[Listed]| of.iter().map(|listed| (listed.kind, listed.digest)).collect::<Items>();
        let (used, pinned) = (items(&[old, new, index]), items(&[pin]));
        for (to, expected) in [
            (None, vec![unused]),
            (Some(40), vec![unused]),
            (Some(39), vec![unused, old]),
            (Some(0), vec![unused, old, new]),
        ] {
            assert_eq!(items(&chosen(&all, &used, &pinned, to)), items(&expected), "{to:?}");
        }
    }
}
