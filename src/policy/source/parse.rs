//! The `sources:` and `policy:` sections of a configuration file, and a policy file of its own.
//!
//! In: the file's tree and the folder that relative paths are relative to. Out: [`Sections`], whose key files
//! somebody else reads ([`Sections::resolve`]), or problems in the [`Report`]. A policy file (`flwd.policy.yaml`) holds
//! what `policy:` holds; a key stands in one of the two, so that nobody has to know which would win. An entry in the configuration is
//! consent, so `trusted` defaults to true; a digest is mandatory; under `image`, `ref` and `url` stands one thing.

use std::io;
use std::path::Path;

use super::spec::{Expose, PullPolicy, SourceSpec};
use super::trust::{self, TrustDraft};
use crate::policy::addon::Resources;
use crate::policy::code::Denied;
use crate::policy::fields::{Dialect, Field, Fields, Report, refusal};
use crate::policy::reference::{ImageRef, Location, PinnedRef, strip_scheme};
use crate::policy::rules::{
    AllowedRegistries, OnUntrusted, Overrides, Policy, Profile, ProfileFrom, VerifyMode,
};
use crate::policy::yaml::{self, Problem};
use crate::policy::{duration, mount_path, quantity};

/// Most sources of one configuration: each is a task and some files.
pub const MAX_SOURCES: usize = 1024;

/// Longest name of a source in bytes: it names a folder and stands in messages.
const MAX_NAME: usize = 128;

/// Reads a file that the configuration names. Of a folder it gives the entries in the order of their names: one a line,
/// folders with `/` behind, symbolic links with `@`.
pub type ReadFile<'r> = &'r dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// The two sections, with key files named but not read.
#[derive(Debug, Default)]
pub struct Sections {
    policy: PolicyDraft,
    sources: Vec<(SourceSpec, Option<TrustDraft>)>,
}

/// The rules, with key files named but not read.
#[derive(Debug, Default)]
struct PolicyDraft {
    policy: Policy,
    trust: TrustDraft,
    /// The keys that are said, and not left to their defaults.
    said: Vec<&'static str>,
}

/// A file that holds nothing but the two sections, resolved.
#[derive(Debug)]
pub struct Loaded {
    /// The rules.
    pub policy: Policy,
    /// The sources, in their written order.
    pub sources: Vec<SourceSpec>,
    /// What is worth saying.
    pub warnings: Vec<Problem>,
}

/// Loads a file with these two sections. A program with further keys calls [`sections`] and takes those itself.
pub fn load(
    file: &str,
    bytes: &[u8],
    dialect: Dialect,
    base: &Path,
    read: ReadFile<'_>,
) -> Result<Loaded, Denied> {
    let node = yaml::parse(bytes).map_err(|problem| refusal(file, &[problem]))?;
    let mut report = Report::new(dialect);
    let mut drafted = Sections::default();
    if let Some(mut top) = Field::root(&node).fields(&mut report) {
        drafted = sections(&mut top, base, &mut report);
        top.finish(&mut report);
    }
    let warnings = report.finish(file)?;
    let (policy, sources) = drafted.resolve(read)?;
    Ok(Loaded { policy, sources, warnings })
}

/// Takes `policy` and `sources` from the top of a file.
pub fn sections(top: &mut Fields<'_>, base: &Path, report: &mut Report) -> Sections {
    let mut sections = Sections::default();
    if let Some(mut fields) = top.take("policy").and_then(|f| f.fields(report)) {
        sections.policy = policy(&mut fields, base, report);
        fields.finish(report);
    }
    let items = top.take("sources").and_then(|f| f.items(report)).unwrap_or_default();
    if let Some(beyond) = items.get(MAX_SOURCES) {
        report.problem(beyond, format!("more than {MAX_SOURCES} sources"), "");
    }
    for item in items.iter().take(MAX_SOURCES) {
        let Some((spec, trust)) = source(item, base, report) else { continue };
        if sections.sources.iter().any(|(other, _)| other.name == spec.name) {
            let message = format!("a source named {:?} stands above already", spec.name);
            report.problem(item, message, "give this one a name of its own");
            continue;
        }
        sections.sources.push((spec, trust));
    }
    sections
}

impl Sections {
    /// Adds a policy file, in which what stands in `policy:` must not stand, too. Returns its warnings.
    pub fn add_policy_file(&mut self, file: &str, bytes: &[u8], base: &Path) -> Result<Vec<Problem>, Denied> {
        let node = yaml::parse(bytes).map_err(|problem| refusal(file, &[problem]))?;
        // Another program reads it, too, and may know keys of its own.
        let mut report = Report::new(Dialect::Flowd);
        if let Some(mut fields) = Field::root(&node).fields(&mut report) {
            let added = policy(&mut fields, base, &mut report);
            if let Some(twice) = added.said.iter().find(|key| self.policy.said.contains(key)) {
                let message = format!("{twice} stands in policy: of the configuration, too");
                report.problem(fields.at(), message, "keep one of them");
            }
            fields.finish(&mut report);
            self.policy.add(added);
        }
        report.finish(file)
    }

    /// Reads the key files and completes policy and sources.
    pub fn resolve(self, read: ReadFile<'_>) -> Result<(Policy, Vec<SourceSpec>), Denied> {
        let policy = Policy { trust: self.policy.trust.resolve(read)?, ..self.policy.policy };
        let mut sources = Vec::with_capacity(self.sources.len());
        for (mut spec, trust) in self.sources {
            spec.trust = trust.map(|trust| trust.resolve(read)).transpose()?;
            sources.push(spec);
        }
        Ok((policy, sources))
    }
}

impl PolicyDraft {
    /// Takes over what `other` says.
    fn add(&mut self, other: Self) {
        let (mine, its) = (&mut self.policy, other.policy);
        for key in &other.said {
            match *key {
                "profile" => (mine.profile, mine.profile_from) = (its.profile, its.profile_from.clone()),
                "verify_signatures" => mine.verify_signatures = its.verify_signatures,
                "allowed_registries" => mine.allowed_registries = its.allowed_registries.clone(),
                "on_untrusted" => mine.on_untrusted = its.on_untrusted,
                "ceilings" => mine.ceilings = its.ceilings,
                "overrides" => mine.overrides = its.overrides.clone(),
                _ => {}
            }
        }
        if other.said.contains(&"trust") {
            self.trust = other.trust;
        }
        self.said.extend(other.said);
    }
}

fn policy(fields: &mut Fields<'_>, base: &Path, report: &mut Report) -> PolicyDraft {
    let mut policy = Policy::default();
    if let Some((field, text)) = text(fields, "profile", report) {
        match text.parse::<Profile>() {
            Ok(profile) => (policy.profile, policy.profile_from) = (profile, ProfileFrom::Configuration),
            Err(denied) => report.denied(&field, denied),
        }
    }
    policy.verify_signatures = fields.take("verify_signatures").and_then(|f| verify_mode(&f, report));
    if let Some(field) = fields.take("allowed_registries") {
        let list = field.texts(report);
        let parsed = judged(&field, AllowedRegistries::parse(list.as_deref()), report);
        policy.allowed_registries = parsed.unwrap_or_default();
    }
    let trust = fields.take("trust").and_then(|f| trust::section(&f, base, report)).unwrap_or_default();
    policy.on_untrusted = word(fields, "on_untrusted", OnUntrusted::from_name, "finish or kill", report);
    policy.ceilings = fields.take("ceilings").and_then(|f| ceilings(&f, report)).unwrap_or_default();
    policy.overrides = fields.take("overrides").and_then(|f| overrides(&f, report)).unwrap_or_default();
    PolicyDraft { policy, trust, said: fields.found() }
}

/// `required`, `permissive` or `disabled`; `true` is required, `false` permissive.
fn verify_mode(field: &Field<'_>, report: &mut Report) -> Option<VerifyMode> {
    match field.node.scalar_text().as_deref() {
        Some("true" | "required") => Some(VerifyMode::Required),
        Some("false" | "permissive") => Some(VerifyMode::Permissive),
        Some("disabled") => Some(VerifyMode::Disabled),
        _ => {
            report.problem(field, "expected required, permissive or disabled", "");
            None
        }
    }
}

fn ceilings(field: &Field<'_>, report: &mut Report) -> Option<Resources> {
    let mut fields = field.fields(report)?;
    let mut ceilings = Resources::default();
    if let Some((field, text)) = text(&mut fields, "cpu", report) {
        ceilings.cpu_millis = judged(&field, quantity::parse_cpu(&text), report);
    }
    if let Some((field, text)) = text(&mut fields, "memory", report) {
        ceilings.memory_bytes = judged(&field, quantity::parse_memory(&text), report);
    }
    if let Some((field, text)) = text(&mut fields, "timeout", report) {
        ceilings.timeout = judged(&field, duration::parse(&text), report);
    }
    fields.finish(report);
    Some(ceilings)
}

fn overrides(field: &Field<'_>, report: &mut Report) -> Option<Overrides> {
    let mut fields = field.fields(report)?;
    let network =
        granted(&mut fields, "network", &["host"], "host is the only network that can be granted", report);
    let caps = granted(&mut fields, "caps", &[], "jobs get no capabilities, whatever is granted", report);
    let overrides = Overrides {
        profile: profiles(&mut fields, report),
        network,
        caps,
        rootfs_writable: flag(&mut fields, "rootfs_writable", false, report),
        env_inheritance: flag(&mut fields, "env_inheritance", false, report),
        data_dir: flag(&mut fields, "data_dir", false, report),
    };
    fields.finish(report);
    Some(overrides)
}

/// `overrides.profile`: the looser levels that may be asked for.
fn profiles(fields: &mut Fields<'_>, report: &mut Report) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for item in fields.take("profile").and_then(|f| f.items(report)).unwrap_or_default() {
        let Some(text) = item.text(report) else { continue };
        match text.parse() {
            Ok(profile) => profiles.push(profile),
            Err(denied) => report.denied(&item, denied),
        }
    }
    profiles
}

/// A list of grants. One that nobody can give is a mistake here, and in flowd's file flowd's matter: read over in
/// silence it would look granted.
fn granted(
    fields: &mut Fields<'_>,
    key: &'static str,
    known: &[&str],
    words: &str,
    report: &mut Report,
) -> Vec<String> {
    let Some(field) = fields.take(key) else { return Vec::new() };
    let mut list = field.texts(report).unwrap_or_default();
    if let Some(unknown) = list.iter().find(|grant| !known.contains(&grant.as_str())) {
        let message = format!("overrides.{key} holds {unknown:?}");
        match report.dialect() {
            Dialect::Addonfs => report.problem(&field, message, words),
            Dialect::Flowd => report.warn(&field, message, words),
        }
    }
    list.retain(|grant| known.contains(&grant.as_str()));
    list
}

fn source(item: &Field<'_>, base: &Path, report: &mut Report) -> Option<(SourceSpec, Option<TrustDraft>)> {
    let mut fields = item.fields(report)?;
    if !is_oci(&mut fields, report) {
        return None;
    }
    let image = image(&mut fields, base, report);
    let name = name(&mut fields, image.as_ref(), report);
    let mount_path = match text(&mut fields, "mountPath", report) {
        Some((field, text)) => judged(&field, mount_path::clean(&text), report),
        None => name.clone(),
    };
    let trusted = flag(&mut fields, "trusted", true, report);
    let pull_policy = word(
        &mut fields,
        "pull_policy",
        PullPolicy::from_name,
        "on-add, on-run, on-startup or never",
        report,
    );
    let expose = word(&mut fields, "expose", Expose::from_name, "none, read or readwrite", report);
    let verify_signatures = flag(&mut fields, "verify_signatures", false, report);
    let insecure = flag(&mut fields, "insecure", false, report);
    let pin = flag(&mut fields, "pin", false, report);
    let stream = flag(&mut fields, "stream", false, report);
    let trust = fields.take("trust").and_then(|f| trust::section(&f, base, report));
    fields.finish(report);
    let spec = SourceSpec {
        name: name?,
        image: image?,
        mount_path: mount_path?,
        trusted,
        pull_policy,
        expose,
        verify_signatures,
        trust: None,
        insecure,
        pin,
        stream,
        profile: None,
    };
    Some((spec, trust))
}

/// Other kinds of source in a file written for flowd are flowd's matter; in ours they are mistakes.
fn is_oci(fields: &mut Fields<'_>, report: &mut Report) -> bool {
    match (text(fields, "type", report), report.dialect()) {
        (Some((_, kind)), _) if kind == "oci" => true,
        (Some((field, kind)), Dialect::Flowd) => {
            report.warn(
                &field,
                format!("source type {kind:?} is not shown by addonfs"),
                "only oci sources are",
            );
            false
        }
        (Some((field, kind)), Dialect::Addonfs) => {
            report.problem(&field, format!("unsupported source type {kind:?}"), "write type: oci");
            false
        }
        (None, _) => {
            report.problem(fields.at(), "the source has no type", "write type: oci");
            false
        }
    }
}

/// The one image that `image`, `ref` and `url` name.
fn image(fields: &mut Fields<'_>, base: &Path, report: &mut Report) -> Option<PinnedRef> {
    let mut found: Option<(&'static str, ImageRef, Field<'_>)> = None;
    for key in ["image", "ref", "url"] {
        let Some((field, written)) = text(fields, key, report) else { continue };
        let (bare, stripped) = strip_scheme(&written);
        if stripped {
            report.warn(&field, "oci:// is stripped", format!("write {bare}"));
        }
        let mut parsed = judged(&field, bare.parse::<ImageRef>(), report)?;
        if let Location::Layout { path } = &mut parsed.location {
            *path = base.join(&*path);
        }
        match &found {
            Some((first, other, _)) if *other != parsed => {
                let message = format!("{key} and {first} name different images");
                report.problem(&field, message, "keep one of them");
                return None;
            }
            Some(_) => {}
            None => found = Some((key, parsed, field)),
        }
    }
    let Some((_, image, field)) = found else {
        report.problem(fields.at(), "the source has no image", "write image: host/repository:tag@sha256:…");
        return None;
    };
    judged(&field, image.pinned(), report)
}

/// The name as written, or made from the last element of the image's path.
fn name(fields: &mut Fields<'_>, image: Option<&PinnedRef>, report: &mut Report) -> Option<String> {
    let (field, name) = match text(fields, "name", report) {
        Some(named) => named,
        None => (fields.at().clone(), image?.location.last_element().to_ascii_lowercase()),
    };
    let good = good_name(&name);
    if !good {
        let hint = format!("letters, digits, '.', '_' and '-', a letter or digit first, at most {MAX_NAME}");
        report.problem(&field, format!("invalid name {name:?}"), hint);
    }
    good.then_some(name)
}

/// Whether a source may have this name.
pub(super) fn good_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(word)
        && name.len() <= MAX_NAME
        && name.chars().all(|c| word(c) || matches!(c, '.' | '_' | '-'))
}

fn text<'n>(fields: &mut Fields<'n>, key: &'static str, report: &mut Report) -> Option<(Field<'n>, String)> {
    let field = fields.take(key)?;
    let text = field.text(report)?;
    Some((field, text))
}

fn flag(fields: &mut Fields<'_>, key: &'static str, default: bool, report: &mut Report) -> bool {
    fields.take(key).and_then(|f| f.flag(report)).unwrap_or(default)
}

fn word<T: Default>(
    fields: &mut Fields<'_>,
    key: &'static str,
    from_name: fn(&str) -> Option<T>,
    expected: &str,
    report: &mut Report,
) -> T {
    let Some((field, text)) = text(fields, key, report) else { return T::default() };
    from_name(&text).unwrap_or_else(|| {
        report.problem(&field, format!("invalid {key} {text:?}"), format!("expected {expected}"));
        T::default()
    })
}

/// A value, or its refusal as a problem at the field.
fn judged<T, E: Into<Refusal>>(field: &Field<'_>, result: Result<T, E>, report: &mut Report) -> Option<T> {
    result.map_err(|error| report.problem(field, error.into().0, "")).ok()
}

/// The words of a refusal without its code: the whole file is refused under one.
struct Refusal(String);

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self(denied.message)
    }
}

impl From<quantity::QuantityError> for Refusal {
    fn from(error: quantity::QuantityError) -> Self {
        Self(error.to_string())
    }
}

impl From<duration::DurationError> for Refusal {
    fn from(error: duration::DurationError) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::code::Code;
    use crate::policy::trust::keys::PrivateKey;

    const D: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn load_text(text: &str, dialect: Dialect) -> Result<Loaded, Denied> {
        let pem = PrivateKey::generate().unwrap().public().unwrap().to_pem();
        let read = |path: &Path| match path.to_str() {
            Some("/etc/addonfs/cosign.pub") => Ok(pem.clone().into_bytes()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        load("addonfs.yaml", text.as_bytes(), dialect, Path::new("/etc/addonfs"), &read)
    }

    fn refused(text: &str, place: &str, word: &str) {
        let denied = load_text(text, Dialect::Addonfs).unwrap_err();
        assert_eq!(denied.code, Code::Config, "{denied}");
        assert!(denied.message.contains(place) && denied.message.contains(word), "{text}\n{denied}");
    }

    #[test]
    fn the_session_of_the_readme_loads() {
        let text = format!(
            "policy:\n  profile: secure\n  allowed_registries: [localhost:5000]\n  trust: {{keys: [cosign.pub]}}\n\
             sources:\n  - name: backup\n    type: oci\n    image: localhost:5000/org/backup-tools:v1.0.0@{D}\n    \
             mountPath: tools/backup\n"
        );
        let loaded = load_text(&text, Dialect::Addonfs).unwrap();
        assert_eq!(loaded.policy.profile, Profile::Secure);
        assert_eq!(loaded.policy.trust.keys[0].name, "cosign.pub");
        let source = &loaded.sources[0];
        assert_eq!((source.name.as_str(), source.mount_path.as_str()), ("backup", "tools/backup"));
        assert!(source.trusted && !source.insecure);
        assert!(loaded.policy.check_registry(&source.image.location).is_ok());
        assert!(loaded.warnings.is_empty());
        let yaml = source.to_yaml();
        assert!(
            yaml.contains("mountPath: tools/backup\n") && yaml.contains("pull_policy: on-add\n"),
            "{yaml}"
        );
        let again = format!("sources:\n  - {}", yaml.trim_end().replace('\n', "\n    "));
        assert_eq!(load_text(&again, Dialect::Addonfs).unwrap().sources[0].image, source.image, "{again}");
    }

    #[test]
    fn everything_is_read() {
        let text = format!(
            "policy:\n  profile: permissive\n  verify_signatures: required\n  ceilings: {{cpu: 2, memory: 1Gi, timeout: 10m}}\n  \
             overrides: {{network: [host], rootfs_writable: true, data_dir: true}}\n\
             sources:\n  - {{type: oci, url: 'oci://ghcr.io/Org/x', ref: 'ghcr.io/a/X@{D}'}}\n"
        );
        assert!(load_text(&text, Dialect::Addonfs).is_err());
        let text = text.replace("oci://ghcr.io/Org/x", &format!("oci://ghcr.io/a/tool:1@{D}"));
        let text = text.replace("a/X", "a/tool:1");
        let loaded = load_text(&text, Dialect::Addonfs).unwrap();
        assert_eq!(loaded.policy.ceilings.cpu_millis, Some(2000));
        assert_eq!(loaded.policy.ceilings.memory_bytes, Some(1 << 30));
        assert_eq!(loaded.policy.overrides.network, ["host"]);
        assert_eq!(loaded.policy.verify_mode(), VerifyMode::Required);
        assert_eq!(
            (loaded.sources[0].name.as_str(), loaded.sources[0].mount_path.as_str()),
            ("tool", "tool")
        );
        assert!(loaded.warnings[0].message.contains("oci://"));
        for (name, policy) in [
            ("Always", PullPolicy::OnAdd),
            ("ifNotPresent", PullPolicy::OnRun),
            ("on-startup", PullPolicy::OnStartup),
        ] {
            let text = format!("sources: [{{type: oci, image: 'oci:./x.oci:v1@{D}', pull_policy: {name}}}]");
            let loaded = load_text(&text, Dialect::Addonfs).unwrap();
            assert_eq!(loaded.sources[0].pull_policy, policy);
            assert_eq!(loaded.sources[0].image.to_string(), format!("oci:/etc/addonfs/./x.oci:v1@{D}"));
        }
    }

    /// Cases MA-11 and MA-26 among others.
    #[test]
    fn refuses_with_line_and_column() {
        let source =
            |rest: &str| format!("sources:\n  - type: oci\n    image: ghcr.io/o/x@{D}\n    {rest}\n");
        refused("sources:\n  - type: oci\n    image: ghcr.io/org/x:v1\n", "line 3, column 12", "no digest");
        refused(&source("name: ../evil"), "line 4, column 11", "invalid name");
        refused(&source("name: a/b"), "line 4, column 11", "invalid name");
        refused(&source("mountPath: /abs"), "line 4", "relative");
        refused(&source("mountPth: x"), "line 4, column 5", "did you mean mountPath?");
        refused(&source("pull_policy: sometimes"), "line 4", "invalid pull_policy");
        refused(&source("expose: all"), "line 4", "invalid expose");
        refused(&source("insecure: 'yes'"), "line 4", "true or false");
        refused(&source(&format!("ref: ghcr.io/o/y@{D}")), "line 4", "different images");
        refused(&source("trust: {identites: []}"), "line 4", "did you mean identities?");
        refused(&source("trust: {identities: []}"), "line 4", "0 identities");
        refused(&source("trust: {identities: [{issuer: a}]}"), "line 4", "without subject");
        refused(&source("trust: {identities: [{subject: a}]}"), "line 4", "without issuer");
        refused(&source("trust: {identities: [{issuer: '(', subject: a}]}"), "line 4", "unclosed");
        refused(&source("trust: {trusted_root: gone.json}"), "/etc/addonfs/gone.json", "cannot be read");
        refused(&source("trust: {keys: [gone/]}"), "folder /etc/addonfs/gone", "cannot be read");
        refused(&format!("sources: [{{image: x@{D}}}]"), "line 1", "no type");
        refused("sources: [{type: git}]", "line 1", "unsupported source type");
        refused("sources: [{type: oci}]", "line 1", "no image");
        refused("sources: {}", "line 1", "a list");
        refused("policy: {on_untrusted: ignore}", "line 1", "finish or kill");
        refused("policy: {allowed_registries: ghcr.io}", "line 1", "a list");
        refused("policy: {ceilings: {cpu: many}}", "line 1", "cpu");
        refused("policy: {trust: {keys: [gone.pub]}}", "/etc/addonfs/gone.pub", "cannot be read");
        refused("polic: {}\nsorces: []\n", "line 2", "did you mean sources?");
        refused("a: [\n", "line", "");
        let twice = format!("{}{}", source("name: a"), source("name: a").replace("sources:\n", ""));
        refused(&twice, "line 5", "stands above already");
    }

    #[test]
    fn an_unknown_profile_is_a_wrong_policy() {
        for text in ["policy: {profile: strict}", "policy: {overrides: {profile: [loose]}}"] {
            let denied = load_text(text, Dialect::Addonfs).unwrap_err();
            assert_eq!(denied.code, Code::Policy, "{denied}");
            assert!(denied.message.contains("line 1") && denied.message.contains("secure"), "{denied}");
        }
        let both = load_text("policy: {profile: strict}\nother: 1\n", Dialect::Addonfs).unwrap_err();
        assert_eq!(both.code, Code::Config, "{both}");
    }

    fn with_policy_file(config: &str, file: &str) -> Result<(Policy, Vec<Problem>), Denied> {
        let node = yaml::parse(config.as_bytes()).unwrap();
        let mut report = Report::new(Dialect::Addonfs);
        let mut top = Field::root(&node).fields(&mut report).unwrap();
        let mut drafted = sections(&mut top, Path::new("/etc/addonfs"), &mut report);
        report.finish("addonfs.yaml").unwrap();
        let base = Path::new("/etc/flowd");
        let warnings = drafted.add_policy_file("flwd.policy.yaml", file.as_bytes(), base)?;
        let read = |path: &Path| Err(io::Error::other(path.display().to_string()));
        Ok((drafted.resolve(&read)?.0, warnings))
    }

    #[test]
    fn a_policy_file_of_flowd_loads_as_it_stands_beside_the_configuration() {
        let file = "verify_signatures: permissive\nallowed_registries: [ghcr.io]\nceilings: {cpu: \"2\", memory: 1Gi}\n\
                    overrides: {network: [host, bridge], caps: [], rootfs_writable: true, env_inheritance: false}\n\
                    subjects: [x]\n";
        let (policy, warnings) =
            with_policy_file("policy: {profile: secure, on_untrusted: kill}", file).unwrap();
        assert_eq!((policy.profile, policy.on_untrusted), (Profile::Secure, OnUntrusted::Kill));
        assert_eq!(policy.profile_from, ProfileFrom::Configuration);
        assert_eq!(policy.verify_mode(), VerifyMode::Permissive);
        assert_eq!(policy.allowed_registries.to_string(), "ghcr.io");
        assert_eq!(policy.ceilings.cpu_millis, Some(2000));
        assert_eq!(
            (&*policy.overrides.network, policy.overrides.rootfs_writable),
            (&["host".to_owned()][..], true)
        );
        let words: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert!(
            words.len() == 2 && words[0].contains("bridge") && words[1].contains("subjects"),
            "{words:?}"
        );
    }

    #[test]
    fn what_stands_in_both_is_refused() {
        let denied = with_policy_file("policy: {ceilings: {cpu: 1}}", "ceilings: {memory: 1Gi}").unwrap_err();
        assert!(
            denied.message.contains("flwd.policy.yaml") && denied.message.contains("ceilings"),
            "{denied}"
        );
        let denied = with_policy_file("", "profile: none\n").unwrap_err();
        assert_eq!(denied.code, Code::Policy);
        // Key files are beside the file that names them.
        let denied = with_policy_file("", "trust: {keys: [own.pub]}").unwrap_err();
        assert!(denied.message.contains("/etc/flowd/own.pub"), "{denied}");
    }

    #[test]
    fn an_untrusted_entry_stays_and_says_so() {
        let text = format!("sources: [{{type: oci, image: 'ghcr.io/o/x@{D}', trusted: false}}]");
        assert!(!load_text(&text, Dialect::Addonfs).unwrap().sources[0].trusted);
    }

    #[test]
    fn a_file_of_flowd_loads_as_it_stands() {
        let text = format!(
            "version: 1\nserver: {{listen: ':8080'}}\nsources:\n  - {{name: here, type: local, path: ./jobs}}\n  \
             - {{name: pg, type: oci, image: 'ghcr.io/o/pg:v1@{D}', mountPath: db/pg, color: red}}\n"
        );
        assert!(load_text(&text, Dialect::Addonfs).is_err());
        let loaded = load_text(&text, Dialect::Flowd).unwrap();
        assert_eq!(loaded.sources.len(), 1);
        let words: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), 4, "{words:?}");
        assert!(words.iter().any(|w| w.contains("color") && w.starts_with("line 5")), "{words:?}");
    }
}
