//! From the configuration to each room's own options.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::holder::HoldOptions;
use crate::cli::config::Config;
use crate::fetch::credentials::Credentials;
use crate::fetch::layer::Filling;
use crate::fetch::registry::RegistryOptions;
use crate::fetch::store::Store;
use crate::fs::control::ControlOptions;
use crate::fs::image::Side;
use crate::jobs::executor::Executor;
use crate::jobs::oci::{OciExecutor, OciOptions};
use crate::jobs::spawner::{Helper, Spawner};
use crate::jobs::{EnsureImage, JobsOptions, JobsPolicy};
use crate::policy::rules::Policy;
use crate::policy::source::spec::SourceSpec;

/// Makes the daemon's directories, for its user alone: what lies in them is trusted, or secret.
pub(crate) fn private_dirs(options: &HoldOptions) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    for dir in [&options.dirs.state, &options.dirs.cache, &options.dirs.runtime] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(())
}

/// The store below the cache directory.
pub(crate) fn store(
    options: &HoldOptions,
    config: &Config,
    sources: &[SourceSpec],
) -> anyhow::Result<Arc<Store>> {
    let store =
        Store::open(&options.dirs.cache.join("store"), config.cache.store_options(&options.dirs.cache)?)?;
    keep_pins(&store, sources)?;
    Ok(store)
}

/// Of the pins by configuration those stay that it still wants.
pub(crate) fn keep_pins(store: &Store, sources: &[SourceSpec]) -> anyhow::Result<()> {
    let pinned = sources.iter().filter(|source| source.pin).map(|source| source.image.digest);
    Ok(store.keep_configured_pins(&pinned.collect::<Vec<_>>())?)
}

/// How images are filled in the background. A fifth of the cache is left to what readers bring.
pub(crate) fn filling(store: &Store, config: &Config) -> Option<Filling> {
    let room = store.options().quota_bytes / 5 * 4;
    config.prefetch.fill.then_some(Filling { bandwidth: Some(config.prefetch.bandwidth), room })
}

/// How pinned images are filled: whatever else is in the cache goes for them.
pub(crate) fn pinned_filling(store: &Store, config: &Config) -> Filling {
    Filling { bandwidth: Some(config.prefetch.bandwidth), room: store.options().quota_bytes }
}

/// Where tree files are kept.
pub(crate) fn trees_dir(options: &HoldOptions) -> anyhow::Result<PathBuf> {
    let dir = options.dirs.cache.join("trees");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The journal of backing ids of one of this mount's image connections, in the runtime directory.
pub(crate) fn backing_journal(options: &HoldOptions, side: Side) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let id = crate::policy::digest::Digest::of(options.mount_point.as_os_str().as_bytes()).hex();
    let kind = match side {
        Side::Plain => "backing",
        Side::Xattrs => "xattr-backing",
    };
    options.dirs.runtime.join(format!("{kind}-{}", &id[..16]))
}

/// A daemon without root shows image trees as its own (an overlay in a user namespace could not write otherwise).
pub(crate) fn owner() -> Option<(u32, u32)> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw()))
}

/// How to talk to registries: credentials from the docker config file, helpers run by the spawner.
pub(crate) fn registry_options(config: &Config, spawner: &Spawner) -> RegistryOptions {
    let spawner = spawner.clone();
    let helper = Arc::new(move |program: &str, server: &str| {
        let mut helper = Helper::new(program, ["get"]);
        helper.stdin = server.as_bytes().to_vec();
        let output = spawner.helper_blocking(&helper)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        if output.code == Some(0) { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    });
    RegistryOptions {
        registries: config.registries.clone(),
        credentials: Credentials::from_docker_config(
            config.docker_config.clone(),
            |name| std::env::var_os(name),
            helper,
        ),
        stall_timeout: config.read.stall_timeout,
        ..RegistryOptions::default()
    }
}

/// The jobs room's options.
pub(crate) fn jobs_options(
    options: &HoldOptions,
    config: &Config,
    ensure_image: EnsureImage,
) -> anyhow::Result<JobsOptions> {
    let mut jobs = JobsOptions::new(options.dirs.state.clone(), options.mount_point.clone());
    jobs.images_dir = options.images_dir.clone();
    jobs.group = group(config)?;
    jobs.policy = jobs_policy(&config.policy);
    jobs.limits = config.jobs.limits;
    jobs.max_running = config.jobs.max_running;
    jobs.max_running_per_source = config.jobs.max_running_per_source;
    jobs.max_running_per_job = config.jobs.max_running_per_job;
    jobs.max_queued = config.jobs.max_queued;
    jobs.retention = config.jobs.retention;
    jobs.ensure_image = ensure_image;
    Ok(jobs)
}

/// What policy says to jobs.
pub(crate) fn jobs_policy(policy: &Policy) -> JobsPolicy {
    JobsPolicy { profile: policy.profile, ceilings: policy.ceilings, overrides: policy.overrides.clone() }
}

/// The policy in force, for `status.json`.
pub(crate) fn policy_json(options: &HoldOptions, config: &Config) -> Value {
    let policy = &config.policy;
    json!({
        "profile": policy.profile,
        "profile_from": policy.profile_from.to_string(),
        "verify_signatures": policy.verify_mode(),
        "allowed_registries": policy.allowed_registries.entries(),
        "on_untrusted": policy.on_untrusted,
        "overrides": policy.overrides,
        "policy_file": config.policy_file,
        "disabled_allowed": options.beside.allows_disabled(),
    })
}

/// The executor: an OCI runtime of the host, driven through shims.
pub(crate) fn executor(
    options: &HoldOptions,
    config: &Config,
    spawner: &Spawner,
) -> anyhow::Result<Arc<dyn Executor>> {
    let mut oci = OciOptions::new(options.dirs.runtime.join("oci"));
    oci.runtime = config.jobs.runtime.clone();
    Ok(Arc::new(OciExecutor::new(spawner.clone(), oci)))
}

/// The control tree's options.
pub(crate) fn control_options(options: &HoldOptions, config: &Config) -> anyhow::Result<ControlOptions> {
    Ok(ControlOptions {
        mount_point: options.mount_point.clone(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        group: group(config)?,
        images_dir: (!options.nested()).then(|| options.images_dir.clone()),
        runner: crate::jobs::runner::RUNNER,
        runtime: tokio::runtime::Handle::current(),
    })
}

/// The configured group's number.
pub(super) fn group(config: &Config) -> anyhow::Result<Option<u32>> {
    let Some(name) = &config.group else { return Ok(None) };
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let group = nix::unistd::Group::from_name(name)?
        .with_context(|| format!("E_CONFIG: there is no group {name:?}: make it, or change `group`"))?;
    Ok(Some(group.gid.as_raw()))
}

/// Detaches a mount from outside this process.
pub(crate) async fn unmount(spawner: &Spawner, path: &std::path::Path) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return spawner.unmount(path, true).await.map_err(anyhow::Error::msg);
    }
    let mut helper =
        Helper::new("fusermount3", ["-u".as_ref(), "-z".as_ref(), "--".as_ref(), path.as_os_str()]);
    helper.deadline = Duration::from_secs(10);
    let output = spawner.helper(helper).await.map_err(anyhow::Error::msg)?;
    anyhow::ensure!(
        output.code == Some(0),
        "fusermount3: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
