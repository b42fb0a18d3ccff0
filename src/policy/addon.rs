//! The add-on manifest (`/addon/manifest.yaml`), in either of its dialects.
//!
//! In: the file's bytes. Out: an [`AddonManifest`] in which everything is checked, or every problem at once, each
//! with line, column and JSON pointer. Types here; [`parse`] tells the dialects apart; [`classic`] and [`entrypoint`]
//! read the one with `entrypoints`, [`v1`] and [`v1_job`] the one with `apiVersion`; [`fields`] single values;
//! [`schema`] says the same in JSON Schema, for editors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::arguments::ArgSpec;
use super::code::{Code, Denied};
use super::digest::Digest;
use super::image_config::ImageConfig;
use super::rules::Profile;
pub use super::yaml::Problem;

mod classic;
mod entrypoint;
mod fields;
mod parse;
pub mod schema;
mod v1;
mod v1_job;

/// Names that a source's folder has beside the folders of its jobs: no entrypoint may be called so.
pub const FIXED_NAMES: [&str; 4] = ["rootfs", "addon", "addon.json", "manifest.yaml"];

/// A valid add-on manifest.
#[derive(Debug, Clone)]
pub struct AddonManifest {
    /// How it is written.
    pub dialect: Dialect,
    /// `name`.
    pub name: String,
    /// `version`, strict SemVer.
    pub version: String,
    /// `description`.
    pub description: Option<String>,
    /// `metadata`, a free string map.
    pub metadata: BTreeMap<String, String>,
    /// `entrypoints`, in their written order, at least one, ids unique.
    pub entrypoints: Vec<Entrypoint>,
    /// What is odd but does no harm: keys that nobody reads.
    pub warnings: Vec<Problem>,
}

/// The two ways of writing a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Dialect {
    /// `name`, `version`, `entrypoints`.
    #[serde(rename = "classic")]
    Classic,
    /// `apiVersion: flwd.addon/v1`.
    #[serde(rename = "flwd.addon/v1")]
    V1,
}

impl AddonManifest {
    /// Whether the image can start what the manifest asks for: jobs of the v1 dialect are its ENTRYPOINT.
    pub fn check_image(&self, config: &ImageConfig) -> Result<(), Denied> {
        let needs = |entry: &Entrypoint| entry.program == Program::ImageEntrypoint;
        if config.entrypoint.is_empty() && self.entrypoints.iter().any(needs) {
            let words = "the jobs of a flwd.addon/v1 manifest start the image's ENTRYPOINT, and the image has none: \
                         set one, or write the manifest with entrypoints and their command";
            return Err(Denied::new(Code::AddonManifest, words));
        }
        Ok(())
    }
}

/// The refusal of a manifest: every problem in one line, in the order of the file.
pub fn denied(problems: &[Problem]) -> Denied {
    let words: Vec<String> = problems.iter().map(|problem| problem.to_string().replace('\n', " ")).collect();
    Denied::new(Code::AddonManifest, format!("manifest.yaml: {}", words.join("; ")))
}

/// One entrypoint: what becomes a job.
#[derive(Debug, Clone)]
pub struct Entrypoint {
    /// `id`, a directory name: `^[a-z0-9][a-z0-9_.-]*$`, at most 128 bytes.
    pub id: String,
    /// `name`, the id when absent.
    pub name: String,
    /// `description`.
    pub description: Option<String>,
    /// What is started.
    pub program: Program,
    /// The compiled argument schema; an entrypoint without `argspec` takes no arguments.
    pub argspec: Arc<ArgSpec>,
    /// `resources`: hints, to be clamped by ceilings.
    pub resources: Resources,
    /// `env`.
    pub env: BTreeMap<String, String>,
    /// `network`.
    pub network: Network,
    /// `profile`: under which the job wants to run. A looser one than the host's needs the host's consent.
    pub profile: Option<Profile>,
    /// `annotations`, passed through.
    pub annotations: BTreeMap<String, String>,
}

/// What an entrypoint starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// `command`, exec form, at least one element, the first one not empty.
    Command(Vec<String>),
    /// The image's ENTRYPOINT, with the entrypoint's id as its first argument.
    ImageEntrypoint,
}

impl Entrypoint {
    /// Program and arguments in an image.
    pub fn argv(&self, image: &ImageConfig) -> Vec<String> {
        match &self.program {
            Program::Command(words) => words.clone(),
            Program::ImageEntrypoint => image.entrypoint.iter().chain([&self.id]).cloned().collect(),
        }
    }
}

/// Resource limits; `None` is "not said".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
}

/// Whether a job sees a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// No network but its own loopback.
    #[default]
    None,
    /// Outgoing network; needs the consent of policy.
    All,
}

/// Where a job comes from: stands in listings, run records and journal entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Origin {
    /// Always `oci` today.
    pub source_kind: String,
    /// The source's name in the configuration.
    pub source_name: String,
    /// The add-on's `name`.
    pub addon_name: String,
    /// The add-on's `version`.
    pub addon_version: String,
    /// The pinned digest.
    pub addon_image_digest: Digest,
    /// The image's `org.opencontainers.image.revision` annotation, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_revision: Option<String>,
    /// The image's `org.opencontainers.image.source` annotation, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_source: Option<String>,
}
