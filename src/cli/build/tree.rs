//! The entries of a folder in the order of a layer: sorted by name, folders before what is in them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Most entries of one layer: what an index holds without trouble, and more than a distribution has.
const MAX_ENTRIES: usize = 4_000_000;

/// What the field of a header holds, in the year 2242.
const MAX_MTIME: u64 = 0o77_777_777_777;

/// Deepest nesting; the walk is recursive.
const MAX_DEPTH: usize = 256;

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// Below the folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 07777.
    pub mode: u32,
    /// When it was last changed, in whole seconds of Unix time.
    pub mtime: u64,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    Dir,
    File {
        size: u64,
    },
    /// Another name of a file that came before: its path below the folder.
    Hardlink(PathBuf),
    Symlink(PathBuf),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Which times the entries of a tree get.
#[derive(Debug, Clone, Copy)]
pub(super) enum Times {
    /// All the same: of a folder that came out of version control they are accidents.
    All(u64),
    /// Their own, but none later than this, if it is said. Of installed software they mean something: Python takes a
    /// `.pyc` only if it names its source's time, and would compile everything anew at each start.
    Own {
        /// `SOURCE_DATE_EPOCH`.
        latest: Option<u64>,
    },
}

impl Times {
    fn of(self, metadata: &Metadata) -> u64 {
        match self {
            Self::All(time) => time,
            Self::Own { latest } => {
                let own = u64::try_from(metadata.mtime()).unwrap_or(0).min(MAX_MTIME);
                latest.map_or(own, |latest| own.min(latest))
            }
        }
    }
}

/// A folder to pack.
#[derive(Debug)]
pub(super) struct Tree {
    /// The folder.
    pub root: PathBuf,
    /// Where it goes in the image: empty for `/`.
    pub prefix: PathBuf,
    /// What is in it.
    pub entries: Vec<Entry>,
}

impl Tree {
    /// Everything in `root`, without `root` itself. Symbolic links are kept, not followed; sockets are left out, and
    /// what has one of the names `reserved` in the image's root.
    pub(super) fn walk(root: &Path, prefix: &str, reserved: &[&str], times: Times) -> anyhow::Result<Self> {
        let reserved = if prefix.is_empty() { reserved } else { &[] };
        let mut walk = Walk { root, reserved, times, entries: Vec::new(), seen: HashMap::new() };
        walk.folder(Path::new(""), 0)?;
        Ok(Self { root: root.to_owned(), prefix: prefix.into(), entries: walk.entries })
    }
}

struct Walk<'r> {
    root: &'r Path,
    reserved: &'r [&'r str],
    times: Times,
    entries: Vec<Entry>,
    /// The first name of a file that has several.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, below: &Path, depth: usize) -> anyhow::Result<()> {
        let full = self.root.join(below);
        anyhow::ensure!(depth < MAX_DEPTH, "{} is nested more than {MAX_DEPTH} deep", full.display());
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))? {
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names {
            let path = below.join(&name);
            let full = self.root.join(&path);
            anyhow::ensure!(
                !name.as_bytes().starts_with(b".wh."),
                "{} would delete files of lower layers: a name in a layer must not begin with .wh.",
                full.display()
            );
            if depth == 0 && self.reserved.iter().any(|reserved| name == **reserved) {
                eprintln!(
                    "addonfs: {} is left out: the layer's format has a file of this name",
                    full.display()
                );
                continue;
            }
            let metadata =
                fs::symlink_metadata(&full).with_context(|| format!("cannot look at {}", full.display()))?;
            let Some(kind) = self.kind(&path, &full, &metadata)? else { continue };
            let is_dir = matches!(kind, Kind::Dir);
            anyhow::ensure!(self.entries.len() < MAX_ENTRIES, "more than {MAX_ENTRIES} files");
            let (mode, mtime) = (metadata.mode() & 0o7777, self.times.of(&metadata));
            self.entries.push(Entry { path: path.clone(), kind, mode, mtime });
            if is_dir {
                self.folder(&path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn kind(&mut self, path: &Path, full: &Path, metadata: &Metadata) -> anyhow::Result<Option<Kind>> {
        let file_type = metadata.file_type();
        if !file_type.is_dir() && metadata.nlink() > 1 {
            let first = self.seen.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_owned());
            if first != path {
                return Ok(Some(Kind::Hardlink(first.clone())));
            }
        }
        let device = metadata.rdev();
        let (major, minor) =
            (device_number(nix::sys::stat::major(device)), device_number(nix::sys::stat::minor(device)));
        Ok(Some(if file_type.is_dir() {
            Kind::Dir
        } else if file_type.is_file() {
            Kind::File { size: metadata.len() }
        } else if file_type.is_symlink() {
            Kind::Symlink(fs::read_link(full).with_context(|| format!("cannot read {}", full.display()))?)
        } else if file_type.is_char_device() {
            Kind::Char { major, minor }
        } else if file_type.is_block_device() {
            Kind::Block { major, minor }
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else {
            eprintln!("addonfs: {} is a socket and left out", full.display());
            return Ok(None);
        }))
    }
}

/// The kernel's numbers have 12 and 20 bits.
fn device_number(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
