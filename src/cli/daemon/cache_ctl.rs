//! The `cache` commands of the daemon's `ctl`. All of them are a few files' work, so that they are done at once.
//!
//! ```text
//! cache drop KIND HEX [KIND HEX]…    removes items: index, file, pack, chunk; what is gone already is no error
//! cache pin SOURCE|DIGEST            keeps all of an image
//! cache unpin SOURCE|DIGEST
//! ```

use super::board::Board;
use crate::cli::cache::pins;
use crate::fetch::documents::Documents;
use crate::fetch::store::{Kind, Store};
use crate::fs::error::FsError;
use crate::policy::digest::Digest;

/// Known commands, for who mistypes one.
pub(super) const KNOWN: &str = "cache drop KIND HEX, cache pin NAME, cache unpin NAME";

/// Obeys; `words` come behind `cache`.
pub(super) fn obey(
    words: &[&str],
    store: &Store,
    board: &Board,
    documents: &Documents,
) -> Result<String, FsError> {
    match words {
        ["drop", items @ ..] => drop_items(items, store),
        [verb @ ("pin" | "unpin"), what] => {
            let statuses = board.statuses().0;
            let source = statuses.iter().find(|status| status["name"] == *what);
            let image = source.and_then(|status| status["digest"].as_str()?.parse().ok());
            pins::change(store, documents, what, image, *verb == "pin").map_err(FsError::Invalid)
        }
        _ => Err(FsError::Invalid(format!("unknown command: known are {KNOWN}"))),
    }
}

/// All items are understood before the first one goes.
fn drop_items(words: &[&str], store: &Store) -> Result<String, FsError> {
    let (pairs, rest) = words.as_chunks::<2>();
    let item = |[kind, hex]: &[&str; 2]| Some((Kind::from_name(kind)?, Digest::from_hex(hex)?));
    let items: Option<Vec<_>> = pairs.iter().map(item).collect();
    let items = items.filter(|items| rest.is_empty() && !items.is_empty()).ok_or_else(|| {
        FsError::Invalid(
            "drop takes pairs of index, file, pack or chunk and 64 hexadecimal digits".to_owned(),
        )
    })?;
    for (kind, digest) in &items {
        store.discard(*kind, digest);
    }
    Ok(format!("dropped {}\n", items.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::store::StoreOptions;

    #[test]
    fn half_a_command_drops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let bytes = bytes::Bytes::from_static(b"content");
        let digest = Digest::of(&bytes);
        store.put_chunk(&digest, &bytes).unwrap();
        let hex = digest.hex();
        for bad in [vec![], vec!["chunk"], vec!["chunk", &hex, "file"], vec!["chunk", &hex, "blob", &hex]] {
            assert!(drop_items(&bad, &store).is_err(), "{bad:?}");
            assert!(store.has(Kind::Chunk, &digest));
        }
        assert_eq!(drop_items(&["chunk", &hex, "file", &hex], &store).unwrap(), "dropped 2\n");
        assert_eq!(store.used_bytes(), 0);
    }
}
