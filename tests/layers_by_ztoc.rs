//! Layers that are read by a SOCI zTOC: what the original builder made, flipped bits, zTOCs of other layers.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

mod layer_tree;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use addonfs::fetch::error::{Class, FetchError, Side};
use addonfs::fetch::index::EntryKind;
use addonfs::fetch::layer::{Filling, Layer, Opening, Progress};
use addonfs::fetch::layout::Layout;
use addonfs::fetch::soci;
use addonfs::fetch::source::BlobSource;
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fetch::verified::VerifiedBytes;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use layer_tree::{read, tree};
use serde_json::Value;

/// Layer and zTOC in `tests/fixtures/soci`.
const FIXTURES: &[(&str, &str)] = &[
    ("plain.tar.gz", "plain.tar.gz"),
    ("plain.tar.gz", "plain.tar.gz.v1"),
    ("named.tar.gz", "named.tar.gz"),
    ("members.tar.gz", "members.tar.gz"),
    ("plain.tar", "plain.tar"),
];

/// A layer and its zTOC in memory; counts, with one bit wrong in every range that touches byte `flip`.
#[derive(Debug)]
struct Source {
    blob: Bytes,
    ztoc: Bytes,
    /// Holds the zTOC, under the digest that it should have.
    layout: Arc<Layout>,
    _folder: tempfile::TempDir,
    flip: AtomicUsize,
    ranges: AtomicUsize,
    streams: AtomicUsize,
}

const NOWHERE: usize = usize::MAX;

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: Vec::new(),
    }
}

impl Source {
    fn new(blob: impl Into<Bytes>, ztoc: impl Into<Bytes>) -> Arc<Self> {
        let ztoc = ztoc.into();
        let digest = Digest::of(&ztoc);
        Self::with_digest(blob, ztoc, &digest)
    }

    fn with_digest(blob: impl Into<Bytes>, ztoc: impl Into<Bytes>, digest: &Digest) -> Arc<Self> {
        let (folder, ztoc) = (tempfile::tempdir().unwrap(), ztoc.into());
        let layout = Layout::create(folder.path()).unwrap();
        std::fs::write(folder.path().join("blobs/sha256").join(digest.hex()), &ztoc).unwrap();
        let flip = AtomicUsize::new(NOWHERE);
        let (ranges, streams) = (AtomicUsize::default(), AtomicUsize::default());
        Arc::new(Self { blob: blob.into(), ztoc, layout, _folder: folder, flip, ranges, streams })
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    fn ranges(&self) -> usize {
        self.ranges.load(Ordering::Relaxed)
    }
}

fn absent() -> FetchError {
    FetchError::new(Class::NotFound, Side::Remote, "not here")
}

#[async_trait]
impl BlobSource for Source {
    async fn manifest(&self, _: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        Err(absent())
    }

    async fn resolve(&self, _: &str) -> Result<Option<Digest>, FetchError> {
        Ok(None)
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
        self.layout.blob(blob, limit).await
    }

    async fn stream(
        &self,
        _: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let rest = self.blob.slice(usize::try_from(from).unwrap()..);
        Ok(stream::iter([Ok(rest)]).boxed())
    }

    async fn range(&self, _: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        self.ranges.fetch_add(1, Ordering::Relaxed);
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        let mut bytes = self.blob.slice(start..end).to_vec();
        let flip = self.flip.load(Ordering::Relaxed);
        if (start..end).contains(&flip) {
            bytes[flip - start] ^= 1 << (flip % 8);
        }
        Ok(bytes.into())
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/soci")
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

fn fixture(layer: &str, ztoc: &str) -> Arc<Source> {
    let file = |name: &str| std::fs::read(fixtures().join(name)).unwrap();
    let blob = if layer == "plain.tar" { unzipped(&file("plain.tar.gz")) } else { file(layer) };
    Source::new(blob, unzipped(&file(&format!("{ztoc}.ztoc.gz"))))
}

fn expected_tree() -> BTreeMap<String, Value> {
    let all: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let entries = all["tree"].as_array().unwrap().iter();
    entries.map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry.clone())).collect()
}

/// Waits for what the last owner of the store still does behind its readers.
fn open_store(dir: &Path) -> Arc<Store> {
    let began = Instant::now();
    loop {
        match Store::open(dir, StoreOptions::default()) {
            Err(error) if error.message.contains("another") && began.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

async fn open(store: &Arc<Store>, source: &Arc<Source>) -> Result<Layer, FetchError> {
    let (blob, ztoc) = (descriptor(&source.blob), descriptor(&source.ztoc));
    let opening = Opening { tag: None, ztoc: Some(&ztoc), whole_up_to: 0, arriving: None, head: false };
    Layer::open(store, Arc::clone(source) as _, &blob, opening, &Progress::new(blob.size)).await
}

fn number(layer: &Layer, path: &str) -> u32 {
    let entry = layer.index().entries().find(|entry| entry.path == path.as_bytes()).unwrap();
    match entry.kind {
        EntryKind::File { file, .. } => file,
        kind => panic!("{kind:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_original_builder_made_is_read_by_ranges() {
    for (blob, ztoc) in FIXTURES {
        println!("{ztoc}");
        let (dir, source) = (tempfile::tempdir().unwrap(), fixture(blob, ztoc));
        let store = open_store(dir.path());
        let layer = open(&store, &source).await.unwrap();
        assert_eq!(tree(&layer).await.unwrap(), expected_tree());
        assert_eq!(source.streams(), 0, "nothing was fetched whole");
        // From disk, without a request more, also by the next process.
        let asked = source.ranges();
        assert!(asked > 1, "{asked}");
        drop((layer, store));
        let store = open_store(dir.path());
        let layer = open(&store, &source).await.unwrap();
        assert_eq!(tree(&layer).await.unwrap(), expected_tree());
        assert_eq!(source.ranges(), asked, "all of it is here");
    }
}

/// The zTOC and the tar number files alike: a merged tree holds for both.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_fetched_whole_is_the_same() {
    for (blob, ztoc) in FIXTURES {
        let source = fixture(blob, ztoc);
        let (lazy_dir, whole_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lazy = open(&open_store(lazy_dir.path()), &source).await.unwrap();
        let whole = descriptor(&source.blob);
        let store = open_store(whole_dir.path());
        let (opening, progress) = (Opening::default(), Progress::new(0));
        let whole = Layer::open(&store, Arc::clone(&source) as _, &whole, opening, &progress).await.unwrap();
        assert_eq!(source.streams(), 1, "without a zTOC");
        assert_eq!(tree(&whole).await.unwrap(), expected_tree());
        assert_eq!(lazy.index().format(), whole.index().format());
        let numbers = |layer: &Layer| -> Vec<(Vec<u8>, Option<u32>)> {
            let number = |kind| if let EntryKind::File { file, .. } = kind { Some(file) } else { None };
            layer.index().entries().map(|entry| (entry.path.to_vec(), number(entry.kind))).collect()
        };
        assert_eq!(numbers(&lazy), numbers(&whole));
    }
}

/// What our own scanner makes, with spans of any size.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_here_is_read() {
    for (blob, _) in FIXTURES {
        for span_size in [1, 20_000, 40_000, 4 << 20] {
            let plain = fixture(blob, blob);
            let ztoc =
                soci::make(plain.as_ref(), &descriptor(&plain.blob), span_size).await.unwrap().unwrap();
            let source = Source::new(plain.blob.clone(), ztoc);
            let dir = tempfile::tempdir().unwrap();
            let layer = open(&open_store(dir.path()), &source).await.unwrap();
            assert_eq!(tree(&layer).await.unwrap(), expected_tree(), "{blob}, {span_size}");
            assert_eq!(source.streams(), 0);
        }
    }
}

/// One wrong bit anywhere in the layer, in every answer: the right bytes or none.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_of_the_layer_is_never_returned() {
    for (blob, ztoc) in [FIXTURES[0], FIXTURES[3], FIXTURES[4]] {
        let (source, right) = (fixture(blob, ztoc), expected_tree());
        let (mut refused, mut served) = (0, 0);
        for flip in (0..source.blob.len()).step_by(997).chain(source.blob.len() - 5..source.blob.len()) {
            source.flip.store(flip, Ordering::Relaxed);
            let dir = tempfile::tempdir().unwrap();
            let layer = open(&open_store(dir.path()), &source).await.unwrap();
            match tree(&layer).await {
                Ok(tree) => {
                    served += 1;
                    assert_eq!(tree, right, "{ztoc}: bit of byte {flip}");
                }
                Err(error) => {
                    assert_eq!(error.class, Class::Corrupt, "{error}");
                    refused += 1;
                }
            }
        }
        // The gzip header belongs to no span, nor does what no reader needs.
        assert!(refused > 50 && served < 10, "{ztoc}: {refused} refused, {served} served");
    }
}

/// A zTOC that is not what its digest says is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_of_the_ztoc_means_the_whole_blob() {
    let plain = fixture("plain.tar.gz", "plain.tar.gz");
    for flip in (0..plain.ztoc.len()).step_by(5003) {
        let mut ztoc = plain.ztoc.to_vec();
        ztoc[flip] ^= 1 << (flip % 8);
        let (blob, promised) = (descriptor(&plain.blob), descriptor(&plain.ztoc));
        let source = Source::with_digest(plain.blob.clone(), ztoc, &promised.digest);
        let opening =
            Opening { tag: None, ztoc: Some(&promised), whole_up_to: 0, arriving: None, head: false };
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path());
        let progress = Progress::new(0);
        let layer = Layer::open(&store, Arc::clone(&source) as _, &blob, opening, &progress).await.unwrap();
        assert_eq!(source.streams(), 1, "byte {flip}");
        assert_eq!(tree(&layer).await.unwrap(), expected_tree());
    }
}

/// A zTOC of another layer of the same size, by somebody who is trusted: nothing is shown of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_of_another_layer_serves_nothing() {
    let plain = fixture("plain.tar.gz", "plain.tar.gz");
    let mut other = plain.blob.to_vec();
    for at in (5000..other.len()).step_by(1000) {
        other[at] ^= 1;
    }
    let source = Source::new(other, plain.ztoc.clone());
    let dir = tempfile::tempdir().unwrap();
    let layer = open(&open_store(dir.path()), &source).await.unwrap();
    for path in ["bin/tool", "data/large", "more", "etc/hello"] {
        let refused = read(&layer, number(&layer, path), 0, 100).await.unwrap_err();
        assert_eq!(refused.class, Class::Corrupt, "{path}: {refused}");
    }
    // Of another size it is refused at once.
    let source = Source::new([&plain.blob[..], b"\0"].concat(), plain.ztoc.clone());
    let dir = tempfile::tempdir().unwrap();
    let layer = open(&open_store(dir.path()), &source).await.unwrap();
    assert_eq!(source.streams(), 1);
    assert_eq!(tree(&layer).await.unwrap(), expected_tree());
}

/// All files under `dir`, but for those that nothing is read from once the store is open.
fn files_under(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "catalog" | "version" | "lock" | "tmp" => {}
            _ if path.is_dir() => files_under(&path, found),
            _ => found.push(path),
        }
    }
}

/// One wrong bit in any file of the cache, the digests that were learned among them: fetched again.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_cache_is_never_returned() {
    let (dir, source) = (tempfile::tempdir().unwrap(), fixture("plain.tar.gz", "plain.tar.gz"));
    let store = open_store(dir.path());
    tree(&open(&store, &source).await.unwrap()).await.unwrap();
    drop(store);
    // Nobody has any of the files mapped once the store can be opened again.
    drop(open_store(dir.path()));
    let mut files = Vec::new();
    files_under(dir.path(), &mut files);
    let kinds = ["index", "learned", "packs/", "files/", "chunks/"];
    for kind in kinds {
        assert!(files.iter().any(|file| file.to_str().unwrap().contains(kind)), "no {kind} in {files:?}");
    }
    let mut again = 0;
    for file in files {
        let sound = std::fs::read(&file).unwrap();
        for flip in (0..sound.len()).step_by(sound.len() / 12 + 1) {
            let mut bad = sound.clone();
            bad[flip] ^= 1 << (flip % 8);
            std::fs::write(&file, &bad).unwrap();
            let asked = source.ranges();
            let store = open_store(dir.path());
            let layer = open(&store, &source).await.unwrap();
            assert_eq!(tree(&layer).await.unwrap(), expected_tree(), "{}: byte {flip}", file.display());
            again += usize::from(source.ranges() > asked);
            drop((layer, store));
            drop(open_store(dir.path()));
        }
        std::fs::write(&file, &sound).unwrap();
    }
    assert!(again > 5, "only {again} flips were noticed");
    assert_eq!(source.streams(), 0);
}

/// A lie in the zTOC about what the tar says ends all reading of the layer as soon as the header passes by.
#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_that_disagrees_with_the_tar_ends_all_reading() {
    let plain = fixture("plain.tar.gz", "plain.tar.gz");
    for (word, lie) in
        [("bin/same", "bin/fame"), ("etc/.wh.gone", "etc/.wh.done"), ("2023-11-14", "2013-11-14")]
    {
        // The last one: windows, which stand before the entries, hold headers of the tar, too.
        let mut places = plain.ztoc.windows(word.len());
        let at = places.rposition(|window| window == word.as_bytes()).unwrap();
        let mut ztoc = plain.ztoc.to_vec();
        ztoc[at..at + lie.len()].copy_from_slice(lie.as_bytes());
        let source = Source::new(plain.blob.clone(), ztoc);
        let dir = tempfile::tempdir().unwrap();
        let layer = open(&open_store(dir.path()), &source).await.unwrap();
        assert_eq!(source.streams(), 0);
        let refused = tree(&layer).await.expect_err(word);
        assert!(refused.message.contains("disagree"), "{word}: {refused}");
        let refused = read(&layer, number(&layer, "bin/tool"), 0, 100).await.unwrap_err();
        assert!(refused.message.contains("disagree"), "{word}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_filled_behind_its_readers() {
    let (dir, source) = (tempfile::tempdir().unwrap(), fixture("plain.tar.gz", "plain.tar.gz"));
    let store = open_store(dir.path());
    let layer = open(&store, &source).await.unwrap();
    assert!(!layer.is_complete());
    let large = number(&layer, "data/large");
    assert!(layer.backing(large).is_none());
    assert!(layer.fill(Filling { bandwidth: None, room: u64::MAX }).await.unwrap());
    assert!(layer.is_complete());
    assert!(layer.backing(large).is_some(), "a large file is whole");
    let asked = source.ranges();
    assert_eq!(tree(&layer).await.unwrap(), expected_tree());
    assert_eq!((source.ranges(), source.streams()), (asked, 0));
}
