//! Checkpoints of a gzip layer as SOCI keeps them (soci-snapshotter `ztoc/compression/gzip_zinfo.c`,
//! `zinfo_to_blob` and `blob_to_zinfo`).
//!
//! ```text
//! i32 count  i64 span size, then for each checkpoint
//! i64 position in the blob  i64 position in the tar  u8 bits  [32768] window        all little-endian
//! ```
//! If `bits` is not 0, so many bits of the byte before the position belong to the block. Version 1 leaves the first
//! checkpoint out: behind a gzip header of 10 bytes. Which version it is follows from the length.

use super::super::inflate::WINDOW;

const HEADER: usize = 12;
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;
/// A gzip header without a name or other extras (RFC 1952).
const PLAIN_HEADER: u64 = 10;

/// A place in a gzip blob where decoding can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint<'a> {
    /// In the blob, behind the byte that it shares with the block before.
    pub input: u64,
    /// In the decoded tar.
    pub output: u64,
    /// 0 to 7.
    pub bits: u8,
    /// The output before it; empty if there is none.
    pub window: &'a [u8],
}

impl Checkpoint<'_> {
    /// The first byte of the blob that is needed.
    pub(crate) fn first_byte(&self) -> u64 {
        self.input.saturating_sub(u64::from(self.bits > 0))
    }
}

/// The checkpoints in `blob`: in order, the first one at the beginning of the tar.
pub(crate) fn parse(blob: &[u8]) -> Result<Vec<Checkpoint<'_>>, &'static str> {
    let (head, body) = blob.split_at_checked(HEADER).ok_or("its checkpoints are cut off")?;
    let count = head.first_chunk().map_or(0, |count| i32::from_le_bytes(*count));
    let count = usize::try_from(count).map_err(|_| "it has a negative number of checkpoints")?;
    let stored = body.len() / CHECKPOINT;
    if body.len() % CHECKPOINT != 0 || stored > count || stored + 1 < count || count == 0 {
        return Err("it does not have the checkpoints that it says");
    }
    let first = Checkpoint { input: PLAIN_HEADER, output: 0, bits: 0, window: &[] };
    let mut checkpoints = Vec::with_capacity(count);
    checkpoints.extend((stored < count).then_some(first));
    for record in body.chunks_exact(CHECKPOINT) {
        checkpoints.push(checkpoint(record).ok_or("a checkpoint is out of range")?);
    }
    let sound = checkpoints.first().is_some_and(|first| first.output == 0)
        && checkpoints
            .array_windows()
            .all(|[a, b]| a.output < b.output && a.input <= b.first_byte() && a.input < b.input);
    if sound { Ok(checkpoints) } else { Err("its checkpoints are not in order") }
}

fn checkpoint(record: &[u8]) -> Option<Checkpoint<'_>> {
    let (input, rest) = record.split_first_chunk()?;
    let (output, rest) = rest.split_first_chunk()?;
    let (&bits, window) = rest.split_first()?;
    let input = u64::try_from(i64::from_le_bytes(*input)).ok().filter(|input| *input > 0)?;
    let output = u64::try_from(i64::from_le_bytes(*output)).ok()?;
    (bits < 8).then_some(Checkpoint { input, output, bits, window })
}

/// The checkpoints as version 2 of the blob. Windows shorter than 32 KiB are the end of one that begins with zeros.
pub(crate) fn write(span_size: u64, checkpoints: &[Checkpoint<'_>]) -> Option<Vec<u8>> {
    let mut blob = Vec::with_capacity(HEADER + checkpoints.len() * CHECKPOINT);
    blob.extend(i32::try_from(checkpoints.len()).ok()?.to_le_bytes());
    blob.extend(span_size.to_le_bytes());
    for checkpoint in checkpoints {
        blob.extend(checkpoint.input.to_le_bytes());
        blob.extend(checkpoint.output.to_le_bytes());
        blob.push(checkpoint.bits);
        blob.resize(blob.len() + WINDOW.checked_sub(checkpoint.window.len())?, 0);
        blob.extend(checkpoint.window);
    }
    Some(blob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let window = vec![7; WINDOW];
        let all = [
            Checkpoint { input: 10, output: 0, bits: 0, window: &[] },
            Checkpoint { input: 2000, output: 5000, bits: 3, window: &window },
        ];
        let blob = write(4 << 20, &all).unwrap();
        let read = parse(&blob).unwrap();
        assert_eq!((read[0].input, read[0].output, read[0].window), (10, 0, &[0; WINDOW][..]));
        assert_eq!(read[1], all[1]);
        assert_eq!(read[1].first_byte(), 1999);
        let first = [&blob[..HEADER], &blob[HEADER + CHECKPOINT..]].concat();
        assert_eq!(parse(&first).unwrap(), all);
    }

    #[test]
    fn unsound_ones() {
        let at = |input, output, bits| Checkpoint { input, output, bits, window: &[] };
        for bad in [
            &[at(10, 1, 0)][..],
            &[at(10, 0, 8)],
            &[at(0, 0, 0)],
            &[at(10, 0, 0), at(10, 5, 0)],
            &[at(10, 0, 0), at(10, 5, 1)],
            &[at(10, 0, 0), at(20, 0, 0)],
            &[at(10, 0, 0), at(20, 9, 0), at(15, 10, 0)],
            &[at(10, 0, 0), at(u64::MAX, 9, 0)],
        ] {
            assert!(parse(&write(1, bad).unwrap()).is_err(), "{bad:?}");
        }
        let blob = write(1, &[at(10, 0, 0), at(20, 9, 0)]).unwrap();
        for (count, len) in [(3, blob.len()), (2, blob.len() - 1), (1, blob.len()), (-1, 12), (0, 12), (1, 5)]
        {
            let mut bad = blob[..len].to_vec();
            bad[..4].copy_from_slice(&i32::to_le_bytes(count));
            // One checkpoint and none stored is a file of one span, version 1.
            assert!(parse(&bad).is_err(), "{count} in {len}");
        }
    }
}
