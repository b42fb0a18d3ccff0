//! The mounted tree, entry by entry, against `umoci unpack` of the same image.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use addonfs::policy::image::ImageConfig;
use common::mount::Shown;

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    rdev: u64,
    mtime: Option<(i64, i64)>,
    /// Of all but directories.
    size: u64,
    /// Of files their content, of symlinks their target.
    content: Vec<u8>,
    /// The first path of the same inode.
    same_as: PathBuf,
}

fn walk(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap_or_else(|error| panic!("{full:?}: {error}"));
        let kind = meta.file_type();
        let content = if kind.is_file() {
            fs::read(&full).unwrap_or_else(|error| panic!("{full:?}: {error}"))
        } else if kind.is_symlink() {
            fs::read_link(&full).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        if kind.is_dir() {
            let mut names: Vec<OsString> =
                fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort_by(|a, b| b.cmp(a));
            todo.extend(names.into_iter().map(|name| path.join(name)));
        }
        let entry = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink(),
            rdev: if kind.is_char_device() || kind.is_block_device() { meta.rdev() } else { 0 },
            mtime: Some((meta.mtime(), meta.mtime_nsec())),
            size: if kind.is_dir() { 0 } else { meta.size() },
            content,
            same_as: inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone(),
        };
        found.insert(path, entry);
    }
    found
}

fn umoci(layout: &Path, tag: &str, bundle: &Path) -> PathBuf {
    let image = format!("{}:{tag}", layout.display());
    let output =
        Command::new("umoci").args(["unpack", "--image", &image]).arg(bundle).output().expect("umoci");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle.join("rootfs")
}

/// Directories that no layer names have no mtime to compare; and making one, umoci changes the directory it is in.
fn forget_implied(
    image: &Path,
    ours: &mut BTreeMap<PathBuf, Entry>,
    theirs: &mut BTreeMap<PathBuf, Entry>,
) -> usize {
    let config = fs::read(image.join("config.json")).unwrap();
    let created = ImageConfig::parse(&config).unwrap().created.unwrap();
    let implied: Vec<PathBuf> = ours
        .iter()
        .filter(|(_, entry)| entry.mtime == Some((created, 0)))
        .map(|(path, _)| path.clone())
        .collect();
    for path in &implied {
        for path in [Some(path.as_path()), path.parent()].into_iter().flatten() {
            for side in [&mut *ours, &mut *theirs] {
                if let Some(entry) = side.get_mut(path) {
                    entry.mtime = None;
                }
            }
        }
    }
    implied.len()
}

fn compare(ours: &BTreeMap<PathBuf, Entry>, theirs: &BTreeMap<PathBuf, Entry>) {
    let names = |side: &BTreeMap<PathBuf, Entry>| side.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
    let mut wrong = Vec::new();
    for (path, entry) in ours {
        if theirs[path] != *entry {
            let short = |entry: &Entry| {
                let end = entry.content.len().min(40);
                format!(
                    "{:o} {}:{} nlink {} rdev {} mtime {:?} size {} same as {:?}, begins {:?}",
                    entry.mode,
                    entry.uid,
                    entry.gid,
                    entry.nlink,
                    entry.rdev,
                    entry.mtime,
                    entry.size,
                    entry.same_as,
                    String::from_utf8_lossy(&entry.content[..end])
                )
            };
            wrong.push(format!("{path:?}\n  ours   {}\n  theirs {}", short(entry), short(&theirs[path])));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_trap_image_is_what_umoci_unpacks() {
    let shown = Shown::new();
    let layout = shown.dir.path().join("layout");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/trap_image.py");
    let made = Command::new("python3").arg(script).arg(&layout).status().expect("python3");
    assert!(made.success());
    let rootfs = umoci(&layout, "trap", &shown.dir.path().join("bundle"));

    let image = shown.show(&layout, &shown.store());
    let (mut ours, mut theirs) = (walk(&image.join("rootfs")), walk(&rootfs));
    assert!(forget_implied(&image, &mut ours, &mut theirs) >= 10);
    compare(&ours, &theirs);
    // what the comparison rests on is really in there
    assert!(ours.len() > 70, "{}", ours.len());
    assert!(ours.keys().any(|path| path.as_os_str().as_bytes().contains(&0xff)));
    let hard = ours.values().filter(|entry| entry.nlink > 1 && entry.mode & 0o170_000 == 0o100_000).count();
    assert!(hard >= 2, "{hard}");

    // a second look, from the kernel's memory, and the documents beside it
    let mut again = walk(&image.join("rootfs"));
    let mut theirs = walk(&rootfs);
    forget_implied(&image, &mut again, &mut theirs);
    compare(&again, &theirs);
    assert!(fs::read_to_string(image.join("manifest.json")).unwrap().contains("layers"));
    assert!(fs::read_to_string(image.join("config.json")).unwrap().contains("2009-02-13"));
}

#[test]
fn a_large_ordinary_image_is_what_umoci_unpacks_in_every_compression() {
    let shown = Shown::new();
    let dir = shown.dir.path();
    let layout = dir.join("layout");
    let run = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).current_dir(dir).output().expect(program);
        assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("umoci", &["init", "--layout", "layout"]);
    run("umoci", &["new", "--image", "layout:big"]);
    // what every Debian has, in two layers; the second changes the first
    run("tar", &["-C", "/", "-cf", "one.tar", "etc", "usr/share/perl", "usr/bin/git", "usr/lib/git-core"]);
    run("tar", &["-C", "/", "-cf", "two.tar", "usr/share/zoneinfo", "etc/passwd", "usr/sbin"]);
    run("umoci", &["raw", "add-layer", "--image", "layout:big", "one.tar"]);
    run("umoci", &["raw", "add-layer", "--image", "layout:big", "two.tar"]);
    run("umoci", &["gc", "--layout", "layout"]);
    let rootfs = umoci(&layout, "big", &dir.join("bundle"));

    let store = shown.store();
    for format in ["gzip", "zstd", "zstd:chunked"] {
        println!("{format}");
        let layout = dir.join(format!("layout-{}", format.replace(':', "-")));
        let to = format!("oci:{}:big", layout.display());
        run(
            "skopeo",
            &["copy", "-q", "--dest-compress", "--dest-compress-format", format, "oci:layout:big", &to],
        );
        let image = shown.show(&layout, &store);
        let (mut ours, mut theirs) = (walk(&image.join("rootfs")), walk(&rootfs));
        assert!(forget_implied(&image, &mut ours, &mut theirs) >= 2);
        assert!(ours.len() > 2000, "{}", ours.len());
        compare(&ours, &theirs);
    }
}
