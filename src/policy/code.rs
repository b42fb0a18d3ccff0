//! The codes by which a refusal is known to scripts, and the refusal itself.
//!
//! The spelling of every code is API: it stands in `status.json`, `discovery-errors`, `last_error` and, later,
//! in problem+json bodies.

use std::fmt;

/// What kind of refusal it is. [`Code::as_str`] gives the published spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The source is not trusted by its configuration (`trusted: false`).
    SourceTrustRequired,
    /// A source of this kind may not be used.
    SourceNotAllowed,
    /// The registry is not in `allowed_registries`.
    ImageRegistryNotAllowed,
    /// The profile wants a valid signature by a trusted key and there is none.
    ImageSignatureRequired,
    /// The source itself asked for a signature (`verify_signatures: true`) and there is no valid one.
    SourceSignatureInvalid,
    /// The add-on's manifest is missing or wrong.
    AddonManifest,
    /// The image, registry or layer could not be read as OCI content.
    Oci,
    /// The configuration is wrong.
    Config,
    /// The policy itself is wrong (unknown profile and the like).
    Policy,
    /// An explicit request goes above a ceiling.
    ImagePolicy,
    /// Policy refuses what was asked.
    PolicyDenied,
    /// No OCI runtime works on this host.
    RuntimeUnavailable,
    /// The arguments of a job are wrong.
    ArgumentsInvalid,
    /// The mount path of a source collides with something.
    MountPathConflict,
}

impl Code {
    /// The published spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SourceTrustRequired => "source.trust.required",
            Self::SourceNotAllowed => "source.not.allowed",
            Self::ImageRegistryNotAllowed => "image.registry.not.allowed",
            Self::ImageSignatureRequired => "image.signature.required",
            Self::SourceSignatureInvalid => "source-signature-invalid",
            Self::AddonManifest => "E_ADDON_MANIFEST",
            Self::Oci => "E_OCI",
            Self::Config => "E_CONFIG",
            Self::Policy => "E_POLICY",
            Self::ImagePolicy => "E_IMAGE_POLICY",
            Self::PolicyDenied => "policy.denied",
            Self::RuntimeUnavailable => "container.runtime.unavailable",
            Self::ArgumentsInvalid => "arguments.invalid",
            Self::MountPathConflict => "source.mountpath.conflict",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// A refusal: what was refused and what to do about it, in words, under a code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{code}: {message}")]
pub struct Denied {
    /// The published code.
    pub code: Code,
    /// Names the thing, the reason and what to do next.
    pub message: String,
}

impl Denied {
    /// A refusal with its words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
