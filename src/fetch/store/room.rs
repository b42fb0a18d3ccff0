//! Making room: what was used least recently goes first, what somebody has open last, what is pinned never.

use std::collections::HashSet;
use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::scan::scan_all;
use super::{Kind, Store};
use crate::policy::digest::Digest;
use crate::policy::quantity::render_memory;

/// After an eviction that did not make enough room nothing is looked through again for so long: without this a cache full
/// of pinned content would be looked through for every chunk.
const FUTILE: Duration = Duration::from_secs(1);

/// A set of items.
pub(crate) type Items = HashSet<(Kind, Digest)>;

/// Tells which items somebody has open.
pub(crate) struct OpenItems(pub Box<dyn Fn() -> Items + Send + Sync>);

impl fmt::Debug for OpenItems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenItems")
    }
}

/// What was evicted since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    items: AtomicU64,
    bytes: AtomicU64,
}

/// An eviction that made less room than was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Futile {
    at: Instant,
    incoming: u64,
}

impl Store {
    /// Makes room for `incoming` more bytes by evicting, and for a tenth of the quota more, so that not every chunk
    /// evicts another one. `false`: they do not fit, and are not to be kept. `written` of them are on disk already.
    ///
    /// Layer indexes stay: they are a percent of the content, and without one its layer would have to be fetched
    /// whole. Readers that have an evicted file open keep it.
    pub(super) fn make_room(&self, incoming: u64, written: u64) -> bool {
        let fits = || self.used_bytes().saturating_add(incoming) <= self.limit(written);
        if fits() {
            return true;
        }
        // One thread looks through the catalog, and those that come meanwhile find what it did.
        let mut futile = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        if fits() {
            return true;
        }
        if futile.is_some_and(|last| last.at.elapsed() < FUTILE && incoming >= last.incoming) {
            return false;
        }
        let limit = self.limit(written);
        self.evict(limit.saturating_sub(incoming), (limit - limit / 10).saturating_sub(incoming));
        let done = fits();
        *futile = (!done).then(|| Futile { at: Instant::now(), incoming });
        done
    }

    /// Down to `goal` by what nobody has open, and only if `most` are not kept by that also by what somebody has.
    fn evict(&self, most: u64, goal: u64) {
        self.sweep_once();
        let (pinned, open) = (self.pinned_items(), self.open_items());
        let idle =
            |key: &(Kind, Digest)| key.0 != Kind::Index && !pinned.contains(key) && !open.contains(key);
        let busy = |key: &(Kind, Digest)| key.0 != Kind::Index && !pinned.contains(key) && open.contains(key);
        self.evict_oldest(goal, idle);
        self.evict_oldest(most, busy);
    }

    /// The catalog is looked through twice and sorted never while it is held: threads that serve a mount wait for it.
    fn evict_oldest(&self, goal: u64, may_go: impl Fn(&(Kind, Digest)) -> bool) {
        let over = self.used_bytes().saturating_sub(goal);
        if over == 0 {
            return;
        }
        let mut uses = self.catalog().uses(&may_go);
        uses.sort_unstable();
        let mut freed = 0_u64;
        let enough = uses.iter().find(|(_, size)| {
            freed = freed.saturating_add(*size);
            freed >= over
        });
        let until = enough.map_or(u64::MAX, |(used, _)| *used);
        let mut oldest = self.catalog().unused_since(until, &may_go);
        oldest.sort_unstable();
        for (_, kind, digest) in oldest {
            let before = self.used_bytes();
            if before <= goal {
                return;
            }
            self.discard(kind, &digest);
            self.evicted.items.fetch_add(1, Ordering::Relaxed);
            self.evicted.bytes.fetch_add(before.saturating_sub(self.used_bytes()), Ordering::Relaxed);
        }
    }

    /// Compares the catalog with the disk, once. Seconds for a large cache on a slow disk, so not with the catalog in hand.
    fn sweep_once(&self) {
        let sweep = self.catalog().begin_sweep();
        if let Some(since) = sweep {
            let found = scan_all(&self.root);
            self.catalog().reconcile(found, since);
        }
    }

    /// Most bytes of content there may be now: the quota, or less where the disk is nearly full. `written` bytes were
    /// taken from the disk for what is not in the catalog yet.
    fn limit(&self, written: u64) -> u64 {
        let options = &self.options;
        if options.keep_free_bytes == 0 {
            return options.quota_bytes;
        }
        let Some(free) = free_bytes(&self.root) else { return options.quota_bytes };
        let within = self.used_bytes().saturating_add(written).saturating_add(free);
        options.quota_bytes.min(within.saturating_sub(options.keep_free_bytes))
    }

    /// That the disk is too full to keep anything more, in words.
    pub(super) fn disk_trouble(&self) -> Option<String> {
        let floor = self.options.keep_free_bytes;
        let free = free_bytes(&self.root).filter(|free| *free < floor)?;
        Some(format!(
            "the disk of the cache has {} free and cache.keep_free is {}: nothing more is kept; free some space or lower it",
            render_memory(free >> 20 << 20),
            render_memory(floor)
        ))
    }

    /// Who can tell what is open. Asked before each eviction.
    pub(crate) fn ask_what_is_open(&self, open: OpenItems) {
        // A second one would come from nowhere; the first one holds.
        let _ = self.open.set(open);
    }

    fn open_items(&self) -> Items {
        self.open.get().map(|open| (open.0)()).unwrap_or_default()
    }

    /// Items and bytes evicted since the store was opened.
    pub fn evicted(&self) -> (u64, u64) {
        (self.evicted.items.load(Ordering::Relaxed), self.evicted.bytes.load(Ordering::Relaxed))
    }
}

/// Bytes that an ordinary user may still write on the file system of `path`.
fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::{Store, StoreOptions};
    use super::*;

    const SIZE: usize = 100_000;

    fn store(quota: u64) -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { quota_bytes: quota, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        (dir, store)
    }

    fn put(store: &Store, byte: u8) -> Digest {
        let bytes = Bytes::from(vec![byte; SIZE]);
        let digest = Digest::of(&bytes);
        store.put_chunk(&digest, &bytes).unwrap();
        digest
    }

    #[test]
    fn the_oldest_goes_and_the_order_outlives_a_kill() {
        let (dir, store) = store(1_000_000);
        let digests: Vec<Digest> = (0..9).map(|byte| put(&store, byte)).collect();
        store.touch(Kind::Chunk, &digests[0]);
        store.save_uses();
        let options = store.options().clone();
        // As a kill leaves it: nothing is saved at the end, and the lock is free.
        let copy = tempfile::tempdir().unwrap();
        let mut cp = std::process::Command::new("cp");
        assert!(cp.arg("-a").arg(dir.path().join(".")).arg(copy.path()).status().unwrap().success());
        let store = Store::open(copy.path(), options).unwrap();
        put(&store, 100);
        put(&store, 101);
        let here = |digest: &Digest| store.has(Kind::Chunk, digest);
        assert!(here(&digests[0]), "used last");
        assert!(!here(&digests[1]) && !here(&digests[2]), "the oldest");
        assert!(digests[3..].iter().all(here));
        assert_eq!(store.evicted(), (2, 2 * SIZE as u64));
    }

    #[test]
    fn what_is_open_goes_last() {
        let (_dir, store) = store(1_000_000);
        let open = put(&store, 0);
        let asked = HashSet::from([(Kind::Chunk, open)]);
        store.ask_what_is_open(OpenItems(Box::new(move || asked.clone())));
        for byte in 1..100 {
            put(&store, byte);
        }
        assert!(store.has(Kind::Chunk, &open), "there was enough else");
        store.evict(SIZE as u64 / 2, SIZE as u64 / 2);
        assert_eq!(store.used_bytes(), 0);
    }

    /// A quota is not made room for twice by threads that want it at the same time.
    #[test]
    fn many_writers_stay_within_the_quota_together() {
        let (_dir, store) = store(1_000_000);
        std::thread::scope(|threads| {
            for first in 0..4_u8 {
                let store = &store;
                threads.spawn(move || (0..50).for_each(|at| _ = put(store, first * 50 + at)));
            }
        });
        assert!(store.used_bytes() <= 1_000_000 + 4 * SIZE as u64);
        assert!(store.used_bytes() >= 500_000, "no more goes than has to");
    }

    #[test]
    fn a_disk_without_room_takes_nothing_and_is_given_back_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let roomy = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let kept = put(&roomy, 1);
        drop(roomy);
        // No disk has so much free: whatever is here is too much.
        let options = StoreOptions { keep_free_bytes: u64::MAX / 2, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let refused = put(&store, 2);
        assert!(!store.has(Kind::Chunk, &kept) && !store.has(Kind::Chunk, &refused));
        assert!(store.trouble().unwrap().contains("cache.keep_free"));
        assert_eq!(store.chunk(&refused, SIZE as u64).unwrap().len(), SIZE, "whoever asked gets it");
    }
}
