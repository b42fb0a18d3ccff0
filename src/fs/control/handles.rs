//! What belongs to an open file. All of it may be lost: a number that an earlier daemon gave out is recognised by its
//! upper half, and everything but the reply of a `ctl` can be had again without it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::attr::DirEntry;
use super::lock;
use super::reply::Reply;
use crate::jobs::Log;

/// State of an open file.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    /// A rendered file: its bytes as they were opened, and whether they were read to the end.
    Content { bytes: Arc<[u8]>, finished: bool },
    /// A `ctl`.
    Ctl(Arc<Mutex<Reply>>),
    /// A file on disk that grows.
    Disk(Arc<File>),
    /// A log of a run, and how far it has moved on since.
    Log(Arc<Log>),
    /// A listing as it was when it was opened.
    Listing(Arc<Vec<DirEntry>>),
}

/// The open files of this daemon.
#[derive(Debug)]
pub(super) struct Handles {
    open: Mutex<HashMap<u64, Handle>>,
    /// Random upper half of every number given out: tells own handles from those of an earlier daemon.
    epoch: u64,
    next: AtomicU32,
}

impl Handles {
    pub(super) fn new() -> Self {
        let epoch = u64::from(rand::random::<u32>() | 1) << 32;
        Self { open: Mutex::default(), epoch, next: AtomicU32::new(1) }
    }

    /// A number nobody has.
    pub(super) fn fresh(&self) -> u64 {
        let open = lock(&self.open);
        loop {
            let number = self.epoch | u64::from(self.next.fetch_add(1, Ordering::Relaxed));
            if !open.contains_key(&number) {
                return number;
            }
        }
    }

    pub(super) fn set(&self, number: u64, handle: Handle) {
        lock(&self.open).insert(number, handle);
    }

    pub(super) fn get(&self, number: u64) -> Option<Handle> {
        lock(&self.open).get(&number).cloned()
    }

    /// The bytes of a rendered file were read to the end: a read from the start begins anew.
    pub(super) fn finish(&self, number: u64) {
        if let Some(Handle::Content { finished, .. }) = lock(&self.open).get_mut(&number) {
            *finished = true;
        }
    }

    /// Closes it.
    pub(super) fn remove(&self, number: u64) -> Option<Handle> {
        lock(&self.open).remove(&number)
    }

    /// The reply buffer of a `ctl`. On a handle of an earlier daemon there is none until it is written to again.
    pub(super) fn reply(&self, number: u64, create: bool) -> Option<Arc<Mutex<Reply>>> {
        let mut open = lock(&self.open);
        if let Some(Handle::Ctl(reply)) = open.get(&number) {
            return Some(Arc::clone(reply));
        }
        if !create {
            return None;
        }
        let reply = Arc::new(Mutex::new(Reply::default()));
        open.insert(number, Handle::Ctl(Arc::clone(&reply)));
        Some(reply)
    }
}
