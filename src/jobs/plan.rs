//! What would run, decided from a job, its arguments and policy. Pure: everything it needs is handed in.
//! What comes out for people and programs is [`PlanDocument`]; what the executor gets is a [`LaunchSpec`].

use std::path::PathBuf;

use serde_json::{Value, json};

use self::document::{
    ExecutorPreview, Limits, MountPreview, PlanDocument, Provenance, Requirements, RuntimePreview,
    SourcePreview,
};
use self::environment::Variable;
use super::args::MAX_PLAIN_BYTES;
use super::descriptor::{Finding, Job, limits_json, millis};
use super::error::JobError;
use super::executor::{
    ARGS_JSON_INSIDE, DATA_DIR_INSIDE, LaunchSpec, NetworkSpec, RUN_DIR_INSIDE, RuntimeInfo, SECRETS_INSIDE,
};
use super::options::{ROOT_IMAGE_SUFFIX, RunLimits};
use crate::policy::addon::{Network, Resources};
use crate::policy::arguments::{ArgumentProblem, Arguments, MASK};
use crate::policy::code::{Code, Denied};
use crate::policy::digest::Digest;
use crate::policy::rules::profile::Granted;
use crate::policy::rules::{Overrides, Profile};

pub(super) mod document;
mod environment;
#[cfg(test)]
mod tests;

/// What a plan depends on besides job and arguments.
#[derive(Debug, Clone)]
pub(super) struct Surroundings<'a> {
    pub(super) profile: Profile,
    pub(super) overrides: &'a Overrides,
    /// The daemon's environment, where policy gives it to jobs; else empty.
    pub(super) inherited: &'a [(String, String)],
    pub(super) limits: RunLimits,
    pub(super) ceilings: Resources,
    /// Where image trees are.
    pub(super) images_dir: PathBuf,
    /// The job's `DATA_DIR` on the host, were it granted.
    pub(super) data_dir: PathBuf,
    /// The runtime, or why there is none.
    pub(super) runtime: Result<RuntimeInfo, String>,
    /// What the executor offers for the network that the job asks for.
    pub(super) network: Result<NetworkSpec, String>,
    /// Limits that this host cannot keep.
    pub(super) unavailable: Vec<String>,
}

/// What a caller may ask for beside arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The profile to run under; a looser one than holds needs policy's consent.
    pub profile: Option<Profile>,
    /// Limits in place of the manifest's hints; above a ceiling they are refused.
    pub limits: Resources,
}

/// A decision, complete but for the run's id.
#[derive(Debug)]
pub(super) struct Plan {
    spec: LaunchSpec,
    pub(super) document: PlanDocument,
    /// Content of `plan.json`.
    pub(super) json: Vec<u8>,
    /// Its digest.
    pub(super) digest: Digest,
    /// The `policy` object of the record.
    pub(super) policy: Value,
    /// Why it cannot be launched now, though it may be shown.
    pub(super) no_runtime: Option<Denied>,
}

impl Plan {
    /// Decides.
    pub(super) fn make(
        job: &Job,
        args: &Arguments,
        wishes: Wishes,
        around: &Surroundings<'_>,
    ) -> Result<Self, JobError> {
        let (hinted, cuts) = job.entry.resources.clamped(around.ceilings);
        let mut findings: Vec<Finding> = cuts.into_iter().map(Finding::clamped).collect();
        let effective = wishes.limits.within(around.ceilings)?.or(hinted);
        let profile = profile(job, wishes.profile, around, &mut findings)?;
        let around = &Surroundings { profile, ..around.clone() };
        let network = network(job, around, &mut findings)?;
        let env = environment::variables(job, args, around);
        let spec = spec(job, args, around, network, effective, &env, &mut findings)?;
        let unavailable = around.unavailable.iter();
        findings
            .extend(unavailable.map(|words| Finding { code: "limits.unavailable", message: words.clone() }));
        let no_runtime = around.runtime.as_ref().err().map(|why| Denied::new(Code::RuntimeUnavailable, why));
        if let Some(denied) = &no_runtime {
            findings.push(Finding { code: denied.code.as_str(), message: denied.message.clone() });
        }
        let document = document(job, args, wishes, around, &spec, effective, &env, findings);
        let policy = json!({
            "profile": document.profile,
            "profile_asked": document.profile_asked,
            "limits_asked": asked_json(wishes.limits),
            "network": network,
            "rootfs": document.executor_preview.rootfs,
            "findings": document.policy_findings,
        });
        let json = document.to_json();
        Ok(Self { digest: Digest::of(&json), json, document, spec, policy, no_runtime })
    }

    /// The `limits` object of the record.
    pub(super) fn limits(&self) -> &Value {
        &self.document.executor_preview.resources
    }

    /// The launch of this plan by one run.
    pub(super) fn launch(&self, run_id: &str, stdin: bool) -> LaunchSpec {
        LaunchSpec { run_id: run_id.to_owned(), stdin, ..self.spec.clone() }
    }
}

impl Wishes {
    /// What a run asked for, from the `policy` object of its record: after a restart it is asked for again.
    pub(super) fn of_record(policy: &Value) -> Result<Self, JobError> {
        let profile = policy["profile_asked"].as_str().map(str::parse).transpose()?;
        let asked = &policy["limits_asked"];
        let limits = Resources {
            cpu_millis: asked["cpu_millis"].as_u64(),
            memory_bytes: asked["memory_bytes"].as_u64(),
            timeout: asked["timeout_ms"].as_u64().map(std::time::Duration::from_millis),
        };
        Ok(Self { profile, limits })
    }
}

fn asked_json(limits: Resources) -> Value {
    json!({
        "cpu_millis": limits.cpu_millis,
        "memory_bytes": limits.memory_bytes,
        "timeout_ms": limits.timeout.map(millis),
    })
}

#[allow(clippy::too_many_arguments)] // what a plan is made of, each once
fn document(
    job: &Job,
    args: &Arguments,
    wishes: Wishes,
    around: &Surroundings<'_>,
    spec: &LaunchSpec,
    effective: Resources,
    env: &[Variable],
    findings: Vec<Finding>,
) -> PlanDocument {
    let addon = &job.addon;
    let shown = |v: &Variable| if v.hidden { MASK.to_owned() } else { v.value.clone() };
    let runtime = around.runtime.as_ref().ok();
    PlanDocument {
        schema: "addonfs.plan/v1",
        job: job.id().to_owned(),
        args: args.masked.clone(),
        executor_preview: ExecutorPreview {
            executor: "container",
            runtime: runtime.map(|r| RuntimePreview { name: r.name.clone(), version: r.version.clone() }),
            container_image: addon.image.clone(),
            resolved_digest: addon.tree,
            network: spec.network,
            rootfs: if spec.read_only_root { "read-only" } else { "throw-away" },
            caps: [],
            resources: limits_json(effective, around.limits),
            limits_unavailable: around.unavailable.clone(),
        },
        limits: Limits::of(job.entry.resources, wishes.limits, around.ceilings, effective),
        profile: around.profile,
        profile_asked: wishes.profile,
        image_trust: addon.trust.clone(),
        policy_findings: findings,
        provenance: Provenance {
            source: SourcePreview {
                name: addon.source.clone(),
                image: addon.image.clone(),
                digest: addon.origin.addon_image_digest,
                mount_path: addon.mount_path.clone(),
            },
            origin: addon.origin.clone(),
        },
        command: spec.argv.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        env: env.iter().map(|v| (v.name.clone(), Value::from(shown(v)))).collect(),
        mounts: mounts(spec),
        requirements: Requirements {
            network: job.entry.network,
            secrets: job.entry.argspec.secrets.clone(),
            data_dir: spec.data_dir.is_some(),
        },
    }
}

/// What the executor makes of a launch, as far as it concerns the job's own files.
fn mounts(spec: &LaunchSpec) -> Vec<MountPreview> {
    let mount = |destination: &str, kind, access, size_bytes| MountPreview {
        destination: destination.to_owned(),
        kind,
        access,
        size_bytes,
    };
    let root = if spec.read_only_root { "read-only" } else { "throw-away" };
    let mut all = vec![
        mount("/", "image", root, None),
        mount("/tmp", "tmpfs", "throw-away", Some(spec.tmp_bytes)),
        mount(ARGS_JSON_INSIDE, "arguments", "read-only", None),
        mount(RUN_DIR_INSIDE, "out", "read-write", Some(spec.out_bytes)),
    ];
    all.extend(spec.data_dir.iter().map(|_| mount(DATA_DIR_INSIDE, "data", "read-write", None)));
    let secret = |name| mount(&format!("{SECRETS_INSIDE}/{name}"), "secret", "read-only", None);
    all.extend(spec.secret_names.iter().map(secret));
    all
}

/// The profile of the host, then the manifest's wish, which is cut to what policy grants as any hint is, then the
/// caller's, which is granted or refused. Under a profile that would not have let the image in, nothing of it runs.
fn profile(
    job: &Job,
    asked: Option<Profile>,
    around: &Surroundings<'_>,
    findings: &mut Vec<Finding>,
) -> Result<Profile, Denied> {
    let grants = &around.overrides.profile;
    let mut profile = around.profile;
    if let Some(wanted) = job.entry.profile {
        match profile.asked(wanted, grants, "the manifest") {
            Ok(granted) => profile = granted.told("the manifest", findings),
            Err(denied) => findings.push(Finding { code: "profile.clamped", message: denied.message }),
        }
    }
    if let Some(wanted) = asked {
        profile = profile.asked(wanted, grants, "the request")?.told("the request", findings);
    }
    match job.addon.refused_under.iter().find(|(under, _)| *under == profile) {
        Some((_, denied)) => Err(Denied::new(
            denied.code,
            format!("under profile {profile} nothing of this image runs: {}", denied.message),
        )),
        None => Ok(profile),
    }
}

impl Granted {
    fn told(self, who: &str, findings: &mut Vec<Finding>) -> Profile {
        if self.loosened {
            let message =
                format!("{who} loosens the profile to {}: overrides.profile names it", self.profile);
            findings.push(Finding { code: "policy.override.allowed", message });
        }
        self.profile
    }
}

/// An own network namespace with user-mode networking where the host has it; the host's network where policy grants
/// it; else a refusal that names the remedy.
fn network(job: &Job, around: &Surroundings<'_>, findings: &mut Vec<Finding>) -> Result<NetworkSpec, Denied> {
    if job.entry.network == Network::None {
        return Ok(NetworkSpec::None);
    }
    let why_not = match &around.network {
        Ok(NetworkSpec::User) => return Ok(NetworkSpec::User),
        Ok(NetworkSpec::Host | NetworkSpec::None) => {
            "this host has no user-mode network (install the package passt, or slirp4netns)"
        }
        Err(words) => words.as_str(),
    };
    let (code, message) = if around.overrides.network.iter().any(|n| n == "host") {
        ("policy.override.allowed", "the job runs in the host's network: overrides.network holds host")
    } else if around.profile == Profile::Disabled {
        ("policy.unchecked", "the job runs in the host's network: the profile is disabled")
    } else {
        return Err(Denied::new(
            Code::PolicyDenied,
            format!(
                "job {} wants network: all, and {why_not}; or grant the host's network in the configuration with policy.overrides.network: [host]",
                job.id()
            ),
        ));
    };
    findings.push(Finding { code, message: message.to_owned() });
    Ok(NetworkSpec::Host)
}

fn spec(
    job: &Job,
    args: &Arguments,
    around: &Surroundings<'_>,
    network: NetworkSpec,
    effective: Resources,
    env: &[Variable],
    findings: &mut Vec<Finding>,
) -> Result<LaunchSpec, JobError> {
    let args_json = args.public_json();
    if args_json.len() > MAX_PLAIN_BYTES {
        return Err(JobError::Arguments(vec![ArgumentProblem {
            arg: String::new(),
            message: format!(
                "the arguments come to {} bytes of JSON; the kernel takes no environment string above {MAX_PLAIN_BYTES}",
                args_json.len()
            ),
        }]));
    }
    let config = &job.addon.image_config;
    let (secure, overrides) = (around.profile == Profile::Secure, around.overrides);
    let granted = |message: &str| Finding { code: "policy.override.allowed", message: message.to_owned() };
    if secure && overrides.rootfs_writable {
        findings.push(granted("the root file system is writable and thrown away: overrides.rootfs_writable"));
    }
    if overrides.env_inheritance {
        findings.push(granted("the job gets the daemon's environment: overrides.env_inheritance"));
    }
    Ok(LaunchSpec {
        run_id: String::new(),
        rootfs: around
            .images_dir
            .join(format!("{}{ROOT_IMAGE_SUFFIX}", job.addon.tree.dashed()))
            .join("rootfs"),
        argv: job.entry.argv(config),
        env: env.iter().map(|v| (v.name.clone(), v.value.clone())).collect(),
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        user: config.user.clone(),
        read_only_root: secure && !overrides.rootfs_writable,
        network,
        cpu_millis: effective.cpu_millis,
        memory_bytes: effective.memory_bytes,
        pids: around.limits.pids,
        timeout_ms: effective.timeout.map(millis),
        grace_ms: millis(around.limits.grace),
        tmp_bytes: around.limits.tmp_bytes,
        out_bytes: around.limits.out_bytes,
        log_bytes: around.limits.log_bytes,
        data_dir: overrides.data_dir.then(|| around.data_dir.clone()),
        args_json,
        stdin: false,
        secret_names: args.secrets.iter().map(|(name, _)| name.clone()).collect(),
    })
}
