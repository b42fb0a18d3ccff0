//! The layer index against archives made by GNU tar, in every dialect it writes.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use addonfs::fetch::index::build::index_tar;
use addonfs::fetch::index::{EntryKind, LayerIndex};
use addonfs::policy::digest::Digest;

fn run(program: &str, directory: &Path, words: &[&str]) {
    let output = Command::new(program).args(words).current_dir(directory).output().expect(program);
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A tree with whatever the dialect in question can carry.
fn make_tree(root: &Path, long_names: bool) {
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::write(root.join("usr/bin/tool"), b"#!/bin/sh\n").unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    std::fs::write(root.join("block"), [7; 512]).unwrap();
    std::fs::write(root.join("large"), (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
        .unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"bytes-\xff\xfe")), b"not utf-8").unwrap();
    std::os::unix::fs::symlink("../../usr/bin/tool", root.join("link")).unwrap();
    run("sh", root, &["-c", "ln usr/bin/tool hard; mkfifo pipe; mknod null c 1 3; mknod disk b 8 17"]);
    run(
        "sh",
        root,
        &["-c", "chmod 4755 usr/bin/tool; chmod 1777 usr; chown 12345:54321 block; touch -d @-5 empty"],
    );
    run("sh", root, &["-c", "touch -h -d '2001-02-03 04:05:06.789' link large"]);
    if long_names {
        let long = "n".repeat(200);
        let deep = format!("{long}/{long}/{long}");
        std::fs::create_dir_all(root.join(&deep)).unwrap();
        std::fs::write(root.join(&deep).join("file"), b"deep").unwrap();
        std::os::unix::fs::symlink(&deep, root.join("long-link")).unwrap();
        run("ln", root, &[&format!("{deep}/file"), "long-hard"]);
    }
}

/// A file of 8 MiB with three bytes of content, and one with more regions than a header holds.
fn make_sparse(root: &Path) {
    let file = std::fs::File::create(root.join("sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"abc", 5 << 20).unwrap();
    let file = std::fs::File::create(root.join("comb")).unwrap();
    for tooth in 0..60 {
        file.write_all_at(&[tooth + 1; 100], u64::from(tooth) * 65_536).unwrap();
    }
    file.set_len(70 * 65_536).unwrap();
    std::fs::File::create(root.join("hole")).unwrap().set_len(1 << 20).unwrap();
}

/// Compares entry by entry with what lies on disk; mtimes to the second where the dialect has no more.
fn compare(index: &LayerIndex, root: &Path, nanoseconds: bool) {
    let mut paths = BTreeMap::new();
    for entry in index.entries() {
        let path = root.join(OsStr::from_bytes(entry.path));
        let seen = OsString::from_vec(entry.path.to_vec());
        let on_disk = std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert!(paths.insert(entry.path.to_vec(), ()).is_none(), "{seen:?} twice");
        if let EntryKind::Hardlink { target } = entry.kind {
            let target = std::fs::symlink_metadata(root.join(OsStr::from_bytes(target))).unwrap();
            assert_eq!(target.ino(), on_disk.ino(), "{seen:?}");
            continue;
        }
        assert_eq!((entry.uid, entry.gid), (on_disk.uid(), on_disk.gid()), "{seen:?}");
        assert_eq!(entry.mtime_sec, on_disk.mtime(), "{seen:?}");
        if nanoseconds {
            assert_eq!(i64::from(entry.mtime_nsec), on_disk.mtime_nsec(), "{seen:?}");
        }
        let kind = match entry.kind {
            EntryKind::Dir => 0o040_000,
            EntryKind::File { file, size } => {
                let content = std::fs::read(&path).unwrap();
                assert_eq!(size, content.len() as u64, "{seen:?}");
                assert_eq!(index.file_content(file), Some((Digest::of(&content), size)), "{seen:?}");
                0o100_000
            }
            EntryKind::Symlink { target } => {
                assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
                0o120_000
            }
            EntryKind::Char { major, minor } => {
                assert_eq!((major, minor), (1, 3));
                0o020_000
            }
            EntryKind::Block { major, minor } => {
                assert_eq!((major, minor), (8, 17));
                0o060_000
            }
            EntryKind::Fifo => 0o010_000,
            EntryKind::Hardlink { .. } => unreachable!(),
        };
        assert_eq!(kind | entry.mode, on_disk.mode(), "{seen:?}");
    }
    let listed = Command::new("find").arg(root).arg("-print0").output().unwrap().stdout;
    assert_eq!(paths.len(), listed.iter().filter(|&&byte| byte == 0).count(), "entries missing");
}

fn tar_of(root: &Path, options: &[&str]) -> Vec<u8> {
    let output =
        Command::new("tar").args(options).args(["-cf", "-", "."]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn reads_every_dialect_of_gnu_tar() {
    for (options, long_names, sparse, nanoseconds) in [
        (&["--format=gnu"][..], true, false, false),
        (&["--format=ustar"], false, false, false),
        (&["--format=v7", "--exclude=./pipe", "--exclude=./null", "--exclude=./disk"], false, false, false),
        (&["--format=pax"], true, false, true),
        (&["--format=gnu", "--sparse"], true, true, false),
        (&["--format=pax", "--sparse", "--sparse-version=0.0"], true, true, true),
        (&["--format=pax", "--sparse", "--sparse-version=0.1"], true, true, true),
        (&["--format=pax", "--sparse", "--sparse-version=1.0"], true, true, true),
    ] {
        let tree = tempfile::tempdir().unwrap();
        make_tree(tree.path(), long_names);
        if sparse {
            make_sparse(tree.path());
        }
        if options[0] != "--format=gnu" && options[0] != "--format=pax" {
            // Only base-256 and PAX carry times before 1970.
            run("touch", tree.path(), &["-d", "@5", "empty"]);
        }
        let tar = tar_of(tree.path(), options);
        if options[0] == "--format=v7" {
            run("rm", tree.path(), &["pipe", "null", "disk"]);
        }
        run("touch", tree.path(), &["-d", "@1000", "."]);
        let index = index_tar(&tar).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let root = index.entries().next().unwrap();
        assert!(root.path.is_empty() && root.kind == EntryKind::Dir);
        run("touch", tree.path(), &["-d", &format!("@{}.{:09}", root.mtime_sec, root.mtime_nsec), "."]);
        compare(&index, tree.path(), nanoseconds);
    }
}

#[test]
fn reads_xattrs() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("a"), b"x").unwrap();
    // Through tar's own records, because the file system below may not keep user attributes.
    let mut archive = tar::Builder::new(Vec::new());
    let value: &[u8] = b"v\0\xff=\n";
    archive
        .append_pax_extensions([
            ("SCHILY.xattr.user.k", value),
            ("SCHILY.xattr.security.capability", b"\x01"),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    archive.append_data(&mut header, "a", &b"x"[..]).unwrap();
    let index = index_tar(&archive.into_inner().unwrap()).unwrap();
    let entry = index.entries().next().unwrap();
    let xattrs: Vec<_> = entry.xattrs.iter().collect();
    assert_eq!(xattrs, [(&b"user.k"[..], value), (b"security.capability", b"\x01")]);
}

#[test]
fn a_damaged_index_is_an_error() {
    let tree = tempfile::tempdir().unwrap();
    make_tree(tree.path(), true);
    let index = index_tar(&tar_of(tree.path(), &["--format=pax"])).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let good = index.as_bytes().to_vec();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(LayerIndex::from_bytes(bad).is_err(), "bit flipped at {at}");
    }
    for len in [0, 10, 183, 184, 300, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(LayerIndex::open(&path).is_err(), "cut to {len}");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(LayerIndex::open(&path).unwrap().len(), index.len());
}
