//! Descriptors, arguments, plans, runs, the executor, the journal.
//!
//! In: add-ons that policy admitted ([`AddonJobs`]), callers' commands. Out: the bytes of job and run files,
//! runs carried out by an [`executor::Executor`], events. Knows policy's types only; must not know of fetch,
//! of FUSE nor of the command line.
//!
//! ```text
//! AddonJobs -> descriptor (job.json)                      bytes of a ctl -> control (commands)
//!     Job + arguments + policy -> plan (pure)  --start-->  queue -> supervisor -> executor -> shim
//!                                                 record -> journal (durable) -> adopt (after a restart)
//! ```
//! [`handle::Jobs`] is the only door; all of its methods answer at once, slow work goes to tasks of the runtime.

use std::sync::Arc;

use crate::policy::addon::{AddonManifest, Origin};
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::image::ImageConfig;
use crate::policy::rules::Profile;

mod adopt;
mod args;
mod commands;
pub mod control;
mod descriptor;
mod direct;
mod distrust;
pub mod error;
pub mod executor;
mod handle;
mod journal;
mod layout;
mod log;
pub mod oci;
mod options;
mod plan;
mod queue;
mod record;
mod retention;
mod run;
pub mod runner;
pub mod spawner;
mod start;
mod state;
mod stdin;
mod supervisor;
mod usage;
mod whose;

pub use args::{MAX_ARGS_BYTES, MAX_PLAIN_BYTES};
pub use control::{Asked, Command, JobCommand};
pub use descriptor::{Finding, Job};
pub use direct::Order;
pub use error::JobError;
pub use handle::{Counts, Jobs};
pub use log::Log;
pub use options::{
    Caller, EnsureImage, ImageWanted, JobsOptions, JobsPolicy, Progress, ROOT_IMAGE_SUFFIX, Retention,
    RunLimits,
};
pub use plan::Wishes;
pub use plan::document::{
    ExecutorPreview, Limit, Limits, MountPreview, PlanDocument, Provenance, Requirements, RuntimePreview,
    SourcePreview,
};
pub use record::{EXIT_CANCELED, EXIT_REFUSED, EXIT_TIMEOUT, Via};
pub use run::Run;
pub use state::{Answer, RunState, Verb};

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
    /// The profiles under which the image would not have been admitted, each with its refusal: no job of it runs under
    /// them.
    pub refused_under: Vec<(Profile, Denied)>,
}

/// The programs inside the program: `addonfs __spawner …` and `addonfs __shim …`, which this room re-executes.
/// `None` if `args` (with the program's name first) ask for neither; asked before anything else is parsed, because
/// the start of a shim is part of every job's start.
pub fn reexecuted(args: &[std::ffi::OsString]) -> Option<std::process::ExitCode> {
    match args.get(1)?.to_str()? {
        spawner::ENTRY => Some(spawner::main(args.get(2..).unwrap_or_default())),
        #[cfg(feature = "embedded-runtime")]
        oci::embedded::ENTRY => Some(oci::embedded::main(args.get(2..).unwrap_or_default())),
        oci::shim::ENTRY => Some(oci::shim::main(args.get(2..).unwrap_or_default())),
        _ => None,
    }
}
