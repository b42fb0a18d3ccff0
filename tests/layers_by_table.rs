//! Layers that are read by their table of contents: what the original tools made, flipped bits, lies.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

mod layer_tree;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use addonfs::fetch::error::{Class, FetchError, Side};
use addonfs::fetch::index::EntryKind;
use addonfs::fetch::layer::{Filling, Layer, Opening, Progress};
use addonfs::fetch::profile::Profile;
use addonfs::fetch::source::{self, BlobSource};
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fetch::verified::VerifiedBytes;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use addonfs::policy::reference::ImageRef;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use layer_tree::{read, text, tree};
use serde_json::{Value, json};

/// No blob is too small to be read by its table.
const LAZY: Opening<'_> = Opening { tag: None, ztoc: None, whole_up_to: 0, arriving: None, head: false };

/// A blob in memory that counts, with one bit wrong in every range that touches byte `flip`.
#[derive(Debug)]
struct Source {
    blob: Bytes,
    annotations: Vec<(String, String)>,
    flip: AtomicUsize,
    ranges: AtomicUsize,
    streams: AtomicUsize,
}

const NOWHERE: usize = usize::MAX;

impl Source {
    fn new(blob: Vec<u8>, annotations: Vec<(String, String)>) -> Arc<Self> {
        let (flip, ranges, streams) =
            (AtomicUsize::new(NOWHERE), AtomicUsize::default(), AtomicUsize::default());
        Arc::new(Self { blob: blob.into(), annotations, flip, ranges, streams })
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::of(&self.blob),
            size: self.blob.len() as u64,
            annotations: self.annotations.clone(),
        }
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
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

    async fn blob(&self, _: &Descriptor, _: u64) -> Result<VerifiedBytes, FetchError> {
        Err(absent())
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

fn fixtures(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format)
}

/// What the original tool's layers of a format are, and the tree in all of them.
fn expected(format: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures(format).join("expected.json")).unwrap()).unwrap()
}

fn annotations(layer: &Value) -> Vec<(String, String)> {
    let all = layer["annotations"].as_object().unwrap();
    all.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn fixture(format: &str, file: &str) -> Arc<Source> {
    let all = expected(format);
    let layer = all["layers"].as_array().unwrap().iter().find(|layer| layer["file"] == file).unwrap();
    let source = Source::new(std::fs::read(fixtures(format).join(file)).unwrap(), annotations(layer));
    assert_eq!(source.descriptor().digest.to_string(), layer["digest"]);
    source
}

/// Waits for what a store dropped before still has under way: flights go on without those who asked.
fn open_store(dir: &Path) -> Arc<Store> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match Store::open(dir, StoreOptions::default()) {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn open(store: &Arc<Store>, source: &Arc<Source>, opening: Opening<'_>) -> Result<Layer, FetchError> {
    let progress = Progress::new(source.descriptor().size);
    Layer::open(store, Arc::clone(source) as _, &source.descriptor(), opening, &progress).await
}

fn expected_tree(format: &str) -> BTreeMap<String, Value> {
    let all = expected(format);
    let entries = all["tree"].as_array().unwrap().iter();
    entries.map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry.clone())).collect()
}

const TABLES: &[(&str, &str)] = &[
    ("estargz", "plain.tar.gz"),
    ("estargz", "chunks.tar.gz"),
    ("estargz", "prioritized.tar.gz"),
    ("estargz", "inner-offset.tar.gz"),
    ("zstd-chunked", "containers.tar.zst"),
    ("zstd-chunked", "stargz.tar.zst"),
    ("zstd-chunked", "skopeo.tar.zst"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_original_tools_made_is_read_by_ranges() {
    for (format, file) in TABLES {
        println!("{format} {file}");
        let (dir, source) = (tempfile::tempdir().unwrap(), fixture(format, file));
        let store = open_store(dir.path());
        let layer = open(&store, &source, LAZY).await.unwrap();
        assert_eq!(tree(&layer).await.unwrap(), expected_tree(format));
        assert_eq!(source.streams(), 0, "nothing was fetched whole");
        // From disk, without a request more, also by the next process.
        let asked = source.ranges.load(Ordering::Relaxed);
        drop((layer, store));
        let store = open_store(dir.path());
        let layer = open(&store, &source, LAZY).await.unwrap();
        assert_eq!(tree(&layer).await.unwrap(), expected_tree(format));
        assert_eq!(source.ranges.load(Ordering::Relaxed), asked, "all of it is here");
    }
}

/// The table and the tar number files alike: a merged tree holds for both.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_fetched_whole_is_the_same() {
    for (format, file) in TABLES {
        println!("{format} {file}");
        let source = fixture(format, file);
        let (lazy_dir, whole_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lazy = open(&open_store(lazy_dir.path()), &source, LAZY).await.unwrap();
        let whole = open(&open_store(whole_dir.path()), &source, Opening::default()).await.unwrap();
        assert_eq!(source.streams(), 1, "a small blob is fetched whole");
        assert_eq!(tree(&whole).await.unwrap(), expected_tree(format));
        assert_eq!(lazy.index().format(), whole.index().format());
        let numbers = |layer: &Layer| -> BTreeMap<Vec<u8>, u32> {
            let files = layer.index().entries().filter_map(|entry| match entry.kind {
                EntryKind::File { file, .. } => Some((entry.path.to_vec(), file)),
                _ => None,
            });
            files.collect()
        };
        assert_eq!(numbers(&lazy), numbers(&whole));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_a_bound_table_is_fetched_whole_and_hides_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("estargz", "legacy.tar.gz");
    let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
    assert_eq!(source.streams(), 1);
    assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
}

/// One wrong bit anywhere, in every answer: the right bytes or none.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_never_returned() {
    for (format, file) in [TABLES[1], TABLES[3], TABLES[4], TABLES[5]] {
        let source = fixture(format, file);
        let right = expected_tree(format);
        let (mut refused, mut whole) = (0, 0);
        for flip in (0..source.blob.len()).step_by(53).chain(source.blob.len() - 80..source.blob.len()) {
            source.flip.store(flip, Ordering::Relaxed);
            source.streams.store(0, Ordering::Relaxed);
            let dir = tempfile::tempdir().unwrap();
            let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
            match tree(&layer).await {
                Ok(tree) => assert_eq!(tree, right, "{file}: bit of byte {flip}"),
                Err(error) => {
                    assert_eq!(error.class, Class::Corrupt, "{error}");
                    refused += 1;
                }
            }
            whole += source.streams();
        }
        assert!(refused > 50, "{file}: {refused} refused, {whole} fetched whole");
        assert!(whole > 5, "{file}: {refused} refused, {whole} fetched whole");
    }
}

/// An eStargz blob with another table, and the annotation that binds it.
fn with_table(source: &Source, change: impl Fn(&mut Value)) -> Arc<Source> {
    let blob = &source.blob;
    let footer = &blob[blob.len() - 51..];
    let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[at..blob.len() - 51]));
    let mut table = String::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut table).unwrap();
    let mut table: Value = serde_json::from_str(&table).unwrap();
    change(&mut table);
    let table = table.to_string();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(table.len() as u64);
    archive.append_data(&mut header, "stargz.index.json", table.as_bytes()).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(blob[..at].to_vec(), flate2::Compression::fast());
    gzip.write_all(&archive.into_inner().unwrap()).unwrap();
    let blob = [&gzip.finish().unwrap(), footer].concat();
    let digest = Digest::of(table.as_bytes()).to_string();
    Source::new(blob, vec![("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest)])
}

fn entry<'t>(table: &'t mut Value, name: &str) -> &'t mut Value {
    let entries = table["entries"].as_array_mut().unwrap();
    entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
}

fn number(layer: &Layer, path: &str) -> u32 {
    let entry = layer.index().entries().find(|entry| entry.path == path.as_bytes()).unwrap();
    match entry.kind {
        EntryKind::File { file, .. } => file,
        kind => panic!("{kind:?}"),
    }
}

/// `bin/same` is a hard link whose header comes along with the content of `bin/tool`.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_disagrees_with_the_tar_ends_all_reading() {
    let plain = fixture("estargz", "plain.tar.gz");
    let lies: &[(&str, Value)] = &[
        ("mode", json!(0o755)),
        ("uid", json!(1000)),
        ("linkName", json!("bin/link")),
        ("name", json!("bin/other")),
        ("modtime", json!("2001-01-01T00:00:00Z")),
        ("type", json!("symlink")),
        ("xattrs", json!({"user.x": "eA=="})),
    ];
    for (field, lie) in lies {
        let source = with_table(&plain, |table| entry(table, "bin/same")[*field] = lie.clone());
        let dir = tempfile::tempdir().unwrap();
        let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
        assert_eq!(source.streams(), 0);
        let other = read(&layer, number(&layer, "data/even"), 0, 100).await;
        assert_eq!(other.unwrap().len(), 100, "{field}: not known yet");
        let refused = read(&layer, number(&layer, "bin/tool"), 0, 100).await.unwrap_err();
        assert!(refused.message.contains("disagree"), "{field}: {refused}");
        assert_eq!(refused.class, Class::Corrupt);
        let other = read(&layer, number(&layer, "data/even"), 0, 100).await.unwrap_err();
        assert!(other.message.contains("disagree"), "{field}: {other}");
    }
    let honest = with_table(&plain, |_| ());
    let dir = tempfile::tempdir().unwrap();
    let layer = open(&open_store(dir.path()), &honest, LAZY).await.unwrap();
    assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
}

type Change = Box<dyn Fn(&mut Value)>;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_used_means_the_whole_blob() {
    let chunks = fixture("estargz", "chunks.tar.gz");
    let set = |name: &'static str, field: &'static str, value: Value| {
        move |table: &mut Value| entry(table, name)[field] = value.clone()
    };
    let changes: Vec<(&str, Change)> = vec![
        ("no digest of a chunk", Box::new(set("data/big", "chunkDigest", json!("")))),
        ("no digest of a file in chunks", Box::new(set("data/big", "digest", json!("")))),
        ("a digest of another kind", Box::new(set("data/even", "digest", json!("sha512:00")))),
        ("a negative size", Box::new(set("data/big", "size", json!(-1)))),
        ("a size that its chunks do not make", Box::new(set("data/big", "size", json!(20_000)))),
        ("a gap between chunks", Box::new(set("data/big", "chunkSize", json!(9_999)))),
        ("an offset outside", Box::new(set("data/big", "offset", json!(1_u64 << 40)))),
        ("an offset that goes back", Box::new(set("data/even", "offset", json!(0)))),
        ("a huge innerOffset", Box::new(set("data/even", "innerOffset", json!(1_u64 << 40)))),
        ("an unknown type", Box::new(set("data/even", "type", json!("door")))),
        ("a time that is none", Box::new(set("data/even", "modtime", json!("yesterday")))),
        ("a name that was lost", Box::new(set("data/even", "name", json!("data/\u{fffd}")))),
        ("an xattr that is no base64", Box::new(set("data/even", "xattrs", json!({"user.x": "?"})))),
        ("no entries", Box::new(|table: &mut Value| drop(table.as_object_mut().unwrap().remove("entries")))),
        (
            "a chunk of nothing",
            Box::new(|table: &mut Value| {
                table["entries"].as_array_mut().unwrap().insert(0, json!({"name": "x", "type": "chunk"}));
            }),
        ),
        ("not an object", Box::new(|table: &mut Value| *table = json!([]))),
    ];
    for (what, change) in changes {
        let source = with_table(&chunks, change);
        let dir = tempfile::tempdir().unwrap();
        let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
        assert_eq!(source.streams(), 1, "{what}");
        assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"), "{what}");
    }
}

/// An image layout with an eStargz layer whose table is in the image `v1-esgztoc`.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_an_image_of_its_own_is_found_by_the_tag() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, from) = (dir.path().join("blobs/sha256"), fixtures("estargz"));
    std::fs::create_dir_all(&blobs).unwrap();
    for name in ["external-toc.tar.gz", "external-toc.toc.tar.gz", "external-toc.manifest.json"] {
        let bytes = std::fs::read(from.join(name)).unwrap();
        std::fs::write(blobs.join(Digest::of(&bytes).hex()), bytes).unwrap();
    }
    let manifest = std::fs::read(from.join("external-toc.manifest.json")).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
        "digest": Digest::of(&manifest), "annotations": {"org.opencontainers.image.ref.name": "v1-esgztoc"},
    }]});
    std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let image: ImageRef = format!("oci:{}", dir.path().display()).parse().unwrap();

    let descriptor = fixture("estargz", "external-toc.tar.gz").descriptor();
    for (tag, lazily) in [(Some("v1"), true), (Some("v2"), false), (None, false)] {
        let cache = tempfile::tempdir().unwrap();
        let source = source::open(&image.location, &Default::default()).unwrap();
        let (opening, progress) =
            (Opening { tag, ztoc: None, whole_up_to: 0, arriving: None, head: false }, Progress::new(0));
        let layer =
            Layer::open(&open_store(cache.path()), source, &descriptor, opening, &progress).await.unwrap();
        // A blob fetched whole has content in the store at once.
        assert_eq!(std::fs::read_dir(cache.path().join("packs")).unwrap().count() == 0, lazily, "{tag:?}");
        assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_come_along_and_their_faults_are_their_own() {
    let source = fixture("estargz", "plain.tar.gz");
    let dir = tempfile::tempdir().unwrap();
    let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
    let table = source.ranges.load(Ordering::Relaxed);
    read(&layer, number(&layer, "data/even"), 0, 10).await.unwrap();
    assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
    assert_eq!(source.ranges.load(Ordering::Relaxed), table + 1, "the whole small layer in one range");

    // One wrong bit, in a file's chunk.
    let dir = tempfile::tempdir().unwrap();
    let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
    source.flip.store(5000, Ordering::Relaxed);
    let mut refused = 0;
    for entry in layer.index().entries() {
        let EntryKind::File { file, size } = entry.kind else { continue };
        let expected = &expected_tree("estargz")[&text(entry.path)];
        match read(&layer, file, 0, u32::try_from(size).unwrap()).await {
            Ok(content) => assert_eq!(Digest::of(&content).hex(), expected["sha256"].as_str().unwrap()),
            Err(error) => {
                assert_eq!(error.class, Class::Corrupt);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1, "one wrong bit is one file's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_filled_in_the_background() {
    for (format, file) in TABLES {
        let (dir, source) = (tempfile::tempdir().unwrap(), fixture(format, file));
        let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
        assert!(!layer.is_complete());
        let little = Filling { bandwidth: Some(10 << 20), room: 1000 };
        assert!(!layer.fill(little).await.unwrap(), "there is no room");
        assert!(layer.fill(Filling { room: 1 << 20, ..little }).await.unwrap(), "{file}");
        assert!(layer.is_complete(), "{file}");
        let asked = source.ranges.load(Ordering::Relaxed);
        assert_eq!(tree(&layer).await.unwrap(), expected_tree(format));
        assert_eq!((source.ranges.load(Ordering::Relaxed), source.streams()), (asked, 0), "{file}");
    }
}

/// What was evicted is missed, fetched again by who fills, and whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_fetched_whole_is_filled_again() {
    let (dir, source) = (tempfile::tempdir().unwrap(), fixture("estargz", "legacy.tar.gz"));
    drop(open(&open_store(dir.path()), &source, LAZY).await.unwrap());
    for pack in std::fs::read_dir(dir.path().join("packs")).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    std::fs::remove_file(dir.path().join("catalog")).unwrap();
    let layer = open(&open_store(dir.path()), &source, LAZY).await.unwrap();
    assert!(!layer.is_complete());
    assert!(layer.fill(Filling { bandwidth: None, room: 1 << 20 }).await.unwrap());
    assert!(layer.is_complete());
    assert_eq!(source.streams(), 2);
}

/// What a start read is fetched ahead the next time, and is enough for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_recorded_needs_nothing_more() {
    for (format, file) in TABLES {
        let source = fixture(format, file);
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let layer = open(&open_store(first.path()), &source, LAZY).await.unwrap();
        let recording = layer.record().unwrap();
        assert!(layer.record().is_none(), "one at a time");
        for path in ["data/big", "bin/tool", "data/big"] {
            read(&layer, number(&layer, path), 0, 1 << 20).await.unwrap();
        }
        let mut profile = Profile::new(Digest::of(b"image"));
        profile.jobs.insert("job".to_owned(), vec![recording.ranges()]);
        drop(recording);
        assert!(layer.record().unwrap().is_empty());

        let profile = Profile::parse(&profile.to_json(), &profile.image).unwrap();
        let layer = open(&open_store(second.path()), &source, LAZY).await.unwrap();
        profile.replay("another job", std::slice::from_ref(&layer)).await.unwrap();
        let table = source.ranges.load(Ordering::Relaxed);
        profile.replay("job", std::slice::from_ref(&layer)).await.unwrap();
        let asked = source.ranges.load(Ordering::Relaxed);
        assert_eq!(asked, table + 1, "{file}: what is near is one request");
        for path in ["bin/tool", "data/big"] {
            read(&layer, number(&layer, path), 0, 1 << 20).await.unwrap();
        }
        assert_eq!(source.ranges.load(Ordering::Relaxed), asked, "{file}");
        profile.replay("job", std::slice::from_ref(&layer)).await.unwrap();
        assert_eq!(source.ranges.load(Ordering::Relaxed), asked, "{file}: it is here");

        // Fetched whole, all of it is here anyway.
        let third = tempfile::tempdir().unwrap();
        let layer = open(&open_store(third.path()), &source, Opening::default()).await.unwrap();
        profile.replay("job", std::slice::from_ref(&layer)).await.unwrap();
        layer.fetch_to_landmark().await.unwrap();
        assert_eq!(source.ranges.load(Ordering::Relaxed), asked, "{file}: fetched whole");
    }
}

/// What the builder says that every start reads comes while the table is read; nothing of it is believed unproven.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_layer_comes_ahead_and_is_proven() {
    const OPENING: Opening<'_> = Opening { head: true, ..LAZY };
    let plain = fixture("estargz", "plain.tar.gz");
    let said = |end: &str| {
        let own = ("dev.addonfs.prefetch-end".to_owned(), end.to_owned());
        Source::new(plain.blob.to_vec(), plain.annotations.iter().cloned().chain([own]).collect())
    };
    let asked = |source: &Source| source.ranges.load(Ordering::Relaxed);
    let opened = async |source: &Arc<Source>, opening| {
        let dir = tempfile::tempdir().unwrap();
        let layer = open(&open_store(dir.path()), source, opening).await.unwrap();
        (dir, layer)
    };
    let (_dir, layer) = opened(&plain, LAZY).await;
    let table = asked(&plain);
    drop(layer);

    let end = plain.blob.len();
    let source = said(&end.to_string());
    let (_dir, layer) = opened(&source, OPENING).await;
    layer.fetch_to_landmark().await.unwrap();
    assert_eq!(asked(&source), table + 1, "from the head");
    layer.drop_head();
    assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));

    // A bad moment while it came: asked for again, by the reader.
    let source = said(&end.to_string());
    source.flip.store(5000, Ordering::Relaxed);
    let (_dir, layer) = opened(&source, OPENING).await;
    while asked(&source) < table + 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    source.flip.store(NOWHERE, Ordering::Relaxed);
    assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
    assert!(asked(&source) > table + 1);

    // Lies are no reason to fetch.
    for lie in ["0", "-1", "x", &(plain.blob.len() + 1).to_string()] {
        let source = said(lie);
        let (_dir, layer) = opened(&source, OPENING).await;
        assert_eq!(asked(&source), table, "{lie}");
        assert_eq!(tree(&layer).await.unwrap(), expected_tree("estargz"));
    }
}
