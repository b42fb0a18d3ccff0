//! What is in the store: an append-only log of fixed records (record.rs), replayed when the store is opened.
//!
//! The log is a hint, never a proof: a lost or torn record makes a file be hashed again, or be found by the
//! next sweep. So it is not fsynced (except the `synced` mark, whose truth is the disk's), and rewritten whole
//! when the store is opened, when it is closed, and when it is mostly old news. Times of last use reach it from time
//! to time ([`Catalog::save_uses`]) and at the end.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::item::{Item, Kind, Stamp};
use super::record::{RECORD, encode, log_of, replay};
use super::scan::scan_all;
use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

/// The log is written anew when it has so many records more than …
const MOST_RECORDS: usize = 1 << 14;
/// … so many times the items: 128 bytes an item, so that it stays below a percent of the content.
const OLD_RECORDS: usize = 4;

/// The items, and the log they are kept in.
#[derive(Debug)]
pub(super) struct Catalog {
    root: PathBuf,
    /// Shared with who makes a mark durable: that waits for the disk, and nobody may wait for it in turn. `None`: this
    /// is a look at a store that may be another process's, and nothing is written.
    log: Option<Arc<File>>,
    /// Records in the log.
    records: usize,
    /// Uses up to this time are in the log, microseconds since 1970.
    saved: u64,
    items: HashMap<(Kind, Digest), Item>,
    total: u64,
    /// Rises with every record.
    position: u64,
    boot: [u8; 16],
    swept: bool,
}

impl Catalog {
    /// Reads the catalog of the store in `root`, or finds out what is there if it has none.
    pub(super) fn open(root: &Path) -> Result<Self, FetchError> {
        let boot = boot_id();
        let replayed = fs::read(root.join("catalog")).ok().and_then(|log| replay(&log, boot));
        let known = replayed.is_some();
        let items = replayed.unwrap_or_default();
        let log = Some(Arc::new(rewrite(root, &items, boot)?));
        let mut catalog = Self::of(root, items, boot);
        catalog.log = log;
        if !known {
            catalog.reconcile(scan_all(root), 0);
        }
        Ok(catalog)
    }

    /// What is in the catalog of the store in `root` now, without touching it.
    pub(super) fn look(root: &Path) -> Self {
        let boot = boot_id();
        let replayed = fs::read(root.join("catalog")).ok().and_then(|log| replay(&log, boot));
        let known = replayed.is_some();
        let mut catalog = Self::of(root, replayed.unwrap_or_default(), boot);
        if !known {
            catalog.reconcile(scan_all(root), 0);
        }
        catalog
    }

    fn of(root: &Path, items: HashMap<(Kind, Digest), Item>, boot: [u8; 16]) -> Self {
        let total = items.values().map(|item| item.size).sum();
        let (records, saved) = (items.len(), now());
        Self {
            root: root.to_owned(),
            log: None,
            items,
            total,
            position: 0,
            boot,
            swept: false,
            records,
            saved,
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Everything, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&(Kind, Digest), &Item)> {
        self.items.iter()
    }

    pub(super) fn get(&self, kind: Kind, digest: &Digest) -> Option<&Item> {
        self.items.get(&(kind, *digest))
    }

    /// Records an item, new or proven anew.
    pub(super) fn put(&mut self, kind: Kind, digest: &Digest, size: u64, stamp: Option<Stamp>) {
        self.position += 1;
        let item = Item { size, used: now(), stamp, durable: false, position: self.position };
        self.append(&encode(1, kind, digest, &item, self.boot));
        self.total += size;
        if let Some(before) = self.items.insert((kind, *digest), item) {
            self.total -= before.size;
        }
    }

    /// Records that an item takes `bytes` more than before; its file is written in place.
    pub(super) fn grow(&mut self, kind: Kind, digest: &Digest, bytes: u64) {
        let before = self.get(kind, digest).map_or(0, |item| item.size);
        self.put(kind, digest, before + bytes, None);
    }

    pub(super) fn remove(&mut self, kind: Kind, digest: &Digest) {
        if let Some(item) = self.items.remove(&(kind, *digest)) {
            self.total -= item.size;
            self.position += 1;
            self.append(&encode(2, kind, digest, &item, self.boot));
        }
    }

    pub(super) fn touch(&mut self, kind: Kind, digest: &Digest) {
        if let Some(item) = self.items.get_mut(&(kind, *digest)) {
            item.used = now();
        }
    }

    /// A place in the log, for [`Catalog::synced`].
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// All content recorded up to `position` is on disk. The mark itself is durable when the caller has synced the
    /// log that comes back, which it does without the catalog: threads that serve a mount wait for the catalog.
    pub(super) fn synced(&mut self, position: u64) -> Option<Arc<File>> {
        let boot = self.boot;
        let mut durable = Vec::new();
        for (&(kind, digest), item) in &mut self.items {
            if !item.durable && item.position <= position {
                item.durable = true;
                durable.extend(encode(1, kind, &digest, item, boot));
            }
        }
        self.append(&durable);
        self.log.clone()
    }

    /// Writes the times of last use that the log does not have yet, so that a kill forgets little, and the whole log
    /// anew when most of it no longer counts.
    pub(super) fn save_uses(&mut self) {
        let (since, boot) = (std::mem::replace(&mut self.saved, now()), self.boot);
        let used = self.items.iter().filter(|(_, item)| item.used > since);
        let records: Vec<u8> =
            used.flat_map(|((kind, digest), item)| encode(1, *kind, digest, item, boot)).collect();
        self.append(&records);
        if self.records > MOST_RECORDS + OLD_RECORDS * self.items.len() {
            match rewrite(&self.root, &self.items, boot) {
                Ok(log) => (self.log, self.records) = (Some(Arc::new(log)), self.items.len()),
                Err(error) => tracing::warn!(%error, "the cache catalog grows"),
            }
        }
    }

    /// When and how large everything is that `may_go`: what choosing the oldest needs, without their names.
    pub(super) fn uses(&self, may_go: impl Fn(&(Kind, Digest)) -> bool) -> Vec<(u64, u64)> {
        let items = self.items.iter().filter(|(key, _)| may_go(key));
        items.map(|(_, item)| (item.used, item.size)).collect()
    }

    /// What was last used at `until` or before and `may_go`.
    pub(super) fn unused_since(
        &self,
        until: u64,
        may_go: impl Fn(&(Kind, Digest)) -> bool,
    ) -> Vec<(u64, Kind, Digest)> {
        let items = self.items.iter().filter(|(key, item)| item.used <= until && may_go(key));
        items.map(|(&(kind, digest), item)| (item.used, kind, digest)).collect()
    }

    /// Whether the catalog was never compared with what lies on disk: who is told so does it, with [`scan_all`] and
    /// [`Catalog::reconcile`]. Done before the first eviction, because only eviction needs to know everything.
    pub(super) fn begin_sweep(&mut self) -> Option<u64> {
        (!std::mem::replace(&mut self.swept, true)).then_some(self.position)
    }

    /// Takes over what a scan found that began at `since`: records lost in a crash are made up for, and records of
    /// files that are gone dropped. What was recorded during the scan stays, whether it was seen or not; what was
    /// removed during it may come back, and goes again when it is found missing.
    pub(super) fn reconcile(&mut self, found: HashMap<(Kind, Digest), u64>, since: u64) {
        let is_gone =
            |&(key, item): &(&(Kind, Digest), &Item)| item.position <= since && !found.contains_key(key);
        let gone: Vec<_> = self.items.iter().filter(is_gone).map(|(key, _)| *key).collect();
        for (kind, digest) in gone {
            self.remove(kind, &digest);
        }
        for ((kind, digest), size) in found {
            if !self.items.contains_key(&(kind, digest)) {
                self.put(kind, &digest, size, None);
            }
        }
    }

    /// The log is a hint: if it cannot be written (a full disk), the next opening finds less in it.
    fn append(&mut self, records: &[u8]) {
        let Some(log) = &self.log else { return };
        self.records += records.len() / RECORD;
        if let Err(error) = (&**log).write_all(records) {
            tracing::warn!(%error, "cannot write the cache catalog");
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        if self.log.is_some()
            && let Err(error) = rewrite(&self.root, &self.items, self.boot)
        {
            tracing::warn!(%error, "cannot save the cache catalog");
        }
    }
}

/// Writes all items as a fresh log and returns it, open for appending.
fn rewrite(root: &Path, items: &HashMap<(Kind, Digest), Item>, boot: [u8; 16]) -> Result<File, FetchError> {
    let (path, tmp) = (root.join("catalog"), root.join("tmp").join("catalog"));
    let write = || {
        fs::write(&tmp, log_of(items, boot))?;
        fs::rename(&tmp, &path)?;
        OpenOptions::new().append(true).open(&path)
    };
    write().map_err(|error| FetchError::storage(&format!("cannot write {}", path.display()), &error))
}

/// Which boot of the machine this is; zeros (equal to nothing that was durable) where /proc is missing.
fn boot_id() -> [u8; 16] {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Digest::of(&text).as_bytes().first_chunk().copied().unwrap_or_default()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for part in ["tmp", "layers", "files", "packs", "chunks"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        dir
    }

    #[test]
    fn survives_a_restart_without_a_clean_end() {
        let dir = store();
        let mut catalog = Catalog::open(dir.path()).unwrap();
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let stamp = Stamp { size: 5, mtime: -1, ctime: 7, inode: 9 };
        catalog.put(Kind::File, &a, 5, Some(stamp));
        catalog.put(Kind::Chunk, &b, 100, None);
        catalog.put(Kind::Chunk, &c, 1000, None);
        catalog.remove(Kind::Chunk, &b);
        assert_eq!(catalog.total(), 1005);
        std::mem::forget(catalog);
        let catalog = Catalog::open(dir.path()).unwrap();
        assert_eq!(catalog.total(), 1005);
        assert_eq!(catalog.get(Kind::File, &a).unwrap().stamp, Some(stamp));
        assert!(catalog.get(Kind::Chunk, &b).is_none());
    }

    #[test]
    fn a_stamp_of_another_boot_needs_a_sync() {
        let dir = store();
        let mut catalog = Catalog::open(dir.path()).unwrap();
        let (early, late) = (Digest::of(b"early"), Digest::of(b"late"));
        let stamp = Stamp { size: 5, mtime: 1, ctime: 1, inode: 1 };
        catalog.put(Kind::File, &early, 5, Some(stamp));
        let position = catalog.position();
        catalog.put(Kind::File, &late, 5, Some(stamp));
        catalog.synced(position).unwrap().sync_data().unwrap();
        drop(catalog);
        let log = fs::read(dir.path().join("catalog")).unwrap();
        let items = replay(&log, [0; 16]).unwrap();
        assert_eq!(items[&(Kind::File, early)].stamp, Some(stamp));
        assert_eq!(items[&(Kind::File, late)].stamp, None);
    }

    #[test]
    fn damage_loses_records_not_more() {
        let dir = store();
        let mut catalog = Catalog::open(dir.path()).unwrap();
        for byte in 0..10 {
            catalog.put(Kind::Chunk, &Digest::of(&[byte]), 1, None);
        }
        drop(catalog);
        let mut log = fs::read(dir.path().join("catalog")).unwrap();
        log[RECORD * 3 + 70] ^= 1;
        log.truncate(log.len() - 5);
        assert_eq!(replay(&log, [0; 16]).unwrap().len(), 8);
        assert!(replay(&log[..100], [0; 16]).is_none());
        assert!(replay(b"", [0; 16]).is_none());
    }

    #[test]
    fn what_enters_during_a_sweep_stays() {
        let dir = store();
        let mut catalog = Catalog::open(dir.path()).unwrap();
        let (gone, entered) = (Digest::of(b"gone"), Digest::of(b"entered"));
        catalog.put(Kind::Chunk, &gone, 10, None);
        let since = catalog.begin_sweep().unwrap();
        assert_eq!(catalog.begin_sweep(), None, "once");
        let found = scan_all(dir.path());
        catalog.put(Kind::Chunk, &entered, 100, None);
        catalog.reconcile(found, since);
        assert!(catalog.get(Kind::Chunk, &gone).is_none());
        assert_eq!(catalog.total(), 100);
    }

    #[test]
    fn without_a_catalog_the_disk_is_asked() {
        let dir = store();
        let digest = Digest::of(b"x");
        let path = dir.path().join(Kind::File.relative(&digest));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"xyz").unwrap();
        fs::write(dir.path().join("packs/rubbish"), b"x").unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        assert_eq!(catalog.total(), 3);
        assert_eq!(catalog.get(Kind::File, &digest).unwrap().stamp, None);
    }
}
