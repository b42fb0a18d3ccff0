//! Rendered files: what an inode shows, and for how long it shows the same.
//!
//! `fstat` carries no handle, so size and content belong to the inode. They are frozen while a read is under way and
//! rendered anew only when the facts behind them changed. A read is under way from `open` until its handle has read
//! to the end or polled, but no longer than [`FREEZE_LIMIT`]: a descriptor that somebody merely keeps must not show
//! everybody else an old state. A command through a `ctl` thaws the run's files at once, so that whoever gave it
//! reads what it did. A handle keeps the bytes that it opened, whatever happens to the inode.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::lock;

/// Longer than any program takes from `open` to the last `read` of a file of kilobytes, short for somebody who waits.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// Rendered files kept, most of them a few hundred bytes. Beyond it those that nobody reads are dropped.
const KEPT: usize = 4096;

/// What an inode shows now.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) bytes: Arc<[u8]>,
    pub(super) changed: SystemTime,
}

/// What to render when the facts changed.
pub(super) struct Source<'a> {
    /// Rises with every change of the facts behind the file.
    pub(super) stamp: u64,
    /// Time of the last change of a file that was never rendered before.
    pub(super) born: SystemTime,
    /// Renders it.
    pub(super) render: &'a dyn Fn() -> Arc<[u8]>,
}

#[derive(Debug)]
struct Slot {
    view: View,
    stamp: u64,
    /// Handles with a read under way, and since when.
    readers: Vec<(u64, Instant)>,
}

/// The rendered files by inode number.
#[derive(Debug, Default)]
pub(super) struct Contents {
    slots: Mutex<HashMap<u64, Slot>>,
}

impl Contents {
    /// What the inode shows; the size in its attributes.
    pub(super) fn view(&self, ino: u64, source: &Source<'_>) -> View {
        self.show(ino, source, None)
    }

    /// Starts a read: what the handle will see.
    pub(super) fn open(&self, ino: u64, handle: u64, source: &Source<'_>) -> Arc<[u8]> {
        self.show(ino, source, Some(handle)).bytes
    }

    /// The handle's read is over.
    pub(super) fn finished(&self, ino: u64, handle: u64) {
        if let Some(slot) = lock(&self.slots).get_mut(&ino) {
            slot.readers.retain(|(reader, _)| *reader != handle);
        }
    }

    /// Renders these inodes anew at the next look, whoever reads them.
    pub(super) fn thaw(&self, inos: impl Iterator<Item = u64>) {
        let mut slots = lock(&self.slots);
        for ino in inos {
            if let Some(slot) = slots.get_mut(&ino) {
                slot.readers.clear();
            }
        }
    }

    /// Forgets inodes that are no more.
    pub(super) fn forget(&self, inos: impl Iterator<Item = u64>) {
        let mut slots = lock(&self.slots);
        for ino in inos {
            slots.remove(&ino);
        }
    }

    fn show(&self, ino: u64, source: &Source<'_>, handle: Option<u64>) -> View {
        if let Some(slot) = lock(&self.slots).get_mut(&ino) {
            slot.readers.retain(|(_, since)| since.elapsed() < FREEZE_LIMIT);
            if slot.stamp == source.stamp || !slot.readers.is_empty() {
                slot.readers.extend(handle.map(|handle| (handle, Instant::now())));
                return slot.view.clone();
            }
        }
        // rendered without the lock: it asks other rooms
        let bytes = (source.render)();
        let mut slots = lock(&self.slots);
        if slots.len() >= KEPT {
            slots.retain(|_, slot| !slot.readers.is_empty());
        }
        let first = || Slot {
            view: View { bytes: Arc::clone(&bytes), changed: source.born },
            stamp: source.stamp,
            readers: Vec::new(),
        };
        let slot = slots.entry(ino).or_insert_with(first);
        if slot.view.bytes != bytes {
            slot.view = View { bytes, changed: SystemTime::now() };
        }
        slot.stamp = source.stamp;
        slot.readers.extend(handle.map(|handle| (handle, Instant::now())));
        slot.view.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(contents: &Contents, stamp: u64, text: &str, handle: Option<u64>) -> String {
        let bytes: Arc<[u8]> = text.as_bytes().into();
        let source = Source { stamp, born: SystemTime::UNIX_EPOCH, render: &|| Arc::clone(&bytes) };
        let seen = match handle {
            Some(handle) => contents.open(7, handle, &source),
            None => contents.view(7, &source).bytes,
        };
        String::from_utf8(seen.to_vec()).unwrap()
    }

    #[test]
    fn content_is_frozen_while_a_read_is_under_way_and_fresh_after_it() {
        let contents = Contents::default();
        assert_eq!(show(&contents, 1, "one", Some(10)), "one");
        assert_eq!(show(&contents, 2, "two", None), "one", "size stays while handle 10 reads");
        assert_eq!(show(&contents, 2, "two", Some(11)), "one");
        contents.finished(7, 10);
        assert_eq!(show(&contents, 2, "two", None), "one", "handle 11 still reads");
        contents.finished(7, 11);
        assert_eq!(show(&contents, 2, "two", None), "two");
    }

    #[test]
    fn nothing_is_rendered_while_the_facts_stand() {
        let contents = Contents::default();
        assert_eq!(show(&contents, 1, "one", None), "one");
        assert_eq!(show(&contents, 1, "other", None), "one");
    }

    #[test]
    fn a_command_thaws() {
        let contents = Contents::default();
        assert_eq!(show(&contents, 1, "one", Some(10)), "one");
        contents.thaw([7].into_iter());
        assert_eq!(show(&contents, 2, "two", Some(11)), "two");
    }

    #[test]
    fn the_time_of_change_moves_only_with_the_bytes() {
        let contents = Contents::default();
        let at = |stamp, text: &'static [u8]| {
            let render = move || Arc::from(text);
            contents.view(3, &Source { stamp, born: SystemTime::UNIX_EPOCH, render: &render }).changed
        };
        assert_eq!(at(1, b"same"), SystemTime::UNIX_EPOCH);
        assert_eq!(at(2, b"same"), SystemTime::UNIX_EPOCH);
        assert!(at(3, b"other") > SystemTime::UNIX_EPOCH);
    }
}
