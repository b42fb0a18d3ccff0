//! What the configuration says of one source.

use serde::Serialize;

use crate::policy::code::{Code, Denied};
use crate::policy::reference::PinnedRef;
use crate::policy::rules::Profile;
use crate::policy::trust::notation::load::NotationPaths;
use crate::policy::trust::sigstore::identity::Identity;
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
    /// Show what arrives of layers without an index before their digests are proven. Never under profile `secure`.
    pub stream: bool,
    /// The profile under which it is judged, instead of the host's: asked for by who added it at run time, and granted.
    pub profile: Option<Profile>,
}

impl SourceSpec {
    /// A source of this image that says nothing else.
    pub fn of_image(name: &str, image: PinnedRef) -> Self {
        Self {
            name: name.to_owned(),
            image,
            mount_path: name.to_owned(),
            trusted: true,
            pull_policy: PullPolicy::default(),
            expose: Expose::default(),
            verify_signatures: false,
            trust: None,
            insecure: false,
            pin: false,
            stream: false,
            profile: None,
        }
    }
}

/// Whether the profile in force lets these sources be as they are: `stream: true` shows bytes before they are proven.
pub fn check_streams(sources: &[SourceSpec], profile: Profile) -> Result<(), Denied> {
    let streaming = sources.iter().filter(|source| source.stream && profile == Profile::Secure);
    let names: Vec<&str> = streaming.map(|source| source.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Denied::new(
        Code::Config,
        format!(
            "stream: true of source {} shows bytes before their digest is proven, and profile secure never does: remove \
             it, or set policy.profile to permissive",
            names.join(" and ")
        ),
    ))
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
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<ShownTrust<'a>>,
}

#[derive(Serialize)]
struct ShownTrust<'a> {
    keys: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    index_keys: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[Identity]>::is_empty")]
    identities: &'a [Identity],
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_root: Option<&'a str>,
    require_log: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    notation: Option<&'a NotationPaths>,
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
            identities: &trust.identities,
            trusted_root: trust.root.name(),
            require_log: trust.require_log,
            notation: trust.notation.as_ref().and_then(|notation| notation.paths()),
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
            stream: self.stream,
            profile: self.profile,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_secure_shows_nothing_unproven() {
        let spec = |name: &str, stream| SourceSpec {
            name: name.to_owned(),
            image: format!("localhost:5000/a@{}", crate::policy::digest::Digest::of(b"x"))
                .parse::<crate::policy::reference::ImageRef>()
                .and_then(|image| image.pinned())
                .unwrap(),
            mount_path: name.to_owned(),
            trusted: true,
            pull_policy: PullPolicy::OnAdd,
            expose: Expose::Read,
            verify_signatures: false,
            trust: None,
            insecure: false,
            pin: false,
            stream,
            profile: None,
        };
        let sources = [spec("a", true), spec("b", false), spec("c", true)];
        let refused = check_streams(&sources, Profile::Secure).unwrap_err();
        assert!(refused.code == Code::Config && refused.message.contains("source a and c"), "{refused}");
        assert!(check_streams(&sources[1..2], Profile::Secure).is_ok());
        for profile in [Profile::Permissive, Profile::Disabled] {
            assert!(check_streams(&sources, profile).is_ok());
        }
    }
}
