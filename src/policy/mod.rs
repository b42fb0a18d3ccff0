//! What may be used, and as what.
//!
//! In: bytes whose digest was checked by somebody else, configuration, keys. Out: typed facts (`PinnedRef`,
//! `ImageManifest`, `AddonManifest`, `AdmittedAddon`) or a [`code::Denied`] that names the reason.
//! Pure and synchronous: this room must not know of the network, of tokio, of FUSE, nor of any other room.

pub mod addon;
pub mod admit;
pub mod arguments;
pub mod ceiling;
pub mod code;
pub mod digest;
pub mod duration;
pub mod event;
pub mod explain;
pub mod fields;
pub mod image;
pub mod image_config;
pub mod mount_path;
pub(crate) mod nearest;
pub mod platform;
pub mod quantity;
pub mod reference;
pub mod rules;
pub mod soci;
pub mod source;
pub mod trust;
pub mod yaml;
