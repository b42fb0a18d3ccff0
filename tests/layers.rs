//! Layers end to end without a network: ingest, random reads, eviction, damage anywhere, an absent registry.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

mod memory;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addonfs::fetch::error::{Class, FetchError};
use addonfs::fetch::index::EntryKind;
use addonfs::fetch::layer::{Layer, Opening, Progress, Read};
use addonfs::fetch::store::{Store, StoreOptions};
use memory::{Fault, MemorySource};
use proptest::prelude::*;

/// A layer's files by path, as they should read.
type Files = HashMap<Vec<u8>, Vec<u8>>;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at / 1000 % 2 == 0 { state as u8 } else { b'a' + (at % 13) as u8 }
        })
        .collect()
}

fn tar(files: &[(String, Vec<u8>)]) -> (Vec<u8>, Files) {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, &content[..]).expect("in memory");
    }
    let content = files.iter().map(|(path, content)| (path.clone().into_bytes(), content.clone())).collect();
    (archive.into_inner().expect("in memory"), content)
}

/// Small files, large ones, one over several spans.
fn sample() -> (Vec<u8>, Files) {
    let mut files = Vec::new();
    for at in 0..60_u64 {
        files.push((format!("small/{at}"), noise(at, usize::try_from(at * 97 % 5000).unwrap_or(0))));
    }
    files.push(("edge".to_owned(), noise(70, 65_535)));
    files.push(("large".to_owned(), noise(71, 65_536)));
    files.push(("larger".to_owned(), noise(72, 9_000_001)));
    files.push(("last".to_owned(), noise(73, 300)));
    tar(&files)
}

fn gzip(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstd(content: &[u8], level: i32) -> Vec<u8> {
    zstd::bulk::compress(content, level).expect("in memory")
}

/// Frames of 100,000 bytes, and a skippable frame behind them where seekable zstd has its table.
fn seekable(content: &[u8]) -> Vec<u8> {
    let frames = content.chunks(100_000).flat_map(|part| zstd(part, 3));
    frames.chain([0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 0x28, 0xb5, 0x2f]).collect()
}

/// Runs a program as a filter.
fn pipe(program: &str, words: &[&str], input: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("tmp");
    std::fs::write(dir.path().join("in"), input).expect("tmp");
    let stdin = std::fs::File::open(dir.path().join("in")).expect("tmp");
    let output = std::process::Command::new(program).args(words).stdin(stdin).output().expect(program);
    assert!(output.status.success(), "{program}");
    output.stdout
}

fn options(quota_bytes: u64) -> StoreOptions {
    StoreOptions { quota_bytes, ..StoreOptions::default() }
}

/// Opens the store as a new process would. What the last one still had in flight ends first.
fn open(dir: &Path) -> Arc<Store> {
    for _ in 0..1000 {
        match Store::open(dir, options(1 << 30)) {
            Ok(store) => return store,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    panic!("{} stays locked", dir.display());
}

async fn ingest(store: &Arc<Store>, source: &Arc<MemorySource>) -> Result<Layer, FetchError> {
    let progress = Progress::new(source.descriptor().size);
    Layer::open(store, Arc::clone(source) as _, &source.descriptor(), Opening::default(), &progress).await
}

async fn read(layer: &Layer, file: u32, offset: u64, len: u32) -> Result<Vec<u8>, FetchError> {
    match layer.read(file, offset, len) {
        Read::Ready(bytes) => Ok(bytes.to_vec()),
        Read::Pending(answer) => answer.await.map(|bytes| bytes.to_vec()),
    }
}

/// Reads every file whole, in pieces of `step`.
async fn check_all(layer: &Layer, files: &Files, step: u32) -> Result<(), FetchError> {
    let mut seen = 0;
    for entry in layer.index().entries() {
        let EntryKind::File { file, size } = entry.kind else { continue };
        let expected = &files[entry.path];
        assert_eq!(size, expected.len() as u64);
        let mut content = Vec::new();
        while (content.len() as u64) < size {
            let piece = read(layer, file, content.len() as u64, step).await?;
            assert!(!piece.is_empty());
            content.extend(piece);
        }
        assert!(content == *expected, "{}", String::from_utf8_lossy(entry.path));
        assert!(read(layer, file, size, 10).await?.is_empty());
        assert!(read(layer, file, size + 5, 10).await?.is_empty());
        seen += 1;
    }
    assert_eq!(seen, files.len());
    Ok(())
}

fn number(layer: &Layer, path: &str) -> u32 {
    let entry = layer.index().entries().find(|entry| entry.path == path.as_bytes()).expect("entry");
    match entry.kind {
        EntryKind::File { file, .. } => file,
        kind => panic!("{kind:?}"),
    }
}

/// Every file below `dir`.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Forgets all content but the indexes, as eviction would.
fn evict(dir: &Path) {
    for part in ["files", "packs", "chunks"] {
        for path in files_below(&dir.join(part)) {
            std::fs::remove_file(path).expect("remove");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_encoding_reads_back_whole_and_by_ranges() {
    let (tar, files) = sample();
    let halves: Vec<u8> = tar.chunks(tar.len() / 3 + 1).flat_map(|part| gzip(part, 6)).collect();
    let members: Vec<u8> = tar.chunks(50_000).flat_map(|part| gzip(part, 1)).collect();
    for (what, blob) in [
        ("plain", tar.clone()),
        ("gzip(1)", pipe("gzip", &["-6"], &tar)),
        ("gzip -1", pipe("gzip", &["-1"], &tar)),
        ("pigz", pipe("pigz", &["-p", "4"], &tar)),
        ("pigz -i", pipe("pigz", &["-i"], &tar)),
        ("stored", gzip(&tar, 0)),
        ("three members", halves),
        ("many members", members),
        ("zeros behind", [gzip(&tar, 6), vec![0; 1000]].concat()),
        ("zstd(1), one frame", pipe("zstd", &["-3"], &tar)),
        ("zstd with a window of 128 MiB", pipe("zstd", &["-5", "--long=27"], &tar)),
        ("pzstd", pipe("pzstd", &["-p", "3"], &tar)),
        ("seekable zstd", seekable(&tar)),
    ] {
        println!("{what}");
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let source = MemorySource::new(blob);
        assert!(Layer::known(&store, source.clone(), &source.descriptor()).unwrap().is_none());
        let layer = ingest(&store, &source).await.unwrap();
        check_all(&layer, &files, 1 << 20).await.unwrap();
        assert_eq!(source.ranges(), 0, "all was there");
        assert!(layer.backing(number(&layer, "larger")).is_some());
        assert!(layer.backing(number(&layer, "edge")).is_none(), "small files have no file of their own");
        drop((layer, store));

        // A new process, the content gone: everything by ranges, and then whole again.
        evict(dir.path());
        let store = open(dir.path());
        let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().expect("known");
        assert!(layer.backing(number(&layer, "larger")).is_none());
        check_all(&layer, &files, 300_000).await.unwrap();
        assert!(source.ranges() > 0);
        assert_eq!(source.streams(), 1);
        let asked = source.ranges();
        source.set(Fault::Down);
        check_all(&layer, &files, 4096 * 7).await.unwrap();
        assert_eq!(source.ranges(), asked, "usable without a registry");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_becomes_whole_again() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(gzip(&tar, 6));
    drop(ingest(&open(dir.path()), &source).await.unwrap());
    evict(dir.path());
    let store = open(dir.path());
    let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().unwrap();
    let file = number(&layer, "larger");
    assert_eq!(read(&layer, file, 0, 16 << 20).await.unwrap(), files[&b"larger"[..]]);
    let mut backing = None;
    for _ in 0..3000 {
        backing = layer.backing(file);
        if backing.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let backing = backing.expect("made whole within 30 s");
    assert_eq!(backing.metadata().unwrap().len(), 9_000_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_span_share_one_request() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(gzip(&tar, 6));
    drop(ingest(&open(dir.path()), &source).await.unwrap());
    evict(dir.path());
    let store = open(dir.path());
    let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().unwrap();
    source.set(Fault::Slow);
    let file = number(&layer, "last");
    let readers = (0..20).map(|_| {
        let layer = layer.clone();
        tokio::spawn(async move { read(&layer, file, 10, 100).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert_eq!(reader.await.unwrap().unwrap(), files[&b"last"[..]][10..110]);
    }
    assert_eq!(source.ranges(), 1);
    // Adjacent spans are one request, too.
    source.set(Fault::None);
    read(&layer, number(&layer, "larger"), 0, 9_000_001).await.unwrap();
    assert_eq!(source.ranges(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_cold_reads_is_a_few_requests_at_a_time() {
    // Every span of a plain layer is a mebibyte; these differ, and are not equal to each other.
    let mut content = vec![0; 24 << 20];
    content.chunks_mut(1 << 10).enumerate().for_each(|(at, part)| part[0] = (at >> 8) as u8);
    let (tar, _) = tar(&[("f".to_owned(), content)]);
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(tar);
    drop(ingest(&open(dir.path()), &source).await.unwrap());
    evict(dir.path());
    let layer = Layer::known(&open(dir.path()), source.clone(), &source.descriptor()).unwrap().unwrap();
    source.set(Fault::Slow);
    let readers = (0..24_u64).map(|at| {
        let layer = layer.clone();
        tokio::spawn(async move { read(&layer, 0, at << 20, 1).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap().unwrap();
    }
    assert!((2..=16).contains(&source.most()), "{} at once", source.most());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_a_wrong_size_does_no_harm_to_others() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let source = MemorySource::new(gzip(&tar, 6));
    drop(ingest(&store, &source).await.unwrap());
    let mut lying = source.descriptor();
    lying.size += 1;
    let refused = Layer::known(&store, source.clone(), &lying).unwrap_err();
    assert_eq!(refused.class, Class::Corrupt, "{refused}");
    source.set(Fault::Down);
    let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().expect("still known");
    check_all(&layer, &files, 1 << 20).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_without_its_caller() {
    let (tar, _) = sample();
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(gzip(&tar, 6));
    drop(ingest(&open(dir.path()), &source).await.unwrap());
    evict(dir.path());
    let store = open(dir.path());
    let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().unwrap();
    source.set(Fault::Slow);
    let file = number(&layer, "last");
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), read(&layer, file, 0, 10)).await;
    assert!(waiting.is_err(), "the source is slow");
    while !matches!(layer.read(file, 0, 10), Read::Ready(_)) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(source.ranges(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_what_was_asked_for_leaves_nothing() {
    let (tar, _) = sample();
    let blob = gzip(&tar, 6);
    for fault in
        [Fault::FlipStream(1000), Fault::FlipStream(blob.len() / 2), Fault::CutStream, Fault::LongStream]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let before = files_below(dir.path());
        let source = MemorySource::new(blob.clone());
        source.set(fault);
        let error = ingest(&store, &source).await.unwrap_err();
        assert_eq!(error.class, Class::Corrupt, "{fault:?}: {error}");
        assert!(Layer::known(&store, source.clone(), &source.descriptor()).unwrap().is_none());
        assert_eq!(files_below(dir.path()), before, "{fault:?}");
        assert_eq!(store.used_bytes(), 0);
        source.set(Fault::None);
        ingest(&store, &source).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_is_the_reason_even_when_decoding_failed_first() {
    let (tar, _) = sample();
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(gzip(&tar, 6));
    source.set(Fault::FlipStream(30));
    let error = ingest(&open(dir.path()), &source).await.unwrap_err();
    assert!(error.message.contains("sent something else"), "{error}");
    // And what is broken by itself says so.
    for (blob, words) in [
        (b"\x1f\x8b\x08rubbish".to_vec(), "gzip"),
        (vec![b'x'; 2000], "tar archive"),
        (gzip(&[b'x'; 2000], 6), "tar archive"),
        (b"\x28\xb5\x2f\xfdzstd".to_vec(), "zstd"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = ingest(&open(dir.path()), &MemorySource::new(blob)).await.unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_end() {
    let content = vec![0; 80 << 20];
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreOptions { max_decoded: Some(10 << 20), ..options(1 << 30) };
    let store = Store::open(dir.path(), limits).unwrap();
    // Zeros are the end of an archive, so only the decoder sees the rest.
    for bomb in [gzip(&content, 9), zstd(&content, 9)] {
        let error = ingest(&store, &MemorySource::new(bomb)).await.unwrap_err();
        assert!(error.message.contains("decodes to more than"), "{error}");
    }
    // A sparse file is as large as it says, however little of it is stored.
    let sparse = tempfile::tempdir().unwrap();
    std::fs::File::create(sparse.path().join("f")).unwrap().set_len(1 << 40).unwrap();
    let tar =
        std::process::Command::new("tar").args(["-cS", "f"]).current_dir(sparse.path()).output().unwrap();
    assert!(tar.stdout.len() < 100_000);
    let error = ingest(&store, &MemorySource::new(tar.stdout)).await.unwrap_err();
    assert!(error.message.contains("decodes to more than"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_read_their_holes() {
    use std::os::unix::fs::FileExt;
    let tree = tempfile::tempdir().unwrap();
    let mut files = Files::new();
    for (name, len, at) in
        [("small", 40_000_u64, 20_000_u64), ("large", 3 << 20, 2 << 20), ("hole", 1 << 20, 0)]
    {
        let file = std::fs::File::create(tree.path().join(name)).unwrap();
        file.set_len(len).unwrap();
        if at > 0 {
            file.write_all_at(b"content", at).unwrap();
        }
        files.insert(name.into(), std::fs::read(tree.path().join(name)).unwrap());
    }
    for format in ["--format=gnu", "--format=pax"] {
        let words = [format, "-cS", "small", "large", "hole"];
        let tar =
            std::process::Command::new("tar").args(words).current_dir(tree.path()).output().unwrap().stdout;
        assert!(tar.len() < 100_000);
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(tar);
        let layer = ingest(&open(dir.path()), &source).await.unwrap();
        check_all(&layer, &files, 7777).await.unwrap();
        drop(layer);
        evict(dir.path());
        let layer = Layer::known(&open(dir.path()), source.clone(), &source.descriptor()).unwrap().unwrap();
        check_all(&layer, &files, 99_999).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_from_the_network_are_never_returned() {
    let (tar, files) = sample();
    for blob in [tar.clone(), gzip(&tar, 6), seekable(&tar), zstd(&tar, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let source = MemorySource::new(blob);
        drop(ingest(&open(dir.path()), &source).await.unwrap());
        evict(dir.path());
        let store = open(dir.path());
        let layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().unwrap();
        let file = number(&layer, "larger");
        source.set(Fault::FlipRanges);
        let error = read(&layer, file, 0, 1000).await.unwrap_err();
        assert_eq!(error.class, Class::Corrupt);
        assert_eq!(source.ranges(), 2, "asked once more");
        source.set(Fault::ShortRanges);
        assert_eq!(read(&layer, file, 0, 1000).await.unwrap_err().class, Class::Protocol);
        source.set(Fault::FlipOnce);
        assert_eq!(read(&layer, file, 0, 1000).await.unwrap(), files[&b"larger"[..]][..1000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_disk_is_never_returned() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let source = MemorySource::new(gzip(&tar, 6));
    drop(ingest(&open(dir.path()), &source).await.unwrap());
    // Chunks as well as packs and files.
    let kept = tempfile::tempdir().unwrap();
    pipe("cp", &["-a", &format!("{}/.", dir.path().display()), &kept.path().display().to_string()], b"");
    evict(dir.path());
    let layer = Layer::known(&open(dir.path()), source.clone(), &source.descriptor()).unwrap().unwrap();
    check_all(&layer, &files, 1 << 20).await.unwrap();
    drop(layer);
    for dir in [dir.path(), kept.path()] {
        let content: Vec<_> = ["files", "packs", "chunks", "layers"]
            .iter()
            .flat_map(|part| files_below(&dir.join(part)))
            .collect();
        assert!(content.len() >= 4);
        for path in content {
            for damage in ["flip", "cut"] {
                let good = std::fs::read(&path).unwrap();
                let mut bad = good.clone();
                let middle = bad.len() / 2;
                if damage == "flip" {
                    bad[middle] ^= 4
                } else {
                    bad.truncate(middle)
                }
                // A new inode with new times, or the old one written in place: both must be noticed.
                std::fs::write(&path, &bad).unwrap();
                let store = open(dir);
                let layer = match Layer::known(&store, source.clone(), &source.descriptor()).unwrap() {
                    Some(layer) => layer,
                    None => ingest(&store, &source).await.unwrap(),
                };
                check_all(&layer, &files, 100_000).await.unwrap();
                drop((layer, store));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &good).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_changed_while_the_store_is_open_is_noticed() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let source = MemorySource::new(gzip(&tar, 6));
    let layer = ingest(&store, &source).await.unwrap();
    let file = number(&layer, "larger");
    read(&layer, file, 0, 10).await.unwrap();
    for path in files_below(&dir.path().join("files")) {
        use std::os::unix::fs::FileExt;
        std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"WRONG", 0).unwrap();
    }
    assert_eq!(read(&layer, file, 0, 10).await.unwrap(), files[&b"larger"[..]][..10]);
    assert!(source.ranges() > 0, "fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_holds_and_everything_stays_readable() {
    let (tar, files) = sample();
    for quota in [8 << 20, 2_500_000, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), options(quota)).unwrap();
        let source = MemorySource::new(gzip(&tar, 6));
        let layer = ingest(&store, &source).await.unwrap();
        check_all(&layer, &files, 500_000).await.unwrap();
        let on_disk: u64 = ["files", "packs", "chunks"]
            .iter()
            .flat_map(|part| files_below(&dir.path().join(part)))
            .map(|path| path.metadata().unwrap().len())
            .sum();
        assert!(on_disk <= quota, "{on_disk} of {quota}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(5 << 20)).unwrap();
    let mut layers = Vec::new();
    for seed in 0..4 {
        let (tar, _) = tar(&[("f".to_owned(), noise(seed + 500, 1 << 20))]);
        let source = MemorySource::new(gzip(&tar, 6));
        layers.push(ingest(&store, &source).await.unwrap());
    }
    // Times of use are whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    read(&layers[0], 0, 0, 10).await.unwrap();
    for seed in 4..6 {
        let (tar, _) = tar(&[("f".to_owned(), noise(seed + 500, 1 << 20))]);
        ingest(&store, &MemorySource::new(gzip(&tar, 6))).await.unwrap();
    }
    assert!(layers[0].backing(0).is_some(), "used last");
    assert!(layers[1..4].iter().any(|layer| layer.backing(0).is_none()), "something had to go");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_fetched_once_however_many_want_it() {
    let (tar, files) = sample();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let source = MemorySource::new(gzip(&tar, 6));
    let both = tokio::join!(ingest(&store, &source), ingest(&store, &source));
    check_all(&both.0.unwrap(), &files, 1 << 20).await.unwrap();
    both.1.unwrap();
    assert_eq!(source.streams(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Random layers, encodings, losses and ranges against the bytes that went in.
    #[test]
    fn any_range_of_any_layer(
        sizes in prop::collection::vec((0_usize..3_000_000).prop_map(|n| if n % 3 == 0 { n } else { n % 70_000 }), 1..12),
        level in 0_u32..10,
        member in prop::sample::select(vec![10_000_usize, 300_000, 3_000_000, usize::MAX]),
        encoding in prop::sample::select(vec!["tar", "gzip", "zstd"]),
        lost in any::<bool>(),
        ranges in prop::collection::vec((any::<prop::sample::Index>(), 0.0..1.0_f64, 1_u32..400_000), 1..20),
    ) {
        let named = sizes.iter().enumerate().map(|(at, &size)| (format!("f{at}"), noise(at as u64, size)));
        let (tar, files) = tar(&named.collect::<Vec<_>>());
        let blob = match encoding {
            "gzip" => tar.chunks(member).flat_map(|part| gzip(part, level)).collect(),
            "zstd" => tar.chunks(member).flat_map(|part| zstd(part, level as i32)).collect(),
            _ => tar,
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let source = MemorySource::new(blob);
            let mut store = open(dir.path());
            let mut layer = ingest(&store, &source).await.unwrap();
            if lost {
                drop((layer, store));
                evict(dir.path());
                store = open(dir.path());
                layer = Layer::known(&store, source.clone(), &source.descriptor()).unwrap().unwrap();
            }
            for (file, at, len) in ranges {
                let path = format!("f{}", file.index(sizes.len()));
                let content = &files[path.as_bytes()];
                let start = (content.len() as f64 * at) as usize;
                let end = content.len().min(start + len as usize);
                let bytes = read(&layer, number(&layer, &path), start as u64, len).await.unwrap();
                assert!(bytes == content[start..end]);
            }
        });
    }
}
