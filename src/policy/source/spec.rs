//! What the configuration says of one source.

use serde::Serialize;

use crate::policy::reference::PinnedRef;
use crate::policy::trust::{Trust, TrustedKey};

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

impl PullPolicy {
    /// The policy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "" | "on-add" | "always" => Some(Self::OnAdd),
            "on-run" | "ifnotpresent" | "if-not-present" => Some(Self::OnRun),
            "never" => Some(Self::Never),
            "on-startup" => Some(Self::OnStartup),
            _ => None,
        }
    }
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

impl Expose {
    /// The word of the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "read" => Some(Self::Read),
            "readwrite" => Some(Self::ReadWrite),
            _ => None,
        }
    }
}

/// One source, checked and normalised.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Its name: unique, a file name.
    pub name: String,
    /// The pinned image.
    pub image: PinnedRef,
    /// The path below the mount point, cleaned; empty for `.`.
    pub mount_path: String,
    /// Consent by the configuration: true unless the entry says `trusted: false`, which [`crate::policy::admit`]
    /// refuses.
    pub trusted: bool,
    /// When layers are fetched.
    pub pull_policy: PullPolicy,
    /// Whether other jobs may mount it.
    pub expose: Expose,
    /// Demand a valid signature whatever the profile says.
    pub verify_signatures: bool,
    /// Whose signatures count for this source, instead of the policy's keys.
    pub trust: Option<Trust>,
    /// Allow plain http (and unverified TLS) to this registry. Loopback registries need it not.
    pub insecure: bool,
    /// Keep all of its content in the cache, and fetch it without being asked.
    pub pin: bool,
}

/// The keys of `spec.yaml`, in the order they are shown.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Shown<'a> {
    name: &'a str,
    r#type: &'static str,
    image: &'a PinnedRef,
    #[serde(rename = "mountPath")]
    mount_path: &'a str,
    trusted: bool,
    pull_policy: PullPolicy,
    expose: Expose,
    verify_signatures: bool,
    insecure: bool,
    pin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<ShownTrust<'a>>,
}

#[derive(Serialize)]
struct ShownTrust<'a> {
    keys: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    index_keys: Vec<&'a str>,
    require_log: bool,
}

fn key_names(keys: &[TrustedKey]) -> Vec<&str> {
    keys.iter().map(|key| key.name.as_str()).collect()
}

impl SourceSpec {
    /// The spec as it stands in `.addonfs/sources/<name>/spec.yaml`: normalised, with every default written out.
    pub fn to_yaml(&self) -> String {
        let trust = self.trust.as_ref().map(|trust| ShownTrust {
            keys: key_names(&trust.keys),
            index_keys: key_names(&trust.index_keys),
            require_log: trust.require_log,
        });
        let shown = Shown {
            name: &self.name,
            r#type: "oci",
            image: &self.image,
            mount_path: if self.mount_path.is_empty() { "." } else { &self.mount_path },
            trusted: self.trusted,
            pull_policy: self.pull_policy,
            expose: self.expose,
            verify_signatures: self.verify_signatures,
            insecure: self.insecure,
            pin: self.pin,
            trust,
        };
        // Strings, booleans and lists of strings always serialize.
        let mut yaml = serde_saphyr::to_string(&shown).unwrap_or_default();
        if !yaml.ends_with('\n') {
            yaml.push('\n');
        }
        yaml
    }
}
