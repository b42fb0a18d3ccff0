//! Layers by their tables of contents, against the archives that they also are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Cursor, Read, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::{GzDecoder, MultiGzDecoder};
use serde_json::Value;

use super::estargz::OWN_NAMES;
use super::first;
use super::format::LayerFormat;
use super::layer::{BuiltLayer, pack};
use super::programs;
use super::python::Surroundings;
use super::tree::{Times, Tree};
use crate::policy::digest::Digest;

const MIB: usize = 1 << 20;

/// Compressible, and different everywhere.
fn text(size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 32);
    let mut number = 0_u64;
    while text.len() < size {
        writeln!(text, "line {}", number * number).unwrap();
        number += 1;
    }
    text.truncate(size);
    text
}

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("big"), text(9 * MIB + 5)).unwrap();
    fs::write(dir.join("exact"), text(4 * MIB)).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    let holes = File::create(dir.join("holes")).unwrap();
    holes.set_len(6 * MIB as u64).unwrap();
    holes.write_at(b"end", 5 * MIB as u64).unwrap();
    fs::write(dir.join("sub/small"), "small").unwrap();
    fs::set_permissions(dir.join("sub/small"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::hard_link(dir.join("sub/small"), dir.join("sub/deep/same")).unwrap();
    fs::write(dir.join("sub").join("ü".repeat(100)), "long").unwrap();
    symlink("t".repeat(120), dir.join("sub/link")).unwrap();
    nix::unistd::mkfifo(&dir.join("sub/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
}

fn built(dir: &Path, prefix: &str, mtime: u64, format: LayerFormat, first: &[&str]) -> BuiltLayer {
    let tree = Tree::walk(dir, prefix, &OWN_NAMES, Times::All(mtime)).unwrap();
    let first: Vec<PathBuf> = first.iter().map(PathBuf::from).collect();
    let missing = first::missing(std::slice::from_ref(&tree), &first);
    assert!(missing.is_empty(), "{missing:?}");
    let orders = first::order(std::slice::from_ref(&tree), &first, &[]);
    pack(&tree, &orders[0], mtime, format).unwrap()
}

fn annotation<'l>(layer: &'l BuiltLayer, key: &str) -> &'l str {
    layer.descriptor.annotation(key).unwrap_or_else(|| panic!("no annotation {key}"))
}

fn number(entry: &Value, key: &str) -> u64 {
    entry.get(key).map_or(0, |value| value.as_u64().unwrap())
}

/// The TOC by the footer, as readers find it.
fn estargz_toc(blob: &[u8]) -> Vec<u8> {
    let footer = &blob[blob.len() - 51..];
    assert_eq!(&footer[..16], b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    assert_eq!(&footer[32..38], b"STARGZ");
    let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let mut member = tar::Archive::new(GzDecoder::new(&blob[offset..]));
    let mut entry = member.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path_bytes().as_ref(), b"stargz.index.json");
    let mut json = Vec::new();
    entry.read_to_end(&mut json).unwrap();
    json
}

/// Numbers of an annotation, as `offset:length:…`.
fn position(layer: &BuiltLayer, key: &str) -> Vec<usize> {
    annotation(layer, key).split(':').map(|number| number.parse().unwrap()).collect()
}

fn zstd_toc(layer: &BuiltLayer, blob: &[u8]) -> Vec<u8> {
    const NAMES: &str = "io.github.containers.zstd-chunked.";
    let toc = position(layer, &format!("{NAMES}manifest-position"));
    let split = position(layer, &format!("{NAMES}tarsplit-position"));
    let compressed = &blob[toc[0]..toc[0] + toc[1]];
    assert_eq!(annotation(layer, &format!("{NAMES}manifest-checksum")), Digest::of(compressed).to_string());
    let json = zstd::stream::decode_all(compressed).unwrap();
    assert_eq!((json.len(), toc[3]), (toc[2], 1));
    // the footer says what the annotations say
    let (frame, footer) = blob[blob.len() - 72..].split_at(8);
    assert_eq!(frame, b"\x50\x2a\x4d\x18\x40\0\0\0");
    let numbers = footer.chunks_exact(8).take(7).map(|n| u64::from_le_bytes(n.try_into().unwrap()) as usize);
    assert_eq!(numbers.collect::<Vec<_>>(), [toc[0], toc[1], toc[2], 1, split[0], split[1], split[2]]);
    assert_eq!(&footer[56..], b"GNUlInUx");
    json
}

/// What the archive holds: header type, name, link, mode, content.
struct Member {
    kind: &'static str,
    name: String,
    link: Option<String>,
    mode: u64,
    content: Vec<u8>,
}

fn members(archive: &[u8]) -> Vec<Member> {
    let mut archive = tar::Archive::new(archive);
    let members = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let kind = match entry.header().entry_type() {
            tar::EntryType::Regular => "reg",
            tar::EntryType::Directory => "dir",
            tar::EntryType::Link => "hardlink",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Fifo => "fifo",
            other => panic!("{other:?}"),
        };
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let link = entry.link_name_bytes().map(|link| String::from_utf8(link.into_owned()).unwrap());
        let mode = u64::from(entry.header().mode().unwrap());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        Member { kind, name, link, mode, content }
    });
    members.collect()
}

/// Compares a TOC with the archive's members; gives the entries of chunks, with what they must hold.
fn compare<'m>(toc: &Value, members: &'m [Member], chunk: usize) -> Vec<(Value, &'m [u8])> {
    assert_eq!(toc["version"], 1);
    let mut entries = toc["entries"].as_array().unwrap().iter().peekable();
    let mut chunks = Vec::new();
    for member in members {
        let entry = entries.next().unwrap();
        assert_eq!(
            (entry["name"].as_str(), entry["type"].as_str()),
            (Some(&*member.name), Some(member.kind))
        );
        let link = entry.get("linkName").map(|link| link.as_str().unwrap().to_owned());
        assert_eq!((link, number(entry, "mode")), (member.link.clone(), member.mode), "{}", member.name);
        assert_eq!(number(entry, "size"), member.content.len() as u64, "{}", member.name);
        if member.content.is_empty() {
            assert!(entry.get("digest").is_none() && entry.get("offset").is_none(), "{entry}");
            continue;
        }
        assert_eq!(entry["digest"], Digest::of(&member.content).to_string(), "{}", member.name);
        for (nth, part) in member.content.chunks(chunk).enumerate() {
            let entry = if nth == 0 { entry } else { entries.next().unwrap() };
            assert_eq!(entry["type"], if nth == 0 { "reg" } else { "chunk" });
            assert_eq!(
                (entry["name"].as_str(), number(entry, "chunkOffset")),
                (Some(&*member.name), (nth * chunk) as u64)
            );
            if member.content.len() > chunk {
                assert_eq!(number(entry, "chunkSize"), part.len() as u64);
                assert_eq!(entry["chunkDigest"], Digest::of(part).to_string());
            } else {
                assert!(entry.get("chunkSize").is_none());
            }
            chunks.push((entry.clone(), part));
        }
    }
    assert!(entries.next().is_none());
    chunks
}

#[test]
fn estargz_is_its_toc_and_its_archive() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    for prefix in ["", "addon"] {
        let layer = built(temp.path(), prefix, 1_700_000_000, LayerFormat::Estargz, &[]);
        let blob = fs::read(layer.file.path()).unwrap();
        let mut archive = Vec::new();
        MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut archive).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&archive));
        assert_eq!(annotation(&layer, "io.containers.estargz.uncompressed-size"), archive.len().to_string());
        let json = estargz_toc(&blob);
        assert_eq!(
            annotation(&layer, "containerd.io/snapshot/stargz/toc.digest"),
            Digest::of(&json).to_string()
        );

        let mut members = members(&archive);
        assert_eq!(members.pop().unwrap().name, "stargz.index.json");
        let landmark = members.iter().find(|member| member.name == ".no.prefetch.landmark").unwrap();
        assert_eq!(landmark.content, [0x0f]);
        let toc: Value = serde_json::from_slice(&json).unwrap();
        assert!(
            toc["entries"]
                .as_array()
                .unwrap()
                .iter()
                .all(|e| e["type"] == "chunk" || e["modtime"] == "2023-11-14T22:13:20Z")
        );
        let chunks = compare(&toc, &members, 4 * MIB);
        assert_eq!(chunks.len(), 9); // big 3, holes 2, exact, small, the long name, the landmark
        for (entry, part) in chunks {
            assert_eq!(entry["chunkDigest"], Digest::of(part).to_string());
            let mut member = GzDecoder::new(&blob[number(&entry, "offset") as usize..]);
            let mut content = vec![0; part.len()];
            member.read_exact(&mut content).unwrap();
            assert!(content == part, "{entry}");
        }
    }
}

#[test]
fn zstd_chunked_is_its_toc_and_its_archive() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    let layer = built(temp.path(), "addon", 0, LayerFormat::ZstdChunked, &[]);
    let blob = fs::read(layer.file.path()).unwrap();
    let archive = zstd::stream::decode_all(Cursor::new(&blob)).unwrap();
    assert_eq!(layer.diff_id, Digest::of(&archive));
    let toc: Value = serde_json::from_slice(&zstd_toc(&layer, &blob)).unwrap();
    let members = members(&archive);
    let chunks = compare(&toc, &members, MIB);
    for (nth, (entry, part)) in chunks.iter().enumerate() {
        // a chunk ends where the file's next one begins, the last one where the file ends
        let next = chunks.get(nth + 1).filter(|(next, _)| next["type"] == "chunk");
        let file = chunks[..=nth].iter().rev().find(|(entry, _)| entry["type"] == "reg").unwrap();
        let end = next.map_or_else(|| number(&file.0, "endOffset"), |(next, _)| number(next, "offset"));
        let frames = &blob[number(entry, "offset") as usize..end as usize];
        assert!(zstd::bulk::decompress(frames, part.len()).unwrap() == *part, "{entry}");
    }

    // the tar-split and the files are the archive again
    let split = position(&layer, "io.github.containers.zstd-chunked.tarsplit-position");
    let compressed = &blob[split[0]..split[0] + split[1]];
    assert_eq!(toc["tarSplitDigest"], Digest::of(compressed).to_string());
    let lines = zstd::stream::decode_all(compressed).unwrap();
    assert_eq!(lines.len(), split[2]);
    let contents: HashMap<_, _> = members.iter().map(|m| (m.name.as_str(), m.content.as_slice())).collect();
    let mut again = Vec::new();
    let mut names = Vec::new();
    for (nth, line) in serde_json::Deserializer::from_slice(&lines).into_iter::<Value>().enumerate() {
        let line = line.unwrap();
        assert_eq!(number(&line, "position"), nth as u64);
        if line["type"] == 2 {
            again.extend(STANDARD.decode(line["payload"].as_str().unwrap()).unwrap());
            continue;
        }
        let name = line["name"].as_str().unwrap();
        names.push(name.to_owned());
        let content = contents[name];
        assert_eq!(number(&line, "size"), content.len() as u64);
        if name == "addon/sub/deep/same" {
            // as Go's hash/crc64 has it
            assert_eq!(
                STANDARD.decode(line["payload"].as_str().unwrap()).unwrap(),
                CRC64_OF_SMALL.to_be_bytes()
            );
        }
        again.extend(content);
    }
    assert_eq!(names, members.iter().map(|m| m.name.clone()).collect::<Vec<_>>());
    assert_eq!(Digest::of(&again), layer.diff_id);
}

/// `crc64.Checksum([]byte("small"), crc64.MakeTable(crc64.ISO))`
const CRC64_OF_SMALL: u64 = 0x3eee_e41f_4c40_0000;

#[test]
fn files_asked_for_come_first_with_all_that_leads_to_them() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    sample(dir);
    symlink("sub/deep", dir.join("by")).unwrap();
    symlink("/exact", dir.join("sub/to-exact")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    let first = ["/by/same", "sub/to-exact", "empty", "./sub//small"];
    let layer = built(dir, "", 0, LayerFormat::Estargz, &first);
    let blob = fs::read(layer.file.path()).unwrap();
    let mut archive = Vec::new();
    MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut archive).unwrap();
    let members = members(&archive);
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let expected = [
        "by",
        "sub/",
        "sub/deep/",
        "sub/deep/same",
        "sub/to-exact",
        "exact",
        "empty",
        "sub/small",
        ".prefetch.landmark",
        "big",
    ];
    assert_eq!(&names[..10], expected);
    assert_eq!((names.len(), names.last()), (16, Some(&"stargz.index.json")));
    let toc: Value = serde_json::from_slice(&estargz_toc(&blob)).unwrap();
    compare(&toc, &members[..15], 4 * MIB);
    let entries = toc["entries"].as_array().unwrap();
    let landmark = entries.iter().find(|entry| entry["name"] == ".prefetch.landmark").unwrap();
    assert_eq!(annotation(&layer, "dev.addonfs.prefetch-end"), landmark["offset"].to_string());
    let chunked = built(dir, "", 0, LayerFormat::ZstdChunked, &first);
    let end: usize = annotation(&chunked, "dev.addonfs.prefetch-end").parse().unwrap();
    let before = zstd::decode_all(&fs::read(chunked.file.path()).unwrap()[..end]).unwrap();
    assert!(
        before.windows(9).any(|name| name == b"sub/small") && !before.windows(4).any(|name| name == b"big\0")
    );
    let plain = built(dir, "", 0, LayerFormat::ZstdChunked, &[]);
    assert!(plain.descriptor.annotations.iter().all(|(name, _)| name != "dev.addonfs.prefetch-end"));

    let tree = Tree::walk(dir, "", &[], Times::All(0)).unwrap();
    let (trees, paths) = ([tree], ["gone".into(), "big/x".into(), "loop".into(), "/".into()]);
    let missing = first::missing(&trees, &paths);
    assert_eq!(missing.len(), 4, "{missing:?}");

    let list = dir.join("list");
    fs::write(&list, "/a\r\n\nb c\n").unwrap();
    assert_eq!(first::read_list(&list).unwrap(), [Path::new("/a"), Path::new("b c")]);
}

/// What the entrypoints start comes first: the script, its interpreter, the loader and the libraries of that.
#[test]
fn programs_come_with_what_they_need() {
    let temp = tempfile::tempdir().unwrap();
    let (rootfs, addon) = (temp.path().join("rootfs"), temp.path().join("addon"));
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::create_dir_all(rootfs.join("lib64")).unwrap();
    fs::create_dir_all(rootfs.join("etc")).unwrap();
    fs::create_dir_all(&addon).unwrap();
    let program = fs::canonicalize("/bin/sh").unwrap();
    fs::copy(&program, rootfs.join("bin/dash")).unwrap();
    symlink("dash", rootfs.join("bin/sh")).unwrap();
    let listed = std::process::Command::new("ldd").arg(&program).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let files: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    assert!(files.len() > 1, "{listed}");
    for file in &files {
        fs::copy(file, rootfs.join("lib64").join(Path::new(file).file_name().unwrap())).unwrap();
    }
    fs::write(rootfs.join("etc/other"), "other").unwrap();
    fs::write(addon.join("start"), "#!/bin/sh\n").unwrap();
    let trees = [
        Tree::walk(&rootfs, "", &[], Times::All(0)).unwrap(),
        Tree::walk(&addon, "addon", &[], Times::All(0)).unwrap(),
    ];
    let commands = [vec!["/addon/start".to_owned()]];
    let around = Surroundings { path: "/bin", python_path: None, workdir: "/" };
    let found = programs::of(&commands, &trees, around);
    assert!(found.together.is_empty());
    let names: Vec<_> = found.ahead.iter().map(|path| path.display().to_string()).collect();
    assert_eq!(names[..5], ["etc/passwd", "etc/group", "etc/ld.so.cache", "addon/start", "bin/dash"]);
    let mut libraries: Vec<_> = names[5..].to_vec();
    let mut expected: Vec<_> =
        files.iter().map(|file| format!("lib64/{}", file.rsplit('/').next().unwrap())).collect();
    libraries.sort();
    expected.sort();
    assert_eq!(libraries, expected);
}

/// A link of the add-on's may lead to a file of the rootfs; of two files under one name the upper one is read.
#[test]
fn files_asked_for_are_found_across_layers() {
    let temp = tempfile::tempdir().unwrap();
    let (rootfs, addon) = (temp.path().join("rootfs"), temp.path().join("addon"));
    fs::create_dir_all(rootfs.join("addon")).unwrap();
    fs::create_dir_all(&addon).unwrap();
    fs::write(rootfs.join("addon/both"), "below").unwrap();
    fs::write(rootfs.join("tool"), "tool").unwrap();
    fs::write(addon.join("both"), "above").unwrap();
    symlink("/tool", addon.join("link")).unwrap();
    let trees = [
        Tree::walk(&rootfs, "", &[], Times::All(0)).unwrap(),
        Tree::walk(&addon, "addon", &[], Times::All(0)).unwrap(),
    ];
    let paths = ["/addon/link".into(), "/addon/both".into()];
    assert!(first::missing(&trees, &paths).is_empty());
    let orders = first::order(&trees, &paths, &[]);
    let names = |nth: usize| -> Vec<String> {
        orders[nth]
            .entries(&trees[nth])
            .take(orders[nth].first)
            .map(|e| e.path.display().to_string())
            .collect()
    };
    assert_eq!((names(0), names(1)), (vec!["tool".to_owned()], vec!["link".to_owned(), "both".to_owned()]));
}

#[test]
fn names_that_a_toc_cannot_hold() {
    use std::os::unix::ffi::OsStrExt as _;
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let tree = Tree::walk(temp.path(), "", &[], Times::All(0)).unwrap();
    let orders = first::order(std::slice::from_ref(&tree), &[], &[]);
    for format in [LayerFormat::Estargz, LayerFormat::ZstdChunked] {
        let refused = pack(&tree, &orders[0], 0, format).unwrap_err();
        assert!(format!("{refused:#}").contains("--format zstd or gzip"), "{refused:#}");
    }
    for format in [LayerFormat::Gzip, LayerFormat::Zstd, LayerFormat::Tar] {
        pack(&tree, &orders[0], 0, format).unwrap();
    }
}

/// What an image of this format leaves where it is unpacked is no file of the next image.
#[test]
fn the_formats_own_files_are_left_out() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("sub")).unwrap();
    for name in OWN_NAMES {
        fs::write(temp.path().join(name), "old").unwrap();
        fs::write(temp.path().join("sub").join(name), "kept").unwrap();
    }
    let layer = built(temp.path(), "", 0, LayerFormat::Estargz, &[]);
    let toc: Value = serde_json::from_slice(&estargz_toc(&fs::read(layer.file.path()).unwrap())).unwrap();
    assert_eq!(toc["entries"].as_array().unwrap().len(), 5);
    assert_eq!(Tree::walk(temp.path(), "addon", &OWN_NAMES, Times::All(0)).unwrap().entries.len(), 7);
}
