//! Which files come first in a layer: those that jobs read at their start, in the order in which they read them, so
//! that a start from a registry needs few and long ranges.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;

use super::tree::{Entry, Kind, Tree};

/// Symbolic links on one path: the kernel's limit (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// The order of a tree's entries.
#[derive(Debug)]
pub(super) struct Order {
    /// Indexes into the tree's entries, each once.
    order: Vec<usize>,
    /// How many of them are to be fetched before they are asked for.
    pub first: usize,
}

impl Order {
    /// The entries in their order.
    pub(super) fn entries<'t>(&'t self, tree: &'t Tree) -> impl Iterator<Item = &'t Entry> {
        self.order.iter().filter_map(|index| tree.entries.get(*index))
    }
}

/// Reads a list of paths, one a line. `/usr/bin/env` and `usr/bin/env` are the same.
pub(super) fn read_list(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    Ok(lines.filter(|line| !line.is_empty()).map(|line| OsString::from_vec(line.to_vec()).into()).collect())
}

/// Those of `paths` that are in none of the trees.
pub(super) fn missing<'p>(trees: &[Tree], paths: &'p [PathBuf]) -> Vec<&'p PathBuf> {
    let image = Image::new(trees);
    paths.iter().filter(|path| image.resolve(path).is_none()).collect()
}

/// Orders the trees of an image, the upper ones last in `trees`. Symbolic links on the way to a file come with it, as
/// do the folders that it lies in and the name that a hard link is one of. Paths that are in no tree are passed over.
/// What is in `first` is to be fetched ahead; what is in `then` only lies together.
pub(super) fn order<'p>(
    trees: &[Tree],
    first: impl IntoIterator<Item = &'p PathBuf>,
    then: impl IntoIterator<Item = &'p PathBuf>,
) -> Vec<Order> {
    let image = Image::new(trees);
    let mut picked: Vec<Picked<'_>> = trees.iter().map(Picked::new).collect();
    pick(&image, &mut picked, first);
    let ahead: Vec<usize> = picked.iter().map(|picked| picked.order.len()).collect();
    pick(&image, &mut picked, then);
    picked.into_iter().zip(ahead).map(|(picked, first)| picked.finish(first)).collect()
}

fn pick<'p>(image: &Image<'_>, picked: &mut [Picked<'_>], paths: impl IntoIterator<Item = &'p PathBuf>) {
    for (tree, index) in paths.into_iter().filter_map(|path| image.resolve(path)).flatten() {
        if let Some(picked) = picked.get_mut(tree) {
            picked.pick(index);
        }
    }
}

/// An entry's tree, and its index there.
pub(super) type Place = (usize, usize);

/// The trees, one over the other.
pub(super) struct Image<'t> {
    trees: &'t [Tree],
    places: HashMap<PathBuf, Place>,
}

impl<'t> Image<'t> {
    pub(super) fn new(trees: &'t [Tree]) -> Self {
        let mut places = HashMap::new();
        for (nth, tree) in trees.iter().enumerate() {
            for (index, entry) in tree.entries.iter().enumerate() {
                places.insert(tree.prefix.join(&entry.path), (nth, index));
            }
        }
        Self { trees, places }
    }

    pub(super) fn entry(&self, place: Place) -> Option<&'t Entry> {
        self.trees.get(place.0)?.entries.get(place.1)
    }

    /// Where an entry is in the image.
    pub(super) fn path(&self, place: Place) -> Option<PathBuf> {
        Some(self.trees.get(place.0)?.prefix.join(&self.entry(place)?.path))
    }

    /// The start of a file, at most `limit` bytes. What cannot be read will be told of when it is packed.
    pub(super) fn content(&self, place: Place, limit: u64) -> Option<Vec<u8>> {
        let file = File::open(self.trees.get(place.0)?.root.join(&self.entry(place)?.path)).ok()?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Whether a path leads to a folder.
    pub(super) fn is_folder(&self, path: &Path) -> bool {
        let place = self.resolve(path).and_then(|mut places| places.pop());
        place.and_then(|place| self.entry(place)).is_some_and(|entry| matches!(entry.kind, Kind::Dir))
    }

    /// The regular file that a path leads to.
    pub(super) fn file(&self, path: &Path) -> Option<Place> {
        let place = self.resolve(path)?.pop()?;
        match &self.entry(place)?.kind {
            Kind::File { .. } => Some(place),
            Kind::Hardlink(first) => {
                let tree = self.trees.get(place.0)?;
                self.places.get(&tree.prefix.join(first)).copied()
            }
            _ => None,
        }
    }

    /// The symbolic links on the way and where it ends; `None` where it ends outside the trees.
    fn resolve(&self, path: &Path) -> Option<Vec<Place>> {
        let mut places = Vec::new();
        let mut rest: VecDeque<OsString> = names(path);
        let (mut at, mut links, mut end) = (PathBuf::new(), 0, None);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            end = self.places.get(&next).copied();
            match end.and_then(|place| self.entry(place)).map(|entry| &entry.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    places.extend(end);
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    for name in names(target).into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                _ => at = next,
            }
        }
        places.push(end?);
        Some(places)
    }
}

/// The parts of a path, without those that mean nothing.
fn names(path: &Path) -> VecDeque<OsString> {
    let kept = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    kept.map(|c| c.as_os_str().to_owned()).collect()
}

/// The entries of a tree that were asked for so far.
struct Picked<'t> {
    tree: &'t Tree,
    by_path: HashMap<&'t Path, usize>,
    order: Vec<usize>,
    done: HashSet<usize>,
}

impl<'t> Picked<'t> {
    fn new(tree: &'t Tree) -> Self {
        let by_path = tree.entries.iter().enumerate().map(|(i, entry)| (entry.path.as_path(), i)).collect();
        Self { tree, by_path, order: Vec::new(), done: HashSet::new() }
    }

    fn pick(&mut self, index: usize) {
        let Some(entry) = self.tree.entries.get(index) else { return };
        let mut way: Vec<&Path> = entry.path.ancestors().skip(1).collect();
        way.reverse();
        for folder in way {
            self.push(self.by_path.get(folder).copied());
        }
        if let Kind::Hardlink(target) = &entry.kind
            && let Some(target) = self.by_path.get(target.as_path()).copied()
        {
            self.pick(target);
        }
        self.push(Some(index));
    }

    fn push(&mut self, index: Option<usize>) {
        if let Some(index) = index
            && self.done.insert(index)
        {
            self.order.push(index);
        }
    }

    fn finish(self, first: usize) -> Order {
        let Self { tree, mut order, done, .. } = self;
        order.extend((0..tree.entries.len()).filter(|index| !done.contains(index)));
        Order { order, first }
    }
}
