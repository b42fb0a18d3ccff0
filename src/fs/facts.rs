//! What the control tree asks of the daemon: facts to show and commands that concern sources or the whole daemon.
//!
//! `cli::daemon` implements it; the tree renders a file anew only when the generation of its fact changed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::policy::digest::Digest;
use crate::policy::event::Event;

/// What `rootfs` points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rootfs {
    /// The tree of this image, which is complete.
    Complete(Digest),
    /// What has arrived of this image.
    Streaming(Digest),
}

/// How a source that is shown appears in the tree.
#[derive(Debug, Clone)]
pub struct ShownSource {
    /// Its name.
    pub name: String,
    /// Path below the mount point; empty for `.`.
    pub mount_path: String,
    /// The add-on's manifest, byte for byte; empty while it is not known, and then `rootfs` is all that is shown.
    pub manifest: Arc<[u8]>,
    /// `addon.json`, newline at end.
    pub addon_json: Arc<[u8]>,
    /// What `rootfs` points to, once there is something.
    pub rootfs: Option<Rootfs>,
    /// Where the add-on's files lie below `rootfs` (`addon` or `flwd-addon`).
    pub addon_dir: &'static str,
}

/// A source of any state, for `.addonfs/sources/<name>/`.
#[derive(Debug, Clone)]
pub struct SourceFiles {
    /// Its name.
    pub name: String,
    /// `spec.yaml`.
    pub spec_yaml: Arc<[u8]>,
    /// `status.json`.
    pub status_json: Arc<[u8]>,
    /// `conditions`: one line a condition.
    pub conditions: Arc<[u8]>,
    /// `last_error`: the last refusal in words, or empty.
    pub last_error: Arc<[u8]>,
}

/// To whom a command on a `ctl` is addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CtlTarget {
    /// `.addonfs/ctl`.
    Daemon,
    /// `.addonfs/sources/<name>/ctl`.
    Source(String),
}

/// The daemon's facts. Every method answers from memory, without waiting.
pub trait Facts: Send + Sync + fmt::Debug {
    /// Rises whenever anything below may have changed.
    fn generation(&self) -> u64;
    /// Sources shown in the tree, no two with colliding mount paths.
    fn shown(&self) -> Vec<Arc<ShownSource>>;
    /// All sources, by name.
    fn sources(&self) -> Vec<Arc<SourceFiles>>;
    /// `.addonfs/status.json`.
    fn status_json(&self) -> Arc<[u8]>;
    /// `.addonfs/discovery-errors`, one line each.
    fn discovery_errors(&self) -> Arc<[u8]>;
    /// `.addonfs/last_error`.
    fn last_error(&self) -> Arc<[u8]>;
    /// `.addonfs/metrics`, OpenMetrics text.
    fn metrics(&self) -> Arc<[u8]>;
    /// The file behind `.addonfs/events.jsonl`.
    fn events_file(&self) -> PathBuf;
    /// The file behind `.addonfs/sources/<name>/events.jsonl`.
    fn source_events_file(&self, source: &str) -> Option<PathBuf>;
    /// Obeys one command line; the answer is the reply text (newline at end). Must only queue slow work.
    fn control(&self, target: &CtlTarget, line: &str, uid: u32) -> Result<String, super::error::FsError>;
    /// Tells of an event.
    fn tell(&self, event: Event);
}
