//! A streaming tree against the merge of the same layers: whatever it shows at any moment is what the image would show
//! if the layer that arrives ended there.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::super::merge::{self, Merge};
use super::tree::ROOT;
use super::*;
use crate::fetch::index::build::index_tar;
use crate::fetch::index::{Entry, LayerIndex};

const CREATED: i64 = 1_000;

/// A layer of lines `KIND PATH[ TARGET]`: d directory, f file, l symlink, h hard link. Each has a mode of its own.
fn layer<S: AsRef<str>>(lines: &[S]) -> LayerIndex {
    let mut tar = tar::Builder::new(Vec::new());
    for (number, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.as_ref().split(' ').collect();
        let (path, target) = (words[1], words.get(2).copied().unwrap_or_default());
        let mut header = tar::Header::new_ustar();
        header.set_mode(number as u32);
        header.set_size(0);
        header.set_entry_type(match words[0] {
            "d" => tar::EntryType::Directory,
            "f" => tar::EntryType::Regular,
            "l" => tar::EntryType::Symlink,
            _ => tar::EntryType::Link,
        });
        if !target.is_empty() {
            header.set_link_name_literal(target).unwrap();
        }
        // as written, since the builder refuses `..`
        header.as_ustar_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, &[][..]).unwrap();
    }
    index_tar(&tar.into_inner().unwrap()).unwrap()
}

/// What is at each path.
type Listing = BTreeMap<String, String>;

fn streamed(tree: &Tree) -> Listing {
    let mut found = Listing::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, number)) = todo.pop() {
        let node = tree.node(number).unwrap();
        let what =
            match &node.body {
                Body::Dir(dir) => {
                    let mut at = 0;
                    while let Some(slot) = dir.at(at) {
                        todo.extend(slot.map(|(name, child)| {
                            (format!("{path}/{}", String::from_utf8_lossy(name)), child)
                        }));
                        at += 1;
                    }
                    "directory".to_owned()
                }
                Body::File { layer, file, .. } => format!("{layer}.{file}"),
                Body::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
        found.insert(path, format!("{what} {:o}", node.mode & 0o7777));
    }
    found
}

fn merged(merge: &Merge) -> Listing {
    let mut found = Listing::new();
    let mut todo = vec![(String::new(), 0)];
    while let Some((path, number)) = todo.pop() {
        let node = &merge.nodes[number];
        let what = match &node.body {
            merge::Body::Dir(children) => {
                let names = children.iter();
                todo.extend(names.map(|(name, edge)| {
                    (format!("{path}/{}", String::from_utf8_lossy(name)), edge.node as usize)
                }));
                "directory".to_owned()
            }
            merge::Body::File { layer, file, .. } => format!("{layer}.{file}"),
            merge::Body::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        found.insert(path, format!("{what} {:o}", node.attributes.mode));
    }
    found
}

/// The image, if the layer `cut` ended after `length` entries. `None`: no image.
fn image(layers: &[LayerIndex], cut: usize, length: usize) -> Option<Listing> {
    let mut merge = Merge::new(CREATED);
    for (at, layer) in layers.iter().enumerate() {
        let length = if at == cut { length } else { usize::MAX };
        merge.apply(layer.entries().take(length)).ok()?;
    }
    Some(merged(&merge))
}

/// An entry as it is shown; one whose name ends with `!` has an access control list.
fn item<'a>(entry: &Entry<'a>) -> Item<'a> {
    Item { guarded: entry.path.ends_with(b"!"), ..Item::from(entry) }
}

/// Streams all layers, as far as they can be; after each entry `look` is given the layer, how many entries of it came,
/// and the tree.
fn stream(layers: &[LayerIndex], mut look: impl FnMut(usize, usize, &Tree)) -> (Tree, bool) {
    let mut tree = Tree::new(CREATED);
    for (at, layer) in layers.iter().enumerate().rev() {
        let mut own = Own::new(at as u32);
        for (number, entry) in layer.entries().enumerate() {
            if own.add(&mut tree, &item(&entry)).is_err() {
                return (tree, false);
            }
            look(at, number + 1, &tree);
        }
        if !own.lets_lower_in() {
            return (tree, false);
        }
    }
    (tree, true)
}

fn paths(tree: &Tree) -> Vec<String> {
    streamed(tree).into_keys().filter(|path| !path.is_empty()).collect()
}

#[test]
fn what_is_shown_of_layers() {
    type Case = (&'static str, &'static [&'static [&'static str]], &'static [&'static str]);
    let cases: &[Case] = &[
        (
            "one layer, directories implied",
            &[&["f a/b/c", "l s a/b", "f s/d"]],
            &["/a", "/a/b", "/a/b/c", "/a/b/d", "/s"],
        ),
        ("an upper file wins", &[&["f a", "f b"], &["f a"]], &["/a", "/b"]),
        ("a whiteout", &[&["f a", "d d", "f d/x"], &["f .wh.a", "f .wh.d"]], &[]),
        (
            "a whiteout after what its layer brings",
            &[&["d d", "f d/x"], &["d d", "f d/y", "f .wh.d"]],
            &["/d", "/d/y"],
        ),
        ("and before", &[&["d d", "f d/x"], &["f .wh.d", "d d", "f d/y"]], &["/d", "/d/y"]),
        (
            "an opaque directory, two below",
            &[
                &["d d", "d d/e", "f d/e/x", "f d/z"],
                &["d d", "d d/e", "f d/e/y", "f d/.wh..wh..opq"],
                &["d d", "f d/t"],
            ],
            &["/d", "/d/e", "/d/e/y", "/d/t"],
        ),
        ("an upper symlink hides a directory", &[&["d d", "f d/x"], &["l d t"]], &["/d"]),
        ("an upper directory over a file", &[&["f d"], &["d d", "f d/x"]], &["/d", "/d/x"]),
        (
            "a file between two directories",
            &[&["d d", "f d/x"], &["f d"], &["d d", "f d/y"]],
            &["/d", "/d/y"],
        ),
        ("a hard link into a lower layer", &[&["f a", "f b"], &["h b a"]], &["/a"]),
        ("a hard link in its layer", &[&["f b"], &["f a", "h b a"]], &["/a", "/b"]),
        ("what a list guards", &[&["f a!", "d d!", "f d!/x", "f b"], &["f a!", "h c a!"]], &["/b"]),
        // `d` may be a symlink of the layer below
        ("an entry whose directory has none", &[&["f a"], &["f b", "f d/x"]], &["/b"]),
        ("a whiteout where its directory has none", &[&["f a"], &["f b", "f d/.wh.x"]], &["/b"]),
        ("a later entry of a path", &[&["f a", "d a", "f a/x", "f b"]], &["/a", "/a/x", "/b"]),
        (
            "a file where its layer had put a directory into an upper one",
            &[&["d d", "f d/x", "f d"], &["d d", "f d/y"]],
            &["/d", "/d/y"],
        ),
    ];
    for (what, layers, shown) in cases {
        let layers: Vec<LayerIndex> = layers.iter().map(|lines| layer(lines)).collect();
        assert_eq!(paths(&stream(&layers, |_, _, _| {}).0), *shown, "{what}");
    }
}

#[test]
fn numbers_and_places_stay() {
    let layers = [layer(&["d d", "f d/a", "f d/b", "f d/a", "f d/c"])];
    let mut seen = Vec::new();
    stream(&layers, |_, entries, tree| {
        let dir = tree.dir(tree.dir(ROOT).unwrap().child(b"d").unwrap()).unwrap();
        let names: Vec<_> =
            (0..).map_while(|at| dir.at(at)).flatten().map(|(name, node)| (name[0], node)).collect();
        let node = |name: u8| names.iter().find(|(known, _)| *known == name).map(|(_, node)| *node);
        seen.push((entries, names.iter().map(|(name, _)| *name).collect::<Vec<_>>(), node(b'a'), node(b'b')));
    });
    let (first, replaced) = (seen[1].2.unwrap(), seen[3].2.unwrap());
    assert_ne!(first, replaced, "another file has another number");
    assert_eq!(seen[2].3, seen[4].3);
    assert_eq!(seen[4].1, b"abc");
}

fn ino(found: Found) -> u64 {
    match found {
        Found::Entry(attr, Lasting::Never) if attr.lasting() == Lasting::Never => attr.ino,
        other => panic!("{other:?}"),
    }
}

/// A tree of one layer with the file `a`, shown, and the file's inode.
fn shown(streams: &Streams) -> (Arc<Stream>, Arriving, u64) {
    let arriving = Arriving::default();
    let stream = streams.prepare(Digest::of(b"image"), CREATED, vec![arriving.clone()]);
    let mut own = Own::new(0);
    let index = layer(&["f a"]);
    index.entries().for_each(|entry| own.add(&mut stream.tree_mut(), &Item::from(&entry)).unwrap());
    streams.show(&stream);
    let rootfs = ino(streams.lookup(ino(streams.top(stream.digest())), b"rootfs").unwrap());
    assert!(matches!(streams.lookup(rootfs, b"b"), Ok(Found::Nothing(Lasting::Never))));
    let file = ino(streams.lookup(rootfs, b"a").unwrap());
    (stream, arriving, file)
}

#[test]
fn a_retired_tree_goes_with_its_last_open_file() {
    let streams = Streams::new(None);
    let (stream, _, file) = shown(&streams);
    streams.open(file).unwrap();
    streams.open(file).unwrap();
    streams.retire(&stream);
    assert!(matches!(streams.top(stream.digest()), Found::Nothing(Lasting::Never)));
    streams.release(file);
    assert!(streams.read(file, 0, 1).is_ok() && streams.getattr(file).is_ok());
    streams.release(file);
    assert!(matches!(streams.read(file, 0, 1), Err(FsError::Stale)));
    assert!(matches!(streams.getattr(file), Err(FsError::Stale)));
    let (_, _, other) = shown(&streams);
    assert_ne!(other, file);
}

#[tokio::test]
async fn a_revoked_tree_says_why() {
    let streams = Streams::new(None);
    let (stream, arriving, file) = shown(&streams);
    let forgotten = Arc::new(Mutex::new(0..0));
    let told = Arc::clone(&forgotten);
    let (dir, forget) =
        (tempfile::tempdir().unwrap(), Box::new(move |inodes| *told.lock().unwrap() = inodes));
    let journal = dir.path().join("streams");
    streams.connect(forget.clone(), &journal, false).unwrap();
    assert!(forgotten.lock().unwrap().is_empty());
    Streams::new(None).connect(forget, &journal, true).unwrap();
    assert!(
        std::mem::take(&mut *forgotten.lock().unwrap()).contains(&file),
        "a successor forgets what it was told of"
    );
    streams.open(file).unwrap();
    let waiting = streams.read(file, 0, 0).unwrap();
    streams.revoke(&stream, "it was a lie");
    assert!(forgotten.lock().unwrap().contains(&file));
    for read in [waiting, streams.read(file, 0, 1).unwrap()] {
        assert!(read.await.unwrap_err().message.ends_with("taken back: it was a lie"));
    }
    assert!(matches!(arriving.ended().await, Err(error) if error.message.ends_with("a lie")));
    assert!(matches!(streams.top(stream.digest()), Found::Nothing(Lasting::Never)));
    assert!(matches!(streams.getattr(file), Err(FsError::Stale)));
    streams.release(file);
    assert!(matches!(streams.read(file, 0, 1), Err(FsError::Stale)));
}

/// Lines of a layer; most directories are entries before something is in them.
fn lines() -> impl Strategy<Value = Vec<String>> {
    let dir = prop::sample::select(vec!["", "a/", "b/", "a/b/", "a/c/", "s/"]);
    let name = prop::sample::select(vec!["a", "b", "c", "s", "x"]);
    let path = (dir, name).prop_map(|(dir, name)| format!("{dir}{name}"));
    let line = (0..12, path.clone(), path, prop::sample::select(vec!["a", "b", "/a", "a/b", "../b"]))
        .prop_map(|(kind, path, other, to)| match kind {
            0..4 => format!("f {path}"),
            4..6 => format!("d {path}"),
            6 => format!("l {path} {to}"),
            7 => format!("h {path} {other}"),
            8 | 9 => match path.rsplit_once('/') {
                Some((dir, name)) => format!("f {dir}/.wh.{name}"),
                None => format!("f .wh.{path}"),
            },
            10 => format!("f {}/.wh..wh..opq", path.rsplit_once('/').map_or("a", |(dir, _)| dir)),
            _ => "d a/b".to_owned(),
        });
    (prop::bool::weighted(0.8), prop::collection::vec(line, 0..10)).prop_map(|(named, lines)| {
        let dirs = ["d a", "d b", "d a/b", "d a/c"];
        let first = if named { &dirs[..] } else { &[] };
        first.iter().map(|line| (*line).to_owned()).chain(lines).collect()
    })
}

/// The last names of entries that lie in directories which their layer does not have, as far as can be seen from outside:
/// those may land on anything of that name, and what was shown there before is then of the past.
fn may_land_on(layer: &LayerIndex, length: usize) -> Vec<String> {
    let mut own = Own::new(1);
    let mut tree = Tree::new(CREATED);
    let mut names = Vec::new();
    for entry in layer.entries().take(length) {
        let before = own.lets_lower_in();
        let _ = own.add(&mut tree, &item(&entry));
        let name =
            String::from_utf8_lossy(entry.path.rsplit(|byte| *byte == b'/').next().unwrap()).into_owned();
        if !before || !own.lets_lower_in() {
            names.push(name);
        }
    }
    names
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_shown_that_the_image_would_not_show(layers in prop::collection::vec(lines(), 1..4)) {
        let links = layers.iter().flatten().any(|line| line.starts_with('h'));
        let layers: Vec<LayerIndex> = layers.iter().map(|lines| layer(lines)).collect();
        let mut wrong = None;
        let (tree, all) = stream(&layers, |at, length, tree| {
            let Some(image) = image(&layers, at, length) else { return };
            let landed = if at == 0 { vec![] } else { may_land_on(&layers[at], length) };
            for (path, what) in streamed(tree) {
                let excused = path.split('/').any(|part| landed.iter().any(|name| name == part));
                // the root and implied directories have their attributes from whoever names them later
                if image.get(&path) != Some(&what) && !excused && !path.is_empty() {
                    wrong.get_or_insert(format!("{at}:{length}: {path}: {what}, not {:?}", image.get(&path)));
                }
            }
        });
        prop_assert_eq!(wrong, None);
        if let Some(image) = image(&layers, 0, usize::MAX).filter(|_| all && !links) {
            let shown: Vec<String> = image.into_keys().filter(|path| !path.is_empty()).collect();
            prop_assert_eq!(paths(&tree), shown);
        }
    }
}
