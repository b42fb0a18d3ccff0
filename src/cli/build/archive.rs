//! Headers of a layer's archive: plain ustar, with a PAX header where a name, a link or a size does not fit
//! (POSIX.1-2017, `pax`). The owner is root everywhere.

use std::io;
use std::path::Path;

use std::os::unix::ffi::OsStrExt as _;

use tar::{EntryType, Header};

use super::tree::{Entry, Kind};

/// An archive's unit, and the end of one (two such blocks of zeros).
pub(super) const BLOCK: usize = 512;

/// Length of the name and link fields of a ustar header.
const NAME_FIELD: usize = 100;

/// Where the link field begins.
const LINK_OFFSET: usize = 157;

/// Largest size that 11 octal digits hold.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// What stands before a file's content.
#[derive(Debug)]
pub(super) struct Head {
    /// The name in the archive; that of a folder ends with `/`.
    pub name: Vec<u8>,
    /// Where a link points.
    pub link: Option<Vec<u8>>,
    /// The blocks.
    pub blocks: Vec<u8>,
}

/// The head of `entry` under `prefix`.
pub(super) fn head(prefix: &Path, entry: &Entry) -> anyhow::Result<Head> {
    let mut header = Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(entry.mtime);
    header.set_size(0);
    let mut pax: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut name = prefix.join(&entry.path).as_os_str().as_bytes().to_vec();
    let mut link = None;
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
            link = Some(prefix.join(first).as_os_str().as_bytes().to_vec());
        }
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            link = Some(target.as_os_str().as_bytes().to_vec());
        }
        Kind::Char { major, minor } | Kind::Block { major, minor } => {
            let is_char = matches!(entry.kind, Kind::Char { .. });
            header.set_entry_type(if is_char { EntryType::Char } else { EntryType::Block });
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
        }
        Kind::Fifo => header.set_entry_type(EntryType::Fifo),
    }
    // What is too long goes into a PAX header, and cut into the field for readers that ignore it.
    put(&mut header, 0, &name);
    if name.len() > NAME_FIELD {
        pax.push(("path", name.clone()));
    }
    if let Some(target) = &link {
        anyhow::ensure!(!target.is_empty(), "the link points nowhere");
        put(&mut header, LINK_OFFSET, target);
        if target.len() > NAME_FIELD {
            pax.push(("linkpath", target.clone()));
        }
    }
    header.set_cksum();
    let mut blocks = tar::Builder::new(Vec::new());
    blocks.append_pax_extensions(pax.iter().map(|(key, value)| (*key, value.as_slice())))?;
    // Without the content, which follows in the layer.
    blocks.append(&header, io::empty())?;
    let blocks = std::mem::take(blocks.get_mut());
    Ok(Head { name, link, blocks })
}

fn put(header: &mut Header, offset: usize, text: &[u8]) {
    let field = header.as_mut_bytes().iter_mut().skip(offset).take(NAME_FIELD);
    for (to, from) in field.zip(text) {
        *to = *from;
    }
}

/// The zeros that fill the last block of `size` bytes.
pub(super) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let beyond = (size % BLOCK as u64) as usize;
    ZEROS.get(..(BLOCK - beyond) % BLOCK).unwrap_or_default()
}
