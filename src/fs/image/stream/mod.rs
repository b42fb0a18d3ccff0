//! Streaming trees: what has arrived of an image whose layers have no index yet, for sources with `stream: true`.
//!
//! ```text
//! sha256-<hex>.stream        beside the images' own names
//! └── rootfs                 what has arrived
//! ```
//! Nothing in one is proven by more than the layers above it, so it is a tree of its own, and remembered by nobody:
//! names and attributes have TTL 0, files are read with direct I/O. When the layers' digests hold, the ordinary tree
//! takes its place, and this one lives on for those who are in it. When one does not, all of it is taken back
//! ([`Streams::revoke`]): its names are gone, open files answer EIO with the reason, and the kernel drops its pages.
//!
//! What is promised:
//! * Only READ waits. A name that has not arrived is ENOENT at once, and asked again next time: whether it will come is
//!   known only at the end of the layer, and a caller stuck in LOOKUP could not even be killed. So whoever finds nothing
//!   has to look again, or to wait for the source to be `ready`.
//! * What a name leads to is what the image shows there, if its layers are what their digests say; `own` has the rules.
//! * There are no extended attributes; files that an access control list guards are not shown.
//!
//! Inode numbers are those of a stream (32 bits), a bit that no image's has, and the number by arrival. Streams are
//! numbered from the time since boot, in sixteenths of a second, so that a successor of a daemon has other numbers: what
//! the kernel remembers of an earlier stream answers ESTALE.

mod journal;
mod own;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use self::journal::Journal;
use self::own::Own;
use self::tree::{Body, Item, MAX_NODES, Node, Tree};
use super::images::{Attr, DIR_SIZE, Dirent, Found, Lasting, TOP};
use crate::fetch::error::{FetchError, Side};
use crate::fetch::layer::Arriving;
use crate::fetch::layer::arriving::{ArrivedBytes, Next};
use crate::fs::error::FsError;
use crate::policy::digest::Digest;

/// What the name of an image's streaming tree has after the digest.
pub const SUFFIX: &str = ".stream";

/// In an inode number: of a streaming tree. Indexes of images stay below it.
const STREAM: u32 = 1 << 31;
/// Below the bit: `sha256-<hex>.stream`, and node n of the tree is n + 1.
const DIGEST_DIR: u32 = 0;
const NODES_FROM: u32 = 1;

/// Entries of a known layer that are added at a time, while readers wait for the tree.
const AT_ONCE: usize = 1000;

/// Makes the kernel drop what it keeps of a range of inodes. Must not wait.
pub type Forget = Box<dyn Fn(Range<u64>) + Send + Sync>;

/// Whether an inode is of a streaming tree.
pub fn is_streaming(ino: u64) -> bool {
    ino as u32 & STREAM != 0 && ino >> 32 != 0
}

/// One image's streaming tree.
#[derive(Debug)]
pub struct Stream {
    number: u32,
    digest: Digest,
    tree: RwLock<Tree>,
    /// Lowest first.
    layers: Vec<Arriving>,
    revoked: OnceLock<FetchError>,
    /// Open files.
    open: AtomicU64,
    /// Nobody is led to it any more: it goes with its last open file.
    retired: AtomicBool,
}

/// The streaming trees of all images.
pub struct Streams {
    shown: RwLock<HashMap<u32, Arc<Stream>>>,
    next: AtomicU32,
    owner: Option<(u32, u32)>,
    forget: OnceLock<Forget>,
    /// Taken before `shown`.
    journal: Mutex<Journal>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Stream {
    /// The image's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Lets the tree grow with its layers, from the top, and calls `begins` when the first of them begins to arrive.
    /// Ends when there is nothing more to show; with an error when something that was shown counts for nothing.
    pub async fn grow(&self, begins: impl Fn()) -> Result<(), FetchError> {
        for (at, arriving) in self.layers.iter().enumerate().rev() {
            if !self.layer(at as u32, arriving, &begins).await? {
                self.layers.iter().take(at + 1).for_each(Arriving::unwatch);
                break;
            }
        }
        Ok(())
    }

    /// Shows one layer; whether the next lower one may follow.
    async fn layer(&self, at: u32, arriving: &Arriving, begins: &impl Fn()) -> Result<bool, FetchError> {
        let mut own = Own::new(at);
        let mut given = false;
        loop {
            match arriving.next().await {
                Next::Entries(entries) => {
                    if !given {
                        begins();
                    }
                    given = true;
                    if !self.add(&mut own, entries.iter().map(Item::from)) {
                        break;
                    }
                }
                Next::TooMuch => break,
                Next::Proven => return Ok(own.lets_lower_in()),
                Next::Known(layer) => {
                    let mut entries = layer.index().entries().peekable();
                    while entries.peek().is_some() {
                        if !self.add(&mut own, entries.by_ref().take(AT_ONCE).map(|entry| Item::from(&entry)))
                        {
                            return Ok(false);
                        }
                        tokio::task::yield_now().await;
                    }
                    return Ok(own.lets_lower_in());
                }
                Next::Failed(error) if given => return Err(error),
                // it is fetched again from elsewhere, or the source has failed: its driver knows
                Next::Failed(_) => return Ok(false),
            }
        }
        arriving.unwatch();
        if given {
            arriving.ended().await?;
        }
        Ok(false)
    }

    fn add<'a>(&self, own: &mut Own, mut items: impl Iterator<Item = Item<'a>>) -> bool {
        let mut tree = self.tree_mut();
        let added = items.try_for_each(|item| own.add(&mut tree, &item));
        if let Err(reason) = added {
            tracing::info!(image = %self.digest, reason, "its streaming tree shows no more");
        }
        added.is_ok()
    }

    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree_mut(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn ino(&self, index: u32) -> u64 {
        ino(self.number, index)
    }

    fn node_ino(&self, node: u32) -> u64 {
        self.ino(node + NODES_FROM)
    }
}

/// What an inode number means.
enum Place {
    DigestDir,
    Node(u32),
}

impl Streams {
    /// None yet. `owner` as of [`Images`](super::Images::new).
    pub fn new(owner: Option<(u32, u32)>) -> Self {
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
            let sixteenths = time.tv_sec().saturating_mul(16) + time.tv_nsec() / (1_000_000_000 / 16);
            // eight years
            sixteenths as u32
        });
        let next = AtomicU32::new(uptime.max(1));
        Self { shown: RwLock::default(), next, owner, forget: OnceLock::new(), journal: Mutex::default() }
    }

    /// Connects the trees with the kernel's caches, once. With `resumed` an earlier daemon served the connection, and
    /// what is left of its trees is forgotten; `journal` is the connection's own.
    pub fn connect(&self, forget: Forget, journal: &Path, resumed: bool) -> io::Result<()> {
        let mut begun = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: Vec<u32> = self.all().keys().copied().collect();
        let (journal, earlier) = Journal::begin(journal, resumed, &shown)?;
        *begun = journal;
        // how large they were is not known
        earlier
            .iter()
            .for_each(|number| forget(ino(*number, DIGEST_DIR)..ino(*number, MAX_NODES as u32 + NODES_FROM)));
        let _ = self.forget.set(forget);
        Ok(())
    }

    /// A tree for the image `digest` of these layers, lowest first; nobody sees it before [`Streams::show`]. `created` as
    /// of [`ImageTree::build`](super::ImageTree::build).
    pub fn prepare(&self, digest: Digest, created: i64, layers: Vec<Arriving>) -> Arc<Stream> {
        Arc::new(Stream {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            digest,
            tree: RwLock::new(Tree::new(created)),
            layers,
            revoked: OnceLock::new(),
            open: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        })
    }

    /// Shows a tree from now on.
    pub fn show(&self, stream: &Arc<Stream>) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = journal.add(stream.number) {
            tracing::warn!(%error, "a streaming tree is not written down: its mapped pages would outlive this daemon");
        }
        self.all_mut().insert(stream.number, Arc::clone(stream));
    }

    /// Takes everything of a tree back, because of `reason`.
    pub fn revoke(&self, stream: &Arc<Stream>, reason: &str) {
        let words = format!("what was shown of the image while it arrived is taken back: {reason}");
        let error = FetchError::corrupt(Side::Remote, words);
        let _ = stream.revoked.set(error.clone());
        // whoever waits for bytes is told now
        stream.layers.iter().for_each(|layer| layer.fail(error.clone()));
        let nodes = {
            let mut tree = stream.tree_mut();
            let nodes = tree.len() as u32;
            tree.clear();
            nodes
        };
        self.retire(stream);
        if let Some(forget) = self.forget.get() {
            forget(stream.ino(DIGEST_DIR)..stream.node_ino(nodes));
        }
    }

    /// Lets a tree go as soon as none of its files is open.
    pub fn retire(&self, stream: &Arc<Stream>) {
        let mut shown = self.all_mut();
        stream.retired.store(true, Ordering::Relaxed);
        if stream.open.load(Ordering::Relaxed) == 0 {
            shown.remove(&stream.number);
        }
    }

    /// The inode of `sha256-<hex>.stream`, if there is one.
    pub(super) fn top(&self, digest: &Digest) -> Found {
        let shown = self.all();
        let live = |stream: &&Arc<Stream>| {
            stream.digest == *digest
                && stream.revoked.get().is_none()
                && !stream.retired.load(Ordering::Relaxed)
        };
        match shown.values().filter(live).max_by_key(|stream| stream.number) {
            Some(stream) => Found::Entry(self.digest_dir(stream, &stream.tree()), Lasting::Never),
            None => Found::Nothing(Lasting::Never),
        }
    }

    /// The image that an inode is of.
    pub(super) fn digest_of(&self, ino: u64) -> Option<Digest> {
        Some(self.all().get(&number(ino))?.digest)
    }

    /// As [`Images::lookup`](super::Images::lookup).
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found, FsError> {
        let (stream, place) = self.place(parent)?;
        let tree = stream.tree();
        let child = match place {
            Place::DigestDir => (name == b"rootfs").then_some(tree::ROOT),
            Place::Node(node) => dir(&tree, node)?.child(name),
        };
        Ok(match child {
            Some(child) => Found::Entry(self.attr(&stream, &tree, child)?, Lasting::Never),
            None => Found::Nothing(Lasting::Never),
        })
    }

    /// As [`Images::getattr`](super::Images::getattr).
    pub(super) fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        let (stream, place) = self.place(ino)?;
        let tree = stream.tree();
        match place {
            Place::DigestDir => Ok(self.digest_dir(&stream, &tree)),
            Place::Node(node) => self.attr(&stream, &tree, node),
        }
    }

    /// As [`Images::readdir`](super::Images::readdir); what arrives meanwhile comes at the end.
    pub(super) fn readdir(
        &self,
        ino: u64,
        from: u64,
        mut visit: impl FnMut(Dirent<'_>) -> bool,
    ) -> Result<(), FsError> {
        let (stream, place) = self.place(ino)?;
        let tree = stream.tree();
        let (itself, above) = match place {
            Place::DigestDir => {
                (self.digest_dir(&stream, &tree), Attr { ino: TOP, ..self.digest_dir(&stream, &tree) })
            }
            Place::Node(tree::ROOT) => {
                (self.attr(&stream, &tree, tree::ROOT)?, self.digest_dir(&stream, &tree))
            }
            Place::Node(node) => {
                (self.attr(&stream, &tree, node)?, self.attr(&stream, &tree, dir(&tree, node)?.parent)?)
            }
        };
        for position in from.. {
            let entry = match position {
                0 => Some((&b"."[..], itself)),
                1 => Some((&b".."[..], above)),
                _ => {
                    let at = usize::try_from(position - 2).unwrap_or(usize::MAX);
                    let slot = match place {
                        Place::DigestDir => (at == 0).then_some(Some((&b"rootfs"[..], tree::ROOT))),
                        Place::Node(node) => dir(&tree, node)?.at(at),
                    };
                    let Some(slot) = slot else { break };
                    slot.map(|(name, node)| Ok::<_, FsError>((name, self.attr(&stream, &tree, node)?)))
                        .transpose()?
                }
            };
            if let Some((name, attr)) = entry
                && !visit(Dirent { name, attr, next: position + 1 })
            {
                break;
            }
        }
        Ok(())
    }

    /// As [`Images::readlink`](super::Images::readlink).
    pub(super) fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let (stream, place) = self.place(ino)?;
        let tree = stream.tree();
        match place {
            Place::Node(node) => match &known(&tree, node)?.body {
                Body::Symlink(target) => Ok(target.to_vec()),
                _ => Err(FsError::Invalid("not a symbolic link".to_owned())),
            },
            Place::DigestDir => Err(FsError::Invalid("not a symbolic link".to_owned())),
        }
    }

    /// Opens a file; every success is paired with one [`Streams::release`].
    pub fn open(&self, ino: u64) -> Result<(), FsError> {
        let shown = self.all();
        let stream = shown.get(&number(ino)).ok_or(FsError::Stale)?;
        file(&stream.tree(), ino)?;
        // under the lock that `retire` takes
        stream.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Closes a file.
    pub fn release(&self, ino: u64) {
        let mut shown = self.all_mut();
        // of an earlier daemon's stream there is nothing to count
        let Some(stream) = shown.get(&number(ino)) else { return };
        let before = stream
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| Some(open.saturating_sub(1)));
        if before.is_ok_and(|before| before <= 1) && stream.retired.load(Ordering::Relaxed) {
            shown.remove(&number(ino));
        }
    }

    /// Up to `length` bytes of a file, once they have arrived; fewer only at its end.
    pub fn read(
        &self,
        ino: u64,
        offset: u64,
        length: u32,
    ) -> Result<BoxFuture<'static, Result<ArrivedBytes, FetchError>>, FsError> {
        let stream = self.stream(ino)?;
        if let Some(error) = stream.revoked.get() {
            return Ok(std::future::ready(Err(error.clone())).boxed());
        }
        let (layer, file, size) = file(&stream.tree(), ino)?;
        let rest = u32::try_from(size.saturating_sub(offset)).unwrap_or(u32::MAX);
        let layer = stream.layers.get(layer as usize).ok_or(FsError::Stale)?.clone();
        Ok(layer.read(file, offset.min(size), length.min(rest)).boxed())
    }

    fn all(&self) -> RwLockReadGuard<'_, HashMap<u32, Arc<Stream>>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_mut(&self) -> RwLockWriteGuard<'_, HashMap<u32, Arc<Stream>>> {
        self.shown.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self, ino: u64) -> Result<Arc<Stream>, FsError> {
        self.all().get(&number(ino)).cloned().ok_or(FsError::Stale)
    }

    fn place(&self, ino: u64) -> Result<(Arc<Stream>, Place), FsError> {
        let stream = self.stream(ino)?;
        if stream.revoked.get().is_some() {
            return Err(FsError::Stale);
        }
        Ok((stream, place_of(ino)))
    }

    fn digest_dir(&self, stream: &Stream, tree: &Tree) -> Attr {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        Attr {
            ino: stream.ino(DIGEST_DIR),
            mode: libc::S_IFDIR | 0o555,
            nlink: 3,
            uid,
            gid,
            size: DIR_SIZE,
            mtime_sec: tree.created(),
            mtime_nsec: 0,
            rdev: 0,
        }
    }

    fn attr(&self, stream: &Stream, tree: &Tree, number: u32) -> Result<Attr, FsError> {
        let node = known(tree, number)?;
        let (size, rdev) = match &node.body {
            Body::Dir(_) => (DIR_SIZE, 0),
            Body::File { size, .. } => (*size, 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Device { rdev } => (0, *rdev),
            Body::Fifo => (0, 0),
        };
        Ok(Attr {
            ino: stream.node_ino(number),
            mode: node.mode,
            nlink: node.nlink,
            uid: self.owner.map_or(node.uid, |(uid, _)| uid),
            gid: self.owner.map_or(node.gid, |(_, gid)| gid),
            size,
            mtime_sec: node.mtime_sec,
            mtime_nsec: node.mtime_nsec,
            rdev,
        })
    }
}

fn ino(stream: u32, index: u32) -> u64 {
    u64::from(stream) << 32 | u64::from(index | STREAM)
}

/// A stream's number.
fn number(ino: u64) -> u32 {
    (ino >> 32) as u32
}

fn place_of(ino: u64) -> Place {
    match (ino as u32 & !STREAM).checked_sub(NODES_FROM) {
        Some(node) => Place::Node(node),
        None => Place::DigestDir,
    }
}

fn known(tree: &Tree, node: u32) -> Result<&Node, FsError> {
    tree.node(node).ok_or(FsError::Stale)
}

fn dir(tree: &Tree, node: u32) -> Result<&tree::Dir, FsError> {
    known(tree, node)?;
    tree.dir(node).ok_or(FsError::NotDirectory)
}

/// Layer, number and size of a file.
fn file(tree: &Tree, ino: u64) -> Result<(u32, u32, u64), FsError> {
    let Place::Node(node) = place_of(ino) else { return Err(FsError::IsDirectory) };
    match known(tree, node)?.body {
        Body::File { layer, file, size } => Ok((layer, file, size)),
        Body::Dir(_) => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid("not a file".to_owned())),
    }
}
