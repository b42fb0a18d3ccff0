//! Verified bytes by digest.
//!
//! In: a pinned image and where it is (registry or layout on disk). Out: [`verified::VerifiedBytes`] (whole
//! manifests and blobs, or decoded content of files inside layers) and nothing else; raw bytes never leave.
//! Knows policy's types; must not know of jobs, of FUSE, of errno, nor of the command line.

pub mod addon_manifest;
pub mod bound_toc;
pub mod credentials;
mod document;
pub mod documents;
pub mod error;
pub mod image;
pub mod index;
pub(crate) mod ingest;
pub mod layer;
pub mod layout;
pub mod meter;
pub(crate) mod nowhere;
pub mod profile;
pub mod push;
pub mod referrers;
pub mod registry;
pub mod signatures;
pub mod sink;
pub mod soci;
pub mod source;
pub mod store;
mod traffic;
pub mod verified;
