//! Images whose content stays.
//!
//! ```text
//! <dir>/pins    {"pins": [{"image": digest, "by": "configuration" or "command", "layers": [digests of blobs]}]}
//! ```
//! What a pinned layer's content is stands in its index, so the file stays small and nothing has to be kept in step. A
//! damaged file is no pins: those of the configuration come back by themselves.

use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Store;
use super::room::Items;
use crate::fetch::error::FetchError;
use crate::fetch::layer::Contents;
use crate::policy::digest::Digest;
use crate::policy::quantity::render_memory;

/// Largest file of pins: two thousand images of a hundred layers.
const MAX_FILE: u64 = 16 << 20;

/// On whose word an image is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    /// `pin: true` of a source. Ends when no source says so any more.
    Configuration,
    /// `addonfs cache pin`. Ends with `addonfs cache unpin`.
    Command,
}

/// A pinned image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// What a configuration calls the image by: the digest of its index or manifest. Or that of a layer.
    pub image: Digest,
    /// On whose word.
    pub by: By,
    /// Its layers' blobs.
    pub layers: Vec<Digest>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct PinsFile {
    pins: Vec<Pin>,
}

/// The pins of a store.
#[derive(Debug)]
pub(super) struct Pins {
    list: Mutex<Vec<Pin>>,
    /// Bytes that the pinned layers decode to, as far as they are indexed.
    bytes: AtomicU64,
    changes: watch::Sender<u64>,
}

impl Pins {
    pub(super) fn read(root: &std::path::Path) -> Self {
        let path = root.join("pins");
        let small = |metadata: &fs::Metadata| metadata.len() <= MAX_FILE;
        let text = fs::metadata(&path).ok().filter(small).and_then(|_| fs::read(&path).ok());
        let parse = |text: &[u8]| {
            let parsed = serde_json::from_slice::<PinsFile>(text);
            parsed.inspect_err(|error| tracing::warn!(%error, "the file of pins is damaged")).ok()
        };
        let list = text.as_deref().and_then(parse).unwrap_or_default().pins;
        Self { list: Mutex::new(list), bytes: AtomicU64::new(0), changes: watch::Sender::new(0) }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Pin>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Keeps the content of an image's layers until [`Store::unpin`].
    pub(crate) fn pin(&self, pin: Pin) -> Result<(), FetchError> {
        {
            let mut list = self.pins.list();
            if !list.contains(&pin) {
                list.retain(|other| (other.image, other.by) != (pin.image, pin.by));
                list.push(pin);
                self.keep_pins(&list)?;
            }
        }
        // Also when it was pinned already: its layers may have been indexed since.
        self.pinned_layers();
        Ok(())
    }

    /// Takes back a pin. `false`: there was none.
    pub(crate) fn unpin(&self, image: &Digest, by: By) -> Result<bool, FetchError> {
        self.forget_pins(|pin| pin.image == *image && pin.by == by)
    }

    /// Forgets pins of the configuration for all images but these.
    pub(crate) fn keep_configured_pins(&self, images: &[Digest]) -> Result<(), FetchError> {
        self.forget_pins(|pin| pin.by == By::Configuration && !images.contains(&pin.image)).map(|_| ())
    }

    fn forget_pins(&self, which: impl Fn(&Pin) -> bool) -> Result<bool, FetchError> {
        {
            let mut list = self.pins.list();
            let before = list.len();
            list.retain(|pin| !which(pin));
            if list.len() == before {
                return Ok(false);
            }
            self.keep_pins(&list)?;
        }
        self.pinned_layers();
        Ok(true)
    }

    /// Every pin.
    pub(crate) fn pins(&self) -> Vec<Pin> {
        self.pins.list().clone()
    }

    /// Whether somebody pinned the image of this name, or a layer of this digest.
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pins.list().iter().any(|pin| pin.image == *digest || pin.layers.contains(digest))
    }

    /// Changes whenever a pin does.
    pub(crate) fn pin_changes(&self) -> watch::Receiver<u64> {
        self.pins.changes.subscribe()
    }

    /// Bytes that the pinned layers need when all of them is here, as far as they were indexed when that was last looked
    /// at: when a pin changed, and at an eviction.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pins.bytes.load(Ordering::Relaxed)
    }

    /// Why content cannot be kept as it should, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.disk_trouble().or_else(|| self.pin_trouble())
    }

    /// Why not all that is pinned can be kept, in words.
    pub(crate) fn pin_trouble(&self) -> Option<String> {
        let (pinned, quota) = (self.pinned_bytes(), self.options.quota_bytes);
        (pinned > quota).then(|| {
            format!(
                "pinned images need {} and cache.quota is {}: not all of them is kept; raise the quota or unpin some",
                render_memory(pinned),
                render_memory(quota)
            )
        })
    }

    pub(super) fn pin_generation(&self) -> u64 {
        self.pins.changes.borrow().wrapping_add(self.pinned_bytes())
    }

    /// Everything that pinned layers consist of.
    pub(super) fn pinned_items(&self) -> Items {
        self.pinned_layers().into_iter().flat_map(|contents| contents.items).collect()
    }

    fn pinned_layers(&self) -> Vec<Contents> {
        let mut layers: Vec<Digest> = self.pins.list().iter().flat_map(|pin| pin.layers.clone()).collect();
        layers.sort_unstable();
        layers.dedup();
        let contents: Vec<_> = layers.iter().filter_map(|layer| Contents::of(self, layer)).collect();
        let bytes = contents.iter().map(|contents| contents.decoded).fold(0, u64::saturating_add);
        self.pins.bytes.store(bytes, Ordering::Relaxed);
        contents
    }

    fn keep_pins(&self, list: &[Pin]) -> Result<(), FetchError> {
        let fail = |error: std::io::Error| FetchError::storage("cannot keep the pins", &error);
        let json =
            serde_json::to_vec(&PinsFile { pins: list.to_vec() }).map_err(|error| fail(error.into()))?;
        let mut file = self.temporary()?;
        file.write_all(&json).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(self.root.join("pins")).map_err(|error| fail(error.error))?;
        self.pins.changes.send_modify(|count| *count += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::*;

    #[test]
    fn pins_are_kept_by_who_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(dir.path(), StoreOptions::default()).unwrap();
        let (image, layer) = (Digest::of(b"image"), Digest::of(b"layer"));
        let pin = |by| Pin { image, by, layers: vec![layer] };
        let store = open();
        store.pin(pin(By::Configuration)).unwrap();
        store.pin(pin(By::Command)).unwrap();
        drop(store);
        let store = open();
        assert!(store.is_pinned(&image) && store.is_pinned(&layer));
        store.keep_configured_pins(&[]).unwrap();
        assert_eq!(store.pins(), [pin(By::Command)]);
        assert!(!store.unpin(&image, By::Configuration).unwrap());
        assert!(store.unpin(&image, By::Command).unwrap());
        assert!(!store.is_pinned(&layer));
        drop(store);
        fs::write(dir.path().join("pins"), b"{\"pins\": 3").unwrap();
        assert!(open().pins().is_empty());
    }
}
