//! A layer's content on its way into the store: written under `tmp/`, moved into place when its blob is proven.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Kind, LARGE_FILE, Store};
use crate::fetch::error::FetchError;
use crate::fetch::index::build::ContentHasher;
use crate::policy::digest::Digest;

/// Room in the quota is looked for in steps of this size while a layer is written, or of a sixteenth of a small
/// quota, so that no more is evicted than the layer turns out to need.
const ROOM: u64 = 64 << 20;

/// Name of the large file that is being written; it gets its digest's when it is complete.
const LARGE: &str = "large";

/// The content of one layer, staged. Dropped without [`Stage::publish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Stage {
    store: Arc<Store>,
    directory: tempfile::TempDir,
    pack: BufWriter<File>,
    pack_size: u64,
    staged: u64,
    /// Up to where room was made.
    room: u64,
    /// False when the cache turned out to have no room for the layer: it is then only indexed, and read by ranges.
    keeping: bool,
}

/// A large file being staged.
#[derive(Debug)]
struct Large {
    file: File,
    path: PathBuf,
}

/// One file's content being staged.
#[derive(Debug)]
pub(crate) struct Content {
    size: u64,
    hasher: ContentHasher,
    large: Option<Large>,
    /// A small file's content, holes included.
    small: Vec<u8>,
}

/// A file whose content is complete.
#[derive(Debug)]
pub(crate) struct Staged {
    pub digest: Digest,
    pub pack_offset: Option<u64>,
}

fn write_failed(error: &io::Error) -> FetchError {
    FetchError::storage("cannot write content to the cache", error)
}

impl Stage {
    pub(crate) fn new(store: &Arc<Store>) -> Result<Self, FetchError> {
        let directory = tempfile::TempDir::new_in(store.tmp()).map_err(|error| write_failed(&error))?;
        let pack = File::create(directory.path().join("pack")).map_err(|error| write_failed(&error))?;
        Ok(Self {
            store: Arc::clone(store),
            directory,
            pack: BufWriter::with_capacity(1 << 20, pack),
            pack_size: 0,
            staged: 0,
            room: 0,
            keeping: true,
        })
    }

    /// Where spools and the index may be written.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pack_size(&self) -> u64 {
        self.pack_size
    }

    /// Whether content is kept, so far.
    pub(crate) fn keeps(&self) -> bool {
        self.keeping
    }

    /// The large file that was begun last, for reading; `None` if what was begun is small or not kept.
    pub(crate) fn large(&self) -> io::Result<Option<File>> {
        match File::open(self.directory.path().join(LARGE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Everything of the pack can be read from its file.
    pub(crate) fn flush(&mut self) -> Result<(), FetchError> {
        self.pack.flush().map_err(|error| write_failed(&error))
    }

    /// Begins a file of `size` bytes.
    pub(crate) fn begin(&mut self, size: u64) -> Result<Content, FetchError> {
        let small = size < LARGE_FILE;
        let mut large = None;
        if !small && self.keeping {
            let path = self.directory.path().join(LARGE);
            let file = File::create(&path).map_err(|error| write_failed(&error))?;
            large = Some(Large { file, path });
        }
        let small = if small { vec![0; usize::try_from(size).unwrap_or(0)] } else { Vec::new() };
        Ok(Content { size, hasher: ContentHasher::new(size), large, small })
    }

    /// Adds `bytes` at `offset` of the file.
    pub(crate) fn write(
        &mut self,
        content: &mut Content,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FetchError> {
        if content.size < LARGE_FILE {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(place) = content.small.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len())) {
                place.copy_from_slice(bytes);
            }
            return Ok(());
        }
        content.hasher.add(offset, bytes);
        self.account(bytes.len() as u64);
        if !self.keeping {
            content.large = None;
        }
        let Some(large) = &content.large else { return Ok(()) };
        large.file.write_all_at(bytes, offset).map_err(|error| write_failed(&error))
    }

    /// Completes a file.
    pub(crate) fn end(&mut self, content: Content) -> Result<Staged, FetchError> {
        if content.size < LARGE_FILE {
            let digest = Digest::of(&content.small);
            self.account(content.size);
            if self.keeping {
                self.pack.write_all(&content.small).map_err(|error| write_failed(&error))?;
            }
            let offset = self.pack_size;
            self.pack_size += content.size;
            return Ok(Staged { digest, pack_offset: Some(offset) });
        }
        let digest = content.hasher.finish();
        if let Some(large) = content.large {
            // A hole at the end was never written.
            large.file.set_len(content.size).map_err(|error| write_failed(&error))?;
            let to = self.directory.path().join(digest.hex());
            fs::rename(&large.path, to).map_err(|error| write_failed(&error))?;
        }
        Ok(Staged { digest, pack_offset: None })
    }

    /// Moves everything into place, the index last: from then on the layer is known.
    pub(crate) fn publish(mut self, layer: &Digest, index: &Path) -> Result<(), FetchError> {
        self.pack.flush().map_err(|error| write_failed(&error))?;
        self.publish_files()?;
        if self.keeping && self.pack_size > 0 {
            self.store.discard(Kind::Pack, layer);
            self.store.adopt(Kind::Pack, layer, &self.directory.path().join("pack"))?;
        }
        self.store.adopt(Kind::Index, layer, index)?;
        // The index has no room made for it: a percent, and only known now.
        self.store.make_room(0, 0);
        Ok(())
    }

    /// Like [`Stage::publish`], for an index that would cost the whole blob to make again: its name is on the disk, too,
    /// when this returns.
    pub(crate) fn publish_durably(self, layer: &Digest, index: &Path) -> Result<(), FetchError> {
        let place = self.store.path(Kind::Index, layer);
        self.publish(layer, index)?;
        for directory in place.ancestors().skip(1).take(2) {
            File::open(directory).and_then(|file| file.sync_all()).map_err(|error| write_failed(&error))?;
        }
        Ok(())
    }

    /// Moves the large files into place.
    pub(crate) fn publish_files(&self) -> Result<(), FetchError> {
        for entry in fs::read_dir(self.directory.path()).map_err(|error| write_failed(&error))? {
            let entry = entry.map_err(|error| write_failed(&error))?;
            let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) else { continue };
            // Known content stays where it is: a file that somebody has open keeps its inode.
            if !self.store.unchanged(&digest) {
                self.store.adopt(Kind::File, &digest, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Counts bytes to be written, and stops keeping content when there is no room for the layer.
    fn account(&mut self, bytes: u64) {
        let written = self.staged;
        self.staged += bytes;
        if !self.keeping || self.staged <= self.room {
            return;
        }
        let quota = self.store.options().quota_bytes;
        let ahead = (self.staged + ROOM.min(quota / 16)).min(quota).max(self.staged);
        self.room = match self.store.make_room(ahead, written) {
            true => ahead,
            false => self.staged,
        };
        if self.room < ahead && !self.store.make_room(self.staged, written) {
            tracing::warn!("the cache has no room for a layer: its content is not kept, only its index");
            self.keeping = false;
            self.clear();
        }
    }

    /// Gives the space of everything staged back.
    fn clear(&mut self) {
        for entry in fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().and_then(Digest::from_hex).is_some() || name == LARGE {
                drop(fs::remove_file(entry.path()));
            }
        }
        drop(self.pack.get_ref().set_len(0));
    }
}
