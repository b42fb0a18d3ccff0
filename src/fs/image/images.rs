//! What the image connections show: images by digest, each for ever the same.
//!
//! ```text
//! 1                          a connection's root: lists nothing, answers to sha256-<hex>
//! └── sha256-<hex>           comes and goes: its name may be remembered by nobody
//!     ├── rootfs             the merged tree; everything from here on is for ever
//!     ├── manifest.json
//!     └── config.json
//! ```
//!
//! There are two connections, because "no extended attributes" can be said of a whole connection only, and said so
//! it makes `ls -l` four times faster ([`Side`]). An image is on one of them, which its tree decides and so every
//! daemon decides the same. On the usual side an image of the other is a symlink to there: whoever knows a digest
//! need not know the side.
//!
//! `sha256-<hex>.job` is the same image once more, as containers get it for their root: with inode numbers of its own,
//! without devices and without file capabilities. A device in it would be the host's, to a job that has its mode (a
//! container has no CAP_MKNOD, and the device list of its control group holds only where the host has one); a program
//! with capabilities that the container cannot have would not start (execve(2), EPERM). A root mounted `nosuid,nodev`
//! would do the same, and it is, at first; but runc and crun mount it anew and drop both.
//!
//! `sha256-<hex>.stream` is what has arrived of an image that is not complete (see [`super::stream`]).
//!
//! Inode numbers are 31 bits of the image's digest and, below, the index of the node: the same after every restart,
//! which is why a successor can go on with files that its predecessor opened. Indexes 0 to 15 are the fixed names.
//!
//! Nothing here waits: content that is not at hand comes back as a future.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::{Arc, PoisonError, RwLock};

use nix::libc;

use super::file::{Node, NodeBody};
use super::stream::{self, Streams, is_streaming};
use super::tree::{self, ImageTree};
use crate::fetch::layer::{Layer, Read};
use crate::fetch::store::Kind;
use crate::fetch::verified::VerifiedBytes;
use crate::fs::error::FsError;
use crate::jobs::ROOT_IMAGE_SUFFIX;
use crate::policy::digest::Digest;

/// The connection's root.
pub const TOP: u64 = 1;
/// In the tag of an inode number: the inode is of the image as containers get it. The digest gives the other 31 bits.
const JOB: u32 = 1 << 31;

/// Indexes of the fixed names; `content` (2) is for artifacts. `LINK` is the digest's name on the side that the image
/// is not on.
const DIGEST_DIR: u32 = 0;
const ROOTFS: u32 = 1;
const MANIFEST: u32 = 3;
const CONFIG: u32 = 4;
const LINK: u32 = 5;
/// Node n > 0 of the tree has index n + 15; node 0 is `rootfs`.
const NODES_FROM: u32 = 15;

/// Which of the two image connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The usual one: no file of it has extended attributes.
    Plain,
    /// The one for trees in which some file has.
    Xattrs,
}

/// One image, complete: every layer is indexed.
#[derive(Debug)]
pub struct Image {
    /// The merged tree of `layers`.
    pub tree: ImageTree,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The manifest, byte for byte.
    pub manifest_json: VerifiedBytes,
    /// The config, byte for byte.
    pub config_json: VerifiedBytes,
}

impl Image {
    /// The connection it is on.
    pub fn side(&self) -> Side {
        if self.tree.has_xattrs() { Side::Xattrs } else { Side::Plain }
    }
}

/// How long an answer stays true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// Ask again next time.
    Never,
    /// As long as the connection lives.
    Forever,
}

/// What `stat` shows.
///
/// Those of an image never change; those of a streaming tree do ([`Attr::lasting`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds since the epoch.
    pub mtime_sec: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Device number, as the kernel's `new_encode_dev` packs it.
    pub rdev: u32,
}

impl Attr {
    /// How long they stay true.
    pub fn lasting(&self) -> Lasting {
        if is_streaming(self.ino) { Lasting::Never } else { Lasting::Forever }
    }
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Something, and how long the name leads there.
    Entry(Attr, Lasting),
    /// Nothing, and how long that stays so.
    Nothing(Lasting),
}

/// One name of a directory.
#[derive(Debug)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a [u8],
    /// What it leads to.
    pub attr: Attr,
    /// Where to go on after it.
    pub next: u64,
}

/// All images of both connections.
#[derive(Debug)]
pub struct Images {
    shown: RwLock<HashMap<u32, (Digest, Arc<Image>)>>,
    streams: Streams,
    /// Images that answer to no name.
    hidden: RwLock<HashSet<Digest>>,
    owner: Option<(u32, u32)>,
    other_side: String,
}

/// What an inode number means.
enum Place {
    Top,
    Link(Shown),
    DigestDir(Shown),
    Document(Shown, VerifiedBytes, u32),
    Node(Shown, u32, Node),
}

#[derive(Clone)]
struct Shown {
    tag: u32,
    digest: Digest,
    image: Arc<Image>,
}

impl Images {
    /// No image yet. With `owner` every file is shown as that user's and group's (a daemon without root: an overlay
    /// made in its user namespace could not write otherwise). `other_side` is how the mount point of [`Side::Xattrs`]
    /// is reached from that of [`Side::Plain`].
    pub fn new(owner: Option<(u32, u32)>, other_side: &str) -> Self {
        let (shown, hidden, streams) = (RwLock::default(), RwLock::default(), Streams::new(owner));
        Self { shown, hidden, streams, owner, other_side: other_side.to_owned() }
    }

    /// The streaming trees.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Shows an image from now on; showing it again changes nothing. A successor of a daemon inserts everything that
    /// was shown before it starts serving, else open files answer ESTALE.
    pub fn insert(&self, digest: Digest, image: Arc<Image>) -> Result<(), FsError> {
        if image.tree.layers() as usize != image.layers.len() {
            return Err(FsError::Internal(format!("the tree of {digest} is of another number of layers")));
        }
        if image.tree.nodes() > (u32::MAX >> 1) - NODES_FROM {
            return Err(FsError::Internal(format!("the tree of {digest} has too many files")));
        }
        self.hidden.write().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let (other, _) = shown.entry(tag(&digest)).or_insert((digest, image));
        if *other == digest {
            Ok(())
        } else {
            Err(FsError::Internal(format!(
                "{digest} would have the inode numbers of {other}, which is shown"
            )))
        }
    }

    /// Stops showing an image. Files of it that are open answer ESTALE, unless the kernel reads them itself.
    pub fn remove(&self, digest: &Digest) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        if shown.get(&tag(digest)).is_some_and(|(known, _)| known == digest) {
            shown.remove(&tag(digest));
        }
    }

    /// From now on nobody finds the image by its name, until it is inserted again. Whoever is in it already stays.
    pub fn hide(&self, digest: &Digest) {
        self.hidden.write().unwrap_or_else(PoisonError::into_inner).insert(*digest);
    }

    fn is_hidden(&self, digest: &Digest) -> bool {
        self.hidden.read().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// An image that is shown.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Image>> {
        self.by_tag(tag(digest)).filter(|(known, _)| known == digest).map(|(_, image)| image)
    }

    /// Whether an image is shown.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.by_tag(tag(digest)).is_some_and(|(known, _)| known == *digest)
    }

    /// The image that an inode belongs to.
    pub fn digest_of(&self, ino: u64) -> Option<Digest> {
        if is_streaming(ino) {
            return self.streams.digest_of(ino);
        }
        self.by_tag(tag_of(ino)).map(|(digest, _)| digest)
    }

    fn by_tag(&self, tag: u32) -> Option<(Digest, Arc<Image>)> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).get(&(tag & !JOB)).cloned()
    }

    fn place(&self, ino: u64) -> Result<Place, FsError> {
        if ino == TOP {
            return Ok(Place::Top);
        }
        let tag = tag_of(ino);
        let (digest, image) = self.by_tag(tag).ok_or(FsError::Stale)?;
        let shown = Shown { tag, digest, image };
        let index = ino as u32;
        match index {
            DIGEST_DIR => Ok(Place::DigestDir(shown)),
            LINK => Ok(Place::Link(shown)),
            MANIFEST => {
                let document = shown.image.manifest_json.clone();
                Ok(Place::Document(shown, document, index))
            }
            CONFIG => {
                let document = shown.image.config_json.clone();
                Ok(Place::Document(shown, document, index))
            }
            ROOTFS => node(shown, tree::ROOT),
            _ => node(shown, index.checked_sub(NODES_FROM).filter(|n| *n > 0).ok_or(FsError::Stale)?),
        }
    }

    /// What `name` in the directory `parent` leads to; the two sides differ in their root only.
    pub fn lookup(&self, side: Side, parent: u64, name: &[u8]) -> Result<Found, FsError> {
        if is_streaming(parent) {
            return self.streams.lookup(parent, name);
        }
        match self.place(parent)? {
            Place::Top => Ok(self.top(side, name)),
            Place::DigestDir(shown) => {
                let index = match name {
                    b"rootfs" => ROOTFS,
                    b"manifest.json" => MANIFEST,
                    b"config.json" => CONFIG,
                    _ => return Ok(Found::Nothing(Lasting::Forever)),
                };
                Ok(Found::Entry(self.getattr(number(shown.tag, index))?, Lasting::Forever))
            }
            Place::Link(_) | Place::Document(..) => Err(FsError::NotDirectory),
            Place::Node(shown, _, dir) => {
                if !matches!(dir.body, NodeBody::Dir { .. }) {
                    return Err(FsError::NotDirectory);
                }
                let Some(child) = shown.image.tree.child(&dir, name) else {
                    return Ok(Found::Nothing(Lasting::Forever));
                };
                let child = node(shown.clone(), child)?;
                let attr = self.attr(&child);
                Ok(if shown.hides(&attr) {
                    Found::Nothing(Lasting::Forever)
                } else {
                    Found::Entry(attr, Lasting::Forever)
                })
            }
        }
    }

    fn top(&self, side: Side, name: &[u8]) -> Found {
        if let Some(name) = name.strip_suffix(stream::SUFFIX.as_bytes()).filter(|_| side == Side::Plain) {
            let digest = std::str::from_utf8(name).ok().and_then(Digest::from_dashed);
            return digest.map_or(Found::Nothing(Lasting::Never), |digest| self.streams.top(&digest));
        }
        let (name, view) = match name.strip_suffix(ROOT_IMAGE_SUFFIX.as_bytes()) {
            Some(name) => (name, JOB),
            None => (name, 0),
        };
        let digest = std::str::from_utf8(name).ok().and_then(Digest::from_dashed);
        let shown = digest.filter(|digest| !self.is_hidden(digest)).and_then(|digest| {
            self.by_tag(tag(&digest)).filter(|(known, _)| *known == digest).map(|(_, image)| Shown {
                tag: tag(&digest) | view,
                digest,
                image,
            })
        });
        match shown {
            Some(shown) if shown.image.side() == side => {
                Found::Entry(self.attr(&Place::DigestDir(shown)), Lasting::Never)
            }
            Some(shown) if side == Side::Plain => {
                Found::Entry(self.attr(&Place::Link(shown)), Lasting::Never)
            }
            _ => Found::Nothing(Lasting::Never),
        }
    }

    /// The attributes of an inode.
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        if is_streaming(ino) {
            return self.streams.getattr(ino);
        }
        self.place(ino).map(|place| self.attr(&place))
    }

    fn attr(&self, place: &Place) -> Attr {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let fixed = |ino, mode, nlink, size, mtime_sec| Attr {
            ino,
            mode,
            nlink,
            uid,
            gid,
            size,
            mtime_sec,
            mtime_nsec: 0,
            rdev: 0,
        };
        match place {
            Place::Top => fixed(TOP, libc::S_IFDIR | 0o555, 2, DIR_SIZE, 0),
            Place::Link(shown) => {
                let length = self.link_target(shown).len() as u64;
                let created = shown.image.tree.created();
                fixed(number(shown.tag, LINK), libc::S_IFLNK | 0o777, 1, length, created)
            }
            Place::DigestDir(shown) => {
                let created = shown.image.tree.created();
                fixed(number(shown.tag, DIGEST_DIR), libc::S_IFDIR | 0o555, 3, DIR_SIZE, created)
            }
            Place::Document(shown, document, index) => {
                let created = shown.image.tree.created();
                fixed(number(shown.tag, *index), libc::S_IFREG | 0o444, 1, document.len() as u64, created)
            }
            Place::Node(shown, index, node) => self.node_attr(shown.tag, *index, node),
        }
    }

    fn node_attr(&self, tag: u32, index: u32, node: &Node) -> Attr {
        let (size, rdev) = match node.body {
            NodeBody::Dir { .. } => (DIR_SIZE, 0),
            NodeBody::File { size, .. } => (size, 0),
            NodeBody::Symlink { length, .. } => (u64::from(length), 0),
            NodeBody::Device { rdev } => (0, rdev),
            NodeBody::Other => (0, 0),
        };
        Attr {
            ino: node_number(tag, index),
            mode: node.mode,
            nlink: node.nlink,
            uid: self.owner.map_or(node.uid, |(uid, _)| uid),
            gid: self.owner.map_or(node.gid, |(_, gid)| gid),
            size,
            mtime_sec: node.mtime_sec,
            mtime_nsec: node.mtime_nsec,
            rdev,
        }
    }

    /// Gives the names of a directory from position `from` on to `visit`, until that says `false`. Positions count
    /// names in their order, which never changes.
    pub fn readdir(
        &self,
        ino: u64,
        from: u64,
        mut visit: impl FnMut(Dirent<'_>) -> bool,
    ) -> Result<(), FsError> {
        if is_streaming(ino) {
            return self.streams.readdir(ino, from, visit);
        }
        let place = self.place(ino)?;
        let parent = match &place {
            Place::Top | Place::DigestDir(_) => TOP,
            Place::Link(_) | Place::Document(..) => return Err(FsError::NotDirectory),
            Place::Node(shown, tree::ROOT, _) => number(shown.tag, DIGEST_DIR),
            Place::Node(shown, _, Node { body: NodeBody::Dir { parent, .. }, .. }) => {
                node_number(shown.tag, *parent)
            }
            Place::Node(..) => return Err(FsError::NotDirectory),
        };
        for position in from.. {
            let entry = match position {
                0 => Some((&b"."[..], self.getattr(ino)?)),
                1 => Some((&b".."[..], self.getattr(parent)?)),
                _ => self.entry_at(&place, position - 2)?,
            };
            let Some((name, attr)) = entry else { break };
            if matches!(&place, Place::Node(dir, ..) if dir.hides(&attr)) {
                continue;
            }
            if !visit(Dirent { name, attr, next: position + 1 }) {
                break;
            }
        }
        Ok(())
    }

    /// The `index`-th name of a directory. A walk asks this for every file there is, so it takes no lock.
    fn entry_at<'a>(&self, place: &'a Place, index: u64) -> Result<Option<(&'a [u8], Attr)>, FsError> {
        match place {
            Place::DigestDir(shown) => {
                let (name, index): (&[u8], u32) = match index {
                    0 => (b"config.json", CONFIG),
                    1 => (b"manifest.json", MANIFEST),
                    2 => (b"rootfs", ROOTFS),
                    _ => return Ok(None),
                };
                Ok(Some((name, self.getattr(number(shown.tag, index))?)))
            }
            Place::Node(shown, _, dir) => {
                let tree = &shown.image.tree;
                let Some((name, child)) = tree.entry(dir, index) else { return Ok(None) };
                let node = tree.node(child).ok_or(FsError::Stale)?;
                Ok(Some((name, self.node_attr(shown.tag, child, &node))))
            }
            Place::Top | Place::Link(_) | Place::Document(..) => Ok(None),
        }
    }

    /// Where a symlink points.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        if is_streaming(ino) {
            return self.streams.readlink(ino);
        }
        match self.place(ino)? {
            Place::Link(shown) => Ok(self.link_target(&shown).into_bytes()),
            Place::Node(shown, _, node) => {
                let target = shown.image.tree.target(&node);
                target.map(<[u8]>::to_vec).ok_or_else(|| FsError::Invalid("not a symbolic link".to_owned()))
            }
            _ => Err(FsError::Invalid("not a symbolic link".to_owned())),
        }
    }

    fn link_target(&self, shown: &Shown) -> String {
        let suffix = if shown.for_job() { ROOT_IMAGE_SUFFIX } else { "" };
        format!("{}/{}{suffix}", self.other_side, shown.digest.dashed())
    }

    /// The value of an extended attribute, if the inode has it.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        let Place::Node(shown, _, node) = self.place(ino)? else { return Ok(None) };
        let mut xattrs = shown.xattrs(&node);
        Ok(xattrs.find(|(known, _)| *known == name).map(|(_, value)| value.to_vec()))
    }

    /// The names of an inode's extended attributes as listxattr(2) gives them: each with a NUL at its end.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let Place::Node(shown, _, node) = self.place(ino)? else { return Ok(Vec::new()) };
        let names = shown.xattrs(&node).map(|(name, _)| name);
        Ok(names.flat_map(|name| [name, b"\0"]).flatten().copied().collect())
    }

    /// Checks that `ino` is a file, and gives the complete, verified file on disk where there is one.
    pub fn open(&self, ino: u64) -> Result<Option<Arc<File>>, FsError> {
        match self.place(ino)? {
            Place::Top | Place::DigestDir(_) => Err(FsError::IsDirectory),
            Place::Link(_) => Err(FsError::Invalid("not a file".to_owned())),
            Place::Document(..) => Ok(None),
            Place::Node(shown, _, node) => match node.body {
                NodeBody::File { layer, file, .. } => Ok(layer_of(&shown, layer)?.backing(file)),
                NodeBody::Dir { .. } => Err(FsError::IsDirectory),
                _ => Err(FsError::Invalid("not a file".to_owned())),
            },
        }
    }

    /// What the store keeps the content of an inode in, if it is a file of a layer.
    pub(crate) fn item_of(&self, ino: u64) -> Option<(Kind, Digest)> {
        match self.place(ino).ok()? {
            Place::Node(shown, _, node) => match node.body {
                NodeBody::File { layer, file, .. } => layer_of(&shown, layer).ok()?.item(file),
                _ => None,
            },
            _ => None,
        }
    }

    /// Up to `length` bytes of a file; fewer only at its end.
    pub fn read(&self, ino: u64, offset: u64, length: u32) -> Result<Read, FsError> {
        match self.place(ino)? {
            Place::Top | Place::DigestDir(_) => Err(FsError::IsDirectory),
            Place::Link(_) => Err(FsError::Invalid("not a file".to_owned())),
            Place::Document(_, document, _) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(document.len());
                let end = start.saturating_add(length as usize).min(document.len());
                Ok(Read::Ready(document.slice(start..end)))
            }
            Place::Node(shown, _, node) => match node.body {
                NodeBody::File { layer, file, size } => {
                    let rest = u32::try_from(size.saturating_sub(offset)).unwrap_or(u32::MAX);
                    Ok(layer_of(&shown, layer)?.read(file, offset, length.min(rest)))
                }
                NodeBody::Dir { .. } => Err(FsError::IsDirectory),
                _ => Err(FsError::Invalid("not a file".to_owned())),
            },
        }
    }
}

impl Shown {
    /// Whether this is the image as containers get it.
    fn for_job(&self) -> bool {
        self.tag & JOB != 0
    }

    fn hides(&self, attr: &Attr) -> bool {
        self.for_job() && matches!(attr.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
    }

    fn xattrs(&self, node: &Node) -> impl Iterator<Item = (&[u8], &[u8])> {
        let for_job = self.for_job();
        let xattrs = self.image.tree.xattrs(node);
        xattrs.filter(move |(name, _)| !for_job || *name != b"security.capability")
    }
}

/// What directories show as their size: one block, as ext4's smallest.
pub(super) const DIR_SIZE: u64 = 4096;

/// The upper 31 bits of the digest, never 0: those numbers are the connection's own.
fn tag(digest: &Digest) -> u32 {
    let [a, b, c, d, ..] = *digest.as_bytes();
    (u32::from_be_bytes([a, b, c, d]) >> 1).max(1)
}

fn tag_of(ino: u64) -> u32 {
    // the upper half: nothing is lost
    (ino >> 32) as u32
}

fn number(tag: u32, index: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(index)
}

fn node_number(tag: u32, node: u32) -> u64 {
    number(tag, if node == tree::ROOT { ROOTFS } else { node.saturating_add(NODES_FROM) })
}

fn node(shown: Shown, index: u32) -> Result<Place, FsError> {
    let node = shown.image.tree.node(index).ok_or(FsError::Stale)?;
    Ok(Place::Node(shown, index, node))
}

fn layer_of(shown: &Shown, layer: u32) -> Result<&Layer, FsError> {
    let missing = || FsError::Internal("the tree names a layer that the image does not have".to_owned());
    shown.image.layers.get(layer as usize).ok_or_else(missing)
}
