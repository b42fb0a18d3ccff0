//! What the configuration says of one source.

use serde::Serialize;

use crate::policy::reference::PinnedRef;

/// When the layers of a source are fetched (requirements: case-insensitive, aliases accepted when parsed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// When the source is added (aliases `always`, the empty string).
    #[default]
    OnAdd,
    /// At the first run that needs it (aliases `ifNotPresent`, `if-not-present`).
    OnRun,
    /// Never: it must be in the store already.
    Never,
    /// At every daemon start.
    OnStartup,
}

/// Whether other jobs may mount the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expose {
    /// Not at all.
    None,
    /// Read-only.
    #[default]
    Read,
    /// Read-write.
    ReadWrite,
}

/// One source, checked and normalised.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Its name: unique, no `/`, no whitespace.
    pub name: String,
    /// The pinned image.
    pub image: PinnedRef,
    /// The path below the mount point, cleaned; empty for `.`.
    pub mount_path: String,
    /// Consent by the configuration. Always true once a spec exists; kept for the record.
    pub trusted: bool,
    /// When layers are fetched.
    pub pull_policy: PullPolicy,
    /// Whether other jobs may mount it.
    pub expose: Expose,
    /// Demand a valid signature whatever the profile says.
    pub verify_signatures: bool,
    /// Allow plain http (and unverified TLS) to this registry. Loopback registries need it not.
    pub insecure: bool,
}
