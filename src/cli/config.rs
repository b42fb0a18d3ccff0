//! The configuration file: `addonfs.yaml`, or a `flwd.yaml` as it stands (docs/configuration.md).
//!
//! `policy:` and `sources:` are judged by the policy room; the other sections are this module's. In addonfs.yaml a
//! key that nobody knows is an error with its line; in flwd.yaml, whose other sections belong to another program, a
//! warning. Relative paths are relative to the file.

pub(crate) mod beside;
mod files;
mod http;
mod registries;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use beside::Beside;
pub(crate) use files::Files;
pub(crate) use http::{Http, Socket};

use anyhow::Context as _;

use crate::fetch::registry::Registries;
use crate::fetch::store::{StoreOptions, Verify};
use crate::jobs::{Retention, RunLimits};
use crate::policy::code::{Code, Denied};
use crate::policy::fields::{Dialect, Field, Fields, Report, refusal};
use crate::policy::quantity::Share;
use crate::policy::rules::Policy;
use crate::policy::source::parse::sections;
use crate::policy::source::spec::{SourceSpec, check_streams};
use crate::policy::{duration, quantity, yaml};

/// A configuration, checked.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Where to mount, if the command line does not say.
    pub mount_point: Option<PathBuf>,
    /// Where state is kept, if the command line does not say.
    pub state_dir: Option<PathBuf>,
    /// Where layers are kept, if the command line does not say.
    pub cache_dir: Option<PathBuf>,
    /// The group that may run jobs beside the daemon's user.
    pub group: Option<String>,
    /// The docker config file that holds the credentials; the usual places when not said.
    pub docker_config: Option<PathBuf>,
    /// The rules.
    pub policy: Policy,
    /// The policy file, if there is one.
    pub policy_file: Option<PathBuf>,
    /// The sources, in their order.
    pub sources: Vec<SourceSpec>,
    /// What was read over, in words.
    pub warnings: Vec<String>,
    /// Section `registries`.
    pub registries: Registries,
    /// Section `read`.
    pub read: Read,
    /// Section `cache`.
    pub cache: Cache,
    /// Section `prefetch`.
    pub prefetch: Prefetch,
    /// Section `jobs`.
    pub jobs: Jobs,
    /// Section `http`.
    pub http: Http,
}

/// The section `read`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Read {
    /// `deadline`: how long a read waits for the network before it answers ETIMEDOUT.
    pub deadline: Duration,
    /// `stall_timeout`: the time in which less than 16 KiB of a body make a transfer be tried anew.
    pub stall_timeout: Duration,
}

impl Default for Read {
    /// Half a minute each: longer than a registry's hiccup, shorter than the patience of a person.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), stall_timeout: Duration::from_secs(30) }
    }
}

/// The section `cache`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cache {
    /// `quota`: how much content is kept.
    pub quota: Share,
    /// `keep_free`: how much of the disk is left to others.
    pub keep_free: Share,
    /// `verify`: how often content on disk is proven.
    pub verify: Verify,
}

impl Default for Cache {
    /// A tenth of the disk, and a twentieth left free: what ext4 reserves, too.
    fn default() -> Self {
        Self { quota: Share::Percent(10), keep_free: Share::Percent(5), verify: Verify::default() }
    }
}

/// Least that a quota in percent comes to: one decoded image of usual size.
const LEAST_QUOTA: u64 = 1 << 30;

/// Most that `keep_free` in percent comes to: enough for logs and upgrades on any disk, and a large disk that is nearly
/// full still has room for a cache.
const MOST_KEPT_FREE: u64 = 4 << 30;

impl Cache {
    /// How a store in `dir`, which exists, is to behave.
    pub(crate) fn store_options(&self, dir: &Path) -> anyhow::Result<StoreOptions> {
        let stat = rustix::fs::statvfs(dir)
            .with_context(|| format!("cannot find out the size of the disk of {}", dir.display()))?;
        let disk = stat.f_blocks.saturating_mul(stat.f_frsize);
        let quota_bytes = match self.quota {
            Share::Bytes(bytes) => bytes,
            share @ Share::Percent(_) => share.of(disk).max(LEAST_QUOTA),
        };
        let keep_free_bytes = match self.keep_free {
            Share::Bytes(bytes) => bytes,
            share @ Share::Percent(_) => share.of(disk).min(MOST_KEPT_FREE),
        };
        Ok(StoreOptions { quota_bytes, keep_free_bytes, verify: self.verify, ..StoreOptions::default() })
    }
}

/// The section `prefetch`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prefetch {
    /// `fill`: what nobody asked for is fetched, too, while nobody waits for anything.
    pub fill: bool,
    /// `bandwidth`: bytes a second that filling may take.
    pub bandwidth: u64,
    /// `profiles`: what the start of a job reads is recorded, and fetched ahead the next time.
    pub profiles: bool,
}

impl Default for Prefetch {
    /// 4 MiB a second: a gigabyte in four minutes, and a third of a line of 100 Mbit/s.
    fn default() -> Self {
        Self { fill: true, bandwidth: 4 << 20, profiles: true }
    }
}

/// The section `jobs`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Jobs {
    /// `runtime`: a program to be tried before those found by themselves.
    pub runtime: Option<PathBuf>,
    /// `max_running`, all jobs together.
    pub max_running: usize,
    /// `max_running_per_source`.
    pub max_running_per_source: usize,
    /// `max_running_per_job`.
    pub max_running_per_job: usize,
    /// `max_queued`.
    pub max_queued: usize,
    /// `limits`.
    pub limits: RunLimits,
    /// `retention`.
    pub retention: Retention,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            runtime: None,
            max_running: 16,
            max_running_per_source: 16,
            max_running_per_job: 16,
            max_queued: 1000,
            limits: RunLimits::default(),
            retention: Retention::default(),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path` and those that it names.
    pub(crate) fn load(path: &Path, beside: &Beside, files: &Files) -> anyhow::Result<Self> {
        let flowd = path.file_name().is_some_and(|name| name == "flwd.yaml");
        let dialect = if flowd { Dialect::Flowd } else { Dialect::Addonfs };
        let text = Self::text(path, files)?;
        Self::parse(&path.display().to_string(), &text, &folder(path)?, dialect, beside, files)
    }

    fn text(path: &Path, files: &Files) -> anyhow::Result<Vec<u8>> {
        files.read(path).with_context(|| {
            format!("cannot read the configuration {} (name one with --config)", path.display())
        })
    }

    /// The sections in which `other` differs and that only a new mount can apply.
    pub(crate) fn differs_beyond(&self, other: &Self) -> Vec<&'static str> {
        let differences = [
            ("mount_point", self.mount_point != other.mount_point),
            ("state_dir", self.state_dir != other.state_dir),
            ("cache_dir", self.cache_dir != other.cache_dir),
            ("group", self.group != other.group),
            ("read", self.read != other.read),
            ("cache", self.cache != other.cache),
            ("prefetch", self.prefetch != other.prefetch),
            ("jobs", self.jobs != other.jobs),
            ("http", self.http.fixed() != other.http.fixed()),
        ];
        differences.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// The section `registries` alone, for commands that reach registries without a daemon; the other sections are
    /// not judged.
    pub(crate) fn registries(path: &Path) -> anyhow::Result<Registries> {
        let files = Files::default();
        let (file, text) = (path.display().to_string(), Self::text(path, &files)?);
        let node = yaml::parse(&text).map_err(|problem| refusal(&file, &[problem]))?;
        let base = folder(path)?;
        let mut report = Report::new(Dialect::Addonfs);
        let top = Field::root(&node).fields(&mut report);
        let found = top.and_then(|mut top| top.take("registries"));
        let found = found.map(|f| registries::registries(&f, &base, &files, &mut report));
        report.finish(&file)?;
        Ok(found.unwrap_or_default())
    }

    fn parse(
        file: &str,
        text: &[u8],
        base: &Path,
        dialect: Dialect,
        beside: &Beside,
        files: &Files,
    ) -> anyhow::Result<Self> {
        let node = yaml::parse(text).map_err(|problem| refusal(file, &[problem]))?;
        let mut report = Report::new(dialect);
        let Some(mut top) = Field::root(&node).fields(&mut report) else {
            report.finish(file)?;
            anyhow::bail!("{file} holds no mapping");
        };
        let mut policy_and_sources = sections(&mut top, base, &mut report);
        let mut path = |key| top.take(key).and_then(|f| f.text(&mut report)).map(|text| base.join(text));
        let (mount_point, state_dir) = (path("mount_point"), path("state_dir"));
        let (cache_dir, docker_config) = (path("cache_dir"), path("docker_config"));
        let policy_file = path("policy_file");
        let group = top.take("group").and_then(|f| f.text(&mut report));
        let registries = top.take("registries").map(|f| registries::registries(&f, base, files, &mut report));
        let read = section(&mut top, "read", &mut report, read);
        let cache = section(&mut top, "cache", &mut report, cache);
        let prefetch = section(&mut top, "prefetch", &mut report, prefetch);
        let jobs = section(&mut top, "jobs", &mut report, |fields, report| jobs(fields, base, report));
        let http =
            section(&mut top, "http", &mut report, |fields, report| http::http(fields, base, files, report));
        top.finish(&mut report);
        let mut warnings: Vec<String> = report.finish(file)?.iter().map(|p| format!("{file}: {p}")).collect();
        let policy_file = one_policy_file(policy_file, beside.policy_file.clone())?;
        if let Some(path) = &policy_file {
            let file = path.display().to_string();
            let text = files.read(path).with_context(|| format!("cannot read the policy file {file}"))?;
            let added = policy_and_sources.add_policy_file(&file, &text, &folder(path)?)?;
            warnings.extend(added.iter().map(|p| format!("{file}: {p}")));
        }
        let (mut policy, sources) = policy_and_sources.resolve(&|path| files.read(path))?;
        beside.apply(&mut policy)?;
        check_streams(&sources, policy.profile)?;
        Ok(Self {
            mount_point,
            state_dir,
            cache_dir,
            group,
            docker_config,
            policy,
            policy_file,
            sources,
            warnings,
            registries: registries.unwrap_or_default(),
            read,
            cache,
            prefetch,
            jobs,
            http,
        })
    }
}

/// The folder that paths in a file are relative to.
fn folder(path: &Path) -> anyhow::Result<PathBuf> {
    Ok(std::path::absolute(path)?.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
}

/// The environment may name a policy file where the configuration does not; it must not put one in the place of another.
fn one_policy_file(ours: Option<PathBuf>, named: Option<PathBuf>) -> Result<Option<PathBuf>, Denied> {
    match (ours, named) {
        (Some(ours), Some(named)) if ours != named => Err(Denied::new(
            Code::Config,
            format!(
                "policy_file is {} and {} names {}: keep one of them",
                ours.display(),
                beside::POLICY_FILE,
                named.display()
            ),
        )),
        (ours, named) => Ok(ours.or(named)),
    }
}

/// Reads one section; absent it has its defaults.
fn section<T: Default>(
    top: &mut Fields<'_>,
    key: &'static str,
    report: &mut Report,
    read: impl FnOnce(&mut Fields<'_>, &mut Report) -> T,
) -> T {
    let Some(mut fields) = top.take(key).and_then(|f| f.fields(report)) else { return T::default() };
    let section = read(&mut fields, report);
    fields.finish(report);
    section
}

fn read(fields: &mut Fields<'_>, report: &mut Report) -> Read {
    let mut read = Read::default();
    set(fields, "deadline", report, &mut read.deadline, |text| duration::parse(text).map_err(words));
    set(fields, "stall_timeout", report, &mut read.stall_timeout, |text| {
        duration::parse(text).map_err(words)
    });
    read
}

fn cache(fields: &mut Fields<'_>, report: &mut Report) -> Cache {
    let mut cache = Cache::default();
    set(fields, "quota", report, &mut cache.quota, |text| match quantity::parse_share(text) {
        Ok(Share::Bytes(0) | Share::Percent(0)) => Err("a quota of nothing keeps nothing".to_owned()),
        parsed => parsed.map_err(words),
    });
    set(fields, "keep_free", report, &mut cache.keep_free, |text| quantity::parse_share(text).map_err(words));
    set(fields, "verify", report, &mut cache.verify, |text| match text {
        "always" => Ok(Verify::Always),
        "on-change" => Ok(Verify::OnChange),
        _ => Err(format!("{text:?} is neither always nor on-change")),
    });
    cache
}

fn prefetch(fields: &mut Fields<'_>, report: &mut Report) -> Prefetch {
    let mut prefetch = Prefetch::default();
    if let Some(fill) = fields.take("fill").and_then(|f| f.flag(report)) {
        prefetch.fill = fill;
    }
    if let Some(profiles) = fields.take("profiles").and_then(|f| f.flag(report)) {
        prefetch.profiles = profiles;
    }
    set(fields, "bandwidth", report, &mut prefetch.bandwidth, |text| {
        quantity::parse_memory(text).map_err(words)
    });
    prefetch
}

fn jobs(fields: &mut Fields<'_>, base: &Path, report: &mut Report) -> Jobs {
    // A bare name is looked up as a shell does; only a path is relative to the file.
    let runtime = fields
        .take("runtime")
        .and_then(|f| f.text(report))
        .map(|text| if text.contains('/') { base.join(text) } else { text.into() });
    let mut jobs = Jobs { runtime, ..Jobs::default() };
    set(fields, "max_running", report, &mut jobs.max_running, at_least_one);
    set(fields, "max_running_per_source", report, &mut jobs.max_running_per_source, at_least_one);
    set(fields, "max_running_per_job", report, &mut jobs.max_running_per_job, at_least_one);
    set(fields, "max_queued", report, &mut jobs.max_queued, at_least_one);
    if let Some(mut limits) = fields.take("limits").and_then(|f| f.fields(report)) {
        let bytes = |text: &str| quantity::parse_memory(text).map_err(words);
        set(&mut limits, "pids", report, &mut jobs.limits.pids, |text| at_least_one(text).map(|n| n as u64));
        set(&mut limits, "tmp", report, &mut jobs.limits.tmp_bytes, bytes);
        set(&mut limits, "out", report, &mut jobs.limits.out_bytes, bytes);
        set(&mut limits, "log", report, &mut jobs.limits.log_bytes, bytes);
        set(&mut limits, "grace", report, &mut jobs.limits.grace, |text| {
            duration::parse(text).map_err(words)
        });
        limits.finish(report);
    }
    if let Some(mut retention) = fields.take("retention").and_then(|f| f.fields(report)) {
        let kept = &mut jobs.retention;
        set(&mut retention, "max_age", report, &mut kept.max_age, |text| {
            duration::parse(text).map_err(words)
        });
        set(&mut retention, "max_finished", report, &mut kept.max_finished, |text| {
            text.parse().map_err(words)
        });
        set(&mut retention, "max_bytes", report, &mut kept.max_bytes, |text| {
            quantity::parse_memory(text).map_err(words)
        });
        set(&mut retention, "unstarted", report, &mut kept.unstarted, |text| {
            duration::parse(text).map_err(words)
        });
        retention.finish(report);
    }
    jobs
}

/// Sets `value` from the text under `key`, if there is one.
fn set<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    report: &mut Report,
    value: &mut T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) {
    let Some(field) = fields.take(key) else { return };
    let Some(text) = field.text(report) else { return };
    match parse(&text) {
        Ok(parsed) => *value = parsed,
        Err(reason) => report.problem(&field, reason, ""),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is not a number above 0"))
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, dialect: Dialect) -> anyhow::Result<Config> {
        let (beside, files) = (Beside::default(), Files::default());
        Config::parse("addonfs.yaml", text.as_bytes(), Path::new("/etc/x"), dialect, &beside, &files)
    }

    #[test]
    fn there_is_one_policy_file() {
        let path = |name: &str| Some(PathBuf::from(name));
        assert_eq!(one_policy_file(None, None), Ok(None));
        assert_eq!(one_policy_file(path("/a"), None), Ok(path("/a")));
        assert_eq!(one_policy_file(None, path("/a")), Ok(path("/a")));
        assert_eq!(one_policy_file(path("/a"), path("/a")), Ok(path("/a")));
        assert_eq!(one_policy_file(path("/a"), path("/b")).unwrap_err().code, Code::Config);
        let error = parse("policy_file: none.yaml", Dialect::Addonfs).unwrap_err();
        assert!(error.to_string().contains("/etc/x/none.yaml"), "{error:#}");
    }

    #[test]
    fn every_section_is_read() {
        let text = "mount_point: /mnt/a\nstate_dir: state\ngroup: ops\nread: {deadline: 5s}\n\
                    cache: {quota: 2Gi, keep_free: 3%, verify: always}\n\
                    jobs: {runtime: /usr/bin/crun, max_running: 2, limits: {tmp: 1Mi, grace: 1s}, retention: {max_finished: 5}}\n";
        let config = parse(text, Dialect::Addonfs).unwrap();
        assert_eq!(config.mount_point.as_deref(), Some(Path::new("/mnt/a")));
        assert_eq!(config.state_dir.as_deref(), Some(Path::new("/etc/x/state")));
        assert_eq!(config.read.deadline, Duration::from_secs(5));
        assert_eq!(config.read.stall_timeout, Duration::from_secs(30));
        assert_eq!((config.cache.quota, config.cache.verify), (Share::Bytes(2 << 30), Verify::Always));
        assert_eq!(config.cache.keep_free, Share::Percent(3));
        assert_eq!((config.jobs.max_running, config.jobs.limits.tmp_bytes), (2, 1 << 20));
        assert_eq!(config.jobs.retention.max_finished, 5);
    }

    #[test]
    fn a_quota_is_a_share_of_the_disk_that_holds_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let stat = rustix::fs::statvfs(dir.path()).unwrap();
        let disk = stat.f_blocks * stat.f_frsize;
        let options = |quota, keep_free| {
            let cache = Cache { quota, keep_free, ..Cache::default() };
            let options = cache.store_options(dir.path()).unwrap();
            (options.quota_bytes, options.keep_free_bytes)
        };
        assert_eq!(options(Share::Bytes(7), Share::Bytes(9)), (7, 9));
        let fifth = Share::Percent(20).of(disk);
        assert_eq!(
            options(Share::Percent(20), Share::Percent(20)),
            (fifth.max(LEAST_QUOTA), fifth.min(MOST_KEPT_FREE))
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_here_and_a_warning_in_flowds_file() {
        let text = "server: {port: 1}\ncache: {qouta: 1}\n";
        let error = parse(text, Dialect::Addonfs).unwrap_err().to_string();
        assert!(error.starts_with("E_CONFIG: addonfs.yaml: line 1"), "{error}");
        assert!(error.contains("line 2") && error.contains("did you mean quota?"), "{error}");
        assert_eq!(parse(text, Dialect::Flowd).unwrap().warnings.len(), 2);
    }

    #[test]
    fn a_runtime_is_a_path_beside_the_file_or_a_program_of_the_host() {
        for (written, expected) in [("crun", "crun"), ("./crun", "/etc/x/./crun"), ("/opt/runc", "/opt/runc")]
        {
            let config = parse(&format!("jobs: {{runtime: {written}}}"), Dialect::Addonfs).unwrap();
            assert_eq!(config.jobs.runtime.as_deref(), Some(Path::new(expected)), "{written}");
        }
    }

    #[test]
    fn bad_values_are_placed() {
        for (text, part) in [
            ("read: {deadline: soon}", "line 1"),
            ("cache: {verify: never}", "neither always nor on-change"),
            ("prefetch: {bandwidth: 0}", "is zero"),
            ("cache: {quota: 0}", "keeps nothing"),
            ("cache: {quota: 120%}", "not a part of a disk"),
            ("jobs: {max_running: 0}", "not a number above 0"),
            ("jobs: {limits: {pids: 0}}", "not a number above 0"),
            ("jobs: 3", "expected a mapping"),
            ("registries: {a/b: {}}", "is not a registry host"),
            ("registries: {a: {fallback: false}}", "leaves no host"),
            ("registries: {docker.io: {}, index.docker.io: {}}", "named twice"),
            ("registries: {a: {mirrors: [{resolve: true}]}}", "without url"),
            ("registries: {a: {mirrors: [{url: 'http://m'}]}}", "plain http"),
            ("registries: {a: {mirrors: [{url: 'https://m', tls: 1}]}}", "unknown key"),
            ("registries: {a: {ca: none.pem}}", "/etc/x/none.pem cannot be read"),
        ] {
            let error = parse(text, Dialect::Addonfs).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    /// A certificate authority that nobody has the key of.
    const TRUSTED_ROOT: &[u8] = include_bytes!("../../tests/fixtures/sigstore/trusted_root.json");
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
         MIIBgjCCASegAwIBAgIUHSoZ6QfWeBx6U4s28TCujgUj2T4wCgYIKoZIzj0EAwIw\n\
         FTETMBEGA1UEAwwKZXhhbXBsZSBDQTAgFw0yNjExMjEwNzMzNDJaGA8yMTI2MTAy\n\
         ODA3MzM0MlowFTETMBEGA1UEAwwKZXhhbXBsZSBDQTBZMBMGByqGSM49AgEGCCqG\n\
         SM49AwEHA0IABF0LsUZBqQReHAjSPk56E+MfoCQipFxeZHAKomOUX/DyIB1bc53Z\n\
         ua16iU0jndpRD7FAbAStutS3mZtQQmqF6W6jUzBRMB0GA1UdDgQWBBQVWrm97hwL\n\
         AsiWkl0khvLtU8H8JTAfBgNVHSMEGDAWgBQVWrm97hwLAsiWkl0khvLtU8H8JTAP\n\
         BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQCiuWI5fUVS0VM/YDBg\n\
         6DJupwdxwgtHP+9HLLfyTGbBoAIhAK2z1VpWekz19o1p0YVWo1cULS80ywooEzMs\n\
         ZceAb088\n\
         -----END CERTIFICATE-----\n";

    const DOCS: &str = include_str!("../../docs/configuration.md");

    /// notation's folder, with one store.
    fn notation_files(dir: &Path) {
        let policy = r#"{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
            "signatureVerification": {"level": "strict"}, "trustStores": ["ca:acme"], "trustedIdentities": ["*"]}]}"#;
        std::fs::write(dir.join("trustpolicy.json"), policy).unwrap();
        std::fs::create_dir_all(dir.join("truststore/x509/ca/acme")).unwrap();
        std::fs::write(dir.join("truststore/x509/ca/acme/ca.pem"), CERTIFICATE).unwrap();
        std::fs::create_dir(dir.join("crls")).unwrap();
    }

    /// What the trust policy says is checked with the rest of the configuration.
    #[test]
    fn files_of_notation_are_read() {
        let text = "policy: {trust: {notation: {trust_policy: trustpolicy.json, trust_store: truststore, crls: crls}}}";
        let parse = |dir: &Path, text: &str| {
            let (beside, files) = (Beside::default(), Files::default());
            Config::parse("addonfs.yaml", text.as_bytes(), dir, Dialect::Addonfs, &beside, &files)
        };
        let dir = tempfile::tempdir().unwrap();
        notation_files(dir.path());
        let config = parse(dir.path(), text).unwrap();
        assert!(config.policy.trust.notation.is_some());
        let own = text.strip_prefix("policy: {").and_then(|text| text.strip_suffix('}')).unwrap();
        let source = format!("sources: [{{type: oci, image: 'a.b/c@sha256:{}', {own}}}]", "0".repeat(64));
        let spec = parse(dir.path(), &source).unwrap().sources.remove(0).to_yaml();
        assert!(spec.contains("notation:") && spec.contains("/truststore"), "{spec}");
        let refused = |text: &str, words: &str| {
            let error = parse(dir.path(), text).unwrap_err().to_string();
            assert!(error.contains("E_CONFIG") && error.contains(words), "{text}: {error}");
        };
        refused("policy: {trust: {notation: {trust_store: truststore}}}", "names no trust policy");
        refused("policy: {trust: {notation: {trust_policy: gone.json}}}", "gone.json: cannot be read");
        refused("policy: {trust: {notation: {trust_policy: trustpolicy.json}}}", "trust_store is not said");
        refused(
            "policy: {trust: {notation: {trust_policy: trustpolicy.json, crl: x}}}",
            "did you mean crls?",
        );
        let store = dir.path().join("truststore/x509/ca/acme");
        std::os::unix::fs::symlink("ca.pem", store.join("link.pem")).unwrap();
        refused(text, "link.pem: is a symbolic link");
        std::fs::remove_file(store.join("link.pem")).unwrap();
        std::fs::rename(&store, store.with_file_name("other")).unwrap();
        refused(text, "acme: cannot be read");
        std::os::unix::fs::symlink("other", &store).unwrap();
        refused(text, "acme: is a symbolic link");
        std::fs::write(dir.path().join("trustpolicy.json"), "{}").unwrap();
        refused(text, "trust policy document has empty version");
    }

    #[test]
    fn the_documented_file_is_accepted() {
        use crate::policy::trust::keys::PrivateKey;
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate().unwrap().public().unwrap().to_pem();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        for name in ["cosign.pub", "own.pub", "index.pub", "keys/release.pub"] {
            std::fs::write(dir.path().join(name), &key).unwrap();
        }
        std::fs::write(dir.path().join("ca.pem"), CERTIFICATE).unwrap();
        std::fs::write(dir.path().join("trusted_root.json"), TRUSTED_ROOT).unwrap();
        notation_files(dir.path());
        http::tests::token_file(dir.path(), 0o600);
        let block = DOCS.split("```yaml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let text = block.replace("sha256:…", &format!("sha256:{}", "0".repeat(64)));
        std::fs::write(dir.path().join("flwd.policy.yaml"), "").unwrap();
        let (beside, files) = (Beside::default(), Files::default());
        let dialect = Dialect::Addonfs;
        let config =
            Config::parse("addonfs.yaml", text.as_bytes(), dir.path(), dialect, &beside, &files).unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        // What the page calls a default is one.
        let default = Jobs::default();
        assert_eq!(config.jobs.max_running, default.max_running);
        assert_eq!(config.jobs.limits.log_bytes, default.limits.log_bytes);
        assert_eq!(config.jobs.limits.out_bytes, default.limits.out_bytes);
        assert_eq!(config.jobs.retention.max_age, default.retention.max_age);
        assert_eq!(config.cache.quota, Cache::default().quota);
        assert_eq!(config.cache.keep_free, Cache::default().keep_free);
        assert_eq!(config.prefetch.bandwidth, Prefetch::default().bandwidth);
        assert_eq!(config.prefetch.fill, Prefetch::default().fill);
        assert_eq!(config.read.deadline, Read::default().deadline);
    }

    #[test]
    fn every_key_that_is_read_is_documented() {
        let readers = regex::Regex::new(
            r#"\b(?:take|section|set|text|flag|word|granted|path)\((?:&mut )?(?:[a-z]+,)?\s*"([A-Za-z_]+)""#,
        )
        .unwrap();
        let code = |text: &'static str| text.split("#[cfg(test)]").next().unwrap_or_default();
        let sources = [
            code(include_str!("config.rs")),
            code(include_str!("config/registries.rs")),
            code(include_str!("../policy/source/parse.rs")),
        ];
        let keys: std::collections::BTreeSet<&str> = sources
            .iter()
            .flat_map(|text| readers.captures_iter(text).map(|found| found.extract::<1>().1[0]))
            .collect();
        assert!(keys.len() > 40, "the search has found the keys: {keys:?}");
        for key in keys {
            let told = regex::Regex::new(&format!(r"\b{key}:")).unwrap();
            assert!(told.is_match(DOCS), "docs/configuration.md does not tell of {key}");
        }
    }
}
