//! OCI image indexes, manifests and configs, parsed strictly from bytes whose digest was checked
//! (image-spec `manifest.md`, `image-index.md`, `config.md`; Docker's schema 2 names for the same things).

use serde::Serialize;

use super::digest::Digest;

/// What a manifest says about a blob (image-spec `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// The media type as written.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// Annotations, in their written order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<(String, String)>,
}

/// Operating system and architecture, in Go's words (`linux`, `amd64`, `arm64`, variant `v8`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Platform {
    /// `os`.
    pub os: String,
    /// `architecture`.
    pub architecture: String,
    /// `variant`, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A parsed image manifest.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// The media type of the manifest.
    pub media_type: String,
    /// `artifactType`, for artifacts.
    pub artifact_type: Option<String>,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest's own annotations (`org.opencontainers.image.revision` and the like).
    pub annotations: Vec<(String, String)>,
}

/// What addonfs needs of an image config.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ImageConfig {
    /// `config.User`, as written (`""` is root).
    pub user: String,
    /// `config.Env`, as `NAME=value` lines.
    pub env: Vec<String>,
    /// `config.WorkingDir`, `/` when absent.
    pub working_dir: String,
    /// `config.Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    pub cmd: Vec<String>,
    /// `created` as seconds since 1970, if it parses: the time of directories that no layer names.
    pub created: Option<i64>,
    /// `rootfs.diff_ids`, lowest layer first.
    pub diff_ids: Vec<Digest>,
    /// Platform of the config.
    pub platform: Option<Platform>,
}
