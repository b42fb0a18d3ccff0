//! A plan as everybody sees it: `plan.json`, the answer of `plan`, and the body of an answer over HTTP are this one
//! type. Every field is there always; the names are API and stand in docs/fields.md.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::jobs::descriptor::{Finding, millis};
use crate::jobs::executor::NetworkSpec;
use crate::jobs::record::pretty;
use crate::policy::addon::{Network, Origin, Resources};
use crate::policy::digest::Digest;
use crate::policy::rules::Profile;

/// What would run.
#[derive(Debug, Clone, Serialize)]
pub struct PlanDocument {
    /// `addonfs.plan/v1`.
    pub schema: &'static str,
    /// The job's id.
    pub job: String,
    /// The arguments with defaults, secrets as `"[secret]"`.
    pub args: Map<String, Value>,
    /// What carries it out, and how.
    pub executor_preview: ExecutorPreview,
    /// What each limit comes from.
    pub limits: Limits,
    /// The profile it runs under.
    pub profile: Profile,
    /// The profile that the caller asked for.
    pub profile_asked: Option<Profile>,
    /// What was verified and by which key.
    pub image_trust: Value,
    /// What policy has to say that is no refusal.
    pub policy_findings: Vec<Finding>,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Command and arguments, exec form.
    pub command: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// `USER` of the image.
    pub user: String,
    /// Name to value. A secret is no variable; what comes from the daemon's own environment shows as `"[secret]"`.
    pub env: Map<String, Value>,
    /// What the job sees beside the kernel's own file systems.
    pub mounts: Vec<MountPreview>,
    /// What it needs.
    pub requirements: Requirements,
}

/// `executor_preview`.
#[derive(Debug, Clone, Serialize)]
pub struct ExecutorPreview {
    /// Always `container`.
    pub executor: &'static str,
    /// The OCI runtime, if there is one.
    pub runtime: Option<RuntimePreview>,
    /// The reference in words.
    pub container_image: String,
    /// The tree that it runs: digest of the platform's manifest.
    pub resolved_digest: Digest,
    /// `none`, `user` or `host`.
    pub network: NetworkSpec,
    /// `read-only` or `throw-away`.
    pub rootfs: &'static str,
    /// Capabilities: none, ever.
    pub caps: [&'static str; 0],
    /// The limits in effect, as `limits` of `job.json`.
    pub resources: Value,
    /// Limits that this host cannot keep, in words.
    pub limits_unavailable: Vec<String>,
}

/// The OCI runtime.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimePreview {
    /// `runc`, `crun` …
    pub name: String,
    /// First line of its `--version`.
    pub version: String,
}

/// Where each limit comes from; `null` is "none".
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Processor, thousandths of a core.
    pub cpu_millis: Limit,
    /// Memory, bytes.
    pub memory_bytes: Limit,
    /// Wall-clock time, milliseconds.
    pub timeout_ms: Limit,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What the manifest suggests.
    pub hint: Option<u64>,
    /// What the caller asked for.
    pub asked: Option<u64>,
    /// Policy's ceiling.
    pub ceiling: Option<u64>,
    /// What holds: the request, else the smaller of hint and ceiling.
    pub effective: Option<u64>,
}

/// `provenance`.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance {
    /// The source.
    pub source: SourcePreview,
    /// The add-on and its revision.
    pub origin: Origin,
}

/// `provenance.source`.
#[derive(Debug, Clone, Serialize)]
pub struct SourcePreview {
    /// Its name.
    pub name: String,
    /// The reference in words.
    pub image: String,
    /// The pinned digest.
    pub digest: Digest,
    /// Where it is shown.
    pub mount_path: String,
}

/// Something mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountPreview {
    /// Path inside the container.
    pub destination: String,
    /// `image`, `tmpfs`, `arguments`, `secret`, `out` or `data`.
    pub kind: &'static str,
    /// `read-only`, `read-write`, or `throw-away`: written, and gone at the end.
    pub access: &'static str,
    /// The most it holds, bytes; `null` without a limit of its own.
    pub size_bytes: Option<u64>,
}

/// `requirements`.
#[derive(Debug, Clone, Serialize)]
pub struct Requirements {
    /// What the manifest asks for.
    pub network: Network,
    /// Names of the arguments that are secrets.
    pub secrets: Vec<String>,
    /// Whether it has a `DATA_DIR`.
    pub data_dir: bool,
}

impl PlanDocument {
    /// The bytes of `plan.json`.
    pub fn to_json(&self) -> Vec<u8> {
        pretty(&serde_json::to_value(self).unwrap_or_default())
    }
}

impl Limits {
    pub(super) fn of(hint: Resources, asked: Resources, ceiling: Resources, effective: Resources) -> Self {
        let limit = |of: fn(&Resources) -> Option<u64>| Limit {
            hint: of(&hint),
            asked: of(&asked),
            ceiling: of(&ceiling),
            effective: of(&effective),
        };
        Self {
            cpu_millis: limit(|r| r.cpu_millis),
            memory_bytes: limit(|r| r.memory_bytes),
            timeout_ms: limit(|r| r.timeout.map(millis)),
        }
    }
}
