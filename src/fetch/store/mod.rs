//! The store: decoded content on disk, by digest.
//!
//! ```text
//! <dir>/version             "addonfs cache 1"; another version is refused
//! <dir>/lock                flock'd while a process uses the store
//! <dir>/catalog             what is here, how large, when it was last used (catalog.rs, record.rs)
//! <dir>/layers/<hex>/index  layer indexes, by digest of the blob (../index/file.rs)
//! <dir>/layers/<hex>/learned  digests that an index leaves to be learned (../layer/learned.rs)
//! <dir>/files/<2>/<hex>     large files whole, by digest of their content; shared between layers and images
//! <dir>/packs/<hex>         the small files of a layer, one after the other, by digest of the blob
//! <dir>/chunks/<2>/<hex>    decoded spans that were fetched again, by digest of their content
//! <dir>/pins                images whose content stays (pins.rs)
//! <dir>/tmp/                what is being written; emptied when the store is opened
//! ```
//! In: content whose digest was computed while it was written. Out: the same bytes, proven again: a packed file
//! and a chunk by their digest at every read, a large file by hashing it when it entered and again whenever its
//! size, mtime or ctime are not what was recorded then.
//!
//! *Crash consistency.* Everything is written under `tmp/` and renamed, so a killed daemon leaves nothing half
//! written. After a power cut a renamed file may still be empty, because content is not fsynced one file at a
//! time: ten thousand fsyncs would cost more than the download. Instead one `syncfs` follows a layer in the
//! background, and what the catalog recorded before it counts only within the same boot; later it is hashed
//! again before use. Lost content is fetched again by ranges. Indexes are fsynced: they cannot be fetched.
//!
//! Must not know of registries, of layers' formats, nor of FUSE.

mod catalog;
mod check;
mod chunks;
mod files;
mod item;
mod pack;
mod pins;
mod place;
mod recent;
mod record;
mod room;
mod scan;
mod stage;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};

use catalog::Catalog;
pub(crate) use check::{Listed, Soundness};
pub(crate) use files::{Found, Whole};
pub(crate) use item::Kind;
use pins::Pins;
pub(crate) use pins::{By, Pin};
use recent::Recent;
use room::{Evicted, Futile};
pub(crate) use room::{Items, OpenItems};
pub(crate) use stage::{Stage, Staged};

use super::error::{Class, FetchError, Side};
use super::layer::Flights;
use super::traffic::Traffic;
use crate::policy::digest::Digest;

/// The content of `<dir>/version`. Raise the number with every change of the layout.
const VERSION: &str = "addonfs cache 1\n";

/// Files of at least this size are kept as files of their own, so that the kernel can read them itself
/// (passthrough); smaller ones go into their layer's pack. Passthrough saves about 15 us a MiB and costs 20 us
/// an open, and 64 KiB are read in one FUSE request anyway.
pub(crate) const LARGE_FILE: u64 = 64 << 10;

/// How often content on disk is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Large files when size, mtime or ctime changed; everything else at every read.
    #[default]
    OnChange,
    /// Large files at every open, too (`cache.verify: always`).
    Always,
}

/// How a store is to behave.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Most bytes of content to keep on disk; what was used least recently goes first.
    pub quota_bytes: u64,
    /// Bytes of the disk to leave free: below that content is evicted, and no more is kept. 0 asks the disk nothing.
    pub keep_free_bytes: u64,
    /// How often content on disk is proven.
    pub verify: Verify,
    /// Most bytes a layer may decode to. `None`: 128 times the blob, at least 4 GiB and at most 1 TiB. Real
    /// layers stay below 50 times; deflate can reach 1032.
    pub max_decoded: Option<u64>,
}

impl Default for StoreOptions {
    /// 20 GiB, whatever else is on the disk.
    fn default() -> Self {
        Self { quota_bytes: 20 << 30, keep_free_bytes: 0, verify: Verify::default(), max_decoded: None }
    }
}

/// The right to do a long piece of work for one digest.
pub(crate) type Turn = Arc<tokio::sync::Mutex<()>>;

/// The turns that somebody holds or waits for.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, digest: &Digest) -> Turn {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(*digest, Arc::downgrade(&turn));
        turn
    }
}

/// The store of one cache directory. One process at a time.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    options: StoreOptions,
    catalog: Mutex<Catalog>,
    recent: Mutex<Recent>,
    /// Large files that are open, with what was proven of them.
    whole: quick_cache::sync::Cache<Digest, Arc<Whole>>,
    /// Packs that are open.
    packs: quick_cache::sync::Cache<Digest, Arc<File>>,
    /// One lock a large file that is being hashed, so that many readers of one file hash it once.
    proofs: Turns,
    /// One lock a layer that is being ingested, so that it is fetched once.
    ingests: Turns,
    /// Spans that are being fetched.
    pub(in crate::fetch) flights: Flights,
    /// Who is waiting for the network.
    pub(in crate::fetch) traffic: Traffic,
    pins: Pins,
    /// Who can tell what is open.
    open: OnceLock<OpenItems>,
    /// Held by who evicts.
    evicting: Mutex<Option<Futile>>,
    evicted: Evicted,
    /// Held for the life of the store. `None`: this is only a look at it.
    lock: Option<Flock<File>>,
}

/// Descriptors kept open for reading. Well below the usual soft limit of 1024, of which the kernel connections
/// and the registry need some.
const OPEN_FILES: usize = 256;
const OPEN_PACKS: usize = 64;

impl Store {
    /// Opens or creates the store in `dir`.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Arc<Self>, FetchError> {
        let fail = |error: std::io::Error| {
            FetchError::storage(&format!("cannot use cache directory {}", dir.display()), &error)
        };
        // Layers may be of private images.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        let lock = lock(dir)?;
        check_version(dir)?;
        let tmp = dir.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(fail)?;
        }
        for part in ["tmp", "layers", "files", "packs", "chunks"] {
            fs::create_dir_all(dir.join(part)).map_err(fail)?;
        }
        Ok(Arc::new(Self::of(dir, options, Catalog::open(dir)?, Some(lock))))
    }

    /// A look at the store in `dir` as it is now, also while another process uses it. Nothing is changed through it, and
    /// what happens to the store afterwards is not seen in it.
    pub(crate) fn look(dir: &Path) -> Result<Arc<Self>, FetchError> {
        if !dir.join("version").exists() {
            let what = format!("there is no addonfs cache in {}", dir.display());
            return Err(FetchError::new(Class::NotFound, Side::Local, what));
        }
        check_version(dir)?;
        Ok(Arc::new(Self::of(dir, StoreOptions::default(), Catalog::look(dir), None)))
    }

    fn of(dir: &Path, options: StoreOptions, catalog: Catalog, lock: Option<Flock<File>>) -> Self {
        Self {
            root: dir.to_owned(),
            options,
            catalog: Mutex::new(catalog),
            recent: Mutex::new(Recent::new()),
            whole: quick_cache::sync::Cache::new(OPEN_FILES),
            packs: quick_cache::sync::Cache::new(OPEN_PACKS),
            proofs: Turns::default(),
            ingests: Turns::default(),
            flights: Flights::default(),
            traffic: Traffic::default(),
            pins: Pins::read(dir),
            open: OnceLock::new(),
            evicting: Mutex::default(),
            evicted: Evicted::default(),
            lock,
        }
    }

    fn is_a_look(&self) -> bool {
        self.lock.is_none()
    }

    /// Bytes of content that the store holds now.
    pub fn used_bytes(&self) -> u64 {
        self.catalog().total()
    }

    /// Another number whenever something entered or left, or a pin changed.
    pub(crate) fn generation(&self) -> u64 {
        self.catalog().position().wrapping_add(self.pin_generation())
    }

    /// The options it was opened with.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    pub(crate) fn index_path(&self, layer: &Digest) -> PathBuf {
        self.path(Kind::Index, layer)
    }

    /// Where digests are kept that the index of `layer` does not know.
    pub(crate) fn learned_path(&self, layer: &Digest) -> PathBuf {
        self.path(Kind::Index, layer).with_file_name("learned")
    }

    /// Where an item lies.
    fn path(&self, kind: Kind, digest: &Digest) -> PathBuf {
        self.root.join(kind.relative(digest))
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The catalog. A panic elsewhere cannot leave it inconsistent: every change is one call.
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks an item as used now.
    pub(crate) fn touch(&self, kind: Kind, digest: &Digest) {
        self.catalog().touch(kind, digest);
    }

    /// Marks a layer's index and pack as used now.
    pub(crate) fn touch_layer(&self, layer: &Digest) {
        self.touch(Kind::Index, layer);
        self.touch(Kind::Pack, layer);
    }

    /// Writes down when everything was last used, so that a kill does not change what is evicted first. Cheap enough for
    /// every minute.
    pub(crate) fn save_uses(&self) {
        self.catalog().save_uses();
    }

    /// Removes a layer's index.
    pub(crate) fn discard_index(&self, layer: &Digest) {
        self.discard(Kind::Index, layer);
    }

    /// Whether an item is here; says nothing about its content.
    pub(crate) fn has(&self, kind: Kind, digest: &Digest) -> bool {
        self.catalog().get(kind, digest).is_some()
    }

    /// The lock that whoever ingests `layer` holds.
    pub(crate) fn ingest_turn(&self, layer: &Digest) -> Turn {
        self.ingests.of(layer)
    }

    /// The lock that whoever hashes a large file for longer than a moment holds. Never waited for by a thread: a
    /// hundred gigabytes take a minute.
    pub(crate) fn proof_turn(&self, content: &Digest) -> Turn {
        self.proofs.of(content)
    }

    /// Makes everything written so far durable; blocks for as long as the disk needs, without keeping the store
    /// open meanwhile.
    pub(crate) fn sync(store: &Weak<Self>) -> Result<(), FetchError> {
        let fail = |error: std::io::Error| FetchError::storage("cannot flush the cache to disk", &error);
        let Some(strong) = store.upgrade() else { return Ok(()) };
        let position = strong.catalog().position();
        let root = File::open(&strong.root).map_err(fail)?;
        drop(strong);
        nix::unistd::syncfs(&root).map_err(|error| fail(error.into()))?;
        let Some(log) = store.upgrade().and_then(|store| store.catalog().synced(position)) else {
            return Ok(());
        };
        log.sync_data().map_err(fail)
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, FetchError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| FetchError::storage(&format!("cannot open {}", path.display()), &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        let what = format!("cache directory {}", dir.display());
        match error {
            nix::errno::Errno::EWOULDBLOCK => FetchError::new(
                Class::Storage,
                Side::Local,
                format!("{what} is used by another addonfs process: stop it or choose another --cache-dir"),
            ),
            error => FetchError::storage(&format!("cannot lock {what}"), &error.into()),
        }
    })
}

fn check_version(dir: &Path) -> Result<(), FetchError> {
    let path = dir.join("version");
    let fail = |error: std::io::Error| FetchError::storage(&format!("cannot use {}", path.display()), &error);
    match fs::read_to_string(&path) {
        Ok(version) if version == VERSION => Ok(()),
        Ok(version) => Err(FetchError::new(
            Class::Storage,
            Side::Local,
            format!(
                "{} says {:?} and this program writes {:?}: choose another --cache-dir or remove this one",
                path.display(),
                version.trim_end(),
                VERSION.trim_end()
            ),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let tmp = dir.join("version.tmp");
            let mut file = File::create(&tmp).map_err(fail)?;
            file.write_all(VERSION.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
            fs::rename(&tmp, &path).map_err(fail)
        }
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_one_version() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let second = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
        assert!(second.message.contains("another addonfs process"), "{second}");
        drop(store);
        fs::write(dir.path().join("tmp/left-over"), b"x").unwrap();
        drop(Store::open(dir.path(), StoreOptions::default()).unwrap());
        assert!(!dir.path().join("tmp/left-over").exists());
        fs::write(dir.path().join("version"), "addonfs cache 99\n").unwrap();
        let refused = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
        assert!(refused.message.contains("addonfs cache 99"), "{refused}");
    }
}
