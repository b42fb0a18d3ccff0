//! The store over time: a thousand uses, kills in the middle, a bit flipped anywhere.
#![allow(clippy::unwrap_used)]

mod memory;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addonfs::fetch::index::EntryKind;
use addonfs::fetch::layer::{Layer, Opening, Progress, Read};
use addonfs::fetch::store::{Store, StoreOptions};
use memory::{Fault, MemorySource};

type Files = HashMap<Vec<u8>, Vec<u8>>;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A layer of tar+gzip, and its files. Two of them share their content.
fn layer(seed: u64, sizes: &[usize]) -> (Arc<MemorySource>, Files) {
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut files = Files::new();
    for (at, size) in sizes.iter().chain(sizes.first()).enumerate() {
        let content = noise(seed + (at % sizes.len()) as u64, *size);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("f{at}"), &content[..]).unwrap();
        files.insert(format!("f{at}").into_bytes(), content);
    }
    (MemorySource::new(archive.into_inner().unwrap().finish().unwrap()), files)
}

/// Opens the store as a new process would; what the last one still had in flight ends first.
fn open(dir: &Path) -> Arc<Store> {
    for _ in 0..1000 {
        match Store::open(dir, StoreOptions::default()) {
            Ok(store) => return store,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    panic!("{} stays locked", dir.display());
}

async fn ingest(store: &Arc<Store>, source: &Arc<MemorySource>) -> Layer {
    let progress = Progress::new(source.descriptor().size);
    Layer::open(store, Arc::clone(source) as _, &source.descriptor(), Opening::default(), &progress)
        .await
        .unwrap()
}

async fn check_all(layer: &Layer, files: &Files) {
    for entry in layer.index().entries() {
        let EntryKind::File { file, size } = entry.kind else { continue };
        let (expected, mut content) = (&files[entry.path], Vec::new());
        while (content.len() as u64) < size {
            let piece = match layer.read(file, content.len() as u64, 100_000) {
                Read::Ready(bytes) => bytes,
                Read::Pending(answer) => answer.await.unwrap(),
            };
            assert!(!piece.is_empty());
            content.extend_from_slice(&piece);
        }
        assert!(content == *expected, "{}", String::from_utf8_lossy(entry.path));
    }
}

/// Every file below `dir` with its size on disk, by its path in there.
fn tree(dir: &Path) -> BTreeMap<PathBuf, u64> {
    fn walk(at: &Path, root: &Path, found: &mut BTreeMap<PathBuf, u64>) {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            match metadata.is_dir() {
                true => walk(&path, root, found),
                false => drop(found.insert(path.strip_prefix(root).unwrap().to_owned(), metadata.size())),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

/// The content of a store, without what tells of it.
fn content(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = tree(dir);
    found.retain(|path, _| path.components().count() > 1);
    found
}

/// Descriptors and mappings of files below `dir` in this process.
fn held(dir: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open =
        descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(dir));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    open.count() + maps.lines().filter(|line| line.contains(&dir.display().to_string())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_uses_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [layer(1, &[10, 5000, 70_000]), layer(9, &[300, 66_000])];
    let mut after_first = BTreeMap::new();
    for cycle in 0..1000 {
        let store = open(dir.path());
        let (source, files) = &layers[cycle % 2];
        let found = ingest(&store, source).await;
        check_all(&found, files).await;
        assert!(found.index().entries().all(|entry| match entry.kind {
            EntryKind::File { file, size } => size < 65_536 || found.backing(file).is_some(),
            _ => true,
        }));
        drop((found, store));
        if cycle == 1 {
            // What syncs in the background writes a record, and is soon done.
            drop(open(dir.path()));
            after_first = tree(dir.path());
        }
    }
    drop(open(dir.path()));
    assert_eq!(tree(dir.path()), after_first);
    assert_eq!(held(dir.path()), 0);
    assert!(layers.iter().all(|(source, _)| source.streams() == 1 && source.ranges() == 0));
}

/// The child of the next test: ends by a kill.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed() {
    let Some(dir) = std::env::var_os("ADDONFS_TEST_STORE") else { return };
    let at = std::env::var("ADDONFS_TEST_KILL").unwrap().parse().unwrap();
    let (source, _) = big_layer();
    source.set(Fault::Kill(at));
    ingest(&open(Path::new(&dir)), &source).await;
    // Behind the last byte the kill may come too late.
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
}

fn big_layer() -> (Arc<MemorySource>, Files) {
    let mut sizes = vec![3_000_000, 70_000, 200_000, 1_000_000, 65_536];
    sizes.extend((0..200).map(|at| at * 37));
    layer(100, &sizes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_an_ingest_leaves_nothing_twice() {
    let (source, files) = big_layer();
    let undisturbed = tempfile::tempdir().unwrap();
    drop(ingest(&open(undisturbed.path()), &source).await);
    drop(open(undisturbed.path()));
    let (expected, size) = (content(undisturbed.path()), source.descriptor().size);
    let dir = tempfile::tempdir().unwrap();
    for tenth in 0..=10 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child_that_is_killed", "--test-threads=1"]);
        child.env("ADDONFS_TEST_STORE", dir.path()).env("ADDONFS_TEST_KILL", (size * tenth / 10).to_string());
        assert_eq!(child.output().unwrap().status.signal(), Some(9));
        let store = open(dir.path());
        let left = content(dir.path());
        let strangers = left.iter().filter(|(path, size)| expected.get(*path) != Some(*size));
        assert_eq!(strangers.count(), 0, "{left:?}");
        assert_eq!(store.used_bytes(), left.values().sum::<u64>(), "everything that is left is known");
        drop(store);
    }
    let store = open(dir.path());
    check_all(&ingest(&store, &source).await, &files).await;
    drop(store);
    drop(open(dir.path()));
    assert_eq!(content(dir.path()), expected);
}

/// Index, pack, files, chunks, and what tells of them: catalog and pins.
#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_anywhere_in_the_store_is_never_returned() {
    let (source, files) = layer(200, &[50_000, 70_000, 300_000, 100, 0, 65_535]);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&whole, &parts] {
        drop(ingest(&open(dir.path()), &source).await);
        drop(open(dir.path()));
    }
    // Content that came again by ranges lies in chunks, and files are not whole.
    for path in content(parts.path()).keys().filter(|path| !path.starts_with("layers")) {
        std::fs::remove_file(parts.path().join(path)).unwrap();
    }
    let found = Layer::known(&open(parts.path()), source.clone(), &source.descriptor()).unwrap().unwrap();
    for entry in found.index().entries() {
        let EntryKind::File { file, .. } = entry.kind else { continue };
        if let Read::Pending(answer) = found.read(file, 0, 10) {
            answer.await.unwrap();
        }
    }
    drop(found);
    drop(open(parts.path()));
    std::fs::write(whole.path().join("pins"), br#"{"pins":[]}"#).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for dir in [whole.path(), parts.path()] {
        let kept = tempfile::tempdir().unwrap();
        let copy = |from: &Path, to: &Path| {
            let status =
                std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
            assert!(status.success());
        };
        copy(dir, kept.path());
        for (path, size) in tree(dir) {
            // Other words in the version are refused, and the lock says nothing.
            if size == 0 || path == Path::new("version") {
                continue;
            }
            kinds.insert(path.components().next().unwrap().as_os_str().to_owned());
            for eighth in [0, 1, 3, 5, 7, 8] {
                let place = dir.join(&path);
                let mut bytes = std::fs::read(&place).unwrap();
                let at = (bytes.len() - 1) * eighth / 8;
                bytes[at] ^= 1 << (eighth % 8);
                std::fs::write(&place, bytes).unwrap();
                let store = open(dir);
                check_all(&ingest(&store, &source).await, &files).await;
                drop(store);
                drop(open(dir));
                copy(kept.path(), dir);
            }
        }
    }
    let expected = ["catalog", "chunks", "files", "layers", "packs", "pins"];
    assert!(expected.iter().all(|kind| kinds.contains(std::ffi::OsStr::new(kind))), "{kinds:?}");
}
