//! Random layers, merged by the product and by a model small enough to be believed.
//!
//! The model keeps a map from path to thing and nothing else: no tree, no edges, no numbering. It says what the image
//! specification and `umoci unpack` say, one path at a time.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use addonfs::fetch::index::LayerIndex;
use addonfs::fetch::index::build::index_tar;
use addonfs::fs::image::ImageTree;
use addonfs::fs::image::file::NodeBody;
use proptest::prelude::*;

const CREATED: i64 = 77;

#[derive(Debug, Clone)]
enum Op {
    Dir(Path),
    File(Path),
    Symlink(Path, String),
    Hardlink(Path, Path),
    Whiteout(Path),
    Opaque(Path),
}

/// Components below the root.
type Path = Vec<String>;

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Dir,
    File,
    Symlink(String),
}

#[derive(Debug, Clone)]
struct Thing {
    kind: Kind,
    /// The number of the entry that made it, or gave it its attributes; names of one thing share it.
    mtime: i64,
    identity: usize,
}

#[derive(Default)]
struct Model {
    things: BTreeMap<Path, Thing>,
    made: usize,
}

struct Invalid;

impl Model {
    fn apply(&mut self, layer: &[(i64, Op)]) -> Result<(), Invalid> {
        let mut touched: BTreeSet<Path> = BTreeSet::new();
        for (mtime, op) in layer {
            match op {
                Op::Opaque(dir) => {
                    let dir = self.real(dir)?;
                    self.things
                        .retain(|path, _| path == &dir || !below(path, &dir) || touched.contains(path));
                }
                Op::Whiteout(path) => {
                    let path = self.place(path)?;
                    self.things.retain(|other, _| !below(other, &path) || touched.contains(other));
                }
                Op::Dir(path) => self.put(&mut touched, path, *mtime, Some(Kind::Dir), None)?,
                Op::File(path) => self.put(&mut touched, path, *mtime, Some(Kind::File), None)?,
                Op::Symlink(path, to) => {
                    self.put(&mut touched, path, *mtime, Some(Kind::Symlink(to.clone())), None)?;
                }
                Op::Hardlink(path, to) => self.put(&mut touched, path, *mtime, None, Some(to))?,
            }
        }
        Ok(())
    }

    fn put(
        &mut self,
        touched: &mut BTreeSet<Path>,
        path: &Path,
        mtime: i64,
        kind: Option<Kind>,
        link: Option<&Path>,
    ) -> Result<(), Invalid> {
        let path = self.place(path)?;
        for length in 1..path.len() {
            let parent = path[..length].to_vec();
            let identity = self.next();
            let made = || Thing { kind: Kind::Dir, mtime: CREATED, identity };
            if self.things.entry(parent).or_insert_with(made).kind != Kind::Dir {
                return Err(Invalid);
            }
        }
        let was_dir = self.things.get(&path).is_some_and(|old| old.kind == Kind::Dir);
        if was_dir && kind == Some(Kind::Dir) {
            self.things.get_mut(&path).unwrap().mtime = mtime;
        } else {
            self.things.retain(|other, _| !below(other, &path));
            let identity = self.next();
            let thing = match (kind, link) {
                (Some(kind), _) => Thing { kind, mtime, identity },
                (None, Some(to)) => {
                    let to = self.place(to)?;
                    self.things.get(&to).filter(|thing| thing.kind != Kind::Dir).cloned().ok_or(Invalid)?
                }
                (None, None) => unreachable!(),
            };
            self.things.insert(path.clone(), thing);
        }
        touched.extend((1..=path.len()).map(|length| path[..length].to_vec()));
        Ok(())
    }

    fn next(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    /// The path with its directory's symlinks followed, but not its own.
    fn place(&self, path: &Path) -> Result<Path, Invalid> {
        let (name, dir) = path.split_last().unwrap();
        let mut real = self.real(dir)?;
        real.push(name.clone());
        Ok(real)
    }

    fn real(&self, path: &[String]) -> Result<Path, Invalid> {
        let mut done = Path::new();
        let mut todo: Path = path.iter().rev().cloned().collect();
        for _ in 0..10_000 {
            let Some(next) = todo.pop() else { return Ok(done) };
            match next.as_str() {
                "" => done.clear(),
                ".." => drop(done.pop()),
                _ => {
                    done.push(next);
                    if let Some(Thing { kind: Kind::Symlink(to), .. }) = self.things.get(&done) {
                        done.pop();
                        todo.extend(to.split('/').rev().map(str::to_owned));
                    }
                }
            }
        }
        Err(Invalid)
    }

    /// Path to what it is, its mtime, and the first name of the same thing.
    fn listing(&self) -> BTreeMap<String, (Kind, i64, String)> {
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        for (path, thing) in &self.things {
            first.entry(thing.identity).or_insert_with(|| path.join("/"));
        }
        let line = |thing: &Thing| (thing.kind.clone(), thing.mtime, first[&thing.identity].clone());
        self.things.iter().map(|(path, thing)| (path.join("/"), line(thing))).collect()
    }
}

fn below(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}

fn listing(tree: &ImageTree) -> BTreeMap<String, (Kind, i64, String)> {
    let mut paths: BTreeMap<Path, u32> = BTreeMap::new();
    let mut todo = vec![(Path::new(), 0)];
    while let Some((path, number)) = todo.pop() {
        let node = tree.node(number).unwrap();
        let mut at = 0;
        while let Some((name, child)) = tree.entry(&node, at) {
            let mut path = path.clone();
            path.push(String::from_utf8(name.to_vec()).unwrap());
            paths.insert(path.clone(), child);
            todo.push((path, child));
            at += 1;
        }
    }
    let mut first: BTreeMap<u32, String> = BTreeMap::new();
    for (path, number) in &paths {
        first.entry(*number).or_insert_with(|| path.join("/"));
    }
    let line = |number: &u32| {
        let node = tree.node(*number).unwrap();
        let kind = match node.body {
            NodeBody::Dir { .. } => Kind::Dir,
            NodeBody::Symlink { .. } => {
                Kind::Symlink(String::from_utf8(tree.target(&node).unwrap().to_vec()).unwrap())
            }
            _ => Kind::File,
        };
        (kind, node.mtime_sec, first[number].clone())
    };
    paths.iter().map(|(path, number)| (path.join("/"), line(number))).collect()
}

fn tar(layer: &[(i64, Op)]) -> LayerIndex {
    let mut tar = tar::Builder::new(Vec::new());
    for (mtime, op) in layer {
        let (path, kind, target) = match op {
            Op::Dir(path) => (path.join("/"), tar::EntryType::Directory, None),
            Op::File(path) => (path.join("/"), tar::EntryType::Regular, None),
            Op::Symlink(path, to) => (path.join("/"), tar::EntryType::Symlink, Some(to.clone())),
            Op::Hardlink(path, to) => (path.join("/"), tar::EntryType::Link, Some(to.join("/"))),
            Op::Whiteout(path) => {
                let (name, dir) = path.split_last().unwrap();
                let dir: String = dir.iter().map(|part| format!("{part}/")).collect();
                (format!("{dir}.wh.{name}"), tar::EntryType::Regular, None)
            }
            Op::Opaque(dir) => {
                let dir: String = dir.iter().map(|part| format!("{part}/")).collect();
                (format!("{dir}.wh..wh..opq"), tar::EntryType::Regular, None)
            }
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(*mtime as u64);
        header.set_size(0);
        if let Some(target) = target {
            header.set_link_name_literal(target).unwrap();
        }
        header.set_path(path).unwrap();
        header.set_cksum();
        tar.append(&header, &[][..]).unwrap();
    }
    index_tar(&tar.into_inner().unwrap()).unwrap()
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec("[abc]", 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    let target = prop_oneof![
        path().prop_map(|path| path.join("/")),
        path().prop_map(|path| format!("/{}", path.join("/"))),
        path().prop_map(|path| format!("../{}", path.join("/"))),
    ];
    prop_oneof![
        3 => path().prop_map(Op::Dir),
        5 => path().prop_map(Op::File),
        1 => (path(), target).prop_map(|(path, target)| Op::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Op::Hardlink(path, target)),
        2 => path().prop_map(Op::Whiteout),
        1 => prop::collection::vec("[abc]", 0..3).prop_map(Op::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_product_merges_as_the_model(
        layers in prop::collection::vec(prop::collection::vec(op(), 0..7), 1..4)
    ) {
        let mut number = 100;
        let mut model = Model::default();
        let mut kept = Vec::new();
        // an entry that the model refuses is left out, and must be refused by the product after what came before
        for ops in layers {
            let mut layer: Vec<(i64, Op)> = Vec::new();
            for op in ops {
                number += 1;
                layer.push((number, op));
                let mut trial = Model { things: model.things.clone(), made: model.made };
                if trial.apply(&layer).is_err() {
                    let refused: Vec<LayerIndex> =
                        kept.iter().chain([&layer]).map(|layer: &Vec<(i64, Op)>| tar(layer)).collect();
                    prop_assert!(build(&refused).is_err(), "accepted {layer:?}");
                    layer.pop();
                }
            }
            prop_assert!(model.apply(&layer).is_ok());
            kept.push(layer);
        }
        let indexes: Vec<LayerIndex> = kept.iter().map(|layer| tar(layer)).collect();
        let tree = build(&indexes);
        prop_assert!(tree.is_ok(), "{:?}", tree.err());
        prop_assert_eq!(listing(&tree.unwrap()), model.listing());
    }
}

fn build(layers: &[LayerIndex]) -> Result<ImageTree, addonfs::fs::image::TreeError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    let layers: Vec<&LayerIndex> = layers.iter().collect();
    ImageTree::build(&path, &layers, CREATED)?;
    ImageTree::open(&path, &layers)
}
