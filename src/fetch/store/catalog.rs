//! What is in the store: an append-only log of fixed records, replayed when the store is opened.
//!
//! ```text
//! 0  "addnfsCT"  8 u32 version  12 zeros to 128
//! then records of 128 bytes, all little-endian:
//! 0 u8 op (1 put, 2 remove, 3 synced)  1 u8 kind  2 u8 flags (1 stamped, 2 durable)  3 zeros to 8
//! 8 u64 size  16 u64 last use (s since 1970)  24 i64 mtime (ns)  32 i64 ctime (ns)  40 u64 inode number
//! 48 [16] boot id  64 [32] digest  96 zeros to 120  120 [8] head of the sha256 of the 120 bytes before
//! ```
//! The log is a hint, never a proof: a lost or torn record makes a file be hashed again, or be found by the
//! next sweep. So it is not fsynced (except the `synced` mark, whose truth is the disk's), and rewritten whole
//! when the store is opened and when it is closed, which also saves the times of last use.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fetch::error::FetchError;
use crate::policy::digest::Digest;

const MAGIC: &[u8; 8] = b"addnfsCT";
const VERSION: u32 = 1;
const RECORD: usize = 128;
/// Bytes of a record that its checksum covers.
const BODY: usize = 120;

/// The kinds of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A layer index, by digest of the blob.
    Index,
    /// A large file, by digest of its content.
    File,
    /// A layer's small files, by digest of the blob.
    Pack,
    /// A decoded span, by digest of its content.
    Chunk,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Index, Self::File, Self::Pack, Self::Chunk];

    /// The item's path below the store's directory.
    pub(super) fn relative(self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let fan = hex.get(..2).unwrap_or_default();
        match self {
            Self::Index => Path::new("layers").join(&hex).join("index"),
            Self::File => Path::new("files").join(fan).join(&hex),
            Self::Pack => Path::new("packs").join(&hex),
            Self::Chunk => Path::new("chunks").join(fan).join(&hex),
        }
    }

    const fn code(self) -> u8 {
        self as u8
    }
}

/// What a file looked like when its content was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: i64,
    ctime: i64,
    inode: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        Self {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// An item of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub size: u64,
    /// Seconds since 1970.
    pub used: u64,
    /// Of large files only.
    pub stamp: Option<Stamp>,
    /// Whether the content reached the disk before a `synced` mark.
    durable: bool,
    /// Where in the log it was put, to know whether a mark covers it.
    position: u64,
}

/// The items, and the log they are kept in.
#[derive(Debug)]
pub(super) struct Catalog {
    root: PathBuf,
    /// Shared with who makes a mark durable: that waits for the disk, and nobody may wait for it in turn.
    log: Arc<File>,
    items: HashMap<(Kind, Digest), Item>,
    total: u64,
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
        let total = items.values().map(|item| item.size).sum();
        let log = Arc::new(rewrite(root, &items, boot)?);
        let mut catalog = Self { root: root.to_owned(), log, items, total, position: 0, boot, swept: false };
        if !known {
            catalog.reconcile(scan_all(root), 0);
        }
        Ok(catalog)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
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
    pub(super) fn synced(&mut self, position: u64) -> Arc<File> {
        let boot = self.boot;
        let mut durable = Vec::new();
        for (&(kind, digest), item) in &mut self.items {
            if !item.durable && item.position <= position {
                item.durable = true;
                durable.extend(encode(1, kind, &digest, item, boot));
            }
        }
        self.append(&durable);
        Arc::clone(&self.log)
    }

    /// All items, least recently used first.
    pub(super) fn by_use(&self) -> Vec<(Kind, Digest, Item)> {
        let mut items: Vec<_> =
            self.items.iter().map(|(&(kind, digest), &item)| (kind, digest, item)).collect();
        items.sort_by_key(|&(kind, digest, item)| (item.used, kind, digest));
        items
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
        if let Err(error) = (&*self.log).write_all(records) {
            tracing::warn!(%error, "cannot write the cache catalog");
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        if let Err(error) = rewrite(&self.root, &self.items, self.boot) {
            tracing::warn!(%error, "cannot save the cache catalog");
        }
    }
}

/// Every item that lies on disk, with its size. Reads the whole directory: never while holding the catalog.
pub(super) fn scan_all(root: &Path) -> HashMap<(Kind, Digest), u64> {
    let of_kind = |kind| scan(root, kind).into_iter().map(move |(digest, size)| ((kind, digest), size));
    Kind::ALL.into_iter().flat_map(of_kind).collect()
}

/// Every item of a kind that lies on disk, with its size.
fn scan(root: &Path, kind: Kind) -> Vec<(Digest, u64)> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let paths: Vec<PathBuf> = match kind {
        Kind::Index => list(&root.join("layers")).collect(),
        Kind::Pack => list(&root.join("packs")).collect(),
        Kind::File => list(&root.join("files")).flat_map(|fan| list(&fan).collect::<Vec<_>>()).collect(),
        Kind::Chunk => list(&root.join("chunks")).flat_map(|fan| list(&fan).collect::<Vec<_>>()).collect(),
    };
    let item = |path: PathBuf| {
        let digest = Digest::from_hex(path.file_name()?.to_str()?)?;
        let metadata = fs::symlink_metadata(root.join(kind.relative(&digest))).ok()?;
        // A pack can be sparse (a block of stat(2) has 512 bytes).
        let size = if kind == Kind::Pack { metadata.blocks() * 512 } else { metadata.len() };
        Some((digest, size.min(metadata.len())))
    };
    paths.into_iter().filter_map(item).collect()
}

/// Writes all items as a fresh log and returns it, open for appending.
fn rewrite(root: &Path, items: &HashMap<(Kind, Digest), Item>, boot: [u8; 16]) -> Result<File, FetchError> {
    let mut bytes = Vec::with_capacity((items.len() + 1) * RECORD);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.resize(RECORD, 0);
    for (&(kind, digest), item) in items {
        bytes.extend(encode(1, kind, &digest, item, boot));
    }
    let (path, tmp) = (root.join("catalog"), root.join("tmp").join("catalog"));
    let write = || {
        fs::write(&tmp, &bytes)?;
        fs::rename(&tmp, &path)?;
        OpenOptions::new().append(true).open(&path)
    };
    write().map_err(|error| FetchError::storage(&format!("cannot write {}", path.display()), &error))
}

fn encode(op: u8, kind: Kind, digest: &Digest, item: &Item, boot: [u8; 16]) -> Vec<u8> {
    let stamp = item.stamp.unwrap_or(Stamp { size: 0, mtime: 0, ctime: 0, inode: 0 });
    let mut record = Vec::with_capacity(RECORD);
    let flags = u8::from(item.stamp.is_some()) | u8::from(item.durable) << 1;
    record.extend([op, kind.code(), flags, 0, 0, 0, 0, 0]);
    record.extend([item.size, item.used].map(u64::to_le_bytes).concat());
    record.extend([stamp.mtime, stamp.ctime].map(i64::to_le_bytes).concat());
    record.extend(stamp.inode.to_le_bytes());
    record.extend(boot);
    record.extend(digest.as_bytes());
    record.resize(BODY, 0);
    let sum = Digest::of(&record);
    record.extend(sum.as_bytes().iter().take(RECORD - BODY));
    record
}

/// The items that a log leaves; `None` if it is no log. Damaged records are left out.
fn replay(log: &[u8], boot: [u8; 16]) -> Option<HashMap<(Kind, Digest), Item>> {
    let (records, _) = log.as_chunks::<RECORD>();
    let (head, records) = records.split_first()?;
    if !head.starts_with(MAGIC) || head.get(8..12)? != VERSION.to_le_bytes() {
        return None;
    }
    let mut items = HashMap::new();
    for record in records {
        let (body, sum) = record.split_at(BODY);
        if !Digest::of(body).as_bytes().starts_with(sum) {
            continue;
        }
        let number = |at: usize| {
            body.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let Some(kind) = Kind::ALL.get(usize::from(record[1])).copied() else { continue };
        let Some(digest) = body.get(64..96).and_then(<[u8]>::first_chunk) else { continue };
        let key = (kind, Digest::from_bytes(*digest));
        if record[0] == 2 {
            items.remove(&key);
            continue;
        }
        let durable = record[2] & 2 != 0;
        let stamp = Stamp {
            size: number(8),
            mtime: number(24).cast_signed(),
            ctime: number(32).cast_signed(),
            inode: number(40),
        };
        // After a reboot only what had reached the disk is known to be what was written.
        let holds = record[2] & 1 != 0 && (durable || body.get(48..64) == Some(&boot[..]));
        let stamp = holds.then_some(stamp);
        items.insert(key, Item { size: number(8), used: number(16), stamp, durable, position: 0 });
    }
    Some(items)
}

/// Which boot of the machine this is; zeros (equal to nothing that was durable) where /proc is missing.
fn boot_id() -> [u8; 16] {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Digest::of(&text).as_bytes().first_chunk().copied().unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
        catalog.synced(position).sync_data().unwrap();
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
