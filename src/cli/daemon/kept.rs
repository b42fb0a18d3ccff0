//! What a daemon leaves to the one that takes its place, in memory that the holder has: the files of the configuration
//! in force, and the trees that a reload took out of sight and that runs and open files may still be in.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::acquire::Rooms;
use crate::cli::config::Files;
use crate::fetch::image;
use crate::fetch::layer::Layer;
use crate::fetch::registry::RegistryOptions;
use crate::fetch::source;
use crate::fs::image::{Image, ImageTree};
use crate::jobs::Jobs;
use crate::policy::digest::Digest;
use crate::policy::reference::ImageRef;

/// A tree that was shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeptTree {
    /// Its digest.
    pub tree: Digest,
    /// Where its image is.
    pub image: String,
    /// How that registry is asked.
    pub insecure: bool,
    /// Policy does not let it in any more: it is for those who are in it already.
    pub distrusted: bool,
}

/// Writes it down. Whoever finds it half written knows.
pub(super) fn write(memory: &OwnedFd, files: &Files, trees: &[KeptTree]) -> anyhow::Result<()> {
    let kept = serde_json::to_vec(&(files.to_text(), trees))?;
    let mut memory = File::from(memory.try_clone()?);
    memory.set_len(0)?;
    memory.seek(SeekFrom::Start(0))?;
    Ok(memory.write_all(&kept)?)
}

/// What an earlier daemon wrote: nothing if there was none, or if it died writing; the configuration is read anew then.
pub(super) fn read(memory: &OwnedFd) -> anyhow::Result<Option<(Files, Vec<KeptTree>)>> {
    let mut memory = File::from(memory.try_clone()?);
    let mut kept = Vec::new();
    memory.seek(SeekFrom::Start(0))?;
    memory.read_to_end(&mut kept)?;
    if kept.is_empty() {
        return Ok(None);
    }
    let parsed: Option<(String, Vec<KeptTree>)> = serde_json::from_slice(&kept).ok();
    let known = parsed.and_then(|(files, trees)| Some((Files::from_text(&files)?, trees)));
    if known.is_none() {
        tracing::warn!(
            "the configuration was being changed when the daemon before this one ended: it is read again"
        );
    }
    Ok(known)
}

/// Makes the trees answer again to those who are in them; one that is not trusted any more only to its runs. All of it is on
/// the disk; what is not is told of and left out.
pub(super) async fn reopen(rooms: &Rooms, trees: &[KeptTree], jobs: &Jobs) {
    let wanted =
        |kept: &&KeptTree| !rooms.images.contains(&kept.tree) && (!kept.distrusted || jobs.uses(&kept.tree));
    for kept in trees.iter().filter(wanted) {
        if let Err(error) = reopen_one(rooms, kept).await {
            tracing::warn!(tree = %kept.tree, "a tree that a reload replaced is not there for its runs: {error:#}");
        }
    }
}

async fn reopen_one(rooms: &Rooms, kept: &KeptTree) -> anyhow::Result<()> {
    let image: ImageRef = kept.image.parse()?;
    let options = RegistryOptions { insecure: kept.insecure, ..rooms.registry.clone() };
    let source = source::open(&image.location, &options)?;
    anyhow::ensure!(rooms.documents.get(&kept.tree).is_some(), "its manifest is not here");
    let documents = image::documents(&rooms.documents, source.as_ref(), &kept.tree, &rooms.platform).await?;
    let known = |descriptor| {
        let layer = Layer::known(&rooms.store, Arc::clone(&source), descriptor)?;
        layer.with_context(|| format!("layer {} is not here", descriptor.digest))
    };
    let layers: Vec<Layer> = documents.manifest.layers.iter().map(known).collect::<anyhow::Result<_>>()?;
    let path = rooms.trees.join(kept.tree.hex());
    let (tree, layers) = tokio::task::spawn_blocking(move || {
        let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
        ImageTree::open(&path, &indexes).map(|tree| (tree, layers))
    })
    .await??;
    let (manifest_json, config_json) = (documents.manifest_json, documents.config_json);
    rooms.images.insert(kept.tree, Arc::new(Image { tree, layers, manifest_json, config_json }))?;
    Ok(())
}
