//! Inode numbers: functions of what a node is, never of when it was first seen.
//!
//! A takeover leaves the kernel with numbers that it learnt from an earlier daemon; each must mean the same thing to
//! the next one without a lookup. So nothing is allocated: 64 bits are laid out as
//!
//! ```text
//! 0 .. 15                                         the fixed nodes below
//! 0001 << 60 | 60 bits of sha256(program)         the executable behind run, plan, wait, follow
//! 01 << 62   | 62 bits of sha256(kind, path)      nodes of the static tree
//! 10 << 62   | run number (54 bits) | slot (8)    a run's directory, its files, its symlink
//! 11 << 62   | run number (22 bits) | 40 bits of st_ino   what a job left in out/
//! ```
//!
//! Two files in `out/` cannot share a number: a state directory lies on one file system, and its st_ino fit in 40 bits
//! on ext4, xfs, btrfs and tmpfs up to sizes far above any run's.

use crate::policy::digest::Digest;

/// The mount point.
pub(super) const ROOT: u64 = 1;
/// `.addonfs`.
pub(super) const ROOM: u64 = 2;
/// `.addonfs/images`, on which the usual image connection is mounted.
pub(super) const IMAGES: u64 = 3;
/// `.addonfs/sources`.
pub(super) const SOURCES: u64 = 4;
/// `.addonfs/runs`.
pub(super) const RUN_LINKS: u64 = 5;
/// `.addonfs/xattr-images`, on which the image connection with extended attributes is mounted.
pub(super) const XATTR_IMAGES: u64 = 6;

const TAG_SHIFT: u32 = 62;
const RUN_BITS: u64 = (1 << 54) - 1;
const OUT_RUN_BITS: u64 = (1 << 22) - 1;
const OUT_REAL_BITS: u64 = (1 << 40) - 1;

/// What an inode number says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// A node of the static tree, fixed ones and the executable included.
    Static,
    /// Something of the run with this number.
    Run {
        /// The run's number, 54 bits.
        run: u64,
        /// Which of its files.
        slot: u8,
    },
    /// Something below `out/` of a run with these low bits in its number.
    Out {
        /// Low 22 bits of the run's number.
        run: u64,
        /// Low 40 bits of st_ino.
        real: u64,
    },
}

/// Reads a number.
pub(super) fn decode(ino: u64) -> Number {
    match ino >> TAG_SHIFT {
        0b10 => Number::Run { run: (ino >> 8) & RUN_BITS, slot: (ino & 0xff) as u8 },
        0b11 => Number::Out { run: (ino >> 40) & OUT_RUN_BITS, real: ino & OUT_REAL_BITS },
        _ => Number::Static,
    }
}

/// The number of a static node: `kind` keeps a name that changes from directory to symlink from keeping its number.
pub(super) fn of_static(kind: &str, path: &str) -> u64 {
    let mut bytes = Vec::with_capacity(kind.len() + path.len() + 1);
    bytes.extend_from_slice(kind.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(path.as_bytes());
    (0b01 << TAG_SHIFT) | (leading_bits(&bytes) >> 2)
}

/// The number of the executable: another program is another file.
pub(super) fn of_program(program: &[u8]) -> u64 {
    (1 << 60) | (leading_bits(program) >> 4)
}

/// The number of one slot of a run.
pub(super) fn of_run(run: u64, slot: u8) -> u64 {
    (0b10 << TAG_SHIFT) | ((run & RUN_BITS) << 8) | u64::from(slot)
}

/// The number of something in `out/`.
pub(super) fn of_out(run: u64, real: u64) -> u64 {
    (0b11 << TAG_SHIFT) | ((run & OUT_RUN_BITS) << 40) | (real & OUT_REAL_BITS)
}

/// Whether `run` may be the one that an out number names.
pub(super) fn out_belongs_to(low_bits: u64, run: u64) -> bool {
    run & OUT_RUN_BITS == low_bits
}

/// Whether `real` may be the st_ino that an out number names.
pub(super) fn is_real(low_bits: u64, real: u64) -> bool {
    real & OUT_REAL_BITS == low_bits
}

fn leading_bits(bytes: &[u8]) -> u64 {
    let digest = Digest::of(bytes);
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_as_what_they_were_made_of() {
        assert_eq!(decode(of_run(77, 9)), Number::Run { run: 77, slot: 9 });
        assert_eq!(decode(of_out(77, 123_456)), Number::Out { run: 77, real: 123_456 });
        for fixed in [ROOT, ROOM, IMAGES, SOURCES, RUN_LINKS, XATTR_IMAGES] {
            assert_eq!(decode(fixed), Number::Static);
        }
        assert_eq!(decode(of_static("dir", "tools")), Number::Static);
        assert_eq!(decode(of_program(b"elf")), Number::Static);
    }

    #[test]
    fn kind_and_path_both_count_and_never_meet_the_fixed_nodes() {
        assert_ne!(of_static("dir", "a"), of_static("link", "a"));
        assert_ne!(of_static("dir", "a"), of_static("dir", "b"));
        assert_eq!(of_static("dir", "a"), of_static("dir", "a"));
        assert!(of_static("dir", "") > 15 && of_program(b"") > 15);
        assert_ne!(of_static("x", "") >> 60, of_program(b"") >> 60);
    }
}
