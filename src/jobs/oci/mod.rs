//! The real executor: an OCI runtime of the host, driven by one shim process a run.

pub mod netns;
pub mod shim;
