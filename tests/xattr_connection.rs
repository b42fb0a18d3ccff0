//! Images whose files have extended attributes: on a connection of their own, the same as `umoci unpack` makes them.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use addonfs::fs::kernel::backing::Passthrough;
use common::image::noise;
use common::mount::Shown;
use nix::libc;
use rustix::fs::{
    XattrFlags, lgetxattr, lgetxattr_query, listxattr, llistxattr, llistxattr_query, lsetxattr,
};

/// cap_net_raw, permitted and effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const LARGE: usize = 300_000;

/// rw- for the owner, r-- for user 65534, nothing for the owning group, r-- as mask, nothing for others.
fn acl() -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 65534), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

type Xattrs<'a> = &'a [(&'a str, &'a [u8])];

/// A layer being written.
struct LayerTar(tar::Builder<Vec<u8>>);

impl LayerTar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, path: &str, mode: u32, content: &[u8], xattrs: Xattrs<'_>) -> Self {
        let keys: Vec<(String, &[u8])> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
        self.0.append_pax_extensions(keys.iter().map(|(key, value)| (key.as_str(), *value))).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn link(mut self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Two layers: the second takes away, replaces, changes and keeps what the first brought.
fn layers() -> [Vec<u8>; 2] {
    let acl = acl();
    let first = LayerTar::new()
        .entry("bin/", 0o755, b"", &[("user.dir", b"of the first layer"), ("system.posix_acl_default", &acl)])
        .entry("bin/ping", 0o755, b"#!/bin/sh\n", &[("security.capability", CAPABILITY)])
        .link(tar::EntryType::Link, "bin/pong", "bin/ping")
        .link(tar::EntryType::Symlink, "bin/ring", "ping")
        .entry("listed", 0o640, b"for one\n", &[("system.posix_acl_access", &acl)])
        .entry(
            "many",
            0o644,
            &noise(1, LARGE),
            &[("user.b", b"\0\xff\n="), ("user.a", b"1"), ("user.c", b"3")],
        )
        .entry("replaced", 0o644, b"1", &[("user.gone", b"1")])
        .entry("whited", 0o644, b"1", &[("user.gone", b"1")])
        .entry("changed/", 0o755, b"", &[("user.gone", b"1"), ("user.stays", b"1")])
        .entry("cleared/", 0o755, b"", &[("user.gone", b"1")])
        .entry("kept/", 0o755, b"", &[("user.kept", b"1")])
        .entry(
            "foreign/",
            0o755,
            b"",
            &[
                ("trusted.overlay.opaque", b"y"),
                ("user.overlay.opaque", b"y"),
                ("security.selinux", b"label"),
                ("com.apple.provenance", b"x"),
            ],
        )
        .entry("plain", 0o644, b"plain\n", &[]);
    let second = LayerTar::new()
        .entry("replaced", 0o644, b"2", &[])
        .entry(".wh.whited", 0o644, b"", &[])
        .entry("changed/", 0o755, b"", &[("user.stays", b"2")])
        .entry("cleared/", 0o755, b"", &[])
        .entry("kept/below", 0o644, b"", &[]);
    [first.end(), second.end()]
}

fn layout(shown: &Shown) -> PathBuf {
    let path = shown.dir.path().join("layout");
    shown.handle().block_on(common::image::write(&path, "t", &layers()));
    path
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split_inclusive(|byte| *byte == 0)
        .map(|name| {
            let name = std::str::from_utf8(&name[..name.len() - 1]).unwrap();
            (name.to_owned(), xattr(path, name).unwrap())
        })
        .collect()
}

fn xattr(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    let length = lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn walk(root: &Path) -> BTreeMap<PathBuf, BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), xattrs(&path));
    }
    found
}

fn run(dir: &Path, program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).current_dir(dir).output().expect(program);
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn they_are_what_umoci_unpacks() {
    let _alone = alone();
    let shown = Shown::new();
    let dir = shown.dir.path();
    run(dir, "umoci", &["init", "--layout", "layout"]);
    run(dir, "umoci", &["new", "--image", "layout:t"]);
    for (name, layer) in ["one.tar", "two.tar"].iter().zip(layers()) {
        fs::write(dir.join(name), layer).unwrap();
        run(dir, "umoci", &["raw", "add-layer", "--image", "layout:t", name]);
    }
    run(dir, "umoci", &["gc", "--layout", "layout"]);
    run(dir, "umoci", &["unpack", "--image", "layout:t", "bundle"]);

    let ours = walk(&shown.show(&dir.join("layout"), &shown.store()).join("rootfs"));
    let mut theirs = walk(&dir.join("bundle/rootfs"));
    // what an overlay would obey is never shown; everything else that umoci leaves out so do we
    let foreign = theirs.get_mut(Path::new("foreign")).unwrap();
    foreign.remove("user.overlay.opaque");
    // below a directory with a default list umoci's files inherit it: its own doing, no layer says so
    for path in ["bin/ping", "bin/pong", "bin/ring"] {
        theirs.get_mut(Path::new(path)).unwrap().remove("system.posix_acl_access");
    }
    assert_eq!(ours, theirs);

    let names = |path: &str| ours[Path::new(path)].keys().cloned().collect::<Vec<_>>();
    assert_eq!(names("bin/ping"), ["security.capability"]);
    assert_eq!(names("bin/pong"), ["security.capability"], "a hard link");
    assert_eq!(names("bin"), ["system.posix_acl_default", "user.dir"]);
    assert_eq!(names("many"), ["user.a", "user.b", "user.c"]);
    assert_eq!(names("changed"), ["user.stays"]);
    assert_eq!(names("listed"), ["system.posix_acl_access"]);
    for none in ["replaced", "cleared", "foreign", "plain", "bin/ring", ""] {
        assert_eq!(names(none), Vec::<String>::new(), "{none}");
    }
}

#[test]
fn sizes_and_refusals_are_linux_own() {
    let _alone = alone();
    let shown = Shown::new();
    let value = noise(7, 65536);
    let names: Vec<String> = (0..250).map(|number| format!("user.{number:0>250}")).collect();
    let all: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let layer =
        LayerTar::new().entry("large", 0o644, b"", &[("user.large", &value)]).entry("many", 0o644, b"", &all);
    let path = shown.dir.path().join("layout");
    shown.handle().block_on(common::image::write(&path, "t", &[layer.end()]));
    let rootfs = shown.show(&path, &shown.store()).join("rootfs");
    let file = rootfs.join("large");
    assert_eq!(lgetxattr_query(&file, "user.large").unwrap(), 65536);
    assert_eq!(llistxattr_query(&file).unwrap(), "user.large\0".len());
    assert!(xattr(&file, "user.large").unwrap() == value, "the largest value there is");
    assert_eq!(xattrs(&rootfs.join("many")).len(), 250, "64,000 bytes of names");
    let small = lgetxattr(&file, "user.large", &mut [0_u8; 100][..]).unwrap_err();
    assert_eq!(small.raw_os_error(), libc::ERANGE);
    let small = llistxattr(&file, &mut [0_u8; 3][..]).unwrap_err();
    assert_eq!(small.raw_os_error(), libc::ERANGE);
    for none in ["user.none", "security.capability", "system.posix_acl_access"] {
        assert_eq!(xattr(&file, none).unwrap_err().raw_os_error(), libc::ENODATA, "{none}");
    }
    let set = lsetxattr(&file, "user.new", b"x", XattrFlags::empty()).unwrap_err();
    assert_eq!(set.raw_os_error(), libc::EROFS);
    let removed = rustix::fs::lremovexattr(&file, "user.large").unwrap_err();
    assert_eq!(removed.raw_os_error(), libc::EROFS);
}

/// One test at a time: the threads that serve are counted, and all tests' threads are in one process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Read calls of the threads that serve: one a request.
fn requests() -> u64 {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()) {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("fuse") {
            let io = fs::read_to_string(task.join("io")).unwrap();
            let reads = io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
            sum += reads.parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn an_image_without_any_stays_where_nobody_is_asked() {
    let _alone = alone();
    let shown = Shown::new();
    let tar = LayerTar::new()
        .entry("a", 0o644, b"a", &[])
        .entry("b", 0o644, b"b", &[("user.gone", b"1"), ("trusted.x", b"1")])
        .entry("c", 0o644, b"c", &[("user.overlay.opaque", b"y")]);
    let above = LayerTar::new().entry("b", 0o644, b"b", &[]);
    let path = shown.dir.path().join("layout");
    shown.handle().block_on(common::image::write(&path, "t", &[tar.end(), above.end()]));
    let store = shown.store();
    let digest_dir = shown.show(&path, &store);
    assert!(fs::symlink_metadata(&digest_dir).unwrap().is_dir());
    let other = shown.dir.path().join("xattr-mnt").join(digest_dir.file_name().unwrap());
    assert_eq!(fs::symlink_metadata(other).unwrap_err().kind(), std::io::ErrorKind::NotFound);

    // through a descriptor: the digest's own name is asked for every time
    let dir = fs::File::open(digest_dir.join("rootfs")).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let ask = |names: &[&str]| {
        for name in names {
            let path = root.join(name);
            let none = [
                xattr(&path, "user.gone").unwrap_err(),
                xattr(&path, "security.capability").unwrap_err(),
                llistxattr(&path, &mut [0_u8; 100][..]).err().unwrap_or(rustix::io::Errno::OPNOTSUPP),
            ];
            assert!(none.iter().all(|error| error.raw_os_error() == libc::EOPNOTSUPP), "{none:?}");
        }
    };
    ask(&["a"]);
    fs::read_dir(&root).unwrap().for_each(drop);
    let before = requests();
    ask(&["a", "b", "c"]);
    assert_eq!(requests(), before, "one answer was enough for all");

    // and on the other connection they are asked for
    let second = shown.dir.path().join("with");
    shown.handle().block_on(common::image::write(&second, "t", &layers()));
    let rootfs = shown.show(&second, &store).join("rootfs");
    let before = requests();
    assert_eq!(xattrs(&rootfs.join("many")).len(), 3);
    assert!(requests() > before);
}

#[test]
fn the_digest_is_the_same_name_on_the_usual_side() {
    let _alone = alone();
    let shown = Shown::new();
    let digest_dir = shown.show(&layout(&shown), &shown.store());
    let target = fs::read_link(&digest_dir).unwrap();
    let name = digest_dir.file_name().unwrap();
    assert_eq!(target, Path::new("../xattr-mnt").join(name));
    let link = fs::symlink_metadata(&digest_dir).unwrap();
    assert_eq!(link.size(), target.as_os_str().len() as u64);
    assert_eq!(fs::read(digest_dir.join("rootfs/many")).unwrap(), noise(1, LARGE));
    assert_eq!(shown.xattr_backings().passthrough(), Passthrough::On);
    let real = digest_dir.canonicalize().unwrap();
    assert_eq!(real.parent().unwrap(), shown.dir.path().canonicalize().unwrap().join("xattr-mnt"));
    let digest = addonfs::policy::digest::Digest::from_dashed(std::str::from_utf8(name.as_bytes()).unwrap());
    shown.images.remove(&digest.unwrap());
    assert_eq!(fs::symlink_metadata(&digest_dir).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(fs::symlink_metadata(&real).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

/// `cat` as user 65534 of group `group`.
fn may_read(path: &Path, group: u32) -> bool {
    let ids = ["--reuid", "65534", "--clear-groups", "--regid", &group.to_string()].map(str::to_owned);
    let mut command = Command::new("setpriv");
    command.args(ids).arg("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn access_control_lists_are_enforced() {
    let _alone = alone();
    let shown = Shown::new();
    fs::set_permissions(shown.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut other = acl();
    // the named user is another one
    other[16..20].copy_from_slice(&1000_u32.to_le_bytes());
    let layer = LayerTar::new()
        .entry("mine", 0o640, b"for one\n", &[("system.posix_acl_access", &acl())])
        .entry("others", 0o640, b"for another\n", &[("system.posix_acl_access", &other)]);
    let path = shown.dir.path().join("layout");
    shown.handle().block_on(common::image::write(&path, "t", &[layer.end()]));
    let rootfs = shown.show(&path, &shown.store()).join("rootfs");
    assert!(may_read(&rootfs.join("mine"), 65534));
    assert!(!may_read(&rootfs.join("others"), 65534));
    // the mode says r-- for group 0, but that is the list's mask: the list gives the group nothing
    assert_eq!(fs::metadata(rootfs.join("others")).unwrap().mode() & 0o777, 0o640);
    assert!(!may_read(&rootfs.join("others"), 0));
}

struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_overlay_shows_them_and_copies_them_up() {
    let _alone = alone();
    let shown = Shown::new();
    let rootfs = shown.show(&layout(&shown), &shown.store()).join("rootfs").canonicalize().unwrap();
    let dir = shown.dir.path();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.join(name));
    [&upper, &work, &merged].iter().for_each(|part| fs::create_dir(part).unwrap());
    let options =
        format!("lowerdir={},upperdir={},workdir={}", rootfs.display(), upper.display(), work.display());
    run(dir, "mount", &["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()]);
    let over = Overlay(merged.clone());

    for path in ["bin", "bin/ping", "many", "changed", "plain"] {
        assert_eq!(xattrs(&merged.join(path)), xattrs(&rootfs.join(path)), "{path}");
    }
    // changed times: the whole file and its directory are copied up
    run(&merged, "touch", &["bin/ping", "many", "changed"]);
    for path in ["bin", "bin/ping", "many", "changed"] {
        let mut copied = xattrs(&upper.join(path));
        copied.retain(|name, _| !name.starts_with("trusted.overlay."));
        assert_eq!(copied, xattrs(&rootfs.join(path)), "{path}");
        assert_eq!(xattrs(&merged.join(path)), copied, "{path}");
    }
    assert_eq!(fs::read(merged.join("many")).unwrap(), noise(1, LARGE));
    // a layer's "opaque" hides nothing: it never got here
    assert!(listxattr(merged.join("foreign"), &mut [0_u8; 100][..]).unwrap() == 0);
    drop(over);
}

/// `sha256-<hex>.job`: on the side of its image, with numbers of its own.
#[test]
fn a_containers_root_has_neither_devices_nor_capabilities() {
    let _alone = alone();
    let shown = Shown::new();
    let store = shown.store();
    for with in [true, false] {
        let note: Xattrs<'_> = if with { &[("user.note", b"1")] } else { &[] };
        let mut tar = LayerTar::new().entry("noted", 0o644, b"1", note).entry("d/x", 0o644, b"2", &[]);
        for (name, kind) in [("d/block", tar::EntryType::Block), ("null", tar::EntryType::Char)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o666);
            header.set_size(0);
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            tar.0.append_data(&mut header, name, &[][..]).unwrap();
        }
        if with {
            tar = tar.entry("ping", 0o755, b"", &[("user.note", b"2"), ("security.capability", CAPABILITY)]);
        }
        let layout = shown.dir.path().join(format!("layout-{with}"));
        shown.handle().block_on(common::image::write(&layout, "t", &[tar.end()]));
        let digest_dir = shown.show(&layout, &store);
        let job = PathBuf::from(format!("{}.job", digest_dir.display())).join("rootfs");
        let (all, own) = (walk_plain(&digest_dir.join("rootfs")), walk_plain(&job));
        let mut expected: Vec<&str> = all.keys().map(String::as_str).collect();
        expected.retain(|path| !["d/block", "null"].contains(path));
        assert_eq!(own.keys().collect::<Vec<_>>(), expected);
        assert!(expected.len() + 2 == all.len() && own.values().all(|ino| !all.values().any(|i| i == ino)));
        for device in ["d/block", "null"] {
            let none = fs::symlink_metadata(job.join(device)).unwrap_err();
            assert_eq!(none.kind(), std::io::ErrorKind::NotFound);
        }
        assert_eq!(fs::read(job.join("d/x")).unwrap(), b"2");
        if with {
            assert_eq!(xattrs(&digest_dir.join("rootfs/ping")).len(), 2);
            assert_eq!(xattrs(&job.join("ping")).into_keys().collect::<Vec<_>>(), ["user.note"]);
            assert_eq!(
                xattr(&job.join("ping"), "security.capability").unwrap_err(),
                rustix::io::Errno::NODATA
            );
        }
    }
}

/// Paths and inode numbers.
fn walk_plain(root: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().display().to_string(), meta.ino());
        }
    }
    found
}

#[test]
fn usual_tools_carry_them() {
    let _alone = alone();
    let shown = Shown::new();
    let rootfs = shown.show(&layout(&shown), &shown.store()).join("rootfs");
    let dir = shown.dir.path();
    let from = format!("{}/", rootfs.display());
    run(dir, "cp", &["-a", &from, "copied"]);
    run(dir, "rsync", &["-aXA", &from, "synced"]);
    let ours = walk(&rootfs);
    assert_eq!(walk(&dir.join("copied")), ours);
    assert_eq!(walk(&dir.join("synced")), ours);
    let said = Command::new("getcap").arg(rootfs.join("bin/ping")).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("cap_net_raw=ep"), "{said:?}");
}
