//! Where an image keeps its add-on manifest.
//!
//! The layers are asked from the top down and the first one that decides ends the search (DESIGN: lower layers are
//! not even fetched for it). A layer decides by holding the manifest, or by hiding every lower one: with a whiteout
//! of the file or its folder, an opaque folder, or something else in the folder's place.

use super::index::{EntryKind, LayerIndex};
use crate::policy::code::{Code, Denied};

/// Folders below which a manifest is looked for: the documented one and the one flowd's code reads.
const FOLDERS: [&str; 2] = ["addon", "flwd-addon"];
/// Name of the manifest in its folder.
const NAME: &str = "manifest.yaml";

/// The manifest's place in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its folder: `addon` or `flwd-addon`.
    pub folder: &'static str,
    /// Its file number in the layer's index.
    pub file: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// Folders whose manifest no layer above has hidden yet.
#[derive(Debug, Clone)]
pub struct Search {
    open: [bool; FOLDERS.len()],
}

impl Default for Search {
    fn default() -> Self {
        Self { open: [true; FOLDERS.len()] }
    }
}

impl Search {
    /// Looks into the next lower layer. `Ok(None)`: go on below, if [`Search::may_go_on`].
    pub fn look(&mut self, layer: &LayerIndex) -> Result<Option<Place>, Denied> {
        let mut found = [None; FOLDERS.len()];
        let mut hidden = [false; FOLDERS.len()];
        for entry in layer.entries() {
            for (i, folder) in FOLDERS.into_iter().enumerate() {
                match sighting(entry.path, folder) {
                    Some(Sighting::Manifest) => match entry.kind {
                        EntryKind::File { file, size } => found[i] = Some(Place { folder, file, size }),
                        EntryKind::Hardlink { target } => found[i] = linked(layer, target, folder)?,
                        _ => return Err(not_a_file(folder)),
                    },
                    Some(Sighting::Hiding) => hidden[i] = true,
                    Some(Sighting::Folder) if !matches!(entry.kind, EntryKind::Dir) => hidden[i] = true,
                    _ => {}
                }
            }
        }
        for (place, open) in found.iter_mut().zip(self.open) {
            if !open {
                *place = None;
            }
        }
        for (open, hidden) in self.open.iter_mut().zip(hidden) {
            *open &= !hidden;
        }
        match found {
            [Some(_), Some(_)] => Err(Denied::new(
                Code::AddonManifest,
                "one layer holds both /addon/manifest.yaml and /flwd-addon/manifest.yaml: keep one of them",
            )),
            [Some(place), None] | [None, Some(place)] => Ok(Some(place)),
            [None, None] => Ok(None),
        }
    }

    /// Whether a lower layer could still show a manifest.
    pub fn may_go_on(&self) -> bool {
        self.open.contains(&true)
    }
}

enum Sighting {
    Manifest,
    Folder,
    Hiding,
}

fn sighting(path: &[u8], folder: &str) -> Option<Sighting> {
    if path == folder.as_bytes() {
        return Some(Sighting::Folder);
    }
    if let Some(name) = path.strip_prefix(folder.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")) {
        return match name {
            _ if name == NAME.as_bytes() => Some(Sighting::Manifest),
            b".wh..wh..opq" | b".wh.manifest.yaml" => Some(Sighting::Hiding),
            _ => None,
        };
    }
    let whiteout = path.strip_prefix(b".wh.")?;
    (whiteout == folder.as_bytes() || whiteout == b".wh..opq").then_some(Sighting::Hiding)
}

/// A hard link's content is that of the entry it names, in the same layer.
fn linked(layer: &LayerIndex, target: &[u8], folder: &'static str) -> Result<Option<Place>, Denied> {
    layer
        .entries()
        .filter(|entry| entry.path == target)
        .find_map(|entry| match entry.kind {
            EntryKind::File { file, size } => Some(Place { folder, file, size }),
            _ => None,
        })
        .map(Some)
        .ok_or_else(|| not_a_file(folder))
}

fn not_a_file(folder: &str) -> Denied {
    Denied::new(
        Code::AddonManifest,
        format!("/{folder}/{NAME} is not a regular file of its layer: put the manifest itself there"),
    )
}

/// No layer shows a manifest.
pub fn missing() -> Denied {
    Denied::new(
        Code::AddonManifest,
        "the image has neither /addon/manifest.yaml nor /flwd-addon/manifest.yaml: is it an add-on? \
         `addonfs build` makes one",
    )
}
