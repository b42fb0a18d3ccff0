//! What the daemon decides before jobs run: places, ceilings, grants and limits.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::policy::addon::Resources;
use crate::policy::rules::{Overrides, Profile};

/// Who asks. The kernel has checked the modes of the file; this is for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id of the caller.
    pub uid: u32,
    /// Group id of the caller.
    pub gid: u32,
    /// Process id of the caller; tells a resent request from another one's.
    pub pid: u32,
}

/// Words of progress while an image arrives; shown in the run's `last_error` and `record.json`.
pub type Progress = Arc<dyn Fn(String) + Send + Sync>;

/// A run that is about to be launched, and wants its image.
#[derive(Clone)]
pub struct ImageWanted {
    /// The source, by name.
    pub source: String,
    /// The entrypoint's id.
    pub entrypoint: String,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// The container's `PATH`.
    pub path: String,
    /// To be told how far it is.
    pub progress: Progress,
}

impl std::fmt::Debug for ImageWanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageWanted({}, {})", self.source, self.entrypoint)
    }
}

/// Makes sure that the image is in the tree; asked before every launch, so it must answer at once when the image is there.
/// An error is why the run fails.
pub type EnsureImage = Arc<dyn Fn(ImageWanted) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Limits that no manifest speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLimits {
    /// Processes and threads of one run.
    pub pids: u64,
    /// Bytes of `/tmp`.
    pub tmp_bytes: u64,
    /// Bytes of `RUN_DIR`.
    pub out_bytes: u64,
    /// Bytes kept of stdout and of stderr each.
    pub log_bytes: u64,
    /// From TERM to KILL.
    pub grace: Duration,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            // Enough for a parallel build or a JVM, small against the kernel's default of 32768 for all.
            pids: 1024,
            tmp_bytes: 256 << 20,
            out_bytes: 1 << 30,
            log_bytes: 64 << 20,
            // What podman stop and docker stop wait.
            grace: Duration::from_secs(10),
        }
    }
}

/// Which runs are kept. Live runs always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A finished run older than this is removed.
    pub max_age: Duration,
    /// Of finished runs only so many newest are kept, over all jobs.
    pub max_finished: usize,
    /// Of finished runs only so many newest are kept as come to this, bytes of logs and `out/` on disk over all jobs.
    pub max_bytes: u64,
    /// A run that was made and never started is removed after this.
    pub unstarted: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(30 * 24 * 3600),
            max_finished: 1000,
            // Eight runs that filled everything they may have, and many thousands of ordinary ones.
            max_bytes: 10 << 30,
            unstarted: Duration::from_secs(24 * 3600),
        }
    }
}

/// In the folder of images, what the name of one ends with that is to be a container's root (`sha256-<hex>.job`):
/// without devices, and without file capabilities.
pub const ROOT_IMAGE_SUFFIX: &str = ".job";

/// What policy says to jobs. Its default is the strictest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsPolicy {
    /// How strict the host is.
    pub profile: Profile,
    /// Ceilings; they clamp the hints of manifests.
    pub ceilings: Resources,
    /// What jobs may have beyond the strict defaults.
    pub overrides: Overrides,
}

/// Options of [`super::Jobs::open`].
#[derive(Clone)]
pub struct JobsOptions {
    /// The folder drawn in `jobs::layout`.
    pub state_dir: PathBuf,
    /// Where image trees appear, as the executor's shims see it (`M/.addonfs/images`).
    pub images_dir: PathBuf,
    /// The mount point, for words.
    pub mount_point: PathBuf,
    /// The group of run folders; `None` is the caller's own.
    pub group: Option<u32>,
    /// What policy says to jobs, until [`super::Jobs::set_policy`] says something else.
    pub policy: JobsPolicy,
    /// Limits without a hint.
    pub limits: RunLimits,
    /// Runs at the same time, all jobs together.
    pub max_running: usize,
    /// Runs at the same time of all jobs of one source.
    pub max_running_per_source: usize,
    /// Runs at the same time of one job.
    pub max_running_per_job: usize,
    /// Runs that wait; one more is refused with EAGAIN.
    pub max_queued: usize,
    /// What is kept.
    pub retention: Retention,
    /// The hook that brings images.
    pub ensure_image: EnsureImage,
}

impl JobsOptions {
    /// Profile secure, default limits, images always present.
    pub fn new(state_dir: PathBuf, mount_point: PathBuf) -> Self {
        Self {
            state_dir,
            images_dir: mount_point.join(".addonfs/images"),
            mount_point,
            group: None,
            policy: JobsPolicy::default(),
            limits: RunLimits::default(),
            max_running: 16,
            max_running_per_source: 16,
            max_running_per_job: 16,
            max_queued: 1000,
            retention: Retention::default(),
            ensure_image: Arc::new(|_| Box::pin(async { Ok(()) })),
        }
    }
}

impl fmt::Debug for JobsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobsOptions")
            .field("state_dir", &self.state_dir)
            .field("images_dir", &self.images_dir)
            .field("policy", &self.policy)
            .field("max_running", &self.max_running)
            .finish_non_exhaustive()
    }
}
