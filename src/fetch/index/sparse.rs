//! Sparse files: GNU's four ways to say which parts of a file are stored.
//!
//! Old GNU (type `S`, map in the header and in blocks behind it), PAX 0.0 and 0.1 (map in the extended header),
//! PAX 1.0 (map at the head of the data); GNU tar manual, appendix "Storing Sparse Files". All end as the same
//! [`Extent`]s. Stored regions must be in order, inside the file, and together exactly the stored data.

use super::header::{Block, number};
use super::pax::PaxSparse;

/// Most stored regions of one file; more is an attack, and a map of that many already fills 1 MiB of text.
pub(super) const MAX_REGIONS: usize = 65_536;

/// A part of a file's content that is stored: `len` bytes at `file_offset`, found at `offset` of the decoded tar.
/// What no extent covers is zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub file_offset: u64,
    pub offset: u64,
    pub len: u64,
}

/// A stored region as a map names it: offset in the file, length.
pub(super) type Region = (i64, i64);

/// How the PAX records say a file is sparse.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PaxForm {
    /// Not at all, or in a version that nobody reads.
    None,
    /// 0.0 or 0.1: the map is in the records.
    InRecords,
    /// 1.0: the map is the head of the data.
    InData,
}

impl PaxSparse {
    pub(super) fn form(&self) -> PaxForm {
        match (&*self.major, &*self.minor) {
            (b"0", b"0" | b"1") => PaxForm::InRecords,
            (b"1", b"0") => PaxForm::InData,
            (b"", b"") if self.map.is_some() => PaxForm::InRecords,
            _ => PaxForm::None,
        }
    }

    /// The regions of forms 0.0 and 0.1.
    pub(super) fn regions(&self) -> Result<Vec<Region>, &'static str> {
        let map = self.map.as_deref().unwrap_or_default();
        let (pairs, rest) = map.as_chunks::<2>();
        let announced = self.blocks.and_then(|blocks| usize::try_from(blocks).ok());
        if !rest.is_empty() || announced != Some(pairs.len()) || pairs.len() > MAX_REGIONS {
            return Err("sparse map does not have the announced number of regions");
        }
        Ok(pairs.iter().map(|&[offset, len]| (offset, len)).collect())
    }
}

/// Adds the regions of an old GNU map: 24-byte pairs from `block[start..]`, at most `count`.
pub(super) fn old_gnu_regions(
    block: &Block,
    start: usize,
    count: usize,
    regions: &mut Vec<Region>,
) -> Result<(), &'static str> {
    let (pairs, _) = block.get(start..).unwrap_or_default().as_chunks::<24>();
    for pair in pairs.iter().take(count) {
        if pair[0] == 0 {
            break;
        }
        if regions.len() >= MAX_REGIONS {
            return Err("sparse map has too many regions");
        }
        let offset = number(&pair[..12]).ok_or("sparse offset is not a number")?;
        let len = number(&pair[12..]).ok_or("sparse length is not a number")?;
        regions.push((offset, len));
    }
    Ok(())
}

/// Turns regions into extents, given the size of the file, where the stored data starts, and how much there is.
pub(super) fn extents(
    regions: &[Region],
    size: u64,
    data_start: u64,
    stored: u64,
) -> Result<Vec<Extent>, &'static str> {
    let mut extents = Vec::with_capacity(regions.len());
    let (mut end, mut used) = (0_u64, 0_u64);
    for &(offset, len) in regions {
        let offset = u64::try_from(offset).map_err(|_| "sparse offset is negative")?;
        let len = u64::try_from(len).map_err(|_| "sparse length is negative")?;
        let next = offset.checked_add(len).ok_or("sparse region overflows")?;
        if offset < end || next > size {
            return Err("sparse regions overlap, are out of order or go past the end of the file");
        }
        if len > 0 {
            let at = data_start.checked_add(used).ok_or("sparse region overflows")?;
            extents.push(Extent { file_offset: offset, offset: at, len });
        }
        used = used.checked_add(len).ok_or("sparse region overflows")?;
        end = next;
    }
    if used == stored { Ok(extents) } else { Err("sparse map does not account for the stored data") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_must_fit() {
        let good = extents(&[(0, 4), (8, 2), (20, 0)], 20, 1000, 6).unwrap();
        assert_eq!(
            good,
            [
                Extent { file_offset: 0, offset: 1000, len: 4 },
                Extent { file_offset: 8, offset: 1004, len: 2 }
            ]
        );
        for (regions, size, stored) in [
            (&[(4, 4), (0, 4)][..], 20, 8),
            (&[(0, 8), (4, 8)], 20, 16),
            (&[(-1, 4)], 20, 4),
            (&[(0, -4)], 20, 4),
            (&[(0, 21)], 20, 21),
            (&[(0, 4)], 20, 5),
            (&[(i64::MAX, i64::MAX)], u64::MAX, 0),
        ] {
            assert!(extents(regions, size, 0, stored).is_err(), "{regions:?}");
        }
    }
}
