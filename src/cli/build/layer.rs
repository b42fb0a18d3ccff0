//! One layer: a folder as a (compressed) tar archive in a temporary file, with its digest and diff_id.
//!
//! Plain ustar, with a PAX header where a name, a link or a size does not fit (POSIX.1-2017, `pax`).

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use tar::{EntryType, Header};
use tempfile::NamedTempFile;

use super::compress::{Compress, LayerFormat};
use super::tree::{Entry, Kind, walk};
use crate::policy::digest::{Digest, Hasher};
use crate::policy::image::Descriptor;

/// Length of the name and link fields of a ustar header.
const NAME_FIELD: usize = 100;

/// Largest size that 11 octal digits hold.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// The mode of the folder that files are put under: its own would be an accident of how it was made.
const PREFIX_MODE: u32 = 0o755;

/// A layer in a temporary file.
#[derive(Debug)]
pub(super) struct BuiltLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the archive before compression.
    pub diff_id: Digest,
    /// The bytes.
    pub file: NamedTempFile,
}

type Archive = tar::Builder<Hashing<Compress<Hashing<File>>>>;

/// Packs the content of `root` under `prefix` (empty for `/`).
pub(super) fn pack(root: &Path, prefix: &str, mtime: u64, format: LayerFormat) -> anyhow::Result<BuiltLayer> {
    let entries = walk(root)?;
    let file = NamedTempFile::new().context("cannot make a temporary file for a layer")?;
    let blob = Hashing::new(file.reopen()?);
    let mut archive = tar::Builder::new(Hashing::new(Compress::new(format, blob)?));
    if !prefix.is_empty() {
        let dir = Entry { path: prefix.into(), kind: Kind::Dir, mode: PREFIX_MODE };
        append(&mut archive, root, Path::new(""), &dir, mtime)?;
    }
    for entry in &entries {
        append(&mut archive, root, Path::new(prefix), entry, mtime)
            .with_context(|| format!("cannot pack {}", root.join(&entry.path).display()))?;
    }
    let (diff_id, _, compress) = archive.into_inner()?.finish();
    let (digest, size, _) = compress.finish().context("cannot write a layer")?.finish();
    let descriptor =
        Descriptor { media_type: format.media_type().to_owned(), digest, size, annotations: Vec::new() };
    Ok(BuiltLayer { descriptor, diff_id, file })
}

fn append(
    archive: &mut Archive,
    root: &Path,
    prefix: &Path,
    entry: &Entry,
    mtime: u64,
) -> anyhow::Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(0);
    let mut pax: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut name = prefix.join(&entry.path).as_os_str().as_bytes().to_vec();
    match &entry.kind {
        Kind::Dir => {
            header.set_entry_type(EntryType::Directory);
            name.push(b'/');
        }
        Kind::File { size } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            if *size > MAX_OCTAL_SIZE {
                pax.push(("size", size.to_string().into_bytes()));
            }
        }
        Kind::Hardlink(first) => {
            header.set_entry_type(EntryType::Link);
            set_link(&mut header, prefix.join(first).as_os_str().as_bytes(), &mut pax)?;
        }
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            set_link(&mut header, target.as_os_str().as_bytes(), &mut pax)?;
        }
        Kind::Char { major, minor } | Kind::Block { major, minor } => {
            let is_char = matches!(entry.kind, Kind::Char { .. });
            header.set_entry_type(if is_char { EntryType::Char } else { EntryType::Block });
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
        }
        Kind::Fifo => header.set_entry_type(EntryType::Fifo),
    }
    set_name(&mut header, &name, &mut pax);
    let extensions = pax.iter().map(|(key, value)| (*key, value.as_slice()));
    archive.append_pax_extensions(extensions)?;
    header.set_cksum();
    match entry.kind {
        Kind::File { size } => {
            let path = root.join(&entry.path);
            let file = File::open(&path)?;
            // A file that grows is cut; one that shrinks would shift everything after it.
            let mut content = Counted { inner: file.take(size), read: 0 };
            archive.append(&header, &mut content)?;
            anyhow::ensure!(content.read == size, "it shrank while it was read: build again");
        }
        _ => archive.append(&header, io::empty())?,
    }
    Ok(())
}

/// Short names go into the header, long ones into a PAX header with a cut one for readers that ignore it.
fn set_name(header: &mut Header, name: &[u8], pax: &mut Vec<(&str, Vec<u8>)>) {
    if name.len() > NAME_FIELD {
        pax.push(("path", name.to_vec()));
    }
    put(header, 0, name);
}

fn set_link(header: &mut Header, target: &[u8], pax: &mut Vec<(&str, Vec<u8>)>) -> anyhow::Result<()> {
    anyhow::ensure!(!target.is_empty(), "the link points nowhere");
    if target.len() > NAME_FIELD {
        pax.push(("linkpath", target.to_vec()));
    }
    // Field `linkname` of a ustar header.
    put(header, 157, target);
    Ok(())
}

fn put(header: &mut Header, offset: usize, text: &[u8]) {
    let field = header.as_mut_bytes().iter_mut().skip(offset).take(NAME_FIELD);
    for (to, from) in field.zip(text) {
        *to = *from;
    }
}

/// Counts and hashes what passes.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(), size: 0 }
    }

    fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}
