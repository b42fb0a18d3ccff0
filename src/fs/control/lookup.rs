//! lookup, readlink, readdir.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attr::{Attr, DirEntry, Kind};
use super::find::Found;
use super::handles::Handle;
use super::out::{OutFolder, OutStat, single};
use super::run_files::{NAMES, Slot};
use super::stat::link_target;
use super::tree::{Dir, Node, StaticTree, UNLISTED};
use super::{ControlTree, inode};
use crate::fs::error::FsError;
use crate::jobs::Run;

/// Longest name of any node here, and of nearly all file systems below `out/`.
const NAME_MAX: usize = 255;

impl ControlTree {
    /// The node under a name.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let found = self.child(&self.find(parent)?, name)?;
        self.attr(&found)
    }

    /// The attributes of a node.
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        self.attr(&self.find(ino)?)
    }

    /// The target of a symlink.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        match self.find(ino)? {
            Found::Out(run, path) => OutFolder::open(run.dir())?.target(&path),
            Found::Run(run, Slot::Link) => Ok(link_target(&run).into_bytes()),
            found => match found.node() {
                Some(Node::Symlink(target)) => Ok(target.clone().into_bytes()),
                _ => Err(FsError::Invalid("not a symbolic link".to_owned())),
            },
        }
    }

    /// Opens a directory: its listing stays as it is now, so that `rm -r` skips nothing.
    pub fn opendir(&self, ino: u64) -> Result<u64, FsError> {
        let listing = self.list(ino)?;
        let handle = self.handles.fresh();
        self.handles.set(handle, Handle::Listing(Arc::new(listing)));
        Ok(handle)
    }

    /// The names from `offset` on; an entry's successor has the offset of its position plus one.
    pub fn readdir(&self, ino: u64, handle: u64, offset: u64) -> Result<Listing, FsError> {
        let entries = match self.handles.get(handle) {
            Some(Handle::Listing(entries)) if offset > 0 => entries,
            // rewound, or opened with an earlier daemon
            _ => {
                let entries = Arc::new(self.list(ino)?);
                self.handles.set(handle, Handle::Listing(Arc::clone(&entries)));
                entries
            }
        };
        Ok(Listing { entries, next: usize::try_from(offset).unwrap_or(usize::MAX) })
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.handles.remove(handle);
    }

    fn child(&self, parent: &Found, name: &OsStr) -> Result<Found, FsError> {
        match parent {
            Found::Out(run, path) => {
                let path = path.join(single(name)?);
                let stat = OutFolder::open(run.dir())?.stat(&path)?;
                self.out_paths.remember(inode::of_out(run.number(), stat.real), path.clone());
                Ok(Found::Out(Arc::clone(run), path))
            }
            Found::Run(run, Slot::Dir) => {
                let slot = name.to_str().and_then(Slot::of_name).ok_or(FsError::NotFound)?;
                match slot {
                    slot if self.runs.is_hidden(run, slot) => Err(FsError::NotFound),
                    Slot::Wait | Slot::Follow => {
                        let tree = self.tree();
                        let program = tree.program();
                        Ok(Found::Static(tree, program))
                    }
                    Slot::Out => Ok(Found::Out(Arc::clone(run), PathBuf::new())),
                    slot => Ok(Found::Run(Arc::clone(run), slot)),
                }
            }
            Found::Run(..) => Err(FsError::NotDirectory),
            Found::Static(tree, _) => {
                let name = name.to_str().ok_or(FsError::NotFound)?;
                let run = match parent.node() {
                    Some(Node::Dir(dir)) => {
                        let ino = dir.names.get(name).ok_or(FsError::NotFound)?;
                        return Ok(Found::Static(Arc::clone(tree), *ino));
                    }
                    Some(Node::RunsOf(job)) => (self.runs.of_job_by_name(job, name), Slot::Dir),
                    Some(Node::RunLinks) => (self.runs.handle().run_by_id(name), Slot::Link),
                    _ => return Err(FsError::NotDirectory),
                };
                Ok(Found::Run(run.0.ok_or(FsError::NotFound)?, run.1))
            }
        }
    }

    /// The names of a directory, `.` and `..` first: the kernel adds neither.
    fn list(&self, ino: u64) -> Result<Vec<DirEntry>, FsError> {
        let found = self.find(ino)?;
        let (parent, names) = match &found {
            Found::Out(run, path) => (self.parent_of_out(run, path), self.list_out(run, path)?),
            Found::Run(run, Slot::Dir) => (inode::of_static("runs", run.job_id()), self.list_run(run)),
            Found::Run(..) => return Err(FsError::NotDirectory),
            Found::Static(tree, _) => match found.node() {
                Some(Node::Dir(dir)) => (dir.parent, list_static(tree, ino, dir)),
                Some(Node::RunsOf(job)) => {
                    let runs = self.runs.of_job(job);
                    (inode::of_static("dir", job), run_entries(&runs, Run::name, Slot::Dir, Kind::Dir))
                }
                Some(Node::RunLinks) => {
                    (inode::ROOM, run_entries(&self.runs.all(), Run::id, Slot::Link, Kind::Symlink))
                }
                _ => return Err(FsError::NotDirectory),
            },
        };
        let dots = [(".", ino), ("..", parent)];
        let dots = dots.map(|(name, ino)| DirEntry { name: name.into(), ino, kind: Kind::Dir });
        Ok(dots.into_iter().chain(names).collect())
    }

    fn parent_of_out(&self, run: &Run, path: &Path) -> u64 {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let stat = above.and_then(|above| OutFolder::open(run.dir()).ok()?.stat(above).ok());
        match stat {
            Some(stat) => inode::of_out(run.number(), stat.real),
            None if path.as_os_str().is_empty() => inode::of_run(run.number(), Slot::Dir as u8),
            None => inode::of_run(run.number(), Slot::Out as u8),
        }
    }

    fn list_run(&self, run: &Run) -> Vec<DirEntry> {
        let shown = NAMES.iter().filter(|(_, slot)| !self.runs.is_hidden(run, *slot));
        shown
            .map(|(name, slot)| DirEntry {
                name: name.into(),
                ino: match slot {
                    Slot::Wait | Slot::Follow => self.tree().program(),
                    slot => inode::of_run(run.number(), *slot as u8),
                },
                kind: if *slot == Slot::Out { Kind::Dir } else { Kind::File },
            })
            .collect()
    }

    fn list_out(&self, run: &Run, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        let folder = match OutFolder::open(run.dir()) {
            Ok(folder) => folder,
            // a run that was not started has no folder yet
            Err(FsError::NotFound) if path.as_os_str().is_empty() => return Ok(Vec::new()),
            Err(other) => return Err(other),
        };
        let entry = |(name, stat): (OsString, OutStat)| DirEntry {
            name,
            ino: inode::of_out(run.number(), stat.real),
            kind: stat.kind,
        };
        Ok(folder.list(path)?.into_iter().map(entry).collect())
    }
}

/// A listing being read.
#[derive(Debug)]
pub struct Listing {
    entries: Arc<Vec<DirEntry>>,
    next: usize,
}

impl Listing {
    /// The entries left, each with the offset at which its successor is found.
    pub fn rest(&self) -> impl Iterator<Item = (u64, &DirEntry)> {
        let left = self.entries.iter().enumerate().skip(self.next);
        left.map(|(at, entry)| (at as u64 + 1, entry))
    }
}

fn list_static(tree: &StaticTree, ino: u64, dir: &Dir) -> Vec<DirEntry> {
    let listed =
        dir.names.iter().filter(|(name, _)| ino != inode::ROOM || !UNLISTED.contains(&name.as_str()));
    listed
        .map(|(name, ino)| DirEntry {
            name: name.into(),
            ino: *ino,
            kind: tree.node(*ino).map_or(Kind::File, kind_of),
        })
        .collect()
}

fn run_entries(runs: &[Arc<Run>], name: impl Fn(&Run) -> &str, slot: Slot, kind: Kind) -> Vec<DirEntry> {
    let entry = |run: &Arc<Run>| DirEntry {
        name: name(run).into(),
        ino: inode::of_run(run.number(), slot as u8),
        kind,
    };
    let mut entries: Vec<DirEntry> = runs.iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

fn kind_of(node: &Node) -> Kind {
    match node {
        Node::Dir(_) | Node::RunsOf(_) | Node::RunLinks => Kind::Dir,
        Node::Symlink(_) => Kind::Symlink,
        Node::Fact(_) | Node::Ctl(_) | Node::Events(_) | Node::Program => Kind::File,
    }
}
