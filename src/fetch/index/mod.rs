//! The layer index: what is in a layer and how to get at any byte of it.
//!
//! One model for every layer format: an *entry* (tar member) has a *file* whose content lies in *extents* of the
//! decoded tar; the decoded tar is cut into *spans*, each of which can be decoded on its own from a range of the
//! blob and is proven by the digest of its decoded bytes. Formats differ only in how spans are decoded.
//!
//! In: the decoded bytes of a layer and the places where decoding may start (`decode`). Out: [`LayerIndex`], an
//! immutable memory-mapped file ([`file`]), made by [`build`].
//!
//! | file | what |
//! |---|---|
//! | `tar`, `header`, `pax`, `sparse`, `path` | the tar walker, one foreign encoding a file |
//! | `inflate`, `gzip`, `zstd`, `decode` | deflate with checkpoints, zstd by frames, spans decoded at random |
//! | `toc`, `estargz`, `zstd_chunked` | an index from a table of contents, without the layer's bytes |
//! | `ztoc` | SOCI's tables, read and made |
//! | [`entry`], [`file`], [`build`] | the flat file: what it holds, reading, writing |
//!
//! Must not know of the store, of the network, nor of how layers are merged: whiteouts are names like any other.

pub mod build;
pub(crate) mod decode;
pub mod entry;
pub(crate) mod estargz;
pub mod file;
mod gzip;
mod header;
mod inflate;
mod path;
mod pax;
mod sparse;
pub(crate) mod tar;
pub mod toc;
mod zstd;
pub(crate) mod zstd_chunked;
pub mod ztoc;

pub use entry::{Entry, EntryKind, Xattrs};
pub use file::{LayerIndex, VERSION as INDEX_VERSION};
