//! open, read, poll, release.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use tokio::sync::watch::Receiver;

use super::find::Found;
use super::handles::Handle;
use super::inode;
use super::out::OutFolder;
use super::reply::slice;
use super::run_files::Slot;
use super::stat::run_log;
use super::tree::Node;
use super::{ControlTree, lock};
use crate::fs::error::FsError;
use crate::jobs::{Log, RunState};

/// How a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// The executable: its pages are shared by everybody and stay; all else goes past the page cache.
    pub cached: bool,
}

/// Tells the kernel that a poll is ready.
pub type Wake = Box<dyn FnOnce() + Send>;

impl ControlTree {
    /// Opens a file. `flags` are those of `open(2)`; the kernel has compared modes already, except for root.
    pub fn open(&self, ino: u64, flags: i32) -> Result<Opened, FsError> {
        let found = self.find(ino)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        if writes && !takes_writes(&found) {
            return Err(FsError::Denied("this file says what is, it is not written to".to_owned()));
        }
        let handle = self.handles.fresh();
        let cached = matches!(found.node(), Some(Node::Program));
        if let Some(open) = self.open_handle(ino, &found, handle)? {
            self.handles.set(handle, open);
        }
        if flags & libc::O_TRUNC != 0 {
            self.truncate(&found, 0)?;
        }
        Ok(Opened { handle, cached })
    }

    /// What a fresh handle holds; nothing for files that need no memory.
    fn open_handle(&self, ino: u64, found: &Found, handle: u64) -> Result<Option<Handle>, FsError> {
        Ok(match found {
            Found::Out(run, path) => Some(Handle::Disk(Arc::new(OutFolder::open(run.dir())?.file(path)?))),
            Found::Run(_, Slot::Dir) => return Err(FsError::IsDirectory),
            Found::Run(run, slot) if slot.is_rendered() => {
                let bytes = self.open_run(run, *slot, handle);
                Some(Handle::Content { bytes, finished: false })
            }
            Found::Run(_, Slot::Ctl) => Some(Handle::Ctl(Arc::default())),
            Found::Run(run, slot) => {
                run_log(*slot).and_then(|name| run.open_log(name)).map(|log| Handle::Log(Arc::new(log)))
            }
            Found::Static(..) => match found.node() {
                Some(Node::Fact(fact)) => {
                    Some(Handle::Content { bytes: self.open_fact(ino, handle, fact), finished: false })
                }
                Some(Node::Ctl(_)) => Some(Handle::Ctl(Arc::default())),
                Some(Node::Events(source)) => {
                    self.events_path(source.as_deref()).and_then(|path| open_log(&path))
                }
                Some(Node::Program) => None,
                Some(Node::Dir(_) | Node::RunsOf(_) | Node::RunLinks) => return Err(FsError::IsDirectory),
                Some(Node::Symlink(_)) | None => return Err(FsError::NotFound),
            },
        })
    }

    /// At most `size` bytes at `offset`. A handle of an earlier daemon reads its file as it is now.
    pub fn read(&self, ino: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, FsError> {
        let found = self.find(ino);
        if found.as_ref().is_ok_and(is_ctl) {
            let reply = self.handles.reply(handle, false).ok_or(FsError::Stale)?;
            let part = lock(&reply).read(offset, size);
            return Ok(part);
        }
        match self.handles.get(handle) {
            Some(Handle::Disk(file)) => read_disk(&file, offset, size),
            Some(Handle::Log(log)) => read_log(&log, offset, size),
            Some(Handle::Ctl(reply)) => Ok(lock(&reply).read(offset, size)), // its run was removed
            Some(Handle::Content { bytes, finished }) if !(finished && offset == 0) => {
                self.give(ino, handle, bytes, offset, size)
            }
            // read to the end and now from the start again, or not opened with this daemon
            _ => self.read_anew(ino, &found?, handle, offset, size),
        }
    }

    fn read_anew(
        &self,
        ino: u64,
        found: &Found,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, FsError> {
        if let Some(Node::Program) = found.node() {
            return Ok(slice(self.options.runner, offset, size).to_vec());
        }
        let Some(open) = self.open_handle(ino, found, handle)? else { return Ok(Vec::new()) };
        self.handles.set(handle, open.clone());
        match open {
            Handle::Disk(file) => read_disk(&file, offset, size),
            Handle::Log(log) => read_log(&log, offset, size),
            Handle::Content { bytes, .. } => self.give(ino, handle, bytes, offset, size),
            Handle::Ctl(_) | Handle::Listing(_) => Err(FsError::Stale),
        }
    }

    /// A part of a rendered file; its last byte ends the freeze.
    fn give(
        &self,
        ino: u64,
        handle: u64,
        bytes: Arc<[u8]>,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, FsError> {
        let part = slice(&bytes, offset, size).to_vec();
        if offset.saturating_add(part.len() as u64) >= bytes.len() as u64 {
            self.contents.finished(ino, handle);
            self.handles.finish(handle);
        }
        Ok(part)
    }

    /// Closes a handle.
    pub fn release(&self, ino: u64, handle: u64) {
        self.handles.remove(handle);
        self.waiters.end(handle);
        self.contents.finished(ino, handle);
    }

    /// Poll. `state` is readable when its run has moved on since the handle last read it, and always when it has
    /// ended; `wake` is kept until it moves. Everything else is always ready. Returns `poll(2)` bits.
    pub fn poll(&self, ino: u64, handle: u64, events: u32, wake: Option<Wake>) -> Result<u32, FsError> {
        let always = (libc::POLLIN | libc::POLLRDNORM | libc::POLLOUT | libc::POLLWRNORM) as u32;
        let Found::Run(run, Slot::State) = self.find(ino)? else { return Ok(always & events) };
        self.contents.finished(ino, handle); // who waits is not reading
        let moves = run.subscribe();
        let state = run.state();
        let seen = match self.handles.get(handle) {
            Some(Handle::Content { bytes, finished: true }) => {
                bytes.trim_ascii_end() == state.as_str().as_bytes()
            }
            _ => false, // not read yet
        };
        if state.is_final() || !seen {
            return Ok(
                (libc::POLLIN | libc::POLLRDNORM | libc::POLLPRI) as u32 & (events | libc::POLLPRI as u32)
            );
        }
        if let Some(wake) = wake {
            self.waiters.start(&self.options.runtime, handle, moved(moves, state), wake);
        }
        Ok(0)
    }
}

async fn moved(mut moves: Receiver<RunState>, seen: RunState) {
    // an error means the run is gone, which is a move too
    let _ = moves.wait_for(|state| *state != seen).await;
}

fn is_ctl(found: &Found) -> bool {
    matches!(found, Found::Run(_, Slot::Ctl)) || matches!(found.node(), Some(Node::Ctl(_)))
}

fn takes_writes(found: &Found) -> bool {
    is_ctl(found) || matches!(found, Found::Run(_, Slot::Args | Slot::Stdin))
}

/// A file that grows. One that is not there yet is empty.
fn open_log(path: &Path) -> Option<Handle> {
    File::open(path).ok().map(|file| Handle::Disk(Arc::new(file)))
}

fn read_log(log: &Log, offset: u64, size: u32) -> Result<Vec<u8>, FsError> {
    let mut buffer = vec![0; size as usize];
    let read = log.read_at(&mut buffer, offset);
    buffer.truncate(read.map_err(|error| FsError::Internal(format!("the log cannot be read: {error}")))?);
    Ok(buffer)
}

fn read_disk(file: &File, offset: u64, size: u32) -> Result<Vec<u8>, FsError> {
    let mut buffer = vec![0; size as usize];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(FsError::Internal(format!("the file behind this one cannot be read: {error}")));
            }
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// The inode of a rendered file of a run.
pub(super) fn rendered_inos(run: u64) -> impl Iterator<Item = u64> {
    let slots = super::run_files::NAMES.iter().map(|(_, slot)| *slot).filter(|slot| slot.is_rendered());
    slots.map(move |slot| inode::of_run(run, slot as u8))
}
