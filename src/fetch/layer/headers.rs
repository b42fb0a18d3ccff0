//! Tar headers against the table of contents.
//!
//! The table decides what is shown. But a tool that reads the layer as a plain tar sees the headers, and a layer that
//! shows two things to two tools is an attack on one of them. So wherever headers come along they are compared.

use crate::fetch::index::tar::{Member, MemberKind, Walker};
use crate::fetch::index::{Entry, EntryKind, LayerIndex};

/// Tar blocks (POSIX.1-2017, `pax`): content is padded to whole ones.
const BLOCK: u64 = 512;

/// Compares the headers in `behind`, which begins where the content of entry number `entry` ends, with the entries that
/// follow it. Headers that are cut off say nothing.
pub(super) fn compare(index: &LayerIndex, entry: usize, behind: &[u8]) -> Result<(), String> {
    let Some(EntryKind::File { size, .. }) = index.entry(entry).map(|entry| entry.kind) else {
        return Ok(());
    };
    let padding = usize::try_from(size.wrapping_neg() % BLOCK).unwrap_or(0);
    compare_from(index, entry + 1, behind.get(padding..).unwrap_or_default())
}

/// Compares the headers in `tar`, which begins with the header of entry number `first`, up to the next content.
pub(super) fn compare_from(index: &LayerIndex, first: usize, tar: &[u8]) -> Result<(), String> {
    let mut walker = Walker::new(tar);
    for at in first.. {
        let Ok(Some(member)) = walker.next() else { break };
        match index.entry(at) {
            Some(entry) => agree(&entry, &member)?,
            None if index.format().hides(&member.path) => break,
            None => return Err(format!("{:?} is only in the tar", name(&member.path))),
        }
        if matches!(member.kind, MemberKind::File { size, .. } if size > 0) {
            break;
        }
    }
    Ok(())
}

fn name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Whether the two say the same.
fn agree(entry: &Entry<'_>, member: &Member) -> Result<(), String> {
    let differ = |what: &str| Err(format!("{what} of {:?}", name(&member.path)));
    if entry.path != member.path {
        return Err(format!("{:?} and {:?}", name(entry.path), name(&member.path)));
    }
    let same = match (&entry.kind, &member.kind) {
        (EntryKind::Dir, MemberKind::Dir) | (EntryKind::Fifo, MemberKind::Fifo) => true,
        (EntryKind::File { size, .. }, MemberKind::File { size: other, .. }) => size == other,
        (EntryKind::Symlink { target }, MemberKind::Symlink(other))
        | (EntryKind::Hardlink { target }, MemberKind::Hardlink(other)) => target == other,
        (EntryKind::Char { major, minor }, MemberKind::Char(a, b))
        | (EntryKind::Block { major, minor }, MemberKind::Block(a, b)) => (major, minor) == (a, b),
        _ => false,
    };
    if !same {
        return differ("the type, size or target");
    }
    if entry.mode != u32::from(member.mode) || (entry.uid, entry.gid) != (member.uid, member.gid) {
        return differ("the mode or owner");
    }
    // eStargz rounds to whole seconds.
    if entry.mtime_sec.abs_diff(member.mtime_sec) > 1 {
        return differ("the time");
    }
    let sorted = |mut all: Vec<(Vec<u8>, Vec<u8>)>| {
        all.sort();
        all
    };
    let xattrs = entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    if sorted(xattrs) != sorted(member.xattrs.clone()) {
        return differ("the extended attributes");
    }
    Ok(())
}
