//! Large files, whole: what the kernel may read itself.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use bytes::Bytes;

use super::item::Stamp;
use super::{Kind, Store, Verify};
use crate::fetch::error::FetchError;
use crate::policy::digest::{Digest, Hasher};

/// Files up to this size are hashed on the thread that asks; larger ones where waiting does not stop others
/// (16 MiB take about 10 ms).
const PROVE_AT_ONCE: u64 = 16 << 20;

/// A large file that was proven and is open.
#[derive(Debug)]
pub(crate) struct Whole {
    file: Arc<File>,
    stamp: Stamp,
}

/// What looking for a large file found.
pub(crate) enum Found {
    /// It is here and proven.
    Proven(Arc<Whole>),
    /// It is here, but must be hashed first, which takes long enough to do it elsewhere: [`Store::prove`].
    Unproven,
    /// It is not here.
    Missing,
}

impl Whole {
    /// The open file, for passthrough.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn is_unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|now| Stamp::of(&now) == self.stamp)
    }

    /// A part of the content; `None` if the file has changed since it was proven.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Option<Bytes> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        // Afterwards, so that a change before or during the read is seen.
        self.is_unchanged().then(|| Bytes::from(bytes))
    }
}

impl Store {
    /// Looks for the large file with this content. `fresh` is set by who opens it for somebody (passthrough):
    /// with [`Verify::Always`] it is then hashed anew.
    pub(crate) fn find(&self, content: &Digest, size: u64, fresh: bool) -> Found {
        let again = fresh && self.options.verify == Verify::Always;
        if let Some(whole) = self.whole.get(content).filter(|_| !again) {
            if whole.is_unchanged() {
                self.touch(Kind::File, content);
                return Found::Proven(whole);
            }
            self.whole.remove(content);
        }
        let Some((file, stamp)) = self.open_whole(content) else { return Found::Missing };
        let recorded = self.catalog().get(Kind::File, content).and_then(|item| item.stamp);
        if recorded == Some(stamp) && self.options.verify == Verify::OnChange {
            self.touch(Kind::File, content);
            return Found::Proven(self.remember(content, file, stamp));
        }
        if size > PROVE_AT_ONCE {
            if again {
                // Whoever reads through this open waits for the hash, too.
                self.whole.remove(content);
            }
            return Found::Unproven;
        }
        self.prove(content).map_or(Found::Missing, Found::Proven)
    }

    /// Keeps a large file that was checked against `digest`, whole.
    pub(crate) fn put_file(&self, digest: &Digest, bytes: &Bytes) -> Result<(), FetchError> {
        self.recent().put(digest, bytes);
        if self.unchanged(digest) || !self.make_room(bytes.len() as u64, 0) {
            return Ok(());
        }
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|error| FetchError::storage("cannot write to the cache", &error))?;
        self.adopt(Kind::File, digest, file.path())
    }

    /// Hashes a large file unless somebody just did; what does not match is removed. Blocks for about 0.6 s a GiB
    /// and waits for nobody: callers who may have company take [`Store::proof_turn`] first.
    pub(crate) fn prove(&self, content: &Digest) -> Option<Arc<Whole>> {
        if self.options.verify == Verify::OnChange
            && let Some(whole) = self.whole.get(content).filter(|whole| whole.is_unchanged())
        {
            return Some(whole);
        }
        let (file, stamp) = self.open_whole(content)?;
        let after = |file: &File| file.metadata().ok().map(|metadata| Stamp::of(&metadata));
        if hash(&file).is_some_and(|digest| digest == *content) && after(&file) == Some(stamp) {
            let size = file.metadata().ok()?.len();
            self.catalog().put(Kind::File, content, size, Some(stamp));
            return Some(self.remember(content, file, stamp));
        }
        tracing::warn!(%content, "a file in the cache is damaged and will be fetched again");
        self.discard(Kind::File, content);
        None
    }

    /// Whether a large file lies there as it was when it was last proven.
    pub(super) fn unchanged(&self, content: &Digest) -> bool {
        let recorded = self.catalog().get(Kind::File, content).and_then(|item| item.stamp);
        recorded.is_some() && self.open_whole(content).map(|(_, stamp)| stamp) == recorded
    }

    fn remember(&self, content: &Digest, file: File, stamp: Stamp) -> Arc<Whole> {
        let whole = Arc::new(Whole { file: Arc::new(file), stamp });
        self.whole.insert(*content, Arc::clone(&whole));
        whole
    }

    fn open_whole(&self, content: &Digest) -> Option<(File, Stamp)> {
        let path = self.path(Kind::File, content);
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
        match opened.and_then(|file| file.metadata().map(|metadata| (file, metadata))) {
            Ok((file, metadata)) if metadata.is_file() => Some((file, Stamp::of(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Somebody else removed it: the record must not keep it from being made again.
                self.catalog().remove(Kind::File, content);
                None
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot open a file of the cache");
                None
            }
        }
    }
}

pub(super) fn hash(mut file: &File) -> Option<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hasher.finish()),
            n => hasher.update(buffer.get(..n)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::*;

    /// A thread that serves a mount asks for small files while others are being hashed for minutes.
    #[test]
    fn a_file_is_found_while_others_are_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let content = vec![7; 100_000];
        let (digest, path) = (Digest::of(&content), dir.path().join("tmp/file"));
        std::fs::write(&path, &content).unwrap();
        store.adopt(Kind::File, &digest, &path).unwrap();
        // Nothing is known of it any more, as after a power cut.
        store.catalog().put(Kind::File, &digest, 100_000, None);
        let other = store.proof_turn(&Digest::of(b"other"));
        let (_held, _same) = (other.try_lock().unwrap(), store.proof_turn(&digest).try_lock_owned().unwrap());
        assert!(store.proof_turn(&digest).try_lock().is_err(), "one at a time");
        let (tell, told) = std::sync::mpsc::channel();
        let asked = Arc::clone(&store);
        std::thread::spawn(move || tell.send(matches!(asked.find(&digest, 100_000, true), Found::Proven(_))));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn always_holds_for_reads_of_files_too_long_to_be_hashed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { verify: Verify::Always, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let content = vec![7; 1 + PROVE_AT_ONCE as usize];
        let (digest, path) = (Digest::of(&content), dir.path().join("tmp/file"));
        std::fs::write(&path, &content).unwrap();
        store.adopt(Kind::File, &digest, &path).unwrap();
        let find = |fresh| store.find(&digest, content.len() as u64, fresh);
        assert!(store.prove(&digest).is_some());
        assert!(matches!(find(false), Found::Proven(_)));
        assert!(matches!(find(true), Found::Unproven), "opened");
        assert!(matches!(find(false), Found::Unproven), "a read before it was hashed");
    }

    /// A file that changed without a trace in its times is found only by who always hashes.
    #[test]
    fn always_means_at_every_open() {
        for (verify, served) in [(Verify::OnChange, true), (Verify::Always, false)] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), StoreOptions { verify, ..StoreOptions::default() }).unwrap();
            let content = vec![7; 100_000];
            let (digest, path) = (Digest::of(&content), dir.path().join("tmp/file"));
            std::fs::write(&path, &content).unwrap();
            store.adopt(Kind::File, &digest, &path).unwrap();
            let find = || matches!(store.find(&digest, 100_000, true), Found::Proven(_));
            assert!(find() && find());
            let path = store.path(Kind::File, &digest);
            std::fs::write(&path, vec![8; 100_000]).unwrap();
            let stamp = Stamp::of(&path.metadata().unwrap());
            store.catalog().put(Kind::File, &digest, 100_000, Some(stamp));
            assert_eq!(find(), served, "{verify:?}");
            assert_eq!(path.exists(), served, "what is wrong is removed");
        }
    }
}
