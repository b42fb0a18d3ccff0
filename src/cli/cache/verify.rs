//! `addonfs cache verify`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::human;
use super::place::Place;
use crate::cli::exit::FAILURE;
use crate::fetch::documents::Documents;
use crate::fetch::image;
use crate::fetch::index::LayerIndex;
use crate::fetch::store::{Kind, Listed, Soundness, Store};
use crate::fs::image::ImageTree;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::platform::Platform;

/// A daemon writes packs in place: what is half written now is whole a moment later.
const AGAIN: Duration = Duration::from_millis(100);
const TRIES: usize = 3;

pub(super) fn run(place: &Place) -> anyhow::Result<ExitCode> {
    let store = place.look()?;
    let mut damaged = Vec::new();
    let (mut items, mut bytes) = (0, 0);
    for listed in store.listing() {
        items += 1;
        bytes += listed.size;
        if is_damaged(&store, &listed) {
            println!("damaged: {} {} ({})", listed.kind.name(), listed.digest, human(listed.size));
            damaged.push((listed.kind, listed.digest));
        }
    }
    if !damaged.is_empty() {
        place.hands()?.drop_items(&damaged)?;
    }
    let mut count = damaged.len();
    let documents = place.documents()?;
    for digest in documents.digests() {
        items += 1;
        if documents.get(&digest).is_none() {
            println!("damaged: document {digest}");
            documents.remove(&digest)?;
            count += 1;
        }
    }
    for (digest, path) in place.trees() {
        items += 1;
        let usable = usable_tree(&store, &documents, &digest, &path);
        if usable == Some(false) && path.exists() {
            println!("damaged: tree {digest}");
            std::fs::remove_file(&path)?;
            count += 1;
        }
    }
    println!(
        "{items} items, {}: {count} damaged{}",
        human(bytes),
        if count > 0 { " and removed" } else { "" }
    );
    Ok(if count > 0 { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS })
}

/// Whether the tree of an image is what its layers make; `None` where these are not known, and nobody uses it.
fn usable_tree(store: &Store, documents: &Documents, manifest: &Digest, path: &Path) -> Option<bool> {
    let (_, manifest) = image::known(documents, manifest, &Platform::host())?;
    let open = |layer: &Descriptor| LayerIndex::open(&store.index_path(&layer.digest)).ok();
    let indexes: Vec<LayerIndex> = manifest.layers.iter().map(open).collect::<Option<_>>()?;
    Some(ImageTree::open(path, &indexes.iter().collect::<Vec<_>>()).is_ok())
}

fn is_damaged(store: &Store, listed: &Listed) -> bool {
    for left in (0..TRIES).rev() {
        if store.check(listed.kind, &listed.digest) != Soundness::Damaged {
            return false;
        }
        if left == 0 || listed.kind != Kind::Pack {
            break;
        }
        std::thread::sleep(AGAIN);
    }
    true
}
