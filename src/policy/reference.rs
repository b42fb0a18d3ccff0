//! Image references: what a user writes to name an image, and the pinned form that later rooms accept.
//!
//! Two places hold images: a registry (`host[:port]/repository[:tag][@digest]`) and an OCI image layout on disk
//! (`oci:PATH[:tag][@digest]`). Short names resolve as Docker resolves them: the first element is a host only if
//! there is a `/` and it contains `.` or `:` or is `localhost`; otherwise the host is `docker.io`, and a
//! single-element repository there gets `library/` before it.

use std::path::PathBuf;

use super::digest::Digest;

/// The host name by which policy knows image layouts on disk.
pub const LAYOUT_REGISTRY: &str = "oci-layout";

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// `repository` on the registry `host` (lower case, with its port if one was written).
    Registry {
        /// `docker.io` for short names; `index.docker.io` is read as `docker.io`.
        host: String,
        /// The repository, without host, tag or digest.
        repository: String,
    },
    /// An OCI image layout in the folder `path`.
    Layout {
        /// The folder that holds `oci-layout` and `index.json`.
        path: PathBuf,
    },
}

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Where the image is.
    pub location: Location,
    /// The tag, a label only when a digest is present too.
    pub tag: Option<String>,
    /// The digest; it wins over the tag.
    pub digest: Option<Digest>,
}

/// A reference that names one manifest for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PinnedRef {
    /// Where the image is.
    pub location: Location,
    /// The tag it was written with: a label.
    pub tag: Option<String>,
    /// The digest of the manifest or image index.
    pub digest: Digest,
}
