//! The tar walker: decoded bytes in, members and their content out, in one pass and bounded memory.
//!
//! Reads v7, ustar, GNU (long names `L` and `K`, sparse `S`, base-256 numbers), star and PAX. The `tar` crate
//! misreads PAX sparse files without an error, so nothing of it is used here. Global PAX headers (`g`) are
//! skipped: containerd, moby and podman skip them, and an image must look the same here. An entry that would
//! replace the root by something else is refused, as umoci refuses it.
//!
//! Hostile input ends in an error of [`Class::Corrupt`](crate::fetch::error::Class) that names the place.

use super::header::{BLOCK, Block, Family, Header, string};
use super::pax::{Pax, decimal};
use super::sparse::{Extent, MAX_REGIONS, PaxForm, Region, extents, old_gnu_regions};
use super::{header, path};
use crate::fetch::error::{FetchError, Side};

/// Largest extended header, long name or sparse map; Go's limit, so nothing larger can be in use.
const MAX_SPECIAL: u64 = 1 << 20;

/// Most entries of a layer. The largest known images have under a million files in all.
pub(super) const MAX_ENTRIES: u64 = 10_000_000;

/// Decoded bytes in order. An empty slice is the end.
pub(crate) trait Decoded {
    /// The bytes that are there, at least one unless at the end.
    fn fill(&mut self) -> Result<&[u8], FetchError>;
    /// Marks `n` of the bytes of the last [`Decoded::fill`] as read.
    fn consume(&mut self, n: usize);
}

impl Decoded for &[u8] {
    fn fill(&mut self) -> Result<&[u8], FetchError> {
        Ok(self)
    }

    fn consume(&mut self, n: usize) {
        *self = self.get(n..).unwrap_or_default();
    }
}

/// A member of the archive with all extensions applied.
#[derive(Debug)]
pub(crate) struct Member {
    /// Cleaned, see `path`.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// The lower twelve bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime_sec: i64,
    pub mtime_nsec: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    Dir,
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    Symlink(Vec<u8>),
    /// The target's path, cleaned like a member's.
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Walks an archive: [`Walker::next`], then optionally [`Walker::data`], again and again.
#[derive(Debug)]
pub(crate) struct Walker<I> {
    input: I,
    /// Offset in the decoded archive.
    at: u64,
    /// Where the current member's data ends, and where the next header is (padded to whole blocks).
    data_end: u64,
    next_header: u64,
    /// Stored content of the current member, until somebody reads it.
    extents: Vec<Extent>,
    entries: u64,
}

/// Fails at the place `at` of the archive.
fn malformed(at: u64, what: &str) -> FetchError {
    FetchError::corrupt(Side::Remote, format!("not a sound tar archive: at byte {at}: {what}"))
}

impl<I: Decoded> Walker<I> {
    pub(crate) fn new(input: I) -> Self {
        Self { input, at: 0, data_end: 0, next_header: 0, extents: Vec::new(), entries: 0 }
    }

    /// The next member, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, FetchError> {
        let (mut pax, mut long_name, mut long_link) = (Pax::default(), Vec::new(), Vec::new());
        loop {
            self.skip_rest()?;
            let start = self.at;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let mut header = Header::parse(&block).map_err(|what| malformed(start, what))?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(malformed(start, "more than 10 million entries"));
            }
            match header.typeflag {
                b'x' => pax = Pax::parse(&self.special(&header)?).map_err(|what| malformed(start, what))?,
                b'g' => self.begin_data(&header)?,
                b'L' => long_name = string(&self.special(&header)?).to_vec(),
                b'K' => long_link = string(&self.special(&header)?).to_vec(),
                _ => {
                    pax.apply(&mut header);
                    if !long_name.is_empty() {
                        header.name = long_name;
                    }
                    if !long_link.is_empty() {
                        header.link = long_link;
                    }
                    return self.member(start, header, &block, pax).map(Some);
                }
            }
        }
    }

    /// Where in the archive the last member's content begins, or would if it had any.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// Hands the stored content of the current member to `sink`, in order, with offsets in the file.
    pub(crate) fn data(
        &mut self,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), FetchError>,
    ) -> Result<(), FetchError> {
        for extent in std::mem::take(&mut self.extents) {
            let mut done = 0;
            while done < extent.len {
                let piece = self.input.fill()?;
                let n = piece.len().min(usize::try_from(extent.len - done).unwrap_or(usize::MAX));
                if n == 0 {
                    return Err(malformed(self.at, "ends inside a file"));
                }
                sink(extent.file_offset + done, piece.get(..n).unwrap_or_default())?;
                self.advance(n);
                done += n as u64;
            }
        }
        Ok(())
    }

    /// Reads what is left of the input, so that all of it passes whatever lies below (digests, spans).
    pub(crate) fn drain(&mut self) -> Result<(), FetchError> {
        loop {
            match self.input.fill()?.len() {
                0 => return Ok(()),
                n => self.input.consume(n),
            }
        }
    }

    /// The input, after the archive's end.
    pub(crate) fn into_input(self) -> I {
        self.input
    }

    fn member(
        &mut self,
        start: u64,
        header: Header,
        block: &Block,
        mut pax: Pax,
    ) -> Result<Member, FetchError> {
        let fail = |what| malformed(start, what);
        let mut name = header.name.clone();
        let kind = match header.typeflag {
            0 if name.ends_with(b"/") => MemberKind::Dir,
            b'S' => self.old_gnu_sparse(start, &header, block)?,
            0 | b'0' | b'7' => {
                self.begin_data(&header)?;
                if pax.sparse.form() != PaxForm::None
                    && let Some(real) = pax.sparse.name.take()
                {
                    name = real;
                }
                self.file(start, &header, &pax)?
            }
            b'1' => MemberKind::Hardlink(path::clean(&header.link).map_err(fail)?),
            b'2' => MemberKind::Symlink(symlink_target(header.link).map_err(fail)?),
            b'3' => MemberKind::Char(header.major as u32, header.minor as u32),
            b'4' => MemberKind::Block(header.major as u32, header.minor as u32),
            b'5' => MemberKind::Dir,
            b'6' => MemberKind::Fifo,
            _ => return Err(fail("entry of an unknown type")),
        };
        let path = path::clean(&name).map_err(fail)?;
        if path.is_empty() && kind != MemberKind::Dir {
            return Err(fail("an entry would replace the root directory"));
        }
        let (mtime_sec, mtime_nsec) = pax.mtime.unwrap_or((header.mtime, 0));
        Ok(Member {
            path,
            kind,
            mode: (header.mode & 0o7777) as u16,
            // Truncated like the argument of chown(2), so that nfsnobody's -2 is 4294967294 as everywhere.
            uid: header.uid as u32,
            gid: header.gid as u32,
            mtime_sec,
            mtime_nsec,
            xattrs: pax.xattrs,
        })
    }

    /// A regular file, sparse by PAX records or not.
    fn file(&mut self, start: u64, header: &Header, pax: &Pax) -> Result<MemberKind, FetchError> {
        let fail = |what| malformed(start, what);
        let regions = match pax.sparse.form() {
            PaxForm::None => {
                let (size, offset) = (self.left(), self.at);
                let extents =
                    if size == 0 { vec![] } else { vec![Extent { file_offset: 0, offset, len: size }] };
                self.extents.clone_from(&extents);
                return Ok(MemberKind::File { size, extents });
            }
            PaxForm::InRecords => pax.sparse.regions().map_err(fail)?,
            PaxForm::InData => self.map_in_data(start)?,
        };
        let size = pax.sparse.size.or(pax.sparse.real_size).unwrap_or(header.size);
        self.sparse(start, size, &regions)
    }

    fn sparse(&mut self, start: u64, size: i64, regions: &[Region]) -> Result<MemberKind, FetchError> {
        let size = u64::try_from(size).map_err(|_| malformed(start, "size is negative"))?;
        let extents = extents(regions, size, self.at, self.left()).map_err(|what| malformed(start, what))?;
        self.extents.clone_from(&extents);
        Ok(MemberKind::File { size, extents })
    }

    /// The old GNU map: four regions in the header, then blocks of 21 while a flag says so.
    fn old_gnu_sparse(
        &mut self,
        start: u64,
        header: &Header,
        block: &Block,
    ) -> Result<MemberKind, FetchError> {
        let fail = |what| malformed(start, what);
        if header.family != Family::Gnu {
            return Err(fail("sparse file in a format other than GNU's"));
        }
        let size = header::number(&block[483..495]).ok_or_else(|| fail("real size is not a number"))?;
        let mut regions = Vec::new();
        old_gnu_regions(block, 386, 4, &mut regions).map_err(fail)?;
        let (mut more, mut extension) = (block[482] != 0, [0; BLOCK]);
        while more {
            // Extension blocks do not count into the member's size, so the data begins behind them.
            if self.at - start > MAX_SPECIAL {
                return Err(fail("sparse map is larger than 1 MiB"));
            }
            self.exact(&mut extension)?;
            old_gnu_regions(&extension, 0, 21, &mut regions).map_err(fail)?;
            more = extension[504] != 0;
        }
        self.begin_data(header)?;
        self.sparse(start, size, &regions)
    }

    /// The map of PAX 1.0: decimal numbers, a line each, count first, padded to a whole block.
    fn map_in_data(&mut self, start: u64) -> Result<Vec<Region>, FetchError> {
        let fail = |what| malformed(start, what);
        let (mut numbers, mut line) = (Vec::new(), Vec::new());
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.left() < BLOCK as u64 {
                return Err(fail("sparse map is cut off"));
            }
            self.exact(&mut block)?;
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                match byte {
                    b'\n' => {
                        numbers.push(decimal(&line).map_err(fail)?);
                        line.clear();
                    }
                    b'0'..=b'9' if line.len() < 20 => line.push(byte),
                    _ => return Err(fail("sparse map is not a list of numbers")),
                }
                if let [count] = numbers[..] {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    if count > MAX_REGIONS {
                        return Err(fail("sparse map has too many regions"));
                    }
                    wanted = 1 + 2 * count;
                }
            }
        }
        let (pairs, _) = numbers.get(1..).unwrap_or_default().as_chunks::<2>();
        Ok(pairs.iter().map(|&[offset, len]| (offset, len)).collect())
    }

    /// The data of a member that only says something about the next one.
    fn special(&mut self, header: &Header) -> Result<Vec<u8>, FetchError> {
        self.begin_data(header)?;
        if self.left() > MAX_SPECIAL {
            return Err(malformed(self.at, "extended header is larger than 1 MiB"));
        }
        let mut data = vec![0; usize::try_from(self.left()).unwrap_or(0)];
        self.exact(&mut data)?;
        Ok(data)
    }

    fn begin_data(&mut self, header: &Header) -> Result<(), FetchError> {
        let size = u64::try_from(header.size).map_err(|_| malformed(self.at, "size is negative"))?;
        // Cannot overflow in practice (2^63 bytes would have to be read first); saturating keeps it total.
        self.data_end = self.at.saturating_add(size);
        self.next_header = self.data_end.saturating_add(self.data_end.wrapping_neg() % BLOCK as u64);
        Ok(())
    }

    /// Data of the current member that was not read yet.
    fn left(&self) -> u64 {
        self.data_end.saturating_sub(self.at)
    }

    /// Skips what the caller did not read. The archive may end inside the padding, not inside the data.
    fn skip_rest(&mut self) -> Result<(), FetchError> {
        self.extents.clear();
        while self.at < self.next_header {
            let there = self.input.fill()?.len();
            if there == 0 && self.at < self.data_end {
                return Err(malformed(self.at, "ends inside a file"));
            }
            if there == 0 {
                return Ok(());
            }
            let wanted = usize::try_from(self.next_header - self.at).unwrap_or(usize::MAX);
            self.advance(there.min(wanted));
        }
        Ok(())
    }

    /// The next header block, or `None` at the end: no bytes, one zero block and no more, or two zero blocks.
    fn header_block(&mut self) -> Result<Option<Block>, FetchError> {
        let mut block = [0; BLOCK];
        if self.input.fill()?.is_empty() {
            return Ok(None);
        }
        self.exact(&mut block)?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(Some(block));
        }
        if self.input.fill()?.is_empty() {
            return Ok(None);
        }
        self.exact(&mut block)?;
        if block.iter().any(|&byte| byte != 0) {
            return Err(malformed(self.at, "data behind a block of zeros"));
        }
        Ok(None)
    }

    fn exact(&mut self, mut buffer: &mut [u8]) -> Result<(), FetchError> {
        while !buffer.is_empty() {
            let piece = self.input.fill()?;
            let n = piece.len().min(buffer.len());
            let (Some(from), Some((to, rest))) = (piece.get(..n), buffer.split_at_mut_checked(n)) else {
                break;
            };
            if n == 0 {
                return Err(malformed(self.at, "is cut off"));
            }
            to.copy_from_slice(from);
            buffer = rest;
            self.advance(n);
        }
        Ok(())
    }

    fn advance(&mut self, n: usize) {
        self.input.consume(n);
        self.at += n as u64;
    }
}

/// A symlink's target: kept as written, but it must be one that symlink(2) takes.
pub(super) fn symlink_target(target: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    match target.len() {
        0 => Err("symlink without a target"),
        n if n >= path::MAX_PATH => Err("symlink target is longer than 4095 bytes"),
        _ if target.contains(&0) => Err("symlink target contains a NUL byte"),
        _ => Ok(target),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything the walker says of `tar`, in words that compare.
    fn walk(tar: &[u8]) -> Result<Vec<(String, MemberKind, Vec<u8>)>, FetchError> {
        let mut walker = Walker::new(tar);
        let mut members = Vec::new();
        while let Some(member) = walker.next()? {
            let mut content = Vec::new();
            if let MemberKind::File { size, .. } = &member.kind
                && *size < 1 << 20
            {
                content.resize(usize::try_from(*size).unwrap(), 0);
                walker.data(|offset, bytes| {
                    let at = usize::try_from(offset).unwrap();
                    content[at..at + bytes.len()].copy_from_slice(bytes);
                    Ok(())
                })?;
            }
            members.push((String::from_utf8_lossy(&member.path).into_owned(), member.kind, content));
        }
        Ok(members)
    }

    fn header(kind: u8, name: &[u8], size: u64) -> Block {
        let mut header = ::tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_cksum();
        *header.as_bytes()
    }

    fn data(content: &[u8]) -> Vec<u8> {
        let mut data = content.to_vec();
        data.resize(content.len().next_multiple_of(BLOCK), 0);
        data
    }

    fn record(key: &str, value: &str) -> Vec<u8> {
        let body = format!(" {key}={value}\n");
        let mut len = body.len() + 1;
        while len != body.len() + len.to_string().len() {
            len += 1;
        }
        format!("{len}{body}").into_bytes()
    }

    #[test]
    fn ends_as_archives_end() {
        let one = [&header(b'0', b"a", 0)[..]].concat();
        assert_eq!(walk(&[]).unwrap().len(), 0);
        assert_eq!(walk(&one).unwrap().len(), 1);
        assert_eq!(walk(&[&one[..], &[0; 512]].concat()).unwrap().len(), 1);
        assert_eq!(walk(&[&one[..], &[0; 1024], b"rubbish"].concat()).unwrap().len(), 1);
        assert!(walk(&[&one[..], &[0; 512], &one[..]].concat()).is_err());
        assert!(walk(&one[..400]).is_err());
        let with_data = [&header(b'0', b"a", 3)[..], b"abc"].concat();
        assert_eq!(walk(&with_data).unwrap()[0].2, b"abc", "the padding may be missing");
        assert!(walk(&with_data[..514]).is_err(), "the data may not");
    }

    #[test]
    fn long_names_and_pax_override() {
        let name = "d/".repeat(80) + "x";
        let gnu = [
            header(b'L', b"././@LongLink", name.len() as u64 + 1).to_vec(),
            data(format!("{name}\0").as_bytes()),
            header(b'0', b"short", 0).to_vec(),
        ]
        .concat();
        assert_eq!(walk(&gnu).unwrap()[0].0, name);
        let records =
            [record("path", "other/\u{fc}"), record("size", "3"), record("uid", "5000000")].concat();
        let pax = [
            header(b'x', b"pax", records.len() as u64).to_vec(),
            data(&records),
            header(b'0', b"short", 0).to_vec(),
            data(b"abc"),
        ]
        .concat();
        let mut walker = Walker::new(&pax[..]);
        let member = walker.next().unwrap().unwrap();
        assert_eq!((member.path.as_slice(), member.uid), ("other/\u{fc}".as_bytes(), 5_000_000));
        assert!(matches!(member.kind, MemberKind::File { size: 3, .. }));
        assert!(walker.next().unwrap().is_none());
    }

    #[test]
    fn pax_sparse_in_records() {
        for map in [
            [record("GNU.sparse.offset", "2"), record("GNU.sparse.numbytes", "3")].concat(),
            record("GNU.sparse.map", "2,3"),
        ] {
            let size = [record("GNU.sparse.size", "8"), record("GNU.sparse.numblocks", "1")].concat();
            let records = [size, map].concat();
            let tar = [
                header(b'x', b"pax", records.len() as u64).to_vec(),
                data(&records),
                header(b'0', b"sparse", 3).to_vec(),
                data(b"abc"),
            ]
            .concat();
            assert_eq!(walk(&tar).unwrap()[0].2, b"\0\0abc\0\0\0");
        }
    }

    #[test]
    fn refuses_what_nothing_can_unpack() {
        for (what, tar) in [
            ("root replaced", header(b'0', b"../..", 0).to_vec()),
            ("unknown type", header(b'V', b"a", 0).to_vec()),
            ("symlink to nothing", header(b'2', b"a", 0).to_vec()),
            ("huge extended header", header(b'x', b"a", 2 << 20).to_vec()),
            ("sparse map with 10^18 regions", {
                let records = [record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0")].concat();
                let map = data(b"1000000000000000000\n");
                [
                    header(b'x', b"p", records.len() as u64).to_vec(),
                    data(&records),
                    header(b'0', b"a", 512).to_vec(),
                    map,
                ]
                .concat()
            }),
        ] {
            assert!(walk(&tar).is_err(), "{what}");
        }
    }

    proptest! {
        /// Any header field overwritten by anything, with the checksum made right again.
        #[test]
        fn never_panics(
            kind in prop::sample::select(&b"\0\x30\x31\x32\x33\x34\x35\x36\x37LKxgSV"[..]),
            at in 0_usize..512,
            noise in prop::collection::vec(any::<u8>(), 0..200),
            body in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let mut block = header(kind, b"name", body.len() as u64);
            let end = (at + noise.len()).min(BLOCK);
            block[at..end].copy_from_slice(&noise[..end - at]);
            let sum: u32 = block.iter().enumerate()
                .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let _ = walk(&[&block[..], &data(&body), &header(b'0', b"next", 0)].concat());
        }

        /// Extended headers made of plausible pieces in any order.
        #[test]
        fn never_panics_on_records(pieces in prop::collection::vec((0_usize..14, "[-0-9.,]{0,20}"), 0..12)) {
            const KEYS: [&str; 14] = ["path", "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.major",
                "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.numblocks", "GNU.sparse.offset",
                "GNU.sparse.numbytes", "GNU.sparse.realsize", "SCHILY.xattr.user.x"];
            let records: Vec<u8> = pieces.iter().flat_map(|(key, value)| record(KEYS[*key], value)).collect();
            let tar = [header(b'x', b"pax", records.len() as u64).to_vec(), data(&records),
                header(b'0', b"a", 700).to_vec(), vec![b'1'; 1024]].concat();
            let _ = walk(&tar);
        }
    }
}
