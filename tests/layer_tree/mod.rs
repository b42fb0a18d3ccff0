//! A layer's tree in the words of `tests/fixtures/*/expected.json`.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;

use addonfs::fetch::error::FetchError;
use addonfs::fetch::index::{Entry, EntryKind};
use addonfs::fetch::layer::{Layer, Read};
use addonfs::policy::digest::Digest;
use base64::Engine as _;
use serde_json::{Value, json};

pub(crate) async fn read(layer: &Layer, file: u32, offset: u64, len: u32) -> Result<Vec<u8>, FetchError> {
    match layer.read(file, offset, len) {
        Read::Ready(bytes) => Ok(bytes.to_vec()),
        Read::Pending(answer) => answer.await.map(|bytes| bytes.to_vec()),
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An entry in the words of `expected.json`, with the content of a file.
async fn described(layer: &Layer, entry: &Entry<'_>) -> Result<Value, FetchError> {
    let slash = if matches!(entry.kind, EntryKind::Dir) { "/" } else { "" };
    let mut words = json!({
        "name": text(entry.path) + slash, "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
        "mtime": entry.mtime_sec,
    });
    let base64 = &base64::engine::general_purpose::STANDARD;
    let xattrs: BTreeMap<_, _> =
        entry.xattrs.iter().map(|(name, value)| (text(name), base64.encode(value))).collect();
    if !xattrs.is_empty() {
        words["xattrs"] = json!(xattrs);
    }
    let kind = match entry.kind {
        EntryKind::Dir => "dir",
        EntryKind::File { file, size } => {
            if size > 0 {
                words["size"] = json!(size);
            }
            let mut content = Vec::new();
            while (content.len() as u64) < size {
                content.extend(read(layer, file, content.len() as u64, 7000).await?);
            }
            words["sha256"] = json!(Digest::of(&content).hex());
            "reg"
        }
        EntryKind::Symlink { target } => {
            words["linkName"] = json!(text(target));
            "symlink"
        }
        EntryKind::Hardlink { target } => {
            words["linkName"] = json!(text(target));
            "hardlink"
        }
        EntryKind::Char { major, minor } => {
            (words["devMajor"], words["devMinor"]) = (json!(major), json!(minor));
            "char"
        }
        EntryKind::Block { major, minor } => {
            (words["devMajor"], words["devMinor"]) = (json!(major), json!(minor));
            "block"
        }
        EntryKind::Fifo => "fifo",
    };
    words["type"] = json!(kind);
    Ok(words)
}

/// Every entry by name.
pub(crate) async fn tree(layer: &Layer) -> Result<BTreeMap<String, Value>, FetchError> {
    let mut tree = BTreeMap::new();
    for entry in layer.index().entries() {
        let words = described(layer, &entry).await?;
        tree.insert(words["name"].as_str().unwrap().to_owned(), words);
    }
    Ok(tree)
}
