//! Descriptors, arguments, plans, runs, the executor, the journal.
//!
//! In: add-ons that policy admitted ([`AddonJobs`]), callers' commands. Out: the bytes of job and run files,
//! runs carried out by an [`executor::Executor`], events. Knows policy's types only; must not know of fetch,
//! of FUSE nor of the command line.

use std::sync::Arc;

use crate::policy::addon::{AddonManifest, Origin};
use crate::policy::digest::Digest;
use crate::policy::image::ImageConfig;

pub mod error;
pub mod executor;

/// An admitted add-on as this room needs it.
#[derive(Debug, Clone)]
pub struct AddonJobs {
    /// The source's name.
    pub source: String,
    /// Path below the mount point; empty for `.`. A job's id is this path, `/`, and the entrypoint's id.
    pub mount_path: String,
    /// Where the jobs come from.
    pub origin: Origin,
    /// The add-on's manifest.
    pub manifest: Arc<AddonManifest>,
    /// The image's config (USER, ENV, WORKDIR).
    pub image_config: Arc<ImageConfig>,
    /// The digest under which the image's tree appears in `.addonfs/images`.
    pub tree: Digest,
    /// The reference in words, for descriptors and plans.
    pub image: String,
    /// What was verified and by which key: the `trust` object of plans and records.
    pub trust: serde_json::Value,
}
