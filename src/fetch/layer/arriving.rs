//! A layer while it arrives: what has passed of it so far, before its digest is proven.
//!
//! In: from the one pass that fetches, hashes and indexes a layer (`ingest`), each entry when its header has passed, and
//! how far its content was staged. Out: entries in tar order, and bytes of files as soon as they are staged; a reader
//! waits for exactly the bytes it asked for (of a file below 64 KiB: for all of it). When the layer is proven, everything
//! is read from the [`Layer`]; when it is not, nothing is read any more.
//!
//! Nothing from here is proven, so it has types of its own: only a streaming tree may show it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::{Layer, Read};
use crate::fetch::error::FetchError;
use crate::fetch::index::EntryKind;
use crate::fetch::index::tar::{Member, MemberKind};
use crate::fetch::store::{Stage, Staged};
use crate::policy::digest::Digest;

/// Bytes of a layer that was still arriving when they were asked for.
#[derive(Debug, Clone)]
pub struct ArrivedBytes(Bytes);

impl std::ops::Deref for ArrivedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// An entry whose header has passed.
#[derive(Debug)]
pub(crate) struct ArrivedEntry {
    pub path: Vec<u8>,
    kind: ArrivedKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_sec: i64,
    pub mtime_nsec: u32,
    /// Names only.
    pub xattrs: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum ArrivedKind {
    Dir,
    File { file: u32, size: u64 },
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl ArrivedEntry {
    pub(crate) fn kind(&self) -> EntryKind<'_> {
        match &self.kind {
            ArrivedKind::Dir => EntryKind::Dir,
            ArrivedKind::File { file, size } => EntryKind::File { file: *file, size: *size },
            ArrivedKind::Symlink(target) => EntryKind::Symlink { target },
            ArrivedKind::Hardlink(target) => EntryKind::Hardlink { target },
            ArrivedKind::Char(major, minor) => EntryKind::Char { major: *major, minor: *minor },
            ArrivedKind::Block(major, minor) => EntryKind::Block { major: *major, minor: *minor },
            ArrivedKind::Fifo => EntryKind::Fifo,
        }
    }

    fn of(member: &Member, file: u32) -> Self {
        let kind = match &member.kind {
            MemberKind::Dir => ArrivedKind::Dir,
            MemberKind::File { size, .. } => ArrivedKind::File { file, size: *size },
            MemberKind::Symlink(target) => ArrivedKind::Symlink(target.clone()),
            MemberKind::Hardlink(target) => ArrivedKind::Hardlink(target.clone()),
            MemberKind::Char(major, minor) => ArrivedKind::Char(*major, *minor),
            MemberKind::Block(major, minor) => ArrivedKind::Block(*major, *minor),
            MemberKind::Fifo => ArrivedKind::Fifo,
        };
        Self {
            path: member.path.clone(),
            kind,
            mode: u32::from(member.mode),
            uid: member.uid,
            gid: member.gid,
            mtime_sec: member.mtime_sec,
            mtime_nsec: member.mtime_nsec,
            xattrs: member.xattrs.iter().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let target = match &self.kind {
            ArrivedKind::Symlink(target) | ArrivedKind::Hardlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = self.xattrs.iter().map(|name| size_of::<Vec<u8>>() + name.len()).sum();
        size_of::<Self>() + self.path.len() + target + xattrs
    }
}

/// Bounds of what is kept for who looks: bytes of entries that nobody has taken yet (the layer above may be slower), and
/// files, 56 bytes each. What is beyond is seen when the layer is proven.
const MAX_ENTRY_BYTES: usize = 64 << 20;
const MAX_FILES: usize = 1 << 20;

/// What comes next of a layer.
#[derive(Debug)]
pub(crate) enum Next {
    /// More entries, in tar order.
    Entries(Vec<ArrivedEntry>),
    /// All entries were given, and the layer's digest holds.
    Proven,
    /// The layer was or became known without arriving: no entry was given.
    Known(Layer),
    /// There is more than is kept.
    TooMuch,
    /// It came to nothing; what was given of it counts for nothing.
    Failed(FetchError),
}

/// One layer that may arrive. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Arriving(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There are entries, or the end.
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    staging: Option<Staging>,
    entries: Vec<ArrivedEntry>,
    entry_bytes: usize,
    /// Entries are not kept any more: nobody wants them, or there are too many.
    unwatched: bool,
    /// By number; the last one is the file that is being staged.
    files: Vec<Content>,
    /// There are more.
    more_files: bool,
    waiting: Vec<Waiting>,
    end: Option<Result<Layer, FetchError>>,
}

/// Where the content of the layer is staged.
#[derive(Debug)]
struct Staging {
    directory: PathBuf,
    pack: Arc<File>,
}

/// Content of a file, as far as it is staged.
#[derive(Debug)]
enum Content {
    /// Bytes below `here` are in `file`, or belong to a hole.
    Partial { file: Option<Arc<File>>, here: u64 },
    /// In the pack.
    Packed { digest: Digest, offset: u64, size: u64 },
    /// A file of its own, named after its digest.
    Whole { digest: Digest },
}

/// Somebody waits for bytes below `until` of a file.
#[derive(Debug)]
struct Waiting {
    file: u32,
    until: u64,
    told: oneshot::Sender<()>,
}

/// Where bytes are, to be read without the lock.
enum Place {
    Open(Arc<File>),
    Packed { pack: Arc<File>, digest: Digest, offset: u64, size: u64 },
    Path(PathBuf),
}

/// What can be said of a part of a file.
enum Answer {
    Here(Place),
    Later(oneshot::Receiver<()>),
    End(Result<Layer, FetchError>),
}

impl Arriving {
    /// Its next entries, or what became of it; asked again after an end, the same end.
    pub(crate) async fn next(&self) -> Next {
        loop {
            // before the look: what comes between look and wait is not missed
            let more = self.0.more.notified();
            {
                let mut state = self.state();
                if !state.entries.is_empty() {
                    state.entry_bytes = 0;
                    return Next::Entries(std::mem::take(&mut state.entries));
                }
                match &state.end {
                    None | Some(Ok(_)) if state.unwatched => return Next::TooMuch,
                    Some(Ok(_)) if state.staging.is_some() => return Next::Proven,
                    Some(Ok(layer)) => return Next::Known(layer.clone()),
                    Some(Err(error)) => return Next::Failed(error.clone()),
                    None => {}
                }
            }
            more.await;
        }
    }

    /// Waits for its end: an error if it came to nothing.
    pub(crate) async fn ended(&self) -> Result<(), FetchError> {
        loop {
            let more = self.0.more.notified();
            if let Some(end) = &self.state().end {
                return end.clone().map(drop);
            }
            more.await;
        }
    }

    /// Nobody asks for entries any more: they are not kept.
    pub(crate) fn unwatch(&self) {
        let mut state = self.state();
        state.unwatched = true;
        state.entries = Vec::new();
    }

    /// Up to `length` bytes of file number `file` from `offset`, once they have arrived. The caller has clamped both to
    /// the file's size.
    pub(crate) async fn read(self, file: u32, offset: u64, length: u32) -> Result<ArrivedBytes, FetchError> {
        let mut lost = false;
        loop {
            match self.ask(file, offset + u64::from(length), lost) {
                Answer::End(Ok(layer)) => {
                    let bytes = match layer.read(file, offset, length) {
                        Read::Ready(bytes) => bytes,
                        Read::Pending(bytes) => bytes.await?,
                    };
                    return Ok(ArrivedBytes(bytes.as_bytes().clone()));
                }
                Answer::End(Err(error)) => return Err(error),
                // told or not: the sender went because something has changed
                Answer::Later(told) => drop(told.await),
                Answer::Here(place) => {
                    let read = tokio::task::spawn_blocking(move || place.read(offset, length)).await;
                    match read.ok().flatten() {
                        Some(bytes) => return Ok(ArrivedBytes(bytes)),
                        // moved into the store, or given up for want of room: the end says how to go on
                        None => lost = true,
                    }
                }
            }
        }
    }

    /// Where bytes up to `until` are; with `lost` they are not looked for before the end.
    fn ask(&self, file: u32, until: u64, lost: bool) -> Answer {
        let mut state = self.state();
        if let Some(end) = &state.end {
            return Answer::End(end.clone());
        }
        let place = if lost { None } else { state.place(file, until) };
        if let Some(place) = place {
            return Answer::Here(place);
        }
        let (told, later) = oneshot::channel();
        state.waiting.retain(|waiting| !waiting.told.is_closed());
        state.waiting.push(Waiting { file, until: if lost { u64::MAX } else { until }, told });
        Answer::Later(later)
    }

    /// The layer is proven: whatever is asked from now on is read from it.
    pub(crate) fn proven(&self, layer: &Layer) {
        self.end(Ok(layer.clone()));
    }

    /// It came to nothing, and nothing of it is read any more. The first end counts: a layer that is fetched a second
    /// time does not arrive again.
    pub(crate) fn fail(&self, error: FetchError) {
        self.end(Err(error));
    }

    fn end(&self, end: Result<Layer, FetchError>) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        state.waiting.clear();
        if state.end.as_ref().is_some_and(Result::is_err) {
            state.entries = Vec::new();
        }
        drop(state);
        self.0.more.notify_waiters();
    }

    /// A pass of the layer begins and stages its content in `stage`. Only one pass is watched.
    pub(in crate::fetch) fn begin(&self, stage: &Stage) -> Result<Passing, FetchError> {
        let directory = stage.directory().to_owned();
        let pack = File::open(directory.join("pack")).map_err(|error| unreadable(&error))?;
        let mut state = self.state();
        if state.end.is_some() || state.staging.is_some() {
            return Ok(Passing(None));
        }
        state.staging = Some(Staging { directory, pack: Arc::new(pack) });
        Ok(Passing(Some(self.clone())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The file that is being staged.
    fn last(&mut self) -> Option<&mut Content> {
        self.files.last_mut().filter(|_| !self.more_files)
    }

    fn place(&self, file: u32, until: u64) -> Option<Place> {
        let staging = self.staging.as_ref()?;
        match self.files.get(file as usize)? {
            Content::Partial { file: Some(file), here } if until <= *here => {
                Some(Place::Open(Arc::clone(file)))
            }
            Content::Partial { .. } => None,
            Content::Packed { digest, offset, size } => {
                let pack = Arc::clone(&staging.pack);
                Some(Place::Packed { pack, digest: *digest, offset: *offset, size: *size })
            }
            Content::Whole { digest } => Some(Place::Path(staging.directory.join(digest.hex()))),
        }
    }

    /// Wakes whoever waits for something that is here now.
    fn wake(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting {
            if self.place(waiting.file, waiting.until).is_some() {
                let _ = waiting.told.send(());
            } else {
                self.waiting.push(waiting);
            }
        }
    }
}

impl Place {
    /// The bytes, if they are still there.
    fn read(&self, offset: u64, length: u32) -> Option<Bytes> {
        match self {
            Self::Open(file) => read_at(file, offset, length),
            Self::Path(path) => read_at(&File::open(path).ok()?, offset, length),
            Self::Packed { pack, digest, offset: at, size } => {
                let mut bytes = vec![0; usize::try_from(*size).ok()?];
                pack.read_exact_at(&mut bytes, *at).ok()?;
                if !digest.matches(&bytes) {
                    return None;
                }
                let start = usize::try_from(offset).ok()?;
                let bytes = Bytes::from(bytes);
                Some(bytes.slice(start..start.checked_add(length as usize)?))
            }
        }
    }
}

/// What was not written yet, of what counts as here, is a hole.
fn read_at(file: &File, offset: u64, length: u32) -> Option<Bytes> {
    let mut bytes = vec![0; length as usize];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(bytes.into())
}

fn unreadable(error: &io::Error) -> FetchError {
    FetchError::storage("cannot read content that is being staged", error)
}

/// The pass that fills an [`Arriving`], or one that nobody watches. All calls come from the thread that stages.
#[derive(Debug)]
pub(in crate::fetch) struct Passing(Option<Arriving>);

impl Passing {
    /// One that nobody watches.
    pub(in crate::fetch) fn unwatched() -> Self {
        Self(None)
    }

    /// Whether anybody does.
    pub(in crate::fetch) fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// A member's header has passed, and its content is about to.
    pub(in crate::fetch) fn member(&self, member: &Member, stage: &Stage) -> Result<(), FetchError> {
        let Some(arriving) = &self.0 else { return Ok(()) };
        let mut state = arriving.state();
        if matches!(member.kind, MemberKind::File { .. }) && state.files.len() >= MAX_FILES {
            state.more_files = true;
            state.unwatched = true;
        }
        if state.unwatched && state.more_files {
            return Ok(());
        }
        // as the index numbers them: in the order of the archive
        let number = state.files.len() as u32;
        if let MemberKind::File { .. } = &member.kind {
            let file = stage.large().map_err(|error| unreadable(&error))?.map(Arc::new);
            state.files.push(Content::Partial { file, here: 0 });
        }
        if !state.unwatched {
            let entry = ArrivedEntry::of(member, number);
            state.entry_bytes += entry.bytes();
            state.unwatched = state.entry_bytes > MAX_ENTRY_BYTES;
            state.entries.push(entry);
        }
        drop(state);
        arriving.0.more.notify_waiters();
        Ok(())
    }

    /// Of the last member, everything below `until` was written.
    pub(in crate::fetch) fn wrote(&self, until: u64, stage: &Stage) {
        let Some(arriving) = self.0.as_ref().filter(|_| stage.keeps()) else { return };
        let mut state = arriving.state();
        if let Some(Content::Partial { file: Some(_), here }) = state.last() {
            *here = until;
            state.wake();
        }
    }

    /// The last member's content of `size` bytes is complete.
    pub(in crate::fetch) fn staged(
        &self,
        size: u64,
        staged: &Staged,
        stage: &mut Stage,
    ) -> Result<(), FetchError> {
        let Some(arriving) = self.0.as_ref().filter(|_| stage.keeps()) else { return Ok(()) };
        if staged.pack_offset.is_some() {
            // the next member may be long in coming
            stage.flush()?;
        }
        let mut state = arriving.state();
        if let Some(content) = state.last() {
            *content = match staged.pack_offset {
                Some(offset) => Content::Packed { digest: staged.digest, offset, size },
                None => Content::Whole { digest: staged.digest },
            };
            state.wake();
        }
        Ok(())
    }
}
