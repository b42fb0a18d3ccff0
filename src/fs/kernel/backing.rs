//! Which files the kernel reads by itself.
//!
//! A complete file's descriptor is registered with the connection once (a *backing id*) and every open of the inode
//! then uses that id: a second id for an inode that is open, or an id while it is open cached, makes the kernel
//! answer EIO. So an inode is either passed through or cached as long as anybody has it open, and changes sides only
//! when nobody does; hence the counts.
//!
//! An id keeps its file open in the kernel, also one that the store has evicted or found changed. So it is used
//! again only while the store vouches for that very file, and ids that nobody uses are closed once the store let go
//! of their files: else evicted files would fill the disk, and a changed one would be read for ever.
//!
//! Ids live in the connection and outlive the daemon, so they are written down before the open is answered:
//!
//! ```text
//! start 3            third daemon of this connection; handles of earlier ones say so and are not counted
//! b 4294967316 7     inode 4294967316 has backing id 7
//! c 4294967317       the inode is open cached
//! f 4294967317       and is not any more
//! x 4294967316       its id was closed
//! ```
//!
//! Lines that no longer matter are left behind when the file has grown, because it lies in memory: a busy host opens
//! files a million times an hour.
//!
//! After a takeover nobody knows how many opens the predecessor had: an inode that was open cached stays cached, an
//! id that was known stays open, until the connection ends. The file belongs to one connection; it should lie on a
//! tmpfs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;

use super::raw;

/// Whether the kernel reads complete files by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passthrough {
    /// Not tried yet.
    Untried,
    /// It does.
    On,
    /// It does not, and why; everything works, only slower.
    Off(String),
}

impl std::fmt::Display for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untried => f.write_str("not tried yet"),
            Self::On => f.write_str("on"),
            Self::Off(reason) => write!(f, "off: {reason}"),
        }
    }
}

/// How an open is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache, by READ requests.
    Cached,
    /// By the kernel, from this backing id.
    Through(u32),
}

/// The backing ids and open counts of one connection. Clones share them.
#[derive(Debug, Clone)]
pub struct Backings(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    inodes: HashMap<u64, Inode>,
    path: PathBuf,
    journal: File,
    /// Bytes of the journal, and how many may be in it before it is written anew.
    written: usize,
    limit: usize,
    /// Which daemon of this connection this is, from 1.
    start: u64,
    passthrough: Passthrough,
}

/// The journal may always grow to this: some ten thousand opens.
const JOURNAL: usize = 1 << 20;

#[derive(Debug, Default, Clone)]
struct Inode {
    cached: u64,
    through: u64,
    id: Option<u32>,
    /// The file behind the id as the store has it open; dead when the store let go of it, or an earlier daemon made
    /// the id.
    file: Weak<File>,
    /// An earlier daemon's opens may live on.
    inherited: bool,
}

impl Inode {
    fn idle(&self) -> bool {
        self.cached == 0 && self.through == 0 && !self.inherited
    }

    /// Whether its id may be used for one more open, for which the store offers `complete`.
    fn serves(&self, complete: Option<&Arc<File>>) -> bool {
        // while it is open there is no choice: a second id would be EIO
        !self.idle() || complete.is_some_and(|file| std::ptr::eq(Arc::as_ptr(file), self.file.as_ptr()))
    }
}

impl Backings {
    /// For a connection that was just mounted; what lies at `path` belongs to another and is replaced.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::start(path, HashMap::new(), 1)
    }

    /// For a connection that an earlier daemon served, with the journal it left at `path`.
    pub fn resume(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // it died before it served
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let (inodes, start) = replay(&text);
        Self::start(path, inodes, start.saturating_add(1))
    }

    fn start(path: &Path, inodes: HashMap<u64, Inode>, start: u64) -> io::Result<Self> {
        let (journal, written) = rewrite(path, &inodes, start)?;
        let limit = JOURNAL.max(4 * written);
        let passthrough = Passthrough::Untried;
        let state = State { inodes, path: path.to_owned(), journal, written, limit, start, passthrough };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kernel reads complete files by itself on this connection.
    pub fn passthrough(&self) -> Passthrough {
        self.state().passthrough.clone()
    }

    /// No passthrough on this connection from now on.
    pub fn switch_off(&self, reason: impl Into<String>) {
        self.state().passthrough = Passthrough::Off(reason.into());
    }

    /// Finds out whether files like `file` could be passed through, before anybody opens one. The connection must be
    /// served already.
    pub fn probe(&self, device: BorrowedFd<'_>, file: &File) -> Passthrough {
        let mut state = self.state();
        if state.passthrough == Passthrough::Untried {
            match fuser::BackingId::create_raw(device, file) {
                Ok(id) => {
                    state.passthrough = Passthrough::On;
                    if let Err(error) = raw::close_backing(device, id) {
                        tracing::debug!(%error, "a backing id stays open");
                    }
                }
                Err(error) => state.refused(&error),
            }
        }
        state.passthrough.clone()
    }

    /// Decides how an open of `ino` is answered, and counts it. `complete` is the whole file on disk, if it is here
    /// and proven; `register` makes a backing id of it, `close` forgets one.
    pub(super) fn open(
        &self,
        ino: u64,
        complete: Option<&Arc<File>>,
        register: impl FnOnce(&File) -> io::Result<u32>,
        close: impl Fn(u32),
    ) -> Way {
        let mut state = self.state();
        let way = state.open(ino, complete, register, close);
        state.shorten();
        way
    }

    /// The handle to give for an open: which daemon gave it, and which way it went. It needs no table.
    pub(super) fn handle(&self, way: Way) -> u64 {
        self.state().start << 1 | u64::from(way != Way::Cached)
    }

    /// Uncounts an open.
    pub(super) fn release(&self, ino: u64, handle: u64) {
        let mut state = self.state();
        state.release(ino, handle);
        state.shorten();
    }

    /// The inodes that somebody has open, or may have since an earlier daemon.
    pub fn open_inodes(&self) -> Vec<u64> {
        self.state().inodes.iter().filter(|(_, inode)| !inode.idle()).map(|(ino, _)| *ino).collect()
    }

    /// Closes the ids of inodes that nobody has open and `keep` does not name, so that the disk space of files that
    /// were evicted is free. Returns how many.
    pub fn close_idle(&self, device: BorrowedFd<'_>, keep: impl Fn(u64) -> bool) -> usize {
        let mut state = self.state();
        let idle: Vec<(u64, u32)> = state
            .inodes
            .iter()
            .filter(|(ino, inode)| inode.idle() && !keep(**ino))
            .filter_map(|(ino, inode)| Some((*ino, inode.id?)))
            .collect();
        let mut closed = 0;
        for (ino, id) in idle {
            // written first: an id that is closed but known would be EIO for whoever opens the file next
            if state.note(format_args!("x {ino}")).is_err() || raw::close_backing(device, id).is_err() {
                continue;
            }
            state.inodes.remove(&ino);
            closed += 1;
        }
        closed
    }
}

impl State {
    fn open(
        &mut self,
        ino: u64,
        complete: Option<&Arc<File>>,
        register: impl FnOnce(&File) -> io::Result<u32>,
        close: impl Fn(u32),
    ) -> Way {
        if let Some(inode) = self.inodes.get_mut(&ino)
            && let Some(id) = inode.id
        {
            if inode.serves(complete) {
                inode.through += 1;
                return Way::Through(id);
            }
            self.close(ino, id, &close);
        }
        let idle = self.inodes.get(&ino).is_none_or(Inode::idle);
        if let Some(file) = complete.filter(|_| idle && !matches!(self.passthrough, Passthrough::Off(_))) {
            self.close_dead(&close);
            match register(file) {
                Ok(id) => {
                    self.passthrough = Passthrough::On;
                    if self.note(format_args!("b {ino} {id}")).is_ok() {
                        let file = Arc::downgrade(file);
                        self.inodes.insert(ino, Inode { through: 1, id: Some(id), file, ..Inode::default() });
                        return Way::Through(id);
                    }
                }
                Err(error) => self.refused(&error),
            }
        }
        let inode = self.inodes.entry(ino).or_default();
        inode.cached += 1;
        if inode.cached == 1 && !inode.inherited && !matches!(self.passthrough, Passthrough::Off(_)) {
            // a failure switches passthrough off, and then nobody asks
            let _ = self.note(format_args!("c {ino}"));
        }
        Way::Cached
    }

    fn release(&mut self, ino: u64, handle: u64) {
        if handle >> 1 != self.start {
            return;
        }
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        if handle & 1 == 1 {
            inode.through = inode.through.saturating_sub(1);
            return;
        }
        inode.cached = inode.cached.saturating_sub(1);
        if inode.idle() && inode.id.is_none() {
            self.inodes.remove(&ino);
            if !matches!(self.passthrough, Passthrough::Off(_)) {
                let _ = self.note(format_args!("f {ino}"));
            }
        }
    }

    /// Closes the ids that nobody uses of files that the store let go of. The store keeps some hundred files open, so
    /// about as many ids stay.
    fn close_dead(&mut self, close: &impl Fn(u32)) {
        let dead = |inode: &Inode| inode.idle() && inode.file.strong_count() == 0;
        let ids: Vec<(u64, u32)> = self
            .inodes
            .iter()
            .filter(|(_, inode)| dead(inode))
            .filter_map(|(ino, inode)| Some((*ino, inode.id?)))
            .collect();
        for (ino, id) in ids {
            self.close(ino, id, close);
        }
    }

    /// Forgets the id of an inode that nobody has open.
    fn close(&mut self, ino: u64, id: u32, close: &impl Fn(u32)) {
        self.inodes.remove(&ino);
        // written first: an id that is closed but known would be EIO for whoever opens the file next
        if self.note(format_args!("x {ino}")).is_ok() {
            close(id);
        }
    }

    /// Writes the journal anew when most of its lines no longer matter.
    fn shorten(&mut self) {
        if self.written <= self.limit {
            return;
        }
        match rewrite(&self.path, &self.inodes, self.start) {
            Ok((journal, written)) => (self.journal, self.written) = (journal, written),
            Err(error) => tracing::warn!(%error, "the journal of backing ids grows"),
        }
        // also after a failure, so that not every open tries again
        self.limit = JOURNAL.max(4 * self.written);
    }

    /// Why a backing id could not be had. Some reasons hold for the whole connection.
    fn refused(&mut self, error: &io::Error) {
        let reason = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => "needs CAP_SYS_ADMIN in the initial user namespace",
            Some(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL) => "needs Linux 6.9 or newer",
            Some(Errno::ELOOP) => "the cache lies on a stacked file system such as overlayfs",
            _ => {
                tracing::debug!(%error, "a file is read without passthrough");
                return;
            }
        };
        self.passthrough = Passthrough::Off(reason.to_owned());
    }

    /// Appends one line. Without a journal a successor would answer EIO, so a failure ends passthrough.
    fn note(&mut self, line: std::fmt::Arguments<'_>) -> io::Result<()> {
        let line = format!("{line}\n");
        let result = self.journal.write_all(line.as_bytes());
        self.written += line.len();
        if let Err(error) = &result {
            let path = self.path.display();
            self.passthrough = Passthrough::Off(format!("its journal {path} cannot be written: {error}"));
        }
        result
    }
}

/// Puts a journal with nothing but what matters in place of the one at `path`; the file and its length.
fn rewrite(path: &Path, inodes: &HashMap<u64, Inode>, start: u64) -> io::Result<(File, usize)> {
    let mut text = format!("start {start}\n");
    for (ino, inode) in inodes {
        match inode.id {
            Some(id) => text.push_str(&format!("b {ino} {id}\n")),
            None => text.push_str(&format!("c {ino}\n")),
        }
    }
    let fresh = path.with_extension("new");
    let mut journal = File::create(&fresh)?;
    journal.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, path)?;
    Ok((journal, text.len()))
}

/// What a journal says: inodes that may still be open or have an id, and the last daemon's number. A torn last line
/// is an open that was never answered.
fn replay(text: &str) -> (HashMap<u64, Inode>, u64) {
    let mut inodes = HashMap::new();
    let mut start = 0;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match (words.first().copied(), number(1)) {
            (Some("start"), Some(number)) => start = number,
            (Some("b"), Some(ino)) => {
                let id = number(2).and_then(|id| u32::try_from(id).ok());
                inodes.insert(ino, Inode { id, inherited: true, ..Inode::default() });
            }
            (Some("c"), Some(ino)) => {
                inodes.insert(ino, Inode { inherited: true, ..Inode::default() });
            }
            (Some("f" | "x"), Some(ino)) => {
                inodes.remove(&ino);
            }
            _ => {}
        }
    }
    (inodes, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(_: &File) -> io::Result<u32> {
        panic!("must not be asked")
    }

    fn keep(_: u32) {
        panic!("must not be closed")
    }

    struct Room(tempfile::TempDir);

    impl Room {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("backing")
        }

        fn file(&self) -> Arc<File> {
            Arc::new(tempfile::tempfile_in(self.0.path()).unwrap())
        }
    }

    #[test]
    fn one_id_as_long_as_an_inode_is_open_and_its_file_is_good() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        let file = room.file();
        assert_eq!(backings.open(20, Some(&file), |_| Ok(7), keep), Way::Through(7));
        assert_eq!(backings.open(20, Some(&file), refuse, keep), Way::Through(7));
        let handle = backings.handle(Way::Through(7));
        backings.release(20, handle);
        assert_eq!(backings.open(20, None, refuse, keep), Way::Through(7), "open, so there is no choice");
        backings.release(20, handle);
        backings.release(20, handle);
        assert_eq!(backings.open(20, Some(&file), refuse, keep), Way::Through(7));
        assert_eq!(backings.passthrough(), Passthrough::On);
    }

    #[test]
    fn an_id_is_not_used_again_for_a_file_that_the_store_no_longer_vouches_for() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        let closed = std::cell::Cell::new(0);
        let close = |id| closed.set(id);
        let open_and_close = |file: Option<&Arc<File>>, id| {
            let way = backings.open(20, file, |_| Ok(id), close);
            backings.release(20, backings.handle(way));
            way
        };
        let file = room.file();
        assert_eq!(open_and_close(Some(&file), 7), Way::Through(7));
        assert_eq!(open_and_close(None, 8), Way::Cached, "evicted, or changed on disk");
        assert_eq!(closed.get(), 7);
        assert_eq!(open_and_close(Some(&file), 8), Way::Through(8));
        assert_eq!(open_and_close(Some(&room.file()), 9), Way::Through(9), "made whole again");
        assert_eq!(closed.get(), 8);
        // its file is gone with the statement before: the next one to be registered lets it go
        assert_eq!(backings.open(21, Some(&file), |_| Ok(10), close), Way::Through(10));
        assert_eq!(closed.get(), 9);
        assert_eq!(Backings::resume(&room.path()).unwrap().state().inodes.len(), 1);
    }

    #[test]
    fn the_journal_does_not_grow_for_ever() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        let file = room.file();
        backings.open(20, Some(&file), |_| Ok(7), keep);
        backings.open(21, None, refuse, keep);
        for _ in 0..100_000 {
            let way = backings.open(u64::MAX - 1, None, refuse, keep);
            backings.release(u64::MAX - 1, backings.handle(way));
        }
        assert!(std::fs::metadata(room.path()).unwrap().len() < 2 * JOURNAL as u64);
        let next = Backings::resume(&room.path()).unwrap();
        assert_eq!(next.open(20, None, refuse, keep), Way::Through(7));
        assert_eq!(next.open(21, Some(&file), refuse, keep), Way::Cached);
    }

    #[test]
    fn an_inode_changes_sides_only_when_nobody_has_it_open() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        let file = room.file();
        assert_eq!(backings.open(20, None, refuse, keep), Way::Cached);
        let handle = backings.handle(Way::Cached);
        assert_eq!(backings.open(20, Some(&file), refuse, keep), Way::Cached);
        backings.release(20, handle);
        assert_eq!(backings.open(20, Some(&file), refuse, keep), Way::Cached);
        backings.release(20, handle);
        backings.release(20, handle);
        assert_eq!(backings.open(20, Some(&file), |_| Ok(3), keep), Way::Through(3));
    }

    #[test]
    fn a_successor_keeps_ids_and_does_not_touch_what_was_open() {
        let room = Room::new();
        let file = room.file();
        let first = Backings::create(&room.path()).unwrap();
        first.open(20, Some(&file), |_| Ok(7), keep);
        first.open(21, None, refuse, keep);
        first.open(22, None, refuse, keep);
        let old = first.handle(Way::Cached);
        first.release(22, old);
        drop(first);
        let mut journal = File::options().append(true).open(room.path()).unwrap();
        journal.write_all(b"b 23 9").unwrap();

        for _ in 0..2 {
            let next = Backings::resume(&room.path()).unwrap();
            assert_eq!(next.open(20, None, refuse, keep), Way::Through(7));
            assert_eq!(next.open(21, Some(&file), refuse, keep), Way::Cached);
            next.release(21, old);
            next.release(21, old);
            assert_eq!(next.open(21, Some(&file), refuse, keep), Way::Cached);
            let own = next.handle(Way::Cached);
            next.release(21, own);
            next.release(21, own);
            assert_eq!(next.open(21, Some(&file), refuse, keep), Way::Cached, "an inherited open may live");
        }
        let last = Backings::resume(&room.path()).unwrap();
        assert_eq!(last.open(22, Some(&file), |_| Ok(8), keep), Way::Through(8), "it was closed");
        assert_eq!(
            last.open(23, Some(&file), |_| Ok(10), keep),
            Way::Through(10),
            "a torn line was never answered"
        );
    }

    #[test]
    fn without_permission_everything_is_cached_and_nobody_asks_again() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        let file = room.file();
        let eperm = |_: &File| Err(io::Error::from(Errno::EPERM));
        assert_eq!(backings.open(20, Some(&file), eperm, keep), Way::Cached);
        assert!(backings.passthrough().to_string().starts_with("off: needs CAP_SYS_ADMIN"));
        assert_eq!(backings.open(21, Some(&file), refuse, keep), Way::Cached);
    }

    #[test]
    fn an_id_that_is_not_journaled_is_not_used() {
        let room = Room::new();
        let backings = Backings::create(&room.path()).unwrap();
        backings.state().journal = File::open(room.path()).unwrap();
        assert_eq!(backings.open(20, Some(&room.file()), |_| Ok(1), keep), Way::Cached);
        assert!(matches!(backings.passthrough(), Passthrough::Off(_)));
    }
}
