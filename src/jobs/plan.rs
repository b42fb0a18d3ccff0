//! What would run, decided from a job, its arguments and policy. Pure: everything it needs is handed in.
//!
//! `plan.json` (every field is there always; the names are API):
//!
//! | field | what |
//! |---|---|
//! | `schema` | `addonfs.plan/v1` |
//! | `job` | the job's id |
//! | `args` | with defaults, secrets as `"[secret]"` |
//! | `executor_preview` | `executor` (`container`), `runtime` (name and version, `null` without one), `container_image`, `resolved_digest`, `network` (`none`, `user`, `host`), `rootfs` (`read-only`, `throw-away`), `caps` (always empty), `resources` (see `limits` of `job.json`), `limits_unavailable` (limits that this host cannot keep, in words) |
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
use super::options::{ROOT_IMAGE_SUFFIX, RunLimits};
use super::record::pretty;
use crate::policy::addon::Network;
use crate::policy::arguments::{ArgumentProblem, Arguments, is_reserved};
use crate::policy::code::{Code, Denied};
use crate::policy::digest::Digest;
use crate::policy::image_config::DEFAULT_PATH;
use crate::policy::rules::profile::Granted;
use crate::policy::rules::{Overrides, Profile};

/// What a plan depends on besides job and arguments.
#[derive(Debug, Clone)]
pub(super) struct Surroundings<'a> {
    pub(super) profile: Profile,
    pub(super) overrides: &'a Overrides,
    /// The daemon's environment, where policy gives it to jobs; else empty.
    pub(super) inherited: &'a [(String, String)],
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
    pub(super) fn make(
        job: &Job,
        args: &Arguments,
        asked: Option<Profile>,
        around: &Surroundings<'_>,
    ) -> Result<Self, JobError> {
        let mut findings = job.findings.clone();
        let profile = profile(job, asked, around, &mut findings)?;
        let around = &Surroundings { profile, ..around.clone() };
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
            "profile": around.profile,
            "profile_asked": asked,
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
            "limits_unavailable": around.unavailable,
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
        argv: job.entry.command.clone(),
        env: environment(job, args, around),
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        user: config.user.clone(),
        read_only_root: secure && !overrides.rootfs_writable,
        network,
        cpu_millis: job.effective.cpu_millis,
        memory_bytes: job.effective.memory_bytes,
        pids: around.limits.pids,
        timeout_ms: job.effective.timeout.map(millis),
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

/// The image's variables, then the manifest's, then ours; a later one takes the place of an earlier one. Nothing of
/// the daemon's own environment unless policy says so. Names that are ours mean nothing when an image sets them.
fn environment(job: &Job, args: &Arguments, around: &Surroundings<'_>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(variable) => value.clone_into(&mut variable.1),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    let inherited = around.inherited.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let image = job.addon.image_config.env.iter().filter_map(|line| line.split_once('='));
    for (name, value) in inherited.chain(image).filter(|(name, _)| !name.is_empty() && !is_reserved(name)) {
        set(name, value);
    }
    for (name, value) in &job.entry.env {
        set(name, value);
    }
    for (name, value) in job.entry.argspec.env(args) {
        set(&name, &value);
    }
    set("RUN_DIR", RUN_DIR_INSIDE);
    if around.overrides.data_dir {
        set("DATA_DIR", DATA_DIR_INSIDE);
    }
    env
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::jobs::AddonJobs;
    use crate::policy::addon::{AddonManifest, Origin, Resources};
    use crate::policy::arguments::Given;
    use crate::policy::image::ImageConfig;

    /// A job of one entrypoint; `rest` is YAML below it.
    fn job(rest: &str, image_env: &[&str]) -> Job {
        let yaml = format!(
            "name: tools\nversion: 1.0.0\nentrypoints:\n  - id: backup\n    command: [/addon/backup.sh, --now]\n{rest}"
        );
        let manifest = Arc::new(AddonManifest::parse(yaml.as_bytes()).unwrap());
        let digest = Digest::of(b"image");
        let addon = Arc::new(AddonJobs {
            source: "backup".into(),
            mount_path: "tools/backup".into(),
            origin: Origin {
                source_kind: "oci".into(),
                source_name: "backup".into(),
                addon_name: "tools".into(),
                addon_version: "1.0.0".into(),
                addon_image_digest: digest,
                origin_revision: None,
                origin_source: None,
            },
            manifest: Arc::clone(&manifest),
            image_config: Arc::new(ImageConfig {
                user: "1000:1000".into(),
                env: image_env.iter().map(|line| (*line).to_owned()).collect(),
                working_dir: "/work".into(),
                ..ImageConfig::default()
            }),
            tree: digest,
            image: "localhost:5000/org/tools".into(),
            trust: json!({ "signature_verified": true }),
            refused_under: Vec::new(),
        });
        let ceilings = Resources { cpu_millis: Some(1000), memory_bytes: Some(512 << 20), timeout: None };
        Job::new(&addon, &manifest.entrypoints[0], ceilings, RunLimits::default())
    }

    fn around(overrides: &Overrides) -> Surroundings<'_> {
        Surroundings {
            profile: Profile::Secure,
            overrides,
            inherited: &[],
            limits: RunLimits::default(),
            images_dir: "/mnt/.addonfs/images".into(),
            data_dir: "/state/data/backup".into(),
            runtime: Ok(RuntimeInfo {
                name: "crun".into(),
                path: "/usr/bin/crun".into(),
                version: "1".into(),
            }),
            network: Ok(NetworkSpec::None),
            unavailable: Vec::new(),
        }
    }

    fn plan(job: &Job, args: Value, around: &Surroundings<'_>) -> Result<(LaunchSpec, Value), JobError> {
        let Value::Object(args) = args else { panic!("{args}") };
        let args = job.entry.argspec.resolve(Given::Json(args)).map_err(JobError::Arguments)?;
        let plan = Plan::make(job, &args, None, around)?;
        Ok((plan.launch("r1-00000000", false), serde_json::from_slice(&plan.json).unwrap()))
    }

    fn env<'a>(spec: &'a LaunchSpec, name: &str) -> Option<&'a str> {
        spec.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn codes(plan: &Value) -> Vec<&str> {
        plan["policy_findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect()
    }

    const SECRET_SPEC: &str = "    argspec:
      type: object
      properties:
        mode: {type: string, enum: [quick, full]}
        image-tag: {type: string, default: latest}
        token: {type: string, format: secret}
    env: {COLOR: blue, LANG: C}
";

    #[test]
    fn the_environment_is_image_then_manifest_then_ours() {
        let image =
            ["LANG=de_DE", "HOME=/work", "ARG_MODE=spoofed", "FLWD_X=1", "RUN_DIR=/x", "=odd", "bare"];
        let job = job(SECRET_SPEC, &image);
        let overrides = Overrides::default();
        let (spec, _) =
            plan(&job, json!({ "mode": "quick", "token": "hunter2" }), &around(&overrides)).unwrap();
        let cases = [
            ("ARG_MODE", Some("quick")),
            ("ARG_IMAGE_TAG", Some("latest")),
            ("ARG_TOKEN", None),
            ("FLWD_ARGS_JSON", Some(r#"{"mode":"quick","image-tag":"latest"}"#)),
            ("FLWD_X", None),
            ("RUN_DIR", Some(RUN_DIR_INSIDE)),
            ("DATA_DIR", None),
            ("PATH", Some(DEFAULT_PATH)),
            ("LANG", Some("C")),
            ("COLOR", Some("blue")),
            ("HOME", Some("/work")),
            ("bare", None),
        ];
        for (name, value) in cases {
            assert_eq!(env(&spec, name), value, "{name}");
        }
        assert_eq!((spec.cwd.as_str(), spec.user.as_str()), ("/work", "1000:1000"));
        assert_eq!(
            (spec.secret_names.as_slice(), spec.data_dir.is_some()),
            (["token".to_owned()].as_slice(), false)
        );
        assert_eq!(
            spec.rootfs,
            PathBuf::from(format!("/mnt/.addonfs/images/{}.job/rootfs", Digest::of(b"image").dashed()))
        );
    }

    #[test]
    fn inherited_variables_need_the_override_and_give_way() {
        let overrides = Overrides { env_inheritance: true, data_dir: true, ..Overrides::default() };
        let inherited = [("UNSAFE".to_owned(), "1".to_owned()), ("LANG".to_owned(), "x".to_owned())];
        let job = job(SECRET_SPEC, &["PATH=/image/bin"]);
        let (spec, plan) =
            plan(&job, json!({}), &Surroundings { inherited: &inherited, ..around(&overrides) }).unwrap();
        assert_eq!((env(&spec, "UNSAFE"), env(&spec, "LANG")), (Some("1"), Some("C")));
        assert_eq!((env(&spec, "PATH"), env(&spec, "DATA_DIR")), (Some("/image/bin"), Some(DATA_DIR_INSIDE)));
        assert_eq!(spec.data_dir, Some("/state/data/backup".into()));
        assert_eq!(codes(&plan), ["policy.override.allowed"]);
    }

    #[test]
    fn no_secret_is_in_plan_nor_spec() {
        let overrides = Overrides::default();
        let (spec, plan) =
            plan(&job(SECRET_SPEC, &[]), json!({ "token": "hunter2" }), &around(&overrides)).unwrap();
        assert!(!plan.to_string().contains("hunter2") && !format!("{spec:?}").contains("hunter2"));
        assert_eq!(plan["args"]["token"], "[secret]");
        assert_eq!(plan["requirements"]["secrets"], json!(["token"]));
    }

    #[test]
    fn network_by_profile_and_grant() {
        use NetworkSpec::{Host, User};
        let job = job("    network: all\n", &[]);
        let missing = || Err("install the package passt".to_owned());
        // profile, what the host offers, overrides.network, outcome, finding
        type Case = (
            Profile,
            Result<NetworkSpec, String>,
            &'static [&'static str],
            Option<NetworkSpec>,
            &'static [&'static str],
        );
        let cases: [Case; 8] = [
            (Profile::Secure, Ok(User), &[], Some(User), &[]),
            (Profile::Secure, missing(), &[], None, &[]),
            (Profile::Secure, Ok(Host), &[], None, &[]),
            (Profile::Secure, missing(), &["host"], Some(Host), &["policy.override.allowed"]),
            (Profile::Secure, Ok(User), &["host"], Some(User), &[]),
            (Profile::Permissive, missing(), &[], None, &[]),
            (Profile::Permissive, missing(), &["host"], Some(Host), &["policy.override.allowed"]),
            (Profile::Disabled, missing(), &[], Some(Host), &["policy.unchecked"]),
        ];
        for (i, (profile, network, granted, expected, findings)) in cases.into_iter().enumerate() {
            let network_granted = granted.iter().map(|n| (*n).to_owned()).collect();
            let overrides = Overrides { network: network_granted, ..Overrides::default() };
            let made = plan(&job, json!({}), &Surroundings { profile, network, ..around(&overrides) });
            match (made, expected) {
                (Ok((spec, plan)), Some(expected)) => {
                    assert_eq!((spec.network, codes(&plan).as_slice()), (expected, findings), "case {i}");
                }
                (Err(JobError::Denied(denied)), None) => {
                    assert_eq!(denied.code, Code::PolicyDenied, "case {i}");
                    assert!(denied.message.contains("passt"), "case {i}: {denied}");
                }
                (other, _) => panic!("case {i}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_root_is_read_only_under_secure_unless_granted() {
        let job = job("", &[]);
        for (profile, writable, read_only) in [
            (Profile::Secure, false, true),
            (Profile::Secure, true, false),
            (Profile::Permissive, false, false),
            (Profile::Disabled, false, false),
        ] {
            let overrides = Overrides { rootfs_writable: writable, ..Overrides::default() };
            let (spec, plan) =
                plan(&job, json!({}), &Surroundings { profile, ..around(&overrides) }).unwrap();
            assert_eq!(spec.read_only_root, read_only, "{profile:?} {writable}");
            assert_eq!(
                plan["executor_preview"]["rootfs"],
                if read_only { "read-only" } else { "throw-away" }
            );
        }
    }

    /// 1A-25: whoever asks may tighten; loosening needs its level named. Case RP-11's rule for a request.
    #[test]
    fn profiles_of_host_manifest_and_request() {
        use Profile::{Disabled, Permissive, Secure};
        const ALLOWED: &str = "policy.override.allowed";
        // host, overrides.profile, manifest, request, outcome, findings
        type Case = (
            Profile,
            &'static [Profile],
            &'static str,
            Option<Profile>,
            Option<Profile>,
            &'static [&'static str],
        );
        let cases: [Case; 11] = [
            (Secure, &[], "", None, Some(Secure), &[]),
            (Permissive, &[], "secure", None, Some(Secure), &[]),
            (Permissive, &[], "", Some(Secure), Some(Secure), &[]),
            (Secure, &[], "permissive", None, Some(Secure), &["profile.clamped"]),
            (Secure, &[Permissive], "permissive", None, Some(Permissive), &[ALLOWED]),
            (Secure, &[], "", Some(Permissive), None, &[]),
            (Secure, &[Disabled], "", Some(Permissive), None, &[]),
            (Secure, &[Permissive], "", Some(Permissive), Some(Permissive), &[ALLOWED]),
            (Permissive, &[], "secure", Some(Permissive), None, &[]),
            (Permissive, &[Permissive], "secure", Some(Permissive), Some(Permissive), &[ALLOWED]),
            (Secure, &[Permissive], "permissive", Some(Secure), Some(Secure), &[ALLOWED]),
        ];
        for (i, (profile, grants, manifest, asked, expected, findings)) in cases.into_iter().enumerate() {
            let rest = if manifest.is_empty() { String::new() } else { format!("    profile: {manifest}\n") };
            let job = job(&rest, &[]);
            let overrides = Overrides { profile: grants.to_vec(), ..Overrides::default() };
            let args = job.entry.argspec.resolve(Given::Json(Map::new())).unwrap();
            let made = Plan::make(&job, &args, asked, &Surroundings { profile, ..around(&overrides) });
            match (made, expected) {
                (Ok(plan), Some(expected)) => {
                    assert_eq!(plan.policy["profile"], json!(expected), "case {i}");
                    assert_eq!(plan.policy["profile_asked"], json!(asked), "case {i}");
                    assert_eq!(plan.spec.read_only_root, expected == Secure, "case {i}");
                    let shown: Value = serde_json::from_slice(&plan.json).unwrap();
                    assert_eq!(codes(&shown), findings, "case {i}");
                }
                (Err(JobError::Denied(denied)), None) => {
                    assert_eq!(denied.code, Code::PolicyDenied, "case {i}")
                }
                (other, _) => panic!("case {i}: {other:?}"),
            }
        }
    }

    #[test]
    fn nothing_runs_under_a_profile_that_refuses_its_image() {
        let refusal = Denied::new(Code::ImageSignatureRequired, "it has no signature");
        let mut job = job("", &[]);
        let addon = Arc::get_mut(&mut job.addon).unwrap();
        addon.refused_under = vec![(Profile::Secure, refusal)];
        let (overrides, args) =
            (Overrides::default(), job.entry.argspec.resolve(Given::Json(Map::new())).unwrap());
        let around = Surroundings { profile: Profile::Permissive, ..around(&overrides) };
        assert!(Plan::make(&job, &args, None, &around).is_ok());
        let denied = Plan::make(&job, &args, Some(Profile::Secure), &around).unwrap_err();
        assert!(denied.to_string().contains("image.signature.required"), "{denied}");
    }

    #[test]
    fn hints_are_clamped_with_a_finding_and_silence_means_the_ceiling() {
        let overrides = Overrides::default();
        let big = job("    resources: {cpu: \"2\", memory: 256Mi, timeout: 90s}\n", &[]);
        let (spec, made) = plan(&big, json!({}), &around(&overrides)).unwrap();
        assert_eq!((spec.cpu_millis, spec.memory_bytes), (Some(1000), Some(256 << 20)));
        assert_eq!(spec.timeout_ms, Some(u64::try_from(Duration::from_secs(90).as_millis()).unwrap()));
        assert_eq!(codes(&made), ["resources.clamped"]);
        let (spec, made) = plan(&job("", &[]), json!({}), &around(&overrides)).unwrap();
        assert_eq!(
            (spec.cpu_millis, spec.memory_bytes, spec.timeout_ms),
            (Some(1000), Some(512 << 20), None)
        );
        assert!(codes(&made).is_empty());
    }

    #[test]
    fn a_plan_without_a_runtime_is_shown_and_says_so() {
        let overrides = Overrides::default();
        let around = Surroundings {
            runtime: Err("no runc".into()),
            unavailable: vec!["pids: no controller".into()],
            ..around(&overrides)
        };
        let (_, plan) = plan(&job("", &[]), json!({}), &around).unwrap();
        assert_eq!(codes(&plan), ["limits.unavailable", "container.runtime.unavailable"]);
        assert_eq!(plan["executor_preview"]["runtime"], Value::Null);
        assert_eq!(plan["executor_preview"]["limits_unavailable"][0], "pids: no controller");
    }

    #[test]
    fn arguments_that_no_environment_holds_are_refused() {
        let spec = "    argspec: {type: object, properties: {text: {type: string}}}\n";
        let overrides = Overrides::default();
        let long = "x".repeat(MAX_PLAIN_BYTES);
        let error = plan(&job(spec, &[]), json!({ "text": long }), &around(&overrides)).unwrap_err();
        assert!(matches!(&error, JobError::Arguments(p) if p[0].message.contains("environment")), "{error}");
    }

    #[test]
    fn fields_are_those_of_the_table() {
        let overrides = Overrides::default();
        let (_, plan) = plan(&job("", &[]), json!({}), &around(&overrides)).unwrap();
        let keys: Vec<&str> = plan.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "schema",
            "job",
            "args",
            "executor_preview",
            "image_trust",
            "policy_findings",
            "provenance",
            "command",
            "cwd",
            "user",
            "env",
            "requirements",
        ];
        assert_eq!(keys, expected);
        assert_eq!(plan["provenance"]["origin"]["addon_image_digest"], Digest::of(b"image").to_string());
        assert_eq!(plan["command"], json!(["/addon/backup.sh", "--now"]));
        assert_eq!(plan["executor_preview"]["caps"], json!([]));
    }
}
