//! The control tree: everything below the mount point except the images.
//!
//! In: the daemon's facts ([`crate::fs::facts::Facts`]), the jobs handle, file operations as plain calls. Out:
//! attributes, names, bytes, replies and refusals. Nothing here waits: every call answers from memory or from a file
//! on the daemon's own disk. Must not know of `fuser`, of registries, nor of how jobs are carried out.
//!
//! | file | what it holds |
//! |---|---|
//! | `inode` | inode numbers, functions of what a node is |
//! | `tree` | sources, jobs and `.addonfs` as one immutable snapshot; what to invalidate when it changes |
//! | `find` | from an inode number to the node, with no memory of lookups |
//! | `lookup`, `stat` | lookup, readlink, readdir; modes, owners, sizes, times |
//! | `read` | open, read, poll, release |
//! | `write` | write, setattr, the commands of every `ctl` |
//! | `remove` | mkdir, rmdir, unlink |
//! | `render`, `content` | what rendered files show, and for how long they show the same |
//! | `run_files`, `out` | the files of a run directory, and the real folder behind `out/` |
//! | `handles`, `waiters`, `reply`, `command` | open files, who polls them, the reply of a `ctl`, what a write may hold |
//!
//! docs/semantics.md says the same to users, and a test compares its tables with the code.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use crate::fs::error::FsError;
use crate::fs::facts::Facts;
use crate::jobs::{Caller, Jobs};

pub mod attr;
mod command;
mod content;
mod find;
mod handles;
mod inode;
mod lookup;
mod out;
mod read;
mod refusal;
mod remove;
mod render;
mod reply;
mod run_files;
mod runs;
mod stat;
mod tree;
mod waiters;
mod write;

pub use attr::{Attr, DirEntry, Kind, TTL_NONE, TTL_STATIC};
pub use lookup::Listing;
pub use read::{Opened, Wake};
pub use write::{Change, Written};

/// What the tree is told at start and never changes.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// The mount point, for words only: the tree never touches it.
    pub mount_point: PathBuf,
    /// The daemon's uid: owner of everything but runs.
    pub uid: u32,
    /// The daemon's gid: group of everything when no group is configured.
    pub gid: u32,
    /// The group that may run jobs and see runs.
    pub group: Option<u32>,
    /// Where the images are mounted when not at `M/.addonfs/images` (a user without `user_allow_other`): `rootfs`
    /// symlinks are absolute then.
    pub images_dir: Option<PathBuf>,
    /// The program behind `run`, `plan`, `wait` and `follow`.
    pub runner: &'static [u8],
    /// Where waiting for a poll happens.
    pub runtime: tokio::runtime::Handle,
}

/// Who asks, and whether for the second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// User id.
    pub uid: u32,
    /// Group id; supplementary groups are the kernel's business.
    pub gid: u32,
    /// Thread id, 0 for another pid namespace.
    pub pid: u32,
    /// The kernel's number of the request, the same when it is sent again.
    pub unique: u64,
    /// The kernel sends it again after a daemon died with it: it may have been done.
    pub resent: bool,
}

impl Request {
    fn caller(&self) -> Caller {
        Caller { uid: self.uid, gid: self.gid, pid: self.pid }
    }
}

/// Makes the kernel forget a name: parent's inode number and the name.
pub type ForgetName = Box<dyn Fn(u64, &OsStr) + Send + Sync>;

/// The control tree.
pub struct ControlTree {
    facts: Arc<dyn Facts>,
    options: ControlOptions,
    tree: RwLock<Arc<tree::StaticTree>>,
    /// Held from the look at the facts until the kernel has forgotten: of two sources that change at once, the one that
    /// looked first must not have the last word.
    changing: Mutex<()>,
    /// Held for reading while an operation and its reply are under way, see [`ControlTree::changed`].
    gate: RwLock<()>,
    runs: runs::Runs,
    contents: content::Contents,
    handles: handles::Handles,
    out_paths: out::OutPaths,
    waiters: waiters::Waiters,
    refusal: refusal::LastRefusal,
    started: SystemTime,
    /// Rises with every snapshot: files of a source are rendered from the source that the snapshot holds.
    snapshots: AtomicU64,
    /// Metrics move without any fact changing: each look at them is a new one.
    looks: AtomicU64,
    forget_name: OnceLock<ForgetName>,
}

impl ControlTree {
    /// The tree as the facts are now.
    pub fn new(facts: Arc<dyn Facts>, jobs: Jobs, options: ControlOptions) -> Self {
        let runs = runs::Runs::new(jobs);
        let tree = RwLock::new(Arc::new(build(&*facts, &runs, &options)));
        Self {
            facts,
            options,
            tree,
            changing: Mutex::default(),
            gate: RwLock::default(),
            runs,
            contents: content::Contents::default(),
            handles: handles::Handles::new(),
            out_paths: out::OutPaths::default(),
            waiters: waiters::Waiters::default(),
            refusal: refusal::LastRefusal::default(),
            started: SystemTime::now(),
            snapshots: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            forget_name: OnceLock::new(),
        }
    }

    /// Connects the tree with the kernel's caches, once the session runs.
    pub fn on_forget_name(&self, hook: ForgetName) {
        let _ = self.forget_name.set(hook); // a second hook would be the same kernel
    }

    /// An operation holds this until its reply is written.
    pub fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what the facts say now, and returns when the kernel has forgotten what they said before.
    ///
    /// The daemon calls it after it changed which sources and jobs there are and before it announces the change.
    /// Never from a thread that serves the mount: the kernel may hold a directory locked for a request that this very
    /// thread would have to answer.
    pub fn changed(&self) {
        let _changing = lock(&self.changing);
        let new = Arc::new(build(&*self.facts, &self.runs, &self.options));
        let old = {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *tree, Arc::clone(&new))
        };
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        // An operation that looked at the old snapshot may not have replied yet; its answer, valid for years, must
        // not reach the kernel after the names were forgotten.
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
        let Some(forget) = self.forget_name.get() else { return };
        for (dir, name) in tree::stale_names(&old, &new) {
            forget(dir, OsStr::new(&name));
        }
    }

    fn tree(&self) -> Arc<tree::StaticTree> {
        Arc::clone(&self.tree.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn group(&self) -> u32 {
        self.options.group.unwrap_or(self.options.gid)
    }
}

impl fmt::Debug for ControlTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlTree").field("options", &self.options).finish_non_exhaustive()
    }
}

fn build(facts: &dyn Facts, runs: &runs::Runs, options: &ControlOptions) -> tree::StaticTree {
    let sources: Vec<String> = facts.sources().iter().map(|source| source.name.clone()).collect();
    tree::StaticTree::build(&tree::Shape {
        shown: &facts.shown(),
        sources: &sources,
        jobs: &runs.jobs(),
        images_dir: options.images_dir.as_deref(),
        program: options.runner,
    })
}

/// A lock whose holder panicked still holds whole values: every critical section here is one insert, remove or swap.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node is no more, or never was: the kernel looks the name up again.
fn gone<T>() -> Result<T, FsError> {
    Err(FsError::Gone)
}
