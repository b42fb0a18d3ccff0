//! One image's tree: made of layers once, opened in milliseconds ever after.

use std::path::Path;

use super::file::{Node, NodeBody, TreeFile};
use super::merge::Merge;
use super::{TreeError, file, write};
use crate::fetch::index::LayerIndex;

/// Number of the root directory.
pub const ROOT: u32 = 0;

/// An open tree.
#[derive(Debug)]
pub struct ImageTree(TreeFile);

impl ImageTree {
    /// Merges layers, lowest first, and writes the tree file at `path` in one step. `created` is the image config's
    /// time in seconds since the epoch.
    pub fn build(path: &Path, layers: &[&LayerIndex], created: i64) -> Result<(), TreeError> {
        let mut merge = Merge::new(created);
        for layer in layers {
            merge.apply(layer.entries())?;
        }
        write::write(path, &merge, file::made_of(layers))
    }

    /// Opens the tree file at `path`, which was built of `layers`. On [`TreeError::Format`] remove it and build it anew.
    pub fn open(path: &Path, layers: &[&LayerIndex]) -> Result<Self, TreeError> {
        TreeFile::open(path, layers).map(Self)
    }

    /// How many nodes; their numbers are below it.
    pub fn nodes(&self) -> u32 {
        self.0.nodes()
    }

    /// How many layers its contents refer to.
    pub fn layers(&self) -> u32 {
        self.0.layers()
    }

    /// The image config's time, seconds since the epoch.
    pub fn created(&self) -> i64 {
        self.0.created()
    }

    /// Node `number`, or `None` if there is none.
    pub fn node(&self, number: u32) -> Option<Node> {
        self.0.node(number)
    }

    /// The node called `name` in the directory `dir`.
    pub fn child(&self, dir: &Node, name: &[u8]) -> Option<u32> {
        let NodeBody::Dir { first, count, .. } = dir.body else { return None };
        let (mut low, mut high) = (first, first.checked_add(count)?);
        while low < high {
            let middle = low + (high - low) / 2;
            let (candidate, node) = self.0.entry(middle)?;
            match candidate.cmp(name) {
                std::cmp::Ordering::Equal => return Some(node),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The `index`-th name of the directory `dir`, in the order of name bytes, and its node.
    pub fn entry(&self, dir: &Node, index: u64) -> Option<(&[u8], u32)> {
        let NodeBody::Dir { first, count, .. } = dir.body else { return None };
        let index = u32::try_from(index).ok().filter(|index| *index < count)?;
        self.0.entry(first.checked_add(index)?)
    }

    /// Where a symlink points.
    pub fn target(&self, link: &Node) -> Option<&[u8]> {
        match link.body {
            NodeBody::Symlink { offset, length } => self.0.bytes(offset, length),
            _ => None,
        }
    }

    /// Whether any node has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.0.has_xattrs()
    }

    /// Name and value of each extended attribute of a node, sorted by name.
    pub fn xattrs(&self, node: &Node) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.xattrs(node.xattrs)
    }

    /// The node at `path` below the root, symlinks not followed.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut number = ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            number = self.child(&self.node(number)?, name)?;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fetch::index::build::index_tar;

    /// A layer of lines `KIND PATH[ TARGET]`: d directory, f file (its content is its path), l symlink, h hard link.
    pub(crate) fn layer(lines: &[&str]) -> LayerIndex {
        let mut tar = tar::Builder::new(Vec::new());
        for (number, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let (path, target) = (words[1], words.get(2).copied().unwrap_or_default());
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o640);
            header.set_mtime(number as u64);
            let content = if words[0] == "f" { path } else { "" };
            header.set_size(content.len() as u64);
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
            tar.append(&header, content.as_bytes()).unwrap();
        }
        index_tar(&tar.into_inner().unwrap()).unwrap()
    }

    fn build(layers: &[&[&str]]) -> Result<ImageTree, TreeError> {
        let layers: Vec<LayerIndex> = layers.iter().map(|lines| layer(lines)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        let layers: Vec<&LayerIndex> = layers.iter().collect();
        ImageTree::build(&path, &layers, 1_000)?;
        ImageTree::open(&path, &layers)
    }

    /// `path/` for directories, `path -> target`, `path=layer.file` for files, sorted; and names of one node joined.
    fn list(tree: &ImageTree) -> Vec<String> {
        let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, number)) = todo.pop() {
            let node = tree.node(number).unwrap();
            let text = match node.body {
                NodeBody::Dir { .. } => format!("{path}/"),
                NodeBody::File { layer, file, .. } => format!("{path}={layer}.{file}"),
                NodeBody::Symlink { .. } => {
                    format!("{path} -> {}", String::from_utf8_lossy(tree.target(&node).unwrap()))
                }
                _ => path.clone(),
            };
            found.entry(number).or_default().push(text);
            let mut at = 0;
            while let Some((name, child)) = tree.entry(&node, at) {
                assert_eq!(tree.child(&node, name), Some(child));
                todo.push((format!("{path}/{}", String::from_utf8_lossy(name)), child));
                at += 1;
            }
        }
        for (number, names) in &found {
            let node = tree.node(*number).unwrap();
            if !matches!(node.body, NodeBody::Dir { .. }) {
                assert_eq!(node.nlink as usize, names.len(), "{names:?}");
            }
        }
        assert_eq!(found.len(), tree.nodes() as usize);
        let mut lines: Vec<String> = found
            .into_values()
            .map(|mut names| {
                names.sort();
                names.join(" ")
            })
            .filter(|line| line != "/")
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn layers_merge_as_the_specification_says() {
        type Case = (&'static str, &'static [&'static [&'static str]], &'static [&'static str]);
        let cases: &[Case] = &[
            ("plain whiteout", &[&["f a", "f b"], &["f .wh.a"]], &["/b=0.1"]),
            ("whiteout of a tree", &[&["f d/a", "f d/e/b"], &["f .wh.d"]], &[]),
            ("whiteout of nothing", &[&["f a"], &["f x/.wh.b", "f .wh.c"]], &["/a=0.0"]),
            (
                "opaque before additions",
                &[&["f d/a"], &["d d", "f d/.wh..wh..opq", "f d/b"]],
                &["/d/", "/d/b=1.1"],
            ),
            (
                "opaque after additions",
                &[&["f d/a", "f d/e/x"], &["f d/b", "f d/e/y", "f d/.wh..wh..opq"]],
                &["/d/", "/d/b=1.0", "/d/e/", "/d/e/y=1.1"],
            ),
            ("whiteout after its own layer's file", &[&["f a"], &["f a", "f .wh.a"]], &["/a=1.0"]),
            ("whiteout hides in its own layer nothing", &[&[], &["f d/a", "f .wh.d"]], &["/d/", "/d/a=1.0"]),
            (
                "a whiteout is for lower layers, not the next",
                &[&["f a"], &["f .wh.a"], &["f a"]],
                &["/a=2.0"],
            ),
            ("aufs files", &[&["f .wh..wh.plnk", "d .wh..wh.orph", "f .wh..wh.orph/x", "f a"]], &["/a=0.2"]),
            ("file over directory", &[&["f d/a"], &["f d"]], &["/d=1.0"]),
            ("directory over file", &[&["f d"], &["d d", "f d/a"]], &["/d/", "/d/a=1.0"]),
            ("directory over directory keeps children", &[&["f d/a"], &["d d"]], &["/d/", "/d/a=0.0"]),
            (
                "directory over a symlink to one",
                &[&["f e/a", "l d e"], &["d d"]],
                &["/d/", "/e/", "/e/a=0.0"],
            ),
            ("the last of one name wins", &[&["f a", "l a x", "f a"]], &["/a=0.1"]),
            ("hard link within a layer", &[&["f a", "h b a", "h c b"]], &["/a=0.0 /b=0.0 /c=0.0"]),
            ("hard link across layers", &[&["f a"], &["h d/b a"]], &["/a=0.0 /d/b=0.0", "/d/"]),
            (
                "a link survives its target",
                &[&["f a", "h b a"], &["f .wh.a"], &["f c"]],
                &["/b=0.0", "/c=2.0"],
            ),
            ("a link keeps the old file", &[&["f a", "h b a"], &["f a"]], &["/a=1.0", "/b=0.0"]),
            ("hard link to a symlink", &[&["l a x", "h b a"]], &["/a -> x /b -> x"]),
            (
                "symlink as parent",
                &[&["d real", "l link real"], &["f link/a"]],
                &["/link -> real", "/real/", "/real/a=1.0"],
            ),
            (
                "absolute symlink as parent",
                &[&["d r/s", "l l /r", "f l/s/a"]],
                &["/l -> /r", "/r/", "/r/s/", "/r/s/a=0.0"],
            ),
            (
                "symlink that points out",
                &[&["l l ../../../etc", "f l/a"]],
                &["/etc/", "/etc/a=0.0", "/l -> ../../../etc"],
            ),
            (
                "dangling symlink as parent",
                &[&["l l none/x", "f l/a"]],
                &["/l -> none/x", "/none/", "/none/x/", "/none/x/a=0.0"],
            ),
            (
                "whiteout through a symlink",
                &[&["f r/a", "f r/b", "l l r"], &["f l/.wh.a"]],
                &["/l -> r", "/r/", "/r/b=0.1"],
            ),
            (
                "hard link through a symlink",
                &[&["f r/a", "l l r", "h b l/a"]],
                &["/b=0.0 /r/a=0.0", "/l -> r", "/r/"],
            ),
            ("names above the root", &[&["f ../../a", "f /b", "d ./"]], &["/a=0.0", "/b=0.1"]),
        ];
        for (what, layers, expected) in cases {
            assert_eq!(list(&build(layers).unwrap()), *expected, "{what}");
        }
    }

    #[test]
    fn what_no_extractor_could_create_is_refused_with_layer_and_path() {
        let cases: &[(&[&[&str]], &str)] = &[
            (&[&["f a"], &["f a/b"]], r#"layer 2: "a/b": something that is no directory"#),
            (&[&["h b a"]], r#"layer 1: "b": a hard link to something that does not exist"#),
            (&[&["d d", "h b d"]], r#"layer 1: "b": a hard link to a directory"#),
            (&[&["f a", "h a a"]], r#"layer 1: "a": a hard link to something"#),
            (&[&["l a b", "l b a", "f a/x"]], "loop"),
            (&[&["f d/.wh."]], "a whiteout that names nothing"),
            (&[&["f d/.wh..."]], "a whiteout that names nothing"),
            (&[&["f .wh.d/a"]], "kept for whiteouts"),
        ];
        for (layers, words) in cases {
            let error = build(layers).map(|tree| list(&tree)).unwrap_err().to_string();
            assert!(error.contains(words), "{layers:?}: {error}");
        }
    }

    #[test]
    fn attributes_of_directories() {
        let tree = build(&[&["f p/q/a", "d p"], &["f p/b"]]).unwrap();
        let node = |path: &str| tree.node(tree.find(path.as_bytes()).unwrap()).unwrap();
        let implied = node("p/q");
        assert_eq!((implied.mode, implied.uid, implied.mtime_sec, implied.nlink), (0o40755, 0, 1_000, 2));
        let named = node("p");
        assert_eq!((named.mode, named.mtime_sec, named.nlink), (0o40640, 1, 3));
        assert_eq!(tree.node(ROOT).unwrap().nlink, 3);
        assert_eq!((tree.created(), tree.layers()), (1_000, 2));
    }

    #[test]
    fn numbers_depend_on_the_merged_tree_only() {
        let one = build(&[&["f a", "f d/b", "f c"]]).unwrap();
        let other = build(&[&["f c", "f d/x"], &["f d/b", "f .wh.d", "f a"]]).unwrap();
        for path in ["a", "c", "d", "d/b"] {
            assert_eq!(one.find(path.as_bytes()), other.find(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_damaged_tree_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        let layer = layer(&["f a", "d b"]);
        ImageTree::build(&path, &[&layer], 0).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(ImageTree::open(&path, &[&layer]), Err(TreeError::Format { .. })), "byte {at}");
        }
        for length in [0, 8, 191, 192, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(ImageTree::open(&path, &[&layer]).is_err(), "length {length}");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(ImageTree::open(&path, &[&layer]).is_ok());
    }
}
