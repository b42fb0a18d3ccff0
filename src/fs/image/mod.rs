//! Image trees: the layers of an image merged once, kept as a flat file, and answered from a memory map.
//!
//! In: layer indexes in order (lowest first) and, for content, the layers themselves. Out: names, attributes, links
//! and verified bytes, as plain values. Knows nothing of FUSE, of registries, nor of where the files are kept.
//!
//! * [`merge`]: applies layer after layer to one tree, as the image specification says
//! * `xattr`, `acl`: which extended attributes are shown
//! * `resolve`: where a path leads, for those who apply layers
//! * [`mod@file`], `write`: the flat file's format; reading it without trusting it, and writing it
//! * [`tree`]: one image's tree: build, open, look up
//! * [`stream`]: what has arrived of an image that is not complete
//! * [`images`]: what the image connections show: every image by digest, inode numbers, content

mod acl;
pub mod error;
pub mod file;
pub mod images;
pub mod merge;
pub mod program;
mod resolve;
pub mod stream;
pub mod tree;
mod write;
mod xattr;

pub use error::TreeError;
pub use images::{Image, Images, Side};
pub use tree::ImageTree;
