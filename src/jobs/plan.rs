//! What would run, decided from a job, its arguments and policy. Pure: everything it needs is handed in.
//!
//! `plan.json` (every field is there always; the names are API):
//!
//! | field | what |
//! |---|---|
//! | `schema` | `addonfs.plan/v1` |
//! | `job` | the job's id |
//! | `args` | with defaults, secrets as `"[secret]"` |
//! | `executor_preview` | `executor` (`container`), `runtime` (name and version, `null` without one), `container_image`, `resolved_digest`, `network` (`none`, `user`, `host`), `rootfs` (`read-only`, `throw-away`), `caps` (always empty), `resources` (see `limits` of `job.json`) |
//! | `image_trust` | what was verified and by which key |
//! | `policy_findings` | `[{code, message}]` |
//! | `provenance` | `source` (`name`, `image`, `digest`, `mount_path`), `origin` |
//! | `command`, `cwd`, `user` | as the container gets them |
//! | `env` | name to value, without secrets |
//! | `requirements` | `network`, `secrets` (names), `data_dir` |

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::args::MAX_PLAIN_BYTES;
use super::descriptor::{Finding, Job, limits_json, millis};
use super::error::JobError;
use super::executor::{DATA_DIR_INSIDE, LaunchSpec, NetworkSpec, RUN_DIR_INSIDE, RuntimeInfo};
use super::options::{Grants, RunLimits};
use super::record::pretty;
use crate::policy::addon::Network;
use crate::policy::arguments::{ArgumentProblem, Arguments, is_reserved};
use crate::policy::code::{Code, Denied};
use crate::policy::digest::Digest;

/// `PATH` of a container whose image and manifest set none; what runc and docker use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plan depends on besides job and arguments.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) grants: &'a Grants,
    pub(super) limits: RunLimits,
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

/// A decision, complete but for the run's id.
#[derive(Debug)]
pub(super) struct Plan {
    spec: LaunchSpec,
    /// Content of `plan.json`.
    pub(super) json: Vec<u8>,
    /// Its digest.
    pub(super) digest: Digest,
    /// The `policy` object of the record.
    pub(super) policy: Value,
    /// The `limits` object of the record.
    pub(super) limits: Value,
    /// Why it cannot be launched now, though it may be shown.
    pub(super) no_runtime: Option<Denied>,
}

impl Plan {
    /// Decides.
    pub(super) fn make(job: &Job, args: &Arguments, around: &Surroundings<'_>) -> Result<Self, JobError> {
        let mut findings = job.findings.clone();
        let network = network(job, around, &mut findings)?;
        let spec = spec(job, args, around, network, &mut findings)?;
        let unavailable = around.unavailable.iter();
        findings
            .extend(unavailable.map(|words| Finding { code: "limits.unavailable", message: words.clone() }));
        let no_runtime = around.runtime.as_ref().err().map(|why| Denied::new(Code::RuntimeUnavailable, why));
        if let Some(denied) = &no_runtime {
            findings.push(Finding { code: denied.code.as_str(), message: denied.message.clone() });
        }
        let limits = limits_json(job.effective, around.limits);
        let rootfs = if spec.read_only_root { "read-only" } else { "throw-away" };
        let policy = json!({
            "profile": around.grants.profile,
            "network": network,
            "rootfs": rootfs,
            "findings": findings,
        });
        let json = pretty(&render(job, args, around, &spec, &limits, rootfs, &findings));
        Ok(Self { digest: Digest::of(&json), json, spec, policy, limits, no_runtime })
    }

    /// The launch of this plan by one run.
    pub(super) fn launch(&self, run_id: &str, stdin: bool) -> LaunchSpec {
        LaunchSpec { run_id: run_id.to_owned(), stdin, ..self.spec.clone() }
    }
}

fn render(
    job: &Job,
    args: &Arguments,
    around: &Surroundings<'_>,
    spec: &LaunchSpec,
    limits: &Value,
    rootfs: &str,
    findings: &[Finding],
) -> Value {
    let addon = &job.addon;
    let runtime = around.runtime.as_ref().ok().map(|r| json!({ "name": r.name, "version": r.version }));
    let env: Map<String, Value> =
        spec.env.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
    json!({
        "schema": "addonfs.plan/v1",
        "job": job.id(),
        "args": args.masked,
        "executor_preview": {
            "executor": "container",
            "runtime": runtime,
            "container_image": addon.image,
            "resolved_digest": addon.tree,
            "network": spec.network,
            "rootfs": rootfs,
            "caps": [],
            "resources": limits,
        },
        "image_trust": addon.trust,
        "policy_findings": findings,
        "provenance": {
            "source": {
                "name": addon.source,
                "image": addon.image,
                "digest": addon.origin.addon_image_digest,
                "mount_path": addon.mount_path,
            },
            "origin": addon.origin,
        },
        "command": spec.argv,
        "cwd": spec.cwd,
        "user": spec.user,
        "env": env,
        "requirements": {
            "network": job.entry.network,
            "secrets": job.entry.argspec.secrets,
            "data_dir": spec.data_dir.is_some(),
        },
    })
}

/// An own network namespace with user-mode networking where the host has it; the host's network where policy grants
/// it; else a refusal that names the remedy.
fn network(job: &Job, around: &Surroundings<'_>, findings: &mut Vec<Finding>) -> Result<NetworkSpec, Denied> {
    if job.entry.network == Network::None {
        return Ok(NetworkSpec::None);
    }
    let grants = around.grants;
    let why_not = match &around.network {
        Ok(NetworkSpec::User) => return Ok(NetworkSpec::User),
        Ok(NetworkSpec::Host | NetworkSpec::None) => {
            "this host has no user-mode network (install the package passt, or slirp4netns)"
        }
        Err(words) => words.as_str(),
    };
    let (code, message) = if grants.host_network {
        ("policy.override.allowed", "the job runs in the host's network: overrides.network holds host")
    } else if grants.unchecked {
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
    let grants = around.grants;
    let writable = !grants.secure || grants.rootfs_writable;
    if grants.secure && grants.rootfs_writable {
        findings.push(Finding {
            code: "policy.override.allowed",
            message: "the root file system is writable (thrown away at the end): overrides.rootfs_writable"
                .into(),
        });
    }
    Ok(LaunchSpec {
        run_id: String::new(),
        rootfs: around.images_dir.join(job.addon.tree.dashed()).join("rootfs"),
        argv: job.entry.command.clone(),
        env: environment(job, args, grants.data_dir),
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        user: config.user.clone(),
        read_only_root: !writable,
        network,
        cpu_millis: job.effective.cpu_millis,
        memory_bytes: job.effective.memory_bytes,
        pids: around.limits.pids,
        timeout_ms: job.effective.timeout.map(millis),
        grace_ms: millis(around.limits.grace),
        tmp_bytes: around.limits.tmp_bytes,
        out_bytes: around.limits.out_bytes,
        log_bytes: around.limits.log_bytes,
        data_dir: grants.data_dir.then(|| around.data_dir.clone()),
        args_json,
        stdin: false,
        secret_names: args.secrets.iter().map(|(name, _)| name.clone()).collect(),
    })
}

/// The image's variables, then the manifest's, then ours; a later one takes the place of an earlier one. Nothing of
/// the daemon's own environment. Names that are ours mean nothing when an image sets them.
fn environment(job: &Job, args: &Arguments, data_dir: bool) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(variable) => value.clone_into(&mut variable.1),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    for line in &job.addon.image_config.env {
        if let Some((name, value)) = line.split_once('=')
            && !name.is_empty()
            && !is_reserved(name)
        {
            set(name, value);
        }
    }
    for (name, value) in &job.entry.env {
        set(name, value);
    }
    for (name, value) in job.entry.argspec.env(args) {
        set(&name, &value);
    }
    set("RUN_DIR", RUN_DIR_INSIDE);
    if data_dir {
        set("DATA_DIR", DATA_DIR_INSIDE);
    }
    env
}
