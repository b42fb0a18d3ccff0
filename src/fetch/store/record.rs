//! The records of the catalog's log.
//!
//! ```text
//! 0  "addnfsCT"  8 u32 version  12 zeros to 128
//! then records of 128 bytes, all little-endian:
//! 0 u8 op (1 put, 2 remove, 3 synced)  1 u8 kind  2 u8 flags (1 stamped, 2 durable)  3 zeros to 8
//! 8 u64 size  16 u64 last use (us since 1970)  24 i64 mtime (ns)  32 i64 ctime (ns)  40 u64 inode number
//! 48 [16] boot id  64 [32] digest  96 zeros to 120  120 [8] head of the sha256 of the 120 bytes before
//! ```

use std::collections::HashMap;

use super::item::{Item, Kind, Stamp};
use crate::policy::digest::Digest;

const MAGIC: &[u8; 8] = b"addnfsCT";
const VERSION: u32 = 2;
pub(super) const RECORD: usize = 128;
/// Bytes of a record that its checksum covers.
const BODY: usize = 120;

/// A whole log of these items.
pub(super) fn log_of(items: &HashMap<(Kind, Digest), Item>, boot: [u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((items.len() + 1) * RECORD);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.resize(RECORD, 0);
    for (&(kind, digest), item) in items {
        bytes.extend(encode(1, kind, &digest, item, boot));
    }
    bytes
}

pub(super) fn encode(op: u8, kind: Kind, digest: &Digest, item: &Item, boot: [u8; 16]) -> Vec<u8> {
    let stamp = item.stamp.unwrap_or(Stamp { size: 0, mtime: 0, ctime: 0, inode: 0 });
    let mut record = Vec::with_capacity(RECORD);
    let flags = u8::from(item.stamp.is_some()) | u8::from(item.durable) << 1;
    record.extend([op, kind.code(), flags, 0, 0, 0, 0, 0]);
    record.extend([item.size, item.used].map(u64::to_le_bytes).concat());
    record.extend([stamp.mtime, stamp.ctime].map(i64::to_le_bytes).concat());
    record.extend(stamp.inode.to_le_bytes());
    record.extend(boot);
    record.extend(digest.as_bytes());
    record.resize(BODY, 0);
    let sum = Digest::of(&record);
    record.extend(sum.as_bytes().iter().take(RECORD - BODY));
    record
}

/// The items that a log leaves; `None` if it is no log. Damaged records are left out.
pub(super) fn replay(log: &[u8], boot: [u8; 16]) -> Option<HashMap<(Kind, Digest), Item>> {
    let (records, _) = log.as_chunks::<RECORD>();
    let (head, records) = records.split_first()?;
    if !head.starts_with(MAGIC) || head.get(8..12)? != VERSION.to_le_bytes() {
        return None;
    }
    let mut items = HashMap::new();
    for record in records {
        let (body, sum) = record.split_at(BODY);
        if !Digest::of(body).as_bytes().starts_with(sum) {
            continue;
        }
        let number = |at: usize| {
            body.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let Some(kind) = Kind::ALL.get(usize::from(record[1])).copied() else { continue };
        let Some(digest) = body.get(64..96).and_then(<[u8]>::first_chunk) else { continue };
        let key = (kind, Digest::from_bytes(*digest));
        if record[0] == 2 {
            items.remove(&key);
            continue;
        }
        let durable = record[2] & 2 != 0;
        let stamp = Stamp {
            size: number(8),
            mtime: number(24).cast_signed(),
            ctime: number(32).cast_signed(),
            inode: number(40),
        };
        // After a reboot only what had reached the disk is known to be what was written.
        let holds = record[2] & 1 != 0 && (durable || body.get(48..64) == Some(&boot[..]));
        let stamp = holds.then_some(stamp);
        items.insert(key, Item { size: number(8), used: number(16), stamp, durable, position: 0 });
    }
    Some(items)
}
