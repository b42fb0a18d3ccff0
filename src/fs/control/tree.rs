//! The static part of the tree: everything but runs, as one immutable snapshot.
//!
//! In: the sources to show, all sources, the jobs. Out: nodes by inode number, directories with sorted names. A
//! snapshot is built whole and swapped; the difference to the one before is what the kernel must forget
//! ([`stale_names`]).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::inode;
use crate::fs::facts::{Rootfs, ShownSource};
use crate::fs::image::stream;
use crate::jobs::Job;

/// A file whose bytes are a fact.
#[derive(Debug, Clone)]
pub(super) enum Fact {
    Manifest(Arc<ShownSource>),
    AddonJson(Arc<ShownSource>),
    JobJson(Arc<Job>),
    ArgSpec(Arc<Job>),
    Status,
    JobsJson,
    JobsJsonl,
    Metrics,
    Version,
    LastError,
    DiscoveryErrors,
    SourceSpec(String),
    SourceStatus(String),
    SourceConditions(String),
    SourceLastError(String),
}

/// A `ctl` outside of runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StaticCtl {
    Daemon,
    Source(String),
    Job(String),
}

/// A node of the static tree.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// A directory with fixed names.
    Dir(Dir),
    /// A symlink with its target.
    Symlink(String),
    /// A rendered file.
    Fact(Fact),
    /// A command file.
    Ctl(StaticCtl),
    /// `.addonfs/events.jsonl`, or a source's.
    Events(Option<String>),
    /// The executable.
    Program,
    /// `runs/` of a job: its names are runs.
    RunsOf(String),
    /// `.addonfs/runs`: its names are run ids.
    RunLinks,
}

/// Names of a static directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Dir {
    /// The directory above.
    pub(super) parent: u64,
    /// Names, sorted.
    pub(super) names: BTreeMap<String, u64>,
}

/// The snapshot.
#[derive(Debug)]
pub(super) struct StaticTree {
    nodes: HashMap<u64, Node>,
    program: u64,
}

/// What a snapshot is built from.
pub(super) struct Shape<'a> {
    pub(super) shown: &'a [Arc<ShownSource>],
    pub(super) sources: &'a [String],
    pub(super) jobs: &'a [Arc<Job>],
    /// Where the images are mounted, if not at `.addonfs/images`.
    pub(super) images_dir: Option<&'a Path>,
    pub(super) program: &'a [u8],
}

/// `.addonfs`.
pub(super) const ROOM_NAME: &str = ".addonfs";
/// `.addonfs/images`.
const IMAGES_NAME: &str = "images";
/// `.addonfs/xattr-images`: where the images go that have extended attributes.
const XATTR_IMAGES_NAME: &str = "xattr-images";
/// They answer to these names, and are listed nowhere.
pub(super) const UNLISTED: [&str; 2] = [IMAGES_NAME, XATTR_IMAGES_NAME];

impl StaticTree {
    pub(super) fn build(shape: &Shape<'_>) -> Self {
        let program = inode::of_program(shape.program);
        let mut tree = Self { nodes: HashMap::new(), program };
        tree.nodes.insert(program, Node::Program);
        tree.nodes.insert(inode::ROOT, Node::Dir(Dir { parent: inode::ROOT, ..Dir::default() }));
        tree.add_room();
        for name in shape.sources {
            tree.add_source_files(name);
        }
        for source in shape.shown {
            tree.add_shown(source, shape.images_dir);
        }
        for job in shape.jobs {
            tree.add_job(job);
        }
        tree
    }

    pub(super) fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The number of the executable.
    pub(super) fn program(&self) -> u64 {
        self.program
    }

    fn add_room(&mut self) {
        let fixed_dir = |parent| Node::Dir(Dir { parent, ..Dir::default() });
        self.insert(inode::ROOT, ROOM_NAME, inode::ROOM, fixed_dir(inode::ROOT));
        self.insert(inode::ROOM, IMAGES_NAME, inode::IMAGES, fixed_dir(inode::ROOM));
        self.insert(inode::ROOM, XATTR_IMAGES_NAME, inode::XATTR_IMAGES, fixed_dir(inode::ROOM));
        self.insert(inode::ROOM, "sources", inode::SOURCES, fixed_dir(inode::ROOM));
        self.insert(inode::ROOM, "runs", inode::RUN_LINKS, Node::RunLinks);
        for (name, fact) in [
            ("status.json", Fact::Status),
            ("jobs.json", Fact::JobsJson),
            ("jobs.jsonl", Fact::JobsJsonl),
            ("metrics", Fact::Metrics),
            ("version", Fact::Version),
            ("last_error", Fact::LastError),
            ("discovery-errors", Fact::DiscoveryErrors),
        ] {
            self.insert_at(inode::ROOM, ROOM_NAME, name, "file", Node::Fact(fact));
        }
        self.insert_at(inode::ROOM, ROOM_NAME, "events.jsonl", "file", Node::Events(None));
        self.insert_at(inode::ROOM, ROOM_NAME, "ctl", "file", Node::Ctl(StaticCtl::Daemon));
    }

    fn add_source_files(&mut self, source: &str) {
        let path = format!("{ROOM_NAME}/sources/{source}");
        let dir = inode::of_static("dir", &path);
        let empty = Node::Dir(Dir { parent: inode::SOURCES, ..Dir::default() });
        self.insert(inode::SOURCES, source, dir, empty);
        let name = || source.to_owned();
        for (file, node) in [
            ("spec.yaml", Node::Fact(Fact::SourceSpec(name()))),
            ("status.json", Node::Fact(Fact::SourceStatus(name()))),
            ("conditions", Node::Fact(Fact::SourceConditions(name()))),
            ("last_error", Node::Fact(Fact::SourceLastError(name()))),
            ("events.jsonl", Node::Events(Some(name()))),
            ("ctl", Node::Ctl(StaticCtl::Source(name()))),
        ] {
            self.insert_at(dir, &path, file, "file", node);
        }
    }

    fn add_shown(&mut self, source: &Arc<ShownSource>, images_dir: Option<&Path>) {
        let path = source.mount_path.as_str();
        if path.is_empty() {
            return; // mountPath "." shows jobs only
        }
        let dir = self.directory(path);
        let known = !source.manifest.is_empty();
        if known {
            let manifest = Fact::Manifest(Arc::clone(source));
            self.insert_at(dir, path, "manifest.yaml", "file", Node::Fact(manifest));
            self.insert_at(dir, path, "addon.json", "file", Node::Fact(Fact::AddonJson(Arc::clone(source))));
        }
        let image = match source.rootfs {
            Some(Rootfs::Complete(image)) => image.dashed(),
            Some(Rootfs::Streaming(image)) => format!("{}{}", image.dashed(), stream::SUFFIX),
            None => return,
        };
        let images = match images_dir {
            Some(elsewhere) => elsewhere.to_string_lossy().into_owned(),
            None => format!("{}{ROOM_NAME}/{IMAGES_NAME}", "../".repeat(path.split('/').count())),
        };
        self.insert_at(dir, path, "rootfs", "link", Node::Symlink(format!("{images}/{image}/rootfs")));
        if known {
            let addon = format!("rootfs/{}", source.addon_dir);
            self.insert_at(dir, path, "addon", "link", Node::Symlink(addon));
        }
    }

    fn add_job(&mut self, job: &Arc<Job>) {
        let id = job.id();
        let dir = self.directory(id);
        self.insert_at(dir, id, "job.json", "file", Node::Fact(Fact::JobJson(Arc::clone(job))));
        self.insert_at(dir, id, "argspec.json", "file", Node::Fact(Fact::ArgSpec(Arc::clone(job))));
        self.insert_at(dir, id, "ctl", "file", Node::Ctl(StaticCtl::Job(id.to_owned())));
        self.insert(dir, "runs", inode::of_static("runs", id), Node::RunsOf(id.to_owned()));
        for name in ["run", "plan"] {
            self.link(dir, name, self.program);
        }
    }

    /// The directory at `path`, with all above it, made where they are missing.
    fn directory(&mut self, path: &str) -> u64 {
        let mut at = inode::ROOT;
        let mut below = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !below.is_empty() {
                below.push('/');
            }
            below.push_str(name);
            let ino = inode::of_static("dir", &below);
            self.insert(at, name, ino, Node::Dir(Dir { parent: at, ..Dir::default() }));
            at = ino;
        }
        at
    }

    fn insert_at(&mut self, dir: u64, dir_path: &str, name: &str, kind: &str, node: Node) {
        let ino = inode::of_static(kind, &format!("{dir_path}/{name}"));
        self.insert(dir, name, ino, node);
    }

    /// Adds a node under a name. The first to come keeps a name: discovery refuses collisions before this.
    fn insert(&mut self, dir: u64, name: &str, ino: u64, node: Node) {
        if self.link(dir, name, ino) {
            self.nodes.entry(ino).or_insert(node);
        }
    }

    fn link(&mut self, dir: u64, name: &str, ino: u64) -> bool {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir(dir)) => *dir.names.entry(name.to_owned()).or_insert(ino) == ino,
            _ => false,
        }
    }
}

/// The names whose cached entries the kernel must drop when `old` becomes `new`: gone, another node, or a symlink
/// that points elsewhere. Names below a dropped directory go with it. Nothing on the way to a nested image mount is
/// ever named: forgetting one of those would unmount the images.
pub(super) fn stale_names(old: &StaticTree, new: &StaticTree) -> Vec<(u64, String)> {
    const FIXED: [u64; 5] =
        [inode::ROOM, inode::IMAGES, inode::XATTR_IMAGES, inode::SOURCES, inode::RUN_LINKS];
    let mut stale = Vec::new();
    let mut open = vec![inode::ROOT];
    while let Some(at) = open.pop() {
        let (Some(Node::Dir(before)), Some(Node::Dir(after))) = (old.node(at), new.node(at)) else {
            continue;
        };
        for (name, ino) in &before.names {
            if FIXED.contains(ino) {
                open.push(*ino);
            } else if after.names.get(name) != Some(ino) || moved(old.node(*ino), new.node(*ino)) {
                stale.push((at, name.clone()));
            } else {
                open.push(*ino);
            }
        }
    }
    stale
}

fn moved(old: Option<&Node>, new: Option<&Node>) -> bool {
    matches!((old, new), (Some(Node::Symlink(a)), Some(Node::Symlink(b))) if a != b)
}
