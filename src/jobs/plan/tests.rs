use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::*;
use crate::jobs::AddonJobs;
use crate::policy::addon::{AddonManifest, Origin, Resources};
use crate::policy::arguments::Given;
use crate::policy::image::ImageConfig;
use crate::policy::image_config::DEFAULT_PATH;

const CEILINGS: Resources =
    Resources { cpu_millis: Some(1000), memory_bytes: Some(512 << 20), timeout: None };

fn under(profile: Option<Profile>) -> Wishes {
    Wishes { profile, ..Wishes::default() }
}

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
    Job::new(&addon, &manifest.entrypoints[0], CEILINGS, RunLimits::default())
}

fn around(overrides: &Overrides) -> Surroundings<'_> {
    Surroundings {
        profile: Profile::Secure,
        overrides,
        inherited: &[],
        limits: RunLimits::default(),
        ceilings: CEILINGS,
        images_dir: "/mnt/.addonfs/images".into(),
        data_dir: "/state/data/backup".into(),
        runtime: Ok(RuntimeInfo { name: "crun".into(), path: "/usr/bin/crun".into(), version: "1".into() }),
        network: Ok(NetworkSpec::None),
        unavailable: Vec::new(),
    }
}

fn plan(job: &Job, args: Value, around: &Surroundings<'_>) -> Result<(LaunchSpec, Value), JobError> {
    let Value::Object(args) = args else { panic!("{args}") };
    let args = job.entry.argspec.resolve(Given::Json(args)).map_err(JobError::Arguments)?;
    let plan = Plan::make(job, &args, Wishes::default(), around)?;
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
    let image = ["LANG=de_DE", "HOME=/work", "ARG_MODE=spoofed", "FLWD_X=1", "RUN_DIR=/x", "=odd", "bare"];
    let job = job(SECRET_SPEC, &image);
    let overrides = Overrides::default();
    let (spec, _) = plan(&job, json!({ "mode": "quick", "token": "hunter2" }), &around(&overrides)).unwrap();
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
    assert_eq!((&plan["env"]["UNSAFE"], &plan["env"]["LANG"]), (&json!("[secret]"), &json!("C")));
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
        let (spec, plan) = plan(&job, json!({}), &Surroundings { profile, ..around(&overrides) }).unwrap();
        assert_eq!(spec.read_only_root, read_only, "{profile:?} {writable}");
        assert_eq!(plan["executor_preview"]["rootfs"], if read_only { "read-only" } else { "throw-away" });
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
        let made = Plan::make(&job, &args, under(asked), &Surroundings { profile, ..around(&overrides) });
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
    assert!(Plan::make(&job, &args, Wishes::default(), &around).is_ok());
    let denied = Plan::make(&job, &args, under(Some(Profile::Secure)), &around).unwrap_err();
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
    assert_eq!((spec.cpu_millis, spec.memory_bytes, spec.timeout_ms), (Some(1000), Some(512 << 20), None));
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
        "limits",
        "profile",
        "profile_asked",
        "image_trust",
        "policy_findings",
        "provenance",
        "command",
        "cwd",
        "user",
        "env",
        "mounts",
        "requirements",
    ];
    assert_eq!(keys, expected);
    assert_eq!(plan["provenance"]["origin"]["addon_image_digest"], Digest::of(b"image").to_string());
    assert_eq!(plan["command"], json!(["/addon/backup.sh", "--now"]));
    assert_eq!(plan["executor_preview"]["caps"], json!([]));
}

#[test]
fn a_request_takes_the_place_of_hints_and_is_refused_above_a_ceiling() {
    let (overrides, job) = (Overrides::default(), job("    resources: {cpu: \"2\", memory: 256Mi}\n", &[]));
    let args = job.entry.argspec.resolve(Given::Json(Map::new())).unwrap();
    let asking = |text| Wishes { limits: Resources::parse_request(text).unwrap(), ..Wishes::default() };
    let made = |text| Plan::make(&job, &args, asking(text), &around(&overrides));
    let plan = made("memory=512Mi,timeout=1m").unwrap();
    let spec = plan.launch("r1-00000000", false);
    assert_eq!(
        (spec.cpu_millis, spec.memory_bytes, spec.timeout_ms),
        (Some(1000), Some(512 << 20), Some(60_000))
    );
    let limit = |hint, asked, ceiling, effective| json!({"hint": hint, "asked": asked, "ceiling": ceiling, "effective": effective});
    let shown: Value = serde_json::from_slice(&plan.json).unwrap();
    assert_eq!(shown["limits"]["cpu_millis"], limit(Some(2000), None, Some(1000), Some(1000)));
    assert_eq!(
        shown["limits"]["memory_bytes"],
        limit(Some(256 << 20), Some(512 << 20), Some(512 << 20), Some(512 << 20))
    );
    assert_eq!(shown["limits"]["timeout_ms"], limit(None, Some(60_000), None, Some(60_000)));
    assert_eq!(codes(&shown), ["resources.clamped"]);
    assert_eq!(Wishes::of_record(&plan.policy).unwrap(), asking("memory=512Mi,timeout=1m"));
    match made("cpu=1.001,memory=513Mi").unwrap_err() {
        JobError::Denied(denied) => {
            assert_eq!(denied.code, Code::ImagePolicy);
            assert!(denied.message.contains("cpu") && denied.message.contains("memory"), "{denied}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn mounts_are_what_the_job_finds() {
    let overrides = Overrides { data_dir: true, ..Overrides::default() };
    let (_, plan) = plan(&job(SECRET_SPEC, &[]), json!({ "token": "hunter2" }), &around(&overrides)).unwrap();
    let mounts: Vec<(&str, &str)> = plan["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["destination"].as_str().unwrap(), m["access"].as_str().unwrap()))
        .collect();
    let expected = [
        ("/", "read-only"),
        ("/tmp", "throw-away"),
        ("/run/addonfs/args.json", "read-only"),
        ("/run/addonfs/out", "read-write"),
        ("/run/addonfs/data", "read-write"),
        ("/run/secrets/token", "read-only"),
    ];
    assert_eq!(mounts, expected);
    assert_eq!(plan["mounts"][1]["size_bytes"], RunLimits::default().tmp_bytes);
}
