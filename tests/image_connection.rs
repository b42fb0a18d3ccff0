//! What the kernel does with the image connection: what it remembers, what it reads by itself, and how long it waits.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use addonfs::fetch::error::FetchError;
use addonfs::fetch::layout::Layout;
use addonfs::fetch::source::BlobSource;
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fetch::verified::VerifiedBytes;
use addonfs::fs::kernel::backing::Passthrough;
use addonfs::fs::kernel::images::ReadLimits;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use bytes::Bytes;
use common::image::noise;
use common::mount::Shown;
use futures_util::stream::BoxStream;
use nix::libc;

const LARGE: usize = 300_000;

/// An image of one layer: `small`, `large` and an executable `bin/hello`.
fn layout(shown: &Shown) -> PathBuf {
    let path = shown.dir.path().join("layout");
    let mut tar = tar::Builder::new(Vec::new());
    let hello = b"#!/bin/sh\necho hello from $0\n".to_vec();
    for (name, mode, content) in
        [("small", 0o644, noise(1, 20_000)), ("large", 0o644, noise(2, LARGE)), ("bin/hello", 0o755, hello)]
    {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    shown.handle().block_on(common::image::write(&path, "t", &[tar]));
    path
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn the_top_is_not_listed_and_remembers_nothing() {
    let shown = Shown::new();
    let layout_path = layout(&shown);
    let digest = Layout::open(&layout_path).unwrap().only_image().unwrap();
    let mount = shown.dir.path().join("mnt");
    let dir = mount.join(digest.dashed());
    for _ in 0..2 {
        assert_eq!(errno(fs::metadata(&dir)), libc::ENOENT);
    }
    shown.show(&layout_path, &shown.store());
    assert_eq!(fs::metadata(dir.join("rootfs/small")).unwrap().size(), 20_000);
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
    assert_eq!(errno(fs::metadata(mount.join(Digest::of(b"").dashed()))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(mount.join("sha256-x"))), libc::ENOENT);
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "manifest.json", "rootfs"]);
    shown.images.remove(&digest);
    assert_eq!(errno(fs::metadata(&dir)), libc::ENOENT);
}

#[test]
fn what_is_not_offered_answers_as_documented() {
    let shown = Shown::new();
    let rootfs = shown.show(&layout(&shown), &shown.store()).join("rootfs");
    assert_eq!(errno(File::create(rootfs.join("new"))), libc::EROFS);
    assert_eq!(errno(File::options().write(true).open(rootfs.join("small"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(rootfs.join("new"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(rootfs.join("small"))), libc::EROFS);
    assert_eq!(errno(fs::rename(rootfs.join("small"), rootfs.join("other"))), libc::EROFS);
    let file = File::open(rootfs.join("small")).unwrap();
    file.sync_all().unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap_err();
    assert_eq!(flags.raw_os_error(), libc::ENOTTY);
    let mut value = [0_u8; 64];
    let none = rustix::fs::getxattr(rootfs.join("small"), "user.x", &mut value).unwrap_err();
    assert_eq!(none.raw_os_error(), libc::EOPNOTSUPP);
    let fs = nix::sys::statfs::statfs(&rootfs).unwrap();
    assert_eq!((fs.blocks(), fs.files()), (0, 0));
    assert_eq!(errno(fs::read_dir(rootfs.join("small"))), libc::ENOTDIR);
}

#[test]
fn complete_files_are_read_by_the_kernel_for_several_at_once_and_below_an_overlay() {
    let shown = Shown::new();
    let store = shown.store();
    let rootfs = shown.show(&layout(&shown), &store).join("rootfs");
    let open = || File::open(rootfs.join("large")).unwrap();
    let (one, two) = (open(), open());
    assert_eq!(shown.backings.passthrough(), Passthrough::On);
    assert_eq!(shown.backings.close_idle(shown.device(), |_| false), 0, "it is open");
    for file in [&one, &two] {
        let mut bytes = vec![0; LARGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise(2, LARGE));
    }

    let dir = shown.dir.path();
    let parts = ["upper", "work", "merged"].map(|name| dir.join(name));
    parts.iter().for_each(|part| fs::create_dir(part).unwrap());
    let [upper, work, merged] = &parts;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", rootfs.display(), upper.display(), work.display());
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(merged).status();
    assert!(mounted.unwrap().success());
    let over = Overlay(merged.clone());
    assert!(fs::read(merged.join("large")).unwrap() == noise(2, LARGE));
    let said = Command::new(merged.join("bin/hello")).output().unwrap();
    assert!(said.status.success() && said.stdout.starts_with(b"hello from"));
    // a copy-up asks for file attributes and xattrs, and reads the whole file
    nix::unistd::truncate(&merged.join("large"), 10).unwrap();
    assert!(fs::read(merged.join("large")).unwrap() == noise(2, LARGE)[..10]);
    drop(over);

    drop((one, two));
    let patience = Instant::now() + Duration::from_secs(5);
    while shown.backings.close_idle(shown.device(), |_| false) == 0 {
        assert!(Instant::now() < patience, "releases never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut bytes = vec![0; LARGE];
    open().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(2, LARGE), "opened again under a new id");
}

struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A layout that gives no byte of a layer while it is shut.
#[derive(Debug)]
struct Gate {
    layout: Arc<Layout>,
    open: tokio::sync::watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl BlobSource for Gate {
    async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        self.layout.manifest(digest).await
    }

    async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
        self.layout.resolve(tag).await
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
        self.layout.blob(blob, limit).await
    }

    async fn stream(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        let _ = self.open.clone().wait_for(|open| *open).await;
        self.layout.stream(blob, from).await
    }

    async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        let _ = self.open.clone().wait_for(|open| *open).await;
        self.layout.range(blob, range).await
    }
}

/// The image, its index known and none of its content here; and the gate.
fn without_content(shown: &Shown) -> (PathBuf, tokio::sync::watch::Sender<bool>) {
    let layout_path = layout(shown);
    let store_path = shown.dir.path().join("store");
    let tree = shown.dir.path().join("tree");
    drop(shown.handle().block_on(common::mount::open(&layout_path, &shown.store(), &tree)));
    for part in ["files", "packs", "chunks"] {
        fs::remove_dir_all(store_path.join(part)).unwrap();
    }
    let (gate, open) = tokio::sync::watch::channel(false);
    let layout = Layout::open(&layout_path).unwrap();
    let digest = layout.only_image().unwrap();
    let source = Arc::new(Gate { layout, open });
    let store = reopened(&store_path);
    let (digest, image) = shown.handle().block_on(common::mount::open_from(source, &digest, &store, &tree));
    shown.images.insert(digest, image).unwrap();
    (shown.dir.path().join("mnt").join(digest.dashed()), gate)
}

/// Background work of the store may hold it a moment longer.
fn reopened(path: &Path) -> Arc<Store> {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(path, StoreOptions::default()) {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < patience, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_read_waits_until_its_deadline_and_other_files_do_not_wait_at_all() {
    let deadline = Duration::from_millis(300);
    let shown = Shown::with_limits(ReadLimits { deadline, ..ReadLimits::default() });
    let (dir, gate) = without_content(&shown);
    let begun = Instant::now();
    assert_eq!(errno(fs::read(dir.join("rootfs/small"))), libc::ETIMEDOUT);
    assert!(begun.elapsed() >= deadline);

    // as many as the kernel keeps in the background wait, and what is here is answered meanwhile
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| assert_eq!(errno(fs::read(dir.join("rootfs/large"))), libc::ETIMEDOUT));
        }
        for _ in 0..50 {
            assert!(!fs::read(dir.join("config.json")).unwrap().is_empty());
            assert_eq!(fs::read_dir(dir.join("rootfs")).unwrap().count(), 3);
        }
    });
    gate.send(true).unwrap();
    assert!(fs::read(dir.join("rootfs/small")).unwrap() == noise(1, 20_000));
    assert!(fs::read(dir.join("rootfs/large")).unwrap() == noise(2, LARGE));
}

#[test]
fn a_file_that_becomes_complete_while_it_is_open_stays_readable_and_then_changes_sides() {
    let shown = Shown::new();
    let (dir, gate) = without_content(&shown);
    gate.send(true).unwrap();
    let open = || File::open(dir.join("rootfs/large")).unwrap();
    let good = |file: &File| {
        let mut bytes = vec![0; LARGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise(2, LARGE));
    };
    let held = open();
    assert_eq!(shown.backings.passthrough(), Passthrough::Untried, "there was nothing to pass through");
    good(&held);
    // reading it whole makes it a file of the store, some time later
    for _ in 0..20 {
        good(&open());
        std::thread::sleep(Duration::from_millis(10));
    }
    good(&held);
    assert_eq!(shown.backings.passthrough(), Passthrough::Untried, "it was held open all the time");
    drop(held);
    let patience = Instant::now() + Duration::from_secs(10);
    while shown.backings.passthrough() != Passthrough::On {
        assert!(Instant::now() < patience, "{}", shown.backings.passthrough());
        good(&open());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (one, two) = (open(), open());
    good(&one);
    good(&two);
}
