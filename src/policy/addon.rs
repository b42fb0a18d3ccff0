//! The add-on manifest (`/addon/manifest.yaml`, classic dialect).
//!
//! In: the file's bytes. Out: an [`AddonManifest`] in which everything is checked, or every problem at once, each
//! with line, column and JSON pointer. Types here; [`parse`] reads the document, [`entrypoint`] one entrypoint,
//! [`fields`] single values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::arguments::ArgSpec;
use super::code::{Code, Denied};
use super::digest::Digest;
use super::rules::Profile;
pub use super::yaml::Problem;

mod entrypoint;
mod fields;
mod parse;

/// Names that a source's folder has beside the folders of its jobs: no entrypoint may be called so.
pub const FIXED_NAMES: [&str; 4] = ["rootfs", "addon", "addon.json", "manifest.yaml"];

/// A valid add-on manifest.
#[derive(Debug, Clone)]
pub struct AddonManifest {
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
    /// `command`, exec form, at least one non-empty element.
    pub command: Vec<String>,
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
