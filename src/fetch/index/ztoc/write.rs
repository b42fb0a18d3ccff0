//! Making a zTOC from a layer's bytes, as SOCI's own tools do (soci-snapshotter `ztoc/ztoc_builder.go`).

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::schema::slot;
use super::zinfo;
use super::{GZIP, UNCOMPRESSED, VERSION};
use crate::fetch::error::{Class, FetchError, Side};
use crate::fetch::index::decode::{Cut, Event, Scanner};
use crate::fetch::index::file::{Format, SpanKind};
use crate::fetch::index::gzip::unpack_window;
use crate::fetch::index::pax::XATTR;
use crate::fetch::index::tar::{Decoded, Member, MemberKind, Walker};
use crate::policy::digest::{Digest, Hasher};

/// Pieces in which the blob is read.
const PIECE: usize = 256 << 10;
/// `TarZinfo.version` (soci-snapshotter `ztoc/compression/tar_zinfo.go`).
const ZINFO_VERSION: i32 = 2;
const TOOL: &str = concat!("addonfs ", env!("CARGO_PKG_VERSION"));

/// Why a layer has no zTOC, in words that end "it is …".
pub type Unfit = &'static str;

/// Makes the zTOC of the layer in `blob`, which has `size` bytes and was checked against its digest. A span begins
/// between two deflate blocks, `span_size` decoded bytes after the last or more.
pub(crate) fn make(blob: &File, size: u64, span_size: u64) -> Result<Result<Vec<u8>, Unfit>, FetchError> {
    let mut walker = Walker::new(Scan {
        blob,
        read: 0,
        size,
        scanner: Some(Scanner::cutting(Cut::Blocks(span_size))),
        pieces: VecDeque::new(),
        piece: Vec::new(),
        used: 0,
        at: 0,
        places: Vec::new(),
        format: Format::Tar,
    });
    let mut out = FlatBufferBuilder::new();
    let mut entries = Vec::new();
    while let Some(member) = walker.next()? {
        match entry(&mut out, &member, walker.position())? {
            Ok(entry) => entries.push(entry),
            Err(unfit) => return Ok(Err(unfit)),
        }
    }
    walker.drain()?;
    let scan = walker.into_input();
    let (algorithm, checkpoints, starts) = match scan.format {
        Format::TarGzip => (GZIP, scan.checkpoints(span_size)?, scan.spans()),
        Format::Tar => {
            let starts = (0..size).step_by(usize::try_from(span_size).unwrap_or(usize::MAX));
            let ends = starts.clone().map(|start| (start + span_size).min(size));
            (UNCOMPRESSED, tar_zinfo(span_size, size), starts.zip(ends).collect())
        }
        _ => return Ok(Err("compressed with Zstandard, which zTOCs do not know")),
    };
    let mut digests = Vec::with_capacity(starts.len());
    for (start, end) in &starts {
        digests.push(out.create_string(&digest_of(blob, *start, *end)?.to_string()));
    }
    let last = i32::try_from(starts.len()).ok().and_then(|count| count.checked_sub(1));
    let Some(last) = last else { return Ok(Err("empty")) };
    let digests = out.create_vector(&digests).as_union_value();
    let checkpoints = out.create_vector(&checkpoints).as_union_value();
    let info = table(&mut out, &[(2, digests), (3, checkpoints)], |out| {
        out.push_slot(slot(0), algorithm, GZIP);
        out.push_slot(slot(1), last, 0);
    });
    let entries = out.create_vector(&entries).as_union_value();
    let toc = table(&mut out, &[(0, entries)], |_| ());
    let version = out.create_byte_string(VERSION).as_union_value();
    let tool = out.create_string(TOOL).as_union_value();
    let root = table(&mut out, &[(0, version), (1, tool), (4, toc), (5, info)], |out| {
        push(out, 2, size.cast_signed());
        push(out, 3, scan.at.cast_signed());
    });
    out.finish(root, None);
    Ok(Ok(out.finished_data().to_vec()))
}

/// A table of references and what `scalars` adds.
fn table(
    out: &mut FlatBufferBuilder<'_>,
    references: &[(u16, WIPOffset<UnionWIPOffset>)],
    scalars: impl FnOnce(&mut FlatBufferBuilder<'_>),
) -> WIPOffset<UnionWIPOffset> {
    let start = out.start_table();
    for (field, offset) in references {
        out.push_slot_always(slot(*field), *offset);
    }
    scalars(out);
    out.end_table(start).as_union_value()
}

fn push(out: &mut FlatBufferBuilder<'_>, field: u16, value: i64) {
    out.push_slot(slot(field), value, 0);
}

/// Adds an entry whose content begins at `position` of the tar.
fn entry(
    out: &mut FlatBufferBuilder<'_>,
    member: &Member,
    position: u64,
) -> Result<Result<WIPOffset<UnionWIPOffset>, Unfit>, FetchError> {
    if out.unfinished_data().len() as u64 > super::MAX_BYTES {
        return Ok(Err("too large: its names alone fill a zTOC"));
    }
    let (mut size, mut offset, mut link, mut device) = (0, position, &b""[..], (0, 0));
    let kind = match &member.kind {
        MemberKind::Dir => "dir",
        MemberKind::File { size: len, extents } => {
            match extents.as_slice() {
                [] if *len == 0 => {}
                [only] if only.file_offset == 0 && only.len == *len => offset = only.offset,
                _ => return Ok(Err("one with sparse files, whose content a zTOC cannot place")),
            }
            size = *len;
            "reg"
        }
        MemberKind::Symlink(target) => {
            link = target;
            "symlink"
        }
        MemberKind::Hardlink(target) => {
            link = target;
            "hardlink"
        }
        MemberKind::Char(major, minor) => {
            device = (*major, *minor);
            "char"
        }
        MemberKind::Block(major, minor) => {
            device = (*major, *minor);
            "block"
        }
        MemberKind::Fifo => "fifo",
    };
    let time = OffsetDateTime::from_unix_timestamp(member.mtime_sec)
        .and_then(|time| time.replace_nanosecond(member.mtime_nsec))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok());
    let Some(time) = time else { return Ok(Err("one with times that RFC 3339 cannot say")) };
    let slash: &[u8] = match (&member.kind, member.path.is_empty()) {
        (MemberKind::Dir, true) => b"./",
        (MemberKind::Dir, false) => b"/",
        _ => b"",
    };
    let name = out.create_byte_string(&[&member.path, slash].concat()).as_union_value();
    let (kind, link) =
        (out.create_string(kind).as_union_value(), out.create_byte_string(link).as_union_value());
    let (nobody, time) = (out.create_string("").as_union_value(), out.create_string(&time).as_union_value());
    let mut records: Vec<_> = member.xattrs.iter().collect();
    records.sort();
    let records: Vec<_> = records
        .into_iter()
        .map(|(name, value)| {
            let key = out.create_byte_string(&[XATTR, name].concat()).as_union_value();
            let value = out.create_byte_string(value).as_union_value();
            table(out, &[(0, key), (1, value)], |_| ())
        })
        .collect();
    let records = out.create_vector(&records).as_union_value();
    let references = [(0, name), (1, kind), (4, link), (8, nobody), (9, nobody), (10, time), (13, records)];
    Ok(Ok(table(out, &references, |out| {
        push(out, 2, offset.cast_signed());
        push(out, 3, size.cast_signed());
        push(out, 5, i64::from(member.mode));
        out.push_slot(slot(6), member.uid, 0);
        out.push_slot(slot(7), member.gid, 0);
        push(out, 11, i64::from(device.0));
        push(out, 12, i64::from(device.1));
    })))
}

fn tar_zinfo(span_size: u64, size: u64) -> Vec<u8> {
    let mut out = FlatBufferBuilder::new();
    let root = table(&mut out, &[], |out| {
        out.push_slot(slot(0), ZINFO_VERSION, 0);
        push(out, 1, span_size.cast_signed());
        push(out, 2, size.cast_signed());
    });
    out.finish(root, None);
    out.finished_data().to_vec()
}

fn digest_of(blob: &File, start: u64, end: u64) -> Result<Digest, FetchError> {
    let (mut hasher, mut buffer, mut at) = (Hasher::new(), vec![0; PIECE], start);
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..want).unwrap_or_default();
        blob.read_exact_at(piece, at).map_err(|error| unreadable(&error))?;
        hasher.update(piece);
        at += want as u64;
    }
    Ok(hasher.finish())
}

fn unreadable(error: &std::io::Error) -> FetchError {
    FetchError::storage("cannot read the layer", error)
}

/// The decoded tar of a blob in a file, and the places where decoding can begin.
struct Scan<'f> {
    blob: &'f File,
    read: u64,
    size: u64,
    /// `None` at the end.
    scanner: Option<Scanner>,
    pieces: VecDeque<Event>,
    piece: Vec<u8>,
    used: usize,
    /// Decoded bytes so far.
    at: u64,
    places: Vec<Place>,
    format: Format,
}

/// A checkpoint with its compressed window.
struct Place {
    input: u64,
    output: u64,
    bits: u8,
    window: Vec<u8>,
}

impl Decoded for Scan<'_> {
    fn fill(&mut self) -> Result<&[u8], FetchError> {
        while self.used == self.piece.len() {
            match self.pieces.pop_front() {
                Some(Event::Data(piece)) => {
                    self.at += piece.len() as u64;
                    (self.piece, self.used) = (piece, 0);
                }
                Some(Event::Checkpoint(checkpoint)) => {
                    let bits = if let SpanKind::Deflate { bits } = checkpoint.kind { bits } else { 0 };
                    let (input, window) = (checkpoint.in_end_before, checkpoint.window);
                    self.places.push(Place { input, output: self.at, bits, window });
                }
                None if self.scanner.is_none() => break,
                None => self.scan()?,
            }
        }
        Ok(self.piece.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.used = (self.used + n).min(self.piece.len());
    }
}

impl Scan<'_> {
    /// Scans the next piece of the blob.
    fn scan(&mut self) -> Result<(), FetchError> {
        let Some(mut scanner) = self.scanner.take() else { return Ok(()) };
        let pieces = &mut self.pieces;
        let sink = &mut |event| {
            pieces.push_back(event);
            Ok(())
        };
        if self.read == self.size {
            (self.format, _) = scanner.finish(sink)?;
            return Ok(());
        }
        let mut buffer = vec![0; PIECE.min(usize::try_from(self.size - self.read).unwrap_or(PIECE))];
        self.blob.read_exact_at(&mut buffer, self.read).map_err(|error| unreadable(&error))?;
        self.read += buffer.len() as u64;
        scanner.push(&buffer, sink)?;
        self.scanner = Some(scanner);
        Ok(())
    }

    /// The checkpoints of a gzip layer.
    fn checkpoints(&self, span_size: u64) -> Result<Vec<u8>, FetchError> {
        let windows = self.places.iter().map(|place| unpack_window(&place.window));
        let windows = windows.collect::<Result<Vec<_>, _>>()?;
        let checkpoints: Vec<_> = self
            .places
            .iter()
            .zip(&windows)
            .map(|(place, window)| zinfo::Checkpoint {
                input: place.input,
                output: place.output,
                bits: place.bits,
                window,
            })
            .collect();
        zinfo::write(span_size, &checkpoints).ok_or_else(|| {
            FetchError::new(Class::Protocol, Side::Local, "the layer has more spans than a zTOC can hold")
        })
    }

    /// The bytes of a gzip layer that belong to each checkpoint.
    fn spans(&self) -> Vec<(u64, u64)> {
        let starts = self.places.iter().map(|place| place.input - u64::from(place.bits > 0));
        let ends = self.places.iter().skip(1).map(|place| place.input).chain([self.size]);
        starts.zip(ends).collect()
    }
}
